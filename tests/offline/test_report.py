"""The report of a run: what is shown is of this very matrix, what is not says why, and nothing breaks on gaps."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from report.html_page import Page
from report.synthetic import EPS, synthetic_run

from simhpc.errors import MissingInputError
from simhpc.offline import analyze
from simhpc.offline import report as stage
from simhpc.offline.inputs import Settings, inputs_of_files, inputs_of_run, keep_components
from simhpc.report.page import document
from simhpc.rundir import RunDir, open_run
from simhpc.stages import aggregate
from simhpc.store import similarity
from simhpc.study import Boosting


def analyzed(run, only=("importance", "clusters")):
    """The run's analyses, with a regression that is fast."""
    settings = Settings(boosting=Boosting(stages=5, max_depth=2))
    inputs = inputs_of_run(run, run.dir)
    for name in only:
        analyze.ANALYSES[name](inputs, run.dir, settings)
    return inputs


def page_of(run):
    made = stage.write(run, run.dir.report)
    return made, Page(run.dir.report.read_text(encoding="utf-8"))


def sections(made):
    return {name for name, state in made["sections"].items() if state == "shown"}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Twelve of the paper's models with a made-up matrix, analysed. Read only."""
    run = synthetic_run(tmp_path_factory.mktemp("planted") / "run", n_models=12, n_attacked=3)
    analyzed(run)
    return run


def test_a_run_that_was_analysed(planted, tmp_path):
    made = stage.write(planted, tmp_path / "page.html")
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(source)
    assert made["bytes"] == len(source.encode())
    assert made["problems"] == []
    assert {"importance", "clusters"} <= sections(made)
    matrix = similarity.load(planted.dir.similarity)
    between = np.where(np.eye(12, dtype=bool), np.nan, matrix.sat)
    a, b = np.unravel_index(np.nanargmax(between), between.shape)
    facts = page.facts("summary")
    assert facts["most alike"] == f"{matrix.models[a]} and {matrix.models[b]} (SAT {between[a, b]:.2f})"
    assert facts["models"] == "12"
    assert facts["pairs of different models"] == "66 known of 66"
    assert facts["attack"] == "pgd-linf, ε = 8/255"
    assert "R², both models held out" in page.facts("importance")
    clusters = json.loads(planted.dir.analysis("clusters.json").read_text())
    assert page.facts("clusters")["number of clusters"] == str(clusters["n_clusters"])
    figure = page.inside(page.one("section", id="importance"), "img")[0]
    assert base64.b64decode(figure["src"].split(",")[1]) == planted.dir.figure("importance.svg").read_bytes()
    had = {link["download"] for link in page.all("a") if link["download"]}
    assert had == {
        "similarity.csv", "pairs.csv", "models.csv", "components.csv", "importance.csv", "clusters.csv",
        "coassignment.csv", "cluster_components.csv",
    }  # fmt: skip


