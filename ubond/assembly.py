"""Putting one bond together from its spec, and taking it apart again whatever happened.

The order matters: the journal before anything is taken, the device before the slaves, the
control socket last, when there is something to talk about.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from ubond import __version__, handover, paths
from ubond.bond.core import Bond
from ubond.bond.document import freeze, prepare
from ubond.bond.events import BondOpened, DoorError, Level
from ubond.bond.options import Refused, apply_order, find
from ubond.bond.spec import BondSpec
from ubond.client import ControlError
from ubond.control import Assignment, Server
from ubond.datapath import Datapath
from ubond.doors import Doors
from ubond.journal import Journal
from ubond.managers import Managers
from ubond.netlink import Netlink
from ubond.paths import Lock
from ubond.ports import TX_QUEUE, TX_QUEUE_UNATTENDED, Tap, open_groups, open_probe
from ubond.recovery import give_back_all
from ubond.sandbox import attempt
from ubond.service import Service
from ubond.status import Report, proc
from ubond.steering import Steering
from ubond.store import DOCUMENT, TIME_IS_UP, Store, read_document
from ubond.wire import MacAddr

log = logging.getLogger("ubond")

#: How often a moment is looked for at which a bond can be handed over.
_TRIES = 100
#: Seconds in which the rate of frames is measured.
_SAMPLE = 0.05
#: Seconds between two writings of the document: at least, and without a change.
KEEP_PAUSE, KEEP_EVERY = 0.02, 5.0
#: Options that name slaves: written when the slaves are there.
_AFTER_SLAVES = frozenset({"active_slave"})


def random_mac() -> MacAddr:
    """A locally administered unicast address (IEEE 802-2014, 8.2.2)."""
    octets = bytearray(os.urandom(6))
    octets[0] = octets[0] & 0xFC | 0x02
    return MacAddr(bytes(octets))


@dataclass(slots=True)
class Kit:
    """What a process has before it has a bond.

    `confined`: what it has given up, for `status`; `store`: who keeps what is to outlive it;
    `foreground`: somebody waits for it to end.
    """

    steering: Steering
    managers: Managers
    confined: str
    store: Store = field(default_factory=Store)
    foreground: bool = False


class Alarm:
    """One call, at the earliest of the times that are asked for.

    The loop's own handles cannot be asked when they are due: for less than a millisecond uvloop makes no timer.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call, self._due = call, 0.0
        self._handle: asyncio.Handle | None = None

    def within(self, seconds: float) -> None:
        """Call in so many seconds, or earlier if that was asked for before."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if self._handle is None or due < self._due:
            self.cancel()
            self._due, self._handle = due, loop.call_later(seconds, self._ring)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        self._handle = None
        self._call()


class Desk:
    """What clients of the control socket talk to (`control.Handler`)."""

    def __init__(self, service: Service, spec: BondSpec, kit: Kit, lock: Lock) -> None:
        self.service, self.spec, self._kit, self._lock = service, spec, kit, lock
        self._left_alone = kit.managers.told
        self._telling: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.left = False
        """Another process has the bond now."""
        self.handing_over = asyncio.Lock()
        """Held while it is being decided whether another process gets the bond."""
        self.settled = asyncio.Event()
        """What a process before has left undone is done; nobody may ask for changes until then."""
        self.settled.set()
        self.notes: list[str] = []
        self._proc = ""
        self._keeping = Alarm(self._keep)
        self._kept_at, self._keep_pause = 0.0, KEEP_PAUSE
        self._past, self._past_due = "", 0.0
        self._server = Server(lock.bond, __version__, self)

    @property
    def files(self) -> str:
        """The name that the bond's files have: its own, unless that name's belong to another bond."""
        return self._lock.bond

    # ── control.Handler ──

    async def status(self) -> Report:
        doors = self.service.doors
        datapath = doors.datapath
        tap = {"tx_dropped": doors.tap.tx_dropped(), **datapath.totals(), "waiting": datapath.waiting()}
        extra = {
            "uptime": (time.monotonic_ns() - self.service.started) // 1_000_000_000,
            "provisional": doors.datapath.stand_in(),
            "restarts": self.service.restarts,
            "strict": self.spec.strict,
            "bypass": self.spec.bypass,
            "workers": datapath.workers,
            "per_worker": datapath.shares(),
            "offloads": doors.tap.offload_names(doors.offload),
            "sandbox": self._kit.confined,
            "shortcomings": doors.shortcomings,
            "counters": tap,
            "released": datapath.released(),
        }
        counters = datapath.counters()
        slaves = {
            name: {"gate": doors.gates.get(name, "none"), "counters": counters[name]} for name in counters
        }
        return Report(self.service.snapshot(), __version__, extra, slaves)

    async def set(self, assignments: Sequence[Assignment]) -> list[str]:
        await self._stay()
        with self.service.notes() as notes:
            for slave, option, value in assignments:
                await self.service.write(option, value, slave)
        self._keep()  # what is answered is kept, whatever happens in the next moment
        return notes

    async def add(self, slaves: Sequence[str], take_addresses: bool) -> list[str]:
        await self._stay()
        with self.service.notes() as notes:
            for slave in slaves:
                await self.service.enslave(slave, take_addresses)
        self._keep()
        return notes

    async def remove(self, slaves: Sequence[str]) -> list[str]:
        await self._stay()
        with self.service.notes() as notes:
            for slave in slaves:
                await self.service.release(slave)
        self._keep()
        return notes

    def history(self) -> list[dict[str, object]]:
        return self.service.failovers()

    def log(self) -> list[dict[str, object]]:
        return list(self.service.lines)

    async def down(self) -> None:
        await self._stay()
        await self.service.shut()
        self._stop_keeping()
        self.service.doors.tap.close()
        await asyncio.to_thread(self._kit.store.clear)
        self.ended.set()

    async def upgrade(self, line: socket.socket) -> None:
        await self._stay()
        if self._kit.foreground:
            text = f"{self.files} runs in the foreground: whoever started it has to start it again"
            raise Refused(errno.EOPNOTSUPP, [text])
        async with self.handing_over:
            freeze(self.document())  # a fault in that shows while nothing is at stake
            patience = handover.patience(await self._rate())
            for _ in range(_TRIES):
                if await self.service.stand_still():
                    break
                await asyncio.sleep(0.01)
            else:
                raise Refused(errno.EAGAIN, [f"{self.files}: its links do not come to rest; try again"])
            try:
                handover.give(handover.Line(line), self.document(), self.descriptors(), patience)
            except BaseException:
                self.service.go_on()
                raise
            self.left = True
            self._stop_keeping()
            self._server.stop_listening()  # before the other end hears that we are gone
            await asyncio.to_thread(self._kit.store.clear)  # whatever happens now, nobody starts us again
            self.ended.set()

    async def _rate(self) -> float:
        """Frames a second that leave the bond or enter it, whichever are more."""

        def frames() -> tuple[int, int]:
            datapath = self.service.doors.datapath
            return datapath.totals()["tap_frames"], sum(one["rx_frames"] for one in datapath.counters().values())

        before = frames()
        await asyncio.sleep(_SAMPLE)
        return max(now - then for now, then in zip(frames(), before, strict=True)) / _SAMPLE

    async def _stay(self) -> None:
        """Return when slaves may be changed.  Refused if another process gets the bond."""
        await self.settled.wait()
        if self.handing_over.locked() or self.left:
            raise Refused(errno.EBUSY, [f"{self.files} is being upgraded; try again in a moment"])

    def document(self) -> handover.Document:
        """All that is known here, for a process that goes on with the bond.  Exact while the worker stands."""
        service = self.service
        return handover.Document(
            version=handover.VERSION,
            spec=self.spec,
            files=self.files,
            bond=service.bond.memory(),
            doors=service.doors.memory(),
            datapath=service.doors.datapath.memory(),
            service=service.memory(),
            pid=os.getpid(),
            ubond=__version__,
            since=time.monotonic_ns(),
        )

    def descriptors(self) -> dict[str, int]:
        """What must stay open for that process, by role."""
        doors = self.service.doors
        return handover.roles(
            doors.tap.descriptors, doors.ports, lock=self._lock.descriptor, control=self._server.descriptor
        )

    async def hook(self, call: str) -> dict[str, str]:
        if call == "segfault":
            self.service.doors.datapath.crash()
        return {"loop": attempt(call), "helper": await asyncio.to_thread(attempt, call)}

    # ── the files that others read ──

    async def open(self, listening: socket.socket | None = None) -> None:
        """Begin to talk to clients; `listening`: on a socket that another process has made."""
        self.service.on_change = self.changed
        self.service.on_release = self._keep
        self.service.on_frames = self._frames_passed
        self.service.on_news = self._server.publish
        self.service.on_rename = self._renamed
        self._write_proc()
        await self._server.start(paths.socket_path(self.files), listening)
        self._keep()

    async def close(self) -> None:
        self._stop_keeping()
        await self._server.close()
        for path in (paths.proc_path(self.files), paths.socket_path(self.files)):
            path.unlink(missing_ok=True)

    async def leave(self) -> None:
        """Close all that is open here and give nothing back: another process has it too."""
        self._stop_keeping()
        self.service.leave()
        await self._server.close(keep_file=True)
        doors = self.service.doors
        await asyncio.to_thread(doors.datapath.stop)
        doors.close_ports()
        doors.tap.close()
        self._lock.leave()

    async def leave_to_store(self) -> None:
        """End without giving anything back: a later process goes on by what the store keeps."""
        while not await self.service.stand_still():
            await asyncio.sleep(0.01)
        self._keep()
        self.left = True

    def _keep(self) -> None:
        """Have all that a successor needs kept: as it is now, and again after a while, for the counters."""
        if not self._kit.store.is_there:
            return
        self._keeping.cancel()
        begun = time.monotonic()
        # What has happened, most of the text, can wait a little; what is so now is written at once.
        if late := begun < self._past_due:
            wait = self._past_due - begun
        else:
            self._past = handover.write_past(self.service.memory())
            self._past_due = time.monotonic() + 10 * (time.monotonic() - begun)
            wait = KEEP_EVERY
        datapath = self.service.doors.datapath
        datapath.ask_for_frames()  # those that come while it is written may be in it or not
        self._kit.store.update(handover.write(self.document(), self._past).encode(), self.descriptors())
        if not late:
            self._keep_pause = max(KEEP_PAUSE, 10 * (time.monotonic() - begun))
        self._kept_at = begun
        # Without frames and events nothing changes that is worth a writing: the watch tells of the next one.
        if late or not datapath.polls:
            self._keeping.within(wait)

    def _frames_passed(self) -> None:
        """Counters have changed: they may be as old as this when a successor reads them."""
        self._keeping.within(max(0.0, self._kept_at + KEEP_EVERY - time.monotonic()))

    def _keep_soon(self) -> None:
        """The same at most so often that it costs a tenth of the time."""
        wait = self._kept_at + self._keep_pause - time.monotonic()
        if wait <= 0:
            self._keep()
        elif self._kit.store.is_there:
            self._keeping.within(wait)

    def _stop_keeping(self) -> None:
        self.service.on_change = self.service.on_release = self.service.on_frames = lambda: None
        self._keeping.cancel()

    def changed(self) -> None:
        """See what has to be told to those who read files, or come after us."""
        self._write_proc()
        self._keep_soon()
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
            for note in await asyncio.to_thread(self._kit.managers.tell, sorted(told)):
                log.warning("%s: %s", self.files, note)

    def _renamed(self, name: str) -> None:
        """The bond's device has another name: whoever asks for it finds it under that one, if all files can follow."""
        old = self.files
        if name == old:
            return  # they have not followed the name that it had meanwhile
        if why := self._cannot_follow(name):
            self.service.say(f"{why}: control stays at {old}", Level.ERROR)
            return
        try:
            self._lock.rename(name)
            self._server.rename(name, paths.socket_path(name))
        except (OSError, DoorError) as error:
            self.service.say(f"the files of {old} could not follow its name: {error}", Level.ERROR)
        self._proc = ""
        self._kit.managers.rename(name)
        self._tell_managers()
        paths.proc_path(old).unlink(missing_ok=True)
        self._write_proc()

    def _cannot_follow(self, name: str) -> str:
        """Take the journal along to the bond's new name; or why it must stay with the other files where it is."""
        if not name.isprintable():
            return "nobody can type this name"
        if not paths.is_free(name):
            return f"files of another bond {name} are there"
        try:
            self.service.doors.journal.rename(name)
        except DoorError as error:
            return str(error)
        return ""

    def _write_proc(self) -> None:
        """Keep /proc/net/bonding's text where programs can read it, whole at every moment."""
        text = proc(self.service.snapshot(), __version__)
        if text == self._proc:
            return
        self._proc = text
        path = paths.proc_path(self.files)
        try:
            paths.write_for_all(path, text)
        except OSError as error:
            log.warning("%s: %s could not be written: %s", self.files, path, error)


