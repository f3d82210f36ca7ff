"""Where another manager of interfaces is at work, a running bond tells it to keep off.

The host is given a process 1, a /run and a /usr/local/sbin of its own, so that it looks like one on which
NetworkManager runs, whose `nmcli` notes what it is asked.  (`tests/guest` has the real one.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.netns.world import World

pytestmark = pytest.mark.netns

HOST = """
set -e
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=755 sbin /usr/local/sbin
export PATH=/usr/local/sbin:$PATH
mkdir /run/NetworkManager
printf '#!/bin/sh\\necho "$@" >>/run/asked\\n' >/usr/local/sbin/nmcli
chmod +x /usr/local/sbin/nmcli
ubond() { "$PYTHON" -m ubond "$@"; }
file=/run/NetworkManager/conf.d/ubond-bond0.conf
ubond up bond0 eth1 eth2
echo up; cat $file
ubond remove bond0 eth2
for _ in $(seq 200); do grep -q eth2 $file || break; sleep 0.05; done
echo removed; cat $file
ubond down bond0
echo down; ls /run/NetworkManager/conf.d
echo asked; sort -u /run/asked
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


def test_networkmanager_is_told_of_bond_and_slaves_and_asked_to_read_it(world: World) -> None:
    # The commands of a private mount and process namespace, all in the host's network namespace.
    own = ("unshare", "--mount", "--pid", "--fork", "--mount-proc")
    said = world.host.run(*own, "env", f"PYTHON={sys.executable}", "sh", "-c", HOST, timeout=120).stdout
    up, _, rest = said.partition("removed\n")
    removed, _, rest = rest.partition("down\n")
    left, _, asked = rest.partition("asked\n")
    devices = "interface-name:bond0;interface-name:eth1;interface-name:eth2"
    assert f"match-device={devices}\nmanaged=0" in up
    assert "eth1" in removed
    assert "eth2" not in removed
    assert left == ""
    assert asked == "general reload conf\n"
