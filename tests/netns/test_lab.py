"""The laboratory: what it builds, what a pulled cable does, and that nothing stays behind."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ubond import lab as lab_room
from ubond.lab import HOST_IP, PEER_IP, PREFIX, Lab, LabError, run, sweep, wait_until
from ubond.lab_world import STATE_DIR

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]


def new_name() -> str:
    return f"t{os.getpid()}-{secrets.token_hex(3)}"


def standing(name: str) -> list[str]:
    """The namespaces and the state directory that a lab of this name has now."""
    spaces = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if f"ubond-{name}-" in line]
    return spaces + [str(path) for path in [STATE_DIR / name] if path.exists()]


def lab_command(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ubond.lab", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def give_address(lab: Lab, nic: str) -> None:
    """Use one NIC without a bond, to see what the wires do."""
    lab.ip("host", "addr", "replace", f"{HOST_IP}/{PREFIX}", "dev", nic)


def reaches_peer(lab: Lab) -> bool:
    return lab.exec("host", "ping", "-c", "1", "-W", "1", PEER_IP, check=False).returncode == 0


@pytest.fixture
def name() -> Iterator[str]:
    name = new_name()
    yield name
    lab_command("down", name)


@pytest.mark.parametrize("same_index", [False, True])
@pytest.mark.parametrize("switch", ["bridge", "two"])
def test_each_nic_reaches_the_peer(switch: str, same_index: bool) -> None:
    with Lab(new_name(), switch, same_index=same_index) as lab:
        for nic, other in (("eth1", "eth2"), ("eth2", "eth1")):
            lab.ip("host", "addr", "flush", "dev", other)
            give_address(lab, nic)
            assert reaches_peer(lab)


def test_static_aggregation_takes_broadcasts_on_either_link() -> None:
    """An ARP request is a broadcast: a switch bond that takes those on one link only answers only there."""
    with Lab(new_name(), "lag") as lab:
        for nic, other in (("eth1", "eth2"), ("eth2", "eth1")):
            lab.ip("host", "addr", "flush", "dev", other)
            lab.ip("host", "neigh", "flush", "all")
            give_address(lab, nic)
            asked = lab.exec("host", "ping", "-c", "1", "-W", "1", PEER_IP, check=False)
            # The group may answer by the other link, where nobody has the address: the request
            # must have come through all the same.
            seen = lab.ip("peer", "neigh", "show", HOST_IP)
            mac = lab.ip("host", "-br", "link", "show", "dev", nic).split()[2]
            assert asked.returncode == 0 or mac in seen


def test_two_switches_have_no_way_between_them() -> None:
    """Only the switch that eth1 is plugged into may learn its MAC: probes that cross over prove nothing."""
    with Lab(new_name(), "two") as lab:
        give_address(lab, "eth1")
        lab.exec("host", "ping", "-b", "-c", "3", "-i", "0.2", "-W", "1", "192.0.2.255", check=False)
        assert reaches_peer(lab)
        mac = lab.ip("host", "-br", "link", "show", "dev", "eth1").split()[2]
        learned = lab.exec("switch", "bridge", "fdb", "show").stdout.splitlines()
        ports = {line.split()[2] for line in learned if line.startswith(mac)}
        assert ports == {"sw1"}


@pytest.mark.parametrize("switch", ["bridge", "lag", "two"])
def test_pulled_cable_takes_the_carrier_and_plugging_gives_it_back(switch: str) -> None:
    with Lab(new_name(), switch) as lab:
        assert lab.has_carrier("eth1")
        lab.pull("eth1")
        wait_until(lambda: not lab.has_carrier("eth1"), 2, "loss of carrier")
        assert lab.has_carrier("eth2")
        lab.plug("eth1")
        assert lab.has_carrier("eth1")


def test_plug_returns_when_the_port_forwards() -> None:
    with Lab(new_name()) as lab:
        give_address(lab, "eth1")
        for _ in range(3):
            lab.pull("eth1")
            lab.plug("eth1")
            assert lab.is_forwarding("sw1")
            assert reaches_peer(lab)


@pytest.mark.parametrize(("same_index", "equal"), [(False, False), (True, True)])
def test_index_layout_is_as_asked(same_index: bool, equal: bool) -> None:
    with Lab(new_name(), same_index=same_index) as lab:
        index = {
            place: lab.ip(place, "-o", "link", "show", "dev", nic).split(":")[0]
            for place, nic in (("host", "eth1"), ("switch", "sw1"))
        }
        assert (index["host"] == index["switch"]) is equal


def test_nothing_stays_behind_after_the_with_block() -> None:
    name = new_name()
    with Lab(name) as lab:
        assert len(standing(name)) == 4
        sleeper = lab.start("host", "sleep", "60")
    assert standing(name) == []
    assert sleeper.wait(5) == -signal.SIGTERM


def test_processes_that_ignore_sigterm_are_ended_too() -> None:
    with Lab(new_name()) as lab:
        stubborn = lab.start("peer", "sh", "-c", "trap '' TERM; echo set; while :; do sleep 1; done")
        assert stubborn.stdout is not None
        stubborn.stdout.readline()
    assert stubborn.wait(5) == -signal.SIGKILL


def test_failing_block_is_torn_down() -> None:
    name = new_name()
    with pytest.raises(RuntimeError), Lab(name):
        raise RuntimeError
    assert standing(name) == []


def test_build_that_fails_half_way_leaves_nothing(name: str) -> None:
    """The peer's namespace is there already: the third step of the build is refused."""
    taken = f"ubond-{name}-peer"
    run("ip", "netns", "add", taken)
    with pytest.raises(LabError, match="peer"):
        Lab(name).up()
    assert standing(name) == []


