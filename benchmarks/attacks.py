"""Part `attacks`: PGD by simhpc, torchattacks, foolbox and ART on the same models and images."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import memory, ours, peers
from benchmarks.attacker import Attacker, Victim, counted
from benchmarks.compute import gradient_flops, matmul_flops
from benchmarks.measures import OURS, Check, Measure, Part
from benchmarks.options import Options
from benchmarks.rounds import orders, seconds
from benchmarks.settings import AttackSettings, Precision, set_precision, torch_state_kept
from benchmarks.victims import DIGITS_THREADS, trained_digits, untrained

SIZE_PX = 224

DIGITS_STEPS = 50
"""The default of a study. With 20, other random starts move self-fooling by as much as is tolerated below."""

TIMED_BATCHES = 4
"""Of the trained model: all of its images show how often it is fooled, fewer are enough for the time."""

SELF_FOOLING_TOLERANCE_POINTS = 0.5
"""By how much two libraries' self-fooling of a trained model may differ. Other random starts moved it by 0.1 points
(torchattacks, 968 images, 3 starts)."""


def measure(options: Options, scratch: Path) -> Part:
    """Attack each model in each configuration, and a trained one whose self-fooling means something."""
    part = Part()
    digits = _first(
        trained_digits(scratch / "digits", *((100, 4) if options.quick else (1000, 10))), options.batch_size
    )
    part.facts["images of digits"] = len(digits.images)
    for precision, compiled in options.configurations:
        set_precision(precision)
        settings = AttackSettings(
            steps=options.steps,
            batch_size=options.batch_size,
            device=options.device,
            precision=precision,
            compiled=compiled,
        )
        for name in options.models:
            victim = untrained(name, options.batch_size, SIZE_PX)
            part.facts[f"{name}: gradient GFLOP per image"] = gradient_flops(victim.model, SIZE_PX) / 1e9
            compare(victim, settings, options, part, scratch, is_trained=False)
        with torch_state_kept():
            torch.set_num_threads(DIGITS_THREADS)
            steps = 2 if options.quick else DIGITS_STEPS
            compare(digits, replace(settings, steps=steps), options, part, scratch, is_trained=True)
    set_precision("float32")
    return part


def label(name: str, precision: Precision, *, compiled: bool) -> str:
    """How a model in a configuration is called in the tables; plain float32 goes without saying."""
    words = [name, *([precision] if precision != "float32" else []), *(["compiled"] if compiled else [])]
    return " ".join(words)


def compare(
    victim: Victim, settings: AttackSettings, options: Options, part: Part, scratch: Path, *, is_trained: bool
) -> None:
    """Attack one model with every library and add what is found to `part`."""
    model = label(victim.name, settings.precision, compiled=settings.compiled)
    attackers = {
        attacker.library: attacker
        for attacker in (
            ours.attacker(victim, settings),
            *(peers.PEERS[name](victim, settings, frozen=options.frozen_peers) for name in options.libraries),
        )
    }
    adversarial = {}
    for name, attacker in attackers.items():
        adversarial[name] = _warm_up(attacker, victim, settings, model, part)
    set_precision("float32")  # of the judge
    fooled = {
        name: 100.0 * float((ours.predicted(victim, images, settings.device) != victim.labels).double().mean())
        for name, images in adversarial.items()
    }
    set_precision(settings.precision)
    part.measures.append(Measure("self_fooling", "%", model, {name: [value] for name, value in fooled.items()}))
    if is_trained and not options.quick:  # too few images and steps to agree on
        part.checks.extend(self_fooling_checks(model, fooled))

    timed = _first(victim, settings.batch_size, TIMED_BATCHES)
    rates, fractions, memory_mb = _in_rounds(attackers, timed, settings, options.repetitions)
    part.measures.append(Measure("attack_throughput", "images·iterations/s", model, rates))
    part.measures.append(Measure("share_of_matmul_rate", "%", model, fractions))
    if settings.device.type == "cuda":
        part.measures.append(Measure("attack_memory", "MB", model, memory_mb))
    elif not is_trained:
        part.measures.extend(memory.measures(victim, settings, list(attackers), options, scratch))


def self_fooling_checks(model: str, fooled: dict[str, float]) -> list[Check]:
    """Whether each peer fools as many images as we do, give or take the tolerance; `fooled` in percent."""
    return [
        Check(
            f"self-fooling of {model}, simhpc and {peer}",
            abs(fooled[OURS] - fooled[peer]) <= SELF_FOOLING_TOLERANCE_POINTS,
            f"{fooled[OURS]:.2f} % and {fooled[peer]:.2f} %, at most {SELF_FOOLING_TOLERANCE_POINTS} points apart",
        )
        for peer in fooled
        if peer != OURS
    ]


def _first(victim: Victim, batch_size: int, batches: int | None = None) -> Victim:
    """The victim with as many of its images as make whole batches: we fill up the last one, others do not."""
    n = batch_size * min(len(victim.images) // batch_size, batches or len(victim.images))
    return replace(victim, images=victim.images[:n], labels=victim.labels[:n])


def _warm_up(attacker: Attacker, victim: Victim, settings: AttackSettings, model: str, part: Part) -> Tensor:
    """One attack, not timed, and what it shows: the number of gradient steps and the radius."""
    _seed()
    adversarial, passes = counted(attacker, victim.images, victim.labels)
    n = len(victim.images)
    steps = (passes.forward / n, passes.backward / n)
    part.checks.append(
        Check(
            f"gradient steps of {attacker.library} on {model}",
            steps == (settings.steps, settings.steps),
            f"{steps[0]:g} forward and {steps[1]:g} backward passes of {settings.steps}, "
            f"and {passes.forward_only / n:g} forward without gradient",
        )
    )
    furthest = int((adversarial.int() - victim.images.int()).abs().max())
    part.checks.append(
        Check(
            f"radius of {attacker.library} on {model}",
            furthest == settings.eps_255,
            f"furthest pixel {furthest} levels away, eps {settings.eps_255}",
        )
    )
    return adversarial


def _in_rounds(
    attackers: dict[str, Attacker], victim: Victim, settings: AttackSettings, repetitions: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, list[float]]]:
    """Images·iterations/s, percent of the matrix-product rate of the same round, and (CUDA) MB allocated."""
    work = len(victim.images) * settings.steps
    size_px = victim.images.shape[-1]
    flops = gradient_flops(victim.model, size_px)
    rates: dict[str, list[float]] = {name: [] for name in attackers}
    shares: dict[str, list[float]] = {name: [] for name in attackers}
    memory_mb: dict[str, list[float]] = {name: [] for name in attackers}
    for order in orders(list(attackers), repetitions):
        peak = matmul_flops(settings.device, settings.precision)
        for name in order:
            _seed()
            before = memory.start_cuda(settings.device)
            rate = work / seconds(partial(attackers[name].attack, victim.images, victim.labels), settings.device)
            memory_mb[name].append(memory.since_cuda(settings.device, before) / 1e6)
            rates[name].append(rate)
            shares[name].append(100.0 * rate * flops / peak)
    return rates, shares, memory_mb


def _seed() -> None:
    """torchattacks and foolbox draw from torch's generator, ART from numpy's; ours has its own."""
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the one that ART uses
