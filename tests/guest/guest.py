#!/usr/bin/env python3
"""A virtual machine with the stock kernel, to run things on real drivers and beside the real bonding driver.

    python tests/guest/guest.py --nic eth1 --nic eth2:e1000 --nic peer script.sh

    with Guest([Nic("eth1"), Nic("eth2", "e1000"), Nic("peer")]) as guest:
        guest.run("modprobe bonding && cat /sys/class/net/bonding_masters").check()
        pinging = guest.start("ping -c 100 -i 0.1 192.0.2.1")
        guest.set_link("eth1", False)
        print(pinging.wait(60).check())

The guest is QEMU without KVM.  Its root is the host's, read-only by 9p under an overlay in memory, so all that the host
has is there too (this checkout's `ubond` as a command, the Python that runs this), and nothing a script writes is left.
Its NICs are joined to each other inside QEMU; no interface of the host's has a part in it.  README.md has the details.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import prepare

INSIDE = Path(__file__).resolve().parent / "inside"
#: QEMU's NIC model -> the Linux driver that finds it.
DRIVERS = {"virtio-net-pci": "virtio_net", "e1000": "e1000", "e1000e": "e1000e", "vmxnet3": "vmxnet3",
           "rtl8139": "8139cp", "pcnet": "pcnet32", "ne2k_pci": "ne2k-pci"}  # fmt: skip
#: Bounds, so that nothing hangs.  A boot takes eight seconds on two idle cores, and many times that on busy ones.
BOOT_SECONDS, SCRIPT_SECONDS, LIFE_SECONDS = 400.0, 240.0, 3600.0


class GuestError(Exception):
    """What went wrong, with what the guest said last."""


@dataclass(frozen=True, slots=True)
class Between:
    """A cable to another guest: two paths of unix sockets, `here` and `there` the other way round over there."""

    here: Path
    there: Path

    @property
    def other_end(self) -> Between:
        return Between(self.there, self.here)


@dataclass(frozen=True, slots=True)
class Nic:
    """One NIC of a guest.

    `name` is the interface's in the guest, at most 9 characters; `model` QEMU's name for the device.  NICs with
    the same `wire` hang on one hub: what one sends, all the others get.  Two of them alone are a cable.
    """

    name: str
    model: str = "virtio-net-pci"
    wire: str | Between = "hub"


@dataclass(frozen=True, slots=True)
class Result:
    """What a script said, and its exit code (128 + signal, as a shell's)."""

    stdout: str
    stderr: str
    code: int

    def check(self) -> str:
        """Return stdout; GuestError unless the code is 0."""
        if self.code:
            raise GuestError(f"exit code {self.code}\n{self.stdout}{self.stderr}".strip())
        return self.stdout


class Job:
    """A script that was started in a guest."""

    def __init__(self, guest: Guest, directory: Path) -> None:
        self._guest, self._directory = guest, directory
        self._ended = threading.Event()
        self._code: int | None = None

    def end(self, code: int | None) -> None:
        """Called when the script ended, or (None) when the guest did before it."""
        if not self._ended.is_set():
            self._code = code
            self._ended.set()

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        return self._read("stderr")

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def wait_for(self, text: str, timeout: float = SCRIPT_SECONDS) -> None:
        """Return when `text` is in stdout; GuestError if the script ends without it or `timeout` seconds pass."""
        end = time.monotonic() + timeout
        while text not in self.stdout:
            if self._ended.wait(0.02) and text not in self.stdout:
                raise GuestError(f"ended without saying {text!r}\n{self.stdout}{self.stderr}")
            if time.monotonic() > end:
                raise self._guest.failed(f"{text!r} was not said within {timeout:g} s\n{self.stdout}{self.stderr}")

    def wait(self, timeout: float = SCRIPT_SECONDS) -> Result:
        """Return when it has ended; GuestError after `timeout` seconds, or when the guest ended first.

        After that error the guest is closed: what still ran in it is gone.
        """
        if not self._ended.wait(timeout):
            said = f"{self.stdout}{self.stderr}"
            self._guest.close()
            raise self._guest.failed(f"the script had not ended after {timeout:g} s\n{said}")
        if self._code is None:
            raise self._guest.failed(f"the guest ended before the script\n{self.stdout}{self.stderr}")
        return Result(self.stdout, self.stderr, self._code)

    def _read(self, name: str) -> str:
        try:
            return (self._directory / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""


class Guest:
    """A running guest, from `with` to the end of its block.

    It ends after `lifetime` seconds whatever happens, and soon after its maker's end if that was killed.
    """

    def __init__(self, nics: Sequence[Nic] = (), *, memory: int = 1024, cpus: int = 1,
                 lifetime: float = LIFE_SECONDS) -> None:
        """`memory` in MiB; two emulated `cpus` wait for each other, and on a busy machine get nowhere.

        Nothing is started yet.
        """
        self.nics = tuple(nics)
        self._memory, self._cpus, self._lifetime = memory, cpus, lifetime
        self._jobs: dict[int, Job] = {}
        self._up = threading.Event()
        self._console = ""
        self._open = contextlib.ExitStack()
        self.boot_seconds = 0.0

    def __enter__(self) -> Guest:
        start = time.monotonic()
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        self.boot_seconds = time.monotonic() - start
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ── what it is for ───────────────────────────────────────────────────────────────────

    def run(self, script: str, *, timeout: float = SCRIPT_SECONDS,
            files: Mapping[str, str | bytes] | None = None) -> Result:
        """Run a script to its end; see `start`.  GuestError when it takes longer than `timeout` seconds."""
        return self.start(script, files=files).wait(timeout)

    def start(self, script: str, *, files: Mapping[str, str | bytes] | None = None) -> Job:
        """Start a script as root, in a directory that has `files` in it.  Without `#!` it is `sh -eu`.

        Scripts started while others run, run beside them.
        """
        number = len(self._jobs) + 1
        directory = self._exchange / str(number)
        directory.mkdir()
        for name, content in (files or {}).items():
            (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        path = directory / "script"
        path.write_text(script if script.startswith("#!") else f"#!/bin/sh -eu\n{script}\n")
        path.chmod(0o755)
        job = self._jobs[number] = Job(self, directory)
        try:
            self._orders.sendall(f"{number}\n".encode())
        except OSError:
            job.end(None)
        return job

    def read(self, name: str) -> str:
        """A file that a script has written as /run/guest/NAME."""
        return (self._exchange / name).read_text()

    def set_link(self, nic: str, up: bool) -> None:
        """Plug (`up`) or pull a NIC's cable; the emulated NIC knows when this returns.

        A script can do it too: `cable NIC on|off`.
        """
        if nic not in [known.name for known in self.nics]:
            raise GuestError(f"no NIC {nic}")
        self.qmp("set_link", name=nic, up=up)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Give QEMU's monitor a command (QEMU's QMP reference) and return its answer."""
        with self._monitor_lock:
            try:
                self._monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                self._monitor.flush()
                for line in self._monitor:
                    answer = json.loads(line)
                    if "error" in answer:
                        raise GuestError(f"{command}: {answer['error']['desc']}")
                    if "return" in answer:
                        return answer["return"]
            except (OSError, ValueError) as error:
                raise self.failed(f"{command}: {error}") from None
        raise self.failed(f"{command}: QEMU has ended")

    @property
    def console(self) -> str:
        """What the kernel said, also after the end."""
        with contextlib.suppress(OSError):
            self._console = (self._directory / "console").read_text(errors="replace")
        return self._console

    def failed(self, what: str) -> GuestError:
        """An error that also tells the end of the console."""
        console = "\n".join(self.console.splitlines()[-15:])
        return GuestError(f"{what.rstrip()}\n-- console --\n{console}")

    def close(self) -> None:
        """End the guest and remove what it had; may be called twice."""
        self._open.close()

    # ── how it is done ───────────────────────────────────────────────────────────────────

    def _boot(self) -> None:
        kernel = prepare.kernel()
        archive = prepare.initramfs(kernel)
        qemu = shutil.which("qemu-system-x86_64")
        if qemu is None:
            raise GuestError("no qemu-system-x86_64 here: apt-get install --no-install-recommends qemu-system-x86")
        # Not below TMPDIR if that is long: a unix socket's path has 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix=f"ubond-guest-{os.getpid()}-", dir="/tmp"))
        self._open.callback(self._remove)
        self._exchange = self._directory / "exchange"
        self._fill_exchange(kernel)
        # In the foreground it stays in the group of processes that _kill ends.
        command = ["timeout", "--foreground", "-s", "KILL", f"{self._lifetime:g}", qemu,
                   *self._arguments(kernel, archive)]
        # The shell removes the directory when we cannot: QEMU ends by itself soon after its maker.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", '"$@" >"$0/qemu" 2>&1; rm -rf "$0"', str(self._directory), *command],
            stdin=subprocess.DEVNULL, start_new_session=True)
        self._open.callback(self._kill)
        self._monitor_lock = threading.Lock()
        self._monitor = self._connect("monitor").makefile("rw")
        self._monitor.readline()    # the greeting
        self.qmp("qmp_capabilities")
        self._orders, self._cables = self._connect("orders"), self._connect("cables")
        listener = threading.Thread(target=self._listen, name="guest")
        listener.start()
        self._open.callback(listener.join)
        self._open.callback(self._kill)
        end = time.monotonic() + BOOT_SECONDS
        while not self._up.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > end:
                raise self.failed("the guest did not come up" + self._said_qemu())

    def _fill_exchange(self, kernel: prepare.Kernel) -> None:
        programs = self._exchange / "bin"
        programs.mkdir(parents=True)
        for name in ("main", "cable"):
            shutil.copy(INSIDE / name, programs / name)
        shutil.copy(kernel.busybox, programs / "busybox")
        ubond = programs / "ubond"
        ubond.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ubond "$@"\n')
        ubond.chmod(0o755)
        path = ":".join(["/run/guest/bin", str(Path(sys.executable).parent), "/usr/local/sbin", "/usr/local/bin",
                         "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        environment = {"PATH": path, "PYTHONPATH": str(prepare.CHECKOUT), "HOME": "/root", "LANG": "C.UTF-8",
                       "GUEST_MODULES": str(kernel.modules.resolve())}
        (self._exchange / "environment").write_text(
            "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()))
        (self._exchange / "nics").write_text(
            "".join(f"{DRIVERS[nic.model]} {_mac(number)} {nic.name}\n" for number, nic in enumerate(self.nics)))

    def _arguments(self, kernel: prepare.Kernel, archive: Path) -> list[str]:
        # The emulation without KVM is the same everywhere; with it a guest boots faster, where there is one.
        accelerator = os.environ.get("UBOND_GUEST_ACCEL", "tcg")
        arguments = [
            "-accel", accelerator, "-cpu", "max", "-smp", str(self._cpus), "-m", str(self._memory),
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(kernel.image), "-initrd", str(archive),
            # no_timer_check: on a busy machine the emulated timer's ticks come too late for the kernel's test of it.
            "-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on net.ifnames=0 no_timer_check",
            "-chardev", f"file,id=console,path={self._directory}/console", "-serial", "chardev:console",
            "-qmp", f"unix:{self._directory}/monitor,server=on,wait=off",
            "-device", "virtio-serial-pci",
            "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
            "-fsdev", f"local,id=exchange,path={self._exchange},security_model=none",
            "-device", "virtio-9p-pci,fsdev=exchange,mount_tag=exchange",
        ]  # fmt: skip
        for port in ("orders", "cables"):
            arguments += ["-chardev", f"socket,id={port},path={self._directory}/{port},server=on,wait=off",
                          "-device", f"virtserialport,chardev={port},name={port}"]
        hubs = list(dict.fromkeys(nic.wire for nic in self.nics))
        for number, nic in enumerate(self.nics):
            if isinstance(nic.wire, Between):
                wire = (f"dgram,local.type=unix,local.path={nic.wire.here},"
                        f"remote.type=unix,remote.path={nic.wire.there}")
            else:
                wire = f"hubport,hubid={hubs.index(nic.wire)}"
            arguments += ["-netdev", f"{wire},id=wire-{nic.name}",
                          "-device", f"{nic.model},id={nic.name},netdev=wire-{nic.name},mac={_mac(number)},romfile="]
        return arguments

    def _connect(self, name: str) -> socket.socket:
        """Connect to one of QEMU's sockets, as soon as it has made it."""
        sock = self._open.enter_context(socket.socket(socket.AF_UNIX))
        end = time.monotonic() + 10.0
        while True:
            try:
                sock.connect(str(self._directory / name))
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise GuestError("QEMU did not start" + self._said_qemu()) from None
                time.sleep(0.01)
            else:
                return sock

    def _listen(self) -> None:
        """What comes from inside, until the guest's end: "up" and scripts' ends, and cables to pull."""
        waiting = {self._orders: b"", self._cables: b""}
        with selectors.DefaultSelector() as ready:
            for each in waiting:
                ready.register(each, selectors.EVENT_READ, each)
            while True:
                for key, _ in ready.select():
                    sock: socket.socket = key.data
                    try:
                        data = sock.recv(4096)
                    except OSError:
                        data = b""
                    if not data:
                        for job in list(self._jobs.values()):
                            job.end(None)
                        return
                    *lines, waiting[sock] = (waiting[sock] + data).split(b"\n")
                    for line in lines:
                        self._heard(sock, line.decode())

    def _heard(self, sock: socket.socket, line: str) -> None:
        if sock is self._cables:
            nic, _, state = line.partition(" ")
            try:
                if state not in ("on", "off"):
                    raise GuestError(f"on or off, not {state}")
                self.set_link(nic, state == "on")
                answer = "done"
            except GuestError as error:
                answer = str(error).partition("\n")[0]
            with contextlib.suppress(OSError):
                sock.sendall(f"{answer}\n".encode())
        elif line == "up":
            self._up.set()
        else:
            number, code = line.split()
            self._jobs[int(number)].end(int(code))

    def _said_qemu(self) -> str:
        try:
            return "\n" + (self._directory / "qemu").read_text(errors="replace")
        except OSError:
            return ""

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _remove(self) -> None:
        _ = self.console    # remembered for who asks later
        shutil.rmtree(self._directory, ignore_errors=True)
        for nic in self.nics:
            if isinstance(nic.wire, Between):
                nic.wire.here.unlink(missing_ok=True)


def run(script: str, *, nics: Sequence[Nic] = (), timeout: float = SCRIPT_SECONDS,
        files: Mapping[str, str | bytes] | None = None) -> Result:
    """Boot a guest for one script."""
    with Guest(nics, lifetime=timeout + BOOT_SECONDS) as guest:
        return guest.run(script, timeout=timeout, files=files)


def _mac(number: int) -> str:
    return f"52:54:00:75:62:{number + 1:02x}"


def _nic(text: str) -> Nic:
    """NAME[:MODEL[:WIRE]]"""
    name, model, wire = [*text.split(":"), "", ""][:3]
    if model and model not in DRIVERS:
        raise argparse.ArgumentTypeError(f"{model} is none of {', '.join(DRIVERS)}")
    return Nic(name, model or "virtio-net-pci", wire or "hub")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a script in a virtual machine with the stock kernel.")
    parser.add_argument("--nic", type=_nic, action="append", default=[], metavar="NAME[:MODEL[:WIRE]]",
                        help=f"a NIC ({', '.join(DRIVERS)}); those with the same WIRE hang on one hub")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for the script (300)")
    parser.add_argument("--console", action="store_true", help="what the kernel said, too")
    parser.add_argument("script", type=argparse.FileType(), help="a file, or - for standard input")
    options = parser.parse_args()
    try:
        with Guest(options.nic, lifetime=options.timeout + BOOT_SECONDS) as guest:
            print(f"up after {guest.boot_seconds:.1f} s", file=sys.stderr)
            result = guest.run(options.script.read(), timeout=options.timeout)
            if options.console:
                print(guest.console, file=sys.stderr)
    except (GuestError, prepare.PrepareError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return 125
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result.code


if __name__ == "__main__":
    sys.exit(main())
