from __future__ import annotations

import threading

import pytest

from simhpc.attacks.ahead import read_ahead


def test_the_same_items_in_order_also_those_that_look_like_nothing():
    assert list(read_ahead([0, None, (), "", 4])) == [0, None, (), "", 4]
    assert list(read_ahead([])) == []


def test_the_next_is_made_while_the_current_is_used():
    made = [threading.Event() for _ in range(4)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    reading = read_ahead(items())
    assert next(reading) == 0
    assert made[1].wait(10)
    # One, not more.
    assert not made[2].wait(0.2)
    assert next(reading) == 1
    assert made[2].wait(10)
    reading.close()


def test_errors_come_where_the_item_would_have():
    def items():
        yield 1
        raise ValueError("broken")

    reading = read_ahead(items())
    assert next(reading) == 1
    with pytest.raises(ValueError, match="broken"):
        next(reading)
