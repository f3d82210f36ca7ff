"""A world whose host is a podman container with two capabilities and /dev/net/tun, and nothing more.

    with Contained() as world:          # eth1 and eth2 of the container are cabled to the switch
        with world.bond() as bond: ...  # `ubond up` inside, by `podman exec`

The container's network namespace is entered from outside like any other, so all that a world
can look at and do to a host works on this one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.netns.world import ADDRESSES, ROOT, Bond, Space, World, WorldError, wait_until
from ubond.client import Client

ENGINE = ("podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs")
LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000")
RIGHTS = ("--network=none", "--cap-drop=all", "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW",
          "--device", "/dev/net/tun")  # fmt: skip
#: A shell that stays, and ends when it is told to.
SHELL = ("sh", "-c", 'trap "exit 0" TERM; while :; do sleep 0.2; done')


def ubond_command(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "ubond", *words)


def podman(*words: str, check: bool = True, timeout: float = 90) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*ENGINE, *words], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise WorldError(f"podman {' '.join(words)}: exit {done.returncode}: {done.stderr.strip()}")
    return done


def why_not() -> str:
    """Why this machine cannot run podman at all; empty if it can."""
    if os.geteuid() != 0:
        return "not root"
    for program in ("podman", "runc"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    with root_filesystem() as root:
        tried = podman("run", "--rm", *LIMITS, *RIGHTS, *volumes(), "--rootfs", f"{root}:O", "true", check=False)
    return "" if tried.returncode == 0 else f"podman does not run here: {tried.stderr.strip()}"


@contextlib.contextmanager
def root_filesystem() -> Iterator[Path]:
    """An image made of this machine: its /usr by a read-only volume, and a small /etc."""
    with tempfile.TemporaryDirectory(prefix="ubt-rootfs-") as made:
        root = Path(made)
        root.chmod(0o755)
        for name in ("dev", "proc", "sys", "run", "tmp", "var", "usr", "root"):
            (root / name).mkdir()
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
        (root / "etc").mkdir()
        for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(f"/etc/{name}", root / "etc" / name)
        shutil.copytree("/etc/alternatives", root / "etc" / "alternatives", symlinks=True)
        yield root


def volumes() -> list[str]:
    """What the container needs of this machine, read-only: programs, the Python in use, ubond."""
    places = ["/usr", *(place for place in ("/bin", "/sbin", "/lib", "/lib64") if not Path(place).is_symlink())]
    for place in (sys.base_prefix, sys.prefix, str(ROOT)):
        if not any(place == each or place.startswith(f"{each}/") for each in places):
            places.append(place)
    return [word for place in places if Path(place).is_dir() for word in ("-v", f"{place}:{place}:ro")]


class Contained(World):
    """A world whose host is a container; `command` is what runs in it as process 1."""

    def __init__(self, command: Sequence[str] = SHELL, *, options: Sequence[str] = ()) -> None:
        """`options`: more of `podman run`."""
        super().__init__(2)
        self._command, self._options = command, options
        self._stack = contextlib.ExitStack()
        self.container, self.pid = "", 0

    def _add(self, space: Space) -> None:
        if space is not self.host:
            super()._add(space)
            return
        root = self._stack.enter_context(root_filesystem())
        self.container = podman(
            "run", "--detach", *LIMITS, *RIGHTS, *volumes(), "-e", f"PYTHONPATH={ROOT}", *self._options,
            "--rootfs", f"{root}:O", *self._command,
        ).stdout.strip()  # fmt: skip
        self._stack.callback(podman, "rm", "--force", "--time", "0", self.container, check=False)
        self.pid = int(self.inspect("State")["Pid"])
        subprocess.run(["ip", "netns", "attach", space.name, str(self.pid)], check=True, capture_output=True)
        space.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")

    def close(self) -> None:
        self._stack.close()
        super().close()

    def inspect(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(podman("inspect", self.container).stdout)[0][key]
        return found

    def exec(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        return podman("exec", self.container, *command, check=check, timeout=timeout)

    def logs(self) -> str:
        done = podman("logs", self.container)
        return done.stdout + done.stderr

    def ubond(
        self, *words: str, check: bool = True, space: Space | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        assert space in (None, self.host)
        return self.exec(*ubond_command(*words), check=check, timeout=timeout)

    @contextlib.contextmanager
    def bond(self, *words: str, name: str = "bond0", addresses: bool = True) -> Iterator[Bond]:
        with super().bond(*words, name=name, addresses=addresses):
            yield ContainedBond(self, name)

    def foreground(self) -> ContainedBond:
        """The bond that process 1 runs, as soon as frames can flow."""
        bond = ContainedBond(self, "bond0")
        try:
            wait_until(bond.answers, 20)
        except WorldError:
            raise WorldError(f"the daemon does not answer: {self.logs()}") from None
        return bond


#: `ubond up --foreground` as process 1, once its NICs have been moved in and are up.
FOREGROUND = (
    "sh", "-c", 'until ip -br link show up dev eth2 | grep -q eth2; do sleep 0.1; done 2>/dev/null; exec "$@"', "sh",
    *ubond_command("up", "bond0", "eth1", "eth2", "--foreground", *ADDRESSES),
)  # fmt: skip


class ContainedBond(Bond):
    """A bond in a container, asked over its control socket from outside."""

    world: Contained

    def ask(self, request: str, **fields: Any) -> dict[str, Any]:
        with Client(str(self._socket()), timeout=10) as client:
            return client.request(request, **fields)

    def answers(self) -> bool:
        with contextlib.suppress(OSError, StopIteration):
            return bool(self.ask("ping"))
        return False

    def _socket(self) -> Path:
        return next(Path(f"/proc/{self.world.pid}/root/run/ubond").rglob(f"{self.name}.sock"))
