/*
 * blast: the load and the stop-watches of the benches.  One mode per run, bounded in time and
 * count, one JSON object on stdout when it ends (SIGTERM and SIGINT end it early, with its report).
 *
 *     blast raw --interface IF [--dst MAC] [--src MAC] [--head HEX] [--size N] [--rate R] [--count N] [--seconds S]
 *               [--flows N] [--late-ms N]
 *     blast udp-send --to IP [--port P] [--size N] [--rate R] [--count N] [--seconds S]
 *     blast udp-flood --to IP [--port P] [--size N] [--segments N] [--seconds S]
 *     blast sink [--port P] [--seconds S]
 *     blast udp-recv [--port P] [--seconds S] [--idle-ms N] [--gap-ms N]
 *     blast pps-recv --interface IF [--seconds S]
 *     blast rtt --to IP [--port P] [--size N] [--count N] [--seconds S] [--interval-us N]
 *     blast echo [--port P] [--seconds S]
 *     blast ping --to IP [--count N] [--seconds S] [--interval-us N]
 *     blast tcp-send --to IP [--port P] [--seconds S] [--mbit R]
 *     blast tcp-recv [--port P] [--seconds S] [--gap-ms N]
 *     blast awake [--seconds S]
 *
 * `raw` sends with sendmmsg on a packet socket that bypasses the queueing discipline; --head is what follows
 * the MACs, the EtherType first.  With --flows they are UDP datagrams of so many source ports in turn (at
 * most 64).  What is sent at a rate catches up what it missed in the last 20 milliseconds, or --late-ms.  `udp-send`
 * numbers and times its datagrams, `udp-recv` says which were lost, came twice or out of order
 * and when nothing came.  `udp-flood` sends as many as go; with --segments N, N of them are handed to the kernel in one
 * piece (UDP_SEGMENT), to be cut where it must be.  A `sink` has the port and reads nothing.  `awake` keeps every
 * processor from sleeping and gives way to whatever else wants it.  `ping` sends an ICMP echo every interval whether or not the last one was
 * answered; `rtt` waits for each answer of an `echo`.  Instants (`at`) are CLOCK_REALTIME seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 64,
    SEQ_MAX = 50000000,             /* sequence numbers that one run may use */
    GAPS_MAX = 1000,
    PROBE = 16,                     /* bytes of sequence number and time at the head of a datagram */
    PACING_TICK = 200,              /* microseconds that the pacing rests at least */
};
static const uint64_t SECOND = 1000000000, MS = 1000000;

static struct {
    const char *to, *interface, *dst, *src, *head, *port;
    uint64_t count, size, idle_ms, interval_us, flows, segments;
    double seconds, rate, gap_ms, late_ms, mbit;
} arg = { .head = "88b5" /* IEEE 802 local experimental */, .port = "5001", .size = 60, .seconds = 10, .gap_ms = 10, .late_ms = 20,
          .interval_us = 0 };

static volatile sig_atomic_t stop;

static void on_signal(int number) { (void)number; stop = 1; }

