"""A laboratory in network namespaces: a host with eth1 and eth2, a switch, and a peer behind it.

Nobody needs two NICs and a switch to see a bond fail over.  A lab is three namespaces joined
by veth pairs; pulling a cable sets the switch's end down, and the host's NIC loses its carrier
as it would on a desk.  Nothing outside these namespaces is touched.

    host                    switch                    peer
    eth1 ───────────────── sw1 ┐
    eth2 ───────────────── sw2 ┴─ br0 ── swp ──────── eth0  192.0.2.1/24  2001:db8::1/64

A lab stands until `down`.  What it consists of is on disk (`STATE_DIR`) before the first
namespace is made, so that a lab whose maker was killed is found and removed by the next one.
A `Lab` used as a context manager lives as long as its process, which holds a lock to show it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

#: Not below /run/ubond, which belongs to the bonds.
STATE_DIR = Path("/run/ubond-lab")
PLACES = ("host", "switch", "peer")
SWITCHES = ("bridge", "lag", "two")
NICS = ("eth1", "eth2")
#: The addresses that a lab's guide, the demo and the tests use (RFC 5737, RFC 3849).
HOST_IP, PEER_IP, PREFIX = "192.0.2.10", "192.0.2.1", 24
HOST_IP6, PEER_IP6, PREFIX6 = "2001:db8::10", "2001:db8::1", 64

OK, FAILED, USAGE, NO_SUCH, NOT_PERMITTED = 0, 1, 2, 3, 4


class LabError(Exception):
    """What went wrong, on one line; `code` is the exit code."""

    def __init__(self, text: str, code: int = FAILED) -> None:
        super().__init__(text)
        self.code = code


def run(*command: str, stdin: str | None = None) -> str:
    """Run a command to its end and return its stdout; LabError with its stderr if it fails."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise LabError(f"{command[0]} is not installed (apt-get install iproute2)") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{shlex.join(command)}: no end after 60 s") from None
    if done.returncode:
        why = (done.stderr or done.stdout).strip().replace("\n", "; ")
        raise LabError(f"{shlex.join(command)}: {why or f'exit code {done.returncode}'}")
    return done.stdout


