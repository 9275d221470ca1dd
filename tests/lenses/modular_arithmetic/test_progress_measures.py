"""The progress lens: the same measures at every checkpoint, over the run's own split, and phases by rule."""

import json

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from algoscope.core.errors import SubjectError, TaskMismatchError
from algoscope.core.finding import Finding
from algoscope.data import FixedBatches, batches, held_out
from algoscope.doors.report.report import render
from algoscope.lenses.modular_arithmetic.fourier_lens import fourier
from algoscope.lenses.modular_arithmetic.operand_pairs import pairs_of
from algoscope.lenses.modular_arithmetic.progress_measures import phases_of, progress_measures
from algoscope.tasks.groups.modular import Modular

P, N_TRAIN = 11, 80


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, trained_seed: int) -> ag.Run:
    """A run that memorises 80 of 121 pairs."""
    task = Modular(p=P, form="ab=")
    model = ModelConfig(
        d_vocab=task.d_vocab, d_vocab_out=P, n_ctx=task.n_ctx, d_model=24, d_mlp=48, n_layers=1, n_heads=2,
        tied_head=False, normalization_type=None, init_embed_std=1.0,
    )  # fmt: skip
    config = RunConfig(
        recipe="memorises",
        task=task,
        model=model,
        data=DataConfig(source="fixed", n_train=N_TRAIN, n_test=P**2 - N_TRAIN, test_seed=None),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(steps=160, batch=N_TRAIN, eval_every=16, log_every=16, checkpoint_every=32),
        seed=5 + trained_seed,
    )
    return ag.train(config, runs_dir=tmp_path_factory.mktemp("runs"), progress=False)


@pytest.fixture(scope="module")
def formed(trained: ag.Run) -> Finding:
    return progress_measures(trained)


def test_the_split_is_the_one_that_the_run_was_trained_on(trained):
    pairs, config = pairs_of(ag.open(trained)), trained.config
    test = held_out(config.task, config.data, config.seed, torch.device("cpu"))
    drawn = batches(config.task, config.data, config.train.batch, config.seed, test)
    assert isinstance(drawn, FixedBatches)
    seen = {tuple(row) for row in drawn.batch(0)[:, :2].tolist()}
    assert len(seen) == N_TRAIN
    assert {(a, b) for a in range(P) for b in range(P) if pairs.trained[a, b]} == seen


def test_losses_at_checkpoints_are_those_that_training_logged(trained, formed):
    steps = formed["steps"]
    rows = {row["step"]: row for row in trained.metrics()}
    for step in (32, 64, 128, 160):
        at = steps.index(step)
        assert formed["series"]["loss, held-out pairs"][at] == pytest.approx(rows[step]["test_loss"], rel=1e-4)
        assert formed["series"]["accuracy, held-out pairs"][at] == pytest.approx(rows[step]["test_accuracy"])


def test_the_last_checkpoint_has_the_numbers_of_the_fourier_lens(trained, formed):
    found, series = fourier(trained), formed["series"]
    assert formed["keys"] == [key["component"] for key in found["keys"]]
    losses = {(row["what"], row["over"]): row["loss"] for row in reversed(found["losses"])}
    for over in ("all pairs", "training pairs", "held-out pairs"):
        assert series[f"loss, {over}"][-1] == pytest.approx(losses["full", over], rel=1e-9)
        assert series[f"excluded loss, {over}"][-1] == pytest.approx(losses["excluded", over], rel=1e-9)
    assert series["restricted loss"][-1] == pytest.approx(losses["restricted", "all pairs"], rel=1e-9)
    single = {tuple(row["keys"]): row["loss"] for row in found["losses"] if row["what"] == "excluded"}
    for key in formed["keys"]:
        assert series[f"excluded loss {key}, held-out pairs"][-1] == pytest.approx(single[key,], rel=1e-9)
    assert series["Gini W_E"][-1] == pytest.approx(found["gini"]["W_E"])
    assert series["Gini W_L"][-1] == pytest.approx(found["gini"]["W_L"])
    assert series["similar components"][-1] == len(formed["keys"])
    weights = ag.open(trained).model.parameters()
    assert series["sum of squared weights"][-1] == pytest.approx(sum(float(w.pow(2).sum()) for w in weights), rel=1e-5)


def test_a_run_that_does_not_generalise_is_said_to(formed):
    assert formed["steps"][0] == 0
    right = zip(formed["steps"], formed["series"]["accuracy, training pairs"], strict=True)
    assert formed["phases"]["memorised"] == next((step for step, share in right if share >= 0.99), None)
    assert formed["phases"]["generalised"] is None
    assert formed["phases"]["settled"] is None
    assert formed["waited"] is None
    assert "(4) generalises: never" in formed.claim
    assert {len(series) for series in formed["series"].values()} == {len(formed["steps"])}


