"""Short forms of the soak and of the churn: they work, and what they watch for holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.soak import churn, soak
from tests.soak.ledger import Books, Growth, nameless

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("one_life", [True, False], ids=["in one life", "in many"])
def test_twenty_seconds_of_everything(one_life: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not one_life:
        successions = {name: soak.Soak.THEMES[name] for name in soak.Soak.SUCCESSIONS}
        monkeypatch.setattr(soak.Soak, "THEMES", successions)
    said: list[dict[str, Any]] = []
    verdict = soak.soak(20, 1, 8, said.append, one_life=one_life)
    assert not verdict["fault"], json.dumps(said[-8:], indent=1)
    assert verdict["rounds"] >= 2
    assert verdict["steps"] >= 4
    assert min(verdict["delivered"]) > 1000
    assert any(entry.get("books") for entry in said)
    assert one_life or verdict["kinds"].keys() & {"die", "upgrade"}


def test_ten_seconds_of_adding_and_removing() -> None:
    said: list[dict[str, Any]] = []
    verdict = churn.churn(10, 50, 2000, said.append, least=0)
    assert not verdict["faults"], verdict["faults"]
    assert verdict["changes"] >= 10
    assert verdict["clients"] > 10
    assert min(verdict["delivered"]) > 1000


KERNEL = {("host", "bond0"): {"tx_packets": 10, "rx_packets": 8}, ("host", "eth1"): {"tx_packets": 9, "rx_packets": 9}}
BEFORE = Books({}, {}, {}, {"host": {}, "peer": {}})
SOUND = {"tx_frames": 9, "tx_congested": 1, "rx_frames": 8, "rx_overrun": 1}


@pytest.mark.parametrize(
    ("what", "mistakes"),
    [
        ({}, 0),
        ({"tx_congested": 0}, 1),       # a frame that the TAP gave and nobody counted
        ({"rx_overrun": 0}, 1),         # one that came to a NIC and nobody counted
        ({"rx_frames": 7, "rx_ignored": 1}, 1),     # one more on the TAP than was written
        ({"rx_ignored": 1}, 1),         # one counted twice
    ],
)
def test_books_that_do_not_balance_are_noticed(what: dict[str, int], mistakes: int) -> None:
    after = Books({"tap_frames": 10}, {**SOUND, **what}, KERNEL, {"host": {}, "peer": {}})
    assert len(Growth(BEFORE, after, ("eth1",)).mistakes(exact_in=True)) == mistakes


def test_more_lost_than_has_a_name_is_noticed() -> None:
    named = {"rx_ignored": 2, "rx_left": 1}
    assert not nameless("in", 3, named)
    assert len(nameless("in", 4, named)) == 1
