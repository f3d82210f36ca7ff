"""The control socket: what goes over it, who may, and what a bad client can do (nothing)."""

import asyncio
import errno
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from fake_desk import AT, CHANGE, Running, Wire, as_another_user, as_nobody, serving, until
from hypothesis import given
from hypothesis import strategies as st

from ubond import control, messages
from ubond.bond.events import DoorError
from ubond.bond.options import OptionError, Refused
from ubond.client import FAILED, KERNEL_REFUSED, LINE_MAX, NO_BOND, NOT_PERMITTED, USAGE, Client, ControlError
from ubond.control import Assignment, Server, rights_of
from ubond.messages import BadRequest, Request, parse_request

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def running() -> Iterator[Running]:
    # Not tmp_path: a socket's path has to be short, and another user has to get there.
    with tempfile.TemporaryDirectory(prefix="ub") as directory:
        os.chmod(directory, 0o755)
        with serving(Path(directory) / "bond0.sock") as server:
            yield server


# ── requests and answers ─────────────────────────────────────────────────────────────


def test_requests_reach_the_handler_and_its_notes_come_back(running: Running) -> None:
    with Client(str(running.path)) as client:
        assert client.request("ping") == {"bond": "bond0", "ubond": "0.1.0", "pid": os.getpid()}
        assert client.request("add", slaves=["slow0"], take_addresses=True) == {"notes": ["slow0 is slow"]}
        assert client.request("add", slaves=["eth3"]) == {"notes": []}
        assert client.request("remove", slaves=["eth3", "eth4"]) == {"notes": []}
    assert running.desk.asked == [
        ("add", "slow0", True),
        ("add", "eth3", False),
        ("remove", "eth3", "eth4"),
    ]


def test_options_of_one_request_are_written_in_the_drivers_order(running: Running) -> None:
    options = [("updelay", "200"), ("primary_reselect", "always"), ("miimon", "100"), ("mode", "1")]
    with Client(str(running.path)) as client:
        client.request("set", options=[{"option": name, "value": value} for name, value in options])
    (asked,) = running.desk.asked
    assert [assignment.option for assignment in asked[1:]] == ["mode", "miimon", "updelay", "primary_reselect"]


def test_status_comes_in_three_forms(running: Running) -> None:
    with Client(str(running.path)) as client:
        assert client.request("status")["text"].startswith("Ethernet Channel Bonding Driver: v0.1.0\n\n")
        assert client.request("status", format="table")["text"].startswith("bond0: carrier up")
        links = client.request("status", format="json")["links"]
    assert [link["ifname"] for link in links] == ["bond0", "eth1"]


def test_a_refusal_brings_errno_code_and_the_drivers_lines(running: Running) -> None:
    with Client(str(running.path)) as client, pytest.raises(ControlError) as caught:
        client.request("remove", slaves=["eth9"])
    assert caught.value.code == FAILED
    assert caught.value.errno == "EINVAL"
    assert caught.value.lines == ("option slaves: invalid value (-eth9)",)


def test_after_a_refusal_the_same_client_can_go_on(running: Running) -> None:
    with Wire(running.path) as wire:
        assert "error" in wire.ask("remove", slaves=["eth9"])
        assert wire.ask("remove", slaves=["eth1"])["result"] == {"notes": []}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OptionError(errno.EACCES, ["option primary: mode dependency failed"]), USAGE),
        (Refused(errno.EPERM, ["no"]), FAILED),
        (DoorError("TUNSETIFF", errno.EPERM, "bond0"), NOT_PERMITTED),
        (DoorError("RTM_SETLINK mtu", errno.EINVAL, "eth1"), KERNEL_REFUSED),
        (DoorError("start", 0, "", "unexpected"), FAILED),
    ],
)
def test_every_kind_of_error_has_its_exit_code(running: Running, error: Exception, code: int) -> None:
    running.desk.fails = error
    with Wire(running.path) as wire:
        told = wire.ask("status")["error"]
    assert told["code"] == code
    assert told["message"] == str(error)


