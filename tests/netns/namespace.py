"""Network namespaces for tests: made for one test, unique, always removed.

    from namespace import Namespace

    def test_something(namespaces: Callable[[], Namespace]) -> None:
        host, peer = namespaces(), namespaces()
        host.link_to(peer, "eth1", "p1")            # veth: eth1 in host, p1 in peer, both up
        host.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth1")

        async def ask() -> SlaveFacts:              # runs in the namespace, on uvloop
            ...

        facts = host.call(ask)

Nothing here touches the machine's own interfaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def run(*argv: str, check: bool = True) -> str:
    """Run a program and return what it printed; RuntimeError with what it complained about."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_for(condition: Callable[[], T], seconds: float = 5.0) -> T:
    """Return what `condition` returns as soon as that is true; AssertionError when it never was."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"still not so after {seconds} s"
        time.sleep(0.01)
    return value


class Namespace:
    """One network namespace."""

    def __init__(self) -> None:
        self.name = f"ubt-{os.getpid()}-{secrets.token_hex(3)}"
        run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    def close(self) -> None:
        """Remove it and all that is in it; a veth goes at both ends."""
        run("ip", "netns", "delete", self.name, check=False)

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a program in it and return what it printed."""
        return run("ip", "netns", "exec", self.name, *argv, check=check)

    def link_to(self, other: Namespace, name: str, other_name: str) -> None:
        """Lay a cable: `name` here, `other_name` there, both up."""
        run("ip", "link", "add", name, "netns", self.name, "type", "veth",
            "peer", "name", other_name, "netns", other.name)
        self.run("ip", "link", "set", name, "up")
        other.run("ip", "link", "set", other_name, "up")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Run the block in this namespace: sockets opened in it stay there, the thread comes back."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def call(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine function in this namespace, on a uvloop of its own, and return its result."""
        result: list[T] = []
        failure: list[BaseException] = []

        def body() -> None:
            try:
                with self.inside():
                    result.append(uvloop.run(work()))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
