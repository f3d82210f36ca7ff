"""Fixtures of the tests in network namespaces; what they give is explained in `namespace`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from namespace import Namespace


@pytest.fixture
def namespaces() -> Iterator[Callable[[], Namespace]]:
    """Makes namespaces; all are removed when the test ends."""
    with contextlib.ExitStack() as stack:

        def make() -> Namespace:
            namespace = Namespace()
            stack.callback(namespace.close)
            return namespace

        yield make
