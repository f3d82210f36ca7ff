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
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ubond import init, paths
from ubond.bond.events import DoorError
from ubond.bond.options import OptionError, Refused
from ubond.bond.spec import BondSpec

if TYPE_CHECKING:
    from ubond.managers import Managers
    from ubond.steering import Steering

T = TypeVar("T")
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
        _run(spec, lambda notes: _tell_service_manager())
        return []
    return _start_in_background(spec)


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


def _start_in_background(spec: BondSpec) -> list[str]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _detach(writer)
        code = 1
        try:
            code = _be_the_daemon(spec, writer)
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    if not answer:
        _, status = os.waitpid(child, 0)
        raise DoorError("daemon", errno.ECHILD, spec.name, f"the daemon died while starting (status {status})")
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


def _be_the_daemon(spec: BondSpec, writer: int) -> int:
    told = False

    def tell(outcome: dict[str, object]) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(writer, json.dumps(outcome).encode())
            os.close(writer)

    _log_to_system()
    try:
        _run(spec, lambda notes: tell({"notes": notes}))
    except BaseException as error:
        if told:
            log.critical("%s: stopped by an error", spec.name, exc_info=error)
        tell(_outcome(error))
        return 1
    return 0


def _outcome(error: BaseException) -> dict[str, object]:
    match error:
        case Refused():
            kind = "option" if isinstance(error, OptionError) else "refused"
            return {kind: {"errno": error.errno, "lines": error.lines, "extack": error.extack}}
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


class Lock:
    """The lock of a bond, which may get another name."""

    def __init__(self, bond: str) -> None:
        self.bond = bond

    def rename(self, bond: str) -> bool:
        """Follow the bond's new name; False if that name's files belong to another bond."""
        followed = paths.rename_lock(self.bond, bond)
        self.bond = bond if followed else self.bond
        return followed


@contextlib.contextmanager
def _locked(bond: str) -> Iterator[Lock]:
    """Hold the bond's lock: as long as it is held the daemon lives, whatever a PID may say."""
    lock = Lock(bond)
    fd = paths.lock(bond)
    if fd is None:
        raise Refused(errno.EEXIST, [f"{bond} is already running"])
    try:
        # Of a daemon that died: nobody answers here, and what is written there is not true any more.
        for path in (paths.socket_path(bond), paths.proc_path(bond)):
            path.unlink(missing_ok=True)
        yield lock
    finally:
        paths.unlock(lock.bond, fd)
        paths.remove_empty_dirs()


def _run(spec: BondSpec, ready: Callable[[list[str]], None]) -> None:
    from ubond.managers import Errand, Managers
    from ubond.sandbox import confine
    from ubond.steering import Steering

    paths.make_runtime_dir()
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(_locked(spec.name))
        steering = stack.enter_context(contextlib.closing(Steering()))
        managers = Managers(spec.name)
        if managers.need_errands:
            managers = Managers(spec.name, errand=stack.enter_context(contextlib.closing(Errand())))
        confined = confine()
        log.info("%s: sandbox: %s", spec.name, confined)
        _with_loop(lambda: _serve(spec, lock, ready, steering, managers, confined))


async def _serve(
    spec: BondSpec,
    lock: Lock,
    ready: Callable[[list[str]], None],
    steering: Steering,
    managers: Managers,
    confined: str,
) -> None:
    """Build the bond, say `ready`, and run it until it is told to end."""
    from ubond.assembly import assemble

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
    async with assemble(spec, steering, managers, confined, lock.rename) as desk:
        ready(desk.notes)
        waits = [loop.create_task(event.wait()) for event in (asked_to_end, desk.service.gone, desk.ended)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
