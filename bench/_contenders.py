"""Who is measured: the bare slave, the yardstick, ubond, and every other bond that can stand in its place.

A contender is put between the lab's host and its two NICs, with one slave active, and taken away again.  All of them
get what their own guides ask for: those that cannot take unfinished checksums and frames larger than the MTU get
a peer that segments and sums by itself, and the host's own stack hears nothing on the slaves of any of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from _report import GuardError

from ubond.lab import NICS, Lab, OpenVSwitch, wait_until

BIN = Path(__file__).resolve().parent / "bin"
BOND = "bond0"
#: One classic BPF instruction: return TC_ACT_STOLEN, for every frame.
_STEAL = "1,6 0 0 4,"
#: Seconds that another's program may take until its interface is there.
_PATIENCE = 20.0
#: Starts whoever would stay in our session: ubond and Open vSwitch leave it by themselves. Where sessions share the
#: processors among them (autogroup), who is in that of the load shares the load's part.
_OWN_SESSION = "setsid"


@dataclass(frozen=True, slots=True)
class Contender:
    """`stand` puts it into a lab and yields the interface that the host's address belongs on.

    `programs` must be installed; `module`: what the kernel must have (the report names either when it is missing).
    """

    title: str
    stand: Callable[[Lab], AbstractContextManager[str]]
    programs: tuple[str, ...] = ()
    module: str = ""


# ── what several of them need ────────────────────────────────────────────────────────


def offloads(lab: Lab, place: str, nic: str, **features: bool) -> None:
    """Switch features of a NIC, as `ethtool -K` calls them."""
    words = [word for name, on in features.items() for word in (name, "on" if on else "off")]
    lab.exec(place, "ethtool", "-K", nic, *words)


@contextlib.contextmanager
def peer_segments(lab: Lab, *, sums: bool = False) -> Iterator[None]:
    """The peer puts frames of MTU size on the wire; with `sums` it finishes their checksums too."""
    features = {"tso": False, "gso": False, **({"tx": False} if sums else {})}
    offloads(lab, "peer", "eth0", **features)
    try:
        yield
    finally:
        offloads(lab, "peer", "eth0", **{name: True for name in reversed(features)})


@contextlib.contextmanager
def _closed(lab: Lab, *nics: str) -> Iterator[None]:
    """The host's own stack hears nothing on these NICs; packet sockets see all."""
    for nic in nics:
        lab.exec("host", "tc", "qdisc", "replace", "dev", nic, "clsact")
        lab.exec("host", "tc", "filter", "add", "dev", nic, "ingress", "bpf", "da", "bytecode", _STEAL)
    try:
        yield
    finally:
        for nic in nics:
            lab.exec("host", "tc", "qdisc", "del", "dev", nic, "clsact", check=False)


def _exists(lab: Lab, nic: str) -> bool:
    return lab.exec("host", "ip", "link", "show", "dev", nic, check=False).returncode == 0


# ── the contenders ───────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _bare(lab: Lab) -> Iterator[str]:
    yield NICS[0]


@contextlib.contextmanager
def _bare_gro(lab: Lab) -> Iterator[str]:
    offloads(lab, "host", NICS[0], gro=True)
    try:
        yield NICS[0]
    finally:
        offloads(lab, "host", NICS[0], gro=False)


@contextlib.contextmanager
def _forwarder(lab: Lab) -> Iterator[str]:
    with _closed(lab, NICS[0]):
        process = lab.start("host", _OWN_SESSION, str(BIN / "forwarder"), "fwd0", NICS[0])
        try:
            if process.stdout is None or "ready" not in process.stdout.readline():
                raise GuardError("the forwarder did not start")
            yield "fwd0"
        finally:
            process.terminate()
            process.communicate(timeout=10)


@contextlib.contextmanager
def _forwarder_gro(lab: Lab) -> Iterator[str]:
    with _bare_gro(lab), _forwarder(lab) as interface:
        yield interface


@contextlib.contextmanager
def _ubond(lab: Lab, *options: str) -> Iterator[str]:
    lab.exec("host", "ubond", "up", BOND, *NICS, *options)
    try:
        yield BOND
    finally:
        lab.exec("host", "ubond", "down", BOND)


@contextlib.contextmanager
def _ovs_tso(lab: Lab, **settings: str) -> Iterator[str]:
    """Open vSwitch, all of it in user space.  `settings`: of the whole switch."""
    switch, bridge = OpenVSwitch(lab, "host"), "brovs"
    try:
        switch.start(**(settings or {"userspace_tso_enable": "true"}))
        switch.vsctl("add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev")
        how = ("bond_mode=active-backup", f"other_config:bond-primary={NICS[0]}")
        switch.vsctl("add-bond", bridge, "ovsbond", *NICS, *how)
        lab.ip("host", "link", "set", bridge, "up")
        # Only now: it removes a queueing discipline that it finds at a port's ingress.
        with _closed(lab, *NICS):
            shows = f"active member: {NICS[0]}"
            wait_until(lambda: shows in _active_member(switch), _PATIENCE, "Open vSwitch's active member")
            yield bridge
    finally:
        switch.stop()
        for tap in (bridge, "ovs-netdev"):      # it leaves them behind, with the offloads that it had chosen
            lab.exec("host", "ip", "link", "del", tap, check=False)


def _active_member(switch: OpenVSwitch) -> str:
    """What `bond/show` says, in the words of its versions: the line and the one it means."""
    said = switch.appctl("bond/show", "ovsbond").replace("active slave", "active member")
    lines = [line.strip() for line in said.splitlines()]
    marked = [lines[n - 1] for n, line in enumerate(lines) if line == "active member"]
    return "\n".join([*lines, *(f"active member: {line.split()[1].rstrip(':')}" for line in marked if line)])


