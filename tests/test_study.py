"""The study file: what it accepts, what it says when it does not, and what counts as a contradiction."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import DATA, tiny, write_study

from simhpc.errors import StudyError
from simhpc.study import differences, dump_study, load_study, parse_study

JOBS = Path(__file__).parents[1] / "jobs"


def parse(raw):
    return parse_study(raw, base=Path("/base"), where="study.toml")


def problem(raw) -> str:
    with pytest.raises(StudyError) as caught:
        parse(raw)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.toml")), ids=lambda path: path.name)
def test_studies_that_we_ship_are_valid(path):
    study = load_study(path)
    assert parse_study(tomllib.loads(dump_study(study)), base=Path("/"), where="dump") == study


def test_demo_has_the_designs_that_it_promises():
    names = {model.timm for model in load_study(JOBS / "demo.toml").models}
    assert len(names) >= 8
    assert {"resnet18", "inception_next_atto", "convnext_atto", "vit_tiny_patch16_224", "mixer_s16_224"} <= names


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sead": 3}, "sead: unknown key; did you mean 'seed'?"),
        ({"attack": {"epsilon": 8}}, "attack.epsilon: unknown key"),
        ({"attack": {"eps_255": 0}}, "whole number from 1 on"),
        ({"attack": {"eps_255": -8}}, "given: -8"),
        ({"attack": {"eps_255": 0.03}}, "8 means 8/255"),
        ({"attack": {"eps_255": True}}, "whole number"),
        ({"attack": {"steps": "50"}}, "attack.steps"),
        ({"attack": {"step_size_eps": 0}}, "attack.step_size_eps"),
        ({"attack": {"name": "../pgd"}}, "attack.name"),
        ({"attack": {"restarts": 0}}, "attack.restarts"),
        ({"attack": {"args": {"decay": "much"}}}, "attack.args.decay"),
        ({"precision": "float16"}, "'float32', 'tf32' or 'bfloat16' (given: 'float16')"),
        ({"resources": {"compile": "on"}}, "resources.compile"),
        ({"images": {"n": 0}}, "images.n: Input should be greater than or equal to 1 (given: 0)"),
        ({"images": {"source": "sklearn-digit"}}, "did you mean 'sklearn-digits'"),
        ({"images": {"source": "folder:/x"}}, "size_px is needed with a folder"),
        ({"images": {"size_px": 32}}, "8 x 8"),
        ({"images": {"labels": "alphabetical"}}, "'sorted', 'index', 'imagenet' or 'map:FILE'"),
        ({"similarity": {"floor_percent": 0.0}}, "similarity.floor_percent"),
        ({"similarity": {"floor_percent": float("nan")}}, "similarity.floor_percent"),
        ({"training": {"epochs": 0}}, "training.epochs"),
        ({"training": {"crop_scale": [1.0, 0.5]}}, "must not exceed"),
        ({"analysis": {"clusters": 1}}, "analysis.clusters: Input should be greater than or equal to 2 (given: 1)"),
        ({"analysis": {"cluster": 3}}, "analysis.cluster: unknown key; did you mean 'clusters'?"),
        ({"analysis": {"encoding": "one-hot"}}, "'same-different' or 'value-pairs' (given: 'one-hot')"),
        ({"analysis": {"boosting": {"depth": 3}}}, "analysis.boosting.depth: unknown key"),
        ({"analysis": {"boosting": {"learning_rate": 0.0}}}, "analysis.boosting.learning_rate"),
        ({"analysis": {"ensemble_sizes": [1, 2]}}, "analysis.ensemble_sizes.1"),
        ({"analysis": {"ensemble_sizes": []}}, "analysis.ensemble_sizes"),
        ({"resources": {"device": "gpu"}}, "'auto', 'cpu' or 'cuda' (given: 'gpu')"),
        ({"seed": -1}, "seed: "),
        ({"name": "../escape"}, "letters, digits"),
        ({"models": []}, "models: "),
    ],
)
def test_every_error_names_the_key_and_what_is_allowed(change, expected):
    assert expected in problem(tiny(**change))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"key": "a/b"}, "models.1.key: letters, digits"),
        ({"key": "x\ny"}, "models.1.key: letters, digits"),
        ({"key": "../up"}, "models.1.key"),
        ({"timm": "resnet18.a1_in1k"}, 'write timm = "resnet18" and weights = "pretrained:a1_in1k"'),
        ({"weights": "imagenet"}, "'train', 'pretrained:TAG', 'checkpoint:PATH' or 'random'"),
        ({"weights": "pretrained:"}, "'pretrained:TAG'"),
        ({"args": {"in_chans": 1}}, "in_chans must be 3"),
        ({"args": {"pretrained": True}}, "cannot be set here"),
        ({"args": {"features_only": True}}, "cannot be set here"),
        ({"args": {"num_classes": 0}}, "num_classes must be a whole number from 2 on"),
        ({"data": {"input_size": 32}}, "models.1.data.input_size: unknown key; did you mean 'input_size_px'?"),
        ({"data": {"std": [0.5, 0.0, 0.5]}}, "models.1.data.std.2"),
        ({"training": {"lrr": 1}}, "models.1.training.lrr: unknown key; did you mean 'lr'?"),
        ({"checkpoint_sha256": "0" * 64}, "goes with weights"),
    ],
)
def test_errors_in_a_model(model, expected):
    base = {"key": "m", "timm": "resnet18", "weights": "train", "data": DATA}
    assert expected in problem(tiny(models=[{**base, **model}]))


def strategy(**changes):
    return {"name": "inits", "differs": "initialisation", "models": ["cnn", "vit"], **changes}


@pytest.mark.parametrize(
    ("strategies", "expected"),
    [
        (
            [strategy(models=["cnn", "vitt"])],
            "strategies.1 ('inits'): the study has no model 'vitt'; did you mean 'vit'",
        ),
        ([strategy(differs="init")], "strategies.1.differs: Input should be 'initialisation', 'hyper-parameters'"),
        ([strategy(models=["cnn"])], "strategies.1.models"),
        ([strategy(models=["cnn", "vit", "cnn"])], "'cnn' is there twice"),
        ([strategy(), strategy(models=["cnn", "convnext"])], "there is another one of that name"),
        (
            [strategy(), strategy(name="all", differs="architecture", models=["vit", "convnext", "cnn"])],
            "strategies.2 ('all'): 'vit' and 'cnn' differ in architecture here and in initialisation in 'inits'",
        ),
        ([{"differs": "regime", "models": ["cnn", "vit"]}], "strategies.1.name: this key is needed"),
        ([strategy(of="x")], "strategies.1.of: unknown key; allowed: name, differs, models"),
    ],
)
def test_errors_in_strategies(strategies, expected):
    assert expected in problem(tiny(strategies=strategies))


def test_strategies_are_read_written_and_may_change():
    given = [strategy(), strategy(name="more", models=["vit", "cnn"])]
    study = parse(tiny(strategies=given))
    assert [each.models for each in study.strategies] == [("cnn", "vit"), ("vit", "cnn")]
    assert parse_study(tomllib.loads(dump_study(study)), base=Path("/"), where="dump") == study
    assert differences(parse(tiny()), study) == differences(study, parse(tiny())) == []
    assert study.settings_sha256() == parse(tiny()).settings_sha256()


def test_all_problems_are_reported_at_once_and_shared_ones_only_once():
    text = problem(tiny(training={"epochs": 0}, attack={"steps": 0}))
    assert "2 problem(s)" in text  # and not a third, that too few models are valid
    assert "training.epochs" in text
    assert "attack.steps" in text


@pytest.mark.parametrize("keys", [("Net", "net"), ("net", "net")])
def test_keys_that_would_be_one_file_are_refused(tmp_path, keys):
    models = [{"key": key, "timm": "resnet18", "weights": "train"} for key in keys]
    with pytest.raises(StudyError, match=f"two models have the keys '{keys[0]}' and '{keys[1]}'"):
        load_study(write_study(tmp_path / "study.toml", tiny(models=models)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": datetime.date(2020, 1, 1)}, "name: dates and times are not used"),
        ({"seed": float("nan")}, "seed: must be a finite number (given: nan)"),
        ({"models": {"key": "m"}}, "begins with [[models]]"),
        ({"models": ["resnet18"]}, "models.1: Input should be a table"),
        ({"training": 3}, "training: Input should be a table"),
        ({"images": [1]}, "images: "),
    ],
)
def test_wrong_kinds_of_values(change, expected):
    raw = {**tiny(), **change}
    assert expected in problem(raw)


def test_values_in_args_are_not_changed_silently():
    model = {"key": "m", "timm": "resnet18", "weights": "train", "args": {"rate": float("inf")}}
    assert "models.1.args.rate: must be a finite number" in problem(tiny(models=[model]))


def test_only_models_trained_here_have_training():
    model = {"key": "m", "timm": "resnet18", "weights": "pretrained:a1_in1k", "training": {"epochs": 1}}
    assert 'only a model with weights = "train"' in problem(tiny(models=[model]))


def test_a_model_overrides_the_shared_training():
    study = parse(tiny())
    assert [model.training.epochs for model in study.models] == [6, 6, 8]
    assert study.models[2].training.weight_decay == study.training.weight_decay


def test_relative_paths_are_relative_to_the_study_file(tmp_path):
    raw = tiny(
        images={"source": "folder:images/val", "size_px": 16, "labels": "map:labels.txt"},
        models=[{"key": "m", "timm": "resnet18", "weights": "checkpoint:../w.safetensors"}],
    )
    study = load_study(write_study(tmp_path / "sub" / "study.toml", raw))
    assert study.images.source == f"folder:{tmp_path / 'sub' / 'images' / 'val'}"
    assert study.images.labels == f"map:{tmp_path / 'sub' / 'labels.txt'}"
    assert study.models[0].checkpoint_path.resolve() == tmp_path / "w.safetensors"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name = ", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "this key is needed"),
        (b"\xef\xbb\xbf", "this key is needed"),  # a byte-order mark, as Windows editors write
        (b"a = " + b"[" * 5000, "not valid TOML"),
        (b"a = " + b"9" * 5001, "not valid TOML"),
    ],
)
def test_unreadable_files(tmp_path, content, expected):
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=expected):
        load_study(path)


def test_missing_file_and_folder_instead_of_file(tmp_path):
    with pytest.raises(StudyError, match="no study file"):
        load_study(tmp_path / "none.toml")
    with pytest.raises(StudyError, match="cannot read"):
        load_study(tmp_path)


def test_differences_name_both_sides_and_added_models_are_none():
    held = parse(tiny())
    assert differences(held, held) == []
    assert differences(held, parse(tiny(("cnn", "convnext", "vit", "cnn-again")))) == []
    assert differences(held, parse(tiny(resources={"batch_size": 8}))) == []
    assert differences(held, parse(tiny(analysis={"clusters": 2, "seed": 4, "boosting": {"stages": 9}}))) == []
    changed = parse(tiny(("cnn", "convnext"), attack={"eps_255": 4}, training={"lr": 1e-3}))
    text = "\n".join(differences(held, changed))
    assert "attack.eps_255: run directory has 32, study has 4" in text
    assert "models.cnn.training.lr: run directory has 0.004, study has 0.001" in text
    assert "models.vit: in the run directory, absent from the study" in text


def test_identities_change_with_what_they_identify():
    study, other = parse(tiny()), parse(tiny(attack={"steps": 5}))
    assert study.settings_sha256() != other.settings_sha256()
    for may_change in ({"resources": {"batch_size": 1}}, {"analysis": {"clusters": 3}}):
        assert study.settings_sha256() == parse(tiny(**may_change)).settings_sha256()
    assert study.model("cnn").sha256() != study.model("vit").sha256()
    with pytest.raises(StudyError, match="did you mean 'cnn'"):
        study.model("cnm")


def test_analysis_is_complete_and_sizes_come_once_in_order():
    given = parse(tiny(analysis={"ensemble_sizes": [5, 2, 2], "boosting": {"max_depth": 3}})).analysis
    assert given.ensemble_sizes == (2, 5)
    assert (given.boosting.max_depth, given.boosting.stages) == (3, 500)
    assert given.clusters is None


@given(st.integers(0, 2**63 - 1), st.integers(1, 255), st.floats(1e-6, 2.0), st.floats(1e-9, 99.0))
def test_dumped_studies_read_back_equal(seed, eps_255, step_size_eps, floor_percent):
    study = parse(
        tiny(seed=seed, attack={"eps_255": eps_255, "step_size_eps": step_size_eps},
             similarity={"floor_percent": floor_percent})
    )  # fmt: skip
    assert parse_study(tomllib.loads(dump_study(study)), base=Path("/"), where="dump") == study


DISTILLATION = {"student": "vit", "teachers": ["cnn", "convnext"]}


def with_students(*distillations, **changes):
    return tiny(distillations=[{**DISTILLATION, **each} for each in distillations], **changes)


def test_students_have_their_students_recipe_with_overrides():
    raw = with_students({"training": {"epochs": 3}, "repeats": 2}, {"name": "soft", "kind": "soft", "student": "cnn-b"})
    raw["models"].append({"key": "cnn-b", "timm": "resnet18", "weights": "pretrained:a1_in1k"})
    study = parse(raw)
    assert [student.key for student in study.students] == [
        *("vit-from-cnn", "vit-from-cnn-2", "vit-from-convnext", "vit-from-convnext-2"),
        *("soft-from-cnn", "soft-from-convnext"),
    ]
    first, second, *_, last = study.students
    assert (first.model.training.epochs, first.model.training.lr) == (3, 3e-3)  # tiny's own for vit
    assert (last.model.training.epochs, last.model.training.lr) == (6, 4e-3)  # [training]
    assert (last.model.timm, last.model.weights, last.model.data) == ("resnet18", "train", study.model("cnn-b").data)
    assert (first.distillation.alpha, first.distillation.temperature) == (0.5, None)
    assert (last.distillation.alpha, last.distillation.temperature) == (0.1, 3.0)
    assert len({student.sha256() for student in study.students}) == 6
    assert study.student("vit-from-cnn-2") == second
    assert parse_study(tomllib.loads(dump_study(study)), base=Path("/"), where="dump") == study
    # Nothing that the models make is another for it.
    assert study.settings_sha256() == parse(tiny()).settings_sha256()
    with pytest.raises(StudyError, match="no student 'vit-from-cn'; did you mean 'vit-from-cnn'"):
        study.student("vit-from-cn")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"student": "vitt"}, "distillations.1.student: there is no model 'vitt'; did you mean 'vit'?"),
        ({"teachers": ["cnn", "cn"]}, "distillations.1.teachers: there is no model 'cn'"),
        ({"teachers": ["cnn", "vit"]}, "'vit' cannot be its own teacher"),
        ({"teachers": ["cnn", "cnn"]}, "cnn is there twice; more students of one teacher: repeats"),
        ({"teachers": []}, "distillations.1.teachers: List should have at least 1 item"),
        ({"temperature": 2.0}, 'temperature goes with kind = "soft" only'),
        ({"alpha": 1.5}, "distillations.1.alpha"),
        ({"kind": "softt"}, "'hard' or 'soft' (given: 'softt')"),
        ({"cache_teacher": True}, "looks different each time (training.crop_scale, training.crop_ratio)"),
        ({"training": {"epochs": 0}}, "distillations.1.training.epochs"),
        ({"training": {"preset": "diet"}}, "distillations.1.training.preset: there is no 'diet'"),
        ({"training": 3}, "distillations.1.training: Input should be a table"),
        ({"techers": ["cnn"]}, "distillations.1.techers: unknown key; did you mean 'teachers' or"),
        ({"name": "a/b"}, "distillations.1.name: letters, digits"),
        ({"name": "n" * 95}, "has a name of over 100 characters"),
        ({"timm": "resnet18", "args": {"pretrained": True}}, "pretrained cannot be set here"),
    ],
)
def test_errors_of_distillations(change, expected):
    assert expected in problem(with_students(change))


def test_students_need_names_of_their_own():
    assert "'vit-from-cnn' is there already" in problem(with_students({}, {"alpha": 0.1}))
    raw = with_students({"teachers": ["cnn"]})
    raw["models"].append({"key": "VIT-from-cnn", "timm": "resnet18", "weights": "pretrained:a1_in1k"})
    assert "'VIT-from-cnn' is there already: give its [[distillations]] a name" in problem(raw)


def test_random_weights_teach_nothing():
    raw = with_students({"teachers": ["noise"]})
    raw["models"].append({"key": "noise", "timm": "resnet18", "weights": "random"})
    assert "'noise' has random weights to teach from" in problem(raw)


def test_students_may_be_added_and_not_changed():
    held = parse(with_students({}))
    assert differences(held, parse(with_students({"repeats": 2}, {"name": "other", "alpha": 1.0}))) == []
    assert differences(held, parse(with_students({"teachers": ["cnn"]}))) == [
        "distillations: vit-from-convnext: in the run directory, absent from the study"
    ]
    changed = differences(held, parse(with_students({"kind": "soft", "alpha": 0.5})))
    assert "distillations.vit-from-cnn.kind: run directory has 'hard', study has 'soft'" in changed


@pytest.mark.parametrize("shared", [{"preset": "deit"}, {"auto_augment": "rand-m9-mstd0.5"}])
def test_a_model_without_augmentation_stays_so_in_the_frozen_copy(tmp_path, shared):
    raw = tiny(training={"hflip_prob": 0.5})
    raw["training"] = shared
    raw["models"][0]["training"] = {"auto_augment": ""}
    raw["models"][1]["training"] = {"epochs": 3}
    study = load_study(write_study(tmp_path / "study.toml", raw))
    assert study.models[0].training.auto_augment is None
    assert study.models[1].training.auto_augment is not None
    (tmp_path / "frozen.toml").write_text(dump_study(study))
    assert load_study(tmp_path / "frozen.toml") == study
