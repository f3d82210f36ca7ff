"""Hours of mixed traffic, pulled cables, changed options, other hands and floods; then the books must balance.

    python tests/soak/soak.py [--time SECONDS] [--seed N] [--round SECONDS] [--one-life]

The daemon is also killed and upgraded on the way; with --one-life it is not, and runs in the
foreground, so that what it writes is read and its memory is that of the whole time.

One JSON line for every step and round, at the end one line of verdict.  What is done, and in which
order, follows from the seed alone.  The first round whose books do not balance ends it with exit
code 1, and names the steps of that round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.netns.world import (  # noqa: E402
    ADDRESSES,
    HOST4,
    HOST6,
    PEER4,
    PEER6,
    Bond,
    Space,
    World,
    WorldError,
    assert_as_before,
    inside,
    wait_until,
)
from tests.soak.ledger import Books, Growth, books, nameless  # noqa: E402
from tests.soak.traffic import Tally, Traffic  # noqa: E402
from ubond import paths  # noqa: E402
from ubond.client import Client, ControlError  # noqa: E402

NICS, BYSTANDER = ("eth1", "eth2", "eth3"), "eth4"
#: Memory may grow by so much (KiB) after the first rounds, whatever the length.
GROWTH_KIB = 6 * 1024
#: Threads beside the three of the daemon: those that wait in its stead (asyncio.to_thread), made as needed.
HELPERS = 8
#: Seconds within which the same change by other hands, again and again, is a fight (docs/reliability.md), and some.
FIGHT = 15.0
#: Deaths within a minute after which a keeper gives up are five; the soak stays below.
DEATHS_A_MINUTE = 3


class Broken(Exception):
    """Something did not hold."""


# ── the daemon, seen from outside ────────────────────────────────────────────────────


def resources(pid: int) -> dict[str, int]:
    """Memory (KiB), descriptors and threads of a process."""
    rollup = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    )  # fmt: skip
    return {
        "rss": int(rollup["Rss"].split()[0]),
        "pss": int(rollup["Pss"].split()[0]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
    }


class Flood:
    """Clients of every kind at the control socket, for as long as the block runs."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._choice = path, random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.asked, self.refused = 0, 0
        self.fault: BaseException | None = None

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as kept:
                lingering: list[Client] = []
                while not self._over.wait(0.02):
                    self._ask(kept, lingering)
        except BaseException as fault:
            self.fault = fault

    def _ask(self, kept: contextlib.ExitStack, lingering: list[Client]) -> None:
        what = self._choice.choice(("status", "history", "log", "ping", "nonsense", "half", "linger", "leave"))
        self.asked += 1
        try:
            if what == "linger" and len(lingering) < 8:      # monitors that never read
                client = kept.enter_context(Client(str(self._path), timeout=10))
                client.request("monitor")
                lingering.append(client)
                return
            if what == "leave" and lingering:
                lingering.pop(self._choice.randrange(len(lingering))).close()
                return
            with Client(str(self._path), timeout=10) as client:
                if what == "nonsense":
                    client._sock.sendall(b"\x00{]\n")
                elif what == "half":
                    client._sock.sendall(b'{"version": 1, "req')
                else:
                    client.request(what if what in ("status", "history", "log") else "ping")
        except ControlError as error:
            if error.errno not in ("EAGAIN", "EPIPE"):
                raise
            self.refused += 1


# ── the soak ─────────────────────────────────────────────────────────────────────────


def _assignment(option: str, value: str, slave: str = "") -> dict[str, str]:
    return {"option": option, "value": value, **({"slave": slave} if slave else {})}


def read_books(world: World, bond: Bond) -> Books:
    """All counters, when nothing moves any more."""
    before = None
    end = time.monotonic() + 10
    while True:
        kernel = {
            (place, link["ifname"]): {f"{way}_{name}": count for way, counts in link["stats64"].items()
                                      for name, count in counts.items()}
            for place, space in (("host", world.host), ("switch", world.switch), ("peer", world.peer))
            for link in json.loads(space.ip("-s", "-j", "link", "show"))
        }  # fmt: skip
        stack = {"host": lost_by_stack(world.host), "peer": lost_by_stack(world.peer)}
        now = books(bond.links(), kernel, stack)
        if now == before or time.monotonic() > end:
            return now
        before = now
        time.sleep(0.1)


