"""The daemon killed (kill -9) under a TCP stream each way: does it live on, and for how long does nothing come?

A datagram every millisecond tells how long no frame passes; the streams tell how long TCP, which waits
for its timers, is silent.  What the daemon had in hand and what the TAP could not hold is lost.

    python bench/restart.py [KILLS]
"""

import os
import signal
import time

from _bed import Bed, measure, rounds, silence_of_each
from _report import GuardError, emit, note

from ubond.lab import HOST_IP, PEER_IP, wait_until

RATE, MBIT = 1000, 200
SILENCE_AT_MOST = 1000.0
#: A fifth death within a minute would be given up: a new bond after four.
PER_BOND = 4

Silences = dict[str, list[float]]


def bench(bed: Bed) -> None:
    kills = rounds(20)
    found: Silences = {"restart.silence": [], "restart.tcp_out_silence": [], "restart.tcp_in_silence": []}
    lost = done = 0
    while done < kills:
        count = min(PER_BOND, kills - done)
        note(f"{done} of {kills} kills")
        lost += one_bond(bed, count, found)
        done += count
    for name, silences in found.items():
        emit(name, "ms", silences, kills=kills, at_most=SILENCE_AT_MOST, ok=max(silences) < SILENCE_AT_MOST)
    emit("restart.lost", "datagrams a kill", [lost / kills], kills=kills, rate=RATE)


def one_bond(bed: Bed, kills: int, found: Silences) -> int:
    """Kill the daemon of one bond so many times; note the silences, return how many datagrams were lost."""
    with bed.bond("--miimon", "100"):
        streams = {
            "restart.tcp_out_silence": bed.load("peer", "tcp-recv", port=5101, seconds=900, gap_ms=20),
            "restart.tcp_in_silence": bed.load("host", "tcp-recv", port=5102, seconds=900, gap_ms=20),
        }
        bed.wait_listening(("peer", 5101), ("host", 5102))
        senders = [
            bed.load("host", "tcp-send", to=PEER_IP, port=5101, mbit=MBIT, seconds=900),
            bed.load("peer", "tcp-send", to=HOST_IP, port=5102, mbit=MBIT, seconds=900),
        ]
        receiver = bed.load("peer", "udp-recv", seconds=900, gap_ms=20)
        sender = bed.load("host", "udp-send", to=PEER_IP, rate=RATE, seconds=900)
        instants = [kill(bed) for _ in range(kills)]
        sent, got = sender.report(), receiver.report()
        for one in senders:
            one.report()  # a connection that broke is a sender that failed
        found["restart.silence"] += silence_of_each(instants, got["silences"])
        for name, stream in streams.items():
            found[name] += silence_of_each(instants, stream.report()["silences"])
    return int(sent["sent"] - got["unique"])


def kill(bed: Bed) -> float:
    """Kill the daemon under load, return when; its successor has served for a while then."""
    time.sleep(0.5)
    pid, restarts = bed.daemon_pid(), bed.restarts()
    carried = bed.carried(bed.active())
    instant = time.time()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: bed.restarts() == restarts + 1, 10, "the successor")
    time.sleep(1)
    if bed.daemon_pid() == pid or bed.carried(bed.active()) - carried < RATE // 2:
        raise GuardError("the daemon was not killed, or nothing flowed")
    return instant


if __name__ == "__main__":
    measure(bench)
