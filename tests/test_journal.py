"""The journal and the paths: what is written survives, what is not ours is not touched."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ubond import paths
from ubond.bond.events import DoorError, Held, Moved
from ubond.journal import Journal, JournalError
from ubond.wire import MacAddr

MAC1, MAC2, MAC3 = (MacAddr(bytes([2, 0, 0, 0, 0, n])) for n in (1, 2, 3))

ETH1 = Held(
    slave="eth1", index=3, netns=4112, permanent=MAC1, mac=MAC1, ours=(MAC2, MAC3), mtu=1500, mtu_set=1508,
    up=True, features=(("rx-gro", False, True), ("rx-vlan-filter", True, False)), addr_gen_mode=0,
    alias="Büro \"links\"\n", alias_set="slave of bond0 (ubond) mac=02:00:00:00:00:01 mtu=1500",
    addresses_taken=True,
)  # fmt: skip
ETH2 = replace(ETH1, slave="eth2", index=5, permanent=None, ours=(), features=(), addr_gen_mode=None, up=False)
MOVED = Moved("bond0", 9, (bytes(range(24)), b"\xff" * 20), (b"\0\x80",))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, "bond0")


def again(journal: Journal) -> Journal:
    """The same journal as another process finds it."""
    return Journal(journal.path.parent, "bond0")


def test_what_is_remembered_is_there_for_another_process(journal: Journal) -> None:
    journal.remember(ETH1)
    journal.remember_addresses("eth1", MOVED)
    journal.remember(ETH2)
    found = again(journal)
    assert found.load() == (ETH1, ETH2)
    assert (found.addresses("eth1"), found.addresses("eth2")) == (MOVED, Moved())
    assert [type(mac) for mac in found.load()[0].ours] == [MacAddr, MacAddr]


def test_remembering_again_replaces_the_record(journal: Journal) -> None:
    journal.remember(ETH1)
    changed = replace(ETH1, ours=(MAC2,))
    journal.remember(changed)
    assert again(journal).load() == (changed,)


def test_what_a_dead_process_had_half_written_goes_with_the_journal(journal: Journal) -> None:
    journal.remember(ETH1)
    paths.fresh(journal.path).write_bytes(b'{"vers')
    again(journal).forget("eth1")
    assert list(journal.path.parent.iterdir()) == []


def test_what_was_moved_comes_along_when_a_slave_is_renamed(journal: Journal) -> None:
    journal.remember(ETH1)
    journal.remember_addresses("eth1", MOVED)
    journal.remember(replace(ETH1, slave="wan0"))
    journal.forget("eth1")
    assert again(journal).addresses("wan0") == MOVED


def test_what_a_predecessor_wrote_is_kept_by_its_successor(journal: Journal) -> None:
    journal.remember(ETH1)
    again(journal).remember(ETH2)
    assert again(journal).load() == (ETH1, ETH2)


def test_the_file_goes_with_the_last_slave(journal: Journal) -> None:
    journal.remember(ETH1)
    journal.remember_addresses("eth1", MOVED)
    journal.remember(ETH2)
    journal.forget("eth1")
    assert again(journal).load() == (ETH2,)
    assert again(journal).addresses("eth1") == Moved()
    journal.forget("eth2")
    journal.forget("eth2")
    assert list(journal.path.parent.iterdir()) == []


def test_no_journal_holds_nothing(journal: Journal, tmp_path: Path) -> None:
    assert journal.load() == ()
    assert Journal(tmp_path / "missing", "bond0").load() == ()
    Journal(tmp_path / "missing", "bond0").remove()


@pytest.mark.parametrize(
    "text",
    [b"", b"\n", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"version": 1, "bond": "bond0", "slaves": []}',
     b"[" * 100000],
)
def test_an_unreadable_file_is_named_kept_aside_and_out_of_the_way(journal: Journal, text: bytes) -> None:
    journal.path.write_bytes(text)
    with pytest.raises(JournalError, match=r"bond0\.journal.*kept as bond0\.journal\.bad") as told:
        journal.load()
    assert told.value.errno == errno.EBADMSG
    assert journal.path.with_name("bond0.journal.bad").read_bytes() == text
    assert journal.load() == ()
    journal.remember(ETH1)
    assert again(journal).load() == (ETH1,)


@pytest.mark.parametrize(
    ("key", "value"),
    [("version", 99), ("bond", "bond1"), ("slaves", {"eth1": {"slave": "eth1"}}), ("addresses", {"eth1": 5})],
)
def test_a_file_of_another_version_or_bond_is_not_believed(journal: Journal, key: str, value: object) -> None:
    journal.remember(ETH1)
    journal.path.write_text(json.dumps(json.loads(journal.path.read_text()) | {key: value}))
    with pytest.raises(JournalError):
        again(journal).load()


@pytest.mark.parametrize(
    ("field", "value"),
    [("mtu", "1500"), ("mtu", True), ("mtu", -1), ("index", 2**64), ("up", 1), ("alias", None), ("slave", "../eth1"),
     ("slave", 7), ("addr_gen_mode", "0"), ("features", [["rx-gro", True]]), ("mac", 5), ("strange", 1)],
)  # fmt: skip
def test_a_field_of_another_kind_is_not_believed(journal: Journal, field: str, value: object) -> None:
    journal.remember(ETH1)
    content = json.loads(journal.path.read_text())
    content["slaves"]["eth1"][field] = value
    journal.path.write_text(json.dumps(content))
    with pytest.raises(JournalError, match="cannot be understood"):
        again(journal).load()


def test_what_a_foreign_journal_says_is_quoted_on_one_printable_line(journal: Journal) -> None:
    journal.path.write_text('{"version": 1, "bond": "b\\u007f\\n", "slaves": {}, "addresses": {}}')
    with pytest.raises(JournalError, match="cannot be understood") as caught:
        journal.load()
    assert str(caught.value).isprintable()


def test_every_truncation_of_the_file_is_noticed(journal: Journal) -> None:
    journal.remember(ETH1)
    whole = journal.path.read_bytes().rstrip(b"\n")
    for length in range(0, len(whole), 7):
        journal.path.write_bytes(whole[:length])
        with pytest.raises(JournalError):
            again(journal).load()


def test_a_link_in_the_place_of_the_file_is_not_followed(journal: Journal, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    journal.path.symlink_to(victim)
    with pytest.raises(JournalError) as told:
        journal.load()
    assert told.value.errno == errno.ELOOP
    new = journal.path.with_name(".bond0.journal.new")
    new.symlink_to(victim)
    fresh = again(journal)
    fresh.remove()
    fresh.remember(ETH1)
    assert victim.read_text() == "precious"
    assert not journal.path.is_symlink()


@pytest.mark.parametrize("spoil", ["writable", "link", "not ours"])
def test_a_directory_that_is_not_ours_alone_is_refused(tmp_path: Path, spoil: str) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    if spoil == "writable":
        directory.chmod(0o777)
    elif spoil == "link":
        directory = tmp_path / "link"
        directory.symlink_to(tmp_path / "run")
    else:
        os.chown(directory, 12345, -1)
    with pytest.raises(JournalError, match=str(directory)):
        Journal(directory, "bond0").remember(ETH1)
    assert list((tmp_path / "run").iterdir()) == []


def test_the_file_is_for_its_owner_only_and_errors_are_door_errors(journal: Journal) -> None:
    old = os.umask(0)
    try:
        journal.remember(ETH1)
    finally:
        os.umask(old)
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert issubclass(JournalError, DoorError)


def test_a_process_killed_while_writing_leaves_the_old_or_the_new(journal: Journal) -> None:
    journal.remember(ETH1)
    script = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from ubond.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]), 'bond0'); one, = journal.load()\n"
        "print('ready', flush=True)\n"
        "while True: one = replace(one, mtu=one.mtu + 1); journal.remember(one)\n"
    )
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(journal.path.parent)], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            before = again(journal).load()[0].mtu
            while again(journal).load()[0].mtu < before + 3:
                pass
            writer.send_signal(signal.SIGKILL)
        (found,) = again(journal).load()
        assert replace(found, mtu=1500) == ETH1


# ── paths ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UBOND_RUNTIME_DIR", str(tmp_path / "ubond"))
    return tmp_path / "ubond"


def test_each_namespace_has_its_own_directory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "netns_cookie", lambda: 1)
    assert paths.runtime_dir() == root
    monkeypatch.setattr(paths, "netns_cookie", lambda: 4242)
    assert paths.make_runtime_dir() == paths.runtime_dir() == root / "ns" / "4242"
    assert {path.stat().st_mode & 0o777 for path in (root, root / "ns", root / "ns" / "4242")} == {0o755}
    assert paths.socket_path("bond0") == root / "ns" / "4242" / "bond0.sock"
    assert paths.proc_path("bond0") == root / "ns" / "4242" / "proc" / "net" / "bonding" / "bond0"
    assert paths.journal_path("bond0") == Journal(paths.runtime_dir(), "bond0").path


def test_the_root_is_run_unless_it_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UBOND_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/somewhere")
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert paths.root_dir() == Path("/run/ubond")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.root_dir() == Path("/somewhere/ubond")


def test_a_runtime_directory_that_others_can_write_to_is_refused(root: Path) -> None:
    root.mkdir()
    root.chmod(0o775)
    with pytest.raises(paths.RuntimeDirError, match="written to by others"):
        paths.make_runtime_dir()


def test_empty_directories_are_removed_and_others_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "netns_cookie", lambda: 4242)
    paths.make_runtime_dir()
    paths.proc_path("bond0").parent.mkdir(parents=True)
    (root / "ns" / "7").mkdir()
    paths.remove_empty_dirs()
    assert list(root.rglob("*")) == [root / "ns", root / "ns" / "7"]
    (root / "ns" / "7").rmdir()
    paths.make_runtime_dir()
    paths.remove_empty_dirs()
    assert not root.exists()


def test_directories_that_a_bond_removes_as_it_ends_are_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be another namespace's, which removes what all share, or this one's."""
    monkeypatch.setattr(paths, "netns_cookie", lambda: 4242)
    interrupted: set[str] = set()

    def after_an_end(name: str) -> None:
        real = getattr(os, name)

        def call(path: Path | str, *rest: int, **words: int) -> object:
            if str(path) not in interrupted and Path(path).is_relative_to(root):
                interrupted.add(str(path))
                paths.remove_empty_dirs()
            return real(path, *rest, **words)

        monkeypatch.setattr(os, name, call)

    after_an_end("mkdir")
    after_an_end("open")
    lock = paths.lock_anew("bond0")
    assert lock is not None
    paths.write_for_all(paths.proc_path("bond0"), "text")
    assert paths.proc_path("bond0").read_text() == "text"
    directories, new = {root, root / "ns", root / "ns" / "4242"}, paths.fresh(paths.proc_path("bond0"))
    expected = directories | {paths.lock_path("bond0"), new}
    assert {str(path) for path in expected} <= interrupted
    paths.remove_stale("bond0")
    paths.unlock("bond0", lock)
    paths.remove_empty_dirs()
    paths.sweep("bond0")
    assert not root.exists()


