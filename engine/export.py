"""`python -m engine.export`: a trained model with all that is needed to use it without this project."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from engine.command import run_alone
from engine.command_line import make_parser
from engine.errors import UsageError

PROGRAM = "engine.export"
FORMATS = ("torchscript", "onnx")
_NEEDED = {"torchscript": (), "onnx": ("onnx", "onnxruntime")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Export as the command line says; returns the exit status."""
    parser = make_parser(
        "python -m engine.export",
        "Write a trained model, its words and a program that judges texts with them, for use without this project. The "
        "program is run and must give the answers of the model, or nothing is written.",
    )
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="such as RUN/checkpoints/best")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="made; must not exist, or be empty")
    parser.add_argument(
        "--format",
        default=FORMATS[0],
        choices=FORMATS,
        help="torchscript: the user needs torch; onnx: onnxruntime and numpy, here too (pip install "
        "'uneven-engine[onnx]')",
    )

    def work() -> None:
        options = parser.parse_args(arguments)
        out = Path(options.out)
        worst = export(Path(options.checkpoint), out, options.format)
        how = f"; no number is off by more than {worst:.0e}" if worst else ", to the last digit"
        print(f"{out}: gives the answers of {options.checkpoint}{how}")
        print(f"Try it: {Path(sys.executable).name} {out / 'predict.py'} TEXT")

    return run_alone(PROGRAM, work)


def export(checkpoint: Path, out: Path, kind: str = FORMATS[0]) -> float:
    """Write the folder; returns the largest difference of a probability (or number) that the check found.

    Args:
        checkpoint: a file in RUN/checkpoints.
        out: a folder that is not there, or empty.
        kind: of FORMATS.

    Raises:
        UsageError: a package that the format needs is missing, or the folder cannot be written.
        CheckpointError: missing or damaged.
        TrainingError: the exported model does not answer as the checkpoint does.
    """
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is there already; name another folder, or remove it first")
    for package in _NEEDED[kind]:
        if find_spec(package) is None:
            raise UsageError(
                f"--format {kind} needs {package}, which is not here: pip install 'uneven-engine[onnx]', or take "
                f"--format {FORMATS[0]}"
            )
    # Only now: torch takes seconds to load.
    from engine.export_check import check_export
    from engine.export_files import write_files
    from engine.export_model import export_model
    from engine.saved_model import load_model

    saved = load_model(checkpoint)
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a call that was killed
        part.mkdir(parents=True)
        model = export_model(saved, kind, part)
        write_files(saved, kind, model.name, part)
        worst = check_export(saved, part, import_module(f"engine.export_{kind}").open_model)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror or error}); name another folder") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
