/*
 * The frame path under a fuzzer: the very C that Cython makes of ubond/_fastpath.pyx, with a kernel
 * of the fuzzer's own making in place of the real one.
 *
 *     UBOND_FUZZ=frames|evidence|tags|tunnels|worker  harness ...
 *
 * Built with clang's libFuzzer to search, or with -DREPLAY by any compiler to run files once more;
 * with AddressSanitizer in both.  Bytes beyond a frame's end are poisoned, so that a read of one
 * byte too many is seen even where the buffer goes on.
 */
#define _GNU_SOURCE
#include <Python.h>
#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <net/if.h>
#include <linux/ethtool.h>
#include <linux/if_packet.h>
#include <linux/mii.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>

static ssize_t kernel_read(int fd, void *buffer, size_t size);
static ssize_t kernel_write(int fd, const void *buffer, size_t size);
static ssize_t kernel_writev(int fd, const struct iovec *part, int n);
static int kernel_sendmmsg(int fd, struct mmsghdr *message, unsigned n, int flags);
static int kernel_recvmmsg(int fd, struct mmsghdr *message, unsigned n, int flags, void *timeout);
static int kernel_epoll_wait(int fd, struct epoll_event *event, int n, int timeout);
static int kernel_epoll_ctl(int epoll, int op, int fd, struct epoll_event *event);
static int kernel_ioctl(int fd, unsigned long request, void *argument);
static int kernel_getsockopt(int fd, int level, int name, void *value, socklen_t *size);
static int kernel_timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old);
static int kernel_clock_gettime(clockid_t clock, struct timespec *now);

#define read(fd, buffer, size) kernel_read(fd, buffer, size)
#define write(fd, buffer, size) kernel_write(fd, buffer, size)
#define writev(fd, part, n) kernel_writev(fd, part, n)
#define sendmmsg(fd, message, n, flags) kernel_sendmmsg(fd, message, n, flags)
#define recvmmsg(fd, message, n, flags, timeout) kernel_recvmmsg(fd, message, n, flags, timeout)
#define epoll_wait(fd, event, n, timeout) kernel_epoll_wait(fd, event, n, timeout)
#define epoll_ctl(epoll, op, fd, event) kernel_epoll_ctl(epoll, op, fd, event)
#define ioctl(fd, request, argument) kernel_ioctl(fd, request, argument)
#define getsockopt(fd, level, name, value, size) kernel_getsockopt(fd, level, name, value, size)
#define timerfd_settime(fd, flags, new, old) kernel_timerfd_settime(fd, flags, new, old)
#define clock_gettime(clock, now) kernel_clock_gettime(clock, now)

#define epoll_create1(flags) 3
#define eventfd(value, flags) 4
#define timerfd_create(clock, flags) 5

/* With nobody to start the module from outside, the compiler drops all of it that needs Python. */
#undef PyMODINIT_FUNC
#define PyMODINIT_FUNC static __attribute__((unused)) PyObject *

#include "_fastpath.c"

/* Cython's names for what is tested here. */
#define frame_(name) __pyx_f_5ubond_6_frame_##name
#define segment_(name) __pyx_f_5ubond_8_segment_##name
#define worker_(name) __pyx_f_5ubond_9_fastpath_##name
#define state_(name) __pyx_e_5ubond_6_state_##name
#define see __pyx_f_5ubond_9_evidence_see
#define xmit_hash __pyx_f_5ubond_5_hash_xmit_hash
#define vnet_put_tag_back __pyx_f_5ubond_5_vnet_vnet_put_tag_back
typedef struct __pyx_t_5ubond_6_state_fp_worker fp_worker;
typedef struct __pyx_t_5ubond_6_state_fp_shared fp_shared;
typedef struct __pyx_t_5ubond_6_state_fp_port fp_port;
typedef struct __pyx_t_5ubond_6_state_fp_table fp_table;
typedef struct __pyx_t_5ubond_6_state_fp_watch fp_watch;
typedef struct __pyx_t_5ubond_8_segment_fp_cut fp_cut;

enum {
    VNET = 10,
    POLICIES = 6,
    BATCH = state_(BATCH),
    NEAR = state_(NEAR),
    HEADROOM = state_(HEADROOM),
    FRAME_MAX = state_(FRAME_MAX),
    DIVERT_RING = state_(DIVERT_RING),
    SEGMENTS_MAX = 65536,
    HEAD_ROOM = __pyx_e_5ubond_8_segment_HEADERS_MAX,
};

