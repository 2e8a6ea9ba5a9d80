"""A run in words: what was trained on what, how good it is, how efficient it was, what slowed it, what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.report_record import Epoch, Record, Start, number, numbers
from engine.report_time import NOTABLE, RunTimes, slow_epochs
from engine.report_words import (
    count,
    duration,
    figure,
    large,
    listed,
    moment,
    percent,
    ranges,
    rate,
    several,
    signed_percent,
)

RISEN = 1.02
"""a validation loss so far above its lowest is told"""
LOSSES = {"bce": "binary cross-entropy", "cross_entropy": "cross-entropy", "mse": "mean squared error"}
STATUS = {
    "finished": ("good", "finished"),
    "preempted": ("warn", "stopped by a signal"),
    "failed": ("bad", "failed"),
}


@dataclass(frozen=True)
class Tile:
    """A figure in large letters."""

    value: str
    label: str
    note: str


def best_epoch(record: Record) -> Epoch | None:
    """The one whose checkpoint is the best: by macro-F1, then by loss."""
    known = [epoch for epoch in record.epochs if epoch.figure("macro_f1") is not None]
    return max(known, key=lambda e: (e.figure("macro_f1") or 0.0, -(e.figure("loss") or 0.0)), default=None)


def rank_names(record: Record, ranks: int) -> list[str]:
    """rank 2, with its host where there are several."""
    hosts = [str(host.get("host", "")) for host in record.starts[-1].hosts] if record.starts else []
    if len(hosts) != ranks or len(set(hosts)) < 2:
        return [f"rank {rank}" for rank in range(ranks)]
    return [f"rank {rank}, {host}" for rank, host in enumerate(hosts)]


def in_words(record: Record, rank: int) -> str:
    """rank 2 on host b."""
    hosts = record.starts[-1].hosts if record.starts else []
    host = str(hosts[rank].get("host", "")) if rank < len(hosts) else ""
    return f"rank {rank} on {host}" if host else f"rank {rank}"


def status_of(record: Record) -> tuple[str, str]:
    """Class and words for how the run stands."""
    if not record.end:
        return "warn", "no end recorded"
    status = str(record.end.get("status"))
    return STATUS.get(status, ("warn", status))


def tiles_of(record: Record, times: RunTimes | None) -> list[Tile]:
    """The figures that matter most."""
    found, best = [], best_epoch(record)
    if best is not None:
        for name, label in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
            null = best.figure(f"null_{name.removeprefix('macro_') if name == 'accuracy' else name}")
            note = f"most frequent class {figure(null)}" if null is not None else "on the validation split"
            found.append(Tile(figure(best.figure(name)), label, note))
    elif record.epochs and record.epochs[-1].train_loss is not None:
        found.append(Tile(figure(record.epochs[-1].train_loss), "training loss", "no validation split"))
    if times is not None:
        speed = sum(times.whole.rows) / times.whole.seconds
        ranks = several(times.whole.ranks, "rank")
        found.append(Tile(rate(speed), "reviews/s", f"{ranks}, {duration(times.whole.seconds)} of steps"))
        one = times.efficiency
        label = "efficiency E" if one.whole is not None else "balance × exposure"
        note = "of what the ranks can do" if one.whole is not None else "E but for the batch-size factor"
        found.append(Tile(figure(one.known, 2), label, note))
    return found


def what(record: Record) -> str:
    """What was trained, and on what."""
    return " ".join(filter(None, [_model(record), _course(record), _place(record)]))


def _model(record: Record) -> str:
    cell, loss = record.option("cell"), record.option("loss")
    if not cell:
        return "What was trained is not in the configuration."
    classes = number(record.option("classes"))
    aim = "tell negative from positive reviews (4 or 5 stars)" if classes == 2 else "tell the stars of a review"
    both = "bidirectional " if record.option("directions") == 2 else ""
    layers = number(record.option("layers"))
    size = f"{several(layers, 'layer') if layers else 'layers'} of {record.option('hidden_size')} units"
    weights = record.starts[-1].parameters if record.starts else None
    many = f", {large(weights)} weights" if weights else ""
    article = "An" if str(cell).startswith(tuple("aeilo")) and not both else "A"
    return f"{article} {both}{str(cell).upper()} ({size}{many}) learns to {aim}, by {LOSSES.get(str(loss), loss)}."


def _course(record: Record) -> str:
    epochs, planned = len(record.epochs), number(record.option("epochs"))
    done = several(epochs, "epoch") if planned in (None, epochs) else f"{epochs} of {several(planned or 0, 'epoch')}"
    rows = next((epoch.rows for epoch in reversed(record.epochs) if epoch.rows), None) or _rows(record, "train")
    batch = number(record.option("batch_size"))
    text = f"It has seen {several(record.last_step, 'step')}"
    text += f" of {several(batch, 'review')}" if batch else ""
    text += f", {done}"
    text += f" over {several(rows, 'review')}" if rows else ""
    data = record.option("data")
    return text + (f" (dataset {data})." if data else ".")


def _rows(record: Record, split: str) -> float | None:
    rows = record.starts[-1].dataset.get("rows") if record.starts else None
    return number(rows.get(split)) if isinstance(rows, dict) else None


def _place(record: Record) -> str:
    if not record.starts:
        return "Where it ran is not recorded."
    start = record.starts[-1]
    text = f"It ran on {several(start.ranks, 'rank')}{_machines(start)}"
    begun, ended = record.starts[0].time, number(record.end.get("time"))
    if begun is not None:
        text += f", from {moment(begun)}" + (f" for {duration(ended - begun)} in all" if ended else "")
    return text + "."


def _machines(start: Start) -> str:
    kinds: dict[str, int] = {}
    for host in start.hosts:
        device, processor = str(host.get("device", "")), str(host.get("processor") or "")
        name = f"{device} ({processor})" if device == "cpu" and processor else device
        threads = number(host.get("threads"))
        name += f", {several(threads, 'thread')} each" if threads and device == "cpu" else ""
        kinds[name] = kinds.get(name, 0) + 1
    hosts = list(dict.fromkeys(str(host.get("host", "")) for host in start.hosts))
    if not hosts:
        return ""
    where = f" on {listed(hosts, 4)}" if len(hosts) > 1 else f" on host {hosts[0]}"
    if len(kinds) == 1:
        return f"{where}: {next(iter(kinds))}"
    return f"{where}: {listed([f'{many} × {kind}' for kind, many in kinds.items()], 4)}"


def how_good(record: Record) -> str:
    """The best epoch beside always answering the most frequent class, and where it goes."""
    best = best_epoch(record)
    if best is None:
        return (
            "No epoch is done yet." if not record.epochs else "There is no validation split, so nothing says how good."
        )
    right, null = best.figure("accuracy"), best.figure("null_accuracy")
    rows = best.figure("rows")
    text = f"In its best epoch, {best.number}, it is right on {percent(right, 1)} of "
    text += f"{count(rows)} reviews that it was not trained on" if rows else "the validation split"
    if right is not None and null is not None:
        text += f"; always answering the most frequent class is right on {percent(null, 1)}"
        if right <= null:
            text += ", so that it has learned nothing that counts"
        elif null < 1:
            text += f", so it makes {percent((right - null) / (1 - null))} of those errors no more"
    text += f". Macro-F1 is {figure(best.figure('macro_f1'))}"
    null_f1 = best.figure("null_macro_f1")
    return text + (f" ({figure(null_f1)}). " if null_f1 is not None else ". ") + _trend(record.epochs)


def _trend(epochs: Sequence[Epoch]) -> str:
    losses = [(epoch.figure("loss"), epoch.number) for epoch in epochs]
    known = [(loss, at) for loss, at in losses if loss is not None]
    if len(known) < 2:
        return ""
    least, at = min(known)
    last, last_at = known[-1]
    if last > least * RISEN and at != last_at:
        risen = signed_percent(last / least - 1)
        return f"The validation loss was lowest in epoch {at} and has risen since ({risen}): it begins to overfit."
    if known[-2][0] > last * RISEN:
        return "The validation loss was still falling in the last epoch: more epochs may help."
    return "The validation loss has settled."


def how_efficient(times: RunTimes | None) -> str:
    """Speed, and E with its factors."""
    if times is None:
        return "No epoch with times is recorded, so nothing can be said of its efficiency."
    one, span = times.efficiency, times.whole
    text = f"It did {rate(sum(span.rows) / span.seconds)} reviews/s. "
    if one.batch_size is not None:
        text += (
            f"That is about E = {figure(one.known, 2)} of what its ranks can do by their start-up profile: "
            f"batch size {figure(one.batch_size, 2)} × balance {figure(one.balance, 2)} × "
            f"exposure {figure(one.exposure, 2)}."
        )
    else:
        text += (
            f"Balance {figure(one.balance, 2)} × exposure {figure(one.exposure, 2)} = {figure(one.known, 2)}; what "
            "small batches cost was not measured (no start-up profile), so that E itself is not known; it is at most "
            "about that."
        )
    if times.left_out:
        text += f" Epochs {ranges(times.left_out)} ran on other ranks or without times, and are left out here."
    return text


def what_slowed(record: Record, times: RunTimes | None) -> str:
    """The largest losses, and the rank that is behind them."""
    if times is None:
        return ""
    parts, seconds = times.parts, times.whole.seconds
    found = []
    worst = times.slowest
    if parts.imbalance >= NOTABLE * seconds:
        text = f"{percent(parts.imbalance / seconds)} of the time ranks waited for one that computed longer"
        found.append(
            (parts.imbalance, text + (f"; {_last(record, times)}" if worst and worst.why == "compute" else ""))
        )
    if parts.input >= NOTABLE * seconds:
        text = f"input held everyone up for {percent(parts.input / seconds)} of the time"
        found.append((parts.input, text + (f"; {_last(record, times)}" if worst and worst.why == "input" else "")))
    if parts.exchange >= NOTABLE * seconds:
        found.append(
            (parts.exchange, f"exchanging gradients took {percent(parts.exchange / seconds)}, on all ranks alike")
        )
    if parts.rest >= NOTABLE * seconds:
        found.append((parts.rest, f"optimizer, clipping and the rest took {percent(parts.rest / seconds)}"))
    factor = times.efficiency.batch_size
    if factor is not None and factor < 1 - NOTABLE:
        found.append(
            ((1 - factor) * parts.compute, f"batches this small cost {percent(1 - factor)} of the ranks' own speed")
        )
    if not found:
        return "Nothing slowed it noticeably: its ranks computed nearly all the time, and finished together."
    found.sort(reverse=True)
    first, *others = [text for _, text in found]
    text = f"Most was lost here: {first}."
    if others:
        text += f" Next: {'; '.join(others)}."
    if worst is not None and not worst.why and times.whole.ranks > 1:
        single = [at for at, _ in slow_epochs(times)]
        text += " No rank stands out as the slowest"
        text += f", but one did in epoch {ranges(single)}." if single else "."
    return text


def _last(record: Record, times: RunTimes) -> str:
    worst, span = times.slowest, times.whole
    assert worst is not None, "asked where there is a slowest rank"
    rank = worst.rank
    text = in_words(record, rank)
    if worst.last is not None:
        text += f" was the last in {percent(worst.last)} of the steps:"
    read, compute = span.input[rank] / span.seconds, span.compute[rank] / span.seconds
    if worst.why == "input":
        return f"{text} waited {percent(read)} of its time for input"
    mean = sum(span.compute) / span.ranks / span.seconds
    part = span.rows[rank] / sum(span.rows) if sum(span.rows) else 0.0
    return f"{text} computed {percent(compute)} of the time (mean {percent(mean)}) with {percent(part)} of the rows"


def balancing(record: Record) -> str:
    """What the balancer did, in a sentence or two."""
    if record.ranks < 2:
        return ""
    changed = {(one.step, one.reason): one for one in record.decisions if one.changed and one.predicted}
    kept = sum(not one.changed for one in record.decisions)
    if record.option("balance") == "off":
        fixed = numbers(record.option("shares"))
        how = "stood as --shares fixed them" if fixed else "were even"
        how = "were those of another run" if record.option("shares_from") else how
        return f"Balancing was off: the shares {how}."
    if not changed:
        return f"The balancer looked {several(kept, 'time')} and kept the shares."
    text = f"The balancer changed the shares {several(len(changed), 'time')} and kept them {several(kept, 'time')}."
    known = [one for one in changed.values() if one.achieved is not None and one.predicted is not None]
    if known:
        predicted = sum(one.predicted or 0.0 for one in known) / len(known)
        achieved = sum(one.achieved or 0.0 for one in known) / len(known)
        means = " (means)" if len(known) > 1 else ""
        which = several(len(known), "change") + (" that was judged" if len(known) == 1 else " that were judged")
        text += f" {which} promised {signed_percent(predicted)} and brought {signed_percent(achieved)}{means}."
    return text


def faults(record: Record) -> list[str]:
    """What went wrong, a sentence each; empty where nothing did."""
    found = []
    status = record.end.get("status")
    if status == "failed":
        found.append(f"The run failed: {record.end.get('error') or 'why is not recorded'}")
    elif status == "preempted":
        found.append(
            f"A signal stopped the run after step {count(record.last_step)}; the same command goes on from there."
        )
    elif not record.end:
        found.append(
            "No end is recorded: the run still goes on, or it was killed. "
            f"The last line is of step {count(record.last_step)}."
        )
    for start in record.starts[1:]:
        found.append(f"Resumed after step {count(start.step)} on {several(start.ranks, 'rank')}, {moment(start.time)}.")
    if record.starts and len({start.digest for start in record.starts}) > 1:
        found.append("It was resumed on another dataset than it began with (the digests differ).")
    if record.nonfinite:
        steps = [int(number(event.get("step")) or 0) for event in record.nonfinite]
        which = ranges(sorted(set(steps)))
        found.append(
            f"{several(len(steps), 'step')} left out because a loss or gradient was no finite number: {which}."
        )
    skipped = record.epochs[-1].skipped if record.epochs else 0
    if skipped:
        found.append(
            f"{several(skipped, 'step')} left out because a float16 gradient overflowed (the scale was lowered)."
        )
    for event in record.resyncs:
        ranks = [int(rank) for rank in numbers(event.get("ranks"))]
        found.append(
            f"After step {count(number(event.get('step')))} ranks {ranges(ranks)} took over rank 0's weights: unlike "
            "hardware had rounded differently."
        )
    found += [_starved(epoch) for epoch in record.epochs if epoch.starved]
    if record.unreadable:
        found.append(f"{several(record.unreadable, 'line')} of metrics.jsonl could not be read and are left out.")
    if record.torn:
        found.append("The last line of metrics.jsonl is cut off: it was being written, or the run was killed.")
    return found


def _starved(epoch: Epoch) -> str:
    parts = []
    for rank in epoch.starved:
        known = epoch.seconds and 0 <= rank < len(epoch.input)
        parts.append(f"rank {rank}" + (f" ({percent(epoch.input[rank] / (epoch.seconds or 1.0))})" if known else ""))
    return f"Epoch {epoch.number}: waited for input for more than a tenth of the time: {listed(parts)}."
