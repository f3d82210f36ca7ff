"""Upgrade in place: another process goes on with a running bond, and nobody on either side can tell."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.world import (
    HOST4,
    PEER4,
    PEER6,
    ROOT,
    Bond,
    Crossed,
    Sniffer,
    World,
    assert_as_before,
    assert_loaded,
    blast,
    differences,
    finish,
    inside,
    start_receiver,
    wait_until,
)
from ubond import paths
from ubond.client import VERSION, ControlError
from ubond.handover import Line
from ubond.wire import ETH_RARP

pytestmark = pytest.mark.netns

RATE = 20_000


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(3) as world:
        yield world


def upgrade(bond: Bond, name: str = "bond0") -> None:
    """Upgrade, and see that it is another process of the same bond."""
    before = bond.pid
    bond.world.ubond("upgrade", name)
    assert bond.pid != before
    wait_until(lambda: not os.path.exists(f"/proc/{before}"), what="the old process has ended")


def counters(bond: Bond) -> dict[str, int]:
    """All counters of a bond, flat."""
    found = {name: value for name, value in bond.ours["counters"].items()}
    for slave in bond.slaves:
        found |= {f"{slave}.{name}": value for name, value in bond.counters(slave).items()}
    return found


def fell(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return [name for name, value in before.items() if after.get(name, -1) < value]


class Flow:
    """A TCP connection over which lines go to the peer and back."""

    def __init__(self, world: World) -> None:
        with world.peer.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((PEER4, 0))
            listener.listen(1)
            self.near = world.host.socket(socket.AF_INET, socket.SOCK_STREAM)
            self.near.settimeout(world.seconds(10))
            self.near.connect(listener.getsockname())
            self._far, _ = listener.accept()
        self._far.settimeout(world.seconds(10))

    def __enter__(self) -> Flow:
        return self

    def __exit__(self, *why: object) -> None:
        self.near.close()
        self._far.close()

    def talk(self, size: int = 1 << 18) -> None:
        """Send so much there and back, and compare."""
        sent = os.urandom(size)
        for one, other in ((self.near, self._far), (self._far, self.near)):
            writer = threading.Thread(target=one.sendall, args=(sent,))
            writer.start()
            got = b""
            while len(got) < size:
                piece = other.recv(1 << 16)
                assert piece, "the connection has ended"
                got += piece
            writer.join()
            assert got == sent


class Load:
    """Numbered datagrams at RATE (of veth) each way, for as long as the block lasts."""

    def __init__(self, world: World) -> None:
        self._world, self._program = world, blast()
        # What comes together while one emulated processor starts Python has to find room in a NIC's ring.
        self.rate = world.rate(RATE if world.can("room in rings") else RATE // 4)

    def __enter__(self) -> Load:
        world = self._world
        self._receivers = [start_receiver(space, 100) for space in (world.peer, world.host)]
        self._senders = [
            space.start(self._program, "udp-send", "--to", to, "--rate", str(self.rate), "--seconds",
                        f"{world.seconds(100):g}")
            for space, to in ((world.host, PEER4), (world.peer, HOST4))
        ]
        self.wait_carried()
        return self

    def wait_carried(self) -> None:
        """Return when some thousand frames more have gone each way."""

        def seen() -> tuple[int, int]:
            found = self._world.host.counters("bond0")
            return found["tx"]["packets"], found["rx"]["packets"]

        before = seen()
        wait_until(lambda: all(now > then + self.rate // 10 for now, then in zip(seen(), before, strict=True)),
                   what="load each way")  # fmt: skip
        assert all(sender.poll() is None for sender in self._senders)

    def __exit__(self, kind: object, *why: object) -> None:
        for sender in self._senders:
            sender.send_signal(signal.SIGTERM)
        if kind is not None:
            for process in (*self._senders, *self._receivers):
                process.kill()
                process.communicate()
            return
        self.sent = [finish(sender) for sender in self._senders]
        self.got = [finish(receiver) for receiver in self._receivers]

    def assert_whole(self) -> None:
        """Every datagram has arrived, once and in order, and there were as many as there should be."""
        for way, sent, got in zip(("out", "in"), self.sent, self.got, strict=True):
            assert_loaded(sent, got, self.rate)
            assert sent["failed"] == 0, sent
            assert (got["first"], got["last"]) == (0, sent["sent"] - 1), way
            wrong = got["lost"], got["duplicated"], got["reordered"]
            assert wrong == (0, 0, 0), f"{way}: lost, doubled, reordered: {wrong}; lost: {got['lost_runs']}"


# ── nothing is lost, nothing shows ───────────────────────────────────────────────────


def test_three_upgrades_under_load_each_way_lose_and_double_nothing(world: World) -> None:
    with world.bond("eth1", "eth2") as bond, Flow(world) as flow:
        flow.talk()
        with Load(world) as load:
            for _ in range(3):
                before = counters(bond)
                upgrade(bond)
                assert fell(before, counters(bond)) == []
                load.wait_carried()
                flow.talk()
        flow.talk()
        assert bond.ours["counters"]["tx_dropped"] == 0
    load.assert_whole()


class Announced:
    """What the kernel says of the host's links, addresses and routes while the block runs."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lines: list[str] = []
        self.found: list[str] = []

    def __enter__(self) -> Announced:
        self._process = self._world.host.start("ip", "monitor", "link", "address", "route")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(self._mark, 20, "it has subscribed")  # until then it hears nothing
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)

    def _mark(self) -> bool:
        """Make a link come and go; True if that is heard.  What was heard before it is `found`."""
        self._world.host.ip("link", "add", "mark0", "type", "veth", "peer", "name", "mark1")
        self._world.host.ip("link", "del", "mark0")
        with contextlib.suppress(AssertionError):
            wait_until(lambda: any("mark0" in line and "Deleted" in line for line in self._lines), 1)
            self.found = [line for line in self._lines if re.search(r"\b(bond0|eth\d)\b", line)]
            self._lines.clear()
            return True
        return False

    def __exit__(self, kind: object, *why: object) -> None:
        try:
            if kind is None:
                wait_until(self._mark, 20, "the mark is heard")
        finally:
            self._process.terminate()
            self._process.wait()
            self._reader.join()
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    pipe.close()


