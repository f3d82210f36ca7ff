"""Somebody on the wire, or on the machine, means harm: the bond goes on, and nothing of it is touched."""

from __future__ import annotations

import json
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.world import PEER4, Bond, World, blast, inside, wait_until
from ubond import paths
from ubond.wire import TPIDS, MacAddr

pytestmark = pytest.mark.netns

#: What becomes of a received frame; each is in exactly one of these.
FATES = ("rx_frames", "rx_ignored", "rx_tap_down", "rx_tap_refused", "rx_truncated", "rx_tunnel_refused")
TAGS = ((), (0x8100,), (0x88A8,), (0x8100, 0x8100), (0x88A8, 0x8100), (0x8100, 0x88A8, 0x8100))
KINDS = (0x0000, 0x0003, 0x0800, 0x0806, 0x86DD, 0x8035, 0x8100, 0x8809, 0x88A8, 0x88B5, 0x88CC, 0xFFFF)
FRAMES = 100_000


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


@pytest.fixture(scope="module")
def bond(world: World) -> Iterator[Bond]:
    with world.bond("-o", "primary=eth1") as bond:
        bond.wait_active("eth1")
        wait_until(lambda: world.host.reaches(PEER4), what="the peer")
        yield bond


def settled(bond: Bond, slave: str) -> int:
    counters = bond.counters(slave)
    return sum(counters[fate] for fate in FATES)


def every_shape(bond: bytes) -> Iterator[bytes]:
    """Frames of every kind, tag and length that a header can break at, to the bond and to all, from anywhere."""
    chance = random.Random(5)
    for tags in TAGS:
        for kind in KINDS:
            for length in (*range(14, 90, 3), 200, 576, 1500, 1514):
                dst = chance.choice([bond, b"\xff" * 6, bytes.fromhex("0180c2000002"), bytes.fromhex("01005e000001")])
                src = chance.choice([bond, bytes(6), b"\xff" * 6, bytes.fromhex("02000000f00d")])
                head = dst + src + b"".join(struct.pack("!HH", tag, chance.randrange(0x10000)) for tag in tags)
                frame = head + struct.pack("!H", kind) + chance.randbytes(1500)
                yield frame[: max(length, 14)][: 1514 + 4 * bool(tags)]


def test_frames_of_every_shape_are_forwarded_or_counted(world: World, bond: Bond) -> None:
    pid = bond.pid
    sent = 0
    # What a NIC keeps out by itself is in no counter.
    world.host.ip("link", "set", "bond0", "promisc", "on")
    wait_until(lambda: all(world.host.link(nic)["promiscuity"] for nic in world.nics), what="all is let in")
    for nic in world.nics:
        withheld, arrived, before = 0, world.host.counters(nic)["rx"]["packets"], settled(bond, nic)
        space, port = world.far_end(nic)
        with space.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((port, 0))
            for frame in every_shape(bond.mac):
                sock.send(frame)
                sent += 1
                # Half a tag: the kernel drops it before any socket sees it.
                half = int.from_bytes(frame[12:14]) in TPIDS and len(frame) < 18
                withheld += half and world.can("short frames")

        def lacking(nic: str = nic, others: int = arrived + withheld - before) -> int:
            return world.host.counters(nic)["rx"]["packets"] - others - settled(bond, nic)

        wait_until(lambda: not lacking(), what=f"every frame of {nic} in a counter")
    world.host.ip("link", "set", "bond0", "promisc", "off")
    assert sent > 3000
    assert bond.pid == pid
    assert world.host.reaches(PEER4)


def own_arp(mac: MacAddr) -> str:
    """An answer to a probe that nobody asked for, from a neighbour that is none."""
    return (struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 2) + bytes.fromhex("02000000f00dcb007109") + mac).hex()


FLOODS = ("ordinary", "lacp", "marker", "arp", "ns", "own-mac", "oversized")


@pytest.mark.parametrize("kind", FLOODS)
def test_the_bond_serves_the_rest_beside_a_flood(world: World, bond: Bond, kind: str) -> None:
    mac = bond.mac
    slow = ("--dst", "01:80:c2:00:00:02", "--head")
    how: tuple[str, ...] = {
        "ordinary": ("--dst", str(mac), "--head", "88b5"),
        "lacp": (*slow, "88090101"),
        "marker": (*slow, "88090201"),
        "arp": ("--dst", str(mac), "--head", own_arp(mac)),
        "ns": ("--dst", str(mac), "--head", "86dd600000000018" + "3aff" + "fe80" + "00" * 29 + "01" + "8700"),
        "own-mac": ("--dst", str(mac), "--src", str(mac), "--head", "0800"),
        "oversized": ("--dst", str(mac), "--head", "88a8000581000006", "--size", "1522"),
    }[kind]
    pid, before = bond.pid, bond.counters("eth1")
    space, port = world.far_end("eth1")
    if kind == "oversized":     # as long as the slave's MTU lets in, eight bytes more than the bond's
        space.ip("link", "set", port, "mtu", "1508")
    flood = space.start(blast(), "raw", "--interface", port, "--count", str(FRAMES),
                        "--seconds", f"{world.seconds(60):g}", *how)  # fmt: skip
    try:
        answered = sum(world.host.reaches(PEER4) for _ in range(5))
        out, err = flood.communicate(timeout=world.seconds(70))
    finally:
        flood.kill()
    said = json.loads(out)
    assert said["sent"] + said["failed"] == FRAMES, (said, err)
    # A NIC's own ring may be full where the flood is made.
    assert said["failed"] <= (0 if world.can("room in rings") else FRAMES // 2), (said, err)
    assert answered >= 3, f"{answered} of 5 pings answered beside the flood"
    wait_until(lambda: world.host.reaches(PEER4), what="the peer after the flood")
    assert bond.pid == pid
    assert (bond.active, bond.mac) == ("eth1", mac)
    after = bond.counters("eth1")
    assert sum(after[fate] - before[fate] for fate in FATES) + after["diverted"] + after["divert_policed"] > 0
    # Sixty-four at once and one each 4 ms, of each of three kinds: what Python may be given.
    assert after["diverted"] - before["diverted"] <= 3 * (64 + 250 * (said["seconds"] + 5))


# ── on the machine ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["{}.sock", "{}.lock", "{}.journal", ".{}.journal.new", "proc/net/bonding/{}",
                                  "proc/net/bonding/.{}.new"])  # fmt: skip
def test_a_link_where_ubond_writes_is_not_followed(world: World, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with inside(world.host.name):
        planted = paths.make_runtime_dir() / name.format("bond7")
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(victim)
    try:
        done = world.ubond("up", "bond7", check=False)
        assert done.returncode == 0 or (done.stderr.startswith("ubond: ") and done.stderr.count("\n") == 1)
        world.ubond("down", "bond7", check=False)
    finally:
        planted.unlink(missing_ok=True)
    assert victim.read_text() == "precious"
    assert "bond7" not in world.host.links()
