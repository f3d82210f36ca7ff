# cython: language_level=3, cdivision=True
"""Reading headers.  `frame` starts at the destination MAC; nothing beyond `length` is touched."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

cdef enum:
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_ARP = 0x0806
    ETHERTYPE_VLAN = 0x8100
    ETHERTYPE_IPV6 = 0x86DD
    ETHERTYPE_SLOW = 0x8809
    ETHERTYPE_QINQ = 0x88A8
    IPPROTO_IGMP_ = 2
    IPPROTO_ICMPV6_ = 58

    # What a received frame may be of interest for; the bits of table.Divert.
    KIND_SLOW = 1
    KIND_ARP = 2
    KIND_ND = 4

cdef inline uint16_t be16(const uint8_t* p) noexcept nogil:
    return (<uint16_t>p[0] << 8) | p[1]

cdef inline bint is_tag(uint16_t ethertype) noexcept nogil:
    return ethertype == ETHERTYPE_VLAN or ethertype == ETHERTYPE_QINQ

cdef inline bint is_unicast_to(const uint8_t* frame, const uint8_t* address) noexcept nogil:
    return memcmp(frame, address, 6) == 0

cdef inline bint is_igmp(const uint8_t* frame, uint32_t length) noexcept nogil:
    """IPv4 with protocol 2, behind at most one VLAN tag (the one that a NIC would hold apart)."""
    cdef uint32_t at = 12
    if length >= 18 and is_tag(be16(frame + 12)):
        at = 16
    return length >= at + 22 and be16(frame + at) == ETHERTYPE_IPV4 and frame[at + 11] == IPPROTO_IGMP_

cdef inline bint is_membership_report(const uint8_t* frame, uint32_t length) noexcept nogil:
    """Whether a host joins or leaves groups with this frame: IGMP, or MLD behind its hop-by-hop header."""
    cdef uint32_t at = 12
    if not frame[0] & 1:
        return False
    while length >= at + 6 and is_tag(be16(frame + at)):
        at += 4
    if length < at + 22:
        return False
    if be16(frame + at) == ETHERTYPE_IPV4:
        return frame[at + 11] == IPPROTO_IGMP_
    return be16(frame + at) == ETHERTYPE_IPV6 and frame[at + 8] == 0 and length >= at + 43 \
        and frame[at + 42] == IPPROTO_ICMPV6_

cdef inline int kind_of(const uint8_t* frame, uint32_t length) noexcept nogil:
    """KIND_* of an untagged or tagged frame, 0 for ordinary traffic."""
    cdef uint32_t at = 12
    cdef uint16_t ethertype
    if length < 14:
        return 0
    ethertype = be16(frame + 12)
    while is_tag(ethertype) and length >= at + 6:
        at += 4
        ethertype = be16(frame + at)
    if ethertype == ETHERTYPE_SLOW:
        return KIND_SLOW if at == 12 else 0
    if ethertype == ETHERTYPE_ARP:
        return KIND_ARP
    if ethertype == ETHERTYPE_IPV6 and length >= at + 2 + 41:
        if frame[at + 8] == IPPROTO_ICMPV6_ and (frame[at + 42] == 135 or frame[at + 42] == 136):
            return KIND_ND
    return 0