def visible(world: World) -> dict[str, Any]:
    """All of a host that could show that something has happened to it."""
    picture = world.picture()
    del picture["processes"]
    for name in ("bond0", *world.nics):
        for what in ("carrier_changes", "carrier_up_count", "ifindex", "address", "operstate"):
            picture[f"{name}/{what}"] = world.host.run("cat", f"/sys/class/net/{name}/{what}").stdout
    return picture


def at_rest(world: World) -> dict[str, Any]:
    """What is visible when a new bond has settled: slaves follow its groups a moment later."""
    seen: list[dict[str, Any]] = [visible(world)]

    def settled() -> bool:
        time.sleep(0.5)
        seen.append(visible(world))
        return not differences(seen[-2], seen[-1])

    wait_until(settled, what="a bond at rest")
    return seen[-1]


def test_device_links_and_neighbours_notice_nothing(world: World) -> None:
    with world.bond("eth1", "eth2") as bond:
        wait_until(lambda: world.host.reaches(PEER6), what="IPv6")
        before = at_rest(world)
        with Sniffer(world.peer, "eth0") as sniffer, Announced(world) as said:
            for _ in range(2):
                upgrade(bond)
            heard = sniffer.during(1.0, lambda seen: True)
        assert said.found == []
        # Neighbour discovery of the host's own stack may happen at any time; announcements are these.
        gratuitous = [
            seen for seen in heard
            if seen.kind == ETH_RARP
            or (seen.kind == 0x0806 and seen.frame[28:32] == seen.frame[38:42])
            or (seen.kind == 0x86DD and seen.frame[20] == 58 and seen.frame[54] == 136 and seen.frame[0] == 0x33)
        ]  # fmt: skip
        assert gratuitous == []
        assert differences(before, visible(world)) == []
        world.host.ping(PEER4, count=5)
        world.peer.ping(HOST4, count=5)


