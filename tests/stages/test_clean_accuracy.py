"""A model that cannot be what it is said to be is found before it is attacked, and the message names the cause."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import DATA, MODELS, tiny, write_study

from simhpc.errors import ModelError
from simhpc.images.digits import Digits
from simhpc.rundir import open_run
from simhpc.stages import attack
from simhpc.stages.clean_accuracy import MARGIN_PERCENT, check_accuracy
from simhpc.stages.prepare import prepare
from simhpc.stages.task import Task
from simhpc.study import Model, load_study

RANDOM = np.random.default_rng(5)
LABELS = np.repeat(np.arange(1000), 5).astype(np.int32)


def model(expected: float | None) -> Model:
    return Model(key="m", timm="resnet18", weights="pretrained:a1_in1k", expected_top1_percent=expected)


def answers(accuracy: float, labels=LABELS) -> np.ndarray:
    is_right = np.arange(len(labels)) < round(accuracy * len(labels))
    return np.where(is_right, labels, (labels + 1) % 1000).astype(np.int32)


def problem(predicted, labels=LABELS, expected: float = 80.0) -> str:
    with pytest.raises(ModelError) as caught:
        check_accuracy(model(expected), predicted.astype(np.int32), labels)
    return str(caught.value)


def test_a_permuted_label_map_is_named():
    right = np.where(RANDOM.random(5000) < 0.78, LABELS, RANDOM.integers(0, 1000, 5000))
    text = problem(RANDOM.permutation(1000)[right])
    assert "model 'm' (resnet18.a1_in1k) gets 0." in text
    assert "of 5000 clean images right, 80 % were expected" in text
    assert "The class order is permuted: with the class indices renamed, 78." in text
    assert "images.labels" in text
    assert "set expected_top1_percent = 0 for this model" in text


def test_guessing_and_half_broken_are_not_called_a_permutation():
    assert "Guessing would give 0.1 %, so suspect the class order" in problem(RANDOM.integers(0, 1000, 5000))
    noise = RANDOM.integers(0, 1000, 5000)
    assert "Suspect the preprocessing" in problem(np.where(np.arange(5000) % 2, LABELS, noise))


def test_nothing_is_said_of_what_may_be_chance_or_another_crop():
    check_accuracy(model(80), answers(0.66), LABELS)
    assert "64.0 %" in problem(answers(0.64))
    few = LABELS[:6]
    check_accuracy(model(80), answers(1 / 3, few), few)  # 47 points below, with six images
    assert "0.0 %" in problem(answers(0, LABELS[:30]), LABELS[:30])


@pytest.mark.parametrize("expected", [None, 0.0])
def test_without_an_expectation_nothing_is_checked(expected):
    check_accuracy(model(expected), answers(0.0), LABELS)


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0.1, 100))
def test_what_is_refused_is_far_below_and_improbable(n, accuracy, expected):
    labels = LABELS[:n]
    predicted = answers(accuracy, labels)
    found = (predicted == labels).mean()
    # Five standard errors, as an independent bound: Hoeffding's inequality holds for the binomial tail.
    gap = expected / 100 - found
    try:
        check_accuracy(model(expected), predicted, labels)
    except ModelError:
        assert 100 * gap > MARGIN_PERCENT
    else:
        assert 100 * gap <= MARGIN_PERCENT + 1e-9 or np.exp(-2 * n * gap**2) >= 2.9e-7


@pytest.fixture
def folders(tmp_path):
    """The scanned digits as class folders, and label maps: the right one and one shifted by three."""
    digits = Digits()
    for position, label in enumerate(digits.labels[:400]):
        path = tmp_path / "digits" / f"class-{label}" / f"{position:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.Image.save(digits.image(position), path)
    for name, shift in (("right", 0), ("permuted", 3)):
        (tmp_path / f"{name}.txt").write_text("".join(f"class-{i} {(i + shift) % 10}\n" for i in range(10)))
    return tmp_path


def attacked(folders, finished, labels: str, **changes):
    """Attack a model that was really trained, by its checkpoint."""
    images = {"source": f"folder:{folders}/digits", "labels": f"map:{folders}/{labels}.txt", "size_px": 8, "n": 100}
    entry = {
        "key": "cnn",
        "timm": "resnet18",
        "weights": f"checkpoint:{finished.dir.checkpoint('cnn')}",
        "args": {**MODELS["cnn"]["args"], "num_classes": 10},
        "data": DATA,
        "expected_top1_percent": 80,
        **changes,
    }
    study = load_study(write_study(folders / "study.toml", tiny(images=images, models=[entry])))
    run = prepare(study, folders / "run")
    attack.execute(run, Task("attack", "cnn"), lambda *_: None)
    return run


def test_a_trained_model_with_permuted_labels_is_not_attacked_until_told_to(folders, finished):
    with pytest.raises(ModelError, match="The class order is permuted") as caught:
        attacked(folders, finished, "permuted")
    assert "of 100 clean images right, 80 % were expected" in str(caught.value)
    run = open_run(folders / "run")
    assert not run.dir.adversarial("cnn").exists()
    # The way out that the message names, in the same run directory.
    run = attacked(folders, finished, "permuted", expected_top1_percent=0)
    assert run.study.model("cnn").expected_top1_percent == 0
    assert open_run(folders / "run").study == run.study
    assert run.dir.adversarial("cnn").exists()


def test_the_same_model_with_the_right_labels_is_attacked(folders, finished):
    run = attacked(folders, finished, "right")
    assert attack.is_done(run, Task("attack", "cnn"))


def test_wrong_preprocessing_of_a_trained_model(folders, finished):
    with pytest.raises(ModelError, match="expected") as caught:
        attacked(folders, finished, "right", data={**DATA, "mean": [1.5, 1.5, 1.5], "std": [0.1, 0.1, 0.1]})
    assert "The class order is permuted" not in str(caught.value)


def test_an_expectation_is_no_part_of_any_identity(folders, finished):
    """Runs that were begun before there was one stay valid, and so do results when it is changed."""
    run = attacked(folders, finished, "right")
    before = run.dir.adversarial("cnn").read_bytes()
    for expected in (0, 50.5):
        run = attacked(folders, finished, "right", expected_top1_percent=expected)
        assert attack.is_done(run, Task("attack", "cnn"))
        assert run.dir.adversarial("cnn").read_bytes() == before
    with_none = run.study.model("cnn").model_copy(update={"expected_top1_percent": None})
    assert with_none.sha256() == run.study.model("cnn").sha256()
