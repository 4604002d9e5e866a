"""The 25 teachers are those that the file says they are, and the studies of trainings hold what they promise."""

from __future__ import annotations

import csv
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from simhpc.study import load_study
from simhpc.zoo.components import find_entry, read
from simhpc.zoo.registry import paper_models

JOBS = Path(__file__).parents[2] / "jobs"
STUDENT = "deit_tiny_patch16_224"


def components() -> dict[str, dict[str, str]]:
    table = resources.files("simhpc.zoo") / "tables" / "components69.csv"
    with table.open(encoding="utf-8") as file:
        return {row.pop("model"): row for row in csv.DictReader(file)}


def chosen_again() -> dict[str, list[str]]:
    """25 of the 69 by base architecture, as jobs/distill25.toml describes."""
    table = components()
    student = table["deit_small_patch16_224"]
    own = student["Base architecture"]

    def shared(name: str) -> int:
        return sum(table[name][column] == student[column] for column in student)

    of_base: dict[str, list[str]] = {}
    for name, row in table.items():
        of_base.setdefault(row["Base architecture"], []).append(name)
    ordered = {base: sorted(names, key=lambda name: (shared(name), name)) for base, names in of_base.items()}
    found = {own: ordered.pop(own)}
    in_turn = sorted(ordered, key=lambda base: (-len(ordered[base]), base))
    counts = Counter()
    while sum(counts.values()) + len(found[own]) < 25:
        for base in in_turn:
            if counts[base] < len(ordered[base]) and sum(counts.values()) + len(found[own]) < 25:
                counts[base] += 1
    for base in in_turn:
        names, n = ordered[base], counts[base]
        spread = [round(k * (len(names) - 1) / (n - 1)) for k in range(n)] if n > 1 else [(len(names) - 1) // 2]
        found[base] = [names[position] for position in spread]
    return found


def test_the_teachers_are_chosen_as_the_file_says():
    study = load_study(JOBS / "distill25.toml")
    (distillation,) = study.distillations
    wanted = [name for names in chosen_again().values() for name in names]
    assert list(distillation.teachers) == wanted
    assert len(set(wanted)) == 25
    assert distillation.student == STUDENT
    assert [model.key for model in study.models] == [STUDENT, *wanted]
    weights = {each.name: each.timm for each in paper_models()}
    assert all(study.model(name).timm_name == weights[name] for name in wanted)
    assert study.model(STUDENT).timm_name == f"{STUDENT}.fb_in1k"


def test_the_teachers_are_spread():
    table, teachers = components(), [name for names in chosen_again().values() for name in names]
    bases = Counter(table[name]["Base architecture"] for name in teachers)
    assert bases == {"Transformer": 10, "CNN": 4, "Hybrid": 4, "NAS (CNN)": 3, "MLP-Mixer": 3, "NAS (TFM)": 1}
    student = table["deit_small_patch16_224"]
    shared = [sum(table[name][column] == student[column] for column in student) for name in teachers]
    assert (min(shared), max(shared)) == (1, 13)
    text = (JOBS / "distill25.toml").read_text()
    for name, count in zip(teachers, shared, strict=True):
        assert f'[[models]] # {count}, {table[name]["Base architecture"]}\nkey = "{name}"\n' in text


def test_the_student_has_the_components_of_deit_small():
    entry = find_entry(load_study(JOBS / "distill25.toml").model(STUDENT))
    assert read(entry).row() == components()["deit_small_patch16_224"]


def test_strategies_differ_in_what_they_say():
    study = load_study(JOBS / "strategies.toml")

    def entry(key: str) -> dict[str, object]:
        return study.model(key).model_dump(exclude={"key"})

    def training(key: str) -> dict[str, object]:
        return study.model(key).training.model_dump()

    for net, arch in (("resnet50", "resnet50"), ("deit_small", "deit_small_patch16_224")):
        of_net = {each.differs: each.models for each in study.strategies if each.name.startswith(net)}
        assert set(of_net) == {"initialisation", "hyper-parameters", "regime"}
        assert {study.model(key).timm for keys in of_net.values() for key in keys} == {arch}
        assert len(of_net["initialisation"]) == 3
        assert all(entry(key) == entry(f"{net}-1") for key in of_net["initialisation"])
        for key in of_net["hyper-parameters"][1:]:
            changed = {name for name, value in training(key).items() if value != training(f"{net}-1")[name]}
            assert changed
            assert changed <= {"lr", "weight_decay", "batch_size"}
        assert len(of_net["regime"]) >= 3
        assert any(study.model(key).is_pretrained for key in of_net["regime"])
        assert any(training(key)["loss"] != training(f"{net}-1")["loss"] for key in (of_net["regime"][1],))
    assert sum(model.is_trained_here for model in study.models) == 14


def test_the_demo_has_repeats_and_enough_teachers():
    study = load_study(JOBS / "distill-demo.toml")
    (distillation,) = study.distillations
    assert len(distillation.teachers) >= 6
    assert distillation.repeats == 2
    same = [model for model in study.models if model.model_copy(update={"key": "vit"}) == study.model("vit")]
    assert len(same) == 3


@pytest.mark.parametrize("name", ["distill25.toml", "strategies.toml"])
def test_they_ask_what_the_papers_study_asks(name):
    ours, papers = load_study(JOBS / name), load_study(JOBS / "imagenet69.toml")
    assert ours.attack == papers.attack
    assert (ours.images.n, ours.images.labels, ours.seed) == (papers.images.n, papers.images.labels, papers.seed)
