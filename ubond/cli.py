"""The `ubond` command.  It imports a room only when the command at hand needs it.

Every error ends here as one line on standard error and an exit code (`client.DONE` and on).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ubond import paths
from ubond.client import FAILED, KERNEL_REFUSED, NO_BOND, NOT_PERMITTED, USAGE, Client, ControlError

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


class CommandError(Exception):
    """A command cannot go on; `code` is its exit code, `str()` one line for a person."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Command:
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
        prog=f"ubond {name}", description=command.summary, epilog=command.epilog, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
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
    if told["code"] == NOT_PERMITTED:
        from ubond.cli_up import missing_capabilities

        hint = "".join(f"; {name} is missing" for name in missing_capabilities())
    return told["code"], told["message"] + hint


# ── talking to daemons ───────────────────────────────────────────────────────────────


def _connect(bond: str) -> Client:
    """A connection to the daemon of a bond; CommandError that says what can be done if there is none."""
    try:
        return Client(str(paths.socket_path(bond)))
    except ControlError as error:
        if error.code != NO_BOND:
            raise
        raise CommandError(*_why_no_bond(bond)) from None


def _why_no_bond(bond: str) -> tuple[int, str]:
    if paths.running(bond):
        return FAILED, f"{bond} is just starting or ending; try again"
    if paths.journal_path(bond).exists():
        return NO_BOND, f"the daemon of {bond} has died; `ubond down {bond}` gives its slaves back"
    return NO_BOND, f"there is no bond {bond} here; `ubond list` shows those that run"


def _ask(bond: str, request: str, **fields: Any) -> dict[str, Any]:
    with _connect(bond) as client:
        try:
            return client.request(request, **fields)
        except ControlError as error:
            raise CommandError(error.code, f"{bond}: {error}") from None


def _bonds(args: argparse.Namespace) -> list[str]:
    """The bond that was named, or all that run here; CommandError if there is none."""
    if args.bond is not None:
        return [args.bond]
    names: list[str] = paths.running_bonds()
    if not names:
        raise CommandError(NO_BOND, "no bond runs in this network namespace; `ubond up` starts one")
    return names


def _print_notes(result: dict[str, Any]) -> int:
    for note in result["notes"]:
        print(note)
    return 0


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()


# ── status, list ─────────────────────────────────────────────────────────────────────


def _describe_status(parser: argparse.ArgumentParser) -> None:
    _add_bond_or_all(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--format", choices=("proc", "table", "json"), default="proc",
        help="proc (default): the text of /proc/net/bonding; table: for the eyes, with counters; json: as "
        "`ip -d -j link` nests it, with what only ubond knows under the key ubond",
    )  # fmt: skip
    form.add_argument(
        "--json", action="store_const", const="json", dest="format", help="same as --format json"
    )


def _status(args: argparse.Namespace) -> int:
    bonds = _bonds(args)
    if args.format == "json":
        _print_json([link for bond in bonds for link in _ask(bond, "status", format="json")["links"]])
        return 0
    for number, bond in enumerate(bonds):
        if len(bonds) > 1:
            print(("\n" if number else "") + f"==> {bond} <==")
        sys.stdout.write(_status_text(bond, args.format))
    return 0


def _status_text(bond: str, format: str) -> str:
    try:
        return str(_ask(bond, "status", format=format)["text"])
    except (ControlError, CommandError) as error:
        if format != "proc" or error.code != NOT_PERMITTED:
            raise
    # Who may not talk to the daemon may still read what it writes for everybody.
    return paths.proc_path(bond).read_text()


def _describe_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="a JSON list of objects with bond, ubond and pid")


def _list(args: argparse.Namespace) -> int:
    names = paths.running_bonds()
    if args.json:
        _print_json([_ask(name, "ping") for name in names])
    else:
        print(*names, sep="\n", end="\n" if names else "")
    return 0


# ── add, remove, set ─────────────────────────────────────────────────────────────────


def _describe_add(parser: argparse.ArgumentParser) -> None:
    _add_bond(parser)
    parser.add_argument("slaves", metavar="SLAVE", nargs="+", help="interfaces to enslave, in this order")
    parser.add_argument(
        "--take-addresses", action="store_true",
        help="move their addresses and routes to the bond, and back when they leave",
    )  # fmt: skip


def _add(args: argparse.Namespace) -> int:
    return _print_notes(_ask(args.bond, "add", slaves=args.slaves, take_addresses=args.take_addresses))


def _describe_remove(parser: argparse.ArgumentParser) -> None:
    _add_bond(parser)
    parser.add_argument("slaves", metavar="SLAVE", nargs="+", help="slaves to release")


def _remove(args: argparse.Namespace) -> int:
    return _print_notes(_ask(args.bond, "remove", slaves=args.slaves))


def _describe_set(parser: argparse.ArgumentParser) -> None:
    _add_bond(parser)
    parser.add_argument(
        "options", metavar="OPTION=VALUE", nargs="+", help="an option of the bond, or SLAVE.OPTION=VALUE"
    )


