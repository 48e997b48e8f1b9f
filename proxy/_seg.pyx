"""The segment fast path: parse, build, checksums, DSS, GSO split, GRO merge, device batches.

``_seg_py`` is its twin in Python and says what each function does; both obey the same tests.
Every length is checked here before memory is touched: the build has no bounds checks, and the
packets come from strangers.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.ref cimport PyObject, Py_XDECREF
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from proxy.errors import CodecError, LocalProtocolError

cdef extern from "arpa/inet.h" nogil:
    uint16_t htons(uint16_t value)
    uint16_t ntohs(uint16_t value)
    uint32_t htonl(uint32_t value)
    uint32_t ntohl(uint32_t value)

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    Py_ssize_t writev(int fd, const iovec *vector, int count)

cdef extern from "unistd.h" nogil:
    Py_ssize_t read(int fd, void *buffer, size_t size)

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
    TCP_ACK = 16
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


include "_seg_memory.pxi"


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


include "_seg_parse.pxi"
include "_seg_build.pxi"
include "_seg_offload.pxi"
include "_seg_device.pxi"
include "_seg_predict.pxi"
