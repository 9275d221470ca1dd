"""Training with the options of other people's models: stacked as alone, and resumed."""

from pathlib import Path

import pytest
import torch

import algoscope as ag
from algoscope.config import RunConfig, override
from algoscope.recipes.addition import add3
from algoscope.recipes.modular import grok59
from algoscope.runs.run_folder import Run
from algoscope.training.population import train_many
from conftest import SMALL

GEMMA = {
    "model.norms": "both", "model.normalization_type": "RMS", "model.positions": "rotary", "model.n_heads": 2,
    "model.windows": [4, None], "model.window_rotary_frequencies": [0.9, 0.3, 0.1, 0.03], "model.embed_scale": 4.0,
    "model.attn_scores_soft_cap": 5.0, "model.output_logits_soft_cap": 9.0, "model.qk_norm": True,
    "model.gated_mlp": True, "model.act_fn": "gelu_tanh",
}  # fmt: skip
OPTIONS = {
    "post": {"model.norms": "post", "model.final_norm": False, "model.head_bias": True, "model.act_fn": "tanh"},
    "output": {"model.norms": "output", "model.qk_norm": True, "model.qk_norm_over": "all"},
    "both": GEMMA,
    "rate": {"model.attn_rate": 0.5, "model.norm_bias": False, "model.act_fn": "relu_squared"},
    "rate, looks ahead": {"model.attn_rate": 0.5, "model.causal": False, "model.act_fn": "leaky_relu"},
}


def config(seed: int, name: str) -> RunConfig:
    shape = {"model.n_heads": 2, "model.n_layers": 2, "model.d_model": 16}
    return override(add3(), SMALL | shape | {"seed": seed, "steps": 4} | OPTIONS[name])


def apart(one: Run, other: Run) -> float:
    theirs = other.model().state_dict()
    return max(float((value - theirs[name]).abs().max()) for name, value in one.model().state_dict().items())


@pytest.mark.parametrize("name", OPTIONS)
def test_a_stack_of_models_trains_as_each_alone(name: str, tmp_path: Path) -> None:
    configs = {f"m{seed}": config(seed, name) for seed in range(2)}
    together = train_many(configs, runs_dir=tmp_path / "a", stack=2, workers=1, progress=False)
    assert not together.failed
    alone = ag.train(configs["m1"], name="m1", runs_dir=tmp_path / "b", progress=False)
    assert together.runs["m1"].summary.stacked == 2
    assert apart(together.runs["m1"], alone) < 1e-4
    start = alone.model(step=0).state_dict()
    assert all(not value.equal(start[key]) for key, value in alone.model().state_dict().items() if "norm" not in key)


@pytest.mark.parametrize("name", ["post", "both"])
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ag.train(config(0, name), name="whole", runs_dir=tmp_path, progress=False)
    save = Run.save_checkpoint

    def breaks(self: Run, step: int, *rest) -> None:
        save(self, step, *rest)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Run, "save_checkpoint", breaks)
        with pytest.raises(KeyboardInterrupt):
            ag.train(config(0, name), name="stopped", runs_dir=tmp_path, progress=False)
    resumed = ag.train(config(0, name), name="stopped", runs_dir=tmp_path, resume=True, progress=False)
    assert resumed.summary.weights_sha256 == whole.summary.weights_sha256


def test_a_clock_with_an_attention_rate_is_trained_opened_and_read(tmp_path: Path) -> None:
    settings = {
        "steps": 3,
        "task.p": 5,
        "data.n_train": 12,
        "data.n_test": 8,
        "train.batch": 12,
        "model.attn_rate": 0.5,
    }
    run = ag.train(override(grok59(), settings), name="half", runs_dir=tmp_path, progress=False)
    model = ag.open(f"run:{run.path}")
    assert model.cfg.attn_rate == 0.5
    pattern = model.run(model.task.at(torch.arange(3))[:, :-1], record=[("pattern", 0)])[1]["pattern", 0]
    seen = torch.arange(1, pattern.shape[-1] + 1)
    torch.testing.assert_close(pattern.sum(dim=-1), (0.5 + 0.5 * seen).expand(pattern.shape[:-1]))
