"""`ubond lab`: the laboratory by hand, and where an ordinary user's laboratories live.

`lab_world` says what a lab is made of; here are its commands, who may use them, and the user
namespace (kept by one sleeping process) in which somebody who is not root has labs too.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ubond.lab_world import (
    FAILED,
    HOST_IP,
    HOST_IP6,
    NICS,
    NO_SUCH,
    NOT_PERMITTED,
    OK,
    PEER_IP,
    PEER_IP6,
    PLACES,
    PREFIX,
    PREFIX6,
    SWITCHES,
    USAGE,
    Lab,
    LabError,
    OpenVSwitch,
    ending_on_signals,
    labs,
    run,
    sweep,
    wait_until,
)

__all__ = [
    "FAILED",
    "HOST_IP",
    "HOST_IP6",
    "NICS",
    "PEER_IP",
    "PEER_IP6",
    "PREFIX",
    "PREFIX6",
    "Lab",
    "LabError",
    "OpenVSwitch",
    "become_root",
    "ending_on_signals",
    "labs",
    "main",
    "own_world",
    "permission",
    "run",
    "sweep",
    "wait_until",
]

# ── an ordinary user's user namespace ────────────────────────────────────────────────

_OWN_NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
#: Run inside a fresh user namespace: a /run of its own, for `ip netns` and for ubond.
_OWN_RUN = 'mount -t tmpfs -o mode=755 run /run && exec "$@"'


def permission(euid: int, tun: str = "/dev/net/tun", again: Sequence[str] = ("ubond", "lab", "up")) -> None:
    """LabError with what to do where a lab cannot be made; `again`: the command to repeat as root."""
    as_root = f"as root: {shlex.join(['sudo', *again])}"
    if not os.path.exists(tun):
        text = f"there is no {tun}: load the tun module, or give the container that device"
        raise LabError(text, NOT_PERMITTED)
    if euid and not os.access(tun, os.R_OK | os.W_OK):
        raise LabError(f"no permission to open {tun}; {as_root}", NOT_PERMITTED)
    how = ["unshare", "--net", "--mount"] if euid == 0 else _OWN_NAMESPACES
    if subprocess.run([*how, "true"], capture_output=True).returncode == 0:
        return
    if euid == 0:
        text = "not permitted to make namespaces here (a container needs CAP_SYS_ADMIN for a lab)"
        raise LabError(text, NOT_PERMITTED)
    raise LabError(f"this system lets no ordinary user make namespaces; {as_root}", NOT_PERMITTED)


def own_world(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as root of a new user namespace, which ends with it."""
    return [*_OWN_NAMESPACES, "sh", "-c", _OWN_RUN, "sh", *command]


def become_root(argv: Sequence[str], module: str) -> None:
    """Return at once as root; as somebody else run `python -m module argv` again in a new user namespace.

    LabError (not permitted) where the system allows no such thing.
    """
    again = [sys.executable, "-m", module, *argv]
    permission(os.geteuid(), again=again)
    if os.geteuid() != 0:
        os.execvp("unshare", own_world(again))


def _keeper_file() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/ubond-lab-{os.getuid()}"
    directory = Path(runtime)
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise LabError(f"{directory} belongs to somebody else")
    return directory / "ubond-lab.keeper"


