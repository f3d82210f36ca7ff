"""What all readers share: errors, notes, settings with the place where they were written.

A reader tells everything that it does not honour: a `Note` where going on is right, a
`ConfigError` where the bond would be another than the one written down.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ubond.bond.options import Kind, OptionError, find


class ConfigError(Exception):
    """A file asks for something that cannot be had, or cannot be read.

    `file` and `line` say where (line 0: the file as a whole), `option` which key or option
    (may be empty), `text` why.  `str()` is one line.
    """

    def __init__(self, file: str, line: int, option: str, text: str) -> None:
        self.file, self.line, self.option, self.text = file, line, option, text
        what = f"{option}: " if option else ""
        super().__init__(_one_line(f"{_place(file, line)}{what}{text}"))


@dataclass(frozen=True, slots=True)
class Note:
    """Something in a file that was read otherwise than written, or not at all; line 0: all of it."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return _one_line(_place(self.file, self.line) + self.text)


def _one_line(text: str) -> str:
    """`text` with what would upset a terminal or a log written as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _place(file: str, line: int) -> str:
    return f"{file}:{line}: " if line else f"{file}: "


@dataclass(frozen=True, slots=True)
class Setting:
    """One bonding option as a file gives it: the option's own name, the text, what it means.

    `value` is None where the reader leaves judgement for later; `module`: a parameter of
    the kernel module, where options that mean nothing in a mode are ignored, not refused;
    `written`: the name in the file where it is another.
    """

    name: str
    text: str
    value: int | str | None
    file: str
    line: int
    module: bool = False
    written: str = ""

    @property
    def label(self) -> str:
        """The setting as written: an option has several names."""
        return f"{self.written or self.name}={self.text}"

    @property
    def meaning(self) -> int | str:
        """The value, or the text where the value is not known yet."""
        return self.text if self.value is None else self.value

    def note(self, text: str) -> Note:
        return Note(self.file, self.line, text)

    def error(self, text: str) -> ConfigError:
        return ConfigError(self.file, self.line, self.written or self.name, text)


#: Names that people write for modes and the driver refuses.
_MODE_SLIPS = {"balanced_rr": "balance-rr"}


def read_option(name: str, text: str, file: str, line: int, notes: list[Note]) -> Setting | None:
    """One `name=text` of a bond, checked; None with a note if there is no such option.

    Raises ConfigError for a value that the option does not take.
    """
    try:
        option = find(name)
    except OptionError:
        notes.append(Note(file, line, f"{name}={text} ignored: there is no bonding option of this name"))
        return None
    if option.kind is Kind.PER_SLAVE or option.name == "slaves":
        raise ConfigError(file, line, name, "belongs to the slaves and cannot be set for the whole bond")
    if option.name == "mode" and text in _MODE_SLIPS:
        right = _MODE_SLIPS[text]
        notes.append(Note(file, line, f"mode={text} read as {right}: the driver has no mode {text}"))
        text = right
    value: int | str = text
    if option.kind not in (Kind.SLAVE, Kind.LIST, Kind.MAC):
        try:
            value = option.parse(text)
        except (OptionError, ValueError):  # the latter for numbers of thousands of digits
            may = f"invalid value {text!r} (may be: {option.accepted()})"
            raise ConfigError(file, line, name, may) from None
    return Setting(option.name, text, value, file, line, written=name)


def gather(settings: Iterable[Setting], notes: list[Note]) -> dict[str, Setting]:
    """The settings by name; of several for one option the last holds, with a note if they differ."""
    held: dict[str, Setting] = {}
    for new in settings:
        old = held.get(new.name)
        if old is not None and old.meaning != new.meaning:
            notes.append(old.note(f"{old.label} gives way to {new.text} ({new.file}:{new.line})"))
        held[new.name] = new
    return held


def words(text: str, lines: Sequence[int]) -> Iterator[tuple[str, int]]:
    """The words of `text`, each with the line of its first character; `lines` has one per character."""
    for match in re.finditer(r"\S+", text):
        yield match[0], lines[match.start()]


def integer(text: str) -> int:
    """The number that `text` is in plain decimal digits; ValueError for anything else `int` would take."""
    if not re.fullmatch(r"-?[0-9]{1,20}", text):
        raise ValueError
    return int(text)


def natural(name: str) -> list[tuple[int, str]]:
    """A sorting key that puts eth2 before eth10."""
    # Of two numbers the longer is the greater; what stands between numbers has no length.
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")) if at % 2 else 0, part) for at, part in enumerate(parts)]


def read_text(path: Path) -> str:
    """The text of a file; bytes that are not UTF-8 become U+FFFD.  ConfigError if it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").replace("\r\n", "\n")
    except OSError as error:
        raise ConfigError(str(path), 0, "", error.strerror or str(error)) from None


def listing(directory: Path, pattern: str) -> list[Path]:
    """The files of a directory that match, in natural order of their names; none if it does not exist."""
    try:
        files = [path for path in directory.glob(pattern) if path.is_file()]
    except OSError as error:
        raise ConfigError(str(directory), 0, "", error.strerror or str(error)) from None
    return sorted(files, key=lambda path: natural(path.name))
