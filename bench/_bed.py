"""What every bench stands on: a lab, the contenders in it, and `blast` as load and stop-watch."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from _report import GuardError, note  # noqa: E402  # found beside this file

from ubond.lab import (  # noqa: E402
    HOST_IP,
    NICS,
    PEER_IP,
    PREFIX,
    Lab,
    LabError,
    become_root,
    ending_on_signals,
    wait_until,
)

BIN = ROOT / "bench" / "bin"
BOND = "bond0"
#: One classic BPF instruction: return TC_ACT_STOLEN, for every frame.
STEAL = "1,6 0 0 4,"
NEAR_RATE = 0.95


def switch_port(nic: str) -> str:
    return f"sw{NICS.index(nic) + 1}"


class Load:
    """A running `blast`; `report()` ends it and returns what it says."""

    def __init__(self, lab: Lab, place: str, mode: str, *, urgent: bool = False, **options: object) -> None:
        """`urgent`: before all else that runs here, as what comes from another machine would be."""
        flags = [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        first = ("chrt", "-f", "1") if urgent else ()
        self._process = lab.start(place, *first, str(BIN / "blast"), mode, *flags)
        self._mode, self._rate = mode, float(str(options.get("rate", 0)))

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
        if found.get("overflow"):
            raise GuardError(f"the receiver's own socket overflowed ({found['overflow']})")
        return found


class Bed:
    """A lab with its contenders.  Every contender gives the host HOST_IP while it lasts."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def load(self, place: str, mode: str, *, urgent: bool = False, **options: object) -> Load:
        return Load(self.lab, place, mode, urgent=urgent, **options)

    def _settle(self) -> None:
        """Return when the peer answers; what an earlier contender left in its caches is gone."""
        self.lab.ip("peer", "neigh", "flush", "all")
        wait_until(self._peer_answers, 10, f"an answer of {PEER_IP}")

    def _peer_answers(self) -> bool:
        asked = self.lab.exec("host", "ping", "-c", "1", "-W", "0.2", PEER_IP, check=False)
        return asked.returncode == 0

    @contextlib.contextmanager
    def bare(self) -> Iterator[str]:
        """eth1 itself, with the address on it."""
        self.lab.ip("host", "addr", "add", f"{HOST_IP}/{PREFIX}", "dev", "eth1")
        try:
            self._settle()
            yield "eth1"
        finally:
            self.lab.ip("host", "addr", "del", f"{HOST_IP}/{PREFIX}", "dev", "eth1")

    @contextlib.contextmanager
    def bond(self, *options: str, tree: str = "") -> Iterator[str]:
        """ubond over eth1 and eth2; `options` as on its command line.  `tree`: where another build of it is."""
        address = ("--address", f"{HOST_IP}/{PREFIX}")
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ubond.cli import main; sys.exit(main())"
        command = (sys.executable, "-c", code, tree) if tree else ("ubond",)
        self.lab.exec("host", *command, "up", BOND, *NICS, *address, *options)
        try:
            self._settle()
            yield BOND
        finally:
            self.lab.exec("host", "ubond", "down", BOND)

    @contextlib.contextmanager
    def forwarder(self) -> Iterator[str]:
        """The plain C forwarder over eth1, behind a gate as a bond's slave is."""
        self.lab.exec("host", "tc", "qdisc", "add", "dev", "eth1", "clsact")
        gate = ("ingress", "bpf", "da", "bytecode", STEAL)
        self.lab.exec("host", "tc", "filter", "add", "dev", "eth1", *gate)
        process = self.lab.start("host", str(BIN / "forwarder"), "fwd0", "eth1")
        try:
            if process.stdout is None or "ready" not in process.stdout.readline():
                raise GuardError("the forwarder did not start")
            self.lab.ip("host", "addr", "add", f"{HOST_IP}/{PREFIX}", "dev", "fwd0")
            self._settle()
            yield "fwd0"
        finally:
            process.terminate()
            process.communicate(timeout=10)
            self.lab.exec("host", "tc", "qdisc", "del", "dev", "eth1", "clsact")

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

    def pulls(self, times: int, *, hold: float = 0.1, patience: float = 5.0) -> Iterator[tuple[int, float, float]]:
        """Pull the active slave's cable `times` times; yield number, instant before and after each pull.

        Between two pulls the bond has made the failover official, the cable has been plugged
        in again and its port forwards, and the new active slave has carried frames.
        GuardError if a slave that is pulled had carried nothing.
        """
        for number in range(times):
            active = self.active()
            before = self.carried(active)
            time.sleep(hold)
            if self.carried(active) - before < 10:
                raise GuardError(f"pull {number}: {active} is active and carries nothing")
            start = time.time()
            self.lab.pull(active)
            yield number, start, time.time()
            wait_until(lambda old=active: self.active() not in (old, "None"), patience, "the failover")  # type: ignore[misc]
            time.sleep(hold)
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
        pids = self.lab.exec("host", "ip", "netns", "pids", self.lab.plan.namespace("host")).stdout.split()
        found = {}
        for pid in map(int, pids):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(b"ubond" in word for word in words) and BOND.encode() in words:
                    found[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        for pid, parent in found.items():
            if parent in found:
                return parent, pid
        raise GuardError("the daemon of bond0 is not there")


def measure(bench: Callable[[Bed], None]) -> None:
    """Run one bench in a lab of its own; exit 1 with one line when its figures do not count."""
    if not (BIN / "blast").exists():
        subprocess.run(["make", "-s", "-C", str(ROOT / "bench")], check=True)
    try:
        become_root_here()
        name = f"bench{os.getpid()}-{secrets.token_hex(2)}"
        with ending_on_signals(), Lab(name) as lab:
            bench(Bed(lab))
    except (GuardError, LabError) as error:
        note(f"{Path(sys.argv[0]).name}: {error}")
        raise SystemExit(1) from None


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
    return max(1, int(sys.argv[1])) if len(sys.argv) > 1 else least


def in_turn(times: int, contenders: Sequence[tuple[str, Callable[[], Any]]]) -> dict[str, list[Any]]:
    """A B A B ...: each contender's results, one per round."""
    found: dict[str, list[Any]] = {name: [] for name, _ in contenders}
    for number in range(times):
        for name, run_once in contenders:
            note(f"round {number + 1}/{times}: {name}")
            found[name].append(run_once())
    return found
