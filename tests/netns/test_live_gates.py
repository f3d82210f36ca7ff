"""The three kinds of gate, tested alike: what a slave's own stack hears and says, and what is left afterwards."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator

import pytest

from tests.netns.world import (
    ADDRESSES,
    HOST4,
    PEER4,
    Bond,
    Sniffer,
    Space,
    World,
    assert_as_before,
    blast,
    finish,
    let_in,
    start_receiver,
    wait_until,
)
from tests.netns.world import kind as kind_of_worlds
from ubond.wire import MacAddr

pytestmark = pytest.mark.netns

KINDS = ("clsact", "nft", "bridge")
SHOWN = {"clsact": "clsact", "nft": "nft", "bridge": "bridge, ingress only"}
LLDP, TESTING, EVERYTHING = 0x88CC, 0x88B5, 0x0003
SENDER = "02:00:5e:00:53:07"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bond(world: World, kind: str) -> Iterator[Bond]:
    with world.bond("--gate", kind) as bond:
        wait_until(lambda: world.host.reaches(PEER4), what="the peer")
        yield bond


def frame(to: str, text: bytes, protocol: int) -> bytes:
    return bytes(MacAddr.parse(to)) + bytes(MacAddr.parse(SENDER)) + protocol.to_bytes(2) + text.ljust(46, b"\0")


def listening(space: Space, interface: str, protocol: int) -> socket.socket:
    """A packet socket of one protocol hears what the interface's stack hears, one of all what arrives."""
    sock = space.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((interface, protocol))
    sock.settimeout(5 * kind_of_worlds().patience)
    return sock


def read_until(sock: socket.socket, text: bytes) -> list[bytes]:
    """All frames up to and with the one that holds `text`."""
    seen = [sock.recv(2048)]
    while text not in seen[-1]:
        seen.append(sock.recv(2048))
    return seen


def hears_nothing_but_link_local(world: World, nic: str) -> None:
    own = world.host.mac(nic)
    space, port = world.far_end(nic)
    with (
        listening(world.host, nic, TESTING) as stack,
        listening(world.host, nic, LLDP) as lldp,
        listening(world.host, nic, EVERYTHING) as all_of_it,
    ):
        let_in(all_of_it, world.host, nic)
        for to in (own, "ff:ff:ff:ff:ff:ff", "01:80:c2:00:00:10", "01:80:c2:00:01:00", "01:00:5e:00:00:01"):
            space.send(port, frame(to, b"for the bond", TESTING))
            space.send(port, frame(to, b"for the bond", LLDP))
        for last in (0x00, 0x02, 0x03, 0x0E, 0x0F):
            space.send(port, frame(f"01:80:c2:00:00:{last:02x}", b"link-local %02x" % last, LLDP))
        heard = [seen[14:30].rstrip(b"\0") for seen in read_until(lldp, b"link-local 0f")]
        assert heard == [b"link-local %02x" % last for last in (0x00, 0x02, 0x03, 0x0E, 0x0F)]
        seen = read_until(all_of_it, b"link-local 0f")
        assert sum(b"for the bond" in each for each in seen) == 10, "packet sockets see everything"
        stack.setblocking(False)
        with pytest.raises(BlockingIOError):
            stack.recv(2048)


def hears(world: World, nic: str, port: str) -> bool:
    """Whether a slave's stack hears a broadcast that arrives at it."""
    with listening(world.host, nic, TESTING) as stack, Sniffer(world.host, nic) as arrives:
        world.switch.send(port, frame("ff:ff:ff:ff:ff:ff", b"for the bond", TESTING))
        arrives.collect(lambda seen: b"for the bond" in seen.frame)
        stack.settimeout(world.seconds(0.2))
        try:
            return bool(stack.recv(2048))
        except TimeoutError:
            return False


# ── what passes ──────────────────────────────────────────────────────────────────────


def test_status_shows_the_gate_and_what_it_leaves_open(world: World, bond: Bond, kind: str) -> None:
    assert {bond.slave(nic)["ubond"]["gate"] for nic in world.nics} == {SHOWN[kind]}
    page = world.ubond("status", "bond0", "--format", "table").stdout
    assert page.count(SHOWN[kind]) >= 2
    assert ("the gate of eth1 leaves egress open" in page) == (kind == "bridge")


def test_the_slaves_own_stack_hears_link_local_frames_alone(world: World, bond: Bond) -> None:
    for nic in world.nics:
        hears_nothing_but_link_local(world, nic)


def test_nothing_is_answered_twice_when_the_switch_floods(world: World, bond: Bond) -> None:
    ports = [port for port in world.switch.links() if port.startswith("sw")]
    try:
        for port in ports:
            world.switch.run("bridge", "link", "set", "dev", port, "learning", "off")
            world.switch.ip("link", "set", port, "type", "bridge_slave", "fdb_flush")
        before = world.host.counters("eth2")["rx"]["packets"]
        world.peer.ping(HOST4, count=20)
        world.host.ping(PEER4, count=20)
        assert world.host.counters("eth2")["rx"]["packets"] > before + 20, "frames came to the backup too"
    finally:
        for port in ports:
            world.switch.run("bridge", "link", "set", "dev", port, "learning", "on")


