"""The inputs that searches have found, one archive for each target.

Names in an archive are hashes of what they hold, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

PLACE = Path(__file__).with_name("corpus")
_WHEN = (2020, 1, 1, 0, 0, 0)


def load(target: str) -> list[bytes]:
    """All known inputs of a target."""
    archive = PLACE / f"{target}.zip"
    if not archive.exists():
        return []
    with zipfile.ZipFile(archive) as file:
        return [file.read(name) for name in file.namelist()]


def unpack(target: str, directory: Path) -> None:
    """Put them into a directory, a file each."""
    directory.mkdir(parents=True, exist_ok=True)
    for data in load(target):
        (directory / _name(data)).write_bytes(data)


def pack(target: str, directory: Path) -> None:
    """Make the files of a directory the known inputs of a target."""
    save(target, [path.read_bytes() for path in directory.iterdir()])


def save(target: str, inputs: list[bytes]) -> None:
    PLACE.mkdir(exist_ok=True)
    with zipfile.ZipFile(PLACE / f"{target}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for data in sorted(set(inputs), key=_name):
            file.writestr(zipfile.ZipInfo(_name(data), _WHEN), data, zipfile.ZIP_DEFLATED, 9)


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