static void fail(const char *what, ...)
{
    int saved = errno;
    va_list list;
    va_start(list, what);
    fputs("blast: ", stderr);
    vfprintf(stderr, what, list);
    fprintf(stderr, ": %s\n", strerror(saved));
    va_end(list);
    exit(1);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

static double since(uint64_t start) { return (double)(now_ns() - start) / 1e9; }

static void rest(uint64_t ns)
{
    struct timespec t = { .tv_sec = (time_t)(ns / SECOND), .tv_nsec = (long)(ns % SECOND) };
    nanosleep(&t, NULL);
}

static bool over(uint64_t start) { return stop || since(start) >= arg.seconds; }

/* ── small shared parts ───────────────────────────────────────────────────────────── */

static int inet_socket(int type, bool passive)
{
    struct addrinfo hints = { .ai_family = passive ? AF_INET6 : AF_UNSPEC, .ai_socktype = type,
                              .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | (passive ? AI_PASSIVE : 0) };
    struct addrinfo *found;
    int one = 1, zero = 0, buffer = 64 << 20;
    if (!passive && !arg.to) {
        fputs("blast: --to is missing\n", stderr);
        exit(2);
    }
    if (getaddrinfo(passive ? NULL : arg.to, arg.port, &hints, &found)) {
        fprintf(stderr, "blast: %s is not an address\n", arg.to);
        exit(2);
    }
    int fd = socket(found->ai_family, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket");
    if (type == SOCK_DGRAM)
        setsockopt(fd, SOL_SOCKET, passive ? SO_RCVBUFFORCE : SO_SNDBUFFORCE, &buffer, sizeof buffer);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (passive) {                              /* one socket for both families */
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
        if (bind(fd, found->ai_addr, found->ai_addrlen) < 0)
            fail("bind port %s", arg.port);
    } else if (connect(fd, found->ai_addr, found->ai_addrlen) < 0)
        fail("connect %s port %s", arg.to, arg.port);
    freeaddrinfo(found);
    return fd;
}

/* How many should have been sent by now, at most `room`; a sender that falls further behind than --late-ms is not
 * let catch up in one burst: it has missed its rate, and its report says so. */
static uint64_t due(uint64_t *start, uint64_t sent, double rate, uint64_t room)
{
    if (rate <= 0)
        return room;
    uint64_t target = (uint64_t)((double)(now_ns() - *start) / 1e9 * rate) + 1;
    if (target <= sent)
        return 0;
    uint64_t behind = target - sent;
    if ((double)behind > rate * arg.late_ms / 1000 + BATCH)
        *start += (uint64_t)((double)behind / rate * 1e9);
    return behind < room ? behind : room;
}

/* At least the tick; where the next is due much later a sender that looked each tick would cost a small machine much. */
static void rest_until_due(uint64_t start, uint64_t sent, double rate)
{
    uint64_t tick = PACING_TICK * 1000ull, longest = SECOND / 10, now = now_ns();
    uint64_t at = start + (uint64_t)((double)sent / rate * 1e9);
    uint64_t wait = at > now + tick ? at - now : tick;
    rest(wait < longest ? wait : longest);
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double percentile_us(const uint64_t *sorted, uint64_t n, double p)
{
    return n ? (double)sorted[(uint64_t)(p / 100 * (double)(n - 1) + 0.5)] / 1e3 : -1;
}

struct gaps { uint64_t n; struct { double at, ms; } gap[GAPS_MAX]; double longest; };
static struct gaps gaps;

static void gap(uint64_t before, uint64_t after)
{
    double ms = after > before ? (double)(after - before) / 1e6 : 0;
    if (ms > gaps.longest)
        gaps.longest = ms;
    if (ms >= arg.gap_ms && gaps.n < GAPS_MAX) {
        gaps.gap[gaps.n].at = (double)before / 1e9;
        gaps.gap[gaps.n++].ms = ms;
    }
}

static void print_gaps(void)
{
    printf(", \"longest_silence_ms\": %.3f, \"silences\": [", gaps.longest);
    for (uint64_t i = 0; i < gaps.n; i++)
        printf("%s{\"at\": %.6f, \"ms\": %.3f}", i ? ", " : "", gaps.gap[i].at, gaps.gap[i].ms);
    printf("]");
}

/* ── raw: frames from a packet socket ─────────────────────────────────────────────── */

static struct mmsghdr message[BATCH];
static struct iovec vector[BATCH];
static uint8_t buffer[BATCH][65536];

static void batch_of(size_t size)
{
    for (int i = 0; i < BATCH; i++) {
        vector[i] = (struct iovec){ .iov_base = buffer[i], .iov_len = size };
        message[i].msg_hdr = (struct msghdr){ .msg_iov = &vector[i], .msg_iovlen = 1 };
    }
}

static void need_interface(void)
{
    if (!arg.interface) {
        fputs("blast: --interface is missing\n", stderr);
        exit(2);
    }
}

/* Addresses and ports are all that is looked at: 192.0.2.254 to 192.0.2.2, port 9. */
static void udp_headers(uint8_t *frame, uint16_t port)
{
    static const uint8_t head[] = { 8, 0, 0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 254, 192, 0, 2, 2 };
    memcpy(frame + 12, head, sizeof head);
    frame[34] = (uint8_t)(port >> 8), frame[35] = (uint8_t)port, frame[37] = 9, frame[39] = 26;
}

static void read_mac(const char *text, uint8_t *mac)
{
    if (text && sscanf(text, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) != 6) {
        fprintf(stderr, "blast: %s is not a MAC address\n", text);
        exit(2);
    }
}

/* A frame as the arguments have it, from `source` unless they say otherwise. */
static void write_frame(uint8_t *frame, const char *source)
{
    static const uint8_t nobody[6] = { 2, 0, 0, 0, 0, 0xfe };
    memcpy(frame, nobody, 6);
    memcpy(frame + 6, source, 6);
    read_mac(arg.dst, frame);
    read_mac(arg.src, frame + 6);
    for (size_t i = 0; arg.head[i] && arg.head[i + 1] && 12 + i / 2 < arg.size; i += 2)
        if (sscanf(arg.head + i, "%2hhx", frame + 12 + i / 2) != 1) {
            fprintf(stderr, "blast: --head takes hexadecimal digits, not %s\n", arg.head);
            exit(2);
        }
}

static int raw(void)
{
    need_interface();
    struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(arg.interface) };
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), one = 1, space = 16 << 20;
    struct ifreq r;
    memset(&r, 0, sizeof r);
    strncpy(r.ifr_name, arg.interface, IFNAMSIZ - 1);
    if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &r) < 0 || bind(fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("%s", arg.interface);
    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &space, sizeof space);
    batch_of(arg.size);
    for (int i = 0; i < BATCH; i++) {
        write_frame(buffer[i], r.ifr_hwaddr.sa_data);
        if (arg.flows)
            udp_headers(buffer[i], (uint16_t)(1000 + (uint64_t)i % arg.flows));
    }
    uint64_t begin = now_ns(), start = begin, sent = 0, failed = 0;
    int error = 0;
    while (!over(begin) && (!arg.count || sent + failed < arg.count)) {
        uint64_t n = due(&start, sent + failed, arg.rate, BATCH);
        if (arg.count && n > arg.count - sent - failed)
            n = arg.count - sent - failed;
        if (!n) {
            rest_until_due(start, sent + failed, arg.rate);
            continue;
        }
        int done = sendmmsg(fd, message, (unsigned)n, 0);
        if (done > 0)
            sent += (uint64_t)done;
        else if (errno != EINTR)
            error = errno, failed++;
    }
    double took = since(begin);
    printf("{\"mode\": \"raw\", \"interface\": \"%s\", \"size\": %lu, \"sent\": %lu, \"failed\": %lu, "
           "\"error\": \"%s\", \"seconds\": %.3f, \"pps\": %.0f}\n",
           arg.interface, arg.size, sent, failed, error ? strerror(error) : "", took, (double)sent / took);
    return 0;
}

