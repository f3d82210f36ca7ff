# cython: language_level=3
"""The kernel's and libc's names that the frame path uses, and nothing of ours but thin spellings."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE 1
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <sched.h>
    #include <stdlib.h>
    #include <string.h>
    #include <time.h>
    #include <unistd.h>
    #include <pthread.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <sys/timerfd.h>
    #include <sys/uio.h>
    #include <net/if.h>
    #include <linux/ethtool.h>
    #include <linux/filter.h>
    #include <linux/if_packet.h>
    #include <linux/mii.h>
    #include <linux/sockios.h>
    #include <linux/virtio_net.h>

    static inline int64_t fp_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    /* read(2), write(2) and writev(2) without what glibc does in them for pthread_cancel(3), which nobody
     * calls here: two atomic operations for each frame. */
    static inline ssize_t fp_read(int fd, void *buffer, size_t size) {
        return syscall(SYS_read, fd, buffer, size);
    }

    static inline ssize_t fp_write(int fd, const struct iovec *parts, int n) {
        return n == 1 ? syscall(SYS_write, fd, parts->iov_base, parts->iov_len)
                      : syscall(SYS_writev, fd, parts, n);
    }

    /* Sleep until something can be read from `fd`, or at the longest until `when` (fp_now's clock; 0: for ever);
     * 1 if it can. */
    static inline int fp_sleep(int fd, int64_t when) {
        struct pollfd one = {.fd = fd, .events = POLLIN};
        int64_t left = when - fp_now();
        struct timespec t = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
        return ppoll(&one, 1, when ? &t : NULL, NULL) > 0;
    }

    /* FNV-1a, begun with FP_DIGEST. */
    static const uint64_t FP_DIGEST = 0xcbf29ce484222325u;

    static inline uint64_t fp_digest_more(uint64_t digest, const void *bytes, size_t n) {
        for (size_t i = 0; i < n; i++)
            digest = (digest ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
        return digest;
    }

    /* A number that is another when a file's text is; of an unreadable one always the same. */
    static inline uint64_t fp_digest(int fd) {
        uint64_t digest = FP_DIGEST;
        unsigned char text[8192];
        ssize_t n;
        off_t at = 0;
        while ((n = pread(fd, text, sizeof text, at)) > 0) {
            digest = fp_digest_more(digest, text, n);
            at += n;
        }
        return digest;
    }

    /* One-shot timer, `ns` from now; 0 disarms it. */
    static inline void fp_arm(int fd, int64_t ns) {
        struct itimerspec when = {{0, 0}, {ns / 1000000000, ns % 1000000000}};
        timerfd_settime(fd, 0, &when, NULL);
    }

    static inline void fp_kick(int eventfd) {
        uint64_t one = 1;
        ssize_t ignored = write(eventfd, &one, sizeof one);
        (void)ignored;
    }

    static inline void fp_drain(int eventfd) {
        uint64_t value;
        ssize_t ignored = read(eventfd, &value, sizeof value);
        (void)ignored;
    }

    /* The index of the interface that a packet socket is bound to, 0 for other sockets. */
    static inline int fp_index(int sock) {
        struct sockaddr_ll at = {0};
        socklen_t size = sizeof at;
        if (getsockname(sock, (struct sockaddr *)&at, &size) < 0 || at.sll_family != AF_PACKET)
            return 0;
        return at.sll_ifindex;
    }

    /* Ask about an interface by the name that it has now: somebody may have renamed it since, and its old
     * name may be another's.  `name` is for those without an index.  Returns what ioctl does. */
    static inline int fp_ask(int sock, int index, const char *name, unsigned long what, struct ifreq *request) {
        struct ifreq named;
        int result = -1;
        for (int tries = 0; tries < 100; tries++) {
            memset(&named, 0, sizeof named);
            named.ifr_ifindex = index;
            if (index <= 0)
                strncpy(named.ifr_name, name, IFNAMSIZ - 1);
            else if (ioctl(sock, SIOCGIFNAME, &named) < 0)
                return -1;
            memcpy(request->ifr_name, named.ifr_name, IFNAMSIZ);
            result = ioctl(sock, what, request);
            if (result >= 0 || errno != ENODEV)
                break;
        }
        return result;
    }

    /* Carrier by ETHTOOL_GLINK: 1 there, 0 not, or -errno.  `index` 0: of whoever has the name.  Waits for the
     * RTNL lock. */
    static inline int fp_carrier(int sock, int index, const char *name) {
        struct ethtool_value value = {.cmd = ETHTOOL_GLINK, .data = 0};
        struct ifreq request;
        memset(&request, 0, sizeof request);
        request.ifr_data = (char *)&value;
        if (fp_ask(sock, index, name, SIOCETHTOOL, &request) < 0)
            return -errno;
        return value.data != 0;
    }

    /* A number that is another when the features of an interface are (ETHTOOL_GFEATURES); 0 where it cannot be asked.
     * Waits for the RTNL lock. */
    static inline uint64_t fp_features(int sock, int index, const char *name) {
        struct {
            struct ethtool_gfeatures head;
            struct ethtool_get_features_block words[8];     /* 32 features each; the kernel fills those that it has */
        } found;
        struct ifreq request;
        memset(&found, 0, sizeof found);
        memset(&request, 0, sizeof request);
        found.head.cmd = ETHTOOL_GFEATURES;
        found.head.size = sizeof found.words / sizeof found.words[0];
        request.ifr_data = (char *)&found;
        if (fp_ask(sock, index, name, SIOCETHTOOL, &request) < 0)
            return 0;
        return fp_digest_more(FP_DIGEST, found.words, sizeof found.words);
    }

    /* Link by the PHY's status register: 1 there, 0 not, or -errno.  IEEE 802.3, 22.2.4.2. */
    static inline int fp_mii_link(int sock, int index, const char *name) {
        struct ifreq request;
        struct mii_ioctl_data *mii = (struct mii_ioctl_data *)&request.ifr_data;
        memset(&request, 0, sizeof request);
        if (fp_ask(sock, index, name, SIOCGMIIPHY, &request) < 0)
            return -errno;
        mii->reg_num = MII_BMSR;
        if (fp_ask(sock, index, name, SIOCGMIIREG, &request) < 0)
            return -errno;
        return (mii->val_out & BMSR_LSTATUS) != 0;
    }

    /* IFF_UP | IFF_RUNNING as they stand, or -errno.  Takes no lock; RUNNING may lag. */
    static inline int fp_flags(int sock, int index, const char *name) {
        struct ifreq request;
        memset(&request, 0, sizeof request);
        if (fp_ask(sock, index, name, SIOCGIFFLAGS, &request) < 0)
            return -errno;
        return request.ifr_flags & (IFF_UP | IFF_RUNNING);
    }

    static inline int fp_take_socket_error(int sock) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(sock, SOL_SOCKET, SO_ERROR, &error, &size);
        return error;
    }

    /* How many packets the kernel has dropped for want of room since this was asked last. */
    static inline uint32_t fp_take_overrun(int sock) {
        struct tpacket_stats stats = {0, 0};
        socklen_t size = sizeof stats;
        return getsockopt(sock, SOL_PACKET, PACKET_STATISTICS, &stats, &size) < 0 ? 0 : stats.tp_drops;
    }

    /* Let a socket receive no more, and throw away what it has received: how many packets that is. */
    static inline uint64_t fp_empty(int sock) {
        struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
        struct sock_fprog program = {1, &nothing};
        char start[64];
        uint64_t n = 0;
        int errors = 0;
        setsockopt(sock, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
        while (errors < 3 && n < 1 << 20) {
            if (recv(sock, start, sizeof start, MSG_DONTWAIT | MSG_TRUNC) > 0)
                n++;
            else if (errno == EAGAIN)
                break;
            else
                errors++;       /* a link that went down is told once */
        }
        return n;
    }

    /* The VLAN tag that the kernel took off: 1 and its fields, or 0. */
    static inline int fp_stripped_tag(struct msghdr *msg, uint16_t *tci, uint16_t *tpid) {
        struct cmsghdr *c = CMSG_FIRSTHDR(msg);
        if (c && c->cmsg_level == SOL_PACKET && c->cmsg_type == PACKET_AUXDATA) {
            struct tpacket_auxdata *aux = (struct tpacket_auxdata *)CMSG_DATA(c);
            if (aux->tp_status & TP_STATUS_VLAN_VALID) {
                *tci = aux->tp_vlan_tci;
                *tpid = aux->tp_status & TP_STATUS_VLAN_TPID_VALID ? aux->tp_vlan_tpid : 0x8100;
                return 1;
            }
        }
        return 0;
    }

    /* Zeroed memory, or NULL.  Built with a sanitizer it comes from where a byte too many is seen. */
    #ifdef __has_feature
    #if __has_feature(address_sanitizer)
    #define __SANITIZE_ADDRESS__ 1
    #endif
    #endif
    #ifdef __SANITIZE_ADDRESS__
    #define fp_map(size) calloc(1, size)
    #define fp_unmap(memory, size) free(memory)
    #else
    static inline void *fp_map(size_t size) {
        void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return memory == MAP_FAILED ? NULL : memory;
    }
    static inline void fp_unmap(void *memory, size_t size) {
        if (memory)
            munmap(memory, size);
    }
    #endif

    #define FP_CONTROL CMSG_SPACE(sizeof(struct tpacket_auxdata))
    #define fp_load(p) __atomic_load_n(p, __ATOMIC_SEQ_CST)
    #define fp_store(p, v) __atomic_store_n(p, v, __ATOMIC_SEQ_CST)
    #define fp_swap(p, v) __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST)
    #define fp_next(p) __atomic_add_fetch(p, 1, __ATOMIC_RELAXED)

    /* Raise a number to `value`: 1, or 0 if it was not below. */
    static inline int fp_raise(uint64_t *p, uint64_t value) {
        uint64_t was = __atomic_load_n(p, __ATOMIC_SEQ_CST);
        while (was < value)
            if (__atomic_compare_exchange_n(p, &was, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
                return 1;
        return 0;
    }
    """
    int64_t fp_now()
    bint fp_sleep(int fd, int64_t when)
    uint64_t fp_digest(int fd)
    void fp_arm(int fd, int64_t ns)
    void fp_kick(int fd)
    void fp_drain(int fd)
    int fp_carrier(int sock, int index, const char* name)
    uint64_t fp_features(int sock, int index, const char* name)
    int fp_mii_link(int sock, int index, const char* name)
    int fp_flags(int sock, int index, const char* name)
    int fp_index(int sock)
    int fp_take_socket_error(int sock)
    uint32_t fp_take_overrun(int sock)
    uint64_t fp_empty(int sock)
    int load_int "fp_load"(int* p)
    void store_int "fp_store"(int* p, int value)
    uint32_t load_u32 "fp_load"(uint32_t* p)
    void store_u32 "fp_store"(uint32_t* p, uint32_t value)
    uint64_t load_u64 "fp_load"(uint64_t* p)
    void store_u64 "fp_store"(uint64_t* p, uint64_t value)
    int64_t load_i64 "fp_load"(int64_t* p)
    void store_i64 "fp_store"(int64_t* p, int64_t value)
    uint32_t next_u32 "fp_next"(uint32_t* p)
    bint raise_u64 "fp_raise"(uint64_t* p, uint64_t value)
    const size_t FP_CONTROL

    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int fp_stripped_tag(msghdr* msg, uint16_t* tci, uint16_t* tpid)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int n, int flags)
    int recvmmsg(int fd, mmsghdr* messages, unsigned int n, int flags, void* timeout)
    ssize_t fp_read(int fd, void* buffer, size_t size)
    ssize_t fp_write(int fd, const iovec* parts, int n)
    int close(int fd)

    union epoll_data:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int n, int timeout)
    int eventfd(unsigned int value, int flags)
    int timerfd_create(int clock, int flags)
    const int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    const int EPOLLIN, EPOLLERR, EPOLLHUP
    const int EFD_CLOEXEC, EFD_NONBLOCK, TFD_CLOEXEC, TFD_NONBLOCK, CLOCK_MONOTONIC
    const int MSG_DONTWAIT, MSG_TRUNC
    const int IFF_UP, IFF_RUNNING

    void* map_pages "fp_map"(size_t size)
    void unmap_pages "fp_unmap"(void* memory, size_t size)

    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)

    const int EAGAIN, EINTR, EMSGSIZE, EINVAL, ENETDOWN, ENXIO, ENODEV, ENOENT, ENOBUFS, EBADFD, EBADF, EIO
