"""`python -m engine.predict`: label, probability and the words that spoke for it; needs neither Horovod nor MPI."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.command import run_alone
from engine.command_line import make_parser
from engine.errors import UsageError
from engine.predict_inputs import argument_texts, blocks_of, file_texts, stream_texts

if TYPE_CHECKING:
    from engine.predictor import Answer

PROGRAM = "engine.predict"
WORDS = 3
"""shown for each text of the command line"""
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict as the command line says; returns the exit status."""
    parser = make_parser(
        "python -m engine.predict",
        "Tell the class of each text, of each line or review of files, or of each line of standard input.",
    )
    parser.add_argument("text", nargs="*", metavar="TEXT", help="texts; without any, and without --file, lines of "
                        "standard input are read")  # fmt: skip
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="such as RUN/checkpoints/best")
    parser.add_argument(
        "--file",
        action="append",
        metavar="FILE",
        help="a text a line, or reviews: .jsonl .json .csv (gzip or not); may be given several times",
    )
    parser.add_argument("--column", metavar="NAME", help="field or column of --file with the text, where it is neither "
                        "reviewText nor text")  # fmt: skip
    parser.add_argument("--words", type=int, metavar="K", help="show up to K words that spoke most for the label, and "
                        f"how probable it is without each; takes 15 times as long (default: {WORDS} for texts, 0 for "
                        "--file and standard input)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object per text: label, probability, text, words")

    def work() -> None:
        options = parser.parse_args(arguments)
        words = options.words
        if words is None:
            words = WORDS if options.text and not options.file else 0
        if words < 0:
            raise UsageError(f"--words {words}: give a whole number of at least 0")
        # Only now: torch takes seconds to load, in which a mistake in the options can be told and Ctrl-C be obeyed.
        from engine.environment import keep_memory
        from engine.predictor import Predictor
        from engine.saved_model import load_model

        keep_memory()
        predictor = Predictor(load_model(Path(options.checkpoint)), words)
        show = _json_line if options.json else _line
        for block in _blocks(options):
            sys.stdout.write("".join(show(answer, words > 0) + "\n" for answer in predictor.answer(block)))
            sys.stdout.flush()

    return run_alone(PROGRAM, work)


def _blocks(options: Any) -> Iterator[list[str]]:
    if not options.text and not options.file:
        if sys.stdin is not None and sys.stdin.isatty():
            _say("reading a text a line; Ctrl-D ends")
        yield from blocks_of(stream_texts(sys.stdin))
        return
    for name in options.file or ():
        if not os.path.exists(name):  # told before the hours of work on those before it
            raise UsageError(f"{name}: no such file, or not to be reached; check the path")
    files = (file_texts(Path(name), options.column, _say) for name in options.file or ())
    yield from blocks_of(chain(argument_texts(options.text), *files))


def _say(message: str) -> None:
    print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)


def _json_line(answer: Answer, with_words: bool) -> str:
    """All of an answer; `without` of a word is the label's probability when the word is left out."""
    fields: dict[str, Any] = {"label": answer.label, "probability": answer.probability, "text": answer.text}
    if with_words:
        fields["words"] = [{"word": one.word, "without": one.without} for one in answer.words]
    return json.dumps(fields)


def _line(answer: Answer, with_words: bool) -> str:
    """Columns: label, probability, text, and the words; control characters of the text become blanks."""
    columns = [answer.label, _number(answer.probability), _CONTROLS.sub(" ", answer.text)]
    if with_words:
        columns.append(", ".join(f"without {one.word} {_number(one.without)}".rstrip() for one in answer.words))
    return "\t".join(columns)


def _number(probability: float | None) -> str:
    return "" if probability is None else f"{probability:.3f}"


if __name__ == "__main__":
    sys.exit(main())
