"""Settings: the values of a bond's options, and the checks before one may be written.

What an option's change leads to is in `setters`.
"""

from __future__ import annotations

import errno as E
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ubond.bond import options
from ubond.bond.options import (
    IMPLEMENTED_MODES,
    OPTIONS,
    FailOverMac,
    Kind,
    Mode,
    Option,
    OptionError,
    PrimaryReselect,
    When,
)
from ubond.bond.slave import Delays

#: Stored in passes of the monitor, so that a new miimon keeps the count and changes the time.
IN_PASSES = ("updelay", "downdelay", "peer_notif_delay")

#: Options that read their own text.
RAW = frozenset(
    {"arp_ip_target", "ns_ip6_target", "primary", "active_slave", "queue_id", "slaves", "prio"}
    | {"ad_actor_system", "actor_port_prio"}
)


@dataclass(slots=True)
class Settings:
    """The options of one bond as they are stored; per-slave ones live in the slaves.

    `values`: what was written by this or another version; the others have what a new bond has.
    """

    values: dict[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        written = self.values
        self.values = {
            name: int(option.start) if isinstance(option.start, int) else option.start
            for name, option in OPTIONS.items()
        }
        self.values.update((name, value) for name, value in written.items() if name in self.values)

    def number(self, name: str) -> int:
        """The stored number of an option."""
        return int(self.values[name])

    def text(self, name: str) -> str:
        """The stored text of an option that is no number."""
        return str(self.values[name])

    def store(self, name: str, value: int | str) -> None:
        self.values[name] = value

    @property
    def mode(self) -> Mode:
        return Mode(self.number("mode"))

    @property
    def miimon(self) -> int:
        """Milliseconds between two passes, 0 without a monitor."""
        return self.number("miimon")

    @property
    def delays(self) -> Delays:
        return Delays(self.miimon, self.number("updelay"), self.number("downdelay"))

    @property
    def fail_over_mac(self) -> FailOverMac:
        return FailOverMac(self.number("fail_over_mac"))

    @property
    def primary_reselect(self) -> PrimaryReselect:
        return PrimaryReselect(self.number("primary_reselect"))

    @property
    def primary(self) -> str:
        """The configured primary, enslaved or not; empty for none."""
        return str(self.values["primary"])

    def read_back(self) -> dict[str, int | str]:
        """Every option as the driver reads it back: delays in milliseconds."""
        values = dict(self.values)
        for name in IN_PASSES:
            values[name] = self.number(name) * self.miimon
        return values


def find(name: str) -> Option:
    """The option of this name, keeping `num_grat_arp` as the name that its errors speak of."""
    option = options.find(name)
    plain = name.replace("-", "_")
    return replace(option, name=plain) if plain == "num_grat_arp" else option


def generic_line(option: Option, errno: int, text: str) -> list[str]:
    """What the driver logs by errno alone, after an option's own words."""
    match errno:
        case E.EINVAL:
            return list(option.invalid(text).lines)
        case E.ENODEV:
            return [f"option {option.name}: interface {text} does not exist!"]
        case E.EBUSY:
            return [f"option {option.name}: unable to set because the bond device is up"]
        case _:
            return []


def check_when(option: Option, settings: Settings, *, up: bool, slaves: bool, strict: bool) -> None:
    """Refuse an option that the mode, the slaves or an open bond forbid, in the driver's order.

    Without `strict`, mode and fail_over_mac may change at any time: both rearrange MACs safely.
    """
    name, mode = option.name, settings.mode
    if option.modes is not None and mode not in option.modes:
        raise OptionError(
            E.EACCES,
            [f"option {name}: mode dependency failed, not supported in mode {mode}({int(mode)})"],
            "option not supported in mode",
        )
    if not strict and name in ("mode", "fail_over_mac"):
        return
    if slaves and option.when in (When.EMPTY, When.DOWN_EMPTY):
        raise OptionError(
            E.ENOTEMPTY,
            [f"option {name}: unable to set because the bond device has slaves"],
            "unable to set option because the bond device has slaves",
        )
    if up and option.when in (When.DOWN, When.DOWN_EMPTY):
        raise OptionError(
            E.EBUSY,
            [f"option {name}: unable to set because the bond device is up"],
            "unable to set option because the bond is up",
        )


def check_supported(option: Option, value: int | str, present: int | str, *, strict: bool) -> None:
    """Refuse a value that this version cannot honour (EOPNOTSUPP; `use_carrier`: EINVAL)."""
    if option.unsettable is not None and value not in (present, option.start):
        raise OptionError(E.EOPNOTSUPP, [f"option {option.name}: {option.unsettable}"])
    if option.name == "mode" and value not in IMPLEMENTED_MODES:
        names = ", ".join(str(mode) for mode in sorted(IMPLEMENTED_MODES))
        mode = Mode(int(value))
        raise OptionError(
            E.EOPNOTSUPP, [f"option mode: {mode} is not part of this version; it has {names}"]
        )
    if option.name == "use_carrier" and value == 0 and strict:
        raise OptionError(
            E.EINVAL,
            ["option use_carrier: option obsolete, use_carrier cannot be disabled"],
            "option obsolete, use_carrier cannot be disabled",
        )


def word(option: Option, value: int) -> str:
    """The name of a value as the driver's log shows it: a word of its own or the number."""
    if value in option.values:
        return option.values[value]
    names: Mapping[int, str] = {number: name for name, number in option.words.items()}
    if value == option.default_word and option.kind is not Kind.ENUM:
        return names.get(value, "default")
    return names.get(value, str(value))
