"""What drivers of emulated NICs do otherwise than veth: rings that are full."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from guest import Guest, Nic
from prepare import CHECKOUT

pytestmark = pytest.mark.guest

BLAST = CHECKOUT / "bench" / "bin" / "blast"
LOST = ("tx_congested", "tx_link_down", "tx_held_too_long", "tx_refused", "tx_unknown", "tx_too_long",
        "tx_too_long_tagged")  # fmt: skip
#: The driver is taken away from the NIC at the far end: what is sent to it waits, with a carrier, and nobody takes it.
DEAF = "echo $(basename $(readlink -f /run/far1)) >/sys/bus/virtio/drivers/virtio_net/unbind"
HEARING = """
    echo $(basename $(readlink -f /run/far1)) >/sys/bus/virtio/drivers/virtio_net/bind
    ip link set $(ls /run/far1/net) up
    """


def test_a_ring_that_stays_full_delays_neither_the_other_slave_nor_reception() -> None:
    """And when it drains, its slave carries frames again.  (QEMU's other models complete each frame at once.)"""
    nics = [Nic("eth1", wire="a"), Nic("far1", wire="a"), Nic("eth2", wire="b"), Nic("far2", wire="b")]
    subprocess.run(["make", "-s", "-C", BLAST.parents[1]], check=True)
    with Guest(nics) as guest:
        guest.run(f"""
            ip netns add peer
            ip link set far2 netns peer
            ip -n peer link set far2 up
            ip -n peer addr add 192.0.2.1/24 dev far2
            ln -s $(readlink -f /sys/class/net/far1/device) /run/far1
            ip link set eth1 up
            ip link set eth2 up
            ubond up bond0 eth1 eth2 --mode balance-rr --address 192.0.2.10/24
            ip neigh replace 192.0.2.1 lladdr $(ip netns exec peer cat /sys/class/net/far2/address) dev bond0
            ip -n peer neigh replace 192.0.2.10 lladdr $(cat /sys/class/net/bond0/address) dev far2
            for _ in $(seq 100); do
                [ $(grep -c "MII Status: up" /run/ubond/proc/net/bonding/bond0) = 3 ] && break
                sleep 0.1
            done
            {DEAF}
            """, timeout=300).check()
        there, recv = f"ip netns exec peer {BLAST}", "udp-recv --seconds 60 --idle-ms 4000 --gap-ms 2000"
        into = guest.start(f"exec {BLAST} {recv} --port 5002")
        out = guest.start(f"exec {there} {recv} --port 5001")
        guest.run("sleep 2").check()
        flood = guest.start(f"exec {BLAST} udp-send --to 192.0.2.1 --port 5001 --size 200 --seconds 8")
        fed = guest.start(f"exec {there} udp-send --to 192.0.2.10 --port 5002 --rate 300 --seconds 8")
        flooded, sent = (json.loads(job.wait(240).check()) for job in (flood, fed))
        received, arrived = (json.loads(job.wait(240).check()) for job in (into, out))
        links = status(guest)
        said = json.dumps([flooded, sent, received, arrived, [link["ubond"]["counters"] for link in links]])
        bond, eth1, eth2 = (link["ubond"]["counters"] for link in links)
        # Every frame that the bond took is sent or counted as lost, and eth2 sent without a pause.
        assert bond["tap_frames"] > 2000, said
        assert bond["tap_frames"] == bond["no_slave"] + sum(
            slave[name] for slave in (eth1, eth2) for name in ("tx_frames", *LOST)
        ), said
        assert eth1["tx_congested"] > 100, said
        assert eth2["tx_frames"] > bond["tap_frames"] / 5, said
        assert not arrived["silences"], said
        # Reception has lost nothing and was never silent.
        assert sent["pps"] > 0.95 * 300, said
        assert received["received"] == sent["sent"], said
        assert not received["silences"], said
        # A full ring is no lost link.
        for link in links[1:]:
            data = link["linkinfo"]["info_slave_data"]
            assert (data["mii_status"], data["link_failure_count"]) == ("UP", 0)

        guest.run(HEARING).check()
        before = status(guest)[1]["ubond"]["counters"]
        guest.run("ping -c 20 -i 0.05 -W 1 192.0.2.1")
        after = status(guest)[1]["ubond"]["counters"]
        assert after["tx_frames"] >= before["tx_frames"] + 8, (before, after)
        assert after["tx_congested"] == before["tx_congested"], (before, after)


def status(guest: Guest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(guest.run("ubond status bond0 --json", timeout=60).check())
    return found
