"""The recipes for five and ten digits: their shape, their first steps, and what their model is."""

from pathlib import Path

import pytest
import torch

import algoscope as ag
from algoscope.networks.parameters import count_parameters
from algoscope.recipes.addition import add3, add5, add10
from algoscope.recipes.table import RECIPES

SHORT = {"steps": 6, "batch": 16, "data.n_test": 32, "train.log_every": 2, "train.checkpoint_every": 6}


@pytest.mark.parametrize(("recipe", "n_digits", "total", "repeats"), [(add5, 5, 17_952, 0.0), (add10, 10, 18_432, 0.1)])
def test_they_are_add3_with_two_heads_and_more_positions(recipe, n_digits: int, total: int, repeats: float) -> None:
    config = recipe()
    assert RECIPES.load(config.recipe)() == config
    assert config.task.n_digits == n_digits
    assert sum(count_parameters(config.model).values()) == total
    assert config.model == add3().model.model_copy(update={"n_ctx": 3 * n_digits + 4, "n_heads": 2})
    assert config.data == add3().data.model_copy(update={"repeat_share": repeats})
    model = config.model
    assert (model.positions, model.normalization_type, model.act_fn, model.causal) == ("learned", "LN", "relu", True)


@pytest.mark.parametrize("recipe", ["add5", "add10"])
def test_their_first_steps_learn_and_repeat(recipe: str, trained_seed: int, tmp_path: Path) -> None:
    options = {"seed": trained_seed, "settings": SHORT, "runs_dir": tmp_path, "progress": False}
    run, again = (ag.train(recipe, name=name, **options) for name in "ab")
    losses = [row["loss"] for row in run.metrics()]
    assert losses[-1] < losses[0]
    assert run.summary.weights_sha256 == again.summary.weights_sha256


def test_a_verdict_on_ten_digits_draws_from_every_class(trained_seed: int, tmp_path: Path) -> None:
    run = ag.train("add10", seed=trained_seed, settings=SHORT, runs_dir=tmp_path, progress=False)
    facts = ag.certify(run, per_class=3).facts
    assert facts["domain"] == {"size": 10**20, "method": "stratified", "checked": 39}
    assert [row["class"] for row in facts["by_class"]] == [*(f"S{length}" for length in range(11)), "edge"]
    assert facts["wrong"] == 39


def test_each_answer_digit_needs_two_columns_and_the_digit_before() -> None:
    """Units first there is no look-ahead: the carry into a column can be read off the digit that was written last."""
    task = add10().task
    tokens = task.sample(2_000, torch.Generator().manual_seed(0), hard_share=0.5)
    columns, digits = task.columns(tokens), task.variables_of(tokens)["digit"]
    carry = torch.zeros(len(tokens), dtype=torch.long)
    for place in range(task.n_digits):
        if place:
            came_in = (digits[:, place - 1] - columns[:, place - 1]) % 10
            carry = (columns[:, place - 1] + came_in >= 10).long()
        assert torch.equal(digits[:, place], (columns[:, place] + carry) % 10)
