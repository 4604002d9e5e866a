"""`simhpc models` as it is typed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest
from tiny import tiny, write_study
from zoo import hub as hubs

NAMES = ("test_resnet.r160_in1k", "test_vit.r160_in1k")


def test_list(simhpc):
    code, out, _ = simhpc("models", "list")
    assert code == 0
    lines = out.splitlines()
    assert lines[1].split() == ["nfnet_l0", "nfnet_l0.ra2_in1k", "224", "82.8", "35.1", "apache-2.0"]
    assert any(line.startswith("gluon_xception65* ") and "xception65.tf_in1k" in line for line in lines)
    assert "69 models, the weights of 0 on this machine" in lines
    assert lines[-1].startswith("* gluon_xception65: timm no longer carries gluon_xception65")


def test_list_for_scripts(simhpc):
    rows = json.loads(simhpc("models", "list", "--json")[1])
    assert len(rows) == 69
    table = list(csv.DictReader(simhpc("models", "list", "--csv")[1].splitlines()))
    for row, line in zip(rows, table, strict=True):
        assert {name: str(row[name]) for name in line} == line
    code, _, err = simhpc("models", "list", "--csv", "--json")
    assert code == 2
    assert "give one of them" in err


def test_show_says_that_timms_default_is_another(simhpc):
    code, out, _ = simhpc("models", "show", "convnext_tiny", "test_vit")
    assert code == 0
    ours, other = out.split("\n\n")
    assert "convnext_tiny convnext_tiny.fb_in1k" in ours
    assert "default    in12k_ft_in1k (timm's own today; not fb_in1k)" in ours
    assert "top-1      82.062 % (timm 2022)" in ours
    assert "224 px, crop_pct 0.875, bicubic" in ours
    assert "28.6 Mparameters" in ours
    assert "default    r160_in1k\n" in other
    assert "top-1" not in other


def test_show_as_json_and_the_substitute(simhpc):
    (found,) = json.loads(simhpc("models", "show", "gluon_xception65", "--json")[1])
    assert found["timm"] == "xception65.tf_in1k"
    assert found["data"]["input_size_px"] == 299
    assert found["cost"]["parameters"] == pytest.approx(39.92e6, rel=1e-3)
    assert "timm no longer carries" in found["paper"]["note"]


def test_show_weights_that_no_study_could_use(simhpc):
    code, out, err = simhpc("models", "show", "tiny_vit_5m_224.dist_in22k", "vit_small_patch16_224.dino")
    assert (code, err) == (0, "")
    of_21k, headless = out.split("\n\n")
    assert "21841 outputs" in of_21k
    assert "no head: it gives features and no classes" in headless


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convnext_tyni", "did you mean 'convnext_tiny'"),
        ("resnet18.a1_in2k", "timm has no weights 'resnet18.a1_in2k'; did you mean 'a1_in1k'"),
        ("resnet50.", "timm has no weights 'resnet50.'"),
        ("resnet50.a b", "timm has no weights 'resnet50.a b'"),
        ("resnet50.a1_in1k*", "timm has no weights 'resnet50.a1_in1k*'"),
        ("", "no model ''"),
        ("../x", "no model '../x'"),
    ],
)
def test_unknown_models_are_exit_code_2(simhpc, name, expected):
    code, out, err = simhpc("models", "show", "test_vit", name)
    assert (code, out) == (2, "")
    assert expected in err


def test_a_study_without_pretrained_models(simhpc, tmp_path):
    code, out, _ = simhpc("models", "fetch", write_study(tmp_path / "study.toml", tiny()))
    assert code == 0
    assert "there is nothing to fetch" in out


def test_validate_tells_of_the_substitute(simhpc, tmp_path):
    models = [{"key": "gluon_xception65", "timm": "xception65", "weights": "pretrained:tf_in1k"}]
    code, out, _ = simhpc("validate", write_study(tmp_path / "study.toml", tiny(models=models)))
    assert code == 0
    assert "note: gluon_xception65 is xception65.tf_in1k here: timm no longer carries" in out


@pytest.mark.parametrize("command", ["plan", "run", "submit", "components"])
def test_other_commands_tell_of_it_on_stderr(simhpc, tmp_path, monkeypatch, slurm, command):
    monkeypatch.chdir(tmp_path)
    data = {"input_size_px": 32}
    models = [{"key": "gluon_xception65", "timm": "xception65", "weights": "pretrained:tf_in1k", "data": data}]
    study = write_study(tmp_path / "study.toml", tiny(models=models))
    profile = tmp_path / "profile.toml"
    profile.write_text('[defaults]\npartition = "main"\nmem_gb = 1.0\n')
    monkeypatch.setattr("simhpc.cluster.local.run_stages", lambda *_: (event for event in ()))
    arguments = {
        "plan": ["plan", study, "--json"],
        "run": ["run", study, "--json"],
        "submit": ["submit", "all", study, "--profile", profile, "--dry-run", "--json"],
        "components": ["components", study, "--json"],
    }[command]
    code, out, err = simhpc(*arguments)
    assert code == 0, err
    json.loads(out)
    assert err.count("note: gluon_xception65 is xception65.tf_in1k here: timm no longer carries") == 1


def test_fetch_with_the_variables_of_a_user_then_offline_on_a_node(tmp_path):
    """In processes of their own: HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read when Python starts."""
    models = [{"key": name.partition(".")[0], "timm": name.partition(".")[0], "weights": "pretrained:r160_in1k"}
              for name in NAMES]  # fmt: skip
    study = write_study(tmp_path / "study.toml", tiny(models=models))
    files = {f"{hubs.repository(name)}/model.safetensors": hubs.weights_of(name) for name in NAMES}
    second = f"{hubs.repository(NAMES[1])}/model.safetensors"

    def run(program: str, *arguments: str, **variables: str):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, check=False)

    fetch = "from simhpc.cli.app import main; main()", "models", "fetch", str(study), "--json"
    with hubs.Hub(files).running() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        whole = hub.files.pop(second)
        first = run(*fetch, **settings)
        assert first.returncode == 1, first.stderr
        said = json.loads(first.stdout)
        assert said["missing"] == ["test_vit"]
        assert said["environment"] == {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
        hub.files[second] = whole
        hub.requests.clear()
        again = run(*fetch, **settings)
        assert again.returncode == 0, again.stderr
        assert [each["how"] for each in json.loads(again.stdout)["models"]] == ["here already", "fetched"]
        assert [each for each in hub.requests if each.startswith("GET timm/")] == [f"GET {second}"]
    # On a node: the hub has gone, the printed variables are set, and a task loads what it needs.
    node = run(
        "from pathlib import Path; from simhpc.study import load_study; from simhpc.zoo.resolve import resolve_model\n"
        "from simhpc.zoo.build import load; import sys\n"
        "for model in load_study(Path(sys.argv[1])).models:\n"
        "    print(load(resolve_model(model, 1000), num_classes=1000, trained=Path('none')).weights_sha256)",
        str(study),
        **said["environment"],
    )
    assert node.returncode == 0, node.stderr
    assert len(node.stdout.split()) == 2