def test_what_everybody_may_read_is_written_through_no_link(root: Path) -> None:
    victim = root.with_name("victim")
    victim.write_text("precious")
    path = paths.make_runtime_dir() / "proc" / "net" / "bonding" / "bond0"
    old = os.umask(0)
    try:
        paths.write_for_all(path, "one")
        assert path.stat().st_mode & 0o777 == 0o644
        assert path.parent.stat().st_mode & 0o777 == 0o755
        path.unlink()
        path.symlink_to(victim)
        path.with_name(".bond0.new").symlink_to(victim)
        paths.write_for_all(path, "two")
    finally:
        os.umask(old)
    assert (path.read_text(), path.is_symlink(), victim.read_text()) == ("two", False, "precious")
    path.parent.chmod(0o777)
    with pytest.raises(paths.RuntimeDirError):
        paths.write_for_all(path, "three")
    assert path.read_text() == "two"


def test_a_bond_runs_for_as_long_as_its_lock_is_held(root: Path) -> None:
    paths.make_runtime_dir()
    assert (paths.running("bond0"), paths.bonds()) == (False, [])
    fd = paths.lock("bond0")
    assert fd is not None
    assert (paths.running("bond0"), paths.bonds()) == (True, ["bond0"])
    assert paths.lock("bond0") is None
    assert paths.lock_path("bond0").stat().st_mode & 0o777 == 0o600
    paths.unlock("bond0", fd)
    assert (paths.running("bond0"), paths.lock_path("bond0").exists()) == (False, False)


