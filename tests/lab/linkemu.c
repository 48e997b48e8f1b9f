/*
 * linkemu: an emulated link between two TUN devices, each in its own network namespace.
 *
 *   linkemu NETNS_A IFNAME_A NETNS_B IFNAME_B [gro]
 *
 * Every packet that the kernel sends into A leaves B and the other way round, after the
 * direction's queue (drop-tail), rate (bits a second of IP bytes), loss and delay (with jitter).
 * All of it runs on a virtual clock: a packet's departure follows from the one before it, not
 * from when this process was woken, so the rate holds also when the machine is busy.
 *
 * Control: one command a line on stdin, one answer a line on stdout; end of stdin ends the link.
 *   set ab|ba|both KEY=VALUE...   rate (bit/s, 0 = unlimited), delay, jitter (ns), loss (0..1),
 *                                 queue_bytes, queue_packets (0 = unlimited), mtu (larger ones
 *                                 vanish, 0 = any), reorder (0|1: jitter may reorder), seed,
 *                                 icmp (1: and their sender is told),
 *                                 no_syn_data (1: a middlebox that drops SYNs with payload),
 *                                 and the keys of middlebox.c
 *   cut ab|ba|both                black hole: what is under way and what comes is lost
 *   restore ab|ba|both
 *   rst ab|ba|both                a RST into each flow, behind what is under way
 *   stats [reset]                 one JSON object
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "middlebox.h"

#define READ_BATCH 64
#define NEVER INT64_MAX
/* Wake for the first packet that is due and deliver with it what is due within this span (as a
 * NIC's interrupt coalescing does): well below the millisecond that the emulator promises. */
#define COALESCE_NS 300000
/* Under load, look for new packets no more often than this; the first after a rest is seen at once. */
#define MODERATE_NS 150000
#define LATE_BUCKETS 7

struct packet {
    struct packet *next, *prev;
    int64_t due;
    uint32_t len, room;
    uint8_t data[];
};

struct list {
    struct packet *head, *tail;
};

struct direction {
    int in_fd, out_fd;
    /* configuration */
    uint64_t rate, queue_bytes_max, queue_packets_max, mtu;
    int64_t delay, jitter;
    double loss;
    bool reorder, cut, no_syn_data, icmp;
    uint64_t random;
    /* state */
    struct list queue, wire;
    uint64_t queue_bytes, queue_packets;
    int64_t sent_at; /* when the transmission of the queue's head ends */
    int64_t last_due;
    /* statistics */
    uint64_t packets_in, bytes_in, packets_out, bytes_out, queue_bytes_peak;
    uint64_t lost_queue, lost_random, lost_cut, lost_mtu, lost_syn, lost_write;
    uint64_t busy_bytes; /* sent back to back, in busy_ns: the measured rate */
    int64_t busy_ns, first_in, last_out, late_max, late_sum;
    uint64_t late[LATE_BUCKETS];
};

/* ab and ba */
static struct direction both[2];

static const int64_t late_limits[LATE_BUCKETS - 1] = {50000,   100000,  200000,
                                                      500000, 1000000, 2000000};

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "linkemu: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* xorshift64*: seeded, so that a lossy run can be replayed. */
static double random_unit(struct direction *d)
{
    d->random ^= d->random >> 12;
    d->random ^= d->random << 25;
    d->random ^= d->random >> 27;
    return (double)((d->random * 2685821657736338717ull) >> 11) / 9007199254740992.0;
}

static void append(struct list *list, struct packet *p)
{
    p->next = NULL;
    p->prev = list->tail;
    if (list->tail)
        list->tail->next = p;
    else
        list->head = p;
    list->tail = p;
}

static struct packet *pop(struct list *list)
{
    struct packet *p = list->head;
    if (!p)
        return NULL;
    list->head = p->next;
    if (list->head)
        list->head->prev = NULL;
    else
        list->tail = NULL;
    return p;
}

/* Keeps the wire in order of delivery; almost always an append. */
static void insert_by_due(struct list *list, struct packet *p)
{
    struct packet *after = list->tail;
    while (after && after->due > p->due)
        after = after->prev;
    if (after == list->tail) {
        append(list, p);
        return;
    }
    p->prev = after;
    p->next = after ? after->next : list->head;
    p->next->prev = p;
    if (after)
        after->next = p;
    else
        list->head = p;
}

static void purge(struct direction *d)
{
    struct packet *p;
    while ((p = pop(&d->queue))) {
        d->lost_cut++;
        free(p);
    }
    while ((p = pop(&d->wire))) {
        d->lost_cut++;
        free(p);
    }
    d->queue_bytes = d->queue_packets = 0;
}

static int64_t send_time(const struct direction *d, const struct packet *p)
{
    return d->rate ? (int64_t)((double)p->len * 8e9 / (double)d->rate) : 0;
}

