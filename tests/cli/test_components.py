"""`simhpc components`: its forms of output, and what it does with names it does not know and models it cannot read."""

from __future__ import annotations

import csv
import io
import json
import sys

import pytest
from tiny import tiny, write_study

from simhpc.zoo.components import COLUMNS


def test_csv_has_the_authors_columns(simhpc):
    code, out, err = simhpc("components", "resnet10t", "jx_nest_tiny", "--csv")
    assert (code, err) == (0, "")
    header, *rows = csv.reader(io.StringIO(out))
    assert header == ["Model name", *COLUMNS]
    assert [row[0] for row in rows] == ["resnet10t", "jx_nest_tiny"]
    assert rows[0][1:5] == ["CNN", "Yes", "3s2/3/3", "176 x 176"]
    assert rows[1][1:5] == ["Transformer", "Yes", "4s4", "224 x 224"]


def test_json_and_text_say_the_same(simhpc):
    code, out, _ = simhpc("components", "halonet26t", "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert list(row) == ["Model name", *COLUMNS]
    code, out, _ = simhpc("components", "halonet26t")
    assert code == 0
    for column in COLUMNS:
        assert any(line.split() == [*column.split(), *row[column].split()] for line in out.splitlines()), column


def test_a_study_file_stands_for_its_models(simhpc, tmp_path):
    path = write_study(tmp_path / "study.toml", tiny())
    code, out, _ = simhpc("components", path, "resnet10t", "--json")
    assert code == 0
    assert [row["Model name"] for row in json.loads(out)] == ["cnn", "convnext", "vit", "resnet10t"]


def test_the_substitute_is_told(simhpc):
    code, out, err = simhpc("components", "gluon_xception65", "--csv")
    assert code == 0
    assert out.splitlines()[1].startswith("gluon_xception65,CNN,")
    assert err.startswith("note: gluon_xception65 is xception65.tf_in1k here: timm no longer carries")


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.SiLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def build(**args):
    return Net(**args)

def broken(**args):
    raise ValueError("not today")
"""


def test_networks_of_ones_own_are_read_beside_timms(simhpc, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_components.py").write_text(OWN)
    raw = tiny(("cnn",))
    data = raw["models"][0]["data"]
    for name in ("broken", "build"):
        raw["models"].insert(0, {"key": name, "module": f"own_components:{name}", "weights": "train", "data": data})
    code, out, err = simhpc("components", write_study(tmp_path / "study.toml", raw), "--json")
    assert code == 1
    assert "problem: model 'broken': own_components:broken" in err
    assert "not today" in err
    rows = {row["Model name"]: row for row in json.loads(out)}
    assert list(rows) == ["build", "cnn"]
    own = rows["build"]
    assert [own[column] for column in ("Stem layer", "Input resolution", "Normalization", "Activation")] == [
        "4s4",
        "16 x 16",
        "BN",
        "SiLU",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet10t", "resnet10"], "has no model 'resnet10'; did you mean 'resnet10t'"),
        (["resnet18.a1_in2k"], "no weights 'resnet18.a1_in2k'; did you mean 'a1_in1k'"),
        (["gluon_xception56"], "did you mean 'gluon_xception65'"),
        (["resnet50."], "timm has no weights 'resnet50.'"),
        (["none.toml"], "none.toml"),
        (["resnet10t", "--csv", "--json"], "--csv and --json exclude each other"),
    ],
)
def test_bad_input_is_exit_code_2_and_nothing_is_read(simhpc, arguments, message):
    code, out, err = simhpc("components", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_model_that_cannot_be_read_does_not_stop_the_others(simhpc, tmp_path):
    raw = tiny(("cnn", "vit"))
    raw["models"][0]["args"]["no_such_argument"] = 1
    code, out, err = simhpc("components", write_study(tmp_path / "study.toml", raw), "resnet10t", "--csv")
    assert code == 1
    assert [line.split(",")[0] for line in out.splitlines()] == ["Model name", "vit", "resnet10t"]
    assert "problem: cnn cannot be read" in err
    assert "no_such_argument" in err
