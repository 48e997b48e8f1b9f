"""The TUN device: packets with virtio headers, one system call each, super-segments whole."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

import pytun

from proxy.errors import DeviceError
from proxy.net.netlink import outside_loop, session
from proxy.seg import read_packets, write_packets
from proxy.tun.base import HEADER_LENGTH, MAX_PACKET, DeviceCounters, complete

__all__ = ["TunDevice"]

# linux/if_tun.h; pytun knows the flags of TUNSETIFF but none of these.
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_TUNGETIFF = 0x800454D2
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_TSO6 = 0x04
_TUN_F_TSO_ECN = 0x08
_SIOCSIFTXQLEN = 0x8943  # linux/sockios.h

_IOV_MAX = 1024  # linux/uio.h UIO_MAXIOV

QUEUE_LENGTH = 4096
"""Packets that the kernel keeps for one queue of ours before it drops (the default is 500).

The ring holds pointers, so its size costs 8 octets a packet; what it buys is that a burst of
small frames is not lost while the process is away for some milliseconds (garbage collection, the
scheduler): 4,096 frames of 1.5 KB last 50 ms at 1 Gbit/s. Standing queues do not form in it,
since a TCP that is ended here advertises a window that its reader can keep up with.
"""

_FLAGS = pytun.IFF_TUN | pytun.IFF_NO_PI | pytun.IFF_VNET_HDR | pytun.IFF_MULTI_QUEUE

_NO_ROOM = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
# EBADFD: the interface was deleted under an open descriptor (drivers/net/tun.c, tun_get()).
_GONE = frozenset({errno.EBADFD, errno.EBADF, errno.ENODEV})


class _Queue:
    """A queue that another process of ours made."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self.name = name

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)


class TunDevice:
    """One queue of a TUN interface.

    ``counters`` says what was dropped and why; ``siblings`` are the other queues when ``open``
    was asked for more than one. ``offload`` is False when the packets of this queue are MTU-sized
    and complete, because that was asked for or because the kernel refused offload.
    """

    __slots__ = ("_fd", "_tun", "counters", "name", "offload", "siblings")

    def __init__(self, tun: pytun.TunTapDevice | _Queue, offload: bool) -> None:
        self._tun = tun
        self._fd: int = tun.fileno()
        self.name: str = tun.name
        self.offload = offload and _set_offload(self._fd)
        self.counters = DeviceCounters()
        self.siblings: tuple[TunDevice, ...] = ()

    @classmethod
    def open(
        cls, name: str, *, queues: int = 1, mtu: int = 1500, offload: bool = True
    ) -> TunDevice:
        """Create the interface ``name`` (down, without addresses), or attach to a persistent one.

        ``queues`` (1..256) is the number of descriptors, each a device of its own; ``mtu`` counts
        octets of IP. Raises DeviceError; then nothing is left open.
        """
        opened: list[TunDevice] = []
        try:
            for index in range(queues):
                opened.append(cls(_attach(name, first=index == 0), offload))
            _configure(opened, mtu)
        except BaseException:
            for device in opened:
                device.close()
            raise
        opened[0].siblings = tuple(opened[1:])
        return opened[0]

    @classmethod
    def adopt(cls, descriptor: int, name: str, *, offload: bool) -> TunDevice:
        """The queue of ``name`` that ``open`` made in another process, which keeps it open too."""
        return cls(_Queue(descriptor, name), offload)

    def read(self) -> bytes | None:
        """The next packet (virtio header, then IP), or None when there is none now.

        Raises DeviceError when the interface is gone.
        """
        # One os.read into a new 64 KB object that is then cut to size. Measured (6.18, glibc):
        # 1.0 us for a bare ACK and 5.7 us for 46 KB, against 1.4 us and 7.1 us for a readv() into
        # a standing buffer and a copy out of it: shrinking in place is cheaper than copying.
        try:
            packet = os.read(self._fd, MAX_PACKET)
        except BlockingIOError:
            return None
        except OSError as error:
            self._check_alive(error)
            return None
        counters = self.counters
        counters.read_packets += 1
        counters.read_bytes += len(packet)
        return packet

    def read_batch(self, limit: int) -> list[bytes]:
        """The next packets, ``limit`` at most; an empty list when there is none now.

        Raises DeviceError when the interface is gone.
        """
        try:
            packets = read_packets(self._fd, limit)
        except OSError as error:
            self._check_alive(error)
            return []
        counters = self.counters
        counters.read_packets += len(packets)
        counters.read_bytes += sum(map(len, packets))
        return packets

    def write_batch(self, packets: list[list[bytes | memoryview]]) -> None:
        """Send packets in order, each given as an iovec; what is dropped is counted.

        Raises DeviceError when the interface is gone.
        """
        if not self.offload:
            for packet in packets:
                self._write_plain(packet)
            return
        counters = self.counters
        done = 0
        while done < len(packets):
            count, size, code = write_packets(self._fd, packets, done)
            counters.written_packets += count
            counters.written_bytes += size
            done += count
            if code:
                self._refused(OSError(code, os.strerror(code)))
                done += 1

    def write(self, packet: list[bytes | memoryview]) -> bool:
        """Send one packet, given as an iovec. False: it was dropped, and counted.

        Raises DeviceError when the interface is gone.
        """
        if not self.offload:
            return self._write_plain(packet)
        try:
            written = os.writev(self._fd, packet)
        except OSError as error:
            if len(packet) > _IOV_MAX:
                return self.write([b"".join(packet)])
            return self._refused(error)
        counters = self.counters
        counters.written_packets += 1
        counters.written_bytes += written
        return True

    def _write_plain(self, packet: list[bytes | memoryview]) -> bool:
        """Without offload the kernel shall get what could have been on a wire."""
        joined = b"".join(packet)
        segments = complete(joined) if len(joined) > HEADER_LENGTH else []
        if not segments:
            self.counters.rejected += 1
            return False
        for segment in segments:
            try:
                self.counters.written_bytes += os.write(self._fd, segment)
            except OSError as error:
                return self._refused(error)
        self.counters.written_packets += 1
        return True

    def _refused(self, error: OSError) -> bool:
        counters = self.counters
        if error.errno in _NO_ROOM:
            counters.dropped += 1
        elif error.errno == errno.EIO:
            counters.down += 1
            self._check_alive(error)
        else:
            counters.rejected += 1
            self._check_alive(error)
        return False

    def _check_alive(self, error: OSError) -> None:
        if self._fd < 0:
            raise DeviceError(f"{self.name}: the device is closed") from None
        if error.errno in _GONE:
            raise DeviceError(f"{self.name}: the interface is gone") from error
        try:
            fcntl.ioctl(self._fd, _TUNGETIFF, bytes(40))
        except OSError:
            raise DeviceError(f"{self.name}: the interface is gone") from error

    def fileno(self) -> int:
        """The descriptor, for the event loop."""
        return self._fd

    def close(self) -> None:
        """Close this queue; with the last queue the interface goes, unless it is persistent."""
        for device in self.siblings:
            device.close()
        if self._fd >= 0:
            self._fd = -1
            self._tun.close()


