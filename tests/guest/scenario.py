#!/usr/bin/env python3
"""Runs in a guest: a bond of eth1 and eth2, a peer behind it, cables pulled while numbered datagrams flow.

    python scenario.py ubond|driver [RATE]

`ubond` and the kernel's own `driver` get the same bond (active-backup, miimon 100), traffic and pulls.  Prints one
JSON object: what the datagrams' receiver saw, and for each pull what was pulled.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HOST, PEER = "192.0.2.10", "192.0.2.1"
SLAVES = ("eth1", "eth2")
PULLS = 4


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def wait_until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not true():
        if time.monotonic() > end:
            sys.exit(f"not within 30 s: {what}")
        time.sleep(0.05)


def carrier(nic: str) -> bool:
    return Path(f"/sys/class/net/{nic}/carrier").read_text().strip() == "1"


class ByUbond:
    def up(self) -> None:
        run("ubond", "up", "bond0", *SLAVES, "--address", f"{HOST}/24")

    def active(self) -> str:
        # The file and not `ubond status`, which takes seconds to start in a machine that is emulated.
        status = Path("/run/ubond/proc/net/bonding/bond0").read_text()
        return status.partition("Currently Active Slave: ")[2].partition("\n")[0]

    def down(self) -> None:
        run("ubond", "down", "bond0")


class ByDriver:
    def up(self) -> None:
        run("modprobe", "bonding", "max_bonds=0")
        run("ip", "link", "add", "bond0", "type", "bond", "mode", "active-backup", "miimon", "100")
        for slave in SLAVES:
            run("ip", "link", "set", slave, "master", "bond0")
        run("ip", "link", "set", "bond0", "up")
        run("ip", "addr", "add", f"{HOST}/24", "dev", "bond0")

    def active(self) -> str:
        return Path("/sys/class/net/bond0/bonding/active_slave").read_text().strip()

    def down(self) -> None:
        run("ip", "link", "del", "bond0")


def peer() -> None:
    run("ip", "netns", "add", "peer")
    run("ip", "link", "set", "peer", "netns", "peer")
    run("ip", "-n", "peer", "link", "set", "peer", "up")
    run("ip", "-n", "peer", "addr", "add", f"{PEER}/24", "dev", "peer")


def main(who: str, rate: str = "500") -> None:
    bond = {"ubond": ByUbond, "driver": ByDriver}[who]()
    peer()
    bond.up()
    wait_until(lambda: all(carrier(slave) for slave in SLAVES) and bond.active() in SLAVES, "both slaves up")
    wait_until(lambda: subprocess.run(["ping", "-c1", "-W1", PEER], capture_output=True).returncode == 0, "a ping")
    program = [sys.executable, "-m", "ubond.demo_traffic"]
    receiver = subprocess.Popen(["ip", "netns", "exec", "peer", *program, "receive", "9000"],
                                stdout=subprocess.PIPE, text=True)
    assert receiver.stdout is not None
    receiver.stdout.readline()
    sender = subprocess.Popen([*program, "send", PEER, "9000", rate], stdout=subprocess.PIPE, text=True)
    time.sleep(1)       # traffic from before the first pull
    pulled = []
    for _ in range(PULLS):
        active = bond.active()
        run("cable", active, "off")
        wait_until(lambda was=active: not carrier(was) and bond.active() not in ("", "None", was), "failover")
        pulled.append(active)
        time.sleep(0.5)     # traffic through the other
        run("cable", active, "on")
        wait_until(lambda was=active: carrier(was), "carrier")
        time.sleep(0.5)     # until it may take over: one pass of the monitor and more
    sender.send_signal(signal.SIGTERM)
    sent = json.loads(sender.communicate(timeout=30)[0])
    receiver.send_signal(signal.SIGTERM)
    seen = json.loads(receiver.communicate(timeout=30)[0].splitlines()[-1])
    bond.down()
    run("ip", "netns", "del", "peer")       # a NIC falls back to where it came from
    lost = sent["sent"] - seen["received"]
    print(json.dumps({"by": who, "pulled": pulled, "lost": lost, **sent, **seen}))


if __name__ == "__main__":
    main(*sys.argv[1:])