/* Moves what has been sent by `now` from the queue to the wire. */
static void send_queued(struct direction *d, int64_t now)
{
    while (d->queue.head && d->sent_at <= now) {
        struct packet *p = pop(&d->queue);
        int64_t sent_at = d->sent_at;
        d->queue_bytes -= p->len;
        d->queue_packets--;
        if (d->queue.head) {
            int64_t took = send_time(d, d->queue.head);
            d->sent_at = sent_at + took;
            d->busy_ns += took;
            d->busy_bytes += d->queue.head->len;
        }
        if (d->loss > 0 && random_unit(d) < d->loss) {
            d->lost_random++;
            free(p);
            continue;
        }
        p->due = sent_at + d->delay;
        if (d->jitter)
            p->due += (int64_t)((random_unit(d) * 2 - 1) * (double)d->jitter);
        if (p->due < sent_at)
            p->due = sent_at;
        if (!d->reorder && p->due < d->last_due)
            p->due = d->last_due;
        d->last_due = p->due;
        insert_by_due(&d->wire, p);
    }
}

static struct packet *new_packet(const uint8_t *data, uint32_t len, uint32_t more)
{
    struct packet *p = malloc(sizeof(*p) + len + more);
    if (!p)
        die("malloc");
    p->len = len;
    p->room = len + more;
    memcpy(p->data, data, len);
    return p;
}

/* A segment joins the one before it, which must wait: the head's transmission has begun. */
static bool join_queued(struct direction *d, const uint8_t *data, uint32_t len)
{
    struct packet *tail = d->queue.tail;
    uint32_t before = tail ? tail->len : 0;
    if (!tail || tail == d->queue.head ||
        !box_join((int)(d - both), tail->data, &tail->len, tail->room, data, len))
        return false;
    d->queue_bytes += tail->len - before;
    return true;
}

static void enqueue(struct direction *d, const uint8_t *data, uint32_t len, int64_t now)
{
    if (join_queued(d, data, len))
        return;
    /* A packet always fits into an empty queue, however short that is. */
    if (d->queue_packets &&
        ((d->queue_bytes_max && d->queue_bytes + len > d->queue_bytes_max) ||
         (d->queue_packets_max && d->queue_packets >= d->queue_packets_max))) {
        d->lost_queue++;
        return;
    }
    struct packet *p = new_packet(data, len, box_join_room((int)(d - both)));
    if (!d->queue.head)
        d->sent_at = now + send_time(d, p);
    append(&d->queue, p);
    d->queue_bytes += len;
    d->queue_packets++;
    if (d->queue_bytes > d->queue_bytes_peak)
        d->queue_bytes_peak = d->queue_bytes;
}

/* What the middlebox lets through, or makes. */
static void emit(int direction, uint8_t *data, uint32_t len)
{
    struct direction *d = &both[direction];
    int64_t now = now_ns();
    if (!d->mtu || len <= d->mtu) {
        send_queued(d, now);
        enqueue(d, data, len, now);
        return;
    }
    d->lost_mtu++;
    if (d->icmp) {
        uint8_t error[640];
        struct direction *back = &both[!direction];
        send_queued(back, now);
        enqueue(back, error, box_too_big(data, len, (uint32_t)d->mtu, error), now);
        box_statistics[!direction].made++;
    }
}

static void admit(struct direction *d, uint8_t *data, uint32_t len, int64_t now)
{
    if (!d->first_in)
        d->first_in = now;
    d->packets_in++;
    d->bytes_in += len;
    if (d->cut)
        d->lost_cut++;
    else if (d->no_syn_data && box_is_syn_with_data(data, len))
        d->lost_syn++;
    else if (box_idle())
        emit((int)(d - both), data, len);
    else
        box_pass((int)(d - both), data, len, emit);
}

static void receive(struct direction *d)
{
    static uint8_t buffer[MAX_PACKET];
    int64_t now = now_ns();
    for (int i = 0; i < READ_BATCH; i++) {
        ssize_t len = read(d->in_fd, buffer, sizeof(buffer));
        if (len <= 0)
            return; /* nothing more, or the interface is down */
        admit(d, buffer, (uint32_t)len, now);
    }
}

static void count_lateness(struct direction *d, int64_t late)
{
    int bucket = 0;
    if (late > d->late_max)
        d->late_max = late;
    d->late_sum += late;
    while (bucket < LATE_BUCKETS - 1 && llabs(late) > late_limits[bucket])
        bucket++;
    d->late[bucket]++;
}

