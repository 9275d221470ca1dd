"""The census: copies with permuted heads and neurons are the same, others are told apart, chance predicts nothing."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata

import algoscope as ag
from algoscope.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from algoscope.core.errors import ConfigError, RunFolderError
from algoscope.networks.build import build
from algoscope.networks.head_permutations import permuted
from algoscope.networks.transformer import Transformer
from algoscope.planted.handwritten import Stream, plant_by_position
from algoscope.planted.models import carry_adder, induction, letters_model, reversal
from algoscope.runs.run_folder import weights_hash
from algoscope.runs.summary import RunSummary
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.verdicts.census.early_features import deciding
from algoscope.verdicts.census.head_matching import differences, distance, distances, matched, profile_of
from algoscope.verdicts.census.outcome_prediction import Question, predict_outcome
from algoscope.verdicts.census.solution_clusters import count_by_threshold, medoid, solutions, steadiest

COPYING = ag.Copying(n_symbols=26, length=12, shortest=4, longest=4)


def planted_run(folder: Path, name: str, seed: int, model: Transformer, task: Task) -> ag.Run:
    """A whole run whose last weights are these; its first are random."""
    config = RunConfig(
        recipe="planted",
        task=task,
        model=model.cfg,
        data=DataConfig(source="fresh", n_test=4),
        optim=OptimConfig(),
        train=TrainConfig(steps=4, batch=4),
        seed=seed,
    )
    run = ag.Run.create(folder / name, config)
    run.save_checkpoint(0, build(model.cfg, seed).state_dict(), {})
    run.save_checkpoint(4, model.state_dict(), {})
    rows = [{"step": step, "loss": 1.0, "train_accuracy": float(step == 4), "test_accuracy": 1.0} for step in (2, 4)]
    run.append_metrics(rows)
    n = sum(parameter.numel() for parameter in model.parameters())
    results = {"steps": 4, "examples": 16, "seconds": 1.0, "loss": 1.0, "test_accuracy": 1.0, "parameters": n}
    run.finish(RunSummary.of(config, **results, weights_sha256=weights_hash(model.state_dict())))
    return run


def pointer() -> Transformer:
    """Copies by position what stands a pattern's length back, with the shape and the stream of `induction`."""
    other = induction().model
    stream = Stream(letter=26, place=other.cfg.n_ctx, before=26, copied=26)
    model = letters_model(stream, n_layers=2, output="copied")
    looks = {query: (query - 3,) for query in range(3, other.cfg.n_ctx)}
    plant_by_position(model, stream, (1, 1), looks, value=stream.read("letter"), out=stream.write("copied"))
    return model


@pytest.fixture(scope="module")
def copiers(tmp_path_factory: pytest.TempPathFactory) -> list[ag.Run]:
    """Three induction pairs and two pointers, each with heads and neurons in an order of its own."""
    folder = tmp_path_factory.mktemp("runs")
    models = [permuted(induction().model, seed) for seed in (0, 1, 2)] + [permuted(pointer(), seed) for seed in (3, 4)]
    return [planted_run(folder, f"pair-s{seed}", seed, model, COPYING) for seed, model in enumerate(models)]


@pytest.fixture(scope="module")
def found(copiers: list[ag.Run]) -> ag.Finding:
    return ag.census(copiers, n_inputs=64, sample=100)


def profiles(models: Sequence[Transformer], task: Task, n: int = 64) -> list:
    tokens = task.sample(n, torch.Generator().manual_seed(0))
    return [profile_of(Subject("model", model, task), tokens) for model in models]


