"""Configuration trees for the tests: sample ones, and small ones written on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ubond.bond.spec import BondSpec
from ubond.config import ConfigError, Note, load_article

SAMPLES = Path(__file__).parent / "samples"
SCRIPTS = "etc/sysconfig/network-scripts"

Tree = Callable[[dict[str, str]], Path]


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write `files` below `root`; `ifcfg-...` go where they belong, `*.conf` to modprobe.d."""
    for name, text in files.items():
        if name.startswith("ifcfg-"):
            name = f"{SCRIPTS}/{name}"
        elif name == "modprobe.conf":
            name = "etc/modprobe.conf"
        elif "/" not in name:
            name = f"etc/modprobe.d/{name}"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def slave(name: str, bond: str = "bond0", more: str = "") -> str:
    return f"DEVICE={name}\nMASTER={bond}\nSLAVE=yes\n{more}"


def load(root: Path, files: dict[str, str]) -> tuple[BondSpec, list[str]]:
    """bond0 of these files with the notes as text; eth1 and eth2 are its slaves if no slave is given."""
    if not any("SLAVE=" in text for text in files.values()):
        files = {**files, "ifcfg-eth1": slave("eth1"), "ifcfg-eth2": slave("eth2")}
    spec, notes = load_article(plant(root, files), "bond0")
    return spec, [brief(note) for note in notes]


def brief(note: Note) -> str:
    """A note as `file-name:line: text`."""
    return f"{Path(note.file).name}:{note.line}: {note.text}"


def refusal(root: Path, files: dict[str, str]) -> tuple[str, int, str, str]:
    """Where and why loading bond0 of these files fails: file name, line, option, text."""
    with pytest.raises(ConfigError) as caught:
        load(root, files)
    error = caught.value
    assert "\n" not in str(error)
    return Path(error.file).name, error.line, error.option, error.text