def test_what_is_known_of_the_past_and_what_was_asked_for_goes_over(world: World) -> None:
    before = world.picture()
    with world.bond("eth1", "eth2", "--no-bypass", "--gate", "nft", "--miimon", "50", "--updelay", "200",
                    "-o", "eth2.prio=7") as bond:  # fmt: skip
        world.host.ping(PEER4)
        nic = bond.active
        assert nic is not None
        world.pull(nic)
        wait_until(lambda: bond.active not in (nic, None), what="failover")
        world.plug(nic)
        bond.wait_link(nic, "UP")
        world.host.ping(PEER4)  # what the failover cost is known when the other slave has sent
        time.sleep(1.2)

        def known() -> dict[str, Any]:
            links = bond.links()
            for link in links:
                link["ubond"].pop("uptime", None)
                link["ubond"].pop("counters")
                link["ubond"].pop("per_worker", None)
            return {"links": links, "history": bond.ask("history"), "proc": bond.ask("status")}

        first, lines, counted = known(), bond.ask("log")["log"], counters(bond)
        uptime = bond.ours["uptime"]
        upgrade(bond)
        assert known() == first
        assert fell(counted, counters(bond)) == []
        assert bond.ours["uptime"] >= uptime
        now = bond.ask("log")["log"]
        assert now[: len(lines)] == lines
        assert "goes on in process" in now[len(lines)]["text"]
        assert bond.ours["bypass"] is False
        assert bond.slave("eth1")["ubond"]["gate"].startswith("nft")
        with inside(world.host.name):
            assert paths.proc_path("bond0").read_text() == bond.ask("status")["text"]
        bond.set("miimon=100")
        world.ubond("remove", "bond0", "eth1")
        world.ubond("add", "bond0", "eth1")
        upgrade(bond)
        assert bond.slaves == ["eth2", "eth1"]
        world.host.ping(PEER4)
    assert_as_before(before, world.picture)


def test_strict_stays_strict(world: World) -> None:
    for nic in ("eth1", "eth2"):
        world.host.ip("link", "set", nic, "down")
    try:
        world.ubond("up", "bond0", "eth1", "eth2", "--strict")
        bond = Bond(world, "bond0")
        upgrade(bond)
        assert bond.ours["strict"] is True
        done = world.ubond("add", "bond0", "eth3", check=False)  # it is up
        assert "Device can not be enslaved while up" in done.stderr
        world.ubond("down", "bond0")
    finally:
        for nic in ("eth1", "eth2"):
            world.host.ip("link", "set", nic, "up")
            world.wait_forwarding(nic)


def test_monitor_clients_end_and_waiting_ones_are_served_by_the_next(world: World) -> None:
    with world.bond("eth1", "eth2") as bond, world.start_ubond("monitor", "bond0") as monitor:
        with inside(world.host.name):
            path = paths.socket_path("bond0")
        bond.ask("ping")
        wait_until(lambda: monitor.poll() is None and bond.ask("ping"), what="the monitor runs")
        time.sleep(0.3)
        stat = os.stat(path)
        upgrade(bond)
        assert os.stat(path).st_ino == stat.st_ino
        _, err = monitor.communicate(timeout=world.seconds(10))
        assert (monitor.returncode, err) == (0, "")
        assert world.ubond("list").stdout == "bond0\n"


@pytest.mark.needs("renaming")
def test_files_follow_the_name_after_an_upgrade(world: World) -> None:
    before = world.picture()
    with world.bond("eth1", "eth2") as bond:
        upgrade(bond)
        world.host.ip("link", "set", "bond0", "name", "uplink0")
        renamed = Bond(world, "uplink0")
        wait_until(lambda: "uplink0" in world.ubond("list").stdout, what="the files have followed")
        upgrade(renamed, "uplink0")
        assert world.ubond("list").stdout == "uplink0\n"
        world.ubond("down", "uplink0")
    assert_as_before(before, world.picture)


# ── in the middle of things ──────────────────────────────────────────────────────────


def test_while_another_stands_in_for_the_active_slave(world: World) -> None:
    with world.bond("eth1", "eth2", "--downdelay", "60s") as bond:
        world.host.ping(PEER4)
        world.pull("eth1")
        bond.wait_link("eth1", "GOING_DOWN")
        wait_until(lambda: bond.ours["stand_in"] == "eth2", what="eth2 stands in")
        upgrade(bond)
        assert (bond.active, bond.ours["stand_in"], bond.link_state("eth1")) == ("eth1", "eth2", "GOING_DOWN")
        world.host.ping(PEER4, count=5)
        world.plug("eth1")
        bond.wait_link("eth1", "UP")
        wait_until(lambda: bond.ours["stand_in"] is None, what="the stand-in steps back")
        world.host.ping(PEER4, count=5)


