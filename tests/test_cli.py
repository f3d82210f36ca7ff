"""The `ubond` command as a person runs it: a process, its output, its exit code."""

import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
from fake_desk import AT, CHANGE, Running, as_another_user, as_nobody, serving, until

from ubond import __version__, cli, cli_events, cli_options, cli_up, control, paths
from ubond.bond.events import DoorError
from ubond.bond.options import OPTIONS, Kind, OptionError, Refused
from ubond.bond.spec import BondSpec, SlaveSpec, SpecError

ROOT = Path(__file__).parent.parent
MANUAL = (ROOT / "docs/man/ubond.1").read_text().replace("\\-", "-")
COMMANDS = [*cli.COMMANDS, "lab"]


def ubond(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as an installed one would run."""
    command = [sys.executable, "-m", "ubond", *argv]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of this test's own, so that bonds of the machine do not matter."""
    with tempfile.TemporaryDirectory(prefix="ub") as directory:
        os.chmod(directory, 0o755)
        monkeypatch.setenv("UBOND_RUNTIME_DIR", directory)
        yield paths.make_runtime_dir()


@pytest.fixture
def bond0(runtime: Path) -> Iterator[Running]:
    """What looks like a running bond0 from outside: the lock is held and the socket answers."""
    lock = paths.lock("bond0")
    assert lock is not None
    try:
        with serving(paths.socket_path("bond0")) as running:
            yield running
    finally:
        paths.unlock("bond0", lock)


# ── help and usage ───────────────────────────────────────────────────────────────────


def test_help_names_every_command_and_exit_code() -> None:
    result = ubond("--help")
    assert result.returncode == 0
    assert re.findall(r"^  ([a-z]+) +\S", result.stdout, re.M) == COMMANDS
    assert re.findall(r"^  ([0-9])  ", result.stdout, re.M) == list("012345")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_and_stands_in_the_manual(command: str) -> None:
    result = ubond(command, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: ubond {command} ")
    assert result.stderr == ""
    assert ubond("help", command).stdout == result.stdout
    section = re.search(rf'^\.SS "?{command}\b.*?(?=^\.S[SH])', MANUAL, re.M | re.S)
    assert section
    for flag in set(re.findall(r"--[a-z][a-z0-9-]+", result.stdout)) - {"--help"}:
        assert re.search(rf"{flag}\b", section[0]) or flag in OPTION_FLAGS, flag


#: Listed once in the manual, in a section of their own.
OPTION_FLAGS = {"--" + name.replace("_", "-") for option in OPTIONS.values() for name in (option.name, *option.aliases)}


def test_every_bonding_option_is_a_flag_of_up_and_stands_in_the_manual() -> None:
    text = ubond("up", "--help").stdout
    for option in OPTIONS.values():
        if option.name != "slaves":
            assert re.search(rf"{option.flag}[ ,]", text), option.name
            assert re.search(rf"^\.BR? {option.name}\b", MANUAL, re.M), option.name


def test_generated_pages_are_up_to_date() -> None:
    manual = (ROOT / "docs/man/ubond.1").read_text()
    assert (ROOT / "docs/options.md").read_text() == cli_options.markdown(), "make docs"
    assert cli_options.in_manual(manual) == manual, "make docs"
    assert cli_options.in_manual(manual.replace("Which header fields", "What")) == manual


@pytest.mark.parametrize("name", OPTIONS)
def test_options_explains_each_option(name: str) -> None:
    option = OPTIONS[name]
    text = cli_options.page(option)
    plain = " ".join(text.split())
    assert plain.startswith(f"{name}: {option.doc}")
    for value, word in option.values.items():
        assert f"{value} {word}" in plain
        assert option.parse(word) == option.parse(str(value)) == value
    for word, value in option.words.items():
        assert f"{word} {value}" in plain
    if option.hi is not None:
        assert f"{option.lo} - {option.hi}" in plain
    for mode in option.modes or ():
        assert str(mode) in plain
    assert option.when.value in plain
    assert max(map(len, text.splitlines())) <= 120


def test_options_prints_a_line_each_or_one_by_any_of_its_names() -> None:
    assert [line.split()[0] for line in ubond("options").stdout.splitlines()] == list(OPTIONS)
    assert ubond("options", "num-grat-arp").stdout == cli_options.page(OPTIONS["num_unsol_na"]) + "\n"
    refused = ubond("options", "nonsense")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "ubond: unknown option nonsense; `ubond options` lists them\n"


def test_version_is_that_of_the_package() -> None:
    assert ubond("--version").stdout == f"ubond {__version__}\n"
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


USAGE_ERRORS = {
    "unknown command": (["frob"], "unknown command 'frob'"),
    "no slave": (["up", "bond0"], "SLAVE"),
    "unknown flag": (["up", "bond0", "eth1", "--frob"], "--frob"),
    "flags are not abbreviated": (["up", "bond0", "eth1", "--miim", "100"], "--miim"),
    "unknown option": (["up", "bond0", "eth1", "-o", "mimon=100"], "did you mean miimon?"),
    "no value": (["up", "bond0", "eth1", "-o", "miimon"], "OPTION=VALUE"),
    "bad value": (["up", "bond0", "eth1", "--miimon", "soon"], "option miimon: invalid value (soon)"),
    "negative": (["up", "bond0", "eth1", "-o", "updelay=-1"], "invalid value (-1)"),
    "unknown mode": (["up", "bond0", "eth1", "--mode", "lacp"], "invalid value (lacp)"),
    "mode to come": (["up", "bond0", "eth1", "--mode", "802.3ad"], "not part of this version"),
    "unknown probe": (["up", "bond0", "eth1", "--probe", "peer"], "invalid value (peer)"),
    "not in the mode": (
        ["up", "bond0", "eth1", "--primary", "eth1", "--mode", "balance-rr"],
        "mode dependency failed, not supported in mode balance-rr(0)",
    ),
    "prio not in the mode": (["up", "bond0", "eth1", "--mode", "0", "--prio", "eth1=1"], "option prio: mode"),
    "prio of a stranger": (["up", "bond0", "eth1", "-o", "eth2.prio=1"], "eth2 is not among the slaves"),
    "prio of nobody": (["up", "bond0", "eth1", "-o", "prio=1"], "SLAVE.prio=N"),
    "prio out of range": (["up", "bond0", "eth1", "-o", "eth1.prio=2147483648"], "invalid value"),
    "miimon of a slave": (["up", "bond0", "eth1", "-o", "eth1.miimon=1"], "belongs to the bond"),
    "slaves as an option": (["up", "bond0", "eth1", "-o", "slaves=eth2"], "named after the bond"),
    "long name": (["up", "b" * 16, "eth1"], "too long"),
    "slash in the name": (["up", "a/b", "eth1"], "'/' is not allowed"),
    "percent in the name": (["up", "bond%d", "eth1"], "'%' is not allowed"),
    "bad slave name": (["up", "bond0", "eth 1"], "' ' is not allowed"),
    "control character": (["up", "bond0", "eth\n1"], "cannot be printed"),
    "not UTF-8": (["up", "bond0", os.fsdecode(b"eth\xff")], "cannot be printed"),
    "slave of itself": (["up", "bond0", "bond0"], "slave of itself"),
    "slave twice": (["up", "bond0", "eth1", "eth1"], "named twice"),
    "address without length": (["up", "bond0", "eth1", "--address", "192.0.2.1"], "prefix length"),
    "no address": (["up", "bond0", "eth1", "--gateway", "here"], "not an IP address"),
    "no MAC": (["up", "bond0", "eth1", "--mac", "1:2"], "not a MAC address"),
    "multicast MAC": (["up", "bond0", "eth1", "--mac", "01:00:00:00:00:00"], "cannot be the address"),
    "MTU": (["up", "bond0", "eth1", "--mtu", "67"], "out of range"),
    "workers": (["up", "bond0", "eth1", "--workers", "17"], "out of range"),
    "no number of workers": (["up", "bond0", "eth1", "--workers", "two"], "nor auto"),
    "set without value": (["set", "bond0", "miimon"], "OPTION=VALUE"),
    "two formats": (["status", "--json", "--format", "table"], "not allowed with"),
}


@pytest.mark.parametrize(("argv", "said"), USAGE_ERRORS.values(), ids=USAGE_ERRORS.keys())
def test_wrong_usage_is_one_clear_line_and_exit_code_2(runtime: Path, argv: list[str], said: str) -> None:
    result = ubond(*argv)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("ubond: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert list(runtime.iterdir()) == []


# ── from words to a spec ─────────────────────────────────────────────────────────────


def spec(*argv: str) -> BondSpec:
    parser = cli.Parser()
    cli_up.add_arguments(parser)
    return cli_up.spec_from(parser.parse_intermixed_args(argv))


def test_flags_and_o_say_the_same() -> None:
    by_flags = spec("bond0", "eth1", "--miimon", "50", "--num-grat-arp", "3", "eth2", "--prio", "eth2=-5")
    by_name = spec("bond0", "eth1", "eth2", "-o", "miimon=50", "-o", "num_unsol_na=3", "-o", "eth2.prio=-5")
    assert by_flags == by_name
    assert by_flags.options == {"miimon": "50", "num_unsol_na": "3"}
    assert by_flags.slaves == (SlaveSpec("eth1"), SlaveSpec("eth2", MappingProxyType({"prio": "-5"})))


def test_the_last_of_two_values_counts() -> None:
    assert spec("bond0", "eth1", "--miimon", "50", "-o", "miimon=70").options == {"miimon": "70"}


def test_a_slave_may_have_a_dot_in_its_name_and_queue_id_the_drivers_colon() -> None:
    both = spec("bond0", "eth0.100", "-o", "eth0.100.prio=3", "-o", "queue_id=eth0.100:2")
    assert dict(both.slaves[0].options) == {"prio": "3", "queue_id": "2"}


def test_everything_else_arrives_in_the_spec() -> None:
    full = spec(
        "bond0", "eth1", "--address", "192.0.2.10/24", "--address", "2001:db8::1/64", "--gateway", "192.0.2.1",
        "--mac", "02:00:00:00:00:09", "--mtu", "9000", "--no-bypass", "--strict", "--take-addresses",
    )  # fmt: skip
    assert [str(address) for address in full.addresses] == ["192.0.2.10/24", "2001:db8::1/64"]
    assert str(full.gateways[0]) == "192.0.2.1"
    assert (str(full.mac), full.mtu) == ("02:00:00:00:00:09", 9000)
    assert (full.bypass, full.strict, full.take_addresses) == (False, True, True)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_default_of_every_option_can_be_written_in_a_mode_that_has_it(
    option: cli_up.Option,
) -> None:
    if option.name in ("slaves", "mode"):
        return
    mode = "balance-rr" if option.name == "packets_per_slave" else "active-backup"
    slave = "eth1=" if option.kind is Kind.PER_SLAVE else ""
    argv = ["bond0", "eth1", "--mode", mode, option.flag, f"{slave}{option.start}"]
    if option.modes is not None and not {0, 1} & set(option.modes):
        with pytest.raises(OptionError, match="not supported in mode"):
            spec(*argv)
    else:
        assert spec(*argv).options["mode"] == mode


def test_use_carrier_0_is_refused_with_strict_only() -> None:
    assert spec("bond0", "eth1", "--use-carrier", "0").options["use_carrier"] == "0"
    with pytest.raises(OptionError, match="obsolete"):
        spec("bond0", "eth1", "--use-carrier", "0", "--strict")


def test_safer_defaults_are_said_aloud_unless_written() -> None:
    assert cli_up.remarks(spec("bond0", "eth1")) == ["using mode=active-backup miimon=100"]
    assert cli_up.remarks(spec("bond0", "eth1", "--mode", "0")) == ["using miimon=100"]
    assert cli_up.remarks(spec("bond0", "eth1", "--mode", "0", "--miimon", "50")) == []


def test_a_primary_without_updelay_gets_a_hint() -> None:
    def hinted(*argv: str) -> bool:
        return any("updelay" in line for line in cli_up.remarks(spec("bond0", "eth1", *argv)))

    assert hinted("--primary", "eth1")
    assert hinted("--primary", "eth1", "--updelay", "0")
    assert not hinted("--primary", "eth1", "--updelay", "2s")
    assert not hinted()


# ── permission ───────────────────────────────────────────────────────────────────────


def test_missing_capabilities_are_named(tmp_path: Path) -> None:
    def missing(effective: int) -> list[str]:
        (tmp_path / "status").write_text(f"Name:\tx\nCapEff:\t{effective:016x}\nSeccomp:\t0\n")
        return cli_up.missing_capabilities(str(tmp_path / "status"))

    assert missing(0) == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
    assert missing(1 << 12) == ["CAP_NET_RAW"]
    assert missing(1 << 13) == ["CAP_NET_ADMIN"]
    assert missing(1 << 12 | 1 << 13) == []


@pytest.mark.parametrize("argv", [["up", "bond0", "eth1"], ["restore", "eth1"]], ids=["up", "restore"])
def test_without_capabilities_a_bond_is_refused_before_anything_is_touched(runtime: Path, argv: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_CAPABILITIES, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 4, result.stderr
    assert result.stderr.count("\n") == 1
    assert "CAP_NET_ADMIN and CAP_NET_RAW missing" in result.stderr
    assert "--cap-add NET_ADMIN --cap-add NET_RAW" in result.stderr
    assert list(runtime.iterdir()) == []


#: capset(2) to nothing, in the process itself; an ordinary user has nothing to begin with.
WITHOUT_CAPABILITIES = """
import ctypes, sys
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)())
from ubond.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_missing_tun_device_says_what_to_do(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    really = cli_up.open_tun
    monkeypatch.setattr(cli_up, "missing_capabilities", list)
    monkeypatch.setattr(cli_up, "open_tun", lambda: really(str(tmp_path / "tun")))
    assert cli.main(["up", "bond0", "eth1"]) == 5
    told = capsys.readouterr().err
    assert "open /dev/net/tun: No such file or directory" in told
    assert "--device /dev/net/tun" in told


# ── without a bond ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "argv",
    [
        ["status", "bond0"], ["down", "bond0"], ["ifdown", "bond0"], ["add", "bond0", "eth1"],
        ["remove", "bond0", "eth1"], ["set", "bond0", "miimon=1"], ["history", "bond0"], ["monitor", "bond0"],
        ["status"], ["monitor"], ["status", "../../etc/passwd"], ["down", "b" * 300], ["down", "b" * 16],
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_such_bond_is_exit_code_3(runtime: Path, argv: list[str]) -> None:
    result = ubond(*argv)
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


def test_list_of_nothing_is_nothing(runtime: Path) -> None:
    assert (ubond("list").stdout, ubond("list", "--json").stdout) == ("", "[]\n")


def test_a_bond_whose_daemon_died_says_how_to_get_the_slaves_back(runtime: Path) -> None:
    paths.journal_path("bond0").write_text("{}")
    result = ubond("status", "bond0")
    assert result.returncode == 3
    assert "`ubond down bond0` gives its slaves back" in result.stderr


def test_a_bond_that_is_just_starting_is_not_taken_for_none(runtime: Path) -> None:
    lock = paths.lock("bond0")
    assert lock is not None
    result = ubond("down", "bond0")
    paths.unlock("bond0", lock)
    assert result.returncode == 1
    assert "starting or ending" in result.stderr


def test_ifup_of_what_no_file_describes_is_a_bad_configuration(runtime: Path, tmp_path: Path) -> None:
    result = ubond("ifup", "bond0", "--root", str(tmp_path))
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr


# ── with a bond ──────────────────────────────────────────────────────────────────────


def test_status_prints_what_the_daemon_says(bond0: Running) -> None:
    proc = ubond("status").stdout
    assert proc.startswith("Ethernet Channel Bonding Driver: v")
    assert "\nCurrently Active Slave: eth1\n" in proc
    assert ubond("status", "bond0", "--format", "proc").stdout == proc
    assert ubond("status", "bond0", "--format", "table").stdout.startswith("bond0: carrier up")
    links = json.loads(ubond("status", "bond0", "--json").stdout)
    assert [link["ifname"] for link in links] == ["bond0", "eth1"]


def test_status_of_all_bonds_names_each(bond0: Running) -> None:
    lock = paths.lock("bond1")
    assert lock is not None
    with serving(paths.socket_path("bond1")):
        text = ubond("status").stdout
        assert re.findall(r"^==> (.*) <==$", text, re.M) == ["bond0", "bond1"]
        assert len(json.loads(ubond("status", "--json").stdout)) == 4
        assert ubond("list").stdout == "bond0\nbond1\n"
    paths.unlock("bond1", lock)


def test_list_json_tells_who_runs(bond0: Running) -> None:
    assert json.loads(ubond("list", "--json").stdout) == [{"bond": "bond0", "ubond": "0.1.0", "pid": os.getpid()}]


def test_set_add_and_remove_reach_the_daemon(bond0: Running) -> None:
    assert ubond("set", "bond0", "eth2.prio=10", "primary=", "eth0.7.queue_id=3").returncode == 0
    assert ubond("add", "bond0", "slow0", "--take-addresses").stdout == "slow0 is slow\n"
    assert ubond("remove", "bond0", "eth1", "eth2").returncode == 0
    (_, *assignments), *others = bond0.desk.asked
    assert sorted(assignments, key=str) == [
        ("eth0.7", "queue_id", "3"),
        ("eth2", "prio", "10"),
        (None, "primary", ""),
    ]
    assert others == [("add", "slow0", True), ("remove", "eth1", "eth2")]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["set", "bond0", "miimon=soon"], 2, "bond0: option miimon: invalid value (soon)"),
        (["set", "bond0", "mimon=3"], 2, "unknown option mimon"),
        (["remove", "bond0", "eth9"], 1, "invalid value (-eth9)"),
        (["remove", "bond0", "stuck0"], 5, "stuck0: RTM_SETLINK address: Device or resource busy"),
        (["up", "bond0", "eth1"], 1, "bond0 is already running"),
    ],
)
def test_refusals_are_one_line_with_their_exit_code(bond0: Running, argv: list[str], code: int, said: str) -> None:
    result = ubond(*argv)
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert said in result.stderr


def test_history_as_a_table_as_json_and_the_log(bond0: Running) -> None:
    title, entry = ubond("history", "bond0", TZ="UTC").stdout.splitlines()
    assert title.split() == ["TIME", "FROM", "TO", "LOST", "SILENCE", "WHY"]
    assert re.split(r"\s{2,}", entry) == [
        "2023-11-14 22:13:20.500", "eth1", "eth2", "0", "0.3 ms", "link of eth1 went down",
    ]  # fmt: skip
    assert json.loads(ubond("history", "bond0", "--json").stdout) == bond0.desk.past
    assert ubond("history", "bond0", "--log", TZ="UTC").stdout == (
        "2023-11-14 22:13:20.500 bond0: (slave eth2): making interface the new active one\n"
    )


def test_history_says_unknown_and_no_traffic() -> None:
    (_, entry) = cli_events.failovers([control.failover(CHANGE, AT, None, None)])
    assert re.split(r"\s{2,}", entry)[3:5] == ["unknown", "-"]
    assert cli_events.failovers([]) == ["no failover so far"]


def test_monitor_prints_one_line_per_event_until_the_bond_ends(bond0: Running) -> None:
    command = [sys.executable, "-u", "-m", "ubond", "monitor"]
    environment = {**os.environ, "TZ": "UTC"}
    plain = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    as_json = subprocess.Popen([*command, "--json"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert plain.stdout is not None
    assert as_json.stdout is not None
    until(lambda: bond0.listeners() == 2)
    bond0.publish(control.active_changed(CHANGE, AT))
    told = "2023-11-14 22:13:20.500 active slave eth1 -> eth2: link of eth1 went down (bond0)\n"
    assert plain.stdout.readline() == told
    assert json.loads(as_json.stdout.readline()) == {"bond": "bond0", **control.active_changed(CHANGE, AT)}
    bond0.await_(bond0.server.close())
    assert plain.wait(30) == as_json.wait(30) == 0
    assert plain.stdout.read() == as_json.stdout.read() == ""


def test_monitor_ends_with_130_when_interrupted(bond0: Running) -> None:
    command = [sys.executable, "-m", "ubond", "monitor", "bond0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: bond0.listeners() == 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_reader_that_has_had_enough_is_no_error(bond0: Running) -> None:
    script = f"{sys.executable} -m ubond up --help | true; {sys.executable} -m ubond status | head -n 1"
    result = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    assert result.stdout.startswith("Ethernet Channel")


def test_down_returns_when_the_daemon_has_gone(bond0: Running) -> None:
    process = subprocess.Popen([sys.executable, "-m", "ubond", "down", "bond0"], cwd=ROOT, stderr=subprocess.PIPE)
    until(lambda: ("down",) in bond0.desk.asked)
    bond0.await_(bond0.server.close())
    # The lock is still held: whoever called `up` now would be refused.
    assert process.poll() is None
    paths.lock_path("bond0").unlink()
    assert process.wait(30) == 0


@as_another_user
def test_who_may_not_ask_the_daemon_may_still_read_the_text(bond0: Running) -> None:
    paths.proc_path("bond0").parent.mkdir(parents=True)
    paths.proc_path("bond0").write_text("Ethernet Channel Bonding Driver: vX\n")
    assert as_nobody(lambda: cli.main(["status", "bond0"])) == "Ethernet Channel Bonding Driver: vX\n"
    refused = as_nobody(lambda: print(cli.main(["status", "bond0", "--json"])))
    assert "run this as root or as the owner" in refused
    assert refused.endswith("\n4\n")


# ── what it costs to ask ─────────────────────────────────────────────────────────────

HEAVY = ("asyncio", "pyroute2", "uvloop", "dataclasses", "ubond.bond", "ubond.daemon", "ubond.status")


@pytest.mark.parametrize(
    "argv",
    [["status"], ["status", "--json"], ["list"], ["set", "bond0", "miimon=1"], ["history", "bond0"]],
    ids=" ".join,
)
def test_asking_a_daemon_imports_nothing_heavy(bond0: Running, argv: list[str]) -> None:
    program = f"import sys; from ubond.cli import main; main({argv!r}); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = result.stderr.split()
    assert "ubond.client" in loaded
    assert [name for name in loaded if name in HEAVY] == []


# ── errors on their way out ──────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SpecError("bad name"), 2, "ubond: bond0: bad name"),
        (Refused(errno.EPERM, ["(slave lo): Error: no"]), 1, "ubond: bond0: (slave lo): Error: no"),
        (DoorError("TUNSETIFF", errno.EBUSY, "bond0"), 5, "ubond: bond0: TUNSETIFF: Device or resource busy"),
        (DoorError("RTM_GETLINK", errno.ENODEV, "eth9"), 5, "eth9: RTM_GETLINK: No such device; `ip link` shows"),
        (DoorError("TUNSETIFF", errno.EPERM, "bond0"), 4, "TUNSETIFF: Operation not permitted; CAP_X is missing"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/run/x"), 1, "/run/x: No such file"),
        (OSError("two\nlines"), 1, "two lines"),
    ],
)
def test_errors_of_the_daemon_become_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    runtime: Path,
    error: Exception,
    code: int,
    said: str,
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module("ubond.daemon"), "start", fail)
    monkeypatch.setattr(cli, "_check_permission", lambda: None)
    monkeypatch.setattr(cli_up, "missing_capabilities", lambda: ["CAP_X"])
    assert cli.main(["up", "bond0", "eth1", "--mode", "1", "--miimon", "100"]) == code
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch, runtime: Path) -> None:
    def fail(*_: object, **__: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("ubond.daemon"), "start", fail)
    monkeypatch.setattr(cli, "_check_permission", lambda: None)
    with pytest.raises(ZeroDivisionError):
        cli.main(["up", "bond0", "eth1"])
