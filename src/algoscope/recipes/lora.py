"""Recipes that train low-rank updates beside another run's weights."""

from algoscope.config import RunConfig, StartConfig
from algoscope.recipes.addition import add3
from algoscope.tasks.digits.subtraction import Subtraction


def sub3_lora() -> RunConfig:
    """Subtraction from an adder: every weight of `add3-s0` stays, and updates of rank 4 beside its matrices, 3,584
    numbers, learn to subtract. At most 3,000 steps, the last 600 of them a falling learning rate.
    """
    adder = add3()
    return RunConfig(
        recipe="sub3_lora",
        task=Subtraction(n_digits=3),
        model=adder.model,
        data=adder.data,
        optim=adder.optim.model_copy(update={"decay_steps": 600}),
        train=adder.train.model_copy(update={"steps": 3_000}),
        start=StartConfig(run="add3-s0"),
    )
