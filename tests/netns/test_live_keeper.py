"""The keeper: a daemon that dies has a successor, and addresses, routes and connections do not notice."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.test_live_kills import Doomed, share, some_of
from tests.netns.world import (
    ADDRESSES,
    PEER4,
    Bond,
    World,
    assert_as_before,
    inside,
    wait_until,
)
from ubond import paths

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(3) as world:
        yield world


@pytest.fixture(autouse=True)
def _as_it_was(world: World) -> Iterator[None]:
    before = world.picture()
    yield
    world.ubond("down", "bond0", check=False)
    for nic in world.nics:
        world.plug(nic)
    assert_as_before(before, world.picture)


def up(world: World, *words: str, environment: dict[str, str] | None = None) -> Bond:
    words = words or ("eth1", "eth2")
    command = (sys.executable, "-m", "ubond", "up", "bond0", *words, *ADDRESSES)
    done = world.host.run(*command, check=False, env={**os.environ, **(environment or {})})
    assert done.returncode == 0, done.stderr
    return Bond(world, "bond0")


def die(bond: Bond, number: int = signal.SIGKILL) -> None:
    """End the daemon by a signal and return when its successor serves."""
    pid, restarts = bond.pid, int(bond.ours["restarts"])
    os.kill(pid, number)
    wait_until(lambda: bond.ours["restarts"] == restarts + 1, 15, "the successor")
    assert bond.pid != pid


def log_of(bond: Bond) -> list[str]:
    return [str(line["text"]) for line in bond.ask("log")["log"]]


class Connection:
    """A TCP connection from host to peer, over which both talk all the time."""

    def __init__(self, world: World) -> None:
        with world.peer.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((PEER4, 0))
            listening.listen()
            self._ours = world.host.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._ours.settimeout(world.seconds(10))
            self._ours.connect(listening.getsockname())
            self._theirs, _ = listening.accept()
            self._theirs.settimeout(world.seconds(10))
        self.silence = 0.0
        """The longest time between two answers so far, seconds."""
        self._over = threading.Event()
        self._echo = threading.Thread(target=self._answer, daemon=True)
        self._talk = threading.Thread(target=self._ask, daemon=True)
        self.error: Exception | None = None
        self.said = 0

    def __enter__(self) -> Connection:
        self._echo.start()
        self._talk.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._over.set()
        self._talk.join()
        self._ours.close()
        self._echo.join()
        self._theirs.close()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._theirs.recv(4096):
                self._theirs.sendall(data)

    def _ask(self) -> None:
        try:
            while not self._over.is_set():
                begun = time.monotonic()
                self._ours.sendall(b"?" * 100)
                came = 0
                while came < 100:
                    came += len(self._ours.recv(100))
                self.said += 1
                self.silence = max(self.silence, time.monotonic() - begun)
                time.sleep(0.001)
        except OSError as error:
            self.error = error

    def goes_on(self) -> None:
        """Return when it has talked after now."""
        before = self.said
        wait_until(lambda: self.said > before + 3 or self.error, 20, "the connection talks on")
        assert self.error is None, self.error


# ── it lives on ──────────────────────────────────────────────────────────────────────


def test_a_connection_survives_a_killed_daemon(world: World) -> None:
    bond = up(world)
    world.host.ip("route", "add", "10.60.0.0/16", "via", PEER4)
    device = world.host.link("bond0")["ifindex"]
    addresses, routes = world.host.ip("addr", "show", "dev", "bond0"), world.host.ip("route")
    with Connection(world) as connection:
        connection.goes_on()
        for number in range(1, 4):
            die(bond)
            connection.goes_on()
            assert bond.ours["restarts"] == number
        silence = connection.silence
    assert world.host.link("bond0")["ifindex"] == device
    assert world.host.ip("addr", "show", "dev", "bond0") == addresses
    assert world.host.ip("route") == routes
    assert bond.slaves == ["eth1", "eth2"]
    assert bond.ours["repairs"] == {}, "nobody else has changed anything"
    said = [line for line in log_of(bond) if "its daemon" in line]
    assert said == [
        f"bond0: its daemon was killed by signal 9 (SIGKILL); started again (restart {number})" for number in (1, 2, 3)
    ]
    print(f"longest silence {silence * 1000:.0f} ms")


def test_a_fault_in_the_extension_is_survived(world: World) -> None:
    bond = up(world, environment={"UBOND_TEST_HOOKS": "1"})
    with Connection(world) as connection:
        connection.goes_on()
        pid = bond.pid
        with contextlib.suppress(Exception):
            bond.ask("hook", call="segfault")
        wait_until(lambda: bond.pid != pid, 15, "the successor")
        connection.goes_on()
    assert "was killed by signal 11 (SIGSEGV)" in log_of(bond)[-1]


def test_a_failover_works_after_a_death_and_what_was_learnt_stays(world: World) -> None:
    bond = up(world)
    bond.set("miimon=50", "primary=eth2", "eth1.prio=7")
    bond.wait_active("eth2")
    die(bond)
    assert bond.active == "eth2"
    assert (bond.option("miimon"), bond.option("primary")) == ("50", "eth2")
    assert bond.slave("eth1")["linkinfo"]["info_slave_data"]["prio"] == 7
    world.pull("eth2")
    bond.wait_active("eth1")
    wait_until(lambda: world.host.reaches(PEER4), what="traffic")
    world.ubond("add", "bond0", "eth3")
    assert bond.slaves == ["eth1", "eth2", "eth3"]
    die(bond)
    assert bond.slaves == ["eth1", "eth2", "eth3"]
    world.ubond("remove", "bond0", "eth3")
    assert len(bond.ask("history")["history"]) >= 2


def test_a_cable_pulled_while_nobody_looks_is_noticed_by_the_successor(world: World) -> None:
    bond = up(world)
    os.kill(bond.keeper, signal.SIGSTOP)
    try:
        os.kill(bond.pid, signal.SIGKILL)
        world.pull("eth1")
    finally:
        os.kill(keeper_of(world), signal.SIGCONT)
    bond.wait_active("eth2", 15)
    wait_until(lambda: world.host.reaches(PEER4), what="traffic")


def keeper_of(world: World) -> int:
    """The stopped process of ubond in the host."""
    for pid in world.picture()["processes"]:
        if "(stopped)" in Path(f"/proc/{pid}/status").read_text():
            return int(pid)
    raise AssertionError("no process is stopped")


def test_a_request_that_comes_while_nobody_lives_is_answered_by_the_successor(world: World) -> None:
    bond = up(world)
    os.kill(bond.pid, signal.SIGKILL)
    assert world.ubond("status", "bond0").stdout.startswith("Ethernet Channel Bonding Driver")
    assert bond.ours["restarts"] == 1


def test_a_successor_that_cannot_take_up_the_bond_has_one_itself(world: World) -> None:
    """Here the first finds a journal that it cannot read, and puts it aside."""
    bond = up(world)
    with inside(world.host.name):
        journal = paths.journal_path("bond0")
    held = journal.read_text()
    journal.write_text("{")
    with Connection(world) as connection:
        connection.goes_on()
        os.kill(bond.pid, signal.SIGKILL)
        wait_until(lambda: restarts(bond) == 2, 15, "the second successor")
        connection.goes_on()
    assert bond.slaves == ["eth1", "eth2"]
    assert journal.read_text() == held
    journal.with_name(f"{journal.name}.bad").unlink()


# ── it ends ──────────────────────────────────────────────────────────────────────────


def gone(world: World) -> None:
    wait_until(lambda: "bond0" not in world.host.links() and world.picture()["processes"] == [], 20, "all has ended")


@pytest.mark.parametrize("whom", ["keeper", "daemon"])
def test_a_signal_to_either_ends_both(world: World, whom: str) -> None:
    bond = up(world)
    os.kill(bond.keeper if whom == "keeper" else bond.pid, signal.SIGTERM)
    gone(world)


def test_one_that_keeps_dying_is_given_up_and_all_is_given_back(world: World) -> None:
    with contextlib.closing(foreground(world)) as keeper:
        bond = Bond(world, "bond0")
        wait_until(lambda: "bond0" in world.host.links() and answers(bond), 15, "the bond")
        for _ in range(4):
            die(bond)
        os.kill(bond.pid, signal.SIGKILL)
        _, said = keeper.process.communicate(timeout=world.seconds(20))
        assert keeper.process.returncode == 1
        assert "for the 5th time within" in said
        assert "giving it up" in said
        assert "gave back 2 interfaces" in said
        assert said.rstrip().splitlines()[-1].startswith("ubond: bond0: ")
    gone(world)


class foreground:
    """`ubond up --foreground`, its log in a pipe."""

    def __init__(self, world: World, *words: str) -> None:
        command = ("up", "bond0", "eth1", "eth2", *ADDRESSES, "--foreground", *words)
        self.process = world.start_ubond(*command)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate()


def restarts(bond: Bond) -> int:
    """How many successors there have been, -1 while nobody answers."""
    try:
        return int(bond.ours["restarts"])
    except Exception:
        return -1


def answers(bond: Bond) -> bool:
    try:
        return bond.pid > 0
    except Exception:
        return False


def test_the_daemon_goes_on_when_its_keeper_dies(world: World) -> None:
    bond = up(world)
    pid = bond.pid
    with Connection(world) as connection:
        os.kill(bond.keeper, signal.SIGKILL)
        connection.goes_on()
        bond.set("miimon=50")
        connection.goes_on()
        assert bond.pid == pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "bond0" not in world.host.links(), what="the TAP is gone")
    assert world.ubond("down", "bond0").stdout == "the daemon of bond0 had died; gave back 2 interfaces\n"


def test_without_a_keeper_nobody_starts_it_again(world: World) -> None:
    up(world, "eth1", "eth2", "--no-keeper")
    pids = world.picture()["processes"]
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    gone(world)


def test_killed_while_starting_everything_is_given_back_and_the_command_says_so(world: World, tmp_path: Path) -> None:
    with Doomed(world.host, tmp_path / "report", 40, "up", "bond0", *world.nics) as doomed:
        assert doomed.wait_command() == 1
        said = doomed.wait_all()
    assert doomed.killed
    why = "was killed by signal 9 (SIGKILL) while starting; what it had taken is given back"
    assert said == f"ubond: bond0: its daemon {why}\n"


# ── killed at every step, it goes on ─────────────────────────────────────────────────


def dies_at_every_change(
    world: World, report: Path, act: Callable[[Bond], None], *, least: int = 2
) -> None:
    """Kill at changes of `act` in a bond with a keeper; traffic flows again, `down` gives all back.

    At a few of them, at all in a long run (`make kills`); `least`: slaves that it still has.
    """
    before, killed = world.picture(), 0
    command = ("up", "bond0", "eth1", "eth2", *ADDRESSES, "--fail-over-mac", "follow")
    with Doomed(world.host, report, 0, *command) as doomed:
        doomed.wait_up()
        bond = Bond(world, "bond0")
        world.kind.settle(world, bond)
        before_act = len(doomed.calls)
        act(bond)
        many = len(doomed.calls) - before_act
        world.ubond("down", "bond0")
        doomed.wait_all()
    for nic in world.nics:
        world.plug(nic)
    numbers = some_of(range(1, many + 1))
    for number in numbers:
        with Doomed(world.host, report, number, *command, later=True) as doomed:
            doomed.wait_up()
            bond = Bond(world, "bond0")
            world.kind.settle(world, bond)
            doomed.count()
            with contextlib.suppress(Exception):  # the request ends with the daemon
                act(bond)
            what = f"killed at change {number} of {many} ({doomed.fatal})"
            try:
                try:
                    if doomed.killed:
                        killed += 1
                        wait_until(lambda: restarts(bond) == 1, 20, "the successor")  # noqa: B023
                    wait_until(lambda: world.host.reaches(PEER4), 10, "traffic")
                    wait_until(lambda: not strange(world, bond, least), 20)  # noqa: B023
                except AssertionError as error:
                    told = f"{strange(world, bond, least)}; {log_of(bond)[-12:]}" if answers(bond) else "nobody answers"
                    raise AssertionError(f"{error}: {told}") from None
                # The number may not have come yet: then it is `down` that is cut short, and said again.
                wait_until(lambda: world.ubond("down", "bond0", check=False).returncode in (0, 3), 30, "the end")
                doomed.wait_all()
                for nic in world.nics:
                    world.plug(nic)
                assert_as_before(before, world.picture)
            except AssertionError as error:
                raise AssertionError(f"{what}: {error}") from None
    print(f"{killed} deaths of {len(numbers)}")
    assert killed >= share(world) * len(numbers)


def strange(world: World, bond: Bond, least: int) -> list[str]:
    """What is not as the bond says: every NIC is a slave that looks like one, or an ordinary NIC."""
    slaves, found = bond.slaves, []
    for nic in world.nics:
        marked = "(ubond)" in world.host.link(nic).get("ifalias", "")
        gated = "bpf" in world.host.run("tc", "filter", "show", "dev", nic, "ingress", check=False).stdout
        if (nic in slaves) is not marked or (nic in slaves) is not gated:
            found.append(f"{nic}: slave {nic in slaves}, marked {marked}, gated {gated}")
    macs = [world.host.mac(nic) for nic in slaves]
    if len(slaves) < least or len(set(macs)) < len(macs) or str(bond.mac) not in macs:
        found.append(f"the bond has {bond.mac}, its slaves {macs}")
    return found


def test_died_at_every_step_of_enslaving(world: World, tmp_path: Path) -> None:
    def act(bond: Bond) -> None:
        world.ubond("add", "bond0", "eth3")

    dies_at_every_change(world, tmp_path / "report", act)


def test_died_at_every_step_of_a_release(world: World, tmp_path: Path) -> None:
    def act(bond: Bond) -> None:
        world.ubond("remove", "bond0", "eth1", check=False)  # the active one
        world.ubond("add", "bond0", "eth1", check=False)

    dies_at_every_change(world, tmp_path / "report", act, least=1)


def test_died_at_every_step_of_a_failover_that_moves_macs(world: World, tmp_path: Path) -> None:
    def act(bond: Bond) -> None:
        world.pull("eth1")
        wait_until(lambda: world.host.mac("eth2") == str(bond.mac) or not answers(bond), what="the MACs move")

    dies_at_every_change(world, tmp_path / "report", act)


def test_died_at_every_step_of_a_change_of_mtu(world: World, tmp_path: Path) -> None:
    def act(bond: Bond) -> None:
        world.host.ip("link", "set", "bond0", "mtu", "1400")
        wait_until(lambda: world.host.link("eth2")["mtu"] == 1408 or not answers(bond), what="the slaves follow")

    dies_at_every_change(world, tmp_path / "report", act)
