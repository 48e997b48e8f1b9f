/*
 * The middleboxes of an emulated link, as RFC 8684 §6 and RFC 8041 §3.5 know them.
 *
 * Keys, each for one direction; counts are per flow and begin anew when the key is set:
 *   strip=NAME+NAME...   options that become NOPs: mptcp (all of it), capable, join, dss, add_addr,
 *                        timestamps, sack_permitted, sack; none
 *   strip_on=WHERE       any, syn (without ACK), synack, rest
 *   strip_after=N        the first N packets of a flow keep their options
 *   drop_capable=1       SYNs with MP_CAPABLE vanish
 *   shift=N              sequence numbers of new flows are N higher behind the box (their ACKs and
 *                        SACK blocks, which come the other way, N lower)
 *   split=BYTES          segments with more payload are cut, with all options on each piece
 *   coalesce=BYTES       adjacent segments that wait are joined up to so much payload; the options
 *                        of the first remain
 *   corrupt=N            the Nth segment with data has one byte changed, and a right checksum
 *   rst_after=N          a RST follows the Nth packet, rst_offset above the sequence number that
 *                        is expected (0: it is taken; more: only in the window)
 *   rst_offset=BYTES
 *   nat=PATTERN          a NAT whose inside is where this direction comes from: source ports are
 *                        XORed with it; another value is a rebinding
 */
#include "middlebox.h"

#include <stdlib.h>
#include <string.h>

#define MAX_FLOWS 512
#define FIN 1
#define SYN 2
#define RST 4
#define PSH 8
#define ACK 16

enum option { EOL = 0, NOP = 1, SACK_PERMITTED = 4, SACK = 5, TIMESTAMPS = 8, MPTCP = 30 };
enum subtype { MP_CAPABLE = 0, MP_JOIN = 1, DSS = 2, ADD_ADDR = 3 };
enum where { ANY, ON_SYN, ON_SYNACK, ON_REST };
/* Bits of what is stripped: an MPTCP subtype is its own bit, other options follow. */
enum { STRIP_TIMESTAMPS = 1 << 16, STRIP_SACK_PERMITTED = 1 << 17, STRIP_SACK = 1 << 18 };

struct settings {
    uint32_t strip, strip_after, shift, split, coalesce, corrupt, rst_after, rst_offset;
    enum where strip_on;
    bool drop_capable;
    uint16_t nat;
};

/* Addresses and ports as the hosts behind any NAT see them, from a's side. */
struct tuple {
    uint8_t a[16], b[16];
    uint16_t a_port, b_port;
};

struct flow {
    struct tuple tuple;
    bool used;
    uint32_t shift[2];
    uint32_t next[2]; /* sequence number after the highest one that was passed on */
    bool seen[2];
    uint8_t last[2][60]; /* IP and TCP header of the newest packet that was passed on */
    uint32_t strip_count[2], corrupt_count[2], rst_count[2];
};

struct view {
    uint8_t *data;
    uint32_t len, tcp, payload; /* offsets */
    bool six;
};

struct box_statistics box_statistics[2];
static struct settings settings[2];
static struct flow flows[MAX_FLOWS];
static unsigned next_victim;
static bool active;

static uint16_t get16(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }

static uint32_t get32(const uint8_t *at) { return (uint32_t)get16(at) << 16 | get16(at + 2); }

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value >> 16);
    put16(at + 2, value);
}

static uint32_t sum(const uint8_t *at, uint32_t len, uint32_t start)
{
    for (; len > 1; at += 2, len -= 2)
        start += get16(at);
    return len ? start + (uint32_t)(at[0] << 8) : start;
}

static uint16_t fold(uint32_t total)
{
    while (total >> 16)
        total = (total & 0xffff) + (total >> 16);
    return (uint16_t)~total;
}

