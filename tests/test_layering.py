"""Imports run one way, from the hall down to the wire: every module's row says what it may reach for."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ubond"

#: What decides, moves or encodes: no sockets, no clock, no threads, no chance.
PURE = {
    "asyncio", "concurrent", "ctypes", "fcntl", "logging", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "time",
}  # fmt: skip
#: Who may import what is not in the standard library.
THIRD_PARTY = {
    "pyroute2": {"addresses", "gate_bridge", "gate_clsact", "netlink", "routes", "rtnl"},
    "pytun": {"ports"},
    "uvloop": {"daemon"},
}
#: What the client may import: together it has to load within milliseconds.
LIGHT = {
    "__future__",
    "argparse",
    "collections",
    "errno",
    "json",
    "os",
    "select",
    "socket",
    "sys",
    "time",
    "types",
    "typing",
}

VOCABULARY = frozenset(
    {"wire", "bond.events", "bond.evidence", "bond.options", "bond.reception"}
    | {"bond.snapshot", "bond.spec", "bond.table"}
)
LOW = frozenset({"bond.events", "wire"})
#: Room -> what of ours it may import.  `bond` and `config` stand for all of their modules.
MAY: dict[str, frozenset[str]] = {
    # the wire, and the study with its vocabulary
    "wire": frozenset(),
    **dict.fromkeys(VOCABULARY - {"wire"}, VOCABULARY),
    "bond": frozenset({"bond", "wire"}),
    # engine room
    "datapath": frozenset({"_fastpath", "bond.evidence", "bond.table"}),
    # doors
    "paths": frozenset(),
    "sandbox": frozenset(),
    "init": frozenset(),
    "store": frozenset(),
    "keeper": frozenset({"init", "store"}),
    "logs": frozenset(),
    "rtnl": LOW,
    "ethtool": LOW,
    "ports": LOW | {"bond.document", "bond.reception"},
    "filters": LOW | {"bond.reception"},
    "steering": LOW,
    "uppers": LOW,
    "addresses": LOW | {"rtnl"},
    "routes": LOW | {"rtnl"},
    "gate_clsact": LOW | {"rtnl"},
    "gate_nft": LOW | {"gate_clsact", "rtnl"},
    "gate_bridge": LOW | {"rtnl"},
    "gates": LOW | {"gate_bridge", "gate_clsact", "gate_nft", "rtnl"},
    "netlink": LOW | {"addresses", "ethtool", "gates", "paths", "rtnl", "uppers"},
    "journal": LOW | {"paths"},
    "doors": LOW | {"bond.document", "bond.reception", "bond.table", "datapath", "filters", "gates", "journal"}
    | {"netlink", "ports", "steering"},
    # library
    "config": frozenset({"bond.options", "bond.spec", "config"}),
    # front desk
    "client": frozenset(),
    "status": VOCABULARY,
    "messages": VOCABULARY | {"client", "status"},
    "control": VOCABULARY | {"client", "messages", "status"},
    # hall
    "managers": frozenset(),
    "scout": frozenset({"bond.events", "netlink", "routes", "uppers"}),
    "history": frozenset({"bond.events", "control"}),
    "service": frozenset({"bond", "control", "datapath", "doors", "history", "netlink", "scout"}),
    "handover": frozenset({"bond", "client", "datapath", "doors", "service"}),
    "recovery": frozenset({"bond", "doors", "journal", "managers", "netlink", "paths"}),
    "assembly": frozenset({"bond", "client", "control", "datapath", "doors", "handover", "journal", "managers"})
    | {"netlink", "paths", "ports", "recovery", "sandbox", "service", "status", "steering", "store", "wire"},
    "daemon": frozenset({"assembly", "bond", "client", "handover", "init", "keeper", "logs", "managers"})
    | {"paths", "recovery", "sandbox", "steering", "store"},
    # the command
    "cli_events": frozenset({"client"}),
    "cli_ask": frozenset({"cli_events", "client", "paths"}),
    "cli_options": frozenset({"bond.options"}),
    "cli_up": VOCABULARY | {"bond.settings", "cli_options"},
    "cli": VOCABULARY | {"cli_ask", "cli_options", "cli_up", "client", "config", "daemon", "lab", "messages", "paths"},
    "__main__": frozenset({"cli"}),
    # yard: stands beside, starts processes
    "lab_world": frozenset(),
    "lab": frozenset({"client", "demo", "lab_world"}),
    "demo_traffic": frozenset(),
    "demo": frozenset({"client", "demo_traffic", "lab", "lab_world"}),
    # the public surface, loaded piece by piece
    "": frozenset({"bond", "config", "wire"}),
}
#: Readers of one format never lean on another format's.
READERS = frozenset({"config.ifcfg", "config.modprobe"})


def module_of(path: Path) -> str:
    """`bond.core` for ubond/bond/core.py, `bond` and the empty name for the packages themselves."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, wherever in it: `ubond.bond.table`, `asyncio`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            origin = str(node.module)
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield whole if whole.removeprefix("ubond.") in {*MODULES, "_fastpath"} else origin


