"""The client's end of the control socket, and what both ends of it agree on.

Blocking, and imports next to nothing, so that `ubond status` answers at once.
"""

from __future__ import annotations

import errno as E
import json
import socket
import time
from types import TracebackType
from typing import Any

#: Version of the protocol, in every message (docs/control-protocol.md).
VERSION = 1
#: The longest line, newline included, in bytes.
LINE_MAX = 64 * 1024

#: Exit codes of the command line, which errors carry as `code`.
DONE, FAILED, USAGE, NO_BOND, NOT_PERMITTED, KERNEL_REFUSED = range(6)


class ControlError(Exception):
    """The daemon refused, or there is none.

    `code`: exit code of the command line; `errno`: its name (`EINVAL`); `lines`: what the driver
    would log; `str()`: one line for a person.
    """

    def __init__(self, code: int, errno: str, message: str, lines: tuple[str, ...] = ()) -> None:
        self.code, self.errno, self.lines = code, errno, lines
        super().__init__(message)


class Client:
    """A connection to the daemon of one bond, for `with`.

    Raises ControlError when nobody listens at `path` (NO_BOND), when the socket may not be used
    (NOT_PERMITTED), and when the daemon stays silent for `timeout` seconds.
    """

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            _connect(sock, path, time.monotonic() + timeout)
        except OSError as error:
            sock.close()
            raise _cannot_connect(error, path) from None
        self._begin(sock, timeout)

    @classmethod
    def over(cls, sock: socket.socket, timeout: float = 30.0) -> Client:
        """A client at the other end of a connection that is there already."""
        client = cls.__new__(cls)
        sock.settimeout(timeout)
        client._begin(sock, timeout)
        return client

    def _begin(self, sock: socket.socket, timeout: float) -> None:
        self._sock, self._timeout = sock, timeout
        self._partial = b""
        self._arrived: list[dict[str, Any]] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def fileno(self) -> int:
        """For `select`: when it is readable `fill` does not wait."""
        return self._sock.fileno()

    def request(self, request: str, **fields: Any) -> dict[str, Any]:
        """Ask, and return the `result`; ControlError with what the daemon says against it."""
        line = json.dumps({"version": VERSION, "request": request, **fields}).encode() + b"\n"
        try:
            self._sock.sendall(line)
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            pass  # refused before it was read, too many clients for one: the reason can be read
        while not self._arrived:
            if not self.fill():
                raise ControlError(FAILED, "EPIPE", "the daemon closed the connection without an answer")
        message = self._arrived.pop(0)
        try:
            if "error" in message:
                error = message["error"]
                raise ControlError(error["code"], error["errno"], error["message"], tuple(error["lines"]))
            result: dict[str, Any] = message["result"]
        except (KeyError, TypeError):
            raise _nonsense() from None
        return result

    def arrived(self) -> list[dict[str, Any]]:
        """The messages that are here already: after `monitor`, each an `event` or `lost`."""
        messages, self._arrived = self._arrived, []
        return messages

    def fill(self) -> bool:
        """Wait until more has arrived; False at the end of the connection."""
        try:
            data = self._sock.recv(LINE_MAX)
        except TimeoutError:
            raise self._silent() from None
        except ConnectionError:
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > LINE_MAX:
            raise _nonsense()
        self._arrived += [_message(line) for line in lines]
        return bool(data)

    def _silent(self) -> ControlError:
        return ControlError(FAILED, "ETIMEDOUT", f"the daemon has not answered for {self._timeout:g} s")


def _nonsense() -> ControlError:
    return ControlError(FAILED, "EPROTO", "what answers there is no daemon of ubond")


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise _nonsense() from None
    if not isinstance(message, dict):
        raise _nonsense()
    return message


def _connect(sock: socket.socket, path: str, end: float) -> None:
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:  # others stand in line before us, more than the kernel lets wait
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _cannot_connect(error: OSError, path: str) -> ControlError:
    name = E.errorcode.get(error.errno or 0, "EIO")
    if error.errno in (None, E.ENOENT, E.ECONNREFUSED, E.ENOTDIR):  # None: longer than a path may be
        return ControlError(NO_BOND, name, f"nobody listens at {path}")
    if error.errno in (E.EACCES, E.EPERM):
        return ControlError(
            NOT_PERMITTED, name, f"{path}: {error.strerror}; run this as root or as the owner of the bond"
        )
    return ControlError(FAILED, name, f"{path}: {error.strerror or error}")
