"""A log goes on where its training goes on."""

from __future__ import annotations

from simhpc.store.step_log import StepLog, read


def rows(*steps):
    return [{"step": step, "loss_nats": 1 / step} for step in steps]


def test_what_came_after_the_saved_state_is_written_again(tmp_path):
    path = tmp_path / "metrics" / "m.jsonl"
    with StepLog(path, after_step=0) as log:
        log.write(rows(1, 2))
        log.write(rows(3))
        log.flush()
        assert read(path) == rows(1, 2, 3)
    with StepLog(path, after_step=2) as log:
        assert read(path) == rows(1, 2)
        log.write([{"step": 3, "loss_nats": 0.0}])
    assert read(path) == [*rows(1, 2), {"step": 3, "loss_nats": 0.0}]
    with StepLog(path, after_step=0):
        assert read(path) == []


def test_a_row_that_was_cut_off_ends_it(tmp_path):
    path = tmp_path / "m.jsonl"
    assert read(path) == []
    for tail in ('{"step": 2, "lo', "null\n", "{}\n", "\x00\x00\n"):
        path.write_text('{"step": 1, "loss_nats": 1.0}\n' + tail)
        assert read(path) == rows(1)
        with StepLog(path, after_step=9) as log:
            log.write(rows(2))
        assert read(path) == rows(1, 2)