def test_orders_are_permutations_that_do_what_they_are_called(planted, tmp_path):
    stage.write(planted, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    data = json.loads(page.one("script", id="data").text)
    assert list(data["orders"]) == ["cluster", "alike side by side", "family", "accuracy", "as given"]
    assert [option["value"] for option in page.inside(page.one("select", id="order"), "option")] == list(data["orders"])
    for order in data["orders"].values():
        assert sorted(order) == list(range(12))
    models = data["models"]
    assert data["orders"]["as given"] == list(range(12))
    accuracies = [float(models[k]["accuracy"].removesuffix(" %")) for k in data["orders"]["accuracy"]]
    assert accuracies == sorted(accuracies, reverse=True)
    for name in ("cluster", "family"):
        values = [models[k][name] for k in data["orders"][name]]
        assert values == sorted(values)
        assert len(set(values)) > 1


def test_the_same_run_gives_the_same_bytes(planted, tmp_path):
    for name in ("one", "two"):
        stage.write(planted, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_attacked_images_are_those_of_the_files(planted, tmp_path):
    stage.write(planted, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    examples = page.one("section", id="examples")
    headings = [heading.text for heading in page.inside(examples, "h3")]
    # Of classes 1 to 5 four are shown, each by its first image; the first two images no model gets right.
    assert headings == [f"val-{2 * k:05d}.JPEG: class class {k}" for k in (1, 2, 4, 5)]
    cards = page.inside(examples, "figure")
    assert len(cards) == 4 * 3
    assert f"{127 // EPS} times" in examples.text
    assert "one pixel in 2" in examples.text
    clean, attacked, difference = (decoded(image["src"]) for image in page.inside(cards[0], "img"))
    assert clean.shape == (112, 112, 3)
    np.testing.assert_array_equal(difference, 128 + 127 // EPS * (attacked - clean))
    assert np.abs(attacked - clean).max() == EPS
    assert "takes the attacked image for class 2" in cards[0].text


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))).astype(int)


def test_a_finished_run_end_to_end(copied):
    """Trained, attacked and evaluated for real; not analysed."""
    made, page = page_of(copied)
    assert sections(made) == set()
    assert "simhpc analyze" in page.one("section", id="importance").text
    assert page.one("svg", id="plane")
    assert page.all("svg", id="tree") == []
    assert page.inside(page.one("section", id="examples"), "figure")
    facts = page.facts("provenance")
    assert facts["precision"] == "float32"
    assert facts["seed"] == "7"
    assert facts["images"] == "70 of sklearn-digits"
    assert facts["attack"].startswith("pgd-linf, ε = 32/255, 4 steps, step size 0.4 ε, 1 start")
    assert "torch" in facts["the run was begun with"]
    assert facts["matrix"] == page_of(copied)[1].facts("provenance")["matrix"]
    assert len(facts["image set"]) == 64


def test_an_offline_copy_has_a_report_too(copied):
    """docs/formats.md: study.toml and predictions/ are enough for the matrix; here images and attacks are gone."""
    for path in (copied.dir.images, *copied.dir.root.glob("adversarial/*.h5"), copied.dir.frozen):
        path.unlink()
    _, page = page_of(copied)
    assert page.one("section", id="examples").text.split("\n")[2] == "images.h5 is not in this run directory."
    assert page.facts("provenance")["the run was begun with"] == "unknown"


def test_without_attacks_or_with_a_damaged_one(copied):
    path = copied.dir.adversarial("cnn")
    path.write_bytes(path.read_bytes()[:1000])
    _, page = page_of(copied)
    shown = {card.text.split()[0] for card in page.inside(page.one("section", id="examples"), "figure")}
    assert shown == {"convnext", "vit"}
    for each in copied.dir.root.glob("adversarial/*.h5"):
        each.unlink()
    _, page = page_of(copied)
    text = page.one("section", id="examples").text
    assert "There are no attacked images here: adversarial/" in text
    assert str(copied.dir.root) not in text


def test_analyses_of_another_matrix_are_not_shown(tmp_path):
    run = synthetic_run(tmp_path / "run", n_models=6, n_attacked=0)
    analyzed(run, ["clusters"])
    made, page = page_of(run)
    assert page.one("svg", id="tree")
    assert page.facts("clusters")
    matrix = similarity.load(run.dir.similarity)
    matrix.sat[0, 1] = matrix.sat[1, 0] = 4.0
    matrix.save(run.dir.similarity)
    made, page = page_of(run)
    assert made["sections"]["clusters"].startswith("Out of date: of another matrix")
    assert page.all("svg", id="tree") == []
    assert page.facts("clusters") == {}
    assert "cluster" not in [option["value"] for option in page.inside(page.one("select", id="order"), "option")]


def test_an_analysis_of_other_components_is_not_shown(tmp_path):
    run = synthetic_run(tmp_path / "run", n_models=6, n_attacked=0)
    analyzed(run, ["importance"])
    assert "importance" in sections(page_of(run)[0])
    table = run.dir.analysis("components.csv")
    table.write_text(table.read_text().replace(",BN,", ",GN,"))
    made, page = page_of(run)
    assert made["sections"]["importance"].startswith("Out of date: with other components of the models than now.")
    assert page.facts("importance") == {}


def test_a_table_that_was_given_is_the_one_of_the_page(tmp_path):
    """Of a run that has a table of its own, and of a matrix that has none."""
    run = synthetic_run(tmp_path / "run", n_models=6, n_attacked=0)
    given, matrix = tmp_path / "mine.csv", tmp_path / "matrix.csv"
    keys = similarity.load(run.dir.similarity).models
    lines = [f"{key},{kind},{k % 3}" for k, (key, kind) in enumerate(zip(keys, 3 * ["old", "new"], strict=True))]
    given.write_text("\n".join(["name,Family,Stem", *lines, "somebody,old,1"]))
    matrix.write_bytes(run.dir.similarity_csv.read_bytes())
    fast = Settings(boosting=Boosting(stages=5, max_depth=2))
    elsewhere = RunDir(tmp_path / "matrix-analysis")
    for where, name, inputs_of, made_of in (
        (
            run.dir,
            "components_given.csv",
            lambda csv: inputs_of_run(run, run.dir, csv),
            lambda: stage.write(run, run.dir.report),
        ),
        (
            elsewhere,
            "components.csv",
            lambda csv: inputs_of_files(matrix, csv),
            lambda: stage.write_of_files(matrix, elsewhere.root, elsewhere.report),
        ),
    ):
        keep_components(inputs_of(given), where)
        analyze.ANALYSES["importance"](inputs_of(given), where, fast)
        assert "importance" in sections(made_of())
        page = Page(where.report.read_text(encoding="utf-8"))
        assert [model["family"] for model in json.loads(page.one("script", id="data").text)["models"]] == 3 * [
            "old",
            "new",
        ]
        had = {link["download"] for link in page.all("a") if link["download"]}
        assert had & {"components_given.csv", "components.csv"} == {name}
        assert "somebody" not in where.analysis(name).read_text()
        # Without it, what it was needed for is no longer of what is shown.
        keep_components(inputs_of(None), where)
        assert not where.analysis(name).exists()
        assert made_of()["sections"]["importance"].startswith("Out of date: with other components")


def test_an_analysis_that_nothing_is_known_of_appears(tmp_path):
    run = synthetic_run(tmp_path / "run", n_models=6, n_attacked=0)
    inputs = analyzed(run, ["clusters"])
    made_from = json.loads(run.dir.analysis("clusters.json").read_text())["similarity_sha256"]
    assert made_from
    assert inputs.names
    (tmp_path / "run" / "analysis" / "new_thing.json").write_text(
        json.dumps({"similarity_sha256": made_from, "best_score": 0.5, "rows": [{"a": 1}], "notes": ["so <b>so</b>"]})
    )
    (tmp_path / "run" / "analysis" / "new_thing.csv").write_text("a\n1\n")
    made, page = page_of(run)
    assert made["sections"]["new_thing"] == "shown"
    section = page.one("section", id="new_thing")
    assert page.facts("new_thing") == {"best score": "0.5"}
    assert page.inside(section, "h2")[0].text == "New thing"
    assert "so <b>so</b>" in section.text
    assert [link["download"] for link in page.inside(section, "a")] == ["new_thing.csv"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '"text"', b"\xff\xfe", '{"similarity_sha256": "SHA", "tree": 3}', '{"similarity_sha256": "SHA"}'],
)
def test_damaged_clusters_are_told_and_stop_nothing(tmp_path, text):
    run = synthetic_run(tmp_path / "run", n_models=4, n_attacked=0)
    inputs = inputs_of_run(run, run.dir)
    path = run.dir.analysis("clusters.json")
    if isinstance(text, str):
        text = text.replace("SHA", stage.made_from(inputs)["similarity_sha256"]).encode()
    path.write_bytes(text)
    made, page = page_of(run)
    assert (
        made["sections"]["clusters"] == "analysis/clusters.json is not what simhpc writes: delete it and make it again."
    )
    assert page.one("svg", id="plane")