def wait_until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when `true()` is; LabError naming `what` if it is not within `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise LabError(f"{what}: not within {seconds:g} s")
        time.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a lab consists of; written to disk before it is built.

    `switch`: one of SWITCHES; `same_index`: both ends of a veth pair get the same interface
    index in their namespaces, in which case the kernel reports a lost carrier late;
    `keep`: it stays when its maker ends; `partner`: who does the link aggregation (`lag`).
    """

    name: str
    switch: str = "bridge"
    same_index: bool = False
    keep: bool = False
    partner: str = ""

    def namespace(self, place: str) -> str:
        return f"ubond-{self.name}-{place}"


class Lab:
    """One laboratory.  `with Lab("demo") as lab:` builds it and always takes it down again.

    Raises LabError when the system refuses a part of it, after removing the parts it has built.
    """

    def __init__(self, name: str = "lab", switch: str = "bridge", *, same_index: bool = False) -> None:
        check_name(name)
        if switch not in SWITCHES:
            raise LabError(f"no switch of kind {switch!r} (one of {', '.join(SWITCHES)})", USAGE)
        partner = ""
        if switch == "lag":
            has_ovs = all(map(shutil.which, ("ovsdb-server", "ovs-vswitchd", "ovs-vsctl")))
            partner = "openvswitch" if has_ovs else "ubond"
        self.plan = Plan(name, switch, same_index, partner=partner)
        self._lock: int | None = None

    @classmethod
    def find(cls, name: str) -> Lab:
        """The lab of this name that stands; LabError (no such lab) if there is none."""
        check_name(name)
        try:
            plan = Plan(**json.loads((STATE_DIR / name / "plan.json").read_text()))
        except FileNotFoundError:
            raise LabError(f"there is no lab {name!r} (ubond lab up)", NO_SUCH) from None
        lab = cls.__new__(cls)
        lab.plan, lab._lock = plan, None
        return lab

    @property
    def directory(self) -> Path:
        return STATE_DIR / self.plan.name

    # ── up and down ──────────────────────────────────────────────────────────────────

    def up(self, *, keep: bool = False) -> None:
        """Build it.  `keep`: it outlives this process, until `down`."""
        sweep()
        self.plan = replace(self.plan, keep=keep)
        STATE_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        try:
            self.directory.mkdir(mode=0o755)
        except FileExistsError:
            name = self.plan.name
            raise LabError(f"lab {name!r} is already up (ubond lab down {name})") from None
        self._lock = _hold(self.directory)
        try:
            _write(self.directory / "plan.json", json.dumps(asdict(self.plan)))
            self._write_launcher()
            self._build()
            (self.directory / "ready").touch()
        except BaseException:
            self.down()
            raise
        if keep:
            self._let_go()

    def down(self) -> None:
        """End every process in it and remove it; what is missing already is no error."""
        standing = _namespaces()
        mine = [name for place in PLACES if (name := self.plan.namespace(place)) in standing]
        _end_processes(mine)
        for name in mine:
            with contextlib.suppress(LabError):
                run("ip", "netns", "del", name)
        shutil.rmtree(self.directory, ignore_errors=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(self, *why: object) -> None:
        self.down()

    # ── what it is made of ───────────────────────────────────────────────────────────

    def _build(self) -> None:
        for place in PLACES:
            run("ip", "netns", "add", self.plan.namespace(place))
            self.ip(place, "link", "set", "lo", "up")
        for number, nic in enumerate(NICS, 1):
            self._cable("host", nic, 10 + number, f"sw{number}", 20 + number)
            self.ip("host", "link", "set", nic, "up")
        if self.plan.switch == "two":
            self._two_switches()
        else:
            self._cable("peer", "eth0", 10, "swp", 20)
            if self.plan.partner == "openvswitch":
                _start_aggregation(self)
            elif self.plan.partner == "ubond":
                self.exec("switch", "ubond", "up", "lag0", "sw1", "sw2", "-o", "mode=balance-rr")
                self._bridge("br0", "lag0", "swp")
            else:
                self._bridge("br0", "sw1", "sw2", "swp")
        self.ip("peer", "addr", "add", f"{PEER_IP}/{PREFIX}", "dev", "eth0")
        self.ip("peer", "addr", "add", f"{PEER_IP6}/{PREFIX6}", "dev", "eth0", "nodad")
        self.ip("peer", "link", "set", "eth0", "up")
        if self.plan.partner != "openvswitch":
            for port in self._ports():
                self.wait_forwarding(port)

    def _cable(self, place: str, nic: str, index: int, port: str, port_index: int) -> None:
        """A veth pair from `nic` to a port of the switch, which is up and says nothing itself."""
        far = index if self.plan.same_index else port_index
        run(
            "ip",
            "link",
            "add",
            nic,
            "index",
            str(index),
            "netns",
            self.plan.namespace(place),
            "type",
            "veth",
            "peer",
            "name",
            port,
            "index",
            str(far),
            "netns",
            self.plan.namespace("switch"),
        )
        self.ip("switch", "link", "set", port, "addrgenmode", "none", "up")

    def _bridge(self, name: str, *ports: str, place: str = "switch") -> None:
        """A bridge that forwards as soon as a port is plugged: no spanning tree, no snooping."""
        self.ip(
            place,
            "link",
            "add",
            name,
            "type",
            "bridge",
            "forward_delay",
            "0",
            "stp_state",
            "0",
            "mcast_snooping",
            "0",
        )
        for port in ports:
            self.ip(place, "link", "set", port, "master", name)
        self.ip(place, "link", "set", name, "addrgenmode", "none", "up")

    def _two_switches(self) -> None:
        """Two bridges with no cable between them, each with its own to the peer.

        The peer's `eth0` is a bridge of both, whose ports are isolated: it is reached through
        either switch, and no frame gets from one switch to the other.
        """
        for number in (1, 2):
            self._cable("peer", f"p{number}", 13 + number, f"swp{number}", 23 + number)
            self.ip("peer", "link", "set", f"p{number}", "addrgenmode", "none", "up")
            self._bridge(f"br{number}", f"sw{number}", f"swp{number}")
        self._bridge("eth0", "p1", "p2", place="peer")
        self.ip("peer", "link", "set", "eth0", "addrgenmode", "eui64")
        for port in ("p1", "p2"):
            self.ip("peer", "link", "set", port, "type", "bridge_slave", "isolated", "on")

    def _ports(self) -> tuple[str, ...]:
        """The bridge ports of the switch on which forwarding can be seen."""
        if self.plan.switch == "bridge":
            return ("sw1", "sw2", "swp")
        return ("swp",) if self.plan.switch == "lag" else ("sw1", "swp1", "sw2", "swp2")

    def _write_launcher(self) -> None:
        """`ubond` in a lab is the one that built it, whatever PATH or sudo say."""
        (self.directory / "bin").mkdir()
        launcher = self.directory / "bin" / "ubond"
        package = str(Path(__file__).resolve().parent.parent)
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ubond.cli import main; sys.exit(main())"
        start = shlex.join([sys.executable, "-c", code, package])
        _write(launcher, f'#!/bin/sh\nexec {start} "$@"\n')
        launcher.chmod(0o755)

    # ── using it ─────────────────────────────────────────────────────────────────────

    def ip(self, place: str, *command: str) -> str:
        """Run `ip` in one of the namespaces and return what it printed."""
        return run("ip", "-n", self.plan.namespace(place), *command)

    def command(self, place: str, *command: str) -> list[str]:
        """The command line that runs `command` in a place."""
        if place not in PLACES:
            raise LabError(f"no such place: {place} (one of {', '.join(PLACES)})", USAGE)
        return ["ip", "netns", "exec", self.plan.namespace(place), *command]

    @property
    def environment(self) -> Mapping[str, str]:
        """The caller's, with this ubond first in PATH."""
        return {**os.environ, "PATH": f"{self.directory / 'bin'}:{os.environ.get('PATH', os.defpath)}"}

    def exec(
        self, place: str, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a place to its end, output captured; LabError if it fails (`check`)."""
        done = subprocess.run(
            self.command(place, *command),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise LabError(f"{shlex.join(command)}: {(done.stderr or done.stdout).strip()}")
        return done

    def start(self, place: str, *command: str) -> subprocess.Popen[str]:
        """Start a command in a place, its output in pipes."""
        return subprocess.Popen(
            self.command(place, *command),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pull(self, nic: str) -> None:
        """Pull the cable of `eth1` or `eth2` at the switch."""
        self.ip("switch", "link", "set", _port_of(nic), "down")

    def plug(self, nic: str) -> None:
        """Plug it in again and return when the NIC has carrier and the port forwards."""
        port = _port_of(nic)
        self.ip("switch", "link", "set", port, "up")
        wait_until(lambda: self.has_carrier(nic), 5, f"carrier of {nic}")
        if port in self._ports():
            self.wait_forwarding(port)

    def block(self, nic: str) -> None:
        """Let the path behind `eth1` or `eth2` die while its carrier stays: the port leaves its bridge."""
        self.ip("switch", "link", "set", self._port_that_blocks(nic), "nomaster")

    def unblock(self, nic: str) -> None:
        """Let it pass frames again; return when it does."""
        port = self._port_that_blocks(nic)
        bridge = f"br{port[2:]}" if self.plan.switch == "two" else "br0"
        self.ip("switch", "link", "set", port, "master", bridge)
        self.wait_forwarding(port)

    def _port_that_blocks(self, nic: str) -> str:
        port = _port_of(nic)
        if port not in self._ports():
            raise LabError(f"the switch of kind {self.plan.switch!r} cannot block a port and keep its carrier", USAGE)
        return port

    def has_carrier(self, nic: str) -> bool:
        return "LOWER_UP" in self._link("host", nic)["flags"]

    def wait_forwarding(self, port: str) -> None:
        """Return when a port of a bridge passes frames (state 3); carrier comes earlier."""
        wait_until(lambda: self.is_forwarding(port), 5, f"{port} forwarding")

    def is_forwarding(self, port: str) -> bool:
        data = self._link("switch", port).get("linkinfo", {}).get("info_slave_data", {})
        return bool(data.get("state") == "forwarding")

    def _link(self, place: str, nic: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.ip(place, "-d", "-j", "link", "show", "dev", nic))
        return found[0]

    def status(self) -> str:
        """What it looks like now, for a person."""
        kind = self.plan.switch + (f" by {self.plan.partner}" if self.plan.partner else "")
        indexes = ", equal veth indexes" if self.plan.same_index else ""
        lines = [f"lab {self.plan.name}: switch {kind}{indexes}"]
        for number, nic in enumerate(NICS, 1):
            port = f"sw{number}"
            try:
                cable = "plugged" if "UP" in self._link("switch", port)["flags"] else "pulled"
                if cable == "plugged" and port in self._ports() and not self.is_forwarding(port):
                    cable = "blocked"
                carrier = "carrier" if self.has_carrier(nic) else "no carrier"
            except LabError:
                cable, carrier = "gone", "no carrier"
            lines.append(f"  {nic}: {cable} ({port}), {carrier}")
        lines.append(f"  peer: {PEER_IP}/{PREFIX}, {PEER_IP6}/{PREFIX6}")
        lines.append(f"  namespaces: {', '.join(self.plan.namespace(place) for place in PLACES)}")
        return "\n".join(lines)


class OpenVSwitch:
    """An Open vSwitch in user space in one place of a lab, with files of its own: the system's is not touched."""

    def __init__(self, lab: Lab, place: str) -> None:
        self._lab, self._place, self._dir = lab, place, lab.directory / f"ovs-{place}"
        self._db = f"unix:{self._dir}/db.sock"

    def start(self, **other_config: str) -> None:
        """Start its database and its switch; `other_config`: settings that it must have from the beginning."""
        shutil.rmtree(self._dir, ignore_errors=True)
        self._dir.mkdir()
        self._run("ovsdb-tool", "create", f"{self._dir}/conf.db")
        self._daemon("ovsdb-server", f"{self._dir}/conf.db", f"--remote=p{self._db}")
        self.vsctl("--no-wait", "init")
        for name, value in other_config.items():
            setting = f"other_config:{name.replace('_', '-')}={value}"
            self.vsctl("--no-wait", "set", "Open_vSwitch", ".", setting)
        self._daemon("ovs-vswitchd", self._db)

    def stop(self) -> None:
        """End both and return when they are gone."""
        for name in ("ovs-vswitchd", "ovsdb-server"):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self._dir / f"{name}.pid").read_text())
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda gone=pid: not _lives(gone), 10, f"the end of {name}")  # type: ignore[misc]

    def vsctl(self, *arguments: str) -> str:
        return self._run("ovs-vsctl", f"--db={self._db}", "--timeout=20", *arguments)

    def ofctl(self, verb: str, bridge: str, what: str) -> str:
        return self._run("ovs-ofctl", "-O", "OpenFlow15", verb, f"unix:{self._dir}/{bridge}.mgmt", what)

    def appctl(self, *arguments: str) -> str:
        """Ask the running switch."""
        return self._run("ovs-appctl", f"--target={self._dir}/ovs-vswitchd.ctl", *arguments)

    def _daemon(self, name: str, *arguments: str) -> None:
        self._run(
            name,
            *arguments,
            "--detach",
            "--no-chdir",
            f"--pidfile={self._dir}/{name}.pid",
            f"--unixctl={self._dir}/{name}.ctl",
            f"--log-file={self._dir}/{name}.log",
        )

    def _run(self, *command: str) -> str:
        return run(
            "env",
            f"OVS_RUNDIR={self._dir}",
            f"OVS_LOGDIR={self._dir}",
            f"OVS_DBDIR={self._dir}",
            *self._lab.command(self._place, *command),
        )


def _start_aggregation(lab: Lab) -> None:
    """The switch as a static link aggregation, by Open vSwitch.

    A bond port of Open vSwitch takes broadcasts on one of its links only, which is not what a
    static aggregation does.  Three flows and a select group do just that: whatever comes in on
    either link goes to the peer, and each flow from the peer leaves by one of them.
    """
    switch = OpenVSwitch(lab, "switch")
    switch.start()
    versions = "protocols=OpenFlow10,OpenFlow13,OpenFlow15"
    switch.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev", "fail_mode=secure", versions)
    for number, port in enumerate(("sw1", "sw2", "swp"), 1):
        switch.vsctl("add-port", "br0", port, "--", "set", "interface", port, f"ofport_request={number}")
    switch.ofctl("add-group", "br0", "group_id=1,type=select,bucket=output:1,bucket=output:2")
    for flow in ("in_port=1,actions=output:3", "in_port=2,actions=output:3", "in_port=3,actions=group:1"):
        switch.ofctl("add-flow", "br0", flow)


def _lives(pid: int) -> bool:
    """Whether a process runs still; one that waits for its parent to notice its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ── names, state on disk, leftovers ──────────────────────────────────────────────────


def check_name(name: str) -> None:
    """LabError unless `name` can be part of a namespace's name and of a path."""
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum() or len(name) > 40:
        raise LabError(f"{name!r} cannot be the name of a lab (letters, digits, - and _)", USAGE)


def _port_of(nic: str) -> str:
    if nic not in NICS:
        raise LabError(f"no cable at {nic} (one of {', '.join(NICS)})", USAGE)
    return f"sw{NICS.index(nic) + 1}"


def _write(path: Path, text: str) -> None:
    """Write a whole file in one step, so that nobody reads half a plan."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.rename(path)


def _hold(directory: Path) -> int:
    """Take the lock that shows that a lab's maker is alive; it goes with the process."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _is_held(directory: Path) -> bool:
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # Its maker is between two steps, or died there; too young to tell is taken for alive.
        with contextlib.suppress(FileNotFoundError):
            return time.time() - directory.stat().st_mtime < 5
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def labs() -> list[Lab]:
    """The labs that stand, by name."""
    found = []
    for plan in sorted(STATE_DIR.glob("*/plan.json")):
        with contextlib.suppress(LabError):
            found.append(Lab.find(plan.parent.name))
    return found


def sweep() -> list[str]:
    """Remove what dead makers left behind: unfinished labs, and those meant to end with them."""
    removed = []
    for directory in sorted(STATE_DIR.glob("*")):
        if _is_held(directory):
            continue
        try:
            lab = Lab.find(directory.name)
        except LabError:
            shutil.rmtree(directory, ignore_errors=True)
            continue
        if not lab.plan.keep or not (directory / "ready").exists():
            lab.down()
            removed.append(lab.plan.name)
    return removed


def _namespaces() -> set[str]:
    return {line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()}


def _pids(namespaces: Sequence[str]) -> list[int]:
    found: list[int] = []
    for name in namespaces:
        with contextlib.suppress(LabError):
            found += [int(pid) for pid in run("ip", "netns", "pids", name).split()]
    return [pid for pid in found if pid != os.getpid()]


def _end_processes(namespaces: Sequence[str]) -> None:
    """End what runs in a lab's namespaces: politely, so that a bond is taken down, then not."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0)):
        for pid in _pids(namespaces):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(LabError):
            wait_until(lambda: not _pids(namespaces), patience, "the end of the lab's processes")
            return


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that a lab in a `with` block is taken down."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