#define CHECK(what) \
    do { \
        if (!(what)) { \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); \
            abort(); \
        } \
    } while (0)

/* ── what the fuzzer says next ────────────────────────────────────────────────────── */

static const uint8_t *next, *end;

static unsigned byte(void) { return next < end ? *next++ : 0; }
static unsigned word(void) { unsigned high = byte(); return high << 8 | byte(); }
static unsigned below(unsigned n) { return n ? byte() % n : 0; }
static bool over(void) { return next >= end; }

/* A copy that ends where its memory ends. */
static uint8_t *exactly(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    return copy;
}

/* ── frames: kinds and hashes ─────────────────────────────────────────────────────── */

static void fuzz_frames(const uint8_t *data, size_t size)
{
    uint8_t *frame = exactly(data, size);
    int kind = frame_(kind_of)(frame, size);
    CHECK(kind == 0 || kind == 1 || kind == 2 || kind == 4);
    frame_(is_igmp)(frame, size);
    for (int policy = 0; policy < POLICIES; policy++)
        CHECK(xmit_hash(frame, size, policy) == xmit_hash(frame, size, policy));
    CHECK(xmit_hash(frame, size, 99) == xmit_hash(frame, size, 0));
    free(frame);
}

/* ── evidence: what a received frame shows to the ARP and NS monitor ───────────────── */

static void fuzz_evidence(const uint8_t *data, size_t size)
{
    fp_watch watch = { .on = 1, .n_target4 = 2, .n_target6 = 2, .n_own4 = 2, .n_own6 = 2 };
    const struct { void *to; size_t size; } parts[] = {
        { watch.target4, 8 }, { watch.own4, 8 }, { watch.target6, 32 }, { watch.own6, 32 }, { watch.mac, 6 },
    };
    int64_t stamp[state_(STAMPS)] = { 0 };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (size < parts[i].size)
            return;
        memcpy(parts[i].to, data, parts[i].size);
        data += parts[i].size;
        size -= parts[i].size;
    }
    if (size < 14)
        return;
    uint8_t *frame = exactly(data, size);
    see(stamp, &watch, 0, frame, size, 7);
    for (int i = 0; i < state_(STAMPS); i++)
        CHECK(stamp[i] == 0 || stamp[i] == 7);
    free(frame);
}

/* ── tags: a VLAN tag put back ────────────────────────────────────────────────────── */

static void fuzz_tags(const uint8_t *data, size_t size)
{
    if (size < 4 + VNET + 14)
        return;
    unsigned tci = data[0] << 8 | data[1], tpid = data[2] << 8 | data[3];
    data += 4;
    size -= 4;
    size_t before = getenv("UBOND_FUZZ_SHORT") ? 3 : 4;     /* one too few must be noticed */
    uint8_t *room = malloc(before + size);
    memcpy(room + before, data, size);
    uint8_t *start = vnet_put_tag_back(room + before, tci, tpid);
    CHECK(start == room);
    CHECK(!memcmp(start + VNET, data + VNET, 12));
    CHECK(start[VNET + 12] == tpid >> 8 && start[VNET + 13] == (tpid & 255));
    CHECK(start[VNET + 14] == tci >> 8 && start[VNET + 15] == (tci & 255));
    CHECK(!memcmp(start + VNET + 16, data + VNET + 12, size - VNET - 12));
    free(room);
}

/* ── tunnels: super-frames cut ────────────────────────────────────────────────────── */

/* The super-frame that an input stands for.  Its first bytes: how much payload follows, how far the
 * headers behind the first 42 bytes are pushed back, whether the inner IP header is told so. */
static uint8_t *super_frame(const uint8_t *data, size_t *size)
{
    size_t more = (data[0] << 8 | data[1]) % 4096, gap = 0;
    unsigned mend = data[2] & 1;
    if (*size > 5 + VNET + 42)
        gap = (data[3] << 8 | data[4]) % 520;
    data += 5;
    *size -= 5;
    uint8_t *packet = calloc(1, *size + gap + more), *frame = packet + VNET;
    size_t first = gap ? VNET + 42 : *size;
    memcpy(packet, data, first);
    memcpy(packet + first + gap, data + first, *size - first);
    *size += gap + more;
    if (mend) {
        uint16_t start;
        size_t length = *size - VNET;
        memcpy(&start, packet + 6, 2);
        start += gap;
        memcpy(packet + 6, &start, 2);
        if (start >= 20 && start <= length && frame[start - 20] == 0x45) {
            frame[start - 18] = (length - start + 20) >> 8;
            frame[start - 17] = length - start + 20;
        } else if (start >= 40 && start <= length) {
            frame[start - 36] = (length - start) >> 8;
            frame[start - 35] = length - start;
        }
    }
    return packet;
}