def test_updelay_goes_on_where_it_was(world: World) -> None:
    delay = world.seconds(10)
    with world.bond("eth1", "eth2", "--primary", "eth1", "--updelay", f"{delay:g}s") as bond:
        world.pull("eth1")
        bond.wait_active("eth2")
        world.plug("eth1")
        bond.wait_link("eth1", "GOING_BACK")
        began = time.monotonic()
        time.sleep(2)
        upgrade(bond)
        assert (bond.active, bond.link_state("eth1")) == ("eth2", "GOING_BACK")
        bond.wait_active("eth1", seconds=20)
        assert time.monotonic() - began > 0.95 * delay
        lines = [entry["text"] for entry in bond.ask("log")["log"]]
        enabling = f"(slave eth1): link status up, enabling it in {delay * 1000:.0f} ms"
        begun = [text for text in lines if enabling in text]
        assert len(begun) == 1, "one delay, and not begun anew"


def test_a_failover_after_an_upgrade_is_found_by_sending_and_told(world: World) -> None:
    with world.bond("eth1", "eth2") as bond:
        upgrade(bond)
        nic, kept_before = bond.active, world.vanished(bond)
        assert nic is not None
        with Load(world) as load, Sniffer(world.peer, "eth0") as sniffer:
            world.pull(nic)
            wait_until(lambda: bond.active not in (nic, None), what="failover")
            sniffer.collect(lambda seen: seen.kind == 0x0806 and seen.frame[28:32] == socket.inet_aton(HOST4))
        world.plug(nic)
        entry = bond.ask("history")["history"][-1]
        assert (entry["from"], entry["lost"]) == (nic, 0)
        kept = world.vanished(bond) - kept_before
    # What left the bond; the other way waits for the announcement.
    assert load.got[0]["lost"] <= kept <= world.kind.held(load.rate)


@pytest.mark.needs("CAP_BPF")
def test_queues_of_the_bond_go_over(world: World) -> None:
    with world.bond("eth1", "eth2", "-o", "eth2.queue_id=2") as bond:
        upgrade(bond)
        bond.set("eth1.queue_id=3")  # one queue more, of the same device
        upgrade(bond)
        assert bond.option("queue_id") == "eth1:3 eth2:2"
        queues = world.host.run("ls", "/sys/class/net/bond0/queues").stdout.split()
        assert [name for name in queues if name.startswith("tx-")] == ["tx-0", "tx-1", "tx-2", "tx-3"]
        world.host.ping(PEER4, count=5)


def test_round_robin_goes_on_in_turn_and_without_loss() -> None:
    with Crossed(2) as world, world.bond("--mode", "balance-rr", addresses=False) as bond:
        # The host's own stack is silent: each of its frames would take a turn.
        world.host.outside.run("sysctl", "-qw", "net.ipv6.conf.bond0.disable_ipv6=1")
        head = bytes.fromhex("02005e005399") + bytes.fromhex("02005e005301") + b"\x88\xb5"
        with Sniffer(world.peer, "p1") as one, Sniffer(world.peer, "p2") as two:
            with world.host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
                sock.bind(("bond0", 0))
                for number in range(100):
                    if number % 20 == 10:
                        upgrade(bond)
                    sock.send(head + bytes([number]) * 46)
            found = [
                [seen.frame[14] for seen in sniffer.collect(lambda seen: seen.kind == 0x88B5, 50)]
                for sniffer in (one, two)
            ]
        assert sorted(found[0] + found[1]) == list(range(100))
        assert all(later - earlier == 2 for numbers in found for earlier, later in itertools.pairwise(numbers))


def test_a_slave_that_vanishes_or_goes_down_is_seen_by_the_next(world: World) -> None:
    host = world.host
    host.ip("link", "add", "v1", "type", "veth", "peer", "name", "v2")
    host.ip("link", "set", "v2", "up")
    with world.bond("eth1", "eth2", "-o", "miimon=100") as bond:
        world.ubond("add", "bond0", "v1")
        upgrade(bond)
        host.ip("link", "del", "v1")
        wait_until(lambda: bond.slaves == ["eth1", "eth2"], what="v1 has gone")
        assert bond.ours["awaited"] == ["v1"]
        upgrade(bond)
        assert bond.ours["awaited"] == ["v1"]
        host.ip("link", "add", "v1", "type", "veth", "peer", "name", "v2")
        host.ip("link", "set", "v2", "up")
        wait_until(lambda: "v1" in bond.slaves, what="v1 is back")
    host.ip("link", "del", "v1")


# ── when the new process fails ───────────────────────────────────────────────────────


