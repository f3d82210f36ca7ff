"""A device's queue is as long as it should be, or as long as the kernel lets it be."""

from __future__ import annotations

import asyncio
import errno

import pytest

from ubond.bond.events import DoorError
from ubond.netlink import TXQLEN_MAX, Netlink


class Kernel(Netlink):
    """One that refuses some lengths, and says with which error."""

    def __init__(self, most: int, number: int = errno.ERANGE) -> None:
        self._most, self._number, self.length = most, number, 0

    async def _set(self, name: str, what: str, flags: int = 0, change: int = 0, **attributes: object) -> None:
        length = attributes["TXQLEN"]
        assert isinstance(length, int)
        if length > self._most:
            raise DoorError(f"RTM_SETLINK {what}", self._number, name)
        self.length = length


LENGTHS = [(1 << 32, 65536, 65536), (32767, 65536, 32767), (32767, 4096, 4096)]


@pytest.mark.parametrize(("most", "asked", "had"), LENGTHS)
def test_a_queue_that_a_kernel_does_not_allow_is_as_long_as_it_does(most: int, asked: int, had: int) -> None:
    kernel = Kernel(most)
    asyncio.run(kernel.set_txqlen("bond0", asked))
    assert kernel.length == had


@pytest.mark.parametrize(("number", "asked"), [(errno.EPERM, 65536), (errno.ERANGE, TXQLEN_MAX)])
def test_other_refusals_are_the_callers(number: int, asked: int) -> None:
    with pytest.raises(DoorError):
        asyncio.run(Kernel(0, number).set_txqlen("bond0", asked))
