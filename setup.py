"""Builds the one extension, ubond._fastpath, and nothing else."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

FASTPATH = Extension(
    "ubond._fastpath",
    ["ubond/_fastpath.pyx"],
    extra_compile_args=["-O3", "-fno-strict-aliasing", "-Wall", "-Wno-unused-function", "-Wno-sign-compare"],
)

setup(
    ext_modules=cythonize(
        [FASTPATH],
        # UBOND_ANNOTATE writes ubond/_fastpath.html beside the source: every line of
        # the frame path must be white there, and a test reads the same output.
        annotate=bool(os.environ.get("UBOND_ANNOTATE")),
    ),
)
