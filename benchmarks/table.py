"""The tables of docs/performance.md from a summary, in Markdown.

python -m benchmarks.table [benchmarks/out/summary.json]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from benchmarks import summary

DEFAULT = Path(__file__).parent / "out" / "summary.json"


def markdown(found: summary.Summary) -> str:
    """One section per part: the machine, the measures, the facts, and the checks that did not hold."""
    lines: list[str] = []
    for name, rows in groupby(summary.rows(found), key=lambda row: row[0]):
        part = found["parts"][name]
        machine = part["machine"]
        lines += [
            f"### {name}",
            "",
            f"{machine['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
            f"device {machine['device']}, torch {machine['versions']['torch']}; load before the start "
            f"{machine['load_1_min']}; took {part['elapsed_s']:.0f} s.",
            "",
            *_table([summary.HEADINGS[1:], *(row[1:] for row in rows)]),
            "",
        ]
        lines += [f"- {fact}: {_shown(value)}" for fact, value in part["facts"].items()]
        broken = [check for check in part["checks"] if not check["passed"]]
        lines += [f"- **does not hold:** {check['name']}: {check['detail']}" for check in broken]
        lines += [f"- {len(part['checks']) - len(broken)} of {len(part['checks'])} checks hold", ""]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return [head, "|" + "---|" * len(rows[0]), *body]


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(markdown(summary.read(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT)))
