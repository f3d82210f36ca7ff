"""A world for one test module: a host with NICs, a switch, a peer, and the `ubond` command in the host.

    host                    switch                    peer
    eth1 ───────────────── sw1 ┐
    eth2 ───────────────── sw2 ┴─ br0 ── swp ──────── eth0  10.9.0.2/24  fd00:9::2/64

Everything is a namespace or a veth pair of this world alone, and `close` removes it whatever
happened.  `Crossed` is the same host cabled straight to a peer with as many NICs.

What the host is, its `Kind` says: a namespace (the default), a podman container, or a namespace of
a virtual machine whose NICs are emulated ones with their own drivers.  `pytest --world=KIND`
chooses, and no test asks which it is: it says what it needs (`needs`, in the conftest beside this).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from tests.netns.needs import lacking
from ubond import paths
from ubond.client import Client
from ubond.wire import MacAddr

ROOT = Path(__file__).resolve().parents[2]
HOST4, PEER4, HOST6, PEER6 = "10.9.0.1", "10.9.0.2", "fd00:9::1", "fd00:9::2"
ADDRESSES = ("--address", f"{HOST4}/24", "--address", f"{HOST6}/64")

_CLONE_NEWNET = 0x40000000
_ANSWER = re.compile(r"bytes from \S+ icmp_seq=(\d+) ")
_libc = ctypes.CDLL(None, use_errno=True)


class WorldError(AssertionError):
    """Something in a world is not, or does not become, what a test needs."""


class LoadError(WorldError):
    """The load was not what it should be: what a test saw under it does not count, and it is run again."""


def wait_until(true: Callable[[], Any], seconds: float = 8.0, what: str = "") -> Any:
    """Return what `true()` returns once it is true; WorldError if not within so many `seconds`, or as that is there."""
    seconds *= kind().patience
    asked = time.monotonic()
    end = asked + seconds
    while not (found := true()):
        now = time.monotonic()
        if now > end:
            raise WorldError(f"not within {seconds:g} s: {what or true}")
        # Where asking takes long (processes in an emulated machine), what is waited for gets half of the time.
        time.sleep(max(0.01, now - asked))
        asked = time.monotonic()
    return found


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let this thread work in a namespace: what it opens there stays there."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def unanswered(said: str, count: int) -> int:
    """How many of its first `count` requests `ping -w` has no answer to; it goes on asking until so many came."""
    return count - len({int(number) for number in _ANSWER.findall(said)} & {*range(1, count + 1)})


@dataclass(frozen=True, slots=True)
class Space:
    """One network namespace; `enter` is the command, without its arguments, that runs another in it."""

    name: str
    enter: tuple[str, ...] = ()

    @property
    def outside(self) -> Space:
        """The same namespace for what needs more rights than its own programs have: entered from the machine."""
        return Space(self.name)

    def _command(self, *command: str) -> list[str]:
        return [*(self.enter or ("ip", "netns", "exec", self.name)), *command]

    def run(
        self, *command: str, check: bool = True, timeout: float = 60, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end, output captured."""
        done = subprocess.run(
            self._command(*command), cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=timeout * kind().patience, env=env,
        )  # fmt: skip
        if check and done.returncode:
            raise WorldError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
        return done

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in it, its output in pipes."""
        return subprocess.Popen(
            self._command(*command), cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait_udp(self, port: int = 5001) -> None:
        """Return when a program here has bound this UDP port: what comes before is refused, not lost."""
        listening = f":{port:04X} "
        tables = ("/proc/net/udp", "/proc/net/udp6")
        wait_until(lambda: listening in self.run("cat", *tables).stdout, what=f"UDP port {port}")

    def ip(self, *words: str, check: bool = True) -> str:
        """Run `ip` on it; return what it printed."""
        # An alias may be any bytes.
        done = subprocess.run(["ip", "-n", self.name, *words], capture_output=True, text=True, errors="surrogateescape",
                              timeout=60 * kind().patience)  # fmt: skip
        if check and done.returncode:
            raise WorldError(f"ip {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def link(self, interface: str) -> dict[str, Any]:
        """What `ip -d -j link` says about an interface; WorldError if there is none."""
        found: list[dict[str, Any]] = json.loads(self.ip("-d", "-s", "-j", "link", "show", "dev", interface))
        return found[0]

    def links(self) -> list[str]:
        """Names of all interfaces."""
        return [each["ifname"] for each in json.loads(self.ip("-j", "link", "show"))]

    def mac(self, interface: str) -> str:
        return str(self.link(interface)["address"])

    def carrier(self, interface: str) -> bool:
        flags = self.link(interface)["flags"]
        return "UP" in flags and "LOWER_UP" in flags and "NO-CARRIER" not in flags

    def counters(self, interface: str) -> dict[str, dict[str, int]]:
        """`rx` and `tx`, each with `packets`, `bytes`, `dropped`."""
        counters: dict[str, dict[str, int]] = self.link(interface)["stats64"]
        return counters

    def neighbour(self, address: str) -> str | None:
        """The MAC that this namespace has for an address."""
        found = json.loads(self.ip("-j", "neigh", "show", address) or "[]")
        return next((each["lladdr"] for each in found if "lladdr" in each), None)

    def socket(self, *kind: int) -> socket.socket:
        with inside(self.name):
            return socket.socket(*kind)

    def ping(self, address: str, *words: str, count: int = 1, check: bool = True, wait: str = "2") -> str:
        """Ping, `words` being further options; with `check` all must be answered, and each once."""
        # Once one is answered, `-W` waits two round trips or an interval for the rest: the answer that a busy
        # machine delays for 10 ms would count as lost.
        deadline = f"{math.ceil(float(wait) * kind().patience + count * 0.05)}"
        until = ("-W", wait) if count == 1 else ("-w", deadline)
        done = self.run("ping", "-n", "-i", "0.01", "-c", str(count), *until, *words, address, check=False)
        if check and (unanswered(done.stdout, count) or "DUP!" in done.stdout):
            raise WorldError(f"ping {address}: {done.stdout}{done.stderr}")
        return done.stdout

    def reaches(self, address: str) -> bool:
        wait = 0.3 * kind().patience
        return " 1 received" in self.ping(address, check=False, wait=f"{wait:g}")

    def send(self, interface: str, frame: bytes) -> None:
        """Send one frame as it is."""
        with self.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((interface, 0))
            sock.send(frame)


# ── what passes on a wire ────────────────────────────────────────────────────────────

_SOL_PACKET, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING = 263, 8, 23
_PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST, _PACKET_MR_PROMISC = 1, 0, 1
_ETH_P_ALL, _SO_TIMESTAMPNS, _SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 3, 35, 33, 26
_TPACKET_AUXDATA = struct.Struct("IIIHHHH")
_VLAN_VALID, _TPID_VALID = 0x10, 0x40


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame with its VLAN tags in it, and when it came (s)."""

    at: float
    frame: bytes

    @property
    def src(self) -> str:
        return self.frame[6:12].hex(":")

    @property
    def kind(self) -> int:
        return int.from_bytes(self.frame[12:14])


