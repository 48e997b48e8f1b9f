"""The segment fast path: parse, build, checksums, DSS, GSO split and GRO merge.

``_seg_py`` is its twin in Python and says what each function does; both obey the same tests.
Every length is checked here before memory is touched: the build has no bounds checks, and the
packets come from strangers.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from proxy.errors import CodecError, LocalProtocolError

cdef extern from "arpa/inet.h" nogil:
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)
    uint32_t htonl(uint32_t value)
    uint32_t ntohl(uint32_t value)

DEF_FLAGS = (1, 2, 4, 8, 16, 32, 64, 128)
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = DEF_FLAGS
del DEF_FLAGS
DSS_ACK, DSS_ACK64, DSS_MAP, DSS_DSN64, DSS_FIN = 1, 2, 4, 8, 16
EMPTY = memoryview(b"")

cdef enum:
    TCP_FIN = 1
    TCP_SYN = 2
    TCP_RST = 4
    TCP_PSH = 8
    TCP_URG = 32
    TCP_CWR = 128
    F_ACK = 1  # of the DSS flags byte
    F_ACK64 = 2
    F_MAP = 4
    F_DSN64 = 8
    F_FIN = 16
    VIRTIO = 10  # bytes of virtio_net_hdr
    NEEDS_CSUM = 1
    DATA_VALID = 2
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_ECN = 0x80
    PROTO_TCP = 6
    MAX_EXTENSIONS = 8
    MAX_IP = 65535

cdef enum Fault:
    OK = 0
    SHORT
    NOT_IP
    NOT_TCP
    BAD_IP_LENGTH
    FRAGMENT
    BAD_IP_CHECKSUM
    SILLY_ADDRESS
    NOT_FOR_US
    TOO_MANY_EXTENSIONS
    BAD_GSO
    SHORT_TCP
    BAD_TCP_LENGTH
    BAD_TCP_CHECKSUM
    BAD_CSUM_START

cdef tuple FAULTS = (
    "",
    "short packet",
    "not IP",
    "not TCP",
    "bad IP length",
    "fragment",
    "bad IP checksum",
    "silly address",
    "not for us",
    "too many extension headers",
    "bad GSO type",
    "short TCP header",
    "bad TCP header length",
    "bad TCP checksum",
    "bad checksum position",
)

cdef memoryview _EMPTY = EMPTY
cdef tuple _NONE = ()


cdef struct Layout:
    # Offsets into the packet (virtio header included) of one TCP packet.
    Py_ssize_t tcp
    Py_ssize_t data
    Py_ssize_t end
    int version


# --- memory and sums ------------------------------------------------------------------------

cdef inline uint16_t get16(const uint8_t *at) noexcept nogil:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline uint32_t get32(const uint8_t *at) noexcept nogil:
    cdef uint32_t value
    memcpy(&value, at, 4)
    return ntohl(value)


cdef inline uint64_t get64(const uint8_t *at) noexcept nogil:
    return <uint64_t>get32(at) << 32 | get32(at + 4)


cdef inline uint16_t get16_little(const uint8_t *at) noexcept nogil:
    return <uint16_t>(at[1] << 8 | at[0])


cdef inline void put16(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline void put16_little(uint8_t *at, uint32_t value) noexcept nogil:
    at[0] = <uint8_t>value
    at[1] = <uint8_t>(value >> 8)


cdef inline void put32(uint8_t *at, uint32_t value) noexcept nogil:
    value = htonl(value)
    memcpy(at, &value, 4)


cdef inline void put64(uint8_t *at, uint64_t value) noexcept nogil:
    put32(at, <uint32_t>(value >> 32))
    put32(at + 4, <uint32_t>value)


cdef inline uint32_t fold(uint64_t total) noexcept nogil:
    total = <uint32_t>total + (total >> 32)
    total = <uint32_t>total + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint32_t>((total & 0xFFFF) + (total >> 16))


cdef uint32_t sum_bytes(const uint8_t *at, size_t size) noexcept nogil:
    # RFC 1071 in host order (§2 B): words of 32 bits into a sum of 64, which the compiler turns
    # into vector adds; one swap at the end. A sum is 0 only if every byte is.
    cdef uint64_t total = 0
    cdef uint32_t word
    cdef uint16_t half
    cdef size_t words = size >> 2
    cdef size_t i
    for i in range(words):
        memcpy(&word, at + 4 * i, 4)
        total += word
    at += 4 * words
    if size & 2:
        memcpy(&half, at, 2)
        total += half
        at += 2
    if size & 1:
        half = 0
        memcpy(&half, at, 1)
        total += half
    return ntohs(<uint16_t>fold(total))


cdef inline uint32_t pseudo_sum(
    const uint8_t *addresses, int size, Py_ssize_t length
) noexcept nogil:
    # ``addresses``: source and destination, as they stand one after the other in both versions.
    cdef uint64_t total = PROTO_TCP + <uint64_t>length
    cdef int i
    for i in range(0, size, 2):
        total += get16(addresses + i)
    return fold(total)


# --- the Segment ----------------------------------------------------------------------------

@cython.final
@cython.freelist(256)
@cython.no_gc
cdef class Segment:
    """One parsed TCP segment; a new object has the values of "absent"."""

    def __init__(self):
        clear(self)

    @property
    def data_ack(self):
        return self.data_ack_value if self.data_ack_present else -1

    @data_ack.setter
    def data_ack(self, value):
        self.data_ack_present = value != -1
        self.data_ack_value = value if self.data_ack_present else 0

    @property
    def dsn(self):
        return self.dsn_value if self.dsn_present else -1

    @dsn.setter
    def dsn(self, value):
        self.dsn_present = value != -1
        self.dsn_value = value if self.dsn_present else 0


cdef inline void clear_options(Segment seg):
    seg.sack = _NONE
    seg.mptcp = _NONE
    seg.mss = seg.wscale = -1
    seg.ts_val = -1
    seg.ts_ecr = 0
    seg.sack_permitted = seg.has_mptcp = False
    seg.dss_flags = seg.dss_checksum = -1
    seg.dss_count = 0
    seg.data_ack_present = seg.dsn_present = seg.data_ack64 = seg.dsn64 = False
    seg.ssn = 0
    seg.data_length = 0


cdef void clear(Segment seg):
    clear_options(seg)
    seg.src = seg.dst = seg.key = b""
    seg.payload = _EMPTY
    seg.seq = seg.ack = seg.length = 0
    seg.sport = seg.dport = seg.window = seg.urgent = seg.gso_size = 0
    seg.flags = seg.ecn = seg.ttl = seg.tos = 0


# --- parse ----------------------------------------------------------------------------------

cdef inline bint silly4(const uint8_t *ip) noexcept nogil:
    return ip[0] == 0 or ip[0] & 0xF0 == 0xE0 or (ip[0] & ip[1] & ip[2] & ip[3]) == 0xFF


cdef inline bint silly6(const uint8_t *ip) noexcept nogil:
    return ip[0] == 0xFF or (get64(ip) | get64(ip + 8)) == 0


cdef Fault locate4(const uint8_t *packet, Py_ssize_t size, Layout *at) noexcept nogil:
    cdef const uint8_t *ip = packet + VIRTIO
    cdef Py_ssize_t header = (ip[0] & 15) * 4
    cdef Py_ssize_t total = get16(ip + 2)
    if header < 20 or total < header or VIRTIO + total > size:
        return BAD_IP_LENGTH
    if ip[9] != PROTO_TCP:
        return NOT_TCP
    if get16(ip + 6) & 0x3FFF:
        return FRAGMENT
    if sum_bytes(ip, header) != 0xFFFF:
        return BAD_IP_CHECKSUM
    if silly4(ip + 12) or silly4(ip + 16):
        return SILLY_ADDRESS
    at.tcp = VIRTIO + header
    at.end = VIRTIO + total
    return OK


cdef Fault locate6(const uint8_t *packet, Py_ssize_t size, Layout *at) noexcept nogil:
    cdef const uint8_t *ip = packet + VIRTIO
    if size < VIRTIO + 40:
        return SHORT
    at.end = VIRTIO + 40 + get16(ip + 4)
    if at.end > size:
        return BAD_IP_LENGTH
    if silly6(ip + 8) or silly6(ip + 24):
        return SILLY_ADDRESS
    at.tcp = VIRTIO + 40
    if ip[6] != PROTO_TCP:
        return skip_extensions(packet, ip[6], at)
    return OK


cdef Fault skip_extensions(const uint8_t *packet, int protocol, Layout *at) noexcept nogil:
    # Hop-by-hop, destination and used-up routing headers are skipped.
    cdef int count = 0
    while protocol != PROTO_TCP:
        if protocol == 44:
            return FRAGMENT
        if protocol != 0 and protocol != 43 and protocol != 60:
            return NOT_TCP
        count += 1
        if count > MAX_EXTENSIONS:
            return TOO_MANY_EXTENSIONS
        if at.tcp + 8 > at.end:
            return BAD_IP_LENGTH
        if protocol == 43 and packet[at.tcp + 3] != 0:
            return NOT_FOR_US  # segments left (RFC 8200 §4.4)
        protocol = packet[at.tcp]
        at.tcp += 8 + packet[at.tcp + 1] * 8
        if at.tcp > at.end:
            return BAD_IP_LENGTH
    return OK


cdef Fault locate(const uint8_t *packet, Py_ssize_t size, Layout *at) noexcept nogil:
    # Finds TCP and its payload, and checks all but the TCP checksum.
    cdef Fault fault
    cdef const uint8_t *tcp
    cdef int gso_type
    cdef int address = 16
    if size < VIRTIO + 20:
        return SHORT
    at.version = packet[VIRTIO] >> 4
    if at.version == 4:
        address = 4
        fault = locate4(packet, size, at)
    elif at.version == 6:
        fault = locate6(packet, size, at)
    else:
        fault = NOT_IP
    if fault != OK:
        return fault
    gso_type = packet[1] & ~GSO_ECN
    if gso_type and (
        gso_type != (GSO_TCPV4 if at.version == 4 else GSO_TCPV6)
        or get16_little(packet + 4) == 0
    ):
        return BAD_GSO
    if at.end - at.tcp < 20:
        return SHORT_TCP
    tcp = packet + at.tcp
    at.data = at.tcp + (tcp[12] >> 4) * 4
    if at.data < at.tcp + 20 or at.data > at.end:
        return BAD_TCP_LENGTH
    if get16(tcp) == get16(tcp + 2):
        tcp = packet + VIRTIO + (12 if at.version == 4 else 8)
        if memcmp(tcp, tcp + address, address) == 0:
            return SILLY_ADDRESS  # LAND
    return OK


cdef inline bint checksum_ok(const uint8_t *packet, Layout *at) noexcept nogil:
    cdef Py_ssize_t length = at.end - at.tcp
    cdef uint32_t total
    if packet[0] & (NEEDS_CSUM | DATA_VALID):
        return True
    if at.version == 4:
        total = pseudo_sum(packet + VIRTIO + 12, 8, length)
    else:
        total = pseudo_sum(packet + VIRTIO + 8, 32, length)
    return fold(<uint64_t>total + sum_bytes(packet + at.tcp, length)) == 0xFFFF


cpdef Segment parse(bytes packet):
    """Parses a virtio header, an IP packet and TCP in it; the payload is a view of ``packet``.

    Raises CodecError for what is to be dropped: short, not TCP, bad lengths, a fragment, a bad
    checksum (unless the device vouches for it), silly addresses, over 8 IPv6 extension headers.
    """
    if packet is None:
        raise TypeError("packet must be bytes")
    cdef const uint8_t *raw = <const uint8_t *>PyBytes_AS_STRING(packet)
    cdef const uint8_t *ip = raw + VIRTIO
    cdef const uint8_t *tcp
    cdef Layout at
    cdef Fault fault = locate(raw, PyBytes_GET_SIZE(packet), &at)
    cdef Segment seg
    if fault == OK and not checksum_ok(raw, &at):
        fault = BAD_TCP_CHECKSUM
    if fault != OK:
        raise CodecError(FAULTS[<int>fault])
    seg = Segment.__new__(Segment)
    tcp = raw + at.tcp
    if at.version == 4:
        seg.tos = ip[1]
        seg.ttl = ip[8]
        set_addresses(seg, ip + 12, 4, tcp)
    else:
        seg.tos = <uint8_t>(ip[0] << 4 | ip[1] >> 4)
        seg.ttl = ip[7]
        set_addresses(seg, ip + 8, 16, tcp)
    seg.ecn = seg.tos & 3
    seg.gso_size = get16_little(raw + 4) if raw[1] & ~GSO_ECN else 0
    seg.sport = get16(tcp)
    seg.dport = get16(tcp + 2)
    seg.seq = get32(tcp + 4)
    seg.ack = get32(tcp + 8)
    seg.flags = tcp[13]
    seg.window = get16(tcp + 14)
    seg.urgent = get16(tcp + 18)
    seg.length = <uint32_t>(at.end - at.data)
    if seg.length:
        seg.payload = PyMemoryView_FromObject(packet)[at.data : at.end]
    else:
        seg.payload = _EMPTY
    clear_options(seg)
    if at.data - at.tcp > 20:
        parse_options(seg, tcp + 20, tcp + (at.data - at.tcp))
    return seg


cdef inline int set_addresses(
    Segment seg, const uint8_t *addresses, int size, const uint8_t *ports
) except -1:
    cdef bytes key = PyBytes_FromStringAndSize(NULL, 2 * size + 4)
    cdef char *to = PyBytes_AS_STRING(key)
    memcpy(to, addresses, 2 * size)
    memcpy(to + 2 * size, ports, 4)
    seg.key = key
    seg.src = PyBytes_FromStringAndSize(<const char *>addresses, size)
    seg.dst = PyBytes_FromStringAndSize(<const char *>addresses + size, size)
    return 0


cdef int parse_options(Segment seg, const uint8_t *at, const uint8_t *end) except -1:
    # RFC 9293 §3.1; what follows an impossible length is not looked at, the segment stays.
    cdef int length, kind
    while at < end and at[0] != 0:
        kind = at[0]
        if kind == 1:
            at += 1
            continue
        if end - at < 2:
            break
        length = at[1]
        if length < 2 or length > end - at:
            break
        if kind == 8:
            if length == 10:
                seg.ts_val = get32(at + 2)
                seg.ts_ecr = get32(at + 6)
        elif kind == 30:
            if length > 2 and at[2] >> 4 == 2:
                parse_dss(seg, at, length)
            elif mptcp_length_ok(at, length):
                seg.mptcp += (PyBytes_FromStringAndSize(<const char *>at, length),)
                seg.has_mptcp = True
        else:
            parse_rare_option(seg, at, length)
        at += length
    return 0


cdef int parse_rare_option(Segment seg, const uint8_t *at, int length) except -1:
    cdef int kind = at[0]
    cdef int i
    cdef list blocks
    if kind == 5:
        if length == 10 or length == 18 or length == 26 or length == 34:
            blocks = []
            for i in range(2, length, 8):
                blocks.append((get32(at + i), get32(at + i + 4)))
            seg.sack = tuple(blocks)
    elif not seg.flags & TCP_SYN:
        return 0
    elif kind == 2 and length == 4:
        seg.mss = get16(at + 2)
    elif kind == 3 and length == 3:
        seg.wscale = min(<int>at[2], 14)  # RFC 7323 §2.3
    elif kind == 4 and length == 2:
        seg.sack_permitted = True
    return 0


cdef bint mptcp_length_ok(const uint8_t *at, int length) noexcept nogil:
    # Whether the length is one that the subtype can have; an unknown subtype may have any.
    cdef int subtype
    if length < 3:
        return False
    subtype = at[2] >> 4
    if subtype == 0:
        return length == 4 or length == 12 or length == 20 or length == 22 or length == 24
    if subtype == 1:
        return length == 12 or length == 16 or length == 24
    if subtype == 3:
        if at[2] & 1:
            return length == 8 or length == 10 or length == 20 or length == 22
        return length == 16 or length == 18 or length == 28 or length == 30
    if subtype == 4:
        return length > 3
    if subtype == 5:
        return length == 3
    if subtype == 8:
        return length == 4
    return subtype > 8 or length == 12  # MP_FAIL and MP_FASTCLOSE


cdef inline void parse_dss(Segment seg, const uint8_t *at, int length):
    # RFC 8684 §3.3; the first well-formed DSS counts, of others there is only the number.
    # Nothing is written before the length is known to be right (CVE-2026-80586).
    cdef int flags, ack_size, dsn_size, size
    if length < 4:
        return
    flags = at[3] & 0x1F
    ack_size = (8 if flags & F_ACK64 else 4) if flags & F_ACK else 0
    dsn_size = (8 if flags & F_DSN64 else 4) if flags & F_MAP else 0
    size = 4 + ack_size + (dsn_size + 6 if dsn_size else 0)
    if length != size and not (dsn_size and length == size + 2):
        return
    seg.has_mptcp = True
    seg.dss_count += 1
    if seg.dss_count > 1:
        return
    seg.dss_flags = flags
    at += 4
    if ack_size:
        seg.data_ack_present = True
        seg.data_ack64 = ack_size == 8
        seg.data_ack_value = get64(at) if ack_size == 8 else get32(at)
        at += ack_size
    if dsn_size:
        seg.dsn_present = True
        seg.dsn64 = dsn_size == 8
        seg.dsn_value = get64(at) if dsn_size == 8 else get32(at)
        at += dsn_size
        seg.ssn = get32(at)
        seg.data_length = get16(at + 4)
        if length != size:
            seg.dss_checksum = get16(at + 6)


# --- build ----------------------------------------------------------------------------------

def build_header(
    bytes src not None,
    bytes dst not None,
    uint16_t sport,
    uint16_t dport,
    uint32_t seq,
    uint32_t ack,
    uint8_t flags,
    uint16_t window,
    bytes options not None,
    Py_ssize_t payload_length,
    uint16_t gso_size,
    uint8_t tos=0,
    uint8_t ttl=64,
    uint16_t ident=0,
):
    """The virtio, IP and TCP headers of a packet whose TCP checksum the device completes.

    ``options`` is padded to words, at most 40 bytes; a payload over ``gso_size`` bytes (if that
    is not 0) makes it a GSO packet. DF is set. Raises LocalProtocolError for what does not fit.
    """
    cdef int address = <int>PyBytes_GET_SIZE(src)
    cdef int ip_header = 20 if address == 4 else 40
    cdef Py_ssize_t optional = PyBytes_GET_SIZE(options)
    cdef Py_ssize_t length = 20 + optional + payload_length
    cdef bint gso = 0 < gso_size < payload_length
    cdef bytes packet
    cdef uint8_t *raw
    cdef uint8_t *ip
    cdef uint8_t *tcp
    if optional > 40 or optional & 3:
        raise LocalProtocolError("TCP options not padded or too long")
    if PyBytes_GET_SIZE(dst) != PyBytes_GET_SIZE(src) or (address != 4 and address != 16):
        raise LocalProtocolError("addresses of different or unknown families")
    if payload_length < 0 or length + (ip_header if address == 4 else 0) > MAX_IP:
        raise LocalProtocolError("packet too long")
    packet = PyBytes_FromStringAndSize(NULL, VIRTIO + ip_header + 20 + optional)
    raw = <uint8_t *>PyBytes_AS_STRING(packet)
    ip = raw + VIRTIO
    tcp = ip + ip_header
    put_virtio(raw, address, ip_header, <uint32_t>(ip_header + 20 + optional),
               gso_size if gso else 0, flags)
    if address == 4:
        ip[0] = 0x45
        ip[1] = tos
        put16(ip + 2, <uint32_t>(20 + length))
        put16(ip + 4, ident)
        put16(ip + 6, 0x4000)
        ip[8] = ttl
        ip[9] = PROTO_TCP
        memcpy(ip + 12, PyBytes_AS_STRING(src), 4)
        memcpy(ip + 16, PyBytes_AS_STRING(dst), 4)
        put_ip_checksum(ip)
    else:
        put32(ip, <uint32_t>6 << 28 | <uint32_t>tos << 20)
        put16(ip + 4, <uint32_t>length)
        ip[6] = PROTO_TCP
        ip[7] = ttl
        memcpy(ip + 8, PyBytes_AS_STRING(src), 16)
        memcpy(ip + 24, PyBytes_AS_STRING(dst), 16)
    put16(tcp, sport)
    put16(tcp + 2, dport)
    put32(tcp + 4, seq)
    put32(tcp + 8, ack)
    tcp[12] = <uint8_t>((20 + optional) << 2)
    tcp[13] = flags
    put16(tcp + 14, window)
    put16(tcp + 16, pseudo_sum(tcp - 2 * address, 2 * address, length))
    put16(tcp + 18, 0)
    memcpy(tcp + 20, PyBytes_AS_STRING(options), optional)
    return packet


cdef inline void put_virtio(
    uint8_t *raw, int address, int ip_header, uint32_t headers, uint16_t gso_size, uint8_t flags
) noexcept nogil:
    # A packet whose TCP checksum is to be completed; GSO if ``gso_size`` is not 0.
    raw[0] = NEEDS_CSUM
    raw[1] = 0
    if gso_size:
        raw[1] = GSO_TCPV4 if address == 4 else GSO_TCPV6
        if flags & TCP_CWR:
            raw[1] |= GSO_ECN
    put16_little(raw + 2, headers)
    put16_little(raw + 4, gso_size)
    put16_little(raw + 6, ip_header)
    put16_little(raw + 8, 16)


cdef inline void put_ip_checksum(uint8_t *ip) noexcept nogil:
    put16(ip + 10, 0)
    put16(ip + 10, sum_bytes(ip, (ip[0] & 15) * 4) ^ 0xFFFF)


def timestamps_option(uint32_t ts_val, uint32_t ts_ecr):
    """NOP NOP timestamps (RFC 7323 §3.2, appendix A): 12 bytes."""
    cdef uint8_t raw[12]
    put32(raw, 0x0101080A)
    put32(raw + 4, ts_val)
    put32(raw + 8, ts_ecr)
    return PyBytes_FromStringAndSize(<char *>raw, 12)


def dss_option(
    data_ack, bint ack64, dsn, uint32_t ssn, uint16_t length, int checksum, bint fin
):
    """A DSS option padded with NOPs to words; -1 is absent. The DSN is always sent as 64 bits.

    ``data_ack`` is a whole u64, cut to 32 bits unless ``ack64``; ``checksum`` needs a mapping.
    """
    cdef uint8_t raw[28]
    cdef uint8_t *at = raw + 4
    cdef int flags = F_FIN if fin else 0
    cdef uint64_t value
    if data_ack != -1:
        value = data_ack
        flags |= F_ACK
        if ack64:
            flags |= F_ACK64
            put64(at, value)
            at += 8
        else:
            put32(at, <uint32_t>value)
            at += 4
    if dsn != -1:
        value = dsn
        flags |= F_MAP | F_DSN64
        put64(at, value)
        put32(at + 8, ssn)
        put16(at + 12, length)
        at += 14
        if checksum >= 0:
            put16(at, checksum)
            at += 2
    raw[0] = 30
    raw[1] = <uint8_t>(at - raw)
    raw[2] = 0x20
    raw[3] = <uint8_t>flags
    while (at - raw) & 3:
        at[0] = 1
        at += 1
    return PyBytes_FromStringAndSize(<char *>raw, at - raw)


# --- checksums ------------------------------------------------------------------------------

cdef int sum_buffer(object data, uint32_t *total, size_t *size) except -1:
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    total[0] = sum_bytes(<const uint8_t *>view.buf, view.len)
    size[0] = view.len
    PyBuffer_Release(&view)
    return 0


def checksum(data, uint32_t initial=0):
    """The folded one's-complement sum of 16-bit words of ``data`` (RFC 1071), not complemented.

    An odd last byte counts as the high half of a word. ``initial`` is an earlier such sum.
    """
    cdef uint32_t total = 0
    cdef size_t size = 0
    sum_buffer(data, &total, &size)
    return fold(<uint64_t>total + initial)


def dss_checksum(uint64_t dsn, uint32_t ssn, uint16_t length, chunks):
    """The DSS checksum of a mapping (RFC 8684 §3.3.1): complemented, as it goes on the wire.

    ``length`` counts a DATA_FIN; ``chunks`` are the bytes of the mapping, cut anywhere.
    """
    cdef uint64_t total = (dsn >> 32) + <uint32_t>dsn + ssn + length
    cdef uint32_t part = 0
    cdef size_t size = 0
    cdef bint odd = False
    for chunk in chunks:
        sum_buffer(chunk, &part, &size)
        # A chunk that begins in the second half of a word has its halves swapped (RFC 1071 §2 A).
        total += (part >> 8 | (part & 0xFF) << 8) if odd else part
        odd ^= size & 1
    return fold(total) ^ 0xFFFF


def finish_checksum(bytes packet not None):
    """Not there yet."""
    raise NotImplementedError


def gso_split(bytes packet not None):
    """Not there yet."""
    raise NotImplementedError


def gro_merge(list packets not None):
    """Not there yet."""
    raise NotImplementedError