def test_every_curve_carries_the_phases_and_goes_to_json(formed):
    reached = [step for step in formed["phases"].values() if step is not None]
    for panel in formed.panels:
        assert [mark.at for mark in panel.marks] == reached
        assert panel.axes[0].labels == tuple(formed["steps"])
    assert [panel.name for panel in formed.panels if panel.beside == "loss"] == [
        "loss, training pairs", "loss, held-out pairs", "restricted loss", "excluded loss, training pairs",
    ]  # fmt: skip
    assert json.loads(Finding.from_json(formed.to_json()).to_json()) == json.loads(formed.to_json())


def test_every_figure_is_explained_and_the_table_holds_the_phases(formed):
    assert formed.about
    assert all(panel.caption for panel in formed.panels)
    [table] = formed.tables
    assert [row[2] for row in table.rows] == [
        step if step is not None else "never" for step in formed["phases"].values()
    ]
    assert table.rows[0][3] == "the first checkpoint with training accuracy at least 99 %"


# ---------------------------------------------------------------------- phases


def made_up(**changes) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Ten checkpoints of a run that goes through all phases."""
    steps = np.arange(0, 10_000, 1000)
    squares = np.array([100, 150, 140, 130, 120, 80, 60, 59, 58.9, 58.8])
    return steps, {
        "accuracy, training pairs": np.array([0.01, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        "accuracy, held-out pairs": np.array([0.01, 0.02, 0.02, 0.1, 0.2, 0.8, 0.99, 1, 1, 1]),
        "loss, held-out pairs": np.array([4.7, 20, 22, 20, 15, 2, 0.1, 1e-3, 1e-6, 1e-7]),
        "excluded loss, training pairs": np.array([4.7, 0.4, 0.2, 1, 3, 5, 6, 7, 7, 7]),
        "sum of squared weights": squares,
    } | changes


def test_phases_are_where_the_rules_put_them():
    # the norm falls by sqrt(60/59): 0.8 % in the 1,000 steps up to 7,000, by far more before
    assert phases_of(*made_up(), learned=0.99) == {
        "memorised": 1000, "forming": 2000, "cleaning": 5000, "generalised": 6000, "settled": 7000,
    }  # fmt: skip


def test_phases_that_do_not_happen_are_none():
    steps, series = made_up()
    held_out = np.full(10, 0.05)
    still = phases_of(steps, series | {"accuracy, held-out pairs": held_out}, learned=0.99)
    assert still["generalised"] is still["settled"] is None
    rising = np.linspace(4, 30, 10)
    assert phases_of(steps, series | {"loss, held-out pairs": rising}, learned=0.99)["cleaning"] is None
    falling = np.linspace(5, 0, 10)
    assert phases_of(steps, series | {"excluded loss, training pairs": falling}, learned=0.99)["forming"] is None
    shrinking = 100 * 0.9 ** np.arange(10)
    assert phases_of(steps, series | {"sum of squared weights": shrinking}, learned=0.99)["settled"] is None
    nothing_known = {"restricted loss": np.ones(10)}
    assert set(phases_of(steps, nothing_known, learned=0.99).values()) == {None}


def test_a_subject_without_checkpoints_or_without_a_group_is_one_line(small_run):
    with pytest.raises(SubjectError, match="planted:clock has no checkpoints to compare: give a trained run"):
        progress_measures("planted:clock")
    with pytest.raises(TaskMismatchError, match="is not the operation of a group"):
        progress_measures(small_run)


def test_a_run_on_fresh_draws_has_no_split(tmp_path):
    task = Modular(p=7)
    config = RunConfig(
        recipe="fresh",
        task=task,
        model=ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_model=8, d_mlp=None, n_layers=1),
        data=DataConfig(source="fresh", n_test=5),
        optim=OptimConfig(),
        train=TrainConfig(steps=4, batch=8, eval_every=2, log_every=2),
    )
    found = progress_measures(ag.train(config, runs_dir=tmp_path, progress=False))
    assert not any("training" in name for name in found["series"])
    assert found["phases"]["memorised"] is None
    assert found.panels[0].name == "loss, all pairs"
    assert "Gini W_L" not in found["series"]


def test_the_page_of_a_run_has_both_sections(trained, formed):
    subject = ag.open(trained)
    looks = {"fourier": fourier(subject), "progress": formed, "verdict": ag.certify(subject, progress=False)}
    page = render(subject, looks)
    assert 'id="fourier"' in page
    assert 'id="progress"' in page
    assert formed.claim[1:] in page