def test_a_fault_of_ours_is_told_and_logged_and_the_daemon_lives_on(running: Running) -> None:
    running.desk.fails = ZeroDivisionError("division\nby zero")
    with Wire(running.path) as wire:
        assert wire.ask("status")["error"]["message"] == "division by zero"
        assert "result" in wire.ask("status")
    (fault,) = running.faults
    assert isinstance(fault["exception"], ZeroDivisionError)


def test_a_long_history_loses_its_oldest_entries_and_says_how_many(running: Running) -> None:
    running.desk.past = [control.failover(CHANGE, AT + number, 0, 1) for number in range(3000)]
    with Wire(running.path) as wire:
        result = wire.ask("history")["result"]
    assert result["omitted"] + len(result["history"]) == 3000
    assert result["history"][-1]["time"] == AT + 2999
    assert len(result["history"]) > 300


def test_an_answer_that_does_not_fit_is_an_error(running: Running) -> None:
    running.desk.extra = {"junk": "x" * LINE_MAX}
    with Wire(running.path) as wire:
        assert wire.ask("status", format="json")["error"]["errno"] == "EMSGSIZE"
        assert "result" in wire.ask("status")


def test_down_is_answered_and_then_the_connection_ends(running: Running) -> None:
    with Wire(running.path) as wire:
        assert wire.ask("down")["result"] == {"notes": []}
        assert wire.read() is None
    assert running.desk.asked == [("down",)]


# ── clients that misbehave ───────────────────────────────────────────────────────────

GARBAGE = {
    "no JSON": b"hello\n",
    "empty line": b"\n",
    "not an object": b"[1]\n",
    "not UTF-8": b"\xff\xfe\xfa\n",
    "deep": b"[" * 60000 + b"\n",
    "no version": b'{"request":"ping"}\n',
    "another version": b'{"version":2,"request":"ping"}\n',
    "true is no version": b'{"version":true,"request":"ping"}\n',
    "no request": b'{"version":1}\n',
    "unknown request": b'{"version":1,"request":"dance"}\n',
    "request is a list": b'{"version":1,"request":[]}\n',
    "unknown field": b'{"version":1,"request":"ping","x":1}\n',
    "unknown format": b'{"version":1,"request":"status","format":"xml"}\n',
    "no slaves": b'{"version":1,"request":"add"}\n',
    "slaves empty": b'{"version":1,"request":"add","slaves":[]}\n',
    "slave is a number": b'{"version":1,"request":"add","slaves":[1]}\n',
    "slave is a path": b'{"version":1,"request":"add","slaves":["../eth1"]}\n',
    "half a surrogate": b'{"version":1,"request":"add","slaves":["\\ud800"]}\n',
    "flag is a text": b'{"version":1,"request":"add","slaves":["a"],"take_addresses":"no"}\n',
    "no value": b'{"version":1,"request":"set","options":[{"option":"miimon"}]}\n',
    "value is a number": b'{"version":1,"request":"set","options":[{"option":"miimon","value":1}]}\n',
    "line break in a value": b'{"version":1,"request":"set","options":[{"option":"a","value":"b\\nc"}]}\n',
    "too long": b'{"version":1,"request":"' + b"x" * LINE_MAX + b'"}\n',
    "too long without end": b"x" * 3 * LINE_MAX,
}


