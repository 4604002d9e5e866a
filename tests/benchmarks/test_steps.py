from __future__ import annotations

import torch

from benchmarks import ours, peers, steps
from benchmarks.measures import OURS
from benchmarks.options import Options
from benchmarks.peers import DEFAULTS
from benchmarks.settings import AttackSettings
from benchmarks.victims import untrained

CPU = torch.device("cpu")


def test_both_attack_the_same_batch_in_the_same_ball():
    victim, settings = untrained("test_resnet", 4, 32), AttackSettings(6, 4, CPU)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    clean = victim.images.float() / 255
    for attack in (ours.on_one_batch(victim, settings, is_recorded=False), peers.on_one_batch(victim, settings)):
        found = attack()
        assert found.shape == clean.shape
        torch.testing.assert_close((found - clean).abs().max(), torch.tensor(8 / 255), rtol=1e-4, atol=0)
        assert 0 <= found.min() < found.max() <= 1
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32) == before


def test_the_part_measures_both(tmp_path):
    options = Options(
        device=CPU,
        threads=1,
        models=("test_resnet", "digits"),  # digits is for part attacks
        libraries=("torchattacks",),
        configurations=(("float32", False), ("bfloat16", False)),
        batch_size=2,
        steps=2,
        repetitions=2,
        frozen_peers=False,
        quick=True,
    )
    part = steps.measure(options, tmp_path)
    assert [(measure.name, measure.model) for measure in part.measures] == [
        (name, model)
        for model in ("test_resnet", "test_resnet bfloat16")
        for name in ("step_throughput", "share_of_matmul_rate")
    ]
    for measure in part.measures:
        assert set(measure.values) == {OURS, DEFAULTS}
        assert all(len(values) == 2 and min(values) > 0 for values in measure.values.values())
    assert part.facts["test_resnet: gradient GFLOP per image"] > 0
