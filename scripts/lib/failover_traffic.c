/* Paced, numbered traffic whose every arrival is noted, for scripts/failover.
 *
 *     failover_traffic LOG PHASE < FLOWS     sends and receives until SIGTERM; then waits for what is under way, and writes LOG
 *
 * PHASE are the microseconds by which this process sends later than others, so that not all send at once. FLOWS are lines of
 *
 *     udp    ID ADDRESS PORT PEER PORT       both ends send a numbered packet every period on one socket
 *     listen ID ADDRESS PORT PEER PORT       accepts one TCP connection and notes what arrives
 *     dial   ID ADDRESS PORT PEER PORT SIZE  connects, and writes SIZE bytes every period
 *
 * LOG are records of 16 bytes in the order of this machine: what happened, the flow, a number, nanoseconds of CLOCK_MONOTONIC,
 * which is one clock for all network namespaces of a machine.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PERIOD 10000000LL  /* nanoseconds */
#define AFTER 700000000LL  /* how long it receives after it stopped to send */
#define RETRY 100000000LL  /* between two attempts to connect */
#define PAYLOAD 64         /* bytes of a numbered packet */
#define FLOWS 512
#define RECORDS (64UL << 20) /* no log grows above 1 GiB */
#define ROOM (1 << 18)

enum what { SENT = 1, RECEIVED, ARRIVED, ENDED };
enum kind { UDP, LISTEN, DIAL, STREAM };

struct record {
    uint16_t what, flow;
    uint32_t number; /* of the packet; bytes that arrived; errno, or 0 for an orderly end */
    int64_t when;
};

struct flow {
    enum kind kind;
    uint16_t id;
    int sock, writing, dead;
    struct sockaddr_in local, peer;
    size_t size;
    uint32_t next;
    int64_t retry;
};

static struct flow flows[FLOWS];
static size_t count;
static struct record *records;
static size_t noted, room;
static int poller;
static volatile sig_atomic_t ending;
static char buffer[ROOM];

static void end(int signal)
{
    (void)signal;
    ending = 1;
}

static void fail(const char *what)
{
    fprintf(stderr, "failover_traffic: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void note(enum what what, uint16_t flow, uint32_t number, int64_t when)
{
    if (noted == room) {
        if (room >= RECORDS) {
            fprintf(stderr, "failover_traffic: the log is full\n");
            exit(1);
        }
        room = room ? room * 2 : 1 << 16;
        records = realloc(records, room * sizeof *records);
        if (!records)
            fail("realloc");
    }
    records[noted++] = (struct record){what, flow, number, when};
}

static void watch(struct flow *flow)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = flow};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, flow->sock, &event) < 0)
        fail("epoll_ctl");
}

static int open_socket(struct flow *flow, int type)
{
    int on = 1, sock = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (sock < 0)
        fail("socket");
    if (type == SOCK_STREAM && (setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
                                setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0))
        fail("setsockopt");
    if (bind(sock, (struct sockaddr *)&flow->local, sizeof flow->local) < 0)
        fail("bind");
    return sock;
}

static void dial(struct flow *flow)
{
    flow->sock = open_socket(flow, SOCK_STREAM);
    if (connect(flow->sock, (struct sockaddr *)&flow->peer, sizeof flow->peer) < 0 && errno != EINPROGRESS) {
        close(flow->sock);
        flow->sock = -1;
    } else
        watch(flow);
}

static void add(const char *kind, unsigned id, const char *local, int port, const char *peer, int peer_port, size_t size)
{
    if (count == FLOWS || id > UINT16_MAX) {
        fprintf(stderr, "failover_traffic: too many flows\n");
        exit(64);
    }
    struct flow *flow = &flows[count++];
    flow->id = id;
    flow->size = size < ROOM ? size : ROOM;
    flow->local = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    flow->peer = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(peer_port)};
    if (inet_pton(AF_INET, local, &flow->local.sin_addr) != 1 || inet_pton(AF_INET, peer, &flow->peer.sin_addr) != 1) {
        fprintf(stderr, "failover_traffic: %s or %s is no address\n", local, peer);
        exit(64);
    }
    if (!strcmp(kind, "udp")) {
        flow->kind = UDP;
        flow->sock = open_socket(flow, SOCK_DGRAM);
        watch(flow);
    } else if (!strcmp(kind, "listen")) {
        flow->kind = LISTEN;
        flow->sock = open_socket(flow, SOCK_STREAM);
        if (listen(flow->sock, 1) < 0)
            fail("listen");
        watch(flow);
    } else {
        flow->kind = DIAL;
        dial(flow);
    }
}

