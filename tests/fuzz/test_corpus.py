"""What searches have found is read once more: no reader raises what it does not promise, no sanitizer speaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import corpus, harness, targets


@pytest.mark.parametrize("target", targets.TARGETS)
def test_readers_take_every_known_input(target: str) -> None:
    known = corpus.load(target)
    assert known, "no inputs: the archive is missing"
    for data in known:
        targets.TARGETS[target](data)


@pytest.fixture(scope="session")
def replayer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness as it replays, made from the frame path as it is now."""
    path = tmp_path_factory.mktemp("fuzz") / "replay"
    harness.build(path, fuzzer=False)
    return path


def test_the_frame_path_takes_every_known_input_under_sanitizers(replayer: Path, tmp_path: Path) -> None:
    for target in harness.TARGETS:
        directory = tmp_path / target
        corpus.unpack(target, directory)
        known = sorted(map(str, directory.iterdir()))
        assert known, "no inputs: the archive is missing"
        done = harness.replay(replayer, target, known)
        assert done.returncode == 0, done.stderr[-3000:]
        assert int(done.stdout) == len(known)


def test_the_harness_notices_a_byte_too_many(replayer: Path, tmp_path: Path) -> None:
    corpus.unpack("tags", tmp_path)
    done = harness.replay(replayer, "tags", sorted(map(str, tmp_path.iterdir())), UBOND_FUZZ_SHORT="1")
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
