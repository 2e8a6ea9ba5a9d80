"""Padding never reaches the result; losses and classes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from engine.config import ModelConfig
from engine.losses import ReviewLoss, class_counts, classes_of
from engine.model import NgramScores, ReviewModel

KINDS = list(itertools.product(("lstm", "gru"), (1, 2), (1, 2), ("last", "mean", "max", "attention")))


def rows(lengths: list[int], bound: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 50, (len(lengths), 40), generator=generator)[:, :bound].clone()
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    return tokens


@pytest.mark.parametrize(("cell", "layers", "directions", "pooling"), KINDS)
def test_the_output_is_the_same_whatever_a_review_is_padded_to(cell, layers, directions, pooling):
    torch.manual_seed(0)
    config = ModelConfig(
        cell=cell, layers=layers, directions=directions, pooling=pooling, embedding_size=8, hidden_size=6
    )
    model = ReviewModel(config, 50).double().eval()
    lengths = [1, 9, 16, 12]
    narrow = model(rows(lengths, 16), torch.tensor(lengths))
    wide = model(rows(lengths, 40), torch.tensor(lengths, dtype=torch.int32))
    torch.testing.assert_close(narrow, wide, rtol=1e-13, atol=1e-13)
    alone = torch.cat(
        [model(rows(lengths, 16)[row : row + 1, :length], torch.tensor([length])) for row, length in enumerate(lengths)]
    )
    torch.testing.assert_close(narrow, alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_gradients_do_not_depend_on_padding_either(pooling):
    config = ModelConfig(pooling=pooling, embedding_size=8, hidden_size=6, dropout=0.0)
    gradients = []
    for bound in (16, 40):
        torch.manual_seed(0)
        model = ReviewModel(config, 50).double()
        model(rows([3, 16], bound), torch.tensor([3, 16])).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for narrow, wide in zip(*gradients, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_states_equal_those_of_torchs_packed_sequences(cell):
    torch.manual_seed(0)
    model = ReviewModel(
        ModelConfig(cell=cell, embedding_size=8, hidden_size=6, pooling="last", dropout=0.0), 50
    ).double()
    kind = torch.nn.LSTM if cell == "lstm" else torch.nn.GRU
    reference = kind(8, 6, bidirectional=True).double()
    for suffix, layer in (("", model.layers[0][0]), ("_reverse", model.layers[0][1])):
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            getattr(reference, name + suffix).data.copy_(getattr(layer, name).data)
    lengths = torch.tensor([5, 16, 1])
    tokens = rows(lengths.tolist(), 16)
    packed = torch.nn.utils.rnn.pack_padded_sequence(model.embedding(tokens.t()), lengths, enforce_sorted=False)
    _, state = reference(packed)
    hidden = state[0] if cell == "lstm" else state
    torch.testing.assert_close(model(tokens, lengths), model.head(torch.cat((hidden[0], hidden[1]), dim=1)).squeeze(1))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_dropout_leaves_out_weights_between_states_in_training_alone(cell):
    torch.manual_seed(0)
    config = ModelConfig(cell=cell, embedding_size=8, hidden_size=6, dropout=0.0, recurrent_dropout=0.5)
    model, plain = ReviewModel(config, 50).double(), ReviewModel(dataclasses.replace(config, recurrent_dropout=0.0), 50)
    plain.double().load_state_dict(model.state_dict())
    given = rows([1, 16], 16), torch.tensor([1, 16])
    torch.testing.assert_close(model.eval()(*given), plain.train()(*given))
    dropped, again = model.train()(*given), model(*given)
    # A review of one word has no state before it.
    torch.testing.assert_close(dropped[0], plain(*given)[0])
    assert not torch.allclose(dropped[1], again[1])
    dropped.sum().backward()
    none = (model.layers[0][0].weight_hh_l0.grad == 0).double().mean()
    assert 0.3 < none < 0.7


def test_classes_of_stars():
    stars = torch.tensor([1, 2, 3, 4, 5], dtype=torch.uint8)
    assert classes_of(stars, 2).tolist() == [0, 0, 0, 1, 1]
    assert classes_of(stars, 5).tolist() == [0, 1, 2, 3, 4]
    assert class_counts([1, 2, 3, 4, 5], 2) == [6, 9]
    assert class_counts([1, 2, 3, 4, 5], 5) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("loss", "classes"), [("bce", 2), ("cross_entropy", 2), ("cross_entropy", 5), ("mse", 2), ("mse", 5)]
)
def test_every_loss_is_smallest_for_the_right_answer_and_predicts_it(loss, classes):
    function = ReviewLoss(ModelConfig(loss=loss, classes=classes))
    target = torch.arange(classes)
    if loss == "cross_entropy":
        right, wrong = torch.eye(classes) * 9, torch.eye(classes).roll(1, 0) * 9
    elif loss == "bce":
        right, wrong = torch.tensor([-9.0, 9.0]), torch.tensor([9.0, -9.0])
    else:
        right, wrong = target.float() + 0.2, target.float() + 1.5
    assert function(right, target).shape == (classes,)
    assert (function(right, target) < function(wrong, target)).all()
    assert function.predict(right).tolist() == target.tolist()
    probabilities = function.probabilities(right)
    assert probabilities is None if loss == "mse" else torch.allclose(probabilities.sum(dim=1), torch.ones(classes))


def test_row_weights_follow_the_class():
    loss = ReviewLoss(ModelConfig(), class_weights=(3.0, 0.5))
    assert loss.row_weights(torch.tensor([1, 0, 1])).tolist() == [0.5, 3.0, 0.5]
    assert ReviewLoss(ModelConfig()).row_weights(torch.tensor([1])) is None


def entry(ids: tuple[int, ...]) -> int:
    mixed = sum(i * factor for i, factor in zip(ids, (1_640_531_513, 2_246_822_519, 3_266_489_917), strict=False))
    return mixed % (2**31 - 1) % (2**12 - 1) + 1


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_ngrams_score_the_sum_of_their_entries_over_the_root_of_their_number(longest):
    part = NgramScores(longest, 1 << 12, 2, dropout=0.0).double()
    with torch.no_grad():
        torch.nn.init.normal_(part.scores.weight, generator=torch.Generator().manual_seed(1))[0] = 0.0  # padding
    lengths = [1, 2, 9, 16]
    found = part(rows(lengths, 20))
    for row, length in enumerate(lengths):
        ids = rows(lengths, 20)[row, :length].tolist()
        grams = [tuple(ids[at : at + n]) for n in range(1, longest + 1) for at in range(length - n + 1)]
        total = sum(part.scores.weight[entry(gram)] for gram in grams)
        torch.testing.assert_close(found[row], 10.0 * total / len(grams) ** 0.5)


def test_ngrams_are_left_out_at_random_in_training_alone():
    part = NgramScores(2, 1 << 20, 1, dropout=0.5).double()
    with torch.no_grad():
        torch.nn.init.ones_(part.scores.weight)[0] = 0.0  # padding
    tokens = rows([16] * 200, 16)
    torch.testing.assert_close(part.eval()(tokens), torch.full((200, 1), 10.0 * 31**0.5).double())
    kept = (part.train()(tokens) / 10.0) ** 2  # the number of those that were kept
    assert 14 < kept.mean() < 17
    assert len(kept.unique()) > 5


def test_pairs_of_a_vocabulary_spread_over_the_entries():
    part = NgramScores(2, 1 << 18, 1, dropout=0.0)
    pairs = torch.randint(1, 10_002, (200_000, 2), generator=torch.Generator().manual_seed(2)).unique(dim=0)
    entries = part._hash(pairs, 2).flatten()
    # As many different entries as of random throws: 1 - exp(-n / m) of m, within half a percent.
    expected = part.entries * (1 - torch.tensor(-len(pairs) / part.entries).exp())
    assert abs(len(entries.unique()) / expected - 1) < 0.005
    assert entries.min() >= 1
    assert entries.max() < part.entries
