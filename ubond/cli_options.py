"""What there is to know about every bonding option, from the one table: for `ubond options`, help and the pages.

`python -m ubond.cli_options` in a clone writes docs/options.md and the manual's section anew.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from ubond.bond.options import OPTIONS, Kind, Mode, Option, When, find

#: Options that change more freely here than in the driver, unless the bond is strict.
LAXER = ("mode", "fail_over_mac")
_UNITS = {Kind.MS: " ms", Kind.SECONDS: " s"}


# ── parts ────────────────────────────────────────────────────────────────────────────


def values(option: Option) -> str:
    """What may be written: `0 layer2, 1 layer3+4, ...`, `0 - 65535`."""
    if option.kind is Kind.ENUM:
        return ", ".join(f"{number} {name}" for number, name in option.values.items())
    if option.kind is Kind.SWITCH:
        return "0 off, 1 on"
    if option.hi is not None:
        return f"{option.lo} - {option.hi}{_UNITS.get(option.kind, '')}"
    return str(option.kind.value)


def words(option: Option) -> str:
    """Words that stand for numbers: `off 0, maxval 255, default 1`; empty without any."""
    found = dict(option.words)
    if option.default_word is not None:
        found["default"] = option.default_word
    return ", ".join(f"{word} {number}" for word, number in found.items())


def value_text(option: Option, value: int | str) -> str:
    """A value for a person: by its name where it has one, `none` for nothing."""
    if isinstance(value, int):
        return option.values.get(value, str(value))
    return value or "none"


def default(option: Option) -> str:
    """The value of a new bond, and the driver's where that is another."""
    text = value_text(option, option.start)
    if option.ours is None:
        return text
    return f"{text} (the driver's: {value_text(option, option.default)})"


def modes(chosen: frozenset[Mode] | None) -> str:
    return "all" if chosen is None or len(chosen) == len(Mode) else ", ".join(str(mode) for mode in sorted(chosen))


def when(option: Option) -> str:
    if option.name in LAXER:
        return f"{When.ANY.value}; with --strict only {option.when.value}"
    return str(option.when.value)


# ── one option ───────────────────────────────────────────────────────────────────────


def describe(option: Option) -> str:
    """One option in a line, for `--help`: meaning, values, default, and where it cannot be used."""
    text = option.doc
    if option.kind is Kind.PER_SLAVE:
        text += f"; {option.lo} - {option.hi} (default {option.start})"
    elif option.values or option.hi is not None:
        text += f"; {option.accepted()} (default {value_text(option, option.start)})"
    if option.modes is not None and len(option.modes) < len(Mode):
        text += f"; in {modes(option.modes)}"
    return text + (f" [{option.unsettable}]" if option.unsettable else "")


def facts(option: Option) -> Iterator[tuple[str, str]]:
    """(title, text) of everything that the table says of an option."""
    yield "values", values(option)
    if text := words(option):
        yield "words", text
    yield "default", default(option)
    yield "settable in", modes(option.modes)
    if option.used is not None:
        yield "has an effect in", modes(option.used)
    yield "may change", when(option)
    if option.aliases:
        yield "also called", ", ".join(option.aliases)
    yield "written as", example(option)
    if option.unsettable:
        yield "this version", f"takes its default only: {option.unsettable}"


def example(option: Option) -> str:
    if option.name == "slaves":
        return "ubond add bond0 eth2, ubond remove bond0 eth2"
    if option.kind is Kind.PER_SLAVE:
        return f"eth2.{option.name}=N, {option.flag} eth2=N"
    return f"{option.name}=VALUE, {option.flag} VALUE"


def page(option: Option) -> str:
    """All about one option, for a terminal."""
    rows = [f"{option.name}: {option.doc}"]
    for title, text in facts(option):
        rows += textwrap.wrap(text, 100, initial_indent=f"  {title:17} ", subsequent_indent=" " * 20,
                              break_on_hyphens=False)  # fmt: skip
    return "\n".join(rows)


# ── the command ──────────────────────────────────────────────────────────────────────


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "option", metavar="NAME", nargs="?", help="an option, by any of its names (default: a line for each)"
    )


def run(args: argparse.Namespace) -> int:
    """Print one option, or a line for each."""
    if args.option is not None:
        print(page(find(args.option)))
        return 0
    width = max(map(len, OPTIONS))
    for option in OPTIONS.values():
        print(f"{option.name:{width}}  {describe(option)}")
    return 0


# ── pages ────────────────────────────────────────────────────────────────────────────

_HEAD = """\
# Bonding options

Every option of the bonding driver, from the table in `ubond/bond/options.py` that feeds the parsers and the help as
well. This page is generated: `make docs` writes it anew, and a test says whether it is up to date.

Each is a flag of `ubond up` (`--xmit-hash-policy layer3+4`), a word for `-o` and `ubond set` (`xmit_hash_policy=1`) and
for `BONDING_OPTS` and `modprobe.conf` in a distribution's files; `ubond options NAME` prints it. Values are read as the
driver reads them: a name in full or its number, one of the words, for times also with a unit (`100ms`, `2s`). Several
at once are applied in the driver's order, whatever order they are written in, and the checks come in the driver's order
too: the mode, then whether there are slaves, whether the bond is up, the value. What is stored and has no effect in the
present mode has one as soon as the mode changes.
"""


def markdown() -> str:
    """docs/options.md."""
    rows = [_HEAD, "| option | what it says | default |", "|---|---|---|"]
    for name, option in OPTIONS.items():
        rows.append(f"| [`{name}`](#{name}) | {_escape(option.doc)} | {_escape(default(option))} |")
    for option in OPTIONS.values():
        rows += ["", f"## {option.name}", "", f"{option.doc[0].upper()}{option.doc[1:]}.", ""]
        rows += [f"* {title}: {_escape(text)}" for title, text in facts(option)]
    return "\n".join(rows) + "\n"


def _escape(text: str) -> str:
    return re.sub(r"([_*|])", r"\\\1", text)


def roff() -> str:
    """The entries of the manual's section BONDING OPTIONS."""
    rows = []
    for option in OPTIONS.values():
        if option.name != "slaves":
            text = describe(option)
            names = ", ".join((option.name, *option.aliases))
            rows.append(f".TP\n.B {names}\n{text[0].upper()}{text[1:]}.\n".replace("-", "\\-"))
    return "".join(rows)


def in_manual(text: str) -> str:
    """A manual page with the entries of its section BONDING OPTIONS written anew."""
    return re.sub(
        r"(?<=^\.SH BONDING OPTIONS\n)((?:(?!\.TP|\.SH)[^\n]*\n)*).*?(?=^\.SH )",
        lambda found: found[1] + roff(), text, count=1, flags=re.M | re.S,
    )  # fmt: skip


def main() -> None:
    """Write the pages."""
    docs = Path(__file__).parent.parent / "docs"
    (docs / "options.md").write_text(markdown())
    manual = docs / "man" / "ubond.1"
    manual.write_text(in_manual(manual.read_text()))


if __name__ == "__main__":
    main()
