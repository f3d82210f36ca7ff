# cython: language_level=3, cdivision=True
"""Sending a run of frames on one slave, and what each kind of error means.

`sendmmsg` returning short says only where to call again: the errno comes with the next
call.  What an errno says about the link depends on the carrier, and asking for the carrier
must not block: the flags are read at once (they prove death, not life), the rest is asked
of the watch.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memmove

from ubond._frame cimport be16, is_tag
from ubond._state cimport *
from ubond._sys cimport *
from ubond._vnet cimport VNET_LEN, vnet_is_gso

cdef enum:                  # how a run ended
    SENT = 0                # all of it, or what was not is counted
    BUSY = 1                # ENOBUFS or EAGAIN: a full ring, or a link that died just now
    DEAD = 2                # the link is gone

cdef enum:                  # answers of the watch
    GONE = 0
    ALIVE = 1

cdef inline bint flags_prove_death(fp_worker* w, fp_port* p) noexcept nogil:
    cdef int flags = fp_flags(w.shared.probe, p.link.index, p.link.name)
    return flags < 0 or (flags & (IFF_UP | IFF_RUNNING)) != (IFF_UP | IFF_RUNNING)

cdef inline void ask_watch(fp_worker* w, fp_port* p) noexcept nogil:
    """Ask for the carrier as it is after this moment."""
    store_u32(&p.question, p.question + 1)
    fp_kick(w.shared.watch_kick)

cdef inline bint found_alive(fp_port* p) noexcept nogil:
    """The newest question was answered: the carrier is there."""
    return load_u32(&p.answered) == p.question and load_int(&p.answer) == ALIVE

cdef inline bint found_dead(fp_port* p) noexcept nogil:
    """A question was answered, it need not be the newest: the carrier is gone."""
    if load_int(&p.answer) != GONE:
        return False
    store_int(&p.answer, ALIVE)     # heard once
    return True

cdef inline void count_sent(fp_port* p, mmsghdr* sent, int n, int64_t now) noexcept nogil:
    cdef int i
    for i in range(n):
        p.count.tx_bytes += sent[i].msg_len - VNET_LEN
    p.count.tx_frames += n
    p.last_tx = now
    if p.first_tx == 0:
        p.first_tx = now

cdef inline void count_too_long(fp_port* p, const uint8_t* packet) noexcept nogil:
    if is_tag(be16(packet + VNET_LEN + 12)):
        p.count.tx_too_long_tagged += 1
    else:
        p.count.tx_too_long += 1

cdef inline int send_run(fp_worker* w, fp_port* p, mmsghdr* run, uint32_t n, uint32_t* sent) noexcept nogil:
    """Send `run[sent[0]:n]` on a slave; leave in `sent` how many are settled, return SENT, BUSY or DEAD.

    A frame that is itself at fault is dropped, counted, and the run goes on.
    """
    cdef int moved, error
    cdef bint retried = False
    cdef int64_t now = fp_now()
    while sent[0] < n:
        moved = sendmmsg(p.fd, run + sent[0], n - sent[0], MSG_DONTWAIT)
        if moved > 0:
            count_sent(p, run + sent[0], moved, now)
            sent[0] += moved
            retried = False
            continue
        error = errno
        if error == EINTR:
            continue
        if error == EMSGSIZE:
            count_too_long(p, <uint8_t*>run[sent[0]].msg_hdr.msg_iov.iov_base)
            sent[0] += 1
        elif error == EINVAL:
            p.count.tx_refused += 1
            sent[0] += 1
        elif error == ENETDOWN or error == ENXIO or error == ENODEV or error == ENOENT:
            # After a link went down and up the first call still returns the old error.
            if retried or flags_prove_death(w, p):
                return DEAD
            fp_take_socket_error(p.fd)
            retried = True
        elif error == ENOBUFS or error == EAGAIN:
            return DEAD if flags_prove_death(w, p) else BUSY
        else:
            p.count.tx_unknown += 1
            sent[0] += 1
    return SENT

cdef inline bint send_plain(fp_port* p, mmsghdr* packet) noexcept nogil:
    """Send one packet through the ordinary path, which segments in software; True if it went."""
    if sendmmsg(p.plain_fd, packet, 1, MSG_DONTWAIT) != 1:
        return False
    p.count.tx_plain += 1
    count_sent(p, packet, 1, fp_now())
    return True

cdef inline bint backlog_add(fp_port* p, const uint8_t* packet, uint32_t length, bint copied) noexcept nogil:
    """Keep a packet for later; False when there is no room.  `copied`: other slaves have it too."""
    cdef fp_backlog* b = &p.backlog
    if b.n == BATCH or b.used + length > ARENA:
        return False
    if b.bytes is NULL:
        b.bytes = <uint8_t*>map_pages(ARENA)
        if b.bytes is NULL:
            return False
    memmove(b.bytes + b.used, packet, length)     # what a port gets back moves within its own bytes
    b.offset[b.n] = b.used
    b.length[b.n] = length
    b.used += (length + 15) & ~15u
    b.copied |= <uint64_t>copied << b.n
    b.n += 1
    return True
