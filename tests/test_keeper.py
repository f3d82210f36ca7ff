"""The keeper and what it keeps, with small children in the place of daemons."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ubond import daemon, store
from ubond.bond.events import DoorError
from ubond.bond.options import Refused
from ubond.keeper import DEATHS, Inheritance, Keeper

# ── the document ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def document() -> Iterator[int]:
    descriptor = store.make_document()
    yield descriptor
    os.close(descriptor)


def test_an_empty_document_says_nothing(document: int) -> None:
    assert store.read_document(document) is None


def test_the_last_text_is_read_and_a_later_writer_goes_on(document: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for text in (b"one", b"a longer second one", b"3"):
            # Each time as by another process, which finds what the one before has written.
            store.Store(theirs, {store.DOCUMENT: document}).update(text, {})
            assert store.read_document(document) == text


@given(st.binary(min_size=1, max_size=300), st.binary(min_size=1, max_size=300), st.data())
def test_a_writer_that_dies_at_any_byte_leaves_a_whole_text(old: bytes, new: bytes, data: st.DataObject) -> None:
    """All that reaches the file are three writes; the last one is cut, or whole ones are missing."""
    descriptor = store.make_document()
    try:
        store._write_document(descriptor, 1, b"x" * 400)
        store._write_document(descriptor, 2, old)
        writes: list[tuple[bytes, int]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store.os, "pwrite", lambda _, piece, at: writes.append((piece, at)))
            store._write_document(descriptor, 3, new)
        done = data.draw(st.integers(0, len(writes) - 1))
        cut = data.draw(st.integers(0, len(writes[done][0]) - 1))
        for piece, at in [*writes[:done], (writes[done][0][:cut], writes[done][1])]:
            os.pwrite(descriptor, piece, at)
        assert store.read_document(descriptor) == old
        for piece, at in writes:
            os.pwrite(descriptor, piece, at)
        assert store.read_document(descriptor) == new
    finally:
        os.close(descriptor)


# ── the keeper ───────────────────────────────────────────────────────────────────────


def keep(daemon: Callable[[Inheritance], int], on_ready: Callable[[], None] = lambda: None) -> tuple[str, Keeper]:
    """Run a keeper of such daemons in a process of this test's own, so that its signals are its own too."""
    keeper = Keeper("bond9", daemon, on_ready)
    return keeper.run(), keeper


def die(number: int = signal.SIGKILL) -> int:
    os.kill(os.getpid(), number)
    time.sleep(10)
    raise AssertionError("alive")


