"""jobs/cifar10.toml and the program that makes its image folders."""

from __future__ import annotations

import importlib.util
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simhpc.stages.prepare import check
from simhpc.study import load_study

JOBS = Path(__file__).parents[2] / "jobs"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("cifar10_folders", JOBS / "cifar10_folders.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def archive(path: Path, *, test_per_class: int = 1, without: str = "", cut: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An archive as the authors', of random pixels: labels and (N, 3, 32, 32) of its first file, two of each class."""
    random = np.random.default_rng(0)
    first = None
    with tarfile.open(path, "w:gz") as tar:

        def add(name: str, content: bytes) -> None:
            if name != without:
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

        for name in (*(f"data_batch_{part}.bin" for part in range(1, 6)), "test_batch.bin"):
            per_class = test_per_class if name.startswith("test") else 2
            labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
            pixels = random.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
            records = np.concatenate([labels[:, None], pixels.reshape(len(labels), -1)], axis=1)
            first = first or (labels, pixels)
            add(name, records.tobytes()[: records.size - cut])
        add("batches.meta.txt", ("\n".join(CLASSES) + "\n\n").encode())
    return first


def test_every_image_lies_in_its_class(program, tmp_path):
    labels, pixels = archive(tmp_path / "cifar.tar.gz")
    program.main([str(tmp_path / "cifar.tar.gz"), str(tmp_path / "out")])
    assert len(list((tmp_path / "out" / "train").rglob("*.png"))) == 100
    assert len(list((tmp_path / "out" / "test").rglob("*.png"))) == 10
    for number in range(20):
        path = tmp_path / "out" / "train" / CLASSES[labels[number]] / f"{number:05d}.png"
        assert np.array_equal(np.asarray(Image.open(path)), pixels[number].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("fault", "message"), [({"without": "test_batch.bin"}, "test_batch.bin"), ({"cut": 7}, "whole number")]
)
def test_another_archive_is_refused(program, tmp_path, fault, message):
    archive(tmp_path / "cifar.tar.gz", **fault)
    with pytest.raises(SystemExit, match=message):
        program.main([str(tmp_path / "cifar.tar.gz"), str(tmp_path / "out")])


def test_the_study_is_what_its_issue_asks_for_and_every_model_can_be_built(program, tmp_path):
    archive(tmp_path / "cifar.tar.gz", test_per_class=101)
    program.main([str(tmp_path / "cifar.tar.gz"), str(tmp_path / "data" / "cifar10")])
    (tmp_path / "jobs").mkdir()
    shutil.copy(JOBS / "cifar10.toml", tmp_path / "jobs")
    study = check(load_study(tmp_path / "jobs" / "cifar10.toml"))
    entries = [(model.timm, str(model.args), str(model.training)) for model in study.models]
    assert len({timm for timm, _, _ in entries}) >= 12
    assert entries.count(entries[0]) == 3  # three initialisations
    recipes = {training for timm, _, training in entries if timm == "convnext_atto"}
    assert len(recipes) == 3
