"""Assignments of shell-style files: as sh reads them, and nothing evaluated."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ubond.config import ConfigError, Note
from ubond.config.shell import Assignment, assignments


def read(text: str) -> tuple[list[Assignment], list[Note]]:
    notes: list[Note] = []
    return assignments(text, "ifcfg-x", notes), notes


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=plain", "plain"),
        ("A=", ""),
        ("A='single quoted # no comment'", "single quoted # no comment"),
        ('A="double quoted; no end"', "double quoted; no end"),
        ("A=mixed' and 'joined\" words\"", "mixed and joined words"),
        (r"A=escaped\ blank\'", "escaped blank'"),
        (r'A="a \"quote\", a \$dollar, a \n backslash"', r'a "quote", a $dollar, a \n backslash'),
        (r"A='a \ stays'", r"a \ stays"),
        ("A=value # comment", "value"),
        ("A=not#comment", "not#comment"),
        ("  export A=exported", "exported"),
        ("A=continued\\\nhere", "continuedhere"),
        ('A="continued \\\nhere"', "continued here"),
        ('A="two\nlines"', "two\nlines"),
        ("A=last; # the end", "last"),
        ("A=5$", "5$"),
        ("A=a=b", "a=b"),
    ],
)
def test_values_are_what_sh_would_make_of_them(text: str, value: str) -> None:
    found, notes = read(text)
    assert (found[-1].key, found[-1].value, found[-1].shell) == ("A", value, "")
    assert notes == []


def test_several_assignments_of_a_line_each_count() -> None:
    found, _ = read("A=1 B=2; C=3\nD=4")
    assert [f"{one.key}={one.value} in {one.line}" for one in found] == [
        "A=1 in 1",
        "B=2 in 1",
        "C=3 in 1",
        "D=4 in 2",
    ]


def test_every_character_knows_its_line() -> None:
    (one,), _ = read('\nA="x \\\n y\nz"')
    assert (one.value, one.line) == ("x  y\nz", 2)
    assert one.lines == (2, 2, 3, 3, 3, 4)


@pytest.mark.parametrize(
    ("text", "shell"),
    [
        ("A=$HOME/x", "$HOME"),
        ('A="in ${OTHER:-quotes}"', "${OTHER:-quotes}"),
        ("A=$(cat /etc/hostname | head)x", "$(cat /etc/hostname | head)"),
        ("A=`hostname -s`", "`hostname -s`"),
        ("A=$((1 + 2))", "$((1 + 2))"),
        ("A=(1)", "("),
        ("A=x&", "&"),
        ("A=$'x'", "$"),
        ("A=$\\\nHOME", "$"),
    ],
)
def test_what_only_a_shell_can_work_out_is_kept_and_marked(text: str, shell: str) -> None:
    (one,), _ = read(text)
    assert one.shell == shell


@pytest.mark.parametrize("text", ["A='$HOME'", r'A="\$HOME"', r"A=\$HOME", r"A=\`x\`"])
def test_a_quoted_dollar_is_only_a_dollar(text: str) -> None:
    assert read(text)[0][0].shell == ""


@pytest.mark.parametrize(
    "text", [". /etc/init.d/functions", "A=1 command", "[ -f x ] && A=1", "export A", "A =1", "1A=2"]
)
def test_commands_are_noted_and_what_they_would_set_is_not_set(text: str) -> None:
    found, notes = read(f"B=1\n{text}\nC=2")
    assert [one.key for one in found] == ["B", "C"]
    assert [(note.line, note.text.endswith("not an assignment, and not run")) for note in notes] == [
        (2, True)
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("if true; then\nA=1\nfi", "cannot be judged"),
        ("f() {\nA=1\n}", "cannot be judged"),
        ("true &&\nA=1", "cannot be judged"),
        ("cat <<END\nA=1\nEND", "cannot be judged"),
        ("A='open\nB=2", "never closed"),
        ('A="open', "never closed"),
        ("A=$(open", "never closed"),
        ("A=`open", "never closed"),
        ("A+=more", "not read"),
    ],
)
def test_what_leaves_other_lines_in_doubt_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        read("\n" + text)
    assert caught.value.line == 2


def test_an_unclosed_quote_names_its_key() -> None:
    with pytest.raises(ConfigError) as caught:
        read("IPADDR='192.0.2.1")
    assert (caught.value.option, caught.value.text) == ("IPADDR", "' is never closed")


pieces = st.lists(
    st.sampled_from(["A=", "B='", *"'\"\\\n$`#; =", "$(", ")", "${", "}", "&&", "if"]) | st.text(max_size=4),
    max_size=25,
).map("".join)


@settings(max_examples=400)
@given(pieces | st.text())
def test_no_text_is_anything_but_read_or_refused(text: str) -> None:
    try:
        found, notes = read(text)
        said: list[object] = [*notes]
    except ConfigError as error:
        found, said = [], [error]
    assert all(str(one).isprintable() for one in said)
    assert all(len(one.value) == len(one.lines) for one in found)


# A backslash at the very end would swallow the newline of the script.
values = st.text(st.sampled_from("ab \t'\"\\#;=$`\n"), max_size=12).filter(
    lambda text: not text.endswith("\\")
)


@settings(max_examples=60, deadline=None)
@given(values)
def test_a_value_is_the_same_for_sh(text: str) -> None:
    """Whatever is read without doubt is what a real shell would have set."""
    try:
        found, notes = read(f"A={text}")
    except ConfigError:
        return
    if notes or any(one.shell for one in found) or [one.key for one in found] != ["A"]:
        return
    script = f'A={text}\nprintf %s. "$A"'
    empty = {"PATH": "/nonexistent"}
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, env=empty, check=False)
    assert done.returncode != 127, "a command was run"
    # Some text, such as `;;`, is no sh at all.
    assert done.returncode or done.stdout == found[0].value + "."