@pytest.mark.parametrize("line", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_gets_one_clear_error_and_is_closed(running: Running, line: bytes) -> None:
    with Wire(running.path) as wire:
        wire.send(line)
        error = wire.read()["error"]
        assert error["code"] == USAGE
        assert error["message"]
        assert "\n" not in error["message"]
        assert wire.read() is None
    assert running.desk.asked == []
    with Wire(running.path) as wire:
        assert "result" in wire.ask("ping")
    assert running.faults == []


def test_a_line_of_exactly_the_limit_is_read(running: Running) -> None:
    line = b'{"version":1,"request":"ping"}'
    with Wire(running.path) as wire:
        wire.send(line + b" " * (LINE_MAX - len(line) - 1) + b"\n")
        assert "result" in wire.read()


def test_half_a_message_is_an_error(running: Running) -> None:
    with Wire(running.path) as wire:
        wire.send(b'{"version":1,')
        wire.sock.shutdown(socket.SHUT_WR)
        assert "before its newline" in wire.read()["error"]["message"]
        assert wire.read() is None


@pytest.mark.parametrize("beginning", [b"", b'{"version":1,"requ'], ids=["nothing", "half"])
def test_a_client_that_hangs_is_told_and_closed(
    running: Running, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.05)
    with Wire(running.path) as wire:
        wire.send(beginning)
        assert "no request arrived" in wire.read()["error"]["message"]
        assert wire.read() is None


def test_a_client_that_leaves_at_once_leaves_nothing(running: Running) -> None:
    for _ in range(2 * control.CLIENTS_MAX):
        Wire(running.path).close()
    first_to_be_served(running.path).close()
    assert running.faults == []


def test_one_client_too_many_is_told_and_the_others_are_served(running: Running) -> None:
    wires = [Wire(running.path) for _ in range(control.CLIENTS_MAX)]
    for wire in wires:
        assert "result" in wire.ask("ping")
    with Wire(running.path) as late:
        assert "too many clients" in late.ask("ping")["error"]["message"]
        assert late.read() is None
    assert "result" in wires[0].ask("ping")
    wires.pop().close()
    wires.append(first_to_be_served(running.path))
    for wire in wires:
        wire.close()


def first_to_be_served(path: Path) -> Wire:
    """The first client for which there is room again; the server needs a moment to see that one has left."""
    for _ in range(1000):
        wire = Wire(path)
        if "result" in wire.ask("ping"):
            return wire
        wire.close()
    raise AssertionError("the place of a client that left stays taken")


# ── monitor ──────────────────────────────────────────────────────────────────────────


def test_monitor_gets_every_event_in_order_until_the_bond_ends(running: Running) -> None:
    with Wire(running.path) as wire:
        assert wire.ask("monitor")["result"]["bond"] == "bond0"
        running.publish({"number": 1}, {"number": 2})
        assert wire.read() == {"version": 1, "event": {"number": 1}}
        assert wire.read() == {"version": 1, "event": {"number": 2}}
        closing = threading.Thread(target=lambda: running.await_(running.server.close()))
        closing.start()
        assert wire.read() is None
        closing.join()


def test_a_slow_reader_is_told_what_it_missed_and_holds_up_nobody(running: Running) -> None:
    total, step = 30_000, 100
    with Wire(running.path) as slow, Wire(running.path) as quick:
        slow.ask("monitor")
        quick.ask("monitor")
        for start in range(0, total, step):
            running.publish(*({"number": start + i, "pad": "x" * 60} for i in range(step)))
            for i in range(step):
                assert quick.read()["event"]["number"] == start + i
        expected = lost = 0
        while expected < total:
            message = slow.read()
            if "lost" in message:
                expected += message["lost"]
                lost += message["lost"]
            else:
                assert message["event"]["number"] == expected
                expected += 1
        assert expected == total
        assert lost > 0


def test_what_is_written_to_a_client_that_has_left_is_a_lost_connection() -> None:
    """Not the RuntimeError that uvloop has for it, which nobody would expect."""

    async def story() -> None:
        here, there = socket.socketpair()
        with there:
            _, writer = await asyncio.open_unix_connection(sock=here)
            writer.transport.abort()
            await asyncio.sleep(0.01)
            with pytest.raises(ConnectionResetError):
                await control._send(writer, b"{}\n")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())


def test_a_monitor_client_that_leaves_is_forgotten(running: Running) -> None:
    with Wire(running.path) as wire:
        wire.ask("monitor")
        assert running.listeners() == 1
    until(lambda: running.listeners() == 0)