def test_a_daemon_that_ends_by_itself_has_no_successor(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def daemon(given: Inheritance) -> int:
        with log.open("a") as file:
            file.write("started\n")
        given.store.ready()
        return 0

    death, keeper = keep(daemon)
    assert (death, keeper.was_ready, log.read_text()) == ("", True, "started\n")


def test_a_dead_daemons_successor_has_its_descriptors_its_document_and_its_death(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def daemon(given: Inheritance) -> int:
        given.store.open_document()
        if given.death:
            text = store.read_document(given.descriptors[store.DOCUMENT]) or b""
            word = os.read(given.descriptors["pipe"], 10)
            log.write_text(f"{given.death}|{text.decode()}|{word.decode()}|{sorted(given.descriptors)}")
            return 0
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.write(writer, b"kept")
        dropped = os.dup(reader)
        given.store.update(b"early", {"pipe": reader, "other": dropped})
        given.store.update(b"all", {"pipe": reader})
        given.store.ready()
        return die()

    death, _ = keep(daemon)
    assert death == ""
    assert log.read_text() == "was killed by signal 9 (SIGKILL)|all|kept|['document', 'pipe']"


def test_a_daemon_that_dies_of_a_fault_says_of_which_and_the_next_one_hears_it(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def daemon(given: Inheritance) -> int:
        given.store.open_document()
        if given.death:
            with log.open("a") as file:
                file.write(f"{given.death}\n")
            return 0 if "exit code 3" in given.death else 3
        given.store.update(b"text", {})
        given.store.ready()
        try:
            {}["what\nis not there"]
        except KeyError as error:
            given.store.explain(error)
        return 1

    assert keep(daemon)[0] == ""
    first, second = log.read_text().splitlines()
    assert re.fullmatch(
        r"ended with exit code 1 \(KeyError: 'what\\nis not there' at test_keeper\.py:\d+\)", first
    )
    assert second == "ended with exit code 3"


def test_what_is_reopened_under_its_number_is_kept_anew() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        keeping = store.Store(theirs)
        keeping.open_document()
        one, two = os.pipe2(os.O_CLOEXEC)
        keeping.update(b"", {"pipe": one})
        other, last = os.pipe2(os.O_CLOEXEC)
        os.dup2(other, one)
        keeping.update(b"", {"pipe": one})
        said = []
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                message, descriptors = store.receive(ours)
                said.append(store.unpack(message))
                for descriptor in descriptors:
                    os.close(descriptor)
        for descriptor in (one, two, other, last):
            os.close(descriptor)
    assert [(each.get("FDSTORE"), each["FDNAME"]) for each in said] == [
        ("1", "document"), ("1", "pipe"), (None, "pipe"), ("1", "pipe"),
    ]  # fmt: skip


def fill(sock: socket.socket) -> None:
    """Say so much that no more can be said until somebody listens."""
    with contextlib.suppress(BlockingIOError):
        while True:
            store.send(sock, b"X=" + b"x" * 4000)


def test_who_is_slow_to_listen_hears_that_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once if they listen again within a while, else with the next update; nobody takes them for dead."""
    monkeypatch.setattr(store, "_PATIENCE_MS", 20)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        keeping = store.Store(theirs)
        keeping.open_document()
        fill(theirs)
        keeping.ready()
        keeping.update(b"text", {})
        said = []
        ours.setblocking(False)
        for _ in range(2):
            with contextlib.suppress(BlockingIOError):
                while True:
                    message, descriptors = store.receive(ours)
                    said.append(store.unpack(message))
                    for descriptor in descriptors:
                        os.close(descriptor)
            keeping.update(b"more", {})
    assert [each for each in said if "X" not in each] == [
        {"READY": "1"}, {"FDSTORE": "1", "FDNAME": "document", "FDPOLL": "0"},
    ]  # fmt: skip


def test_who_listens_again_soon_is_waited_for() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        fill(theirs)

        def listen() -> None:
            time.sleep(0.05)
            while (message := store.receive(ours)[0]) and store.unpack(message).get("READY") != "1":
                pass

        listener = threading.Thread(target=listen)
        listener.start()
        store.Store(theirs).ready()
        listener.join(10)
        assert not listener.is_alive()


@pytest.fixture
def unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that loads nothing and keeps all its rights."""
    monkeypatch.setattr(daemon, "_tools", lambda bond: contextlib.nullcontext(SimpleNamespace(
        managers=SimpleNamespace(bond=bond), confine=lambda **_: ""
    )))  # fmt: skip
    monkeypatch.setattr(daemon, "_load_all", lambda: None)


def test_one_that_dies_between_its_outcome_and_its_keeper_hearing_of_it_ends_the_command_with_an_error(
    unconfined: None, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The daemon says that it is ready and dies, its keeper gives all back and says that: the last word counts."""
    monkeypatch.setattr(daemon, "recover", lambda *_: 2)

    def run(given: store.Store, ready: Callable[[list[str]], None], **_: object) -> None:
        ready(["a remark"])
        die()

    with pytest.raises(Refused, match=r"was killed by signal 9 \(SIGKILL\) while starting"):
        daemon._start_in_background("bond9", run, keeper=True)


def test_one_that_keeps_dying_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log"

    def daemon(given: Inheritance) -> int:
        with log.open("a") as file:
            file.write("started\n")
        given.store.open_document()
        given.store.update(b'{"files": "bond9"}', {})
        given.store.ready()
        return 3

    death, keeper = keep(daemon)
    assert death == "ended with exit code 3"
    assert not keeper.asked_to_end
    assert log.read_text() == "started\n" * DEATHS
    said = r"bond9: its daemon ended with exit code 3, for the 5th time within \d+ s: giving it up"
    assert re.search(said, caplog.text)


def test_one_that_dies_before_frames_flow_is_not_started_again() -> None:
    death, keeper = keep(lambda given: die(signal.SIGSEGV))
    assert (death, keeper.was_ready) == ("was killed by signal 11 (SIGSEGV)", False)


def test_clear_returns_when_nothing_is_kept_any_more() -> None:
    def daemon(given: Inheritance) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        given.store.open_document()
        given.store.update(b"text", {"writer": writer})
        os.close(writer)
        given.store.ready()
        given.store.clear()
        os.set_blocking(reader, False)
        return 0 if os.read(reader, 1) == b"" else 1  # the end: nobody has the other one

    assert keep(daemon)[0] == ""


PROGRAM = """
import os, signal, sys, time
from ubond.keeper import Keeper

def daemon(given):
    given.store.ready()
    if {deaf}:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("ready", os.getpid(), flush=True)
    while True:
        time.sleep(10)

keeper = Keeper("bond9", daemon, lambda: None)
death = keeper.run()
print(repr(death), keeper.asked_to_end, flush=True)
"""


@pytest.mark.parametrize(("deaf", "death"), [(False, "''"), (True, "'was killed by signal 15 (SIGTERM)'")])
def test_what_asks_the_keeper_to_end_is_passed_on_and_has_no_successor(deaf: bool, death: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(deaf=deaf)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert out == f"{death} True\n"


def test_process_1_collects_orphans_passes_signals_on_and_keeps(tmp_path: Path) -> None:
    """In a process namespace of its own: the keeper as process 1 of a container."""
    program = PROGRAM.format(deaf=False).replace(
        "keeper = Keeper",
        """
signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b"heard\\n"), os._exit(0)))     # before anybody can send it
if os.fork() == 0:                       # a process beside the daemon, whose child becomes an orphan
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(0.2)
        os._exit(0)
    while True:
        time.sleep(10)
keeper = Keeper""",
    )
    process = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready"), line
    inner = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()[0])
    os.kill(inner, signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    # Two processes write to one pipe: their lines may be torn.
    assert sorted(out.replace("\n", "").replace("heard", "", 1)) == sorted("'' True"), out


@pytest.mark.parametrize("late", [False, True])
def test_one_that_adopts_a_bond_has_a_successor_as_soon_as_there_is_something_to_keep(late: bool) -> None:
    """A new daemon that has taken over and dies before it is ready must not end the bond, told it was late or not."""

    def daemon(given: Inheritance) -> int:
        given.store.open_document()
        if given.death:
            given.store.ready()
            return 0
        given.store.update(b'{"files": "bond9"}', {})
        if late:
            signal.pthread_sigmask(signal.SIG_BLOCK, [store.TIME_IS_UP])
            os.kill(os.getppid(), store.TIME_IS_UP)
            signal.sigwait([store.TIME_IS_UP])  # the keeper has heard, and passed it on
        return die()

    told = []
    keeper = Keeper("bond9", daemon, lambda: told.append(keeper.death), adopts=True)
    assert keeper.run() == ""
    assert keeper.has_tried_again
    assert told == ["was killed by signal 9 (SIGKILL)"]
    assert keep(lambda given: daemon(given))[0] == told[0], "one that begins has none"


@pytest.mark.parametrize("failures", [1, 99])
def test_where_no_process_can_be_started_it_is_tried_again_a_few_times(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failures: int
) -> None:
    """A machine out of processes or memory when the daemon dies is not the end of the bond, nor of its giving back."""
    fork, left = os.fork, [0, *[errno.EAGAIN] * failures, 0]

    def sometimes() -> int:
        if error := left.pop(0):
            raise OSError(error, os.strerror(error))
        return fork()

    def daemon(given: Inheritance) -> int:
        if given.death:
            return 0
        given.store.open_document()
        given.store.update(b"{}", {})
        given.store.ready()
        return die()

    monkeypatch.setattr(os, "fork", sometimes)
    monkeypatch.setattr("ubond.keeper._PAUSE", 0.01)
    death, keeper = keep(daemon)
    assert death == ("" if failures == 1 else "was killed by signal 9 (SIGKILL)")
    assert len(caplog.records) == min(failures, DEATHS)  # each of them, and that it is given up
    assert "and no other can be started: Resource temporarily unavailable" in caplog.text
    assert keeper.was_ready
    assert len(left) == (0 if failures == 1 else 1 + failures - (DEATHS - 1))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, store.TIME_IS_UP}


def test_a_version_that_cannot_be_loaded_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("cannot import name 'nothing'")

    monkeypatch.setattr(daemon, "_tools", lambda bond: contextlib.nullcontext(SimpleNamespace()))
    monkeypatch.setattr(daemon, "_load_all", broken)
    with pytest.raises(DoorError, match="ImportError: cannot import name 'nothing'"):
        daemon._start_in_background("bond9", lambda *_, **__: None)


@pytest.mark.parametrize("keeper", [True, False])
def test_one_that_is_not_ready_in_time_is_ended_and_the_reason_said(
    unconfined: None, monkeypatch: pytest.MonkeyPatch, keeper: bool
) -> None:
    monkeypatch.setattr(daemon, "recover", lambda *_: 0)

    def run(*_: object, **__: object) -> None:
        time.sleep(60)

    with pytest.raises(DoorError, match=r"was not ready within 0\.5 s"):
        daemon._start_in_background("bond9", run, keeper=keeper, adopts=True, patience=0.5)


@pytest.mark.parametrize("keeper", [True, False])
def test_one_that_is_late_but_has_the_bond_already_is_waited_for(
    unconfined: None, tmp_path: Path, keeper: bool
) -> None:
    """To end it now would end the bond."""
    alive = tmp_path / "alive"

    def run(given: store.Store, ready: Callable[[list[str]], None], **_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [store.TIME_IS_UP])
        signal.sigwait([store.TIME_IS_UP])
        ready(["a remark"])
        given.ready()
        while True:
            alive.touch()
            time.sleep(0.01)

    def lives() -> bool:
        alive.unlink(missing_ok=True)
        end = time.monotonic() + 10
        while not alive.exists() and time.monotonic() < end:
            time.sleep(0.01)
        return alive.exists()

    children = set(_children())
    try:
        assert daemon._start_in_background("bond9", run, keeper=keeper, adopts=True, patience=3) == ["a remark"]
        assert lives()
        assert lives()
    finally:
        for child in set(_children()) - children:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)


def _children() -> list[int]:
    return [int(each) for each in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
