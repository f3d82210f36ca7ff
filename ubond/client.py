"""The client's end of the control socket, and what both ends of it agree on.

Blocking, and imports next to nothing, so that `ubond status` answers at once.
"""

from __future__ import annotations

import errno as E
import json
import socket
from collections.abc import Iterator
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
        self._timeout = timeout
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout)
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise _cannot_connect(error, path) from None
        self._lines = self._sock.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._sock.close()

    def fileno(self) -> int:
        """For `select`: readable when `events` has something, or its end."""
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
        message = self._receive()
        if message is None:
            raise ControlError(FAILED, "EPIPE", "the daemon closed the connection without an answer")
        if "error" in message:
            error = message["error"]
            raise ControlError(error["code"], error["errno"], error["message"], tuple(error["lines"]))
        result: dict[str, Any] = message["result"]
        return result

    def events(self) -> Iterator[dict[str, Any]]:
        """After `monitor`: every message, `event` or `lost`, until the bond ends."""
        self._sock.settimeout(None)
        while (message := self._receive()) is not None:
            yield message

    def _receive(self) -> dict[str, Any] | None:
        """The next message, None at the end."""
        try:
            line = self._lines.readline(LINE_MAX + 1)
        except TimeoutError:
            raise self._silent() from None
        except ConnectionError:
            return None
        if not line.endswith(b"\n"):
            return None
        message: dict[str, Any] = json.loads(line)
        return message

    def _silent(self) -> ControlError:
        return ControlError(FAILED, "ETIMEDOUT", f"the daemon has not answered for {self._timeout:g} s")


def _cannot_connect(error: OSError, path: str) -> ControlError:
    name = E.errorcode.get(error.errno or 0, "EIO")
    if error.errno in (E.ENOENT, E.ECONNREFUSED, E.ENOTDIR):
        return ControlError(NO_BOND, name, f"nobody listens at {path}")
    if error.errno in (E.EACCES, E.EPERM):
        return ControlError(
            NOT_PERMITTED, name, f"{path}: {error.strerror}; run this as root or as the owner of the bond"
        )
    return ControlError(FAILED, name, f"{path}: {error.strerror or error}")
