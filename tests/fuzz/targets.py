"""What reads bytes or text of somebody else's, each as a function that a fuzzer can call.

A target takes any bytes, and raises only where the reader is wrong: an exception that it does
not promise, a value that its own writer would not take back.  `run` searches with atheris,
`test_corpus` calls them with what earlier searches found.  The frame path has `harness.c`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ubond import config, messages, wire
from ubond.bond.core import Memory
from ubond.bond.document import DocumentError, thaw
from ubond.bond.enslave import ALIAS_MAX, read_mark, write_mark
from ubond.bond.events import Held
from ubond.bond.options import OPTIONS, OptionError, find
from ubond.bond.spec import SpecError, check_name
from ubond.client import Client, ControlError
from ubond.config import ifcfg, shell
from ubond.config.common import ConfigError, Note
from ubond.journal import Journal, JournalError, _decode, _encode
from ubond.wire import is_possible_name

#: What splits an input into texts: no byte of UTF-8.
SPLIT = b"\xff"


@cache
def scratch() -> Path:
    """A directory of this process's own, in memory where that can be had."""
    shm = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="ubond-fuzz-", dir=shm if shm.is_dir() else None))
    atexit.register(shutil.rmtree, place, True)
    return place


def text_of(data: bytes) -> str:
    """As the command line and the kernel's names come to Python: what is no UTF-8 is kept."""
    return data.decode(errors="surrogateescape")


def one_line(error: Exception) -> None:
    """What a person is told is one line that upsets no terminal."""
    assert str(error).isprintable()


# ── frames, as the control side reads them ───────────────────────────────────────────

DECODERS = {name: value for name, value in vars(wire).items() if name.startswith("decode_")}


def frames(data: bytes) -> None:
    """Every decoder of `wire`: WireError or a value."""
    for decode in DECODERS.values():
        with contextlib.suppress(wire.WireError):
            decode(data)
    with contextlib.suppress(wire.WireError):
        assert wire.decode_arp(wire.encode_arp(wire.decode_arp(data))) == wire.decode_arp(data)
    with contextlib.suppress(wire.WireError):
        assert wire.encode_ethernet(wire.decode_ethernet(data)) == data
    with contextlib.suppress(wire.WireError):
        mac = wire.MacAddr.parse(text_of(data))
        assert wire.MacAddr.parse(str(mac)) == mac


# ── control messages ─────────────────────────────────────────────────────────────────


def requests(line: bytes) -> None:
    """A line to the daemon: BadRequest on one line, or a request whose texts can be printed."""
    try:
        request = messages.parse_request(line)
    except messages.BadRequest as error:
        one_line(error)
        messages.encode({"error": messages.error_object(error)})
        return
    assert request.name in messages.FIELDS
    for slave, option, value in request.options:
        assert slave is None or check_name(slave) == slave
        assert option.removesuffix("\n").isprintable()
        with contextlib.suppress(OptionError):
            find(option).parse(value)
    for slave in request.slaves:
        assert check_name(slave) == slave


