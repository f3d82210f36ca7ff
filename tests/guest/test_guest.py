"""ubond on emulated NICs with their real drivers, and beside the kernel's own bonding driver (README.md)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import Between, Guest, GuestError, Nic
from talk import ANSWERED, PEER, active_slave, assert_transfers, bond_status, wait_for

pytestmark = pytest.mark.guest

HERE = Path(__file__).resolve().parent
MODELS = ("virtio-net-pci", "e1000")

def guest_with(model: str) -> Guest:
    return Guest([Nic("eth1", model), Nic("eth2", model), Nic("peer")])


@pytest.fixture(scope="module")
def plain() -> Iterator[Guest]:
    """A guest without NICs."""
    with Guest() as guest:
        yield guest


@pytest.fixture(scope="module", params=MODELS)
def bonded(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest whose bond0 of two such NICs reaches 192.0.2.1 in the namespace peer."""
    with guest_with(request.param) as guest:
        guest.run(f"{PEER}\nubond up bond0 eth1 eth2 --address 192.0.2.10/24\n{ANSWERED}", timeout=120).check()
        yield guest


def test_output_code_and_files_come_back(plain: Guest) -> None:
    result = plain.run("cat given; echo warned >&2; id -u; exit 3", files={"given": "a file\n"})
    assert (result.stdout, result.stderr, result.code) == ("a file\n0\n", "warned\n", 3)
    with pytest.raises(GuestError, match="warned"):
        result.check()


def test_a_long_output_comes_whole_and_scripts_run_side_by_side(plain: Guest) -> None:
    waiting = plain.start("while [ ! -e /run/go ]; do sleep 0.05; done; echo gone on")
    assert plain.run("seq 100000").check() == "".join(f"{n}\n" for n in range(1, 100001))
    plain.run("touch /run/go").check()
    assert waiting.wait().stdout == "gone on\n"


def test_what_a_guest_writes_stays_in_it(plain: Guest) -> None:
    path = f"/tmp/ubond-guest-was-here-{os.getpid()}"
    assert plain.run(f"echo x >{path}; cat {path}").check() == "x\n"
    assert not Path(path).exists()


def test_the_kernels_own_bond_of_two_veths(plain: Guest) -> None:
    status = plain.run("""
        modprobe bonding max_bonds=0
        ip link add v1 type veth peer name w1
        ip link add v2 type veth peer name w2
        ip link add bond0 type bond mode active-backup miimon 100
        ip link set v1 master bond0
        ip link set v2 master bond0
        for link in w1 w2 bond0; do ip link set $link up; done
        for _ in $(seq 100); do grep -q "Active Slave: v1" /proc/net/bonding/bond0 && break; sleep 0.1; done
        cat /proc/net/bonding/bond0
        """).check()
    assert "Bonding Mode: fault-tolerance (active-backup)" in status
    assert "Currently Active Slave: v1" in status
    assert status.count("Slave Interface:") == 2


def test_pings_go_on_when_the_active_slaves_cable_is_pulled(bonded: Guest) -> None:
    active = active_slave(bonded)
    other = "eth2" if active == "eth1" else "eth1"
    pinging = bonded.start("ping -O -i 0.2 -w 40 192.0.2.1 || true")
    pinging.wait_for("icmp_seq=3 ttl")
    bonded.set_link(active, False)
    wait_for(lambda: active_slave(bonded) == other, 20, "failover")
    answered = pinging.stdout.count("ttl=")
    wait_for(lambda: pinging.stdout.count("ttl=") >= answered + 10, 20, "pings after the failover")
    bonded.set_link(active, True)
    wait_for(lambda: bond_status(bonded).count("MII Status: up") == 3, 20, "the bond and both slaves up")
    bonded.run("pkill -INT ping").check()
    said = pinging.wait().stdout
    assert said.count("no answer yet") <= 3, said
    assert "DUP" not in said


