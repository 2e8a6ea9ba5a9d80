"""The reference model: embedding, recurrent layers, pooling, linear head.

Padding never reaches the result: states after a review's last word are never pooled, and the backward direction
reads the review reversed within its own length. Dense batches of one length bucket are used instead of packed
sequences: on CPU the dense kernels are about four times as fast, and a bucket holds little padding.

Shapes: B rows, L padded length, E embedding size, H hidden size, D directions, C outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.config import ModelConfig


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
        outputs = config.classes if config.loss == "cross_entropy" else 1
        self.head = nn.Linear(config.hidden_size * config.directions, outputs)

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
        states_LBX = self._drop_alike(self.embedding(tokens_BL.t()))
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.ModuleList)
            if number:
                states_LBX = self._drop_alike(states_LBX)
            parts = [layer[0](states_LBX)[0]]
            if len(layer) == 2:
                backward = layer[1](_reorder(states_LBX, mirror_LB))[0]
                # The mean and the maximum over the valid words do not ask for their order.
                any_order = number == len(self.layers) - 1 and self.config.pooling != "last"
                parts.append(backward if any_order else _reorder(backward, mirror_LB))
            states_LBX = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        scores_BC: Tensor = self.head(self.dropout(self._pool(states_LBX, valid_LB, lengths_B)))
        return scores_BC.squeeze(1) if scores_BC.shape[1] == 1 else scores_BC

    def _drop_alike(self, states_LBX: Tensor) -> Tensor:
        """Dropout with one mask for all time steps of a row (Gal and Ghahramani, NIPS 2016): better for a recurrent
        network than a mask per step, and L times cheaper to draw."""
        if not (self.training and self.config.dropout):
            return states_LBX
        mask_1BX: Tensor = self.dropout(torch.ones_like(states_LBX[:1]))
        return states_LBX * mask_1BX

    def _pool(self, states_LBX: Tensor, valid_LB: Tensor, lengths_B: Tensor) -> Tensor:
        if self.config.pooling == "max":
            return states_LBX.masked_fill(~valid_LB.unsqueeze(2), float("-inf")).amax(dim=0)
        if self.config.pooling == "mean":
            total_BX = states_LBX.masked_fill(~valid_LB.unsqueeze(2), 0.0).sum(dim=0)
            return total_BX / lengths_B.unsqueeze(1).to(total_BX.dtype)
        hidden = self.config.hidden_size
        last_1B1 = (lengths_B - 1).view(1, -1, 1)
        ends = [states_LBX[:, :, :hidden].gather(0, last_1B1.expand(1, -1, hidden))[0]]
        if self.config.directions == 2:
            ends.append(states_LBX[0, :, hidden:])  # the backward direction ends at the first word
        return torch.cat(ends, dim=1)


def _reorder(states_LBX: Tensor, from_LB: Tensor) -> Tensor:
    """Take each row's time step from another place of the same row."""
    length, rows, size = states_LBX.shape
    flat = from_LB * rows + torch.arange(rows, device=from_LB.device)
    # Whole vectors by number: many times cheaper in backward than a gather of single elements.
    return states_LBX.reshape(length * rows, size).index_select(0, flat.reshape(-1)).view(length, rows, size)
