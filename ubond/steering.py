"""Which queue of the TAP a frame is read from: the first, unless somebody chose another.

A slave's `queue_id` means something only if frames come to that queue by choice (`tc ...
skbedit queue_mapping`, multiq), but a TAP with several queues spreads flows over all of them.
A program of two instructions that always answers 0 ends that.  What `skbedit` has chosen
does not ask it.

Sources: bpf(2), linux/if_tun.h, tc-skbedit(8).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct

from ubond.bond.events import DoorError

_TUNSETSTEERINGEBPF = 0x800454E0
_BPF_PROG_LOAD, _SOCKET_FILTER = 5, 1
_SYSCALL = {"x86_64": 321, "i686": 357, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "armv7l": 386,
            "ppc64le": 361, "s390x": 351}  # fmt: skip
#: r0 = 0; exit
_ALWAYS_FIRST = bytes.fromhex("b700000000000000") + bytes.fromhex("9500000000000000")


class Steering:
    """The program, loaded while the process still has the capability for it, and given to TAPs later."""

    def __init__(self) -> None:
        self._program: int | None = None
        self._refusal: DoorError | None = None
        try:
            self._program = _load()
        except DoorError as error:
            self._refusal = error

    def to_first(self, tap: int, interface: str) -> None:
        """Make every frame that nobody chose a queue for come to queue 0 of this TAP.

        DoorError where the kernel did not load the program (it needs CAP_BPF, or
        kernel.unprivileged_bpf_disabled=0).
        """
        if self._program is None:
            error = self._refusal
            assert error is not None
            raise DoorError(error.call, error.errno, interface, error.detail)
        try:
            fcntl.ioctl(tap, _TUNSETSTEERINGEBPF, struct.pack("i", self._program))
        except OSError as error:
            raise DoorError("TUNSETSTEERINGEBPF", error.errno or errno.EIO, interface) from None

    def close(self) -> None:
        """The program lives on in the TAPs that have it."""
        if self._program is not None:
            os.close(self._program)
            self._program = None


def _load() -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise DoorError("bpf", errno.ENOSYS, detail=f"unknown on {platform.machine()}")
    program, licence = ctypes.create_string_buffer(_ALWAYS_FIRST), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQIIQII", _SOCKET_FILTER, len(_ALWAYS_FIRST) // 8, ctypes.addressof(program),
                             ctypes.addressof(licence), 0, 0, 0, 0, 0)  # fmt: skip
    buffer = ctypes.create_string_buffer(attributes)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(number, _BPF_PROG_LOAD, buffer, len(attributes))
    if descriptor < 0:
        detail = "queue_id needs CAP_BPF, or sysctl kernel.unprivileged_bpf_disabled=0"
        raise DoorError("bpf(BPF_PROG_LOAD)", ctypes.get_errno(), detail=detail)
    return int(descriptor)
