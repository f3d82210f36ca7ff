# cython: language_level=3, cdivision=True
"""balance-tlb and balance-alb: loads and who carries them.  The readable twin, with the why, is `bond/balance.py`.

Slaves are ports here, which stay what they are when the table changes.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

from ubond._frame cimport ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_ICMPV6_, IPPROTO_IGMP_
from ubond._hash cimport fp_link, read_link

cdef enum:
    LOAD_SLOTS = 256
    LOAD_PORTS = 64         # as many as MAX_SLAVES
    FREE = 255

cdef struct fp_slot:
    uint64_t sent           # bytes in this interval
    uint64_t history        # bytes a second in the one before
    uint8_t port            # or FREE

cdef struct fp_loads:
    int64_t at              # when the interval began, 0: not yet
    uint64_t unbalanced
    uint64_t able           # bit per port that could transmit when that was last looked at
    uint64_t load[LOAD_PORTS]
    fp_slot slot[LOAD_SLOTS]

cdef inline void loads_begin(fp_loads* l) noexcept nogil:
    cdef int i
    memset(l, 0, sizeof(fp_loads))
    for i in range(LOAD_SLOTS):
        l.slot[i].port = FREE

cdef inline bint is_balanced(const uint8_t* frame, uint32_t length) noexcept nogil:
    """Whether any slave may send a frame."""
    cdef fp_link link
    if length < 14 or frame[0] & 1:
        return False
    read_link(frame, length, &link)
    if link.type != ETHERTYPE_IPV6:
        return link.type == ETHERTYPE_IPV4
    if length < link.at + 40:
        return False
    if frame[link.at + 6] != IPPROTO_ICMPV6_:
        return True
    return length > link.at + 40 and frame[link.at + 40] != 135 and frame[link.at + 40] != 136

cdef inline uint32_t xor_of(const uint8_t* bytes, uint32_t n) noexcept nogil:
    cdef uint32_t i, all = 0
    for i in range(n):
        all ^= bytes[i]
    return all

cdef inline bint is_balanced_to_all(const uint8_t* frame, uint32_t length, uint32_t* hash) noexcept nogil:
    """The same in balance-alb, and the frame's `hash` there."""
    cdef fp_link link
    cdef const uint8_t* ip
    cdef const uint8_t* every = <const uint8_t*><const char*>b"\xff\xff\xff\xff\xff\xff"
    cdef int i
    if length < 14:
        return False
    read_link(frame, length, &link)
    ip = frame + link.at
    if link.type == ETHERTYPE_IPV4:
        if length < link.at + 20 or ip[9] == IPPROTO_IGMP_ or memcmp(ip + 16, every, 4) == 0:
            return False
        hash[0] = xor_of(ip + 16, 4)
        return memcmp(frame, every, 6) != 0
    if link.type != ETHERTYPE_IPV6 or length < link.at + 40:
        return False
    if frame[0] & 1 and (memcmp(frame, every, 6) == 0 or memcmp(frame, b"\x33\x33\x00\x00\x00\x01", 6) == 0):
        return False
    if ip[6] == IPPROTO_ICMPV6_ and (length == link.at + 40 or ip[40] == 135 or ip[40] == 136):
        return False
    hash[0] = xor_of(ip + 24, 16)
    for i in range(8, 24):
        if ip[i]:
            return True
    return False

cdef inline void loads_count_anew(fp_loads* l, int64_t every, int active) noexcept nogil:
    """Free all slots; `active`: port of the active slave, or -1."""
    cdef uint64_t ms = every / 1000000
    cdef int i
    for i in range(LOAD_SLOTS):
        l.slot[i].port = FREE
        l.slot[i].history = 1 + l.slot[i].sent * 1000 / ms
        l.slot[i].sent = 0
    memset(l.load, 0, sizeof(l.load))
    if active >= 0:
        l.load[active] = l.unbalanced * 1000 / ms
    l.unbalanced = 0

cdef inline void loads_rebalance(fp_loads* l, int64_t every, int active, int64_t now) noexcept nogil:
    """Count anew if it is time to."""
    cdef int64_t periods, i
    if l.at == 0:
        l.at = now
    periods = (now - l.at) / every
    for i in range(min(periods, 2)):
        loads_count_anew(l, every, active)
    l.at += periods * every

cdef inline bint loads_release(fp_loads* l, uint64_t able) noexcept nogil:
    """Free the slots of all ports but those that can transmit; True if one of these could not before."""
    cdef bint came = (able & ~l.able) != 0
    cdef int i
    l.able = able
    for i in range(LOAD_SLOTS):
        if l.slot[i].port != FREE and not able >> l.slot[i].port & 1:
            l.slot[i].port = FREE
    for i in range(LOAD_PORTS):
        if not able >> i & 1:
            l.load[i] = 0
    return came

cdef inline int loads_choose(fp_loads* l, uint32_t hash, uint32_t n, const uint8_t* ports, const uint32_t* speeds,
                             uint32_t length) noexcept nogil:
    """The port that sends a frame of this hash and length; FREE if there is none.

    `ports`, `speeds`: of the `n` that can transmit, in enslave order.
    """
    cdef fp_slot* slot = &l.slot[hash % LOAD_SLOTS]
    cdef int64_t gap, widest = 0
    cdef uint32_t i
    if slot.port == FREE:
        for i in range(n):
            gap = (<int64_t>speeds[i] << 20) - <int64_t>(l.load[ports[i]] * 8)
            if slot.port == FREE or gap > widest:
                slot.port = ports[i]
                widest = gap
        if slot.port != FREE:
            l.load[slot.port] += slot.history
    slot.sent += length
    return slot.port
