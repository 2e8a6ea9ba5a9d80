"""Whether an exported model answers as the model does: run as its user would, on texts of many lengths and kinds."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from engine.errors import TrainingError
from engine.export_model import Judge
from engine.predictor import Predictor
from engine.saved_model import SavedModel
from native.text import FIRST_WORD_ID

Run = Callable[[list[list[int]], list[int]], tuple[list[int], list[Any]]]
Opener = Callable[[Path], Run]
PROGRAM = "predict.py"
TOLERANCE = 1e-5
"""of a probability; kernels of other programs add in another order"""
RANDOM_TEXTS = 300
_SHAPES = ((1, 1), (1, 33), (2, 7), (65, 3), (17, 120))
_HARD_TEXTS = (
    "",
    "   ?!",
    "Don\u2019t &amp;quot;buy&amp;quot; this &#39;thing&#39; <br />It\u00b4s AWFUL&not good</p><a href='x'>here</a>",
    "I <3 it, <not good> 5 < 6 &amp & &unknown; rock'n'roll 'quoted' ''' -- don''t",
    "Cafe\u0301 na\u00efve \u0130stanbul STRASSE stra\u00dfe \u03a3\u03a3\u03a3 \u1fef \ufb01ne \uff46\uff55",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u4e2d\u6587 \u0e44\u0e17\u0e22",
    "\U0001f600\U0001f44d\U0001f3fd great \u2764\ufe0f\u200d\U0001f525 1\ufe0f\u20e3 \u2460 under_score back\\slash",
    "x" * 90 + " " + "ab'" * 30 + " so\u00adft z\u200bw \u2028 line",
)


def check_export(saved: SavedModel, folder: Path, opener: Opener) -> float:
    """Compare the exported model in the folder with the model it came from, alone and in the exported program.

    Args:
        saved: that model.
        folder: with the exported model and the program that runs it.
        opener: opens the exported model.

    Returns:
        The largest difference of a probability, or of the number that a model without probabilities gives.

    Raises:
        TrainingError: a label differs, a number by more than TOLERANCE, or the program does not run.
    """
    judge = Judge(saved.model, saved.loss)
    worst = _compare_shapes(judge, len(saved.vocabulary) + FIRST_WORD_ID, opener(folder))
    expected = Predictor(saved).answer(_texts(saved))
    given = "".join(answer.text + "\n" for answer in expected)
    done = subprocess.run(
        [sys.executable, str(folder / PROGRAM), "--json"], input=given.encode(), capture_output=True, check=False
    )
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise TrainingError(f"the exported program does not run here ({reason}); nothing was written")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if len(found) != len(expected):
        raise TrainingError(f"the exported program answers {len(found)} of {len(expected)} texts; nothing was written")
    for wanted, answer in zip(expected, found, strict=True):
        off = abs((wanted.probability or 0.0) - (answer["probability"] or 0.0))
        if not off <= TOLERANCE or wanted.label != answer["label"]:
            raise TrainingError(
                f"the exported model answers {answer['label']!r} ({answer['probability']}) where this one answers "
                f"{wanted.label!r} ({wanted.probability}): {wanted.text[:60]!r}; nothing was written"
            )
        worst = max(worst, off)
    return worst


def _compare_shapes(judge: Judge, ids: int, run: Run) -> float:
    """Batches of several shapes, filled with random words, none of their rows but the first of full length."""
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for rows, length in _SHAPES:
        lengths_B = torch.randint(1, length + 1, (rows,), generator=generator)
        lengths_B[0] = length
        tokens_BL = torch.randint(1, ids, (rows, length), generator=generator)
        tokens_BL[torch.arange(length) >= lengths_B.unsqueeze(1)] = 0
        with torch.inference_mode():
            values = judge(tokens_BL, lengths_B)[1].double()
        found = torch.tensor(run(tokens_BL.tolist(), lengths_B.tolist())[1], dtype=torch.float64)
        off = float((values - found).abs().max()) if found.shape == values.shape else math.inf
        if not off <= TOLERANCE:
            raise TrainingError(
                f"the exported model is off by {off:.1e} (at most {TOLERANCE:.0e} is taken for rounding) on {rows} "
                f"texts of up to {length} words; nothing was written"
            )
        worst = max(worst, off)
    return worst


def _texts(saved: SavedModel) -> list[str]:
    """Hard texts, and seeded random ones of all lengths, some longer than the model reads."""
    random = Random(1)
    limit = saved.text["max_length"]
    lengths = [min(limit + 9, round(math.exp(random.uniform(0, math.log(limit + 9))))) for _ in range(RANDOM_TEXTS)]
    words = [*saved.vocabulary, *saved.text["stop_words"], "zzunknownzz"]
    return [*_HARD_TEXTS, *(" ".join(random.choice(words) for _ in range(length)) for length in lengths)]
