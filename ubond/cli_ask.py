"""The commands that ask a running daemon: status, list, set, add, remove, history, monitor.

They import next to nothing, so that they answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

from ubond import paths
from ubond.client import FAILED, NO_BOND, NOT_PERMITTED, USAGE, Client, ControlError

#: The longest name of an interface (`wire.NAME_MAX`, not imported for the time it takes).
IFNAME_MAX = 15


class CommandError(Exception):
    """A command cannot go on; `code` is its exit code, `str()` one line for a person."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        super().__init__(text)


# ── talking to daemons ───────────────────────────────────────────────────────────────

#: Seconds that a daemon may take to start or to end.
PATIENCE = 3.0


def connect(bond: str) -> Client:
    """A connection to the daemon of a bond; CommandError that says what can be done if there is none."""
    if "/" in bond or len(os.fsencode(bond)) > IFNAME_MAX:
        raise CommandError(NO_BOND, f"{bond!r} cannot be the name of a bond")
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return Client(str(paths.socket_path(bond)))
        except ControlError as error:
            if error.code != NO_BOND:
                raise
        # A daemon that holds its lock and does not listen is about to, or is going: soon it is clear.
        if not paths.running(bond) or time.monotonic() > end:
            raise CommandError(*_why_no_bond(bond))
        time.sleep(0.02)


def _why_no_bond(bond: str) -> tuple[int, str]:
    if paths.running(bond):
        return FAILED, f"{bond} is just starting or ending; try again"
    if bond in paths.left_behind():
        return NO_BOND, f"the daemon of {bond} has died; `ubond down {bond}` gives its slaves back"
    return NO_BOND, f"there is no bond {bond} here; `ubond list` shows those that run"


def ask(bond: str, request: str, **fields: Any) -> dict[str, Any]:
    with connect(bond) as client:
        try:
            return client.request(request, **fields)
        except ControlError as error:
            raise CommandError(error.code, f"{bond}: {error}") from None


def _bonds(args: argparse.Namespace) -> list[str]:
    """The bond that was named, or all that run here; CommandError if there is none."""
    if args.bond is not None:
        return [args.bond]
    names: list[str] = paths.bonds()
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


def describe_status(parser: argparse.ArgumentParser) -> None:
    _add_bond_or_all(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--format", choices=("proc", "table", "json"), default="proc",
        help="proc (default): the text of /proc/net/bonding; table: for the eyes, with counters; json: as "
        "`ip -d -j link` nests it, with what only ubond knows under the key ubond",
    )  # fmt: skip
    form.add_argument("--json", action="store_const", const="json", dest="format", help="same as --format json")


def status(args: argparse.Namespace) -> int:
    bonds = _bonds(args)
    if args.format == "json":
        _print_json([link for bond in bonds for link in ask(bond, "status", format="json")["links"]])
        return 0
    for number, bond in enumerate(bonds):
        if len(bonds) > 1:
            print(("\n" if number else "") + f"==> {bond} <==")
        sys.stdout.write(_status_text(bond, args.format))
    return 0


def _status_text(bond: str, format: str) -> str:
    try:
        result = ask(bond, "status", format=format)
    except (ControlError, CommandError) as error:
        if format != "proc" or error.code != NOT_PERMITTED:
            raise
    else:
        # The text is the driver's to the letter: what it does not say goes beside it.
        for note in result.get("notes", ()):
            print(f"ubond: {note}", file=sys.stderr)
        return str(result["text"])
    # Who may not talk to the daemon may still read what it writes for everybody.
    return paths.proc_path(bond).read_text("utf-8", "surrogateescape")


def describe_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="a JSON list of objects with bond, ubond and pid")


def list_bonds(args: argparse.Namespace) -> int:
    names = paths.bonds()
    if args.json:
        _print_json([ask(name, "ping") for name in names])
    else:
        print(*names, sep="\n", end="\n" if names else "")
    return 0


# ── add, remove, set ─────────────────────────────────────────────────────────────────


def describe_add(parser: argparse.ArgumentParser) -> None:
    add_bond(parser)
    parser.add_argument("slaves", metavar="SLAVE", nargs="+", help="interfaces to enslave, in this order")
    parser.add_argument(
        "--take-addresses", action="store_true",
        help="move their addresses and routes to the bond, and back when they leave",
    )  # fmt: skip


def add_slaves(args: argparse.Namespace) -> int:
    return _print_notes(ask(args.bond, "add", slaves=args.slaves, take_addresses=args.take_addresses))


def describe_remove(parser: argparse.ArgumentParser) -> None:
    add_bond(parser)
    parser.add_argument("slaves", metavar="SLAVE", nargs="+", help="slaves to release")


def remove_slaves(args: argparse.Namespace) -> int:
    return _print_notes(ask(args.bond, "remove", slaves=args.slaves))


def describe_set(parser: argparse.ArgumentParser) -> None:
    add_bond(parser)
    parser.add_argument(
        "options", metavar="OPTION=VALUE", nargs="+", help="an option of the bond, or SLAVE.OPTION=VALUE"
    )


def set_options(args: argparse.Namespace) -> int:
    return _print_notes(ask(args.bond, "set", options=[_assignment(text) for text in args.options]))


def _assignment(text: str) -> dict[str, str | None]:
    """The protocol's form of `miimon=50` or `eth2.prio=10`; whether they exist the daemon knows."""
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(USAGE, f"{text!r} is not OPTION=VALUE; see ubond set --help")
    slave, _, option = name.rpartition(".")
    return {"slave": slave or None, "option": option, "value": value}


# ── history, monitor ─────────────────────────────────────────────────────────────────


def describe_history(parser: argparse.ArgumentParser) -> None:
    add_bond(parser)
    parser.add_argument("--log", action="store_true", help="the log lines kept since the start instead")
    parser.add_argument("--json", action="store_true", help="a JSON list")


def history(args: argparse.Namespace) -> int:
    from ubond import cli_events

    kind = "log" if args.log else "history"
    entries = ask(args.bond, kind)[kind]
    if args.json:
        _print_json(entries)
        return 0
    for line in map(cli_events.event, entries) if args.log else cli_events.failovers(entries):
        print(line)
    return 0


def describe_monitor(parser: argparse.ArgumentParser) -> None:
    _add_bond_or_all(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def monitor(args: argparse.Namespace) -> int:
    from ubond import cli_events

    return cli_events.monitor({connect(bond): bond for bond in _bonds(args)}, as_json=args.json)


# ── arguments that many commands take ────────────────────────────────────────────────


def add_bond(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bond", metavar="BOND", help="name of the bond's device")


def _add_bond_or_all(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bond", metavar="BOND", nargs="?", help="a bond (default: all in this namespace)")
