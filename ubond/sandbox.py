"""What the daemon gives up before it touches a frame: capabilities, new privileges, system calls.

Called once, while the process has one thread: threads started later inherit all of it.

* Capabilities: CAP_NET_ADMIN and CAP_NET_RAW stay, as far as they were held.  The files in the
  runtime directory are the daemon's own, so CAP_DAC_OVERRIDE is not missed; the one program that
  asks for CAP_BPF is loaded before (`steering.load`).
* No new privileges: no file's set-user-ID bit or capabilities count any more.
* A seccomp filter by libseccomp, through whichever Python binding can be imported: Debian's
  python3-seccomp or PyPI's pyseccomp.  What is not listed here is answered with EPERM.

Sources: capabilities(7), prctl(2), seccomp(2), seccomp_rule_add(3).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import os
import platform
import struct
from typing import Any

CAP_NET_ADMIN, CAP_NET_RAW = 12, 13
KEPT = {CAP_NET_ADMIN: "CAP_NET_ADMIN", CAP_NET_RAW: "CAP_NET_RAW"}

_PR_SET_NAME, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 15, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_THREAD = 0x10000
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET = 1, 2, 10, 16, 17

_BINDINGS = ("seccomp", "pyseccomp")

#: Everything that the daemon, its worker, its watch and its helper threads call, by what it is for.
#: Names that this libseccomp or this machine does not know are passed over.
ALLOWED: dict[str, str] = {
    "frames": "recvmmsg recvmmsg_time64 sendmmsg recvmsg sendmsg recvfrom sendto recv send read readv write writev",
    "waiting": "epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 "
    "timerfd_create timerfd_settime timerfd_settime64 timerfd_gettime timerfd_gettime64 poll ppoll ppoll_time64 "
    "select pselect6 pselect6_time64 _newselect pipe pipe2",
    "sockets": "bind connect listen accept accept4 shutdown getsockopt setsockopt getsockname getpeername socketpair",
    "devices": "ioctl fcntl fcntl64 dup dup2 dup3 close close_range",
    "files": "open openat stat stat64 lstat lstat64 fstat fstat64 newfstatat fstatat64 statx access faccessat "
    "faccessat2 readlink readlinkat getdents getdents64 lseek _llseek pread64 preadv pwrite64 pwritev rename renameat "
    "renameat2 unlink unlinkat mkdir mkdirat rmdir chmod fchmod fchmodat fsync fdatasync flock ftruncate ftruncate64 "
    "umask getcwd chdir statfs statfs64 fstatfs fstatfs64",
    "memory": "mmap mmap2 munmap mremap mprotect madvise brk membarrier mlock munlock mincore",
    "threads": "futex futex_time64 set_robust_list get_robust_list rseq set_tid_address sched_yield sched_getaffinity "
    "sched_setaffinity sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min gettid getcpu "
    "exit exit_group arch_prctl set_thread_area restart_syscall",
    "signals": "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigtimedwait_time64 "
    "rt_sigsuspend sigreturn sigaltstack tgkill signalfd signalfd4 wait4 waitid waitpid",
    "time": "clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep clock_nanosleep_time64 "
    "nanosleep gettimeofday time times",
    "self": "getpid getppid getuid geteuid getgid getegid getuid32 geteuid32 getgid32 getegid32 getgroups getgroups32 "
    "getresuid getresgid getsid getpgid getpgrp getrandom getrlimit ugetrlimit prlimit64 getrusage uname sysinfo "
    "capget",
}
#: What a keeper calls besides: it starts daemons and ends them, and they confine themselves.
KEEPERS = "clone fork vfork kill prctl seccomp capset memfd_create"
#: Families of sockets: control, ioctls, the kernel's configuration, frames.
_FAMILIES = (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK, _AF_PACKET)
#: What libraries try first and can do without, if they hear that the kernel has none of it.
_AS_IF_UNKNOWN = ("clone3", "io_uring_setup", "openat2", "futex_waitv", "map_shadow_stack")


def confine(*, keeper: bool = False) -> str:
    """Give up all that is not needed; return what was done, for `status`.

    `keeper`: may still start processes, which confine themselves further.
    OSError where the kernel refuses to take something away.
    """
    kept = drop_capabilities()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return f"{' '.join(kept) or 'no capabilities'} only, no new privileges, {_filter_calls(keeper)}"


# ── capabilities ─────────────────────────────────────────────────────────────────────


def drop_capabilities() -> list[str]:
    """Keep `KEPT` as far as this thread holds them, and drop the rest; return what stays."""
    for capability in range(_last_capability() + 1):
        if capability not in KEPT:
            _prctl(_PR_CAPBSET_DROP, capability, may_fail=True)  # without CAP_SETPCAP: no program will be run anyway
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, may_fail=True)
    kept = _permitted() & sum(1 << capability for capability in KEPT)
    words = [kept & 0xFFFFFFFF, kept >> 32]
    data = struct.pack("=6I", words[0], words[0], 0, words[1], words[1], 0)
    _capability_call("capset", data)
    return [name for capability, name in KEPT.items() if kept >> capability & 1]


def _permitted() -> int:
    words = struct.unpack("=6I", _capability_call("capget", bytes(24)))
    return int(words[1] | words[4] << 32)


def _capability_call(name: str, data: bytes) -> bytes:
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    buffer = ctypes.create_string_buffer(data, len(data))
    if getattr(_libc(), name)(header, buffer):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return buffer.raw


def _last_capability() -> int:
    try:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            return int(file.read())
    except OSError:
        return 40  # CAP_CHECKPOINT_RESTORE; more are refused and passed over


def _prctl(option: int, argument: int, *, may_fail: bool = False) -> None:
    words = [ctypes.c_ulong(word) for word in (argument, 0, 0, 0)]
    if _libc().prctl(option, *words) and not may_fail:
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


# ── system calls ─────────────────────────────────────────────────────────────────────


def _filter_calls(keeper: bool) -> str:
    """Load the filter in every thread; say what came of it."""
    if os.environ.get("UBOND_SECCOMP") == "off":
        return "no seccomp filter (UBOND_SECCOMP=off)"
    library = _binding()
    if library is None:
        return "no seccomp filter (needs the Python module pyseccomp or seccomp, and libseccomp)"
    # libuv would read and write files by io_uring, which no filter sees.
    os.environ["UV_USE_IO_URING"] = "0"
    try:
        _build(library, keeper).load()
    except OSError as error:
        return f"no seccomp filter (refused: {error.strerror or error})"
    return f"seccomp filter ({library.__name__})"


def _binding() -> Any:
    for name in _BINDINGS:
        try:
            return importlib.import_module(name)
        except (ImportError, RuntimeError, OSError):  # RuntimeError: the binding without its library
            continue
    return None


def _build(library: Any, keeper: bool) -> Any:
    made = library.SyscallFilter(library.ERRNO(errno.EPERM))
    made.set_attr(library.Attr.CTL_TSYNC, 1)
    with contextlib.suppress(AttributeError, OSError, ValueError, RuntimeError):
        made.set_attr(library.Attr.CTL_OPTIMIZE, 2)  # a tree instead of a list, since libseccomp 2.5

    def rule(action: int, name: str, *arguments: Any) -> None:
        try:
            number = library.resolve_syscall(library.Arch.NATIVE, name)
        except (OSError, ValueError, RuntimeError):
            return
        if number != -1:  # __NR_SCMP_ERROR: newer than this library
            made.add_rule(action, name, *arguments)

    for names in ALLOWED.values():
        for name in names.split():
            rule(library.ALLOW, name)
    for family in _FAMILIES:
        rule(library.ALLOW, "socket", library.Arg(0, library.EQ, family))
    for name in KEEPERS.split() if keeper else ():
        rule(library.ALLOW, name)
    # Threads, but no process; s390 has the first two arguments in the other order.
    flags = 1 if platform.machine().startswith("s390") else 0
    rule(library.ALLOW, "clone", library.Arg(flags, library.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
    rule(library.ALLOW, "prctl", library.Arg(0, library.EQ, _PR_SET_NAME))
    if os.getpid() == 1:
        rule(library.ALLOW, "kill")  # the first process of a container passes signals on
    for name in _AS_IF_UNKNOWN:
        rule(library.ERRNO(errno.ENOSYS), name)
    return made


# ── tests only ───────────────────────────────────────────────────────────────────────

#: Calls that fail in another way where they are allowed, and do no harm.
_PROBES = {"execve": (0, 0, 0), "memfd_create": (0, 0), "personality": (0xFFFFFFFF,), "socket": (38, 5, 0),
           "getpid": ()}  # fmt: skip


def attempt(call: str) -> str:
    """Make a system call in the calling thread and tell its outcome: `EPERM`, or `allowed`.

    Behind the control request `hook`, which exists only where UBOND_TEST_HOOKS=1 is set.
    """
    if call == "fork":
        try:
            child = os.fork()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return "allowed"
    library = _binding()
    number = library.resolve_syscall(library.Arch.NATIVE, call)
    libc = _libc()
    outcome = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(each) for each in _PROBES[call]))
    return "allowed" if outcome >= 0 else errno.errorcode[ctypes.get_errno()]
