"""What every test may rely on."""

import os
import signal
import threading

import pytest

# Started in the background of a shell without job control, pytest would hand an ignored SIGINT
# down to the programs that the tests interrupt.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--world", choices=("netns", "container", "virtio", "e1000"),
        help="what the host is in the tests of tests/netns (tests/netns/world.py); "
             "virtio and e1000 are for pytest in a guest (tests/guest/core.py)",
    )  # fmt: skip
    parser.addoption("--workers", help="`--workers` of the bonds in tests/netns that do not say it themselves")


def pytest_configure(config: pytest.Config) -> None:
    if chosen := config.getoption("--world"):
        os.environ["UBOND_WORLD"] = chosen
    if workers := config.getoption("--workers"):
        os.environ["UBOND_TEST_WORKERS"] = workers
