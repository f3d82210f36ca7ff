"""Lint and types are part of the suite, with the settings of pyproject.toml."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ubond

ROOT = Path(__file__).parent.parent
TREE = [name for name in ("ubond", "tests", "bench", "setup.py") if (ROOT / name).exists()]


@pytest.mark.parametrize(
    "tool",
    [["ruff", "check", *TREE], ["mypy", "--strict"]],
    ids=["lint", "types"],
)
def test_source_is_clean(tool: list[str]) -> None:
    result = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_version_stands_in_one_place_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project.get("version", ubond.__version__) == ubond.__version__
