# Part of _seg.pyx: what an offloading device does (checksums, GSO split, GRO merge).


def finish_checksum(bytes packet not None):
    """Completes the checksum that the virtio header asks for; other packets stay as they are.

    Raises CodecError if its place is outside of the packet.
    """
    cdef const uint8_t *raw = <const uint8_t *>PyBytes_AS_STRING(packet)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(packet)
    cdef Py_ssize_t start, place
    cdef bytes finished
    cdef uint8_t *to
    if size == 0 or not raw[0] & NEEDS_CSUM:
        return packet
    if size < VIRTIO:
        raise CodecError(FAULTS[<int>SHORT])
    start = VIRTIO + get16_little(raw + 6)
    place = start + get16_little(raw + 8)
    if place + 2 > size:
        raise CodecError(FAULTS[<int>BAD_CSUM_START])
    finished = PyBytes_FromStringAndSize(<const char *>raw, size)
    to = <uint8_t *>PyBytes_AS_STRING(finished)
    to[0] &= <uint8_t>~NEEDS_CSUM
    if to[1] == 0:
        put16_little(to + 2, 0)
    memset(to + 6, 0, 4)
    put16(to + place, sum_bytes(raw + start, size - start) ^ 0xFFFF)
    return finished


cdef inline void put_lengths(uint8_t *ip, int version, Py_ssize_t size, int ident) noexcept nogil:
    # ``size``: the whole IP packet; ``ident`` is added to the IPv4 id.
    if version == 4:
        put16(ip + 2, <uint32_t>size)
        put16(ip + 4, <uint32_t>(get16(ip + 4) + ident))
        put_ip_checksum(ip)
    else:
        put16(ip + 4, <uint32_t>(size - 40))


cdef inline uint32_t addresses_sum(const uint8_t *ip, int version, Py_ssize_t length) noexcept nogil:
    if version == 4:
        return pseudo_sum(ip + 12, 8, length)
    return pseudo_sum(ip + 8, 32, length)


