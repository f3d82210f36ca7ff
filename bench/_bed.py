"""What every bench stands on: a lab, who takes turns in it, and `blast` as load and stop-watch."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from _contenders import BIN, BOND, CONTENDERS, missing  # noqa: E402  # found beside this file
from _report import GuardError, note  # noqa: E402

from ubond.lab import (  # noqa: E402
    HOST_IP,
    NICS,
    PEER_IP,
    PREFIX,
    Lab,
    LabError,
    become_root,
    ending_on_signals,
    run,
    wait_until,
)

NEAR_RATE = 0.95
#: Where control groups for processors are, by version.
CPU_GROUPS = ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup")
#: Modes of `blast` that bind a UDP port, and which one where nothing is said.
UDP_LISTENERS, PORT = ("udp-recv", "echo", "sink"), 5001


def switch_port(nic: str) -> str:
    return f"sw{NICS.index(nic) + 1}"


class Load:
    """A running `blast`; `report()` ends it and returns what it says."""

    def __init__(
        self, lab: Lab, place: str, mode: str, *, urgent: bool = False, on: int | None = None, **options: object
    ) -> None:
        """`urgent`: before all else that runs here, as what comes from another machine would be.  `on`: the processor
        that it stays on."""
        flags = [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        first = ("chrt", "-f", "1") if urgent else () if on is None else ("taskset", "-c", str(on))
        self._process = lab.start(place, *first, str(BIN / "blast"), mode, *flags)
        self._mode, self._rate = mode, float(str(options.get("rate", 0)))
        if mode in UDP_LISTENERS:
            port = f":{int(str(options.get('port', PORT))):04X} "
            # What comes before is refused, and would count as lost on the way.
            tables = ("/proc/net/udp", "/proc/net/udp6")
            wait_until(lambda: port in lab.exec(place, "cat", *tables).stdout, 10, f"{mode} on port{port}")

    def report(self, *, end: bool = True, timeout: float = 120) -> dict[str, Any]:
        """What it measured.  `end`: tell it to stop now, else wait until it has done its work.

        GuardError if it failed, or sent less than 95 % of the rate it was asked for.
        """
        if end:
            self._process.terminate()
        out, err = self._process.communicate(timeout=timeout)
        if self._process.returncode or not out.strip():
            raise GuardError(f"blast {self._mode}: {err.strip() or 'said nothing'}")
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        if self._rate and found["pps"] < NEAR_RATE * self._rate:
            raise GuardError(f"the generator sent {found['pps']:.0f} of {self._rate:.0f} a second")
        if found.get("offered", 1) < NEAR_RATE and not end:
            raise GuardError(f"ping asked only {found['offered']:.0%} of its questions")
        if found.get("error") == "Connection refused":
            raise GuardError("nobody listened to what the generator sent")
        if found.get("overflow"):
            raise GuardError(f"the receiver's own socket overflowed ({found['overflow']})")
        return found


@dataclass(frozen=True, slots=True)
class Standing:
    """A contender that stands: the interface with HOST_IP on it, the processes that it consists of, and how many ms
    it took until the peer answered over it."""

    name: str
    interface: str
    pids: tuple[int, ...] = ()
    ready_ms: float = 0.0

    def processor_ns(self) -> int:
        """Processor time that its processes have taken so far, what the kernel does in their name included."""
        return sum(map(spent, self.pids))

    def pin(self, processor: int) -> None:
        """Keep all its threads on one processor."""
        for pid in self.pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), {processor})

    def memory_mb(self) -> float:
        """Their proportional share (PSS) of memory: what two share is counted once."""
        return sum(map(share_mb, self.pids))


#: What was found, by question and by contender: one figure per round.
Found = dict[str, dict[str, list[float]]]


@dataclass
class Bed:
    """A lab and who stands in it.  Every contender gives the host HOST_IP while it lasts."""

    lab: Lab
    #: Contenders that were to be measured and could not be.
    failed: list[str] = field(default_factory=list)

    def load(
        self, place: str, mode: str, *, urgent: bool = False, on: int | None = None, **options: object
    ) -> Load:
        return Load(self.lab, place, mode, urgent=urgent, on=on, **options)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """No processor sleeps, and whoever wants one has it at once (`blast awake`).

        In a control group that is idle as a whole: where sessions share a processor among them (autogroup), an idle
        process gives way to those of its own session alone, and would take half of it from a daemon.
        """
        group = next((path for path in map(Path, CPU_GROUPS) if (path / "cgroup.procs").exists()), None)
        if group is None:
            raise GuardError(f"no control groups for processors ({', '.join(CPU_GROUPS)})")
        own = group / f"ubond-bench-{os.getpid()}"
        own.mkdir()
        try:
            if not (own / "cpu.idle").exists():
                raise GuardError(f"{own}: no cpu.idle")
            (own / "cpu.idle").write_text("1")
            burner = subprocess.Popen(
                ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(own / "cgroup.procs"), str(BIN / "blast"), "awake"],
                stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                wait_until(lambda: len((own / "cgroup.procs").read_text().split()) > 1 or os.cpu_count() == 1, 5,
                           "a process for each processor")  # fmt: skip
                yield
            finally:
                os.killpg(burner.pid, signal.SIGKILL)
                burner.wait()
                wait_until(lambda: not (own / "cgroup.procs").read_text(), 5, f"the end of {own.name}")
        finally:
            own.rmdir()

    def settle(self) -> None:
        """Return when the peer answers; what an earlier contender left in its caches is gone."""
        self.lab.ip("peer", "neigh", "flush", "all")
        wait_until(self._peer_answers, 10, f"an answer of {PEER_IP}")

    def _peer_answers(self) -> bool:
        asked = self.lab.exec("host", "ping", "-c", "1", "-W", "0.2", PEER_IP, check=False)
        return asked.returncode == 0

    @contextlib.contextmanager
    def stand(self, name: str) -> Iterator[Standing]:
        """A contender, reachable from the peer."""
        address = f"{HOST_IP}/{PREFIX}"
        start = time.monotonic()
        with CONTENDERS[name].stand(self.lab) as interface:
            self.lab.ip("host", "addr", "add", address, "dev", interface)
            try:
                self.settle()
                yield Standing(name, interface, tuple(self.pids()), 1000 * (time.monotonic() - start))
            finally:
                self.lab.exec("host", "ip", "addr", "del", address, "dev", interface, check=False)

    def pids(self) -> list[int]:
        """The processes in the host's namespace."""
        return [int(pid) for pid in run("ip", "netns", "pids", self.lab.plan.namespace("host")).split()]

    def take_turns(
        self, names: Sequence[str], measure: Callable[[Standing], Mapping[str, float]], times: int
    ) -> Found:
        """A B A B ...: `measure` each contender `times` times, anew each time; its figures by question.

        One that fails is tried again twice, then left out and reported; GuardError if that is ubond or the bare slave.
        """
        names = [name for name in names if name in chosen(names)]
        found: Found = {}
        for number in range(times):
            for name in list(names):
                note(f"round {number + 1}/{times}: {name}")
                figures = self._figures(name, measure)
                if figures is None:
                    names.remove(name)
                    for of_question in found.values():
                        of_question.pop(name, None)
                    continue
                for question, figure in figures.items():
                    found.setdefault(question, {}).setdefault(name, []).append(figure)
        return found

    def _figures(
        self, name: str, measure: Callable[[Standing], Mapping[str, float]], tries: int = 3
    ) -> Mapping[str, float] | None:
        for number in range(1, tries + 1):
            try:
                with self.stand(name) as standing:
                    return measure(standing)
            except (GuardError, LabError, subprocess.TimeoutExpired) as error:
                note(f"{name}: {error}")
                why = str(error)
            if number == tries:
                if name in ("ubond", "bare"):
                    raise GuardError(f"{name}: {why}")
                emit_failed(Path(sys.argv[0]).stem, name, why)
                self.failed.append(name)
        return None

    @contextlib.contextmanager
    def bond(self, *options: str, tree: str = "") -> Iterator[str]:
        """ubond over eth1 and eth2; `options` as on its command line.  `tree`: where another build of it is."""
        address = ("--address", f"{HOST_IP}/{PREFIX}")
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ubond.cli import main; sys.exit(main())"
        command = (sys.executable, "-c", code, tree) if tree else ("ubond",)
        self.lab.exec("host", *command, "up", BOND, *NICS, *address, *options)
        try:
            self.settle()
            yield BOND
        finally:
            self.lab.exec("host", "ubond", "down", BOND)

    def wait_listening(self, *listeners: tuple[str, int]) -> None:
        """Return when somebody listens on each (place, TCP port)."""
        for place, port in listeners:
            wait_until(lambda at=(place, port): self._listens(*at), 5, f"a listener on {port}")  # type: ignore[misc]

    def _listens(self, place: str, port: int) -> bool:
        return f":{port:04X} " in self.lab.exec(place, "cat", "/proc/net/tcp6").stdout

    # ── the bond, as its own command line shows it ───────────────────────────────────

    def bond_status(self) -> dict[str, Any]:
        """`ubond status --json` of the bond: the nesting of `ip -d -j link`."""
        found = json.loads(self.lab.exec("host", "ubond", "status", BOND, "--json").stdout)
        one: dict[str, Any] = found[0] if isinstance(found, list) else found
        return one

    def active(self) -> str:
        return str(self.bond_status()["linkinfo"]["info_data"].get("active_slave"))

    def carried(self, nic: str) -> int:
        """Frames that a NIC has taken to the switch and back, so far."""
        link = json.loads(self.lab.ip("host", "-s", "-j", "link", "show", "dev", nic))[0]["stats64"]
        return int(link["tx"]["packets"]) + int(link["rx"]["packets"])

    def pulls(
        self, times: int, *, hold: float = 0.1, patience: float = 5.0, pretend: bool = False
    ) -> Iterator[tuple[int, float, float]]:
        """Pull the active slave's cable `times` times; yield number, instant before and after each pull.

        Between two pulls the bond has made the failover official, the cable has been plugged
        in again and its port forwards, and the new active slave has carried frames.
        GuardError if a slave that is pulled had carried nothing.  `pretend`: do all of it, but leave the cable alone.
        """
        for number in range(times):
            active = self.active()
            before = self.carried(active)
            time.sleep(hold)
            if self.carried(active) - before < 10:
                raise GuardError(f"pull {number}: {active} is active and carries nothing")
            start = time.time()
            if not pretend:
                self.lab.pull(active)
            yield number, start, time.time()
            gone = "None" if pretend else active
            wait_until(lambda old=gone: self.active() not in (old, "None"), patience, "the failover")  # type: ignore[misc]
            time.sleep(hold)
            if not pretend:
                self.lab.plug(active)
            wait_until(lambda nic=active: self._is_up(nic), patience, f"{active} as a backup")  # type: ignore[misc]

    def _is_up(self, nic: str) -> bool:
        text = self.lab.exec("host", "ubond", "status", BOND).stdout
        return f"Slave Interface: {nic}\nMII Status: up" in text

    def restarts(self) -> int:
        """How often the daemon has been started again."""
        return int(self.bond_status()["ubond"]["restarts"])

    def daemon_pid(self) -> int:
        """The process of the bond; `keeper_pid` is the one above it."""
        return self._processes()[1]

    def keeper_pid(self) -> int:
        return self._processes()[0]

    def _processes(self) -> tuple[int, int]:
        """Keeper and daemon: those in the host's namespace that outlive their command."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(b"ubond" in word for word in words) and BOND.encode() in words:
                    found[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        for pid, parent in found.items():
            if parent in found:
                return parent, pid
        raise GuardError("the daemon of bond0 is not there")


def spent(pid: int) -> int:
    """Processor time of a process's threads so far, in ns."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            total += int(path.read_text().split()[0])
    return total


