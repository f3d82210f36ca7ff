"""A slave removed and added again and again, --rate changes a second, under full load.

    python tests/soak/churn.py [--time SECONDS] [--rate CHANGES] [--load FRAMES] [--least SHARE]

The two slaves take turns, so that every second pair moves the traffic.  Meanwhile clients come and go,
so that the descriptors which a slave's sockets had are at once somebody else's.  Nothing may ever be
sent on a third interface, what does not arrive has a name in the books (`ledger.py`), and memory,
descriptors and threads stay flat.  One JSON line every ten seconds, at the end one of verdict; exit code 1
if something did not hold: also when less than --least of the pace or of the load was reached, for then it
has shown less than it says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.netns.world import HOST4, PEER4, Seen, Sniffer, World, blast, finish, inside  # noqa: E402
from tests.soak.ledger import Growth, nameless  # noqa: E402
from tests.soak.soak import GROWTH_KIB, HELPERS, Flood, read_books, resources  # noqa: E402
from ubond import paths  # noqa: E402
from ubond.client import Client  # noqa: E402

SLAVES, THIRD = ("eth1", "eth2"), "eth3"
REPORT_EVERY = 10.0
#: Pairs after which the daemon's memory of lines and failovers is full: what it grows by then is compared.
WARM = 500


@contextlib.contextmanager
def files_in_memory() -> Iterator[None]:
    """Where /run is a disk, which it is on no running system, every step would wait for that."""
    with tempfile.TemporaryDirectory(prefix="ubond-churn-", dir="/dev/shm") as directory:
        before = os.environ.get("UBOND_RUNTIME_DIR")
        os.environ["UBOND_RUNTIME_DIR"] = directory
        try:
            yield
        finally:
            del os.environ["UBOND_RUNTIME_DIR"]
            if before is not None:
                os.environ["UBOND_RUNTIME_DIR"] = before


class Loads:
    """Numbered datagrams both ways."""

    def __init__(self, world: World, rate: int) -> None:
        ends = ((world.host, world.peer, PEER4, "5001"), (world.peer, world.host, HOST4, "5002"))
        self._receivers = [
            there.start(blast(), "udp-recv", "--port", port, "--seconds", "3600") for _, there, _, port in ends
        ]
        for _, there, _, port in ends:
            there.wait_udp(int(port))
        self._senders = [
            here.start(blast(), "udp-send", "--to", to, "--port", port, "--rate", str(rate), "--seconds", "3600")
            for here, _, to, port in ends
        ]

    def end(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What senders and receivers report: out, in."""
        said = []
        for processes in (self._senders, self._receivers):
            for process in processes:
                process.terminate()
            said.append([finish(process, 60) for process in processes])
        return said[0], said[1]

    def kill(self) -> None:
        for process in (*self._senders, *self._receivers):
            process.kill()
            process.communicate()


@contextlib.contextmanager
def silent(world: World, nic: str) -> Iterator[Sniffer]:
    """What comes out at the far end of a NIC whose own stack has nothing to say."""
    world.host.run("sysctl", "-qw", f"net.ipv6.conf.{nic}.disable_ipv6=1")
    world.host.ip("link", "set", nic, "arp", "off")     # it would answer for the bond's address, too
    space, far = world.far_end(nic)
    # All that the switch floods goes the other way.
    with Sniffer(space, far) as sniffer:
        yield sniffer


def passed_over(world: World, nic: str) -> int:
    """What IPv6 has dropped because it is switched off on a NIC: in no datagram's way."""
    lines = world.host.run("cat", f"/proc/net/dev_snmp6/{nic}").stdout.splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Ip6InDiscards"))


def told(frames: list[Seen]) -> str:
    """Some frames for a reader, the first bytes of each."""
    return f"{len(frames)}: " + ", ".join(seen.frame[:48].hex() for seen in frames[:3])