# ── who may ──────────────────────────────────────────────────────────────────────────


def ask_as_nobody(path: Path, groups: list[int], *requests: str) -> list[dict[str, Any]]:
    """Ask as the user nobody, in these groups."""

    def ask() -> None:
        for request in requests:
            with Wire(path) as wire:
                print(json.dumps(wire.ask(request, **({"slaves": ["eth1"]} if request == "remove" else {}))))

    return [json.loads(line) for line in as_nobody(ask, groups).splitlines()]


@as_another_user
def test_members_of_the_sockets_group_read_and_do_not_change(running: Running) -> None:
    os.chown(running.path, -1, 4242)
    ping, remove = ask_as_nobody(running.path, [4242], "ping", "remove")
    assert "result" in ping
    assert remove["error"]["code"] == NOT_PERMITTED
    assert "root and the owner" in remove["error"]["message"]
    assert running.desk.asked == []


@as_another_user
def test_a_stranger_who_gets_hold_of_the_socket_is_refused_everything(running: Running) -> None:
    os.chmod(running.path, 0o666)
    answers = ask_as_nobody(running.path, [], "ping", "status", "monitor", "remove", "down")
    assert len(answers) == 5
    for answer in answers:
        assert answer["error"]["code"] == NOT_PERMITTED
    assert running.desk.asked == []


def test_the_owner_may_everything() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert rights_of(ours, os.geteuid(), os.getegid()) == (True, True)


def test_the_socket_is_for_owner_and_group_only(running: Running) -> None:
    assert running.path.stat().st_mode & 0o777 == 0o660


# ── the socket's file ────────────────────────────────────────────────────────────────


def test_a_socket_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ub") as directory:
        path = Path(directory) / "bond0.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        with serving(path), Wire(path) as wire:
            assert "result" in wire.ask("ping")
        assert not path.exists()


@pytest.mark.parametrize("name", ["missing/bond0.sock", "x" * 120], ids=["no directory", "too long"])
def test_a_place_where_no_socket_can_be_is_a_door_error(running: Running, name: str) -> None:
    server = Server("bond1", "0.1.0", running.desk)
    with pytest.raises(DoorError):
        running.await_(server.start(running.path.parent / name))


def test_the_socket_follows_a_rename_of_the_bond(running: Running) -> None:
    path = running.path.with_name("bond7.sock")
    running.call(lambda: running.server.rename("bond7", path))
    assert not running.path.exists()
    with Client(str(path)) as client:
        assert client.request("ping")["bond"] == "bond7"


# ── the client's end ─────────────────────────────────────────────────────────────────


def test_client_says_that_nobody_listens(tmp_path: Path) -> None:
    for name in ("missing", "x" * 200):
        with pytest.raises(ControlError) as caught:
            Client(str(tmp_path / name))
        assert caught.value.code == NO_BOND


def test_client_does_not_wait_for_ever_for_a_daemon_that_hangs() -> None:
    with tempfile.TemporaryDirectory(prefix="ub") as directory, socket.socket(socket.AF_UNIX) as mute:
        mute.bind(f"{directory}/s")
        mute.listen()
        with Client(f"{directory}/s", timeout=0.05) as client, pytest.raises(ControlError, match="not answered"):
            client.request("ping")


def test_client_waits_in_line_behind_many_others() -> None:
    with tempfile.TemporaryDirectory(prefix="ub") as directory, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{directory}/s")
        server.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(f"{directory}/s")
            with pytest.raises(ControlError, match="temporarily unavailable"):
                Client(f"{directory}/s", timeout=0.05)
            threading.Timer(0.1, lambda: server.accept()[0].close()).start()
            Client(f"{directory}/s", timeout=30).close()


def test_client_tells_when_the_daemon_ends_without_an_answer() -> None:
    with tempfile.TemporaryDirectory(prefix="ub") as directory, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{directory}/s")
        server.listen()
        with Client(f"{directory}/s") as client:
            server.accept()[0].close()
            with pytest.raises(ControlError, match="closed the connection"):
                client.request("ping")


