"""Bad input: one clear line, the right exit code, and a host that is as it was."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.world import World, assert_as_before, inside

pytestmark = pytest.mark.netns

FAILED, USAGE, NO_BOND, NOT_PERMITTED, KERNEL_REFUSED = 1, 2, 3, 4, 5


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(3) as world:
        yield world


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    """Another world in which a bond of two runs, for commands that change nothing."""
    with World(3) as world, world.bond("eth1", "eth2"):
        yield world


def refused(world: World, code: int, text: str, *words: str) -> None:
    """The command must fail with this code and one line with this text, and change nothing."""
    before = world.picture()
    done = world.ubond(*words, check=False)
    assert done.returncode == code, f"{done.returncode}: {done.stderr}"
    assert done.stderr.startswith("ubond: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr, done.stderr
    assert_as_before(before, world.picture)


# ── interfaces that cannot be slaves ─────────────────────────────────────────────────


@pytest.mark.parametrize("slaves", [("nosuch",), ("eth1", "nosuch"), ("eth1", "eth2", "nosuch")], ids="+".join)
def test_an_interface_that_does_not_exist(world: World, slaves: tuple[str, ...]) -> None:
    refused(world, KERNEL_REFUSED, "nosuch", "up", "bond0", *slaves)


def test_the_loopback_device(world: World) -> None:
    refused(world, FAILED, "lo", "up", "bond0", "eth1", "lo")


def test_a_slave_of_another_bond(world: World) -> None:
    with world.bond("eth1", "eth2"):
        refused(world, FAILED, "slave of bond0", "up", "bond1", "eth2", "eth3")
        refused(world, FAILED, "eth2", "add", "bond0", "eth2")


def test_a_bridge_port_and_a_bridge(world: World) -> None:
    world.host.ip("link", "add", "brx", "type", "bridge")
    world.host.ip("link", "set", "eth3", "master", "brx")
    try:
        refused(world, FAILED, "it belongs to a bridge", "up", "bond0", "eth1", "eth3")
        refused(world, FAILED, "brx", "up", "bond0", "eth1", "brx")
    finally:
        world.host.ip("link", "del", "brx")


def test_what_stands_on_the_bond_itself(world: World) -> None:
    """A macvlan of the bond, and another bond that has it for a slave: frames would go round for ever."""
    with world.bond("eth1", "--fail-over-mac", "active", addresses=False) as bond:

        def is_refused(slave: str) -> None:
            done = world.ubond("add", "bond0", slave, check=False)
            assert done.returncode == FAILED, done.stderr
            assert "Device stands on the bond itself" in done.stderr
            assert bond.slaves == ["eth1"]

        world.host.ip("link", "add", "mv0", "link", "bond0", "type", "macvlan", "mode", "bridge")
        is_refused("mv0")
        world.host.ip("link", "del", "mv0")
        for lower, upper in (("bond0", "bond1"), ("bond1", "bond2")):
            world.ubond("up", upper, lower, "--fail-over-mac", "active")
            is_refused(upper)
        for name in ("bond2", "bond1"):
            world.ubond("down", name)


def test_an_interface_with_addresses(world: World) -> None:
    world.host.ip("addr", "add", "10.77.0.1/24", "dev", "eth2")
    world.host.ip("addr", "add", "fd00:77::1/64", "dev", "eth2", "nodad")
    try:
        refused(world, FAILED, "--take-addresses", "up", "bond0", "eth1", "eth2")
        refused(world, FAILED, "10.77.0.1/24", "up", "bond0", "eth1", "eth2")
    finally:
        world.host.ip("addr", "flush", "dev", "eth2", "scope", "global")


def test_an_interface_that_is_not_ethernet(world: World) -> None:
    """A TUN device carries IP packets without Ethernet headers."""
    world.host.ip("tuntap", "add", "tun7", "mode", "tun")
    try:
        refused(world, FAILED, "not Ethernet", "up", "bond0", "eth1", "tun7")
    finally:
        world.host.ip("link", "del", "tun7")


def test_a_failing_slave_leaves_nothing_of_the_whole_bond(world: World) -> None:
    """The last cannot take the MTU: the others have been enslaved by then, and are free again."""
    world.host.ip("link", "add", "mv0", "link", "eth3", "type", "macvlan")
    try:
        options = ("--mtu", "3000", "--mac", "02:00:5e:00:53:55", "--address", "10.9.0.1/24")
        refused(world, KERNEL_REFUSED, "mv0", "up", "bond0", "eth1", "eth2", "mv0", *options)
    finally:
        world.host.ip("link", "del", "mv0")


def test_a_failing_slave_leaves_nothing_of_itself_in_a_bond_that_runs(world: World) -> None:
    world.host.ip("link", "add", "mv0", "link", "eth3", "type", "macvlan")
    try:
        with world.bond("eth1", "eth2", "--mtu", "3000"):
            refused(world, KERNEL_REFUSED, "mv0", "add", "bond0", "mv0")
    finally:
        world.host.ip("link", "del", "mv0")


def test_an_interface_named_twice(world: World) -> None:
    refused(world, USAGE, "named twice", "up", "bond0", "eth1", "eth1")


# ── names ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["bridge", "tap", "veth"])
def test_a_name_that_exists(world: World, kind: str) -> None:
    if kind == "tap":
        world.host.ip("tuntap", "add", "bond0", "mode", "tap")
    else:
        world.host.ip("link", "add", "bond0", "type", kind)
    try:
        refused(world, FAILED, "bond0 exists already", "up", "bond0", "eth1", "eth2")
        assert "bond0" in world.host.links()
    finally:
        world.host.ip("link", "del", "bond0")


@pytest.mark.parametrize(
    ("name", "why"),
    [("abcdefghijklmnop", "too long"), ("bo/nd0", "'/'"), ("bond%d", "'%'"), ("bo nd", "' '"), ("", "empty"),
     ("..", ".."), ("eth1", "itself")],
)  # fmt: skip
def test_a_name_that_cannot_be(world: World, name: str, why: str) -> None:
    refused(world, USAGE, why, "up", name, "eth1", "eth2")


def test_a_bond_of_all_fifteen_bytes_works(world: World) -> None:
    name = "abcdefghijklmno"
    with world.bond(name=name):
        assert world.ubond("list").stdout == f"{name}\n"
        world.host.ping("10.9.0.2")


def test_a_slave_name_that_cannot_be(world: World) -> None:
    refused(world, USAGE, "'/'", "up", "bond0", "../eth1")


# ── options ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["-o", "no_such_option=1"], "unknown option 'no_such_option'"),
        (["-o", "mimon=100"], "did you mean miimon?"),
        (["--no-such-flag"], "--no-such-flag"),
        (["-o", "miimon"], "OPTION=VALUE"),
        (["--mode", "fancy"], "mode: invalid value (fancy)"),
        (["--mode", "7"], "mode: invalid value (7)"),
        (["--miimon", "-1"], "miimon"),
        (["--miimon", "soon"], "miimon: invalid value (soon)"),
        (["--num-grat-arp", "256"], "num_unsol_na: invalid value (256)"),
        (["-o", "num_unsol_na=256"], "invalid value (256)"),
        (["--mode", "balance-rr", "--primary", "eth1"], "primary"),
        (["--packets-per-slave", "3"], "packets_per_slave"),
        (["--lacp-rate", "fast"], "lacp_rate"),
        (["--mode", "802.3ad"], "802.3ad"),
        (["--arp-ip-target", "nowhere"], "arp_ip_target"),
        (["--updelay", "100", "--miimon", "0"], "as MII monitoring is disabled"),
        (["-o", "eth9.prio=1"], "eth9"),
        (["-o", "eth1.prio=high"], "prio"),
        (["-o", "eth1.miimon=100"], "miimon"),
        (["--address", "10.0.0.1"], "prefix length"),
        (["--address", "10.0.0.1/33"], "10.0.0.1/33"),
        (["--gateway", "nowhere"], "nowhere"),
        (["--mac", "01:00:00:00:00:01"], "01:00:00:00:00:01"),
        (["--mac", "garbage"], "garbage"),
        (["--mtu", "67"], "mtu"),
        (["--mtu", "65522"], "mtu"),
        (["--mtu", "big"], "big"),
        (["--workers", "0"], "worker"),
        (["--workers", "17"], "worker"),
        (["--strict", "--use-carrier", "0"], "use_carrier"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be(world: World, words: list[str], text: str) -> None:
    before = world.host.links()
    done = world.ubond("up", "bond0", "eth1", "eth2", *words, check=False)
    assert done.returncode == USAGE, f"{done.returncode}: {done.stderr}"
    assert done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr, done.stderr
    assert world.host.links() == before
    assert "ifalias" not in world.host.link("eth1")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["miimon=soon"], "invalid value (soon)"),
        (["no_such=1"], "no_such"),
        (["packets_per_slave=2"], "packets_per_slave"),
        (["active_slave=eth9"], "eth9"),
        (["eth9.prio=1"], "eth9"),
        (["mode"], "OPTION=VALUE"),
        (["mode=802.3ad"], "802.3ad"),
        (["eth1.queue_id=70000"], "queue_id"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_set_of_what_cannot_be(running: World, words: list[str], text: str) -> None:
    done = running.ubond("set", "bond0", *words, check=False)
    assert done.returncode == USAGE, f"{done.returncode}: {done.stderr}"
    assert done.stderr.count("\n") == 1, done.stderr
    assert text in done.stderr, done.stderr
    running.host.ping("10.9.0.2")


def test_a_second_up(running: World) -> None:
    done = running.ubond("up", "bond0", "eth3", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (FAILED, 1)
    assert "bond0 is already running" in done.stderr
    assert "ifalias" not in running.host.link("eth3")


def test_up_beside_up_makes_one_bond(world: World) -> None:
    """Started at the same time, one wins and the other says why not."""
    before = world.picture()
    both = [world.start_ubond("up", "bond7", "eth1", "eth2") for _ in range(2)]
    ended = [(process.communicate(timeout=world.seconds(20)), process.returncode) for process in both]
    try:
        assert sorted(code for _, code in ended) == [0, FAILED]
        ((_, err),) = [streams for streams, code in ended if code]
        assert err.count("\n") == 1
        assert world.ubond("list").stdout == "bond7\n"
    finally:
        world.ubond("down", "bond7", check=False)
    assert_as_before(before, world.picture)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["down", "bond9"], NO_BOND, "bond9"),
        (["status", "bond9"], NO_BOND, "bond9"),
        (["status"], NO_BOND, "no bond"),
        (["set", "bond9", "miimon=1"], NO_BOND, "bond9"),
        (["add", "bond9", "eth1"], NO_BOND, "bond9"),
        (["remove", "bond9", "eth1"], NO_BOND, "bond9"),
        (["history", "bond9"], NO_BOND, "bond9"),
        (["monitor", "bond9"], NO_BOND, "bond9"),
        (["ifdown", "bond9"], NO_BOND, "bond9"),
        (["restore", "nosuch"], KERNEL_REFUSED, "nosuch"),
        (["down"], USAGE, "BOND"),
        (["up", "bond0"], USAGE, "SLAVE"),
        (["nonsense"], USAGE, "unknown command 'nonsense'"),
        (["ifup", "bond0", "--root", "/nonexistent"], USAGE, "/nonexistent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_about_nothing(words: list[str], code: int, text: str) -> None:
    with World(1) as world:
        refused(world, code, text, *words)


def test_removing_what_is_no_slave(running: World) -> None:
    done = running.ubond("remove", "bond0", "eth3", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (FAILED, 1)
    assert "eth3" in done.stderr


# ── permission ───────────────────────────────────────────────────────────────────────


@pytest.mark.needs("other users")
@pytest.mark.parametrize("lost", ["net_admin", "net_raw"])
def test_without_a_capability(world: World, lost: str) -> None:
    before = world.picture()
    done = world.host.run(
        "setpriv", f"--bounding-set=-{lost}", f"--inh-caps=-{lost}", sys.executable, "-m", "ubond", "up", "bond0",
        "eth1", check=False,
    )  # fmt: skip
    assert done.returncode == NOT_PERMITTED, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"CAP_{lost.upper()}" in done.stderr
    assert_as_before(before, world.picture)


@pytest.mark.needs("other users")
def test_an_ordinary_user_may_neither_start_nor_change_a_bond(running: World) -> None:
    def as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
        # The interpreter may be where only root can read: keep a root that has no capabilities but that.
        return running.host.run(
            "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search", sys.executable, "-m", "ubond", *words, check=False,
        )  # fmt: skip

    done = as_nobody("up", "bond5", "eth3")
    assert (done.returncode, done.stderr.count("\n")) == (NOT_PERMITTED, 1), done.stderr
    for words in (("set", "bond0", "miimon=1"), ("down", "bond0"), ("add", "bond0", "eth3")):
        done = as_nobody(*words)
        assert (done.returncode, done.stderr.count("\n")) == (NOT_PERMITTED, 1), f"{words}: {done.stderr}"
    # What the kernel shows to everybody in /proc, everybody may see.
    done = as_nobody("status", "bond0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Currently Active Slave: eth1" in done.stdout


@pytest.mark.needs("mounts")
def test_without_dev_net_tun(world: World) -> None:
    before = world.picture()
    done = world.host.run(
        "unshare", "--mount", "sh", "-c",
        f"mount -t tmpfs none /dev/net && exec {sys.executable} -m ubond up bond0 eth1", check=False,
    )  # fmt: skip
    assert done.returncode == KERNEL_REFUSED, done.stderr
    assert done.stderr.count("\n") == 1
    assert "/dev/net/tun" in done.stderr
    assert_as_before(before, world.picture)


def test_a_runtime_directory_that_others_can_write_to(world: World, tmp_path: Path) -> None:
    loose = tmp_path / "run"
    loose.mkdir()
    loose.chmod(0o777)
    before = world.picture()
    done = world.host.run(
        sys.executable, "-m", "ubond", "up", "bond0", "eth1", check=False,
        env={**os.environ, "UBOND_RUNTIME_DIR": str(loose)},
    )  # fmt: skip
    assert done.returncode in (FAILED, NOT_PERMITTED), done.stderr
    assert done.stderr.count("\n") == 1
    assert str(loose) in done.stderr
    assert_as_before(before, world.picture)


def test_a_write_to_a_closed_pipe_is_no_traceback(running: World) -> None:
    done = running.host.run(
        "sh", "-c", f"{sys.executable} -m ubond status bond0 | true; exit 0", check=False,
    )  # fmt: skip
    assert done.stderr == ""


def test_nothing_is_done_to_the_namespace_that_a_test_runs_in(running: World) -> None:
    """The world keeps to itself: the tests' own namespace has neither bond0 nor a socket for it."""
    assert "bond0" not in [name for _, name in socket.if_nameindex()]
    with inside(running.host.name):
        assert "bond0" in [name for _, name in socket.if_nameindex()]