/* ── pps-recv: what an interface counts ───────────────────────────────────────────── */

static void counters(uint64_t *frames, uint64_t *bytes)
{
    char line[512];
    FILE *file = fopen("/proc/net/dev", "re");
    if (!file)
        fail("/proc/net/dev");
    size_t width = strlen(arg.interface);
    while (fgets(line, sizeof line, file)) {
        char *name = line + strspn(line, " ");
        if (!strncmp(name, arg.interface, width) && name[width] == ':'
            && sscanf(name + width + 1, "%lu %lu", bytes, frames) == 2) {
            fclose(file);
            return;
        }
    }
    fclose(file);
    errno = ENODEV;
    fail("%s", arg.interface);
}

static int pps_recv(void)
{
    need_interface();
    uint64_t f0, b0, f1, b1, begin = now_ns();
    counters(&f0, &b0);
    while (!over(begin)) {
        uint64_t left = (uint64_t)(arg.seconds * 1e9) - (now_ns() - begin);
        rest(left < SECOND / 20 ? left : SECOND / 20);
    }
    counters(&f1, &b1);
    double took = since(begin);
    printf("{\"mode\": \"pps-recv\", \"interface\": \"%s\", \"frames\": %lu, \"bytes\": %lu, \"seconds\": %.3f, "
           "\"pps\": %.0f, \"mbit\": %.1f}\n", arg.interface, f1 - f0, b1 - b0, took,
           (double)(f1 - f0) / took, (double)(b1 - b0) * 8e-6 / took);
    return 0;
}

