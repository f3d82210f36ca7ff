"""ioctls about interfaces: ethtool's features by name, speed and duplex, and the index of a name.

The ioctl and not ethtool netlink, because every kernel and every container has it.  Calls to ethtool
take the kernel's RTNL lock and may wait in a driver, so the daemon makes them off its loop.

Source: include/uapi/linux/ethtool.h (layouts), ethtool.8 (names).
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from array import array
from dataclasses import dataclass

from ubond.bond.events import DUPLEX_UNKNOWN, SPEED_UNKNOWN, DoorError
from ubond.wire import pack_name

SIOCGIFINDEX, SIOCETHTOOL = 0x8933, 0x8946
ETHTOOL_GSTRINGS = 0x1B
ETHTOOL_GSSET_INFO = 0x37
ETHTOOL_GFEATURES = 0x3A
ETHTOOL_SFEATURES = 0x3B
ETHTOOL_GLINKSETTINGS = 0x4C
ETH_SS_FEATURES = 4
ETH_GSTRING_LEN = 32

_LINK_SETTINGS = struct.Struct("=IIBBBBBBBb32x")  # up to and with link_mode_masks_nwords, then reserved


@dataclass(frozen=True, slots=True)
class Features:
    """`on`: feature name -> active now; `fixed`: those that cannot be changed."""

    on: dict[str, bool]
    fixed: frozenset[str]


class Ethtool:
    """One datagram socket to ask with; it stays in the namespace in which it was made."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        except OSError as error:
            raise DoorError("socket(AF_INET)", error.errno or errno.EIO) from error
        self._names: tuple[str, ...] = ()

    def close(self) -> None:
        self._socket.close()

    def index(self, interface: str) -> int:
        """The index of an interface.  Asks for no lock, so it may be asked on the loop."""
        request = struct.pack("16s24x", pack_name(interface)[:15])
        try:
            answer = fcntl.ioctl(self._socket.fileno(), SIOCGIFINDEX, request)
        except OSError as error:
            raise DoorError("SIOCGIFINDEX", error.errno or errno.EIO, interface) from error
        return int(struct.unpack_from("=i", answer, 16)[0])

    def features(self, interface: str) -> Features:
        """Read all features of an interface; none where its driver has no ethtool at all."""
        try:
            names = self._feature_names(interface)
            words = (len(names) + 31) // 32
            answer = self._call("ETHTOOL_GFEATURES", interface,
                                struct.pack("=II", ETHTOOL_GFEATURES, words) + bytes(16 * words))
        except DoorError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return Features({}, frozenset())
        on: dict[str, bool] = {}
        fixed: set[str] = set()
        for number, name in enumerate(names):
            if not name:
                continue
            available, _, active, never = struct.unpack_from("=IIII", answer, 8 + 16 * (number // 32))
            bit = 1 << number % 32
            on[name] = bool(active & bit)
            if never & bit or not available & bit:
                fixed.add(name)
        return Features(on, frozenset(fixed))

    def features_and_link(self, interface: str) -> tuple[Features, tuple[int, int]]:
        """`features` and `link` in one, for whoever has to change threads for them."""
        return self.features(interface), self.link(interface)

    def set_feature(self, interface: str, feature: str, on: bool) -> None:
        """Switch one feature and read it back; DoorError(EOPNOTSUPP) where it did not take."""
        names = self._feature_names(interface)
        if feature not in names:
            raise DoorError("ETHTOOL_SFEATURES", errno.EOPNOTSUPP, interface, f"no feature {feature}")
        number, words = names.index(feature), (len(names) + 31) // 32
        blocks = array("I", bytes(8 * words))  # pairs of valid, requested
        blocks[2 * (number // 32)] = 1 << number % 32
        blocks[2 * (number // 32) + 1] = int(on) << number % 32
        self._call("ETHTOOL_SFEATURES", interface,
                   struct.pack("=II", ETHTOOL_SFEATURES, words) + blocks.tobytes())
        if self.features(interface).on[feature] != on:
            raise DoorError("ETHTOOL_SFEATURES", errno.EOPNOTSUPP, interface,
                            f"{feature} cannot be switched {'on' if on else 'off'}")

    def link(self, interface: str) -> tuple[int, int]:
        """Speed (Mbit/s) and duplex; SPEED_UNKNOWN and DUPLEX_UNKNOWN where the driver does not know."""
        try:
            # The first call is refused with the number of words (negative) that the mode masks take.
            probe = self._call("ETHTOOL_GLINKSETTINGS", interface,
                               _LINK_SETTINGS.pack(ETHTOOL_GLINKSETTINGS, *([0] * 9)))
            words = -_LINK_SETTINGS.unpack_from(probe)[9]
            if words <= 0:
                return SPEED_UNKNOWN, DUPLEX_UNKNOWN
            request = _LINK_SETTINGS.pack(ETHTOOL_GLINKSETTINGS, *([0] * 8), words) + bytes(12 * words)
            answer = self._call("ETHTOOL_GLINKSETTINGS", interface, request)
        except DoorError as error:
            if error.errno == errno.ENODEV:
                raise
            return SPEED_UNKNOWN, DUPLEX_UNKNOWN
        _, speed, duplex, *_ = _LINK_SETTINGS.unpack_from(answer)
        return speed, duplex

    def _feature_names(self, interface: str) -> tuple[str, ...]:
        """The names of the kernel's feature bits, in order; the same for every interface."""
        if not self._names:
            info = self._call("ETHTOOL_GSSET_INFO", interface,
                              struct.pack("=IIQI", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0))
            count = struct.unpack_from("=I", info, 16)[0]
            strings = self._call("ETHTOOL_GSTRINGS", interface,
                                 struct.pack("=III", ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count)
                                 + bytes(ETH_GSTRING_LEN * count))
            texts = (strings[at : at + ETH_GSTRING_LEN] for at in range(12, len(strings), ETH_GSTRING_LEN))
            self._names = tuple(text.split(b"\0", 1)[0].decode() for text in texts)
        return self._names

    def _call(self, call: str, interface: str, request: bytes) -> bytes:
        """Make one call; the kernel answers into a buffer of the request's own size."""
        buffer = array("B", request)
        address, _ = buffer.buffer_info()
        try:
            fcntl.ioctl(self._socket.fileno(), SIOCETHTOOL,
                        struct.pack("16sP16x", pack_name(interface)[:15], address))
        except OSError as error:
            raise DoorError(call, error.errno or errno.EIO, interface) from error
        return buffer.tobytes()