static void fuzz_tunnels(const uint8_t *data, size_t size)
{
    fp_cut cut;
    if (size < 5 + VNET + 14)
        return;
    uint8_t *packet = super_frame(data, &size);
    segment_(is_tunnel_gso)(packet, size);
    if (segment_(plan_cut)(packet, size, &cut)) {
        uint8_t *head = malloc(HEAD_ROOM);
        uint32_t total = 0, at = 0;
        CHECK(cut.n > 0 && cut.n <= SEGMENTS_MAX);
        for (uint32_t i = 0; i < cut.n; i++) {
            uint32_t n = segment_(cut_one)(&cut, packet + VNET, i, head, &at);
            CHECK(n > 0 && n <= cut.size && at == cut.headers + total && at + n <= size - VNET);
            total += n;
        }
        CHECK(cut.headers + total == size - VNET);
        free(head);
    }
    free(packet);
}

/* ── worker: both directions, every answer that a kernel may give ──────────────────── */

enum {
    TAPS = 2,
    PORTS = 4,
    TAP_FD = 100,               /* of the first TAP queue */
    PORT_FD = 200,              /* of the first slave; its plain socket is PLAIN further */
    PLAIN = 100,
    STAMPED = 64,               /* frames of this length or more carry their number in their last bytes */
    TAP_EVENT = __pyx_e_5ubond_9_fastpath_TAP_EVENT,
    KICK_EVENT = __pyx_e_5ubond_9_fastpath_KICK_EVENT,
    TIMER_EVENT = __pyx_e_5ubond_9_fastpath_TIMER_EVENT,
    SPREADS = 3,                /* not BROADCAST: the accounts here know one copy of a frame */
};

static struct {
    fp_shared *shared;
    fp_worker *worker;
    fp_table *old[256];         /* replaced, and not passed yet */
    unsigned n_old;
    int64_t now;
    uint64_t offered;           /* frames that the TAP gave */
    uint64_t taken;             /* frames that a slave's socket took */
    uint64_t arrived;           /* packets that slaves' sockets gave */
    uint8_t went[65536];        /* by number: it left */
    uint32_t last;              /* number of the last one that left */
    bool ordered;               /* so far the tables leave one path only */
} run;

static uint8_t scratch[FRAME_MAX + NEAR];

/* A packet of the fuzzer's: some bytes as it wants them, zeros up to a length that it names. */
static size_t make_packet(uint8_t *to, size_t room)
{
    unsigned size = word(), head = byte();
    size_t length = size & 0x8000 ? (size & 0x7FFF) * 2 + 3100 : size % 3100;
    if (length > room)
        length = room;
    if (head > length)
        head = length;
    if ((size_t)(end - next) < head)
        head = end - next;
    memcpy(to, next, head);
    memset(to + head, 0, length - head);
    next += head;
    return length;
}

static void use(const void *start, size_t size)
{
    const void *bad = size ? __asan_region_is_poisoned((void *)start, size) : NULL;
    if (bad)
        *(volatile const uint8_t *)bad;     /* reports */
}

/* `size` bytes of a buffer hold something, the rest up to `room` may not be looked at. */
static void only(uint8_t *buffer, size_t size, size_t room)
{
    ASAN_UNPOISON_MEMORY_REGION(buffer, size);
    if (room > size)
        ASAN_POISON_MEMORY_REGION(buffer + size, room - size);
}

static int refuse(int number)
{
    errno = number;
    return -1;
}

static ssize_t kernel_read(int fd, void *buffer, size_t size)
{
    if (fd < TAP_FD || fd >= TAP_FD + TAPS)
        return sizeof(uint64_t);
    if (over())
        return refuse(EAGAIN);
    unsigned what = byte();
    if (what >= 250)
        return refuse(what == 255 ? EBADFD : EAGAIN);
    CHECK(size >= FRAME_MAX);
    ASAN_UNPOISON_MEMORY_REGION(buffer, size);
    size_t n = make_packet(buffer, size);
    only(buffer, n, size);
    if (n >= VNET + 14) {
        if (n >= STAMPED) {
            uint32_t number = run.offered + 1;
            memcpy((uint8_t *)buffer + n - 4, &number, 4);
        }
        run.offered++;
    }
    return n;
}