def answers(data: bytes) -> None:
    """What a daemon, or something in its place, says to the client: a result or ControlError."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.settimeout(5)
        theirs.sendall(data[:60000])
        theirs.shutdown(socket.SHUT_WR)
        client = Client.over(ours, 5)
        with client, contextlib.suppress(ControlError):
            json.dumps(client.request("status"))
            while client.fill():
                json.dumps(client.arrived())


# ── files ────────────────────────────────────────────────────────────────────────────


def shells(data: bytes) -> None:
    """A shell-style file: ConfigError on one line, or assignments with a line for each character."""
    notes: list[Note] = []
    try:
        found = shell.assignments(data.decode(errors="replace"), "file", notes)  # as a file is read
    except ConfigError as error:
        one_line(error)
        return
    for one in found:
        assert len(one.lines) == len(one.value)
        assert 1 <= one.line <= data.count(b"\n") + 1
    assert all(str(note).isprintable() for note in notes)


FILES = (
    "etc/modprobe.d/bonding.conf",
    f"{ifcfg.DIRECTORY}/ifcfg-bond0",
    f"{ifcfg.DIRECTORY}/ifcfg-eth1",
    f"{ifcfg.DIRECTORY}/ifcfg-eth2",
    "etc/modprobe.conf",
    f"{ifcfg.DIRECTORY}/route-bond0",
)


def trees(data: bytes) -> None:
    """modprobe's files and ifcfg files together: ConfigError on one line, or a bond with notes."""
    root = scratch()
    texts = data.split(SPLIT)
    for name, text in zip(FILES, [*texts, *[b""] * len(FILES)], strict=False):
        path = root / name
        if text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
        else:
            path.unlink(missing_ok=True)
    try:
        config.bonds(root)
        spec, notes = config.load_article(root, "bond0")
    except ConfigError as error:
        one_line(error)
        return
    assert spec.name == "bond0"
    for slave in spec.slaves:
        assert check_name(slave.name) == slave.name
    for name, value in spec.options.items():
        with contextlib.suppress(OptionError):
            find(name).parse(value)
    assert all(str(note).isprintable() for note in notes)


def journals(data: bytes) -> None:
    """A journal: JournalError, or what was held, of the right types, which can be written again."""
    journal = Journal(scratch(), "bond0")
    journal.path.write_bytes(data)
    try:
        held = journal.load()
    except JournalError as error:
        one_line(error)
        return
    finally:
        journal.remove()
        for left in scratch().glob("bond0.journal*"):
            left.unlink()
    for one in held:
        check_held(one)
    once = _decode(data, "bond0") if data.strip() else ({}, {})
    assert _decode(_encode("bond0", *once), "bond0") == once


def check_held(held: Held) -> None:
    """It is of the types that it declares: the doors do not ask again."""
    assert is_possible_name(held.slave)
    for number in (held.index, held.netns, held.mtu, held.mtu_set):
        assert type(number) is int
        assert 0 <= number < 2**64
    assert type(held.up) is bool
    assert type(held.addresses_taken) is bool
    assert held.addr_gen_mode is None or type(held.addr_gen_mode) is int
    assert type(held.alias) is str
    assert type(held.alias_set) is str
    assert all(type(name) is str for name, _, _ in held.features)


def documents(data: bytes) -> None:
    """What one process writes of a bond for the next: DocumentError or a bond."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(DocumentError):
        assert type(thaw(Memory, content, random_mac=lambda: wire.MacAddr(b"\2\0\0\0\0\1"))) is Memory


def marks(data: bytes) -> None:
    """The alias of an interface: no mark, or one that names a bond and an MTU that there can be."""
    alias = text_of(data)
    mark = read_mark(alias)
    if mark is not None:
        assert check_name(mark.bond) == mark.bond
        assert 0 < mark.mtu < 2**31
        again = read_mark(write_mark(mark.bond, mark.mac, mark.mtu, mark.alias))
        # A MAC is longer in ubond's own hand, and may leave no room for the alias.
        assert again == mark or (len(data) > ALIAS_MAX - 6 and again == replace(mark, alias=""))


def options(data: bytes) -> None:
    """`name=value` of any option, as `set` and the command line take it: OptionError or a value."""
    name, _, value = text_of(data).partition("=")
    with contextlib.suppress(OptionError):
        find(name).parse(value)
    for option in OPTIONS.values():
        with contextlib.suppress(OptionError):
            option.parse(value)
    with contextlib.suppress(SpecError):
        check_name(value)


TARGETS: dict[str, Callable[[bytes], Any]] = {
    "py-frames": frames,
    "py-requests": requests,
    "py-answers": answers,
    "py-shells": shells,
    "py-trees": trees,
    "py-journals": journals,
    "py-documents": documents,
    "py-marks": marks,
    "py-options": options,
}
