# Part of _seg.pyx: header prediction (Jacobson 1990; Linux: tcp_rcv_established). What a bulk
# transfer consists of, in-order data that acknowledges nothing new and ACKs of an undisturbed flight,
# is taken here; the state is that of the Python classes, and so is what becomes of it: each step has
# its counterpart in TcpConnection.on_segment and Subflow, in the same order. All that could end
# differently is asked before anything is changed, and then left to them.

cdef enum:
    HALF = 0x80000000
    EDGE_SLACK = 65536  # proxy.mptcp.receive
    SMALL_PIECE = 512  # proxy.mptcp.reassembly
    CE_MARK = 3
    LOSS_PERSIST = 3  # proxy.tcp.core
    DELAYED_ACK = 1
    ACK_AT_ONCE = 2


cdef struct Seen:
    # What the checks found, for the steps that follow.
    uint32_t advance
    int64_t map_seq
    int64_t map_length
    int64_t map_offset
    int64_t edge  # of the peer's window as a stream offset; -1: nothing said of it
    bint new_map
    bint data_acked


def predict_tcp(self, Segment seg not None, double now):
    """Take a segment of an established plain connection if it is the expected one.

    False: nothing was changed, ``on_segment`` has to look at it.
    """
    cdef Seen seen
    if not expected(self, seg, now, &seen):
        return False
    arrived(self, seg, now)
    take_ack(self, seg, seen.advance, now)
    if seg.length:
        accept(self, seg, now)
        self._deliver(seg.seq, seg.payload, now)
        after_data(self, seg, now)
    count(self, seg)
    return True


def predict_subflow(self, Segment seg not None, double now):
    """Take a segment of an established subflow if it is the expected one.

    That is, with a DSS alone, and its data under the current mapping or one that follows it. False:
    nothing was changed, ``on_segment`` has to look at it.
    """
    cdef Seen seen
    cdef object conn
    cdef object tx
    if not expected(self, seg, now, &seen):
        return False
    conn = self.conn
    if not expected_dss(self, conn, seg, &seen):
        return False
    arrived(self, seg, now)
    conn.host.wake(conn)
    self.due = True
    self.acks_without_dss = False
    self.bare_last = False
    if seen.data_acked:
        conn.on_data_ack(
            self, seg.data_ack, seg.data_ack64, <int64_t>seg.window << <int>self.snd_wscale, now
        )
    elif seen.edge >= 0:
        tx = conn.tx
        if seen.edge > <int64_t>tx.edge:
            tx.edge = seen.edge
    if seg.dss_flags & F_MAP:
        if seg.dsn64:
            self.ack64 = True
        if seen.new_map:
            self._map_seq = <uint32_t>seen.map_seq
            self._map_length = seen.map_length
            self._map_offset = seen.map_offset
    take_ack(self, seg, seen.advance, now)
    if seg.length:
        accept(self, seg, now)
        deliver(self, conn, seg, &seen, now)
        after_data(self, seg, now)
    count(self, seg)
    return True


cdef bint expected(object self, Segment seg, double now, Seen *seen) except -1:
    # The next in order, with nothing but ACK and PSH, on a connection that nothing ails. The
    # caller knows that it is ESTABLISHED.
    cdef uint32_t length = seg.length
    cdef uint32_t una
    cdef int64_t window
    if seg.flags & ~TCP_PSH != TCP_ACK or seg.sack is not _NONE:
        return False
    if <int64_t>self.rcv_nxt != seg.seq:
        return False
    una = self.snd_una
    seen.advance = seg.ack - una
    if seen.advance:
        if length or seen.advance > <uint32_t>self.snd_nxt - una:
            return False
        if self._sacked_bytes or self.rto_count or self._mtu_probe is not None:
            return False
    if <int>self._ca_state or <int64_t>self._tlp_end >= 0 or not self.sack_permitted:
        return False
    window = <int64_t>seg.window << <int>self.snd_wscale
    if not window or not self.snd_wnd or <int>self._loss_kind == LOSS_PERSIST:
        return False
    if self.timestamps and (
        seg.ts_val < 0 or <uint32_t>(seg.ts_val - <int64_t>self._ts_recent) >= HALF
    ):
        return False
    if self._fin_acked:
        return False
    return not length or expected_data(self, seg, now)