/* ── UDP with numbers ─────────────────────────────────────────────────────────────── */

static void number(uint8_t *at, uint64_t seq, uint64_t when)
{
    memcpy(at, &seq, 8);
    memcpy(at + 8, &when, 8);
}

static int udp_send(void)
{
    int fd = inet_socket(SOCK_DGRAM, false);
    uint64_t begin = now_ns(), start = begin, seq = 0, failed = 0, last = begin, stall = 0;
    int error = 0;
    batch_of(arg.size < PROBE ? PROBE : arg.size);
    while (!over(begin) && seq < SEQ_MAX && (!arg.count || seq < arg.count)) {
        uint64_t n = due(&start, seq, arg.rate, BATCH), when = now_ns();
        if (arg.count && n > arg.count - seq)
            n = arg.count - seq;
        if (!n) {
            rest_until_due(start, seq, arg.rate);
            continue;
        }
        if (when - last > stall)
            stall = when - last;
        last = when;
        for (uint64_t i = 0; i < n; i++)
            number(buffer[i], seq + i, when);
        int done = sendmmsg(fd, message, (unsigned)n, 0);
        if (done > 0)
            seq += (uint64_t)done;
        else if (errno != EINTR)
            error = errno, failed++, seq++;         /* its number is lost, and udp-recv will say so */
    }
    double took = since(begin);
    printf("{\"mode\": \"udp-send\", \"sent\": %lu, \"failed\": %lu, \"error\": \"%s\", \"seconds\": %.3f, "
           "\"pps\": %.0f, \"rate\": %.0f, \"longest_stall_ms\": %.3f}\n", seq, failed,
           error ? strerror(error) : "", took, (double)seq / took, arg.rate, (double)stall / 1e6);
    return 0;
}

static int udp_flood(void)
{
    int fd = inet_socket(SOCK_DGRAM, false), size = (int)arg.size;
    uint64_t segments = arg.segments ? arg.segments : 1, begin = now_ns(), sent = 0, failed = 0;
    if (segments * arg.size > 65000) {
        fputs("blast: --segments times --size is at most 65000\n", stderr);
        return 2;
    }
    if (segments > 1 && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &size, sizeof size) < 0)
        fail("UDP_SEGMENT");
    batch_of(segments * arg.size);
    while (!over(begin)) {
        int done = sendmmsg(fd, message, BATCH, 0);
        if (done > 0)
            sent += (uint64_t)done * segments;
        else if (errno != EINTR)
            failed++;
    }
    double took = since(begin);
    printf("{\"mode\": \"udp-flood\", \"sent\": %lu, \"failed\": %lu, \"seconds\": %.3f, \"pps\": %.0f}\n", sent, failed, took,
           (double)sent / took);
    return 0;
}

static int sink(void)
{
    uint64_t begin = now_ns();
    inet_socket(SOCK_DGRAM, true);
    while (!over(begin))
        rest(50 * MS);
    printf("{\"mode\": \"sink\"}\n");
    return 0;
}

/* When the kernel saw a datagram (CLOCK_REALTIME), and how many its queue had to drop so far. */
static uint64_t arrival(struct msghdr *m, uint32_t *overflow)
{
    uint64_t when = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET)
            continue;
        if (c->cmsg_type == SCM_TIMESTAMPNS) {
            struct timespec t;
            memcpy(&t, CMSG_DATA(c), sizeof t);
            when = (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
        } else if (c->cmsg_type == SO_RXQ_OVFL)
            memcpy(overflow, CMSG_DATA(c), sizeof *overflow);
    }
    return when ? when : clock_ns(CLOCK_REALTIME);
}