# ---------------------------------------------------------------------- the same, otherwise written


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_another_order_of_heads_and_neurons_computes_the_same(kv_heads: int) -> None:
    cfg = ModelConfig(
        d_vocab=9, n_ctx=7, d_model=16, d_mlp=24, n_layers=2, n_heads=4, n_kv_heads=kv_heads, gated_mlp=True,
        attn_bias=True, init_matrix_std=0.3, init_embed_std=1.0,
    )  # fmt: skip
    model = build(cfg, 0).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double()
    other = permuted(model, 5)
    tokens = torch.randint(9, (20, 7), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(other(tokens), model(tokens), rtol=0, atol=1e-10)
    assert not torch.equal(other.block(0).attn.q.weight, model.block(0).attn.q.weight)
    assert not torch.equal(other.block(0).mlp.w_in.weight, model.block(0).mlp.w_in.weight)


def test_a_copy_in_another_order_is_at_no_distance_and_its_heads_are_matched() -> None:
    plain = carry_adder()
    own, other = profiles([plain.model, permuted(plain.model, 1)], plain.task)
    assert distance(own, other) < 1e-6
    swapped = [seed for seed in range(6) if not np.array_equal(_order(plain.model, seed), np.arange(4))]
    assert swapped, "some seed exchanges heads"
    one = profiles([permuted(plain.model, swapped[0])], plain.task)[0]
    assert matched(differences(own, one), 2).tolist() == _order(plain.model, swapped[0]).tolist()


def _order(model: Transformer, seed: int) -> np.ndarray:
    """Where each head of the first layers has gone, read off the weights; idle heads are alike and stay."""
    other, order = permuted(model, seed), []
    for layer in range(2):
        same = torch.equal(*(one.block(layer).attn.k.weight for one in (model, other)))
        order += [2 * layer, 2 * layer + 1] if same else [2 * layer + 1, 2 * layer]
    return np.array(order)


# ---------------------------------------------------------------------- really different


def test_two_ways_to_copy_are_two_solutions_whatever_the_order(found: ag.Finding) -> None:
    assert [(row["run"], row["solution"]) for row in sorted(found["runs"], key=lambda row: row["run"])] == [
        ("pair-s0", 1), ("pair-s1", 1), ("pair-s2", 1), ("pair-s3", 2), ("pair-s4", 2),
    ]  # fmt: skip
    assert found["solutions"] == 2
    assert found["steadiest"]["solutions"] == 2
    assert found["controls"]["permuted"] < 1e-6
    assert found["controls"]["with_copies"] == 2
    assert found["controls"]["untrained"] > 0.2
    assert found["holds"]
    assert all(row["from_typical"] < 1e-6 for row in found["runs"] if row["solution"] == 1)


def test_heads_stand_where_those_of_the_typical_run_do_the_same(found: ag.Finding) -> None:
    for row in found["runs"]:
        if row["solution"] == 1:
            assert [head["role"] for head in row["heads"]] == [head["role"] for head in found["runs"][0]["heads"]]
            assert {head["role"] for head in row["heads"]} >= {"previous-token", "induction"}
    panel = found["heads"]
    assert panel.words.shape == (4, 5)
    names = {tuple(head["name"] for head in row["heads"]) for row in found["runs"] if row["solution"] == 1}
    assert len(names) > 1, "the runs number their heads in different ways"


def test_the_tokens_that_heads_look_at_are_told(tmp_path: Path) -> None:
    adder = carry_adder()
    runs = [planted_run(tmp_path, f"adder-s{seed}", seed, adder.model, adder.task) for seed in (0, 1)]
    heads = ag.census(runs, n_inputs=32, sample=20)["runs"][0]["heads"]
    assert [round(x, 3) for x in heads[0]["deciding"][:3]] == [1, 1, 1], "`column` looks at the digits of its column"
    assert [round(x, 3) for x in heads[1]["deciding"][:3]] == [0, 0, 0], "`below` at the digits below them"
    assert heads[0]["deciding"][4] is None
    assert heads[0]["effects"][0] > 0.5 > heads[1]["effects"][0] == 0


def test_the_same_work_in_other_layers_is_another_solution_unless_layers_do_not_count() -> None:
    task = reversal().task
    below, above = _reverser(0), _reverser(1)
    own, other = profiles([below, above], task)
    assert distance(own, other) > 0.2
    assert distance(own, other, within_layers=False) < 1e-6


def _reverser(layer: int) -> Transformer:
    """The head of `reversal` in one of two layers; the other layer is idle."""
    one = reversal().model
    cfg = one.cfg.model_copy(update={"n_layers": 2})
    model = Transformer(cfg).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    weights = {name.replace("blocks.0.", f"blocks.{layer}."): value for name, value in one.state_dict().items()}
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def test_a_head_that_nothing_depends_on_may_look_anywhere() -> None:
    adder = carry_adder()
    other = carry_adder().model
    idle = other.block(1).attn
    idle.q.weight.copy_(torch.randn(idle.q.weight.shape, generator=torch.Generator().manual_seed(0)))
    idle.k.weight.copy_(torch.randn(idle.k.weight.shape, generator=torch.Generator().manual_seed(1)))
    own, changed = profiles([adder.model, other], adder.task)
    assert np.abs(own.attention - changed.attention).max() > 0.5
    assert distance(own, changed) == 0


def test_random_models_are_far_from_each_other_and_none_is_like_the_adder() -> None:
    adder = carry_adder()
    cfg = adder.model.cfg.model_copy(update={"init_embed_std": 1.0, "init_matrix_std": 0.5})
    apart = distances(profiles([adder.model, *(build(cfg, seed) for seed in range(3))], adder.task))
    assert (apart[np.triu_indices(4, 1)] > 0.1).all()
    assert np.array_equal(apart, apart.T)


# ---------------------------------------------------------------------- solutions


def test_solutions_are_numbered_by_size_and_bounded_by_the_threshold() -> None:
    place = np.array([0.0, 0.5, 0.02, 0.52, 0.01, 0.9])
    apart = np.abs(place[:, None] - place)
    assert solutions(apart, 0.1).tolist() == [1, 2, 1, 2, 1, 3]
    assert solutions(apart, 0.015).max() == 5
    assert [row["solutions"] for row in count_by_threshold(apart, (0.001, 0.1, 0.45, 1.0))] == [6, 3, 2, 1]
    assert medoid(apart, np.array([0, 2, 4])) == 4
    steady = steadiest(apart)
    assert steady is not None
    assert steady["solutions"] == 3
    assert solutions(np.zeros((3, 3)), 0.1).tolist() == [1, 1, 1]
    assert steadiest(np.zeros((3, 3))) is None


# ---------------------------------------------------------------------- prediction


def features(n: int, seed: int) -> tuple[list[str], np.ndarray, np.random.Generator]:
    generator = np.random.default_rng(seed)
    return [f"feature {i}" for i in range(40)], generator.normal(size=(n, 40)), generator


def test_what_predicts_is_named() -> None:
    names, x, generator = features(24, 0)
    outcome = 100 + 10 * x[:, 7] + generator.normal(size=24)
    said = predict_outcome(Question(outcome, kinds=False), names, x)
    assert said["verdict"] == "predicted"
    assert said["strongest"][0]["feature"] == "feature 7"
    assert said["strongest"][0]["p"] < 0.01
    assert said["error"] < said["trivial_error"] / 2
    assert said["shuffled_claims"] <= 2
    kinds = (x[:, 3] > 0).astype(float)
    said = predict_outcome(Question(kinds, kinds=True), names, x)
    assert (said["verdict"], said["strongest"][0]["feature"]) == ("predicted", "feature 3")
    assert said["error"] < said["trivial_error"]


@pytest.mark.parametrize("kinds", [False, True])
def test_chance_predicts_nothing_however_many_features_are_tried(kinds: bool) -> None:
    claims = []
    for seed in range(8):
        names, x, generator = features(20, seed)
        outcome = generator.integers(0, 2, 20).astype(float) if kinds else generator.normal(size=20)
        said = predict_outcome(Question(outcome, kinds=kinds), names, x)
        claims.append(said["verdict"] == "predicted")
        alone = pearsonr(rankdata(x[:, names.index(said["strongest"][0]["feature"])]), rankdata(outcome))
        assert alone.pvalue < 0.05, "taken alone, the strongest of forty looks significant"
    assert sum(claims) <= 1


def test_a_feature_that_never_varies_says_nothing() -> None:
    names, x, _ = features(12, 0)
    x[:] = 1.0
    said = predict_outcome(Question(np.arange(12.0), kinds=False), names, x)
    assert said["verdict"] == "not predicted"
    assert {row["strength"] for row in said["strongest"]} == {0.0}


def test_the_deciding_tokens_of_a_sum_are_its_column() -> None:
    found = deciding(ag.Addition(n_digits=3))
    keys = [set(np.flatnonzero(row).tolist()) for row in found.numpy()]
    assert keys[:3] == [{2, 6}, {1, 5}, {0, 4}]
    assert keys[4] == set()
    mirrored = [set(np.flatnonzero(row).tolist()) for row in deciding(ag.Reversal()).numpy()]
    assert mirrored[:5] == [{4}, {3}, {2}, {1}, {0}]


# ---------------------------------------------------------------------- trained runs


TINY = {
    "n_digits": 1, "steps": 12, "batch": 16, "data.n_test": 10, "train.eval_every": 6, "train.log_every": 6,
    "train.checkpoint_every": 16,
}  # fmt: skip


def test_a_census_of_trained_runs_is_the_same_twice_and_goes_to_json(tmp_path: Path, run) -> None:
    for seed in range(8):
        ag.train("add3", seed=seed, settings=TINY, runs_dir=tmp_path, progress=False)
    first = ag.census([f"add3-s{seed}" for seed in reversed(range(8))], n_inputs=16, runs_dir=tmp_path)
    code, out, _ = run("census", "add3", "--runs-dir", tmp_path, "--quiet", "--n-inputs", 16, "--json")
    assert code == 0
    assert json.loads(out) == json.loads(first.to_json())
    assert {row["seed"] for row in first["runs"]} == set(range(8))
    jumps = [row["jump"] for row in first["runs"] if row["jump"] is not None]
    assert first["predicted"]["steps"] == [step for step in (1, 2, 4, 8) if step < min([*jumps, 12])]
    assert ag.Finding.from_json(out).claim == first.claim


def test_the_command_prints_a_row_for_each_run(copiers: list[ag.Run], run, tmp_path: Path) -> None:
    out_file = tmp_path / "census.html"
    options = ("--runs-dir", copiers[0].path.parent, "--quiet", "--sample", 20, "--n-inputs", 16, "--out", out_file)
    code, out, _ = run("census", "pair", *options)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("pair")] == [
        "pair-s0", "pair-s1", "pair-s2", "pair-s3", "pair-s4",
    ]  # fmt: skip
    assert "jump: not asked: no checkpoint of steps 1 to 64 before the first jump" in out
    assert "2 distinct solutions at distance 0.1 (3 runs share the first" in out
    assert "plotly" in out_file.read_text()


