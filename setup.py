"""Builds the one extension of the project, ``proxy._seg`` (all else is in pyproject.toml)."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("MPTCP_PROXY_DEBUG") == "1"

extension = Extension(
    "proxy._seg",
    ["proxy/_seg.pyx"],
    extra_compile_args=["-O3", "-Wall", "-Wno-unreachable-code"],
    define_macros=[("CYTHON_TRACE", "1")] if DEBUG else [],
)

setup(
    ext_modules=cythonize(
        [extension],
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": DEBUG,
            "cdivision": not DEBUG,
            "linetrace": DEBUG,
        },
    )
)
