"""active-backup with the real thing: who sends, which MAC, what neighbours see, and what is lost."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator

import pytest

from tests.netns.world import (
    ADDRESSES,
    HOST4,
    PEER4,
    PEER6,
    Bond,
    Sniffer,
    World,
    assert_loaded,
    blast,
    finish,
    start_receiver,
    unanswered,
    wait_until,
)

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(3) as world:
        yield world


def behind(world: World, mac: str) -> str | None:
    """The switch's port behind which it has learnt a MAC."""
    for line in world.switch.run("bridge", "fdb", "show", "br", "br0").stdout.splitlines():
        words = line.split()
        if words[0] == mac and "permanent" not in words:
            return words[words.index("dev") + 1]
    return None


# ── MACs ─────────────────────────────────────────────────────────────────────────────


def test_the_mac_stays_through_failover_failback_and_release_of_the_first_slave(world: World) -> None:
    own = {nic: world.host.mac(nic) for nic in world.nics}
    with world.bond("--primary", "eth1", "--updelay", "200ms") as bond:
        mac = world.host.mac("bond0")
        assert mac == own["eth1"]
        assert {world.host.mac(nic) for nic in world.nics} == {mac}
        world.host.ping(PEER4)
        assert world.peer.neighbour(HOST4) == mac

        world.pull("eth1")
        bond.wait_active("eth2")
        world.host.ping(PEER4)
        world.plug("eth1")
        bond.wait_active("eth1")
        world.host.ping(PEER4)
        world.ubond("remove", "bond0", "eth1")
        assert bond.active in ("eth2", "eth3")
        world.host.ping(PEER4)

        assert world.host.mac("bond0") == mac
        assert {world.host.mac(nic) for nic in ("eth2", "eth3")} == {mac}
        assert world.peer.neighbour(HOST4) == mac
        assert world.host.mac("eth1") == own["eth1"]
        log = [entry["text"] for entry in bond.ask("log")["log"]]
        assert any(f"the permanent HWaddr of slave - {mac} - is still in use by bond" in text for text in log)
    assert {nic: world.host.mac(nic) for nic in world.nics} == own


def test_the_peers_neighbour_entry_is_never_renewed_by_a_failover(world: World) -> None:
    """A peer that cannot ask goes on reaching the bond: its entry is right before and after."""
    with world.bond() as bond:
        mac = world.host.mac("bond0")
        world.peer.ip("neigh", "replace", HOST4, "lladdr", mac, "dev", "eth0", "nud", "permanent")
        try:
            for nic in ("eth1", "eth2"):
                world.pull(nic)
                wait_until(lambda nic=nic: bond.active not in (None, nic), what=f"failover from {nic}")
                world.peer.ping(HOST4, count=3)
                world.plug(nic)
        finally:
            world.peer.ip("neigh", "del", HOST4, "dev", "eth0")


def test_set_mac_is_given_to_the_bond_and_all_slaves_and_taken_back(world: World) -> None:
    own = {nic: world.host.mac(nic) for nic in world.nics}
    with world.bond("--mac", "02:00:5e:00:53:01"):
        assert {world.host.mac(name) for name in ("bond0", *world.nics)} == {"02:00:5e:00:53:01"}
        world.host.ping(PEER4)
        world.host.ip("link", "set", "bond0", "address", "02:00:5e:00:53:02")
        names = ("bond0", *world.nics)
        wait_until(lambda: {world.host.mac(name) for name in names} == {"02:00:5e:00:53:02"}, what="new MAC")
        wait_until(lambda: world.host.reaches(PEER4), what="traffic with the new MAC")
    assert {nic: world.host.mac(nic) for nic in world.nics} == own


