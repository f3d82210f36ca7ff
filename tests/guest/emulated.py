"""Worlds in a guest: the host's NICs are emulated ones with their own drivers, pytest runs in the guest beside them.

The guest has pairs of NICs, virtio-1 and virtio-1f, virtio-2 and virtio-2f, ..., each on a wire of its own (core.py).
The first is what a test knows as eth1, moved into the host's namespace; the other goes where its cable ends.  Both
leave by their driver being taken away and given back, as if pulled out of the slot and put in again: a world finds
new ones.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.netns.world import Bond, Kind, Space, World, wait_until

#: Driver, MAC and name of each NIC of this guest (guest.py).
NICS = Path("/run/guest/nics")


class Slot:
    """The place of one emulated NIC."""

    def __init__(self, name: str, mac: str) -> None:
        self.name = name
        found = [path for path in Path("/sys/class/net").iterdir() if (path / "address").read_text().strip() == mac]
        interface = found[0]
        self._device = (interface / "device").resolve()
        self._driver = (self._device / "driver").resolve()
        self.plugged = True
        self._is_new = False

    def empty(self) -> None:
        self._is_new = False
        if (self._device / "driver").exists():
            (self._driver / "unbind").write_text(self._device.name)

    def fill(self) -> str:
        """Put a new NIC in, if none has been since it was used; return its name in the guest's first namespace."""
        if not self._is_new:
            self.empty()
            (self._driver / "bind").write_text(self._device.name)
        found: Path = wait_until(lambda: next((self._device / "net").glob("*"), None), what=f"a NIC in {self.name}")
        self._is_new = True
        return found.name

    def cable(self, state: str) -> None:
        subprocess.run(["cable", self.name, state], check=True, capture_output=True, timeout=60)
        self.plugged = state == "on"

    def move(self, space: Space, name: str, mtu: int) -> None:
        now = self.fill()
        self._is_new = False
        subprocess.run(["ip", "link", "set", now, "netns", space.name, "name", name], check=True, capture_output=True)
        space.ip("link", "set", name, "mtu", str(mtu))


class Emulated(Kind):
    """`pytest --world=virtio` or `e1000`, in a guest that has such NICs (core.py)."""

    patience, pace = 6.0, 0.02

    def __init__(self) -> None:
        words = [line.split() for line in NICS.read_text().splitlines()]
        self._world = os.environ["UBOND_WORLD"]
        slots = {name: Slot(name, mac) for _, mac, name in words if name.startswith(f"{self._world}-")}
        self._free = [(slots[name], slots[f"{name}f"]) for name in sorted(slots, reverse=True) if f"{name}f" in slots]
        self._taken: dict[tuple[str, str], tuple[Slot, Slot]] = {}
        # Debian's fq_codel, before the bond's device, drops what has waited for a tenth of a second: on an emulated
        # processor with much to do that may be many a frame.
        Path("/proc/sys/net/core/default_qdisc").write_text("pfifo_fast")

    def _pair(self, world: World, nic: str) -> tuple[Slot, Slot]:
        """The slots at the ends of a cable: a world's own until it is closed, as a test may have two worlds."""
        key = world.key, nic
        if key not in self._taken:
            self._taken[key] = self._free.pop()
        return self._taken[key]

    def cable(self, world: World, nic: str, index: int, other: Space, far: str) -> None:
        for slot, space, name in zip(self._pair(world, nic), (world.host, other), (nic, far), strict=True):
            slot.cable("on")
            slot.move(space, name, world.mtu)
        # A NIC keeps frames for other MACs out, which a test wants to see come out of the cable.
        other.ip("link", "set", far, "promisc", "on")

    def remove(self, world: World, nic: str) -> None:
        for slot in self._pair(world, nic):
            slot.empty()

    def pull(self, world: World, nic: str) -> None:
        for slot in self._pair(world, nic):
            slot.cable("off")

    def plug(self, world: World, nic: str) -> None:
        # The far end first: what a bond says on a link that has just returned is said once.
        near, far = self._pair(world, nic)
        if not far.plugged:
            far.cable("on")
        world.wait_far_end(nic)
        if not near.plugged:
            near.cable("on")

    def settle(self, world: World, bond: Bond | None = None) -> None:
        # An e1000 whose MTU has changed needs longer in an emulated machine than `ubond up` waits for it.
        names = world.host.links() if bond is None else bond.slaves
        for nic in (name for name in names if name in world.nics):
            link_is_due = self._pair(world, nic)[0].plugged and "UP" in world.host.link(nic)["flags"]
            if link_is_due and not world.host.carrier(nic):
                wait_until(lambda nic=nic: world.host.carrier(nic), what=f"carrier of {nic}")
                if bond is not None and bond.option("miimon") != "0":
                    bond.wait_link(nic, "UP")

    def vanished(self, world: World, bond: Bond) -> int:
        ends = [world.far_end(nic) for nic in world.nics if nic in bond.slaves]

        def handed_over(nic: str) -> int:
            counters = bond.counters(nic)
            if bond.slave(nic)["ubond"]["gate"] != "bridge":
                return counters["tx_frames"] + counters["tx_control"]
            # What the slave's own stack sends passes the queue, as what the bond sends by its plain sockets does.
            queue = json.loads(world.host.run("tc", "-s", "-j", "qdisc", "show", "dev", nic).stdout)[0]
            return int(counters["tx_frames"] - counters["tx_plain"] + queue["packets"])

        def look() -> tuple[int, int]:
            sent = sum(handed_over(nic) for nic in world.nics if nic in bond.slaves)
            return sent, sum(space.counters(port)["rx"]["packets"] for space, port in ends)

        # A look takes seconds, and a stack solicits routers when it likes: a frame of which one look saw one end
        # alone is not what a NIC has kept.
        seen = [look()]

        def rests() -> bool:
            seen.append(look())
            return seen[-1] == seen[-2]

        wait_until(rests, what="no frame on its way")
        return seen[-1][0] - seen[-1][1]

    def held(self, rate: int) -> int:
        # An e1000's driver that has missed the interrupt looks at its link two seconds later, and a virtio NIC that was
        # taken out has cost a second's.
        return 2 * rate

    def close(self, world: World) -> None:
        for nic in world.nics:
            if pair := self._taken.pop((world.key, nic), None):
                for slot in pair:
                    slot.fill()
                self._free.append(pair)
