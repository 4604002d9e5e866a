from __future__ import annotations

import torch
from torch import nn

from simhpc.zoo.consecutive import consecutive


class Model(nn.Module):
    """Layers with every kind of follower."""

    def __init__(self):
        super().__init__()
        self.direct, self.after_direct = nn.Linear(4, 4), nn.ReLU()
        self.doubled, self.after_doubled = nn.Linear(4, 4), nn.ReLU()
        self.twice, self.after_twice = nn.Linear(4, 4), nn.ReLU()
        self.parent, self.first_child, self.second_child = nn.Linear(4, 4), nn.ReLU(), nn.ReLU()
        self.summed, self.after_summed = nn.Linear(4, 4), nn.ReLU()
        self.nothing = nn.Sequential()

    def forward(self, x):
        x = self.after_direct(self.nothing(self.direct(x)))  # an empty module hands on the very tensor
        x = self.after_doubled(self.doubled(x) * 2)
        x = self.after_twice(self.twice(self.after_twice(self.twice(x))))
        made = self.summed(x)
        made += x
        x = self.after_summed(made)
        made = self.parent(x)
        return self.first_child(made) + self.second_child(made)


def test_only_what_directly_and_solely_follows():
    model = Model().eval()
    found = consecutive(
        model, torch.rand(2, 4), lambda module: type(module) is nn.Linear, lambda module: type(module) is nn.ReLU
    )
    assert found == {model.after_direct: model.direct}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
