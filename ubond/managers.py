"""Other programs that manage interfaces are told to leave the bond and its slaves alone.

    NetworkManager      /run/NetworkManager/conf.d/ubond-NAME.conf       unmanaged-devices
    systemd-networkd    /run/systemd/network/10-ubond-NAME.network       Unmanaged=yes
    systemd-udevd       /run/systemd/network/10-ubond-NAME.link          MACAddressPolicy=none for the bond
    dhcpcd              nothing can be put beside its configuration: a note says what to write there

Runtime files only: they are written at `up`, follow the slaves, and go at `down` and with what a
dead daemon left.  Only where the program is present, and only in the network namespace in which
process 1 runs: the same names in another namespace are other interfaces.

Sources: NetworkManager.conf(5), systemd.network(5), systemd.link(5), dhcpcd.conf(5).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

_BINARIES = ("usr/bin", "usr/sbin", "bin", "sbin", "usr/local/bin", "usr/local/sbin")
_SYSTEMD = ("usr/lib/systemd", "lib/systemd")
#: Seconds that a manager may take to read its configuration again.
_PATIENCE = 3.0

_HEADER = "# Written by ubond while {bond} runs; removed when it ends.\n"


class Managers:
    """What other managers of interfaces are told about one bond.  May be called from any thread."""

    def __init__(self, bond: str, root: Path | None = None, errand: Errand | None = None) -> None:
        """`root`: the tree in which they are looked for and written to; None: this system's.

        `errand`: who has them read what was written, for a process that may run no program.
        """
        self.bond = bond
        self._errand = errand
        self._given = root or _root_from_environment()
        self._root = self._given or Path("/")
        # Asked once: a daemon that has given up its other capabilities may not look at process 1 any more.
        self._concerned = self._given is not None or _is_the_managers_namespace()
        self._interfaces: tuple[str, ...] = ()
        self._slaves: tuple[str, ...] = ()
        self._turn = threading.Lock()
        self._over = False

    def tell(self, slaves: Sequence[str]) -> list[str]:
        """Have the bond and these slaves left alone; return what a person should know.

        What cannot be written is such a note too: a bond can run beside a manager.
        """
        with self._turn:
            self._slaves = tuple(slaves)
            interfaces = (self.bond, *sorted(slaves))
            if self._over or interfaces == self._interfaces or not self._concerned:
                return []
            self._interfaces = interfaces
            return [*self._write_all(interfaces), *self._remarks(interfaces)]

    @property
    def told(self) -> frozenset[str]:
        """The slaves that are left alone by what `tell` was given last."""
        return frozenset(self._slaves)

    def _write_all(self, interfaces: Sequence[str]) -> Iterator[str]:
        for path, text in self._files(interfaces):
            try:
                _write(path, text)
            except OSError as error:
                yield f"{path} could not be written: {error.strerror}: keep its manager away from the bond"
        self._reload()

    def _remarks(self, interfaces: Sequence[str]) -> Iterator[str]:
        if self._dhcpcd:
            yield f"dhcpcd runs here: put this into /etc/dhcpcd.conf: denyinterfaces {' '.join(interfaces)}"

    def forget(self) -> None:
        """The bond ends: remove what was written for it, by this process or by one that died."""
        with self._turn:
            self._over = True
            self._remove()

    def rename(self, bond: str) -> None:
        """The bond has another name: what was written under the old one goes; `tell` again."""
        with self._turn:
            self._remove()
            self.bond = bond

    def _remove(self) -> None:
        self._interfaces = ()
        if not self._concerned:
            return
        gone = []
        for path in (self._networkmanager_file, self._network_file, self._link_file):
            with contextlib.suppress(OSError):
                path.unlink()
                gone.append(path)
        if gone:
            self._reload()

    # ── who is here ──────────────────────────────────────────────────────────────────

    @property
    def _networkmanager(self) -> bool:
        return (self._root / "run/NetworkManager").is_dir() and self._has(_BINARIES, "NetworkManager", "nmcli")

    @property
    def _networkd(self) -> bool:
        return (self._root / "run/systemd").is_dir() and self._has(_SYSTEMD, "systemd-networkd")

    @property
    def _udevd(self) -> bool:
        return (self._root / "run/udev").is_dir() and (self._root / "run/systemd").is_dir()

    @property
    def _dhcpcd(self) -> bool:
        run = self._root / "run"
        return ((run / "dhcpcd").is_dir() or (run / "dhcpcd.pid").exists()) and self._has(_BINARIES, "dhcpcd")

    def _has(self, directories: Sequence[str], *names: str) -> bool:
        return any((self._root / directory / name).exists() for directory in directories for name in names)

    # ── what is written ──────────────────────────────────────────────────────────────

    @property
    def _networkmanager_file(self) -> Path:
        return self._root / "run/NetworkManager/conf.d" / f"ubond-{self.bond}.conf"

    @property
    def _network_file(self) -> Path:
        return self._root / "run/systemd/network" / f"10-ubond-{self.bond}.network"

    @property
    def _link_file(self) -> Path:
        return self._root / "run/systemd/network" / f"10-ubond-{self.bond}.link"

    def _files(self, interfaces: Sequence[str]) -> Iterator[tuple[Path, str]]:
        header = _HEADER.format(bond=self.bond)
        if self._networkmanager:
            devices = ";".join(f"interface-name:{name}" for name in interfaces)
            # A section of its own name: two bonds must not overwrite one another's list.
            yield self._networkmanager_file, (
                f"{header}[device-ubond-{self.bond}]\nmatch-device={devices}\nmanaged=0\n"
                f"\n[keyfile]\nunmanaged-devices+={devices}\n"
            )
        if self._networkd:
            names = " ".join(interfaces)
            yield self._network_file, f"{header}[Match]\nName={names}\n\n[Link]\nUnmanaged=yes\n"
        if self._udevd:
            # udev would otherwise give the TAP a MAC made from its name, a moment after it was made.
            yield self._link_file, (
                f"{header}[Match]\nOriginalName={self.bond}\n\n[Link]\nMACAddressPolicy=none\n"
            )

    def _reload(self) -> None:
        """Have the managers that run read it; in a tree that is not this system's there are none."""
        if self._given is None:
            reload = self._errand.run if self._errand is not None else reload_managers
            reload()

    @property
    def need_errands(self) -> bool:
        """Whether a manager is here that has to be told to read its files."""
        return self._given is None and self._concerned and (self._networkmanager or self._networkd)


