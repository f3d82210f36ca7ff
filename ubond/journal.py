"""The journal: what must be given back to the slaves, on disk before it is taken from them.

One small JSON file for each bond, written whole every time: a new file beside it, flushed to
disk, then renamed over the old one, so that a crash at any moment leaves the one or the other.
It is opened by name within a directory that only we can write to, never through a link.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ubond.bond.events import DoorError, Held, Moved
from ubond.paths import RuntimeDirError, check_directory, fresh
from ubond.wire import MacAddr, is_possible_name

#: Version of the file's layout.
VERSION = 1
_MAX_BYTES = 16 << 20


class JournalError(DoorError):
    """The journal cannot be read or written; names the file and says what to do."""

    def __init__(self, path: Path, number: int, detail: str) -> None:
        super().__init__("journal", number, "", f"{path}: {detail}")
        self.path = path


class Journal:
    """The journal of one bond, in a directory that must be ours alone."""

    def __init__(self, directory: Path, bond: str) -> None:
        self.path = directory / f"{bond}.journal"
        self._bond = bond
        self._held: dict[str, Held] = {}
        self._moved: dict[str, Moved] = {}
        self._loaded = False

    # ── what is held ─────────────────────────────────────────────────────────────────

    def load(self) -> tuple[Held, ...]:
        """Read the file; nothing if there is none.

        A file that cannot be understood is kept aside (`NAME.journal.bad`) and reported with
        JournalError; the next call starts with nothing.
        """
        self._held, self._moved, self._loaded = {}, {}, True
        with self._directory(missing_ok=True) as directory:
            text = None if directory is None else self._read(directory)
            if text is None:
                return ()
            try:
                self._held, self._moved = _decode(text, self._bond)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                bad, why = f"{self.path.name}.bad", ascii(str(error))[1:-1]
                os.replace(self.path.name, bad, src_dir_fd=directory, dst_dir_fd=directory)
                raise JournalError(
                    self.path, errno.EBADMSG,
                    f"cannot be understood ({why}); kept as {bad}: "
                    "what the slaves had stands there and in their alias (ubond restore IFACE)",
                ) from None
        return tuple(self._held.values())

    def remember(self, held: Held) -> None:
        """Write down what this slave must get back; return when it is on the disk."""
        self._ensure_loaded()
        moved = dict(self._moved)
        for name, one in self._held.items():
            if one.index == held.index and name in moved and name != held.slave:
                moved[held.slave] = moved[name]  # renamed: its addresses come along
        self._write({**self._held, held.slave: held}, moved)

    def forget(self, slave: str) -> None:
        """This slave has everything back.  The file goes with the last one.

        Where the disk is full the file goes on naming it until something is written again: what has been given
        back is found to be so by whoever reads it.
        """
        self._ensure_loaded()
        held = {name: one for name, one in self._held.items() if name != slave}
        moved = {name: one for name, one in self._moved.items() if name != slave}
        if not held:
            self.remove()
        elif (held, moved) != (self._held, self._moved):
            try:
                self._write(held, moved)
            except JournalError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._held, self._moved = held, moved

    def remember_addresses(self, slave: str, moved: Moved) -> None:
        """Write down which addresses and routes of this slave move to the bond."""
        self._ensure_loaded()
        self._write(self._held, {**self._moved, slave: moved})

    def addresses(self, slave: str) -> Moved:
        """What was moved from this slave; nothing if nothing was."""
        self._ensure_loaded()
        return self._moved.get(slave, Moved())

    def rename(self, bond: str) -> None:
        """The bond has another name now: so has its journal, whole at every moment.  On failure it has the old one."""
        self._ensure_loaded()
        old, old_bond = self.path, self._bond
        self.path, self._bond = self.path.with_name(f"{bond}.journal"), bond
        if not self._held:
            return
        try:
            self._write(self._held, self._moved)
        except JournalError:
            self.path, self._bond = old, old_bond
            raise
        with self._directory() as directory, contextlib.suppress(FileNotFoundError):
            os.unlink(old.name, dir_fd=directory)

    def remove(self) -> None:
        """Remove the file: nothing is held any more.  With it, one that a dead process had half written."""
        self._held, self._moved, self._loaded = {}, {}, True
        with self._directory(missing_ok=True) as directory:
            if directory is None:
                return
            for name in (self.path.name, fresh(self.path).name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
                    os.fsync(directory)

    # ── the file ─────────────────────────────────────────────────────────────────────

    def _ensure_loaded(self) -> None:
        if not self._loaded:
            self.load()

    @contextlib.contextmanager
    def _directory(self, missing_ok: bool = False) -> Iterator[int | None]:
        """The directory's descriptor, None if there is none; what fails within is a JournalError."""
        try:
            try:
                fd = os.open(self.path.parent, os.O_DIRECTORY | os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                if not missing_ok:
                    raise
                yield None
                return
            try:
                check_directory(self.path.parent, fd)
                yield fd
            finally:
                os.close(fd)
        except RuntimeDirError as error:
            raise JournalError(self.path, error.errno or errno.EPERM, str(error.strerror)) from None
        except OSError as error:
            raise JournalError(self.path, error.errno or errno.EIO, error.strerror or str(error)) from error

    def _read(self, directory: int) -> bytes | None:
        try:
            fd = os.open(self.path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read(_MAX_BYTES)

    def _write(self, held: dict[str, Held], moved: dict[str, Moved]) -> None:
        """Make this what the file says, and what is held; neither changes where it fails."""
        new = fresh(self.path).name
        with self._directory() as directory:
            assert directory is not None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=directory)
            try:
                self._write_new(directory, new, _encode(self._bond, held, moved))
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=directory)  # half a file: the disk is full
                raise
            os.replace(new, self.path.name, src_dir_fd=directory, dst_dir_fd=directory)
            self._held, self._moved = held, moved
            os.fsync(directory)

    def _write_new(self, directory: int, name: str, text: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


# ── values and JSON ──────────────────────────────────────────────────────────────────


def _plain(value: object) -> object:
    """A value as JSON has it: addresses as texts, other bytes as hex."""
    match value:
        case MacAddr():
            return str(value)
        case bytes():
            return value.hex()
        case tuple():
            return [_plain(each) for each in value]
        case _:
            return value


def _encode(bond: str, held: dict[str, Held], moved: dict[str, Moved]) -> bytes:
    slaves = {
        name: {key: _plain(value) for key, value in asdict(one).items()} for name, one in held.items()
    }
    addresses = {
        name: {key: _plain(value) for key, value in asdict(one).items()} for name, one in moved.items()
    }
    content = {"version": VERSION, "bond": bond, "slaves": slaves, "addresses": addresses}
    return json.dumps(content, indent=1).encode() + b"\n"


def _decode(text: bytes, bond: str) -> tuple[dict[str, Held], dict[str, Moved]]:
    if not text.strip():
        raise ValueError("it is empty")
    content = json.loads(text)
    if content["version"] != VERSION:
        raise ValueError(f"it has version {content['version']}, this is version {VERSION}")
    if content["bond"] != bond:
        raise ValueError(f"it is of {content['bond']}")
    held = {name: _held(one) for name, one in content["slaves"].items()}
    moved = {name: _moved(one) for name, one in content["addresses"].items()}
    return held, moved


def _held(content: dict[str, Any]) -> Held:
    known = {field.name: str(field.type) for field in fields(Held)}
    if strange := content.keys() - known.keys():
        raise ValueError(f"unknown {sorted(strange)}")
    for name in content:
        _check(known[name], name, content[name])
    if not is_possible_name(content["slave"]):
        raise ValueError(f"slave cannot be {content['slave']!r:.40}")
    return Held(**{
        **content,
        "permanent": None if content["permanent"] is None else MacAddr.parse(content["permanent"]),
        "mac": MacAddr.parse(content["mac"]),
        "ours": tuple(MacAddr.parse(text) for text in content["ours"]),
        "features": tuple((str(name), bool(before), bool(on)) for name, before, on in content["features"]),
    })


#: What JSON may have for a plain field; numbers are the kernel's, never negative.
_PLAIN: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "bool": (bool,), "int | None": (int, type(None)),
}  # fmt: skip


def _check(kind: str, name: str, value: object) -> None:
    if kind in _PLAIN and (type(value) not in _PLAIN[kind] or (type(value) is int and not 0 <= value < 2**64)):
        raise ValueError(f"{name} cannot be {value!r:.40}")


def _moved(content: dict[str, Any]) -> Moved:
    _check("str", "bond", content["bond"])
    _check("int", "bond_index", content["bond_index"])
    return Moved(
        bond=content["bond"],
        bond_index=content["bond_index"],
        addresses=tuple(bytes.fromhex(text) for text in content["addresses"]),
        routes=tuple(bytes.fromhex(text) for text in content["routes"]),
    )