def lost_by_stack(space: Space) -> dict[str, int]:
    """What IP and UDP of a namespace have dropped (proc(5), net/snmp and net/snmp6)."""
    found: dict[str, int] = {}
    lines = space.run("cat", "/proc/net/snmp").stdout.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        layer, *names = names.split()
        found.update({layer + name: int(value) for name, value in zip(names, values.split()[1:], strict=True)})
    for line in space.run("cat", "/proc/net/snmp6").stdout.splitlines():
        name, value = line.split()
        found[name] = int(value)
    lost = ("InDiscards", "OutDiscards", "OutNoRoutes", "InErrors", "NoPorts", "InHdrErrors", "InAddrErrors")
    return {name: count for name, count in found.items() if name.endswith(lost) and "Icmp" not in name}


class Soak:
    """One world, one bond, and what is done to them."""

    def __init__(
        self, world: World, seed: int, say: Callable[[dict[str, Any]], None], *, one_life: bool = False
    ) -> None:
        self.world, self.say, self.one_life = world, say, one_life
        self.choice = random.Random(seed)
        self.bond = Bond(world, "bond0")
        with inside(world.host.name):
            self.socket = paths.socket_path("bond0")
        self.steps: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}
        self.mode = "active-backup"
        self.totals = Tally(), Tally()
        self.named: tuple[dict[str, int], dict[str, int]] = ({}, {})
        self.measured: list[dict[str, int]] = []
        """After each round, since the process began."""
        self.rounds = 0
        self.membership = False
        self.replaced = False
        self.killed = False
        self.pid = 0
        self._deaths: list[float] = []
        self._themes: list[str] = []
        self._meddled: dict[tuple[str | None, str], list[float]] = {}

    # ── set-up ──

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The bond, and everybody's neighbours known."""
        if not self.one_life:
            # Upgrades are for bonds in the background.
            with self.world.bond(*NICS, "--miimon", "50") as self.bond:
                self.pid = self.bond.pid
                self._know_each_other()
                yield
                self.world.ubond("down", "bond0")
            return
        host = self.world.host
        with tempfile.TemporaryFile("w+") as errors:
            daemon = subprocess.Popen(
                ["ip", "netns", "exec", host.name, sys.executable, "-m", "ubond", "up", "bond0", *NICS,
                 "--miimon", "50", "--foreground", *ADDRESSES],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
            )  # fmt: skip
            try:
                wait_until(lambda: self.socket.exists() or daemon.poll() is not None, 20, "the bond is up")
                self.pid = self.bond.pid
                self._know_each_other()
                yield
                if daemon.poll() is not None:
                    raise Broken(f"the daemon has ended with {daemon.returncode}")
                self.world.ubond("down", "bond0")
                daemon.wait(timeout=20)
            finally:
                daemon.kill()
                daemon.wait()
                errors.seek(0)
                said = errors.read()
                if "Traceback" in said or daemon.returncode not in (0, -signal.SIGKILL):
                    self.say({"daemon": said[-4000:]})
                if "Traceback" in said:
                    raise Broken("the daemon wrote a traceback")

    def _know_each_other(self) -> None:
        """Permanent neighbours: what waits for an answer in the stack is in no counter of anybody's."""
        host_mac, peer_mac = self.world.host.mac("bond0"), self.world.peer.mac("eth0")
        for address in (PEER4, PEER6):
            self.world.host.ip("neigh", "replace", address, "lladdr", peer_mac, "dev", "bond0", "nud", "permanent")
        for address in (HOST4, HOST6):
            self.world.peer.ip("neigh", "replace", address, "lladdr", host_mac, "dev", "eth0", "nud", "permanent")

    # ── what is done ──

    def _usable(self) -> list[str]:
        """Slaves whose link is up and whose port forwards."""
        up = [link["ifname"] for link in self.bond.links()[1:]
              if link["linkinfo"]["info_slave_data"]["mii_status"] == "UP"]  # fmt: skip
        return [nic for nic in up if self.world.host.carrier(nic)]

    def _one_of_several(self) -> str | None:
        """A slave that can be done without: another one goes on carrying."""
        usable = self._usable()
        return self.choice.choice(usable) if len(usable) > 1 else None

    def _ask(self, request: str, **fields: Any) -> str | None:
        """Ask the daemon; what it refuses is an answer too, and returned."""
        try:
            self.bond.ask(request, **fields)
        except ControlError as error:
            return f"{error.errno}: {error}"
        return None

    def pull(self) -> dict[str, Any] | None:
        nic = self._one_of_several()
        if nic is None:
            return None
        self.world.pull(nic)
        time.sleep(self.choice.uniform(0.05, 0.6))
        self.world.plug(nic)
        self.bond.wait_link(nic, "UP")
        return {"nic": nic}

    def option(self) -> dict[str, Any]:
        miimon = self.choice.choice((20, 50, 100))
        assignment = self.choice.choice([
            ("active_slave", self.choice.choice(NICS)), ("primary", self.choice.choice(NICS)),
            ("primary_reselect", self.choice.choice(("always", "better", "failure"))),
            ("miimon", str(miimon)), ("updelay", str(self.choice.choice((0, 100, 200)))),
            ("downdelay", str(self.choice.choice((0, 100)))), ("num_grat_arp", str(self.choice.randrange(4))),
            ("resend_igmp", str(self.choice.randrange(3))), ("min_links", "0"), ("miimon", "no number"),
            ("packets_per_slave", str(self.choice.randrange(4))), ("lp_interval", "1"),
            (f"{self.choice.choice(NICS)}.prio", str(self.choice.randrange(-5, 5))),
            (f"{self.choice.choice(NICS)}.queue_id", str(self.choice.randrange(3))),
        ])  # fmt: skip
        name, value = assignment
        slave, _, option = name.rpartition(".")
        refused = self._ask("set", options=[_assignment(option, value, slave)])
        return {"set": f"{name}={value}", "refused": refused}

    def leave_and_join(self) -> dict[str, Any] | None:
        nic = self._one_of_several()
        if nic is None:
            return None
        self.membership = True
        if refused := self._ask("remove", slaves=[nic]):
            raise Broken(f"remove {nic}: {refused}")
        time.sleep(self.choice.uniform(0, 0.3))
        if refused := self._ask("add", slaves=[nic]):
            raise Broken(f"add {nic}: {refused}")
        self.bond.wait_link(nic, "UP")
        return {"nic": nic}

    def rename(self) -> dict[str, Any] | None:
        nic = self._one_of_several()
        if nic is None:
            return None
        host = self.world.host
        host.ip("link", "set", nic, "name", "other0")
        wait_until(lambda: "other0" in self.bond.slaves, 8, f"{nic} is known by its new name")
        host.ip("link", "set", "other0", "name", nic)
        wait_until(lambda: nic in self.bond.slaves, 8, f"{nic} is known by its old name")
        return {"nic": nic}

    def vanish(self) -> dict[str, Any] | None:
        nic = self._one_of_several()
        if nic is None:
            return None
        self.membership = True
        world, port = self.world, f"sw{nic[3:]}"
        self.replaced = True        # a device that is deleted takes its counters along
        world.host.ip("link", "del", nic)
        wait_until(lambda: nic not in self.bond.slaves, 8, f"{nic} has gone")
        world.cable(world.host, nic, 100 + int(nic[3:]), world.switch, port)
        world.switch.ip("link", "set", port, "master", "br0", "addrgenmode", "none", "up")
        world.host.ip("link", "set", nic, "up")
        wait_until(lambda: nic in self.bond.slaves, 12, f"{nic} is a slave again")
        world.wait_forwarding(nic)
        self.bond.wait_link(nic, "UP")
        return {"nic": nic}

    def meddle(self) -> dict[str, Any] | None:
        """Somebody else changes a slave, and it is put right."""
        nic, what = self._one_of_several(), self.choice.choice(("mac", "mtu", "alias", "gate", "down"))
        lately = [at for at in self._meddled.get((nic, what), ()) if time.monotonic() - at < FIGHT]
        if nic is None or len(lately) > 1:      # once more would be a fight, and left alone
            return None
        self._meddled[nic, what] = [*lately, time.monotonic()]
        host = self.world.host
        self.membership = True      # a NIC that is down or has a foreign MAC receives for somebody else
        if what == "mac":
            host.ip("link", "set", nic, "address", "02:00:00:00:50:bb")
            wait_until(lambda: host.mac(nic) == host.mac("bond0"), 8, f"{nic} has its MAC again")
        elif what == "mtu":
            mtu = host.link(nic)["mtu"]
            host.ip("link", "set", nic, "mtu", "1600")
            wait_until(lambda: host.link(nic)["mtu"] == mtu, 8, f"{nic} has its MTU again")
        elif what == "alias":
            alias = host.link(nic)["ifalias"]
            host.ip("link", "set", nic, "alias", "mine")
            wait_until(lambda: host.link(nic)["ifalias"] == alias, 8, f"{nic} has its alias again")
        elif what == "gate":
            host.run("tc", "qdisc", "del", "dev", nic, "clsact")
            wait_until(lambda: "clsact" in host.run("tc", "qdisc", "show", "dev", nic).stdout, 8,
                       f"the gate of {nic} is closed again")  # fmt: skip
        else:
            host.ip("link", "set", nic, "down")
            self.bond.wait_link(nic, "DOWN")
            host.ip("link", "set", nic, "up")
            self.world.wait_forwarding(nic)
            self.bond.wait_link(nic, "UP")
        return {"nic": nic, "what": what}

    def freeze(self) -> dict[str, Any]:
        """The whole daemon gets no processor for a while: queues fill, and what they lose has a name."""
        seconds = self.choice.uniform(0.05, 0.5)
        os.kill(self.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.pid, signal.SIGCONT)
        return {"seconds": round(seconds, 2)}

    def mtu(self) -> dict[str, Any]:
        value = self.choice.choice(("1500", "1492"))
        self.world.host.ip("link", "set", "bond0", "mtu", value)
        wait_until(lambda: self.bond.links()[0]["mtu"] == int(value), 8, "the bond's MTU is followed")
        return {"mtu": value}

    def crowd(self) -> dict[str, Any]:
        """More clients at once than there is room for."""
        clients, refused = [], 0
        try:
            for _ in range(50):
                client = Client(str(self.socket), timeout=10)
                clients.append(client)
                try:
                    client.request("ping")
                except ControlError:
                    refused += 1
        finally:
            for client in clients:
                client.close()
        return {"refused": refused}

    def die(self) -> dict[str, Any] | None:
        """kill -9: the keeper starts another.  Counters since the last document are lost: a new page."""
        now = time.monotonic()
        if len([at for at in self._deaths if now - at < 60]) >= DEATHS_A_MINUTE:
            return None
        self._deaths.append(now)
        self.killed = self.membership = True
        os.kill(self.pid, signal.SIGKILL)
        wait_until(lambda: self._restarts() == len(self._deaths), 15, "the successor")
        self._another()
        return {"pid": self.pid}

    def upgrade(self) -> dict[str, Any]:
        """Another process goes on, and not a frame may miss in the books."""
        self.world.ubond("upgrade", "bond0")
        self._another()
        return {"pid": self.pid}

    def _restarts(self) -> int:
        return int(self.bond.ours["restarts"])

    def _another(self) -> None:
        """Another process serves."""
        if self.bond.pid == self.pid:
            raise Broken(f"it is still process {self.pid}")
        self.pid, self.measured = self.bond.pid, []
        for nic in NICS:
            self.bond.wait_link(nic, "UP")

    #: What the rounds are about; one after the other, in an order that the seed chooses.
    THEMES: Mapping[str, Mapping[str, int]] = {
        "links": {"pull": 6, "option": 4, "freeze": 2, "crowd": 1},
        "members": {"leave_and_join": 6, "rename": 2, "pull": 2, "option": 2, "freeze": 1},
        "hands": {"meddle": 6, "rename": 2, "mtu": 2, "option": 2, "crowd": 1},
        "all": {"vanish": 4, "pull": 3, "leave_and_join": 3, "meddle": 3, "rename": 1, "option": 3, "freeze": 1},
        "upgrades": {"upgrade": 4, "pull": 3, "option": 3, "freeze": 1, "crowd": 1},
        "deaths": {"die": 3, "upgrade": 1, "pull": 3, "leave_and_join": 2, "option": 2},
    }
    #: What needs a daemon that may be another one afterwards.
    SUCCESSIONS = frozenset({"upgrades", "deaths"})

    def step(self, theme: str) -> None:
        kinds = self.THEMES[theme]
        name = self.choice.choices(list(kinds), list(kinds.values()))[0]
        entry: dict[str, Any] = {"step": name}
        self.steps.append(entry)
        entry.update(getattr(self, name)() or {"skipped": True})
        self.counts[name] = self.counts.get(name, 0) + 1
        self.say(entry)

    def theme(self) -> str:
        if not self._themes:
            self._themes = [theme for theme in self.THEMES if not (self.one_life and theme in self.SUCCESSIONS)]
            self.choice.shuffle(self._themes)
        return self._themes.pop()

    def change_mode(self) -> None:
        """Between two rounds: a mode is changed without slaves, as the driver has it."""
        self.mode = self.choice.choice(("active-backup", "active-backup", "balance-rr"))
        for request, fields in (("remove", {"slaves": list(NICS)}),
                                ("set", {"options": [_assignment("mode", self.mode)]}),
                                ("add", {"slaves": list(NICS)})):  # fmt: skip
            if refused := self._ask(request, **fields):
                raise Broken(f"{request} {fields}: {refused}")
        for nic in NICS:
            self.bond.wait_link(nic, "UP")
        self._know_each_other()
        self.say({"step": "mode", "mode": self.mode})

    # ── counting ──

    def books(self) -> Books:
        return read_books(self.world, self.bond)

    # ── a round ──

    def round(self, number: int, seconds: float) -> None:
        if number and number % 4 == 0:
            self.change_mode()
        self.steps, self.membership, self.replaced, self.killed = [], False, False, False
        self.rounds += 1
        theme = self.theme()
        tcp = bool(number % 2)
        before = self.books()
        with Traffic(self.world, tcp=tcp, groups=tcp and self.mode == "active-backup") as traffic:
            traffic.start()
            end = time.monotonic() + seconds
            with Flood(self.socket, self.choice.getrandbits(32)) as flood:
                while time.monotonic() < end:
                    time.sleep(self.choice.uniform(0.05, 0.4))
                    self.step(theme)
            if flood.fault is not None:
                raise Broken(f"a client: {flood.fault!r}")
            out, into, rest = traffic.stop()
        growth = Growth(before, self.books(), NICS)
        exact_in = not tcp and not self.membership
        end = time.monotonic() + 15
        while not self.killed and growth.mistakes(exact_in=exact_in) and time.monotonic() < end:
            time.sleep(0.5)     # a frame may have passed between two readings; what is lost stays lost
            growth = Growth(before, self.books(), NICS)
        self._judge(number, growth, out, into, rest, exact_in=exact_in,
                    about={"tcp": tcp, "theme": theme, "asked": flood.asked})

    def _judge(
        self, number: int, growth: Growth, out: Tally, into: Tally, rest: dict[str, Any], *, exact_in: bool,
        about: dict[str, Any],
    ) -> None:  # fmt: skip
        faults: list[str] = []
        closed = not (self.replaced or self.killed)
        named = (growth.named_out(), growth.named_in()) if closed else ({}, {})
        if closed:
            faults += growth.mistakes(exact_in=exact_in)
            for way, tally, lost in (("out", out, named[0]), ("in", into, named[1])):
                faults += nameless(way, tally.offered - tally.delivered, lost)
        if self.mode == "active-backup" and (out.twice or into.twice) and not self.membership:
            faults.append(f"came twice: {out.twice} out, {into.twice} in")
        faults += [f"TCP {port}: {sent} bytes sent, {got} received"
                   for port, (sent, got) in rest["streams"].items() if sent != got or not sent]  # fmt: skip
        bystander = growth.kernel("host", BYSTANDER, "tx_packets", "tx_dropped", "tx_errors")
        if bystander:
            faults.append(f"{bystander} frames were sent on {BYSTANDER}, which is no slave")
        if self.bond.pid != self.pid or self._restarts() != len(self._deaths):
            faults.append("it is another process")
        faults += self._resources()
        for total, tally, known, lost in zip(self.totals, (out, into), self.named, named, strict=True):
            total.planned += tally.planned
            total.offered += tally.offered
            total.delivered += tally.delivered
            for name, count in lost.items():
                known[name] = known.get(name, 0) + count
        self.say({
            "round": number, **about, "mode": self.mode, "steps": len(self.steps),
            "out": vars(out), "in": vars(into), "named_out": named[0], "named_in": named[1],
            "books": closed,
            "control_frames": growth.nics("tx_packets", "tx_dropped") - growth.slaves("tx_frames"),
            **self.measured[-1], "faults": faults,
        })  # fmt: skip
        if faults:
            raise Broken(f"round {number}: {'; '.join(faults)}")

    def _resources(self) -> list[str]:
        """What grows that should not; the first two rounds of a process warm up."""
        self.measured.append(resources(self.pid))
        if len(self.measured) < 3:
            return []
        first, now = self.measured[1], self.measured[-1]
        faults = []
        if now["rss"] > first["rss"] + GROWTH_KIB:
            faults.append(f"memory: {now['rss']} KiB, {first['rss']} after warming up")
        # A queue of the TAP stays for every queue_id that there has ever been.
        if now["fds"] > first["fds"] + 2:
            faults.append(f"descriptors: {now['fds']}, {first['fds']} after warming up")
        if now["threads"] > 3 + HELPERS:
            faults.append(f"{now['threads']} threads")
        return faults

    def verdict(self, took: float, fault: str) -> dict[str, Any]:
        out, into = self.totals
        return {
            "verdict": "broken" if fault else "sound", "fault": fault, "seconds": round(took),
            "rounds": self.rounds, "steps": sum(self.counts.values()), "kinds": self.counts,
            "offered": [out.offered, into.offered], "delivered": [out.delivered, into.delivered],
            "share_of_rate": round((out.offered + into.offered) / max(1, out.planned + into.planned), 3),
            "named": list(self.named), "first": self.measured[0] if self.measured else {},
            "warm": self.measured[1] if len(self.measured) > 1 else {},
            "last": self.measured[-1] if self.measured else {},
        }  # fmt: skip


