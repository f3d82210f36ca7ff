"""Putting one bond together from its spec, and taking it apart again whatever happened.

The order matters: the journal before anything is taken, the device before the slaves, the
control socket last, when there is something to talk about.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence

from ubond import __version__, paths
from ubond.bond.core import Bond
from ubond.bond.events import BondOpened, DoorError
from ubond.bond.options import Refused, apply_order, find
from ubond.bond.spec import BondSpec
from ubond.control import Assignment, Server
from ubond.datapath import Datapath
from ubond.doors import Doors
from ubond.journal import Journal
from ubond.managers import Managers
from ubond.netlink import Netlink
from ubond.ports import TX_QUEUE, Tap, open_probe
from ubond.recovery import give_back_all
from ubond.sandbox import attempt
from ubond.service import Service
from ubond.status import Report, proc
from ubond.steering import Steering
from ubond.wire import MacAddr

log = logging.getLogger("ubond")

#: Options that name slaves: written when the slaves are there.
_AFTER_SLAVES = frozenset({"active_slave"})


def random_mac() -> MacAddr:
    """A locally administered unicast address (IEEE 802-2014, 8.2.2)."""
    octets = bytearray(os.urandom(6))
    octets[0] = octets[0] & 0xFC | 0x02
    return MacAddr(bytes(octets))


class Desk:
    """What clients of the control socket talk to (`control.Handler`)."""

    def __init__(
        self,
        service: Service,
        spec: BondSpec,
        managers: Managers,
        confined: str,
        rename_lock: Callable[[str], bool],
    ) -> None:
        """`confined`: what the process has given up, for `status`."""
        self.service, self.spec, self._managers = service, spec, managers
        self._confined, self._rename_lock = confined, rename_lock
        self._left_alone: frozenset[str] = frozenset(slave.name for slave in spec.slaves)
        self._telling: asyncio.Task[None] | None = None
        self.files = spec.name
        """The name that the bond's files have: its own, unless that name's belong to another bond."""
        self.ended = asyncio.Event()
        self.notes: list[str] = []
        self._proc = ""
        self._server = Server(spec.name, __version__, self)

    # ── control.Handler ──

    async def status(self) -> Report:
        doors = self.service.doors
        tap = {"tx_dropped": doors.tap.tx_dropped(), **doors.datapath.totals()}
        extra = {
            "uptime": (time.monotonic_ns() - self.service.started) // 1_000_000_000,
            "provisional": doors.datapath.stand_in(),
            "strict": self.spec.strict,
            "bypass": self.spec.bypass,
            "workers": 1,
            "offloads": doors.tap.offload_names(doors.offload),
            "sandbox": self._confined,
            "shortcomings": doors.shortcomings,
            "counters": tap,
        }
        counters = doors.datapath.counters()
        slaves = {
            name: {"gate": doors.gates.get(name, "none"), "counters": counters[name]} for name in counters
        }
        return Report(self.service.snapshot(), __version__, extra, slaves)

    async def set(self, assignments: Sequence[Assignment]) -> list[str]:
        with self.service.notes() as notes:
            for slave, option, value in assignments:
                await self.service.write(option, value, slave)
        return notes

    async def add(self, slaves: Sequence[str], take_addresses: bool) -> list[str]:
        with self.service.notes() as notes:
            for slave in slaves:
                await self.service.enslave(slave, take_addresses)
        return notes

    async def remove(self, slaves: Sequence[str]) -> list[str]:
        with self.service.notes() as notes:
            for slave in slaves:
                await self.service.release(slave)
        return notes

    def history(self) -> list[dict[str, object]]:
        return self.service.failovers()

    def log(self) -> list[dict[str, object]]:
        return list(self.service.lines)

    async def down(self) -> None:
        await self.service.shut()
        self.service.doors.tap.close()
        self.ended.set()

    async def hook(self, call: str) -> dict[str, str]:
        return {"loop": attempt(call), "helper": await asyncio.to_thread(attempt, call)}

    # ── the files that others read ──

    async def open(self) -> None:
        self.service.on_change = self._changed
        self.service.on_news = self._server.publish
        self.service.on_rename = self._renamed
        self._write_proc()
        await self._server.start(paths.socket_path(self.files))

    async def close(self) -> None:
        self.service.on_change = lambda: None
        await self._server.close()
        for path in (paths.proc_path(self.files), paths.socket_path(self.files)):
            path.unlink(missing_ok=True)

    def _changed(self) -> None:
        self._write_proc()
        seen = self.service.snapshot()
        # One that will come back must be left alone when it does.
        names = frozenset((*(slave.name for slave in seen.slaves), *seen.awaited))
        if names != self._left_alone:
            self._left_alone = names
            self._tell_managers()

    def _tell_managers(self) -> None:
        """Off the loop: a manager may take its time to read its files."""
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell_until_true())

    async def _tell_until_true(self) -> None:
        told: frozenset[str] | None = None
        while told != self._left_alone:
            told = self._left_alone
            for note in await asyncio.to_thread(self._managers.tell, sorted(told)):
                log.warning("%s: %s", self.files, note)

    def _renamed(self, name: str) -> bool:
        """The bond's device has another name: whoever asks for it finds it under that one, if it is free."""
        old = self.files
        try:
            if not self._rename_lock(name):
                log.error("%s: files of another bond %s are there: control stays at %s", name, name, old)
                return False
            self._server.rename(name, paths.socket_path(name))
        except (OSError, DoorError) as error:
            log.error("%s: the files of %s could not follow its name: %s", name, old, error)
        self.files, self._proc = name, ""
        self._managers.rename(name)
        self._tell_managers()
        paths.proc_path(old).unlink(missing_ok=True)
        self._write_proc()
        return True

    def _write_proc(self) -> None:
        """Keep /proc/net/bonding's text where programs can read it, whole at every moment."""
        text = proc(self.service.snapshot(), __version__)
        if text == self._proc:
            return
        self._proc = text
        path = paths.proc_path(self.files)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.new")
            fresh.write_text(text)
            fresh.chmod(0o644)
            fresh.rename(path)
        except OSError as error:
            log.warning("%s: %s could not be written: %s", self.files, path, error)


