/*
 * A middlebox in an emulated link: changes, drops and makes TCP packets (see middlebox.c).
 *
 * Direction 0 is a to b, 1 is b to a. Packets are whole IPv4 or IPv6 packets without extension
 * headers; what is no TCP passes untouched.
 */
#ifndef MIDDLEBOX_H
#define MIDDLEBOX_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_PACKET 65536

struct box_statistics {
    uint64_t changed; /* packets of which bytes were changed */
    uint64_t dropped;
    uint64_t made;   /* pieces of split segments beyond the first, RSTs, ICMP errors */
    uint64_t joined; /* segments that became a part of the one before them */
};

/* Takes a packet for `direction`; it may change the bytes afterwards. */
typedef void (*box_emit)(int direction, uint8_t *data, uint32_t len);

/* Sets one key of one direction; false: there is no such key or value. */
bool box_set(int direction, const char *key, const char *value);

/* Whether nothing was ever set: packets need not come here. */
bool box_idle(void);

/* Passes a packet on, changed, cut into pieces, or not at all. `data` has room for MAX_PACKET. */
void box_pass(int direction, uint8_t *data, uint32_t len, box_emit emit);

/* Appends a segment to the one that was to leave before it, if both are adjacent in the stream and
 * the direction coalesces; `room` is what `before` can hold. */
bool box_join(int direction, uint8_t *before, uint32_t *before_len, uint32_t room,
              const uint8_t *data, uint32_t len);

/* How much room `box_join` wants behind each packet. */
uint32_t box_join_room(int direction);

/* A RST with the next sequence number for each flow, behind what is under way. */
void box_reset_flows(int direction, box_emit emit);

/* The ICMP error that says that `data` is larger than `mtu`; its length. */
uint32_t box_too_big(const uint8_t *data, uint32_t len, uint32_t mtu, uint8_t *icmp);

/* A SYN with payload. */
bool box_is_syn_with_data(uint8_t *data, uint32_t len);

extern struct box_statistics box_statistics[2];

#endif
