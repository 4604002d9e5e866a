"""Which way a gradient is computed; real CUDA graphs are in tests/gpu."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simhpc.attacks import gradient as gradient_module
from simhpc.attacks.gradient import InputGradient, input_gradient, try_graph


class Recorded:
    """Like a `StepGraph`: it fits one batch size, and gives its answers in the same memory each time."""

    def __init__(self, classifier, batch_size):
        self.classifier, self.batch_size = classifier, batch_size
        self.n_replays, self.memory = 0, None

    def fits(self, pixels):
        return len(pixels) == self.batch_size

    def replay(self, pixels, labels):
        self.n_replays += 1
        found = input_gradient(self.classifier, pixels, labels)
        self.memory = found if self.memory is None else self.memory
        for held, new in zip(self.memory, found, strict=True):
            held.copy_(new)
        return self.memory


def failing(monkeypatch, *errors):
    """`StepGraph` raises these, each while the one before it is handled."""

    def construct(*_):
        try:
            raise errors[0]
        except BaseException:
            if len(errors) > 1:
                raise errors[1]  # noqa: B904
            raise

    monkeypatch.setattr(gradient_module, "StepGraph", construct)
    return lambda: try_graph(nn.Identity(), torch.rand(1), torch.zeros(1))


def test_what_keeps_a_step_from_being_recorded_is_told_or_raised(monkeypatch):
    memory = torch.OutOfMemoryError("CUDA out of memory.")
    strict = RuntimeError("cumsum_cuda does not have a deterministic implementation")
    capture = RuntimeError("operation failed due to a previous error during capture\nmore")
    assert failing(monkeypatch, capture)() == (None, "operation failed due to a previous error during capture")
    assert failing(monkeypatch, KeyError())() == (None, "KeyError")
    for errors, match in (((memory,), "out of memory"), ((memory, capture), "out of memory"), ((strict,), "cumsum")):
        with pytest.raises(RuntimeError, match=match):
            failing(monkeypatch, *errors)()


def test_a_recorded_step_is_used_where_it_fits_and_what_it_gave_stays():
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)).requires_grad_(False)
    graph, labels = Recorded(classifier, 4), torch.tensor([0, 1, 2, 0])
    gradient = InputGradient(classifier, graph)
    batches = torch.rand(3, 4, 3, 2, 2)
    losses = [gradient.with_loss(pixels, labels)[1] for pixels in batches]
    assert graph.n_replays == 3
    for pixels, loss in zip(batches, losses, strict=True):
        assert torch.equal(loss, input_gradient(classifier, pixels, labels)[1])
    assert torch.equal(gradient(batches[0, :2], labels[:2]), input_gradient(classifier, batches[0, :2], labels[:2])[0])
    assert graph.n_replays == 3
    assert gradient.was_finite()
