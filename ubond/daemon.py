"""The life of one bond's process: started, locked, served, taken down cleanly.

`start` is what `ubond up` calls.  In the background it forks before anything heavy is
loaded, and returns when frames can flow or with the reason why they cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import logging.handlers
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from ubond import init, paths
from ubond.bond.events import DoorError
from ubond.bond.options import OptionError, Refused
from ubond.bond.spec import BondSpec
from ubond.client import ControlError
from ubond.paths import Lock

if TYPE_CHECKING:
    from ubond.assembly import Desk, Kit

T = TypeVar("T")
#: Called with the notes when frames can flow.
Ready = Callable[[list[str]], None]
#: Seconds that a new daemon may take to go on with a bond.
UPGRADE_PATIENCE = 60.0
#: How often it is tried when the machine is too busy for the new daemon to become ready in time.
UPGRADE_TRIES = 5
log = logging.getLogger("ubond")


# ── the front of it: what the command line calls ─────────────────────────────────────


def start(spec: BondSpec, *, foreground: bool = False) -> list[str]:
    """Bring a bond up; return what is worth a remark, in the foreground when it has been taken down.

    Raises Refused, DoorError or JournalError when it cannot be, and nothing is left behind.
    """
    if paths.running(spec.name):
        raise Refused(errno.EEXIST, [f"{spec.name} is already running; take it down with: ubond down {spec.name}"])
    if foreground:
        _log_to_stderr()
        _run(spec, lambda notes: _tell_service_manager(), foreground=True)
        return []
    return _start_in_background(spec.name, lambda ready: _run(spec, ready))


def upgrade(bond: str) -> list[str]:
    """Have a process of this version go on with a bond; return what is worth a remark.

    Raises Refused, DoorError or ControlError when that fails: then the old process goes on.
    """
    for left in reversed(range(UPGRADE_TRIES)):
        try:
            return _start_in_background(bond, lambda ready: _take_over(bond, ready), patience=UPGRADE_PATIENCE)
        except ControlError as error:
            if error.errno != "ETIMEDOUT" or not left:
                raise
    raise AssertionError("tried at least once")


def recover(bond: str) -> int:
    """Give back what a dead daemon of this bond held; return how many interfaces that were."""
    with _locked(bond):
        from ubond import recovery

    return _with_loop(lambda: recovery.recover(bond))


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
    bond: str, run: Callable[[Ready], None], patience: float | None = None
) -> list[str]:
    """Fork a daemon that does `run`; return when that says `ready`, with its notes.

    It is killed if it has not come so far within `patience` seconds.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _detach(writer)
        code = 1
        try:
            code = _be_the_daemon(bond, run, writer)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        if not select.select([pipe], [], [], patience)[0]:
            os.kill(child, signal.SIGKILL)
        answer = pipe.read()
    if not answer:
        _, status = os.waitpid(child, 0)
        raise DoorError("daemon", errno.ECHILD, bond, f"the daemon died while starting (status {status})")
    outcome = json.loads(answer)
    _raise_outcome(outcome)
    return list(outcome["notes"])


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


def _be_the_daemon(bond: str, run: Callable[[Ready], None], writer: int) -> int:
    told = False

    def tell(outcome: dict[str, object]) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(writer, json.dumps(outcome).encode())
            os.close(writer)

    _log_to_system()
    try:
        run(lambda notes: tell({"notes": notes}))
    except BaseException as error:
        if told:
            log.critical("%s: stopped by an error", bond, exc_info=error)
        tell(_outcome(error))
        return 1
    return 0


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


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s", force=True)


def _log_to_system() -> None:
    """To the journal or syslog where there is one; `ubond history` keeps the lines in any case."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = [logging.NullHandler()]
    if os.path.exists("/dev/log"):
        with contextlib.suppress(OSError):
            handler = logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON)
            handler.setFormatter(logging.Formatter("ubond: %(message)s"))
            root.handlers[:] = [handler]


# ── the daemon itself ────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _locked(bond: str) -> Iterator[Lock]:
    """Hold the bond's lock: as long as it is held the daemon lives, whatever a PID may say."""
    descriptor = paths.lock(bond)
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


def _run(spec: BondSpec, ready: Ready, *, foreground: bool = False) -> None:
    paths.make_runtime_dir()
    with _locked(spec.name) as lock, _kit(spec.name, foreground=foreground) as kit:
        from ubond.assembly import assemble

        _with_loop(lambda: _serve(assemble(spec, kit, lock), ready))


def _take_over(bond: str, ready: Ready) -> None:
    """Be the next daemon of a bond that runs."""
    with _kit(bond, foreground=False) as kit:
        from ubond.assembly import take_over

        _with_loop(lambda: _serve(take_over(bond, kit), ready))
        paths.remove_empty_dirs()


@contextlib.contextmanager
def _kit(bond: str, *, foreground: bool) -> Iterator[Kit]:
    """What a daemon takes with it into confinement, which begins here."""
    from ubond.assembly import Kit
    from ubond.managers import Errand, Managers
    from ubond.sandbox import confine
    from ubond.steering import Steering

    with contextlib.ExitStack() as stack:
        steering = stack.enter_context(contextlib.closing(Steering()))
        managers = Managers(bond)
        if managers.need_errands:
            managers = Managers(bond, errand=stack.enter_context(contextlib.closing(Errand())))
        confined = confine()
        log.info("%s: sandbox: %s", bond, confined)
        yield Kit(steering, managers, confined, foreground)


async def _serve(bond: AbstractAsyncContextManager[Desk], ready: Ready) -> None:
    """Build the bond, say `ready`, and run it until it is told to end."""
    loop = asyncio.get_running_loop()
    asked_to_end = asyncio.Event()

    def end(number: int) -> None:
        if init.is_first() and not asked_to_end.is_set():
            init.pass_on(number)
        asked_to_end.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    if init.is_first():
        init.collect_orphans()
    async with bond as desk:
        ready(desk.notes)
        waits = [loop.create_task(event.wait()) for event in (asked_to_end, desk.service.gone, desk.ended)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        async with desk.handing_over:
            pass  # if the bond is just being handed over, it must be known whose it is
