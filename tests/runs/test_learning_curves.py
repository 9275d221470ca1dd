"""Plateau, jump and order, on curves whose story is known."""

import numpy as np
import pytest

from algoscope.runs.learning_curves import beside, read_curves


def rows(loss, train, test, every: int = 10) -> list[dict]:
    return [
        {"step": every * (i + 1), "loss": a, "train_accuracy": b, "test_accuracy": c, "test_loss": a}
        for i, (a, b, c) in enumerate(zip(loss, train, test, strict=True))
    ]


def rise(at: int, n: int = 100) -> np.ndarray:
    """0 up to row `at`, 1 from there on, with a short slope."""
    return np.clip((np.arange(n) - at) / 4 + 0.5, 0, 1)


NOISE = 0.005 * np.random.default_rng(0).normal(size=100)
PLATEAU = np.concatenate([np.linspace(2.6, 1.35, 10), np.full(50, 1.34), np.linspace(1.3, 0.1, 10), np.full(30, 0.1)])


def test_plateau_and_jump_are_found_where_they_are() -> None:
    found = read_curves(rows(PLATEAU + NOISE, rise(63), rise(64))).facts
    assert found["plateau"]["from"] == pytest.approx(100, abs=30)
    assert found["plateau"]["to"] == pytest.approx(600, abs=40)
    assert found["plateau"]["loss"] == pytest.approx(1.34, abs=0.01)
    assert found["jump"]["step"] == 650
    assert 620 <= found["jump"]["from"] < 650 <= found["jump"]["to"] <= 680
    assert found["first_perfect_step"] == 670
    assert found["order"] == "together"


def test_a_steady_fall_has_no_plateau() -> None:
    assert read_curves(rows(np.linspace(2.6, 0.1, 100), rise(80), rise(80))).facts["plateau"] is None


def test_memorisation_is_told_apart_from_a_plateau() -> None:
    falling = np.concatenate([np.linspace(2.6, 0.01, 30), np.full(70, 0.01)])
    memorised_then_understood = read_curves(rows(falling, rise(20), rise(80))).facts
    assert memorised_then_understood["order"] == "training first"
    memorised = read_curves(rows(falling, rise(20), np.zeros(100))).facts
    assert memorised["order"] == "training first"
    assert memorised["jump"] is None
    assert memorised["first_perfect_step"] is None


def test_nothing_learned_says_so() -> None:
    finding = read_curves(rows(np.full(100, 2.3) + NOISE, np.zeros(100), np.zeros(100)))
    assert finding.facts["order"] == "not learned"
    assert finding.facts["jump"] is None
    assert "learned in 1,000 steps" in finding.claim


def test_evaluations_may_be_rarer_than_rows() -> None:
    logged = rows(PLATEAU, rise(63), rise(64))
    for i, row in enumerate(logged):
        if i % 5 != 4:
            del row["test_accuracy"], row["test_loss"]
    found = read_curves(logged)
    assert found.facts["jump"]["step"] == 650
    assert found.facts["jump"]["from"] == 600
    assert len(found["test accuracy"].values) == 20
    assert len(found["training loss"].values) == 100


def test_shortest_possible_run() -> None:
    assert read_curves(rows([2.0], [0.0], [0.0])).facts["steps"] == 10


def test_the_tail_of_a_fall_while_accuracy_rises_is_no_plateau() -> None:
    loss = np.concatenate([np.full(6, 1.3), 1.3 * 0.7 ** np.arange(94)])
    accuracy = np.clip((np.arange(100) - 5) / 60, 0, 1)
    found = read_curves(rows(loss, accuracy, accuracy)).facts
    assert found["plateau"]["loss"] == pytest.approx(1.3, abs=0.05)
    assert found["plateau"]["to"] <= 80


@pytest.mark.parametrize(("ends", "to"), [(0.6, None), (0.95, 990)])
def test_ninety_per_cent_is_said_only_of_a_run_that_got_there(ends: float, to: int | None) -> None:
    accuracy = np.concatenate([np.full(50, 0.05), np.linspace(0.05, 0.6, 48), [ends, ends]])
    finding = read_curves(rows(np.linspace(2, 1, 100), accuracy, accuracy))
    assert finding["jump"]["to"] == to
    assert ("never 90 % until 1,000" in finding.claim) == (to is None)
    assert ("90 % at" in finding.claim) == (to is not None)


def test_ten_per_cent_is_said_only_of_a_run_that_was_seen_there() -> None:
    accuracy = np.linspace(0.3, 1, 100)
    finding = read_curves(rows(np.linspace(2, 0.1, 100), accuracy, accuracy))
    assert finding["jump"]["from"] is None
    assert "10 %" not in finding.claim


def test_only_a_fixed_training_set_is_memorised() -> None:
    falling = np.concatenate([np.linspace(2.6, 0.01, 30), np.full(70, 0.01)])
    for test in (rise(80), np.zeros(100)):
        logged = rows(falling, rise(20), test)
        assert "memorised" in read_curves(logged, fixed=True).claim
        for fresh in (False, None):
            finding = read_curves(logged, fixed=fresh)
            assert finding["order"] == "training first"
            assert "memorised" not in finding.claim
            assert "training accuracy passed 90 %" in finding.claim


def test_a_jump_that_has_not_ended_has_no_step_after_it() -> None:
    jump = {"step": 20, "from": None, "to": None}
    assert [beside(step, jump) for step in (10, 20, 1000)] == ["before", "during", "during"]
    assert beside(31, {"step": 20, "from": 15, "to": 30}) == "after"
