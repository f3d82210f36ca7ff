"""What outlives a daemon: its descriptors and a document, kept by its keeper or by systemd.

Both are spoken to in the same words, those of sd_notify(3): a datagram of lines, descriptors
beside it.

    READY=1                         frames flow
    STATUS=KeyError: 'x' at y.py:7  of what fault it is about to die
    FDSTORE=1  FDNAME=tap/0         keep this descriptor; FDPOLL=0: whatever its state
    FDSTOREREMOVE=1  FDNAME=tap/0   let go of it
    BARRIER=1                       close this descriptor when all before has been done

The document is one of the descriptors: a file in memory that the daemon writes and nobody else
reads as long as it lives.  It has room for two texts in turn, so that there is a whole one
whenever the writer dies.

Imports next to nothing: the keeper is small.

Sources: sd_notify(3), sd_pid_notify_with_fds(3), sd_listen_fds(3), memfd_create(2), unix(7).
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import struct
import zlib
from collections.abc import Mapping
from urllib.parse import quote, unquote

#: Role of the document among the descriptors.
DOCUMENT = "document"
#: To a new process that is late with taking over a bond: its end, by default, until it has; then it minds no more.
TIME_IS_UP = signal.SIGALRM
#: The first descriptor that a service manager hands over (SD_LISTEN_FDS_START).
_FIRST = 3
MESSAGE_MAX, DESCRIPTORS_MAX = 4096, 16
_HEADER = struct.Struct("=8sQQI")
_MAGIC = b"ubond\0\0\1"
_SLOT = 1 << 30
"""Room for one text; the file is sparse."""
_PATIENCE_MS = 2000


# ── the words ────────────────────────────────────────────────────────────────────────


def pack(**fields: str) -> bytes:
    return "\n".join(f"{name}={value}" for name, value in fields.items()).encode()


def role_of(name: str) -> str:
    """The role that a descriptor's name stands for."""
    return unquote(name, errors="surrogateescape")


def _quoted(role: str) -> str:
    """A descriptor's name: sd_notify(3) allows no colon, and a slave's name need be no UTF-8."""
    return quote(role, errors="surrogateescape")


def unpack(message: bytes) -> dict[str, str]:
    lines = (line.partition("=") for line in message.decode("utf-8", "replace").splitlines())
    return {name: value for name, _, value in lines}


