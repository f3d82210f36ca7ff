"""The daemon's end of the control socket.

Who may ask for what is decided by the peer's credentials.  A client can hold up neither the
daemon nor another client: what it sends must arrive in time, what it does not read is
dropped, and there is room for 32.
"""

from __future__ import annotations

import asyncio
import errno as E
import os
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from ubond.bond.events import DoorError
from ubond.bond.options import Refused
from ubond.client import FAILED, LINE_MAX, NOT_PERMITTED
from ubond.messages import (
    CHANGES,
    Assignment,
    BadRequest,
    Request,
    active_changed,
    encode,
    encode_list,
    error_object,
    failover,
    log_line,
    parse_request,
    refusal,
    render,
)
from ubond.status import Json, Report

__all__ = ["Assignment", "Handler", "Server", "active_changed", "failover", "log_line"]

CLIENTS_MAX = 32
#: Seconds for a request to arrive, and for an answer to be read.
PATIENCE = 5.0
#: Seconds that `close` waits for what is under way.
GRACE = 0.2
#: Events kept for a `monitor` client that is slow to read.
BACKLOG = 256


class Handler(Protocol):
    """What the daemon does for a client.  Methods raise Refused or DoorError, and nothing else.

    `set`, `add` and `remove` return notes for the person who asked: one line each, may be none.
    """

    async def status(self) -> Report: ...

    async def set(self, assignments: Sequence[Assignment]) -> list[str]:
        """Write options; those before a refused one stay written, as with the driver."""

    async def add(self, slaves: Sequence[str], take_addresses: bool) -> list[str]: ...

    async def remove(self, slaves: Sequence[str]) -> list[str]: ...

    def history(self) -> list[dict[str, Json]]:
        """Past failovers, oldest first, each made by `failover`."""

    def log(self) -> list[dict[str, Json]]:
        """The kept log lines, oldest first, each made by `log_line`."""

    async def down(self) -> None:
        """Give every slave back and remove the bond; return when that is done.

        The answer is sent after it; the daemon then closes the `Server` and ends.
        """

    async def upgrade(self, line: socket.socket) -> None:
        """Hand the bond over to the process at the other end (docs/control-protocol.md, upgrade).

        When this returns the bond is the other's.  On failure it is still ours.
        """

    async def hook(self, call: str) -> dict[str, str]:
        """What a system call comes to, by thread.  Asked only where UBOND_TEST_HOOKS=1."""


# ── who asks ─────────────────────────────────────────────────────────────────────────

_SO_PEERGROUPS = 59


class Rights(NamedTuple):
    may_read: bool
    may_change: bool


def rights_of(peer: socket.socket, owner: int, group: int) -> Rights:
    """What the process at the other end may do: root and `owner` all, members of `group` read."""
    _, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid in (0, owner):
        return Rights(True, True)
    return Rights(group == gid or group in _groups(peer), False)


def _groups(peer: socket.socket) -> tuple[int, ...]:
    """The supplementary groups of the process at the other end; none when it has more than 256."""
    try:
        packed = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:
        return ()
    return struct.unpack(f"{len(packed) // 4}I", packed)


# ── the server ───────────────────────────────────────────────────────────────────────


@dataclass(slots=True, eq=False)
class _Listener:
    """A `monitor` client: lines that wait for it, and how many there was no room for."""

    lines: deque[bytes] = field(default_factory=deque)
    lost: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, line: bytes) -> None:
        if len(self.lines) >= BACKLOG:
            self.lost += 1
            return
        self._own_up()
        self.lines.append(line)
        self.wake.set()

    async def take(self, last: bool) -> list[bytes]:
        """All that waits, in order, with a gap named where it is; wait for it unless this is the end."""
        if not last:
            await self.wake.wait()
        self.wake.clear()
        self._own_up()
        lines = list(self.lines)
        self.lines.clear()
        return lines

    def _own_up(self) -> None:
        if self.lost:
            self.lines.append(encode({"lost": self.lost}))
            self.lost = 0