@contextlib.asynccontextmanager
async def assemble(
    spec: BondSpec, steering: Steering, managers: Managers, confined: str, rename_lock: Callable[[str], bool]
) -> AsyncIterator[Desk]:
    """Build the bond of this spec; on leaving, give everything back.

    `rename_lock` lets the bond's lock follow the name of its device (`daemon.Lock.rename`).
    """
    async with contextlib.AsyncExitStack() as stack:
        netlink = Netlink()
        await netlink.open()
        stack.push_async_callback(netlink.close)
        journal = Journal(paths.runtime_dir(), spec.name)
        if left := await give_back_all(netlink, journal, spec.name):
            log.info("%s: gave back %d interfaces that a dead daemon held", spec.name, left)
        _refuse_taken_name(netlink, spec.name)
        stack.callback(managers.forget)
        # Before the device is there: who sees it first would configure it.
        remarks = managers.tell([slave.name for slave in spec.slaves])

        tap = Tap(spec.name)
        stack.callback(tap.close)
        tap.set_carrier(False)
        probe = open_probe()
        stack.callback(probe.close)
        datapath = Datapath([(tap.descriptors[0], 0)], probe.fileno())
        doors = Doors(tap, netlink, journal, datapath, steering, bypass=spec.bypass, gate=spec.gate)
        stack.callback(doors.close_ports)
        stack.callback(datapath.stop)

        await netlink.set_txqlen(spec.name, TX_QUEUE)
        if spec.mac is not None:
            await netlink.set_mac(spec.name, spec.mac)
        device = await netlink.facts(spec.name)
        bond = Bond(
            spec.name,
            mac=device.mac,
            mac_set=spec.mac is not None,
            mtu=device.mtu,
            strict=spec.strict,
            random_mac=random_mac,
        )
        service = Service(bond, doors, device.index)
        stack.push_async_callback(service.shut)
        datapath.start()
        desk = Desk(service, spec, managers, confined, rename_lock)
        with service.notes() as desk.notes:
            await _build(service, spec)
        desk.notes[:0] = remarks
        await desk.open()
        stack.push_async_callback(desk.close)
        yield desk


def _refuse_taken_name(netlink: Netlink, name: str) -> None:
    for link in netlink.links:
        if link.name == name:
            what = "a bond of the kernel's own driver" if link.kind == "bond" else f"a {link.kind or 'device'}"
            raise Refused(
                errno.EEXIST,
                [f"{name} exists already ({what}): choose another name or remove it with: ip link delete {name}"],
            )


async def _build(service: Service, spec: BondSpec) -> None:
    """Options, device, slaves, addresses, in the order in which one makes the next possible."""
    doors, name = service.doors, spec.name
    for option in apply_order(name for name in spec.options if find(name).name not in _AFTER_SLAVES):
        await service.write(option, spec.options[option])
    if spec.mtu is not None:
        await doors.netlink.set_mtu(name, spec.mtu)
        await service.set_mtu(spec.mtu)
    await doors.netlink.set_up(name, True)
    await service.feed(BondOpened())
    for slave in spec.slaves:
        await service.enslave(slave.name, spec.take_addresses)
        for option, text in slave.options.items():
            await service.write(option, text, slave.name)
    for option in spec.options:
        if find(option).name in _AFTER_SLAVES:
            await service.write(option, spec.options[option])
    for i, address in enumerate(spec.addresses):
        await doors.netlink.add_address(name, address, spec.broadcast if i == 0 else None)
    for gateway in spec.gateways:
        await doors.netlink.add_gateway(name, gateway)
