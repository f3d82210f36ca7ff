"""modprobe.conf and modprobe.d: the bonding module's parameters, where bonds of 2009 have their options.

    alias bond0 bonding
    options bond0 mode=active-backup miimon=100

`options bonding` is for every bond, `options bond0` for one that has an alias.  Options of a
bond's own line win.  Only parameters of the module work here, and they are checked as
the module does it: out of range is put back to the default, meaningless in the mode is ignored.

Source: modprobe.d(5); the driver's checks of its parameters at load time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ubond.config.common import ConfigError, Note, Setting, listing, read_option, read_text, words

_DIRECTIVES = frozenset(
    {"alias", "options", "install", "remove", "blacklist", "softdep", "weakdep", "include", "config"}
)
#: Parameters that are read as integers, and what one out of range is put back to
#: (None: the module does not load).
_INTEGERS = {
    "miimon": 0, "updelay": 0, "downdelay": 0, "arp_interval": 0, "num_grat_arp": 1, "num_unsol_na": 1,
    "resend_igmp": 1, "packets_per_slave": 1, "lp_interval": 1, "all_slaves_active": 0,
    "use_carrier": None, "min_links": None,
}  # fmt: skip
_STRINGS = frozenset({
    "mode", "primary", "primary_reselect", "fail_over_mac",
    "arp_ip_target", "arp_validate", "arp_all_targets",
})  # fmt: skip
#: Parameters whose values the module looks at only in the modes that use them.
_MODE_BOUND = frozenset({"lacp_rate", "ad_select", "xmit_hash_policy"})
_NOT_OURS = {
    "max_bonds": "ubond makes the bonds that are asked for",
    "tx_queues": "ubond chooses the number of queues itself",
}
_NUMBER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)")


@dataclass(frozen=True, slots=True)
class _Line:
    """One directive: its words, each with its line."""

    file: str
    words: tuple[tuple[str, int], ...]

    @property
    def line(self) -> int:
        return self.words[0][1]

    @property
    def directive(self) -> str:
        return self.words[0][0]

    @property
    def subject(self) -> str:
        """The module, alias or pattern that the directive is about."""
        return self.words[1][0] if len(self.words) > 1 else ""


def read(root: Path, bond: str) -> tuple[list[Setting], list[Note]]:
    """What the modprobe files below `root` set for this bond: the general options, then its own."""
    notes: list[Note] = []
    lines = _all_lines(root, notes)
    aliased = any(_is_alias(line, bond) for line in lines)
    general: list[Setting] = []
    own: list[Setting] = []
    for line in lines:
        if line.directive == "options" and _plain(line.subject) == "bonding":
            general += _settings(line, bond, notes)
        elif line.directive == "options" and _plain(line.subject) == _plain(bond):
            if aliased:
                own += _settings(line, bond, notes)
            else:
                text = f"options {bond} ignored: there is no 'alias {bond} bonding'"
                notes.append(Note(line.file, line.line, text))
        else:
            notes += _other(line, bond)
    return general + own, notes


def bonds(root: Path) -> list[str]:
    """The bonds that the modprobe files name, by an alias or by `max_bonds`."""
    found: list[str] = []
    for line in _all_lines(root, []):
        if line.directive == "alias" and _is_alias(line, line.subject) and not set("*?[") & set(line.subject):
            found.append(line.subject)
        elif line.directive == "options" and _plain(line.subject) == "bonding":
            for word, _ in line.words[2:]:
                # 255 is as good as any sane file needs, and keeps a slip from listing millions.
                if (count := re.fullmatch(r"max_bonds=([0-9]{1,3})", word)) and int(count[1]) <= 255:
                    found += [f"bond{number}" for number in range(int(count[1]))]
    return list(dict.fromkeys(found))


# ── lines ────────────────────────────────────────────────────────────────────────────


def _all_lines(root: Path, notes: list[Note]) -> list[_Line]:
    directory = root / "etc/modprobe.d"
    files = listing(root / "etc", "modprobe.conf") + listing(directory, "*.conf")
    for path in listing(directory, "*"):
        if path.suffix != ".conf" and "bonding" in read_text(path):
            notes.append(Note(str(path), 0, "not read: its name does not end in .conf"))
    return [line for path in files for line in parse(read_text(path), str(path), notes)]


def parse(text: str, file: str, notes: list[Note]) -> Iterator[_Line]:
    """The directives of one file.

    `alias` and `options` on one line, as an old and much copied article has them, are read
    as two directives, with a note: modprobe itself would drop the second.
    """
    for joined, lines in _joined(text):
        start: list[tuple[str, int]] = []
        for word, number in words(joined, lines):
            if word.startswith("#"):
                break
            if start and start[0][0] in ("alias", "options") and word in ("alias", "options"):
                notes.append(Note(file, number, f"{word!r} inside a line read as a line of its own"))
                yield _Line(file, tuple(start))
                start = []
            start.append((word, number))
        if start:
            yield _Line(file, tuple(start))


def _joined(text: str) -> Iterator[tuple[str, Sequence[int]]]:
    """The lines, those that end in a backslash joined with the next; and each character's line number."""
    joined, lines = "", []
    for number, line in enumerate(text.split("\n"), 1):
        part = line.removesuffix("\\")
        joined += part
        lines += [number] * len(part)
        if part == line:
            yield joined, lines
            joined, lines = "", []
    yield joined, lines


