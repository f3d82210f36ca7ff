"""The `ubond` command.  It imports a room only when the command at hand needs it.

Every error ends here as one line on standard error and an exit code (`client.DONE` and on).
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from ubond import cli_ask, paths
from ubond.cli_ask import CommandError, add_bond, connect
from ubond.client import FAILED, KERNEL_REFUSED, NOT_PERMITTED, USAGE, ControlError

SUMMARY = """\
usage: ubond COMMAND ...

Network bonding in userspace: `ubond up bond0 eth1 eth2` makes a device bond0 out of two
interfaces, on any Linux with TUN and packet sockets and no need for the bonding module.
Options, messages and status text are those of the kernel's bonding driver.
"""

NOTES = """\
exit status:
  0  done
  1  failed at run time
  2  wrong usage or a bad configuration
  3  no such bond
  4  not permitted (names the missing capability)
  5  the kernel refused (names the call)

`ubond COMMAND --help` explains a command.  ubond(1) is the manual.
"""


class Command(NamedTuple):
    """One command: a line about it, what it takes, what it does, and what to add to its help."""

    summary: str
    describe: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    epilog: str = ""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of printing the usage as well."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(USAGE, f"{message}; see {self.prog} --help")


# ── entry ────────────────────────────────────────────────────────────────────────────


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    _have_standard_files()
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has had enough; nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        code, text = _explain(error)
        line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
        print(f"ubond: {line}", file=sys.stderr)
        return code


def _have_standard_files() -> None:
    """Put /dev/null where the caller has closed standard files: what is opened next would take their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # the kernel's names of interfaces need not be UTF-8


