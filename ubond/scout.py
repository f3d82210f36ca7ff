"""Scout: how a bond's probes leave, and which gateways there are to probe, by the kernel's routes.

The study decides with values alone, so somebody has to look: when probing begins, when routes,
addresses or devices change, and now and then.  What is found becomes an event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ubond.bond.events import DoorError, Event, GatewaysRead, RoutesRead, TargetRoute
from ubond.netlink import Netlink
from ubond.routes import Routes
from ubond.uppers import Link, Tags, stacked

#: Seconds from a change to the look that it leads to, so that many make one.
SOON = 0.05

log = logging.getLogger("ubond")


class Scout:
    """Looks for one bond; at rest while it does not probe."""

    def __init__(
        self, netlink: Netlink, index: int, targets: Callable[[], tuple[str, ...]], tell: Callable[[Event], object]
    ) -> None:
        """`index`: of the bond's device; `targets`: whom it probes now; `tell` takes the events."""
        self._netlink, self._index, self._targets, self._tell = netlink, index, targets, tell
        self._loop = asyncio.get_running_loop()
        self._routes: Routes | None = None
        self._gateways_wanted = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._told: tuple[TargetRoute, ...] = ()
        self._gateways: dict[str, int] = {}

    def follow(self, probes: bool, gateways: bool) -> None:
        """Look from now on, for gateways too, or rest."""
        self._gateways_wanted = gateways
        if not probes:
            self.rest()
        else:
            self.soon(0.0)

    def rest(self) -> None:
        for waiting in (self._timer, self._task):
            if waiting is not None:
                waiting.cancel()
        self._timer = self._task = None
        if self._routes is not None:
            self._routes.close()
            self._routes = None
        self._told, self._gateways = (), {}

    @property
    def at_rest(self) -> bool:
        return self._routes is None and self._timer is None and self._task is None

    def again(self) -> None:
        """Something that a way depends on has changed, if anybody asks for one."""
        if not self.at_rest:
            self.soon(SOON)

    def soon(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._task is not None and not self._task.done():
            self.soon(SOON)
            return
        self._task = self._loop.create_task(self._look())

    async def _look(self) -> None:
        try:
            if self._routes is None:
                routes = Routes(self.again)
                await routes.open()
                self._routes = routes
            above = {link.index: (link, tags) for link, tags in self._stacked()}
            if self._gateways_wanted:
                self._gateways = await self._routes.gateways(above)
                self._tell(GatewaysRead(tuple(self._gateways)))
            elif self._gateways:
                self._gateways = {}
                self._tell(GatewaysRead(()))
            found = [await self._way(self._routes, target, above) for target in self._targets()]
        except DoorError as error:
            log.warning("the routes to the targets could not be read: %s", error)
            return
        if self._told != tuple(found):
            self._told = tuple(found)
            self._tell(RoutesRead(self._told))

    def _stacked(self) -> list[tuple[Link, Tags]]:
        return list(stacked({link.index: link for link in self._netlink.links}, self._index))

    async def _way(self, routes: Routes, target: str, above: dict[int, tuple[Link, Tags]]) -> TargetRoute:
        way = await routes.to(target, self._gateways.get(target, 0))
        if way is None or (way.device in above and not way.onlink):
            return TargetRoute(target, routed=False)
        if way.device not in above:
            return TargetRoute(target, mine=False)
        return TargetRoute(target, source=way.source, tags=above[way.device][1])
