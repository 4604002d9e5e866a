"""Reading Slurm's answers: every state, garbled lines, programs that fail, hang or are missing."""

from __future__ import annotations

import os
import time

import pytest
from cluster.fakes import sacct_line, squeue_line
from hypothesis import given
from hypothesis import strategies as st

from simhpc.cluster import scheduler
from simhpc.errors import SchedulerError, SchedulerUnavailableError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[0-2]", ["12_0", "12_1", "12_2"]),
        ("12_[0,2-3,7%4]", ["12_0", "12_2", "12_3", "12_7"]),
        ("12_[1-9:4]", ["12_1", "12_5", "12_9"]),
        ("12.batch", []),
        ("12_3.0", []),
        ("12+0", []),
        ("", []),
        ("12_[0-99999999999]", []),
        ("12_[a]", []),
    ],
)
def test_names_of_elements(name, expected):
    assert scheduler.elements(name) == expected


@pytest.mark.parametrize("state", sorted(scheduler.LIVE | scheduler.ENDED))
def test_every_state_is_read(state):
    (job,) = scheduler.read_sacct(sacct_line("7_0", state, "1:9", start="1700000000", end="1700000060")).values()
    assert job.state == state
    assert job.is_live == (state in scheduler.LIVE)
    assert job.exit_code == (1 if state in scheduler.ENDED else None)
    assert job.started_unix_s == 1_700_000_000
    assert job.ended_unix_s == (1_700_000_060 if state in scheduler.ENDED else None)


def test_starts_of_a_requeued_job_are_counted():
    text = (
        sacct_line("7_0", "REQUEUED", node="node1")
        + sacct_line("7_0", "NODE_FAIL", node="node2")
        + sacct_line("7_0", "RUNNING", node="node3")
        + sacct_line("7_[1-2%5]", "PENDING", reason="Resources", node="None assigned")
    )
    jobs = scheduler.read_sacct(text)
    assert sorted(jobs) == ["7_0", "7_1", "7_2"]
    assert (jobs["7_0"].state, jobs["7_0"].node, jobs["7_0"].restarts) == ("RUNNING", "node3", 2)
    assert (jobs["7_1"].reason, jobs["7_1"].node, jobs["7_1"].is_waiting) == ("Resources", "", True)


@pytest.mark.parametrize("word", ["RESV_DEL_HOLD", "LAUNCH_FAILED", "POWER_UP_NODE", "SOMETHING_OF_TOMORROW"])
def test_a_state_that_we_do_not_know_is_of_a_job_that_waits(word):
    """Slurm has more words than its manual; a job must never be taken for gone because of one."""
    for jobs in (
        scheduler.read_sacct(sacct_line("7_0", word)),
        scheduler.read_squeue(squeue_line("7_0", word)),
    ):
        assert (jobs["7_0"].is_live, jobs["7_0"].is_waiting) == (True, True)


def test_an_element_that_sacct_does_not_show_is_looked_for_in_the_queue(slurm):
    """sacct shortens a long list of waiting elements, whatever it is told."""
    slurm.says("sacct", sacct_line("7_0", "RUNNING") + sacct_line("7_[1,3,5,...%5]", "PENDING"))
    slurm.says("squeue", squeue_line("7_1", "PENDING") + squeue_line("7_3", "PENDING"))
    answer = scheduler.ask(["7_0", "7_1", "7_3"], since_unix_s=1.7e9)
    assert {job: state.state for job, state in answer.jobs.items()} == {
        "7_0": "RUNNING",
        "7_1": "PENDING",
        "7_3": "PENDING",
    }


def test_an_element_with_a_line_of_its_own_is_not_in_the_list_any_more():
    """As Slurm 22.05 tells of an array whose second element was cancelled for its dependency."""
    jobs = scheduler.read_sacct(sacct_line("7_0", "COMPLETED") + sacct_line("7_[0-1%2]", "CANCELLED"))
    assert (jobs["7_0"].state, jobs["7_0"].restarts, jobs["7_1"].state) == ("COMPLETED", 0, "CANCELLED")


def test_a_job_that_the_accounting_does_not_quite_know_yet(slurm):
    """Slurm 22.05, for seconds after a submission: another name, and PENDING though it runs."""
    slurm.says("sacct", sacct_line("7_0", "PENDING", name="allocation") + sacct_line("7_1", "RUNNING"))
    slurm.says("squeue", squeue_line("7_0", "RUNNING", start="1700000000"))
    answer = scheduler.ask(["7_0", "7_1"], since_unix_s=1.7e9)
    assert (answer.jobs["7_0"].state, answer.jobs["7_0"].node) == ("RUNNING", "node1")
    slurm.says("sacct", sacct_line("7_0", "PENDING", name="allocation"))
    assert scheduler.ask(["7_0"], since_unix_s=1.7e9).notes == ()


def test_a_cancelled_job_says_by_whom():
    (job,) = scheduler.read_sacct(sacct_line("7", "CANCELLED by 1000")).values()
    assert job.state == "CANCELLED"


