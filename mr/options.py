"""The options of `python -m mr`: what they are, checked before any work begins."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mr.configuration import read_configuration
from mr.errors import UsageError
from mr.inputs import find_inputs
from mr.job import RUNNERS, Runner
from mr.review import Fields
from mr.settings import Settings
from mr.stopwords import ENGLISH
from mr.stores import Input
from native.files import leftovers
from native.format import MANIFEST, UNFINISHED, DatasetError, read_manifest, read_vocabulary
from native.text import SPLITS, TextSettings, tokenize

DESCRIPTION = """\
Turns raw reviews into a dataset for python -m engine.train.

INPUT is one or more files .json, .jsonl or .csv, each also with .gz (or patterns of them), in any mixture of:
  one JSON object a line, with reviewText and overall (2014, 2018) or text and rating (2023); Python dicts as well;
  one JSON array of such objects, over any number of lines;
  CSV with a header, separated by commas; --columns names the columns where they are called otherwise.
Files and patterns may also be s3://... and hdfs://... URIs, which mrjob reaches (pip install 'uneven-engine[emr]', or a
hadoop command).
Equal texts count once, with the rating given most often. Every line read is accounted for in a table at the end and in
DATA/dataset.json; malformed ones land in DATA/quarantine.jsonl with file, line and reason. Are there more of them than
--max-malformed allows, nothing is made, and they stand in DATA.quarantine.jsonl beside it."""
EPILOG = """\
The dataset depends on the reviews and the options alone: not on the runner, the number of cores or the order of INPUT.
A call that was cut off goes on where it was when it is given again; a finished one has nothing to do.
Exit status: 0 done, 1 failed while running, 2 wrong usage or unusable input. Temporary files lie in DATA.work, or in
$TMPDIR where that is set, up to twice as large as the uncompressed input, and are removed when DATA is finished."""
DEFAULT_VOCAB_SIZE = 10_000
DEFAULT_MAX_MALFORMED = 1.0
DEFAULT_SPLIT = "train=80,validation=10,test=10"
_NEXT_COLUMN = re.compile(r",(?=(?:text|rating)=)")


@dataclass(frozen=True, kw_only=True)
class Options:
    """A checked call."""

    inputs: tuple[Input, ...]
    """sorted by base name, then path: this order numbers the files"""
    out: Path
    runner: Runner
    settings: Settings
    vocabulary: tuple[str, ...] | None
    """of another dataset; None: it is counted"""
    max_malformed: float
    """percent of all lines; more stop the run"""
    work: Path | None
    """folder for what stages leave, kept; None: one of the dataset's own, removed at the end"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; python -m mr --help explains all options")


def parse_options(arguments: Sequence[str]) -> Options:
    """Parse and check the command line.

    Raises:
        UsageError: anything that is wrong with it.
    """
    values = _parser().parse_args(arguments)
    if values.spark_master is not None and values.runner != "spark":
        raise UsageError(f"--spark-master with -r {values.runner}: it has none; give -r spark, or leave it out")
    read_configuration(values.runner, values.conf_path)
    _whole("--cores", values.cores, 1, 4096)
    if not 0 <= values.max_malformed <= 100:
        raise UsageError(f"--max-malformed {values.max_malformed:g}: give percent from 0 to 100")
    text, vocabulary = _text_settings(values)
    split = parse_split(values.split)
    if vocabulary is None and not split["train"]:
        raise UsageError(
            f"--split {values.split}: without training reviews there is no vocabulary; give train a share, "
            "or name a dataset with --vocabulary-from"
        )
    runner = Runner(name=values.runner, cores=values.cores, conf=values.conf_path, spark_master=values.spark_master)
    return Options(
        inputs=find_inputs(values.input, runner),
        out=_new_folder(values.out),
        runner=runner,
        settings=Settings(
            text=text,
            split=split,
            vocab_size=values.vocab_size or DEFAULT_VOCAB_SIZE,
            fields=Fields() if values.columns is None else parse_columns(values.columns),
        ),
        vocabulary=vocabulary,
        max_malformed=values.max_malformed,
        work=_work(values.work, values.out),
    )


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m mr",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("input", metavar="INPUT", nargs="+", help="review files")
    add("--out", metavar="DATA", type=Path, required=True, help="folder of the new dataset; new or empty")
    add(
        "-r",
        "--runner",
        choices=RUNNERS,
        default="local",
        help="where the jobs run: inline is this process, local one process a core, spark a Spark of any kind, hadoop "
        "Hadoop's MapReduce, emr Amazon's; docs/preprocessing.md says what each needs (default: local)",
    )
    cores = len(os.sched_getaffinity(0))
    add(
        "--cores",
        metavar="N",
        type=int,
        default=cores,
        help="processes of the local runner, and of Spark on this machine (default: the cores this process may use, "
        f"here {cores})",
    )
    add(
        "--work",
        metavar="DIR",
        type=Path,
        help="keep what the stages leave in this folder, so that a later call there with other settings or another "
        "--out does again only what depends on them (default: DATA.work, removed when DATA is finished)",
    )
    add(
        "--conf-path",
        metavar="FILE",
        type=Path,
        help="mrjob.conf with what your cluster needs, see examples/mrjob.conf.example (default: $MRJOB_CONF, "
        "~/.mrjob.conf or /etc/mrjob.conf for spark, hadoop and emr; none for inline and local)",
    )
    add(
        "--spark-master",
        metavar="MASTER",
        help="local[N], spark://host:port or yarn (default: spark_master of mrjob.conf, or else local[CORES])",
    )
    add(
        "--vocab-size",
        metavar="WORDS",
        type=int,
        help=f"most frequent words of the training split that get an id (default: {DEFAULT_VOCAB_SIZE})",
    )
    add(
        "--vocabulary-from",
        metavar="DATA2",
        type=Path,
        help="take vocabulary and text settings of another dataset, to use its model on these reviews "
        "(default: count the words)",
    )
    add(
        "--max-length",
        metavar="WORDS",
        type=int,
        help=f"longer reviews are cut to their first so many words (default: {TextSettings.max_length})",
    )
    add(
        "--split",
        metavar="SHARES",
        default=DEFAULT_SPLIT,
        help=f"percent of the distinct texts per split, summing to 100 (default: {DEFAULT_SPLIT})",
    )
    add(
        "--stop-words",
        metavar="none|english|FILE",
        help="words to leave out: none, an English list (its negations go too: 'not good' becomes 'good'), or a file "
        "with one word a line (default: none)",
    )
    add(
        "--columns",
        metavar="text=NAME,rating=NAME",
        help="columns of CSV files, or fields of JSON objects, with the text and the rating from 1 to 5; either alone "
        "too (default: reviewText or text, overall or rating)",
    )
    add(
        "--max-malformed",
        metavar="PERCENT",
        type=float,
        default=DEFAULT_MAX_MALFORMED,
        help=f"stop when more of all lines are malformed (default: {DEFAULT_MAX_MALFORMED:g})",
    )
    return parser


