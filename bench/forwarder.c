/*
 * forwarder: the yardstick.  The least that a program must do to stand where ubond stands:
 * frames from a TAP go to a slave and back, in batches, with virtio-net headers on both sides,
 * and nothing else.  What ubond takes longer than this is what bonding costs.
 *
 *     forwarder TAP SLAVE [SLAVE]
 *
 * With two slaves the first sends until the kernel says that its link is dead, then the second
 * (and back when that one dies); frames are accepted from whichever sends.  Prints
 * {"ready": true} when frames can flow and ends on SIGTERM, SIGINT or when the TAP goes away.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <arpa/inet.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#ifndef PACKET_IGNORE_OUTGOING
#define PACKET_IGNORE_OUTGOING 23
#endif

enum {
    BATCH = 64,
    VNET_HDR = 10,                  /* struct virtio_net_hdr without num_buffers */
    FRAME_MAX = 65536 + 64,         /* a GSO frame with its tags, behind the virtio-net header */
    TX_QUEUE = 4096,
};

static volatile sig_atomic_t stop;

static void on_signal(int number) { (void)number; stop = 1; }

static void fail(const char *what, ...)
{
    int saved = errno;
    va_list args;
    va_start(args, what);
    fputs("forwarder: ", stderr);
    vfprintf(stderr, what, args);
    fprintf(stderr, ": %s\n", strerror(saved));
    va_end(args);
    exit(1);
}

/* One slot of a batch; all slots of a direction lie in one mapping. */
struct batch {
    struct mmsghdr msg[BATCH];
    struct iovec iov[BATCH];
    uint8_t *memory;
};

static void batch_init(struct batch *b)
{
    b->memory = mmap(NULL, (size_t)BATCH * FRAME_MAX, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->memory == MAP_FAILED)
        fail("mmap");
    memset(b->msg, 0, sizeof b->msg);
    for (int i = 0; i < BATCH; i++) {
        b->iov[i].iov_base = b->memory + (size_t)i * FRAME_MAX;
        b->iov[i].iov_len = FRAME_MAX;
        b->msg[i].msg_hdr.msg_iov = &b->iov[i];
        b->msg[i].msg_hdr.msg_iovlen = 1;
    }
}

static struct ifreq ifreq_for(const char *name)
{
    struct ifreq r;
    memset(&r, 0, sizeof r);
    if (strlen(name) >= IFNAMSIZ) {
        fprintf(stderr, "forwarder: %s: name too long\n", name);
        exit(2);
    }
    strcpy(r.ifr_name, name);
    return r;
}

static int open_tap(const char *name)
{
    struct ifreq r = ifreq_for(name);
    int hdr = VNET_HDR;
    unsigned offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        fail("/dev/net/tun");
    r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL;
    if (ioctl(fd, TUNSETIFF, &r) < 0)
        fail("TUNSETIFF %s", name);
    if (ioctl(fd, TUNSETVNETHDRSZ, &hdr) < 0)
        fail("TUNSETVNETHDRSZ");
    if (ioctl(fd, TUNSETOFFLOAD, offloads | TUN_F_USO4 | TUN_F_USO6) < 0
        && ioctl(fd, TUNSETOFFLOAD, offloads) < 0)
        fail("TUNSETOFFLOAD");
    return fd;
}

static void option(int fd, int level, int name, int value, const char *what, int must)
{
    if (setsockopt(fd, level, name, &value, sizeof value) < 0 && must)
        fail("%s", what);
}

static int open_slave(const char *name)
{
    struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("socket(AF_PACKET)");
    to.sll_ifindex = (int)if_nametoindex(name);
    if (!to.sll_ifindex)
        fail("%s", name);
    option(fd, SOL_PACKET, PACKET_VNET_HDR, 1, "PACKET_VNET_HDR", 1);
    option(fd, SOL_PACKET, PACKET_QDISC_BYPASS, 1, "PACKET_QDISC_BYPASS", 1);
    option(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING", 0);
    option(fd, SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20, "SO_RCVBUFFORCE", 0);
    option(fd, SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20, "SO_SNDBUFFORCE", 0);
    if (bind(fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("bind %s", name);
    return fd;
}

/* The TAP wears the first slave's address, so that the peer sees one host however it is reached. */
static void dress_tap(const char *tap, const char *slave)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq r = ifreq_for(slave), t = ifreq_for(tap);
    if (fd < 0 || ioctl(fd, SIOCGIFHWADDR, &r) < 0)
        fail("SIOCGIFHWADDR %s", slave);
    t.ifr_hwaddr = r.ifr_hwaddr;
    if (ioctl(fd, SIOCSIFHWADDR, &t) < 0)
        fail("SIOCSIFHWADDR %s", tap);
    t.ifr_qlen = TX_QUEUE;
    if (ioctl(fd, SIOCSIFTXQLEN, &t) < 0)
        fail("SIOCSIFTXQLEN %s", tap);
    if (ioctl(fd, SIOCGIFFLAGS, &t) < 0)
        fail("SIOCGIFFLAGS %s", tap);
    t.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &t) < 0)
        fail("SIOCSIFFLAGS %s", tap);
    close(fd);
}