static bool look(struct view *v, uint8_t *data, uint32_t len)
{
    v->data = data;
    v->len = len;
    v->six = data[0] >> 4 == 6;
    if (len < 40 || (v->six ? data[6] : data[9]) != 6)
        return false;
    if (!v->six && (get16(data + 6) & 0x3fff))
        return false; /* a fragment */
    v->tcp = v->six ? 40 : (data[0] & 15u) * 4;
    if (len < v->tcp + 20)
        return false;
    v->payload = v->tcp + (data[v->tcp + 12] >> 4) * 4u;
    return v->payload >= v->tcp + 20 && v->payload <= len;
}

static uint8_t flags_of(const struct view *v) { return v->data[v->tcp + 13]; }

static uint32_t data_length(const struct view *v) { return v->len - v->payload; }

/* Writes lengths and checksums that fit the bytes. */
static void seal(struct view *v)
{
    uint8_t *ip = v->data;
    uint32_t size = v->len - v->tcp, total = 6 + size;
    if (v->six) {
        put16(ip + 4, size);
        total = sum(ip + 8, 32, total);
    } else {
        put16(ip + 2, v->len);
        put16(ip + 10, 0);
        put16(ip + 10, fold(sum(ip, v->tcp, 0)));
        total = sum(ip + 12, 8, total);
    }
    put16(ip + v->tcp + 16, 0);
    put16(ip + v->tcp + 16, fold(sum(ip + v->tcp, size, total)));
}

/* The next TCP option at `at`, or its end; NOPs are passed over. */
static uint32_t option_at(const struct view *v, uint32_t at, uint8_t *kind, uint8_t *size)
{
    while (at < v->payload && v->data[at] == NOP)
        at++;
    if (at + 1 >= v->payload || v->data[at] == EOL)
        return v->payload;
    *kind = v->data[at];
    *size = v->data[at + 1];
    return *size < 2 || at + *size > v->payload ? v->payload : at;
}

/* ---- flows ------------------------------------------------------------------------------- */

static void tuple_of(const struct view *v, int direction, struct tuple *tuple)
{
    uint32_t size = v->six ? 16 : 4, from = v->six ? 8 : 12;
    const uint8_t *source = v->data + from, *ports = v->data + v->tcp;
    memset(tuple, 0, sizeof(*tuple));
    memcpy(direction ? tuple->b : tuple->a, source, size);
    memcpy(direction ? tuple->a : tuple->b, source + size, size);
    tuple->a_port = get16(ports + (direction ? 2 : 0));
    tuple->b_port = get16(ports + (direction ? 0 : 2));
}

static struct flow *flow_of(const struct view *v, int direction, bool create)
{
    struct tuple tuple;
    struct flow *flow = NULL;
    bool fresh = (flags_of(v) & (SYN | ACK)) == SYN;
    tuple_of(v, direction, &tuple);
    for (int i = 0; i < MAX_FLOWS && !flow; i++)
        if (flows[i].used && !memcmp(&flows[i].tuple, &tuple, sizeof(tuple)))
            flow = &flows[i];
    /* A repeated SYN is the same flow; one after other packets is a new one. */
    if (flow && !(fresh && flow->seen[!direction]))
        return flow;
    if (!flow && !create)
        return NULL;
    if (!flow)
        flow = &flows[next_victim++ % MAX_FLOWS];
    memset(flow, 0, sizeof(*flow));
    flow->used = true;
    flow->tuple = tuple;
    for (int d = 0; d < 2 && fresh; d++)
        flow->shift[d] = settings[d].shift;
    return flow;
}

static void remember(struct flow *flow, int direction, const struct view *v)
{
    uint32_t end = get32(v->data + v->tcp + 4) + data_length(v);
    end += (flags_of(v) & SYN ? 1u : 0u) + (flags_of(v) & FIN ? 1u : 0u);
    if (!flow->seen[direction] || (int32_t)(end - flow->next[direction]) > 0)
        flow->next[direction] = end;
    flow->seen[direction] = true;
    memcpy(flow->last[direction], v->data, v->tcp + 20);
}

/* ---- changes ----------------------------------------------------------------------------- */

static bool is_stripped(const struct view *v, uint32_t at, uint8_t kind, uint32_t which)
{
    if (kind == MPTCP)
        return which >> (v->data[at + 2] >> 4) & 1;
    if (kind == TIMESTAMPS)
        return which & STRIP_TIMESTAMPS;
    if (kind == SACK_PERMITTED)
        return which & STRIP_SACK_PERMITTED;
    return kind == SACK && which & STRIP_SACK;
}