def _set(args: argparse.Namespace) -> int:
    return _print_notes(_ask(args.bond, "set", options=[_assignment(text) for text in args.options]))


def _assignment(text: str) -> dict[str, str | None]:
    """The protocol's form of `miimon=50` or `eth2.prio=10`; whether they exist the daemon knows."""
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(USAGE, f"{text!r} is not OPTION=VALUE; see ubond set --help")
    slave, _, option = name.rpartition(".")
    return {"slave": slave or None, "option": option, "value": value}


# ── history, monitor ─────────────────────────────────────────────────────────────────


def _describe_history(parser: argparse.ArgumentParser) -> None:
    _add_bond(parser)
    parser.add_argument("--log", action="store_true", help="the log lines kept since the start instead")
    parser.add_argument("--json", action="store_true", help="a JSON list")


def _history(args: argparse.Namespace) -> int:
    from ubond import cli_events

    kind = "log" if args.log else "history"
    entries = _ask(args.bond, kind)[kind]
    if args.json:
        _print_json(entries)
        return 0
    for line in map(cli_events.event, entries) if args.log else cli_events.failovers(entries):
        print(line)
    return 0


def _describe_monitor(parser: argparse.ArgumentParser) -> None:
    _add_bond_or_all(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def _monitor(args: argparse.Namespace) -> int:
    from ubond import cli_events

    return cli_events.monitor({_connect(bond): bond for bond in _bonds(args)}, as_json=args.json)


# ── up, down, restore ────────────────────────────────────────────────────────────────


def _describe_up(parser: argparse.ArgumentParser) -> None:
    from ubond import cli_up

    cli_up.add_arguments(parser)


def _up(args: argparse.Namespace) -> int:
    from ubond import cli_up

    return _start(cli_up.spec_from(args), args.foreground)


def _start(spec: Any, foreground: bool) -> int:
    from ubond import cli_up, daemon

    if paths.running(spec.name):
        raise CommandError(FAILED, f"{spec.name} is already running; `ubond down {spec.name}` ends it")
    _check_permission()
    for line in cli_up.remarks(spec):
        print(line, flush=True)
    return daemon.start(spec, foreground=foreground)


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
    _add_bond(parser)


def _down(args: argparse.Namespace) -> int:
    bond = args.bond
    try:
        client = _connect(bond)
    except CommandError:
        if paths.running(bond) or not paths.journal_path(bond).exists():
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
    print(f"the daemon of {bond} had died; gave back {_interfaces(count)}")
    return 0


def _interfaces(count: int) -> str:
    return "1 interface" if count == 1 else f"{count} interfaces"


def _describe_restore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "interfaces", metavar="IFACE", nargs="+", help="interface that a bond has left behind"
    )


def _restore(args: argparse.Namespace) -> int:
    from ubond import daemon

    _check_permission()
    count = daemon.restore(args.interfaces)
    print(f"gave back {_interfaces(count)}" if count else "nothing to give back")
    return 0


# ── ifup, ifdown ─────────────────────────────────────────────────────────────────────


def _describe_ifup(parser: argparse.ArgumentParser) -> None:
    _add_bond(parser)
    _add_root(parser)
    parser.add_argument("--foreground", action="store_true", help="stay in the foreground and log to stderr")


def _ifup(args: argparse.Namespace) -> int:
    from pathlib import Path

    from ubond.config import ConfigError, load_article

    try:
        spec, notes = load_article(Path(args.root), args.bond)
    except ConfigError as error:
        raise CommandError(USAGE, str(error)) from None
    for note in notes:
        print(note, file=sys.stderr)
    return _start(spec, args.foreground)


def _describe_ifdown(parser: argparse.ArgumentParser) -> None:
    _add_bond(parser)
    _add_root(parser)


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", default="/", help="where etc/ is (default /)")


def _add_bond(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bond", metavar="BOND", help="name of the bond's device")


def _add_bond_or_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bond", metavar="BOND", nargs="?", help="a bond (default: all in this namespace)")


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
    "list": Command("name the bonds of this network namespace", _describe_list, _list),
    "status": Command("show a bond", _describe_status, _status, """\
examples:
  ubond status bond0 | awk '/Currently Active Slave/ { print $4 }'
  ubond status --json | jq -r '.[0].linkinfo.info_data.active_slave'
"""),
    "add": Command("enslave more interfaces", _describe_add, _add),
    "remove": Command("release slaves", _describe_remove, _remove),
    "set": Command("change options while the bond runs", _describe_set, _set, """\
Options are applied in the order written; those before a refused one stay applied, as with the
driver.  `ubond up --help` lists them.

examples:
  ubond set bond0 active_slave=eth2
  ubond set bond0 miimon=50 updelay=2s
  ubond set bond0 eth2.prio=10 eth2.queue_id=3
"""),
    "monitor": Command("print what happens, one line per event, until interrupted", _describe_monitor,
                       _monitor, """\
Ends by itself when no bond is left.  A reader that is too slow is told how many events it missed.
"""),
    "history": Command("list past failovers: when, why, from, to, frames lost, silence", _describe_history,
                       _history, """\
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
