"""What the watch reads of real interfaces besides their carrier."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Iterator

from namespace import Namespace

from ubond.datapath import Datapath, FeaturesChanged
from ubond.ports import open_port, open_probe

MS = 1_000_000


@contextlib.contextmanager
def watching(host: Namespace, nic: str) -> Iterator[Datapath]:
    with host.inside(), open_probe() as probe:
        port = open_port(nic, int(host.run("cat", f"/sys/class/net/{nic}/ifindex")), mark=1)
        datapath = Datapath([], probe.fileno())
        datapath.add(nic, [sock.fileno() for sock in port.raws], port.plain.fileno())
        datapath.set_interval(5 * MS)
        datapath.start()
        try:
            yield datapath
        finally:
            datapath.stop()
            port.close()


def features_told(datapath: Datapath, seconds: float) -> list[str]:
    """The slaves whose features are told to have changed; waits for the first for so long."""
    end, found = time.monotonic() + seconds, []
    while not found and select.select([datapath.news_fd], [], [], max(0, end - time.monotonic()))[0]:
        found = [news.slave for news in datapath.news() if isinstance(news, FeaturesChanged)]
    return found


def test_another_feature_of_a_slave_is_told_once_and_those_that_it_came_with_are_not(
    namespaces: Callable[[], Namespace],
) -> None:
    host, far = namespaces(), namespaces()
    host.link_to(far, "eth1", "p1")
    with watching(host, "eth1") as datapath:
        assert features_told(datapath, 0.5) == []
        for how in ("off", "on"):
            host.run("ethtool", "-K", "eth1", "tso", how)
            assert features_told(datapath, 20) == ["eth1"]
        assert features_told(datapath, 6) == []
