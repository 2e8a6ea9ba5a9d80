"""The reference model: embedding, recurrent layers, pooling, linear head, and a score per word and n-gram beside it.

Padding never reaches the result: states after a review's last word are never pooled, and the backward direction
reads the review reversed within its own length. Dense batches of one length bucket are used instead of packed
sequences: on CPU the dense kernels are about four times as fast, and a bucket holds little padding.

Shapes: B rows, L padded length, E embedding size, H hidden size, D directions, C outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.config import ModelConfig

INPUT_DROPOUT = 0.5
"""how much of the dropout applies to what is read, word vectors and n-grams; states between layers and the pooled one
have the whole"""


class ReviewModel(nn.Module):
    """Scores reviews.

    Args:
        config: sizes and kinds.
        ids: number of token ids, pad and unknown included.
    """

    def __init__(self, config: ModelConfig, ids: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(ids, config.embedding_size, padding_idx=0)
        cell = nn.LSTM if config.cell == "lstm" else nn.GRU
        # One module per layer and direction: reversal within each row's length happens between them.
        self.layers = nn.ModuleList(
            nn.ModuleList(
                cell(
                    config.embedding_size if layer == 0 else config.hidden_size * config.directions, config.hidden_size
                )
                for _ in range(config.directions)
            )
            for layer in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.attention = nn.Linear(config.hidden_size * config.directions, 1) if config.pooling == "attention" else None
        outputs = config.classes if config.loss == "cross_entropy" else 1
        self.head = nn.Linear(config.hidden_size * config.directions, outputs)
        rate = config.dropout * INPUT_DROPOUT
        self.ngrams = NgramScores(config.ngrams, config.ngram_entries, outputs, rate) if config.ngrams else None

    def forward(self, tokens_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Scores [B, C], or [B] where there is one output.

        Args:
            tokens_BL: int32 or int64 ids, padded on the right with 0.
            lengths_B: words per row, 1..L.
        """
        lengths_B = lengths_B.long()
        place_L1 = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).unsqueeze(1)
        valid_LB = place_L1 < lengths_B
        # Position p of a row of n words goes to n - 1 - p; padding stays where it is. Its own inverse.
        mirror_LB = torch.where(valid_LB, lengths_B - 1 - place_L1, place_L1)
        # Time first: the recurrent kernels read it without a copy.
        states_LBX = self._drop_alike(self.embedding(tokens_BL.t()), self.config.dropout * INPUT_DROPOUT)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.ModuleList)
            if number:
                states_LBX = self._drop_alike(states_LBX, self.config.dropout)
            parts = [self._read(layer[0], states_LBX)]
            if len(layer) == 2:
                backward = self._read(layer[1], _reorder(states_LBX, mirror_LB))
                # The mean and the maximum over the valid words do not ask for their order.
                any_order = number == len(self.layers) - 1 and self.config.pooling in ("mean", "max")
                parts.append(backward if any_order else _reorder(backward, mirror_LB))
            states_LBX = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        scores_BC: Tensor = self.head(self.dropout(self._pool(states_LBX, valid_LB, lengths_B)))
        if self.ngrams is not None:
            scores_BC = scores_BC + self.ngrams(tokens_BL)
        return scores_BC.squeeze(1) if scores_BC.shape[1] == 1 else scores_BC

    def _read(self, cell: nn.Module, inputs_LBX: Tensor) -> Tensor:
        """States [L, B, H]. In training some of the weights from state to state are left out, the same ones in all time
        steps (Merity, Keskar and Socher, "Regularizing and Optimizing LSTM Language Models", ICLR 2018)."""
        rate = self.config.recurrent_dropout
        if self.training and rate:
            kept = {"weight_hh_l0": functional.dropout(cell.get_parameter("weight_hh_l0"), rate)}
            states_LBH: Tensor = torch.func.functional_call(cell, kept, (inputs_LBX,))[0]
        else:
            states_LBH = cell(inputs_LBX)[0]
        return states_LBH

    def _drop_alike(self, states_LBX: Tensor, rate: float) -> Tensor:
        """Dropout with one mask for all time steps of a row (Gal and Ghahramani, NIPS 2016): better for a recurrent
        network than a mask per step, and L times cheaper to draw."""
        if not (self.training and rate):
            return states_LBX
        mask_1BX = functional.dropout(torch.ones_like(states_LBX[:1]), rate)
        return states_LBX * mask_1BX

    def _pool(self, states_LBX: Tensor, valid_LB: Tensor, lengths_B: Tensor) -> Tensor:
        if self.config.pooling == "max":
            return states_LBX.masked_fill(~valid_LB.unsqueeze(2), float("-inf")).amax(dim=0)
        if self.attention is not None:
            # A weight per word from its state alone, as in Yang et al., "Hierarchical Attention Networks", NAACL 2016.
            weight_LB1 = self.attention(states_LBX).masked_fill(~valid_LB.unsqueeze(2), float("-inf")).softmax(dim=0)
            attended_BX: Tensor = (weight_LB1 * states_LBX).sum(dim=0)
            return attended_BX
        if self.config.pooling == "mean":
            total_BX = states_LBX.masked_fill(~valid_LB.unsqueeze(2), 0.0).sum(dim=0)
            return total_BX / lengths_B.unsqueeze(1).to(total_BX.dtype)
        hidden = self.config.hidden_size
        last_1B1 = (lengths_B - 1).view(1, -1, 1)
        ends = [states_LBX[:, :, :hidden].gather(0, last_1B1.expand(1, -1, hidden))[0]]
        if self.config.directions == 2:
            ends.append(states_LBX[0, :, hidden:])  # the backward direction ends at the first word
        return torch.cat(ends, dim=1)


