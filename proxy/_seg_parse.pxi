# Part of _seg.pyx: from a packet to a Segment.

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