@contextlib.asynccontextmanager
async def assemble(spec: BondSpec, kit: Kit, lock: Lock) -> AsyncIterator[Desk]:
    """Build the bond of this spec; on leaving, give everything back unless another process has it."""
    async with contextlib.AsyncExitStack() as stack:
        netlink = Netlink()
        await netlink.open()
        stack.push_async_callback(netlink.close)
        journal = Journal(paths.runtime_dir(), spec.name)
        if left := await give_back_all(netlink, journal, spec.name):
            log.info("%s: gave back %d interfaces that a dead daemon held", spec.name, left)
        _refuse_taken_name(netlink, spec.name)
        stack.callback(kit.managers.forget)
        # Before the device is there: who sees it first would configure it.
        remarks = kit.managers.tell([slave.name for slave in spec.slaves])

        stack.callback(kit.store.clear)
        tap = Tap(spec.name, queues=spec.workers)
        stack.callback(tap.close)
        tap.set_carrier(False)
        doors = _doors(stack, spec, kit, tap, socket.if_nametoindex(spec.name), netlink, journal)
        await netlink.set_txqlen(spec.name, TX_QUEUE_UNATTENDED if kit.store.of_manager else TX_QUEUE)
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
        service = Service(bond, doors)
        stack.push_async_callback(service.shut)
        doors.datapath.start()
        desk = Desk(service, spec, kit, lock)
        with service.notes() as desk.notes:
            await _build(service, spec)
        desk.notes[:0] = remarks
        stack.push_async_callback(desk.close)  # also what it could open before it failed
        await desk.open()
        yield desk
        await _leave(desk, stack)