cdef bytes split_one(const uint8_t *raw, const Layout *at, Py_ssize_t offset, Py_ssize_t step):
    # The wire packet with the payload from ``offset`` on, at most ``step`` bytes.
    cdef Py_ssize_t rest = at.end - at.data - offset
    cdef bint last = rest <= step
    cdef Py_ssize_t part = rest if last else step
    cdef Py_ssize_t headers = at.data - VIRTIO
    cdef bytes packet = PyBytes_FromStringAndSize(NULL, VIRTIO + headers + part)
    cdef uint8_t *ip = <uint8_t *>PyBytes_AS_STRING(packet) + VIRTIO
    cdef uint8_t *tcp = ip + (at.tcp - VIRTIO)
    cdef Py_ssize_t length = at.data - at.tcp + part
    memset(ip - VIRTIO, 0, VIRTIO)
    memcpy(ip, raw + VIRTIO, headers)
    memcpy(ip + headers, raw + at.data + offset, part)
    put_lengths(ip, at.version, headers + part, <int>(offset // step))
    put32(tcp + 4, <uint32_t>(get32(tcp + 4) + <uint32_t>offset))
    if offset:
        tcp[13] &= <uint8_t>~TCP_CWR
    if not last:
        tcp[13] &= <uint8_t>~(TCP_PSH | TCP_FIN)
    put16(tcp + 16, 0)
    put16(tcp + 16, fold(
        <uint64_t>addresses_sum(ip, at.version, length) + sum_bytes(tcp, length)
    ) ^ 0xFFFF)
    return packet


def gso_split(bytes packet not None):
    """What the wire would carry: packets of at most ``gso_size`` payload, checksums complete.

    As the kernel's TSO: IPv4 ids count up, CWR stays on the first, PSH and FIN on the last
    (net/ipv4/tcp_offload.c tcp_gso_segment). The virtio headers are zero. A packet that is not
    GSO comes back alone, TCP or not. Raises CodecError if a GSO packet does not parse.
    """
    cdef const uint8_t *raw = <const uint8_t *>PyBytes_AS_STRING(packet)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(packet)
    cdef Py_ssize_t offset = 0
    cdef Py_ssize_t step
    cdef Layout at
    cdef Fault fault
    cdef bytes single
    cdef list packets
    if size < VIRTIO:
        raise CodecError(FAULTS[<int>SHORT])
    if raw[1] & ~GSO_ECN == 0:
        single = finish_checksum(packet)
        if single is packet:
            single = PyBytes_FromStringAndSize(<const char *>raw, size)
        memset(PyBytes_AS_STRING(single), 0, VIRTIO)
        return [single]
    fault = locate(raw, size, &at)
    if fault != OK:
        raise CodecError(FAULTS[<int>fault])
    step = get16_little(raw + 4)
    packets = []
    while True:
        packets.append(split_one(raw, &at, offset, step))
        offset += step
        if offset >= at.end - at.data:
            return packets


# --- merge ----------------------------------------------------------------------------------

cdef struct Run:
    # Segments of one flow that are to become one packet; of the first of them:
    const uint8_t *raw
    Layout at
    Py_ssize_t size  # payload of one wire segment
    Py_ssize_t length  # payload so far
    Py_ssize_t last  # index of the last packet
    uint32_t seq  # of what may come next
    uint8_t flags
    bint open


cdef inline bint joinable(const uint8_t *raw, const Layout *at) noexcept nogil:
    cdef uint8_t flags = raw[at.tcp + 13]
    if at.tcp != VIRTIO + (20 if at.version == 4 else 40) or at.end == at.data:
        return False
    return not flags & (TCP_SYN | TCP_RST | TCP_URG) and flags & TCP_ACK


cdef inline bint same_flow(const uint8_t *a, const uint8_t *b, const Layout *at) noexcept nogil:
    # Both with this layout of headers, as far as TCP's ports.
    if at.version == 4:
        return memcmp(a + VIRTIO + 12, b + VIRTIO + 12, 8) == 0 and (
            memcmp(a + at.tcp, b + at.tcp, 4) == 0
        )
    return memcmp(a + VIRTIO + 8, b + VIRTIO + 8, 36) == 0


cdef inline bint same_headers(const uint8_t *a, const uint8_t *b, const Layout *at) noexcept nogil:
    # All that must be equal to join: all but lengths, ids, sums, seq, FIN, PSH and CWR.
    cdef const uint8_t *p = a + VIRTIO
    cdef const uint8_t *q = b + VIRTIO
    if at.version == 4:
        if p[1] != q[1] or memcmp(p + 6, q + 6, 3) != 0:
            return False
    elif memcmp(p, q, 4) != 0 or p[7] != q[7]:
        return False
    p = a + at.tcp
    q = b + at.tcp
    if (p[13] ^ q[13]) & ~(TCP_FIN | TCP_PSH | TCP_CWR):
        return False
    if memcmp(p + 8, q + 8, 5) != 0 or memcmp(p + 14, q + 14, 2) != 0:
        return False
    return memcmp(p + 18, q + 18, at.data - at.tcp - 18) == 0


cdef inline void extend(Run *run, const uint8_t *raw, const Layout *at) noexcept nogil:
    cdef Py_ssize_t length = at.end - at.data
    run.length += length
    run.seq = get32(raw + at.tcp + 4) + <uint32_t>length
    run.flags |= raw[at.tcp + 13]
    run.open = not raw[at.tcp + 13] & (TCP_PSH | TCP_FIN) and length % run.size == 0


cdef void begin(Run *run, const uint8_t *raw, const Layout *at, Py_ssize_t index) noexcept nogil:
    run.raw = raw
    run.at = at[0]
    run.length = 0
    run.flags = 0
    run.last = index
    run.size = get16_little(raw + 4) if raw[1] & ~GSO_ECN else at.end - at.data
    extend(run, raw, at)


cdef bint take(Run *run, const uint8_t *raw, const Layout *at) noexcept nogil:
    # Appends a segment if it continues the run (net/ipv4/tcp_offload.c tcp_gro_receive).
    cdef Py_ssize_t length = at.end - at.data
    if (
        not run.open
        or get32(raw + at.tcp + 4) != run.seq
        or raw[at.tcp + 13] & TCP_CWR
        or at.data != run.at.data
        or (run.at.data - VIRTIO) + run.length + length > MAX_IP
        or not same_headers(run.raw, raw, at)
    ):
        return False
    if raw[1] & ~GSO_ECN:
        if get16_little(raw + 4) != run.size:
            return False
    elif length > run.size:
        return False
    extend(run, raw, at)
    return True


cdef bytes join(const Run *run, tuple packets, const Py_ssize_t *following, Py_ssize_t index):
    # One packet of the run that begins with packet ``index``.
    cdef Py_ssize_t headers = run.at.data - VIRTIO
    cdef int ip_header = <int>(run.at.tcp - VIRTIO)
    cdef bytes joined = PyBytes_FromStringAndSize(NULL, VIRTIO + headers + run.length)
    cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(joined)
    cdef uint8_t *tcp = to + run.at.tcp
    cdef const uint8_t *raw
    cdef Layout at
    memcpy(to, run.raw, run.at.data)
    put_virtio(to, 4 if run.at.version == 4 else 16, ip_header, <uint32_t>headers,
               <uint16_t>run.size, run.flags)
    put_lengths(to + VIRTIO, run.at.version, headers + run.length, 0)
    tcp[13] = run.flags
    put16(tcp + 16, addresses_sum(to + VIRTIO, run.at.version, headers - ip_header + run.length))
    to += run.at.data
    while index >= 0:
        raw = <const uint8_t *>PyBytes_AS_STRING(<bytes>packets[index])
        locate(raw, PyBytes_GET_SIZE(<bytes>packets[index]), &at)
        memcpy(to, raw + at.data, at.end - at.data)
        to += at.end - at.data
        index = following[index]
    return joined


cdef bytes flow_key(const uint8_t *raw, const Layout *at):
    if at.version == 4:
        return (<const char *>raw)[VIRTIO + 12 : VIRTIO + 20] + (<const char *>raw)[at.tcp : at.tcp + 4]
    return (<const char *>raw)[VIRTIO + 8 : VIRTIO + 40] + (<const char *>raw)[at.tcp : at.tcp + 4]


cdef int sort_in(
    Py_ssize_t index, bytes packet, Run *runs, Py_ssize_t *following, bint *alone, dict flows,
    Py_ssize_t *recent,
) except -1:
    # Puts one packet into the run of its flow, or makes it the first of a new one.
    # ``recent``: the run that was used last, so that a single flow needs no dictionary.
    cdef const uint8_t *raw = <const uint8_t *>PyBytes_AS_STRING(packet)
    cdef Layout at
    cdef Py_ssize_t leader = recent[0]
    cdef bytes key
    if locate(raw, PyBytes_GET_SIZE(packet), &at) != OK or not checksum_ok(raw, &at):
        return 0
    if (
        leader < 0
        or runs[leader].at.version != at.version
        or runs[leader].at.tcp != at.tcp
        or not same_flow(runs[leader].raw, raw, &at)
    ):
        leader = flows.get(flow_key(raw, &at), -1)
    if not joinable(raw, &at):
        if leader >= 0:
            runs[leader].open = False
        return 0
    if leader >= 0 and take(&runs[leader], raw, &at):
        following[runs[leader].last] = index
        runs[leader].last = index
        alone[index] = False
        recent[0] = leader
        return 0
    begin(&runs[index], raw, &at, index)
    flows[flow_key(raw, &at)] = index
    recent[0] = index
    return 0


def gro_merge(list packets not None):
    """Joins segments that follow each other in their flow into super-segments.

    As the kernel's GRO: equal IP header, ACK, window, flags and options; none longer than the
    first; a shorter one, PSH or FIN ends it; at most 65535 bytes of IP. Segments of other flows
    may stand between. The order within a flow stays. What is joined had a good checksum (or the
    device vouched for it) and asks for a new one; all else comes back as the same object.
    """
    cdef tuple items = tuple(packets)
    cdef Py_ssize_t count = len(items)
    cdef Py_ssize_t index
    cdef Py_ssize_t recent = -1
    cdef dict flows = {}
    cdef list merged = []
    cdef Run *runs = <Run *>PyMem_Calloc(count, sizeof(Run))
    cdef Py_ssize_t *following = <Py_ssize_t *>PyMem_Calloc(count, sizeof(Py_ssize_t))
    cdef bint *alone = <bint *>PyMem_Calloc(count, sizeof(bint))
    try:
        if runs == NULL or following == NULL or alone == NULL:
            raise MemoryError
        for index in range(count):
            following[index] = -1
            alone[index] = True
            sort_in(index, <bytes?>items[index], runs, following, alone, flows, &recent)
        for index in range(count):
            if following[index] >= 0 and alone[index]:
                merged.append(join(&runs[index], items, following, index))
            elif alone[index]:
                merged.append(items[index])
        return merged
    finally:
        PyMem_Free(runs)
        PyMem_Free(following)
        PyMem_Free(alone)
