"""Distillation's losses by hand, and that a teacher sees what its student sees and learns nothing."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from simhpc.errors import ModelError
from simhpc.study import DataConfig, Distillation, Model, Student, Training
from simhpc.zoo import distillation as d
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.timm_import import timm
from simhpc.zoo.training import Processes, Trainer
from simhpc.zoo.training.recipe import make_transform

CPU = torch.device("cpu")
DATA = DataConfig(input_size_px=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), interpolation="bicubic", crop_pct=1.0)
OTHER = DataConfig(input_size_px=12, mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7), interpolation="bilinear", crop_pct=0.8)
SAME_SIZE = OTHER.model_copy(update={"input_size_px": 8})

STUDENT_LOGITS = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
TEACHER_LOGITS = [[0.0, 3.0, 0.0], [0.0, 0.0, 1.0]]
LABELS = torch.tensor([0, 1])


class Fixed(nn.Module):
    """Answers the same, whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits[: len(images)]


class WithToken(Fixed):
    """Two heads while it is trained to be distilled, as timm's have them."""

    def __init__(self, logits, of_token):
        super().__init__(logits)
        self.of_token, self.is_distilled = nn.Parameter(torch.tensor(of_token)), False

    def set_distilled_training(self, enable=True):
        self.is_distilled = enable

    def forward(self, images):
        if self.training and self.is_distilled:
            return self.logits[: len(images)], self.of_token[: len(images)]
        return (self.logits + self.of_token)[: len(images)] / 2


class Seen(nn.Module):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        self.images, self.was_training = images, self.training
        return self.norm(images).mean(dim=(2, 3))


def how(**changes):
    soft = changes.get("kind") == "soft"
    defaults = {"student": "s", "teachers": ("t",), "name": "s", "alpha": 0.5, **({"temperature": 3.0} if soft else {})}
    return Distillation(**{**defaults, **changes})


def teacher(module, data=DATA, student=DATA):
    return d.Teacher(PixelClassifier(module, data), student, torch.contiguous_format)


def task_of(student, taught, **changes):
    make = d.task_maker(taught, how(**changes), DATA)
    return make(student, criterion_kwargs={"smoothing": 0.0}, device=CPU, verbose=False)


def loss(student=None, **changes):
    task = task_of(student or Fixed(STUDENT_LOGITS), teacher(Fixed(TEACHER_LOGITS)), **changes)
    task.train()
    return task(torch.zeros(2, 3, 8, 8), LABELS)


def cross_entropy(logits, label):
    return math.log(sum(map(math.exp, logits))) - logits[label]


def softmax(logits, temperature):
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


