"""Models of one's own: what a function may return, and what is said of everything else."""

from __future__ import annotations

import sys
import textwrap
from itertools import count

import pytest
import torch
from safetensors.torch import save_file
from tiny import DATA

from simhpc.errors import ModelError, StudyError
from simhpc.study import Model, parse_study
from simhpc.zoo import build, cost, own, weights
from simhpc.zoo.fast import make_fast
from simhpc.zoo.resolve import resolve_model

COMPLETE = {**DATA, "interpolation": "bilinear"}

SOURCE = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, num_classes=10, width=4):
            super().__init__()
            self.module = nn.Conv2d(3, width, 3, 2)  # `module.` is a part of its own names
            self.head = nn.Linear(width, num_classes)

        def forward(self, x):
            return self.head(self.module(x).relu().mean((2, 3)))

    def fresh(**args):
        return Net(**args)

    def ready(**args):
        torch.manual_seed(5)
        return Net(**args)
"""

_numbers = count()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module under a name that no other test has; gives that name."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(source: str, package: str = "") -> str:
        name = f"own_test_{next(_numbers)}"
        folder = tmp_path / package
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
        return f"{package}.{name}" if package else name

    return write


def entry(tmp_path, module, **changes) -> Model:
    raw = {"key": "ours", "module": module, "module_folder": str(tmp_path), "data": COMPLETE, **changes}
    return Model.model_validate(raw, strict=False)


def refusal(tmp_path, module, **changes) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(entry(tmp_path, module, **changes), 10)
    return str(caught.value)


def load(model, tmp_path):
    return build.load(model, num_classes=10, trained=tmp_path / "none")


def test_a_function_that_brings_its_weights(tmp_path, write):
    name = write(SOURCE, package="pkg")
    model = resolve_model(entry(tmp_path, f"{name}:ready", args={"width": 6}), 10)
    assert (model.module_folder, model.timm_name) == (str(tmp_path), f"{name}:ready")
    loaded = load(model, tmp_path)
    assert loaded.weights_sha256 == model.weights_sha256
    assert loaded.classifier.model.head.in_features == 6
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = loaded.classifier.model((pixels - 0.5) / 0.5)
        torch.testing.assert_close(loaded.classifier(pixels), expected)
    counted = cost.count(model, 10)
    assert counted.parameters == sum(p.numel() for p in loaded.classifier.model.parameters())
    assert (counted.forward_flops > 0, counted.counted_on) == (True, "cpu")


def test_a_checkpoint_for_it_and_names_that_begin_as_a_wrappers_do(tmp_path, write):
    name = write(SOURCE)
    torch.manual_seed(1)
    network = own.build(entry(tmp_path, f"{name}:fresh"), 10)
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    torch.save({"state_dict": torch.nn.DataParallel(network).state_dict()}, tmp_path / "parallel.pth")
    for file in ("plain.safetensors", "parallel.pth"):
        model = resolve_model(entry(tmp_path, f"{name}:fresh", weights=f"checkpoint:{tmp_path / file}"), 10)
        assert load(model, tmp_path).weights_sha256 == weights.weights_sha256(network)
    other = {"weights": f"checkpoint:{tmp_path / 'plain.safetensors'}", "args": {"width": 5}}
    assert f"does not fit '{name}:fresh' with args {{'width': 5}}" in refusal(tmp_path, f"{name}:fresh", **other)


def test_weights_that_differ_each_time_are_refused(tmp_path, write):
    name = write(SOURCE)
    assert "returns other weights each time" in refusal(tmp_path, f"{name}:fresh")
    assert resolve_model(entry(tmp_path, f"{name}:fresh", weights="train", training={}), 10).weights_sha256 is None


def test_weights_or_source_that_changed_since_are_refused(tmp_path, write):
    name = write(
        """
        import torch
        from pathlib import Path

        def build():
            net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
            net.load_state_dict(torch.load(Path(__file__).with_name("w.pt"), weights_only=True))
            return net
        """
    )
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 10))
    torch.save(network.state_dict(), tmp_path / "w.pt")
    model = resolve_model(entry(tmp_path, f"{name}:build"), 10)
    assert load(model, tmp_path).weights_sha256 == weights.weights_sha256(network)
    network[1].bias.data += 1
    torch.save(network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match="returns other weights than when the run directory was made"):
        load(model, tmp_path)
    (tmp_path / f"{name}.py").write_text((tmp_path / f"{name}.py").read_text() + "# edited\n")
    with pytest.raises(ModelError, match="the study says"):
        load(model, tmp_path)


def test_the_networks_own_data_config_is_used_and_the_studys_wins(tmp_path, write):
    name = write(
        SOURCE
        + """
    def timm_like():
        net = ready()
        net.pretrained_cfg = dict(input_size=(3, 20, 20), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
                                  interpolation="bicubic", crop_pct=0.9)
        return net

    def of_timm():
        from simhpc.zoo.timm_import import timm
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=10)
    """
    )
    data = resolve_model(entry(tmp_path, f"{name}:timm_like", data={"crop_pct": 1.0}), 10).data
    assert (data.input_size_px, data.mean, data.std) == (20, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (data.interpolation, data.crop_pct) == ("bicubic", 1.0)
    assert resolve_model(entry(tmp_path, f"{name}:of_timm", data={}), 10).data.input_size_px == 160
    text = refusal(tmp_path, f"{name}:ready", data={"input_size_px": 16, "crop_pct": 1.0})
    assert "set data.mean, data.std, data.interpolation (or give the network a pretrained_cfg" in text


def test_what_cannot_be_imported(tmp_path, write):
    assert "there is no module 'nowhere.to_be'" in refusal(tmp_path, "nowhere.to_be:found")
    name = write("import missing_dependency\n")
    assert "importing" in (text := refusal(tmp_path, f"{name}:build"))
    assert f"No module named 'missing_dependency' ({tmp_path}/{name}.py, line 1)" in text
    name = write("def build(:\n")
    assert "SyntaxError" in refusal(tmp_path, f"{name}:build")
    name = write(SOURCE)
    assert "has no function 'biuld'" in refusal(tmp_path, f"{name}:biuld")


def test_a_helper_of_another_models_folder_is_not_taken_for_ones_own(tmp_path, write):
    names = {}
    helper = f"helper_{next(_numbers)}"
    for folder, seed in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{helper}.py").write_text(f"SEED = {seed}\n")
        names[folder] = write(SOURCE.replace("manual_seed(5)", f"manual_seed({helper}.SEED)"), package=folder)
        path = tmp_path / folder / f"{names[folder].partition('.')[2]}.py"
        path.write_text(f"import {helper}\n{path.read_text()}")

    def of(folder):
        return entry(tmp_path / folder, f"{names[folder].partition('.')[2]}:ready")

    resolve_model(of("a"), 10)
    with pytest.raises(ModelError, match=rf"'{helper}' in .*b would be .*a/{helper}\.py.*rename one"):
        resolve_model(of("b"), 10)


def test_code_that_leaves_the_program_is_an_error(tmp_path, write):
    name = write("import sys\nsys.exit(3)\n")
    assert f"importing {name!r} failed: SystemExit: 3" in refusal(tmp_path, f"{name}:build")
    name = write("import sys\ndef build():\n    sys.exit('usage: train.py')\n")
    assert "failed: SystemExit: usage: train.py" in refusal(tmp_path, f"{name}:build")


def test_a_changed_source_is_refused_before_it_runs(tmp_path, write):
    name = write(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n{textwrap.dedent(SOURCE)}")
    assert "the study says 000" in refusal(tmp_path, f"{name}:ready", module_sha256="0" * 64)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("input_size", 224), ("input_size", (32, 32)), ("mean", 0.5), ("crop_pct", "0.9"), ("std", ("a",) * 3)],
)
def test_a_data_config_of_another_kind_is_named(tmp_path, write, key, value):
    config = {"input_size": (3, 16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    config = {**config, "crop_pct": 1.0, key: value}
    body = f"\ndef configured():\n    net = ready()\n    net.pretrained_cfg = {config!r}\n    return net\n"
    text = refusal(tmp_path, f"{write(textwrap.dedent(SOURCE) + body)}:configured", data={})
    assert f"pretrained_cfg of its network has {key} = {value!r}" in text


def test_two_modules_of_one_name_are_not_confused(tmp_path, write):
    name = write(SOURCE)
    resolve_model(entry(tmp_path, f"{name}:ready"), 10)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{name}.py").write_text(textwrap.dedent(SOURCE))
    assert "rename one of them" in refusal(tmp_path / "other", f"{name}:ready")


FORWARDS = {
    "self.head(x)": "does not take 16 x 16 images (data.input_size_px): RuntimeError",
    "self.head(x.mean((2, 3)))[0]": "gives a Tensor of shape (10,) for 2 images, not logits of shape (2, classes)",
    "(self.head(x.mean((2, 3))), x)": "gives a tuple for 2 images",
    "self.head(x.mean((2, 3))).double()": "gives torch.float64 logits",
    "self.head(x.mean((2, 3))).argmax(1, keepdim=True)": "gives torch.int64 logits",
    "self.head(x.mean((2, 3))) / 0": "NaN or infinite",
    "self.head(torch.nn.functional.dropout(x).mean((2, 3)))": "answers the same images differently each time",
    "self.head(x.detach().mean((2, 3)))": "lets no gradient through",
    "self.head(x.mean((2, 3)))[:, :4]": "has 4 outputs, but the labels of the image set go up to 9",
    "self.head(x.mean((2, 3)).bfloat16())": "RuntimeError",
}


@pytest.mark.parametrize("forward", FORWARDS)
def test_networks_that_cannot_be_attacked(tmp_path, write, forward):
    name = write(
        f"""
        import torch
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.head = torch.nn.Linear(3, 10)
            def forward(self, x):
                return {forward}
        """
    )
    assert FORWARDS[forward] in refusal(tmp_path, f"{name}:Net")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise KeyError('weights')", "failed: KeyError: 'weights'"),
        ("return {'model': 1}", "returned a dict, not a torch.nn.Module"),
        ("return torch.nn.Linear(2, 2).half()", "computes in torch.float16 (weight), not float32"),
        ("net = torch.nn.Linear(2, 2); torch.nn.init.constant_(net.bias, float('nan')); return net", "(bias)"),
        ("net = torch.nn.Linear(2, 2); net.pretrained_cfg = 3; return net", "is a int, not a dict"),
    ],
)
def test_functions_that_return_something_else(tmp_path, write, body, expected):
    name = write(f"import torch\ndef build():\n    {body}\n")
    assert expected in refusal(tmp_path, f"{name}:build")
    assert "unexpected keyword argument 'depth'" in refusal(tmp_path, f"{name}:build", args={"depth": 3})


def test_what_cannot_be_rewritten_stays_as_it_is(tmp_path, write):
    """Single precision inside, weights used outside of autocast, no copies: slower, but right."""
    name = write(
        """
        import copy, torch
        from torch import nn

        class Stubborn(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)
                self.more = nn.Conv2d(8, 8, 3)

            def forward(self, x):
                x = self.more(self.norm(self.conv(x))).contiguous().view(len(x), -1).view(len(x), 8, -1).mean(2)
                with torch.autocast("cpu", enabled=False):
                    return nn.functional.linear(x.float(), self.head.weight, self.head.bias)

            def double(self):
                raise RuntimeError("single precision only")

            def _apply(self, fn, recurse=True):
                if fn(torch.ones(1)).dtype == torch.float64:
                    raise RuntimeError("single precision only")
                return super()._apply(fn, recurse)
        """
    )
    model = resolve_model(entry(tmp_path, f"{name}:Stubborn"), 10)
    pixels = torch.rand(2, 3, 16, 16)
    plain = load(model, tmp_path).classifier
    fast = make_fast(load(model, tmp_path).classifier, pixels)
    with torch.no_grad():
        torch.testing.assert_close(fast.classifier(pixels), plain(pixels))
    assert "double precision: single precision only" in fast.left_out
    lower = build.load(model, num_classes=10, trained=tmp_path, in_bfloat16=True)
    fast = make_fast(lower.classifier, pixels)
    assert any(reason.startswith("weights cast once: ") for reason in fast.left_out)
    with torch.no_grad():
        torch.testing.assert_close(fast.classifier(pixels), plain(pixels), atol=0.05, rtol=0.05)


def test_fresh_weights_that_overflow_may_still_be_trained(tmp_path, write):
    """As deep networks do in eval mode before their batch norms have seen anything."""
    name = write(
        """
        import torch
        def build(num_classes=10):
            torch.manual_seed(0)
            net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, num_classes))
            torch.nn.init.constant_(net[1].weight, 1e38)
            return net
        """
    )
    assert resolve_model(entry(tmp_path, f"{name}:build", weights="train", training={}), 10).module_sha256
    assert "gives logits that are NaN or infinite" in refusal(tmp_path, f"{name}:build")


def test_an_installed_package_is_found_where_it_is_and_no_folder_of_another_python_is_added(tmp_path, monkeypatch):
    packages = tmp_path / "venv" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "own_test_installed.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    model = resolve_model(entry(tmp_path, "own_test_installed:ready"), 10)
    assert model.module_folder == str(packages)
    assert model.module_files == ()
    other = tmp_path / "other" / "site-packages"
    other.mkdir(parents=True)
    (other / "own_test_installed.py").write_text("raise RuntimeError('not this one')")
    elsewhere = model.model_copy(update={"module_folder": str(other)})
    assert load(elsewhere, tmp_path).weights_sha256 == model.weights_sha256
    assert str(other) not in sys.path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"timm": "resnet18"}, "either timm (an architecture of timm) or module"),
        ({"module": None}, "either timm (an architecture of timm) or module"),
        ({"module": "models.build"}, "must be 'package.module:function'"),
        ({"module": "models:build()"}, "must be 'package.module:function'"),
        ({"module": "../models:build"}, "must be 'package.module:function'"),
        ({"weights": "pretrained:a1_in1k"}, "goes with timm only"),
        ({"module": None, "timm": "resnet18"}, "weights is needed with timm"),
        ({"module": None, "timm": "resnet18", "weights": "train", "module_folder": "x"}, "go with module only"),
        ({"weights": "train", "weights_sha256": "0" * 64}, "weights_sha256 goes with"),
    ],
)
def test_errors_in_an_entry(tmp_path, change, expected):
    model = {key: value for key, value in {"key": "m", "module": "models:build", **change}.items() if value is not None}
    raw = {"name": "s", "images": {"source": "sklearn-digits", "n": 5}, "models": [model]}
    with pytest.raises(StudyError) as caught:
        parse_study(raw, base=tmp_path, where="s.toml")
    assert expected in str(caught.value)


def test_the_folder_is_the_studys_unless_it_says_otherwise(tmp_path):
    def folder(**change):
        raw = {
            "name": "s",
            "images": {"source": "sklearn-digits", "n": 5},
            "models": [{"key": "m", "module": "models:build", "args": {"pretrained": True}, **change}],
        }
        return parse_study(raw, base=tmp_path / "jobs", where="s.toml").models[0].module_folder

    assert folder() == str(tmp_path / "jobs")
    assert folder(module_folder="../code") == str(tmp_path / "jobs" / ".." / "code")
    assert folder(module_folder="/code") == "/code"