def _dispatch(argv: list[str]) -> int:
    """Find the command and run it with the rest."""
    if not all(word.isprintable() for word in argv):
        raise CommandError(USAGE, "an argument cannot be printed as text")
    match argv:
        case [] | ["help"] | ["-h"] | ["--help"]:
            print(_overview())
            return 0
        case ["--version"]:
            from ubond import __version__

            print(f"ubond {__version__}")
            return 0
        case ["help", name]:
            argv = [name, "--help"]
        case ["lab", *rest]:
            from ubond import lab

            return lab.main(rest)
    name, *rest = argv
    command = COMMANDS.get(name)
    if command is None:
        raise CommandError(USAGE, f"unknown command {name!r}; there are {' '.join([*COMMANDS, 'lab'])}")
    parser = Parser(
        prog=f"ubond {name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.",
        epilog=command.epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.describe(parser)
    return command.run(parser.parse_intermixed_args(rest))


def _overview() -> str:
    rows = {name: command.summary for name, command in COMMANDS.items()}
    rows["lab"] = "play with a bond in network namespaces, without touching this machine's interfaces"
    commands = "\n".join(f"  {name:9}{summary}" for name, summary in rows.items())
    return f"{SUMMARY}\ncommands:\n{commands}\n\n{NOTES}"


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and text for an error that a person can do something about; others are raised on."""
    if isinstance(error, CommandError | ControlError):
        return error.code, str(error)
    from ubond.bond.events import DoorError
    from ubond.bond.options import Refused
    from ubond.bond.spec import SpecError
    from ubond.messages import error_object

    if not isinstance(error, Refused | DoorError | SpecError | OSError):
        raise error
    told = error_object(error)
    hint = ""
    if told["errno"] == "ENODEV":
        hint = "; `ip link` shows the interfaces that there are"
    elif told["code"] == NOT_PERMITTED:
        from ubond.cli_up import missing_capabilities

        hint = "".join(f"; {name} is missing" for name in missing_capabilities())
    return told["code"], told["message"] + hint


# ── up, down, restore ────────────────────────────────────────────────────────────────


def _describe_up(parser: argparse.ArgumentParser) -> None:
    from ubond import cli_up

    parser.usage = "ubond up BOND SLAVE... [-o OPTION=VALUE]... [--OPTION VALUE]... [--address CIDR]..."
    cli_up.add_arguments(parser)


def _up(args: argparse.Namespace) -> int:
    from ubond import cli_up

    return _start(cli_up.spec_from(args), args)


def _start(spec: Any, args: argparse.Namespace) -> int:
    from ubond import cli_up, daemon

    # A service manager may hold the lock for a bond that this process is to go on with.
    if paths.running(spec.name) and "LISTEN_FDS" not in os.environ:
        raise CommandError(FAILED, f"{spec.name} is already running; `ubond down {spec.name}` ends it")
    _check_permission()
    for line in cli_up.remarks(spec):
        print(line, flush=True)
    try:
        notes = daemon.start(spec, foreground=args.foreground, keeper=args.keeper)
    except Exception as error:
        code, text = _explain(error)
        raise CommandError(code, text if text.startswith(spec.name) else f"{spec.name}: {text}") from None
    for line in notes:
        print(line, file=sys.stderr)
    return 0


def _check_permission() -> None:
    """Refuse now what would fail half way: CommandError that names what is missing."""
    from ubond import cli_up

    if missing := cli_up.missing_capabilities():
        grants = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in missing)
        names = " and ".join(missing)
        raise CommandError(NOT_PERMITTED, f"{names} missing; run as root, or the container with {grants}")
    try:
        cli_up.open_tun()
    except OSError as error:
        code = NOT_PERMITTED if isinstance(error, PermissionError) else KERNEL_REFUSED
        raise CommandError(
            code,
            f"open /dev/net/tun: {error.strerror}; load the module tun, or run the container with "
            "--device /dev/net/tun",
        ) from None


def _describe_down(parser: argparse.ArgumentParser) -> None:
    add_bond(parser)
    parser.add_argument(
        "--if-dead", action="store_true",
        help="only give back what a dead daemon has left; a bond that runs, or is kept for the next daemon, stays",
    )  # fmt: skip


def _down(args: argparse.Namespace) -> int:
    bond = args.bond
    if getattr(args, "if_dead", False):
        return _recover(bond) if bond in paths.left_behind() else 0
    try:
        client = connect(bond)
    except CommandError:
        if bond not in paths.left_behind():
            raise
        return _recover(bond)
    with client:
        client.request("down")
        # The daemon still has its lock for a moment; `ubond up` may follow at once.
        while client.fill():
            client.arrived()
    _wait_until_gone(bond)
    return 0


def _wait_until_gone(bond: str, patience: float = 10.0) -> None:
    import time

    end = time.monotonic() + patience
    while paths.running(bond):
        if time.monotonic() > end:
            raise CommandError(FAILED, f"{bond} has been taken down, but its daemon is still there")
        time.sleep(0.01)


def _recover(bond: str) -> int:
    from ubond import daemon

    _check_permission()
    count = daemon.recover(bond)
    print(f"the daemon of {bond} had died; gave back {_interfaces(count) if count else 'nothing: it held none'}")
    return 0


def _interfaces(count: int) -> str:
    return "1 interface" if count == 1 else f"{count} interfaces"


def _describe_restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("interfaces", metavar="IFACE", nargs="+", help="interface that a bond has left behind")


def _restore(args: argparse.Namespace) -> int:
    from ubond import daemon

    _check_permission()
    count = daemon.restore(args.interfaces)
    print(f"gave back {_interfaces(count)}" if count else "nothing to give back")
    return 0


def _describe_upgrade(parser: argparse.ArgumentParser) -> None:
    add_bond(parser)


def _upgrade(args: argparse.Namespace) -> int:
    from ubond import daemon

    connect(args.bond).close()
    _check_permission()
    for line in daemon.upgrade(args.bond):
        print(line)
    return 0


# ── ifup, ifdown ─────────────────────────────────────────────────────────────────────


def _describe_ifup(parser: argparse.ArgumentParser) -> None:
    add_bond(parser)
    _add_root(parser)
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground and log to stderr")
    parser.add_argument("--no-keeper", dest="keeper", action="store_false", help="as for up")


def _ifup(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ubond.config import ConfigError, load_article

    try:
        spec, notes = load_article(Path(args.root), args.bond)
    except ConfigError as error:
        raise CommandError(USAGE, str(error)) from None
    for note in notes:
        print(note, file=sys.stderr)
    return _start(spec, args)


def _describe_ifdown(parser: argparse.ArgumentParser) -> None:
    add_bond(parser)
    _add_root(parser)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", default="/", help="where etc/ is (default /)")


def _describe_options(parser: argparse.ArgumentParser) -> None:
    from ubond import cli_options

    cli_options.add_arguments(parser)


def _options(args: argparse.Namespace) -> int:
    from ubond import cli_options
    from ubond.bond.options import OptionError

    try:
        return cli_options.run(args)
    except OptionError as error:
        raise CommandError(USAGE, f"{error}; `ubond options` lists them") from None


# ── the table of commands ────────────────────────────────────────────────────────────

COMMANDS = {
    "up": Command("make a bond of interfaces and run it", _describe_up, _up, """\
The command returns when frames can flow, or says why they cannot and leaves nothing behind.
Defaults are safer than the driver's, and said aloud: mode=active-backup miimon=100.

examples:
  ubond up bond0 eth1 eth2
  ubond up bond0 eth1 eth2 --primary eth1 --updelay 2s --address 192.0.2.10/24 --gateway 192.0.2.1
  ubond up bond0 eth1 eth2 -o mode=balance-rr -o packets_per_slave=4
  ubond up bond0 eth1 eth2 -o eth2.prio=10 --foreground
"""),
    "down": Command("end a bond and give its slaves back what they had", _describe_down, _down, """\
Also after a crash: the slaves get back the MAC, MTU, flags, features and addresses that a dead
daemon has left changed.
"""),
    "upgrade": Command("let the ubond that is installed now go on with a bond, losing no frame", _describe_upgrade,
                       _upgrade, """\
A new process gets the descriptors, state and counters of the running one; addresses, routes and
connections do not notice.  If the new one fails, the running one goes on and the command says why.
"""),
    "list": Command("name the bonds of this network namespace", cli_ask.describe_list, cli_ask.list_bonds),
    "status": Command("show a bond", cli_ask.describe_status, cli_ask.status, """\
examples:
  ubond status bond0 | awk '/Currently Active Slave/ { print $4 }'
  ubond status --json | jq -r '.[0].linkinfo.info_data.active_slave'
"""),
    "add": Command("enslave more interfaces", cli_ask.describe_add, cli_ask.add_slaves),
    "remove": Command("release slaves", cli_ask.describe_remove, cli_ask.remove_slaves),
    "set": Command("change options while the bond runs", cli_ask.describe_set, cli_ask.set_options, """\
Options are applied in the driver's order, whatever order they are written in; those before a
refused one stay applied, as with the driver.  `ubond up --help` lists them.

examples:
  ubond set bond0 active_slave=eth2
  ubond set bond0 miimon=50 updelay=2s
  ubond set bond0 eth2.prio=10 eth2.queue_id=3
"""),
    "options": Command("explain the bonding options: values, default, modes, when they may change",
                       _describe_options, _options, """\
examples:
  ubond options
  ubond options xmit_hash_policy
"""),
    "monitor": Command("print what happens, one line per event, until interrupted", cli_ask.describe_monitor,
                       cli_ask.monitor, """\
Ends by itself when no bond is left.  A reader that is too slow is told how many events it missed.
"""),
    "history": Command("list past failovers: when, why, from, to, frames lost, silence", cli_ask.describe_history,
                       cli_ask.history, """\
LOST counts the frames that ubond dropped; what was already in a NIC is unknown to everybody.
SILENCE is the time from the last frame sent on the old slave to the first on the new one, shown
where traffic was offered.
"""),
    "ifup": Command("bring up a bond as this machine's files describe it", _describe_ifup, _ifup, """\
Reads etc/modprobe.conf, etc/modprobe.d/ and etc/sysconfig/network-scripts/ifcfg-* below DIR.  What
is not understood is told with file and line.
"""),
    "ifdown": Command("take a bond down, like down", _describe_ifdown, _down),
    "restore": Command("give interfaces back what a dead container's ubond took", _describe_restore,
                       _restore, """\
Works from the journal, or where that is lost from the interface's alias (ip link show).
"""),
}  # fmt: skip
