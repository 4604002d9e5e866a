"""What is submitted, in which order, waiting for what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cluster.fakes import status

from simhpc.cluster import planning
from simhpc.cluster.profile import parse_profile
from simhpc.cluster.status import RunStatus
from simhpc.stages import STAGES
from simhpc.stages.task import ALL

PROFILE = parse_profile({"defaults": {"partition": "main", "mem_gb": 2, "array_parallelism": 5}}, where="test")


def batches(found: RunStatus, stages=STAGES, **options):
    options.setdefault("profile_name", "p")
    plans = planning.plan(found, stages, PROFILE, **options)
    return {plan.stage: plan.batches for plan in plans}


def test_all_stages_are_chained():
    todo = "a:todo b:todo"
    found = batches(status(train=todo, attack=todo, evaluate=todo, aggregate=f"{ALL}:todo"))
    (train,), (attack,), (evaluate,), (aggregate,) = (found[stage] for stage in STAGES)
    assert (train.models, attack.models, evaluate.models, aggregate.models) == (
        ("a", "b"),
        ("a", "b"),
        ("a", "b"),
        (ALL,),
    )
    assert (attack.after_same, attack.after_batches) == (train.id, ())
    assert evaluate.after_batches == (attack.id,)
    assert aggregate.after_batches == (evaluate.id,)


def test_only_what_is_not_done_is_submitted():
    found = batches(status(train="a:done b:done", attack="a:done b:failed c:todo d:cancelled"), ["train", "attack"])
    assert found["train"] == ()
    (attack,) = found["attack"]
    assert attack.models == ("b", "c", "d")
    assert (attack.after_same, attack.after_batches, attack.after_jobs) == (None, (), ())


def test_what_is_queued_is_not_doubled():
    todo = "a:queued b:running c:todo"
    (plan,) = planning.plan(status(attack=todo), ["attack"], PROFILE, profile_name="p")
    assert plan.queued == ("a", "b")
    assert plan.batches[0].models == ("c",)


def test_a_later_stage_waits_for_what_is_queued():
    found = batches(status(attack="a:queued b:done", evaluate="a:todo b:done"), ["evaluate"])
    (evaluate,) = found["evaluate"]
    assert evaluate.models == ("a", "b")  # b has to look at a's set too
    assert evaluate.after_jobs == ("attack",)


@pytest.mark.parametrize(("attack", "evaluate", "is_again"), [(1, 2, False), (2, 2, False), (3, 2, True)])
def test_what_is_queued_since_before_its_inputs_is_planned_again(attack, evaluate, is_again):
    """By the number of the submission; the time, which says the contrary here, may be of another clock."""
    found = status(attack="a:queued b:done", evaluate="a:queued b:queued")
    order = {"attack": attack, "evaluate": evaluate}
    tasks = [replace(task, submission=order[task.stage], submitted_unix_s=-order[task.stage]) for task in found.tasks]
    (plan,) = planning.plan(replace(found, tasks=tuple(tasks)), ["evaluate"], PROFILE, profile_name="p")
    assert plan.queued == (() if is_again else ("a", "b"))
    assert [batch.models for batch in plan.batches] == ([("a", "b")] if is_again else [])


def test_what_is_done_again_for_new_inputs_is_said():
    (_, plan) = planning.plan(
        status(attack="a:done new:todo", evaluate="a:done new:todo"), ["attack", "evaluate"], PROFILE, profile_name="p"
    )
    assert (plan.n_done, plan.again, plan.batches[0].models) == (1, ("a",), ("a", "new"))


def test_what_can_only_fail_is_not_submitted():
    """Its input is neither there nor coming."""
    (plan,) = planning.plan(
        status(train="a:done b:todo c:queued", attack="a:todo b:todo c:todo free:todo"),
        ["attack"],
        PROFILE,
        profile_name="p",
    )
    assert plan.blocked == ("b",)
    assert sorted(model for batch in plan.batches for model in batch.models) == ["a", "c", "free"]
    (plan,) = planning.plan(
        status(attack="a:done b:failed", evaluate="a:todo b:todo"), ["evaluate"], PROFILE, profile_name="p"
    )
    assert (plan.blocked, plan.batches[0].models) == (("b",), ("a",))


def test_the_same_command_again_submits_nothing():
    queued = "a:queued b:queued"
    found = batches(status(train=queued, attack=queued, evaluate=queued, aggregate=f"{ALL}:queued"))
    assert all(not of_stage for of_stage in found.values())


def test_added_models_are_evaluated_after_the_queued_evaluations():
    """A model is added while everything is queued: the others see its set in a second round, never beside the first."""
    found = batches(status(attack="a:queued new:todo", evaluate="a:queued new:todo", aggregate=f"{ALL}:queued"))
    assert found["attack"][0].models == ("new",)
    (evaluate,) = found["evaluate"]
    assert evaluate.models == ("a", "new")
    assert set(evaluate.after_jobs) == {"attack", "evaluate"}
    assert evaluate.after_batches == (found["attack"][0].id,)
    assert set(found["aggregate"][0].after_jobs) == {"evaluate", "aggregate"}


def test_an_attack_waits_for_its_own_training_only():
    found = batches(status(train="a:todo", attack="a:todo free:todo"), ["train", "attack"])
    waits, free = found["attack"]
    assert (waits.models, waits.after_same) == (("a",), found["train"][0].id)
    assert (free.models, free.after_same, free.after_batches) == (("free",), None, ())


def test_an_attack_waits_for_training_that_was_queued_before():
    found = batches(status(train="a:queued", attack="a:todo free:todo"), ["attack"])
    assert [(batch.models, batch.after_jobs) for batch in found["attack"]] == [(("a",), ("train",)), (("free",), ())]


def test_only_some_models():
    todo = "a:todo b:todo"
    found = batches(status(train=todo, attack=todo, evaluate=todo, aggregate=f"{ALL}:todo"), only=["b"])
    assert [found[stage][0].models for stage in STAGES] == [("b",), ("b",), ("b",), (ALL,)]


@pytest.mark.parametrize(
    ("n", "most", "sizes"), [(10, 10, [10]), (11, 10, [5, 6]), (1002, 1001, [501, 501]), (1, 1, [1])]
)
def test_long_arrays_are_split(n, most, sizes):
    todo = " ".join(f"m{number}:todo" for number in range(n))
    found = batches(
        status(train=todo, attack=todo, evaluate=todo), ["train", "attack", "evaluate"], max_array_size=most
    )
    for stage in ("train", "attack", "evaluate"):
        assert [len(batch.models) for batch in found[stage]] == sizes
        assert [model for batch in found[stage] for model in batch.models] == [f"m{number}" for number in range(n)]
        # Slurm's % is of one array; the profile speaks of a stage.
        assert sum(batch.at_once for batch in found[stage]) <= max(5, len(sizes))
    assert [batch.after_same for batch in found["attack"]] == [batch.id for batch in found["train"]]
    assert all(len(batch.after_batches) == len(sizes) for batch in found["evaluate"])


def test_the_optional_stage_waits_for_the_training_of_each_model_and_for_nothing_else():
    todo = "a:todo b:todo"
    found = batches(status(train=todo, attack=todo, representations=todo), ["train", "representations"])
    (train,), (representations,) = found["train"], found["representations"]
    assert (representations.models, representations.stage) == (("a", "b"), "representations")
    assert (representations.after_same, representations.after_batches) == (train.id, ())
    found = batches(
        status(train="a:queued b:done", attack=todo, representations="a:todo b:todo c:done"), ["representations"]
    )
    assert [(batch.models, batch.after_jobs) for batch in found["representations"]] == [
        (("a",), ("train",)),
        (("b",), ()),
    ]


def test_what_is_submitted_for_all_stages_leaves_it_out():
    todo = "a:todo"
    found = batches(status(train=todo, attack=todo, evaluate=todo, representations=todo))
    assert set(found) == set(STAGES)


def with_teachers(found, **teachers):
    tasks = [replace(task, teacher=teachers[task.model]) if task.stage == "distill" else task for task in found.tasks]
    return replace(found, tasks=tuple(tasks))


def test_a_student_waits_for_the_training_of_its_teacher_alone():
    found = status(train="a:todo b:queued c:done", distill="s1:todo s2:todo s3:todo s4:todo")
    found = with_teachers(found, s1="a", s2="a", s3="b", s4="c")
    by_stage = batches(found, ["train", "distill"])
    (train,) = by_stage["train"]
    assert [(batch.models, batch.after_batches, batch.after_jobs) for batch in by_stage["distill"]] == [
        (("s1", "s2"), (train.id,), ()),
        (("s3",), (), ("train",)),
        (("s4",), (), ()),
    ]


def test_one_student_for_each_teacher_waits_for_its_own():
    found = with_teachers(status(train="a:todo b:todo", distill="s1:todo s2:todo"), s1="b", s2="a")
    by_stage = batches(found, ["train", "distill"])
    (students,) = by_stage["distill"]
    assert (students.models, students.after_same) == (("s2", "s1"), by_stage["train"][0].id)


def test_a_student_whose_teacher_is_not_coming_is_blocked():
    found = with_teachers(status(train="a:failed b:done", distill="s1:todo s2:todo"), s1="a", s2="b")
    (plan,) = planning.plan(found, ["distill"], PROFILE, profile_name="p")
    assert plan.blocked == ("s1",)
    assert plan.batches[0].models == ("s2",)
