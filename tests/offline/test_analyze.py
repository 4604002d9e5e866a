"""Analyses of a run and of files: what is written, what is left out and said, and that one stops no other."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from simhpc.analysis import clusters as clustering
from simhpc.analysis import importance as regression
from simhpc.errors import AnalysisError, MissingInputError, ModelError
from simhpc.offline import analyze as stage
from simhpc.offline import inputs as analysis_inputs
from simhpc.rundir import Run, RunDir
from simhpc.stages import aggregate
from simhpc.store import named_csv, similarity
from simhpc.study import Boosting
from simhpc.zoo.components import COLUMNS

OF_ALL = ("importance", "clusters", "strategies")
TABLES = {f"{name}.{suffix}" for name in OF_ALL for suffix in ("csv", "json")} | {"coassignment.csv"}
FIGURES = {f"{name}.{suffix}" for name in OF_ALL for suffix in ("svg", "png")}
NOTHING_TO_COMPARE = "strategies: all pairs differ in architecture: there is nothing to compare them with"


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """The paper's 500 stages are of no use to nine models."""
    fast, boosting = replace(regression.Settings(), repeats=2, resamples=100), regression.Boosting(stages=20)
    monkeypatch.setattr(stage.regression, "Settings", lambda **options: replace(fast, **options))
    monkeypatch.setattr(stage.regression, "Boosting", lambda **options: replace(boosting, **{**options, "stages": 20}))
    few = clustering.Settings(runs=10, starts=3, most=6)
    monkeypatch.setattr(stage.clustering, "Settings", lambda **options: replace(few, **options))


def planted(m=12):
    group = np.arange(m) * 3 // m
    noise = np.random.default_rng(0).normal(0, 0.1, (m, m))
    sat = np.where(group[:, None] == group, 3.5, 1.5) + (noise + noise.T) / 2
    names = [f"model-{k}" for k in range(m)]
    components = {name: [f"base {g}", f"norm {k % 2}"] for k, (name, g) in enumerate(zip(names, group, strict=True))}
    return analysis_inputs.Inputs("planted", names, sat, ["Base", "Norm"], components)


def analyzed(inputs, root, **settings):
    begun = []
    summary = stage.analyze(inputs, RunDir(root), analysis_inputs.Settings(**settings), begun.append)
    return summary, begun


def without_a_run(notes):
    """The notes but for those of what is not done without the predictions of a run."""
    return [note for note in notes if "needs the predictions of a run" not in note]


def files(root, folder):
    return {path.name for path in (root / folder).glob("*")}


def test_everything_is_written_and_listed(tmp_path):
    summary, begun = analyzed(planted(), tmp_path)
    assert begun == list(OF_ALL)
    also = {"cluster_components.csv", "components.csv"}
    assert files(tmp_path, "analysis") == TABLES | also
    assert files(tmp_path, "figures") == FIGURES
    assert {path.rpartition("/")[2] for path in summary["files"]} == TABLES | also | FIGURES
    assert summary["problems"] == []
    assert without_a_run(summary["notes"]) == [NOTHING_TO_COMPARE]
    assert summary["importance"]["ranking"][0] == "Base"
    assert summary["clusters"]["n_clusters"] == 3
    for each in summary["clusters"]["clusters"]:
        assert each["set_apart_by"] == [f"Base=base {each['cluster'] - 1}"]
        assert len(each["models"]) == 4
    for name in OF_ALL:
        assert json.loads((tmp_path / "analysis" / f"{name}.json").read_text()) == summary[name]
        assert analysis_inputs.made_from(planted()).items() <= summary[name].items()
    words = list(csv.DictReader((tmp_path / "analysis" / "cluster_components.csv").open()))
    assert (words[0]["component"], words[0]["value"], words[0]["share_in_cluster"]) == ("Base", "base 0", "1.0")
    assert float(words[0]["tf_idf"]) == pytest.approx(np.log(3))
    kept = named_csv.read_table(tmp_path / "analysis" / "components.csv")
    assert (kept.columns, kept.rows) == (planted().columns, planted().components)


