"""Batches: functions of (seed, step) alone, and never a held-out input."""

import pytest
import torch

from algoscope.config import DataConfig
from algoscope.core.errors import ConfigError
from algoscope.data import FixedBatches, FreshBatches, batches, held_out, seeded
from algoscope.tasks.digits.addition import Addition

CPU = torch.device("cpu")
TASK = Addition(n_digits=2)
FRESH = DataConfig(source="fresh", n_test=500, hard_share=0.3)
FIXED = DataConfig(source="fixed", n_train=1000, n_test=500)


@pytest.mark.parametrize("data", [FRESH, FIXED], ids=["fresh", "fixed"])
def test_a_batch_depends_on_seed_and_step_alone(data: DataConfig) -> None:
    test = held_out(TASK, data, 0, CPU)
    forwards = batches(TASK, data, 64, 3, test)
    in_order = [forwards.batch(step).clone() for step in range(70)]
    asked_late = batches(TASK, data, 64, 3, test)
    for step in (69, 0, 33, 31, 32):
        assert torch.equal(asked_late.batch(step), in_order[step])
    other_seed = batches(TASK, data, 64, 4, test)
    assert not torch.equal(other_seed.batch(0), in_order[0])
    assert forwards.examples_before(70) == sum(map(len, in_order))


@pytest.mark.parametrize("data", [FRESH, FIXED], ids=["fresh", "fixed"])
def test_held_out_inputs_are_never_trained_on(data: DataConfig) -> None:
    test = held_out(TASK, data, 0, CPU)
    assert len(TASK.keys(test).unique()) == 500
    source = batches(TASK, data, 64, 0, test)
    seen = torch.cat([source.batch(step) for step in range(100)])
    assert not torch.isin(TASK.keys(seen), TASK.keys(test)).any()


def test_an_epoch_holds_every_training_input_once() -> None:
    test = held_out(TASK, FIXED, 0, CPU)
    source = FixedBatches(TASK, FIXED, 64, 0, test)
    assert source.per_epoch == 16
    epochs = [torch.cat([source.batch(16 * e + i) for i in range(16)]) for e in range(2)]
    keys = [TASK.keys(epoch) for epoch in epochs]
    assert len(keys[0].unique()) == 1000
    assert torch.equal(keys[0].sort().values, keys[1].sort().values)
    assert not torch.equal(keys[0], keys[1])


def test_answers_are_right() -> None:
    source = FreshBatches(TASK, FRESH, 256, 0, held_out(TASK, FRESH, 0, CPU))
    tokens = source.batch(0)
    first, second = TASK.operands(tokens)
    assert torch.equal(tokens, TASK.sequences(first, second))


def test_small_domains_keep_room_for_training() -> None:
    assert len(held_out(Addition(n_digits=1), FRESH, 0, CPU)) == 20


def test_more_training_inputs_than_there_are_is_an_error() -> None:
    data = DataConfig(source="fixed", n_train=9_900, n_test=500)
    with pytest.raises(ConfigError, match=r"9900.*9500"):
        batches(TASK, data, 64, 0, held_out(TASK, data, 0, CPU))


def test_generators_of_different_purpose_differ() -> None:
    draws = {tuple(torch.rand(3, generator=seeded(CPU, *n)).tolist()) for n in [(0,), (1,), (0, 0), (0, 1), (1, 0)]}
    assert len(draws) == 5