def test_seeds_that_are_not_there_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def train_many(members, **options):
        asked.update(members)
        raise RunFolderError("enough")

    monkeypatch.setattr("algoscope.verdicts.census.census.train_many", train_many)
    with pytest.raises(RunFolderError, match="enough"):
        ag.census(["add3"], seeds=range(2, 4), runs_dir=tmp_path)
    assert {name: config.seed for name, config in asked.items()} == {"add3-s2": 2, "add3-s3": 3}


def test_bad_input_is_one_line(copiers: list[ag.Run], small_run: ag.Run, tmp_path: Path, run) -> None:
    with pytest.raises(ConfigError, match="a census compares runs, but got 1"):
        ag.census(copiers[:1])
    with pytest.raises(ConfigError, match=r"small differs from pair-s0 in \w+.*differ only in their seed"):
        ag.census([copiers[0], small_run])
    with pytest.raises(ConfigError, match="threshold is 2"):
        ag.census(copiers, threshold=2)
    with pytest.raises(ConfigError, match="'pair' is none"):
        ag.census(["pair"], seeds=[1])
    half = planted_run(tmp_path, "half", 9, induction().model, COPYING)
    (half.path / "run.json").unlink()
    with pytest.raises(RunFolderError, match="run half stopped at step 4: continue it with --resume"):
        ag.census([copiers[0], half])
    code, out, err = run("census", "nothing", "--runs-dir", tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