def churn(
    seconds: float, rate: float, load: int, say: Callable[[dict[str, Any]], None], *, least: float = 0.95
) -> dict[str, Any]:
    """Run it; return the verdict, which has been said too.  `least`: share of the rates that must be reached."""
    with files_in_memory(), World(3) as world:
        with silent(world, THIRD) as third, world.bond(*SLAVES, "--miimon", "100") as bond:
            with inside(world.host.name):
                path = paths.socket_path("bond0")
            # A bond of one slave that loses it is without a link; the pairs begin with two.
            pid, faults = bond.pid, []
            third.take()
            strange: list[Seen] = []
            first: dict[str, int] | None = None
            before, aside = read_books(world, bond), passed_over(world, THIRD)
            loads = Loads(world, load)
            try:
                with Flood(path, 1) as flood, Client(str(path), timeout=20) as client:
                    begin = reported = time.monotonic()
                    changes = 0
                    while (now := time.monotonic()) - begin < seconds or changes % 2:
                        client.request(("remove", "add")[changes % 2], slaves=[SLAVES[changes // 2 % 2]])
                        changes += 1
                        time.sleep(max(0.0, begin + changes / rate - time.monotonic()))
                        if now - reported > REPORT_EVERY:
                            reported, measured = now, resources(pid)
                            if first is None and changes >= 2 * WARM:
                                first = measured
                            strange += third.take()
                            say({"changes": changes, "third": len(strange), **measured})
                    took = time.monotonic() - begin
                sent, got = loads.end()
            finally:
                loads.kill()
            growth, aside = Growth(before, read_books(world, bond), SLAVES), passed_over(world, THIRD) - aside
            last = resources(pid)
            first = first or last
            strange += third.take()
            if strange:
                faults.append(f"frames were sent on {THIRD}: {told(strange)}")
            if flood.fault is not None:
                faults.append(f"a client: {flood.fault!r}")
            if bond.pid != pid:
                faults.append("it is another process")
            if set(bond.slaves) != set(SLAVES):
                faults.append(f"slaves are {bond.slaves}")
            if last["rss"] > first["rss"] + GROWTH_KIB or last["fds"] > first["fds"] + 8:
                faults.append(f"grew from {first} to {last}")
            if last["threads"] > 3 + HELPERS:
                faults.append(f"{last['threads']} threads")
            faults += growth.mistakes(exact_in=False)   # while a slave is out its frames are nobody's
            named = growth.named_out(), growth.named_in()
            for way, stack, one, other, lost in zip(
                ("out", "in"), ("host_stack", "bond"), sent, got, named, strict=True
            ):
                lost[stack] = lost.get(stack, 0) - aside
                faults += nameless(way, one["sent"] - other["unique"], lost)
            faults += [f"{way}: none of {one['sent']} frames came" for way, one, other in
                       zip(("out", "in"), sent, got, strict=True) if not other["unique"]]  # fmt: skip
            reached = {"changes": changes / took / rate, **{
                f"frames {way}": one["pps"] / load for way, one in zip(("out", "in"), sent, strict=True)
            }}  # fmt: skip
            faults += [f"{what}: {share:.0%} of their rate" for what, share in reached.items() if share < least]
        verdict = {
            "verdict": "broken" if faults else "sound", "faults": faults, "seconds": round(took, 1), "changes": changes,
            "changes_a_second": round(changes / took, 1), "asked_for": rate, "clients": flood.asked,
            "offered": [one["sent"] for one in sent], "delivered": [one["unique"] for one in got],
            "named": named, "rate": [round(one["pps"]) for one in sent],
            "third": len(strange), "first": first, "last": last,
        }  # fmt: skip
        say(verdict)
        return verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--time", type=float, default=600, help="seconds")
    parser.add_argument("--rate", type=float, default=50, help="changes (a remove or an add) a second")
    parser.add_argument("--load", type=int, default=20000, help="datagrams a second, each way")
    parser.add_argument("--least", type=float, default=0.95, help="share of rate and load that must be reached")
    given = parser.parse_args()
    begin = time.monotonic()

    def say(entry: dict[str, Any]) -> None:
        print(json.dumps({"at": round(time.monotonic() - begin, 2), **entry}), flush=True)

    return 1 if churn(given.time, given.rate, given.load, say, least=given.least)["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