def test_unknown_pairs_and_problems_are_shown(tmp_path):
    run = synthetic_run(tmp_path / "run", n_models=5, n_attacked=0)
    matrix = similarity.load(run.dir.similarity)
    matrix.sat[1] = matrix.sat[:, 1] = np.nan
    matrix.problems.append("predictions/x.h5 does not exist")
    matrix.save(run.dir.similarity)
    made, page = page_of(run)
    assert made["problems"] == ["predictions/x.h5 does not exist"]
    assert "predictions/x.h5 does not exist" in page.one("section", id="summary").text
    assert page.facts("summary")["pairs of different models"] == "6 known of 10"


def test_folders_of_this_machine_are_not_passed_on(planted, tmp_path):
    stage.write(planted, tmp_path / "page.html")
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert planted.study.images.source.startswith("folder:/")
    assert planted.study.images.source not in source
    assert str(planted.dir.root) not in source
    assert "folder:val" in source


def test_what_null_means_is_said(tmp_path):
    """Where no number was asked for it is not `unknown`."""
    run = synthetic_run(tmp_path / "run", n_models=6, n_attacked=0)
    analyzed(run, ["clusters"])
    _, page = page_of(run)
    assert page.facts("clusters")["clusters"] == "not given"


@pytest.mark.parametrize(
    ("name", "also"), [("reliability", "reliability_widths"), ("distillation", "distillation_correlations")]
)
def test_all_tables_of_an_analysis_can_be_had(tmp_path, name, also):
    run = synthetic_run(tmp_path / "run", n_models=4, n_attacked=0)
    sha256 = stage.made_from(inputs_of_run(run, run.dir))["similarity_sha256"]
    run.dir.analysis(f"{name}.json").write_text(json.dumps({"similarity_sha256": sha256}))
    for table in (name, also):
        run.dir.analysis(f"{table}.csv").write_text("a\n1\n")
    _, page = page_of(run)
    links = page.inside(page.one("section", id=name), "a")
    assert [link["download"] for link in links] == [f"{name}.csv", f"{also}.csv"]


