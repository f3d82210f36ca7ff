#!/usr/bin/env python3
"""What a guest is booted from: Debian's (or Ubuntu's) stock kernel and an initramfs around busybox.

    python tests/guest/prepare.py           once, with network; then guests start without any

The packages are unpacked into `build/guest` and not installed: no boot loader, no hooks, no root.  Only QEMU itself
is the system's (`apt-get install --no-install-recommends qemu-system-x86`).  UBOND_GUEST_CACHE names another directory.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("UBOND_GUEST_CACHE") or CHECKOUT / "build" / "guest")
INIT = Path(__file__).resolve().parent / "inside" / "init"

#: The kernel's package is whatever one of these depends on.
META_PACKAGES = ("linux-image-amd64", "linux-image-generic")
#: Needed before the host's root is mounted, and with it modprobe.
FIRST_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")
#: Half of the package is for hardware that QEMU is not asked to emulate.
NOT_NEEDED = re.compile(r"/kernel/(sound|drivers/(gpu|media|staging|infiniband|scsi|usb|iio|hid|video|mtd|nvme|md))/")


class PrepareError(Exception):
    """What is missing and how to get it, on one line."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel.  `modules` is the directory of that version below `lib/modules`."""

    version: str
    image: Path
    modules: Path
    busybox: Path


def kernel() -> Kernel:
    """The newest kernel in the cache; PrepareError if there is none."""
    busybox = CACHE / "busybox"
    for root in sorted(CACHE.glob("linux-*"), key=lambda path: path.stat().st_mtime, reverse=True):
        version = root.name.removeprefix("linux-")
        modules = root / "lib" / "modules" / version
        if busybox.exists() and (modules / "modules.dep").exists():
            return Kernel(version, root / "vmlinuz", modules, busybox)
    raise PrepareError(f"no kernel for guests in {CACHE}: run {Path(__file__).resolve()} once, with network")


def prepare() -> Kernel:
    """Download and unpack what the cache does not have; return what guests will boot."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return kernel()
        except PrepareError:
            _download()
        return kernel()


def initramfs(kernel: Kernel) -> Path:
    """The archive that Linux unpacks as its first root; made anew when what goes into it has changed."""
    init = INIT.read_bytes()
    archive = kernel.image.parent / f"initramfs-{hashlib.sha256(init).hexdigest()[:12]}.gz"
    if not archive.exists():
        modules = list(_in_order(kernel.modules, FIRST_MODULES))
        entries: list[tuple[str, int, bytes]] = [(name, 0o40755, b"") for name in ("bin", "dev", "proc", "modules")]
        entries.append(("bin/busybox", 0o100755, kernel.busybox.read_bytes()))
        entries.append(("init", 0o100755, init))
        entries += [(f"modules/{number:02}-{path.name.partition('.')[0]}.ko", 0o100644, _module(path))
                    for number, path in enumerate(modules)]
        # Two may be making it at once: each writes its own and the last one stays.
        unfinished = archive.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(gzip.compress(_cpio(entries), 1))
        unfinished.rename(archive)
    return archive


def _download() -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        directory = Path(name)
        # The unprivileged downloader that apt likes to use could not write here.
        _run("apt-get", "-o", "APT::Sandbox::User=root", "-q", "download", *_kernel_packages(), "busybox-static",
             cwd=directory)
        root = directory / "root"
        for package in directory.glob("*.deb"):
            _unpack(package, root)
        (image,) = (root / "boot").glob("vmlinuz-*")
        version = image.name.removeprefix("vmlinuz-")
        image.rename(root / "vmlinuz")
        if not (root / "lib").exists():     # since /usr was merged, packages ship /usr/lib alone
            (root / "lib").symlink_to("usr/lib")
        _run("depmod", "-b", str(root), version)
        busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
        busybox.rename(CACHE / "busybox")
        root.rename(CACHE / f"linux-{version}")


def _kernel_packages() -> list[str]:
    """The packages with the image and the modules of the distribution's own kernel."""
    for meta in META_PACKAGES:
        found = _depends(meta)
        if found:
            return sorted({*found, *(deeper for package in found for deeper in _depends(package))})
    raise PrepareError(f"apt knows none of {', '.join(META_PACKAGES)}: try apt-get update (Debian, Ubuntu on amd64)")


def _depends(package: str) -> list[str]:
    done = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True)
    wanted = r"^ *\|?(?:Depends|Recommends): (linux-(?:image|modules|modules-extra)-\d\S+)$"
    return re.findall(wanted, done.stdout, re.MULTILINE)


def _unpack(package: Path, root: Path) -> None:
    unpacking = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    assert unpacking.stdout is not None
    with tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive:
        for member in archive:
            if not NOT_NEEDED.search(member.name) and not member.name.startswith("./usr/share"):
                archive.extract(member, root, set_attrs=False)
    if unpacking.wait():
        raise PrepareError(f"dpkg-deb could not unpack {package.name}")


def _in_order(modules: Path, wanted: tuple[str, ...]) -> Iterator[Path]:
    """These modules and what they need, each after what it needs itself (modules.dep lists it that way round)."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[_name(path)] = [*reversed(others.split()), path]
    builtin = {_name(line) for line in (modules / "modules.builtin").read_text().splitlines()}
    seen: set[str] = set()
    for name in wanted:
        if name not in needs and name not in builtin:
            raise PrepareError(f"the kernel in {modules} has no module {name}")
        for path in needs.get(name, []):
            if path not in seen:
                seen.add(path)
                yield modules / path


def _name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def _module(path: Path) -> bytes:
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".zst":
            return subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
        case _:
            return path.read_bytes()


def _cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """An archive in cpio's "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def _run(*command: str, cwd: Path | None = None) -> None:
    # depmod and its like are in sbin, which an ordinary user's PATH may lack.
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if shutil.which(command[0], path=path) is None:
        raise PrepareError(f"{command[0]} is missing here")
    done = subprocess.run(command, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    if done.returncode:
        raise PrepareError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")


if __name__ == "__main__":
    try:
        print(f"guests boot Linux {prepare().version} from {CACHE}")
    except PrepareError as error:
        sys.exit(f"prepare: {error}")
