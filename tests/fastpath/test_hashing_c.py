"""The worker's transmit hashes: as their Python twin says, and never a byte beyond the frame."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from Cython.Build import cythonize
from hypothesis import given, settings
from hypothesis import strategies as st

from ubond import _fastpath
from ubond.bond.hashing import HashPolicy, xmit_hash
from ubond.bond.options import OPTIONS

ROOT = Path(__file__).parents[2]
with gzip.open(ROOT / "tests" / "golden" / "hash.jsonl.gz", "rt") as file:
    RECORDED = [json.loads(line) for line in file]
FRAMES = [bytes.fromhex(one["frame"]) for one in RECORDED]


def agree(frame: bytes) -> None:
    c = [_fastpath.frame_hash(frame, policy) for policy in HashPolicy]
    assert c == [xmit_hash(frame, policy) for policy in HashPolicy], frame.hex()


# ── frames that lead far into the walk ───────────────────────────────────────────────

UDP, GRE, IPIP, SIT, ICMP, ICMPV6, AH, ESP = 17, 47, 4, 41, 1, 58, 51, 50
TAILS = {UDP: 12, 6: 20, 33: 8, 132: 12, 136: 8, AH: 12, ESP: 8, ICMP: 36, ICMPV6: 56, 103: 4, 137: 8, 59: 0}
ENDS = [0x0806, 0x8035, 0x8847, 0x8848, 0x8902, 0x88F7, 0x8906, 0x88CA, 0x88CC, 0x0004, 0x880B]


@st.composite
def by_protocol(draw, v6: bool, depth: int) -> tuple[int, bytes]:
    """A protocol number and what it announces."""
    inside = [GRE, IPIP, SIT] + ([0, 43, 60, 44] if v6 else [])
    if depth and draw(st.integers(0, 3)):
        protocol = draw(st.sampled_from(inside))
        if protocol in (IPIP, SIT):
            return protocol, draw(ip(protocol == SIT, depth - 1))
        if protocol == GRE:
            return protocol, draw(gre(depth - 1))
        following, rest = draw(by_protocol(v6, depth - 1))
        if protocol == 44:
            return protocol, bytes((following, 0)) + draw(st.binary(min_size=6, max_size=6)) + rest
        size = draw(st.integers(0, 2))
        return protocol, bytes((following, size)) + draw(st.binary(min_size=6 + 8 * size, max_size=6 + 8 * size)) + rest
    protocol = draw(st.sampled_from([*TAILS, *([0, 43, 44, 60] if not v6 else [])]))
    payload = draw(st.binary(min_size=TAILS.get(protocol, 8), max_size=80))
    if protocol in (ICMP, ICMPV6):
        kind = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 14, 128, 129, 135]))
        quote = draw(ip(v6, 0)) if depth and draw(st.booleans()) else payload[8:]
        payload = bytes((kind,)) + payload[1:4] + draw(st.sampled_from([b"\0\0", b"\x12\x34"])) + payload[6:8] + quote
    return protocol, payload


@st.composite
def ip(draw, v6: bool, depth: int) -> bytes:
    protocol, payload = draw(by_protocol(v6, depth))
    if v6:
        return bytes((0x60, 0, 0, 0, 0, 0, protocol, 64)) + draw(st.binary(min_size=32, max_size=32)) + payload
    words = draw(st.sampled_from([5, 5, 5, 5, 6, 15, 4, 0]))
    fragment = draw(st.sampled_from([0, 0, 0, 0, 0x4000, 0x2000, 1, 0x1FFF]))
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, 0, 0, fragment, 64, protocol, 0)
    return head + draw(st.binary(min_size=8, max_size=8)) + bytes(max(0, 4 * words - 20)) + payload


@st.composite
def gre(draw, depth: int) -> bytes:
    flags = draw(st.sampled_from([0x0000, 0x8000, 0x2000, 0x1000, 0xB000, 0x2001, 0x3081, 0x0001, 0x4000, 0x0002]))
    size = sum(4 for bit in (0x8000, 0x2000, 0x1000) if flags & bit)
    if flags & 1:
        v6 = draw(st.booleans())
        size += 4 if flags & 0x80 else 0
        number = draw(st.sampled_from([b"\0\x57" if v6 else b"\0\x21", b"\xc0\x21"]))
        return struct.pack("!HH", flags, 0x880B) + bytes(size) + b"\xff\x03" + number + draw(ip(v6, depth))
    if draw(st.booleans()):
        kind, payload = draw(by_type(depth))
        return struct.pack("!HH", flags, kind) + bytes(size) + payload
    return struct.pack("!HH", flags, 0x6558) + bytes(size) + draw(ethernet(depth))


@st.composite
def by_type(draw, depth: int) -> tuple[int, bytes]:
    """An EtherType and what it announces."""
    kind = draw(st.sampled_from([0x0800, 0x0800, 0x86DD, 0x86DD, 0x8100, 0x88A8, 0x8864, 0x892F, 0x88FB, 0x4305, 0]))
    if kind in (0x0800, 0x86DD):
        return kind, draw(ip(kind == 0x86DD, depth))
    if not depth or not kind:
        return draw(st.sampled_from(ENDS)), draw(st.binary(min_size=30, max_size=60))
    if kind == 0x8864:
        v6 = draw(st.booleans())
        number = draw(
            st.sampled_from(["0057", "57"] if v6 else ["0021", "21"]) | st.sampled_from(["c021", "0281", "0020"])
        )
        code = draw(st.sampled_from(["1100", "1100", "1109", "2100"]))
        return kind, bytes.fromhex(code + "00010000" + number) + draw(ip(v6, depth - 1))
    within, payload = draw(by_type(depth - 1))
    announced = struct.pack("!H", within) + payload
    if kind in (0x8100, 0x88A8):
        return kind, draw(st.binary(min_size=2, max_size=2)) + announced
    if kind == 0x4305:
        start = draw(st.sampled_from([b"\x40\x0f", b"\x40\x0f", b"\x41\x0f", b"\x40\x0e"]))
        return kind, start + bytes(20) + announced
    return kind, bytes(4) + announced


@st.composite
def ethernet(draw, depth: int) -> bytes:
    kind, payload = draw(by_type(depth))
    return draw(st.binary(min_size=12, max_size=12)) + struct.pack("!H", kind) + payload


# ── C and its twin ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", OPTIONS["xmit_hash_policy"].values.values())
def test_the_worker_chooses_as_the_driver_did(name):
    policy = OPTIONS["xmit_hash_policy"].parse(name)
    for one, frame in zip(RECORDED, FRAMES, strict=True):
        hash = _fastpath.frame_hash(frame, policy)
        assert [hash % n for n in (2, 3, 4)] == one["idx"][name], one["kind"]


def test_twins_agree_on_every_recorded_frame_cut_at_every_length():
    for frame in FRAMES:
        for length in range(len(frame) + 1):
            agree(frame[:length])


@settings(max_examples=1500, deadline=None)
@given(ethernet(7), st.integers(0, 400) | st.none())
def test_twins_agree_on_headers_in_headers(frame, length):
    agree(frame[:length])


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_twins_agree_on_recorded_frames_with_bytes_changed(data):
    frame = bytearray(data.draw(st.sampled_from(FRAMES)))
    at = st.integers(12, len(frame) - 1) if len(frame) > 12 else st.integers(0, len(frame) - 1)
    for place, value in data.draw(st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=6)):
        frame[place] = value
    agree(bytes(frame[: data.draw(st.integers(0, len(frame)) | st.just(len(frame)))]))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=120))
def test_twins_agree_on_random_bytes(frame):
    agree(frame)


@pytest.mark.parametrize("headers", [14, 15, 16, 17, 18])
@pytest.mark.parametrize("tags", [0, 1])
def test_twins_agree_where_the_walk_is_cut_off(headers, tags):
    tag = bytes.fromhex("81000007") * tags
    ports = bytes.fromhex("9c4001bb")
    packet = ports
    for level in range(headers):
        packet = (
            struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, 0, 64, 4 if level else UDP, 0) + bytes((10, level) * 4) + packet
        )
    agree(bytes(range(12)) + tag + b"\x08\x00" + packet)
    chain = b"".join(bytes((60 if level else UDP, 0)) + bytes(6) for level in reversed(range(headers))) + ports
    agree(bytes(range(12)) + tag + b"\x86\xdd" + bytes((0x60, 0, 0, 0, 0, 0, 60, 64)) + bytes(range(32)) + chain)
    agree(bytes(range(12)) + b"\x81\x00\x00\x05" * headers + b"\x08\x00" + packet)
    agree(bytes(range(12)) + b"\x88\xa8\x00\x05" * headers + b"\x88\x47" + packet)


@pytest.mark.parametrize("tags", range(1, 10))
def test_twins_agree_on_mpls_behind_tags(tags):
    agree(bytes(range(12)) + b"\x88\xa8\x00\x05" + b"\x81\x00\x00\x05" * (tags - 1) + b"\x88\x47" + bytes(30))


@pytest.mark.parametrize("kind", ENDS)
def test_twins_agree_on_types_that_end_the_walk(kind):
    frame = bytes(range(12)) + struct.pack("!H", kind) + bytes(range(100, 160))
    for length in range(12, len(frame) + 1):
        agree(frame[:length])


def test_an_unknown_policy_is_hashed_as_layer2():
    assert _fastpath.frame_hash(FRAMES[0], 99) == xmit_hash(FRAMES[0], HashPolicy.LAYER2)


def test_the_stopwatch_wants_a_batch_and_a_round():
    assert _fastpath.frame_hash_ns(FRAMES[:64], HashPolicy.LAYER2, 10) > 0
    for frames, rounds in (([], 1), (FRAMES[:65], 1), (FRAMES[:1], 0)):
        with pytest.raises(ValueError, match="from 1 to BATCH frames"):
            _fastpath.frame_hash_ns(frames, HashPolicy.LAYER2, rounds)


# ── memory ───────────────────────────────────────────────────────────────────────────

HARNESS = """
# cython: language_level=3
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from ubond._hash cimport xmit_hash