class Sniffer:
    """All that an interface receives; with `outgoing` also what it sends.

    `only`: (offset, number): nothing but frames that have this 32-bit number there, so that others take no room.
    """

    def __init__(
        self, space: Space, interface: str, *, outgoing: bool = False, only: tuple[int, int] | None = None
    ) -> None:
        self._sock = space.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sock.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        self._sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, not outgoing)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        if only is not None:
            offset, wanted = only  # ld [offset]; jeq wanted; ret all, or nothing (linux/filter.h)
            steps = ((0x20, 0, 0, offset), (0x15, 0, 1, wanted), (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0))
            program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
            filter_ = struct.pack("@HP", len(steps), ctypes.addressof(program))
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)
        self._sock.bind((interface, _ETH_P_ALL))
        self._sock.setblocking(False)

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *why: object) -> None:
        self._sock.close()

    def take(self) -> list[Seen]:
        """What has come since the last call."""
        found = []
        while True:
            try:
                data, extra, _, _ = self._sock.recvmsg(1 << 17, 256)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # said once when the interface goes down
                    raise
                continue
            found.append(_seen(data, extra))

    def collect(self, wanted: Callable[[Seen], Any], count: int = 1, seconds: float = 8.0) -> list[Seen]:
        """Wait for so many wanted frames and return all wanted ones so far."""
        found: list[Seen] = []
        others: Counter[str] = Counter()

        def enough() -> bool:
            for seen in self.take():
                if wanted(seen):
                    found.append(seen)
                else:
                    others[f"{seen.kind:04x} from {seen.src}"] += 1
            return len(found) >= count

        try:
            wait_until(enough, seconds, f"{count} wanted frames")
        except WorldError as error:
            raise WorldError(f"{error}: {len(found)} came, and {dict(others)}") from None
        return found

    def during(self, seconds: float, wanted: Callable[[Seen], Any]) -> list[Seen]:
        """The wanted frames of a time that is waited out: for proving that something does not come."""
        end, found = time.monotonic() + seconds, []
        while time.monotonic() < end:
            found += [seen for seen in self.take() if wanted(seen)]
            time.sleep(0.02)
        return found


