"""Where a bond's files are while it runs, and whether it does.

Everything about one network namespace stands in one directory, because two namespaces may
each have a `bond0`:

    /run/ubond/                      the initial network namespace
    /run/ubond/ns/COOKIE/            any other; cookies are never used again, unlike inode numbers
        bond0.sock                   control socket
        bond0.lock                   locked by the daemon for as long as it lives
        bond0.journal                what must be given back
        proc/net/bonding/bond0       the kernel's text

`UBOND_RUNTIME_DIR` takes the place of /run/ubond, and so does `$XDG_RUNTIME_DIR/ubond` where
/run cannot be written to.  The client imports this: only what is cheap to import is used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from pathlib import Path

_SO_NETNS_COOKIE = 71
_INITIAL = 1  # cookie of the first network namespace
#: How often to begin again when what somebody else has just emptied is removed under our hands.
_TRIES = 20


class RuntimeDirError(OSError):
    """The runtime directory cannot be trusted or made; the text says which and why."""


def netns_cookie() -> int:
    """The kernel's number for this thread's network namespace; 1 is the initial one.

    Kernels before 5.14 have none: there the namespace's inode number, or 1 in that of process 1.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int(struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
    here = os.stat("/proc/thread-self/ns/net").st_ino
    try:
        return _INITIAL if os.stat("/proc/1/ns/net").st_ino == here else here
    except OSError:
        return here


def root_dir() -> Path:
    """The directory above all namespaces."""
    if override := os.environ.get("UBOND_RUNTIME_DIR"):
        if not override.startswith("/"):  # a daemon works in /, the commands elsewhere: they would not find each other
            raise RuntimeDirError(errno.EINVAL, f"UBOND_RUNTIME_DIR must begin with a slash, not be {override!r}")
        return Path(override)
    system = Path("/run/ubond")
    # Somebody who is not root looks for root's bonds; root who cannot write is in a user namespace.
    if os.access("/run", os.W_OK) or (os.geteuid() != 0 and system.is_dir()):
        return system
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    if own.startswith("/"):  # any other is to be ignored (XDG Base Directory Specification)
        return Path(own) / "ubond"
    return system


def runtime_dir() -> Path:
    """The directory of this thread's network namespace; it need not exist."""
    cookie = netns_cookie()
    return root_dir() if cookie == _INITIAL else root_dir() / "ns" / str(cookie)


def make_runtime_dir() -> Path:
    """Make the directory if need be, and return it; RuntimeDirError if others could write to it."""
    directory, root = runtime_dir(), root_dir()
    _make_directories([root, *(root / part for part in ("ns",) if directory != root), directory])
    return directory


def _make_directories(path: list[Path]) -> None:
    """Make these, each in the one before it.  Bonds that end remove what is empty, ours too until it is used."""
    for left in reversed(range(_TRIES)):
        try:
            for each in path:
                with contextlib.suppress(FileExistsError):
                    each.mkdir(mode=0o755)
                    each.chmod(0o755)  # whatever the process's umask
                check_directory(each)
            return
        except RuntimeDirError:
            raise
        except OSError as error:
            if not (left and isinstance(error, FileNotFoundError)):
                raise RuntimeDirError(error.errno, f"cannot make {each}: {error.strerror}") from None


def check_directory(directory: Path, fd: int | None = None) -> None:
    """RuntimeDirError unless this (open at `fd`) is a directory of ours that nobody else can write to."""
    found = os.lstat(directory) if fd is None else os.fstat(fd)
    if not stat.S_ISDIR(found.st_mode):
        raise RuntimeDirError(errno.ENOTDIR, f"{directory} is not a directory")
    if found.st_uid != os.geteuid():
        raise RuntimeDirError(errno.EPERM, f"{directory} belongs to user {found.st_uid}, not to us")
    if found.st_mode & 0o022:
        raise RuntimeDirError(errno.EPERM, f"{directory} can be written to by others; chmod 755 it")


def write_for_all(path: Path, text: str) -> None:
    """Make `path`, below the runtime directory, a file with this text that everybody may read; OSError.

    What is in its place is replaced, not written to, whatever the process's umask.
    """
    new, above = fresh(path), path.relative_to(runtime_dir()).parents[:-1]
    for left in reversed(range(_TRIES)):
        _make_directories([runtime_dir() / each for each in reversed(above)])
        new.unlink(missing_ok=True)
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
            break
        except FileNotFoundError:  # another bond of this namespace has ended
            if not left:
                raise
    try:
        # Names of interfaces need not be UTF-8.
        with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(fd, 0o644)
            file.write(text)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)  # half a file: the disk is full
        raise