def _attach(name: str, first: bool) -> pytun.TunTapDevice:
    """One more queue of ``name``.

    The first one insists on a new interface: the kernel would silently hand a second process a
    queue of a running one's device, and with it half of its packets.
    """
    try:
        if not first:
            return pytun.TunTapDevice(name=name, flags=_FLAGS)
        try:
            return pytun.TunTapDevice(name=name, flags=_FLAGS | pytun.IFF_TUN_EXCL)
        except pytun.Error as error:
            if _errno(error) != errno.EBUSY or not outside_loop(_is_idle, name):
                raise
            # Persistent and made for us beforehand, by `ip tuntap add ... multi_queue vnet_hdr`.
            return pytun.TunTapDevice(name=name, flags=_FLAGS)
    except pytun.Error as error:
        raise DeviceError(_explain(name, error)) from None


def _explain(name: str, error: Exception) -> str:
    code = _errno(error)
    if code == errno.EBUSY:
        return f"{name}: another process uses this interface, or it is no TUN device"
    if code == errno.EINVAL:
        return f"{name}: the interface exists without multi_queue and vnet_hdr"
    if code in (errno.EPERM, errno.EACCES):
        return f"{name}: no permission to make a TUN device (CAP_NET_ADMIN is needed)"
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return "/dev/net/tun: the kernel has no TUN driver here (modprobe tun)"
    return f"{name}: cannot make a TUN device: {error}"


def _errno(error: Exception) -> int:
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0


def _is_idle(name: str) -> bool:
    """Whether ``name`` is a TUN interface to which no process is attached."""
    with session() as ipr:
        for link in ipr.get_links(ifname=name):
            info = link.get_attr("IFLA_LINKINFO")
            if info is None or info.get_attr("IFLA_INFO_KIND") != "tun":
                return False
            data = info.get_attr("IFLA_INFO_DATA")
            return data is not None and not data.get_attr("IFLA_TUN_NUM_QUEUES")
    return False


def _set_offload(fd: int) -> bool:
    """Let super-segments and unfinished checksums through; False where that is refused."""
    base = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6
    for flags in (base | _TUN_F_TSO_ECN, base):
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)
        except OSError:
            continue
        return True
    return False


def _configure(queues: list[TunDevice], mtu: int) -> None:
    """What belongs to the interface rather than to a queue, and the queues' modes."""
    device = queues[0]
    try:
        for queue in queues:
            fcntl.ioctl(queue.fileno(), _TUNSETVNETHDRSZ, struct.pack("i", HEADER_LENGTH))
            os.set_blocking(queue.fileno(), False)
        assert isinstance(device._tun, pytun.TunTapDevice)
        device._tun.mtu = mtu
        request = struct.pack("16si20x", device.name.encode(), QUEUE_LENGTH)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFTXQLEN, request)
    except (OSError, pytun.Error) as error:
        raise DeviceError(f"{device.name}: cannot set it up: {error}") from None