@given(st.text(max_size=300))
def test_garbled_output_is_an_error_or_nothing_but_never_a_wrong_job(text):
    try:
        jobs = scheduler.read_sacct(text)
    except SchedulerUnavailableError:
        return
    assert all(job.state.isupper() and scheduler.elements(name) == [name] for name, job in jobs.items())
    scheduler.read_squeue(text)


def test_some_garbled_lines_do_not_hide_the_others():
    jobs = scheduler.read_sacct("sacct: warning\n7_0|RUN\n" + sacct_line("7_1", "RUNNING") + "||||||\n")
    assert list(jobs) == ["7_1"]


def test_only_sacct_is_called_when_it_knows_all(slurm):
    slurm.says("sacct", sacct_line("7_0", "RUNNING") + sacct_line("8", "PENDING"))
    answer = scheduler.ask(["7_0", "8"], since_unix_s=1.7e9)
    assert answer.source == "sacct"
    assert [call.split()[0] for call in slurm.calls()] == ["sacct"]
    assert "7,8" in slurm.calls()[0]


def test_squeue_knows_what_the_accounting_has_not_heard_of(slurm):
    slurm.says("sacct", sacct_line("7_0", "RUNNING"))
    slurm.says("squeue", squeue_line("9_0", "PENDING") + squeue_line("7_0", "PENDING"))
    answer = scheduler.ask(["7_0", "9_0"], since_unix_s=1.7e9, users=["me"])
    assert answer.jobs["9_0"].state == "PENDING"
    assert answer.jobs["7_0"].state == "RUNNING"
    assert "-u me" in slurm.calls("squeue")[0]


def test_without_accounting_squeue_answers(slurm):
    slurm.fails("sacct", "Slurm accounting storage is disabled\n")
    slurm.says("squeue", squeue_line("7_0", "RUNNING", start="1700000000"))
    answer = scheduler.ask(["7_0"], since_unix_s=1.7e9)
    assert answer.source == "squeue"
    assert answer.jobs["7_0"].started_unix_s == 1_700_000_000
    assert "disabled" in answer.notes[0]


@pytest.mark.parametrize(
    ("state", "status", "code", "killed_by"),
    [
        ("FAILED", "256", 1, 0),  # as wait(2) gives it: Slurm 22.05
        ("FAILED", "1792", 7, 0),
        ("FAILED", "9", 0, 9),
        ("OUT_OF_MEMORY", "0:125", 0, 125),
        ("COMPLETED", "0", 0, 0),
        ("FAILED", "N/A", None, 0),
        ("RUNNING", "0", None, 0),
    ],
)
def test_squeue_tells_how_a_job_ended(state, status, code, killed_by):
    line = squeue_line("7_0", state, status, start="1700000000", end="1700000060", restarts=2)
    (job,) = scheduler.read_squeue(line).values()
    assert (job.exit_code, job.signal, job.restarts) == (code, killed_by, 2)
    # Of a job that runs, it is when its time limit ends it.
    assert job.ended_unix_s == (None if state == "RUNNING" else 1_700_000_060)


def test_when_nobody_answers(slurm):
    slurm.fails("sacct", "Connection refused\n")
    slurm.fails("squeue", "Unable to contact slurm controller\n")
    with pytest.raises(SchedulerUnavailableError, match="Connection refused.*Unable to contact"):
        scheduler.ask(["7_0"], since_unix_s=1.7e9)


def test_a_program_that_hangs_is_given_up(slurm):
    slurm.hangs("sacct", 20)
    with pytest.raises(SchedulerUnavailableError, match="did not answer within 0 s"):
        scheduler.call(["sacct"], timeout_s=0.3)


def test_a_program_that_is_missing(slurm, monkeypatch):
    slurm.removes("scancel")
    monkeypatch.setenv("PATH", str(slurm.folder))
    with pytest.raises(SchedulerUnavailableError, match="scancel was not found"):
        scheduler.cancel(["7"])


def test_a_refusal_keeps_slurms_words(slurm):
    slurm.fails("scancel", "scancel: error: Kill job error on job id 7: Access/permission denied\n")
    with pytest.raises(SchedulerError, match="Access/permission denied"):
        scheduler.cancel(["7"])


def test_output_that_is_not_utf8(slurm):
    (slurm.folder / "sacct.out").write_bytes(b"7_0|x|RUNNING|0:0|None|n\xff|1700000000|Unknown\n")
    assert scheduler.ask(["7_0"], since_unix_s=1.7e9).jobs["7_0"].is_live