def remove_empty_dirs() -> None:
    """Remove the directories of this namespace in which nothing is left."""
    directory, root = runtime_dir(), root_dir()
    bonding = directory / "proc" / "net" / "bonding"
    for each in (bonding, bonding.parent, bonding.parent.parent, directory, root / "ns", root):
        try:
            each.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            if each in (directory, root / "ns", root):
                return


def sweep(bond: str) -> None:
    """Remove what a dead daemon of this bond has left besides its journal."""
    try:
        fd = lock(bond)
    except FileNotFoundError:
        return  # not even the directory
    if fd is None:
        return  # nothing is left, or a living daemon has it
    remove_stale(bond)
    unlock(bond, fd)
    remove_empty_dirs()


def remove_stale(bond: str) -> None:
    """Remove what says that a daemon of this bond lives, and what one was about to write when it died.

    The caller holds the bond's lock.
    """
    for path in (socket_path(bond), proc_path(bond), fresh(proc_path(bond)), fresh(journal_path(bond))):
        path.unlink(missing_ok=True)


def fresh(path: Path) -> Path:
    """Where a file is written before it takes the place of the one at `path`."""
    return path.with_name(f".{path.name}.new")


def socket_path(bond: str) -> Path:
    return runtime_dir() / f"{bond}.sock"


def lock_path(bond: str) -> Path:
    return runtime_dir() / f"{bond}.lock"


def journal_path(bond: str) -> Path:
    return runtime_dir() / f"{bond}.journal"


def proc_path(bond: str) -> Path:
    """The counterpart of /proc/net/bonding/BOND."""
    return runtime_dir() / "proc" / "net" / "bonding" / bond


class Lock:
    """The lock of a bond that runs in this process, which may get another name or another holder."""

    def __init__(self, bond: str, descriptor: int) -> None:
        self.bond, self.descriptor = bond, descriptor

    def rename(self, bond: str) -> None:
        """Follow the bond's new name, which must be free."""
        lock_path(self.bond).rename(lock_path(bond))
        self.bond = bond

    def leave(self) -> None:
        """Let go of it for another process that holds it too (flock(2): one lock, however many copies)."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def release(self) -> None:
        """The bond ends.  Nothing to do after `leave`."""
        if self.descriptor >= 0:
            unlock(self.bond, self.descriptor)
        self.descriptor = -1


def lock_anew(bond: str) -> int | None:
    """Take the lock of a bond that begins, and make the directory that it is in."""
    for _ in range(_TRIES):
        make_runtime_dir()
        with contextlib.suppress(FileNotFoundError):  # another bond of this namespace has ended
            return lock(bond)
    return lock(bond)


def lock(bond: str) -> int | None:
    """Take the bond's lock; return its descriptor, or None while a daemon holds it.

    It is held until the descriptor is closed, by whatever end the process comes to.
    """
    path = lock_path(bond)
    for attempt in range(5):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass  # its last holder has just removed it: that lock says nothing any more
        except BlockingIOError:
            if attempt:
                # `running` holds it for a moment only, a daemon for good.
                time.sleep(0.01)
        os.close(fd)
    return None


def unlock(bond: str, fd: int) -> None:
    """Remove the lock file and let go of it, in this order: nobody may lock a file that is gone."""
    lock_path(bond).unlink(missing_ok=True)
    os.close(fd)


def is_free(bond: str) -> bool:
    """Whether no bond of this name lives here or has died and left something to be given back."""
    return not running(bond) and not journal_path(bond).exists()


def running(bond: str) -> bool:
    """Whether a daemon of this bond lives in this network namespace."""
    path = lock_path(bond)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except PermissionError:
        return _somebody_listens(bond)  # only its owner may touch the lock
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _somebody_listens(bond: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(socket_path(bond)))
        except PermissionError:
            return True  # a socket that we may not use: the daemon removes its own at the end
        except OSError:
            return False
    return True


def bonds() -> list[str]:
    """Names of all bonds that run in this network namespace, sorted."""
    directory = runtime_dir()
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    ours = sorted(name.removesuffix(".lock") for name in names if name.endswith(".lock"))
    return [name for name in ours if running(name)]


def left_behind() -> list[str]:
    """Names of bonds whose daemon died and left something, sorted: a journal, or but its lock."""
    directory = runtime_dir()
    try:
        names = os.listdir(directory)
    except OSError:
        return []
    ours = {name.rpartition(".")[0] for name in names if name.endswith((".journal", ".lock"))}
    return sorted(name for name in ours if not running(name))
