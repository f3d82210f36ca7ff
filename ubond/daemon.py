"""The life of one bond's process: started, locked, served, taken down cleanly.

`start` is what `ubond up` calls.  In the background it forks before anything heavy is
loaded, and returns when frames can flow or with the reason why they cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import select
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ubond import init, logs, paths
from ubond.bond.events import DoorError
from ubond.bond.options import OptionError, Refused
from ubond.bond.spec import BondSpec
from ubond.client import ControlError
from ubond.keeper import Inheritance, Keeper
from ubond.paths import Lock
from ubond.store import DOCUMENT, TIME_IS_UP, Store, of_service_manager

if TYPE_CHECKING:
    from ubond.assembly import Desk, Kit
    from ubond.managers import Managers

T = TypeVar("T")
#: Called with the notes when frames can flow.
Ready = Callable[[list[str]], None]
#: What a daemon does from its first moment to its last.
Run = Callable[..., None]
#: Seconds that a new daemon may take to go on with a bond.
UPGRADE_PATIENCE = 180.0
#: How often it is tried when the machine is too busy for the new daemon to become ready in time.
UPGRADE_TRIES = 5
log = logging.getLogger("ubond")


# ── the front of it: what the command line calls ─────────────────────────────────────


def start(spec: BondSpec, *, foreground: bool = False, keeper: bool = True) -> list[str]:
    """Bring a bond up; return what is worth a remark, in the foreground when it has been taken down.

    `keeper`: a process above the daemon starts it again when it dies.  Raises Refused, DoorError or
    JournalError when the bond cannot be brought up, and nothing is left behind.
    """
    if foreground and not keeper:
        logs.to_stderr()
        _run_for_service_manager(spec)
        return []
    if paths.running(spec.name):
        raise Refused(errno.EEXIST, [f"{spec.name} is already running; take it down with: ubond down {spec.name}"])
    run = partial(_run, spec, foreground=foreground)
    if foreground:
        logs.to_stderr()
        _keep_in_foreground(spec.name, run)
        return []
    return _start_in_background(spec.name, run, keeper=keeper)


def upgrade(bond: str) -> list[str]:
    """Have a process of this version go on with a bond; return what is worth a remark.

    Raises Refused, DoorError or ControlError when that fails: then the old process goes on.
    """
    for left in reversed(range(UPGRADE_TRIES)):
        try:
            return _start_in_background(bond, partial(_take_over, bond), adopts=True, patience=UPGRADE_PATIENCE)
        except ControlError as error:
            if error.errno != "ETIMEDOUT" or not left:
                raise
    raise AssertionError("tried at least once")


def recover(bond: str, managers: Managers | None = None) -> int:
    """Give back what a dead daemon of this bond held; return how many interfaces that were.

    `managers`: of a process that may not look for them any more.
    """
    with _locked(bond):
        from ubond import recovery

    return _with_loop(lambda: recovery.recover(bond, managers))


def restore(interfaces: list[str]) -> int:
    """Give these interfaces back what ubond took from them; return how many needed it.

    Works from a journal, or where that is lost from what their alias tells.
    """
    from ubond import recovery

    return _with_loop(lambda: recovery.restore(interfaces))


def _with_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


# ── into the background and back with the outcome ────────────────────────────────────


def _start_in_background(
    bond: str, run: Run, *, keeper: bool = True, adopts: bool = False, patience: float | None = None
) -> list[str]:
    """Fork a daemon that does `run`, with or without a keeper; return when that says `ready`, with its notes.

    `adopts`: it goes on with a bond that runs.  If it has not taken that over within `patience` seconds it is ended.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.signal(TIME_IS_UP, signal.SIG_DFL)
        _detach(writer)
        code = 1
        try:
            logs.to_system()
            if keeper:
                code = _keep(bond, run, writer, adopts=adopts)
            else:
                code = _be_the_daemon(bond, partial(run, Store()), writer)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        late = not select.select([pipe], [], [], patience)[0]
        if late:
            # Not SIGTERM: if the bond is its own by now, that would be the bond's end.
            os.kill(child, TIME_IS_UP)
        answer = pipe.read()
    outcome = _last_outcome(answer) if answer else {}
    if late and "notes" not in outcome:
        raise DoorError("daemon", errno.ETIMEDOUT, bond, f"the new daemon was not ready within {patience:g} s")
    if not answer:
        _, status = os.waitpid(child, 0)
        raise DoorError("daemon", errno.ECHILD, bond, f"the daemon died while starting (status {status})")
    _raise_outcome(outcome)
    return list(outcome["notes"])


