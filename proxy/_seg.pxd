"""C-level view of the segment fast path, for other extension modules of this package."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef class Segment:
    cdef public bytes src
    cdef public bytes dst
    cdef public bytes key
    cdef public memoryview payload
    cdef public tuple sack
    cdef public tuple mptcp
    cdef public uint32_t seq
    cdef public uint32_t ack
    cdef public uint32_t length
    cdef public uint32_t ts_ecr
    cdef public uint32_t ssn
    cdef public int64_t ts_val
    cdef uint64_t data_ack_value
    cdef uint64_t dsn_value
    cdef public uint16_t sport
    cdef public uint16_t dport
    cdef public uint16_t window
    cdef public uint16_t urgent
    cdef public uint16_t gso_size
    cdef public uint16_t data_length
    cdef public int32_t mss
    cdef public int32_t dss_checksum
    cdef public int dss_flags
    cdef public int dss_count
    cdef public int wscale
    cdef public uint8_t flags
    cdef public uint8_t ecn
    cdef public uint8_t ttl
    cdef public uint8_t tos
    cdef public bint sack_permitted
    cdef public bint has_mptcp
    cdef public bint data_ack64
    cdef public bint dsn64
    cdef bint data_ack_present
    cdef bint dsn_present


cpdef Segment parse(bytes packet)