def at_every_length(bytes frame, uint32_t beyond=0):
    '''Hash each beginning of `frame` in memory of exactly that size; `beyond`: claim so much more.'''
    cdef uint32_t length, total = 0
    cdef int policy
    cdef uint8_t* exact
    for length in range(1, len(frame) + 1):
        exact = <uint8_t*>malloc(length)
        memcpy(exact, <const uint8_t*><const char*>frame, length)
        for policy in range(6):
            total += xmit_hash(exact, length + beyond, policy)
        free(exact)
    return total
"""

DRIVER = """
import sys
import harness
beyond = int(sys.argv[1])
for line in sys.stdin:
    harness.at_every_length(bytes.fromhex(line), beyond)
print("done")
"""


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    """Run the hashes under AddressSanitizer: `harness(frames, beyond)` -> the finished process."""
    folder = tmp_path_factory.mktemp("harness")
    package = folder / "ubond"
    package.mkdir()
    for path in (ROOT / "ubond").glob("_*.pxd"):
        shutil.copy(path, package)
    (package / "__init__.py").touch()
    (folder / "harness.pyx").write_text(HARNESS)
    cythonize([str(folder / "harness.pyx")], force=True, quiet=True, include_path=[str(folder)])
    compiler = sysconfig.get_config_var("CC").split()[0]
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover",
    ]
    paths = ["-I", sysconfig.get_path("include"), "-o", "harness.so", "harness.c"]
    subprocess.run([*command, *paths], cwd=folder, check=True)
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    env = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": str(folder),
    }

    def run(frames: list[bytes], beyond: int) -> subprocess.CompletedProcess[str]:
        lines = "\n".join(frame.hex() for frame in frames)
        command = [sys.executable, "-c", DRIVER, str(beyond)]
        return subprocess.run(command, cwd=folder, env=env, input=lines, capture_output=True, text=True, timeout=300)

    return run


def test_nothing_is_read_beyond_the_frame(harness):
    one_of_each = {one["kind"]: frame for one, frame in zip(RECORDED, FRAMES, strict=True)}
    tags = [bytes(12) + b"\x81\x00\x00\x05" * n + b"\x88\x47" + bytes(4) for n in range(1, 10)]
    batman = bytes(12) + b"\x43\x05\x40\x0f" + bytes(20) + b"\x88\xca" + bytes(20)
    chain = bytes(12) + b"\x86\xdd" + bytes((0x60, 0, 0, 0, 0, 0, 0, 64)) + bytes(32) + bytes((60, 0, *bytes(6))) * 17
    found = harness([*one_of_each.values(), *tags, batman, chain], beyond=0)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout == "done\n"


def test_the_harness_notices_a_read_beyond_the_frame(harness):
    found = harness([FRAMES[0]], beyond=1)
    assert found.returncode != 0
    assert "heap-buffer-overflow" in found.stderr
    assert "xmit_hash" in found.stderr or "_hash_" in found.stderr
