# Part of _seg.pyx: reading and writing the wire's integers, one's-complement sums.

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