@pytest.mark.parametrize("policy", ["none", "active", "follow"])
def test_who_has_which_mac_under_each_fail_over_mac(world: World, policy: str) -> None:
    own = {nic: world.host.mac(nic) for nic in world.nics}
    with world.bond("eth1", "eth2", "--fail-over-mac", policy) as bond:
        first = world.host.mac("bond0")
        assert first == own["eth1"]
        world.peer.ping(HOST4)
        for gone, taken in (("eth1", "eth2"), ("eth2", "eth1")):
            with Sniffer(world.peer, "eth0") as sniffer:
                world.pull(gone)
                bond.wait_active(taken)
                expected = {
                    "none": dict.fromkeys(("bond0", "eth1", "eth2"), first),
                    "active": {**{nic: own[nic] for nic in ("eth1", "eth2")}, "bond0": own[taken]},
                    "follow": {"bond0": first, taken: first, gone: own["eth2"]},
                }[policy]
                wait_until(
                    lambda expected=expected: {name: world.host.mac(name) for name in expected} == expected,
                    what=f"MACs {expected}",
                )
                # The announcement tells neighbours, so the peer's next frame already goes right.
                told = sniffer.collect(
                    lambda seen: seen.kind == 0x0806 and seen.frame[28:32] == socket.inet_aton(HOST4)
                )
                assert {seen.src for seen in told} == {expected["bond0"]}
            wait_until(
                lambda expected=expected: world.peer.neighbour(HOST4) == expected["bond0"], what="peer learns"
            )
            assert behind(world, expected["bond0"]) == f"sw{taken[3:]}"
            world.peer.ping(HOST4, count=3)
            world.host.ping(PEER4, count=3)
            world.plug(gone)
            bond.wait_link(gone, "UP")
    assert {nic: world.host.mac(nic) for nic in world.nics} == own


# ── frames ───────────────────────────────────────────────────────────────────────────


def test_every_ping_is_answered_once(world: World) -> None:
    """Broadcasts and floods reach both slaves: the bond takes them once, no slave's stack answers."""
    with world.bond():
        world.peer.ping(HOST4, count=20)
        world.host.ping(PEER4, count=20)
        with Sniffer(world.host, "bond0") as sniffer:
            # Nobody has this address: the switch floods it to every port.
            head = b"\xff" * 6 + bytes.fromhex("02005e00530188b5")
            for number in range(50):
                world.peer.send("eth0", head + bytes([number]) * 46)
            copies = sniffer.collect(lambda seen: seen.kind == 0x88B5, 50)
            copies += sniffer.during(0.3, lambda seen: seen.kind == 0x88B5)
        assert [seen.frame[14] for seen in copies] == list(range(50))


def test_all_slaves_active_takes_what_arrives_on_backups_too(world: World) -> None:
    with world.bond() as bond, Sniffer(world.host, "bond0") as sniffer:
        frame = b"\xff" * 6 + bytes.fromhex("02005e005302") + b"\x88\xb5" + b"x" * 46
        world.peer.send("eth0", frame)
        assert len(sniffer.collect(lambda seen: seen.frame == frame)) == 1
        bond.set("all_slaves_active=1")
        world.peer.send("eth0", frame)
        sniffer.collect(lambda seen: seen.frame == frame, 3)
        bond.set("all_slaves_active=0")
        world.peer.send("eth0", frame)
        sniffer.collect(lambda seen: seen.frame == frame)
        assert not sniffer.during(0.2, lambda seen: seen.frame == frame)


