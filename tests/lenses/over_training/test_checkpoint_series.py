"""Measurements over checkpoints, and the step at which something has formed."""

import numpy as np
import pytest

import algoscope as ag
from algoscope.core.errors import SubjectError
from algoscope.lenses.over_training.checkpoint_series import formed_at, over_checkpoints


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0.1, 0.5, 0.6, 0.9], 20),
        ([0.5, 0.1, 0.6, 0.4], 30),
        ([0.4, 0.4, 0.4, 0.4], 10),
        ([0.9, 0.9, 0.9, 0.3], None),
        ([np.nan, 0.9, np.nan, 0.9], 40),
    ],
)
def test_formed_is_from_where_on_it_stays(values: list[float], step: int | None) -> None:
    assert formed_at(np.array([10, 20, 30, 40]), np.array(values), 0.4) == step


def test_each_checkpoint_is_measured_as_itself(small_run: ag.Run) -> None:
    hashes: list[str] = []

    def measure(subject: ag.Subject) -> dict[str, float]:
        hashes.append(subject.weights_sha256)
        return {"n": len(hashes)} | ({"late": 1.0} if len(hashes) > 1 else {})

    steps, series = over_checkpoints(ag.open(small_run), measure)
    assert steps.tolist() == small_run.steps
    assert len(set(hashes)) == len(steps)
    assert hashes[-1] == ag.open(small_run).weights_sha256
    assert series["n"].tolist() == list(range(1, len(steps) + 1))
    assert np.isnan(series["late"][0])
    assert not np.isnan(series["late"][1:]).any()


def test_a_model_without_checkpoints_is_one_line() -> None:
    with pytest.raises(SubjectError, match="no checkpoints"):
        over_checkpoints(ag.open("planted:clock"), lambda subject: {})
