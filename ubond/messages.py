"""The control socket's messages: lines in, values out, and back.

One JSON object per line in both directions, each with a `version` and at most 64 KiB long
(docs/control-protocol.md).  Nothing here touches the socket.
"""

from __future__ import annotations

import errno as E
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ubond import status
from ubond.bond.events import ActiveChanged, DoorError, Log
from ubond.bond.options import APPLY_ORDER, OptionError, Refused, find
from ubond.bond.spec import SpecError, check_name
from ubond.client import FAILED, KERNEL_REFUSED, LINE_MAX, NOT_PERMITTED, USAGE, VERSION
from ubond.status import Json, Report


class Assignment(NamedTuple):
    """One option to write: of the bond, or of a slave."""

    slave: str | None
    option: str
    value: str


# ── what events and entries of the history look like ─────────────────────────────────


def log_line(log: Log, bond: str, at: float) -> dict[str, Json]:
    """A log line as listeners and `log` get it; `at`: seconds since 1970."""
    where = f"{bond}: (slave {log.slave}): " if log.slave else f"{bond}: "
    return {"kind": "log", "time": at, "level": log.level.name.lower(), "text": where + log.text}


def active_changed(change: ActiveChanged, at: float) -> dict[str, Json]:
    """A change of the active slave as listeners get it; `at`: seconds since 1970."""
    return {
        "kind": "active", "time": at, "from": change.old, "to": change.new, "why": change.why,
        "provisional": change.provisional,
    }  # fmt: skip


def failover(change: ActiveChanged, at: float, lost: int | None, silence: int | None) -> dict[str, Json]:
    """An entry of the history; `lost`: frames, None for unknown; `silence`: ns, None without traffic."""
    return {
        "time": at, "from": change.old, "to": change.new, "why": change.why, "lost": lost,
        "silence_ns": silence,
    }  # fmt: skip


# ── requests ─────────────────────────────────────────────────────────────────────────


class BadRequest(Exception):
    """What arrived is not a request; the text says why on one line."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as read from its line; fields that it does not have are empty."""

    name: str
    format: str = "proc"
    slaves: tuple[str, ...] = ()
    take_addresses: bool = False
    options: tuple[Assignment, ...] = ()
    call: str = ""


FORMATS = ("proc", "json", "table")
#: Request -> the fields that it may have besides `version` and `request`.
FIELDS: Mapping[str, frozenset[str]] = {
    "ping": frozenset(),
    "status": frozenset({"format"}),
    "set": frozenset({"options"}),
    "add": frozenset({"slaves", "take_addresses"}),
    "remove": frozenset({"slaves"}),
    "history": frozenset(),
    "log": frozenset(),
    "monitor": frozenset(),
    "down": frozenset(),
    "upgrade": frozenset(),
}
#: A request that exists only where the daemon's environment asks for it: what a system call
#: comes to in the daemon's threads.  For tests.
_HOOK: Mapping[str, frozenset[str]] = {"hook": frozenset({"call"})}
#: Fields that it must have.
_REQUIRED: Mapping[str, str] = {"set": "options", "add": "slaves", "remove": "slaves", "hook": "call"}
#: Requests that change something: root or the owner of the daemon only.
CHANGES = frozenset({"set", "add", "remove", "down", "upgrade", "hook"})


