"""Parts of a batch side by side give what the whole gives."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from simhpc.attacks import gradient as gradient_module
from simhpc.attacks import method
from simhpc.attacks import parts as parts_module
from simhpc.attacks.attack import attack_images
from simhpc.attacks.batches import Target
from simhpc.attacks.gradient import InputGradient, input_gradient
from simhpc.attacks.parts import in_parts
from simhpc.study import DataConfig
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.timm_import import timm


@pytest.fixture
def threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(parts_module, "_n_cores", lambda: 8)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("n_threads", "n_images", "parts"),
    [
        (1, 16, [16]),
        (2, 16, [8, 8]),
        (3, 16, [6, 5, 5]),
        (2, 7, [7]),  # parts of fewer than four images are not worth it
        (8, 9, [5, 4]),
        (2, 1, [1]),
    ],
)
def test_who_computes_what(threads, n_threads, n_images, parts):
    threads(n_threads)
    seen = []

    def function(pixels, labels):
        seen.append((len(pixels), torch.get_num_threads(), threading.current_thread()))
        return pixels * 2, labels + 1

    pixels, labels = torch.rand(n_images, 2), torch.arange(n_images)
    found = in_parts(function, pixels, labels)
    assert torch.equal(found[0], pixels * 2)
    assert torch.equal(found[1], labels + 1)
    assert sorted((n for n, _, _ in seen), reverse=True) == parts
    assert {each for _, each, _ in seen} == {n_threads // len(parts)}
    assert (threading.current_thread() in {thread for _, _, thread in seen}) == (len(parts) == 1)
    assert torch.get_num_threads() == n_threads
    fresh = []
    other = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert fresh == [n_threads]


def test_parts_run_at_once(threads):
    threads(2)
    both = threading.Barrier(2, timeout=60)  # seconds; one after the other would break it

    def function(pixels, labels):
        both.wait()
        return pixels, labels

    in_parts(function, torch.rand(8, 1), torch.arange(8))
    assert not both.broken


def test_threads_that_are_bound_to_one_core_are_not_used(threads, monkeypatch):
    monkeypatch.undo()
    threads(2)
    before, seen = os.sched_getaffinity(0), []
    os.sched_setaffinity(0, set(sorted(before)[:1]))
    try:
        in_parts(
            lambda pixels, labels: (seen.append(len(pixels)), (pixels, labels))[1], torch.rand(8, 1), torch.arange(8)
        )
    finally:
        os.sched_setaffinity(0, before)
    assert seen == [8]


def test_a_fork_has_threads_of_its_own(threads):
    """In a process of its own: pytest's has threads that a fork would not have."""
    program = """
import os, signal, torch
from simhpc.attacks import parts
torch.set_num_threads(2)
parts._n_cores = lambda: 2
ask = lambda: parts.in_parts(lambda pixels, labels: (pixels, labels), torch.ones(8, 1), torch.arange(8))
ask(), ask()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if torch.equal(ask()[1], torch.arange(8)) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "0\n", done.stderr


def test_a_failure_is_raised_when_all_have_ended(threads):
    threads(2)
    ended = []

    def function(pixels, labels):
        if labels[0] == 0:
            raise torch.OutOfMemoryError("no memory")
        time.sleep(0.2)
        ended.append(labels)
        return pixels, labels

    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        in_parts(function, torch.rand(8, 1), torch.arange(8))
    assert len(ended) == 1
    assert torch.get_num_threads() == 2
    # They can be asked again.
    assert torch.equal(
        in_parts(lambda pixels, labels: (pixels, labels), torch.ones(8, 1), torch.arange(8))[1], torch.arange(8)
    )


DATA = DataConfig(input_size_px=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@functools.cache
def classifier_of(name, **arguments):
    torch.manual_seed(0)
    return PixelClassifier(timm.create_model(name, num_classes=10, **dict(arguments)), DATA)


TRANSFORMERS = {
    "test_vit": {"img_size": 32},
    "deit_tiny_distilled_patch16_224": {"img_size": 32},
    "mixer_s32_224": {"img_size": 32},
    "beit_base_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 4,
        "depths": (1, 1),
        "num_heads": (2, 2),
        "embed_dim": 16,
    },
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_same_gradient_of_each_image(threads, name):
    threads(2)
    classifier = classifier_of(name, **TRANSFORMERS[name])
    side = TRANSFORMERS[name]["img_size"]
    pixels, labels = torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(0)), torch.arange(8)
    whole = input_gradient(classifier, pixels, labels)
    gradient = InputGradient(classifier, is_in_parts=True)
    for _ in range(5):
        found = gradient.with_loss(pixels, labels)
        for one, expected in zip(found, whole, strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(one, again) for one, again in zip(found, gradient.with_loss(pixels, labels), strict=True))
    assert gradient.was_finite()


def test_a_target_says_whether_an_attack_is_in_parts(threads, monkeypatch):
    threads(2)
    asked, parts = [], gradient_module.in_parts
    monkeypatch.setattr(gradient_module, "in_parts", lambda *given: (asked.append(1), parts(*given))[1])
    classifier = classifier_of("test_vit", img_size=32)
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pgd = method.find("pgd-linf")
    settings = method.Settings(pgd, eps_255=8, step_size_eps=0.25, steps=3, arguments={})
    made = [
        attack_images(
            Target(classifier, torch.device("cpu"), is_in_parts=is_in_parts), images, torch.arange(8), [range(8)],
            settings, batch_size=8, finished={}, on_batch=lambda *_: None,
        )
        for is_in_parts in (False, True, True)
    ]  # fmt: skip
    assert len(asked) == 6
    assert torch.equal(made[1], made[2])
    # Steps are signs of gradients: one that is next to 0 may round to the other side.
    assert (made[0] == made[1]).float().mean() > 0.999