class Errand:
    """A child process that runs the managers' reload commands for a daemon that has given that up.

    Forked before the daemon confines itself (`sandbox`).  It knows nothing but these commands, and
    ends with the daemon: its end of the socket says so.
    """

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(3 * _PATIENCE)
        if os.fork() == 0:
            code = 1
            try:
                _close_all_but(theirs.fileno())
                _serve_errands(theirs)
                code = 0
            finally:
                os._exit(code)
        theirs.close()

    def run(self) -> None:
        """Have the managers read their files; return when they have, or do not answer."""
        with contextlib.suppress(OSError):
            self._ours.send(b"reload")
            self._ours.recv(16)

    def close(self) -> None:
        """The child ends; nobody waits for it, process 1 collects it."""
        self._ours.close()


def _close_all_but(keep: int) -> None:
    """Close what a fork has inherited: the lock, and the pipe whose end `ubond up` waits for."""
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def _serve_errands(socket_: socket.socket) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends when the daemon has, not before
    while socket_.recv(16):
        reload_managers()
        socket_.send(b"done")


def reload_managers() -> None:
    """Ask the managers that run to read their files."""
    _run("nmcli", "general", "reload", "conf")
    if os.path.isdir("/run/systemd/netif"):
        _run("networkctl", "reload")


def _root_from_environment() -> Path | None:
    """`UBOND_MANAGERS_ROOT` takes the place of /, for tests and for images that are being built."""
    root = os.environ.get("UBOND_MANAGERS_ROOT")
    return Path(root) if root else None


def _is_the_managers_namespace() -> bool:
    try:
        return os.path.samefile("/proc/1/ns/net", "/proc/thread-self/ns/net")
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    """Write a file that is whole at every moment; its directory is made if need be."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    new = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(new, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    fresh.replace(path)


def _run(*command: str) -> None:
    """Ask a manager to read its files; one that does not answer reads them when it starts."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
