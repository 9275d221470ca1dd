"""The small tasks that ship, held to plain Python, and their recipes."""

from collections import Counter
from pathlib import Path

import pytest
import torch

import algoscope as ag
from algoscope.recipes.table import RECIPES
from algoscope.tasks.specs import find_task

SMALL = ("max_of_two", "max_of", "palindromes", "brackets", "sorted_list", "first_unique", "cumulative_sum")


@pytest.mark.parametrize(
    ("spec", "text", "answer"),
    [
        ("max_of_two", "12 57", "57"),
        ("max_of?k=4", "3 11 7 11", "11"),
        ("palindromes?length=4", "abba?", "y"),
        ("palindromes?length=4", "abab?", "n"),
        ("brackets?length=8", "(())()()?", "y"),
        ("brackets?length=8", "())(()()?", "n"),
        ("sorted_list", "3142>", "1234"),
        ("first_unique", "abcab?", "c"),
        ("first_unique?length=4", "abba?", "-"),
        ("cumulative_sum?m=10", "3149>", "3487"),
    ],
)
def test_an_answer_is_the_one_that_is_read_off(spec: str, text: str, answer: str) -> None:
    assert find_task(spec).expected(text) == answer


def test_domains_have_the_sizes_that_can_be_counted() -> None:
    sizes = [find_task(name).domain_size for name in SMALL]
    assert sizes == [64**2, 16**3, 2**8, 2**10, 8**4, 4**5, 8**4]
    catalan = find_task("brackets?length=6")
    rows = catalan.at(torch.arange(64))
    assert Counter(catalan.decode(row[-1:]) for row in rows.tolist()) == {"y": 5, "n": 59}


@pytest.mark.parametrize("name", SMALL)
def test_each_has_a_recipe_and_an_untrained_model_is_wrong(name: str, tmp_path: Path) -> None:
    config = RECIPES.load(name)()
    assert (config.recipe, config.task) == (name, find_task(name))
    run = ag.train(name, settings={"steps": 1, "batch": 8}, runs_dir=tmp_path, progress=False)
    assert ag.certify(run).facts["wrong"] > 0


def test_a_small_one_is_learned_whole(trained_seed: int, tmp_path: Path) -> None:
    short = {"task.k": 2, "task.n": 8, "d_model": 16, "batch": 64, "steps": 400, "data.n_test": 1}
    run = ag.train("max_of", seed=trained_seed, settings=short, runs_dir=tmp_path, progress=False)
    facts = ag.certify(run).facts
    assert facts["domain"] == {"size": 64, "method": "exhaustive", "checked": 64}
    assert facts["wrong"] == 0


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_every_recipe_reaches_its_whole_domain(name: str, tmp_path: Path) -> None:
    facts = ag.certify(ag.train(name, seed=0, runs_dir=tmp_path, progress=False)).facts
    assert facts["domain"]["method"] == "exhaustive"
    assert facts["wrong"] == 0
