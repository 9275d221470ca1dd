"""Recipes of reversal."""

from algoscope.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from algoscope.tasks.strings.reversal import Reversal


def reverse5() -> RunConfig:
    """Reversal of five letters out of eight, with a single attention head: 4,960 parameters, about 120 steps."""
    task = Reversal()
    return RunConfig(
        recipe="reverse5",
        task=task,
        model=ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_model=32, d_mlp=None, n_layers=1, n_heads=1),
        data=DataConfig(source="fresh"),
        optim=OptimConfig(lr=0.01, hold=0.8, decay_at=0.99, decay_steps=100, final_lr=0.02),
        train=TrainConfig(steps=600, batch=128),
    )
