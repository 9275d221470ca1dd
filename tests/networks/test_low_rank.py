"""Matrices kept as two factors: the same as the whole matrix, wherever a model is read, run, trained or written."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import algoscope as ag
from algoscope.config import ModelConfig, override, parse_config
from algoscope.core.errors import ConfigError
from algoscope.networks.build import build
from algoscope.networks.lora import whole
from algoscope.networks.low_rank import LowRank
from algoscope.recipes.addition import add3
from algoscope.runs.run_folder import Run, weights_hash
from algoscope.subjects.subject import Subject
from algoscope.tasks.digits.addition import Addition
from algoscope.training.optim import Optimisers
from conftest import SMALL

TASK = Addition(n_digits=2)
RANKED = SMALL | {"model.rank": 3}


def shape(**fields) -> ModelConfig:
    return ModelConfig(d_vocab=14, n_ctx=TASK.n_ctx, **fields)


@pytest.fixture(scope="module")
def ranked_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ag.train("add3", name="ranked", settings=RANKED, runs_dir=tmp_path_factory.mktemp("runs"), progress=False)


# ---------------------------------------------------------------------- the layer


@pytest.mark.parametrize("rank", [1, 5, 12])
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_its_weight_says(rank: int, bias: bool) -> None:
    layer = LowRank(20, 12, rank, bias).double()
    layer.draw(0.3, False, torch.Generator().manual_seed(0))
    if bias:
        torch.nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(1))
    x = torch.randn(4, 7, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-12)
    assert layer.weight.shape == (12, 20)
    assert int(torch.linalg.matrix_rank(layer.weight)) == rank


@pytest.mark.parametrize("rank", [1, 4, 32])
@pytest.mark.parametrize("std", [None, 0.02])
def test_it_starts_on_the_scale_of_the_whole_matrix(rank: int, std: float | None) -> None:
    fields = {"d_model": 256, "d_mlp": 512, "n_layers": 1, "init_matrix_std": std}
    plain, factors = (build(shape(**fields, rank=r), seed=0) for r in (None, rank))
    for get in (lambda m: m.block(0).attn.q, lambda m: m.block(0).mlp.w_in, lambda m: m.block(0).mlp.w_out):
        one, other = get(factors), get(plain)
        assert float(one.weight.detach().std() / other.weight.detach().std()) == pytest.approx(1, abs=0.1)
        assert float((one.left.norm() / one.right.norm()).detach()) == pytest.approx(1, abs=0.1)


def test_outputs_can_start_at_zero_and_still_learn() -> None:
    model = build(shape(rank=2, init_zero_out=True), seed=0)
    out = model.block(0).attn.o
    assert not out.weight.any()
    assert out.right.any()
    model(TASK.at(torch.arange(5))).square().sum().backward()
    assert out.left.grad.any()


def test_weights_come_from_the_seed() -> None:
    one, same, other = (build(shape(rank=2), seed).state_dict() for seed in (0, 0, 1))
    assert weights_hash(one) == weights_hash(same) != weights_hash(other)


def test_muon_moves_both_factors_of_every_matrix() -> None:
    cfg = add3().optim
    model = build(shape(rank=2, gated_mlp=True), seed=0)
    flat = Optimisers(model, [cfg]).flat
    moved = {name for name, stretch in flat.stretches.items() if stretch.stop <= flat.n_first}
    factors = {
        f"{name}.{side}"
        for name, module in model.named_modules()
        if isinstance(module, LowRank)
        for side in ("left", "right")
    }
    assert moved == factors
    assert len(factors) == 2 * 7 * 2


# ---------------------------------------------------------------------- the option


def test_parameters_count_both_factors() -> None:
    d, r = 32, 3
    per_block = 4 * (d + d) * r + 2 * (d + 64) * r + 64 + d + 4 * d
    total = sum(row["parameters"] for row in ag.params(shape(rank=r))["components"])
    assert total == 14 * d + TASK.n_ctx * d + 2 * per_block + 2 * d


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.rank": 33}, "rank 33 is above 32"),
        ({"model.rank": 25, "model.d_mlp": 24}, "rank 25 is above 24"),
        ({"model.rank": 9, "n_heads": 4, "model.n_kv_heads": 1}, "rank 9 is above 8"),
        ({"model.rank": 0}, "model.rank"),
    ],
)
def test_a_rank_that_cannot_be_is_one_line(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        override(add3(), settings)
    assert "\n" not in str(raised.value)


def test_a_config_from_before_the_option_is_the_one_of_whole_matrices() -> None:
    plain = json.loads(add3().model_dump_json())
    del plain["model"]["rank"], plain["start"]
    assert parse_config(plain) == add3()


def test_whole_models_are_returned_as_they_are_and_factors_multiplied() -> None:
    plain = build(shape(), seed=0)
    assert whole(plain) is plain
    ranked = build(shape(rank=3, attn_bias=True), seed=0).double()
    multiplied = whole(ranked)
    assert multiplied.cfg == shape(attn_bias=True)
    tokens = TASK.at(torch.arange(50))
    torch.testing.assert_close(multiplied(tokens), ranked(tokens), rtol=0, atol=1e-12)


# ---------------------------------------------------------------------- runs


def test_a_run_is_resumed_to_the_same_weights(ranked_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, save = iter(range(100)), Run.save_checkpoint

    def breaks(self: Run, step: int, *rest) -> None:
        save(self, step, *rest)
        if next(count) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Run, "save_checkpoint", breaks)
        with pytest.raises(KeyboardInterrupt):
            ag.train("add3", name="ranked", settings=RANKED, runs_dir=tmp_path, progress=False)
    resumed = ag.train("add3", name="ranked", runs_dir=tmp_path, resume=True, progress=False)
    assert resumed.summary.weights_sha256 == ranked_run.summary.weights_sha256


def test_verdict_patching_and_folding_are_those_of_the_whole_model(ranked_run: Run) -> None:
    ranked = ag.open(ranked_run).to_dtype(torch.float64)
    plain = ranked.with_model(copy.deepcopy(whole(ranked.model)))
    assert ag.certify(ranked)["wrong"] == ag.certify(plain)["wrong"]
    one, other = (ag.lenses.patch(s, "5+3", "5+4") for s in (ranked, plain))
    for mine, theirs in zip(one.panels, other.panels, strict=True):
        torch.testing.assert_close(torch.tensor(mine.values), torch.tensor(theirs.values), atol=1e-10, rtol=0)
    tokens = ranked.task.at(torch.arange(100))
    folded, changes = ranked.folded()
    assert changes
    chance = [s.run(tokens)[0].log_softmax(-1) for s in (ranked, folded)]
    torch.testing.assert_close(*chance, rtol=0, atol=1e-10)
    assert folded.cfg.rank is None


def test_it_is_written_for_other_tools_as_whole_matrices(ranked_run: Run, tmp_path: Path) -> None:
    ranked = ag.open(ranked_run)
    one = ag.export(ranked, "transformerlens", tmp_path / "m.safetensors")
    other = ag.export(ranked.with_model(whole(ranked.model)), "transformerlens", tmp_path / "plain.safetensors")
    size = [sum(path.stat().st_size for path in paths) for paths in (one, other)]
    assert abs(size[0] - size[1]) < 200  # the hashes are those of other weights
    back = ag.open(f"foreign:{one[0]}?task=addition&n_digits=1").model.state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in whole(ranked.model).state_dict().items())


def test_the_weights_lens_counts_the_rank(ranked_run: Run) -> None:
    rows = ag.lenses.weights(ranked_run)["matrices"]
    ranks = {row["after"]["rank"] for row in rows if row["layer"] is not None}
    assert ranks == {3}


def test_every_site_of_a_random_model_is_that_of_the_whole_one() -> None:
    ranked = Subject("r", build(shape(rank=2, n_heads=2, gated_mlp=True), 0).double(), TASK)
    plain = ranked.with_model(whole(ranked.model))
    tokens = TASK.at(torch.arange(9))
    one, other = (subject.run_with_cache(tokens)[1] for subject in (ranked, plain))
    for site in ranked.sites:
        torch.testing.assert_close(one[site.name], other[site.name], rtol=0, atol=1e-10)
