"""Assignments of a shell-style file, read and never evaluated.

Quotes, escapes, comments and continued lines mean what they mean to sh.  Whatever sh would have to
work out (`$VAR`, `$(command)`, backticks, arrays, redirections) is kept as written and marked, so
that whoever wants the value can refuse it.  Commands are noted, not run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ubond.config.common import ConfigError, Note

_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?)=")
#: After these the lines that follow hold only under some condition, which nobody here can judge.
_CONTROL = frozenset({
    "if", "then", "else", "elif", "fi", "case", "esac", "for", "while", "until", "do", "done", "select",
    "function", "{", "}", "(", ")",
})  # fmt: skip
_SYNTAX = frozenset("&|<>()")
#: What makes a `$` more than a dollar sign; after a continued line there may be anything.
_EXPANDS = re.compile(r"\$([A-Za-z_0-9{(@*#?$!'\"-]|\\\n)")


@dataclass(frozen=True, slots=True)
class Assignment:
    """`key=value` with the line of each character of `value`.

    `shell`: the first thing in the value that only a shell could work out, empty if there is none.
    """

    key: str
    value: str
    line: int
    lines: tuple[int, ...] = ()
    shell: str = ""


def assignments(text: str, file: str, notes: list[Note]) -> list[Assignment]:
    """The assignments of `text` in order, with notes on the rest.

    Raises ConfigError for what leaves the meaning of other lines open: an unclosed quote,
    `if` and the like.
    """
    found: list[Assignment] = []
    for command in _Lexer(text, file).commands():
        if command[0].raw == "export" and len(command) > 1:
            command = command[1:]
        keys = [_KEY.match(word.raw) for word in command]
        if not all(keys):
            _refuse_control(command, file)
            said = shown(" ".join(word.raw for word in command))
            notes.append(Note(file, command[0].line, f"{said!r} ignored: not an assignment, and not run"))
            continue
        found += [_assignment(word, key, file) for word, key in zip(command, keys, strict=True) if key]
    return found


@dataclass(slots=True)
class _Word:
    """One word: as written, and after taking quotes and escapes away (with each character's line)."""

    line: int
    raw: str = ""
    value: str = ""
    lines: list[int] = field(default_factory=list)
    shell: str = ""

    def take(self, raw: str, value: str, line: int) -> None:
        self.raw += raw
        self.value += value
        self.lines += [line] * len(value)


def _assignment(word: _Word, key: re.Match[str], file: str) -> Assignment:
    if key[2]:
        raise ConfigError(file, word.line, key[1], "'+=' is not read; write one assignment")
    start = key.end()
    return Assignment(key[1], word.value[start:], word.line, tuple(word.lines[start:]), word.shell)


def _refuse_control(command: list[_Word], file: str) -> None:
    first, last = command[0].raw, command[-1].raw
    inside = any("()" in word.raw or "<<" in word.raw for word in command)
    if first in _CONTROL or inside or last.endswith(("&&", "||", "|")):
        said = shown(" ".join(word.raw for word in command))
        text = f"{said!r} cannot be judged without a shell, and what follows may depend on it"
        raise ConfigError(file, command[0].line, "", text)


def shown(text: str) -> str:
    """`text`, cut to what fits into a message."""
    return text if len(text) <= 60 else text[:57] + "..."


class _Lexer:
    """Walks over the text once; `line` is that of the character at `at`."""

    def __init__(self, text: str, file: str) -> None:
        self.text, self.file = text, file
        self.at, self.line = 0, 1

    def commands(self) -> list[list[_Word]]:
        """The words of each command; commands end with a line or a semicolon."""
        commands: list[list[_Word]] = [[]]
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in "\n;":
                self._next()
                commands.append([])
            elif char in " \t\r" or self.text.startswith("\\\n", self.at):
                self._next(2 if char == "\\" else 1)
            elif char == "#":
                while self.at < len(self.text) and self.text[self.at] != "\n":
                    self._next()
            else:
                commands[-1].append(self._word())
        return [command for command in commands if command]

    def _next(self, count: int = 1) -> str:
        """Step over `count` characters and return them."""
        taken = self.text[self.at : self.at + count]
        self.at += count
        self.line += taken.count("\n")
        return taken

    def _word(self) -> _Word:
        word = _Word(self.line)
        while self.at < len(self.text) and (char := self.text[self.at]) not in " \t\r\n;":
            if char == "'":
                self._single(word)
            elif char == '"':
                self._double(word)
            elif char == "\\":
                self._escape(word, None)
            elif not self._expansion(word):
                if char in _SYNTAX:
                    word.shell = word.shell or char
                word.take(char, char, self.line)
                self._next()
        return word

    def _single(self, word: _Word) -> None:
        opened = self.line
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise self._unclosed(word, "'", opened)
        word.raw += "'"
        self._next()
        while self.at < end:
            line = self.line
            char = self._next()
            word.take(char, char, line)
        word.raw += self._next()

    def _double(self, word: _Word) -> None:
        opened = self.line
        word.raw += self._next()
        while self.at < len(self.text) and (char := self.text[self.at]) != '"':
            if char == "\\":
                self._escape(word, '$`"\\\n')
            elif not self._expansion(word):
                word.take(char, char, self.line)
                self._next()
        if self.at >= len(self.text):
            raise self._unclosed(word, '"', opened)
        word.raw += self._next()

    def _escape(self, word: _Word, only: str | None) -> None:
        """A backslash: before a newline both vanish; before one of `only` (None: anything) it vanishes."""
        line = self.line
        pair = self._next(2)
        if pair == "\\\n":
            word.raw += pair
        elif len(pair) == 2 and (only is None or pair[1] in only):
            word.take(pair, pair[1], line)
        else:
            word.take(pair, pair, line)

    def _expansion(self, word: _Word) -> bool:
        """Take `$(...)`, `${...}`, `$VAR` or backticks whole, as written; False if there is none here."""
        if self.text[self.at] == "`":
            end = self.text.find("`", self.at + 1) + 1
        elif _EXPANDS.match(self.text, self.at):
            pair = {"(": ")", "{": "}"}.get(self.text[self.at + 1])
            end = self._closing(self.at + 1, pair) if pair else self.at + 1
        else:
            return False
        if not end:
            raise self._unclosed(word, self.text[self.at : self.at + 2], self.line)
        line = self.line
        raw = self._next(end - self.at)
        # A bare `$` of `$VAR` is followed by the name, which the error should show as well.
        name = re.match(r"\w*", self.text[self.at :])[0] if raw == "$" else ""  # type: ignore[index]
        word.shell = word.shell or raw + name
        word.take(raw, raw, line)
        return True

    def _closing(self, at: int, close: str) -> int:
        """The place behind the bracket that closes the one at `at`; 0 if none does."""
        opening, depth = self.text[at], 0
        for place in range(at, len(self.text)):
            depth += (self.text[place] == opening) - (self.text[place] == close)
            if not depth:
                return place + 1
        return 0

    def _unclosed(self, word: _Word, what: str, line: int) -> ConfigError:
        key = _KEY.match(word.raw)
        return ConfigError(self.file, line, key[1] if key else "", f"{what} is never closed")
