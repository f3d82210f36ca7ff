"""The power goes between any two steps: killed at every call that changes something, all is given back.

`killat` (killat.c) runs `ubond up` and kills the daemon at the entry of the N-th call, over all its
threads, that changes something which outlives it: a request to netlink, an ioctl, a file.  Then each
of `down`, `up` and `restore` has to give every NIC back exactly what it had.

An ordinary run kills at a few calls, evenly spread, and mends by one of the three ways, in turn; UBOND_KILL_WAYS=all
mends each by all three (`make kills`).
"""

from __future__ import annotations

import fcntl
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.world import HOST4, PEER4, ROOT, Bond, Space, World, assert_as_before, kind, wait_until

pytestmark = pytest.mark.netns

WAYS = ("down", "up", "restore")
#: How many deaths of each kind an ordinary run tries.
SAMPLE = 6


def killat() -> str:
    """The tracer, built."""
    built, source = ROOT / "bench" / "bin" / "killat", ROOT / "tests" / "netns" / "killat.c"
    built.parent.mkdir(exist_ok=True)
    with open(source) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side
        if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", "-std=gnu11", "-O2", "-Wall", "-o", str(built), str(source)], check=True)
    return str(built)


class Doomed:
    """A command of which a process is killed at its N-th change; 0: none is.

    `whole`: all its processes are killed with it; `later`: the N-th since `count` was called.
    """

    def __init__(
        self, space: Space, report: Path, at: int, *words: str, whole: bool = False, later: bool = False
    ) -> None:
        self._report, self._begin = report, report.with_name(f"{report.name}.count")
        report.unlink(missing_ok=True)
        self._begin.unlink(missing_ok=True)
        flags = ("-a",) if whole else ("-l",) if later else ()
        self._process = space.start(killat(), *flags, str(at), str(report), sys.executable, "-m", "ubond", *words)

    def __enter__(self) -> Doomed:
        return self

    def __exit__(self, *why: object) -> None:
        self._process.kill()
        self._process.communicate()

    def count(self) -> None:
        """Let the changes count from here on (`later`)."""
        self._begin.touch()

    @property
    def calls(self) -> list[str]:
        """Names of the changes so far."""
        lines = self._report.read_text().splitlines() if self._report.exists() else []
        return [line.split()[2] for line in lines if line[0].isdigit()]

    def _told(self, word: str) -> str | None:
        lines = self._report.read_text().splitlines() if self._report.exists() else []
        return next((line.split()[1] for line in lines if line.startswith(word)), None)

    @property
    def fatal(self) -> str:
        """Name of the change at which it was killed; empty if it was not."""
        lines = self._report.read_text().splitlines()
        found = [before for before, line in itertools.pairwise(lines) if line.startswith("killed")]
        return found[0].split()[2] if found else ""

    @property
    def killed(self) -> bool:
        return self._told("killed") is not None

    def wait_command(self) -> int:
        """The exit code of the command itself."""
        return int(wait_until(lambda: self._told("exit"), 120, "the command ends"))

    def wait_up(self) -> None:
        """Return when the command has done what it should; else say what it said."""
        if code := self.wait_command():
            raise AssertionError(f"exit code {code}, after {self.calls[-3:]}: {self.wait_all()}")

    def wait_all(self) -> str:
        """Wait until every process of it has ended; what they said on standard error."""
        return self._process.communicate(timeout=120 * kind().patience)[1]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        host = world.host
        host.ip("link", "set", "eth1", "mtu", "1400", "alias", "uplink to rack 4")
        host.ip("addr", "add", f"{HOST4}/24", "dev", "eth1")
        host.ip("route", "add", "10.50.0.0/16", "via", PEER4, "dev", "eth1", "metric", "77")
        host.ip("link", "set", "eth2", "down")
        host.ip("link", "set", "eth2", "address", "02:00:5e:00:53:22", "addrgenmode", "none")
        host.run("ethtool", "-K", "eth2", "gro", "off", "tso", "off")
        host.run("tc", "qdisc", "add", "dev", "eth2", "clsact")
        host.run("tc", "filter", "add", "dev", "eth2", "ingress", "pref", "7", "bpf", "da", "bytecode",
                 "1,6 0 0 4294967295,")  # fmt: skip
        world.kind.settle(world)  # another MTU may have cost eth1 its link for a moment
        yield world


