"""Whatever a bond has been through: written down and read back, it answers as if nothing had been."""

from __future__ import annotations

import enum
import json
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bond.pretend import Rig, nic, opened, random_macs
from tests.bond.test_properties import DEEDS, NAMES, Deed
from ubond.bond import Refused
from ubond.bond import events as ev
from ubond.bond.core import Bond, Memory
from ubond.bond.document import GIVEN, DocumentError, freeze, thaw
from ubond.bond.spec import BondSpec, SlaveSpec
from ubond.bond.table import TxTable
from ubond.wire import MacAddr


def rewritten(bond: Bond, **given: object) -> Bond:
    """The bond that a new process makes of what an old one wrote."""
    return Bond.remembering(thaw(Memory, json.loads(json.dumps(freeze(bond.memory()))), **given))


def rig(strict: bool) -> Rig:
    made = Rig(*(nic(name, number) for number, name in enumerate(NAMES, 1)), strict=strict)
    made.do(ev.BondOpened())
    return made


def do(rig: Rig, deed: Deed) -> list[str] | None:
    """What one deed leads to, in words; None where it is refused."""
    mark = len(rig.world.done)
    try:
        deed(rig)
    except Refused as refused:
        return list(refused.lines)
    return [repr(action) for action in rig.world.done[mark:]]


@settings(max_examples=400, deadline=None)
@given(st.lists(DEEDS, max_size=25), st.lists(DEEDS, min_size=1, max_size=10), st.booleans())
def test_a_bond_goes_on_as_if_it_had_not_been_written_down(
    before: list[Deed], after: list[Deed], strict: bool
) -> None:
    old, new = rig(strict), rig(strict)
    for deed in before:
        for each in (old, new):
            with suppress(Refused):
                deed(each)
    state = new.bond.memory().state
    new.bond = rewritten(new.bond, random_mac=state.random_mac)
    assert new.bond.snapshot() == old.bond.snapshot()
    assert new.bond.deadline() == old.bond.deadline()
    for deed in after:
        assert do(new, deed) == do(old, deed)
        assert new.bond.snapshot() == old.bond.snapshot()
        assert new.bond.deadline() == old.bond.deadline()


def test_all_that_a_bond_remembers_is_written_down() -> None:
    """But for transactions: those under way are finished first, or there is nothing to go on from."""
    bond = opened("a", "b").bond
    kept = {f"_{name}" for name in Memory.__dataclass_fields__}
    assert set(vars(bond)) == kept | {"_taking", "_transactions"}


def test_what_another_version_wrote_is_read_as_far_as_it_is_known() -> None:
    written: Any = freeze(opened("a", "b", updelay=200).bond.memory())
    written["of_tomorrow"] = 1
    written["state"]["of_tomorrow"] = {"x": []}
    written["state"]["settings"]["values"]["option_of_tomorrow"] = 5
    del written["state"]["settings"]["values"]["downdelay"]
    del written["state"]["repairs"]
    macs = random_macs()
    bond = Bond.remembering(thaw(Memory, written, random_mac=lambda: next(macs)))
    options = bond.snapshot().options
    assert (options["updelay"], options["downdelay"], bond.snapshot().repairs) == (200, 0, ())
    assert "option_of_tomorrow" not in options


@pytest.mark.parametrize("broken", [None, [], "x", 5, {}, {"state": {}}, {"state": {"slaves": [{"same": 9}]}}])
def test_what_is_no_document_is_said_in_one_line(broken: Any) -> None:
    with pytest.raises(DocumentError) as error:
        thaw(Memory, broken, random_mac=lambda: None)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("Memory: ")


def test_a_spec_with_everything_in_it() -> None:
    spec = BondSpec(
        "bond0", (SlaveSpec("a", {"prio": "3"}), SlaveSpec("b")), {"mode": "1"},
        (IPv4Interface("192.0.2.1/24"), IPv6Interface("2001:db8::1/64")), mac=MacAddr(b"\2\0\0\0\0\1"), mtu=9000,
        strict=True, bypass=False, gate="nft",
    )  # fmt: skip
    assert thaw(BondSpec, json.loads(json.dumps(freeze(spec)))) == spec


class Colour(enum.Enum):
    RED = "red"


@dataclass(eq=False)
class Knot:
    other: Knot | None = None


@dataclass
class Every:
    text: str | int | None
    raw: bytes
    colour: Colour
    names: frozenset[str]
    lines: deque[dict[str, object]]
    numbers: Mapping[int, tuple[int, str]]
    knots: list[Knot]
    act: Callable[[], int] = field(compare=False, metadata=GIVEN)
    table: TxTable | None = None


@given(st.one_of(st.none(), st.text(), st.integers()), st.binary(), st.frozensets(st.text()),
       st.dictionaries(st.integers(), st.tuples(st.integers(), st.text())))  # fmt: skip
def test_every_kind_of_value_comes_back(
    text: str | int | None, raw: bytes, names: frozenset[str], numbers: dict[int, tuple[int, str]]
) -> None:
    one = Knot()
    knots = [one, Knot(one), one]
    lines: deque[dict[str, object]] = deque([{"a": [1, 2.5, None]}])
    before = Every(text, raw, Colour.RED, names, lines, numbers, knots, lambda: 7)
    after = thaw(Every, json.loads(json.dumps(freeze(before))), act=before.act)
    first, second, third = after.knots
    assert first is third
    assert second.other is first
    assert after.act() == 7
    after.knots = knots
    assert after == before


def test_what_documents_cannot_hold_is_a_fault_of_ours() -> None:
    @dataclass
    class Strange:
        what: complex

    with pytest.raises(TypeError, match="cannot hold"):
        freeze(Strange(1j))
