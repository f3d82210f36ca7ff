# cython: language_level=3, cdivision=True
"""What a received frame proves to the ARP and NS monitor: kept as stamps, compared on the spot.

The readable twin is `bond.evidence.see`; a test holds the two against each other.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy

from ubond._frame cimport ETHERTYPE_ARP, ETHERTYPE_IPV6, IPPROTO_ICMPV6_, be16, is_tag, is_unicast_to
from ubond._state cimport SLOTS, fp_watch

cdef enum:                      # places in fp_port.stamp, as bond.evidence.Form
    SEEN_ANY = 0
    SEEN_ARP = 1
    SEEN_ND = 2
    SEEN_ANSWER = 3
    SEEN_REPLY = SEEN_ANSWER + SLOTS
    SEEN_OWN = SEEN_REPLY + SLOTS

cdef inline bint is_own4(const fp_watch* watch, uint32_t address) noexcept nogil:
    cdef uint32_t i
    for i in range(watch.n_own4):
        if watch.own4[i] == address:
            return True
    return False

cdef inline bint is_own6(const fp_watch* watch, const uint8_t* address) noexcept nogil:
    cdef uint32_t i
    for i in range(watch.n_own6):
        if memcmp(watch.own6[i], address, 16) == 0:
            return True
    return False

cdef inline bint is_asked_for(const uint8_t* group, const uint8_t* target) noexcept nogil:
    """Whether a destination is a target or its solicited-node group (RFC 4291, 2.7.1)."""
    if memcmp(group, target, 16) == 0:
        return True
    return (
        memcmp(group, b"\xff\x02\0\0\0\0\0\0\0\0\0\x01\xff", 13) == 0
        and memcmp(group + 13, target + 13, 3) == 0
    )

cdef inline void see_arp(int64_t* stamp, const fp_watch* watch, const uint8_t* arp, int64_t now) noexcept nogil:
    cdef uint32_t sender, target, i
    if memcmp(arp, b"\0\x01\x08\0\x06\x04", 6) != 0:
        return
    memcpy(&sender, arp + 14, 4)
    memcpy(&target, arp + 24, 4)
    for i in range(watch.n_target4):
        if sender == watch.target4[i] and is_own4(watch, target):
            stamp[SEEN_ANSWER + i] = now
            if be16(arp + 6) == 2:
                stamp[SEEN_REPLY + i] = now
        if target == watch.target4[i] and is_own4(watch, sender):
            stamp[SEEN_OWN + i] = now

cdef inline void see_nd(int64_t* stamp, const fp_watch* watch, const uint8_t* ip, int64_t now) noexcept nogil:
    cdef const uint8_t* sender = ip + 8
    cdef const uint8_t* target = ip + 24
    cdef bint to_us
    cdef uint32_t i
    # A hop limit of 255 shows that no router has passed it on (RFC 4861, 7.1).
    if ip[7] != 255 or memcmp(sender, b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16) == 0:
        return
    to_us = (
        memcmp(target, b"\xff\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\x01", 16) == 0 or is_own6(watch, target)
    )
    for i in range(watch.n_target6):
        if to_us and memcmp(sender, watch.target6[i], 16) == 0:
            stamp[SEEN_ANSWER + i] = stamp[SEEN_REPLY + i] = now
        if is_asked_for(target, watch.target6[i]) and is_own6(watch, sender):
            stamp[SEEN_OWN + i] = now

cdef inline void see(int64_t* stamp, const fp_watch* watch, uint32_t slave, const uint8_t* frame, uint32_t length,
                     int64_t now) noexcept nogil:
    """Note what a frame that arrived on a slave shows.  A frame for another host proves nothing but life."""
    cdef uint32_t at = 12
    cdef uint16_t ethertype = be16(frame + 12)
    cdef bint for_us
    while is_tag(ethertype) and length >= at + 6:
        at += 4
        ethertype = be16(frame + at)
    if ethertype != ETHERTYPE_ARP and ethertype != ETHERTYPE_IPV6:
        return
    for_us = frame[0] & 1 or is_unicast_to(frame, watch.mac[slave])
    if ethertype == ETHERTYPE_ARP:
        stamp[SEEN_ARP] = now
        if for_us and length >= at + 30:
            see_arp(stamp, watch, frame + at + 2, now)
    elif length >= at + 2 + 41 and frame[at + 8] == IPPROTO_ICMPV6_ and (
        frame[at + 42] == 135 or frame[at + 42] == 136
    ):
        stamp[SEEN_ND] = now
        if for_us:
            see_nd(stamp, watch, frame + at + 2, now)