cdef bint expected_data(object self, Segment seg, double now) except -1:
    cdef uint32_t room
    if self._closed_by_app or self.fin_received or <int64_t>self._fin_at >= 0:
        return False
    if self._reassembly is not None or (seg.ecn == CE_MARK and self.ecn):
        return False
    room = <uint32_t>self.rcv_right - seg.seq
    if room >= HALF or seg.length > room:
        return False
    return now - <double>self.last_received <= <double>self.rto


cdef bint expected_dss(object self, object conn, Segment seg, Seen *seen) except -1:
    cdef int flags = seg.dss_flags
    if seg.dss_count != 1 or flags < 0 or flags & F_FIN or seg.mptcp is not _NONE:
        return False
    if self.detached or not self.mptcp or not self.fully_established or self.doomed:
        return False
    if self.asked or not flags & F_ACK or (not seg.length and flags & F_MAP):
        return False
    if not expected_data_ack(self, conn.tx, seg, seen):
        return False
    return not seg.length or expected_mapping(self, conn, seg, seen)


cdef bint expected_data_ack(object self, object tx, Segment seg, Seen *seen) except -1:
    # DataSender.ack_offset and what on_data_ack makes of it.
    cdef int64_t una = tx.una
    cdef int64_t offset
    cdef uint64_t ahead = seg.data_ack_value - <uint64_t>tx._idsn1 - <uint64_t>una
    if tx.fin_sent:
        return False
    offset = una + (<int64_t>ahead if seg.data_ack64 else <int32_t>ahead)
    seen.data_acked = False
    seen.edge = -1
    if offset < una or offset > <int64_t>tx.nxt:
        return True  # old, or for what was never sent
    seen.edge = offset + (<int64_t>seg.window << <int>self.snd_wscale)
    if offset != una:
        seen.data_acked = True
        return not seg.length
    return True


cdef bint expected_mapping(object self, object conn, Segment seg, Seen *seen) except -1:
    # Subflow._on_mapping and _add_mapping: the current mapping, or one that begins when it is
    # used up; and all of the payload lies in it.
    cdef object rx
    cdef int64_t start
    cdef int64_t near
    cdef uint64_t distance
    if conn._held is not None or conn.checksum or self._map is not None:
        return False
    rx = conn.rx
    if <int64_t>rx.fin_at >= 0:
        return False
    seen.new_map = False
    seen.map_seq = self._map_seq
    seen.map_length = self._map_length
    seen.map_offset = self._map_offset
    if seg.dss_flags & F_MAP:
        if seg.dss_checksum >= 0 or not seg.data_length or <int64_t>self._rx_base < 0:
            return False
        near = rx.stream.rcv_nxt
        distance = seg.dsn_value - <uint64_t>rx._idsn1 - <uint64_t>near
        near += <int64_t>distance if seg.dsn64 else <int32_t>distance
        start = <uint32_t>(<uint32_t>self._rx_base + seg.ssn)
        if start == seen.map_seq and seg.data_length == seen.map_length:
            if near != seen.map_offset:
                return False
        else:
            if self._pending_maps or <uint32_t>(seg.seq - seen.map_seq) < seen.map_length:
                return False
            seen.new_map = True
            seen.map_seq = start
            seen.map_length = seg.data_length
            seen.map_offset = near
    return <int64_t><uint32_t>(seg.seq - seen.map_seq) + seg.length <= seen.map_length


cdef int arrived(object self, Segment seg, double now) except -1:
    # ``last_received``, and of ``_acceptable`` what RFC 7323 §4.3 asks for.
    cdef uint32_t last
    self.last_received = now
    if self.timestamps:
        last = self._last_ack_sent
        if <uint32_t>(last - seg.seq) < HALF and <uint32_t>(seg.seq + seg.length - last) < HALF:
            self._ts_recent = seg.ts_val
            self._ts_recent_at = now
    return 0


