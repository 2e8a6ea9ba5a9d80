"""The reader alone: a plain PyTorch loop on a dataset of reviews, without Horovod or MPI.

python -m mr reviews.jsonl.gz --out DATA && python examples/plain_torch.py DATA
"""

import sys

import torch

import engine


class BagOfWords(torch.nn.Module):
    """Any model that takes token ids [rows, length], 0 where there is no word."""

    def __init__(self, ids: int) -> None:
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(ids, 16, mode="mean", padding_idx=0)
        self.score = torch.nn.Linear(16, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.score(self.embedding(tokens)).squeeze(1)


def main(folder: str) -> None:
    data = engine.open(folder, split="train")
    plan = engine.Plan(layout=data.layout, batch_size=128, seed=7)
    model = BagOfWords(data.ids)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batches = data.batches(plan, epochs=3)  # tokens, lengths, stars: numpy arrays, each valid until the next is taken
    for epoch in range(3):
        total = 0.0
        for _, batch in zip(range(plan.steps_per_epoch), batches, strict=False):
            target = (torch.from_numpy(batch.stars) >= 4).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model(torch.from_numpy(batch.tokens)), target, reduction="sum"
            )
            optimizer.zero_grad()
            (loss / len(batch)).backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(data):.4f}", flush=True)
    data.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/plain_torch.py DATA")
    main(sys.argv[1])
