"""ubond in a container of a real engine: two capabilities, one device, /proc/sys and /sys read-only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.container import (
    FOREGROUND,
    TUN,
    TWO,
    Contained,
    ContainedBond,
    podman,
    state_of,
    ubond_command,
    why_not,
)
from tests.netns.world import (
    HOST4,
    HOST6,
    PEER4,
    PEER6,
    Bond,
    LoadError,
    assert_as_before,
    assert_loaded,
    blast,
    finish,
    start_receiver,
    wait_until,
)

RATE = 10_000

pytestmark = pytest.mark.container


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """Skip, with the engine's own reason, where this machine cannot run podman at all."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def world(engine: None) -> Iterator[Contained]:
    with Contained() as world:
        yield world


def lose_nothing(world: Contained, bond: Bond) -> None:
    """Pull the link that carries a load, twice; every datagram arrives."""
    program = blast()
    world.host.ping(PEER4)
    dropped = bond.ours["counters"]["tx_dropped"]
    receiver = start_receiver(world.peer)
    sender = world.host.start(program, "udp-send", "--to", PEER4, "--rate", str(RATE), "--seconds", "5")
    for _ in range(2):
        nic = bond.active
        assert nic is not None
        before = world.host.counters(nic)["tx"]["packets"]
        wait_until(lambda nic=nic, before=before: world.host.counters(nic)["tx"]["packets"] > before + RATE // 10,
                   what=f"{nic} carries the load")  # fmt: skip
        world.pull(nic)
        wait_until(lambda nic=nic: bond.active not in (nic, None), what="failover")
        world.plug(nic)
        bond.wait_link(nic, "UP")
    assert sender.poll() is None, "the load must have outlasted the last pull"
    sent, received = finish(sender), finish(receiver)
    assert_loaded(sent, received, RATE)
    if dropped := bond.ours["counters"]["tx_dropped"] - dropped:
        raise LoadError(f"no processor for the worker ({dropped} frames)")
    counted = {nic: bond.counters(nic) for nic in bond.slaves}
    assert received["received"] == sent["sent"], (sent, received, counted)
    assert len(bond.ask("history")["history"]) >= 2


# ── under a shell ────────────────────────────────────────────────────────────────────


def test_the_container_is_as_poor_as_it_is_meant_to_be(world: Contained) -> None:
    state = state_of(world.container.pid)
    assert int(state["CapEff"], 16) == int(state["CapBnd"], 16) == 1 << 12 | 1 << 13
    for place in ("/proc/sys/net/ipv4/ip_forward", "/sys/class/net/lo/mtu"):
        refused = world.exec("sh", "-c", f"echo 1 > {place}", check=False)
        assert "Read-only file system" in refused.stderr


def test_a_bond_comes_up_carries_traffic_both_ways_and_goes_leaving_no_trace(world: Contained) -> None:
    before = world.picture()
    with world.bond() as bond:
        for address in (PEER4, PEER6):
            world.host.ping(address, count=5)
        for address in (HOST4, HOST6):
            world.peer.ping(address, count=5)
        assert {bond.slave(nic)["ubond"]["gate"] for nic in world.nics} == {"clsact"}
        assert bond.ours["sandbox"].startswith("CAP_NET_ADMIN CAP_NET_RAW only, no new privileges, seccomp filter")
    assert_as_before(before, world.picture)
    assert world.exec("sh", "-c", "ls /run/ubond", check=False).returncode != 0


def test_nothing_is_lost_in_a_container_when_the_active_link_is_pulled(world: Contained) -> None:
    with world.bond() as bond:
        lose_nothing(world, bond)


def test_queue_id_needs_a_right_that_the_container_does_not_have_and_says_so(world: Contained) -> None:
    with world.bond() as bond:
        refused = world.ubond("set", "bond0", "eth2.queue_id=1", check=False)
        assert refused.returncode != 0
        assert "CAP_BPF" in refused.stderr
        assert bond.links()
        world.host.ping(PEER4)


# ── with less than that ──────────────────────────────────────────────────────────────

NOT_PERMITTED, KERNEL_REFUSED = 4, 5