def _seen(data: bytes, extra: Iterable[tuple[int, int, bytes]]) -> Seen:
    at = 0.0
    for level, kind, body in extra:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, ns = struct.unpack("qq", body[:16])
            at = seconds + ns / 1e9
        elif level == _SOL_PACKET and kind == _PACKET_AUXDATA:
            status, _, _, _, _, tci, tpid = _TPACKET_AUXDATA.unpack_from(body)
            if status & _VLAN_VALID:
                tpid = tpid if status & _TPID_VALID else 0x8100
                data = data[:12] + struct.pack("!HH", tpid, tci) + data[12:]
    return Seen(at, data)


def let_in(sock: socket.socket, space: Space, interface: str, group: bytes = b"") -> None:
    """Have an interface let in what comes for a group, or else all that comes, until this packet socket is closed.

    veth lets in everything; a NIC filters.
    """
    index, kind = space.link(interface)["ifindex"], _PACKET_MR_MULTICAST if group else _PACKET_MR_PROMISC
    request = struct.pack("iHH8s", index, kind, len(group), group)
    sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)


# ── kinds of worlds ──────────────────────────────────────────────────────────────────

#: What `--world` takes, and where that kind is.
KINDS = {
    "netns": "tests.netns.world:Kind",
    "container": "tests.containers.container:InContainers",
    "virtio": "tests.guest.emulated:Emulated",
    "e1000": "tests.guest.emulated:Emulated",
}


class Kind:
    """What the host of a world is, and how NICs come to be in it.  This one: a namespace, and veth pairs."""

    #: How many times longer anything may take, and the share of a test's rate of frames that can be had.
    patience, pace = 1.0, 1.0

    def host(self, name: str) -> Space:
        """The host's namespace, not made yet."""
        return Space(name)

    def make_host(self, world: World) -> None:
        make_space(world.host)

    def cable(self, world: World, nic: str, index: int, other: Space, far: str) -> None:
        """Give the host a NIC whose cable ends as `far` in another namespace; both ends are down."""
        veth(world.host, nic, index, other, far, world.mtu)

    def remove(self, world: World, nic: str) -> None:
        """Take a NIC out of the host, as if it was pulled out of its slot."""
        world.host.ip("link", "del", nic)

    def pull(self, world: World, nic: str) -> None:
        space, port = world.far_end(nic)
        space.ip("link", "set", port, "down")

    def plug(self, world: World, nic: str) -> None:
        space, port = world.far_end(nic)
        space.ip("link", "set", port, "up")

    def settle(self, world: World, bond: Bond | None = None) -> None:
        """Return when the slaves of a bond that has just come up, or all NICs, have the links that cables give."""

    def vanished(self, world: World, bond: Bond) -> int:
        """Frames that the bond has handed to its slaves and that have come out nowhere: veth holds none."""
        return 0

    def held(self, rate: int) -> int:
        """How many frames a NIC may hold whose cable is pulled, or that is taken out, under such a load."""
        return 0

    def pid(self, world: World, pid: int) -> int:
        """The number that a process of the host has for us."""
        return pid

    def close(self, world: World) -> None:
        """Give back what `make_host` and `cable` took beyond the namespaces."""


@cache
def kind() -> Kind:
    """The kind of this run's worlds."""
    module, _, name = KINDS[os.environ.get("UBOND_WORLD", "netns")].partition(":")
    found: Kind = getattr(import_module(module), name)()
    return found