def test_the_slaves_own_stack_sends_link_local_frames_alone(world: World, bond: Bond, kind: str) -> None:
    space, port = world.far_end("eth2")
    with listening(space, port, EVERYTHING) as wire, listening(world.host, "eth2", 0) as stack:
        with contextlib.suppress(OSError):  # nftables tells the sender: ENOBUFS
            stack.send(frame("02:00:5e:00:53:09", b"of the stack", TESTING))
        stack.send(frame("01:80:c2:00:00:0e", b"LLDP of the stack", LLDP))
        seen = read_until(wire, b"LLDP of the stack")
        assert any(b"of the stack" in each[14:26] for each in seen) == (kind == "bridge")
    world.host.ping(PEER4)


def test_a_gate_is_not_taken_for_somebody_elses_doing_and_comes_back_after_it(world: World, bond: Bond) -> None:
    def put_right(nic: str, repairs: dict[str, int]) -> None:
        wait_until(lambda: bond.slave(nic)["ubond"]["repairs"] == repairs, what=f"{nic} is put right: {repairs}")

    for nic in world.nics:
        world.host.ip("link", "set", nic, "alias", "mine")      # leads to a look at it
        put_right(nic, {"alias": 1})
        assert not hears(world, nic, world.far_end(nic)[1])
    world.host.ip("link", "add", "br7", "type", "bridge")
    try:
        gate = bond.slave("eth2")["ubond"]["gate"]
        world.host.ip("link", "set", "eth2", "master", "br7")
        # A gate that is a bridge goes with its port, the other kinds stay.
        put_right("eth2", {"alias": 1, "master": 1} | ({"gate": 1} if gate == SHOWN["bridge"] else {}))
        wait_until(lambda: not hears(world, "eth2", "sw2"), what="closed again")
    finally:
        world.host.ip("link", "del", "br7")
    assert bond.slave("eth2")["ubond"]["fights"] == []