@pytest.mark.parametrize(
    ("told", "passed_on"),
    [
        ("/work/her/runs/other", "other"),
        ("weights: here 'checkpoint:/data/nets/a.pt', there 'train'", "weights: here 'checkpoint:a.pt', there 'train'"),
        ("left out: /a/b/predictions/x.h5 is damaged", "left out: predictions/x.h5 is damaged"),
        ("eps_255: here 8/255, there 4/255; conv/patch/mlp and N/A", None),
        ("runs/other of a / b", None),
        ("https://example.org/a/b", None),
    ],
)
def test_folders_in_what_analyses_say_are_not_passed_on_either(tmp_path, told, passed_on):
    run = synthetic_run(tmp_path / "run", n_models=4, n_attacked=0)
    sha256 = stage.made_from(inputs_of_run(run, run.dir))["similarity_sha256"]
    written = {"similarity_sha256": sha256, "said": told, "rows": [{"a": [told]}], "notes": [told]}
    run.dir.analysis("new_thing.json").write_text(json.dumps(written))
    _, page = page_of(run)
    expected = told if passed_on is None else passed_on
    assert page.facts("new_thing")["said"] == expected
    section = page.one("section", id="new_thing")
    assert [cell.text for cell in page.inside(section, "td")] == [expected]
    assert expected in page.inside(section, "li")[0].text
    assert section.text.count(told) == (0 if passed_on else 3)


def test_problems_of_the_matrix_name_files_without_the_folder_of_the_run(copied):
    copied.dir.predictions("vit").unlink()
    aggregate.execute(copied, aggregate.tasks(copied)[0], lambda *_: None)
    matrix = similarity.load(copied.dir.similarity)
    matrix.problems.append("/scratch/her/run/predictions/cnn.h5 does not cover vit: run the evaluate stage")
    matrix.save(copied.dir.similarity)
    made, page = page_of(copied)
    assert made["problems"][0].startswith("predictions/vit.h5 does not exist")
    assert made["problems"][1] == "predictions/cnn.h5 does not cover vit: run the evaluate stage"
    assert "predictions/vit.h5 does not exist" in page.one("section", id="summary").text
    assert str(copied.dir.root) not in copied.dir.report.read_text(encoding="utf-8")