def test_nothing_is_lost_when_the_active_link_is_pulled_under_load(world: World) -> None:
    """20,000 frames a second leave the bond; each of three pulls hits the slave that carries them."""
    rate, pulls = world.rate(20_000), 3
    program = blast()
    with world.bond("eth1", "eth2") as bond:
        world.host.ping(PEER4)
        kept_before = world.vanished(bond)
        receiver = start_receiver(world.peer, 100)
        sender = world.host.start(
            program, "udp-send", "--to", PEER4, "--rate", str(rate), "--seconds", f"{world.seconds(90):g}"
        )
        carried = []
        for _ in range(pulls):
            nic = bond.active
            assert nic is not None
            before = world.host.counters(nic)["tx"]["packets"]
            wait_until(
                lambda nic=nic, before=before: world.host.counters(nic)["tx"]["packets"] > before + rate // 10,
                what=f"{nic} carries the load",
            )
            assert sender.poll() is None
            carried.append(nic)
            world.pull(nic)
            wait_until(lambda nic=nic: bond.active not in (nic, None), what="failover")
            world.plug(nic)
            bond.wait_link(nic, "UP")
        assert sender.poll() is None, "the load must have outlasted the last pull"
        sender.terminate()
        sent, received = finish(sender), finish(receiver)
        kept = world.vanished(bond) - kept_before
        failovers = bond.ask("history")["history"]
        counted = {nic: bond.counters(nic) for nic in bond.slaves}
        came = {port: space.counters(port) for space, port in map(world.far_end, bond.slaves)}
        came["peer"], counted["bond0"] = world.peer.counters("eth0"), bond.ours["counters"]
    # Guards: the generator kept its rate, the receiver's own queue dropped nothing, links changed.
    assert_loaded(sent, received, rate)
    assert sent["failed"] == 0
    assert len(set(carried)) == 2
    assert received["first"] == 0
    assert received["last"] == sent["sent"] - 1
    assert (received["duplicated"], received["reordered"]) == (0, 0)
    assert received["lost"] <= kept <= world.kind.held(rate) * pulls, (received, kept, counted, came)
    assert [entry["lost"] for entry in failovers[-pulls:]] == [0] * pulls
    # Of one of them a machine that stands still for a moment may make more.
    assert statistics.median(entry["silence_ns"] for entry in failovers[-pulls:]) < world.seconds(0.25) * 1e9


# ── delays ───────────────────────────────────────────────────────────────────────────


def test_downdelay_lets_another_slave_stand_in_and_a_returning_link_takes_over_again(world: World) -> None:
    # Long enough for all that is looked at meanwhile.
    delay = world.seconds(2)
    with world.bond("eth1", "eth2", "--downdelay", f"{delay:g}s") as bond:
        world.host.ping(PEER4)
        world.pull("eth1")
        bond.wait_link("eth1", "GOING_DOWN")
        wait_until(lambda: bond.ours["stand_in"] == "eth2", what="eth2 stands in")
        assert bond.active == "eth1"
        assert world.host.carrier("bond0")
        world.host.ping(PEER4, count=5)
        proc = world.ubond("status", "bond0").stdout
        assert "Currently Active Slave: eth1" in proc
        assert "MII Status: going down" in proc
        assert "stand-in" in world.ubond("status", "bond0", "--format", "table").stdout
        world.plug("eth1")  # in time
        bond.wait_link("eth1", "UP")
        wait_until(lambda: bond.ours["stand_in"] is None, what="the stand-in steps back")
        assert bond.active == "eth1"
        assert bond.slave("eth1")["linkinfo"]["info_slave_data"]["link_failure_count"] == 0
        world.host.ping(PEER4, count=5)

        began = time.monotonic()
        world.pull("eth1")
        bond.wait_active("eth2", seconds=6)
        assert 0.85 * delay < time.monotonic() - began < 2 * delay
        assert bond.link_state("eth1") == "DOWN"
        assert bond.slave("eth1")["linkinfo"]["info_slave_data"]["link_failure_count"] == 1
        world.host.ping(PEER4, count=5)


def test_updelay_distrusts_a_returning_primary_for_its_time(world: World) -> None:
    delay = world.seconds(1.5)
    with world.bond("eth1", "eth2", "--primary", "eth1", "--updelay", f"{delay * 1000:.0f}ms") as bond:
        world.pull("eth1")
        bond.wait_active("eth2")
        world.plug("eth1")
        bond.wait_link("eth1", "GOING_BACK")
        began = time.monotonic()
        assert "MII Status: going back" in world.ubond("status", "bond0").stdout
        assert bond.active == "eth2"
        world.host.ping(PEER4, count=3)
        bond.wait_active("eth1", seconds=6)
        assert 0.6 * delay < time.monotonic() - began < delay + world.seconds(2.5)
        world.host.ping(PEER4, count=3)