static int is_dead(int error)
{
    return error == ENETDOWN || error == ENXIO || error == ENODEV || error == ENOENT;
}

/* Fill the batch from the TAP; -1 when the TAP is gone. */
static int take(int tap, struct batch *b)
{
    int n = 0;
    while (n < BATCH) {
        ssize_t got = read(tap, b->iov[n].iov_base, FRAME_MAX);
        if (got < 0)
            return errno == EAGAIN || errno == EINTR ? n : -1;
        b->iov[n].iov_len = (size_t)got;
        n++;
    }
    return n;
}

/* Send what was taken; when the active slave's link is dead the other one takes the rest. */
static void send_all(const int *slave, int slaves, int *active, struct batch *b, int n)
{
    int done = 0, switched = 0;
    while (done < n) {
        int sent = sendmmsg(slave[*active], b->msg + done, (unsigned)(n - done), MSG_DONTWAIT);
        if (sent > 0)
            done += sent;
        else if (errno == EINTR)
            continue;
        else if (is_dead(errno) && switched < slaves - 1) {
            *active = (*active + 1) % slaves;
            switched++;
        } else
            done++;                 /* no queue of our own: this one frame is lost */
    }
    for (int i = 0; i < n; i++)
        b->iov[i].iov_len = FRAME_MAX;
}

static int receive(int slave, int tap, struct batch *b, int deliver)
{
    int n = recvmmsg(slave, b->msg, BATCH, MSG_DONTWAIT, NULL);
    for (int i = 0; deliver && i < n; i++)
        if (write(tap, b->iov[i].iov_base, b->msg[i].msg_len) < 0 && errno == EBADFD)
            stop = 1;
    return n;
}

static void watch(int epoll, int fd, uint32_t key)
{
    struct epoll_event e = { .events = EPOLLIN, .data.u32 = key };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0)
        fail("epoll_ctl");
}

int main(int argc, char **argv)
{
    struct sigaction action = { .sa_handler = on_signal };
    struct epoll_event event[4];
    struct batch out, in;
    int slave[2], slaves = argc - 2, active = 0;

    if (argc < 3 || argc > 4) {
        fputs("usage: forwarder TAP SLAVE [SLAVE]\n", stderr);
        return 2;
    }
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    batch_init(&out);
    batch_init(&in);
    int tap = open_tap(argv[1]);
    dress_tap(argv[1], argv[2]);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        fail("epoll_create1");
    watch(epoll, tap, 0);
    for (int i = 0; i < slaves; i++) {
        slave[i] = open_slave(argv[2 + i]);
        watch(epoll, slave[i], (uint32_t)(i + 1));
    }
    puts("{\"ready\": true}");
    fflush(stdout);

    while (!stop) {
        int n = epoll_wait(epoll, event, 4, -1);
        for (int i = 0; i < n; i++) {
            uint32_t key = event[i].data.u32;
            if (key == 0) {
                int taken = take(tap, &out);
                if (taken < 0)
                    return 0;
                send_all(slave, slaves, &active, &out, taken);
                continue;
            }
            if (event[i].events & EPOLLERR) {       /* reading SO_ERROR clears it */
                int error;
                socklen_t size = sizeof error;
                getsockopt(slave[key - 1], SOL_SOCKET, SO_ERROR, &error, &size);
                if (is_dead(error) && (int)key - 1 == active && slaves == 2)
                    active = 1 - active;
            }
            receive(slave[key - 1], tap, &in, (int)key - 1 == active);
        }
    }
    return 0;
}
