"""Gradient cosine and CKA of a run: against the files themselves, with models missing, damaged or without features."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from damage import reseal
from tiny import execute_all

from simhpc.errors import AnalysisError, BadFileError
from simhpc.offline import representations as joint
from simhpc.offline.inputs import Settings, inputs_of_run, made_from
from simhpc.rundir import RunDir, open_run
from simhpc.stages import OPTIONAL_STAGES
from simhpc.stages.task import Task, execute_task
from simhpc.store import representations as store
from simhpc.store import similarity

FILES = {"representations.csv", "representation_pairs.csv", "representations.json"}


@pytest.fixture(scope="module")
def stored(finished, tmp_path_factory):
    """The finished run with the optional stage done, one of it as a job; read only."""
    root = tmp_path_factory.mktemp("analyzed") / "run"
    shutil.copytree(finished.dir.root, root)
    run = open_run(root)
    execute_task(str(root), "representations", "cnn")
    execute_all(run, OPTIONAL_STAGES)
    return run


def held(path: Path) -> store.Representations:
    """All that a file holds, its features as they are and not scaled."""
    header, small = store.header(path), store.load_gradients(path)
    return store.Representations(
        header.provenance,
        header.settings,
        header.features_from,
        header.forward_passes,
        header.gradient_passes,
        store.load_features(path).astype(np.float16),
        1.0,
        small.index,
        np.stack(list(store.iterate_gradients(path))),
        small.norms,
        small.noise_cosines,
    )


@pytest.fixture
def mine(stored, tmp_path):
    shutil.copytree(stored.dir.root, tmp_path / "mine")
    return open_run(tmp_path / "mine")


def analyzed(run, tmp_path, **settings):
    out = RunDir(tmp_path / "out")
    inputs = inputs_of_run(run, out)
    return inputs, joint.analyze_representations(inputs, out, Settings(**settings)), out.root / "analysis"


def rows(path):
    return list(csv.DictReader(path.open()))


def slow_gradients(run, key):
    with h5py.File(run.dir.representations(key)) as file:
        return file["gradients/values"][:].astype(float).reshape(70, -1)


def test_measures_are_those_of_the_files(stored):
    names = [model.key for model in stored.study.models]
    found = joint.representation_measures(stored, names, 0)
    assert list(found) == ["gradient_cosine", "linear_cka"]
    values, errors, n_images, _, cost = found["gradient_cosine"]
    assert n_images == 70
    gradients = {name: slow_gradients(stored, name) for name in names}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        one, two = gradients[names[a]], gradients[names[b]]
        cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
        assert values[a, b] == values[b, a] == pytest.approx(cosines.mean(), abs=1e-5)
        assert errors[a, b] == pytest.approx(cosines.std(ddof=1) / math.sqrt(70), rel=1e-3)
    assert cost.startswith("210 gradient passes per model (70 images, each with two noisy copies); both store 0.1 MiB")
    values, errors, n_images, _, cost = found["linear_cka"]
    assert n_images == 70
    assert ((values > 0) & (values < 1.00001)).all()
    assert (errors[~np.eye(3, dtype=bool)] > 0).all()
    assert cost.startswith("70 forward passes per model")


def test_measures_of_other_models_and_orders(stored):
    names = ["vit", "cnn"]
    whole = joint.representation_measures(stored, ["cnn", "convnext", "vit"], 0)
    for name, (values, errors, *_) in joint.representation_measures(stored, names, 0).items():
        assert values[0, 1] == pytest.approx(whole[name][0][0, 2], abs=1e-6)
        assert errors[0, 1] == pytest.approx(whole[name][1][0, 2], abs=1e-6)


def test_everything_is_written_and_said(stored, tmp_path):
    inputs, outcome, folder = analyzed(stored, tmp_path)
    assert {path.name for path in outcome.files} == FILES | {"representations.svg", "representations.png"}
    assert all(path.exists() for path in outcome.files)
    result = json.loads((folder / "representations.json").read_text())
    assert made_from(inputs).items() <= result.items()
    assert outcome.notes == result["notes"] == []
    assert result["models"] == inputs.names
    for name, (*_, reliability, _) in joint.representation_measures(stored, inputs.names, 0).items():
        assert reliability == result["noise"][name]["reliability"]
    assert result["settings"]["stored"] == {"n_gradients": 100, "noise_std_255": 1.0}
    for name, n_images in (("gradient_cosine", 70), ("linear_cka", 70), ("sat", 70)):
        noise = result["noise"][name]
        assert (noise["n_pairs"], noise["n_images"]) == (3, n_images)
        assert noise["reliability"] <= 1
        assert noise["error"] > 0
    assert result["noise"]["sat"]["mean"] == pytest.approx(inputs.sat[np.triu_indices(3, 1)].mean())
    single = result["single_image_cosines"]
    assert list(single) == ["q05", "q25", "q50", "q75", "q95"]
    assert list(single.values()) == sorted(single.values())
    cnn, convnext, _ = rows(folder / "representations.csv")
    assert (cnn["model"], cnn["n_features"], cnn["gradient_passes"]) == ("cnn", "16", "210")
    assert 0.8 < float(cnn["noise_cosine_mean"]) < 1
    assert float(cnn["elapsed_s"]) > 0
    assert convnext["elapsed_s"] == "nan"  # not done as a job: nobody knows
    assert int(cnn["stored_bytes"]) == stored.dir.representations("cnn").stat().st_size
    pairs = rows(folder / "representation_pairs.csv")
    assert [(row["a"], row["b"]) for row in pairs] == [("cnn", "convnext"), ("cnn", "vit"), ("convnext", "vit")]
    measures = joint.representation_measures(stored, inputs.names, 0)
    assert float(pairs[0]["gradient_cosine"]) == measures["gradient_cosine"][0][0, 1]
    assert float(pairs[2]["linear_cka_std_error"]) == measures["linear_cka"][1][1, 2]
    one, two = slow_gradients(stored, "cnn"), slow_gradients(stored, "vit")
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert float(pairs[1]["gradient_cosine_image_q05"]) == pytest.approx(np.quantile(cosines, 0.05), abs=1e-5)
    assert float(pairs[1]["gradient_cosine_image_std"]) == pytest.approx(cosines.std(ddof=1), abs=1e-5)


def test_the_same_again_gives_the_same_bytes(stored, tmp_path):
    for name in ("one", "two"):
        joint._computed.cache_clear()
        analyzed(stored, tmp_path / name)
    for path in (tmp_path / "one").rglob("representation*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_sat_of_halves_scatters_about_sat(stored):
    names = ["vit", "cnn"]
    found = joint.sat_halves(stored, names, 5)
    assert found.shape[1:] == (2, 2, 2)
    matrix = similarity.load(stored.dir.similarity)
    at = [matrix.models.index(name) for name in names]
    # Halves hold every image as often as the whole, but for the logarithm.
    assert np.log(np.exp(found[:, :, 0, 1]).mean()) == pytest.approx(matrix.sat[at[0], at[1]], abs=0.15)
    assert not np.array_equal(found[:, 0, 0, 1], found[:, 1, 0, 1])


def test_without_predictions_the_reliability_of_sat_is_unknown(mine, tmp_path):
    shutil.rmtree(mine.dir.predictions("cnn").parent)
    _, outcome, _ = analyzed(mine, tmp_path)
    assert math.isnan(outcome.result["noise"]["sat"]["reliability"])
    assert outcome.result["noise"]["linear_cka"]["reliability"] > 0


def test_models_of_which_nothing_is_stored_are_left_out(mine, tmp_path):
    mine.dir.representations("convnext").unlink()
    _, outcome, folder = analyzed(mine, tmp_path)
    assert outcome.notes == ["left out, as nothing is stored of them: convnext"]
    assert [row["model"] for row in rows(folder / "representations.csv")] == ["cnn", "vit"]
    values, errors, *_ = joint.representation_measures(mine, ["cnn", "convnext", "vit"], 0)["linear_cka"]
    assert np.isnan(values[1]).all()
    assert np.isnan(errors[:, 1]).all()
    assert np.isfinite(values[0, 2])
    # Two models are one pair: there is nothing that it could differ from.
    assert outcome.result["noise"]["sat"]["n_pairs"] == 1
    assert math.isnan(outcome.result["noise"]["sat"]["reliability"])


def test_with_nothing_stored_it_is_not_done_and_one_alone_is_too_few(finished, mine, tmp_path):
    _, outcome, folder = analyzed(finished, tmp_path)
    assert (outcome.files, outcome.result) == ([], {})
    assert outcome.notes[0].startswith("not done: simhpc run STUDY --stages representations")
    assert not list(folder.glob("representation*"))
    assert joint.representation_measures(finished, ["cnn", "vit"], 0) == {}
    for key in ("cnn", "vit"):
        mine.dir.representations(key).unlink()
    with pytest.raises(AnalysisError, match="of two models or more .* nothing is stored of them: cnn, vit"):
        analyzed(mine, tmp_path / "one")
    assert joint.representation_measures(mine, ["cnn", "vit"], 0) == {}


def test_a_damaged_file_is_left_out_or_named(mine, tmp_path):
    path = mine.dir.representations("convnext")
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    _, outcome, _ = analyzed(mine, tmp_path)
    (problem,) = outcome.problems
    assert problem.startswith(f"left out: {path} is truncated, damaged or was edited")
    assert outcome.notes == []
    assert outcome.result["notes"] == [problem.replace(f"{mine.dir.root}/", "")]
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file["gradients/values"][3] = 0.5
        file.attrs["content_sha256"] = "another"
    reseal(path)
    with pytest.raises(BadFileError, match=r"convnext\.h5: the data of 'gradients/values' do not match"):
        analyzed(mine, tmp_path / "again")


def test_a_model_without_features_or_gradients_is_unknown_in_one_measure_only(mine, tmp_path):
    path = mine.dir.representations("convnext")
    nothing = np.empty((70, 0), dtype=np.float16)
    replace(held(path), features_from="none: it runs no linear layer", forward_passes=0, features=nothing).save(path)
    path = mine.dir.representations("vit")
    whole = held(path)
    gradients = whole.gradients.copy()
    gradients[:5] = 0
    replace(
        whole,
        gradients=gradients,
        norms=np.where(np.arange(70) < 5, 0, whole.norms).astype(np.float32),
        noise_cosines=np.where(np.arange(70) < 5, np.nan, whole.noise_cosines).astype(np.float32),
    ).save(path)
    _, outcome, folder = analyzed(mine, tmp_path)
    assert outcome.notes == ["CKA is unknown for models whose penultimate features are not known: convnext"]
    by_pair = {(row["a"], row["b"]): row for row in rows(folder / "representation_pairs.csv")}
    assert by_pair["cnn", "convnext"]["linear_cka"] == "nan"
    assert by_pair["cnn", "convnext"]["gradient_cosine"] != "nan"
    assert by_pair["cnn", "vit"]["linear_cka"] != "nan"
    assert outcome.result["noise"]["linear_cka"]["n_pairs"] == 1
    assert outcome.result["images_without_gradient"] == 5
    one, two = slow_gradients(mine, "cnn")[5:], gradients[5:].astype(float).reshape(65, -1)
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert float(by_pair["cnn", "vit"]["gradient_cosine"]) == pytest.approx(cosines.mean(), abs=1e-5)


def test_gradients_of_other_images_are_refused(mine, tmp_path):
    path = mine.dir.representations("vit")
    with h5py.File(path, "r+") as file:
        index = file["gradients/index"]
        index[:] = index[:] - np.arange(70) + np.r_[np.arange(69), 69]
    reseal(path)
    whole = held(path)
    fewer = {name: getattr(whole, name)[:-1] for name in ("index", "gradients", "norms", "noise_cosines")}
    replace(whole, **fewer).save(path)
    with pytest.raises(BadFileError, match=r"vit\.h5 has gradients of other images than .*cnn\.h5"):
        analyzed(mine, tmp_path)


def test_from_the_command_line(mine, tmp_path, simhpc):
    code, out, err = simhpc("analyze", mine.dir.root, "--out", tmp_path / "out", "--json")
    summary = json.loads(out)
    assert summary["representations"]["noise"]["linear_cka"]["n_images"] == 70
    assert "representations ..." in err
    assert code == (1 if summary["problems"] else 0)
    assert not any("representations" in problem for problem in summary["problems"])
    assert similarity.load(mine.dir.similarity).models == summary["representations"]["models"]


def test_a_job_of_it_is_told_by_status_only_when_it_was_asked_for(mine, finished, simhpc):
    _, out, _ = simhpc("status", finished.dir.root, "--json")
    assert {entry["stage"] for entry in json.loads(out)["stages"]} == {"train", "attack", "evaluate", "aggregate"}
    _, out, _ = simhpc("status", mine.dir.root, "--json")
    found = json.loads(out)
    (mine_stage,) = [entry for entry in found["stages"] if entry["stage"] == "representations"]
    assert (mine_stage["n_tasks"], mine_stage["counts"]["done"]) == (3, 3)
    assert Task("representations", "vit") in {Task(task["stage"], task["model"]) for task in found["tasks"]}
