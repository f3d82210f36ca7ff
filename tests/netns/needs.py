"""What some kinds of worlds cannot do, and why: the one place where a core test is left out of a run.

A test says what it needs, `@pytest.mark.needs("mounts")`; where the kind of world that a run is in
lacks that, the test is not run there, and the run's summary says so with the reason.  A reason says
also where the lack itself is tested, if it is ubond's to handle.
"""

from __future__ import annotations

import os

_RENAMING = "the guest's kernel may be one before 6.2, and that renames no interface that is up (Debian 12 has 6.1)"
_ONE = "an emulated machine has one, for all workers, senders, receivers and the NICs themselves"

#: Kind of world -> what it lacks -> why.
LACKS: dict[str, dict[str, str]] = {
    "netns": {},
    "container": {
        "CAP_BPF": "queue_id needs CAP_BPF, and the container has it not (the refusal is in test_podman.py)",
        "other users": "CAP_SETUID and CAP_SETPCAP are not there to become somebody with fewer rights "
                       "(containers and users that have fewer are in test_podman.py)",
        "cgroups": "systemd needs a cgroup of its own, and making one takes CAP_SYS_ADMIN",
        "mounts": "mounting takes CAP_SYS_ADMIN, and so do namespaces "
                  "(a container without /dev/net/tun is in test_podman.py)",
    },
    "virtio": {
        "cgroups": "the machine has none, and what systemd does with the units has nothing to do with the NICs",
        "segmentation": "virtio-net on one of QEMU's hubs segments nothing (TCP over such slaves is in test_guest.py)",
        "TSO": "virtio-net on one of QEMU's hubs segments nothing",
        "tags unasked": "QEMU's virtio-net drops 802.1Q tags of VLANs that nobody has asked it for",
        "indexes": "an emulated NIC's index is the kernel's choice",
        "renaming": _RENAMING,
        "processors": _ONE,
        "room in rings": "QEMU's main loop empties a ring, and comes to it later than after 2 ms at times",
    },
    "e1000": {
        "cgroups": "the machine has none, and what systemd does with the units has nothing to do with the NICs",
        "segmentation": "e1000 segments TCP over IPv4 and nothing else (TCP over such slaves is in test_guest.py)",
        "indexes": "an emulated NIC's index is the kernel's choice",
        "renaming": _RENAMING,
        "a link at once": "e1000's link comes two seconds after the NIC is up, and goes for as long with another MTU",
        "processors": _ONE,
        "room in rings": "one processor empties a ring and fills it: the first can come later than after 2 ms",
        "short frames": "QEMU's e1000 fills frames up to 60 bytes",
        "tag priorities": "of a tag that its NIC has taken out e1000's driver keeps the VLAN's number alone",
    },
}  # fmt: skip


def lacking(needs: list[str]) -> str:
    """Why a test with these needs is not run in this run's worlds; empty if it is."""
    lacks = LACKS[os.environ.get("UBOND_WORLD", "netns")]
    return next((lacks[need] for need in needs if need in lacks), "")
