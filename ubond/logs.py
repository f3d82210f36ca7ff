"""Where a daemon's log lines go: to standard error or to the system's log, and never at the price of a wait.

Whoever reads them may stop reading: a terminal that is held, a full pipe, a syslog daemon that hangs.  The bond must
not hang with them, so a line that finds no room is left out, and as soon as there is room that is said.  `ubond history
BOND --log` has it in any case.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket

SYSTEM_LOG = "/dev/log"
#: Severities and facility of syslog(3).
_SEVERITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
_DAEMON = 3
#: Where poll(2) says that there is room, there is some for so many bytes (PIPE_BUF, pipe(7)).
_PIECE = 4096


class Patient(logging.Handler):
    """Counts what it left out, and says so before the next line that finds room."""

    _left_out = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._left_out and self.write(f"{self._left_out} lines were left out: nobody read them", logging.WARNING):
            self._left_out = 0
        if not self.write(self.format(record), record.levelno):
            self._left_out += 1

    def write(self, text: str, level: int) -> bool:
        """Write a line without waiting; False if there is no room for it."""
        raise NotImplementedError


class ToDescriptor(Patient):
    """To a file, terminal, pipe or socket that others may share: it cannot be made non-blocking, but asked."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._owed = ""  # the end of a long line that was cut

    def write(self, text: str, level: int) -> bool:
        data = f"{self._owed}{text}\n".encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):  # its reader is gone, and with it the line
            for at in range(0, len(data), _PIECE):
                if not self._has_room():
                    self._owed = "\n" if at else self._owed
                    return at > 0
                os.write(self._descriptor, data[at : at + _PIECE])
        self._owed = ""
        return True

    def _has_room(self) -> bool:
        waiting = select.poll()
        waiting.register(self._descriptor, select.POLLOUT)
        return bool(waiting.poll(0))


class ToSystem(Patient):
    """To the journal or syslog, wherever that has been started again."""

    def __init__(self, address: str = SYSTEM_LOG) -> None:
        super().__init__()
        self._address = address
        self._socket: socket.socket | None = None

    def write(self, text: str, level: int) -> bool:
        line = f"<{_DAEMON << 3 | _SEVERITY.get(level, 6)}>ubond: {text}\0".encode("utf-8", "backslashreplace")
        for _ in range(2):
            try:
                self._socket = self._socket or self._connected()
                self._socket.send(line, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                self._let_go()
            else:
                break
        return True

    def _connected(self) -> socket.socket:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            try:
                sock.connect(self._address)
                return sock
            except OSError as error:
                sock.close()
                if error.errno != errno.EPROTOTYPE:
                    raise
        raise OSError(errno.EPROTOTYPE, os.strerror(errno.EPROTOTYPE))

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def to_stderr() -> None:
    """Send all lines to standard error: for containers and service managers."""
    _begin(ToDescriptor(2))


def to_system() -> None:
    """Send all lines to the system's log, where there is one."""
    _begin(ToSystem() if os.path.exists(SYSTEM_LOG) else logging.NullHandler())


def _begin(handler: logging.Handler) -> None:
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = [handler]
