"""One target of `targets` under atheris: python -m tests.fuzz.guided TARGET [libFuzzer's arguments]."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ubond", "json.decoder", "json.scanner", "ipaddress"]):
    from tests.fuzz import targets


def main() -> None:
    name = sys.argv.pop(1)
    # What libFuzzer starts again, by a shell, where it merges: this file is no program.
    sys.argv[0] = f"{sys.executable} -m tests.fuzz.guided {name}"
    atheris.Setup(sys.argv, targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
