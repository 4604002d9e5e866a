"""Part `steps`: PGD on one batch that is on the device already; ours in each configuration beside torchattacks.

All in one process that only computes, so that a GPU that is lent for minutes is enough. What the libraries do around
their steps, and that they do the same, is for part `attacks`.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import ours, peers
from benchmarks.attacker import Victim
from benchmarks.attacks import DIGITS, SIZE_PX, label
from benchmarks.compute import gradient_flops, matmul_flops
from benchmarks.measures import OURS, Measure, Part
from benchmarks.options import Options
from benchmarks.peers import DEFAULTS
from benchmarks.rounds import Work, seconds_in_rounds
from benchmarks.settings import AttackSettings, set_precision
from benchmarks.victims import untrained

NO_GRAPH = "simhpc, no graph"
"""Ours with every operation launched by itself; on a CPU it never is otherwise."""


def measure(options: Options, scratch: Path) -> Part:  # noqa: ARG001 - nothing is written
    """Each model in each configuration, after one PGD that does not count."""
    part = Part()
    for name in options.models:
        if name == DIGITS:
            continue
        victim = untrained(name, options.batch_size, SIZE_PX)
        flops = gradient_flops(victim.model, SIZE_PX)
        part.facts[f"{name}: gradient GFLOP per image"] = flops / 1e9
        for precision, compiled in options.configurations:
            settings = AttackSettings(
                options.steps, options.batch_size, options.device, precision=precision, compiled=compiled
            )
            model = label(name, precision, compiled=compiled)
            set_precision(precision)
            peak = matmul_flops(options.device, precision)
            works = _works(victim, settings, options)
            for work in works.values():
                work()
            taken_s = seconds_in_rounds(works, options.repetitions, options.device)
            n = options.batch_size * options.steps
            rates = {library: [n / s for s in times_s] for library, times_s in taken_s.items()}
            shares = {library: [100.0 * rate * flops / peak for rate in found] for library, found in rates.items()}
            part.measures.append(Measure("step_throughput", "images·iterations/s", model, rates))
            part.measures.append(Measure("share_of_matmul_rate", "%", model, shares))
    set_precision("float32")
    return part


def _works(victim: Victim, settings: AttackSettings, options: Options) -> dict[str, Work]:
    is_cuda = settings.device.type == "cuda"
    found: dict[str, Work] = {OURS: ours.on_one_batch(victim, settings, is_recorded=is_cuda)}
    if is_cuda:
        found[NO_GRAPH] = ours.on_one_batch(victim, settings, is_recorded=False)
    if DEFAULTS in options.libraries or "torchattacks" in options.libraries:
        found[DEFAULTS] = peers.on_one_batch(victim, settings)
    return found