static bool strip(struct view *v, struct flow *flow, int direction)
{
    const struct settings *s = &settings[direction];
    uint8_t kind, size, syn = flags_of(v) & (SYN | ACK);
    bool changed = false;
    if (!s->strip || flow->strip_count[direction]++ < s->strip_after)
        return false;
    if ((s->strip_on == ON_SYN && syn != SYN) || (s->strip_on == ON_REST && syn & SYN) ||
        (s->strip_on == ON_SYNACK && syn != (SYN | ACK)))
        return false;
    for (uint32_t at = v->tcp + 20; (at = option_at(v, at, &kind, &size)) < v->payload; at += size)
        if (is_stripped(v, at, kind, s->strip)) {
            memset(v->data + at, NOP, size);
            changed = true;
        }
    return changed;
}

static bool shift(struct view *v, const struct flow *flow, int direction)
{
    uint32_t own = flow->shift[direction], other = flow->shift[!direction];
    uint8_t kind, size, *tcp = v->data + v->tcp;
    if (!own && !other)
        return false;
    put32(tcp + 4, get32(tcp + 4) + own);
    if (flags_of(v) & ACK)
        put32(tcp + 8, get32(tcp + 8) - other);
    for (uint32_t at = v->tcp + 20; (at = option_at(v, at, &kind, &size)) < v->payload; at += size)
        for (uint32_t edge = 2; kind == SACK && edge + 4 <= size; edge += 4)
            put32(v->data + at + edge, get32(v->data + at + edge) - other);
    return true;
}

static bool corrupt(struct view *v, struct flow *flow, int direction)
{
    uint32_t wanted = settings[direction].corrupt;
    if (!wanted || !data_length(v) || ++flow->corrupt_count[direction] != wanted)
        return false;
    v->data[v->payload + data_length(v) / 2] ^= 0x55;
    return true;
}

static bool has_capable(const struct view *v)
{
    uint8_t kind, size;
    for (uint32_t at = v->tcp + 20; (at = option_at(v, at, &kind, &size)) < v->payload; at += size)
        if (kind == MPTCP && v->data[at + 2] >> 4 == MP_CAPABLE)
            return true;
    return false;
}

/* Ports as the host behind the NAT knows them; they are translated after the flow is found. */
static bool translate_back(struct view *v, int direction)
{
    uint16_t pattern = settings[!direction].nat;
    uint8_t *port = v->data + v->tcp + 2;
    if (!pattern)
        return false;
    put16(port, get16(port) ^ pattern);
    return true;
}

static bool translate(struct view *v, int direction)
{
    uint8_t *port = v->data + v->tcp;
    if (!settings[direction].nat)
        return false;
    put16(port, get16(port) ^ settings[direction].nat);
    return true;
}

/* ---- packets of its own ------------------------------------------------------------------ */

static void send_reset(struct flow *flow, int direction, uint32_t above, box_emit emit)
{
    static uint8_t packet[60];
    struct view v = {.data = packet};
    memcpy(packet, flow->last[direction], sizeof(packet));
    v.six = packet[0] >> 4 == 6;
    v.tcp = v.six ? 40 : (packet[0] & 15u) * 4;
    v.len = v.payload = v.tcp + 20;
    put32(packet + v.tcp + 4, flow->next[direction] + above);
    put32(packet + v.tcp + 8, 0);
    packet[v.tcp + 12] = 5 << 4;
    packet[v.tcp + 13] = RST;
    put32(packet + v.tcp + 16, 0);
    seal(&v);
    box_statistics[direction].made++;
    emit(direction, packet, v.len);
}

void box_reset_flows(int direction, box_emit emit)
{
    for (int i = 0; i < MAX_FLOWS; i++)
        if (flows[i].used && flows[i].seen[direction])
            send_reset(&flows[i], direction, 0, emit);
}