@contextlib.contextmanager
def _ovs(lab: Lab) -> Iterator[str]:
    with peer_segments(lab, sums=True), _ovs_tso(lab, userspace_tso_enable="false") as interface:
        yield interface


@contextlib.contextmanager
def _dpdk(lab: Lab) -> Iterator[str]:
    """testpmd between a TAP and a bond of two packet sockets: ports 3 and 2, forwarding what comes."""
    slaves = [f"net_af_packet{number},iface={nic}" for number, nic in enumerate(NICS)]
    bond = "net_bonding0,mode=1,slave=net_af_packet0,slave=net_af_packet1,primary=net_af_packet0"
    devices = [word for device in (*slaves, bond, "net_tap0,iface=dtap0") for word in ("--vdev", device)]
    prefix = f"--file-prefix={lab.plan.name}"
    memory = ("--no-huge", "-m", "512", "--no-pci", "--no-telemetry", prefix)
    forward = ("--forward-mode=io", "--portlist=2,3", "--total-num-mbufs=32768", "--auto-start")
    testpmd = (_OWN_SESSION, "dpdk-testpmd", "-l", "0,1", *memory, *devices, "--", *forward)
    command = lab.command("host", *testpmd)
    mac = (lab.exec("host", "cat", f"/sys/class/net/{NICS[0]}/address")).stdout.strip()
    with peer_segments(lab, sums=True), _closed(lab, *NICS):
        # It ends when somebody presses return, and when there is nobody.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            wait_until(lambda: process.poll() is not None or _exists(lab, "dtap0"), _PATIENCE, "testpmd's TAP")
            if process.poll() is not None:
                raise GuardError(f"dpdk-testpmd ended with code {process.returncode}")
            lab.ip("host", "link", "set", "dtap0", "address", mac, "up")
            yield "dtap0"
        finally:
            process.terminate()
            process.communicate(timeout=20)
            wait_until(lambda: not _exists(lab, "dtap0"), _PATIENCE, "the end of testpmd's TAP")
            for nic in NICS:
                lab.ip("host", "link", "set", nic, "promisc", "off", "up")


@contextlib.contextmanager
def _free_nics(lab: Lab) -> Iterator[None]:
    """The kernel's bonds take NICs that are down."""
    for nic in NICS:
        lab.ip("host", "link", "set", nic, "down")
    try:
        yield
    finally:
        for nic in NICS:
            lab.ip("host", "link", "set", nic, "up")


@contextlib.contextmanager
def _bonding(lab: Lab) -> Iterator[str]:
    with _free_nics(lab):
        kind = ("type", "bond", "mode", "active-backup", "miimon", "100")
        lab.ip("host", "link", "add", "kbond0", *kind)
        try:
            for nic in NICS:
                lab.ip("host", "link", "set", nic, "master", "kbond0")
            lab.ip("host", "link", "set", "kbond0", "up")
            yield "kbond0"
        finally:
            lab.ip("host", "link", "del", "kbond0")


@contextlib.contextmanager
def _team(lab: Lab) -> Iterator[str]:
    ports = ", ".join(f'"{nic}": {{}}' for nic in NICS)
    runner = '"runner": {"name": "activebackup"}, "link_watch": {"name": "ethtool"}'
    config = f'{{"device": "team0", {runner}, "ports": {{{ports}}}}}'
    with _free_nics(lab):
        process = lab.start("host", _OWN_SESSION, "teamd", "-t", "team0", "-c", config)
        try:
            wait_until(lambda: process.poll() is not None or _exists(lab, "team0"), _PATIENCE, "teamd's interface")
            if process.poll() is not None:
                raise GuardError(f"teamd: {process.communicate()[1].strip()}")
            lab.ip("host", "link", "set", "team0", "up")
            yield "team0"
        finally:
            process.terminate()
            process.communicate(timeout=20)


_OVS = ("ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-appctl", "ethtool")

#: By the name that `--only` and `--without` know.
CONTENDERS = {
    "bare": Contender("the bare slave", _bare),
    "bare-gro": Contender("the bare slave, GRO on", _bare_gro, ("ethtool",)),
    "ubond": Contender("ubond", _ubond),
    "forwarder": Contender("the yardstick (plain C)", _forwarder),
    "forwarder-gro": Contender("the yardstick, GRO on", _forwarder_gro, ("ethtool",)),
    "ovs-tso": Contender("Open vSwitch with TSO", _ovs_tso, _OVS),
    "ovs": Contender("Open vSwitch", _ovs, _OVS),
    "dpdk": Contender("DPDK testpmd", _dpdk, ("dpdk-testpmd", "ethtool")),
    "bonding": Contender("the kernel's bonding", _bonding, module="bonding"),
    "team": Contender("teamd", _team, ("teamd",), module="team"),
}


def missing(names: Iterable[str]) -> dict[str, str]:
    """Those of the contenders that cannot stand here, and what each lacks."""
    found = {}
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    for name in names:
        contender = CONTENDERS[name]
        lacks = [program for program in contender.programs if shutil.which(program, path=path) is None]
        if contender.module and not _has_module(contender.module):
            lacks.append(f"the kernel's {contender.module}")
        if lacks:
            found[name] = ", ".join(lacks)
    return found


def _has_module(name: str) -> bool:
    if Path(f"/sys/module/{name}").exists():
        return True
    try:
        return subprocess.run(["modprobe", "-q", name], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
