"""The timeline lens: every checkpoint measured as a lens would measure it, once; what formed when, by rule."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import algoscope as ag
from algoscope.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from algoscope.core.errors import ConfigError, SubjectError, UnknownNameError
from algoscope.core.renaming import RenamedWarning
from algoscope.lenses.modular_arithmetic import progress_measures
from algoscope.lenses.over_training import timeline_lens
from algoscope.lenses.over_training._fact_paths import split
from algoscope.lenses.over_training._formation_rules import formation, rule_of
from algoscope.lenses.over_training.checkpoint_series import over_checkpoints
from algoscope.networks.transformer import Transformer
from algoscope.planted.models import carry_adder, reversal, shuffled


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The weights that were measured, in order."""
    measured: list[str] = []
    plain = timeline_lens.answer_numbers

    def measure(subject: ag.Subject, probe: object) -> dict[str, float]:
        measured.append(subject.weights_sha256)
        return plain(subject, probe)

    monkeypatch.setattr(timeline_lens, "answer_numbers", measure)
    return measured


def run_of(path: Path, models: Mapping[int, Transformer], config: RunConfig) -> ag.Run:
    """A run folder with these models as its checkpoints."""
    run = ag.Run.create(path, config)
    for step, model in models.items():
        run.save_checkpoint(step, model.state_dict(), {})
    return run


# ---------------------------------------------------------------------- what is measured


def test_every_checkpoint_has_the_numbers_that_lenses_and_certify_give_it(small_run: ag.Run) -> None:
    found = ag.lenses.timeline(small_run)
    assert found["steps"] == small_run.steps
    assert found["probe"]["method"] == "exhaustive"
    for at, step in ((3, small_run.steps[3]), (-1, small_run.steps[-1])):
        model = ag.open(f"run:{small_run.path}@{step}")
        series = {name: values[at] for name, values in found["series"].items()}
        verdict = ag.certify(model)
        assert series["accuracy: whole answer"] == pytest.approx(verdict["accuracy"])
        for row in verdict["by_class"]:
            if row["checked"]:
                assert series[f"class: {row['class']}"] == pytest.approx(1 - row["wrong"] / row["checked"])
        for head in ag.lenses.roles(model, n_inputs=64)["heads"]:
            for role, score in head["scores"].items():
                assert series.get(f"head: {head['name']} {role}") == score
        task = model.task
        tokens = task.at(torch.arange(100))
        chances = model(tokens[:, :-1]).double().log_softmax(-1)[:, task.answer_slice]
        right = chances.gather(-1, tokens[:, task.prompt_length :, None])[..., 0]
        assert series["loss: all tokens"] == pytest.approx(-float(right.mean()), rel=1e-5)
        assert series["loss: token 2"] == pytest.approx(-float(right[:, 1].mean()), rel=1e-5)
        assert series["loss: <EOS>"] == pytest.approx(-float(right[:, 2].mean()), rel=1e-5)
        weight = model.model.block(1).mlp.w_in.weight.detach().double().numpy()
        singular = np.linalg.svd(weight, compute_uv=False)
        assert series["stable rank: L1.mlp.w_in"] == pytest.approx((singular**2).sum() / singular[0] ** 2)
        share = singular / singular.sum()
        assert series["entropy rank: L1.mlp.w_in"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        norms = [float(weight.double().norm()) for weight in model.model.parameters()]
        assert series["norm: all weights"] == pytest.approx(float(np.linalg.norm(norms)))


def test_a_large_domain_is_sampled_and_says_so(small_run: ag.Run, tmp_path: Path) -> None:
    planted = carry_adder()
    config = small_run.config.model_copy(update={"task": planted.task, "model": planted.model.cfg})
    run = run_of(tmp_path / "adder", {0: shuffled(planted, 0).model, 4: planted.model}, config)
    found = ag.lenses.timeline(run, ["answers"], n_inputs=300, per_class=40)
    said = found["probe"]
    assert (said["method"], said["inputs"], said["of"]) == ("sampled", 300, 1_000_000)
    assert {name: row["inputs"] for name, row in said["classes"].items()} == dict.fromkeys(("S0", "S1", "S2", "S3"), 40)
    assert all(found["series"][f"class: {name}"][-1] == 1 for name in said["classes"])
    assert found["series"]["accuracy: whole answer"][0] < 0.1
    assert {panel.name for panel in found.panels} == {"loss", "accuracy", "class"}


def test_frequencies_are_those_of_the_progress_lens_which_measures_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ag.Modular(p=7, form="ab=")
    config = RunConfig(
        recipe="tiny",
        task=task,
        model=ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_model=16, d_mlp=32, n_layers=1),
        data=DataConfig(source="fixed", n_train=40, n_test=9, test_seed=None),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(steps=40, batch=40, eval_every=10, log_every=10, checkpoint_every=20),
    )
    run = ag.train(config, runs_dir=tmp_path, progress=False)
    found = ag.lenses.timeline(run)
    with monkeypatch.context() as from_now_on:
        from_now_on.setattr(progress_measures, "measures", None)
        progress = ag.lenses.progress(run)
    series = found["series"]
    assert series["frequency loss: keys alone"] == progress["series"]["restricted loss"]
    assert series["frequency loss: without keys, training"] == progress["series"]["excluded loss, training pairs"]
    assert series["frequency share: variance of keys"] == progress["series"]["share of the keys"]
    keys = [key["similarity"] for key in ag.lenses.fourier(run)["keys"]]
    assert progress["series"]["share of the keys"][-1] == pytest.approx(sum(value**2 for value in keys))


