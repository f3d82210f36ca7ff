"""`kernel.py` in a virtual machine with the distribution's stock kernel (tests/guest), whatever kernel runs here.

    python bench/guest.py [ROUNDS]
"""

import importlib.util
import shlex
import sys
from pathlib import Path
from types import ModuleType

from _bed import ROOT, arguments
from _report import note

#: Seconds: emulation without KVM is slow, and an own machine may be busy.
PATIENCE = 900.0


def machine() -> ModuleType:
    """tests/guest/guest.py, which has the name of this program."""
    path = ROOT / "tests" / "guest" / "guest.py"
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("guest_machine", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    wanted = arguments()
    guests = machine()
    words = [sys.executable, str(Path(__file__).with_name("kernel.py")), str(wanted.rounds or 5)]
    words += ["--seconds", str(wanted.seconds or 1.5)]
    for option in ("only", "without"):
        if getattr(wanted, option):
            words += [f"--{option}", ",".join(getattr(wanted, option))]
    try:
        with guests.Guest(lifetime=PATIENCE + 60) as guest:
            note(f"the guest is up after {guest.boot_seconds:.1f} s")
            result = guest.run(f"exec {shlex.join(words)}", timeout=PATIENCE)
    except (guests.GuestError, guests.prepare.PrepareError) as error:
        note(f"guest.py: {error}")
        return 1
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return int(result.code)


if __name__ == "__main__":
    sys.exit(main())
