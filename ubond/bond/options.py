"""Every bonding option, once: name, values, range, default, modes, when it may change.

The command line, the configuration readers, the control socket, the help and the
documentation all take their names and limits from `OPTIONS`.  What an option *does*
when it changes lives in `core`; what may be *written* to it lives here.

Source: Documentation/networking/bonding.rst; ids and texts as in the driver's own table.
"""

from __future__ import annotations

import enum
import errno as E
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

INT_MAX = 2147483647
MAX_DIGITS = 20  # of an unsigned 64-bit number; more is out of any range
_DIGITS, _SIGNED = r"[0-9\s]+", r"\s*-?[0-9][0-9\s]*"


class Mode(enum.IntEnum):
    """The bonding modes; `str()` is the name that options take."""

    BALANCE_RR = 0
    ACTIVE_BACKUP = 1
    BALANCE_XOR = 2
    BROADCAST = 3
    LACP = 4
    BALANCE_TLB = 5
    BALANCE_ALB = 6

    def __str__(self) -> str:
        return MODE_NAMES[self]


MODE_NAMES: Mapping[int, str] = MappingProxyType(
    {
        0: "balance-rr",
        1: "active-backup",
        2: "balance-xor",
        3: "broadcast",
        4: "802.3ad",
        5: "balance-tlb",
        6: "balance-alb",
    }
)

#: The modes that this version can run.
IMPLEMENTED_MODES = frozenset(
    {Mode.BALANCE_RR, Mode.ACTIVE_BACKUP, Mode.BALANCE_XOR, Mode.BROADCAST, Mode.BALANCE_TLB, Mode.BALANCE_ALB}
)
#: Modes that select one active slave: `primary`, `active_slave` and `prio` mean something.
USES_PRIMARY = frozenset({Mode.ACTIVE_BACKUP, Mode.BALANCE_TLB, Mode.BALANCE_ALB})
HASHING = frozenset({Mode.BALANCE_XOR, Mode.LACP, Mode.BALANCE_TLB, Mode.BALANCE_ALB})
ARP_CAPABLE = frozenset({Mode.BALANCE_RR, Mode.ACTIVE_BACKUP, Mode.BALANCE_XOR, Mode.BROADCAST})
LACP_ONLY = frozenset({Mode.LACP})
ACTIVE_BACKUP_ONLY = frozenset({Mode.ACTIVE_BACKUP})
BALANCING = frozenset({Mode.BALANCE_TLB, Mode.BALANCE_ALB})
#: Modes that cannot do without speeds, and so without the MII monitor; milliseconds where none are set.
FORCED_MIIMON, MIIMON_FORCED = frozenset({Mode.LACP, Mode.BALANCE_TLB, Mode.BALANCE_ALB}), 100


class FailOverMac(enum.IntEnum):
    NONE = 0
    ACTIVE = 1
    FOLLOW = 2


class PrimaryReselect(enum.IntEnum):
    ALWAYS = 0
    BETTER = 1
    FAILURE = 2


class LinkPolicy(enum.IntEnum):
    """With MII and ARP monitor at once: who must see a link for it to be up."""

    ALL = 0
    ANY = 1


class Probe(enum.IntEnum):
    """Which targets are found without being configured."""

    OFF = 0
    GATEWAY = 1


class When(enum.Enum):
    """When an option may be written."""

    ANY = "any time"
    DOWN = "while the bond is down"
    EMPTY = "while the bond has no slaves"
    DOWN_EMPTY = "while the bond is down and has no slaves"


class Kind(enum.Enum):
    """How the text of an option is read."""

    ENUM = "name or number"
    NUMBER = "number"
    MS = "milliseconds"
    SECONDS = "seconds"
    SWITCH = "on or off"
    SLAVE = "name of a slave, empty for none"
    LIST = "addresses"
    MAC = "MAC address"
    PER_SLAVE = "number of a slave"


class Refused(Exception):
    """What an operator asked for is refused, with what the driver would answer.

    `errno` is the driver's number, `lines` what it logs (without the `bond0: ` prefix),
    `extack` what it answers over netlink (None: nothing).  `str()` is one line for a person.
    """

    def __init__(self, errno: int, lines: Iterable[str], extack: str | None = None) -> None:
        self.errno = errno
        self.lines = tuple(lines)
        self.extack = extack
        super().__init__("; ".join(self.lines) or E.errorcode.get(errno, str(errno)))