def test_the_same_again_gives_the_same_bytes(tmp_path):
    for root in ("one", "two"):
        analyzed(planted(), tmp_path / root)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_summaries_say_what_they_were_made_from():
    inputs = planted()
    one = analysis_inputs.made_from(inputs)
    assert one == analysis_inputs.made_from(planted())
    other = planted()
    other.sat[0, 1] = other.sat[1, 0] = 9.0
    other.components["model-3"][1] = "another"
    for key in ("similarity_sha256", "components_sha256"):
        assert one[key] != analysis_inputs.made_from(other)[key]
    assert one["created_by"].startswith("simhpc ")


def test_settings_reach_the_analyses(tmp_path):
    summary, _ = analyzed(
        planted(), tmp_path, clusters=2, encoding="value-pairs", seed=5, boosting=Boosting(max_depth=3)
    )
    assert summary["clusters"]["n_clusters"] == 2
    assert summary["clusters"]["chosen_by"] == "given"
    assert summary["clusters"]["settings"]["seed"] == summary["importance"]["settings"]["seed"] == 5
    assert summary["importance"]["settings"]["encoding"] == "value-pairs"
    assert summary["importance"]["settings"]["boosting"]["max_depth"] == 3


def test_without_components_only_what_needs_none(tmp_path):
    analyzed(planted(), tmp_path)
    inputs = replace(planted(), columns=[], components={})
    summary, begun = analyzed(inputs, tmp_path / "none")
    assert begun == ["clusters", "strategies"]
    assert files(tmp_path / "none", "analysis") == TABLES - {"importance.csv", "importance.json"}
    assert summary["problems"] == []
    assert without_a_run(summary["notes"]) == [
        "importance: not done, because it needs components of the models (--components)",
        "clusters: which components set them apart is not known without components of the models (--components)",
        NOTHING_TO_COMPARE,
    ]
    # A table of an earlier time would belong to other clusters.
    analyzed(inputs, tmp_path)
    assert not files(tmp_path, "analysis") & {"cluster_components.csv", "components.csv"}


def test_two_models_one_problem_each_and_no_crash(tmp_path):
    inputs = planted()
    two = replace(inputs, names=inputs.names[:2], sat=inputs.sat[:2, :2])
    summary, _ = analyzed(two, tmp_path)
    assert [problem.partition(":")[0] for problem in summary["problems"]] == ["importance", "clusters"]
    assert {path.rpartition("/")[2].partition(".")[0] for path in summary["files"]} == {"strategies", "components"}


def test_an_analysis_that_cannot_be_done_stops_no_other(tmp_path):
    """Unknown pairs everywhere leave no complete models to cluster, but pairs to explain."""
    inputs = planted()
    inputs.sat[:6, :6] = inputs.sat[6:, 6:] = np.nan
    summary, _ = analyzed(inputs, tmp_path)
    assert summary["importance"]["n_pairs"] == 36
    assert len(summary["problems"]) == 1
    assert summary["problems"][0].startswith("clusters: it takes 3 models whose similarities are all known")


def test_what_was_damaged_and_done_without_is_a_problem_of_its_analysis(copied: Run, tmp_path):
    copied.dir.predictions("vit").write_bytes(b"damaged")
    matrix = similarity.load(copied.dir.similarity)
    inputs = analysis_inputs.Inputs("tiny", matrix.models, matrix.sat, run=copied)
    summary, _ = analyzed(inputs, tmp_path / "out")
    assert summary["ensembles"]["models"] == ["cnn", "convnext"]
    (problem,) = [line for line in summary["problems"] if line.startswith("ensembles: ")]
    assert problem.startswith("ensembles: vit is left out: ")
    assert not any(line.startswith("ensembles: vit") for line in summary["notes"])