class Server:
    """The daemon's end of the control socket."""

    def __init__(self, bond: str, version: str, handler: Handler) -> None:
        """`version`: ubond's own."""
        self._bond, self._version, self._handler = bond, version, handler
        self._path: Path | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: set[_Listener] = set()
        self._closing = False
        self.descriptor = -1
        """Of the listening socket."""

    async def start(self, path: Path, listening: socket.socket | None = None) -> None:
        """Listen at `path`; what a dead daemon left there is replaced.  Raises DoorError.

        The caller holds the bond's lock, so no living daemon can be listening there.
        `listening`: a socket that another process has made and that is there already.
        """
        sock = listening or self._bind(path)
        self._path = path
        self.descriptor = sock.fileno()
        self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=LINE_MAX - 1)

    @staticmethod
    def _bind(path: Path) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            path.unlink(missing_ok=True)
            sock.bind(str(path))
            path.chmod(0o660)
        except OSError as error:
            sock.close()
            why = error.strerror or str(error)  # a path that is too long has no errno
            raise DoorError(f"bind {path}", error.errno or E.ENAMETOOLONG, detail=why) from None
        return sock

    def rename(self, bond: str, path: Path) -> None:
        """The bond has another name, and its socket another place.  Raises DoorError."""
        assert self._path is not None
        try:
            self._path.rename(path)
        except OSError as error:
            raise DoorError(f"rename {self._path}", error.errno or E.EIO) from None
        self._bond, self._path = bond, path

    def publish(self, event: Mapping[str, Json]) -> None:
        """Tell every `monitor` client, without ever waiting for one."""
        if self._listeners:
            line = encode({"event": dict(event)})
            for listener in self._listeners:
                listener.offer(line)

    def stop_listening(self) -> None:
        """Leave those who come from now on to another process that listens on the same socket."""
        if self._server is not None:
            self._server.close()

    async def close(self, *, keep_file: bool = False) -> None:
        """Stop listening, let what is under way go out, and close every connection.

        `keep_file`: another process goes on listening.
        """
        self._closing = True
        self.stop_listening()
        if self._path is not None and not keep_file:
            self._path.unlink(missing_ok=True)
        for listener in self._listeners:
            listener.wake.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=GRACE)
            for task in late:
                task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        crowded = len(self._tasks) >= CLIENTS_MAX
        self._tasks.add(task)
        try:
            if crowded:
                await _send(writer, _error(FAILED, E.EAGAIN, f"too many clients (at most {CLIENTS_MAX})"))
            else:
                await self._serve(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()  # gone, does not read, or the bond ends: nothing is left to be said
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request after the other, until the client ends, misbehaves or says `down`."""
        rights = rights_of(writer.get_extra_info("socket"), os.geteuid(), self._group())
        while not self._closing:
            try:
                line = await _receive(reader)
                if line is None:
                    return
                request = parse_request(line)
            except BadRequest as error:
                await _send(writer, encode({"error": error_object(error)}))
                return
            if request.name == "upgrade" and rights.may_change:
                await self._hand_over(writer)
                return
            await _send(writer, await self._answer(request, rights))
            if request.name == "monitor" and rights.may_read:
                await self._monitor(reader, writer)
            if request.name in ("monitor", "down"):
                return

    async def _hand_over(self, writer: asyncio.StreamWriter) -> None:
        """Leave the connection to the handler, which sends descriptors over it; close it when that is done."""
        cast(asyncio.ReadTransport, writer.transport).pause_reading()  # uvloop's is not derived from it
        with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as line:
            try:
                await self._handler.upgrade(line)
            except Exception as error:
                await _send(writer, _failure("upgrade", error))

    def _group(self) -> int:
        """The group that may read: whatever the administrator has made the socket's file belong to."""
        assert self._path is not None
        try:
            return self._path.stat().st_gid
        except OSError:
            return os.getegid()  # somebody has removed the file; who is connected may still ask

    async def _answer(self, request: Request, rights: Rights) -> bytes:
        if not (rights.may_change if request.name in CHANGES else rights.may_read):
            who = "root and the owner of the bond"
            if request.name not in CHANGES:
                who = "root, the owner of the bond and the socket's group"
            message = f"{request.name} is for {who} only"
            return _error(NOT_PERMITTED, E.EPERM, message)
        try:
            return await self._perform(request)
        except Exception as error:
            return _failure(request.name, error)

    async def _perform(self, request: Request) -> bytes:
        handler = self._handler
        notes: list[str] = []
        match request.name:
            case "ping" | "monitor":
                return encode({"result": {"bond": self._bond, "ubond": self._version, "pid": os.getpid()}})
            case "status":
                return encode({"result": render(await handler.status(), request.format)})
            case "history":
                return encode_list("history", handler.history())
            case "log":
                return encode_list("log", handler.log())
            case "set":
                notes = await handler.set(request.options)
            case "add":
                notes = await handler.add(request.slaves, request.take_addresses)
            case "remove":
                notes = await handler.remove(request.slaves)
            case "down":
                await handler.down()
            case "hook":
                return encode({"result": await handler.hook(request.call)})
        return encode({"result": {"notes": notes}})

    async def _monitor(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what is published until the client closes (or says anything), or the bond ends."""
        listener = _Listener()
        self._listeners.add(listener)
        tasks = {asyncio.ensure_future(reader.read(1)), asyncio.ensure_future(self._pump(listener, writer))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._listeners.discard(listener)
            for task in tasks:
                task.cancel()

    async def _pump(self, listener: _Listener, writer: asyncio.StreamWriter) -> None:
        while lines := await listener.take(self._closing):
            for line in lines:
                _write(writer, line)
                await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> bytes | None:
    """The next line, None at the end of the stream; BadRequest if none comes whole and in time."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await reader.readuntil(b"\n")
    except TimeoutError:
        raise BadRequest(f"no request arrived within {PATIENCE:g} s") from None
    except asyncio.LimitOverrunError:
        raise BadRequest(f"a request may have at most {LINE_MAX} bytes") from None
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise BadRequest("the request ended before its newline") from None
        return None


async def _send(writer: asyncio.StreamWriter, line: bytes) -> None:
    """Write a line and wait until the client has taken most of it; TimeoutError if it does not."""
    if len(line) > LINE_MAX:
        line = _error(FAILED, E.EMSGSIZE, f"the answer is longer than {LINE_MAX} bytes")
    _write(writer, line)
    async with asyncio.timeout(PATIENCE):
        await writer.drain()


def _write(writer: asyncio.StreamWriter, line: bytes) -> None:
    """Write a line; ConnectionResetError if the client has left, which uvloop calls a RuntimeError."""
    if writer.transport.is_closing():
        raise ConnectionResetError("the client has left")
    writer.write(line)


def _failure(request: str, error: Exception) -> bytes:
    """The answer to a request that failed.  A fault of ours is logged by the loop with its traceback."""
    if not isinstance(error, Refused | DoorError):
        context = {"message": f"control request {request} failed", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
    return encode({"error": error_object(error)})


def _error(code: int, errno: int, message: str) -> bytes:
    return encode({"error": refusal(code, errno, message)})
