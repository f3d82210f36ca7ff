"""What tests ask of a guest whose bond0 reaches 192.0.2.1 in the namespace `peer`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from guest import Guest

TRANSFER = Path(__file__).resolve().parent / "transfer.py"

PEER = """
ip netns add peer
ip link set peer netns peer
ip -n peer link set peer up
ip -n peer addr add 192.0.2.1/24 dev peer
"""
#: Until the bond has an active slave again that carries frames.
ANSWERED = "for _ in $(seq 60); do ping -c 1 -W 1 192.0.2.1 >/dev/null && break; done"


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def bond_status(guest: Guest, bond: str = "bond0") -> str:
    """What /proc/net/bonding/BOND would say.  `ubond status` takes seconds to start in an emulated machine."""
    return guest.run(f"cat /run/ubond/proc/net/bonding/{bond}").check()


def active_slave(guest: Guest, bond: str = "bond0") -> str:
    return bond_status(guest, bond).partition("Currently Active Slave: ")[2].partition("\n")[0]


def assert_pings(guest: Guest, words: str, *, by_peer: bool = False) -> None:
    """Three pings must be answered; `words`: what comes after `ping`."""
    said = guest.run(f"{'ip netns exec peer ' if by_peer else ''}ping -c 3 -i 0.2 -W 5 {words}")
    assert " 0% packet loss" in said.stdout, (words, said)


def assert_transfers(guest: Guest, address: str = "192.0.2.1") -> None:
    """TCP to the peer and back arrives whole."""
    server = guest.start(f"exec ip netns exec peer python {TRANSFER} serve {address}")
    server.wait_for("listening")
    said = guest.run(f"exec python {TRANSFER} ask {address}")
    assert said.stdout == "same\n", (address, said)