def _keep_in_foreground(bond: str, run: Run) -> None:
    """Be the keeper of a daemon that does `run`; raise what keeps that from getting ready."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reader, "rb") as pipe:
        code = _keep(bond, run, writer, on_ready=_tell_service_manager, foreground=True)
        answer = pipe.read()
    if answer:
        _raise_outcome(_last_outcome(answer))
    if code:
        raise Refused(errno.ECHILD, [f"{bond}: its daemon died again and again; its slaves are given back"])


def _keep(
    bond: str,
    run: Run,
    writer: int,
    on_ready: Callable[[], None] = lambda: None,
    *,
    adopts: bool = False,
    foreground: bool = False,
) -> int:
    """Be the keeper of a daemon that does `run`; return this process's exit code.

    `writer`: who started it waits there for the outcome; it is closed when that is written.
    """
    with contextlib.ExitStack() as stack:
        try:
            tools = stack.enter_context(_tools(bond))
            _load_all()
            log.debug("%s: sandbox of the keeper: %s", bond, tools.confine(keeper=True))
        except Exception as error:  # a version that is broken, say
            _tell(writer, _outcome(error))
            os.close(writer)
            return 1

        def daemon(given: Inheritance) -> int:
            if given.death and not keeper.was_ready:
                os.close(writer)  # the keeper tells
            if DOCUMENT in given.descriptors:
                go_on = partial(_go_on, given.store, tools, given.descriptors, given.death, foreground=foreground)
                return _be_the_daemon(bond, go_on)
            return _be_the_daemon(bond, partial(run, given.store, tools=tools), writer)

        def ready() -> None:
            if keeper.death:  # who was to tell is dead
                with contextlib.suppress(OSError):  # so may be who asked
                    _tell(writer, {"notes": [f"{bond}: its new daemon {keeper.death} and was started again"]})
            os.close(writer)
            on_ready()

        keeper = Keeper(bond, daemon, ready, adopts=adopts)
        death = keeper.run()
        if not death:
            return 0
        if not keeper.was_ready and not keeper.has_tried_again and keeper.code is not None:
            os.close(writer)
            return 1  # it has told why
        bond = keeper.name or bond
        tools.managers.bond = bond
        count = recover(bond, tools.managers)
        log.error("%s: its daemon %s; gave back %d interfaces", bond, death, count)
        if not keeper.was_ready:
            text = f"{bond}: its daemon {death} while starting; what it had taken is given back"
            _tell(writer, _outcome(Refused(errno.ECHILD, [text])))
            os.close(writer)
        return 0 if keeper.asked_to_end and keeper.was_ready else 1


def _load_all() -> None:
    """Import all that a daemon needs: the keeper's next one has it then without waiting."""
    import uvloop  # noqa: F401

    from ubond import assembly, handover
    from ubond.bond.document import prepare

    prepare(handover.Document)
    assert assembly
    gc.collect()
    gc.freeze()  # what is collected never is not written to, and its pages stay shared


def _detach(keep: int) -> None:
    """Leave the terminal and whatever the caller had open, but for this descriptor."""
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard, inheritable=False)
    os.close(null)


def _be_the_daemon(bond: str, run: Callable[[Ready], None], writer: int | None = None) -> int:
    """Do `run` and tell its outcome at `writer`, if anybody waits there; return the exit code."""

    def tell(outcome: dict[str, object]) -> None:
        nonlocal writer
        if writer is not None:
            _tell(writer, outcome)
            os.close(writer)
            writer = None

    try:
        run(lambda notes: tell({"notes": notes}))
    except BaseException as error:
        if writer is None:
            log.critical("%s: stopped by an error", bond, exc_info=error)
        tell(_outcome(error))
        return 1
    return 0


def _tell(writer: int, outcome: Mapping[str, object]) -> None:
    os.write(writer, json.dumps(outcome).encode() + b"\n")


def _last_outcome(told: bytes) -> dict[str, Any]:
    """A daemon may have told that it is ready, and died before its keeper heard so, which then has the last word."""
    return dict(json.loads(told.splitlines()[-1]))


def _outcome(error: BaseException) -> dict[str, object]:
    match error:
        case Refused():
            kind = "option" if isinstance(error, OptionError) else "refused"
            return {kind: {"errno": error.errno, "lines": error.lines, "extack": error.extack}}
        case ControlError():
            return {"control": [error.code, error.errno, str(error), list(error.lines)]}
        case DoorError():
            return {"door": [error.call, error.errno, error.interface, error.detail]}
        case OSError():
            return {"door": ["start", error.errno or 0, "", error.strerror or str(error)]}
        case _:
            return {"door": ["start", 0, "", f"{type(error).__name__}: {error}"]}


def _raise_outcome(outcome: dict[str, Any]) -> None:
    for kind, refusal in (("option", OptionError), ("refused", Refused)):
        if kind in outcome:
            raise refusal(**outcome[kind])
    if "control" in outcome:
        raise ControlError(*outcome["control"])
    if "door" in outcome:
        raise DoorError(*outcome["door"])


def _tell_service_manager() -> None:
    """sd_notify(3): READY=1, where a service manager waits for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


# ── the daemon itself ────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _locked(bond: str) -> Iterator[Lock]:
    """Hold the bond's lock: as long as it is held the daemon lives, whatever a PID may say."""
    descriptor = paths.lock_anew(bond)
    if descriptor is None:
        raise Refused(errno.EEXIST, [f"{bond} is already running"])
    lock = Lock(bond, descriptor)
    try:
        # Of a daemon that died: nobody answers here, and what is written there is not true any more.
        paths.remove_stale(bond)
        yield lock
    finally:
        lock.release()
        paths.remove_empty_dirs()