static ssize_t kernel_write(int fd, const void *buffer, size_t size)
{
    (void)fd;
    use(buffer, size);
    return size;
}

static ssize_t kernel_writev(int fd, const struct iovec *part, int n)
{
    size_t total = 0;
    CHECK(fd >= TAP_FD && fd < TAP_FD + TAPS);
    for (int i = 0; i < n; i++) {
        use(part[i].iov_base, part[i].iov_len);
        total += part[i].iov_len;
    }
    CHECK(total >= VNET + 14);
    unsigned what = over() ? 0 : byte();
    return what < 240 ? (ssize_t)total : refuse(what < 248 ? EIO : EINVAL);
}

/* One packet has been taken by a socket: whole, once, and not before one that came earlier. */
static void gone(const struct iovec *part)
{
    const uint8_t *packet = part->iov_base;
    use(packet, part->iov_len);
    CHECK(part->iov_len >= VNET + 14);
    run.taken++;
    if (part->iov_len >= STAMPED) {
        uint32_t number;
        memcpy(&number, packet + part->iov_len - 4, 4);
        CHECK(number > 0 && number <= run.offered && number < sizeof run.went);
        CHECK(!run.went[number]);
        run.went[number] = 1;
        CHECK(!run.ordered || number > run.last);
        run.last = number;
    }
}

static int kernel_sendmmsg(int fd, struct mmsghdr *message, unsigned n, int flags)
{
    static const int errors[] = {
        EMSGSIZE, EINVAL, EINTR, ENETDOWN, ENXIO, ENODEV, ENOENT, ENOBUFS, EAGAIN, EPERM, ENOBUFS, ENETDOWN,
    };
    CHECK(fd >= PORT_FD && fd < PORT_FD + PLAIN + PORTS && n > 0 && n <= BATCH && flags == MSG_DONTWAIT);
    unsigned what = over() ? 0 : byte();
    if (what >= 160)
        return refuse(errors[what % (sizeof errors / sizeof *errors)]);
    int moved = what < 80 ? n : 1 + what % n;
    for (int i = 0; i < moved; i++) {
        CHECK(message[i].msg_hdr.msg_iovlen == 1);
        gone(message[i].msg_hdr.msg_iov);
        message[i].msg_len = message[i].msg_hdr.msg_iov->iov_len;
    }
    return moved;
}

static void put_auxdata(struct msghdr *header, unsigned what)
{
    struct tpacket_auxdata aux = { .tp_status = TP_STATUS_VLAN_VALID };
    struct cmsghdr *c = header->msg_control;
    CHECK(header->msg_controllen >= CMSG_SPACE(sizeof aux));
    if (what & 2) {
        aux.tp_status |= TP_STATUS_VLAN_TPID_VALID;
        aux.tp_vlan_tpid = word();
    }
    aux.tp_vlan_tci = word();
    c->cmsg_level = SOL_PACKET;
    c->cmsg_type = what & 4 ? PACKET_AUXDATA : PACKET_STATISTICS;
    c->cmsg_len = CMSG_LEN(sizeof aux);
    memcpy(CMSG_DATA(c), &aux, sizeof aux);
    header->msg_controllen = CMSG_SPACE(sizeof aux);
}

static int kernel_recvmmsg(int fd, struct mmsghdr *message, unsigned n, int flags, void *timeout)
{
    static const int errors[] = { EAGAIN, EINTR, ENETDOWN, ENOBUFS };
    CHECK(fd >= PORT_FD && fd < PORT_FD + PORTS && n > 0 && n <= BATCH && flags == MSG_DONTWAIT && !timeout);
    unsigned i = 0;
    for (; i < n && !over(); i++) {
        unsigned what = byte();
        if (what >= 240)
            break;
        struct msghdr *header = &message[i].msg_hdr;
        struct iovec *part = header->msg_iov;
        CHECK(header->msg_iovlen == 2);
        size_t length = make_packet(scratch, part[0].iov_len + part[1].iov_len);
        size_t first = length < part[0].iov_len ? length : part[0].iov_len;
        ASAN_UNPOISON_MEMORY_REGION(part[0].iov_base, part[0].iov_len);
        ASAN_UNPOISON_MEMORY_REGION(part[1].iov_base, part[1].iov_len);
        memcpy(part[0].iov_base, scratch, first);
        memcpy(part[1].iov_base, scratch + first, length - first);
        only(part[0].iov_base, first, part[0].iov_len);
        only(part[1].iov_base, length - first, part[1].iov_len);
        message[i].msg_len = length;
        header->msg_flags = what & 8 ? MSG_TRUNC : 0;
        if (what & 1)
            put_auxdata(header, what);
        else
            header->msg_controllen = 0;
    }
    run.arrived += i;
    return i ? (int)i : refuse(errors[over() ? 0 : below(4)]);
}

