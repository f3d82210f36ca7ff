"""How probes leave through VLANs, as the scout works it out from links and routes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ubond.bond.events import TargetRoute
from ubond.routes import Way
from ubond.scout import Scout
from ubond.uppers import IFF_UP, Link
from ubond.wire import MacAddr

MAC = MacAddr.parse("02:00:00:00:00:0a")
LINKS = (
    Link(1, "bond0", IFF_UP, MAC, 1500),
    Link(2, "bond0.5", IFF_UP, MAC, 1500, lower=1, kind="vlan", vlan=(0x88A8, 5)),
    Link(3, "bond0.5.7", IFF_UP, MAC, 1500, lower=2, kind="vlan", vlan=(0x8100, 7)),
    Link(4, "eth9", IFF_UP, MAC, 1500),
)
OURS = b"\x0a\0\0\x01"


class Picture:
    links = LINKS


class Ways:
    """Routes that lead where a test says."""

    def __init__(self, way: Way | None) -> None:
        self.way = way

    async def to(self, address: str, device: int = 0) -> Way | None:
        return self.way


@pytest.mark.parametrize(
    ("way", "route"),
    [
        (Way(1, OURS, True), TargetRoute("10.0.0.2", source=OURS)),
        (Way(2, OURS, True), TargetRoute("10.0.0.2", source=OURS, tags=((0x88A8, 5),))),
        (Way(3, OURS, True), TargetRoute("10.0.0.2", source=OURS, tags=((0x88A8, 5), (0x8100, 7)))),
        (Way(4, OURS, True), TargetRoute("10.0.0.2", mine=False)),
        (Way(4, OURS, False), TargetRoute("10.0.0.2", mine=False)),
        (Way(1, OURS, False), TargetRoute("10.0.0.2", routed=False)),
        (None, TargetRoute("10.0.0.2", routed=False)),
    ],
    ids=["bond", "vlan", "stacked", "elsewhere", "elsewhere by a router", "by a router", "nowhere"],
)
def test_a_way_becomes_source_and_tags(way: Way | None, route: TargetRoute) -> None:
    async def find() -> TargetRoute:
        scout = Scout(Picture(), 1, lambda: (), lambda event: None)  # type: ignore[arg-type]
        ways: Any = Ways(way)
        above = {link.index: (link, tags) for link, tags in scout._stacked()}
        return await scout._way(ways, "10.0.0.2", above)

    assert asyncio.run(find()) == route
