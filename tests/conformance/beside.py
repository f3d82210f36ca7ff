"""Runs in a guest: the driver's bond and ours lead the same life, step by step, and are compared after each.

    python -m tests.conformance.beside FILE [--seconds 500] [--shrink 25]

FILE has a scenario as JSON in each line; one JSON object per line and scenario on standard output (run.py reads them).

The driver's bond0 is in the guest's first namespace, where sysfs shows it, and ours in the namespace `ours`, where
this process lives as well.  Both have the slaves s0, s1, s2: veths with the same addresses, whose far ends are in a
namespace of their own and answer for the target of ARP probes.  Frames are exchanged between bond0 and the far ends.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.conformance import compare
from tests.conformance.compare import Difference, Seen
from tests.conformance.scenarios import SLAVES, TARGET, Scenario, Step, shrink
from ubond import daemon, paths
from ubond.bond.spec import BondSpec
from ubond.client import Client, ControlError
from ubond.wire import MacAddr

BOND, ADDRESS = "bond0", "192.0.2.10"
#: Seconds within which both must be alike after a step, besides what delays and announcements take.
PATIENCE = 3.0
#: Milliseconds by which announcements of the two may be apart from each other; with the ARP monitor an interval: the
#: second goes out with the next pass, and how soon that comes after a change by hand is by chance in each.
TOLERANCE_MS = 60.0
BONDING = Path(f"/sys/class/net/{BOND}/bonding")
ETH_P_ALL, ETH_P_MARK = 3, 0x88B5
PACKET_IGNORE_OUTGOING, SO_TIMESTAMPNS = 23, 35
CLONE_NEWNET = 0x40000000
MAC_OF = {name: f"02:5c:00:00:00:{number:02x}" for number, name in enumerate(SLAVES, 1)}
FAR_MAC = bytes.fromhex("025cff000001")
BROADCAST = b"\xff" * 6


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr or done.stdout}")


# ── interfaces, by ioctl: quicker than netlink in an emulated machine ────────────────


class Space:
    """A network namespace; its sockets stay in it wherever this process goes."""

    def __init__(self, name: str | None) -> None:
        self.path = f"/run/netns/{name}" if name else "/proc/1/ns/net"
        with self.inside():
            self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        before = os.open("/proc/self/ns/net", os.O_RDONLY)
        enter(self.path)
        try:
            yield
        finally:
            enter(before)
            os.close(before)

    def packet_socket(self, nic: str) -> socket.socket:
        """Everything that arrives at an interface, stamped."""
        with self.inside():
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sock.setsockopt(263, PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)     # SO_RCVBUFFORCE
        sock.bind((nic, ETH_P_ALL))
        return sock

    def _ask(self, request: int, nic: str, argument: bytes = b"") -> bytes:
        given = nic.encode().ljust(16, b"\0") + argument.ljust(24, b"\0")
        return fcntl.ioctl(self._sock, request, given)[16:]

    def flags(self, nic: str) -> int:
        return int(struct.unpack("H", self._ask(0x8913, nic)[:2])[0])

    def set_up(self, nic: str, up: bool) -> None:
        flags = self.flags(nic)
        self._ask(0x8914, nic, struct.pack("H", flags | 1 if up else flags & ~1))

    def mac(self, nic: str) -> str:
        return self._ask(0x8927, nic)[2:8].hex(":")

    def set_mac(self, nic: str, mac: str) -> None:
        self._ask(0x8924, nic, struct.pack("H", 1) + bytes.fromhex(mac.replace(":", "")))

    def mtu(self, nic: str) -> int:
        return int(struct.unpack("i", self._ask(0x8921, nic)[:4])[0])

    def set_mtu(self, nic: str, mtu: int) -> None:
        self._ask(0x8922, nic, struct.pack("i", mtu))

    def set_address(self, nic: str, address: str) -> None:
        family = struct.pack("HH", socket.AF_INET, 0)
        self._ask(0x8916, nic, family + socket.inet_aton(address))
        self._ask(0x891C, nic, family + socket.inet_aton("255.255.255.0"))

    def carrier(self, nic: str) -> bool:
        link = ctypes.create_string_buffer(struct.pack("II", 0x0A, 0))
        self._ask(0x8946, nic, struct.pack("P", ctypes.addressof(link)))
        return bool(struct.unpack("II", link.raw[:8])[1])


def enter(space: str | int) -> None:
    fd = os.open(space, os.O_RDONLY) if isinstance(space, str) else space
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    if isinstance(space, str):
        os.close(fd)


# ── the two sides ────────────────────────────────────────────────────────────────────


class Side:
    """A bond, its slaves and their far ends."""

    def __init__(self, name: str | None, far: str) -> None:
        self.space, self.far = Space(name), Space(far)
        for slave in SLAVES:
            self.far.set_up(slave, True)
        self.far_sockets = {slave: self.far.packet_socket(slave) for slave in SLAVES}
        self.bond_socket: socket.socket | None = None
        self.slaves: list[str] = []
        self.lines: list[str] = []

    # what each side does in its own way

    def begin(self, mode: str, mac: str | None) -> None:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError

    def set(self, name: str, text: str, slave: str | None = None) -> str:
        raise NotImplementedError

    def enslave(self, slave: str) -> str:
        raise NotImplementedError

    def release(self, slave: str) -> str:
        raise NotImplementedError

    def proc(self) -> str:
        raise NotImplementedError

    def options(self) -> dict[str, str]:
        raise NotImplementedError

    def news(self) -> list[str]:
        raise NotImplementedError

    # what is the same for both

    def start(self, scenario: Scenario) -> None:
        for slave in SLAVES:
            self.far.set_up(slave, True)
            self.space.set_up(slave, False)
            self.space.set_mac(slave, MAC_OF[slave])
            self.space.set_mtu(slave, 1500)
        self.begin(scenario.mode, scenario.mac)
        self.space.set_address(BOND, ADDRESS)
        self.bond_socket = self.space.packet_socket(BOND)
        self.news()
        self._drain()

    def stop(self) -> None:
        if self.bond_socket is not None:
            self.bond_socket.close()
            self.bond_socket = None
        self.end()

    def do(self, step: Step) -> str:
        """Perform a step; `ok` or the errno's name."""
        match step:
            case ["set", name, text]:
                return self.set(name, text)
            case ["slave_set", slave, name, text]:
                return self.set(name, text, slave)
            case ["enslave", slave]:
                if slave not in self.slaves:
                    self.space.set_up(slave, False)
                return self.enslave(slave)
            case ["release", slave]:
                return self.release(slave)
            case ["carrier", slave, on]:
                return named(lambda: self.far.set_up(slave, bool(on)))
            case ["mac", mac]:
                return named(lambda: self.space.set_mac(BOND, mac))
            case ["mtu", mtu]:
                return named(lambda: self.space.set_mtu(BOND, mtu))
            case ["up" | "down"]:
                return named(lambda: self.space.set_up(BOND, step[0] == "up"))
        raise ValueError(step)

    def look(self, seen: Seen) -> None:
        """Read the bond's state."""
        space = self.space
        seen.proc = self.proc()
        self.slaves = re.findall(r"^Slave Interface: (\S+)$", seen.proc, re.MULTILINE)
        seen.mac, seen.mtu, seen.up = space.mac(BOND), space.mtu(BOND), bool(space.flags(BOND) & 1)
        seen.carrier = space.carrier(BOND) if seen.up else None
        seen.slave_macs = {slave: space.mac(slave) for slave in SLAVES}

    def send(self, frames: list[bytes]) -> None:
        assert self.bond_socket is not None
        source = bytes.fromhex(self.space.mac(BOND).replace(":", ""))
        for frame in frames:
            with contextlib.suppress(OSError):      # down, or without carrier: nothing arrives, in both
                self.bond_socket.send(frame[:6] + source + frame[12:])

    def inject(self) -> None:
        """From each far end a frame of each kind."""
        own = bytes.fromhex(self.space.mac(BOND).replace(":", ""))
        kinds = {"own": own, "broadcast": BROADCAST, "group": bytes.fromhex("01005e010203"),
                 "other": bytes.fromhex("025c77000001")}  # fmt: skip
        for slave, sock in self.far_sockets.items():
            for kind, to in kinds.items():
                frame = to + FAR_MAC + struct.pack("!H", ETH_P_MARK) + f"into {slave} {kind}".encode().ljust(46, b"\0")
                with contextlib.suppress(OSError):
                    sock.send(frame)

    def collect(self, seen: Seen) -> None:
        """Sort what has arrived at the far ends and the bond."""
        for slave, sock in self.far_sockets.items():
            for ms, frame in received(sock):
                note(seen, slave, ms, frame)
        assert self.bond_socket is not None
        for _, frame in received(self.bond_socket):
            if frame[12:14] == struct.pack("!H", ETH_P_MARK) and frame[14:19] == b"into ":
                seen.into.append(frame[19:].rstrip(b"\0").decode().split())

    def _drain(self) -> None:
        self.collect(Seen())