def parse_request(line: bytes) -> Request:
    """Read one line; BadRequest on anything that is not a request, whatever the bytes."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise BadRequest("not a JSON object on one line") from None
    if not isinstance(message, dict):
        raise BadRequest("not a JSON object on one line")
    if message.get("version") != VERSION or isinstance(message["version"], bool):
        raise BadRequest(f"this daemon speaks version {VERSION} of the protocol, the request does not")
    name = message.get("request")
    known = {**FIELDS, **_HOOK} if os.environ.get("UBOND_TEST_HOOKS") == "1" else FIELDS
    if not isinstance(name, str) or name not in known:
        raise BadRequest(f"unknown request; there are {', '.join(FIELDS)}")
    for key in message.keys() - {"version", "request"} - known[name]:
        raise BadRequest(f"request {name} has no field {key[:40]!a}")
    if (missing := _REQUIRED.get(name)) and missing not in message:
        raise BadRequest(f"request {name} needs the field {missing}")
    return Request(name, **{key: _READ[key](message[key]) for key in known[name] & message.keys()})


def _read_format(value: object) -> str:
    if value not in FORMATS:
        raise BadRequest(f"format must be one of {', '.join(FORMATS)}")
    return str(value)


def _read_slaves(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise BadRequest("slaves must be a list of interface names")
    return tuple(_read_name(name) for name in value)


def _read_name(value: object) -> str:
    try:
        return check_name(_read_text(value))
    except SpecError as error:
        raise BadRequest(str(error)) from None


def _read_text(value: object) -> str:
    """A text that can be printed on one line; half a surrogate pair cannot."""
    if not isinstance(value, str) or not value.removesuffix("\n").isprintable():
        raise BadRequest("names, options and values must be printable text")
    return value


def _read_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest("take_addresses must be true or false")
    return value


def _read_options(value: object) -> tuple[Assignment, ...]:
    if not isinstance(value, list) or not value:
        raise BadRequest("options must be a list of objects with option, value and, for some, slave")
    return tuple(sorted((_read_assignment(item) for item in value), key=_place))


def _place(assignment: Assignment) -> int:
    """When an option of one request is applied: as the driver sorts them, unknown ones last."""
    try:
        return APPLY_ORDER.index(find(assignment.option).name)
    except OptionError:
        return len(APPLY_ORDER)


def _read_assignment(item: object) -> Assignment:
    if not isinstance(item, dict) or not {"option", "value"} <= item.keys() <= {"option", "value", "slave"}:
        raise BadRequest("options must be a list of objects with option, value and, for some, slave")
    slave = item.get("slave")
    return Assignment(
        None if slave is None else _read_name(slave), _read_text(item["option"]), _read_text(item["value"])
    )


_READ: Mapping[str, Callable[[object], Any]] = {
    "format": _read_format,
    "slaves": _read_slaves,
    "take_addresses": _read_flag,
    "options": _read_options,
    "call": _read_text,
}


# ── answers ──────────────────────────────────────────────────────────────────────────


def exit_code(error: Exception) -> int:
    """The command line's exit code for an error."""
    if isinstance(error, OptionError | SpecError | BadRequest):
        return USAGE
    if isinstance(error, DoorError | OSError) and error.errno in (E.EPERM, E.EACCES):
        return NOT_PERMITTED
    return KERNEL_REFUSED if isinstance(error, DoorError) and error.errno else FAILED


def error_object(error: Exception) -> dict[str, Json]:
    """What a client is told of an error: exit code, errno's name, one line, the driver's lines."""
    number = getattr(error, "errno", None) or (E.EINVAL if isinstance(error, BadRequest) else E.EIO)
    lines = error.lines if isinstance(error, Refused) else ()
    return refusal(exit_code(error), number, _text(error), lines)


def _text(error: Exception) -> str:
    """`str`, without the number that Python puts before the text of an OSError."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def refusal(code: int, errno: int, message: str, lines: Sequence[str] = ()) -> dict[str, Json]:
    """The same for what is no exception."""
    name = E.errorcode.get(errno, str(errno))
    return {"code": code, "errno": name, "message": " ".join(message.split()), "lines": list(lines)}


def render(report: Report, format: str) -> dict[str, Json]:
    """The result of `status` in one of FORMATS."""
    match format:
        case "json":
            return {"links": status.links(report)}
        case "table":
            return {"text": status.table(report)}
        case _:
            notes = [] if report.snapshot.monitored else [f"{report.snapshot.name}: {status.BLIND}"]
            return {"text": status.proc(report.snapshot, report.version), "notes": notes}


def encode(message: Mapping[str, Json]) -> bytes:
    """The line for a message."""
    return json.dumps({"version": VERSION, **message}, separators=(",", ":")).encode() + b"\n"


def encode_list(key: str, entries: Sequence[Json]) -> bytes:
    """The line for a list as result; the oldest entries are left out, and counted, where it is too long."""
    left_out = 0
    while len(line := encode({"result": {key: entries[left_out:], "omitted": left_out}})) > LINE_MAX:
        left_out += max(1, (len(entries) - left_out) // 8)
    return line