def test_vlan_with_frames_of_full_size(bonded: Guest) -> None:
    bonded.run(f"""
        {ANSWERED}
        ip link add link bond0 name bond0.5 type vlan id 5
        ip link set bond0.5 up
        ip addr add 198.51.100.10/24 dev bond0.5
        ip -n peer link add link peer name peer.5 type vlan id 5
        ip -n peer link set peer.5 up
        ip -n peer addr add 198.51.100.1/24 dev peer.5
        """).check()
    said = bonded.run("ping -c 5 -i 0.2 -W 5 -M do -s 1472 198.51.100.1", timeout=90)
    assert " 0% packet loss" in said.stdout, said


def test_tcp_arrives_whole_both_ways(bonded: Guest) -> None:
    assert_transfers(bonded)


def test_release_gives_the_nics_back_as_they_were(bonded: Guest) -> None:
    bonded.run("ip link del bond0.5 2>/dev/null || true; ubond down bond0").check()
    for number, nic in enumerate(("eth1", "eth2"), start=1):
        link = json.loads(bonded.run(f"ip -d -j link show {nic}").check())[0]
        assert link["address"] == f"52:54:00:75:62:{number:02x}"
        assert (link["mtu"], link["promiscuity"], link.get("ifalias", "")) == (1500, 0, "")
        assert "UP" not in link["flags"]
        assert "clsact" not in bonded.run(f"tc qdisc show dev {nic}").check()


@pytest.mark.parametrize("model", MODELS)
def test_fewer_frames_are_lost_than_by_the_driver(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = (HERE / "scenario.py").read_text()
    results = {}
    with guest_with(model) as guest:
        for who in ("ubond", "driver"):
            said = guest.run(f"exec python scenario.py {who}", files={"scenario.py": script}, timeout=240).check()
            results[who] = {"model": model, **json.loads(said)}
            with capsys.disabled():
                print(f"\n{json.dumps(results[who])}", end="")
    for result in results.values():
        assert result["rate"] > 475, f"the sender was too slow for its word to count: {result}"
        assert len(set(result["pulled"])) == 2
    assert results["ubond"]["duplicated"] == 0
    assert 2 * results["ubond"]["lost"] < results["driver"]["lost"]


def test_two_guests_at_once_with_a_cable_between(tmp_path: Path) -> None:
    wire = Between(tmp_path / "a", tmp_path / "b")
    with Guest([Nic("eth1", wire=wire)]) as one, Guest([Nic("eth1", wire=wire.other_end)]) as two:
        for number, guest in enumerate((one, two), start=1):
            guest.run(f"ip addr add 192.0.2.{number}/24 dev eth1; ip link set eth1 up").check()
        assert " 0% packet loss" in one.run("ping -c 3 -i 0.2 -W 5 192.0.2.2").check()
        two.set_link("eth1", False)
        assert one.run("ping -c 2 -i 0.2 -W 1 192.0.2.2").code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_script_that_takes_too_long_ends_its_guest() -> None:
    before = of_ours(os.getpid())
    with Guest() as guest:
        with pytest.raises(GuestError, match="not ended after 2 s\nbegun"):
            guest.run("echo begun; exec sleep 1000", timeout=2)
        assert of_ours(os.getpid()) == before


def test_a_guest_whose_maker_was_killed_goes_too() -> None:
    code = "import os, signal, guest\nwith guest.Guest(): os.kill(os.getpid(), signal.SIGKILL)"
    maker = subprocess.Popen([sys.executable, "-c", code], cwd=HERE)
    try:
        assert maker.wait(150) == -signal.SIGKILL
        wait_for(lambda: of_ours(maker.pid) == [], 30, "the guest's own end")
    finally:
        maker.kill()


def of_ours(maker: int) -> list[str]:
    """The processes and directories of the guests that this process made."""
    left = [str(path) for path in Path("/tmp").glob(f"ubond-guest-{maker}-*")]
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"ubond-guest-{maker}-" in cmdline.read_text(errors="replace"):
                left.append(str(cmdline.parent))
    return sorted(left)