static int kernel_ioctl(int fd, unsigned long request, void *argument)
{
    struct ifreq *asked = argument;
    (void)fd;
    CHECK(request == SIOCGIFFLAGS && strnlen(asked->ifr_name, IFNAMSIZ) < IFNAMSIZ);
    unsigned what = over() ? 0 : byte();
    if (what >= 250)
        return refuse(ENODEV);
    asked->ifr_flags = what < 128 ? IFF_UP | IFF_RUNNING : IFF_UP;
    return 0;
}

static int kernel_getsockopt(int fd, int level, int name, void *value, socklen_t *size)
{
    CHECK(fd >= PORT_FD && level == SOL_SOCKET && name == SO_ERROR && *size == sizeof(int));
    *(int *)value = ENETDOWN;
    return 0;
}

static int kernel_timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)
{
    (void)fd, (void)flags, (void)old;
    CHECK(new->it_value.tv_sec >= 0 && new->it_value.tv_nsec >= 0 && new->it_value.tv_nsec < 1000000000);
    return 0;
}

static int kernel_clock_gettime(clockid_t clock, struct timespec *now)
{
    CHECK(clock == CLOCK_MONOTONIC);
    now->tv_sec = run.now / 1000000000;
    now->tv_nsec = run.now % 1000000000;
    return 0;
}

static int kernel_epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
    (void)epoll, (void)op, (void)fd, (void)event;
    return 0;
}

static void free_passed(void)
{
    if (run.worker->seen != run.shared->table->generation)
        return;
    while (run.n_old)
        free(run.old[--run.n_old]);
}

/* Another table, of any shape that the control side can publish. */
static void publish(void)
{
    fp_table *t = calloc(1, sizeof *t);
    unsigned turn = byte(), flags = byte();
    t->generation = run.shared->table->generation + 1;
    t->n = below(PORTS + 1);
    for (unsigned i = 0; i < t->n; i++)
        t->port[i] = (turn + i) % PORTS;
    t->spread = byte() % SPREADS;
    t->active = t->n ? (int)below(t->n + 1) - 1 : -1;
    for (unsigned i = 0; i < t->n; i++)
        if ((int)i != t->active)
            t->succession[t->n_succession++] = i;
    t->packets_per_slave = byte();
    t->takeover = flags & 1;
    t->hold = flags >> 1 & 1;
    t->divert = flags >> 2 & 7;
    if (flags & 32 && t->n)
        t->queue_slave[1] = 1 + below(t->n);
    t->can_transmit = byte();
    t->receives = byte();
    t->address[0] = 2;
    t->watch.on = flags >> 6 & 1;
    t->watch.n_target4 = t->watch.n_target6 = t->watch.n_own4 = t->watch.n_own6 = 1;
    run.ordered = run.ordered && t->spread == state_(SINGLE) && !t->queue_slave[1];
    if (run.n_old == 256)
        free_passed();
    CHECK(run.n_old < 256);
    run.old[run.n_old++] = run.shared->table;
    run.shared->table = t;
}

static int kernel_epoll_wait(int fd, struct epoll_event *event, int n, int timeout)
{
    (void)fd;
    CHECK(n >= 1 && timeout == -1);
    free_passed();
    if (over()) {
        run.shared->stopping = 1;
        return 0;
    }
    unsigned what = byte();
    event->events = what & 64 ? EPOLLERR : what & 128 ? EPOLLIN | EPOLLERR : EPOLLIN;
    switch (what & 7) {
    case 0: case 1:
        event->data.u64 = TAP_EVENT + (what >> 3 & 1) % TAPS;
        return 1;
    case 2: case 3:
        event->data.u64 = (what >> 3 & 7) % PORTS;
        return 1;
    case 4:
        run.now += (int64_t)(1 + byte()) * 100000;
        event->data.u64 = TIMER_EVENT;
        return 1;
    case 5: {
        fp_port *p = &run.worker->port[(what >> 3 & 7) % PORTS];
        if (what >> 7)      /* another worker has found it dead */
            p->link->dead_under = run.shared->table->generation;
        if (p->question != p->answered) {
            p->answer = what >> 6 & 1;
            p->answered = p->question;
        }
        event->data.u64 = KICK_EVENT;
        return 1;
    }
    case 6:
        publish();
        event->data.u64 = KICK_EVENT;
        return 1;
    default:
        run.now += (int64_t)word() * 1000000;
        run.worker->divert_tail = run.worker->divert_head;
        run.shared->board.tail = run.shared->board.head;
        return 0;
    }
}