static int udp_recv(void)
{
    static uint8_t control[BATCH][128];
    int fd = inet_socket(SOCK_DGRAM, true), one = 1;
    uint8_t *seen = calloc(SEQ_MAX / 8 + 1, 1);     /* touched only as far as numbers come */
    uint64_t begin = now_ns(), got = 0, unique = 0, twice = 0, late = 0, first = 0, highest = 0, before = 0;
    uint64_t last = begin;
    uint32_t overflow = 0;
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof one);
    batch_of(sizeof buffer[0]);
    while (since(begin) < arg.seconds && !(arg.idle_ms && got && now_ns() - last > arg.idle_ms * MS)) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        int ready = poll(&p, 1, stop ? 200 : 20);
        if (ready == 0 && stop)
            break;                  /* what was still on its way when it was told to stop has come */
        if (ready <= 0)
            continue;
        for (int i = 0; i < BATCH; i++) {
            message[i].msg_hdr.msg_control = control[i];
            message[i].msg_hdr.msg_controllen = sizeof control[i];
        }
        int n = recvmmsg(fd, message, BATCH, MSG_DONTWAIT, NULL);
        for (int i = 0; i < n; i++) {
            uint64_t seq, when = arrival(&message[i].msg_hdr, &overflow);
            if (message[i].msg_len < PROBE)
                continue;
            memcpy(&seq, buffer[i], 8);
            if (seq >= SEQ_MAX)
                continue;
            if (got++)
                gap(before, when);
            else
                first = highest = seq;
            before = when;
            if (seen[seq / 8] & (1 << seq % 8)) {
                twice++;
                continue;
            }
            seen[seq / 8] |= (uint8_t)(1 << seq % 8);
            unique++;
            if (seq < highest)
                late++;
            if (seq < first)
                first = seq;
            if (seq > highest)
                highest = seq;
        }
        last = now_ns();
    }
    printf("{\"mode\": \"udp-recv\", \"received\": %lu, \"unique\": %lu, \"lost\": %lu, \"duplicated\": %lu, "
           "\"reordered\": %lu, \"first\": %lu, \"last\": %lu, \"overflow\": %u", got, unique,
           got ? highest - first + 1 - unique : 0, twice, late, first, highest, overflow);
    printf(", \"lost_runs\": [");
    int runs = 0;
    for (uint64_t s = first, from = 0, run = 0; got && s <= highest && runs < 100; s++) {
        if (!(seen[s / 8] & (1 << s % 8))) {
            from = run ? from : s;
            run++;
        } else if (run) {
            printf("%s[%lu, %lu]", runs++ ? ", " : "", from, run);
            run = 0;
        }
    }
    printf("]");
    print_gaps();
    printf("}\n");
    free(seen);
    return 0;
}

/* ── round trips ──────────────────────────────────────────────────────────────────── */

static void print_rtt(const char *mode, uint64_t *took, uint64_t n, uint64_t sent)
{
    qsort(took, n, sizeof *took, by_size);
    printf("{\"mode\": \"%s\", \"sent\": %lu, \"answered\": %lu, \"lost\": %lu, \"median_us\": %.1f, \"p10_us\": %.1f, "
           "\"p90_us\": %.1f, \"p99_us\": %.1f, \"worst_us\": %.1f", mode, sent, n, sent - n,
           percentile_us(took, n, 50), percentile_us(took, n, 10), percentile_us(took, n, 90),
           percentile_us(took, n, 99), percentile_us(took, n, 100));
}

static int rtt(void)
{
    int fd = inet_socket(SOCK_DGRAM, false);
    uint64_t most = arg.count ? arg.count : 1000000, n = 0, seq = 0, begin = now_ns();
    uint64_t *took = calloc(most, sizeof *took);
    size_t size = arg.size < PROBE ? PROBE : arg.size;
    while (!over(begin) && seq < most) {
        uint64_t start = now_ns(), answer = 0;
        number(buffer[0], seq, start);
        if (send(fd, buffer[0], size, 0) < 0 && errno != ECONNREFUSED)
            fail("send");
        while (now_ns() - start < SECOND && !stop) {
            struct pollfd p = { .fd = fd, .events = POLLIN };
            if (poll(&p, 1, 100) <= 0 || recv(fd, buffer[1], sizeof buffer[1], 0) < PROBE)
                continue;
            memcpy(&answer, buffer[1], 8);
            if (answer == seq) {
                took[n++] = now_ns() - start;
                break;
            }
        }
        seq++;
        if (arg.interval_us && now_ns() - start < arg.interval_us * 1000)
            rest(arg.interval_us * 1000 - (now_ns() - start));
    }
    print_rtt("rtt", took, n, seq);
    printf("}\n");
    free(took);
    return 0;
}