def test_commands_typed_inside_a_job_do_not_hand_it_on(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_CONF", "SBATCH_ACCOUNT", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "x")
    kept = scheduler.environment_for_slurm()
    assert kept.keys() >= {"SLURM_CONF", "SBATCH_ACCOUNT"}
    assert not kept.keys() & {"SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SUBMITIT_EXECUTOR"}
    with scheduler.environment(kept):
        assert "SLURM_JOB_ID" not in os.environ
    assert os.environ["SLURM_JOB_ID"] == "x"


def test_what_users_have_set_for_themselves_hides_no_job(monkeypatch, slurm):
    """SQUEUE_PARTITION and the like are defaults of options: a job that is not shown would be submitted again."""
    for name in ("SQUEUE_PARTITION", "SQUEUE_STATES", "SACCT_FORMAT", "SCANCEL_INTERACTIVE"):
        monkeypatch.setenv(name, "x")
    assert not {name for name in scheduler.environment_for_slurm() if name.startswith(("SQUEUE", "SACCT", "SCANCEL"))}
    scheduler.find_by_name(["simhpc-attack-a"], since_unix_s=1.7e9)
    assert "-t all" in slurm.calls("squeue")[0]


def test_the_profile_says_more_than_the_environment(monkeypatch):
    for name in ("ACCOUNT", "PARTITION", "TIMELIMIT", "NO_REQUEUE", "SIGNAL", "OPEN_MODE", "WCKEY"):
        monkeypatch.setenv(f"SBATCH_{name}", "x")
    kept = {name for name in scheduler.environment_for_sbatch(["partition"]) if name.startswith("SBATCH_")}
    assert kept == {"SBATCH_ACCOUNT", "SBATCH_WCKEY"}  # where the profile is silent


@pytest.mark.parametrize("word", ["PREEMPTED", "NODE_FAIL", "BOOT_FAIL"])
@pytest.mark.parametrize("queued", ["COMPLETING", "PENDING", "RUNNING"])
def test_what_slurm_is_about_to_start_again_is_not_over(slurm, word, queued):
    """The accounting says PREEMPTED at once, and that it waits again only when it has left its node: up to minutes."""
    now = int(time.time())
    ended = sacct_line("7_0", "REQUEUED") + sacct_line("7_0", word, start=str(now - 60), end=str(now - 5))
    slurm.says("sacct", ended)
    slurm.says("squeue", squeue_line("7_0", queued, restarts=2))
    job = scheduler.ask(["7_0"], since_unix_s=now - 100).jobs["7_0"]
    assert (job.state, job.is_live, job.restarts) == (queued, True, 2)
    # Not requeued: squeue knows it as over, or no longer.
    for said in (squeue_line("7_0", word, end=str(now)), ""):
        slurm.says("squeue", said)
        job = scheduler.ask(["7_0"], since_unix_s=now - 100).jobs["7_0"]
        assert (job.state, job.is_live, job.restarts) == (word, False, 1)
    # Nobody can tell.
    slurm.fails("squeue", "timed out")
    answer = scheduler.ask(["7_0"], since_unix_s=now - 100)
    assert (answer.jobs, answer.unasked) == ({}, {"7_0"})


def test_what_was_preempted_long_ago_is_over(slurm):
    now = int(time.time())
    slurm.says("sacct", sacct_line("7_0", "PREEMPTED", start=str(now - 9000), end=str(now - 8000)))
    assert scheduler.ask(["7_0"], since_unix_s=1.7e9).jobs["7_0"].state == "PREEMPTED"
    assert slurm.calls("squeue") == []


def test_the_queue_is_not_asked_for_the_sake_of_what_it_has_forgotten(slurm):
    slurm.says("sacct", sacct_line("7_0", "RUNNING"))
    assert scheduler.ask(["7_0", "7_1"], since_unix_s=1.7e9, forgotten=["7_1"]).jobs.keys() == {"7_0"}
    assert slurm.calls("squeue") == []
    slurm.fails("sacct", "Connection refused")
    slurm.says("squeue", squeue_line("7_1", "PENDING"))
    assert scheduler.ask(["7_1"], since_unix_s=1.7e9, forgotten=["7_1"]).jobs["7_1"].state == "PENDING"


def test_a_refused_scancel_does_not_keep_others_from_being_cancelled(slurm):
    slurm.fails("scancel", "scancel: error: Access/permission denied\n")
    with pytest.raises(SchedulerError, match="permission denied"):
        scheduler.cancel([str(number) for number in range(1001)])
    assert len(slurm.calls("scancel")) == 3


def test_array_size(slurm):
    assert scheduler.max_array_size() == 1001
    slurm.says("scontrol", "MaxArraySize = 64\n")
    assert scheduler.max_array_size() == 64
    slurm.fails("scontrol", "no")
    assert scheduler.max_array_size() == 1001


def test_submissions_whose_answer_was_lost_are_found_by_name(slurm):
    slurm.says("squeue", "55|simhpc-attack-a|54\n")
    slurm.says("sacct", "60|simhpc-train-b\n61_0|simhpc-attack-c\n")
    found = scheduler.find_by_name(["simhpc-attack-a", "simhpc-train-b"], since_unix_s=1.7e9)
    assert found == {"simhpc-attack-a": "54", "simhpc-train-b": "60", "simhpc-attack-c": "61"}
    slurm.fails("sacct", "disabled")
    assert scheduler.find_by_name(["simhpc-attack-a"], since_unix_s=1.7e9) == {"simhpc-attack-a": "54"}
    slurm.fails("squeue", "Unable to contact slurm controller")
    with pytest.raises(SchedulerError, match="Unable to contact"):
        scheduler.find_by_name(["simhpc-attack-a"], since_unix_s=1.7e9)
