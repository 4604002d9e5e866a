"""The harness on a tiny model. What the peers themselves do is checked again at each warm-up of a real measurement."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import attacks, ours, peers
from benchmarks.attacker import Passes, counted
from benchmarks.compute import gradient_flops, matmul_flops
from benchmarks.measures import OURS, Part
from benchmarks.options import Options
from benchmarks.settings import AttackSettings, as_asked, set_precision, torch_state_kept
from benchmarks.victims import calibrate, photos, untrained
from benchmarks.worker import workers

CPU = torch.device("cpu")
SETTINGS = AttackSettings(steps=3, batch_size=2, device=CPU)
OPTIONS = Options(
    device=CPU,
    threads=1,
    models=(),
    libraries=("torchattacks",),
    configurations=(("float32", False),),
    batch_size=2,
    steps=3,
    repetitions=2,
    frozen_peers=False,
    quick=True,
)


@pytest.fixture(scope="module")
def victim():
    return untrained("test_resnet", 4, 32)


def made(library, victim, settings=SETTINGS):
    if library == OURS:
        return ours.attacker(victim, settings)
    if not library.startswith("torchattacks"):
        pytest.importorskip(library)
    return peers.PEERS[library](victim, settings)


@pytest.mark.parametrize("library", [OURS, *peers.PEERS])
def test_every_library_takes_the_steps_it_is_told_to(victim, library):
    attacker = made(library, victim)
    adversarial, passes = counted(attacker, victim.images, victim.labels)
    assert (passes.forward, passes.backward) == (3 * 4, 3 * 4)
    assert adversarial.dtype == torch.uint8
    assert (adversarial.int() - victim.images.int()).abs().max() == 8
    assert not attacker.module._forward_hooks


@pytest.mark.parametrize("library", [OURS, *peers.PEERS])
def test_no_library_changes_the_model_of_another(victim, library):
    before = {name: tensor.clone() for name, tensor in victim.model.state_dict().items()}
    made(library, victim).attack(victim.images, victim.labels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in victim.model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in victim.model.parameters())


def test_a_comparison_measures_both_and_checks_both(victim, tmp_path):
    part = Part()
    attacks.compare(victim, SETTINGS, OPTIONS, part, tmp_path, is_trained=True)
    assert {measure.name for measure in part.measures} == {
        "self_fooling",
        "attack_throughput",
        "share_of_matmul_rate",
    }
    assert list(tmp_path.iterdir()) == []
    rate = next(measure for measure in part.measures if measure.name == "attack_throughput")
    assert set(rate.values) == {OURS, "torchattacks"}
    assert all(len(values) == 2 and min(values) > 0 for values in rate.values.values())
    assert len(part.checks) == 4
    assert all(check.passed for check in part.checks)


def test_a_step_too_few_is_seen(victim):
    honest = counted(made("torchattacks", victim, replace(SETTINGS, steps=2)), victim.images, victim.labels)
    steps, radius = attacks.warm_up_checks("torchattacks", "net", victim, SETTINGS, *honest)
    assert not steps.passed
    assert steps.detail.startswith("2 forward and 2 backward passes of 3")
    assert radius.passed


def test_an_attack_that_leaves_the_ball_is_seen(victim):
    _, radius = attacks.warm_up_checks("far", "net", victim, SETTINGS, 255 - victim.images, Passes())
    assert not radius.passed


def test_self_fooling_may_differ_by_half_a_point():
    checks = attacks.self_fooling_checks("net", {OURS: 90.0, "near": 90.5, "far": 89.4})
    assert [check.passed for check in checks] == [True, False]


def test_memory_is_that_of_a_process_of_its_own(victim, tmp_path):
    ballast = torch.ones(200_000_000)  # 800 MB that are not the attack's
    with workers([OURS], victim, SETTINGS, threads=1, frozen=False, scratch=tmp_path) as found:
        found[OURS].attack_all()
        held = found[OURS].memory()
    assert ballast[0] == 1
    assert 0 < held.before < held.peak < 800e6


def test_what_goes_wrong_in_a_process_is_told(victim, tmp_path):
    broken = replace(victim, labels=victim.labels + 1000)
    with (
        pytest.raises(RuntimeError, match="^torchattacks: IndexError: Target"),
        workers(["torchattacks"], broken, SETTINGS, threads=1, frozen=False, scratch=tmp_path) as found,
    ):
        found["torchattacks"].attack_all()


def test_flops_by_hand():
    # 16 x 16 positions, 3 * 9 products per output, 5 outputs, times 2; and as many for the input's gradient.
    forward = 2 * 16 * 16 * 3 * 9 * 5
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(16 * 16 * 5, 2))
    assert gradient_flops(model, 16) == 2 * (forward + 2 * 16 * 16 * 5 * 2)
    assert matmul_flops(CPU, "float32") > 1e8


def test_calibrated_batch_norms_neither_overflow_nor_switch_anything_off():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, momentum=0.3))
    nn.init.zeros_(model[3].weight)
    with torch.no_grad():
        model[0].weight.mul_(1e6)
    inputs = torch.randn(6, 3, 12, 12)
    calibrate(model, inputs)
    assert not model.training
    assert model[3].momentum == 0.3
    torch.testing.assert_close(model(inputs).std(), torch.tensor(1.0), atol=0.1, rtol=0)


def test_photos_are_photos_and_the_same_ones_each_time():
    images = photos(4, 24)
    assert images.shape == (4, 3, 24, 24)
    assert (images == photos(4, 24)).all()
    assert min(image.std() for image in images) > 10
    assert len({image.tobytes() for image in images}) == 4


def test_what_a_task_sets_is_undone():
    before = torch.get_num_threads()
    with torch_state_kept():
        torch.set_num_threads(before + 1)
        torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_bfloat16_runs_the_model_in_it_and_answers_in_float32(victim):
    seen = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    wrapped = as_asked(model, replace(SETTINGS, precision="bfloat16"))
    assert wrapped(torch.rand(2, 3, 2, 2)).dtype == torch.float32
    assert seen == [torch.bfloat16]
    adversarial = ours.attacker(victim, replace(SETTINGS, precision="bfloat16")).attack(victim.images, victim.labels)
    assert (adversarial.int() - victim.images.int()).abs().max() == 8


def test_tf32_is_off_unless_asked_for():
    try:
        set_precision("tf32")
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        set_precision("float32")
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_only_the_adapter_uses_the_attack():
    """So that a change of the attack's interface changes one file here."""
    users = set()
    for path in (Path(attacks.__file__).parent).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.startswith(("simhpc.attacks", "simhpc.zoo.classifier")) for name in names):
                users.add(path.name)
    assert users == {"ours.py"}