def named(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def received(sock: socket.socket) -> Iterator[tuple[float, bytes]]:
    """(ms, frame) that wait at a socket."""
    while True:
        try:
            frame, extra, _, _ = sock.recvmsg(4096, 256)
        except OSError as error:
            if error.errno != errno.ENETDOWN:
                return
            continue    # told once, and before what had arrived until then
        stamp = next((struct.unpack("qq", data[:16]) for _, kind, data in extra if kind == SO_TIMESTAMPNS), (0, 0))
        yield stamp[0] * 1e3 + stamp[1] / 1e6, frame


def note(seen: Seen, slave: str, ms: float, frame: bytes) -> None:
    """Take down a frame that a slave has sent."""
    mark = frame.find(b"conf#")
    kind = int.from_bytes(frame[12:14])
    if mark >= 0:
        seen.out.append([int(frame[mark + 5 : mark + 8]), slave])
    elif kind == 0x8035 or (kind == 0x0806 and frame[28:32] == frame[38:42]):
        seen.announced.append([round(ms, 1), slave, frame[:42].hex()])
    elif kind == 0x0806 and [slave, frame[:42].hex()] not in seen.probes:
        seen.probes.append([slave, frame[:42].hex()])


class Driver(Side):
    """The kernel's bond, in the guest's first namespace."""

    def __init__(self) -> None:
        super().__init__(None, "far-driver")
        self._log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        os.lseek(self._log, 0, os.SEEK_END)

    def begin(self, mode: str, mac: str | None) -> None:
        Path("/sys/class/net/bonding_masters").write_text(f"+{BOND}")
        (BONDING / "mode").write_text(mode)
        (BONDING / "miimon").write_text("100")
        if mac:
            self.space.set_mac(BOND, mac)
        self.space.set_up(BOND, True)

    def end(self) -> None:
        Path("/sys/class/net/bonding_masters").write_text(f"-{BOND}")

    def set(self, name: str, text: str, slave: str | None = None) -> str:
        if slave is not None and name == "prio":
            words = ("ip", "link", "set", slave, "type", "bond_slave", "prio", text)
            done = subprocess.run(["nsenter", "--net=/proc/1/ns/net", *words], capture_output=True, text=True)
            found = re.search(r"RTNETLINK answers: (.*)", done.stderr)
            if not done.returncode:
                return "ok"
            said = found[1] if found else done.stderr.strip()
            return next((errno.errorcode[number] for number in errno.errorcode if os.strerror(number) == said), said)
        return named(lambda: write(BONDING / name, f"{slave}:{text}" if slave else text))

    def enslave(self, slave: str) -> str:
        return named(lambda: write(BONDING / "slaves", f"+{slave}"))

    def release(self, slave: str) -> str:
        return named(lambda: write(BONDING / "slaves", f"-{slave}"))

    def proc(self) -> str:
        return Path(f"/proc/1/net/bonding/{BOND}").read_text()

    def options(self) -> dict[str, str]:
        return {path.name: path.read_text().strip() for path in BONDING.iterdir()}

    def number(self, option: str) -> int:
        return int((BONDING / option).read_text())

    def news(self) -> list[str]:
        found: list[str] = []
        while True:
            try:
                record = os.read(self._log, 8192).decode(errors="replace")
            except BlockingIOError:
                return found
            except BrokenPipeError:     # older ones were overwritten
                continue
            head, _, text = record.partition(";")
            line = text.partition("\n")[0]
            if line.startswith(f"{BOND}: ") and int(head.split(",")[0]) & 7 <= 6:
                found.append(line)


def write(path: Path, text: str) -> None:
    """In one call, as a shell's echo does."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode() + b"\n")
    finally:
        os.close(fd)


class Ubond(Side):
    """Ours, in the namespace where this process is."""

    def __init__(self) -> None:
        super().__init__("ours", "far-ours")
        self._monitor: Client | None = None

    def begin(self, mode: str, mac: str | None) -> None:
        spec = BondSpec(BOND, options={"mode": mode, "miimon": "100"}, mac=MacAddr.parse(mac) if mac else None,
                        strict=True)  # fmt: skip
        daemon.start(spec, keeper=False)
        self._monitor = Client(str(paths.socket_path(BOND)))
        self._monitor.request("monitor")
        self.lines.clear()

    def end(self) -> None:
        if self._monitor is not None:
            self._ask("down")
            self._monitor.close()
            self._monitor = None
            end = time.monotonic() + 10
            while paths.running(BOND) and time.monotonic() < end:
                time.sleep(0.01)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG) != (0, 0):
                    pass

    def _ask(self, request: str, **fields: Any) -> dict[str, Any]:
        # A connection each: one that asks nothing for 5 s is closed, and a step may take longer.
        with Client(str(paths.socket_path(BOND))) as client:
            return client.request(request, **fields)

    def _try(self, request: str, **fields: Any) -> str:
        try:
            self._ask(request, **fields)
        except ControlError as error:
            self.lines += [f"{BOND}: {line}" for line in error.lines]
            return error.errno
        return "ok"

    def set(self, name: str, text: str, slave: str | None = None) -> str:
        return self._try("set", options=[{"slave": slave, "option": name, "value": text}])

    def enslave(self, slave: str) -> str:
        return self._try("add", slaves=[slave], take_addresses=False)

    def release(self, slave: str) -> str:
        return self._try("remove", slaves=[slave])

    def proc(self) -> str:
        return str(self._ask("status", format="proc")["text"])

    def options(self) -> dict[str, str]:
        options = self._ask("status", format="json")["links"][0]["ubond"]["options"]
        return {name: text.strip() for name, text in options.items()}

    def news(self) -> list[str]:
        while select.select([self._monitor], [], [], 0)[0] and self._monitor.fill():
            pass
        events = [message["event"] for message in self._monitor.arrived() if "event" in message]
        found = self.lines + [event["text"] for event in events if event["kind"] == "log"]
        self.lines = []
        return found


# ── one scenario ─────────────────────────────────────────────────────────────────────


def frames() -> list[bytes]:
    """Numbered frames of several flows: of no protocol, IPv4 UDP and TCP, with and without a tag."""
    found = []
    for number in range(12):
        to = BROADCAST if number == 0 else bytes.fromhex(f"025cee0000{number * 37 % 256:02x}")
        mark = b"conf#%03d" % number
        if number < 4:
            kind, body = struct.pack("!H", ETH_P_MARK), mark
        else:
            protocol = 17 if number % 2 else 6
            ports = struct.pack("!HH", 1000 + 7 * number, 2000 + 13 * number) + bytes(16)
            body = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(ports) + len(mark), 0, 0, 64, protocol, 0,
                               socket.inet_aton(ADDRESS), socket.inet_aton(f"198.51.100.{number * 11}"))  # fmt: skip
            kind, body = b"\x08\x00", body + ports + mark
            if number > 9:
                kind = struct.pack("!HH", 0x8100, number) + kind
        found.append(to + bytes(6) + kind + body.ljust(46, b"\0"))
    return found


FRAMES = frames()


class Outcome:
    """What became of a scenario."""

    def __init__(self) -> None:
        self.steps = self.changed = 0
        self.at: int | None = None
        self.step: Step | None = None
        self.differences: list[Difference] = []
        self.known: list[str] = []


def play(scenario: Scenario, driver: Driver, ubond: Ubond) -> Outcome:
    """Lead both through it until its end or a difference that is not documented."""
    outcome = Outcome()
    sides: tuple[Side, Side] = (driver, ubond)
    try:
        for side in sides:
            side.start(scenario)
        before: dict[str, Any] | None = None
        owned = scenario.mac is not None
        for number, step in enumerate(scenario.steps):
            one, other = Seen(), Seen()
            one.result, other.result = driver.do(step), ubond.do(step)
            owned = owned or (step[0] == "mac" and one.result == "ok")
            settle(step, driver, one, before)
            # Who was the last to leave takes the bond's address along.
            owned = owned and (step[0] != "release" or one.result != "ok" or bool(driver.slaves))
            had_carrier = before is None or bool(before["carrier"])
            found = watch(scenario, driver, ubond, one, other, owned=owned, had_carrier=had_carrier)
            state = one.state()
            outcome.steps += 1
            outcome.changed += before is None or compare.changed(before, state)
            before = state
            names = [compare.known(scenario, step, each) for each in found]
            outcome.known += [name for name in names if name]
            if not all(names):
                outcome.at, outcome.step = number, step
                outcome.differences = [each for each, name in zip(found, names, strict=True) if not name]
                return outcome
    finally:
        for side in sides:
            side.stop()
    return outcome


def settle(step: Step, driver: Driver, seen: Seen, before: dict[str, Any] | None) -> None:
    """Wait as long as the driver may take to be done with a step."""
    interval = driver.number("miimon") or driver.number("arp_interval") or 50
    driver.look(seen)
    if (step[0] == "set" and seen.result != "ok") or not driver.slaves:
        took = 0.01
    elif step[0] in ("carrier", "enslave", "release", "up"):
        delay = max(driver.number("updelay"), driver.number("downdelay"))
        took = (delay + 2.5 * interval) / 1000
        if driver.number("arp_interval"):
            took += 4 * interval / 1000
    else:
        took = 1.5 * interval / 1000
    time.sleep(took)
    was = compare.active(before["proc"]) if before else ""
    if compare.active(driver.proc()) != was:
        each = max(interval, driver.number("peer_notif_delay"))
        time.sleep(driver.number("num_grat_arp") * each / 1000)


def watch(scenario: Scenario, driver: Driver, ubond: Ubond, one: Seen, other: Seen, *, owned: bool,
          had_carrier: bool) -> list[Difference]:  # fmt: skip
    """Look at both until they are alike or their time is over; then exchange frames, and take down what happened."""
    end = time.monotonic() + PATIENCE
    while True:
        driver.look(one)
        ubond.look(other)
        one.options, other.options = driver.options(), ubond.options()
        found = compare.state_differences(one, other, mac_is_ours=owned or bool(driver.slaves))
        if not found or time.monotonic() > end:
            break
        time.sleep(0.02)
    probing = driver.number("arp_interval")
    tolerance = max(TOLERANCE_MS, 1.1 * probing)
    for left in range(3, -1, -1):
        one.out, other.out, one.into, other.into = [], [], [], []
        # What a backup receives is evidence for the ARP monitor: there nothing comes from outside but answers.
        exchange(driver, ubond, one, other, expect=bool(driver.slaves), into=not probing)
        moved = compare.frame_differences(scenario.mode, one, other)
        if not left or all(compare.known(scenario, [], each) for each in moved):
            break
        time.sleep(0.3)     # a device that has its carrier back takes frames up to a second later
    if probing:
        # Who was probed on the way to here hangs on the moment, who is probed from now on does not.
        one.probes, other.probes = [], []
        time.sleep(3 * probing / 1000)
        driver.collect(one)
        ubond.collect(other)
    one.lines, other.lines = one.lines + driver.news(), other.lines + ubond.news()
    happened = compare.event_differences(one, other, tolerance_ms=tolerance, had_carrier=had_carrier)
    end = time.monotonic() + PATIENCE
    late = {"lines", "announced", "probes"}
    while late & {each.what for each in happened} and time.monotonic() < end:
        time.sleep(0.05)
        for side, seen in ((driver, one), (ubond, other)):
            side.collect(seen)
            seen.lines += side.news()
        happened = compare.event_differences(one, other, tolerance_ms=tolerance, had_carrier=had_carrier)
    return found + moved + happened


def exchange(driver: Driver, ubond: Ubond, one: Seen, other: Seen, *, expect: bool, into: bool) -> None:
    pairs: tuple[tuple[Side, Seen], ...] = ((driver, one), (ubond, other))
    if not expect:
        for side, seen in pairs:
            side.collect(seen)
        return
    for side, _ in pairs:
        side.send(FRAMES)
        if into:
            side.inject()
    end = time.monotonic() + 0.4
    while True:
        for side, seen in pairs:
            side.collect(seen)
        if len(one.out) == len(other.out) and len(one.into) == len(other.into):
            return
        if time.monotonic() > end:
            return
        time.sleep(0.005)


# ── all of them ──────────────────────────────────────────────────────────────────────


def prepare() -> tuple[Driver, Ubond]:
    run("modprobe", "bonding", "max_bonds=0")
    for name in ("ours", "far-driver", "far-ours"):
        run("ip", "netns", "add", name)
    for space, far in ((None, "far-driver"), ("ours", "far-ours")):
        where = ("-n", space) if space else ()
        for index, slave in enumerate(SLAVES, 100):
            # Another index at the far end: with equal ones the kernel tells of a link late.
            link = ("link", "add", slave, "index", str(index), "type", "veth")
            run("ip", *where, *link, "peer", "name", slave, "netns", far)
        run("ip", "-n", far, "link", "set", "lo", "up")
        run("ip", "-n", far, "addr", "add", f"{TARGET}/32", "dev", "lo")
        for inside in (("ip", "netns", "exec", space) if space else (), ("ip", "netns", "exec", far)):
            for key in ("default", "all"):
                run(*inside, "sysctl", "-qw", f"net.ipv6.conf.{key}.disable_ipv6=1")
    sides = Driver(), Ubond()
    for slave in SLAVES:
        run("ip", "-n", "far-driver", "route", "append", "192.0.2.0/24", "dev", slave)
        run("ip", "-n", "far-ours", "route", "append", "192.0.2.0/24", "dev", slave)
    enter(sides[1].space.path)
    # All that a daemon needs is loaded before the first is forked.
    import uvloop  # noqa: F401

    from ubond import assembly, recovery  # noqa: F401

    return sides


def told(scenario: Scenario, outcome: Outcome, began: float) -> dict[str, Any]:
    return {
        "scenario": scenario.to_json(), "steps": outcome.steps, "changed": outcome.changed, "known": outcome.known,
        "at": outcome.at, "step": outcome.step, "seconds": round(time.monotonic() - began, 2),
        "differences": [[each.what, each.driver, each.ubond] for each in outcome.differences],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the bonding driver and ubond, step by step.")
    parser.add_argument("scenarios", type=argparse.FileType())
    parser.add_argument("--seconds", type=float, default=500.0, help="begin no scenario after this time")
    parser.add_argument("--shrink", type=int, default=20, help="runs to make what differs smaller")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    scenarios = [Scenario.from_json(json.loads(line)) for line in options.scenarios if line.strip()]
    driver, ubond = prepare()
    for scenario in scenarios:
        if time.monotonic() > end:
            break
        began = time.monotonic()
        outcome = play(scenario, driver, ubond)
        line = told(scenario, outcome, began)
        if outcome.differences and options.shrink:
            what = outcome.differences[0].what

            def differs(fewer: Scenario, what: str = what) -> bool:
                if time.monotonic() > end:
                    return False
                return what in [each.what for each in play(fewer, driver, ubond).differences]

            cut = Scenario(scenario.number, scenario.mode, scenario.mac, scenario.steps[: (outcome.at or 0) + 1])
            small = shrink(cut, differs, options.shrink)
            line["smallest"] = small.to_json()
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
