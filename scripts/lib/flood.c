/* A flood of UDP packets at a steady rate, and a socket that swallows one: both cost the machine as little as they can,
 * since it is the tunnel beside them that is measured.
 *
 *   flood send ADDRESS PORT RATE SIZE FILE   sends the packets of SIZE bytes in FILE round and round, RATE a second
 *   flood drain ADDRESS PORT                 reads and forgets
 *
 * Both go on until SIGTERM, and then print how many packets a second that were. IPv4 only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* So many packets a system call: at 20,000 a second the process wakes up 312 times a second. */
#define BATCH 64
/* As large as the receive buffer of a tunnel's socket. */
#define BUFFER (8 << 20)

static volatile sig_atomic_t ended;

static void end(int signal)
{
    (void)signal;
    ended = 1;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Sleeps until that time, or until a signal. */
static void sleep_until(double when)
{
    struct timespec t = {(time_t)when, (long)((when - (time_t)when) * 1e9)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static unsigned long send_all(int sock, double rate, size_t size, const char *file)
{
    struct mmsghdr headers[BATCH];
    struct iovec parts[BATCH];
    struct stat stat;
    unsigned long sent = 0;
    size_t next = 0;
    int fd = open(file, O_RDONLY);
    if (fd < 0 || fstat(fd, &stat) < 0)
        fail(file);
    size_t count = stat.st_size / size;
    if (count < BATCH) {
        fprintf(stderr, "%s: too few packets\n", file);
        exit(1);
    }
    char *packets = mmap(NULL, stat.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (packets == MAP_FAILED)
        fail("mmap");
    memset(headers, 0, sizeof headers);
    double start = now();
    while (!ended) {
        /* From the start, not from the batch before: what was late is made up for. */
        sleep_until(start + sent / rate);
        for (int i = 0; i < BATCH; i++) {
            parts[i].iov_base = packets + next * size;
            parts[i].iov_len = size;
            headers[i].msg_hdr.msg_iov = &parts[i];
            headers[i].msg_hdr.msg_iovlen = 1;
            next = (next + 1) % count;
        }
        int done = sendmmsg(sock, headers, BATCH, 0);
        if (done > 0)
            sent += done;
        /* ICMP errors come back as refusals; a full queue is waited for. */
        else if (errno != EINTR && errno != ECONNREFUSED && errno != ENOBUFS && errno != EAGAIN)
            fail("sendmmsg");
    }
    return sent;
}

static unsigned long drain(int sock)
{
    static char room[BATCH][2048];
    struct mmsghdr headers[BATCH];
    struct iovec parts[BATCH];
    unsigned long got = 0;
    memset(headers, 0, sizeof headers);
    for (int i = 0; i < BATCH; i++) {
        parts[i].iov_base = room[i];
        parts[i].iov_len = sizeof room[i];
        headers[i].msg_hdr.msg_iov = &parts[i];
        headers[i].msg_hdr.msg_iovlen = 1;
    }
    while (!ended) {
        int done = recvmmsg(sock, headers, BATCH, MSG_WAITFORONE, NULL);
        if (done > 0)
            got += done;
        else if (errno != EINTR)
            fail("recvmmsg");
    }
    return got;
}

int main(int argc, char **argv)
{
    int sending = argc == 7 && !strcmp(argv[1], "send");
    struct sockaddr_in address = {.sin_family = AF_INET};
    if ((!sending && !(argc == 4 && !strcmp(argv[1], "drain"))) || inet_pton(AF_INET, argv[2], &address.sin_addr) != 1) {
        fprintf(stderr, "usage: flood send ADDRESS PORT RATE SIZE FILE | flood drain ADDRESS PORT\n");
        return 64;
    }
    address.sin_port = htons(atoi(argv[3]));
    /* Without SA_RESTART: a signal ends the call that waits. */
    struct sigaction action = {.sa_handler = end};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    int sock = socket(AF_INET, SOCK_DGRAM, 0);
    if (sock < 0)
        fail("socket");
    int size = BUFFER;
    if (setsockopt(sock, SOL_SOCKET, sending ? SO_SNDBUFFORCE : SO_RCVBUFFORCE, &size, sizeof size) < 0)
        fail("setsockopt");
    if ((sending ? connect : bind)(sock, (struct sockaddr *)&address, sizeof address) < 0)
        fail(sending ? "connect" : "bind");
    double start = now();
    unsigned long packets = sending ? send_all(sock, atof(argv[4]), atol(argv[5]), argv[6]) : drain(sock);
    printf("%.0f\n", packets / (now() - start));
    return 0;
}
