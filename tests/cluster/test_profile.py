"""Cluster profiles: what is refused, and how stages inherit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simhpc.cluster.profile import Container, Retry, StageResources, load_profile, parse_profile
from simhpc.errors import ProfileError

SLURM = Path(__file__).parents[2] / "slurm"


def parsed(**raw):
    return parse_profile(raw, where="p.toml")


@pytest.mark.parametrize("path", sorted(SLURM.glob("*.toml")), ids=lambda path: path.name)
def test_the_profiles_that_come_along_are_valid(path):
    assert load_profile(path).attack.timeout_min > 0


def test_stages_inherit_key_by_key():
    profile = parsed(
        defaults={"partition": "cpu", "mem_gb": 4, "gpus_per_node": 1, "sbatch": {"nice": 5, "constraint": "a"}},
        attack={"partition": "gpu", "sbatch": {"constraint": "b"}},
        aggregate={"gpus_per_node": 0, "setup": ["module load x"]},
        evaluate={"gres": "gpu:a100:1"},
    )
    assert (profile.attack.partition, profile.train.partition) == ("gpu", "cpu")
    assert profile.attack.sbatch == {"nice": 5, "constraint": "b"}
    assert profile.train.sbatch == {"nice": 5, "constraint": "a"}
    assert profile.attack.mem_gb == 4
    assert (profile.aggregate.gpus_per_node, profile.aggregate.setup) == (0, ("module load x",))
    assert (profile.evaluate.gres, profile.evaluate.gpus_per_node) == ("gpu:a100:1", 0)
    assert profile.evaluate.asks_for_gpu
    assert not profile.aggregate.asks_for_gpu


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"attack": {"timeout_mins": 5}}, "attack.timeout_mins: unknown key; did you mean 'timeout_min'?"),
        ({"defaults": {"mem": 5}}, "defaults.mem: unknown key"),
        ({"atack": {}}, "atack: unknown key; did you mean 'attack'?"),
        ({"attack": {"timeout_min": 0}}, "attack.timeout_min"),
        ({"attack": {"timeout_min": 1.5}}, "attack.timeout_min"),
        ({"attack": {"partition": "a b"}}, "attack.partition"),
        ({"attack": {"partition": "gpu\n#SBATCH --mail-user=x"}}, "attack.partition"),
        ({"attack": {"sbatch": {"time": 5}}}, "the profile's own key for it is timeout_min"),
        ({"attack": {"sbatch": {"dependency": "afterok:1"}}}, "simhpc sets it itself"),
        ({"attack": {"sbatch": {"--nice": 5}}}, "without its dashes"),
        ({"attack": {"sbatch": {"comment": "two\nlines"}}}, "attack.sbatch: comment: one line of text"),
        ({"attack": {"gres": "gpu:1", "gpus_per_node": 1}}, "not both"),
        ({"attack": {"timeout_min": 1, "signal_delay_s": 60}}, "as it starts"),
        (
            {"defaults": {"tasks_per_node": 2}},
            "attack cannot use more than one process: nodes and tasks_per",
        ),
        ({"evaluate": {"nodes": 2}}, "evaluate cannot use more than one process"),
        ({"train": {"tasks_per_node": 4, "gpus_per_node": 2}}, "4 processes cannot share gpus_per_node = 2"),
        ({"train": {"sbatch": {"ntasks-per-node": 4}}}, "the profile's own key for it is tasks_per_node"),
        ({"attack": 3}, "attack"),
        ({"defaults": 3}, "defaults: must be a table"),
        ({"retry": {"oom_memory_factor": 0.5}}, "retry.oom_memory_factor"),
    ],
)
def test_what_is_wrong_is_named(raw, message):
    with pytest.raises(ProfileError) as caught:
        parsed(**raw)
    assert message in str(caught.value)
    assert "p.toml" in str(caught.value)


def test_a_profile_that_is_no_file(tmp_path):
    with pytest.raises(ProfileError, match="no profile file"):
        load_profile(tmp_path / "none.toml")


@pytest.mark.parametrize(("timeout_min", "delay_s"), [(1, 15), (4, 60), (8, 120), (1000, 120)])
def test_the_signal_comes_early_enough_for_short_limits(timeout_min, delay_s):
    assert StageResources(timeout_min=timeout_min).delay_s == delay_s


def test_memory_is_raised_up_to_the_limit():
    assert Retry(oom_memory_factor=2).raised(1.5) == 3
    assert Retry(oom_memory_factor=2, max_mem_gb=2).raised(1.5) == 2
    assert Retry(oom_memory_factor=2, max_mem_gb=1).raised(1.5) == 1.5
    assert Retry().raised(1.5) == 1.5


def test_a_container(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(
        """
        [container]
        image = "images/a $X.sif"
        binds = ["data", "/abs", { source = "~/rw", target = "/in", mode = "rw" }]
        env = ["WANDB_MODE"]
        scratch = "$TMPDIR"
        """
    )
    found = load_profile(path).container
    assert found.image == str(tmp_path / "images" / "a $X.sif")
    assert [(bind.source, bind.inside, bind.mode) for bind in found.binds] == [
        (str(tmp_path / "data"), str(tmp_path / "data"), "ro"),
        ("/abs", "/abs", "ro"),
        (str(Path.home() / "rw"), "/in", "rw"),
    ]
    assert (found.env, found.scratch, found.nv, found.flags) == (("WANDB_MODE",), "$TMPDIR", None, ())
    assert parsed().container is None
    # As the ledger keeps it.
    assert Container.model_validate_json(json.dumps(found.model_dump(mode="json"))) == found


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ({}, "container.image: this key is needed"),
        ({"image": "a", "bind": []}, "container.bind: unknown key; did you mean 'binds'?"),
        ({"image": "a", "binds": "/x"}, "container.binds: Input should be a list"),
        ({"image": "a", "binds": [{"sorce": "x"}]}, "container.binds.1.source: this key is needed"),
        ({"image": "a", "binds": [{"source": "x", "target": "y"}]}, "binds.1.target: must be an absolute path"),
        ({"image": "a", "binds": [{"source": "x", "mode": "w"}]}, "binds.1.mode: Input should be 'ro' or 'rw'"),
        ({"image": "a", "env": ["A-B"]}, "container.env.1"),
        ({"image": "a", "scratch": "rel"}, "container.scratch: must be an absolute path, or $NAME"),
        ("a.sif", "container: Input should be a table"),
    ],
)
def test_containers_that_are_refused(container, words):
    with pytest.raises(ProfileError) as refused:
        parsed(container=container)
    assert words in str(refused.value)


def test_the_optional_stage_gets_what_attacks_get_unless_it_has_its_own():
    profile = parsed(defaults={"mem_gb": 4}, attack={"gpus_per_node": 1, "partition": "gpu"})
    assert profile.representations == profile.attack
    own = parsed(defaults={"mem_gb": 4}, attack={"gpus_per_node": 1}, representations={"timeout_min": 7})
    assert (own.representations.timeout_min, own.representations.gpus_per_node, own.representations.mem_gb) == (7, 0, 4)
    with pytest.raises(ProfileError, match=r"1 problem\(s\) in the profile\n  attack.timeout_min"):
        parsed(attack={"timeout_min": 0})
    with pytest.raises(ProfileError, match="representations.timeout_min"):
        parsed(representations={"timeout_min": 0})