UP = ("up", "bond0", "eth1", "eth2", "--take-addresses", "--fail-over-mac", "follow", "--no-keeper")


def mend(world: World, way: str, up: tuple[str, ...]) -> None:
    """Give all NICs back in one of three ways."""
    match way:
        case "down":
            done = world.ubond("down", "bond0", check=False)
            if done.returncode != 3:  # 3: killed before anything was there
                assert (done.returncode, done.stderr) == (0, ""), done.stderr
        case "up":
            world.ubond(*up)
            world.ubond("down", "bond0")
        case "restore":
            world.ubond("restore", *world.nics)


def ways_for(number: int) -> tuple[str, ...]:
    return WAYS if os.environ.get("UBOND_KILL_WAYS") == "all" else (WAYS[number % 3],)


def some_of(numbers: range) -> range:
    """The changes at which an ordinary run kills: a few of them; all in a long one (`make kills`)."""
    return numbers if os.environ.get("UBOND_KILL_WAYS") == "all" else numbers[:: max(1, len(numbers) // SAMPLE)]


def share(world: World) -> float:
    """How many of the deaths that were meant must have come: how many changes there are varies, by NICs' links too."""
    return 0.8 if world.can("a link at once") else 0.5


def changes(world: World, report: Path, act: Callable[[], None] | None, up: tuple[str, ...]) -> range:
    """Numbers of the changes that `act` makes in a running bond, or that bringing it up makes."""
    with Doomed(world.host, report, 0, *up) as doomed:
        doomed.wait_up()
        first = len(doomed.calls)
        if act is None:
            numbers = range(1, first + 1)
            world.ubond("down", "bond0")
        else:
            act()
            numbers = range(first + 1, len(doomed.calls) + 1)
            world.ubond("down", "bond0", check=False)
        doomed.wait_all()
    return numbers


def at_every_change(
    world: World, report: Path, act: Callable[[], None] | None = None, *options: str, least: int,
    after: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Kill at every change that `act` leads to in a bond that runs (None: that leads to it), and mend.

    `least`: so many changes there must have been; `after` puts back what `act` did to the world.
    """
    up, picture, killed = (*UP, *options), world.picture(), 0
    numbers = changes(world, report, act, up)
    assert len(numbers) >= least
    after()
    for number in some_of(numbers):
        for way in ways_for(number):
            with Doomed(world.host, report, number, *up) as doomed:
                doomed.wait_command()
                if act is not None and not doomed.killed:
                    act()
                killed += doomed.killed
                if not doomed.killed:
                    world.ubond("down", "bond0", check=False)
                said = doomed.wait_all()
            hit = doomed.killed  # in that `down` too, where bringing up has made fewer changes this time
            try:
                assert said.count("\n") <= 1, said
                after()
                if hit:
                    mend(world, way, up)
                assert_as_before(picture, world.picture)
            except AssertionError as error:
                raise AssertionError(f"{way} after a kill at change {number} ({doomed.fatal}): {error}") from None
    deaths = sum(len(ways_for(number)) for number in some_of(numbers))
    print(f"{killed} deaths of {deaths}, {len(numbers)} changes")
    assert killed >= share(world) * deaths


@pytest.mark.parametrize("gate", ["clsact", "nft", "bridge"])
def test_killed_at_every_step_of_up(world: World, tmp_path: Path, gate: str) -> None:
    at_every_change(world, tmp_path / "report", None, "--gate", gate, least=50)


@pytest.mark.parametrize("gate", ["clsact", "nft", "bridge"])
def test_killed_at_every_step_of_down(world: World, tmp_path: Path, gate: str) -> None:
    at_every_change(
        world, tmp_path / "report", lambda: void(world.ubond("down", "bond0", check=False)), "--gate", gate, least=40
    )


def void(_: object) -> None:
    """What `act` leaves is looked at, not what it returns."""


def test_killed_at_every_step_of_a_failover_that_moves_macs(world: World, tmp_path: Path) -> None:
    host = world.host

    def pull() -> None:
        report, before = tmp_path / "report", (host.mac("eth1"), host.mac("eth2"))
        world.pull("eth1")

        def over() -> bool:
            return "killed" in report.read_text() or (host.mac("eth2"), host.mac("eth1")) == before

        wait_until(over, what="the MACs are exchanged or the daemon is killed")

    at_every_change(world, tmp_path / "report", pull, least=3, after=lambda: world.plug("eth1"))


def test_killed_at_every_step_of_giving_back(world: World, tmp_path: Path) -> None:
    """The daemon is dead, and so is the command that mends, at any of its steps; the next one does it."""
    picture, report, number, killed = world.picture(), tmp_path / "report", 0, 0
    hit = True
    while hit:
        number += 1 if os.environ.get("UBOND_KILL_WAYS") == "all" else SAMPLE
        for way in ways_for(number):
            world.ubond(*UP)
            os.kill(Bond(world, "bond0").pid, signal.SIGKILL)
            wait_until(lambda: "bond0" not in world.host.links(), what="the TAP is gone")
            with Doomed(world.host, report, number, "down", "bond0") as doomed:
                doomed.wait_all()
                hit = doomed.killed
            killed += hit
            try:
                mend(world, way, UP)
                assert_as_before(picture, world.picture)
            except AssertionError as error:
                what = f"a kill of down at change {number} ({doomed.fatal})"
                raise AssertionError(f"{way} after {what}: {error}") from None
    print(f"{killed} deaths, {number - 1} changes")
    assert number > 25


# ── no room ──────────────────────────────────────────────────────────────────────────


FULL = """
directory=$1; shift
mount -t tmpfs -o size=16k,mode=755 none "$directory" || exit 90
export UBOND_RUNTIME_DIR=$directory
fill() { dd if=/dev/zero of="$directory/filler" bs=4k 2>/dev/null; true; }
"""


def shell(world: World, directory: Path, script: str) -> subprocess.CompletedProcess[str]:
    """A script in the host with a runtime directory of four pages; `$U` is ubond, `fill` leaves no room."""
    directory.mkdir()
    whole = f"{FULL}U='{sys.executable} -m ubond'\n{script}"
    return world.host.run("sh", "-c", whole, "sh", str(directory), check=False)


@pytest.mark.needs("mounts")
def test_without_room_for_the_journal_up_refuses_and_nothing_is_left(world: World, tmp_path: Path) -> None:
    before = world.picture()
    script = 'fill; $U up bond0 eth2; echo "code $?"; find $directory -type f'
    done = shell(world, tmp_path / "run", script)
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "journal" in done.stderr
    assert [line for line in done.stdout.splitlines() if "using" not in line] == ["code 5", f"{tmp_path}/run/filler"]
    assert_as_before(before, world.picture)


@pytest.mark.needs("mounts")
def test_without_room_a_bond_that_runs_goes_on_and_refuses_what_it_cannot_remember(
    world: World, tmp_path: Path
) -> None:
    before = world.picture()
    script = (
        "$U up bond0 eth2 && fill; $U add bond0 eth1 --take-addresses; echo code $?;"
        "$U set bond0 miimon=50; echo code $?; $U status bond0 | grep 'Slave Interface';"
        "rm $directory/filler; $U add bond0 eth1 --take-addresses; echo code $?; $U down bond0; echo code $?;"
        "find $directory -type f"
    )
    done = shell(world, tmp_path / "run", script)
    lines = [line for line in done.stdout.splitlines() if "using" not in line]
    assert lines == ["code 5", "code 0", "Slave Interface: eth2", "code 0", "code 0"], done
    assert "No space left on device" in done.stderr
    assert_as_before(before, world.picture)