# ---------------------------------------------------------------------- what formed


def test_what_is_planted_at_a_step_forms_there_and_what_is_destroyed_never(small_run: ag.Run, tmp_path: Path) -> None:
    whole, broken = reversal(), shuffled(reversal(), 0)
    config = small_run.config.model_copy(update={"task": whole.task, "model": whole.model.cfg})
    models = {0: broken.model, 1: shuffled(reversal(), 1).model, 8: whole.model, 16: whole.model}
    found = ag.lenses.timeline(run_of(tmp_path / "rises", models, config))
    rows = {row["series"]: row for row in found["formed"]}
    assert (rows["accuracy: whole answer"]["step"], rows["accuracy: whole answer"]["after"]) == (8, 1)
    loss = found["series"]["loss: all tokens"]
    middle = (loss[0] + loss[-1]) / 2  # one shuffle may be less wrong than the other
    assert rows["loss: all tokens"]["threshold"] == pytest.approx(middle)
    assert rows["loss: all tokens"]["step"] == (1 if loss[1] <= middle else 8)
    assert rows["head: L0H0 sparse"]["step"] == 8
    assert found["curves"] is None
    assert rows["accuracy: whole answer"]["beside_jump"] is None
    fallen = ag.lenses.timeline(run_of(tmp_path / "falls", {0: whole.model, 8: broken.model}, config))
    assert {row["series"]: row["step"] for row in fallen["formed"]}["accuracy: whole answer"] is None


@pytest.mark.parametrize(
    ("name", "values", "threshold", "rises"),
    [
        ("accuracy: token 1", [0.1, 1.0], 0.9, True),
        ("class: S3", [1.0, 0.2], 0.9, True),
        ("head: L0H0 previous-token", [0.0, 0.1], 0.4, True),
        ("head: L0H0 uniform", [1.0, 0.1], 0.8, True),
        ("head: L0H0 sparse", [0.0, 0.1], 0.5, True),
        ("loss: all tokens", [3.0, 5.0, 1.0], 2.0, False),
        ("loss: all tokens", [1.0, 1.05], None, True),
        ("frequency loss: without the keys", [np.nan, 1.0, 3.0], 2.0, True),
        ("followed: certify:wrong", [100.0, 0.0], 50.0, False),
        ("followed: certify:wrong", [np.nan, 7.0], None, True),
        ("stable rank: embed", [1.0, 9.0], None, True),
        ("norm: all weights", [1.0, 9.0], None, True),
    ],
)
def test_the_rule_of_each_kind(name: str, values: list[float], threshold: float | None, rises: bool) -> None:
    rule, found, direction = rule_of(name, np.array(values))
    assert (found, direction) == (threshold, rises)
    assert (rule is None) == (threshold is None)


def test_steps_stand_in_order_beside_the_jump() -> None:
    steps = np.array([0, 10, 20, 40])
    series = {
        "accuracy: late": np.array([0.0, 0.0, 0.95, 1.0]),
        "accuracy: never": np.array([0.0, 1.0, 1.0, 0.8]),
        "loss: early": np.array([4.0, 1.0, 1.0, 0.0]),
        "accuracy: last": np.array([0.0, 0.0, 0.0, 1.0]),
    }
    rows = formation(steps, series, {"plateau": None, "jump": {"step": 20, "from": 15, "to": 30}})
    assert [(row["series"], row["step"], row["after"], row["beside_jump"]) for row in rows] == [
        ("loss: early", 10, 0, "before"),
        ("accuracy: late", 20, 10, "during"),
        ("accuracy: last", 40, 20, "after"),
        ("accuracy: never", None, None, None),
    ]


