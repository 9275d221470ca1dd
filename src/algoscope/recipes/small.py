"""Recipes of the small tasks: one model and one optimiser for all of them, right on every prompt."""

from algoscope.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from algoscope.tasks.base import Task
from algoscope.tasks.small.brackets import Brackets
from algoscope.tasks.small.cumulative_sum import CumulativeSum
from algoscope.tasks.small.first_unique import FirstUnique
from algoscope.tasks.small.max_of import MaxOf
from algoscope.tasks.small.max_of_two import MaxOfTwo
from algoscope.tasks.small.palindromes import Palindromes
from algoscope.tasks.small.sorted_list import SortedList


def max_of_two() -> RunConfig:
    """The larger of two numbers below 64: 4,096 prompts."""
    return _small(MaxOfTwo(), decay_steps=1_000, n_test=4)


def max_of() -> RunConfig:
    """The largest of three numbers below 16: 4,096 prompts."""
    return _small(MaxOf())


def palindromes() -> RunConfig:
    """Which words of eight letters out of two are palindromes: 256 prompts, 16 of them."""
    return _small(Palindromes())


def brackets() -> RunConfig:
    """Which of the 1,024 rows of ten brackets are balanced: 42 are."""
    return _small(Brackets())


def sorted_list() -> RunConfig:
    """Four digits out of eight in order: 4,096 prompts."""
    return _small(SortedList())


def first_unique() -> RunConfig:
    """The first letter that occurs once, in five out of four: 1,024 prompts."""
    return _small(FirstUnique())


def cumulative_sum() -> RunConfig:
    """Four running sums modulo 8: 4,096 prompts."""
    return _small(CumulativeSum())


def _small(task: Task, decay_steps: int = 600, n_test: int = 16) -> RunConfig:
    """Two layers of four heads; the learning rate decays once a logged batch is all right."""
    return RunConfig(
        recipe=task.kind,
        task=task,
        model=ModelConfig(
            d_vocab=task.d_vocab,
            n_ctx=task.n_ctx,
            d_model=32,
            d_mlp=128,
            n_layers=2,
            n_heads=4,
            init_embed_std=0.1,
            init_zero_out=True,
        ),
        data=DataConfig(source="fresh", n_test=n_test),
        optim=OptimConfig(
            name="muon", lr=0.01, muon_lr=0.015, hold=0.8, decay_at=1.0, decay_steps=decay_steps, final_lr=0.02
        ),
        train=TrainConfig(steps=3_000, batch=256, eval_every=100, checkpoint_every=1_000),
    )
