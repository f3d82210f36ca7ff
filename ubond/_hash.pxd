# cython: language_level=3, cdivision=True
"""Transmit hashes: which slave sends a frame.  The readable twin, with the why, is `bond/hashing.py`.

`frame` starts at the destination MAC, all VLAN tags in place; nothing beyond `length` is
touched.  A hash is taken as if the outermost tag were not there.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ubond._frame cimport ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, be16, is_tag

cdef enum:
    # Policies, numbered as the values of the option.
    HASH_LAYER2 = 0
    HASH_LAYER34 = 1
    HASH_LAYER23 = 2
    HASH_ENCAP23 = 3
    HASH_ENCAP34 = 4
    HASH_VLAN_SRCMAC = 5

    TYPE_BATMAN = 0x4305
    TYPE_GRE_ETHERNET = 0x6558
    TYPE_RARP = 0x8035
    TYPE_MPLS = 0x8847
    TYPE_MPLS_MULTICAST = 0x8848
    TYPE_PPPOE = 0x8864
    TYPE_GRE_PPP = 0x880B
    TYPE_TIPC = 0x88CA
    TYPE_PTP = 0x88F7
    TYPE_PRP = 0x88FB
    TYPE_CFM = 0x8902
    TYPE_FCOE = 0x8906
    TYPE_HSR = 0x892F

    PROTO_HOP_BY_HOP = 0
    PROTO_ICMP = 1
    PROTO_IPIP = 4
    PROTO_TCP = 6
    PROTO_UDP = 17
    PROTO_DCCP = 33
    PROTO_IPV6 = 41
    PROTO_ROUTING = 43
    PROTO_FRAGMENT = 44
    PROTO_GRE = 47
    PROTO_ESP = 50
    PROTO_AH = 51
    PROTO_ICMPV6 = 58
    PROTO_DESTINATION = 60
    PROTO_SCTP = 132
    PROTO_UDPLITE = 136
    IS_FRAGMENT = 256       # in place of a protocol: nothing behind this header can be read

    GRE_CSUM = 0x8000
    GRE_ROUTING = 0x4000
    GRE_KEY = 0x2000
    GRE_SEQUENCE = 0x1000
    GRE_ACK = 0x0080
    GRE_VERSION = 0x0007

    PPP_IPV4 = 0x0021
    PPP_IPV6 = 0x0057

    MORE_TAGS = 6           # behind the outermost, looked through for MPLS
    FURTHER = 15            # headers after the first on the walk to the innermost flow

cdef inline uint32_t le32(const uint8_t* p) noexcept nogil:
    """Written for any machine; compilers make one load of it where bytes stand so anyway."""
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24

cdef inline uint64_t le64(const uint8_t* p) noexcept nogil:
    return (p[0] | <uint64_t>p[1] << 8 | <uint64_t>p[2] << 16 | <uint64_t>p[3] << 24
            | <uint64_t>p[4] << 32 | <uint64_t>p[5] << 40 | <uint64_t>p[6] << 48 | <uint64_t>p[7] << 56)

cdef inline bint has(uint32_t length, uint32_t at, uint32_t size) noexcept nogil:
    """Whether `size` bytes stand at `at`.  Offsets stay far below 2^32: FURTHER bounds the walk."""
    return at + size <= length


# ── the Ethernet header ──────────────────────────────────────────────────────────────

cdef struct fp_link:        # the frame as the hash sees it
    uint32_t at             # where the header of `type` begins
    uint16_t type
    uint16_t tci            # of the tag taken off, or 0
    bint untagged           # whether one was

cdef inline bint carries_mpls(const uint8_t* frame, uint32_t length) noexcept nogil:
    """Whether the type behind all tags of a tagged frame is MPLS."""
    cdef uint32_t at = 16
    cdef uint16_t type = be16(frame + 16)
    cdef int i
    for i in range(MORE_TAGS):
        if not is_tag(type) or not has(length, at, 6):
            break
        at += 4
        type = be16(frame + at)
    return type == TYPE_MPLS or type == TYPE_MPLS_MULTICAST

cdef inline void read_link(const uint8_t* frame, uint32_t length, fp_link* link) noexcept nogil:
    link.type = be16(frame + 12)
    link.at = 14
    link.tci = 0
    link.untagged = False
    if is_tag(link.type) and length >= 18:
        link.at = 18
        if not carries_mpls(frame, length):
            link.type = be16(frame + 16)
            link.tci = be16(frame + 14)
            link.untagged = True


# ── flows ────────────────────────────────────────────────────────────────────────────

cdef struct fp_flow:
    uint32_t addresses      # all words of both, XORed
    uint32_t key            # ports, SPI or ICMP id, or 0

cdef inline int read_ip(const uint8_t* frame, uint32_t length, uint16_t type, uint32_t* at,
                        uint32_t* addresses) noexcept nogil:
    """Read the IP header at `at` and go behind it; return its protocol, IS_FRAGMENT, or -1 if it is none."""
    cdef const uint8_t* ip = frame + at[0]
    cdef uint64_t words
    if type == ETHERTYPE_IPV4 and has(length, at[0], 20):
        addresses[0] = le32(ip + 12) ^ le32(ip + 16)
        at[0] += (ip[0] & 0x0F) * 4
        if be16(ip + 6) & 0x3FFF:       # more fragments, or an offset
            return IS_FRAGMENT
        return ip[9]
    if type == ETHERTYPE_IPV6 and has(length, at[0], 40):
        words = le64(ip + 8) ^ le64(ip + 16) ^ le64(ip + 24) ^ le64(ip + 32)
        addresses[0] = <uint32_t>(words ^ (words >> 32))
        at[0] += 40
        return ip[6]
    return -1

cdef inline uint32_t ports(const uint8_t* frame, uint32_t length, uint32_t at, int protocol) noexcept nogil:
    """The ports or SPI of the header at `at`; 0 where there are none, or not whole."""
    if protocol == PROTO_AH:
        at += 4
    elif not (protocol == PROTO_TCP or protocol == PROTO_UDP or protocol == PROTO_DCCP or protocol == PROTO_ESP
              or protocol == PROTO_SCTP or protocol == PROTO_UDPLITE):
        return 0
    return le32(frame + at) if has(length, at, 4) else 0

cdef inline uint32_t icmp_id(const uint8_t* icmp) noexcept nogil:
    """Type, code and id in one number; 0 where there is no id.  Echo and timestamp, both versions alike."""
    cdef uint32_t type = icmp[0], id = be16(icmp + 4)
    if type == 8 or type == 0 or type == 13 or type == 14 or type == 128 or type == 129:
        return type | <uint32_t>icmp[1] << 8 | (id if id else 1) << 16
    return 0

cdef inline bint is_icmp_error(int protocol, uint8_t type) noexcept nogil:
    if protocol == PROTO_ICMP:
        return type == 3 or type == 4 or type == 5 or type == 11 or type == 12
    return 1 <= type <= 4

cdef inline bint outer_flow(const uint8_t* frame, uint32_t length, const fp_link* link,
                            fp_flow* flow) noexcept nogil:
    """For layer2+3 and layer3+4: the flow of the first header, or of what an ICMP error quotes.  False: none."""
    cdef uint32_t at = link.at
    cdef int protocol = read_ip(frame, length, link.type, &at, &flow.addresses)
    if protocol < 0:
        return False
    if protocol == PROTO_ICMP or protocol == PROTO_ICMPV6:
        if not has(length, at, 8):
            flow.key = 0
            return True
        if not is_icmp_error(protocol, frame[at]):
            flow.key = icmp_id(frame + at)
            return True
        at += 8
        protocol = read_ip(frame, length, link.type, &at, &flow.addresses)
        if protocol < 0:
            return False
    flow.key = ports(frame, length, at, protocol)
    return True


# ── the walk to the innermost flow ───────────────────────────────────────────────────

cdef enum fp_step:
    UNREADABLE              # no flow: a header is unknown or cut short
    ARRIVED                 # the flow is what was found so far
    NETWORK                 # at `at` is a header of `type`
    TRANSPORT               # at `at` is a header of `protocol`

cdef struct fp_walk:
    uint32_t at
    uint16_t type
    int protocol
    bint first_tag          # the first tag met will be taken for the one taken off

cdef inline fp_step walk_gre(const uint8_t* frame, uint32_t length, fp_walk* w) noexcept nogil:
    """Source: RFC 2784, RFC 2890, RFC 2637 (4.1)."""
    cdef uint32_t at = w.at, flags
    cdef uint16_t type, ppp
    if not has(length, at, 4):
        return UNREADABLE
    flags = be16(frame + at)
    type = be16(frame + at + 2)
    if flags & GRE_ROUTING or flags & GRE_VERSION > 1:
        return ARRIVED
    if flags & GRE_VERSION and not (flags & GRE_KEY and type == TYPE_GRE_PPP):
        return ARRIVED
    at += 8 if flags & GRE_CSUM else 4
    if flags & GRE_KEY:
        if not has(length, at, 4):
            return UNREADABLE
        at += 4
    if flags & GRE_SEQUENCE:
        at += 4
    if flags & GRE_VERSION:
        if flags & GRE_ACK:
            at += 4
        if not has(length, at, 4):
            return UNREADABLE
        ppp = be16(frame + at + 2)
        type = ETHERTYPE_IPV4 if ppp == PPP_IPV4 else ETHERTYPE_IPV6 if ppp == PPP_IPV6 else type
        at += 4
    elif type == TYPE_GRE_ETHERNET:
        if not has(length, at, 14):
            return UNREADABLE
        type = be16(frame + at + 12)
        at += 14
    w.type = type
    w.at = at
    return NETWORK

cdef inline fp_step walk_pppoe(const uint8_t* frame, uint32_t length, fp_walk* w) noexcept nogil:
    """Source: RFC 2516 (4), RFC 1661 (2, 6.5)."""
    cdef const uint8_t* pppoe = frame + w.at
    cdef uint32_t number
    if not has(length, w.at, 8) or pppoe[0] != 0x11 or pppoe[1] != 0:
        return UNREADABLE
    number = be16(pppoe + 6)
    w.at += 8
    if number & 0x0100:     # compressed to one byte
        number >>= 8
        w.at -= 1
    if number == PPP_IPV4 or number == PPP_IPV6:
        w.type = ETHERTYPE_IPV4 if number == PPP_IPV4 else ETHERTYPE_IPV6
        return NETWORK
    return ARRIVED if number & 0x0101 == 0x0001 else UNREADABLE

cdef inline fp_step walk_other(const uint8_t* frame, uint32_t length, const fp_link* link, fp_walk* w,
                               fp_flow* flow) noexcept nogil:
    """Step over a header that is not IP."""
    cdef const uint8_t* header = frame + w.at
    if is_tag(w.type):
        if w.first_tag:
            w.first_tag = False
            w.type = link.type
            return NETWORK
        if not has(length, w.at, 4):
            return UNREADABLE
        w.type = be16(header + 2)
        w.at += 4
        return NETWORK
    if w.type == ETHERTYPE_ARP or w.type == TYPE_RARP or w.type == TYPE_CFM:
        return ARRIVED
    if w.type == TYPE_MPLS or w.type == TYPE_MPLS_MULTICAST:
        return ARRIVED
    if w.type == TYPE_PPPOE:
        return walk_pppoe(frame, length, w)
    if w.type == TYPE_PRP or w.type == TYPE_HSR:
        if not has(length, w.at, 6):
            return UNREADABLE
        w.type = be16(header + 4)
        w.at += 6
        return NETWORK
    if w.type == TYPE_BATMAN:
        if not has(length, w.at, 24) or header[0] != 0x40 or header[1] != 15:
            return UNREADABLE
        w.type = be16(header + 22)
        w.at += 24
        return NETWORK
    if w.type == TYPE_TIPC and has(length, w.at, 16):
        flow.addresses = le32(header + 12)
        flow.key = 0
        return ARRIVED
    if w.type == TYPE_PTP and has(length, w.at, 34):
        return ARRIVED
    if w.type == TYPE_FCOE and has(length, w.at, 38):
        return ARRIVED
    return UNREADABLE

cdef inline fp_step walk_ip(const uint8_t* frame, uint32_t length, fp_walk* w, fp_flow* flow) noexcept nogil:
    """Take the addresses of an IP header."""
    cdef uint32_t start = w.at
    w.protocol = read_ip(frame, length, w.type, &w.at, &flow.addresses)
    flow.key = 0
    if w.protocol < 0 or w.at < start + 20:
        return UNREADABLE
    return ARRIVED if w.protocol == IS_FRAGMENT else TRANSPORT

cdef inline fp_step walk_transport(const uint8_t* frame, uint32_t length, fp_walk* w,
                                   fp_flow* flow) noexcept nogil:
    """Take the key of what IP carries, or enter it."""
    if w.protocol == PROTO_TCP or w.protocol == PROTO_UDP:
        flow.key = ports(frame, length, w.at, w.protocol)
        return ARRIVED
    if w.protocol == PROTO_ICMP or w.protocol == PROTO_ICMPV6:
        if has(length, w.at, 8):
            flow.key = icmp_id(frame + w.at)
        else:
            flow.key = 0
        return ARRIVED
    if w.protocol == PROTO_GRE:
        return walk_gre(frame, length, w)
    if w.protocol == PROTO_IPIP or w.protocol == PROTO_IPV6:
        w.type = ETHERTYPE_IPV4 if w.protocol == PROTO_IPIP else ETHERTYPE_IPV6
        return NETWORK
    if w.type == ETHERTYPE_IPV6:
        if w.protocol == PROTO_HOP_BY_HOP or w.protocol == PROTO_ROUTING or w.protocol == PROTO_DESTINATION:
            if not has(length, w.at, 2):
                return UNREADABLE
            w.protocol = frame[w.at]
            w.at += 8 * (1 + <uint32_t>frame[w.at + 1])
            flow.key = ports(frame, length, w.at, w.protocol)
            return TRANSPORT
        if w.protocol == PROTO_FRAGMENT:
            return ARRIVED if has(length, w.at, 8) else UNREADABLE
    flow.key = ports(frame, length, w.at, w.protocol)
    return ARRIVED

cdef inline bint inner_flow(const uint8_t* frame, uint32_t length, const fp_link* link,
                            fp_flow* flow) noexcept nogil:
    """For encap2+3 and encap3+4: the innermost flow.  False: a header on the way cannot be read."""
    cdef fp_walk w
    cdef fp_step step = NETWORK
    cdef int i
    w.at = link.at
    w.type = link.type
    w.protocol = IS_FRAGMENT
    w.first_tag = link.untagged
    flow.addresses = flow.key = 0
    for i in range(1 + FURTHER):
        if step == NETWORK:
            if w.type == ETHERTYPE_IPV4 or w.type == ETHERTYPE_IPV6:
                step = walk_ip(frame, length, &w, flow)
            else:
                step = walk_other(frame, length, link, &w, flow)
        if step == TRANSPORT:
            step = walk_transport(frame, length, &w, flow)
        if step == UNREADABLE:
            return False
        if step == ARRIVED:
            return True
    return True


# ── the policies ─────────────────────────────────────────────────────────────────────

cdef inline uint32_t fold(uint32_t h) noexcept nogil:
    h ^= h >> 16
    return h ^ (h >> 8)

cdef inline uint32_t xmit_hash(const uint8_t* frame, uint32_t length, int policy) noexcept nogil:
    """The hash of a frame; 0 for one without a whole Ethernet header."""
    cdef fp_link link
    cdef fp_flow flow
    cdef uint32_t eth
    if length < 14:
        return 0
    read_link(frame, length, &link)
    if policy == HASH_VLAN_SRCMAC:
        # The two halves of the MAC are 24-bit numbers.
        return (link.tci ^ (<uint32_t>(frame[6] ^ frame[9]) << 16)
                ^ (<uint32_t>(frame[7] ^ frame[10]) << 8) ^ frame[8] ^ frame[11])
    eth = frame[5] ^ frame[11] ^ link.type
    if policy == HASH_LAYER2:
        return eth
    if policy == HASH_LAYER23:
        return fold(eth ^ flow.addresses) if outer_flow(frame, length, &link, &flow) else eth
    if policy == HASH_LAYER34:
        return fold(flow.key ^ flow.addresses) >> 1 if outer_flow(frame, length, &link, &flow) else eth
    if policy == HASH_ENCAP23:
        return fold(eth ^ flow.addresses) if inner_flow(frame, length, &link, &flow) else eth
    if policy == HASH_ENCAP34:
        return fold(flow.key ^ flow.addresses) >> 1 if inner_flow(frame, length, &link, &flow) else eth
    return eth