def _run(
    spec: BondSpec, store: Store, ready: Ready, *, tools: Tools | None = None, foreground: bool = False
) -> None:
    """Bring a bond up and run it to its end."""
    with _locked(spec.name) as lock, _kit(spec.name, store, tools, foreground=foreground) as kit:
        from ubond.assembly import assemble

        _with_loop(lambda: _serve(assemble(spec, kit, lock), ready, kit))


def _take_over(bond: str, store: Store, ready: Ready, *, tools: Tools | None = None) -> None:
    """Be the next daemon of a bond that runs."""
    with _kit(bond, store, tools, foreground=False) as kit:
        from ubond.assembly import take_over

        _with_loop(lambda: _serve(take_over(bond, kit), ready, kit))
        paths.remove_empty_dirs()


def _go_on(
    store: Store,
    tools: Tools,
    descriptors: Mapping[str, int],
    death: str,
    ready: Ready,
    *,
    foreground: bool = False,
) -> None:
    """Go on with the bond of a daemon that is no more, by what was kept of it."""
    from ubond.assembly import come_back, read_kept

    document = read_kept(descriptors)
    with _kit(document.files, store, tools, foreground=foreground) as kit:
        _with_loop(lambda: _serve(come_back(document, descriptors, kit, death), ready, kit))
        paths.remove_empty_dirs()


def _run_for_service_manager(spec: BondSpec) -> None:
    """Run without a keeper: what is to outlive this process is kept by the service manager, if it does that."""
    store, kept = of_service_manager()

    def ready(notes: list[str]) -> None:
        for note in notes:
            log.warning("%s", note)

    with _tools(spec.name) as tools:
        if DOCUMENT in kept:
            from ubond.assembly import read_kept

            document = read_kept(kept)
            if document.spec == spec:
                _go_on(store, tools, kept, "", ready, foreground=True)
                return
            log.info("%s: it is configured in another way now: beginning anew", spec.name)
        for descriptor in kept.values():
            os.close(descriptor)
        store.forget()
        if paths.running(spec.name):
            text = f"{spec.name} is already running; take it down with: ubond down {spec.name}"
            raise Refused(errno.EEXIST, [text])
        _run(spec, store, ready, tools=tools, foreground=True)


class Tools:
    """What a process takes with it into confinement."""

    def __init__(self, bond: str, stack: contextlib.ExitStack) -> None:
        from ubond.managers import Errand, Managers
        from ubond.steering import Steering

        self.steering = stack.enter_context(contextlib.closing(Steering()))
        self.managers = Managers(bond)
        if self.managers.need_errands:
            self.managers = Managers(bond, errand=stack.enter_context(contextlib.closing(Errand())))

    def confine(self, *, keeper: bool = False) -> str:
        from ubond.sandbox import confine

        return confine(keeper=keeper)


@contextlib.contextmanager
def _tools(bond: str) -> Iterator[Tools]:
    with contextlib.ExitStack() as stack:
        yield Tools(bond, stack)


@contextlib.contextmanager
def _kit(bond: str, store: Store, tools: Tools | None, *, foreground: bool) -> Iterator[Kit]:
    """What a daemon has before it has a bond; its confinement begins here."""
    from ubond.assembly import Kit

    with contextlib.ExitStack() as stack:
        tools = tools or stack.enter_context(_tools(bond))
        store.open_document()
        confined = tools.confine()
        log.info("%s: sandbox: %s", bond, confined)
        tools.managers.bond = bond  # it may have got another name since they were asked
        yield Kit(tools.steering, tools.managers, confined, store, foreground)


def _die_of(bond: str, store: Store, performer: asyncio.Task[None]) -> None:
    """A fault of ours ended who performs actions: a new daemon takes up what this one could not finish."""
    if not performer.cancelled() and (fault := performer.exception()) is not None:
        log.critical("%s: stopped by an error", bond, exc_info=fault)
        store.explain(fault)
        os._exit(1)


async def _serve(bond: AbstractAsyncContextManager[Desk], ready: Ready, kit: Kit) -> None:
    """Build the bond, say `ready`, and run it until it is told to end."""
    loop = asyncio.get_running_loop()
    asked_to_end, asked_to_leave = asyncio.Event(), asyncio.Event()

    def end(number: int) -> None:
        if init.is_first() and not asked_to_end.is_set():
            init.pass_on(number)
        asked_to_end.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    if kit.store.of_manager:
        loop.add_signal_handler(signal.SIGUSR1, asked_to_leave.set)
    if init.is_first():
        init.collect_orphans()
    async with bond as desk:
        ready(desk.notes)
        kit.store.ready()
        events = (asked_to_end, asked_to_leave, desk.service.gone, desk.ended)
        if kit.store.is_there:
            desk.service.performer.add_done_callback(partial(_die_of, desk.files, kit.store))
        waits = [loop.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        async with desk.handing_over:
            pass  # if the bond is just being handed over, it must be known whose it is
        if asked_to_leave.is_set() and not asked_to_end.is_set():
            await desk.leave_to_store()
