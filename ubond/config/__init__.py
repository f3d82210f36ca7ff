"""Reads other programs' files into a BondSpec, and says what it could not read.

`load_article` is for machines set up as bonding was in 2009: options in modprobe's files
or in BONDING_OPTS, addresses and slaves in ifcfg files.  Nothing here opens a socket or runs a command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from ubond.bond.options import Mode, find
from ubond.bond.spec import BondSpec, SlaveSpec, SpecError, check_name
from ubond.config import ifcfg, modprobe
from ubond.config.common import ConfigError, Note, Setting, gather, natural
from ubond.config.rules import settle

__all__ = ["ConfigError", "Note", "bonds", "load_article"]


def bonds(root: Path) -> list[str]:
    """The names of all bonds that the modprobe and ifcfg files below `root` know, in natural order."""
    return sorted({*modprobe.bonds(root), *ifcfg.bonds(root)}, key=natural)


def load_article(root: Path, bond: str) -> tuple[BondSpec, list[Note]]:
    """Read `bond` from the modprobe and ifcfg files below `root` (`/` for this machine).

    BONDING_OPTS wins over modprobe's options.  Returns the bond and what a person should
    know about how it was read; raises ConfigError where it cannot be what the files say.
    """
    place = root / ifcfg.DIRECTORY
    try:
        check_name(bond)
    except SpecError as error:
        raise ConfigError(str(place), 0, "", str(error)) from None
    parameters, notes = modprobe.read(root, bond)
    described, more = ifcfg.read(root, bond)
    notes += more
    file = described.file or str(place / f"ifcfg-{bond}")
    if not described.file:
        if not described.slaves and bond not in modprobe.bonds(root):
            known = ", ".join(bonds(root)) or "none"
            text = f"{bond} is unknown here: no file describes it (bonds found: {known})"
            raise ConfigError(file, 0, "", text)
        notes.append(Note(file, 0, f"no ifcfg file describes {bond}: it gets no address"))
    if not described.slaves:
        notes.append(Note(file, 0, f"no interface has MASTER={bond} and SLAVE=yes: {bond} has no slaves"))
    settings = gather([*parameters, *described.settings], notes)
    options = settle(settings, [slave.name for slave in described.slaves], file, notes)
    mode = Mode(find("mode").parse(options["mode"]) if "mode" in options else int(find("mode").start))
    try:
        spec = BondSpec(
            bond,
            tuple(_slave(slave.name, slave.settings, mode, notes) for slave in described.slaves),
            MappingProxyType(options),
            described.addresses,
            described.broadcast,
            described.gateways,
            described.mac,
            described.mtu,
        )
    except SpecError as error:
        raise ConfigError(file, 0, "", str(error)) from None
    return spec, notes


def _slave(name: str, settings: Sequence[Setting], mode: Mode, notes: list[Note]) -> SlaveSpec:
    """One slave with those of its options that mean something in the bond's mode."""
    options = {}
    for setting in settings:
        modes = find(setting.name).modes
        if modes is None or mode in modes:
            options[setting.name] = setting.text
        else:
            notes.append(setting.note(f"{setting.label} ignored: it means nothing in mode {mode}"))
    return SlaveSpec(name, MappingProxyType(options))