static void emit_pieces(struct view *v, int direction, uint32_t size, box_emit emit)
{
    static uint8_t piece[MAX_PACKET];
    uint32_t total = data_length(v), seq = get32(v->data + v->tcp + 4);
    uint8_t flags = flags_of(v);
    for (uint32_t at = 0; at < total; at += size) {
        uint32_t count = total - at < size ? total - at : size;
        struct view part = {piece, v->payload + count, v->tcp, v->payload, v->six};
        memcpy(piece, v->data, v->payload);
        memcpy(piece + v->payload, v->data + v->payload + at, count);
        put32(piece + v->tcp + 4, seq + at);
        if (at + count < total)
            piece[v->tcp + 13] = flags & (uint8_t) ~(FIN | PSH);
        seal(&part);
        box_statistics[direction].made += at > 0;
        emit(direction, piece, part.len);
    }
}

uint32_t box_too_big(const uint8_t *data, uint32_t len, uint32_t mtu, uint8_t *icmp)
{
    bool six = data[0] >> 4 == 6;
    uint32_t header = six ? 40 : 20, size = six ? 16 : 4, from = six ? 8 : 12;
    uint32_t quoted = len < 512 ? len : 512, total = 0;
    uint8_t *message = icmp + header;
    memset(icmp, 0, header + 8);
    memcpy(icmp, data, six ? 4 : 1);
    memcpy(icmp + from, data + from + size, size);
    memcpy(icmp + from + size, data + from, size);
    memcpy(message + 8, data, quoted);
    put32(message + 4, mtu);
    if (six) {
        put16(icmp + 4, 8 + quoted);
        icmp[6] = 58;
        icmp[7] = 64;
        message[0] = 2; /* packet too big */
        total = sum(icmp + 8, 32, 58 + 8 + quoted);
    } else {
        icmp[0] = 0x45;
        put16(icmp + 2, 28 + quoted);
        icmp[8] = 64;
        icmp[9] = 1;
        message[0] = 3; /* unreachable: fragmentation needed */
        message[1] = 4;
        put16(icmp + 10, fold(sum(icmp, 20, 0)));
    }
    put16(message + 2, fold(sum(message, 8 + quoted, total)));
    return header + 8 + quoted;
}

/* ---- the way of a packet ----------------------------------------------------------------- */

/* Returns the flow, or NULL if the packet vanishes. */
static struct flow *change(struct view *v, int direction)
{
    const struct settings *s = &settings[direction];
    bool inbound = translate_back(v, direction), changed = inbound;
    struct flow *flow = flow_of(v, direction, !inbound);
    if (!flow || (s->drop_capable && (flags_of(v) & (SYN | ACK)) == SYN && has_capable(v))) {
        box_statistics[direction].dropped++;
        return NULL;
    }
    changed |= translate(v, direction);
    changed |= strip(v, flow, direction);
    changed |= shift(v, flow, direction);
    changed |= corrupt(v, flow, direction);
    if (changed) {
        box_statistics[direction].changed++;
        seal(v);
    }
    return flow;
}

void box_pass(int direction, uint8_t *data, uint32_t len, box_emit emit)
{
    const struct settings *s = &settings[direction];
    struct view v;
    if (!look(&v, data, len)) {
        emit(direction, data, len);
        return;
    }
    struct flow *flow = change(&v, direction);
    if (!flow)
        return;
    remember(flow, direction, &v);
    if (s->split && data_length(&v) > s->split)
        emit_pieces(&v, direction, s->split, emit);
    else
        emit(direction, data, len);
    if (s->rst_after && ++flow->rst_count[direction] == s->rst_after)
        send_reset(flow, direction, s->rst_offset, emit);
}

uint32_t box_join_room(int direction) { return settings[direction].coalesce; }

