"""Command lines: parsers that say what is wrong in one line.

That of `python -m engine.train` is made from the fields of its configuration, so that neither knows an option alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from typing import Any

from engine.config import ModelConfig, TrainConfig, flag
from engine.errors import UsageError


def comma_separated(kind: type) -> Callable[[str], tuple[Any, ...]]:
    """A type for add_argument: numbers separated by commas."""

    def parse(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(item) for item in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {kind.__name__}s separated by commas") from None

    return parse


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse would print the usage of all options before it."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message}; see {self.prog} --help")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default == ()
        return action.help if silent else super()._get_help_string(action)


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser whose errors are UsageError, with defaults shown in --help."""
    return _Parser(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)


def parse_train_config(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Read the command line of `python -m engine.train`.

    Raises:
        UsageError: an unknown option or a wrong value.
    """
    parser = make_parser(
        "python -m engine.train", "Train the model on a dataset, on as many ranks as the launcher starts."
    )
    for owner, title in ((TrainConfig, "run"), (ModelConfig, "model")):
        group = parser.add_argument_group(title)
        for item in fields(owner):
            if item.name != "model":
                _add(group, item)
    given = vars(parser.parse_args(arguments))
    for name, what in (("shares", "fixes the shares by hand"), ("shares_from", "takes the shares from a file")):
        if given[name] and given["balance"] not in (None, "off"):
            raise UsageError(f"{flag(name)} {what}, --balance {given['balance']} would change them: leave one out")
    if given["shares"] and given["shares_from"]:
        raise UsageError("--shares and --shares-from both name the shares: leave one out")
    if given["balance"] is None:
        given["balance"] = "off" if given["shares"] or given["shares_from"] else "auto"
    model = ModelConfig(**{item.name: given.pop(item.name) for item in fields(ModelConfig)})
    return TrainConfig(**given, model=model)


def _add(group: Any, item: Any) -> None:
    kinds: dict[str, Any] = {
        "int": int,
        "float": float,
        "str": str,
        "tuple[float, ...]": comma_separated(float),
        "tuple[int, ...]": comma_separated(int),
    }
    required = item.default is MISSING
    # --balance has no default of its own: whether it was given decides if --shares may stand beside it.
    default = None if required or item.name == "balance" else item.default
    if item.type == "bool":
        group.add_argument(flag(item.name), dest=item.name, action="store_true", help=item.metadata["help"])
        return
    help_text = item.metadata["help"] + (" (default: auto)" if item.name == "balance" else "")
    group.add_argument(
        flag(item.name),
        dest=item.name,
        type=kinds[item.type],
        required=required,
        default=argparse.SUPPRESS if required else default,
        choices=item.metadata["choices"],
        metavar=item.metadata["metavar"],
        help=help_text,
    )
