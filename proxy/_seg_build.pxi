# Part of _seg.pyx: headers and options of what is sent.

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
