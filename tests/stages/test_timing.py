"""What is timed, with a clock that only the model moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simhpc.stages import timing
from simhpc.stages.timing import measure, time_batches
from simhpc.zoo.resolve import resolve_model


class Slow(nn.Module):
    """Takes `forward_s`, and `backward_s` more when an input gradient is asked for; the first call takes a minute."""

    def __init__(self, forward_s, backward_s):
        super().__init__()
        self.forward_s, self.backward_s = forward_s, backward_s
        self.now_s, self.batches = 0.0, []

    def forward(self, pixels):
        self.now_s += self.forward_s if self.batches else 60.0
        self.batches.append((len(pixels), pixels.requires_grad))
        logits = pixels.mean((2, 3))
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, gradient):
        self.now_s += self.backward_s
        return gradient


def test_the_first_batch_does_not_count():
    slow = Slow(0.25, 0.5)
    found = time_batches(slow, torch.rand(3, 3, 4, 4), clock=lambda: slow.now_s)
    assert found == pytest.approx((0.25, 0.75))
    assert set(slow.batches) == {(3, False), (3, True)}


def test_slow_batches_are_not_repeated_for_long():
    slow = Slow(100.0, 100.0)
    time_batches(slow, torch.rand(1, 3, 4, 4), clock=lambda: slow.now_s)
    assert len(slow.batches) == 4


def test_fast_batches_are_repeated_and_the_median_counts():
    slow = Slow(0.001, 0.001)
    time_batches(slow, torch.rand(1, 3, 4, 4), clock=lambda: slow.now_s)
    # After a first one that takes a minute, two are enough to have spent a second; the steps are all fast.
    assert slow.batches.count((1, True)) == 1 + timing._MOST_BATCHES


def test_a_study_is_measured_as_its_attack_computes(make_study, monkeypatch):
    """Batch size, pixels' size and threads are the study's; seconds are per image."""
    seen = {}

    def timed(classifier, pixels, *, is_in_parts):
        seen.update(shape=tuple(pixels.shape), threads=torch.get_num_threads())
        assert classifier(pixels).shape == (len(pixels), 10)
        return 3.2, 6.4

    monkeypatch.setattr(timing, "time_batches", timed)
    study = make_study(("cnn",), attack={"grid": "canonical"}, images={"size_px": 8})
    model = resolve_model(study.models[0], 10)
    speed = measure(model, study, 10, import_s=2.0)
    assert seen == {"shape": (32, 3, 8, 8), "threads": 1}
    assert (speed.forward_s, speed.gradient_s) == (0.1, 0.2)
    assert speed.start_s > 2.0
    assert speed.training_s > 0


def test_training_is_the_train_stages_own(make_study, monkeypatch):
    """Two epochs of four batches, on the images and with the augmentation of the model; the second one counts."""
    seen = {}

    class Trainer:
        steps_per_epoch, batch_size = 4, 16

        def __init__(self, network, images, positions, training, data, **_):
            seen.update(n=len(positions), epochs=training.epochs, side=data.input_size_px, hflip=training.hflip_prob)
            assert all(parameter.requires_grad for parameter in network.parameters())
            assert images.image(positions[-1]).size == (8, 8)

        def run(self, on_steps, look_every):
            assert look_every == self.steps_per_epoch
            for now_s in (100.0, 228.0):
                monkeypatch.setattr(timing.time, "perf_counter", lambda now_s=now_s: now_s)
                on_steps([])

    monkeypatch.setattr(timing, "time_batches", lambda *_, **__: (1.0, 1.0))
    monkeypatch.setattr(timing.training, "Trainer", Trainer)
    study = make_study(("cnn",), training={"batch_size": 16})
    speed = measure(resolve_model(study.models[0], 10), study, 10, import_s=0.0)
    assert seen == {"n": 64, "epochs": 2, "side": 16, "hflip": 0.0}
    assert speed.training_s == 2.0