class OptionError(Refused):
    """A refused option or value."""


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table.

    `lo`/`hi` bound a number (hi None: no upper bound, so only named values are accepted);
    `default` is the driver's default as stored; `ours` is ours where it differs.
    `modes`: those that it can be set in, `used` those that it has an effect in where they are fewer.
    `words` maps further accepted words to values, `default_word` says whether the word
    `default` is accepted.
    """

    name: str
    kind: Kind
    doc: str
    default: int | str = 0
    values: Mapping[int, str] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)
    lo: int = 0
    hi: int | None = None
    modes: frozenset[Mode] | None = None
    used: frozenset[Mode] | None = None
    when: When = When.ANY
    ours: int | str | None = None
    default_word: int | None = None
    aliases: tuple[str, ...] = ()
    driver: bool = True
    """Whether the bonding driver has it too."""
    unsettable: str | None = None
    """Why this version takes no other value than the default, or None when it takes all."""

    @property
    def start(self) -> int | str:
        """The value that a new bond of ours has."""
        return self.default if self.ours is None else self.ours

    @property
    def flag(self) -> str:
        """The command-line flag: the option's name with dashes."""
        return "--" + self.name.replace("_", "-")

    def accepted(self) -> str:
        """What may be written, for a person: `0 - 65535`, `off, on`, `none, active, follow`."""
        if self.values:
            return ", ".join(self.values.values())
        if self.hi is not None:
            return f"{self.lo} - {self.hi}"
        return self.kind.value

    def parse(self, text: str) -> int:
        """Read a written value as the driver reads it; OptionError(EINVAL) if it cannot be read.

        Digits and blanks are a number; anything else is one of the option's own words,
        case-sensitive and in full.  Times also take a unit here: `100ms`, `2s`.
        """
        text = text.removesuffix("\n")
        number: int | None = None
        if re.fullmatch(_SIGNED if self.lo < 0 else _DIGITS, text) and text.strip():
            first = text.split()[0]
            number = int(first) if len(first) <= MAX_DIGITS else None
        elif self.kind is Kind.MS and (unit := re.fullmatch(r"([0-9]+)(ms|s)", text.strip())):
            number = int(unit[1]) * (1000 if unit[2] == "s" else 1)
        elif token := text.split()[:1]:
            word = token[0]
            for value, name in self.values.items():
                if name == word:
                    return value
            if word in self.words:
                return self.words[word]
            if word == "default" and self.default_word is not None:
                return self.default_word
        if number is not None and (number in self.values or number in self.words.values()):
            return number
        if number is not None and self.hi is not None and self.lo <= number <= self.hi:
            return number
        raise self.invalid(text)

    def invalid(self, text: str) -> OptionError:
        """The refusal of a value that cannot be read or is out of range."""
        lines = [f"option {self.name}: invalid value ({text})"]
        if self.hi is not None:
            lines.append(f"option {self.name}: allowed values {self.lo} - {self.hi}")
        return OptionError(E.EINVAL, lines, "invalid option value")

    def text(self, value: int | str) -> str:
        """The stored value as sysfs shows it: `active-backup 1` for an enumeration, else the number."""
        if isinstance(value, int) and self.values and self.kind is Kind.ENUM:
            return f"{self.values[value]} {value}"
        return str(value)


def _enum(*names: str) -> dict[int, str]:
    return dict(enumerate(names))


_OFF_MAX = {"off": 0, "maxval": INT_MAX}
_SWITCH = {0: "off", 1: "on"}
_LACP_LATER = "mode 802.3ad is not part of this version"

