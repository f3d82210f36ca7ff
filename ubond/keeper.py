"""The keeper: a small parent process that holds a daemon's descriptors and starts it again when it dies.

    command ──fork──► keeper ──fork──► daemon         what the daemon opens it sends to the keeper (`store`)
                        │    ◄─sends──    ✗           killed
                        └────fork──► daemon           the next one inherits it all, and goes on

That the daemon lives is what waitpid(2) says, never a process number on disk.  What it has sent stays
open here: the bond's device with its addresses, routes and connections, the slaves' sockets, the
lock.  Frames wait in them until the next daemon reads on.

A daemon that ends by itself with exit code 0 has given everything back, and the keeper ends with it.  One that
dies `DEATHS` times within `WITHIN` seconds is given up: everything is let go and given back.

All that a daemon imports is imported before the first fork, so that the next one need not; the pages
are shared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from ubond import init, store

DEATHS, WITHIN = 5, 60.0
#: Seconds to wait where no process can be started.
_PAUSE = 1.0
#: What ends a bond; the others are the kernel's and the terminal's affair.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PASSED_ON = (*_ENDING, store.TIME_IS_UP)

log = logging.getLogger("ubond")


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a daemon starts with: who keeps things for it, and what has been kept.

    `descriptors`: by role; empty at the first start.  `death`: how the one before ended.
    """

    store: store.Store
    descriptors: dict[str, int]
    death: str = ""