def _plain(name: str) -> str:
    """A module's name as modprobe compares it."""
    return name.replace("-", "_")


def _is_alias(line: _Line, bond: str) -> bool:
    """Whether the line makes `bond` another name (or a pattern of names) of the bonding module."""
    if line.directive != "alias" or len(line.words) < 3 or _plain(line.words[2][0]) != "bonding":
        return False
    return fnmatchcase(_plain(bond), _plain(line.subject))


def _other(line: _Line, bond: str) -> list[Note]:
    """What to say of a line that sets nothing: only if it is about this bond, or not to be understood."""
    said = " ".join(word for word, _ in line.words[:3])
    if line.directive not in _DIRECTIVES:
        return [Note(line.file, line.line, f"{said!r} ignored: not a directive of modprobe")]
    if line.directive == "include":
        return [Note(line.file, line.line, f"{said!r} ignored: included files are not read")]
    if _is_alias(line, bond):
        return [Note(line.file, at, f"{word!r} ignored: no part of an alias") for word, at in line.words[3:]]
    if _plain(line.subject) in ("bonding", _plain(bond)):
        return [Note(line.file, line.line, f"{said!r} ignored: ubond does not use the bonding module")]
    return []


# ── parameters ───────────────────────────────────────────────────────────────────────


def _settings(line: _Line, bond: str, notes: list[Note]) -> list[Setting]:
    found = []
    rest = iter(line.words[2:])
    for word, number in rest:
        if word == "-o":
            # A second load of the module under another name: how a second bond was made.
            name = next(rest, ("", number))[0]
            if name != bond:
                notes.append(Note(line.file, number, f"'-o {name}' ignored: the bond is {bond}"))
        elif "=" in word:
            name, _, text = word.partition("=")
            setting = _setting(name, text.strip('"'), line.file, number, notes)
            found += [setting] if setting else []
        else:
            notes.append(Note(line.file, number, f"{word!r} ignored: not an option with a value"))
    return found


def _setting(name: str, text: str, file: str, line: int, notes: list[Note]) -> Setting | None:
    if name in _NOT_OURS:
        notes.append(Note(file, line, f"{name}={text} ignored: {_NOT_OURS[name]}"))
        return None
    if name in _MODE_BOUND:
        return Setting(name, text, None, file, line, module=True)
    if name in _INTEGERS:
        return _integer(name, text, file, line, notes)
    if name not in _STRINGS:
        notes.append(Note(file, line, f"{name}={text} ignored: not a parameter of the bonding module"))
        return None
    setting = read_option(name, text, file, line, notes)
    return setting and replace(setting, module=True)


def _integer(name: str, text: str, file: str, line: int, notes: list[Note]) -> Setting | None:
    """A number as the module reads it (also hexadecimal, octal after a 0), put back if out of range."""
    number = _number(text)
    if number is None or not -(2**31) <= number < 2**31:
        raise ConfigError(file, line, name, f"invalid value {text!r} (must be an integer)")
    back = _INTEGERS[name]
    try:
        setting = read_option(name, str(number), file, line, notes)
    except ConfigError:
        if back is None:
            raise
        said = f"{name} module parameter ({number}) is not in range"
        if name == "miimon":
            # The driver's 0 would be a bond that never fails over; without a setting our default holds.
            notes.append(Note(file, line, f"{said}, so it is ignored"))
            return None
        notes.append(Note(file, line, f"{said}, so it was reset to {back}"))
        setting = read_option(name, str(back), file, line, notes)
    return setting and replace(setting, module=True)


def _number(text: str) -> int | None:
    if not (match := _NUMBER.fullmatch(text)):
        return None
    digits = match[1]
    try:
        base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
        number = int(digits, base)
    except ValueError:
        return None
    return -number if text.startswith("-") else number