def complaints(module: str, source: str) -> list[str]:
    """What this module reaches for and may not."""
    found = []
    for name in imported(ast.parse(source)):
        top, _, rest = name.partition(".")
        if top == "ubond":
            ok = rest == "" or reaches(module, rest)
        elif top in THIRD_PARTY:
            ok = module in THIRD_PARTY[top]
        elif module == "wire" or module.split(".")[0] == "bond":
            ok = top not in PURE or (module, top) == ("bond.events", "os")  # strerror
        elif module in ("client", "cli_ask", "cli_events"):
            ok = top in LIGHT
        else:
            ok = True
        if not ok:
            found.append(f"{module or 'ubond'} reaches for {name}")
    return found


def reaches(module: str, other: str) -> bool:
    if module in READERS and other in READERS:
        return False
    allowed = MAY.get(module, MAY.get(module.split(".")[0], frozenset()))
    return any(other == room or (room in ("bond", "config") and other.startswith(f"{room}.")) for room in allowed)


@pytest.mark.parametrize("module", sorted(MODULES), ids=lambda name: name or "ubond")
def test_module_imports_only_what_its_room_allows(module: str) -> None:
    assert complaints(module, MODULES[module].read_text()) == []


def test_every_module_has_a_room() -> None:
    homeless = {module for module in MODULES if module not in MAY and module.split(".")[0] not in ("bond", "config")}
    assert homeless == set()


def test_every_room_has_a_module() -> None:
    assert set(MAY) - set(MODULES) == set()


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("bond.core", "import time"),
        ("bond.monitor", "def f():\n    from socket import socket"),
        ("bond.core", "from ubond import netlink"),
        ("bond.core", "from ubond.control import Server"),
        ("bond.events", "from ubond.bond.core import Bond"),
        ("wire", "from ubond.bond import events"),
        ("datapath", "from ubond.bond.core import Bond"),
        ("ports", "import ubond.netlink"),
        ("netlink", "from ubond.ports import Tap"),
        ("doors", "import pyroute2"),
        ("service", "from ubond._fastpath import Engine"),
        ("config.ifcfg", "from ubond.config import modprobe"),
        ("client", "import asyncio"),
        ("client", "from ubond.bond.spec import check_name"),
        ("cli_ask", "import dataclasses"),
        ("lab", "from ubond.daemon import start"),
        ("somewhere", "from ubond import client"),
    ],
)
def test_a_wrong_import_is_found(module: str, line: str) -> None:
    assert complaints(module, line)


@pytest.mark.parametrize("path", sorted([*PACKAGE.glob("*.pyx"), *PACKAGE.glob("*.pxd")]), ids=lambda path: path.name)
def test_the_frame_path_takes_from_libc_and_from_itself_only(path: Path) -> None:
    for name in re.findall(r"^\s*(?:from|import|cimport)\s+([\w.]+)", path.read_text(), re.M):
        top, _, rest = name.partition(".")
        assert top in ("libc", "posix", "cpython", "cython") or (top == "ubond" and rest.startswith("_")), name