def test_without_its_control_socket_a_bond_does_not_come_up_and_gives_all_back(world: World, tmp_path: Path) -> None:
    """A path too long for a socket is found late: when all slaves are there."""
    long = tmp_path / ("x" * 108)
    before = world.picture()
    done = world.host.run(
        sys.executable, "-m", "ubond", "up", "bond0", "eth1", "eth2", check=False,
        env={**os.environ, "UBOND_RUNTIME_DIR": str(long)},
    )  # fmt: skip
    assert done.returncode == KERNEL_REFUSED, done.stderr
    assert done.stderr.count("\n") == 1
    assert "path too long" in done.stderr
    assert_as_before(before, world.picture)
    assert not long.exists()


def test_a_relative_runtime_directory(world: World) -> None:
    before = world.picture()
    for words in (("up", "bond0", "eth1"), ("status", "bond0"), ("list",)):
        done = world.host.run(
            sys.executable, "-m", "ubond", *words, check=False, env={**os.environ, "UBOND_RUNTIME_DIR": "run"}
        )
        assert done.returncode != 0, words
        assert "UBOND_RUNTIME_DIR must begin with a slash" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    assert_as_before(before, world.picture)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_standard_files_that_are_closed(world: World, closed: str) -> None:
    before = world.picture()
    for words in ("up bond0 eth1 eth2", "status bond0", "status bond0 --json", "list", "history bond0", "down bond0"):
        done = world.host.run("sh", "-c", f"{sys.executable} -m ubond {words} {closed}", check=False)
        assert (done.returncode, world.unexpected(done.stderr)) == (0, ""), words
    assert_as_before(before, world.picture)
