"""The command line is frozen here: an option comes or goes on purpose or not at all."""

from __future__ import annotations

import pytest

from engine.command_line import parse_train_config
from engine.config import TrainConfig
from engine.errors import UsageError

FROZEN = {
    "data": "D",
    "out": "R",
    "epochs": 4,
    "batch_size": 256,
    "seed": 7,
    "balance": "auto",
    "rebalance_every": 50,
    "shares": (),
    "rank_caps": (),
    "micro_batch": 0,
    "exchange": "auto",
    "compression": "none",
    "resume": "auto",
    "checkpoint_every": 0,
    "checkpoint_minutes": 10.0,
    "keep_checkpoints": 3,
    "on_nonfinite": "stop",
    "shares_from": "",
    "rank_timeout": 60.0,
    "step_timeout": 1800.0,
    "stage_dir": "",
    "log_every": 50,
    "view": "auto",
    "log_seconds": 10.0,
    "tensorboard": False,
    "trace_steps": "",
    "horovod_timeline": False,
    "device": "auto",
    "threads": 0,
    "precision": "float32",
    "optimizer": "adam",
    "learning_rate": 0.004,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "schedule": "constant",
    "average_decay": 0.99,
    "patience": 0,
    "clip_norm": 1.0,
    "word_vectors": "cooccurrence",
    "class_weights": "root",
    "model": {
        "cell": "lstm",
        "embedding_size": 100,
        "hidden_size": 128,
        "layers": 1,
        "directions": 2,
        "pooling": "attention",
        "loss": "bce",
        "classes": 2,
        "ngrams": 2,
        "ngram_entries": 1048576,
        "dropout": 0.5,
        "recurrent_dropout": 0.0,
    },
}


def parse(*arguments: str) -> TrainConfig:
    return parse_train_config(["--data", "D", "--out", "R", *arguments])


def test_options_and_defaults():
    assert parse().to_json() == FROZEN


def test_every_option_explains_itself(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_train_config(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for name in [*FROZEN, *FROZEN["model"]]:
        if name != "model":
            assert "--" + name.replace("_", "-") in text
    # All but DATA and RUN, which must be given, the two lists, which are empty, and what is switched on by its name.
    assert text.count("(default:") == len(FROZEN) - 1 - 4 - 2 + len(FROZEN["model"])
    assert "default: None" not in text


def test_shares_imply_balance_off():
    assert parse("--shares", "3,1").balance == "off"
    assert parse("--shares", "3,0", "--balance", "off").shares == (3.0, 0.0)
    with pytest.raises(UsageError, match="--shares fixes the shares by hand"):
        parse("--shares", "3,1", "--balance", "auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--batch-size", "-3"], "--batch-size"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--dropout", "1"], "--dropout"),
        (["--shares", "a,b"], "--shares"),
        (["--shares", "0,0"], "--shares"),
        (["--shares", "1,-1"], "--shares"),
        (["--rank-caps", "-1"], "--rank-caps"),
        (["--micro-batch", "-2"], "--micro-batch must be at least -1"),
        (["--exchange", "sparse"], "--exchange"),
        (["--compression", "fp8"], "--compression"),
        (["--classes", "3"], "--classes"),
        (["--classes", "5"], "--loss bce"),
        (["--class-weights", "1,2,3"], "--class-weights"),
        (["--class-weights", "heavy"], "--class-weights"),
        (["--balance", "on"], "--balance"),
        (["--log-seconds", "-1"], "--log-seconds must be at least 0"),
        (["--trace-steps", "7"], "--trace-steps must be the first and the last of some steps"),
        (["--trace-steps", "7:6"], "--trace-steps must be"),
        (["--trace-steps", "0:6"], "--trace-steps must be"),
        (["--trace-steps", "a:b"], "--trace-steps must be"),
        (["--trace-steps", "1:10001"], "at most 10000 steps"),
        (["--epoch", "3"], "unrecognized arguments: --epoch"),
    ],
)
def test_wrong_values_name_the_option(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse(*arguments)


def test_traced_steps():
    assert parse().traced_steps() is None
    assert parse("--trace-steps", "100:110").traced_steps() == (100, 110)
    assert parse("--trace-steps", "3:3").traced_steps() == (3, 3)


def test_class_weights():
    assert parse("--class-weights", "none").class_weight_values([1, 3]) is None
    assert parse("--class-weights", "2,1").class_weight_values([1, 3]) == (2.0, 1.0)
    balanced = "--class-weights", "balanced"
    assert parse(*balanced).class_weight_values([1, 3]) == (2.0, 4 / 6)
    assert parse(*balanced).class_weight_values([0, 3]) == (1.0, 1.0)  # nothing is there to be balanced
    five = "--loss", "mse", "--classes", "5"
    assert parse(*balanced, *five).class_weight_values([0, 2, 0, 2, 4]) == (1, 4 / 3, 1, 4 / 3, 2 / 3)
    root = parse("--class-weights", "root").class_weight_values([1, 3])
    assert root is not None
    assert root == pytest.approx((2**0.5, (4 / 6) ** 0.5))


def test_a_resumed_run_may_change_some_options_and_not_others():
    saved = parse().to_json()
    assert parse("--epochs", "9", "--balance", "off", "--threads", "2", "--log-every", "1").differences(saved) == []
    different = parse("--seed", "8", "--hidden-size", "32").differences(saved)
    assert different == ["--seed is 8, the checkpoint has 7", "--hidden-size is 32, the checkpoint has 128"]