static void deliver(struct direction *d, int64_t now)
{
    struct packet *p;
    send_queued(d, now);
    while (d->wire.head && d->wire.head->due <= now + COALESCE_NS) {
        p = pop(&d->wire);
        count_lateness(d, now - p->due);
        if (write(d->out_fd, p->data, p->len) < 0) {
            d->lost_write++;
        } else {
            d->packets_out++;
            d->bytes_out += p->len;
            d->last_out = now;
        }
        free(p);
    }
}

static int64_t next_event(const struct direction *d)
{
    int64_t next = d->wire.head ? d->wire.head->due : NEVER;
    if (d->queue.head) {
        int64_t ahead = d->delay > d->jitter ? d->delay - d->jitter : 0;
        int64_t first = d->sent_at + ahead;
        if (first < next)
            next = first;
    }
    return next;
}

static int open_tun(const char *netns, const char *name, bool gro)
{
    struct ifreq request;
    int fd, ns = open(netns, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET) < 0)
        die(netns);
    close(ns);
    fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        die("/dev/net/tun");
    memset(&request, 0, sizeof(request));
    /* IFF_NAPI puts the kernel's own GRO behind the device, as behind a NIC. */
    request.ifr_flags = (short)(IFF_TUN | IFF_NO_PI | (gro ? IFF_NAPI : 0));
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    if (ioctl(fd, TUNSETIFF, &request) < 0)
        die(name);
    return fd;
}

static bool set_key(struct direction *d, const char *key, const char *value)
{
    if (!strcmp(key, "rate"))
        d->rate = strtoull(value, NULL, 10);
    else if (!strcmp(key, "delay"))
        d->delay = strtoll(value, NULL, 10);
    else if (!strcmp(key, "jitter"))
        d->jitter = strtoll(value, NULL, 10);
    else if (!strcmp(key, "loss"))
        d->loss = strtod(value, NULL);
    else if (!strcmp(key, "queue_bytes"))
        d->queue_bytes_max = strtoull(value, NULL, 10);
    else if (!strcmp(key, "queue_packets"))
        d->queue_packets_max = strtoull(value, NULL, 10);
    else if (!strcmp(key, "mtu"))
        d->mtu = strtoull(value, NULL, 10);
    else if (!strcmp(key, "reorder"))
        d->reorder = atoi(value) != 0;
    else if (!strcmp(key, "icmp"))
        d->icmp = atoi(value) != 0;
    else if (!strcmp(key, "no_syn_data"))
        d->no_syn_data = atoi(value) != 0;
    else if (!strcmp(key, "seed"))
        d->random = strtoull(value, NULL, 10) * 2 + 1;
    else
        return box_set((int)(d - both), key, value);
    return true;
}

static void reset_statistics(struct direction *d)
{
    size_t from = offsetof(struct direction, packets_in);
    memset((uint8_t *)d + from, 0, sizeof(*d) - from);
    memset(&box_statistics[d - both], 0, sizeof(box_statistics[0]));
}

static void print_statistics(const struct direction *d, const char *name)
{
    printf("\"%s\":{\"packets_in\":%" PRIu64 ",\"bytes_in\":%" PRIu64 ",\"packets_out\":%" PRIu64
           ",\"bytes_out\":%" PRIu64 ",\"queue_bytes\":%" PRIu64 ",\"queue_bytes_peak\":%" PRIu64,
           name, d->packets_in, d->bytes_in, d->packets_out, d->bytes_out, d->queue_bytes,
           d->queue_bytes_peak);
    printf(",\"lost_queue\":%" PRIu64 ",\"lost_random\":%" PRIu64 ",\"lost_cut\":%" PRIu64
           ",\"lost_mtu\":%" PRIu64 ",\"lost_syn\":%" PRIu64 ",\"lost_write\":%" PRIu64,
           d->lost_queue, d->lost_random, d->lost_cut, d->lost_mtu, d->lost_syn, d->lost_write);
    const struct box_statistics *box = &box_statistics[d - both];
    printf(",\"lost_box\":%" PRIu64 ",\"changed\":%" PRIu64 ",\"made\":%" PRIu64
           ",\"joined\":%" PRIu64,
           box->dropped, box->changed, box->made, box->joined);
    printf(",\"busy_bytes\":%" PRIu64 ",\"busy_ns\":%" PRId64 ",\"first_in\":%" PRId64
           ",\"last_out\":%" PRId64 ",\"late_max_ns\":%" PRId64 ",\"late_sum_ns\":%" PRId64
           ",\"late\":[",
           d->busy_bytes, d->busy_ns, d->first_in, d->last_out, d->late_max, d->late_sum);
    for (int i = 0; i < LATE_BUCKETS; i++)
        printf("%s%" PRIu64, i ? "," : "", d->late[i]);
    printf("]}");
}