@pytest.mark.parametrize(
    ("rights", "code", "said"),
    [
        (["--cap-add", "NET_RAW", *TUN], NOT_PERMITTED, "CAP_NET_ADMIN"),
        (["--cap-add", "NET_ADMIN", *TUN], NOT_PERMITTED, "CAP_NET_RAW"),
        (TWO, KERNEL_REFUSED, "/dev/net/tun"),
    ],
    ids=["no NET_ADMIN", "no NET_RAW", "no /dev/net/tun"],
)
def test_up_says_in_one_line_which_right_is_missing(engine: None, rights: list[str], code: int, said: str) -> None:
    with Contained(rights=rights) as world:
        before = world.picture()
        refused = world.ubond("up", "bond0", "eth1", "eth2", check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (code, 1), refused.stderr
        assert said in refused.stderr
        assert_as_before(before, world.picture)


def test_another_user_of_the_container_sees_the_bond_and_cannot_change_it(world: Contained) -> None:
    with world.bond():
        for words in (("set", "bond0", "miimon=1"), ("down", "bond0"), ("remove", "bond0", "eth2")):
            refused = world.exec(*ubond_command(*words), user="65534", check=False)
            assert (refused.returncode, refused.stderr.count("\n")) == (NOT_PERMITTED, 1), f"{words}: {refused.stderr}"
        shown = world.exec(*ubond_command("status", "bond0"), user="65534")
        assert "Currently Active Slave: eth1" in shown.stdout


# ── as process 1 ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def first(engine: None, tmp_path: Path) -> Iterator[tuple[Contained, ContainedBond]]:
    """A container whose process 1 is the keeper; /share in it is `tmp_path`."""
    with Contained(FOREGROUND, options=["-v", f"{tmp_path}:/share"]) as world:
        yield world, world.foreground()


def test_process_1_carries_traffic_and_loses_nothing(first: tuple[Contained, ContainedBond]) -> None:
    world, bond = first
    assert bond.keeper == world.container.pid
    world.host.ping(PEER4, count=5)
    world.peer.ping(HOST4, count=5)
    lose_nothing(world, bond)


def test_process_1_collects_orphans(first: tuple[Contained, ContainedBond]) -> None:
    world, _ = first
    world.exec("sh", "-c", "(sh -c 'echo $$ > /share/orphan; exec sleep 0.5' &)")
    orphan = int((world_share(world) / "orphan").read_text())
    outside = world.container.outer_pid(orphan)
    assert state_of(outside)["PPid"] == str(world.container.pid), "process 1 is its parent"
    wait_until(lambda: not Path(f"/proc/{outside}").exists(), what="the orphan is collected")
    world.host.ping(PEER4)


def test_process_1_passes_its_signal_on_and_gives_the_nics_back(first: tuple[Contained, ContainedBond]) -> None:
    world, _ = first
    share = world_share(world)
    podman(
        "exec", "--detach", world.container.name, "sh", "-c",
        'trap "echo TERM > /share/heard; exit" TERM; touch /share/ready; while :; do sleep 0.05; done',
    )  # fmt: skip
    wait_until((share / "ready").exists, what="the other process")
    assert "(ubond)" in world.host.link("eth1")["ifalias"]
    podman("kill", "--signal", "TERM", world.container.name)
    wait_until(lambda: not world.container.inspect("State")["Running"], 15, "the container has ended")
    assert world.container.inspect("State")["ExitCode"] == 0, world.logs()
    assert (share / "heard").read_text() == "TERM\n"
    assert sorted(world.host.links()) == ["eth1", "eth2", "lo"]
    for nic in world.nics:
        assert "ifalias" not in world.host.link(nic)
        assert "clsact" not in world.host.run("tc", "qdisc", "show", "dev", nic).stdout


def world_share(world: Contained) -> Path:
    """Where /share of the container is outside."""
    return next(Path(mount["Source"]) for mount in podman_mounts(world) if mount["Destination"] == "/share")


def podman_mounts(world: Contained) -> list[dict[str, str]]:
    mounts: list[dict[str, str]] = list(world.container.inspect("Mounts"))
    return mounts