class Keeper:
    """The one process that keeps an ordinary user's labs: it sleeps in the namespaces they live in.

    Its lock file shows that it lives (it inherits the locked descriptor) and holds its process id.
    """

    def __init__(self) -> None:
        self._file = _keeper_file()

    def pid(self) -> int | None:
        """Its process id, or None when there is no keeper."""
        try:
            with self._file.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(self._file.read_text())
        return None

    def start(self) -> int:
        """Start it, wait until its namespaces are ready, and return its process id."""
        with self._file.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            keeper = subprocess.Popen(
                own_world(["sh", "-c", "echo ready; exec sleep infinity >/dev/null 2>&1"]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                pass_fds=(file.fileno(),),
            )
            assert keeper.stdout is not None
            if keeper.stdout.readline() != "ready\n":
                raise LabError("the user namespace did not come up")
            keeper.stdout.close()
            file.write(str(keeper.pid))
        return keeper.pid

    def stop(self) -> None:
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        self._file.unlink(missing_ok=True)


def _as_ordinary_user(argv: Sequence[str]) -> int:
    """Carry a lab command out inside the user's own namespaces."""
    keeper = Keeper()
    pid = keeper.pid()
    if pid is None:
        if argv[0] == "list":
            return OK
        if argv[0] != "up":
            raise LabError("there is no lab (ubond lab up)", NO_SUCH)
        permission(os.geteuid(), again=[sys.executable, "-m", "ubond.lab", *argv])
        pid = keeper.start()
    package = str(Path(__file__).resolve().parent.parent)
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from ubond.lab import main; sys.exit(main())"
    enter = ["nsenter", "--target", str(pid), "--user", "--net", "--mount", "--preserve-credentials"]
    inside = [*enter, sys.executable, "-c", code, package]
    ended = subprocess.run([*inside, *argv]).returncode
    if subprocess.run([*inside, "list"], capture_output=True, text=True).stdout == "":
        keeper.stop()
    return ended


# ── the command line ─────────────────────────────────────────────────────────────────


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ubond lab",
        description="a bond's world in network namespaces: a host with eth1 and eth2, a switch, a peer",
    )
    # In `lab shell` the lab one stands in is the one that is meant.
    default = os.environ.get("UBOND_LAB", "lab")
    commands = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def add(verb: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(verb, help=text, description=text)

    up = add("up", "build a lab; it stands until `down`")
    up.add_argument("name", nargs="?", default=default, metavar="NAME")
    up.add_argument(
        "--switch",
        choices=SWITCHES,
        default="bridge",
        help="bridge: one plain switch (active-backup); lag: a static link aggregation (balance-rr); "
        "two: two switches with no cable between them (default: %(default)s)",
    )
    up.add_argument(
        "--same-index",
        action="store_true",
        help="give both ends of a cable the same interface index: a lost carrier is then reported late",
    )
    for verb, text in (
        ("pull", "pull a cable at the switch"),
        ("plug", "plug a cable in, and wait until it carries frames"),
        ("block", "have the switch pass nothing on a port, whose carrier stays"),
        ("unblock", "have it pass frames again"),
    ):
        cable = add(verb, text)
        cable.add_argument("nic", choices=NICS)
        cable.add_argument("name", nargs="?", default=default, metavar="NAME")
    shell = add("shell", "a shell in one place")
    shell.add_argument("place", choices=PLACES, nargs="?", default="host")
    shell.add_argument("name", nargs="?", default=default, metavar="NAME")
    execute = add("exec", "run one command in one place: ubond lab exec host -- ip addr")
    execute.add_argument("--name", default=default, metavar="NAME")
    execute.add_argument("place", choices=PLACES)
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    for verb, text in (
        ("status", "show a lab's cables and ports"),
        ("down", "end what runs in a lab and remove it"),
    ):
        one = add(verb, text)
        one.add_argument("name", nargs="?", default=default, metavar="NAME")
    add("list", "the names of the labs that stand")
    world = add("world", "run a command as root of a user namespace of its own (root: as it is)")
    world.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser


def _shell(lab: Lab, place: str) -> int:
    shell = os.environ.get("SHELL", "/bin/sh")
    print(f"{place} of lab {lab.plan.name}; leave with `exit`.", file=sys.stderr)
    environment = {**lab.environment, "PS1": f"[{place}] \\w \\$ ", "UBOND_LAB": lab.plan.name}
    # The user's start-up files would put another prompt and another PATH in front.
    bare = ["--norc", "--noprofile"] if os.path.basename(shell) == "bash" else []
    return subprocess.run(lab.command(place, shell, *bare), env=environment).returncode


def _guide(lab: Lab) -> str:
    """What to try next in a lab that has just been built."""
    mode = " -o mode=balance-rr" if lab.plan.switch == "lag" else ""
    name = os.environ.get("UBOND_LAB", "lab")
    last, option = ("", "") if lab.plan.name == name else (f" {lab.plan.name}", f" --name {lab.plan.name}")
    return (
        f"{lab.status()}\n\ntry:\n"
        f"  ubond lab exec{option} host -- ubond up bond0 eth1 eth2{mode} --address {HOST_IP}/{PREFIX}\n"
        f"  ubond lab exec{option} host -- ping -c 3 {PEER_IP}\n"
        f"  ubond lab pull eth1{last}\n"
        f"  ubond lab exec{option} host -- ubond status bond0\n"
        f"  ubond lab down{last}"
    )


def _command_of(wanted: argparse.Namespace) -> list[str]:
    command: list[str] = wanted.command[1:] if wanted.command[:1] == ["--"] else wanted.command
    if not command:
        raise LabError(f"{wanted.verb}: no command to run (after --)", USAGE)
    return command


def _perform(wanted: argparse.Namespace) -> int:
    if wanted.verb == "list":
        for lab in labs():
            print(lab.plan.name)
        return OK
    if wanted.verb == "up":
        permission(os.geteuid())
        with ending_on_signals():
            lab = Lab(wanted.name, wanted.switch, same_index=wanted.same_index)
            lab.up(keep=True)
        print(_guide(lab))
        return OK
    lab = Lab.find(wanted.name)
    if wanted.verb == "pull":
        lab.pull(wanted.nic)
    elif wanted.verb == "plug":
        lab.plug(wanted.nic)
    elif wanted.verb == "block":
        lab.block(wanted.nic)
    elif wanted.verb == "unblock":
        lab.unblock(wanted.nic)
    elif wanted.verb == "shell":
        return _shell(lab, wanted.place)
    elif wanted.verb == "exec":
        command = _command_of(wanted)
        return subprocess.run(lab.command(wanted.place, *command), env=lab.environment).returncode
    elif wanted.verb == "status":
        sweep()
        print(lab.status())
    else:
        lab.down()
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out `ubond lab ...` and return its exit code; errors are one line on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        wanted = _parser().parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        if wanted.verb == "world":
            become_root(argv, "ubond.lab")
            command = _command_of(wanted)
            os.execvp(command[0], command)
        if os.geteuid() != 0:
            return _as_ordinary_user(argv)
        return _perform(wanted)
    except LabError as error:
        print(f"ubond lab: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