class Keeper:
    """Keeps one daemon alive until it ends on purpose."""

    def __init__(
        self, bond: str, daemon: Callable[[Inheritance], int], on_ready: Callable[[], None], *, adopts: bool = False
    ) -> None:
        """`daemon` is called in each child, which ends with the exit code that it returns.

        `on_ready`: called once, when frames can flow.  `adopts`: the first daemon goes on with a bond that runs, so
        that what it has begun to keep is a whole bond, ready or not.
        """
        self._bond, self._daemon, self._on_ready, self._adopts = bond, daemon, on_ready, adopts
        self.death = ""
        """How the daemon before the present one ended."""
        self._kept: dict[str, int] = {}
        self._child = 0
        self._ready = False
        self._why = ""
        """Of what fault the daemon dies, as it has said itself."""
        self._name = ""
        self.code: int | None = None
        """The last daemon's exit code, None if a signal ended it."""
        self._asked_to_end = self._late = False
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._wake = -1

    @property
    def name(self) -> str:
        """The name that the bond's files have, by what the daemon has written last; empty if it has not."""
        return self._name

    def _read_name(self) -> str:
        descriptor = self._kept.get(store.DOCUMENT)
        text = None if descriptor is None else store.read_document(descriptor)
        try:
            return str(json.loads(text or b"{}").get("files", ""))
        except (ValueError, AttributeError):
            return ""

    def run(self) -> str:
        """Return when the daemon has ended on purpose: empty; or how it died, when it is not started again.

        Then nothing is kept any more.
        """
        with self._signals():
            while True:
                self.death = self._start_and_attend()
                if not self.death or not self._may_go_on(self.death):
                    break
        self._name = self._read_name()
        for descriptor in self._kept.values():
            os.close(descriptor)
        self._kept.clear()
        return self.death

    @property
    def was_ready(self) -> bool:
        """Whether frames could flow at any time."""
        return self._ready

    @property
    def has_tried_again(self) -> bool:
        """Whether a daemon has had a successor."""
        return bool(self._deaths)

    @property
    def asked_to_end(self) -> bool:
        return self._asked_to_end

    def _may_go_on(self, death: str) -> bool:
        """Whether a dead daemon is to have a successor."""
        if self._asked_to_end or not (self._ready or self._adopts) or store.DOCUMENT not in self._kept:
            return False
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) == DEATHS and now - self._deaths[0] < WITHIN:
            log.critical("%s: its daemon %s, for the %dth time within %.0f s: giving it up", self._bond, death,
                         DEATHS, now - self._deaths[0])  # fmt: skip
            return False
        return True

    def _start_and_attend(self) -> str:
        """A daemon from its start to its end; how it died, empty if it ended on purpose.

        OSError if the first cannot be started.
        """
        try:
            child, sock = self._fork(self.death)
        except OSError as error:  # no room for a process or a descriptor: there may be soon
            if not self.death:
                raise
            log.error("%s: its daemon %s, and no other can be started: %s", self._bond, self.death, error.strerror)
            time.sleep(_PAUSE)
            return self.death
        status = self._attend(child, sock)
        self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        return "" if status == 0 else _told(status) + self._why

    # ── the child ────────────────────────────────────────────────────────────────────

    def _fork(self, death: str) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Until both know what they are: what came between would be lost on the child, and not passed on by its parent.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        try:
            child = os.fork()
            if child == 0:
                ours.close()
                self._be_child(theirs, unblocked, death)
            self._child, self._why = child, ""
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            theirs.close()
        # Said while there was none:
        if self._asked_to_end:
            os.kill(child, signal.SIGTERM)
        elif self._late and not self._deaths:
            os.kill(child, store.TIME_IS_UP)
        return child, ours

    def _be_child(self, sock: socket.socket, unblocked: Iterable[int], death: str) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (*_PASSED_ON, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            os.close(self._wake)
            code = self._daemon(Inheritance(store.Store(sock, self._kept), dict(self._kept), death))
        finally:
            os._exit(code)

    def _attend(self, child: int, sock: socket.socket) -> int:
        """Keep what the daemon sends until it ends; return its wait status."""
        waiting = select.poll()
        waiting.register(sock, select.POLLIN)
        waiting.register(self._wake, select.POLLIN)
        try:
            while True:
                ready = [descriptor for descriptor, _ in waiting.poll()]
                if sock.fileno() in ready and not self._hear(sock):
                    waiting.unregister(sock)
                if self._wake in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 512)
                    if (status := _reap(child)) is not None:
                        self._child = 0
                        while select.select([sock], [], [], 0)[0] and self._hear(sock):
                            pass  # its last words
                        return status
        finally:
            sock.close()

    def _hear(self, sock: socket.socket) -> bool:
        """Do what one message says; False at the end."""
        try:
            message, descriptors = store.receive(sock)
        except OSError:
            return False
        fields = store.unpack(message)
        if fields.get("READY") == "1" and not self._ready:
            self._ready = True
            self._on_ready()
        if why := fields.get("STATUS"):
            self._why = f" ({why})"
        role = store.role_of(fields.get("FDNAME", ""))
        if fields.get("FDSTOREREMOVE") == "1" and role in self._kept:
            os.close(self._kept.pop(role))
        if fields.get("FDSTORE") == "1" and descriptors and role:
            if role in self._kept:
                os.close(self._kept[role])
            self._kept[role] = descriptors.pop(0)
        for descriptor in descriptors:
            os.close(descriptor)
        return bool(message)

    # ── signals ──────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        self._wake, written = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        before: dict[int, Any] = {number: signal.signal(number, self._end) for number in _ENDING}
        before[store.TIME_IS_UP] = signal.signal(store.TIME_IS_UP, self._end_if_late)
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._wake)
            os.close(written)

    def _end(self, number: int, frame: object) -> None:
        """Pass on what asks the bond to end: to the daemon, as process 1 to everybody."""
        self._asked_to_end = True
        if init.is_first():
            init.pass_on(number)
        elif self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)

    def _end_if_late(self, number: int, frame: object) -> None:
        """Whoever has started us waits no longer: a first daemon that has not taken over yet dies of this signal.

        One that has ignores it, and if that dies it has a successor like any other.
        """
        if self._ready or self._deaths:
            return
        self._late = True
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, number)


def _reap(child: int) -> int | None:
    """Collect all children that have ended, orphans that became ours too; the status of this one if it has."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                found = status
    return found


def _told(status: int) -> str:
    """How a daemon ended, in words that follow its name."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = f"{signal.Signals(-code).name}"
    except ValueError:
        name = "unknown"
    return f"was killed by signal {-code} ({name})"
