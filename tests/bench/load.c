/* Load for benches: many connections from one light process, so that the boxes are what is measured.
 *
 *   load serve   ADDRESS PORT
 *   load connect ADDRESS PORT SECONDS AT_ONCE BYTES
 *   load ask     ADDRESS PORT COUNT PAUSE_MS BYTES (kept|new)
 *   load hold    ADDRESS PORT COUNT AT_ONCE
 *
 * A request is eight bytes: how many bytes to answer, as a little-endian 64-bit number. ``connect``
 * opens connections for that long, each with one request, and tells how many a second were
 * answered. ``ask`` sends one request after the other, over one connection or a new one each.
 * ``hold`` opens connections, uses each once and keeps them; then each line "busy COUNT SECONDS
 * BYTES" on its stdin keeps COUNT of them asking for that long, and the end of stdin ends it.
 * Results are one JSON object a line. IPv4 only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 65536
#define MAX_TIMES 2000000
#define GIVE_UP 10.0

struct peer {
    uint64_t left;     /* bytes still to send (server) or to receive (client) */
    double began;      /* when the connection or the request began */
    uint8_t have;      /* bytes of a request that have arrived (server) */
    uint8_t asked;     /* the request is out (client) */
    uint8_t request[8];
};

static struct peer peers[MAX_FD];
static char buffer[1 << 18];
static struct epoll_event events[512];
static int poller;
static struct sockaddr_in target;
static double *times;
static size_t answered;
static long errors;

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void watch(int fd, uint32_t mask, int verb)
{
    struct epoll_event event = {.events = mask, .data.fd = fd};
    if (epoll_ctl(poller, verb, fd, &event) < 0)
        die("epoll_ctl");
}

static void no_delay(int fd)
{
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* -- server ---------------------------------------------------------------------------------- */

static void accept_all(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        no_delay(fd);
        memset(&peers[fd], 0, sizeof peers[fd]);
        watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
}

/* Sends what is owed; 0 if the connection is over. */
static int answer(int fd, struct peer *peer)
{
    while (peer->left) {
        size_t size = peer->left < sizeof buffer ? peer->left : sizeof buffer;
        ssize_t sent = send(fd, buffer, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN)
                return 0;
            watch(fd, EPOLLOUT, EPOLL_CTL_MOD);
            return 1;
        }
        peer->left -= sent;
        if (!peer->left)
            watch(fd, EPOLLIN, EPOLL_CTL_MOD);
    }
    return 1;
}

static int serve_one(int fd, struct peer *peer)
{
    if (peer->left)
        return answer(fd, peer);
    ssize_t got = recv(fd, peer->request + peer->have, sizeof peer->request - peer->have, 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    peer->have += got;
    if (peer->have < sizeof peer->request)
        return 1;
    peer->have = 0;
    memcpy(&peer->left, peer->request, sizeof peer->left);
    return answer(fd, peer);
}

static void serve(void)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&target, sizeof target) < 0 || listen(listener, 16384) < 0)
        die("listen");
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    puts("ready");
    for (;;) {
        int count = epoll_wait(poller, events, 512, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                accept_all(listener);
            else if (!serve_one(fd, &peers[fd]))
                close(fd);
        }
    }
}

/* -- client ---------------------------------------------------------------------------------- */

