"""Pace: seconds a step and tokens a second from the last logs, whatever lies between them."""

from __future__ import annotations

import pytest

from kvviz.distill.progress import Pace, pace


def logs(*times: tuple[int, float]) -> list[dict]:
    return [{"step": step, "time": time, "tokens_seen": 100 * step} for step, time in times]


@pytest.mark.parametrize("rows", [[], logs((0, 5.0)), [{"step": 1}, {"step": 2}], logs((3, 9.0), (4, 9.0))])
def test_nothing_is_known_before_two_logs(rows):
    assert pace(rows) == Pace()
    assert pace(rows).left(0, 10) is None


def test_an_even_run():
    found = pace(logs((0, 0.0), (5, 10.0), (10, 20.0)))
    assert (found.seconds_step, found.tokens_second) == (2.0, 50.0)
    assert found.left(10, 25) == 30.0
    assert found.left(30, 25) == 0.0


def test_the_pause_of_a_stop_is_not_work():
    found = pace(logs((0, 0.0), (5, 10.0), (10, 20.0), (15, 90_000.0), (20, 90_010.0)))
    assert found.seconds_step == 2.0


def test_only_the_last_logs_count():
    slow = [(step, 100.0 * step) for step in range(5)]
    fast = [(step, 400.0 + step - 4) for step in range(5, 40)]
    assert pace(logs(*slow, *fast)).seconds_step == pytest.approx(1.0)


def test_a_run_from_another_clock_or_without_tokens_has_no_speed():
    rows = [{"step": 0, "time": 5.0}, {"step": 5, "time": 7.5}, {"step": 10, "time": 10.0}]
    assert pace(rows) == Pace(0.5, None)
    assert pace([{"step": 0, "time": None}, *rows]).seconds_step == 0.5