class NgramScores(nn.Module):
    """A linear model of hashed words and n-grams, which learns what single phrases say while the recurrent layers learn
    the rest (Cheng et al., "Wide & Deep Learning for Recommender Systems", 2016; hashing by Weinberger et al., ICML
    2009).

    Args:
        longest: words of the longest n-grams, 1..3; all shorter ones count too.
        entries: scores there are, 2 or more; n-grams that share an entry share their score.
        outputs: scores per review, C.
        dropout: probability with which an n-gram is left out in training.
    """

    SCALE = 10.0
    """how much faster these scores learn than the other weights: each n-gram is met in few batches"""
    # A universal family of hash functions (Carter and Wegman, 1979): modulo a prime, then modulo the size.
    _FACTORS = (1_640_531_513, 2_246_822_519, 3_266_489_917)
    _PRIME = (1 << 31) - 1

    def __init__(self, longest: int, entries: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.longest, self.entries, self.rate = longest, entries, dropout
        self.scores = nn.Embedding(entries, outputs, padding_idx=0)
        nn.init.zeros_(self.scores.weight)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Scores [B, C]: the sum over a review's n-grams, divided by the root of their number, so that long and short
        reviews have scores of one size."""
        entries_BN = torch.cat([self._hash(tokens_BL, words) for words in range(1, self.longest + 1)], dim=1)
        if self.training and self.rate:
            entries_BN = entries_BN * (torch.rand(entries_BN.shape, device=entries_BN.device) >= self.rate)
        count_B1 = (entries_BN > 0).sum(dim=1, keepdim=True).clamp(min=1)
        total_BC: Tensor = self.scores(entries_BN).sum(dim=1)
        return total_BC * (self.SCALE / count_B1.to(total_BC.dtype).sqrt())

    def _hash(self, tokens_BL: Tensor, words: int) -> Tensor:
        """Entry per n-gram of so many words, 0 where it would reach beyond the review; int64 [B, L - words + 1]."""
        ids_BL = tokens_BL.long()
        places = max(0, ids_BL.shape[1] - words + 1)
        mixed = torch.zeros_like(ids_BL[:, :places])
        for number in range(words):
            mixed = mixed + ids_BL[:, number : number + places] * self._FACTORS[number]
        last_BN = ids_BL[:, words - 1 : words - 1 + places]
        return torch.where(last_BN > 0, mixed % self._PRIME % (self.entries - 1) + 1, 0)


def _reorder(states_LBX: Tensor, from_LB: Tensor) -> Tensor:
    """Take each row's time step from another place of the same row."""
    length, rows, size = states_LBX.shape
    flat = from_LB * rows + torch.arange(rows, device=from_LB.device)
    # Whole vectors by number: many times cheaper in backward than a gather of single elements.
    return states_LBX.reshape(length * rows, size).index_select(0, flat.reshape(-1)).view(length, rows, size)
