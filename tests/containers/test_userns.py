"""ubond for a user who is not root, in a user namespace of their own: what it costs is said in `status`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.world import ROOT, unanswered
from ubond.ports import RECEIVE_BUFFER, SEND_BUFFER

pytestmark = pytest.mark.netns

NOBODY = 65534

#: Runs as root in a mount namespace of its own: a /dev/net/tun for everybody, and the way to the
#: Python in use opened where it leads through a directory that only root may enter.
PREPARE = r"""
set -e
base=$1 work=$2; shift 2
mkdir -p $work/dev && mount -t tmpfs none $work/dev
mknod -m 666 $work/dev/tun c 10 200
mount --bind $work/dev/tun /dev/net/tun
for place in "$base" "$@"; do
    closed=
    above=$place
    while [ "$above" != / ]; do
        above=$(dirname "$above")
        [ -n "$(find "$above" -maxdepth 0 -perm -o+x)" ] || closed=$above
    done
    if [ -n "$closed" ]; then
        mkdir -p $work/keep && mount --bind "$place" $work/keep
        mount -t tmpfs -o mode=755 none "$closed"
        mkdir -p "$place" && mount --move $work/keep "$place"
    fi
done
"""

#: Runs as that user in a user and network namespace: a switch with a peer's address in another
#: network namespace, two cables, a bond on them, one cable pulled.
SCRIPT = r"""
set -e
ubond="$PYTHON -P -m ubond"
unshare -n sleep 120 & peer=$!
trap 'kill $peer; ip link' EXIT
there() { nsenter -t $peer -n "$@"; }
until [ "$(readlink /proc/$peer/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link set lo up
there ip link add br0 type bridge forward_delay 0 mcast_snooping 0
for n in 1 2; do
    ip link add eth$n type veth peer name p$n index 10$n netns $peer
    there ip link set p$n master br0 up
    ip link set eth$n up
done
there ip addr add 10.9.0.2/24 dev br0
there ip link set br0 up
$ubond up bond0 eth1 eth2 --address 10.9.0.1/24
ping -n -c 3 -i 0.05 -w 10 10.9.0.2
there ping -n -c 3 -i 0.05 -w 10 10.9.0.1
there ip link set p1 down
ping -n -c 20 -i 0.02 -w 10 10.9.0.2
echo JSON; $ubond status bond0 --json; echo TABLE
$ubond status bond0 --format table
$ubond down bond0
! ip link show bond0 2>/dev/null
tc qdisc show dev eth2
echo DONE
"""


def user_namespaces_are_denied() -> bool:
    """By a setting of the system, or in a chroot: nothing that could be installed would help."""
    tried = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "unshare", "--user", "true"]
    return subprocess.run(tried, capture_output=True, cwd="/").returncode != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.skipif(user_namespaces_are_denied(), reason="this system denies user namespaces")
def test_a_bond_of_somebody_who_is_not_root(tmp_path: Path) -> None:
    own = Path(f"/tmp/ubt-user-{os.getpid()}")
    own.mkdir(mode=0o700)
    os.chown(own, NOBODY, NOBODY)
    try:
        command = (
            f"{PREPARE}\nexec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "
            "unshare --user --map-root-user --net sh -c \"$SCRIPT\""
        )
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT), "PYTHON": sys.executable,
                       "XDG_RUNTIME_DIR": str(own), "SCRIPT": SCRIPT, "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
        places = [sys.base_prefix, str(tmp_path), str(ROOT), sys.prefix]
        done = subprocess.run(["unshare", "--mount", "sh", "-c", command, "sh", *places], env=environment,
                              capture_output=True, text=True, timeout=90, cwd="/")  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        subprocess.run(["rm", "-rf", str(own)], check=True)
    pings = done.stdout.partition("JSON\n")[0].split("PING ")[1:]
    assert [unanswered(said, count) for said, count in zip(pings, (3, 3, 20), strict=True)] == [0, 0, 0], pings
    assert "qdisc clsact" not in done.stdout
    document, _, page = done.stdout.partition("JSON\n")[2].partition("TABLE\n")
    bond = json.loads(document)[0]
    assert bond["linkinfo"]["info_data"]["active_slave"] == "eth2"
    said = bond["ubond"]["shortcomings"]
    for name, wanted in (("rmem_max", RECEIVE_BUFFER), ("wmem_max", SEND_BUFFER)):
        limit = int(Path(f"/proc/sys/net/core/{name}").read_text())
        assert any(f"raise net.core.{name}" in line for line in said) == (limit < wanted)
    for line in said:
        assert line in page, "the page for the eyes says it too"
    assert bond["ubond"]["sandbox"].startswith("CAP_NET_ADMIN CAP_NET_RAW only, no new privileges, seccomp filter")