@contextlib.asynccontextmanager
async def take_over(bond: str, kit: Kit) -> AsyncIterator[Desk]:
    """Go on with a bond that another process runs, which ends when this one forwards."""
    netlink = Netlink()
    await netlink.open()
    prepare(handover.Document)
    try:
        line, content, descriptors = handover.ask(str(paths.socket_path(bond)))
    except BaseException:
        await netlink.close()
        raise
    lock, taken = Lock(bond, descriptors["lock"]), False
    try:
        with contextlib.closing(line):
            document = handover.read(content, random_mac=random_mac)
            async with adopt(document, descriptors, kit, lock, netlink, line) as desk:
                taken = True
                yield desk
    except EOFError as error:
        raise Refused(errno.ECONNRESET, [f"{bond}: the old process: {error}"]) from error
    finally:
        if taken:
            lock.release()
        else:
            lock.leave()


def read_kept(descriptors: Mapping[str, int]) -> handover.Document:
    """The document that a process wrote before it ended.  DocumentError if there is none that can be read."""
    text = read_document(descriptors[DOCUMENT])
    return handover.read(None if text is None else json.loads(text), random_mac=random_mac)


@contextlib.asynccontextmanager
async def come_back(
    document: handover.Document, descriptors: Mapping[str, int], kit: Kit, death: str
) -> AsyncIterator[Desk]:
    """Go on with the bond of a process that has ended, by what was kept of it; `death`: how it ended."""
    netlink = Netlink()
    await netlink.open()
    lock, taken = Lock(document.files, descriptors["lock"]), False
    try:
        async with adopt(document, descriptors, kit, lock, netlink, death=death) as desk:
            taken = True
            yield desk
    finally:
        if taken:
            lock.release()
        else:
            lock.leave()


