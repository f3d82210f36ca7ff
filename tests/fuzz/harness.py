"""Builds `harness.c`: to search (clang's libFuzzer) or to run known inputs again (any compiler)."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("harness.c")
TARGETS = ("frames", "evidence", "tags", "tunnels", "worker")
FLAGS = (
    "-g", "-O1", "-fno-strict-aliasing", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined",
    "-Wall", "-Wno-unused-function", "-Wno-unused-variable",
)  # fmt: skip


def build(target: Path, fuzzer: bool) -> None:
    """Compile the frame path as it is now into an executable with sanitizers; raises if it cannot be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    generated = target.parent / "_fastpath.c"
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", "-I", ".", "ubond/_fastpath.pyx", "-o", str(generated)],
        cwd=ROOT,
        check=True,
    )
    kind = ["clang", "-fsanitize=fuzzer,address,undefined"]
    if not fuzzer:
        kind = ["gcc", "-DREPLAY", "-fsanitize=address,undefined"]
    include = ["-I", sysconfig.get_path("include"), "-I", str(target.parent)]
    subprocess.run([*kind, *FLAGS, *include, str(SOURCE), "-o", str(target)], check=True)


def replay(executable: Path, target: str, files: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run these inputs once more; stdout is how many were, stderr names each before it is."""
    environment = {**os.environ, "UBOND_FUZZ": target, **environment}
    return subprocess.run([str(executable), *files], env=environment, capture_output=True, text=True, timeout=300)
