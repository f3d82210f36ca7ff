"""Builds the one extension, ubond._fastpath, and nothing else.

UBOND_SANITIZE=address,undefined adds compilers' checks (tools/sanitize); such a build goes to a
directory of its own, the generated C as well.
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAGS = ["-O3", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function", "-Wno-sign-compare"]
SANITIZE = os.environ.get("UBOND_SANITIZE", "")
CHECKS = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g", "-O1"]

FASTPATH = Extension(
    "ubond._fastpath",
    ["ubond/_fastpath.pyx"],
    extra_compile_args=FLAGS + (CHECKS if SANITIZE else []),
    extra_link_args=CHECKS[:1] if SANITIZE else [],
)

setup(
    ext_modules=cythonize(
        [FASTPATH],
        # UBOND_ANNOTATE writes ubond/_fastpath.html beside the source: every line of
        # the frame path must be white there, and a test reads the same output.
        annotate=bool(os.environ.get("UBOND_ANNOTATE")),
        build_dir="build/sanitize-c" if SANITIZE else None,
    ),
)
