"""The round trip while one TCP stream fills the way out, or the way in: what waits in queues, and for how long.

A question a millisecond after each answer; median, 99th percentile, and how many of a hundred got none within a second.

    python bench/rtt_load.py [ROUNDS]
"""

import time

from _bed import Bed, Standing, measure, rounds, seconds
from _report import GuardError, emit_contenders
from _streams import WAYS

from ubond.lab import PEER_IP

NAMES = ("bare", "ubond", "forwarder", "ovs-tso", "ovs", "dpdk")
SECONDS = 2.0
#: Of the stream, before the first question: it has found its window.
WARM_UP = 0.5
INTERVAL_US = 1000
#: How long an answer is waited for, and what no answer at all counts as.
PATIENCE_US = 1e6
UNITS = {"stream": "Mbit/s", "lost": "%"}


def ask(bed: Bed, standing: Standing) -> dict[str, float]:
    found = {}
    for way, (source, target, to, port) in WAYS.items():
        lasts = seconds(SECONDS)
        receiver = bed.load(target, "tcp-recv", port=port, seconds=60)
        bed.wait_listening((target, port))
        sender = bed.load(source, "tcp-send", to=to, port=port, seconds=lasts + 2 * WARM_UP)
        echo = bed.load("peer", "echo", port=5103, seconds=60)
        time.sleep(WARM_UP)
        asked = bed.load("host", "rtt", to=PEER_IP, port=5103, interval_us=INTERVAL_US, seconds=lasts).report(end=False)
        echo.report()
        sender.report(end=False)
        rate = float(receiver.report(end=False)["mbit"])
        if rate < 1:
            raise GuardError(f"{rate:.0f} Mbit/s {way}")
        for what in ("median", "p99"):
            found[f"{way}.{what}"] = float(asked[f"{what}_us"]) if asked["answered"] else PATIENCE_US
        found[f"{way}.lost"] = 100 * asked["lost"] / asked["sent"]
        found[f"{way}.stream"] = rate
    return found


def bench(bed: Bed) -> None:
    found = bed.take_turns(NAMES, lambda standing: ask(bed, standing), rounds())
    for question, figures in found.items():
        emit_contenders(f"rtt_load.{question}", UNITS.get(question.partition(".")[2], "us"), figures)


if __name__ == "__main__":
    measure(bench)
