"""No Python inside the frame path: read from what Cython says about its own output."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from Cython.Build import cythonize

PACKAGE = Path(__file__).parents[2] / "ubond"
FACE = "# ── the Python face"
PYTHON_CALL = re.compile(r"\b(?:Py[A-Z]\w*|__Pyx_(?!pthread)\w+)\s*\(")
#: What Cython puts into every function: no call at run time.
HARMLESS = re.compile(r"__Pyx_(?:RefNannyDeclarations|RefNannySetupContext|RefNannyFinishContext)")


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """A folder with the C file and the annotated page of the frame path, made afresh."""
    folder = tmp_path_factory.mktemp("annotated")
    source = folder / "ubond"
    source.mkdir()
    for path in [*PACKAGE.glob("*.pyx"), *PACKAGE.glob("*.pxd")]:
        shutil.copy(path, source)
    (source / "__init__.py").touch()
    cythonize([str(source / "_fastpath.pyx")], annotate=True, force=True, quiet=True, include_path=[str(folder)])
    return source


def scores(page: str) -> dict[int, int]:
    """Line number -> how much Python Cython says is on it (0: none)."""
    found = re.findall(r'<pre class="cython line score-(\d+)"[^>]*>[^<]*<span class="">0*(\d+)</span>', page)
    return {int(line): int(score) for score, line in found}


def test_every_line_of_the_worker_and_the_watch_is_free_of_python(output):
    source = (output / "_fastpath.pyx").read_text().splitlines()
    face = next(i for i, line in enumerate(source, 1) if line.startswith(FACE))
    first = next(i for i, line in enumerate(source, 1) if line.startswith("cdef int take_batch"))
    score = scores((output / "_fastpath.html").read_text())
    assert set(range(first, face)) <= score.keys()
    assert {line: source[line - 1] for line in range(first, face) if score[line]} == {}
    assert any(score[line] for line in range(face, len(source))), "the page says nothing about Python at all"


def test_what_the_frame_path_includes_is_free_of_python(output):
    code = (output / "_fastpath.c").read_text()
    names = r"__pyx_f_5ubond_(?:5_send|6_frame|5_vnet|5_hash|8_segment)_\w+"
    bodies = re.findall(rf"^static [^;{{}}]*?({names})\([^;{{}}]*\) \{{\n(.*?)^\}}", code, re.M | re.S)
    seen = {name for name, _ in bodies}
    assert {"__pyx_f_5ubond_5_send_send_run", "__pyx_f_5ubond_5_vnet_vnet_put_tag_back"} <= seen
    for name, body in bodies:
        assert not PYTHON_CALL.search(HARMLESS.sub("", body)), name