def test_a_lock_file_left_by_a_killed_daemon_does_not_count(root: Path) -> None:
    paths.make_runtime_dir()
    script = (
        "import time; from ubond import paths\n"
        "assert paths.lock('bond0') is not None; print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        assert paths.running("bond0")
        daemon.kill()
    assert paths.lock_path("bond0").exists()
    assert not paths.running("bond0")
    Journal(paths.runtime_dir(), "bond0").remember(ETH1)
    assert paths.left_behind() == ["bond0"]
    fd = paths.lock("bond0")
    assert fd is not None
    assert paths.left_behind() == []
    os.close(fd)


def test_a_lock_taken_on_a_file_that_is_being_removed_is_taken_again(root: Path) -> None:
    paths.make_runtime_dir()
    path = paths.lock_path("bond0")
    real, calls = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        real(fd, operation)
        if not calls:  # its last holder removes it just between our open and our lock
            path.unlink()
        calls.append(operation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        fd = paths.lock("bond0")
    assert fd is not None
    assert len(calls) == 2
    assert paths.running("bond0")
    paths.unlock("bond0", fd)


def test_the_client_side_imports_next_to_nothing() -> None:
    script = "import sys; import ubond.paths; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert not loaded & {"asyncio", "pyroute2", "dataclasses", "ubond.bond.events", "uvloop"}


def test_a_relative_runtime_directory_is_refused_or_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon works in /, the commands anywhere: they would look for each other's files in vain."""
    monkeypatch.setenv("UBOND_RUNTIME_DIR", "run")
    with pytest.raises(paths.RuntimeDirError, match="must begin with a slash"):
        paths.root_dir()
    monkeypatch.delenv("UBOND_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.root_dir() == Path("/run/ubond")


def test_everybody_may_read_the_directories_whatever_the_umask(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "netns_cookie", lambda: 4242)
    old = os.umask(0o077)
    try:
        paths.make_runtime_dir()
        paths.write_for_all(paths.proc_path("bond0"), "text")
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in (root, *root.rglob("*")) if path.is_dir()} == {0o755}


def test_a_slave_that_was_given_an_unprintable_name_is_not_lost(journal: Journal) -> None:
    for name in ("e\udcff2", "a\u2028b", "a\x1cb", "%"):
        journal.remember(replace(ETH1, slave=name))
        assert again(journal).load() == (replace(ETH1, slave=name),)
        journal.forget(name)


def test_a_journal_that_cannot_follow_another_name_keeps_the_old_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.remember(ETH1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(JournalError):
            journal.rename("uplink")
    assert sorted(path.name for path in journal.path.parent.iterdir()) == ["bond0.journal"]
    journal.remember(ETH2)
    assert again(journal).load() == (ETH1, ETH2)
    journal.rename("uplink")
    assert Journal(journal.path.parent, "uplink").load() == (ETH1, ETH2)
