"""Part `attacks`: PGD by simhpc, torchattacks, foolbox and ART on the same models and images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from benchmarks import ours
from benchmarks.attacker import Passes, Victim
from benchmarks.compute import gradient_flops, matmul_flops
from benchmarks.measures import OURS, Check, Measure, Part
from benchmarks.options import Options
from benchmarks.rounds import orders
from benchmarks.settings import AttackSettings, Precision, set_precision, torch_state_kept
from benchmarks.victims import DIGITS_THREADS, trained_digits, untrained
from benchmarks.worker import Worker, workers

SIZE_PX = 224

DIGITS = "digits"
"""The trained model, among the names of timm's."""

DIGITS_STEPS = 50
"""The default of a study. With 20, other random starts move self-fooling by as much as is tolerated below."""

TIMED_BATCHES = 4
"""Of the trained model (all of its images show how often it is fooled, fewer are enough for the time) and on GPUs."""

SELF_FOOLING_TOLERANCE_POINTS = 0.5
"""By how much two libraries' self-fooling of a trained model may differ, each the mean over STARTS random starts."""

STARTS = 3
"""One start tells too little: of 960 images 80 are hard, and of those each start fools others (a standard deviation of
3 images, 0.3 points, over 8 starts of one attack)."""


def measure(options: Options, scratch: Path) -> Part:
    """Attack each model in each configuration, and a trained one whose self-fooling means something."""
    part = Part()
    names = [name for name in options.models if name != DIGITS]
    digits = _digits(options, part, scratch) if DIGITS in options.models else None
    for precision, compiled in options.configurations:
        set_precision(precision)
        settings = AttackSettings(
            steps=options.steps,
            batch_size=options.batch_size,
            device=options.device,
            precision=precision,
            compiled=compiled,
        )
        for name in names:
            victim = untrained(name, options.batch_size, SIZE_PX)
            if options.device.type == "cuda":
                victim = _repeated(victim, TIMED_BATCHES)
            part.facts[f"{name}: gradient GFLOP per image"] = gradient_flops(victim.model, SIZE_PX) / 1e9
            compare(victim, settings, options, part, scratch, is_trained=False)
        if digits is None:
            continue
        with torch_state_kept():
            torch.set_num_threads(DIGITS_THREADS)
            steps = 2 if options.quick else DIGITS_STEPS
            compare(digits, replace(settings, steps=steps), options, part, scratch, is_trained=True)
    set_precision("float32")
    return part


def _digits(options: Options, part: Part, scratch: Path) -> Victim:
    found = _first(trained_digits(scratch / DIGITS, *((100, 4) if options.quick else (1000, 10))), options.batch_size)
    part.facts[f"images of {DIGITS}"] = len(found.images)
    return found


def _repeated(victim: Victim, times: int) -> Victim:
    """With several batches: what is done of a batch beside the one before shows in studies, and not in a single one."""
    return replace(victim, images=victim.images.repeat(times, 1, 1, 1), labels=victim.labels.repeat(times))


def label(name: str, precision: Precision, *, compiled: bool) -> str:
    """How a model in a configuration is called in the tables; plain float32 goes without saying."""
    words = [name, *([precision] if precision != "float32" else []), *(["compiled"] if compiled else [])]
    return " ".join(words)


def compare(
    victim: Victim, settings: AttackSettings, options: Options, part: Part, scratch: Path, *, is_trained: bool
) -> None:
    """Attack one model with every library and add what is found to `part`."""
    model = label(victim.name, settings.precision, compiled=settings.compiled)
    libraries, threads = [OURS, *options.libraries], torch.get_num_threads()
    with workers(
        libraries, victim, settings, threads=threads, frozen=options.frozen_peers, scratch=scratch
    ) as of_library:
        adversarial = {}
        for name, worker in of_library.items():
            adversarial[name], passes = worker.attack_all()
            part.checks.extend(warm_up_checks(name, model, victim, settings, adversarial[name], passes))
        set_precision("float32")  # of the judge
        fooled = {name: [_fooled(victim, images, settings)] for name, images in adversarial.items()}
        if is_trained and not options.quick:  # too few images and steps to agree on
            for name, worker in of_library.items():
                for start in range(2, STARTS + 1):
                    fooled[name].append(_fooled(victim, worker.attack_all(start)[0], settings))
            part.checks.extend(self_fooling_checks(model, {name: mean(found) for name, found in fooled.items()}))
        set_precision(settings.precision)
        part.measures.append(Measure("self_fooling", "%", model, fooled))
        n = min(len(victim.images), TIMED_BATCHES * settings.batch_size)
        rates, fractions = _in_rounds(of_library, victim, n, settings, options.repetitions)
        held = {name: worker.memory() for name, worker in of_library.items()}
    part.measures.append(Measure("attack_throughput", "images·iterations/s", model, rates))
    part.measures.append(Measure("share_of_matmul_rate", "%", model, fractions))
    if not is_trained:
        added = {name: [(memory.peak - memory.before) / 1e6] for name, memory in held.items()}
        part.measures.append(Measure("attack_memory", "MB", model, added))
        if settings.device.type == "cpu":
            whole = {name: [memory.peak / 1e6] for name, memory in held.items()}
            part.measures.append(Measure("process_memory", "MB", model, whole))


def _fooled(victim: Victim, images: Tensor, settings: AttackSettings) -> float:
    """Percent of adversarial images that the model no longer answers with the label."""
    return 100.0 * float((ours.predicted(victim, images, settings.device) != victim.labels).double().mean())


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


def _first(victim: Victim, batch_size: int) -> Victim:
    """The victim with as many of its images as make whole batches: we fill up the last one, others do not."""
    n = batch_size * (len(victim.images) // batch_size)
    return replace(victim, images=victim.images[:n], labels=victim.labels[:n])


def warm_up_checks(
    library: str, model: str, victim: Victim, settings: AttackSettings, adversarial: Tensor, passes: Passes
) -> list[Check]:
    """What one attack shows: the number of gradient steps, and the radius."""
    n = len(victim.images)
    steps = (passes.forward / n, passes.backward / n)
    furthest = int((adversarial.int() - victim.images.int()).abs().max())
    return [
        Check(
            f"gradient steps of {library} on {model}",
            steps == (settings.steps, settings.steps),
            f"{steps[0]:g} forward and {steps[1]:g} backward passes of {settings.steps}, "
            f"and {passes.forward_only / n:g} forward without gradient",
        ),
        Check(
            f"radius of {library} on {model}",
            furthest == settings.eps_255,
            f"furthest pixel {furthest} levels away, eps {settings.eps_255}",
        ),
    ]


def _in_rounds(
    of_library: dict[str, Worker], victim: Victim, n: int, settings: AttackSettings, repetitions: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Images·iterations/s of the first n images, and percent of the matrix-product rate of the same round."""
    flops = gradient_flops(victim.model, victim.images.shape[-1])
    rates: dict[str, list[float]] = {name: [] for name in of_library}
    shares: dict[str, list[float]] = {name: [] for name in of_library}
    for order in orders(list(of_library), repetitions):
        peak = matmul_flops(settings.device, settings.precision)
        for name in order:
            rate = n * settings.steps / of_library[name].seconds(n)
            rates[name].append(rate)
            shares[name].append(100.0 * rate * flops / peak)
    return rates, shares
