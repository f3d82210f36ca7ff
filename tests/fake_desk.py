"""A control server without a bond behind it: a handler that remembers what it was asked."""

import asyncio
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from ubond import control
from ubond.bond.events import ActiveChanged, DoorError, Level, Log
from ubond.bond.options import OPTIONS, Kind, Mode, Refused, find
from ubond.bond.snapshot import BondSnapshot, LinkState, SlaveSnapshot
from ubond.control import Assignment, Server
from ubond.status import Report
from ubond.wire import MacAddr

VERSION = "0.1.0"
AT = 1700000000.5
CHANGE = ActiveChanged("eth1", "eth2", "link of eth1 went down")


def snapshot() -> BondSnapshot:
    mac = MacAddr.parse("02:00:00:00:00:01")
    slave = SlaveSnapshot("eth1", 2, LinkState.UP, False, 1000, 1, 0, mac, mac)
    options = {name: option.start for name, option in OPTIONS.items()}
    return BondSnapshot(
        "bond0", Mode.ACTIVE_BACKUP, options, True, True, mac, 1500, None, "eth1", None, (slave,)
    )  # fmt: skip


class FakeDesk:
    """`control.Handler`; `fails` is raised by the next request, `extra` becomes part of the report."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.fails: Exception | None = None
        self.extra: dict[str, Any] = {}
        self.past = [control.failover(CHANGE, AT, 0, 350_000)]

    def _ask(self, *asked: Any) -> None:
        self.asked.append(asked)
        if self.fails is not None:
            error, self.fails = self.fails, None
            raise error

    async def status(self) -> Report:
        self._ask("status")
        return Report(snapshot(), VERSION, self.extra)

    async def set(self, assignments: Sequence[Assignment]) -> list[str]:
        self._ask("set", *assignments)
        for assignment in assignments:
            option = find(assignment.option)
            if option.kind is not Kind.SLAVE:
                option.parse(assignment.value)
        return []

    async def add(self, slaves: Sequence[str], take_addresses: bool) -> list[str]:
        self._ask("add", *slaves, take_addresses)
        return [f"{slave} is slow" for slave in slaves if slave == "slow0"]

    async def remove(self, slaves: Sequence[str]) -> list[str]:
        self._ask("remove", *slaves)
        if "eth9" in slaves:
            raise Refused(errno.EINVAL, ["option slaves: invalid value (-eth9)"])
        if "stuck0" in slaves:
            raise DoorError("RTM_SETLINK address", errno.EBUSY, "stuck0")
        return []

    def history(self) -> list[dict[str, Any]]:
        return self.past

    def log(self) -> list[dict[str, Any]]:
        return [control.log_line(Log(Level.INFO, "making interface the new active one", "eth2"), "bond0", AT)]

    async def down(self) -> None:
        self._ask("down")

    async def upgrade(self, line: socket.socket) -> None:
        self._ask("upgrade")
        raise Refused(errno.EBUSY, ["bond0 is being upgraded; try again in a moment"])


class Running:
    """A server on a loop in a thread of its own."""

    def __init__(self, server: Server, desk: FakeDesk, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self.desk, self.path, self._loop = server, desk, path, loop
        self.faults: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: self.faults.append(context))

    def await_(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def call(self, work: Callable[[], Any]) -> Any:
        """Run a function on the loop, as the daemon would."""

        async def run() -> Any:
            return work()

        return self.await_(run())

    def listeners(self) -> int:
        """How many `monitor` clients are served now."""
        return int(self.call(lambda: len(self.server._listeners)))

    def publish(self, *events: dict[str, Any]) -> None:
        self.call(lambda: [self.server.publish(event) for event in events])


@contextmanager
def serving(path: Path) -> Iterator[Running]:
    """A server at `path`, on the loop that the daemon uses."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    desk = FakeDesk()
    running = Running(Server("bond0", VERSION, desk), desk, path, loop)
    try:
        running.await_(running.server.start(path))
        yield running
    finally:
        running.await_(running.server.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Wire:
    """A client that may send anything."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))  # waits for its turn: with a timeout set it would be told to come again
        self.sock.settimeout(30)
        self._file = self.sock.makefile("rb")

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.sock.close()

    def send(self, line: bytes) -> None:
        # The server may have heard enough; what it said can still be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(line)

    def ask(self, request: str, **fields: Any) -> dict[str, Any]:
        self.send(json.dumps({"version": 1, "request": request, **fields}).encode() + b"\n")
        return self.read()

    def read(self) -> Any:
        """The next message, None at the end."""
        try:
            line = self._file.readline()
        except ConnectionResetError:
            return None
        assert len(line) <= 65536
        return json.loads(line) if line else None


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for a condition; AssertionError if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.005)


NOBODY = 65534
as_another_user = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


def as_nobody(work: Callable[[], object], groups: Sequence[int] = ()) -> str:
    """What `work` prints, on either stream, when the user nobody does it, in these groups."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writer, "w") as out:
                sys.stdout = sys.stderr = out
                os.setgroups(list(groups))
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                work()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text
