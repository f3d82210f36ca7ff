"""Other managers of interfaces: what is written for them, where, and that nothing of it stays."""

from __future__ import annotations

import configparser
import contextlib
import os
import select
from pathlib import Path

import pytest

from ubond.managers import Errand, Managers

PRESENT = {
    "NetworkManager": ("run/NetworkManager/", "usr/sbin/NetworkManager"),
    "networkd": ("run/systemd/", "usr/lib/systemd/systemd-networkd"),
    "udev": ("run/systemd/", "run/udev/"),
    "dhcpcd": ("run/dhcpcd/", "usr/sbin/dhcpcd"),
}
FILES = {
    "NetworkManager": "run/NetworkManager/conf.d/ubond-bond0.conf",
    "networkd": "run/systemd/network/10-ubond-bond0.network",
    "udev": "run/systemd/network/10-ubond-bond0.link",
}


def tree(root: Path, *managers: str) -> Path:
    """A system with these managers, or only parts of them."""
    for manager in managers:
        for part in PRESENT[manager]:
            path = root / part
            if part.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    return root


def written(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*ubond*"))


def read(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text())
    return parser


@pytest.mark.parametrize("manager", FILES)
def test_a_file_is_written_where_its_manager_is_and_only_there(manager: str, tmp_path: Path) -> None:
    managers = Managers("bond0", tree(tmp_path, manager))
    assert managers.tell(["eth2", "eth1"]) == []
    assert written(tmp_path) == [FILES[manager]]
    assert (tmp_path / FILES[manager]).stat().st_mode & 0o777 == 0o644
    managers.forget()
    assert written(tmp_path) == []


def test_nothing_is_written_where_no_manager_is(tmp_path: Path) -> None:
    assert Managers("bond0", tmp_path).tell(["eth1"]) == []
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("part", ["run/NetworkManager", "run/systemd", "run/udev", "run/dhcpcd"])
def test_a_directory_alone_is_no_manager(part: str, tmp_path: Path) -> None:
    (tmp_path / part).mkdir(parents=True)
    assert Managers("bond0", tmp_path).tell(["eth1"]) == []
    assert written(tmp_path) == []


def test_what_the_files_say(tmp_path: Path) -> None:
    Managers("bond0", tree(tmp_path, *FILES)).tell(["eth2", "eth1"])
    devices = "interface-name:bond0;interface-name:eth1;interface-name:eth2"
    manager = read(tmp_path / FILES["NetworkManager"])
    # Appended, so that a list of the administrator's stays; and as a section that no list replaces.
    assert manager["keyfile"]["unmanaged-devices+"] == devices
    assert dict(manager["device-ubond-bond0"]) == {"match-device": devices, "managed": "0"}
    network = read(tmp_path / FILES["networkd"])
    assert network["Match"]["Name"] == "bond0 eth1 eth2"
    assert network["Link"]["Unmanaged"] == "yes"
    link = read(tmp_path / FILES["udev"])
    assert link["Match"]["OriginalName"] == "bond0", "a slave's MAC is not udev's to choose either way"
    assert link["Link"]["MACAddressPolicy"] == "none"


def test_the_files_follow_the_slaves_and_the_name(tmp_path: Path) -> None:
    managers = Managers("bond0", tree(tmp_path, *FILES))
    managers.tell(["eth1"])
    managers.tell(["eth1", "eth5"])
    assert "eth5" in (tmp_path / FILES["networkd"]).read_text()
    managers.rename("uplink")
    managers.tell(["eth1", "eth5"])
    assert written(tmp_path) == sorted(path.replace("bond0", "uplink") for path in FILES.values())


def test_dhcpcd_is_a_note_that_can_be_pasted(tmp_path: Path) -> None:
    managers = Managers("bond0", tree(tmp_path, "dhcpcd"))
    (note,) = managers.tell(["eth1", "eth2"])
    assert note.endswith("denyinterfaces bond0 eth1 eth2")
    assert managers.tell(["eth1", "eth2"]) == [], "once"


def test_what_a_dead_daemon_left_goes_and_other_bonds_files_stay(tmp_path: Path) -> None:
    root = tree(tmp_path, *FILES)
    Managers("bond0", root).tell(["eth1"])
    Managers("bond1", root).tell(["eth2"])
    Managers("bond0", root).forget()
    assert written(root) == sorted(path.replace("bond0", "bond1") for path in FILES.values())


def test_a_file_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    root = tree(tmp_path, "NetworkManager")
    (root / "run/NetworkManager/conf.d").touch()
    (note,) = Managers("bond0", root).tell(["eth1"])
    assert "run/NetworkManager/conf.d/ubond-bond0.conf could not be written" in note


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    managers = Managers("bond0", tree(tmp_path, *FILES))
    managers.forget()
    assert managers.tell(["eth1"]) == []
    assert written(tmp_path) == []


def test_a_link_in_the_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    root = tree(tmp_path, "networkd")
    victim = root / "victim"
    victim.write_text("mine")
    (root / "run/systemd/network").mkdir()
    (root / "run/systemd/network/.10-ubond-bond0.network.new").symlink_to(victim)
    (root / "run/systemd/network/10-ubond-bond0.network").symlink_to(victim)
    Managers("bond0", root).tell(["eth1"])
    assert victim.read_text() == "mine"
    assert not (root / "run/systemd/network/10-ubond-bond0.network").is_symlink()


def test_the_child_that_runs_errands_holds_nothing_that_it_was_forked_with() -> None:
    reader, writer = os.pipe()      # as `ubond up` waits for the end of one
    with contextlib.closing(Errand()), os.fdopen(reader, "rb") as pipe:
        os.close(writer)
        assert select.select([pipe], [], [], 10)[0], "the child has kept the writing end"
        assert pipe.read() == b""