def share_mb(pid: int) -> float:
    """A process's proportional share of memory (PSS)."""
    line = next(x for x in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if x.startswith("Pss:"))
    return int(line.split()[1]) / 1024


def measure(bench: Callable[[Bed], None], switch: str = "bridge") -> None:
    """Run one bench in a lab of its own; exit 1 with one line when its figures do not count, or some are missing."""
    arguments()
    if not (BIN / "blast").exists():
        subprocess.run(["make", "-s", "-C", str(ROOT / "bench")], check=True)
    try:
        become_root_here()
        name = f"bench{os.getpid()}-{secrets.token_hex(2)}"
        with ending_on_signals(), Lab(name, switch) as lab:
            bed = Bed(lab)
            bench(bed)
    except (GuardError, LabError) as error:
        note(f"{Path(sys.argv[0]).name}: {error}")
        raise SystemExit(1) from None
    if bed.failed:
        raise SystemExit(f"{Path(sys.argv[0]).name}: not measured: {', '.join(sorted(set(bed.failed)))}")


@cache
def arguments() -> argparse.Namespace:
    """What every bench can be told."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("rounds", nargs="?", type=int, help="turns for each contender, or pulled cables")
    parser.add_argument("tree", nargs="?", default="", help="where another build of ubond is (modes.py)")
    names = f"({', '.join(CONTENDERS)})"
    parser.add_argument("--only", type=_names, metavar="NAME,...", help=f"measure these contenders alone {names}")
    parser.add_argument("--without", type=_names, default=(), metavar="NAME,...", help="measure all but these")
    parser.add_argument("--seconds", type=float, help="how long one load lasts; shorter ones than a bench's own "
                        "show that it works, and nothing else")  # fmt: skip
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no contender {', '.join(unknown)} (there are {', '.join(CONTENDERS)})")
    return names


def chosen(names: Sequence[str]) -> list[str]:
    """Those of a bench's contenders that are to be measured; GuardError when one of them is not installed."""
    wanted = arguments()
    names = [name for name in names if name not in wanted.without and (not wanted.only or name in wanted.only)]
    lacking = missing(names)
    if lacking:
        what = "; ".join(f"{name}: no {programs}" for name, programs in lacking.items())
        raise GuardError(f"{what} (tools/prepare bench installs it; --without {','.join(lacking)} goes on without it)")
    return names