bool box_join(int direction, uint8_t *before, uint32_t *before_len, uint32_t room,
              const uint8_t *data, uint32_t len)
{
    struct view first, second;
    uint32_t most = settings[direction].coalesce;
    struct tuple tuples[2];
    if (!most || !look(&first, before, *before_len) || !look(&second, (uint8_t *)data, len))
        return false;
    uint32_t size = data_length(&first), more = data_length(&second);
    if (!size || !more || size + more > most || *before_len + more > room)
        return false;
    if ((flags_of(&first) | flags_of(&second)) & (SYN | RST) || flags_of(&first) & FIN)
        return false;
    tuple_of(&first, direction, &tuples[0]);
    tuple_of(&second, direction, &tuples[1]);
    if (memcmp(&tuples[0], &tuples[1], sizeof(tuples[0])))
        return false;
    if (get32(before + first.tcp + 4) + size != get32(data + second.tcp + 4))
        return false;
    memcpy(before + *before_len, data + second.payload, more);
    *before_len = first.len += more;
    /* What is cumulative is that of the newer one. */
    memcpy(before + first.tcp + 8, data + second.tcp + 8, 4);
    memcpy(before + first.tcp + 14, data + second.tcp + 14, 2);
    before[first.tcp + 13] |= flags_of(&second);
    seal(&first);
    box_statistics[direction].joined++;
    return true;
}

bool box_is_syn_with_data(uint8_t *data, uint32_t len)
{
    struct view v;
    return look(&v, data, len) && flags_of(&v) & SYN && data_length(&v);
}

/* ---- settings ---------------------------------------------------------------------------- */

static bool set_strip(struct settings *s, const char *value)
{
    static const struct {
        const char *name;
        uint32_t bits;
    } names[] = {{"none", 0},
                 {"mptcp", 0xffff},
                 {"capable", 1 << MP_CAPABLE},
                 {"join", 1 << MP_JOIN},
                 {"dss", 1 << DSS},
                 {"add_addr", 1 << ADD_ADDR},
                 {"timestamps", STRIP_TIMESTAMPS},
                 {"sack_permitted", STRIP_SACK_PERMITTED},
                 {"sack", STRIP_SACK}};
    const unsigned count = sizeof(names) / sizeof(names[0]);
    s->strip = 0;
    while (*value) {
        size_t len = strcspn(value, "+");
        unsigned i = 0;
        while (i < count && (strlen(names[i].name) != len || strncmp(names[i].name, value, len)))
            i++;
        if (i == count)
            return false;
        s->strip |= names[i].bits;
        value += len + (value[len] == '+');
    }
    return true;
}

static bool set_where(struct settings *s, const char *value)
{
    static const char *const names[] = {"any", "syn", "synack", "rest"};
    for (int i = 0; i < 4; i++)
        if (!strcmp(names[i], value)) {
            s->strip_on = (enum where)i;
            return true;
        }
    return false;
}

bool box_set(int direction, const char *key, const char *value)
{
    struct settings *s = &settings[direction];
    uint32_t number = (uint32_t)strtoul(value, NULL, 0);
    bool known = true;
    if (!strcmp(key, "strip"))
        known = set_strip(s, value);
    else if (!strcmp(key, "strip_on"))
        known = set_where(s, value);
    else if (!strcmp(key, "strip_after"))
        s->strip_after = number;
    else if (!strcmp(key, "drop_capable"))
        s->drop_capable = number != 0;
    else if (!strcmp(key, "shift"))
        s->shift = number;
    else if (!strcmp(key, "split"))
        s->split = number;
    else if (!strcmp(key, "coalesce"))
        s->coalesce = number;
    else if (!strcmp(key, "corrupt"))
        s->corrupt = number;
    else if (!strcmp(key, "rst_after"))
        s->rst_after = number;
    else if (!strcmp(key, "rst_offset"))
        s->rst_offset = number;
    else if (!strcmp(key, "nat"))
        s->nat = (uint16_t)number;
    else
        known = false;
    for (int i = 0; i < MAX_FLOWS && known; i++) {
        if (!strncmp(key, "strip", 5))
            flows[i].strip_count[direction] = 0;
        else if (!strcmp(key, "corrupt"))
            flows[i].corrupt_count[direction] = 0;
        else if (!strcmp(key, "rst_after"))
            flows[i].rst_count[direction] = 0;
    }
    active |= known;
    return known;
}

bool box_idle(void) { return !active; }
