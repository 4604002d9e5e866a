"""What a step sees depends on (seed, epoch, image) alone."""

from __future__ import annotations

import os
import random
import signal
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo.training.made_up import DATA, EVERYTHING, Noise

from simhpc.study import Training
from simhpc.zoo.timm_import import timm
from simhpc.zoo.training.data import Schedule, TrainingImages, batches
from simhpc.zoo.training.recipe import make_transform
from simhpc.zoo.training.seeding import seed_cpu

CPU = torch.device("cpu")


@settings(max_examples=30)
@given(
    n_images=st.integers(6, 40),
    epochs=st.integers(1, 3),
    n_parts=st.sampled_from([1, 2, 3, 6]),
    repetitions=st.integers(1, 3),
    first=st.integers(0, 20),
)
def test_steps_are_the_same_from_wherever_and_by_however_many(n_images, epochs, n_parts, repetitions, first):
    schedule = Schedule(n_images, epochs, 6, n_parts, repetitions, seed=3)
    assert schedule.steps == epochs * (n_images // 6)
    whole = list(schedule.parts(0, range(n_parts)))
    first = min(first, schedule.steps)
    assert list(schedule.parts(first, range(n_parts))) == whole[first * n_parts :]
    # Shared by n_parts processes: the same parts, each made once.
    shared = [list(schedule.parts(0, [rank])) for rank in range(n_parts)]
    assert [part for step in zip(*shared, strict=True) for part in step] == whole
    # And a step has the same images whatever it is divided into.
    undivided = list(Schedule(n_images, epochs, 6, 1, repetitions, seed=3).parts(0, [0]))
    for step, samples in enumerate(undivided):
        assert sorted(chain.from_iterable(whole[step * n_parts : (step + 1) * n_parts])) == sorted(samples)


def test_an_epoch_shows_every_image_once_in_another_order():
    schedule = Schedule(30, 2, 5, 1, 1, seed=3)
    first, second = ([place for _, place, _ in schedule.order(epoch)] for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    assert [place for _, place, _ in Schedule(30, 2, 5, 1, 1, seed=4).order(0)] != first


def test_repeated_augmentation_shows_fewer_images_more_often():
    samples = Schedule(30, 1, 6, 3, 3, seed=3).order(0)
    assert len(samples) == len(set(samples)) == 30
    assert len({place for _, place, _ in samples}) == 10
    # As in the paper, the repetitions of one image are seen by different parts of a step.
    for part in Schedule(30, 1, 6, 3, 3, seed=3).parts(0, range(3)):
        assert len({place for _, place, _ in part}) == 2


def images(seed=5):
    return TrainingImages(
        Noise(), range(36), make_transform(Training.model_validate(EVERYTHING | {"batch_size": 8}), DATA), seed
    )


def test_an_image_is_augmented_alike_whatever_came_before():
    one = images()[1, 7, 0]
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    images()[0, 3, 0]
    again = images()[1, 7, 0]
    assert torch.equal(one[0], again[0])
    assert one[1] == again[1] == 7 % 4
    for other in (images()[2, 7, 0], images()[1, 7, 1], images(seed=6)[1, 7, 0]):
        assert not torch.equal(one[0], other[0])


# The legacy generator of numpy is the one that timm uses.
@pytest.mark.parametrize("draw", [lambda: torch.rand(4).tolist(), np.random.random, random.random])
def test_all_three_generators_are_seeded(draw):
    seed_cpu(2**62 + 5)
    one = draw()
    seed_cpu(2**62 + 5)
    assert draw() == one
    seed_cpu(2**62 + 6)
    assert draw() != one


def test_workers_make_the_same_batches():
    schedule = Schedule(36, 2, 8, 2, 1, seed=3)
    found = [list(batches(images(), schedule.parts(1, [1]), workers=n, device=CPU)) for n in (0, 2)]
    assert len(found[0]) == schedule.steps - 1
    for one, other in zip(*found, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_workers_do_not_heed_what_the_batch_system_sends():
    """Slurm may send it to every process of a step."""

    class Told:
        def __getitem__(self, sample):
            os.kill(os.getpid(), signal.SIGUSR2)
            return torch.zeros(1), os.getpid()

    found = list(batches(Told(), iter([[(0, 0, 0)], [(0, 1, 0)]]), workers=1, device=CPU))
    assert len(found) == 2
    assert found[0][1].item() != os.getpid()
    assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("policy", ["rand-m0-mstd0", "rand-m10-mstd0-inc1", "original"])
def test_the_ends_of_every_policy_are_augmentations(policy):
    """Pillow refuses to keep no bit at all, as RandAugment at its weakest (strongest, with inc1) asks it to."""
    training = Training.model_validate({"auto_augment": policy})
    made = TrainingImages(Noise(), range(36), make_transform(training, DATA), seed=1)
    assert all(torch.isfinite(made[epoch, 0, 0][0]).all() for epoch in range(60))


def test_an_image_of_which_no_bit_is_kept_is_black():
    image = Noise().image(0)
    posterize = timm.data.auto_augment.NAME_TO_OP["PosterizeIncreasing"]
    assert not np.asarray(posterize(image, 0)).any()
    np.testing.assert_array_equal(np.asarray(posterize(image, 3)), np.asarray(image) & 0b11100000)
    assert posterize(image, 8) is image