def make_space(space: Space) -> None:
    subprocess.run(["ip", "netns", "add", space.name], check=True, capture_output=True)
    # IPv6 addresses work at once: nobody has to wait for duplicate address detection.
    space.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
    space.ip("link", "set", "lo", "up")


def veth(one: Space, nic: str, index: int, other: Space, far: str, mtu: int) -> None:
    """A veth pair between two namespaces, both ends down."""
    subprocess.run(
        ["ip", "link", "add", nic, "index", str(index), "mtu", str(mtu), "netns", one.name, "type", "veth",
         "peer", "name", far, "mtu", str(mtu), "netns", other.name],
        check=True, capture_output=True,
    )  # fmt: skip


# ── the world ────────────────────────────────────────────────────────────────────────


class World:
    """Host, switch and peer.  NICs of the host are eth1, eth2, ...; each has its own MAC."""

    def __init__(self, nics: int = 2, *, mtu: int = 1500, of: Kind | None = None) -> None:
        """`of`: another kind than this run's."""
        self.kind = of or kind()
        self.key = f"{os.getpid()}{secrets.token_hex(3)}"
        self.nics = tuple(f"eth{number}" for number in range(1, nics + 1))
        self.mtu = mtu
        self.host = self.kind.host(f"ubt{self.key}-h")
        self.switch, self.peer = (Space(f"ubt{self.key}-{place}") for place in "sp")
        self._others: list[Space] = []

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def _build(self) -> None:
        self._make_spaces()
        self.switch.ip(
            "link", "add", "br0", "type", "bridge", "forward_delay", "0", "stp_state", "0", "mcast_snooping", "0"
        )
        self.switch.ip("link", "set", "br0", "mtu", str(self.mtu), "addrgenmode", "none", "up")
        for number, nic in enumerate(self.nics, 1):
            # Another index at the far end: with equal ones the kernel reports a lost carrier late.
            self.cable(self.host, nic, 100 + number, self.switch, f"sw{number}")
        self.cable(self.peer, "eth0", 300, self.switch, "swp")
        for port in self.switch.links():
            if port.startswith("sw"):
                self.switch.ip("link", "set", port, "master", "br0", "addrgenmode", "none", "up")
        for nic in self.nics:
            self.host.ip("link", "set", nic, "up")
        self._address_peer("eth0")
        for nic in self.nics:
            self.wait_forwarding(nic)
        wait_until(lambda: _forwards(self.switch, "swp"), what="the peer's port forwards")

    def _make_spaces(self) -> None:
        self.kind.make_host(self)
        make_space(self.switch)
        make_space(self.peer)

    def add_space(self, name: str) -> Space:
        """One more namespace of this world."""
        space = Space(f"ubt{self.key}-{name}")
        make_space(space)
        self._others.append(space)
        return space

    def cable(self, one: Space, nic: str, index: int, other: Space, far: str) -> None:
        """A cable between two namespaces, both ends down; a NIC of the host is what this kind of world has."""
        if one is self.host and nic in self.nics:
            self.kind.cable(self, nic, index, other, far)
        else:
            veth(one, nic, index, other, far, self.mtu)

    def remove(self, nic: str) -> None:
        """Take a NIC out of the host with its cable; `cable` brings another of that name."""
        self.kind.remove(self, nic)

    def can(self, need: str) -> bool:
        """Whether this kind of world has what a test may need (`needs`)."""
        return not lacking([need])

    def vanished(self, bond: Bond) -> int:
        """How many frames NICs have kept so far.

        What a NIC holds when its cable is pulled is gone, and its driver says nothing until it knows.  Whoever
        wants nothing lost takes the difference of two calls off; on veth that is 0.
        """
        return self.kind.vanished(self, bond)

    def rate(self, frames: int) -> int:
        """The rate of frames a second that a load has here where it has `frames` on veth."""
        return round(frames * self.kind.pace)

    def seconds(self, time: float) -> float:
        """How long that may take here which takes so long in a namespace."""
        return time * self.kind.patience

    def _address_peer(self, interface: str) -> None:
        self.peer.ip("link", "set", interface, "up")
        self.peer.ip("addr", "add", f"{PEER4}/24", "dev", interface)
        self.peer.ip("addr", "add", f"{PEER6}/64", "dev", interface, "nodad")

    def close(self) -> None:
        """End what runs in the world and remove it."""
        self.kind.close(self)
        for space in (self.host, self.switch, self.peer, *self._others):
            found = subprocess.run(["ip", "netns", "pids", space.name], capture_output=True, text=True)
            for pid in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if found.returncode == 0:
                self._remove_runtime(space)
                subprocess.run(["ip", "netns", "del", space.name], capture_output=True)

    def _remove_runtime(self, space: Space) -> None:
        """What a killed daemon has left in its runtime directory, which is this namespace's alone."""
        with inside(space.name):
            directory = paths.runtime_dir()
        for path in sorted(directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()

    # ── cables ───────────────────────────────────────────────────────────────────────

    def far_end(self, nic: str) -> tuple[Space, str]:
        """Where the cable of a NIC ends."""
        return self.switch, f"sw{nic[3:]}"

    def pull(self, nic: str) -> None:
        """Pull the cable; in a namespace its far end goes down."""
        self.kind.pull(self, nic)

    def plug(self, nic: str) -> None:
        """Plug it in; return when the NIC has carrier and the far end forwards."""
        self.kind.plug(self, nic)
        self.wait_forwarding(nic)

    def block(self, nic: str) -> None:
        """Let the path behind a NIC die while its carrier stays: its port leaves the bridge.

        A port that is disabled by its state alone is enabled again at the next event of its link.
        """
        space, port = self.far_end(nic)
        space.ip("link", "set", port, "nomaster")

    def unblock(self, nic: str) -> None:
        """Let it pass frames again."""
        space, port = self.far_end(nic)
        space.ip("link", "set", port, "master", "br0")
        self.wait_forwarding(nic)

    def wait_forwarding(self, nic: str) -> None:
        wait_until(lambda: self.host.carrier(nic), what=f"carrier of {nic}")
        self.wait_far_end(nic)

    def wait_far_end(self, nic: str) -> None:
        space, port = self.far_end(nic)
        wait_until(lambda: _forwards(space, port), what=f"the port of {nic} forwards")

    # ── ubond ────────────────────────────────────────────────────────────────────────

    def ubond(
        self, *words: str, check: bool = True, space: Space | None = None, timeout: float = 40
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in the host (or elsewhere); with `check` it must exit with 0."""
        done = (space or self.host).run(sys.executable, "-m", "ubond", *words, check=check, timeout=timeout)
        if done.returncode == 0 and space in (None, self.host):
            if words[:1] == ("up",):
                self.kind.settle(self, Bond(self, words[1]))
            elif words[:1] == ("down",):
                self.kind.settle(self)
        return done

    def start_ubond(self, *words: str) -> subprocess.Popen[str]:
        return self.host.start(sys.executable, "-m", "ubond", *words)

    def unexpected(self, said: str) -> str:
        """What a command said on standard error, without what it has to say of this kind of NICs."""
        known = () if self.can("a link at once") else ("its driver has reset the link",)
        return "".join(line for line in said.splitlines(keepends=True) if not any(text in line for text in known))

    @contextlib.contextmanager
    def bond(self, *words: str, name: str = "bond0", addresses: bool = True) -> Iterator[Bond]:
        """A bond of all NICs (unless `words` begin with some) while the block runs; then it is taken down.

        Cables that were pulled meanwhile are plugged in again.
        """
        slaves = () if words[:1] and words[0] in self.nics else self.nics
        if "--workers" not in words and (workers := os.environ.get("UBOND_TEST_WORKERS")):
            words += ("--workers", workers)
        self.ubond("up", name, *slaves, *words, *(ADDRESSES if addresses else ()))
        try:
            bond = Bond(self, name)
            if not self.can("a link at once"):
                bond.no_slave_before = bond.ours["counters"]["no_slave"]
            yield bond
        finally:
            self.ubond("down", name, check=False)
            for nic in self.nics:
                if nic in self.host.links():
                    self.plug(nic)
            self.peer.ip("neigh", "flush", "all")

    # ── what must be as it was ───────────────────────────────────────────────────────

    def picture(self, space: Space | None = None) -> dict[str, Any]:
        """All of a host that a bond may change and has to give back."""
        # Looked at from outside, and with few processes: where each takes long, there are many pictures.
        space = (space or self.host).outside
        links = {link["ifname"]: link for link in json.loads(space.ip("-d", "-j", "link", "show"))}
        whole: dict[str, Any] = {"links": [*links], "rules": _nft(space), **_nic_pictures(space, links)}
        whole["routes"] = sorted(
            _line(route) for family in "46"
            for route in json.loads(space.ip(f"-{family}", "-j", "route", "show", "table", "all") or "[]")
        )  # fmt: skip
        with inside(space.name):
            directory = paths.runtime_dir()
        # `os.walk` minds no directory that goes while it looks.
        whole["files"] = sorted(str(Path(place, name)) for place, _, names in os.walk(directory) for name in names)
        whole["processes"] = _ubonds(space)
        return whole


class Crossed(World):
    """The host cabled straight to the peer: eth1 to p1, eth2 to p2.  The peer's ends have no address."""

    def _build(self) -> None:
        self._make_spaces()
        for number, nic in enumerate(self.nics, 1):
            self.cable(self.host, nic, 100 + number, self.peer, f"p{number}")
            self.peer.ip("link", "set", f"p{number}", "addrgenmode", "none", "up")
            self.host.ip("link", "set", nic, "up")
        for nic in self.nics:
            self.wait_forwarding(nic)

    def far_end(self, nic: str) -> tuple[Space, str]:
        return self.peer, f"p{nic[3:]}"


def _forwards(space: Space, port: str) -> bool:
    """Whether a bridge's port forwards; what is no port of a bridge does if it is up."""
    link = space.link(port)
    if "info_slave_data" in link.get("linkinfo", {}):
        return bool(link["linkinfo"]["info_slave_data"].get("state") == "forwarding")
    return space.carrier(port)


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _nft(space: Space) -> str:
    return space.run("nft", "list", "ruleset", check=False).stdout


def _nic_pictures(space: Space, links: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What else there is to each of these links."""
    found = {each["ifname"]: each["addr_info"] for each in json.loads(space.ip("-j", "addr", "show"))}
    commands = {
        "features": "ethtool -k {}", "qdiscs": "tc qdisc show dev {}", "memberships": "ip maddr show dev {}",
        "ingress": "tc filter show dev {} ingress", "egress": "tc filter show dev {} egress",
    }  # fmt: skip
    script = [f"{command.format(name)} 2>/dev/null; printf '\\0'" for name in links for command in commands.values()]
    said = iter(space.run("sh", "-c", "\n".join(script)).stdout.split("\0"))
    pictures = {}
    for name, link in links.items():
        each = dict(zip(commands, said, strict=False))
        addresses = [{k: v for k, v in address.items() if "life_time" not in k} for address in found.get(name, [])]
        pictures[name] = {
            "link": link,
            "addresses": sorted(map(_line, addresses)),
            "filters": [each.pop("ingress"), each.pop("egress")],
            **each,
        }
    return pictures


def _ubonds(space: Space) -> list[int]:
    """Processes of ubond in a namespace."""
    pids = subprocess.run(["ip", "netns", "pids", space.name], capture_output=True, text=True).stdout.split()
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if b"ubond" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return found


class Bond:
    """A running bond and what a test asks it."""

    def __init__(self, world: World, name: str, space: Space | None = None) -> None:
        self.world, self.name, self.space = world, name, space or world.host
        self.no_slave_before = 0

    def links(self) -> list[dict[str, Any]]:
        """`ubond status --json`, asked over the control socket without starting a process."""
        return list(self.ask("status", format="json")["links"])

    def ask(self, request: str, **fields: Any) -> dict[str, Any]:
        with inside(self.space.name):
            path = paths.socket_path(self.name)
        with Client(str(path), timeout=10 * kind().patience) as client:
            return client.request(request, **fields)

    @property
    def pid(self) -> int:
        """The daemon's process, as it is numbered here."""
        pid = int(self.ask("ping")["pid"])
        return self.world.kind.pid(self.world, pid) if self.space is self.world.host else pid

    @property
    def keeper(self) -> int:
        """The process above the daemon that starts it again."""
        return int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[1])

    def kill(self) -> None:
        """kill -9 the daemon and its keeper: nobody starts it again, and its TAP goes with them."""
        for pid in (self.keeper, self.pid):
            os.kill(pid, signal.SIGKILL)

    @property
    def info(self) -> dict[str, Any]:
        """`linkinfo.info_data` of the bond."""
        info: dict[str, Any] = self.links()[0]["linkinfo"]["info_data"]
        return info

    @property
    def ours(self) -> dict[str, Any]:
        """What is under the key `ubond` of the bond."""
        ours: dict[str, Any] = self.links()[0]["ubond"]
        return ours

    @property
    def no_slave(self) -> int:
        """Frames that found no slave since it came up, and since links were back that drivers reset for that."""
        return int(self.ours["counters"]["no_slave"]) - self.no_slave_before

    def option(self, name: str) -> str:
        return str(self.ours["options"][name])

    @property
    def active(self) -> str | None:
        return self.info.get("active_slave")

    def slave(self, name: str) -> dict[str, Any]:
        return next(link for link in self.links() if link["ifname"] == name)

    @property
    def slaves(self) -> list[str]:
        return [link["ifname"] for link in self.links()[1:]]

    def link_state(self, name: str) -> str:
        """`UP`, `GOING_DOWN`, `DOWN`, `GOING_BACK`."""
        return str(self.slave(name)["linkinfo"]["info_slave_data"]["mii_status"])

    def counters(self, name: str) -> dict[str, int]:
        counters: dict[str, int] = self.slave(name)["ubond"]["counters"]
        return counters

    def set(self, *assignments: str) -> None:
        self.world.ubond("set", self.name, *assignments, space=self.space)

    def wait_active(self, name: str | None, seconds: float = 8.0) -> None:
        wait_until(lambda: self.active == name, seconds, f"{name} is the active slave")

    def wait_link(self, name: str, state: str, seconds: float = 8.0) -> None:
        wait_until(lambda: self.link_state(name) == state, seconds, f"{name} is {state}")

    @property
    def mac(self) -> MacAddr:
        return MacAddr.parse(self.space.mac(self.name))


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Where two pictures differ, one line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        found: list[str] = []
        for key in sorted({*before, *after}):
            found += differences(before.get(key), after.get(key), f"{path}/{key}")
        return found
    return [] if before == after else [f"{path}: {before!r} -> {after!r}"]


def assert_as_before(before: dict[str, Any], after: Callable[[], dict[str, Any]], *, patience: float = 3.0) -> None:
    """Fail unless the picture becomes what it was; a carrier may need a moment to show."""
    end = time.monotonic() + patience * kind().patience
    while found := differences(before, after()):
        if time.monotonic() > end:
            raise WorldError("not as before:\n" + "\n".join(found))
        time.sleep(0.1)


# ── load ─────────────────────────────────────────────────────────────────────────────


def blast() -> str:
    """The load generator, built."""
    import fcntl

    # Test processes side by side must not build into one another's file.
    with open(ROOT / "bench" / "Makefile") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["make", "-s", "-C", str(ROOT / "bench")], check=True, capture_output=True)
    return str(ROOT / "bench" / "bin" / "blast")


def start_receiver(space: Space, seconds: int = 40) -> subprocess.Popen[str]:
    """A `blast udp-recv` that is ready to receive, and ends when nothing has come for a second (six in a guest)."""
    long = seconds * kind().patience
    idle = f"{1000 * kind().patience:g}"
    receiver = space.start(blast(), "udp-recv", "--seconds", f"{long:g}", "--idle-ms", idle)
    space.wait_udp()
    return receiver


def finish(process: subprocess.Popen[str], seconds: float = 30) -> dict[str, Any]:
    """The report of a `blast` that has ended or ends soon."""
    out, err = process.communicate(timeout=seconds * kind().patience)
    if process.returncode:
        raise WorldError(f"blast: exit {process.returncode}: {err}")
    report: dict[str, Any] = json.loads(out)
    return report


def assert_loaded(sent: dict[str, Any], received: dict[str, Any], rate: float) -> None:
    """LoadError unless the sender kept 95 % of its rate and the receiver's own queue dropped nothing."""
    if sent["pps"] < 0.95 * rate:
        raise LoadError(f"the generator sent {sent['pps']:.0f} of {rate:.0f} a second")
    if received["overflow"]:
        raise LoadError(f"the receiver's own queue overflowed ({received['overflow']})")