def test_ping_every_10_ms_loses_nothing_while_downdelay_runs(world: World) -> None:
    with world.bond("eth1", "eth2", "--downdelay", "1s") as bond:
        world.host.ping(PEER4)
        kept_before = world.vanished(bond)
        ping = world.host.start("ping", "-n", "-i", "0.01", "-c", "250", "-w", f"{world.seconds(15):g}", PEER4)
        wait_until(lambda: world.host.counters("eth1")["tx"]["packets"] > 30, what="ping runs")
        world.pull("eth1")
        bond.wait_active("eth2", seconds=6)
        out, _ = ping.communicate(timeout=world.seconds(20))
        kept = world.vanished(bond) - kept_before
        assert unanswered(out, 250) <= kept, out
        assert "DUP!" not in out


def test_strict_goes_on_sending_into_the_dead_link_until_downdelay_is_over(world: World) -> None:
    """What the driver does: nobody stands in, and interfaces must be down to be enslaved."""
    refused = world.ubond("up", "bond0", "eth1", "eth2", "--strict", check=False)
    assert refused.returncode == 1
    assert "Device can not be enslaved while up" in refused.stderr
    for nic in ("eth1", "eth2"):
        world.host.ip("link", "set", nic, "down")
    world.ubond("up", "bond0", "eth1", "eth2", "--strict", "--downdelay", f"{world.seconds(1):g}s", *ADDRESSES)
    try:
        bond = Bond(world, "bond0")
        bond.wait_active("eth1")
        bond.wait_link("eth2", "UP")
        wait_until(lambda: world.host.reaches(PEER4), what="traffic")
        world.pull("eth1")
        bond.wait_link("eth1", "GOING_DOWN")
        assert bond.ours["stand_in"] is None
        assert bond.ours["provisional"] is None
        assert not world.host.reaches(PEER4)
        assert bond.active == "eth1"
        bond.wait_active("eth2", seconds=5)
        wait_until(lambda: world.host.reaches(PEER4), what="traffic on eth2")
    finally:
        world.ubond("down", "bond0", check=False)
        for nic in ("eth1", "eth2"):
            world.host.ip("link", "set", nic, "up")
            world.plug(nic)


# ── who is chosen ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("reselect", "after_return"), [("always", "eth1"), ("better", "eth2"), ("failure", "eth2")])
def test_primary_reselect_decides_what_a_returning_primary_does(
    world: World, reselect: str, after_return: str
) -> None:
    with world.bond("eth1", "eth2", "--primary", "eth1", "--primary-reselect", reselect) as bond:
        assert bond.active == "eth1"
        world.pull("eth1")
        bond.wait_active("eth2")
        world.plug("eth1")
        bond.wait_link("eth1", "UP")
        wait_until(lambda: bond.active == after_return, what=f"{after_return} after the return")
        world.host.ping(PEER4)
        world.pull("eth2")
        bond.wait_active("eth1")
        wait_until(lambda: world.host.reaches(PEER4), what="traffic on the primary")


def test_primary_active_slave_and_prio_can_be_set_while_it_runs(world: World) -> None:
    with world.bond() as bond:
        assert bond.active == "eth1"
        bond.set("active_slave=eth3")
        assert bond.active == "eth3"
        world.host.ping(PEER4)
        bond.set("primary=eth2")
        assert bond.active == "eth2"
        assert bond.info["primary"] == "eth2"
        world.host.ping(PEER4)
        bond.set("primary=")
        assert "primary" not in bond.info
        bond.set("eth3.prio=10")
        assert bond.active == "eth3"
        bond.set("eth1.prio=20")
        assert bond.active == "eth1"
        world.pull("eth1")
        bond.wait_active("eth3")  # the next by prio, not by order
        world.host.ping(PEER4)
        # Down: the driver's refusal, and nothing has changed.
        refused = world.ubond("set", "bond0", "active_slave=eth1", check=False)
        assert refused.returncode == 2
        assert "either eth1 is down or the link is down" in refused.stderr
        assert bond.active == "eth3"