static int echo(void)
{
    int fd = inet_socket(SOCK_DGRAM, true);
    uint64_t begin = now_ns(), n = 0;
    while (!over(begin)) {
        struct sockaddr_in6 from;
        socklen_t width = sizeof from;
        struct pollfd p = { .fd = fd, .events = POLLIN };
        if (poll(&p, 1, 100) <= 0)
            continue;
        ssize_t got = recvfrom(fd, buffer[0], sizeof buffer[0], 0, (struct sockaddr *)&from, &width);
        if (got >= 0 && sendto(fd, buffer[0], (size_t)got, 0, (struct sockaddr *)&from, width) == got)
            n++;
    }
    printf("{\"mode\": \"echo\", \"answered\": %lu}\n", n);
    return 0;
}

/* ── ping: one question every interval, answered or not ───────────────────────────── */

static uint16_t checksum(const void *data, size_t size)
{
    const uint16_t *word = data;
    uint32_t sum = 0;
    for (; size > 1; size -= 2)
        sum += *word++;
    sum = (sum >> 16) + (sum & 0xffff);
    return (uint16_t)~(sum + (sum >> 16));
}

/* Read the answers that are there; the payload says which question each belongs to. */
static void answers(int fd, uint16_t id, uint64_t seq, const uint64_t *asked, uint64_t *took, uint64_t *n, uint64_t *twice)
{
    static uint64_t before;
    uint8_t packet[512];
    for (;;) {
        ssize_t got = recv(fd, packet, sizeof packet, MSG_DONTWAIT);
        if (got < (ssize_t)(sizeof(struct iphdr) + sizeof(struct icmphdr) + PROBE))
            return;
        struct icmphdr head;
        uint64_t which, when = clock_ns(CLOCK_REALTIME);
        size_t at = (size_t)((packet[0] & 15) * 4);
        memcpy(&head, packet + at, sizeof head);
        memcpy(&which, packet + at + sizeof head, 8);
        if (head.type != ICMP_ECHOREPLY || head.un.echo.id != id || which >= seq)
            continue;
        if (took[which]) {
            ++*twice;
            continue;
        }
        took[which] = when - asked[which];
        if (before)
            gap(before, when);
        before = when;
        ++*n;
    }
}

static int ping(void)
{
    uint64_t every = (arg.interval_us ? arg.interval_us : 1000) * 1000, begin = now_ns(), n = 0, seq = 0, twice = 0;
    uint64_t most = arg.count ? arg.count : (uint64_t)(arg.seconds * 1e9) / every + 1;
    uint64_t *asked = calloc(most, sizeof *asked), *took = calloc(most, sizeof *took);
    struct sockaddr_in to = { .sin_family = AF_INET };
    uint16_t id = (uint16_t)getpid();
    int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP);
    if (fd < 0)
        fail("socket(ICMP)");
    if (!arg.to || inet_pton(AF_INET, arg.to, &to.sin_addr) != 1) {
        fputs("blast: ping needs --to IPv4\n", stderr);
        return 2;
    }
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("connect %s", arg.to);
    while (!over(begin) && seq < most) {
        struct { struct icmphdr head; uint64_t seq; uint64_t pad[5]; } packet = { .seq = seq };
        uint64_t next = begin + seq * every, now;
        while ((now = now_ns()) < next && !stop) {
            struct pollfd p = { .fd = fd, .events = POLLIN };
            struct timespec wait = { .tv_nsec = (long)((next - now) % SECOND) };
            ppoll(&p, 1, &wait, NULL);
            answers(fd, id, seq, asked, took, &n, &twice);
        }
        packet.head.type = ICMP_ECHO;
        packet.head.un.echo.id = id;
        packet.head.un.echo.sequence = htons((uint16_t)seq);
        packet.head.checksum = checksum(&packet, sizeof packet);
        asked[seq++] = clock_ns(CLOCK_REALTIME);
        if (send(fd, &packet, sizeof packet, 0) < 0 && errno == EINVAL)
            fail("send");
        answers(fd, id, seq, asked, took, &n, &twice);
    }
    for (uint64_t end = now_ns(); n < seq && now_ns() - end < SECOND;) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        poll(&p, 1, 20);
        answers(fd, id, seq, asked, took, &n, &twice);
    }
    uint64_t answered = 0, *sorted = calloc(most, sizeof *sorted);
    for (uint64_t i = 0; i < seq; i++)
        if (took[i])
            sorted[answered++] = took[i];
    print_rtt("ping", sorted, answered, seq);
    printf(", \"offered\": %.3f, \"duplicated\": %lu, \"unanswered\": [", (double)seq / (double)most, twice);
    uint64_t shown = 0;
    for (uint64_t i = 0; i < seq && shown < GAPS_MAX; i++)
        if (!took[i])
            printf("%s%.6f", shown++ ? ", " : "", (double)asked[i] / 1e9);
    printf("]");
    print_gaps();
    printf("}\n");
    free(sorted);
    free(asked);
    free(took);
    return 0;
}

