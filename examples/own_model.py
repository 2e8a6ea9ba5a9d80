"""Your own model on your own map-style dataset, with uneven shares: about 20 lines beside the model.

horovodrun -np 3 python examples/own_model.py
"""

import torch

import engine


class Points(torch.utils.data.Dataset):
    """Any map-style dataset of (input..., target) items."""

    def __init__(self, rows: int = 6000) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(rows, 16, generator=generator)
        self.targets = (self.inputs[:, :8].sum(dim=1) > self.inputs[:, 8:].prod(dim=1)).long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[row], self.targets[row]


def main() -> None:
    session = engine.init()
    data = Points()
    torch.manual_seed(7)  # the first weights
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2)).to(session.device)
    loss = torch.nn.CrossEntropyLoss(reduction="none")  # one loss per row: the engine divides by the whole batch
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    plan = engine.Plan(rows=len(data), batch_size=512, seed=7)

    def show(event: dict) -> None:
        if event["event"] == "epoch":
            print(f"epoch {event['epoch']}: loss {event['train_loss']:.4f}, shares {event['shares']}", flush=True)

    trainer = engine.Trainer(model, loss, optimizer, plan, session, balance="epoch", hooks=engine.Hooks(record=show))
    trainer.fit(data, epochs=5)


if __name__ == "__main__":
    main()