def send(sock: socket.socket, message: bytes, *descriptors: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())] if descriptors else []
    sock.sendmsg([message], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One message and its descriptors; an empty one at the end."""
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * 4)
    message, ancillary, _, _ = sock.recvmsg(MESSAGE_MAX, room, socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for level, kind, packed in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(packed[: len(packed) - len(packed) % 4])
    return message, list(numbers)


# ── the document ─────────────────────────────────────────────────────────────────────


def make_document() -> int:
    """The descriptor of an empty document."""
    return os.memfd_create("ubond-document", os.MFD_CLOEXEC)


def read_document(descriptor: int) -> bytes | None:
    """The last text that was written whole; None if there is none."""
    whole = [found for slot in (0, 1) if (found := _read_slot(descriptor, slot)) is not None]
    return max(whole)[1] if whole else None


def _read_slot(descriptor: int, slot: int) -> tuple[int, bytes] | None:
    header = os.pread(descriptor, _HEADER.size, slot * _SLOT)
    if len(header) < _HEADER.size:
        return None
    magic, number, length, check = _HEADER.unpack(header)
    if magic != _MAGIC or length > _SLOT:
        return None
    text = os.pread(descriptor, length, slot * _SLOT + _HEADER.size)
    return (number, text) if len(text) == length and _check(number, text) == check else None


def _check(number: int, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(number.to_bytes(8, "little")))


def _write_document(descriptor: int, number: int, text: bytes) -> None:
    header = _HEADER.pack(_MAGIC, number, len(text), _check(number, text))
    at = number % 2 * _SLOT
    os.pwrite(descriptor, bytes(_HEADER.size), at)  # a text that is half the last one must not pass for whole
    os.pwrite(descriptor, text, at + _HEADER.size)
    os.pwrite(descriptor, header, at)


# ── the daemon's end ─────────────────────────────────────────────────────────────────


class Store:
    """Whoever keeps things for this process; without a socket nobody does, and nothing happens."""

    def __init__(
        self, sock: socket.socket | None = None, kept: Mapping[str, int] | None = None, *, of_manager: bool = False
    ) -> None:
        """`kept`: what is kept already, by role, as open in this process; `of_manager`: by a service manager."""
        self.of_manager = of_manager and sock is not None
        self._sock = sock
        self._kept = {role: _identity(descriptor) for role, descriptor in (kept or {}).items()}
        self._document = (kept or {}).get(DOCUMENT, -1)
        self._number = 0
        self._text = b""
        self._owes_ready = False
        """Said, but not heard yet: the next update says it again."""
        if self._document >= 0:
            found = [each for slot in (0, 1) if (each := _read_slot(self._document, slot)) is not None]
            self._number = max((number for number, _ in found), default=0)

    @property
    def is_there(self) -> bool:
        return self._sock is not None

    def forget(self) -> None:
        """Let go of all that is kept, to begin anew; return when that is done."""
        for role in list(self._kept):
            self._say(pack(FDSTOREREMOVE="1", FDNAME=_quoted(role)))
        self._kept.clear()
        self._document, self._number, self._text = -1, 0, b""
        self._wait()

    def open_document(self) -> None:
        """Make the document: before the process gives up what that needs."""
        if self._sock is not None and self._document < 0:
            self._document = make_document()

    def update(self, text: bytes, descriptors: Mapping[str, int]) -> None:
        """Have exactly these descriptors kept, and this as the document, as far as they are new."""
        if self._sock is None:
            return
        all_of_it = {DOCUMENT: self._document, **descriptors}
        wanted = {role: (descriptor, _identity(descriptor)) for role, descriptor in all_of_it.items()}
        try:
            if self._owes_ready:
                send(self._sock, pack(READY="1"))
                self._owes_ready = False
            for role in self._kept.keys() - wanted.keys():
                self._drop(role)
            for role, (descriptor, identity) in wanted.items():
                if self._kept.get(role) != identity:
                    if role in self._kept:
                        self._drop(role)
                    send(self._sock, pack(FDSTORE="1", FDNAME=_quoted(role), FDPOLL="0"), descriptor)
                    self._kept[role] = identity
        except BlockingIOError:
            pass  # it is slow; the next update says the rest
        except OSError:
            self._sock = None  # it has died: nobody keeps anything any more
            return
        if text != self._text:
            self._number += 1
            _write_document(self._document, self._number, text)
            self._text = text

    def ready(self) -> None:
        """Frames flow."""
        self._owes_ready = not self._say(pack(READY="1"))

    def explain(self, error: BaseException) -> None:
        """Of what fault this process is about to die."""
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        where = "" if at is None else f" at {os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}"
        self._say(pack(STATUS=" ".join(f"{type(error).__name__}: {error}".split())[:400] + where))

    def clear(self) -> None:
        """The bond ends: nothing is to be kept any more; return when nothing is."""
        if self._sock is not None:
            self._say(pack(STOPPING="1"))
            self.forget()
            self._sock = None

    def _wait(self) -> None:
        """Return when all that has been said is done, or nobody does it."""
        theirs, ours = os.pipe2(os.O_CLOEXEC)
        try:
            self._say(pack(BARRIER="1"), ours)
        finally:
            os.close(ours)
        waiting = select.poll()
        waiting.register(theirs, 0)
        waiting.poll(_PATIENCE_MS)
        os.close(theirs)

    def _drop(self, role: str) -> None:
        assert self._sock is not None
        send(self._sock, pack(FDSTOREREMOVE="1", FDNAME=_quoted(role)))
        del self._kept[role]

    def _say(self, message: bytes, *descriptors: int) -> bool:
        """Say one thing, and wait a while for whoever is slow to listen; return False if they did not all that time."""
        if self._sock is None:
            return True
        try:
            try:
                send(self._sock, message, *descriptors)
            except BlockingIOError:
                waiting = select.poll()
                waiting.register(self._sock, select.POLLOUT)
                waiting.poll(_PATIENCE_MS)
                send(self._sock, message, *descriptors)
        except BlockingIOError:
            return False
        except OSError:
            self._sock = None  # it has died
        return True


def _identity(descriptor: int) -> tuple[int, int, int]:
    """What a descriptor refers to: its number alone may be another's by now."""
    found = os.fstat(descriptor)
    return descriptor, found.st_dev, found.st_ino


# ── a service manager ────────────────────────────────────────────────────────────────


def of_service_manager() -> tuple[Store, dict[str, int]]:
    """The store of the service manager that started this process, and what it had kept for it, by role.

    A manager without a socket for notices has none.  One that keeps no descriptors does not mind
    being asked.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return Store(), {}
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        sock.close()
        return Store(), {}
    kept = _listen_fds()
    return Store(sock, kept, of_manager=True), kept


def _listen_fds() -> dict[str, int]:
    """What sd_listen_fds_with_names(3) returns."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    kept = {role_of(name): _FIRST + number for number, name in enumerate(names) if name}
    for descriptor in kept.values():
        os.set_inheritable(descriptor, False)
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return kept