def test_nothing_is_lost_when_the_active_link_is_pulled(world: World, bond: Bond) -> None:
    """The egress hook of nftables sees what a bypassing socket sends: it must not hide the dead link."""
    program, rate, seconds = blast(), world.rate(10_000), world.seconds(2.5)
    receiver, kept_before = start_receiver(world.peer), world.vanished(bond)
    sender = world.host.start(program, "udp-send", "--to", PEER4, "--rate", str(rate), "--seconds", f"{seconds:g}")
    nic = bond.active
    assert nic is not None
    before = world.host.counters(nic)["tx"]["packets"]
    wait_until(lambda: world.host.counters(nic)["tx"]["packets"] > before + rate // 10, what=f"{nic} carries the load")
    world.pull(nic)
    wait_until(lambda: bond.active not in (nic, None), what="failover")
    assert sender.poll() is None
    sent, received = finish(sender), finish(receiver)
    kept = world.vanished(bond) - kept_before
    counters = [bond.counters(each) for each in bond.slaves]
    refused = 0 if world.can("room in rings") else sum(each["tx_congested"] for each in counters)
    lost = sent["sent"] - received["received"] - refused
    assert lost <= kept <= world.kind.held(rate), (received["lost_runs"], bond.ours["counters"], counters)
    assert sent["sent"] >= 0.9 * rate * seconds


# ── what is left ─────────────────────────────────────────────────────────────────────


def test_release_removes_exactly_what_was_made(world: World, kind: str) -> None:
    world.host.run("nft", "add table inet of_somebody; add chain inet of_somebody c")
    before = world.picture()
    with world.bond("--gate", kind):
        assert world.picture()["eth1"] != before["eth1"]
        world.ubond("remove", "bond0", "eth1")
        world.ubond("add", "bond0", "eth1")
    assert_as_before(before, world.picture)
    world.host.run("nft", "delete table inet of_somebody")


@pytest.mark.parametrize("way", ["down", "up", "restore"])
def test_recovery_after_a_crash_removes_exactly_what_was_made(world: World, kind: str, way: str) -> None:
    """Whatever kind the next one uses."""
    before = world.picture()
    world.ubond("up", "bond0", "eth1", "eth2", "--gate", kind, *ADDRESSES)
    bond = Bond(world, "bond0")
    bond.kill()
    wait_until(lambda: "bond0" not in world.host.links(), what="the TAP goes with its process")
    match way:
        case "restore":
            world.ubond("restore", "eth1", "eth2")
        case "up":
            world.ubond("up", "bond0", "eth1", "eth2", "--gate", "clsact")
            assert bond.slave("eth1")["ubond"]["gate"] == "clsact"
            world.ubond("down", "bond0")
        case _:
            world.ubond("down", "bond0")
    assert_as_before(before, world.picture)


def test_a_slave_that_vanishes_takes_its_gate_along(world: World, kind: str) -> None:
    before = {name: world.picture()[name] for name in ("links", "rules")}
    world.host.ip("link", "add", "v1", "type", "veth", "peer", "name", "v2")
    try:
        with world.bond("--gate", kind) as bond:
            world.ubond("add", "bond0", "v1")
            assert bond.slave("v1")["ubond"]["gate"] == SHOWN[kind]
            index = world.host.link("v1")["ifindex"]
            world.host.ip("link", "del", "v1")
            wait_until(lambda: "v1" not in bond.slaves, what="its release")
            wait_until(lambda: f"ubg{index}" not in world.host.links(), what="its bridge goes")
            table = f"table netdev ubond-{index}\n"
            wait_until(lambda: table not in world.host.run("nft", "list", "tables").stdout, what="its table goes")
    finally:
        world.host.ip("link", "del", "v1", check=False)
    assert_as_before(before, lambda: {name: world.picture()[name] for name in before})


@pytest.mark.needs("renaming")
def test_a_renamed_slave_stays_closed(world: World, kind: str) -> None:
    before = world.picture()
    with world.bond("--gate", kind) as bond:
        world.host.ip("link", "set", "eth2", "name", "other2")
        try:
            wait_until(lambda: "other2" in bond.slaves, what="the new name")
            wait_until(lambda: not hears(world, "other2", "sw2"), what="closed again, where the kind goes by name")
            assert bond.slave("other2")["ubond"]["gate"] == SHOWN[kind]
        finally:
            world.host.ip("link", "set", "other2", "name", "eth2")
            wait_until(lambda: "eth2" in bond.slaves, what="the old name")
    assert_as_before(before, world.picture)


# ── which is taken ───────────────────────────────────────────────────────────────────

#: Runs a command as on a kernel without nfnetlink: that socket is refused (EPROTONOSUPPORT).
WITHOUT_NFNETLINK = """
import errno, os, sys
import pyseccomp as s
made = s.SyscallFilter(s.ALLOW)
made.add_rule(s.ERRNO(errno.EPROTONOSUPPORT), "socket", s.Arg(0, s.EQ, 16), s.Arg(2, s.EQ, 12))
made.load()
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def awkward(world: World) -> Iterator[str]:
    """An interface where clsact's place is taken, and that no bridge accepts: a macvlan has its frames first."""
    world.host.ip("link", "add", "base0", "type", "veth", "peer", "name", "base1")
    world.host.ip("link", "add", "link", "base0", "name", "mv0", "type", "macvlan", "mode", "private")
    world.host.run("tc", "qdisc", "add", "dev", "base0", "ingress")
    yield "base0"
    world.host.ip("link", "del", "base0")


def up(world: World, *words: str, nfnetlink: bool = True) -> tuple[int, str]:
    """`ubond up`: exit code and what it complained about."""
    command = [sys.executable, "-m", "ubond", "up", *words]
    if not nfnetlink:
        command = [sys.executable, "-c", WITHOUT_NFNETLINK, *command]
    done = world.host.run(*command, check=False)
    return done.returncode, done.stderr


def test_auto_takes_the_first_kind_that_can_be_had(world: World) -> None:
    taken = []
    for block, nfnetlink in ((False, True), (True, True), (True, False)):
        if block:
            world.host.run("tc", "qdisc", "replace", "dev", "eth1", "ingress")
        try:
            assert up(world, "bond0", "eth1", nfnetlink=nfnetlink)[0] == 0
            taken.append(Bond(world, "bond0").slave("eth1")["ubond"]["gate"])
        finally:
            world.ubond("down", "bond0", check=False)
            with contextlib.suppress(Exception):
                world.host.run("tc", "qdisc", "del", "dev", "eth1", "ingress")
    assert taken == [SHOWN[kind] for kind in KINDS]


def test_a_forced_kind_that_cannot_be_had_is_refused(world: World, awkward: str) -> None:
    before = world.picture()
    for kind, reason, nfnetlink in (
        ("clsact", "a qdisc ingress stands in the place of clsact", True),
        ("nft", "nftables", False),
        ("bridge", "RTM_SETLINK master", True),
    ):
        code, said = up(world, "bond9", awkward, "--gate", kind, nfnetlink=nfnetlink)
        assert code == 5
        assert reason in said.splitlines()[-1]
        assert awkward in said.splitlines()[-1]
        assert_as_before(before, world.picture)


def test_with_no_gate_at_all_up_refuses_in_one_line_and_leaves_nothing(world: World, awkward: str) -> None:
    before = world.picture()
    code, said = up(world, "bond9", awkward, "--mode", "active-backup", "--miimon", "100", nfnetlink=False)
    assert code == 5
    assert len(said.splitlines()) == 1
    assert "no gate can be closed" in said
    for kind in KINDS:
        assert f"{kind}: " in said
    assert_as_before(before, world.picture)
    assert json.loads(world.host.ip("-j", "link", "show", awkward))[0]["ifname"] == awkward
