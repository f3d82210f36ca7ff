"""Being process 1: what a container's first process owes to the others.

The kernel gives orphans to process 1, which has to collect them when they end, and sends
signals to nobody else: what asks the container to stop reaches process 1 alone.
"""

from __future__ import annotations

import contextlib
import os
import signal


def is_first() -> bool:
    """Whether this is process 1 of its PID namespace."""
    return os.getpid() == 1


def collect_orphans() -> None:
    """Have every process collected that ends and whose parent is gone.

    The daemon starts none itself, so the kernel may do it (SIGCHLD ignored, wait(2)); a handler
    would be refused by uvloop, which keeps that signal for itself.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with contextlib.suppress(ChildProcessError):  # those that ended before
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def pass_on(number: int) -> None:
    """Give a signal to every other process of the container."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, number)