_TABLE = (
    Option("mode", Kind.ENUM, "how the slaves are used", Mode.BALANCE_RR, MODE_NAMES,
           when=When.DOWN_EMPTY, ours=Mode.ACTIVE_BACKUP, default_word=0),
    Option("packets_per_slave", Kind.NUMBER, "frames sent on one slave before the next (0: random)",
           1, words={"maxval": 65535}, hi=65535, modes=frozenset({Mode.BALANCE_RR}), default_word=1),
    Option("xmit_hash_policy", Kind.ENUM, "which header fields choose the slave", 0,
           _enum("layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"), default_word=0,
           used=HASHING),
    Option("arp_validate", Kind.ENUM, "on which slaves ARP evidence is checked", 0,
           _enum("none", "active", "backup", "all", "filter", "filter_active", "filter_backup"),
           modes=ARP_CAPABLE, default_word=0),
    Option("arp_all_targets", Kind.ENUM, "whether any or all ARP targets must answer", 0,
           _enum("any", "all"), default_word=0, used=ACTIVE_BACKUP_ONLY),
    Option("fail_over_mac", Kind.ENUM, "what happens to MAC addresses at failover", 0,
           _enum("none", "active", "follow"), when=When.EMPTY, default_word=0, used=ACTIVE_BACKUP_ONLY),
    Option("arp_interval", Kind.MS, "milliseconds between ARP probes (0: off)", 0, words=_OFF_MAX,
           hi=INT_MAX, modes=ARP_CAPABLE, default_word=0),
    Option("arp_ip_target", Kind.LIST, "IPv4 addresses to probe", ""),
    Option("downdelay", Kind.MS, "how long a lost link is forgiven; a multiple of miimon", 0,
           words=_OFF_MAX, hi=INT_MAX, default_word=0),
    Option("updelay", Kind.MS, "how long a returned link is distrusted; a multiple of miimon", 0,
           words=_OFF_MAX, hi=INT_MAX, default_word=0),
    Option("lacp_rate", Kind.ENUM, "how often the partner is asked to send LACPDUs", 0,
           _enum("slow", "fast"), modes=LACP_ONLY, when=When.DOWN, unsettable=_LACP_LATER),
    Option("min_links", Kind.NUMBER, "links needed for carrier (802.3ad)", 0, words=_OFF_MAX,
           hi=INT_MAX, default_word=0, used=LACP_ONLY),
    Option("ad_select", Kind.ENUM, "how the active aggregator is chosen", 0,
           _enum("stable", "bandwidth", "count", "actor_port_prio"), when=When.DOWN, default_word=0,
           used=LACP_ONLY),
    Option("num_unsol_na", Kind.NUMBER, "announcements after a failover", 1,
           words={"off": 0, "maxval": 255}, hi=255, default_word=1, aliases=("num_grat_arp",),
           used=ACTIVE_BACKUP_ONLY | LACP_ONLY),
    Option("miimon", Kind.MS, "milliseconds between looks at each slave's carrier (0: off)", 0,
           words=_OFF_MAX, hi=INT_MAX, default_word=0, ours=100),
    Option("primary", Kind.SLAVE, "the slave to prefer", "", modes=USES_PRIMARY),
    Option("primary_reselect", Kind.ENUM, "when a returning primary takes over", 0,
           _enum("always", "better", "failure"), default_word=0, used=USES_PRIMARY),
    Option("use_carrier", Kind.SWITCH, "link state from the carrier flag (always)", 1, _SWITCH,
           default_word=1),
    Option("active_slave", Kind.SLAVE, "the slave in use now", "", modes=USES_PRIMARY),
    Option("queue_id", Kind.PER_SLAVE, "the transmit queue whose frames leave on this slave", 0, hi=65535,
           used=frozenset({Mode.BALANCE_RR, Mode.ACTIVE_BACKUP})),
    Option("all_slaves_active", Kind.SWITCH, "also receive on backup slaves", 0, _SWITCH, default_word=0,
           used=USES_PRIMARY | LACP_ONLY),
    Option("resend_igmp", Kind.NUMBER, "membership reports sent again after a failover", 1,
           words={"off": 0, "maxval": 255}, hi=255, default_word=1,
           used=USES_PRIMARY | {Mode.BALANCE_RR}),
    Option("lp_interval", Kind.SECONDS, "seconds between learning packets (tlb, alb)", 1,
           words={"minval": 1, "maxval": INT_MAX}, lo=1, hi=INT_MAX, default_word=1, used=BALANCING),
    Option("slaves", Kind.SLAVE, "+NAME enslaves, -NAME releases", ""),
    Option("tlb_dynamic_lb", Kind.SWITCH, "rebalance by load (tlb, alb)", 1, _SWITCH,
           modes=BALANCING, when=When.DOWN, default_word=1),
    Option("ad_actor_sys_prio", Kind.NUMBER, "LACP system priority", 65535,
           words={"minval": 1, "maxval": 65535}, lo=1, hi=65535, modes=LACP_ONLY, default_word=65535,
           unsettable=_LACP_LATER),
    Option("ad_actor_system", Kind.MAC, "LACP system address (all zeros: the bond's)", "00:00:00:00:00:00",
           modes=LACP_ONLY, unsettable=_LACP_LATER),
    Option("ad_user_port_key", Kind.NUMBER, "user part of the LACP port key", 0,
           words={"minval": 0, "maxval": 1023}, hi=1023, modes=LACP_ONLY, when=When.DOWN, default_word=0,
           unsettable=_LACP_LATER),
    Option("peer_notif_delay", Kind.MS, "milliseconds between announcements; a multiple of miimon", 0,
           words={"off": 0, "maxval": 300000}, hi=300000, aliases=("peer_notify_delay",),
           used=ACTIVE_BACKUP_ONLY | LACP_ONLY),
    Option("lacp_active", Kind.SWITCH, "whether LACPDUs are sent unasked", 1, _SWITCH, modes=LACP_ONLY,
           when=When.DOWN, default_word=1, unsettable=_LACP_LATER),
    Option("arp_missed_max", Kind.NUMBER, "silent ARP intervals before a slave is down", 2,
           words={"minval": 1, "maxval": 255}, lo=1, hi=255, modes=ARP_CAPABLE, default_word=2,
           aliases=("missed_max",)),
    Option("ns_ip6_target", Kind.LIST, "IPv6 addresses to probe", ""),
    Option("prio", Kind.PER_SLAVE, "which slave to prefer; the greatest wins", 0,
           lo=-INT_MAX - 1, hi=INT_MAX, modes=USES_PRIMARY),
    Option("coupled_control", Kind.SWITCH, "LACP mux: collecting and distributing together", 1, _SWITCH,
           modes=LACP_ONLY, when=When.DOWN, default_word=1, unsettable=_LACP_LATER),
    Option("broadcast_neighbor", Kind.SWITCH, "copy ARP and ND frames to all ports (802.3ad)", 0, _SWITCH,
           modes=LACP_ONLY, default_word=0, unsettable=_LACP_LATER),
    Option("actor_port_prio", Kind.PER_SLAVE, "LACP port priority of a slave", 255, hi=65535,
           modes=LACP_ONLY, unsettable=_LACP_LATER),
    Option("lacp_strict", Kind.SWITCH, "carrier only with a LACP partner", 0, _SWITCH, modes=LACP_ONLY,
           default_word=0, unsettable=_LACP_LATER),
    Option("link_policy", Kind.ENUM, "whether all or any of two monitors must see a link", 0,
           _enum("all", "any"), default_word=0, driver=False),
    Option("probe", Kind.ENUM, "probe the default gateway of the bond, as the routes have it", 0,
           _enum("off", "gateway"), default_word=0, modes=ARP_CAPABLE, driver=False),
    Option("damping_half_life", Kind.SECONDS, "seconds in which a flapping slave's penalty halves (0: off)", 0,
           words={"off": 0, "maxval": 86400}, hi=86400, default_word=0, driver=False),
    Option("damping_penalty", Kind.NUMBER, "penalty for each failure of a link", 1000,
           words={"maxval": 100000}, lo=1, hi=100000, default_word=1000, driver=False),
    Option("damping_suppress", Kind.NUMBER, "penalty from which on a slave is left out", 2000,
           words={"maxval": 1000000}, lo=1, hi=1000000, default_word=2000, driver=False),
    Option("damping_reuse", Kind.NUMBER, "penalty below which it is used again", 750,
           words={"maxval": 1000000}, hi=1000000, default_word=750, driver=False),
    Option("damping_max", Kind.SECONDS, "seconds after which it is used again in any case", 60,
           words={"maxval": 86400}, lo=1, hi=86400, default_word=60, driver=False),
    Option("busy_poll", Kind.NUMBER, "microseconds that workers look for frames before they sleep (0: off)", 0,
           words={"off": 0, "maxval": 1000}, hi=1000, default_word=0, driver=False),
)