ON_LABELS = (cross_entropy(STUDENT_LOGITS[0], 0) + cross_entropy(STUDENT_LOGITS[1], 1)) / 2


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_hard_is_cross_entropy_with_the_teachers_answer(alpha):
    on_answers = (cross_entropy(STUDENT_LOGITS[0], 1) + cross_entropy(STUDENT_LOGITS[1], 2)) / 2
    # log(e^2 + 2) - 0 = 2.2395, log(2 + e) - 0 = 1.5514
    assert on_answers == pytest.approx((2.23954 + 1.55144) / 2, abs=1e-5)
    found = loss(kind="hard", alpha=alpha)
    assert found["loss"].item() == pytest.approx((1 - alpha) * ON_LABELS + alpha * on_answers, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_is_kullback_leibler_times_temperature_squared(alpha, temperature):
    divergence = 0.0
    for ours, theirs in zip(STUDENT_LOGITS, TEACHER_LOGITS, strict=True):
        p, q = softmax(theirs, temperature), softmax(ours, temperature)
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 2
    found = loss(kind="soft", alpha=alpha, temperature=temperature)
    expected = (1 - alpha) * ON_LABELS + alpha * temperature**2 * divergence
    assert found["loss"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_token_is_taught_by_the_teacher_and_the_head_by_the_labels(kind):
    found = loss(WithToken(STUDENT_LOGITS, TEACHER_LOGITS), kind=kind, token=True, alpha=0.25)
    on_teacher = (
        (cross_entropy(TEACHER_LOGITS[0], 1) + cross_entropy(TEACHER_LOGITS[1], 2)) / 2 if kind == "hard" else 0
    )
    assert found["loss"].item() == pytest.approx(0.75 * ON_LABELS + 0.25 * on_teacher, abs=1e-6)


def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn_from_it():
    student = Fixed(TEACHER_LOGITS)
    found = loss(student, kind="soft", alpha=1.0)
    found["loss"].backward()
    assert found["loss"].item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(student.logits.grad, torch.zeros(2, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("data", [DATA, SAME_SIZE, OTHER])
def test_a_teacher_sees_the_students_view_in_its_own_size_and_normalisation(data):
    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (DATA.mean, DATA.std))
    seen = Seen()
    task = task_of(Fixed(STUDENT_LOGITS), teacher(seen, data), kind="hard")
    task.train()
    task((pixels - mean) / std, LABELS)
    side = data.input_size_px
    expected = pixels
    if side != 8:
        expected = functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (data.mean, data.std))
    torch.testing.assert_close(seen.images, (expected - mean) / std, atol=1e-5, rtol=0)


def test_a_teacher_is_in_eval_mode_and_learns_nothing():
    seen, student = Seen(), Fixed(STUDENT_LOGITS)
    before = {name: value.clone() for name, value in seen.state_dict().items()}
    task = task_of(student, teacher(seen), kind="soft")
    task.train()
    task(torch.randn(2, 3, 8, 8), LABELS)["loss"].backward()
    assert seen.was_training is False
    assert student.logits.grad is not None
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in seen.parameters())
    assert all(torch.equal(before[name], value) for name, value in seen.state_dict().items())


@dataclass
class Images:
    labels: np.ndarray
    size_px: tuple[int, int] = (10, 10)

    def image(self, position):
        pixels = np.random.default_rng(position).integers(0, 256, (*self.size_px, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


@pytest.mark.parametrize("changes", [{"kind": "hard"}, {"kind": "soft"}])
def test_answers_that_were_asked_before_give_the_same_loss(changes):
    torch.manual_seed(0)
    still = Training(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), hflip_prob=0.0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 3))
    taught, images, positions = teacher(network, OTHER), Images(np.array([0, 1, 2, 1, 0])), [4, 1, 3]
    logits = d.ask(taught, images, positions, still, DATA, batch_size=2)
    assert logits.shape == (3, 3)
    answers = d.Answers(torch.from_numpy(logits), torch.from_numpy(images.labels[positions]))
    transform = make_transform(still, DATA)
    shown = torch.stack([transform(images.image(position)) for position in positions])
    student = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))
    asked = task_of(student, taught, **changes)(shown, torch.tensor([0, 1, 1]))["loss"]
    order = torch.tensor([2, 0, 1])
    remembered = task_of(student, answers, **changes)(shown[order], order)["loss"]
    torch.testing.assert_close(asked, remembered)


@pytest.mark.parametrize("size_px", [(10, 10), (10, 11), (13, 12), (9, 14)])
def test_a_view_that_is_to_stay_the_same_does(size_px):
    """Also of an image that is a pixel from square, where timm's crop is placed at random."""
    still = Training(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), hflip_prob=0.0, batch_size=4, epochs=4)
    images, seen = Images(np.array([0, 1, 2, 1]), size_px), {}

    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, shown):
            for view in shown:
                seen.setdefault(view.numpy().tobytes(), view)
            return self.bias.expand(len(shown), 3)

    for seed in (1, 2):  # of students that share their teacher's answers
        student = Student()
        one = Trainer(student, images, range(4), still, DATA, num_classes=3, seed=seed, processes=Processes(CPU))
        one.run(lambda steps: None)
    assert len(seen) == 4
    answered = []
    for seed in (1, 2):
        random.seed(seed)
        taught = teacher(nn.Flatten())
        answered.append(d.ask(taught, images, range(4), still, DATA, batch_size=3))
    np.testing.assert_array_equal(*answered)
    # What the teacher was asked about is what the students saw.
    asked = torch.from_numpy(answered[0]).view(4, 3, 8, 8)
    for view in asked:
        assert min((view - found).abs().max() for found in seen.values()) < 1e-5


def test_what_timm_says_of_the_student_is_kept_but_for_its_normalisation():
    student = timm.create_model("test_vit", num_classes=3)
    before = dict(student.pretrained_cfg)
    task_of(student, teacher(Fixed(TEACHER_LOGITS)), kind="hard")
    assert student.pretrained_cfg == {**before, "mean": DATA.mean, "std": DATA.std}


def test_a_token_needs_an_architecture_that_has_one():
    def student(timm_name):
        entry = Model(key="s-from-t", timm=timm_name, weights="train", data=DATA.model_copy(), training=Training())
        entry = entry.model_copy(update={"args": {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 1}})
        return Student("s-from-t", entry, "s", "t", 1, how(token=True))

    d.check_student(student("deit_tiny_distilled_patch16_224"), 3)
    with pytest.raises(ModelError, match="'vit_tiny_patch16_224' has no distillation token"):
        d.check_student(student("vit_tiny_patch16_224"), 3)