/* Every frame offered has left or is in a named counter. */
static void balance(void)
{
    uint64_t settled = run.worker->no_slave, sent = 0, received = 0, copies = 0;
    for (int i = 0; i < PORTS; i++) {
        fp_port *p = &run.worker->port[i];
        settled += p->count.tx_frames + p->count.tx_too_long + p->count.tx_too_long_tagged + p->count.tx_refused
                   + p->count.tx_congested + p->count.tx_link_down + p->count.tx_held_too_long
                   + p->count.tx_unknown + p->backlog.n;
        sent += p->count.tx_frames;
        received += p->count.rx_frames + p->count.rx_ignored + p->count.rx_tap_down + p->count.rx_tap_refused
                    + p->count.rx_truncated + p->count.rx_tunnel_refused;
        copies += p->count.diverted + p->count.divert_policed;
    }
    CHECK(run.worker->tap_frames == run.offered);
    CHECK(settled == run.offered);
    CHECK(sent == run.taken);
    CHECK(received <= run.arrived && run.arrived <= received + copies);     /* LACP is taken, not passed on */
}

static void fuzz_worker(const uint8_t *data, size_t size)
{
    if (size > 32768)
        return;
    static fp_worker memory;    /* the same buffers for every run: they are large */
    if (!memory.arena)
        CHECK(worker_(get_memory)(&memory));
    next = data;
    end = data + size;
    memset(&run, 0, sizeof run);
    run.shared = calloc(1, sizeof *run.shared);
    run.worker = malloc(sizeof *run.worker);
    *run.worker = memory;
    run.shared->table = calloc(1, sizeof *run.shared->table);
    run.shared->table->generation = 1;
    run.shared->table->active = -1;
    pthread_mutex_init(&run.shared->board.lock, NULL);
    run.now = 1000000000;
    run.ordered = true;
    worker_(furnish)(run.worker, run.shared);
    run.shared->worker[0] = run.worker;
    run.shared->n_workers = 1;
    for (int i = 0; i < PORTS; i++) {
        fp_port *p = &run.worker->port[i];
        p->link->open = 1;
        p->answer = 1;
        p->fd = PORT_FD + i;
        p->plain_fd = PORT_FD + PLAIN + i;
        p->link->name[0] = 'a' + i;
    }
    for (int i = 0; i < TAPS; i++) {
        run.worker->tap[i] = TAP_FD + i;
        run.worker->tap_queue[i] = i;
        run.worker->n_taps++;
    }
    worker_(follow_table)(run.worker);
    publish();
    worker_(work)(run.worker);
    balance();
    free_passed();
    while (run.n_old)
        free(run.old[--run.n_old]);
    for (int i = 0; i < PORTS; i++)
        free(run.worker->port[i].backlog.bytes);
    free(run.shared->table);
    free(run.shared);
    free(run.worker);
}

/* ── which of them ────────────────────────────────────────────────────────────────── */

static const struct {
    const char *name;
    void (*run)(const uint8_t *data, size_t size);
} targets[] = {
    { "frames", fuzz_frames },
    { "evidence", fuzz_evidence },
    { "tags", fuzz_tags },
    { "tunnels", fuzz_tunnels },
    { "worker", fuzz_worker },
};

static void (*target)(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *wanted = getenv("UBOND_FUZZ");
    (void)argc, (void)argv;
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
        if (wanted && !strcmp(wanted, targets[i].name))
            target = targets[i].run;
    if (!target) {
        fputs("UBOND_FUZZ must name a target: frames, evidence, tags, tunnels or worker\n", stderr);
        exit(2);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    target(data, size);
    return 0;
}

#ifdef REPLAY
#undef read
int main(int argc, char **argv)
{
    LLVMFuzzerInitialize(&argc, &argv);
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (!file) {
            perror(argv[i]);
            return 2;
        }
        uint8_t *data = malloc(1 << 20);
        size_t size = fread(data, 1, 1 << 20, file);
        fclose(file);
        uint8_t *copy = exactly(data, size);
        free(data);
        fprintf(stderr, "%s\n", argv[i]);
        target(copy, size);
        free(copy);
    }
    printf("%d\n", argc - 1);
    return 0;
}
#endif
