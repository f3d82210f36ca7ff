"""A short turn of some benches shows that they work; nobody looks at their figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.netns


@pytest.mark.parametrize(
    ("bench", "questions"),
    [
        ("pps", {"pps.out", "pps.in"}),
        ("kernel", {"kernel.tcp.out", "kernel.tcp.in", "kernel.pps.out"}),
        ("udp", {"udp.single.out", "udp.single.in", "udp.segmented.out", "udp.segmented.in"}),
    ],
)
def test_each_contender_answers_every_question(bench: str, questions: set[str]) -> None:
    contenders = ("bare", "ubond", "forwarder")
    command = [str(ROOT / "bench" / f"{bench}.py"), "1", "--seconds", "0.3", "--only", ",".join(contenders)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    asked = {(one["bench"], one["contender"]) for one in results if "against" not in one}
    assert asked == {(question, name) for question in questions for name in contenders}
    assert all(one["median"] > 0 for one in results)


def test_a_contender_nobody_knows_is_named() -> None:
    command = [sys.executable, str(ROOT / "bench" / "pps.py"), "--only", "nobody"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no contender nobody" in done.stderr