cdef int take_ack(object self, Segment seg, uint32_t advance, double now) except -1:
    # Recovery._process_ack in the open state; ConnectionCore._update_send_window.
    cdef int64_t before = self.snd_wnd
    cdef int64_t window = before
    cdef uint32_t newer = seg.seq - <uint32_t>self._snd_wl1
    cdef double armed
    if (
        0 < advance < HALF
        or 0 < newer < HALF
        or (newer == 0 and <uint32_t>(seg.ack - <uint32_t>self._snd_wl2) < HALF)
    ):
        window = <int64_t>seg.window << <int>self.snd_wscale
        if window != before:
            self.snd_wnd = window
        if newer:
            self._snd_wl1 = seg.seq
        self._snd_wl2 = seg.ack
        if window > <int64_t>self.snd_max_wnd:
            self.snd_max_wnd = window
    if advance:
        self._advance(seg.ack, advance, seg.ts_ecr, now)
    if (advance or window > before or self._lost_bytes) and (
        self._unsent.size or self._lost_bytes or self._fin_queued
    ):
        self._wake()
        return 0
    armed = self._armed_at
    if <double>self._loss_at < armed or <double>self._reorder_at < armed:
        self._arm(now)
    return 0


cdef int accept(object self, Segment seg, double now) except -1:
    # on_segment's estimate of the peer's MSS, Receiver._accept.
    cdef int64_t size = seg.gso_size if seg.gso_size else seg.length
    cdef int64_t mss = self._rcv_mss
    cdef int64_t unacked
    cdef int state
    if size > mss and size <= <int64_t>self.mss:
        self._rcv_mss = mss = size
    self.rcv_nxt = <uint32_t>(seg.seq + seg.length)
    self.bytes_received = <int64_t>self.bytes_received + seg.length
    unacked = <int64_t>self._unacked_bytes + seg.length
    self._unacked_bytes = unacked
    state = self._ack_state
    if state == ACK_AT_ONCE:
        return 0
    if unacked >= 2 * mss or self._quick_acks:
        self._ack_state = ACK_AT_ONCE
    elif not state:
        self._ack_state = DELAYED_ACK
        self._ack_at = now + <double>self.config.delayed_ack
    return 0


cdef int deliver(object self, object conn, Segment seg, Seen *seen, double now) except -1:
    # Subflow._deliver, Receiving.on_data and Reassembly.insert of what continues the stream.
    cdef object rx = conn.rx
    cdef object stream = rx.stream
    cdef int64_t offset = seen.map_offset + <uint32_t>(seg.seq - seen.map_seq)
    cdef int64_t end = offset + seg.length
    cdef int64_t ready
    if (
        not conn._told
        or conn._closed_by_app
        or seg.length < SMALL_PIECE
        or <int64_t>stream.rcv_nxt != offset
        or end > <int64_t>rx.edge + EDGE_SLACK
        or stream._starts
    ):
        conn.on_data(self, offset, seg.payload, now)
        return 0
    conn._now = now
    conn._last_rx = self
    stream.ready.append(seg.payload)
    ready = <int64_t>stream.ready_bytes + seg.length
    stream.ready_bytes = ready
    stream.rcv_nxt = end
    conn.receivable = ready
    return 0


cdef int after_data(object self, Segment seg, double now) except -1:
    # The rest of on_segment, with Receiver._sample_receiver_rtt.
    cdef uint32_t delta
    cdef double rtt
    cdef double old = self._drs_rtt
    cdef double at
    if self.timestamps:
        delta = <uint32_t>(<int64_t>(now * 1000.0) + <int64_t>self._ts_offset) - seg.ts_ecr
        if delta <= 60000:
            rtt = delta / 1000.0
            if old == 0.0 or rtt < old:
                old = rtt
            else:
                old = old + (rtt - old) / 8.0
            self._drs_rtt = old
    if now - <double>self._drs_at >= old:
        self._tune_receive_buffer(now)
    if <int>self._ack_state == ACK_AT_ONCE:
        self._wake()
        return 0
    at = self._armed_at
    if <double>self._ack_at < at or at <= now:
        self._arm(now)
    return 0


cdef int count(object self, Segment seg) except -1:
    cdef object counters = self.counters
    cdef object name = "TCPHPHits" if seg.length else "TCPHPAcks"
    counters[name] = counters[name] + 1
    return 0