def seconds(usual: float) -> float:
    """How long one load lasts: --seconds, or what a bench thinks right."""
    return float(arguments().seconds or usual)


def emit_failed(bench: str, contender: str, why: str) -> None:
    print(json.dumps({"bench": bench, "contender": contender, "failed": why}), flush=True)


def become_root_here() -> None:
    """An ordinary user's bench runs in a user namespace, where the system allows that."""
    if os.geteuid() != 0:
        become_root(["world", "--", sys.executable, *sys.argv], "ubond.lab")


def silence_of_each(instants: Sequence[float], silences: Sequence[dict[str, float]]) -> list[float]:
    """The longest silence (ms) that began between each pull and the next one.

    A silence that is under way when the cable is pulled began a little before; what is shorter
    than udp-recv's `gap_ms` is not in the list, and counts as 1.
    """
    ends = [*instants[1:], float("inf")]
    return [
        max((s["ms"] for s in silences if start - 0.02 < s["at"] < end - 0.02), default=1.0)
        for start, end in zip(instants, ends, strict=True)
    ]


def rounds(least: int = 5) -> int:
    """How many turns each contender gets: the first argument, or `least`."""
    return max(1, arguments().rounds or least)


def in_turn(times: int, contenders: Sequence[tuple[str, Callable[[], Any]]]) -> dict[str, list[Any]]:
    """A B A B ...: each contender's results, one per round."""
    found: dict[str, list[Any]] = {name: [] for name, _ in contenders}
    for number in range(times):
        for name, run_once in contenders:
            note(f"round {number + 1}/{times}: {name}")
            found[name].append(run_once())
    return found
