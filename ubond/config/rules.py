"""Which options go together: what a file's settings amount to in its mode.

The readers check values one by one; here they are looked at as a whole, once all
files have been read.  Options that mean nothing in the mode are left out with a note, as the
driver leaves them out with a warning; what this version cannot do is a ConfigError.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ubond.bond.options import IMPLEMENTED_MODES, OPTIONS, Mode
from ubond.config.common import Note, Setting, read_option

#: Module parameters that the driver calls irrelevant outside these modes.
_RELEVANT = {
    "lacp_rate": frozenset({Mode.LACP}),
    "ad_select": frozenset({Mode.LACP}),
    "xmit_hash_policy": frozenset({Mode.BALANCE_XOR, Mode.LACP, Mode.BALANCE_TLB}),
}
_ARP = frozenset({"arp_interval", "arp_ip_target", "arp_validate", "arp_all_targets"})
#: Below, the monitor would be busier than the bond; above, seconds are meant more often than not.
_MIIMON_SANE = range(10, 5001)


def settle(
    settings: Mapping[str, Setting], slaves: Collection[str], file: str, notes: list[Note]
) -> dict[str, str]:
    """The options of a bond, name -> text, with notes on what is left out or may surprise.

    `file` is named in notes about what no file says.  Raises ConfigError for what this version
    cannot honour.
    """
    mode = _mode(settings.get("mode"), file, notes)
    kept: dict[str, Setting] = {}
    for setting in settings.values():
        why = _meaningless(setting, mode, settings)
        if why:
            notes.append(setting.note(f"{setting.label} ignored: {why}"))
        else:
            kept[setting.name] = _possible(setting)
    _look_at_monitor(kept, file, notes)
    _look_at_delays(kept, notes)
    _look_at_slaves(kept, slaves, notes)
    return {name: setting.text for name, setting in kept.items() if setting.text}


def _mode(setting: Setting | None, file: str, notes: list[Note]) -> Mode:
    if setting is None:
        default = Mode(int(OPTIONS["mode"].start))
        driver = Mode(int(OPTIONS["mode"].default))
        notes.append(Note(file, 0, f"no mode is set: {default} is used, where the driver would use {driver}"))
        return default
    mode = Mode(int(setting.value or 0))
    if mode not in IMPLEMENTED_MODES:
        can = ", ".join(str(one) for one in sorted(IMPLEMENTED_MODES))
        raise setting.error(f"{mode} is not part of this version (can: {can})")
    return mode


def _meaningless(setting: Setting, mode: Mode, settings: Mapping[str, Setting]) -> str:
    """Why the option has no meaning beside the others; empty if it has."""
    name, option = setting.name, OPTIONS[setting.name]
    if setting.module and mode not in _RELEVANT.get(name, {mode}):
        return f"irrelevant in mode {mode}"
    if setting.module and name in _ARP and _number(settings.get("miimon")) > 0:
        return "miimon and the ARP monitor exclude each other, and miimon is set"
    if option.modes is not None and mode not in option.modes and option.unsettable is None:
        return f"it means nothing in mode {mode}"
    return ""


def _possible(setting: Setting) -> Setting:
    """The setting with its value known; ConfigError if this version cannot honour it."""
    if setting.value is None:
        setting = read_option(setting.name, setting.text, setting.file, setting.line, []) or setting
    option = OPTIONS[setting.name]
    if option.unsettable is not None and setting.value != option.default:
        raise setting.error(option.unsettable)
    return setting


def _number(setting: Setting | None, unset: int = 0) -> int:
    return setting.value if setting is not None and isinstance(setting.value, int) else unset


def _look_at_monitor(kept: Mapping[str, Setting], file: str, notes: list[Note]) -> None:
    setting, probes = kept.get("miimon"), _number(kept.get("arp_interval")) > 0
    if setting is None:
        default = OPTIONS["miimon"].start
        text = f"no link monitor is set: miimon={default} is used, so that a lost link is noticed"
        if probes:
            text = f"miimon={default} is used beside the ARP monitor; miimon=0 turns it off"
        notes.append(Note(file, 0, text))
    elif setting.value == 0 and not probes:
        notes.append(setting.note("miimon=0: this bond will not notice a lost link"))
    elif setting.value and setting.value not in _MIIMON_SANE:
        notes.append(setting.note(f"{setting.label} is unusual: the unit is milliseconds"))


def _look_at_delays(kept: Mapping[str, Setting], notes: list[Note]) -> None:
    miimon = _number(kept.get("miimon"), int(OPTIONS["miimon"].start))
    for name in ("updelay", "downdelay", "peer_notif_delay"):
        setting = kept.get(name)
        delay = _number(setting)
        if setting is None or not delay:
            continue
        if not miimon:
            notes.append(setting.note(f"{setting.label} has no effect without miimon"))
        elif delay % miimon:
            rounded = delay - delay % miimon
            text = f"{name} ({delay}) is not a multiple of miimon ({miimon}), {name} rounded to {rounded} ms"
            notes.append(setting.note(text))


def _look_at_slaves(kept: Mapping[str, Setting], slaves: Collection[str], notes: list[Note]) -> None:
    if (primary := kept.get("primary")) and primary.text and primary.text not in slaves:
        notes.append(primary.note(f"{primary.label} is not a slave of this bond: there is none yet"))
    if (active := kept.get("active_slave")) and active.text and active.text not in slaves:
        raise active.error(f"{active.text} is not a slave of this bond")
    mac = kept.get("fail_over_mac")
    if mac and mac.value and _number(kept.get("mode"), Mode.ACTIVE_BACKUP) != Mode.ACTIVE_BACKUP:
        notes.append(mac.note("fail_over_mac only affects active-backup mode"))