/* A connection is over: an orderly end, or the error. */
static void hang_up(struct flow *flow, int error)
{
    close(flow->sock);
    flow->sock = -1;
    flow->writing = 0;
    flow->dead = 1;
    note(ENDED, flow->id, error, now());
}

static void take(struct flow *flow)
{
    while (flow->sock >= 0) {
        ssize_t got;
        if (flow->kind == LISTEN) {
            int sock = accept4(flow->sock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
            if (sock < 0)
                return;
            /* One connection a flow: whoever listened now reads. */
            close(flow->sock);
            flow->sock = sock;
            flow->kind = STREAM;
            watch(flow);
        }
        got = recv(flow->sock, buffer, sizeof buffer, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (flow->kind == UDP) {
            uint32_t number;
            /* An error that ICMP reported is no packet. */
            if (got < (ssize_t)sizeof number)
                return;
            memcpy(&number, buffer, sizeof number);
            note(RECEIVED, flow->id, ntohl(number), now());
        } else if (got > 0) {
            note(ARRIVED, flow->id, got, now());
        } else {
            /* Refused or timed out before it ever stood: tried again. */
            if (flow->kind == DIAL && !flow->writing) {
                close(flow->sock);
                flow->sock = -1;
                flow->retry = now() + RETRY;
            } else
                hang_up(flow, got < 0 ? errno : 0);
            return;
        }
    }
}

static void send_one(struct flow *flow)
{
    if (flow->kind == UDP) {
        uint32_t number = htonl(flow->next);
        memcpy(buffer, &number, sizeof number);
        note(SENT, flow->id, flow->next, now());
        /* What cannot be sent is as lost as what is dropped on the way. */
        (void)!sendto(flow->sock, buffer, PAYLOAD, MSG_DONTWAIT, (struct sockaddr *)&flow->peer, sizeof flow->peer);
        flow->next++;
    } else if (flow->kind == DIAL && !flow->dead) {
        if (flow->sock < 0) {
            if (now() >= flow->retry)
                dial(flow);
            return;
        }
        if (!flow->writing) {
            struct sockaddr_in peer;
            socklen_t length = sizeof peer;
            if (getpeername(flow->sock, (struct sockaddr *)&peer, &length) < 0)
                return;
            flow->writing = 1;
        }
        if (send(flow->sock, buffer, flow->size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno != EAGAIN && errno != EINTR)
            hang_up(flow, errno);
    }
}

static void run(int64_t phase)
{
    int64_t next = (now() / PERIOD + 1) * PERIOD + phase, stop = 0;
    for (;;) {
        int64_t time = now();
        if (ending && !stop)
            stop = time + AFTER;
        if (stop && time >= stop)
            return;
        /* Late ticks are made up for, so that the number of packets does not depend on the scheduler. */
        while (!stop && time >= next) {
            for (size_t i = 0; i < count; i++)
                send_one(&flows[i]);
            next += PERIOD;
        }
        int64_t wait = (stop ? stop : next) - now();
        struct timespec timeout = {.tv_sec = wait > 0 ? wait / 1000000000 : 0, .tv_nsec = wait > 0 ? wait % 1000000000 : 0};
        struct epoll_event events[64];
        int ready = epoll_pwait2(poller, events, 64, &timeout, NULL);
        if (ready < 0 && errno != EINTR)
            fail("epoll_pwait2");
        for (int i = 0; i < ready; i++)
            take(events[i].data.ptr);
    }
}

int main(int argc, char **argv)
{
    char line[256];
    if (argc != 3) {
        fprintf(stderr, "usage: failover_traffic LOG PHASE < FLOWS\n");
        return 64;
    }
    struct sigaction action = {.sa_handler = end};
    sigaction(SIGTERM, &action, NULL);
    /* Ctrl-C is for who started it. */
    signal(SIGINT, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        fail("epoll_create1");
    while (fgets(line, sizeof line, stdin)) {
        char kind[8], local[16], peer[16];
        unsigned id;
        int port, peer_port;
        size_t size = 0;
        if (sscanf(line, "%7s %u %15s %d %15s %d %zu", kind, &id, local, &port, peer, &peer_port, &size) < 6) {
            fprintf(stderr, "failover_traffic: cannot read: %s", line);
            return 64;
        }
        add(kind, id, local, port, peer, peer_port, size);
    }
    run(atoll(argv[2]) * 1000);
    int log = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (log < 0)
        fail(argv[1]);
    for (size_t done = 0; done < noted * sizeof *records;) {
        ssize_t wrote = write(log, (char *)records + done, noted * sizeof *records - done);
        if (wrote < 0)
            fail("write");
        done += wrote;
    }
    return close(log) < 0;
}