def test_models_without_similarity_or_components_are_named(tmp_path):
    inputs = planted()
    inputs.sat[3] = inputs.sat[:, 3] = np.nan
    del inputs.components["model-7"]
    summary, _ = analyzed(inputs, tmp_path)
    assert summary["importance"]["models_left_out"] == ["model-7"]
    assert summary["importance"]["n_pairs"] == 10 * 9 / 2
    assert summary["clusters"]["models_left_out"] == ["model-3"]
    assert any("left out, because some of their similarities are unknown: model-3" in note for note in summary["notes"])
    members = [model for each in summary["clusters"]["clusters"] for model in each["models"]]
    assert set(members) == {*inputs.names} - {"model-3"}


def test_too_many_clusters_are_refused_before_anything_is_done(tmp_path):
    with pytest.raises(AnalysisError, match="12 models can be put in 2 to 11 clusters, not in 12"):
        analyzed(planted(), tmp_path / "none", clusters=12)
    assert not (tmp_path / "none").exists()


def test_a_run_and_its_components(copied: Run, monkeypatch):
    inputs = analysis_inputs.inputs_of_run(copied, copied.dir)
    assert inputs.title == "tiny"
    assert inputs.columns == list(COLUMNS)
    assert inputs.components["cnn"][0] == "CNN"
    assert inputs.components["vit"][0] == "Transformer"
    assert inputs.problems == []
    before = copied.dir.heatmap.read_bytes()
    summary, _ = analyzed(inputs, copied.dir.root)
    assert summary["problems"] == []
    assert summary["models"] == 3
    assert {"ensembles", "measures"} < set(summary)
    # The heatmap now has the families' colours, and keeps them when the matrix is made again.
    coloured = copied.dir.heatmap.read_bytes()
    assert coloured != before
    aggregate.execute(copied, aggregate.tasks(copied)[0], lambda *_: None)
    assert copied.dir.heatmap.read_bytes() == coloured
    # What stands in the file is believed, and nothing is built for it.
    cache = copied.dir.analysis("components.csv")
    cache.write_text(cache.read_text().replace("Transformer", "Mine"))
    monkeypatch.setattr(analysis_inputs, "_read_model", lambda model: pytest.fail("was read again"))
    assert analysis_inputs.inputs_of_run(copied, copied.dir).components["vit"][0] == "Mine"


def test_only_models_that_the_file_lacks_are_read(copied: Run, monkeypatch):
    read = []
    monkeypatch.setattr(analysis_inputs, "_read_model", lambda model: read.append(model.key) or ["x"] * 13)
    analysis_inputs.inputs_of_run(copied, copied.dir)
    assert read == ["cnn", "convnext", "vit"]
    cache = copied.dir.analysis("components.csv")
    cache.write_text("".join(line for line in cache.read_text().splitlines(True) if not line.startswith("vit")))
    analysis_inputs.inputs_of_run(copied, copied.dir)
    assert read[3:] == ["vit"]
    cache.write_text("name,Base\ncnn,CNN\n")
    inputs = analysis_inputs.inputs_of_run(copied, copied.dir)
    assert inputs.components == {"cnn": ["CNN"]}
    assert "components of convnext, vit are unknown" in inputs.problems[0]
    assert "has other columns than are read here" in inputs.problems[0]
    cache.write_text("name,Base\ncnn\n")
    inputs = analysis_inputs.inputs_of_run(copied, copied.dir)
    assert (inputs.columns, inputs.components) == ([], {})
    assert "components.csv: line 2 has 1 cells, the header has 2; mend or delete it" in inputs.problems[0]


