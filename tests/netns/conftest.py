"""The kind of world that the tests run in, and what is left out there; and a fixture explained in `namespace`."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from namespace import Namespace

from tests.netns.needs import lacking

_left_out: Counter[str] = Counter()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this kind of world lacks something for (`needs`)."""
    left_out = []
    for item in items:
        needs = [str(need) for marker in item.iter_markers("needs") for need in marker.args]
        if reason := lacking(needs):
            _left_out[reason] += 1
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out:
        terminalreporter.section(f"not in the world {os.environ['UBOND_WORLD']}")
        for reason, count in sorted(_left_out.items()):
            terminalreporter.line(f"{count} tests: {reason}")


@pytest.fixture
def namespaces() -> Iterator[Callable[[], Namespace]]:
    """Makes namespaces; all are removed when the test ends."""
    with contextlib.ExitStack() as stack:

        def make() -> Namespace:
            namespace = Namespace()
            stack.callback(namespace.close)
            return namespace

        yield make
