from __future__ import annotations

import pytest

from simhpc.cli.console import duration, percent


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599.6, "1 h 00 min"),
        (18_420, "5 h 07 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_percentages():
    assert percent(0.985) == "98.5 %"
    assert percent(float("nan")) == "-"
