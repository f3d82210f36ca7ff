"""`make demo` and the README's tour, as a newcomer runs them."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ubond.lab import Lab, run
from ubond.lab_world import STATE_DIR

pytestmark = pytest.mark.netns

ROOT = Path(__file__).resolve().parents[2]


def test_demo_keeps_its_promises() -> None:
    done = subprocess.Popen(
        [sys.executable, "-m", "ubond.demo"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, err = done.communicate(timeout=100)
    assert done.returncode == 0, out + err
    assert "\033" not in out, "colour belongs on a terminal only"
    assert ", 0% packet loss" in out
    assert "Currently Active Slave: eth1" in out
    assert "Currently Active Slave: eth2" in out
    assert "link status definitely down, disabling slave" in out
    assert re.search(r"leaving +\d+ sent +0 lost +0 duplicated", out)
    assert not (STATE_DIR / f"demo-{done.pid}").exists()
    assert f"ubond-demo-{done.pid}-" not in run("ip", "netns", "list")


def tour() -> list[str]:
    """The commands that the README has one type in the laboratory's shell."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("# ")]
    return [line for line in lines if line != "exit"]


def test_readme_tour_works_as_written() -> None:
    """Each command in its turn, with the outcome that the text around it speaks of."""
    commands = tour()
    assert len(commands) > 10
    said: dict[str, str] = {}
    name = f"r{os.getpid()}-{secrets.token_hex(3)}"
    with Lab(name) as lab:
        environment = {**lab.environment, "UBOND_LAB": name}
        for number, command in enumerate(commands):
            words = shlex.split(command)
            # `ubond lab` finds the laboratory by the variable that its shell sets.
            line = words if words[:2] == ["ubond", "lab"] else lab.command("host", *words)
            done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=30)
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            said[f"{number} {command}"] = done.stdout
    pings = [text for command, text in said.items() if "ping" in command]
    assert len(pings) == 2
    assert all(", 0% packet loss" in text for text in pings)
    table = next(text for command, text in said.items() if "table" in command)
    assert "active slave eth2" in table