def lasting(world: World) -> dict[str, Any]:
    """What must be as before: all but what the kernel takes from a NIC that somebody sets down."""
    picture = world.picture()
    del picture["routes"]
    for nic in world.nics:
        del picture[nic]["addresses"], picture[nic]["memberships"]
    return picture


def soak(
    seconds: float, seed: int, round_seconds: float, say: Callable[[dict[str, Any]], None], *, one_life: bool = False
) -> dict[str, Any]:
    """Run it; return the verdict, which has been said too."""
    with World(len(NICS) + 1) as world:
        # Its own stack has nothing to say: no reports of groups, no answers for the bond's address.
        world.host.run("sysctl", "-qw", f"net.ipv6.conf.{BYSTANDER}.disable_ipv6=1")
        world.host.ip("link", "set", BYSTANDER, "arp", "off")
        for nic in (*NICS, BYSTANDER):
            world.wait_forwarding(nic)
        picture = lasting(world)
        it, begin, fault = Soak(world, seed, say, one_life=one_life), time.monotonic(), ""
        try:
            with it.running():
                number = 0
                while number == 0 or time.monotonic() - begin < seconds:
                    it.round(number, min(round_seconds, max(2.0, seconds - (time.monotonic() - begin))))
                    number += 1
            if "vanish" not in it.counts:       # a NIC that was replaced is not the one in the picture
                assert_as_before(picture, lambda: lasting(world))
        except (Broken, WorldError, ControlError, OSError, subprocess.SubprocessError) as error:
            last = it.steps[-1] if it.steps else {}
            fault = f"{type(error).__name__}: {error}; last step {last}; steps of the round: {it.steps}"
        verdict = it.verdict(time.monotonic() - begin, fault)
        say(verdict)
        return verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--time", type=float, default=600, help="seconds")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--round", type=float, default=10, help="seconds between two looks at the books")
    parser.add_argument("--one-life", action="store_true", help="neither kill nor upgrade the daemon")
    given = parser.parse_args()
    begin = time.monotonic()

    def say(entry: dict[str, Any]) -> None:
        print(json.dumps({"at": round(time.monotonic() - begin, 2), **entry}), flush=True)

    say({"seed": given.seed, "time": given.time})
    return 1 if soak(given.time, given.seed, given.round, say, one_life=given.one_life)["fault"] else 0


if __name__ == "__main__":
    sys.exit(main())