#: name -> option, in the driver's numbering order, then those of ours.
OPTIONS: Mapping[str, Option] = MappingProxyType({option.name: option for option in _TABLE})

_ALIASES = {alias: option.name for option in _TABLE for alias in option.aliases}

#: The order in which the options of one request are applied, whatever order they were written in.
APPLY_ORDER = (
    "mode", "active_slave", "miimon", "updelay", "downdelay", "peer_notif_delay", "use_carrier",
    "arp_interval", "arp_ip_target", "ns_ip6_target", "arp_validate", "arp_all_targets", "primary",
    "primary_reselect", "fail_over_mac", "xmit_hash_policy", "resend_igmp", "num_unsol_na",
    "all_slaves_active", "min_links", "lp_interval", "packets_per_slave", "lacp_active", "lacp_rate",
    "ad_select", "ad_actor_sys_prio", "ad_user_port_key", "ad_actor_system", "tlb_dynamic_lb",
    "arp_missed_max", "coupled_control", "broadcast_neighbor", "lacp_strict", "slaves", "queue_id",
    "prio", "actor_port_prio", "link_policy", "probe", "damping_half_life", "damping_penalty",
    "damping_suppress", "damping_reuse", "damping_max", "busy_poll",
)  # fmt: skip


def find(name: str) -> Option:
    """The option of this name, alias or dashed form; OptionError(ENOENT) if there is none."""
    plain = name.replace("-", "_")
    option = OPTIONS.get(_ALIASES.get(plain, plain))
    if option is None:
        raise OptionError(E.ENOENT, [f"unknown option {name}"])
    return option


def apply_order(names: Iterable[str]) -> list[str]:
    """These option names in the order in which one request applies them."""
    return sorted(names, key=lambda name: APPLY_ORDER.index(find(name).name))
