"""Analyses of clean outputs in a run: what is read, left out and written, and that it is the same twice."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from simhpc.errors import AnalysisError, BadFileError
from simhpc.offline import inputs as analysis_inputs
from simhpc.offline import measures as analyze_measures
from simhpc.offline import suggest_ensemble as suggest
from simhpc.offline.clean_answers import clean_answers
from simhpc.offline.ensembles import analyze_ensembles
from simhpc.offline.found_clusters import clusters_of
from simhpc.rundir import Run, RunDir
from simhpc.store import predictions, similarity

KEYS = ["cnn", "convnext", "vit"]
JOINTS = {"ensembles": analyze_ensembles, "measures": analyze_measures.analyze_measures}


def inputs_of(run: Run) -> analysis_inputs.Inputs:
    matrix = similarity.load(run.dir.similarity)
    return analysis_inputs.Inputs("tiny", matrix.models, matrix.sat, run=run)


def saved_again(run: Run, key: str, **changes):
    path = run.dir.predictions(key)
    found = predictions.load(path)
    replace(found, **changes).save(path)
    return found


def test_answers_are_those_of_the_files_block_by_block(finished):
    answers = clean_answers(finished, ["vit", "cnn"])
    assert (answers.names, answers.kept, answers.num_classes, answers.problems) == (["vit", "cnn"], [0, 1], 10, [])
    held = [predictions.load(finished.dir.predictions(key)) for key in ("vit", "cnn")]
    np.testing.assert_array_equal(answers.right, [each.clean_pred == each.labels for each in held])
    whole = np.concatenate(list(answers.probabilities()), axis=1)
    np.testing.assert_array_equal(whole, [each.clean_probabilities for each in held])


def test_models_without_predictions_are_left_out_by_name(copied: Run, tmp_path):
    copied.dir.predictions("convnext").unlink()
    answers = clean_answers(copied, KEYS)
    assert (answers.names, answers.kept) == (["cnn", "vit"], [0, 2])
    assert answers.problems[0].startswith("convnext is left out: ")
    outcome = analyze_ensembles(inputs_of(copied), RunDir(tmp_path), analysis_inputs.Settings())
    assert outcome.result["models"] == ["cnn", "vit"]
    assert outcome.problems == answers.problems
    assert str(copied.dir.root) in outcome.problems[0]
    # The file says it too, wherever the run lies, and with it the report.
    assert outcome.result["notes"][0].startswith("convnext is left out: predictions/convnext.h5")
    rows = list(csv.DictReader((tmp_path / "analysis" / "ensembles.csv").open()))
    assert [row["members"] for row in rows] == ["cnn vit"]
    assert float(rows[0]["mean_sat"]) == similarity.load(copied.dir.similarity).sat[0, 2]
    copied.dir.predictions("cnn").unlink()
    with pytest.raises(AnalysisError, match="it takes the predictions of two models, there are 1; cnn is left out"):
        clean_answers(copied, KEYS)


def test_measures_say_whom_they_left_out_as_well(finished, tmp_path, monkeypatch):
    lacking = f"resnet is left out: {finished.dir.predictions('resnet')} does not exist"
    found = replace(clean_answers(finished, KEYS), problems=[lacking])
    monkeypatch.setattr(analyze_measures, "clean_answers", lambda *_: found)
    outcome = analyze_measures.analyze_measures(inputs_of(finished), RunDir(tmp_path), analysis_inputs.Settings())
    assert outcome.problems == [lacking]
    written = json.loads((tmp_path / "analysis" / "measures.json").read_text())
    assert written["notes"][0] == "resnet is left out: predictions/resnet.h5 does not exist"


def test_models_of_other_numbers_of_classes_have_no_average(copied: Run):
    held = predictions.load(copied.dir.predictions("vit"))
    saved_again(copied, "vit", clean_probabilities=np.pad(held.clean_probabilities, ((0, 0), (0, 2))))
    with pytest.raises(AnalysisError, match=r"same number of classes.*\(10: cnn, convnext; 12: vit\)"):
        clean_answers(copied, KEYS)


def test_damaged_probabilities_are_never_a_number(copied: Run):
    import h5py

    with h5py.File(copied.dir.predictions("vit"), "r+") as file:
        file["clean/probabilities"][3, 3] = 0.5
    answers = clean_answers(copied, KEYS)
    assert answers.names == ["cnn", "convnext"]
    assert "vit is left out" in answers.problems[0]
    assert "vit.h5" in answers.problems[0]


def test_probabilities_that_are_damaged_while_they_are_read_are_an_error(copied: Run):
    answers = clean_answers(copied, KEYS)
    saved_again(copied, "vit", clean_margin=np.zeros(70, dtype=np.float16))
    with pytest.raises(BadFileError, match=r"vit\.h5 was replaced while it was being read"):
        list(answers.probabilities())


@pytest.mark.parametrize("name", JOINTS)
def test_files_are_listed_begin_with_what_they_are_of_and_are_the_same_twice(finished, tmp_path, name):
    inputs = inputs_of(finished)
    one, two = (JOINTS[name](inputs, RunDir(tmp_path / root), analysis_inputs.Settings()) for root in ("one", "two"))
    made = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert sorted(path.relative_to(tmp_path / "one") for path in one.files) == made
    assert {path.suffix for path in made} == {".csv", ".json", ".svg", ".png"}
    for path in made:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
    written = json.loads((tmp_path / "one" / "analysis" / f"{name}.json").read_text())
    assert list(written)[:4] == list(analysis_inputs.made_from(inputs))
    assert analysis_inputs.made_from(inputs).items() <= written.items()
    other = JOINTS[name](inputs, RunDir(tmp_path / "other"), analysis_inputs.Settings(seed=1))
    assert other.result != two.result


def test_ensembles_of_a_run_by_hand(finished, tmp_path):
    outcome = analyze_ensembles(inputs_of(finished), RunDir(tmp_path), analysis_inputs.Settings(ensemble_sizes=(2, 3)))
    rows = {row["members"]: row for row in csv.DictReader((tmp_path / "analysis" / "ensembles.csv").open())}
    assert list(rows) == ["cnn convnext", "cnn vit", "convnext vit", "cnn convnext vit"]
    held = {key: predictions.load(finished.dir.predictions(key)) for key in KEYS}
    labels = held["cnn"].labels
    for members, row in rows.items():
        total = sum(held[key].clean_probabilities.astype(float) for key in members.split())
        accuracy = np.mean(total.argmax(axis=1) == labels)
        errors = [np.mean(held[key].clean_pred != labels) for key in members.split()]
        assert float(row["accuracy"]) == pytest.approx(accuracy)
        assert float(row["error_reduction"]) == pytest.approx(1 - (1 - accuracy) / np.mean(errors))
        of_clusters = clusters_of(inputs_of(finished), analysis_inputs.Settings()).labels
        assert int(row["n_clusters"]) == len({of_clusters[KEYS.index(key)] for key in members.split()})
    assert [each["n_possible"] for each in outcome.result["sizes"]] == [3, 1]
    assert outcome.result["n_images"] == 70


def test_measures_of_a_run(finished, tmp_path):
    outcome = analyze_measures.analyze_measures(inputs_of(finished), RunDir(tmp_path), analysis_inputs.Settings())
    rows = list(csv.DictReader((tmp_path / "analysis" / "measures.csv").open()))
    names = ["sat", "error_consistency", "disagreement", "js_divergence"]
    assert [row["measure"] for row in rows] == names * 3
    sat = similarity.load(finished.dir.similarity).sat
    assert [float(row["value"]) for row in rows if row["measure"] == "sat"] == [sat[0, 1], sat[0, 2], sat[1, 2]]
    assert all(float(row["std_error"]) >= 0 for row in rows)
    assert all(float(row["std_error"]) > 0 for row in rows if row["measure"] == "js_divergence")
    held = {key: predictions.load(finished.dir.predictions(key)) for key in KEYS}
    (differ,) = [row for row in rows if (row["a"], row["b"], row["measure"]) == ("cnn", "vit", "disagreement")]
    assert float(differ["value"]) == np.mean(held["cnn"].clean_pred != held["vit"].clean_pred)
    correlations = list(csv.DictReader((tmp_path / "analysis" / "measure_correlations.csv").open()))
    assert len(correlations) == 6
    assert {row["n_pairs"] for row in correlations} == {"3"}
    passes = {each["name"]: each["passes_per_image"] for each in outcome.result["measures"]}
    # Four steps of the attack; both directions of a pair.
    assert passes["sat"] == {"forwards_per_model": 2, "gradients_per_model": 4, "forwards_per_pair": 2}
    assert passes["js_divergence"] == {"forwards_per_model": 1, "gradients_per_model": 0, "forwards_per_pair": 0}
    assert "sat" in outcome.notes[-1]


def test_measures_that_look_inside_networks_stand_beside_the_others(finished, tmp_path, monkeypatch):
    """Where the representations stage has stored what they take; of one model it has not."""

    def stored(run, names, seed):
        value = np.array([[1.0, 0.5, np.nan], [0.5, 1.0, np.nan], [np.nan, np.nan, np.nan]])
        return {"linear_cka": (value, None, 70, 0.75, "70 forward passes per model")}

    monkeypatch.setattr(analyze_measures, "representation_measures", stored)
    outcome = analyze_measures.analyze_measures(inputs_of(finished), RunDir(tmp_path), analysis_inputs.Settings())
    last = outcome.result["measures"][-1]
    assert (last["name"], last["note"], last["n_images"]) == ("linear_cka", "70 forward passes per model", 70)
    assert last["reliability"] == 0.75
    rows = [
        row for row in csv.DictReader((tmp_path / "analysis" / "measures.csv").open()) if row["measure"] == "linear_cka"
    ]
    assert [row["value"] for row in rows] == ["0.5", "nan", "nan"]
    assert {row["std_error"] for row in rows} == {"nan"}
    of_it = [each for each in outcome.result["correlations"] if each["other"] == "linear_cka"]
    assert [(each["n_pairs"], each["rho"]) for each in of_it] == [(1, pytest.approx(math.nan, nan_ok=True))] * 4


def test_what_is_stored_of_networks_and_damaged_stops_no_other_measure(finished, tmp_path, monkeypatch):
    def stored(run, names, seed):
        raise BadFileError("representations/vit.h5 is damaged")

    monkeypatch.setattr(analyze_measures, "representation_measures", stored)
    outcome = analyze_measures.analyze_measures(inputs_of(finished), RunDir(tmp_path), analysis_inputs.Settings())
    assert outcome.problems == ["gradient cosine and CKA are left out: representations/vit.h5 is damaged"]
    assert outcome.result["notes"][0] == outcome.problems[0]
    assert [each["name"] for each in outcome.result["measures"]][-1] == "js_divergence"


def test_a_suggestion_of_a_run(finished):
    found = suggest.suggest_ensemble(finished, 2)
    assert (found["size"], found["n_images"], found["candidates"]) == (2, 70, KEYS)
    assert [choice["rule"] for choice in found["choices"]] == [
        "greedy",
        "most_accurate",
        "least_similar",
        "best_single",
    ]
    sat = similarity.load(finished.dir.similarity).sat
    pairs = {(a, b): sat[a, b] for a, b in ((0, 1), (0, 2), (1, 2))}
    least = min(pairs, key=pairs.__getitem__)
    assert found["choices"][2]["members"] == [KEYS[position] for position in least]
    assert json.loads(json.dumps(found)) == found
    assert suggest.suggest_ensemble(finished, 2) == found


def test_candidates_and_members_that_must_be(finished):
    found = suggest.suggest_ensemble(finished, 2, among=["vit", "cnn"])
    assert {*found["choices"][0]["members"]} == {"cnn", "vit"}
    found = suggest.suggest_ensemble(finished, 2, among=["vit"], include=["convnext"])
    assert found["candidates"] == ["convnext", "vit"]
    assert found["choices"][0]["members"] == ["convnext", "vit"]
    with pytest.raises(AnalysisError, match="no model 'vitt'; did you mean 'vit'"):
        suggest.suggest_ensemble(finished, 2, among=["vitt"])
    with pytest.raises(AnalysisError, match="of 3 models an ensemble can have 2 to 3 members, not 4"):
        suggest.suggest_ensemble(finished, 4)


def test_a_member_that_must_be_and_has_no_predictions(copied: Run):
    copied.dir.predictions("vit").unlink()
    with pytest.raises(AnalysisError, match=r"vit: cannot be included; vit is left out: .*vit\.h5"):
        suggest.suggest_ensemble(copied, 2, include=["vit"])
    assert suggest.suggest_ensemble(copied, 2)["problems"][0].startswith("vit is left out")