def test_the_active_slave_is_chosen_by_options_at_up(world: World) -> None:
    with world.bond("-o", "eth2.prio=5", "-o", "primary_reselect=better", "--active-slave", "eth3") as bond:
        assert bond.active == "eth3"
        assert bond.slave("eth2")["linkinfo"]["info_slave_data"]["prio"] == 5


# ── carrier ──────────────────────────────────────────────────────────────────────────


@pytest.mark.short
def test_the_bonds_carrier_follows_its_slaves(world: World) -> None:
    with world.bond("eth1", "eth2") as bond:
        wait_until(lambda: world.host.carrier("bond0"), what="carrier of the bond")
        world.pull("eth1")
        bond.wait_active("eth2")
        assert world.host.carrier("bond0")
        world.pull("eth2")
        # The flag follows the lost carrier, it does not come with it.
        wait_until(lambda: "NO-CARRIER" in world.host.link("bond0")["flags"], what="NO-CARRIER")
        assert bond.active is None
        assert "MII Status: down" in world.ubond("status", "bond0").stdout
        world.plug("eth2")
        bond.wait_active("eth2")
        wait_until(lambda: world.host.carrier("bond0"), what="carrier of the bond is back")
        wait_until(lambda: world.host.reaches(PEER4), what="traffic after all were down")
        wait_until(lambda: world.host.reaches(PEER6), what="IPv6, after duplicate address detection")
        log = [entry["text"] for entry in bond.ask("log")["log"]]
        assert "bond0: now running without any active interface!" in log
        assert "bond0: active interface up!" in log


def test_a_bond_that_starts_with_its_links_down_comes_up_with_the_first_one(world: World) -> None:
    world.pull("eth1")
    world.pull("eth2")
    with world.bond("eth1", "eth2") as bond:
        assert bond.active is None
        assert not world.host.carrier("bond0")
        world.plug("eth2")
        bond.wait_active("eth2")
        wait_until(lambda: world.host.reaches(PEER4), what="traffic")


def test_a_slave_set_down_by_hand_fails_over_and_comes_back(world: World) -> None:
    with world.bond("eth1", "eth2") as bond:
        world.host.ip("link", "set", "eth1", "down")
        bond.wait_active("eth2")
        world.host.ping(PEER4)
        world.host.ip("link", "set", "eth1", "up")
        bond.wait_link("eth1", "UP")
        world.pull("eth2")
        bond.wait_active("eth1")
        wait_until(lambda: world.host.reaches(PEER4), what="traffic on eth1 again")


def test_without_polling_netlink_alone_notices(world: World) -> None:
    """miimon so long that a pass cannot be what notices."""
    with world.bond("eth1", "eth2", "--miimon", "20000") as bond:
        world.pull("eth1")
        bond.wait_active("eth2", seconds=4)
        world.host.ping(PEER4)


def history_of(bond: Bond) -> list[tuple[str | None, str | None]]:
    return [(entry["from"], entry["to"]) for entry in bond.ask("history")["history"]]


@pytest.mark.needs("indexes")
def test_polling_alone_notices_where_the_kernel_tells_late() -> None:
    """Both ends of the cable have one index: the kernel's event may come a second late."""
    with World(2) as world:
        for nic in world.nics:
            space, port = world.far_end(nic)
            world.host.ip("link", "del", nic)
            index = world.host.links().index("lo") + int(nic[3:]) * 1000
            world.host.ip(
                "link", "add", nic, "index", str(index), "type", "veth", "peer", "name", port, "index", str(index),
                "netns", space.name,
            )  # fmt: skip
            space.ip("link", "set", port, "master", "br0", "addrgenmode", "none", "up")
            world.host.ip("link", "set", nic, "up")
            world.wait_forwarding(nic)
        with world.bond("--miimon", "20") as bond:
            world.host.ping(PEER4)
            began = time.monotonic()
            world.pull("eth1")
            bond.wait_active("eth2")
            assert time.monotonic() - began < world.seconds(0.5)
            world.host.ping(PEER4)
            assert history_of(bond)[-1] == ("eth1", "eth2")
