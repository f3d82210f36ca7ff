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

from tests.netns.world import ADDRESSES, ROOT, Bond, Kind, Space, World, WorldError, wait_until
from ubond.client import Client

AGENT = Path(__file__).parent / "agent.py"
ENGINE = ("podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs")
LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000")
TWO, TUN = ("--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW"), ("--device", "/dev/net/tun")
NO_RIGHTS = ("--network=none", "--cap-drop=all")
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
        options = (*LIMITS, *NO_RIGHTS, *TWO, *TUN, *volumes())
        tried = podman("run", "--rm", *options, "--rootfs", f"{root}:O", "true", check=False)
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


class InContainers(Kind):
    """Worlds whose host is a container, its switch and peer outside: `pytest --world=container`.

    What a test starts in the host, the engine has started there (`agent`).  /tmp is shared with the
    container and ubond's runtime directory is in it, so that a test finds a bond's files and its own
    where it does in a namespace.
    """

    def __init__(self, command: Sequence[str] = SHELL, options: Sequence[str] = (), *, bare: bool = False) -> None:
        """`bare`: nothing is shared and there is no agent, so that all is as the engine makes it."""
        self._command, self._options, self._bare = command, options, bare
        if not bare:
            self._runtime = f"/tmp/ubond-worlds-{os.getpid()}"
            os.environ["UBOND_RUNTIME_DIR"] = self._runtime
        self._containers: dict[str, Container] = {}

    def of(self, world: World) -> Container:
        return self._containers[world.key]

    def host(self, name: str) -> Space:
        return Space(name, () if self._bare else (sys.executable, "-ISE", str(AGENT), "run", _agent_of(name)))

    def make_host(self, world: World) -> None:
        options = [*self._options]
        if not self._bare:
            options += [*TWO, *TUN, "-v", "/tmp:/tmp"]
        container = self._containers[world.key] = Container(world.host, self._command, options)
        container.open()
        if not self._bare:
            agent = _agent_of(world.host.name)
            podman("exec", "--detach", container.name, sys.executable, "-ISE", str(AGENT), "serve", agent)
            wait_until(Path(agent).exists, what="the agent in the container")

    def pid(self, world: World, pid: int) -> int:
        return self.of(world).outer_pid(pid)

    def close(self, world: World) -> None:
        if container := self._containers.pop(world.key, None):
            container.close()
            Path(_agent_of(world.host.name)).unlink(missing_ok=True)
        if not (self._bare or self._containers):
            shutil.rmtree(self._runtime, ignore_errors=True)


def _agent_of(host: str) -> str:
    """The socket of the agent in a host's container."""
    return f"/tmp/{host}.agent"


class Container:
    """One container; its network namespace has the name of a world's host."""

    def __init__(self, space: Space, command: Sequence[str], options: Sequence[str]) -> None:
        """`command` is what runs in it as process 1; `options` are more of `podman run`."""
        self._space, self._command, self._options = space, command, options
        self._stack = contextlib.ExitStack()
        self.name, self.pid = "", 0

    def open(self) -> None:
        root = self._stack.enter_context(root_filesystem())
        self.name = podman(
            "run", "--detach", *LIMITS, *NO_RIGHTS, *volumes(), "-e", f"PYTHONPATH={ROOT}", *self._options,
            "--rootfs", f"{root}:O", *self._command,
        ).stdout.strip()  # fmt: skip
        self._stack.callback(podman, "rm", "--force", "--time", "0", self.name, check=False)
        self.pid = int(self.inspect("State")["Pid"])
        subprocess.run(["ip", "netns", "attach", self._space.name, str(self.pid)], check=True, capture_output=True)
        # From outside: the container's own /proc/sys is read-only.
        self._space.outside.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")

    def close(self) -> None:
        self._stack.close()

    def inspect(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(podman("inspect", self.name).stdout)[0][key]
        return found

    def outer_pid(self, inner: int) -> int:
        """The number that a process of the container has outside."""
        pids = subprocess.run(["ip", "netns", "pids", self._space.name], capture_output=True, text=True).stdout.split()
        for pid in pids:
            with contextlib.suppress(OSError):
                if state_of(int(pid))["NSpid"].split()[-1] == str(inner):
                    return int(pid)
        raise ProcessLookupError(f"no process {inner} in the container")


def state_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: value.strip() for key, value in lines}


class Contained(World):
    """A world whose host is a container by itself; `command` is what runs in it as process 1."""

    def __init__(
        self, command: Sequence[str] = SHELL, *, options: Sequence[str] = (), rights: Sequence[str] = (*TWO, *TUN)
    ) -> None:
        """`rights` and `options`: more of `podman run`."""
        self._in = InContainers(command, (*rights, *options), bare=True)
        super().__init__(2, of=self._in)

    @property
    def container(self) -> Container:
        return self._in.of(self)

    def exec(
        self, *command: str, user: str = "root", check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the container."""
        return podman("exec", "--user", user, self.container.name, *command, check=check, timeout=timeout)

    def logs(self) -> str:
        done = podman("logs", self.container.name)
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
        return next(Path(f"/proc/{self.world.container.pid}/root/run/ubond").rglob(f"{self.name}.sock"))
