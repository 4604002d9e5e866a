"""Two processes are one with the same images per step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from zoo.training.made_up import EVERYTHING, network, trainer

from simhpc.zoo.training import Processes, joined

PLAIN = {"optimizer": "sgd", "accumulation": 2}
PROGRAM = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from zoo.training.made_up import network, trainer
from simhpc.zoo.training import joined
torch.set_num_threads(1)
with joined(torch.device("cpu"), 2) as processes:
    assert processes.of_first(7 + processes.rank) == 7
    assert processes.any(processes.rank == 1) and not processes.any(False)
    for name, made, settings in json.loads(sys.argv[1]):
        net, steps = network(**made), []
        trainer(net, processes, **settings).run(steps.extend)
        if processes.is_first:
            save_file(net.state_dict(), Path(sys.argv[2], f"{name}.safetensors"))
            Path(sys.argv[2], f"{name}.txt").write_text(" ".join(str(step.loss_nats) for step in steps))
"""

# The first leaves while gloo's thread still waits for the second; after that the thread needs Python's lock.
LAST = """
import time, torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from simhpc.zoo.training import joined
def attempt():
    with joined(torch.device("cpu"), 2) as processes:
        network, values = DistributedDataParallel(torch.nn.Linear(1, 1)), torch.ones(1)
        time.sleep(0 if processes.is_first else 1)
        distributed.all_reduce(values, async_op=processes.is_first)
attempt()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_both(program, *words, timeout_s=300):
    """Run a program in two processes that can meet; both must end well."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[3]}:{Path(__file__).parents[2]}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, *words],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in both:
            _, err = process.communicate(timeout=timeout_s)
            assert process.returncode == 0, err
    finally:
        for process in both:
            process.kill()


def test_two_processes_equal_one(tmp_path):
    """To float tolerance: any network and recipe, as the same number of accumulated passes; one whose passes do not
    depend on each other's images (no batch norm, no dropout, no mixing), as an undivided step too."""
    cases = [
        ("plain", {"dropout": 0.0, "norm": False}, PLAIN),
        ("everything", {"dropout": 0.3, "norm": False}, {**EVERYTHING, "batch_size": 8}),
    ]
    run_both(PROGRAM, json.dumps(cases), str(tmp_path))
    for name, made, settings in cases:
        alone = [{**settings, "accumulation": 2 * settings.get("accumulation", 1)}]
        if name == "plain":
            alone.append({**settings, "accumulation": 1})
        for each in alone:
            net, steps = network(**made), []
            trainer(net, **each).run(steps.extend)
            losses = [float(word) for word in (tmp_path / f"{name}.txt").read_text().split()]
            assert losses == pytest.approx([step.loss_nats for step in steps], rel=1e-4)
            for key, value in load_file(tmp_path / f"{name}.safetensors").items():
                torch.testing.assert_close(value, net.state_dict()[key], rtol=1e-3, atol=1e-5)


def test_no_process_hangs_at_its_end():
    """torch's reducer waits for threads that wait for Python; see `joined`."""
    run_both(LAST, timeout_s=60)


def test_one_process_meets_nobody():
    with joined(torch.device("cpu"), 1) as alone:
        assert alone == Processes(torch.device("cpu"), 0, 1)
        assert alone.is_first
        assert alone.of_first(3) == 3
        assert alone.any(True)
        assert not alone.any(False)
        values = torch.tensor([1.0, 2.0])
        assert torch.equal(alone.mean(values), values)