def ask(bond: Bond) -> tuple[Line, socket.socket]:
    """Ask for a bond as a new daemon would."""
    with inside(bond.space.name):
        path = str(paths.socket_path(bond.name))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    sock.sendall(json.dumps({"version": VERSION, "request": "upgrade"}).encode() + b"\n")
    return Line(sock), sock


def ends_at_once(bond: Bond) -> None:
    ask(bond)[0].close()


def ends_with_the_document(bond: Bond) -> None:
    line, _ = ask(bond)
    message, descriptors = line.receive(10)
    assert message["result"]["bond"]["state"]["name"] == "bond0"
    close(line, descriptors)


def is_silent(bond: Bond) -> None:
    """Says nothing, until the old process has lost its patience."""
    line, _ = ask(bond)
    _, descriptors = line.receive(10)
    with pytest.raises(ControlError, match=r"was not ready within 0?\.?[0-9]+ s; the old one goes on"):
        line.receive(10)
    close(line, descriptors)


def talks_nonsense(bond: Bond) -> None:
    line, sock = ask(bond)
    _, descriptors = line.receive(10)
    sock.sendall(b"hello\n")
    with pytest.raises(ControlError, match="the old one goes on"):
        line.receive(10)
    close(line, descriptors)


def ends_when_it_should_begin(bond: Bond) -> None:
    """Says that it is prepared, hears `go`, and dies."""
    line, _ = ask(bond)
    _, descriptors = line.receive(10)
    line.say("prepared")
    line.expect("go", 10)
    close(line, descriptors)


