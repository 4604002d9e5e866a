"""Measure simhpc against what one would use instead; docs/performance.md says what each figure means.

    python -m benchmarks                                 all parts on the CPU
    python -m benchmarks --only attacks,storage
    python -m benchmarks --quick                         small sizes: shows that it runs, the figures mean nothing
    python -m benchmarks --only steps --device cuda --precision float32,tf32,bfloat16 --compile --batch-size 128

Prints a table and writes summary.json. Exit code 1 when a check fails: the libraries did not do the same work.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import get_args

# First: timm, and with it torchvision, must be imported our way (its docstring says why).
import simhpc.zoo.timm_import  # noqa: F401  # isort: skip

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import attacks, evaluation, machine, precision, scale, scaling, steps, storage, summary, training
from benchmarks.measures import Part
from benchmarks.options import Options
from benchmarks.peers import DEFAULTS, PEERS
from benchmarks.settings import Precision

PARTS: dict[str, Callable[[Options, Path], Part]] = {
    "storage": storage.measure,
    "evaluation": evaluation.measure,
    "scaling": scaling.measure,
    "scale": scale.measure,
    "precision": precision.measure,
    "training": training.measure,
    "steps": steps.measure,
    "attacks": attacks.measure,
}

MODELS = ("resnet50", "resnet18", "vit_tiny_patch16_224", attacks.DIGITS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; returns the exit code."""
    given = _parser().parse_args(arguments)
    options = _options(given)
    torch.set_num_threads(options.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "summary.json"
    found = summary.read(path)
    for name in given.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        facts, started_s = machine.facts(options.threads, options.device), time.monotonic()
        with tempfile.TemporaryDirectory(dir=given.out, prefix="scratch-") as scratch:
            # resolve: other processes are told these paths.
            part = PARTS[name](options, Path(scratch).resolve())
        found = summary.with_part(found, name, part, facts, time.monotonic() - started_s)
        if name == "scaling":
            scaling.plot(part, given.out / scaling.PLOT)
        # After each part, so that an interruption costs one part only.
        summary.write(path, found)
    show(found, given.only)
    broken = summary.failed(found, given.only)
    for check in broken:
        print(f"does not hold: {check.name}: {check.detail}", file=sys.stderr)
    return 1 if broken else 0


def show(found: summary.Summary, parts: Sequence[str]) -> None:
    """Print the parts as a table."""
    table = Table(*summary.HEADINGS[1:])
    for part, *row in summary.rows(found):
        if part in parts:
            table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names(PARTS), default=list(PARTS), metavar="A,B", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument(
        "--models", type=_names(None), default=list(MODELS), metavar="A,B", help=f"timm names, {attacks.DIGITS}"
    )
    parser.add_argument("--libraries", type=_names(PEERS), default=None, metavar="A,B", help=", ".join(PEERS))
    precisions = [name for name in get_args(Precision) if name != "default"]
    parser.add_argument("--precision", type=_names(precisions), default=["float32"], help=", ".join(precisions))
    parser.add_argument("--compile", action="store_true", help="measure each precision compiled as well")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="of PGD on the random models")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--frozen-peers", action="store_true", help="freeze the peers' parameters too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", metavar="DIR")
    return parser


def _names(allowed: Collection[str] | None) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        given = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in given if allowed is not None and name not in allowed]
        if unknown or not given:
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(allowed or ())}")
        return given

    return names


def _options(given: argparse.Namespace) -> Options:
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda, but torch sees no CUDA device here")
    compiled = (False, True) if given.compile else (False,)
    return Options(
        device=torch.device(given.device),
        threads=given.threads,
        models=tuple(given.models) if not given.quick else ("test_resnet", attacks.DIGITS),
        libraries=tuple(given.libraries or _peers(given.device)),
        configurations=tuple((precision, each) for precision in given.precision for each in compiled),
        batch_size=given.batch_size if not given.quick else 4,
        steps=given.steps if not given.quick else 2,
        repetitions=given.repetitions if not given.quick else 2,
        frozen_peers=given.frozen_peers,
        quick=given.quick,
    )


def _peers(device: str) -> list[str]:
    """All; a CPU knows no other precision than torch's default."""
    return [name for name in PEERS if device == "cuda" or name != DEFAULTS]


if __name__ == "__main__":
    sys.exit(main())