/* ── TCP: one stream ──────────────────────────────────────────────────────────────── */

static int tcp_send(void)
{
    static uint8_t data[1 << 18];
    int fd = inet_socket(SOCK_STREAM, false), one = 1;
    uint64_t begin = now_ns(), start = begin, sent = 0, retransmitted = 0;
    size_t chunk = arg.mbit > 0 ? 8192 : sizeof data;
    double rate = arg.mbit * 1e6 / 8 / (double)chunk;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (!over(begin)) {
        struct pollfd p = { .fd = fd, .events = POLLOUT };
        if (!due(&start, sent / chunk, rate, 1)) {
            rest_until_due(start, sent / chunk, rate);
            continue;
        }
        if (poll(&p, 1, 100) <= 0)
            continue;
        ssize_t n = send(fd, data, chunk, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            break;
        sent += n > 0 ? (uint64_t)n : 0;
    }
    struct tcp_info info;
    socklen_t size = sizeof info;
    if (!getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size))
        retransmitted = info.tcpi_total_retrans;
    double took = since(begin);
    printf("{\"mode\": \"tcp-send\", \"bytes\": %lu, \"seconds\": %.3f, \"mbit\": %.1f, \"retransmitted\": %lu}\n",
           sent, took, (double)sent * 8e-6 / took, retransmitted);
    return 0;
}

static int tcp_recv(void)
{
    static uint8_t data[1 << 18];
    int listener = inet_socket(SOCK_STREAM, true), fd = -1;
    uint64_t begin = now_ns(), first = 0, last = 0, bytes = 0;
    if (listen(listener, 1) < 0)
        fail("listen");
    while (!over(begin)) {
        struct pollfd p = { .fd = fd < 0 ? listener : fd, .events = POLLIN };
        if (poll(&p, 1, 100) <= 0)
            continue;
        if (fd < 0) {
            fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            continue;
        }
        ssize_t n = recv(fd, data, sizeof data, MSG_DONTWAIT);
        uint64_t now = clock_ns(CLOCK_REALTIME);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            break;
        if (n < 0)
            continue;
        if (bytes)
            gap(last, now);
        else
            first = now;
        last = now;
        bytes += (uint64_t)n;
    }
    double took = bytes ? (double)(last - first) / 1e9 : 0;
    printf("{\"mode\": \"tcp-recv\", \"bytes\": %lu, \"seconds\": %.3f, \"mbit\": %.1f", bytes, took,
           took > 0 ? (double)bytes * 8e-6 / took : 0);
    print_gaps();
    printf("}\n");
    return 0;
}

/* ── awake: no processor sleeps ───────────────────────────────────────────────────── */

static int awake(void)
{
    struct sched_param none = { .sched_priority = 0 };
    uint64_t begin = now_ns();
    bool first = true;
    if (sched_setscheduler(0, SCHED_IDLE, &none) < 0)
        fail("SCHED_IDLE");
    /* One for each processor: what wakes up takes it at once. */
    for (long i = 1; i < sysconf(_SC_NPROCESSORS_ONLN) && first; i++)
        if (!fork()) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            first = false;
        }
    while (!over(begin))
        for (volatile int i = 0; i < 10000; i++)
            ;
    if (first)
        printf("{\"mode\": \"awake\"}\n");
    return 0;
}

