"""The `bed` fixture: an engine on socketpairs, running."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fastpath.bed import Bed
from ubond.bond.table import Divert


@pytest.fixture
def bed() -> Iterator[Callable[..., Bed]]:
    """Make a running bed: `bed(slaves=2)`.  `ring`: bytes that a slave's socket holds before EAGAIN."""
    made: list[Bed] = []

    def make(
        slaves: int = 2, queues: int = 1, divert: Divert = Divert.NONE, ring: int = 4 << 20, workers: int = 1
    ) -> Bed:
        one = Bed(slaves, queues, ring, workers)
        made.append(one)
        one.publish(divert=divert)
        one.start()
        return one

    yield make
    for one in made:
        one.close()