@contextlib.asynccontextmanager
async def adopt(
    document: handover.Document,
    descriptors: Mapping[str, int],
    kit: Kit,
    lock: Lock,
    netlink: Netlink,
    line: handover.Line | None = None,
    death: str = "",
) -> AsyncIterator[Desk]:
    """Go on with a bond that another process has assembled, or had before it died.

    `document` may be older than what is true now, `descriptors` may lack slaves' sockets: those are
    opened anew.  `line`: where the other process waits; without one there is none any more.
    `netlink` is open, and closed at the end.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(netlink.close)
        ours = False
        stack.callback(lambda: kit.store.clear() if ours else None)
        stack.callback(lambda: kit.managers.forget() if ours else None)
        index = document.doors.index
        link = netlink.link(index)
        name = document.bond.state.name if link is None else link.name
        tap = Tap(name, handover.queues(descriptors))
        stack.callback(tap.close)
        journal = Journal(paths.runtime_dir(), document.files)
        doors = _doors(stack, document.spec, kit, tap, index, netlink, journal)
        workers = document.spec.workers
        known = {slave: handover.sockets(descriptors, slave, workers) for slave in document.doors.ports}
        doors.recall(document.doors, {slave: socks for slave, socks in known.items() if socks is not None})
        for slave in document.bond.state.slaves:
            if slave.name not in doors.ports:
                with contextlib.suppress(DoorError):  # gone: reconciled below
                    await doors.reopen(slave.name)
        doors.datapath.recall(document.datapath)
        service = Service(Bond.remembering(document.bond), doors, document.service)
        stack.callback(service.leave)
        desk = Desk(service, document.spec, kit, lock)
        if line is not None:
            signal.signal(TIME_IS_UP, signal.SIG_IGN)  # from now on the bond may be ours
            line.say("prepared")
            line.expect("go", handover.WAIT)
        doors.datapath.start()
        ours = True
        if line is not None:
            # Whoever has said `go` and hears nothing more is dead: it is ours all the same.
            with contextlib.suppress(OSError, EOFError, ControlError):
                line.say("forwarding")
        waited = (time.monotonic_ns() - document.since) / 1e6
        stack.push_async_callback(service.shut)
        with _dying_of_faults(desk, kit):
            if line is None:
                service.came_back(death)
            desk.settled.clear()
            listening = socket.socket(fileno=descriptors["control"]) if "control" in descriptors else None
            stack.push_async_callback(desk.close)
            await desk.open(listening)
            desk.changed()
            await service.reconcile(journal.load() if line is None else None)
            slaves = {slave.index for slave in service.snapshot().slaves}
            await give_back_all(netlink, doors.journal, service.name, but=slaves)
        desk.settled.set()
        if line is not None:
            service.say(f"goes on in process {os.getpid()} with ubond {__version__}, before {document.pid} with "
                        f"{document.ubond}; frames waited {waited:.1f} ms")  # fmt: skip
            await asyncio.to_thread(line.wait_for_end)
        yield desk
        await _leave(desk, stack)


@contextlib.contextmanager
def _dying_of_faults(desk: Desk, kit: Kit) -> Iterator[None]:
    """What keeps a successor from taking up a bond must not undo it: the next one tries again.

    Whoever starts them gives up one that keeps dying, and gives everything back.
    """
    try:
        yield
    except Exception as error:
        if not kit.store.is_there:
            raise
        log.critical("%s: could not be taken up", desk.files, exc_info=error)
        kit.store.explain(error)
        os._exit(1)


def _doors(
    stack: contextlib.AsyncExitStack,
    spec: BondSpec,
    kit: Kit,
    tap: Tap,
    index: int,
    netlink: Netlink,
    journal: Journal,
) -> Doors:
    """The doors of one bond with its datapath, which is not started yet."""
    probe = open_probe()
    stack.callback(probe.close)
    if (groups := open_groups()) >= 0:
        stack.callback(os.close, groups)
    taps = list(zip(tap.descriptors, count(), strict=False))
    datapath = Datapath(taps, probe.fileno(), spec.workers, groups)
    doors = Doors(tap, index, netlink, journal, datapath, kit.steering, bypass=spec.bypass, gate=spec.gate)
    stack.callback(doors.close_ports)
    stack.callback(datapath.stop)
    return doors


async def _leave(desk: Desk, stack: contextlib.AsyncExitStack) -> None:
    """If another process has the bond, undo nothing."""
    if desk.left:
        stack.pop_all()
        await desk.leave()


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
    had_link = []
    for slave in spec.slaves:
        if await service.enslave(slave.name, spec.take_addresses):
            had_link.append(slave.name)
        for option, text in slave.options.items():
            await service.write(option, text, slave.name)
    await service.wait_for_links(had_link)
    for option in spec.options:
        if find(option).name in _AFTER_SLAVES:
            await service.write(option, spec.options[option])
    for i, address in enumerate(spec.addresses):
        await doors.netlink.add_address(name, address, spec.broadcast if i == 0 else None)
    for gateway in spec.gateways:
        await doors.netlink.add_gateway(name, gateway)