def test_a_model_that_cannot_be_read_is_left_out_and_tried_again(copied: Run, monkeypatch):
    def fail(model):
        if model.key == "vit":
            raise ModelError("vit cannot be read: why")
        return [model.key] * 13

    monkeypatch.setattr(analysis_inputs, "_read_model", fail)
    inputs = analysis_inputs.inputs_of_run(copied, copied.dir)
    assert inputs.problems == ["components of vit are unknown: vit cannot be read: why"]
    assert set(inputs.components) == {"cnn", "convnext"}
    summary, _ = analyzed(inputs, copied.dir.root)
    assert summary["clusters"]["n_clusters"] == 2
    monkeypatch.setattr(analysis_inputs, "_read_model", lambda model: ["later"] * 13)
    assert analysis_inputs.inputs_of_run(copied, copied.dir).components["vit"] == ["later"] * 13


def test_a_network_of_ones_own_is_read_from_what_its_function_returns(tmp_path):
    from simhpc.study import Model

    (tmp_path / "mine_to_analyze.py").write_text(
        "import timm\ndef build(num_classes=10):\n    return timm.create_model('resnet10t', num_classes=num_classes)\n"
    )
    model = Model.model_validate({"key": "mine", "module": "mine_to_analyze:build", "module_folder": str(tmp_path)})
    assert analysis_inputs._read_model(model)[:4] == ["CNN", "Yes", "3s2/3/3", "176 x 176"]


def test_a_table_in_place_of_reading(copied: Run, tmp_path, monkeypatch):
    monkeypatch.setattr(analysis_inputs, "_read_model", lambda model: pytest.fail("was read"))
    table = tmp_path / "table.csv"
    table.write_text("name,Base\nvit,ViT\ncnn,CNN\nconvnext,CNN\nother,MLP\n")
    inputs = analysis_inputs.inputs_of_run(copied, copied.dir, table)
    assert (inputs.columns, inputs.components) == (["Base"], {"cnn": ["CNN"], "convnext": ["CNN"], "vit": ["ViT"]})
    table.write_text("name,Base\nvit,ViT\ncnn,CNN\n")
    inputs = analysis_inputs.inputs_of_run(copied, copied.dir, table)
    assert inputs.components == {"cnn": ["CNN"], "vit": ["ViT"]}
    assert inputs.problems == [f"{table} has no row for 'convnext': what needs components is done without them"]


def test_a_run_without_a_matrix_says_what_makes_one(copied: Run):
    copied.dir.similarity.unlink()
    with pytest.raises(MissingInputError, match="run `simhpc aggregate` first"):
        analysis_inputs.inputs_of_run(copied, copied.dir)


@pytest.mark.parametrize(
    ("cells", "note"),
    [
        ([[90, 40, 3], [40, 90, 2], [3, 2, 90]], "the largest similarity is 90, and no SAT is above ln 100 = 4.605"),
        ([[0, 2, 3], [2, 0, 1], [3, 1, 0]], "are these distances?"),
    ],
)
def test_a_matrix_that_looks_like_something_else_is_told(tmp_path, cells, note):
    path = tmp_path / "m.csv"
    rows = [["", "a", "b", "c"], *([name, *map(str, row)] for name, row in zip("abc", cells, strict=True))]
    path.write_text("\n".join(map(",".join, rows)))
    (found,) = analysis_inputs.inputs_of_files(path, None).notes
    assert note in found


def test_degenerate_matrices_are_done_as_far_as_they_can_be(tmp_path):
    nothing = np.full((5, 5), np.nan)
    one = planted(5)
    for name, sat in (("unknown", nothing), ("equal", np.full((5, 5), 3.0)), ("alone", np.eye(5) * 4.6)):
        summary, _ = analyzed(replace(one, sat=sat), tmp_path / name)
        done = [each for each in OF_ALL if each in summary]
        assert len(summary["problems"]) == (3 if name == "unknown" else 0)
        assert done == ([] if name == "unknown" else list(OF_ALL))
    one_family = {key: ["CNN", "BN"] for key in one.names}
    summary, _ = analyzed(replace(one, components=one_family), tmp_path / "family")
    assert summary["problems"] == []
    assert any("one value in all models" in note for note in summary["notes"])
