"""Handing a running bond from one process to another: one document and the descriptors.

The old process, asked over its control socket, stops its workers between two batches and sends all
that it knows.  Frames wait in the TAP and in the slaves' sockets, which stay open.

    new                                       old
    {"request": "upgrade"}          ->        waits until nothing is under way, stops its workers
                                    <-        document, descriptors
    {"handover": "prepared"}        ->
                                    <-        {"handover": "go"}
    starts its workers
    {"handover": "forwarding"}      ->        ends without giving anything back

Until it has said `go` the old process goes on by itself whatever happens to the new one; after that
only if the connection ends, which says that the new one is dead or has given up.  So there are
never two processes that forward, and at most one moment without any.

Sources: unix(7) SCM_RIGHTS, flock(2).
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ubond import datapath, doors, service
from ubond.bond import core
from ubond.bond.document import DocumentError, freeze, thaw
from ubond.bond.options import Refused
from ubond.bond.spec import BondSpec
from ubond.client import VERSION as PROTOCOL
from ubond.client import ControlError

#: Of the document: another one if what is in it means something else, not if something is added.
VERSION = 1
#: Most descriptors that one message can carry (SCM_MAX_FD).
_DESCRIPTORS_MAX = 253
_LENGTH_MAX = 64 << 20
#: Seconds that the old process stands still for a new one that does not become ready: at least, and
#: longer while few frames come, at most.  At 20,000 a second the TAP has room for more than the least.
PATIENCE, PATIENCE_MAX = 0.06, 1.0
#: Frames that the TAP surely has room for meanwhile.
_ROOM = 1600
#: Seconds that the new one waits for the old one to finish what it is doing.
WAIT = 30.0


@dataclass(slots=True)
class Document:
    """All that one process knows of a bond; `files`: the name that its files have."""

    version: int
    spec: BondSpec
    files: str
    bond: core.Memory
    doors: doors.Memory
    datapath: datapath.Memory
    service: service.Memory
    pid: int = 0
    ubond: str = ""
    since: int = 0
    """When its worker stopped, monotonic ns."""


def read(content: Any, **given: object) -> Document:
    """The document that another process wrote.  DocumentError if it cannot be understood."""
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise DocumentError(f"the document of a bond has not version {VERSION}")
    return thaw(Document, content, **given)


def write(document: Document, past: str) -> str:
    """A document as text, with `past` (`write_past`), which may be older, in the place of its `service`."""
    content = freeze(replace(document, service=service.Memory()))
    del content["service"]
    return f'{json.dumps(content, separators=(",", ":"))[:-1]},"service":{past}}}'


def write_past(memory: service.Memory) -> str:
    """What happened so far, as text.  Who is the same as whom is numbered for itself there: it is read last."""
    return json.dumps(freeze(memory), separators=(",", ":"))


class Line:
    """One end of the connection over which a bond is handed over.  Blocking: nothing else is to happen."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pending = b""
        self._arrived: list[int] = []

    def close(self) -> None:
        self._sock.close()
        while self._arrived:
            os.close(self._arrived.pop())

    def send(self, message: Mapping[str, Any], descriptors: Mapping[str, int] | None = None) -> None:
        """Send one line, the descriptors with its first bytes and their roles in it."""
        descriptors = descriptors or {}
        line = json.dumps({"version": PROTOCOL, **message, "roles": list(descriptors)}, separators=(",", ":"))
        data = line.encode() + b"\n"
        numbers = list(descriptors.values())
        while numbers:  # with a byte each of the line's beginning
            packed = array.array("i", numbers[:_DESCRIPTORS_MAX]).tobytes()
            self._sock.sendmsg([data[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
            numbers, data = numbers[_DESCRIPTORS_MAX:], data[1:]
        self._sock.sendall(data)

    def receive(self, patience: float | None) -> tuple[dict[str, Any], dict[str, int]]:
        """The next line and its descriptors by role; ControlError for an error that the other end tells.

        EOFError at the end of the connection, TimeoutError when nothing comes for `patience` seconds.
        """
        self._sock.settimeout(patience)
        while b"\n" not in self._pending:
            room = socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4)
            data, ancillary, _, _ = self._sock.recvmsg(1 << 16, room, socket.MSG_CMSG_CLOEXEC)
            for level, kind, packed in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(packed[: len(packed) - len(packed) % 4])
                    self._arrived.extend(numbers)
            if not data or len(self._pending) > _LENGTH_MAX:
                raise EOFError("the connection ended")
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        message = json.loads(line)
        if "error" in message:
            error = message["error"]
            raise ControlError(error["code"], error["errno"], error["message"], tuple(error["lines"]))
        descriptors = dict(zip(message.get("roles", ()), self._arrived, strict=False))
        self._arrived.clear()
        return message, descriptors

    def expect(self, step: str, patience: float | None) -> None:
        """Wait for the other end to say this; EOFError if it says anything else."""
        if self.receive(patience)[0].get("handover") != step:
            raise EOFError(f"the other process did not say {step}")

    def await_forwarding(self) -> None:
        """After `go`: nothing but the end of the connection says that the other will not forward."""
        while True:
            with contextlib.suppress(ValueError, ControlError):
                if self.receive(None)[0].get("handover") == "forwarding":
                    return

    def wait_for_end(self) -> None:
        """Return when the other end has closed the connection, or does not for a while; close it here."""
        self._sock.settimeout(WAIT)
        with contextlib.suppress(OSError):
            while self._sock.recv(1 << 12):
                pass
        self.close()

    def say(self, step: str) -> None:
        """ControlError if the other end has given up, with its reason."""
        try:
            self.send({"handover": step})
        except OSError:
            self.receive(1.0)
            raise


# ── the old process ──────────────────────────────────────────────────────────────────


def patience(rate: float) -> float:
    """Seconds for which so many frames a second can wait."""
    return min(PATIENCE_MAX, max(PATIENCE, _ROOM / max(rate, 1)))


def give(line: Line, document: Document, descriptors: Mapping[str, int], patience: float) -> None:
    """Hand over; return when the other process forwards.  Refused if it does not, and never will.

    ETIMEDOUT if it is not ready within `patience` seconds: it may try again.  The worker stands, and
    nothing else may happen in this process meanwhile.
    """
    try:
        line.send({"result": freeze(document)}, descriptors)
        line.expect("prepared", patience)
        line.say("go")
        line.await_forwarding()
    except (OSError, EOFError, ValueError, ControlError) as error:
        name, late = document.bond.state.name, isinstance(error, TimeoutError)
        why = f"was not ready within {patience:g} s" if late else f"failed ({error})"
        number = errno.ETIMEDOUT if late else errno.ECANCELED
        raise Refused(number, [f"{name}: the new process {why}; the old one goes on"]) from error


# ── the new process ──────────────────────────────────────────────────────────────────


def ask(path: str) -> tuple[Line, dict[str, Any], dict[str, int]]:
    """Ask the process that listens at `path` for its bond.  ControlError if it will not give it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    line = Line(sock)
    try:
        sock.connect(path)
        sock.sendall(json.dumps({"version": PROTOCOL, "request": "upgrade"}).encode() + b"\n")
        message, descriptors = line.receive(WAIT)
    except BaseException:
        line.close()
        raise
    return line, message["result"], descriptors


def queues(descriptors: Mapping[str, int]) -> list[int]:
    """The TAP's, in order."""
    count = sum(1 for role in descriptors if role.startswith("tap/"))
    return [descriptors[f"tap/{queue}"] for queue in range(count)]


def sockets(descriptors: Mapping[str, int], slave: str, workers: int) -> list[socket.socket] | None:
    """A slave's sockets as `ports.Port.sockets` has them, None unless all are there."""
    with contextlib.suppress(KeyError):
        found = [descriptors[role] for role in _socket_roles(slave, workers)]
        return [socket.socket(fileno=descriptor) for descriptor in found]
    return None


def _socket_roles(slave: str, workers: int) -> list[str]:
    others = [f"raw/{slave}/{worker}" for worker in range(1, workers)]
    return [f"raw/{slave}", *others, f"plain/{slave}"]


def roles(tap: list[int], ports: Mapping[str, Any], **others: int) -> dict[str, int]:
    """Descriptors by role: those of the TAP's queues, of `doors.Doors.ports`, and others by name."""
    found = {f"tap/{queue}": descriptor for queue, descriptor in enumerate(tap)} | others
    for slave, port in ports.items():
        descriptors = (sock.fileno() for sock in port.sockets)
        found |= dict(zip(_socket_roles(slave, len(port.raws)), descriptors, strict=True))
    return found