static int dial(int flags)
{
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    if (fd < 0 || fd >= MAX_FD)
        die("socket");
    no_delay(fd);
    if (connect(fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS)
        die("connect");
    return fd;
}

static int ask(int fd, uint64_t bytes)
{
    peers[fd].left = bytes;
    peers[fd].asked = 1;
    return send(fd, &bytes, sizeof bytes, MSG_NOSIGNAL) == sizeof bytes;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(double share)
{
    if (!answered)
        return -1;
    size_t index = share * (answered - 1);
    return times[index] * 1e3;
}

static void note(double took)
{
    if (answered < MAX_TIMES)
        times[answered++] = took;
}

static void print_times(const char *name, double took, double bytes)
{
    size_t count = answered;
    qsort(times, answered, sizeof *times, by_size);
    printf("{\"%s\": %zu, \"errors\": %ld, \"seconds\": %.4f, \"bytes\": %.0f, "
           "\"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f}\n",
           name, count, errors, took, bytes, quantile(0.5), quantile(0.99), quantile(1));
    answered = 0;
    errors = 0;
}

/* One event of a connection that has one request to make; 1 while it goes on. */
static int step(int fd, uint32_t mask, uint64_t bytes)
{
    struct peer *peer = &peers[fd];
    if (!peer->asked) {
        if (mask & (EPOLLERR | EPOLLHUP) || !ask(fd, bytes)) {
            errors++;
            return 0;
        }
        watch(fd, EPOLLIN, EPOLL_CTL_MOD);
        return 1;
    }
    ssize_t got = recv(fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EAGAIN)
        return 1;
    if (got <= 0) {
        errors++;
        return 0;
    }
    peer->left -= got;
    if (peer->left)
        return 1;
    note(now() - peer->began);
    return 0;
}

static void start_one(void)
{
    int fd = dial(SOCK_NONBLOCK);
    peers[fd].asked = 0;
    peers[fd].began = now();
    watch(fd, EPOLLOUT, EPOLL_CTL_ADD);
}

static void storm(double seconds, int at_once, uint64_t bytes)
{
    double begin = now();
    int open = 0;
    while (now() - begin < seconds) {
        for (; open < at_once; open++)
            start_one();
        int count = epoll_wait(poller, events, 512, 100);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (!step(fd, events[i].events, bytes)) {
                close(fd);
                open--;
            }
        }
    }
    double took = now() - begin;
    print_times("connections", took, (double)answered * bytes);
}

static void receive_all(int fd, uint64_t left)
{
    while (left) {
        ssize_t got = recv(fd, buffer, left < sizeof buffer ? left : sizeof buffer, 0);
        if (got <= 0)
            die("no answer");
        left -= got;
    }
}

static void ask_in_turn(int count, double pause, uint64_t bytes, int fresh)
{
    int fd = fresh ? -1 : dial(0);
    double begin = now();
    printf("{\"ms\": [");
    for (int i = 0; i < count; i++) {
        double began = now();
        if (fresh)
            fd = dial(0);
        if (!ask(fd, bytes))
            die("send");
        receive_all(fd, 1);
        double first = now() - began;
        receive_all(fd, bytes - 1);
        printf("%s%.4f", i ? ", " : "", first * 1e3);
        if (fresh)
            close(fd);
        usleep(pause * 1e3);
    }
    printf("], \"seconds\": %.4f}\n", now() - begin);
}

static int *held;

static void open_held(int count, int at_once)
{
    double begin = now();
    int started = 0, done = 0, under_way = 0;
    held = calloc(count, sizeof *held);
    while (done < count) {
        for (; under_way < at_once && started < count; under_way++, started++)
            start_one();
        int ready = epoll_wait(poller, events, 512, 1000);
        if (!ready && now() - begin > GIVE_UP + count / 200.0)
            break;
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            long failed = errors;
            if (step(fd, events[i].events, 1))
                continue;
            under_way--;
            watch(fd, 0, EPOLL_CTL_DEL);
            if (errors > failed) {
                close(fd);
                count--;
            } else {
                held[done++] = fd;
            }
        }
    }
    errors += count - done;
    print_times("held", now() - begin, done);
}

static void keep_busy(int count, double seconds, uint64_t bytes)
{
    double begin = now(), end = begin + seconds, total = 0;
    for (int i = 0; i < count; i++) {
        watch(held[i], EPOLLIN, EPOLL_CTL_ADD);
        peers[held[i]].began = begin;
        ask(held[i], bytes);
    }
    int open = count;
    while (open && now() < end + GIVE_UP) {
        int ready = epoll_wait(poller, events, 512, 100);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            struct peer *peer = &peers[fd];
            ssize_t got = recv(fd, buffer, sizeof buffer, 0);
            if (got < 0 && errno == EAGAIN)
                continue;
            if (got <= 0) {
                errors++;
                open--;
                watch(fd, 0, EPOLL_CTL_DEL);
                continue;
            }
            peer->left -= got;
            if (now() < end)
                total += got;
            if (peer->left)
                continue;
            double at = now();
            note(at - peer->began);
            if (at < end) {
                peer->began = at;
                ask(fd, bytes);
            } else {
                open--;
                watch(fd, 0, EPOLL_CTL_DEL);
            }
        }
    }
    errors += open;
    print_times("requests", seconds, total);
}

static void hold(int count, int at_once)
{
    char line[128];
    open_held(count, at_once);
    while (fgets(line, sizeof line, stdin)) {
        int busy;
        double seconds;
        unsigned long bytes;
        if (sscanf(line, "busy %d %lf %lu", &busy, &seconds, &bytes) != 3)
            die("not a command");
        keep_busy(busy, seconds, bytes);
    }
}

/* -- command line ------------------------------------------------------------------------------ */

static void prepare(const char *address, const char *port)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < MAX_FD ? limit.rlim_max : MAX_FD;
    setrlimit(RLIMIT_NOFILE, &limit);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    target.sin_family = AF_INET;
    target.sin_port = htons(atoi(port));
    if (inet_pton(AF_INET, address, &target.sin_addr) != 1)
        die("address");
    poller = epoll_create1(0);
    times = malloc(MAX_TIMES * sizeof *times);
    if (poller < 0 || !times)
        die("prepare");
}

int main(int count, char **words)
{
    if (count < 4)
        goto usage;
    prepare(words[2], words[3]);
    if (!strcmp(words[1], "serve"))
        serve();
    else if (!strcmp(words[1], "connect") && count == 7)
        storm(atof(words[4]), atoi(words[5]), strtoul(words[6], NULL, 10));
    else if (!strcmp(words[1], "ask") && count == 8)
        ask_in_turn(atoi(words[4]), atof(words[5]), strtoul(words[6], NULL, 10),
                    !strcmp(words[7], "new"));
    else if (!strcmp(words[1], "hold") && count == 6)
        hold(atoi(words[4]), atoi(words[5]));
    else
        goto usage;
    return 0;
usage:
    fputs("load serve|connect|ask|hold ADDRESS PORT ...\n", stderr);
    return 2;
}
