"""What it costs to choose a slave by hash: ns per frame for each xmit_hash_policy, against layer2.

The worker's own C, on frames that lie in cache as they do after the TAP was read: `plain`
is TCP and UDP over IPv4 and IPv6, a third of it tagged; `tunnels` is the same inside IPIP,
GRE and PPPoE, where the encap policies have further to walk.

    python bench/hash_ns.py [ROUNDS]
"""

import struct
import sys

from _report import emit_ratio, note

from ubond import _fastpath
from ubond.bond.hashing import HashPolicy
from ubond.bond.options import OPTIONS

NAMES = OPTIONS["xmit_hash_policy"].values
ROUNDS = 20
FRAMES = 48
PASSES = 100_000  # over all frames, for one figure: about five million hashes


def ip(number: int, protocol: int, payload: bytes) -> tuple[int, bytes]:
    """EtherType and packet: IPv6 every fourth time."""
    if number % 4 == 3:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return 0x86DD, head + bytes(15) + bytes((number,)) + bytes(15) + bytes((1,)) + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), number, 0, 64, protocol, 0)
    return 0x0800, head + bytes((10, 0, 0, number, 10, 0, 1, 1)) + payload


def plain(number: int) -> tuple[int, bytes]:
    """EtherType and packet of one flow: TCP, or UDP every third time."""
    ports = struct.pack("!HH", 40_000 + number, 443)
    return ip(number, 6 if number % 3 else 17, ports + bytes(16))


def tunnelled(number: int) -> tuple[int, bytes]:
    """The same inside IPIP (or IPv6 in IP), GRE or PPPoE, in turn."""
    kind, packet = plain(number)
    v6 = kind == 0x86DD
    if number % 3 == 0:
        return ip(0, 41 if v6 else 4, packet)
    if number % 3 == 1:
        return ip(0, 47, struct.pack("!HHI", 0x2000, kind, number) + packet)
    return 0x8864, struct.pack("!BBHHH", 0x11, 0, 1, len(packet) + 2, 0x57 if v6 else 0x21) + packet


def frame(number: int, kind: int, packet: bytes) -> bytes:
    """A whole frame; every third one has a VLAN tag."""
    tag = b"" if number % 3 else struct.pack("!HH", 0x8100, 100)
    return (bytes((2, 0, 0, 0, 0, number) * 2) + tag + struct.pack("!H", kind) + packet).ljust(60, b"\0")


def bench(rounds: int) -> None:
    for load, make in (("plain", plain), ("tunnels", tunnelled)):
        frames = [frame(i, *make(i)) for i in range(FRAMES)]
        taken: dict[HashPolicy, list[float]] = {policy: [] for policy in HashPolicy}
        note(f"{load}: {rounds} rounds of {len(HashPolicy)} policies")
        _fastpath.frame_hash_ns(frames, HashPolicy.ENCAP34, PASSES)  # caches and clock warm
        for _ in range(rounds):
            for policy in HashPolicy:
                taken[policy].append(_fastpath.frame_hash_ns(frames, policy, PASSES))
        for policy, values in taken.items():
            emit_ratio(f"hash.{load}.{NAMES[policy]}", "ns/frame", values, taken[HashPolicy.LAYER2])


if __name__ == "__main__":
    bench(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
