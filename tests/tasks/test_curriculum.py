"""Short sums first, and regular ones: batches of a curriculum, with repeated columns, and what a run makes of them."""

import os
import signal
from pathlib import Path

import pytest
import torch

import algoscope as ag
from algoscope.config import DataConfig, override, parse_config
from algoscope.core.errors import ConfigError, Interrupted
from algoscope.data import batches, held_out
from algoscope.recipes.addition import add3, add3_reference
from algoscope.recipes.modular import grok59
from algoscope.tasks.base import Tokens
from algoscope.tasks.digits.addition import Addition
from algoscope.training.member import Batch, Member

CPU = torch.device("cpu")
TASK = Addition(n_digits=4)
GROWING = DataConfig(n_test=500, hard_share=0.3, curriculum=80)
WHOLE = GROWING.model_copy(update={"curriculum": 0})


def live_columns(task: Addition, tokens: Tokens) -> torch.Tensor:
    """For each sum the digits that its longer operand has without its leading zeros."""
    larger = torch.maximum(*task.operands(tokens))
    return (larger[:, None] >= 10 ** torch.arange(task.n_digits)).sum(dim=1)


def source(data: DataConfig, task: Addition = TASK, seed: int = 3):
    return batches(task, data, 64, seed, held_out(task, data, 0, CPU))


def test_a_batch_of_the_curriculum_depends_on_seed_and_step_alone() -> None:
    forwards = source(GROWING)
    in_order = [forwards.batch(step).clone() for step in range(130)]
    asked_late = source(GROWING)
    for step in (129, 0, 79, 33, 31, 32, 95, 64):
        assert torch.equal(asked_late.batch(step), in_order[step])
    assert not torch.equal(source(GROWING, seed=4).batch(0), in_order[0])
    assert {len(batch) for batch in in_order} == {64}


def test_sums_grow_from_one_column_to_all() -> None:
    grows = source(GROWING)
    longest = [int(live_columns(TASK, grows.batch(step)).max()) for step in range(80)]
    assert longest == [1 + step // 20 for step in range(80)]
    shortest = live_columns(TASK, torch.cat([grows.batch(step) for step in range(60, 80)])).bincount(minlength=5)
    assert (shortest[1:] > 200).all(), "at the last stage all lengths occur"
    uncut = live_columns(TASK, torch.cat([grows.batch(step) for step in range(80, 100)]))
    assert (uncut == 4).float().mean() > 0.9


def test_answers_are_right_at_every_stage() -> None:
    grows = source(GROWING)
    tokens = torch.cat([grows.batch(step) for step in range(100)])
    assert torch.equal(tokens, TASK.sequences(*TASK.operands(tokens)))
    assert tokens.shape[1] == TASK.n_ctx


def test_held_out_sums_are_not_trained_on_at_any_stage() -> None:
    task = Addition(n_digits=2)
    data = DataConfig(n_test=2_000, curriculum=100)
    test = held_out(task, data, 0, CPU)
    assert (live_columns(task, test) == 1).any()
    grows = batches(task, data, 64, 0, test)
    seen = torch.cat([grows.batch(step) for step in range(120)])
    assert not torch.isin(task.keys(seen), task.keys(test)).any()


def test_after_it_the_batches_are_those_without_one() -> None:
    grows, plain = source(GROWING), source(WHOLE)
    assert torch.equal(grows.batch(96), plain.batch(96))
    assert not torch.equal(grows.batch(60), plain.batch(60))


def test_a_stage_keeps_the_lower_digits() -> None:
    tokens = TASK.sequences(torch.tensor([1234, 1234, 1234]), torch.tensor([8766, 8766, 8766]))
    cut = TASK.at_stage(tokens, torch.tensor([1, 3, 4]))
    shown = [TASK.decode(row.tolist()) for row in cut]
    assert shown == ["0004+0006=01000<EOS>", "0234+0766=00010<EOS>", "1234+8766=00001<EOS>"]


def test_repeated_columns_make_the_sums_that_chance_seldom_does() -> None:
    plain = TASK.sample(4_000, torch.Generator().manual_seed(0))
    tokens = TASK.repeated(plain, torch.Generator().manual_seed(1))
    first, second = TASK.operands(tokens)
    assert torch.equal(tokens, TASK.sequences(first, second))
    before = TASK.operands(plain)
    assert torch.equal(first % 10, before[0] % 10)
    assert torch.equal(second % 10, before[1] % 10)
    alike = (first % 1111 == 0) & (second % 1111 == 0)
    assert alike.float().mean() == pytest.approx(0.9**3, abs=0.02)
    assert {(0, 0), (9999, 9999), (9999, 0)} <= set(zip(first.tolist(), second.tolist(), strict=True))


def test_a_share_of_the_draws_is_repeated_and_the_rest_is_not() -> None:
    data = DataConfig(n_test=500, repeat_share=0.25)
    draws = source(data)
    tokens = torch.cat([draws.batch(step) for step in range(64)])
    first, second = TASK.operands(tokens)
    assert torch.equal(tokens, TASK.sequences(first, second))
    alike = ((first % 1111 == 0) & (second % 1111 == 0)).float().mean()
    assert alike == pytest.approx(0.25 * 0.9**3, abs=0.02)
    assert torch.equal(source(data).batch(40), tokens[40 * 64 : 41 * 64])


def settings(**more: object) -> dict[str, object]:
    small = {"n_digits": 3, "steps": 48, "batch": 16, "data.n_test": 16, "data.curriculum": 40}
    return {**small, "train.checkpoint_every": 16, "train.eval_every": 16, **more}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ag.train("add3", name="whole", settings=settings(), runs_dir=tmp_path, progress=False)
    plain = Member.batch

    def batch(self: Member) -> Batch:
        if self.step == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(Member, "batch", batch)
        with pytest.raises(Interrupted):
            ag.train("add3", name="cut", settings=settings(), runs_dir=tmp_path, progress=False)
    cut = ag.train("add3", name="cut", settings=settings(), resume=True, runs_dir=tmp_path, progress=False)
    assert cut.summary.weights_sha256 == whole.summary.weights_sha256


def test_easy_batches_do_not_start_the_decay(tmp_path: Path) -> None:
    early = settings(steps=80, **{"optim.decay_at": 0.0, "optim.hold": 1.0})
    run = ag.train("add3", settings=early, runs_dir=tmp_path, progress=False)
    at_peak = [row["step"] for row in run.metrics() if row["lr"] == run.config.optim.lr]
    assert at_peak == [10, 20, 30, 40, 50]  # noticed in the row of step 50, whose own step was at the peak


def test_it_is_refused_where_nothing_can_grow() -> None:
    for recipe in (add3_reference, grok59):
        with pytest.raises(ConfigError, match="curriculum 7 needs fresh draws of a task with stages"):
            override(recipe(), {"data.curriculum": 7})
        with pytest.raises(ConfigError, match=r"repeat_share 0.5 needs fresh draws of a task with columns"):
            override(recipe(), {"data.repeat_share": 0.5})


def test_configs_written_before_there_was_one_have_none() -> None:
    plain = add3().model_dump()
    del plain["data"]["curriculum"], plain["data"]["repeat_share"]
    assert parse_config(plain) == add3()
