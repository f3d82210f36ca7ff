# cython: language_level=3, cdivision=True
"""Cutting a received tunnel super-frame into the segments that its sender meant.

The virtio-net header has no word for a tunnel: a VXLAN or GRE super-frame arrives with the
type and the checksum position of the TCP or UDP inside, and a stack that believes it is
misled.  So such a frame is cut here, in software, all checksums filled in: slow, but right.
One level of encapsulation is known; what is nested deeper, or carries sequence numbers that
would have to be made up, is not cut.

Sources: RFC 791, 8200, 9293, 768, 2784 and 2890 (GRE), 7348 (VXLAN), linux/virtio_net.h.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ubond._frame cimport ETHERTYPE_IPV4, ETHERTYPE_IPV6, be16, is_tag
from ubond._vnet cimport VNET_LEN, VNET_NEEDS_CSUM, vnet_hdr

cdef enum:
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80
    TCP_ = 6
    UDP_ = 17
    GRE_ = 47
    HEADERS_MAX = 512
    SEGMENTS_MAX = 1400         # 64 KiB in segments of 48 bytes, below which no stack goes: tcp(7), tcp_min_snd_mss
    TCP_FIN_PSH = 0x09
    TCP_CWR = 0x80

cdef struct fp_cut:             # where things stand in the super-frame; offsets from the destination MAC
    uint32_t outer_ip
    uint32_t outer_l4
    uint32_t inner_ip
    uint32_t inner_l4
    uint32_t headers            # where the payload begins
    uint32_t length             # of the whole frame
    uint32_t size               # payload of one segment
    uint32_t n                  # segments
    uint8_t outer_protocol
    bint outer_v4
    bint inner_v4
    bint tcp

cdef inline void put16(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 8)
    p[1] = <uint8_t>value

cdef inline uint32_t get32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>be16(p) << 16) | be16(p + 2)

cdef inline uint64_t sum_of(const uint8_t* p, uint32_t length, uint64_t start) noexcept nogil:
    """Add 16-bit words in network order; an odd last byte counts as if a zero followed.

    Headers have an even number of bytes, so sums of what follows one another may be added.
    """
    cdef uint32_t i
    for i in range(0, length & ~1u, 2):
        start += be16(p + i)
    if length & 1:
        start += <uint32_t>p[length - 1] << 8
    return start

cdef inline uint16_t checksum_of(uint64_t total) noexcept nogil:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>~total

cdef inline bint ip_at(const uint8_t* f, uint32_t at, uint32_t length, bint* v4, uint8_t* protocol,
                       uint32_t* end) noexcept nogil:
    """Read an IP header: its version, protocol and where it ends.  No extension headers."""
    if length < at + 20:
        return False
    v4[0] = f[at] >> 4 == 4
    if v4[0]:
        protocol[0] = f[at + 9]
        end[0] = at + (f[at] & 15) * 4
        return (f[at] & 15) >= 5 and end[0] <= length
    protocol[0] = f[at + 6]
    end[0] = at + 40
    return f[at] >> 4 == 6 and end[0] <= length

cdef inline uint32_t network_at(const uint8_t* f, uint32_t length) noexcept nogil:
    """Where the outer IP header begins, behind any VLAN tags; 0 if this is not IP."""
    cdef uint32_t at = 12
    while length >= at + 6 and is_tag(be16(f + at)):
        at += 4
    if length < at + 2 or (be16(f + at) != ETHERTYPE_IPV4 and be16(f + at) != ETHERTYPE_IPV6):
        return 0
    return at + 2

cdef inline bint is_tunnel_gso(const uint8_t* packet, uint32_t length) noexcept nogil:
    """Whether the header's checksum position is not where the outer transport header begins.

    `packet` starts with the virtio-net header.  Only asked of GSO frames.
    """
    cdef const vnet_hdr* header = <const vnet_hdr*>packet
    cdef const uint8_t* f = packet + VNET_LEN
    cdef uint32_t at = network_at(f, length - VNET_LEN), end
    cdef bint v4
    cdef uint8_t protocol
    if not header.flags & VNET_NEEDS_CSUM or not at or not ip_at(f, at, length - VNET_LEN, &v4, &protocol, &end):
        return False
    if header.csum_start == end:
        return False
    # IPv6 extension headers also stand between; they are no tunnel.
    return protocol == UDP_ or protocol == GRE_ or protocol == 4 or protocol == 41

cdef inline uint32_t inner_ip_before(const uint8_t* f, uint32_t l4, uint32_t lowest, uint32_t length,
                                     uint8_t protocol) noexcept nogil:
    """Where the IP header begins whose payload begins at `l4`; 0 if none fits there."""
    cdef uint32_t size, at
    for size in range(20, 64, 4):
        if l4 < lowest + size:
            break
        at = l4 - size
        if f[at] == (0x40 | size >> 2) and f[at + 9] == protocol and at + be16(f + at + 2) == length:
            return at
    if l4 >= lowest + 40:
        at = l4 - 40
        if f[at] >> 4 == 6 and f[at + 6] == protocol and l4 + be16(f + at + 4) == length:
            return at
    return 0

cdef inline bint plan_cut(const uint8_t* packet, uint32_t length, fp_cut* cut) noexcept nogil:
    """Find the headers of a tunnel super-frame; False if it cannot be cut."""
    cdef const vnet_hdr* header = <const vnet_hdr*>packet
    cdef const uint8_t* f = packet + VNET_LEN
    cdef uint8_t kind = header.gso_type & ~GSO_ECN, inner_protocol
    cdef uint32_t end
    length -= VNET_LEN
    cut.length = length
    cut.outer_ip = network_at(f, length)
    cut.size = header.gso_size
    cut.inner_l4 = header.csum_start
    cut.tcp = kind == GSO_TCPV4 or kind == GSO_TCPV6
    if not cut.outer_ip or not cut.size or not (cut.tcp or kind == GSO_UDP_L4):
        return False
    if not ip_at(f, cut.outer_ip, length, &cut.outer_v4, &cut.outer_protocol, &cut.outer_l4):
        return False
    if length < cut.inner_l4 + 20 or cut.inner_l4 < cut.outer_l4 + 20:
        return False
    cut.inner_ip = inner_ip_before(f, cut.inner_l4, cut.outer_l4, length, TCP_ if cut.tcp else UDP_)
    if not cut.inner_ip or not ip_at(f, cut.inner_ip, length, &cut.inner_v4, &inner_protocol, &end):
        return False
    if cut.outer_protocol == GRE_ and f[cut.outer_l4] & 0x10:
        return False            # sequence numbers
    cut.headers = cut.inner_l4 + ((f[cut.inner_l4 + 12] >> 4) * 4 if cut.tcp else 8)
    if cut.headers >= length or cut.headers > HEADERS_MAX or cut.headers < cut.inner_l4 + (20 if cut.tcp else 8):
        return False
    cut.n = (length - cut.headers + cut.size - 1) / cut.size
    return cut.n <= SEGMENTS_MAX

cdef inline void set_ip_length(uint8_t* f, uint32_t at, uint32_t end, bint v4, uint32_t length, uint32_t i) noexcept nogil:
    """Adapt one IP header to a segment that ends at `length`: lengths, number, checksum."""
    if v4:
        put16(f + at + 2, length - at)
        put16(f + at + 4, be16(f + at + 4) + i)
        put16(f + at + 10, 0)
        put16(f + at + 10, checksum_of(sum_of(f + at, end - at, 0)))
    else:
        put16(f + at + 4, length - end)

cdef inline uint64_t pseudo_sum(const uint8_t* f, uint32_t at, bint v4, uint32_t protocol, uint32_t length) noexcept nogil:
    return sum_of(f + at + 12, 8, protocol + length) if v4 else sum_of(f + at + 8, 32, protocol + length)

cdef inline uint32_t cut_one(const fp_cut* cut, const uint8_t* f, uint32_t i, uint8_t* head, uint32_t* at) noexcept nogil:
    """Write the headers of segment `i` to `head`; return the length of its payload, which begins at `at`."""
    cdef uint32_t start = cut.headers + i * cut.size
    cdef uint32_t n = cut.length - start if cut.length - start < cut.size else cut.size
    cdef uint32_t length = cut.headers + n
    cdef uint8_t* l4 = head + cut.inner_l4
    cdef uint64_t total
    cdef uint32_t sequence
    memcpy(head, f, cut.headers)
    at[0] = start
    # From the inside out: the outer checksum may cover everything within.
    set_ip_length(head, cut.inner_ip, cut.inner_l4, cut.inner_v4, length, i)
    if cut.tcp:
        sequence = get32(l4 + 4) + i * cut.size
        put16(l4 + 4, sequence >> 16)
        put16(l4 + 6, sequence)
        if i:
            l4[13] &= ~TCP_CWR
        if i + 1 < cut.n:
            l4[13] &= ~TCP_FIN_PSH
        put16(l4 + 16, 0)
        total = pseudo_sum(head, cut.inner_ip, cut.inner_v4, TCP_, length - cut.inner_l4)
        total = sum_of(l4, cut.headers - cut.inner_l4, total)
        put16(l4 + 16, checksum_of(sum_of(f + start, n, total)))
    else:
        put16(l4 + 4, length - cut.inner_l4)
        put16(l4 + 6, 0)
        total = pseudo_sum(head, cut.inner_ip, cut.inner_v4, UDP_, length - cut.inner_l4)
        total = sum_of(l4, 8, total)
        put16(l4 + 6, nonzero(checksum_of(sum_of(f + start, n, total))))
    finish_outer(cut, f + start, n, head, length, i)
    return n

cdef inline uint16_t nonzero(uint16_t checksum) noexcept nogil:
    return checksum if checksum else 0xFFFF     # RFC 768: zero means none

cdef inline void finish_outer(const fp_cut* cut, const uint8_t* payload, uint32_t n, uint8_t* head,
                              uint32_t length, uint32_t i) noexcept nogil:
    cdef uint8_t* l4 = head + cut.outer_l4
    cdef uint64_t total
    set_ip_length(head, cut.outer_ip, cut.outer_l4, cut.outer_v4, length, i)
    if cut.outer_protocol == UDP_:
        put16(l4 + 4, length - cut.outer_l4)
        if l4[6] or l4[7]:
            put16(l4 + 6, 0)
            total = pseudo_sum(head, cut.outer_ip, cut.outer_v4, UDP_, length - cut.outer_l4)
            total = sum_of(l4, cut.headers - cut.outer_l4, total)
            put16(l4 + 6, nonzero(checksum_of(sum_of(payload, n, total))))
    elif cut.outer_protocol == GRE_ and l4[0] & 0x80:
        put16(l4 + 4, 0)
        total = sum_of(l4, cut.headers - cut.outer_l4, 0)
        put16(l4 + 4, checksum_of(sum_of(payload, n, total)))