/* ── the command line ─────────────────────────────────────────────────────────────── */

static const struct { const char *name; int (*run)(void); } MODES[] = {
    { "raw", raw }, { "udp-send", udp_send }, { "udp-recv", udp_recv }, { "pps-recv", pps_recv },
    { "rtt", rtt }, { "echo", echo }, { "ping", ping }, { "tcp-send", tcp_send }, { "tcp-recv", tcp_recv },
    { "udp-flood", udp_flood }, { "sink", sink }, { "awake", awake },
};

int main(int argc, char **argv)
{
    static const struct option known[] = {
        { "to", 1, 0, 't' }, { "interface", 1, 0, 'i' }, { "dst", 1, 0, 'd' }, { "src", 1, 0, 'a' }, { "head", 1, 0, 'h' }, { "port", 1, 0, 'p' },
        { "count", 1, 0, 'c' }, { "size", 1, 0, 's' }, { "idle-ms", 1, 0, 'I' }, { "interval-us", 1, 0, 'u' },
        { "flows", 1, 0, 'f' }, { "segments", 1, 0, 'n' }, { "seconds", 1, 0, 'S' }, { "rate", 1, 0, 'r' }, { "gap-ms", 1, 0, 'g' }, { "late-ms", 1, 0, 'l' }, { "mbit", 1, 0, 'm' }, { 0 } };
    struct sigaction action = { .sa_handler = on_signal };
    int found;
    while ((found = getopt_long(argc, argv, "", known, NULL)) != -1)
        switch (found) {
        case 't': arg.to = optarg; break;
        case 'i': arg.interface = optarg; break;
        case 'd': arg.dst = optarg; break;
        case 'a': arg.src = optarg; break;
        case 'h': arg.head = optarg; break;
        case 'p': arg.port = optarg; break;
        case 'c': arg.count = strtoull(optarg, NULL, 10); break;
        case 's': arg.size = strtoull(optarg, NULL, 10); break;
        case 'I': arg.idle_ms = strtoull(optarg, NULL, 10); break;
        case 'u': arg.interval_us = strtoull(optarg, NULL, 10); break;
        case 'n': arg.segments = strtoull(optarg, NULL, 10); break;
        case 'f': arg.flows = strtoull(optarg, NULL, 10); break;
        case 'S': arg.seconds = strtod(optarg, NULL); break;
        case 'r': arg.rate = strtod(optarg, NULL); break;
        case 'g': arg.gap_ms = strtod(optarg, NULL); break;
        case 'l': arg.late_ms = strtod(optarg, NULL); break;
        case 'm': arg.mbit = strtod(optarg, NULL); break;
        default: return 2;
        }
    if (arg.flows > BATCH || (arg.flows && arg.size < 60)) {
        fputs("blast: --flows is at most 64, and frames of flows have at least 60 bytes\n", stderr);
        return 2;
    }
    if (arg.size < 14 || arg.size > sizeof buffer[0] || arg.seconds <= 0 || arg.seconds > 3600) {
        fputs("blast: --size must be 14 to 65536 and --seconds at most 3600\n", stderr);
        return 2;
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    prctl(PR_SET_TIMERSLACK, 1);                /* 50 us by default, a whole frame at 20,000 a second */
    prctl(PR_SET_PDEATHSIG, SIGTERM);           /* a bench that dies does not leave its load behind */
    for (size_t i = 0; optind == argc - 1 && i < sizeof MODES / sizeof *MODES; i++)
        if (!strcmp(argv[optind], MODES[i].name))
            return MODES[i].run();
    fputs("usage: blast", stderr);
    for (size_t i = 0; i < sizeof MODES / sizeof *MODES; i++)
        fprintf(stderr, "%c%s", i ? '|' : ' ', MODES[i].name);
    fputs(" [--OPTION VALUE]...\n", stderr);
    return 2;
}
