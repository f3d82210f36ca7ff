"""The control server under clients that do as they please: any order, any bytes, any number of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fake_desk import VERSION, Wire, serving, until
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from ubond import control
from ubond.client import LINE_MAX

GOOD = [
    {"request": "ping"},
    {"request": "status", "format": "json"},
    {"request": "history"},
    {"request": "log"},
    {"request": "add", "slaves": ["eth1"], "take_addresses": True},
    {"request": "set", "options": [{"option": "miimon", "value": "50"}]},
]
#: Answered with an error, and the connection goes on.
REFUSED = [
    {"request": "remove", "slaves": ["eth9"]},
    {"request": "remove", "slaves": ["stuck0"]},
    {"request": "set", "options": [{"option": "nonsense", "value": "1"}]},
]
good, refused = st.sampled_from(GOOD), st.sampled_from(REFUSED)


def line(fields: dict[str, Any]) -> bytes:
    return json.dumps({"version": 1, **fields}).encode() + b"\n"


class Clients(RuleBasedStateMachine):
    """A model of what each client is owed; `served` counts the connections that the server holds."""

    idle = Bundle("idle")
    halves = Bundle("halves")
    listening = Bundle("listening")

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory(prefix="ub")
        self._serving = serving(Path(self._directory.name) / "s")
        self.running = self._serving.__enter__()
        self.served: set[Wire] = set()
        self.owed: dict[Wire, int] = {}
        self.published = 0

    def teardown(self) -> None:
        for client in self.served:
            client.close()
        until(lambda: not self.running.call(lambda: self.running.server._tasks))
        assert self.running.listeners() == 0
        assert self.running.faults == []
        self._serving.__exit__(None, None, None)
        self._directory.cleanup()

    # ── coming and going ──

    @precondition(lambda self: len(self.served) < control.CLIENTS_MAX)
    @rule(target=idle)
    def connect(self) -> Wire:
        client = Wire(self.running.path)
        assert client.ask("ping")["result"]["ubond"] == VERSION
        self.served.add(client)
        return client

    @rule(count=st.integers(1, 40))
    def too_many(self, count: int) -> None:
        """Strangers fill the room; who finds none is told, and those inside are served."""
        room = control.CLIENTS_MAX - len(self.served)
        crowd = [Wire(self.running.path) for _ in range(count)]
        for number, client in enumerate(crowd):
            answer = client.ask("ping")
            assert ("result" in answer) == (number < room), answer
        for client in crowd:
            client.close()
        self._settled()

    @rule(client=consumes(idle))
    def leave(self, client: Wire) -> None:
        self._gone(client)

    @rule(client=consumes(halves))
    def leave_in_the_middle(self, client: Wire) -> None:
        self._gone(client)

    @rule(client=consumes(listening))
    def stop_listening(self, client: Wire) -> None:
        del self.owed[client]
        self._gone(client)

    # ── asking ──

    @rule(client=idle, fields=good)
    def ask(self, client: Wire, fields: dict[str, Any]) -> None:
        client.send(line(fields))
        assert "result" in client.read()

    @rule(client=idle, fields=refused)
    def ask_for_what_is_refused(self, client: Wire, fields: dict[str, Any]) -> None:
        client.send(line(fields))
        assert "error" in client.read()

    @rule(client=idle, many=st.lists(good, min_size=2, max_size=20))
    def ask_without_waiting(self, client: Wire, many: list[dict[str, Any]]) -> None:
        client.send(b"".join(map(line, many)))
        assert all("result" in client.read() for _ in many)

    @rule(target=halves, client=consumes(idle), fields=good, at=st.integers(1, 10))
    def begin(self, client: Wire, fields: dict[str, Any], at: int) -> tuple[Wire, bytes]:
        client.send(line(fields)[:at])
        return client, line(fields)[at:]

    @rule(target=idle, half=consumes(halves))
    def end(self, half: tuple[Wire, bytes]) -> Wire:
        client, rest = half
        client.send(rest)
        assert "result" in client.read()
        return client

    @rule(client=consumes(idle), data=st.binary(max_size=200).filter(lambda data: b"\n" not in data))
    def say_nonsense(self, client: Wire, data: bytes) -> None:
        client.send(b"\x00" + data + b"\n")
        assert client.read()["error"]["errno"] == "EINVAL"
        assert client.read() is None
        self._gone(client)

    @rule(client=consumes(idle), more=st.integers(0, 3))
    def say_too_much(self, client: Wire, more: int) -> None:
        client.send(b"x" * (LINE_MAX + more))
        assert "at most" in client.read()["error"]["message"]
        self._gone(client)

    # ── listening ──

    @rule(target=listening, client=consumes(idle))
    def listen(self, client: Wire) -> Wire:
        before = self.running.listeners()
        assert client.ask("monitor")["result"]["bond"] == "bond0"
        until(lambda: self.running.listeners() == before + 1)
        self.owed[client] = 0
        return client

    @rule(count=st.integers(1, 600))
    def publish(self, count: int) -> None:
        self.running.publish(*({"number": self.published + i} for i in range(count)))
        self.published += count
        for client in self.owed:
            self.owed[client] += count

    @rule(client=listening)
    def hear(self, client: Wire) -> None:
        """Every event in order, or how many there was no room for."""
        last = -1
        while self.owed[client]:
            message = client.read()
            if "lost" in message:
                self.owed[client] -= message["lost"]
            else:
                assert message["event"]["number"] > last
                last = message["event"]["number"]
                self.owed[client] -= 1
        assert self.owed[client] == 0

    # ── always ──

    @invariant()
    def another_client_is_served(self) -> None:
        if len(self.served) < control.CLIENTS_MAX:
            with Wire(self.running.path) as client:
                assert "result" in client.ask("ping")
            self._settled()

    def _gone(self, client: Wire | tuple[Wire, bytes]) -> None:
        client = client[0] if isinstance(client, tuple) else client
        client.close()
        self.served.discard(client)
        self._settled()

    def _settled(self) -> None:
        """Who has left is forgotten."""
        until(lambda: self.running.call(lambda: len(self.running.server._tasks)) == len(self.served))


TestClients = Clients.TestCase
TestClients.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def nobody_is_hurried() -> Any:
    """What is slow here is the machine: no request of the model's comes too late."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "PATIENCE", 60.0)
        yield


def test_a_thousand_clients_that_say_and_read_nothing(tmp_path: Path) -> None:
    """Those whom there is no room for are told at once, those inside are served, and nothing is left of either."""
    with tempfile.TemporaryDirectory(prefix="ub") as directory, serving(Path(directory) / "s") as running:
        with Wire(running.path) as inside:
            assert "result" in inside.ask("ping")
            silent: list[Wire] = []
            try:
                for number in range(1000):
                    silent.append(Wire(running.path))
                    if number % 100 == 0:
                        assert "result" in inside.ask("status", format="json")
                told = sum("too many clients" in str(client.read()) for client in silent[control.CLIENTS_MAX :])
                assert told == 1000 - control.CLIENTS_MAX
                assert "result" in inside.ask("ping")
            finally:
                for client in silent:
                    client.close()
        until(lambda: not running.call(lambda: running.server._tasks))
        assert running.faults == []
