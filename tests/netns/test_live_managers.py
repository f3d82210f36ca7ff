"""Where another manager of interfaces is at work, a running bond has it keep off, and gives it its NICs back.

The managers are the real ones, told to configure every NIC they see.  They run in mount and process namespaces
of their own, with a private /run, in the host's network namespace: there they are process 1's children.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.netns.world import World

pytestmark = [pytest.mark.netns, pytest.mark.needs("mounts")]

#: A machine with a message bus and no udev: with /sys read-only the managers do not wait for it.
MACHINE = r"""
set -e
mount -t tmpfs -o mode=755 run /run
mount -o remount,bind,ro /sys
mkdir -p /run/dbus /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases
ubond() { "$PYTHON" -m ubond "$@"; }
until_so() {        # wait until a command says a line, within 30 s
    for i in $(seq 300); do "$2" "$3" | grep -q "^$1" && return; sleep 0.1; done
    echo "never: $2 $3 says $1" >&2; "$2" "$3" >&2; exit 1
}
bus() { dbus-daemon --system --fork --nopidfile; }
"""
#: With `state NIC` to say what the manager does with it.
BOND = r"""
for nic in eth1 eth2; do until_so "$BUSY" state $nic; done
ubond up bond0 eth1 eth2
for nic in eth1 eth2 bond0; do until_so unmanaged state $nic; done
echo up; cat $FILE
ubond remove bond0 eth2
until_so "$BUSY" state eth2
state eth1; state bond0
echo removed; cat $FILE
ubond down bond0
for nic in eth1 eth2; do until_so "$BUSY" state $nic; done
echo down; ls $FILE 2>/dev/null || echo gone
"""
NETWORKD = r"""
BUSY=config FILE=/run/systemd/network/10-ubond-bond0.network
printf '[Match]\nName=eth*\n\n[Network]\nDHCP=yes\n' >/run/systemd/network/90-every.network
chown -R systemd-network /run/systemd/netif
state() { sed -n s/^ADMIN_STATE=//p /run/systemd/netif/links/$(ip link show $1 | sed -n '1s/:.*//p'); }
bus
/lib/systemd/systemd-networkd 2>/dev/null &
"""
NETWORKMANAGER = r"""
BUSY=connect FILE=/run/NetworkManager/conf.d/ubond-bond0.conf
mkdir /run/NetworkManager
mount -t tmpfs state /var/lib/NetworkManager
state() { nmcli -t -f DEVICE,STATE device | sed -n "s/^$1://p"; }
bus
NetworkManager
"""
#: Where it is not installed (installing it would have it take over this machine): what it would be asked.
NMCLI = r"""
FILE=/run/NetworkManager/conf.d/ubond-bond0.conf BUSY=ours
mount -t tmpfs -o mode=755 sbin /usr/local/sbin
export PATH=/usr/local/sbin:$PATH
mkdir /run/NetworkManager
cat >/usr/local/sbin/nmcli <<'SCRIPT'
#!/bin/sh
[ "$*" = "general reload conf" ] && cat /run/NetworkManager/conf.d/* >/run/read 2>/dev/null
true
SCRIPT
chmod +x /usr/local/sbin/nmcli
state() { grep -q "interface-name:$1\b" /run/read 2>/dev/null && echo unmanaged || echo ours; }
"""

#: It has no file that could be written for it: `up` prints the line that its configuration needs.  With it bond and
#: slaves are left alone while a NIC beside them is taken; without it, all are.
DHCPCD = r"""
mkdir /run/dhcpcd
mount -t tmpfs state /var/lib/dhcpcd
printf 'nodev\nipv4only\nnodhcp\n' >/run/lab-conf
ubond up bond0 eth1 eth2 2>/run/lab-said
sed -n 's/.*: denyinterfaces/denyinterfaces/p' /run/lab-said >/run/lab-line
echo note; cat /run/lab-line
ip link add other type veth peer name rehto && ip link set other up && ip link set rehto up
printf '#!/bin/sh\necho $interface $reason >>/run/lab-taken\n' >/run/lab-hook
chmod +x /run/lab-hook
address() { ip -4 -o address show dev $1 | sed 's/.*inet //'; }
serve() { dhcpcd --config $1 --nobackground --quiet --script /run/lab-hook & dhcpcd=$!; }
cat /run/lab-line /run/lab-conf >/run/lab-pasted
serve /run/lab-pasted
until_so 169.254 address other
echo taken
sed -n 's/ PREINIT//p' /run/lab-taken | sort
ubond down bond0
kill $dhcpcd; wait $dhcpcd || true
serve /run/lab-conf
for nic in eth1 eth2; do until_so 169.254 address $nic; done
kill $dhcpcd; wait $dhcpcd || true
ip link delete other
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as world:
        yield world


def in_a_machine(world: World, script: str) -> str:
    own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    return world.host.run(*own, "env", f"PYTHON={sys.executable}", "sh", "-c", MACHINE + script, timeout=240).stdout


def life_of_a_bond(world: World, manager: str) -> tuple[str, str]:
    """The manager's file while the bond has two slaves, and when it has one; both managed again at the end."""
    said = in_a_machine(world, manager + BOND)
    up, _, rest = said.partition("up\n")[2].partition("removed\n")
    removed, _, left = rest.partition("down\n")
    assert up.endswith("unmanaged\nunmanaged\n")    # eth1 and bond0, after eth2 was given back
    assert left == "gone\n"
    return up, removed


def test_networkd(world: World) -> None:
    up, removed = life_of_a_bond(world, NETWORKD)
    assert "Name=bond0 eth1 eth2\n\n[Link]\nUnmanaged=yes\n" in up
    assert "Name=bond0 eth1\n" in removed


def test_networkmanager(world: World) -> None:
    up, removed = life_of_a_bond(world, NETWORKMANAGER if shutil.which("NetworkManager") else NMCLI)
    assert "match-device=interface-name:bond0;interface-name:eth1;interface-name:eth2\nmanaged=0\n" in up
    assert "match-device=interface-name:bond0;interface-name:eth1\nmanaged=0\n" in removed


def test_dhcpcd(world: World) -> None:
    said = in_a_machine(world, DHCPCD)
    assert said.partition("note\n")[2] == "denyinterfaces bond0 eth1 eth2\ntaken\nother\nrehto\n"