def parse_columns(text: str) -> Fields:
    """Where text and rating stand; what is not named keeps its usual fields.

    Raises:
        UsageError: not of the form text=NAME,rating=NAME.
    """
    names: dict[str, tuple[str, ...]] = {}
    # A comma in a name stays where no text= or rating= follows it.
    for item in _NEXT_COLUMN.split(text):
        part, _, name = item.partition("=")
        if part not in ("text", "rating") or part in names or not name.strip():
            raise UsageError(f"--columns {text}: {item!r} is not usable; give text=NAME,rating=NAME, or one of them")
        names[part] = (name.strip(),)
    return Fields(**names)


def parse_split(text: str) -> dict[str, float]:
    """Shares in percent per split, in the order of SPLITS.

    Raises:
        UsageError: not of the form train=80,validation=10,test=10, or not summing to 100.
    """
    shares: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = item.partition("=")
        name = name.strip()
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if name not in SPLITS or name in shares or not 0 <= share <= 100:
            raise UsageError(
                f"--split {text}: {item!r} is not usable; give each of {', '.join(SPLITS)} at most once, "
                f"with percent from 0 to 100: {DEFAULT_SPLIT}"
            )
        shares[name] = share
    total = sum(shares.values())
    if not math.isclose(total, 100, abs_tol=1e-6):
        raise UsageError(f"--split {text}: the shares sum to {total:g}, not to 100; correct them: {DEFAULT_SPLIT}")
    return {split: shares.get(split, 0.0) for split in SPLITS}


def _whole(option: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise UsageError(f"{option} {value}: give a whole number from {lowest} to {highest}")


def _text_settings(values: argparse.Namespace) -> tuple[TextSettings, tuple[str, ...] | None]:
    if values.vocabulary_from is None:
        max_length = TextSettings.max_length if values.max_length is None else values.max_length
        _whole("--max-length", max_length, 1, 9999)
        if values.vocab_size is not None:
            _whole("--vocab-size", values.vocab_size, 1, 1 << 30)
        return TextSettings(max_length=max_length, stop_words=_stop_words(values.stop_words or "none")), None
    for option in ("vocab_size", "max_length", "stop_words"):
        if getattr(values, option) is not None:
            name = "--" + option.replace("_", "-")
            raise UsageError(
                f"{name} together with --vocabulary-from: that dataset's setting holds; leave one of them out"
            )
    try:
        manifest = read_manifest(values.vocabulary_from)
        words = read_vocabulary(values.vocabulary_from, manifest)
        return TextSettings.from_json(manifest["text"]), tuple(words)
    except (DatasetError, ValueError) as error:
        raise UsageError(f"--vocabulary-from: {error}") from None


def _stop_words(choice: str) -> tuple[str, ...]:
    if choice == "none":
        return ()
    if choice == "english":
        return tuple(sorted(ENGLISH))
    try:
        words = {word for line in Path(choice).read_text("utf-8").splitlines() for word in tokenize(line)}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
        raise UsageError(
            f"--stop-words {choice}: {reason}; give none, english or a file with one word a line"
        ) from None
    if not words:
        raise UsageError(f"--stop-words {choice}: there is no word in this file; write one a line, or give none")
    return tuple(sorted(words))


def _work(work: Path | None, out: Path) -> Path | None:
    if work is None:
        return None
    work, out = work.absolute(), out.absolute()
    if work == out or work in out.parents or out in work.parents:
        raise UsageError(f"--work {work}: may not hold --out nor lie in it; name a folder beside it")
    return work


def _new_folder(out: Path) -> Path:
    try:
        # A dataset may be that of this very call, and an unfinished one is gone on with: the driver looks.
        ours = any((out / name).exists() for name in (MANIFEST, UNFINISHED))
        if out.exists() and not ours and (not out.is_dir() or set(out.iterdir()) - set(leftovers(out))):
            kind = "not empty" if out.is_dir() else "a file"
            raise UsageError(f"--out {out}: {kind}; name a new folder, nothing is overwritten")
        parent = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise UsageError(f"--out {out}: nothing can be written in {parent}; name a folder that you may write to")
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}; name a folder that you may write to") from None
    return out