# ---------------------------------------------------------------------- kept


def test_no_checkpoint_is_measured_twice(own_run: ag.Run, counted: list[str]) -> None:
    first = ag.lenses.timeline(own_run, ["answers"])
    assert len(counted) == len(set(counted)) == len(own_run.steps)
    again = ag.lenses.timeline(own_run, ["answers"])
    assert len(counted) == len(own_run.steps)
    assert json.loads(again.to_json()) == json.loads(first.to_json())
    ag.lenses.timeline(own_run, ["answers"], by="pattern")  # another probe is another measure
    assert len(counted) == 2 * len(own_run.steps)


def test_a_changed_checkpoint_is_measured_again(own_run: ag.Run, counted: list[str]) -> None:
    ag.lenses.timeline(own_run, ["answers"])
    path = sorted(own_run.path.glob("checkpoints/*"))[2]
    weights = load_file(path)
    weights["embed.weight"] += 0.1
    save_file(weights, path)
    counted.clear()
    found = ag.lenses.timeline(own_run, ["answers"])
    assert len(counted) == 1
    assert found["series"]["accuracy: token 1"][2] is not None


def test_a_kill_costs_one_checkpoint(own_run: ag.Run, counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measure = timeline_lens.answer_numbers

    def killed(subject: ag.Subject, probe: object) -> dict[str, float]:
        if len(counted) == 3:
            raise KeyboardInterrupt
        return measure(subject, probe)

    with monkeypatch.context() as until:
        until.setattr(timeline_lens, "answer_numbers", killed)
        with pytest.raises(KeyboardInterrupt):
            ag.lenses.timeline(own_run, ["answers"])
    assert len(counted) == 3
    ag.lenses.timeline(own_run, ["answers"])
    assert len(counted) == len(own_run.steps)


def test_a_broken_file_is_measured_again_and_a_closed_folder_costs_time_alone(
    own_run: ag.Run, counted: list[str]
) -> None:
    ag.lenses.timeline(own_run, ["answers"])
    for path in (own_run.path / "timeline").iterdir():
        path.write_text('{"measure": 3')
    counted.clear()
    ag.lenses.timeline(own_run, ["answers"])
    assert len(counted) == len(own_run.steps)
    shutil.rmtree(own_run.path / "timeline")
    (own_run.path / "timeline").write_text("in the way")
    counted.clear()
    assert ag.lenses.timeline(own_run, ["answers"])["steps"] == own_run.steps
    assert len(counted) == len(own_run.steps)


def test_numbers_that_are_none_are_none_when_they_come_back(own_run: ag.Run) -> None:
    def measure(subject: ag.Subject) -> dict[str, float]:
        return {"a": float("inf"), "b": float("nan"), "c": 0.1 + 0.2}

    for _ in range(2):
        _, series = over_checkpoints(ag.open(own_run), measure, keep="odd")
        assert np.isnan(series["a"]).all()
        assert np.isnan(series["b"]).all()
        assert (series["c"] == 0.1 + 0.2).all()


# ---------------------------------------------------------------------- any number of any lens


def test_any_number_of_a_lens_or_of_certify_can_be_followed(small_run: ag.Run) -> None:
    asked = ["certify:accuracy", "certify:robust", "roles:heads.0.scores.previous-token", "certify:interval_95"]
    found = ag.lenses.timeline(small_run, asked)
    assert list(found["series"]) == [f"followed: {fact}" for fact in asked]
    for at in (2, -1):
        model = ag.open(f"run:{small_run.path}@{small_run.steps[at]}")
        values = [found["series"][f"followed: {fact}"][at] for fact in asked]
        score = ag.lenses.roles(model)["heads"][0]["scores"]["previous-token"]
        assert values == [ag.certify(model)["accuracy"], 0.0, score, None]
    assert [panel.name for panel in found.panels] == asked


def test_a_followed_measure_runs_once_for_each_checkpoint(own_run: ag.Run) -> None:
    measured: list[str] = []

    def certify(subject: ag.Subject) -> ag.Finding:
        measured.append(subject.weights_sha256)
        return ag.certify(subject)

    ag.lenses.timeline(own_run, "certify:wrong", measures={"certify": certify})
    assert len(measured) == len(own_run.steps)
    ag.lenses.timeline(own_run, ["certify:accuracy", "certify:min_margin"])  # other facts of the same verdict
    assert len(measured) == len(own_run.steps)


def test_a_measure_of_ones_own_can_be_followed(small_run: ag.Run) -> None:
    def norms(subject: ag.Subject) -> ag.Finding:
        return subject.finding("norms", "", {"embedding": float(subject.token_embedding().norm())})

    series = ag.lenses.timeline(small_run, "norms:embedding", measures={"norms": norms})["series"]
    assert series["followed: norms:embedding"][-1] == float(ag.open(small_run).token_embedding().norm())


@pytest.mark.parametrize(
    ("fact", "error", "said"),
    [
        ("certify:subject", ConfigError, "'certify:subject' is not a number among the facts of the last checkpoint"),
        ("certify:domain", ConfigError, "numbers of certify: domain.size, domain.checked"),
        ("certify:accurracy", ConfigError, "numbers of certify: accuracy"),
        ("certify:", ConfigError, "is not a fact of a lens: write LENS:FACT"),
        ("certfy:wrong", UnknownNameError, "did you mean 'certify'"),
        ("headz", UnknownNameError, "did you mean 'heads'"),
        ("induction_phase:threshold", ConfigError, "induction_phase measures all checkpoints itself"),
        ("logit:loss", ConfigError, r"logit needs more than a model \(inputs\)"),
    ],
)
def test_what_cannot_be_followed_is_one_line(small_run: ag.Run, fact: str, error: type, said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        ag.lenses.timeline(small_run, [fact])
    assert "\n" not in str(raised.value)


def test_a_role_by_its_former_name_is_followed_with_a_warning() -> None:
    with pytest.warns(RenamedWarning, match="'same-token' is now called 'duplicate-token'"):
        assert split("roles:heads.0.scores.same-token", {}) == ("roles", "heads.0.scores.duplicate-token")


def test_a_model_without_checkpoints_is_one_line() -> None:
    with pytest.raises(SubjectError, match="planted:reversal has no checkpoints to compare"):
        ag.lenses.timeline("planted:reversal")
    with pytest.raises(SubjectError, match="no checkpoints"):
        ag.lenses.timeline("planted:induction")


# ---------------------------------------------------------------------- what is shown


def test_one_figure_on_one_axis_of_steps(small_run: ag.Run) -> None:
    found = ag.lenses.timeline(small_run)
    assert {panel.axes[1].labels for panel in found.panels} == {tuple(small_run.steps)}
    assert {panel.view for panel in found.panels} == {"heatmap"}
    assert ag.Finding.from_json(found.to_json()).facts == json.loads(json.dumps(found.facts))
    domains = {tuple(found.plot().layout[name].domain) for name in found.plot().layout if str(name).startswith("xaxis")}
    assert len(domains) == 1


def test_every_figure_is_explained_and_the_table_holds_what_formed(small_run: ag.Run) -> None:
    found = ag.lenses.timeline(small_run, ["answers", "weights", "certify:wrong"])
    assert found.about
    assert all(panel.caption for panel in found.panels)
    [table] = found.tables
    formed = {row["series"]: row["step"] for row in found["formed"] if row["rule"] is not None}
    steps = {row[0]: None if row[2] == "never" else row[2] for row in table.rows if not row[0].startswith("curves")}
    assert steps == formed


def test_the_former_name_of_an_option_works_and_warns(small_run: ag.Run) -> None:
    with pytest.warns(FutureWarning, match="n_inputs_roles"):
        assert ag.lenses.timeline(small_run, "weights", role_inputs=16)["steps"] == small_run.steps


def test_the_command_prints_the_table_and_takes_its_options(small_run: ag.Run, run) -> None:
    code, out, err = run("lens", "timeline", f"run:{small_run.path}", "--of", "answers", "--of", "certify:wrong")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if line.startswith(("accuracy:", "loss:", "curves:"))]
    assert ["accuracy:", "<EOS>", "stays", "at", "0.9", "or", "above"] in [line[:7] for line in lines]
    assert "Formation by step" in out
    code, out, err = run("lens", "timeline", f"run:{small_run.path}", "--of", "certify:nothing", "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1)
