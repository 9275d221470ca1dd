"""Recipes that train low-rank updates (LoRA) of another run."""

from algoscope.config import RunConfig, StartConfig
from algoscope.recipes.addition import add3
from algoscope.tasks.digits.subtraction import Subtraction


def sub3_lora() -> RunConfig:
    """Subtraction by fine-tuning an adder: the weights of `add3-s0` are frozen, and updates of rank 4 (3,584
    parameters) of its matrices are trained. At most 3,000 steps; the learning rate decays over the last 600.
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