@pytest.mark.parametrize(
    "answer",
    [b"\n", b"null\n", b"[]\n", b"{}\n",
     b'{"error":{"code":1}}\n', b'{"error":5}\n', b"[" * 50000 + b"\n", b"x" * 200000],
    ids=lambda answer: answer[:12].decode(),
)  # fmt: skip
def test_client_says_so_when_something_else_answers(answer: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="ub") as directory, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{directory}/s")
        server.listen()
        with Client(f"{directory}/s") as client:
            peer, _ = server.accept()
            with peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                peer.sendall(answer)
            with pytest.raises(ControlError, match="no daemon of ubond") as caught:
                client.request("ping")
        assert caught.value.errno == "EPROTO"


# ── the parser, with anything ────────────────────────────────────────────────────────

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
nearly_requests = st.fixed_dictionaries(
    {"version": st.just(1) | json_values, "request": st.sampled_from(list(messages.FIELDS)) | json_values},
    optional={
        "slaves": st.lists(st.text() | json_values, max_size=3) | json_values,
        "options": st.lists(
            st.dictionaries(st.sampled_from(["slave", "option", "value"]), st.text() | json_values), max_size=3
        ),
        "format": st.sampled_from([*messages.FORMATS, "x"]) | json_values,
        "take_addresses": json_values,
    },
)


def reads_or_refuses(line: bytes) -> None:
    try:
        request = parse_request(line)
    except BadRequest:
        return
    assert request.name in messages.FIELDS
    for text in (*request.slaves, *(part or "" for option in request.options for part in option)):
        text.encode()


@given(st.binary())
def test_any_bytes_are_a_request_or_refused(line: bytes) -> None:
    reads_or_refuses(line)


@given(nearly_requests | json_values)
def test_any_json_is_a_request_or_refused(message: Any) -> None:
    reads_or_refuses(json.dumps(message).encode())


@given(st.lists(st.from_regex(r"[a-z][a-z0-9.]{0,14}", fullmatch=True), min_size=1), st.booleans())
def test_a_good_request_is_read_as_it_was_meant(slaves: list[str], take: bool) -> None:
    line = json.dumps({"version": 1, "request": "add", "slaves": slaves, "take_addresses": take}).encode()
    assert parse_request(line) == Request("add", slaves=tuple(slaves), take_addresses=take)


def test_an_assignment_may_name_a_slave() -> None:
    options = '[{"option":"primary","value":""},{"slave":"eth2","option":"prio","value":"-3"}]'
    request = parse_request(f'{{"version":1,"request":"set","options":{options}}}'.encode())
    assert request.options == (Assignment(None, "primary", ""), Assignment("eth2", "prio", "-3"))


# ── the documentation ────────────────────────────────────────────────────────────────

EXAMPLES = re.findall(r"```protocol\n(.*?)```", (DOCS / "control-protocol.md").read_text(), re.S)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0][2:50])
def test_examples_of_the_documentation_are_true(running: Running, example: str) -> None:
    with Wire(running.path) as wire:
        for line in example.splitlines():
            if line.startswith("> "):
                wire.send(line[2:].encode() + b"\n")
            elif line.startswith("! "):
                running.publish(control.active_changed(CHANGE, AT))
            else:
                assert_like(wire.read(), json.loads(line.removeprefix("< ")))


def assert_like(got: Any, documented: Any) -> None:
    """Equal, order of keys included, but for values documented as "..."."""
    if documented == "...":
        assert got
    elif isinstance(documented, dict):
        assert list(got) == list(documented)
        for key, value in documented.items():
            assert_like(got[key], value)
    else:
        assert got == documented


def test_every_request_is_in_the_documentation() -> None:
    shown = {json.loads(line)["request"] for text in EXAMPLES for line in re.findall(r"^> (\{.*)", text, re.M)}
    assert shown == set(messages.FIELDS)