def close(line: Line, descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
    line.close()


def has_too_few_descriptors(bond: Bond) -> None:
    """The real thing, which cannot open what it is given."""
    done = bond.space.run("prlimit", "--nofile=11", sys.executable, "-m", "ubond", "upgrade", bond.name, check=False)
    assert done.returncode != 0, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr


def is_killed(bond: Bond) -> None:
    """The real thing, killed with everything it has started before it can ask."""
    command = [sys.executable, "-m", "ubond", "upgrade", bond.name]
    stopped = subprocess.Popen(["ip", "netns", "exec", bond.space.name, *command], start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    time.sleep(0.1)
    os.killpg(stopped.pid, signal.SIGKILL)
    stopped.wait()


FAILURES = (ends_at_once, ends_with_the_document, is_silent, talks_nonsense, ends_when_it_should_begin,
            has_too_few_descriptors, is_killed)  # fmt: skip


def test_wherever_the_new_process_fails_the_old_one_goes_on_without_loss(world: World) -> None:
    with world.bond("eth1", "eth2") as bond:
        pid, picture = bond.pid, at_rest(world)
        with Load(world) as load:
            for fail in FAILURES:
                fail(bond)
                load.wait_carried()
                assert bond.pid == pid, fail.__name__
        assert differences(picture, visible(world)) == []
        upgrade(bond)
        world.host.ping(PEER4)
    load.assert_whole()


def test_one_that_is_late_is_ended_before_it_has_the_bond_or_not_at_all(world: World) -> None:
    """Whenever the command loses its patience: the bond lives, with the old process or the new one."""
    upgrade_within = "import sys, ubond.daemon as d; d.UPGRADE_PATIENCE = float(sys.argv[1]); d.upgrade('bond0')"
    outcomes: set[int] = set()
    often = [0.01 + number * 0.02 for number in range(25)]
    with world.bond("eth1", "eth2") as bond:
        for seconds in (*often, 1, 2, 4, 8):
            if seconds > often[-1] and len(outcomes) == 2:
                break
            before, patience = bond.pid, world.seconds(seconds)
            done = world.host.run(sys.executable, "-c", upgrade_within, f"{patience:g}", check=False)
            assert done.returncode == 0 or f"was not ready within {patience:g} s" in done.stderr, done.stderr
            time.sleep(0.05)        # for what might still be on its way
            assert (bond.pid != before) is (done.returncode == 0)
            world.host.ping(PEER4)
            outcomes.add(done.returncode)
    assert len(outcomes) == 2, "some were late and some were not"


#: A version that dies when it takes up a bond that it already has, for as many times as there are bytes in a file.
DYING = """
import os
from ubond.service import Service
real = Service.reconcile
async def reconcile(self, held=None):
    with open({lives!r}, "r+") as file:
        left = file.seek(0, 2)
        file.truncate(max(0, left - 1))
    if left:
        {way}
    await real(self, held)
Service.reconcile = reconcile
"""


@pytest.mark.parametrize(("way", "death"), [
    ("os.abort()", "was killed by signal 6 (SIGABRT)"),
    ("raise ValueError('broken')", "ended with exit code 1 (ValueError: broken at sitecustomize.py:10)"),
])  # fmt: skip
def test_a_new_process_that_dies_when_it_has_begun_has_a_successor(
    world: World, tmp_path: Path, way: str, death: str
) -> None:
    lives = tmp_path / "lives"
    lives.write_text("xx")
    (tmp_path / "sitecustomize.py").write_text(DYING.format(lives=str(lives), way=way))
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with world.bond("eth1", "eth2") as bond:
        pid = bond.pid
        world.host.ping(PEER4)
        done = world.host.run(sys.executable, "-m", "ubond", "upgrade", "bond0", env=env)
        assert f"its new daemon {death} and was started again" in done.stdout
        assert bond.pid != pid
        assert bond.ours["restarts"] == 2
        world.host.ping(PEER4)


def test_a_new_version_that_cannot_take_up_any_bond_is_given_up_and_gives_everything_back(
    world: World, tmp_path: Path
) -> None:
    lives, before = tmp_path / "lives", world.picture()
    lives.write_text("x" * 100)
    (tmp_path / "sitecustomize.py").write_text(DYING.format(lives=str(lives), way="raise ValueError('broken')"))
    world.ubond("up", "bond0", *world.nics)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = world.host.run(sys.executable, "-m", "ubond", "upgrade", "bond0", env=env, check=False)
    assert done.returncode == 1
    assert "ValueError: broken" in done.stderr
    assert "while starting; what it had taken is given back" in done.stderr
    assert done.stderr.count("\n") == 1
    assert_as_before(before, world.picture)


@pytest.mark.parametrize("request_", ["set", "down", "upgrade"])
def test_what_would_change_the_bond_waits_until_it_is_known_whose_it_is(world: World, request_: str) -> None:
    fields: dict[str, Any] = {"set": {"options": [{"option": "miimon", "value": "50"}]}}
    with world.bond("eth1", "eth2") as bond:
        line, _ = ask(bond)
        _, descriptors = line.receive(10)
        asked = threading.Thread(target=close_later, args=(line, descriptors))
        asked.start()
        # The daemon stands still: it answers when it knows.
        with contextlib.suppress(ControlError):
            bond.ask(request_ if request_ != "upgrade" else "ping", **fields.get(request_, {}))
        asked.join()
        if request_ != "down":
            assert bond.ask("ping")


def close_later(line: Line, descriptors: dict[str, int]) -> None:
    time.sleep(0.1)
    close(line, descriptors)


def test_a_bond_that_does_not_run_or_runs_in_the_foreground_is_not_upgraded(world: World) -> None:
    done = world.ubond("upgrade", "bond7", check=False)
    assert done.returncode == 3
    process = world.start_ubond("up", "bond0", "eth1", "--foreground")
    try:
        bond = Bond(world, "bond0")

        def runs() -> bool:
            with contextlib.suppress(ControlError):
                return bool(bond.ask("ping"))
            return False

        wait_until(runs, what="bond0 runs")
        pid = bond.pid
        done = world.ubond("upgrade", "bond0", check=False)
        assert done.returncode == 1
        assert "runs in the foreground" in done.stderr
        assert bond.pid == pid
    finally:
        process.terminate()
        process.communicate(timeout=world.seconds(20))


@pytest.mark.needs("other users")
def test_nobody_else_gets_the_descriptors(world: World) -> None:
    """Who may not change the bond does not get it, and the socket's group may only read."""
    with world.bond("eth1", "eth2") as bond:
        with inside(world.host.name):
            path = paths.socket_path("bond0")
        os.chmod(path, 0o666)
        os.chown(path, 0, 65534)
        script = (
            "import json, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            's.sendall(b\'{"version":1,"request":"upgrade"}\\n\'); d, a, _, _ = s.recvmsg(65536, 4096);'
            "print(json.loads(d)['error']['errno'], len(a))"
        )
        done = world.host.run("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
                              "/usr/bin/python3", "-c", script, str(path))  # fmt: skip
        assert done.stdout == "EPERM 0\n"
        assert bond.ask("ping")
