"""Training: the same weights every time, nothing lost when it stops, one line when it cannot go on."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import algoscope as ag
from algoscope.core.errors import CheckpointError, ConfigError, DivergedError, Interrupted, RunFolderError
from algoscope.runs.run_folder import Run, weights_hash
from algoscope.training import model_stack as engine
from algoscope.training.member import Member, is_checkpoint
from conftest import SMALL
from interrupted import interrupt_at, without_times


def small(runs_dir: Path, name: str = "run", **settings) -> Run:
    resume = settings.pop("resume", False)
    return ag.train("add3", name=name, settings=SMALL | settings, runs_dir=runs_dir, resume=resume, progress=False)


def hash_of(run: Run) -> str:
    return weights_hash(run.model().state_dict())


def test_same_recipe_and_seed_same_weights_bit_for_bit(small_run: Run, tmp_path: Path) -> None:
    seed = small_run.config.seed
    again = small(tmp_path, seed=seed)
    assert hash_of(again) == hash_of(small_run) == small_run.summary.weights_sha256
    other = small(tmp_path, "other", seed=seed + 1)
    assert hash_of(other) != hash_of(small_run)


@pytest.mark.parametrize("stop_at", [1, 16, 37, 59])
def test_resumed_run_equals_an_uninterrupted_one(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop_at - 1)
        with pytest.raises(Interrupted, match=f"step {stop_at} of 60.*--resume"):
            small(tmp_path, seed=small_run.config.seed)
    stopped = Run(tmp_path / "run")
    assert not stopped.is_whole
    assert stopped.newest_step == stop_at
    resumed = small(tmp_path, seed=small_run.config.seed, resume=True)
    assert hash_of(resumed) == hash_of(small_run)
    assert resumed.steps == small_run.steps
    assert without_times(resumed) == without_times(small_run)


GROK = {
    "optim.grokfast": "ema",
    "optim.perpendicular": True,
    "optim.norm_clamp": 0.8,
    "train.loss": "stablemax",
    "train.loss_dtype": "float64",
}


@pytest.mark.parametrize(
    "settings",
    [GROK, {"optim.grokfast": "ma", "optim.grokfast_window": 30}, {"optim.average": 0.9}],
    ids=["ema", "ma", "averaged weights"],
)
def test_a_run_with_slow_gradients_and_a_clamp_resumes_too(
    settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small(tmp_path, "whole", **settings)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 36)
        with pytest.raises(Interrupted):
            small(tmp_path, **settings)
    assert hash_of(small(tmp_path, resume=True, **settings)) == hash_of(whole)


def test_checkpoints_hold_the_mean_of_the_weights(tmp_path: Path) -> None:
    every = {"train.checkpoint_every": 1, "steps": 8}
    plain = small(tmp_path, "plain", **every)
    averaged = small(tmp_path, "averaged", **every, **{"optim.average": 0.75})
    mean = plain.model(0).state_dict()
    for step in range(1, 9):
        mean = {name: 0.75 * kept + 0.25 * plain.model(step).state_dict()[name] for name, kept in mean.items()}
        for name, weight in averaged.model(step).state_dict().items():
            torch.testing.assert_close(weight, mean[name], rtol=1e-5, atol=1e-6)


def test_a_run_ends_where_enough_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.2, 0.6, 0.7])
    monkeypatch.setattr(Member, "_evaluate", lambda self, stack, place: (1.0, next(accuracies)))
    run = small(tmp_path, **{"train.stop_at": 0.5, "train.eval_every": 20})
    assert (run.summary.steps, run.summary.test_accuracy) == (40, 0.6)
    assert run.is_whole
    assert run.steps[-1] == 40


def test_killed_between_two_writes_it_resumes_from_the_last_whole_state(small_run: Run, tmp_path: Path) -> None:
    seed = small_run.config.seed
    run = small(tmp_path, seed=seed)
    (run.path / "run.json").unlink()
    state = next((run.path / "state").glob("*.safetensors"))
    weights = run.path / "checkpoints" / state.name
    weights.unlink()  # as if killed after the state of step 60 and before anything else
    with pytest.raises(RunFolderError, match="--resume"):
        small(tmp_path, seed=seed)
    assert hash_of(small(tmp_path, seed=seed, resume=True)) == hash_of(small_run)


def test_a_whole_run_is_returned_as_it_is(tmp_path: Path) -> None:
    run = small(tmp_path)
    written = (run.path / "run.json").stat().st_mtime_ns
    assert hash_of(small(tmp_path, resume=True)) == hash_of(run)
    assert (run.path / "run.json").stat().st_mtime_ns == written
    with pytest.raises(RunFolderError, match="exists and is finished"):
        small(tmp_path)


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    small(tmp_path)
    with pytest.raises(RunFolderError, match=r"another config: optim\.lr is 0\.\d+, not 0\.5; .*runs rm"):
        small(tmp_path, resume=True, lr=0.5)


@pytest.mark.parametrize("finished", [True, False])
def test_resuming_another_recipe_or_config_is_refused(finished: bool, tmp_path: Path, run) -> None:
    started = small(tmp_path)
    if not finished:
        (started.path / "run.json").unlink()
    where = {"name": "run", "runs_dir": tmp_path, "resume": True, "progress": False}
    with pytest.raises(RunFolderError, match="recipe is 'add3', not 'grok59'"):
        ag.train("grok59", **where)
    with pytest.raises(RunFolderError, match="another config: seed is 0, not 1"):
        ag.train(started.config.model_copy(update={"seed": 1}), **where)
    with pytest.raises(RunFolderError, match=r"optim\.weight_decay is"):
        ag.train(ag.override(started.config, {"optim.weight_decay": 0.5}), **where)
    with pytest.raises(RunFolderError, match="another config"):
        ag.train_many({"run": ag.override(started.config, {"recipe": "mine"})}, runs_dir=tmp_path, resume=True)
    code, out, err = run("train", "grok59", "--name", "run", "--runs-dir", tmp_path, "--resume", "--json")
    assert (code, out, "recipe is 'add3', not 'grok59'" in err) == (2, "", True)
    assert hash_of(ag.train("add3", **where)) == hash_of(started)  # the recipe alone: with the settings it has
    assert hash_of(ag.train(started.config, **where)) == hash_of(started)


def test_a_population_in_which_one_member_does_not_fit_makes_no_run(tmp_path: Path) -> None:
    config = small(tmp_path, "last").config
    members = {"first": config, "last": ag.override(config, {"lr": 0.5})}
    with pytest.raises(RunFolderError, match=r"last has another config: optim\.lr"):
        ag.train_many(members, runs_dir=tmp_path, resume=True, progress=False)
    assert not (tmp_path / "first").exists()


def test_a_run_without_the_metrics_that_its_end_depends_on_is_not_continued(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 36)
        with pytest.raises(Interrupted):
            small(tmp_path)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(RunFolderError, match=r"no metrics of step 30: restore metrics\.jsonl, or `algoscope runs rm"):
        small(tmp_path, resume=True)


def test_nan_loss_keeps_the_last_good_checkpoint_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"loss is (nan|inf) at step \d+.*last good checkpoint is step \d+"
    ) as raised:
        small(tmp_path, **{"lr": 1e30, "optim.muon_lr": 1e30})
    assert "\n" not in str(raised.value)
    run = Run(tmp_path / "run")
    assert run.newest_step is not None
    assert all(weight.isfinite().all() for weight in run.model().state_dict().values())
    assert not run.is_whole


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Run.save_checkpoint

    def save(self, step, weights, state) -> None:
        if step >= 32:
            monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        plain(self, step, weights, state)

    monkeypatch.setattr(Run, "save_checkpoint", save)
    with pytest.raises(RunFolderError, match="No space left") as raised:
        small(tmp_path)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    run = Run(tmp_path / "run")
    assert run.newest_step == 16
    assert not list(run.path.glob("**/*.tmp"))
    small(tmp_path, resume=True)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="file"):
        small(tmp_path / "file")


def test_a_second_process_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(Interrupted):
            small(tmp_path)
    with Run(tmp_path / "run").lock(), pytest.raises(RunFolderError, match="another process"):
        small(tmp_path, resume=True)
    small(tmp_path, resume=True)


def test_unknown_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="abacus"):
        ag.train("add3", settings=SMALL, runs_dir=tmp_path, device="abacus", progress=False)


def test_truncated_checkpoint_is_one_line(tmp_path: Path) -> None:
    run = small(tmp_path)
    path = sorted(run.path.glob("checkpoints/*"))[-1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"step_00000060.*no complete safetensors file"):
        run.model()
    assert run.model(32) is not None


def test_checkpoints_are_dense_early_and_even_later() -> None:
    steps = [step for step in range(1, 4000) if is_checkpoint(step, 1000)]
    assert steps == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1024, 2000, 3000]


def test_run_json_is_complete(small_run: Run) -> None:
    summary = small_run.summary
    assert summary.parameters == sum(p.numel() for p in small_run.model().parameters())
    assert summary.examples == 60 * 32
    assert set(summary.versions) == {"algoscope", "python", "torch"}
    assert summary.processor.capability == torch.backends.cpu.get_cpu_capability()
    assert summary.processor.name


def test_a_summary_without_a_processor_still_opens(small_run: Run, tmp_path: Path) -> None:
    older = json.loads((small_run.path / "run.json").read_text())
    del older["processor"], older["imported"], older["merged"]
    shutil.copytree(small_run.path, tmp_path / "older")
    (tmp_path / "older" / "run.json").write_text(json.dumps(older))
    summary = Run(tmp_path / "older").summary
    assert summary == small_run.summary.model_copy(update={"processor": None})


def test_the_fixed_set_is_trained_epoch_by_epoch(tmp_path: Path) -> None:
    settings = {
        "n_digits": 2,
        "data.n_train": 500,
        "data.n_test": 100,
        "steps": 20,
        "batch": 64,
        "train.eval_every": 10,
    }
    run = ag.train("add3_reference", name="fixed", settings=settings, runs_dir=tmp_path, progress=False)
    assert run.summary.examples == 2 * 500 + 4 * 64


def test_training_lowers_the_loss_of_a_learnable_task(tmp_path: Path, trained_seed: int) -> None:
    run = small(tmp_path, seed=trained_seed, steps=300)
    rows = run.metrics()
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert torch.get_num_threads() == 1


def test_gradients_added_up_in_parts_are_those_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = engine.mean_loss
    monkeypatch.setattr(engine, "mean_loss", lambda said, *rest: sizes.append(len(said)) or forward(said, *rest))
    whole = small(tmp_path, "whole", steps=3).model().state_dict()
    assert sizes.count(32) == 3
    sizes.clear()
    parts = small(tmp_path, "parts", steps=3, **{"train.accumulate": 5}).model().state_dict()
    assert sizes.count(7) == 12
    assert sizes.count(4) == 3
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=r"train.accumulate 40 exceeds train.batch 32"):
        small(tmp_path, "none", **{"train.accumulate": 40})
