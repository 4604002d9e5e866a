"""How many images at once a task can work on: what the study asks for, or what was found to fit in memory."""

from __future__ import annotations

import json

import torch

from simhpc.rundir import Run
from simhpc.stages.task import Task
from simhpc.store.atomic import write_text


def first_try(run: Run, task: Task, device: torch.device) -> int:
    """The study's batch size, or the smaller one that an earlier attempt has found to fit on this kind of device."""
    wanted = run.study.resources.batch_size
    try:
        held = json.loads(run.dir.batch_size(task.stage, task.model).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return wanted
    alike = isinstance(held, dict) and (held.get("wanted"), held.get("device")) == (wanted, _name(device))
    return min(wanted, int(held["fits"])) if alike else wanted


def remember(run: Run, task: Task, device: torch.device, fits: int) -> None:
    """Keep a size that is smaller than the study's for the next attempt."""
    print(f"{task}: out of memory; going on with {fits} image(s) at once", flush=True)
    text = json.dumps({"wanted": run.study.resources.batch_size, "fits": fits, "device": _name(device)})
    write_text(run.dir.batch_size(task.stage, task.model), text + "\n")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
