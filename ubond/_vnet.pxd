# cython: language_level=3, cdivision=True
"""The virtio-net header that precedes every frame on the TAP and on the slaves' sockets.

Ten bytes, in the byte order of the machine (linux/virtio_net.h, legacy form): what is still
to be done to the frame, a checksum to be filled in or a cut into segments.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memmove

cdef enum:
    VNET_LEN = 10
    VNET_NEEDS_CSUM = 1
    VNET_GSO_NONE = 0
    ETH_LEN = 14
    TAG_LEN = 4
    MACS_LEN = 12

cdef packed struct vnet_hdr:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset

cdef inline bint vnet_is_gso(const uint8_t* packet) noexcept nogil:
    return (<const vnet_hdr*>packet).gso_type != VNET_GSO_NONE

cdef inline uint8_t* vnet_put_tag_back(uint8_t* packet, uint16_t tci, uint16_t tpid) noexcept nogil:
    """Insert a VLAN tag after the MACs of `packet` (header, then frame); return where it starts now.

    The four bytes before `packet` must be ours: header and MACs move into them, so that
    the rest of the frame stays where it is.  What the header counts from the start of the
    frame moves along.
    """
    cdef uint8_t* moved = packet - TAG_LEN
    cdef vnet_hdr* header
    memmove(moved, packet, VNET_LEN + MACS_LEN)
    header = <vnet_hdr*>moved
    if header.flags & VNET_NEEDS_CSUM:
        header.csum_start += TAG_LEN
    if header.hdr_len:
        header.hdr_len += TAG_LEN
    moved[VNET_LEN + MACS_LEN] = <uint8_t>(tpid >> 8)
    moved[VNET_LEN + MACS_LEN + 1] = <uint8_t>tpid
    moved[VNET_LEN + MACS_LEN + 2] = <uint8_t>(tci >> 8)
    moved[VNET_LEN + MACS_LEN + 3] = <uint8_t>tci
    return moved