def test_a_run_without_a_matrix_says_what_makes_one(copied):
    copied.dir.similarity.unlink()
    with pytest.raises(MissingInputError, match="run `simhpc aggregate` first"):
        stage.write(copied, copied.dir.report)
    assert not copied.dir.report.exists()


def test_a_matrix_from_elsewhere(tmp_path):
    run = synthetic_run(tmp_path / "run", n_models=8, n_attacked=0)
    csv, out = tmp_path / "matrix.csv", RunDir(tmp_path / "matrix-analysis")
    csv.write_bytes(run.dir.similarity_csv.read_bytes())
    made = stage.write_of_files(csv, out.root, out.report)
    assert sections(made) == set()
    analyze.ANALYSES["clusters"](inputs_of_files(csv, None), out, Settings())
    made = stage.write_of_files(csv, out.root, out.report)
    assert sections(made) == {"clusters"}
    page = Page(out.report.read_text(encoding="utf-8"))
    assert page.all("h1")[0].text == "matrix"
    assert page.all("section", id="examples") == []
    data = json.loads(page.one("script", id="data").text)
    assert set(data["nFooled"]) == {-1}
    assert data["sat"][1] == similarity.load(run.dir.similarity).sat[0, 1]
    assert "matrix.csv" in {link["download"] for link in page.all("a") if link["download"]}


def test_a_matrix_from_elsewhere_has_the_families_of_its_components(tmp_path):
    """Not those that its names begin with: the figures beside it have these too."""
    run = synthetic_run(tmp_path / "run", n_models=8, n_attacked=0)
    csv, out = tmp_path / "matrix.csv", RunDir(tmp_path / "matrix-analysis")
    csv.write_bytes(run.dir.similarity_csv.read_bytes())
    inputs = inputs_of_files(csv, run.dir.analysis("components.csv"))
    analyze.keep_components(inputs, out)
    stage.write_of_files(csv, out.root, out.report)
    page = Page(out.report.read_text(encoding="utf-8"))
    data = json.loads(page.one("script", id="data").text)
    assert [model["family"] for model in data["models"]] == inputs.families
    assert set(inputs.families) <= {"CNN", "Transformer", "Hybrid", "MLP-Mixer", "NAS (CNN)", "NAS (TFM)"}
    (link,) = [each for each in page.all("a") if each["download"] == "components.csv"]
    assert link.text == "analysis/components.csv"


def test_a_matrix_from_elsewhere_says_what_it_takes(tmp_path):
    csv = tmp_path / "matrix.csv"
    csv.write_text("model,a,b,c\na,90,40,3\nb,40,90,2\nc,3,2,90\n")
    sections = stage.write_of_files(csv, tmp_path, tmp_path / "page.html")["sections"]
    for name in ("reliability", "ensembles", "measures"):
        assert sections[name] == "Not possible: it takes the predictions of a run, not only its matrix."
    assert "simhpc analyze --similarity MATRIX does it" in sections["clusters"]
    assert "simhpc analyze --similarity MATRIX --components TABLE does it" in sections["importance"]
    summary = Page((tmp_path / "page.html").read_text(encoding="utf-8")).one("section", id="summary").text
    assert "the largest similarity is 90, and no SAT is above ln 100" in summary


@pytest.mark.slow
def test_all_sixty_nine_with_images_and_analyses_are_below_10_mb(tmp_path):
    run = synthetic_run(tmp_path / "run")
    analyzed(run)
    made, page = page_of(open_run(run.dir.root))
    assert made["bytes"] < 10_000_000
    assert made["bytes"] <= document.MOST_BYTES
    assert len(page.inside(page.one("section", id="examples"), "figure")) == 24
    assert "too large" not in run.dir.report.read_text(encoding="utf-8")