static void command(char *line)
{
    char *save = NULL, *verb = strtok_r(line, " \n", &save), *which, *word;
    struct direction *from = both, *to = both + 2;
    if (!verb) {
        printf("error empty command\n");
        return;
    }
    which = strtok_r(NULL, " \n", &save);
    if (!strcmp(verb, "stats")) {
        printf("{");
        print_statistics(&both[0], "ab");
        printf(",");
        print_statistics(&both[1], "ba");
        printf("}\n");
        if (which && !strcmp(which, "reset")) {
            reset_statistics(&both[0]);
            reset_statistics(&both[1]);
        }
        return;
    }
    if (which && !strcmp(which, "ab"))
        to = both + 1;
    else if (which && !strcmp(which, "ba"))
        from = both + 1;
    else if (!which || strcmp(which, "both")) {
        printf("error direction must be ab, ba or both\n");
        return;
    }
    if (!strcmp(verb, "cut") || !strcmp(verb, "restore")) {
        for (struct direction *d = from; d < to; d++) {
            d->cut = verb[0] == 'c';
            if (d->cut)
                purge(d);
        }
    } else if (!strcmp(verb, "rst")) {
        for (struct direction *d = from; d < to; d++)
            box_reset_flows((int)(d - both), emit);
    } else if (!strcmp(verb, "set")) {
        while ((word = strtok_r(NULL, " \n", &save))) {
            char *value = strchr(word, '=');
            if (!value) {
                printf("error %s: KEY=VALUE expected\n", word);
                return;
            }
            *value++ = 0;
            for (struct direction *d = from; d < to; d++)
                if (!set_key(d, word, value)) {
                    printf("error %s: unknown key or value\n", word);
                    return;
                }
        }
    } else {
        printf("error %s: unknown command\n", verb);
        return;
    }
    printf("ok\n");
}

/* Returns false at the end of stdin. */
static bool read_commands(void)
{
    static char buffer[4096];
    static size_t filled;
    char *newline;
    ssize_t len = read(0, buffer + filled, sizeof(buffer) - 1 - filled);
    if (len <= 0)
        return len < 0 && (errno == EAGAIN || errno == EINTR);
    filled += (size_t)len;
    buffer[filled] = 0;
    while ((newline = strchr(buffer, '\n'))) {
        *newline = 0;
        command(buffer);
        filled -= (size_t)(newline + 1 - buffer);
        memmove(buffer, newline + 1, filled + 1);
    }
    fflush(stdout);
    return filled < sizeof(buffer) - 1;
}

int main(int argc, char **argv)
{
    struct sched_param priority = {.sched_priority = 1};
    bool gro = argc == 6 && !strcmp(argv[5], "gro");
    if (argc != 5 && !gro) {
        fprintf(stderr, "usage: linkemu NETNS_A IFNAME_A NETNS_B IFNAME_B [gro]\n");
        return 2;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    both[0].in_fd = both[1].out_fd = open_tun(argv[1], argv[2], gro);
    both[0].out_fd = both[1].in_fd = open_tun(argv[3], argv[4], gro);
    both[0].random = 1;
    both[1].random = 3;
    /* A wire does not wait for a free processor; not allowed in a user namespace. */
    if (sched_setscheduler(0, SCHED_RR, &priority) < 0)
        setpriority(PRIO_PROCESS, 0, -20);
    printf("ready\n");
    fflush(stdout);
    struct pollfd fds[3] = {{.fd = 0, .events = POLLIN},
                            {.fd = both[0].in_fd, .events = POLLIN},
                            {.fd = both[1].in_fd, .events = POLLIN}};
    int64_t woken = 0;
    for (;;) {
        struct timespec wait;
        int64_t next = NEVER, now, rest;
        for (int i = 0; i < 2; i++) {
            deliver(&both[i], now_ns());
            int64_t due = next_event(&both[i]);
            next = due < next ? due : next;
        }
        now = now_ns();
        rest = woken + MODERATE_NS < next ? woken + MODERATE_NS - now : next - now;
        if (rest > 0 && next != NEVER) {
            wait.tv_sec = 0;
            wait.tv_nsec = rest;
            nanosleep(&wait, NULL);
            now += rest;
        }
        int64_t left = next == NEVER ? 1000000000 : next - now;
        left = left < 0 ? 0 : left;
        wait.tv_sec = left / 1000000000;
        wait.tv_nsec = left % 1000000000;
        if (ppoll(fds, 3, &wait, NULL) < 0 && errno != EINTR)
            die("ppoll");
        woken = now_ns();
        if (fds[0].revents && !read_commands())
            return 0;
        if (fds[1].revents & POLLIN)
            receive(&both[0]);
        if (fds[2].revents & POLLIN)
            receive(&both[1]);
        if ((fds[1].revents | fds[2].revents) & (POLLERR | POLLNVAL))
            return 0; /* a device was taken away, with its namespace */
    }
}