HOLD = """
import sys, time
from ubond.lab import Lab, ending_on_signals
with ending_on_signals(), Lab(sys.argv[1]):
    print("up", flush=True)
    time.sleep(60)
"""


def holder(name: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_program_takes_its_lab_down(name: str, number: signal.Signals) -> None:
    process = holder(name)
    process.send_signal(number)
    process.wait(10)
    assert standing(name) == []


def test_killed_program_leaves_a_lab_that_the_next_one_removes(name: str) -> None:
    process = holder(name)
    sweep()
    assert len(standing(name)) == 4, "a living maker's lab was swept away"
    process.kill()
    process.wait(10)
    assert len(standing(name)) == 4
    sweep()
    assert standing(name) == []


def test_lab_by_hand(name: str) -> None:
    up = lab_command("up", name)
    assert up.returncode == 0, up.stderr
    assert name in lab_command("list").stdout.split()
    assert lab_command("pull", "eth2", name).returncode == 0
    assert "eth2: pulled (sw2), no carrier" in lab_command("status", name).stdout
    assert lab_command("plug", "eth2", name).returncode == 0
    assert "eth2: plugged (sw2), carrier" in lab_command("status", name).stdout
    inside = lab_command("exec", "--name", name, "host", "--", "sh", "-c", "ls /sys/class/net; exit 7")
    assert inside.returncode == 7
    assert {"eth1", "eth2"} <= set(inside.stdout.split())
    again = lab_command("up", name)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "already up" in again.stderr
    assert lab_command("down", name).returncode == 0
    assert standing(name) == []


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["down", "no-such-lab"], 3, "no lab 'no-such-lab'"),
        (["up", "a/b"], 2, "cannot be the name of a lab"),
        (["up", "--switch", "hub"], 2, "hub"),
        (["pull", "eth9"], 2, "eth9"),
        (["exec", "--name", "no-such-lab", "host", "--", "true"], 3, "no lab"),
        ([], 2, "COMMAND"),
    ],
)
def test_mistakes_are_one_clear_line(argv: list[str], code: int, says: str) -> None:
    done = lab_command(*argv)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_device_says_what_to_do() -> None:
    with pytest.raises(LabError, match="load the tun module") as caught:
        lab_room.permission(0, tun="/nonexistent/tun")
    assert caught.value.code == 4


def test_no_permission_names_sudo(tmp_path: Path) -> None:
    """Asked as a user who may not open the device; only the check runs, in that user's process."""
    device = tmp_path / "tun"
    device.touch(mode=0o600)
    for directory in (tmp_path, *tmp_path.parents):
        if directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(65534)
            lab_room.permission(65534, tun=str(device))
        except LabError as error:
            os._exit(0 if error.code == 4 and "sudo" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("switch", ["bridge", "two"])
def test_a_blocked_path_is_dead_with_its_carrier_up(switch: str) -> None:
    with Lab(new_name(), switch) as lab:
        give_address(lab, "eth1")
        assert reaches_peer(lab)
        lab.block("eth1")
        assert lab.has_carrier("eth1")
        assert not reaches_peer(lab)
        assert "eth1: blocked (sw1), carrier" in lab.status()
        lab.unblock("eth1")
        assert reaches_peer(lab)
