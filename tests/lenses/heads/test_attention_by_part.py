"""The looks lens: against slow loops, on heads whose part was set by hand, and on weights where none was."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError, TaskMismatchError, VocabularyError
from algoscope.core.renaming import RenamedWarning
from algoscope.doors.report.report import prompts_of, questions_of, render
from algoscope.lenses.heads.attention_by_part import (
    attention_by_part,
    classes,
    fall_between,
    input_parts,
    shares_and_entropy,
)
from algoscope.networks.build import build
from algoscope.planted.handwritten import SHARP, Stream, blank, fill, plant, plant_by_position
from algoscope.planted.models import shuffled
from algoscope.planted.table import PLANTED
from algoscope.recipes.modular import mod113_3l
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.tasks.digits.addition import Addition
from algoscope.tasks.groups.binary import Binary
from algoscope.tasks.groups.group import Group
from algoscope.tasks.groups.modular import Modular

TASK = Modular(p=7)
BOUNDS = {"part": 0.4, "spread": 0.75}
FIRST, SIGN, SECOND, EQUALS = range(4)
NAMES = ("first operand", "+", "second operand", "itself")


def untrained(task: Task, seed: int = 0, **fields) -> Subject:
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "init_embed_std": 1.0, "init_matrix_std": 0.5} | fields
    cfg = ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, **shape)
    return Subject("untrained", build(cfg, seed), task)


def by_hand(*layers: tuple[tuple[int, ...], ...], task: Modular = TASK) -> Subject:
    """Heads that look from `=` at some positions alike, layer by layer; one that is given none is idle."""
    stream = Stream(number=task.p, place=task.n_ctx)
    model = blank(
        stream, d_vocab=task.d_vocab, n_ctx=task.n_ctx, n_layers=len(layers), n_heads=len(layers[0]),
        d_head=task.p + task.n_ctx, d_mlp=None,
    )  # fmt: skip
    numbers = stream.read("number")
    fill(model, tokens=numbers, places=stream.read("place"), unembedding=numbers)
    for layer, heads in enumerate(layers):
        for head, keys in enumerate(heads):
            if keys:
                nothing = torch.zeros(stream.size, 1)
                looked = {task.prompt_length - 1: keys}
                plant_by_position(model, stream, (layer, head), looked, value=numbers[:1], out=nothing)
    return Subject("by hand", model, task)


def classes_of(finding: ag.Finding) -> dict[str, str]:
    return {head["name"]: head["class"] for head in finding["heads"]}


# ---------------------------------------------------------------------- measures, slowly


def slow(row: list[float], keys: list[list[int]], n_visible: int) -> tuple[list[float], float]:
    """Shares of one query's attention, and its entropy as a share of ln n."""
    shares = [sum(row[k] for k in part) for part in keys]
    return shares, -sum(a * math.log(a) for a in row[:n_visible] if a > 0) / math.log(n_visible)


@pytest.mark.parametrize(
    ("form", "keys"),
    [("a+b=", [[0], [1], [2], [3]]), ("ab=", [[0], [1], [2]]), ("ab", [[0], [1]])],
)
@pytest.mark.parametrize("causal", [True, False])
def test_shares_and_entropy_of_pairs_are_those_of_slow_loops(form: str, keys: list, causal: bool) -> None:
    task = Modular(p=5, form=form)
    subject = untrained(task, causal=causal)
    subject = subject.to_dtype(torch.double)
    found = attention_by_part(subject)
    tokens = task.at(torch.arange(25))[:, :-1]
    cache = subject.run_with_cache(tokens)[1]
    names = [
        "first operand",
        *(["+"] if form == "a+b=" else []),
        "second operand",
        *(["itself"] if "=" in form else []),
    ]
    assert found["parts"] == names
    for head in found["heads"]:
        rows = cache["pattern", head["layer"]][:, head["head"], -1].tolist()
        each = [slow(row, keys, len(row)) for row in rows]
        shares = np.array([one[0] for one in each])
        np.testing.assert_allclose(list(head["shares"].values()), shares.mean(0), atol=1e-12)
        np.testing.assert_allclose(list(head["spread"].values()), shares.std(0), atol=1e-12)
        assert head["entropy_share"] == pytest.approx(np.mean([one[1] for one in each]), abs=1e-12)
        assert head["entropy_nats"] == pytest.approx(head["entropy_share"] * math.log(len(keys)), abs=1e-12)
        for name, part in head["shares"].items():
            chance = 1 / len(keys)
            assert head["scores"][name] == pytest.approx((part - chance) / (1 - chance), abs=1e-12)


def test_over_several_answer_positions_shares_are_means_and_what_is_hidden_counts_for_nothing() -> None:
    task = Addition(n_digits=2)
    subject = untrained(task).to_dtype(torch.double)
    parts = input_parts(task, causal=True)
    assert parts.names == ("first operand", "+", "second operand", "=", "sum so far", "itself")
    tokens = task.sample(20, torch.Generator().manual_seed(0))[:, :-1]
    pattern = subject.run_with_cache(tokens)[1]["pattern", 1]
    at = range(task.n_ctx - 1)[task.answer_slice]
    shares, nats, share = shares_and_entropy(pattern[:, :, task.answer_slice], parts)
    for b, h in product(range(20), range(2)):
        rows = {q: pattern[b, h, q].tolist() for q in at}
        wanted = [
            [sum(row[0:2]), row[2], sum(row[3:5]), row[5] if q > 5 else 0.0, sum(row[6:q]), row[q]]
            for q, row in rows.items()
        ]
        np.testing.assert_allclose(shares[b, h], np.mean(wanted, axis=0), atol=1e-12)
        entropies = [-sum(a * math.log(a) for a in row if a > 0) for row in rows.values()]
        assert float(nats[b, h]) == pytest.approx(np.mean(entropies), abs=1e-12)
        wanted_share = np.mean([entropy / math.log(q + 1) for q, entropy in zip(at, entropies, strict=True)])
        assert float(share[b, h]) == pytest.approx(wanted_share, abs=1e-12)
    np.testing.assert_allclose(parts.chance.sum(), 1)


def test_a_head_that_rests_half_the_time_has_half_the_entropy() -> None:
    parts = input_parts(TASK, causal=True)
    row = torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.double).expand(1, 1, 1, 4)
    (_, whole, _), (shares, half, _) = (shares_and_entropy(one, parts) for one in (row, 0.5 * row))
    assert float(half) == pytest.approx(float(whole) / 2)
    assert float(shares.sum()) == pytest.approx(0.5)


# ---------------------------------------------------------------------- the rules


def test_a_part_is_named_from_the_threshold_on_then_spread_then_both_operands_then_mixed() -> None:
    parts = input_parts(TASK, causal=True)
    shares = np.array(
        [
            [0.56, 0.2, 0.14, 0.1],
            [0.1, 0.1, 0.6, 0.2],
            [0.54, 0.1, 0.2, 0.16],
            [0.4, 0.2, 0.31, 0.09],
            [0.4, 0.2, 0.29, 0.11],
        ]
    )
    entropy = np.array([0.9, 0.1, 0.75, 0.74, 0.74])
    found = [parts.class_names[i] for i in classes(shares, entropy, parts, BOUNDS)]
    assert found == ["first operand", "second operand", "spread", "both operands", "mixed"]


def test_a_fall_is_true_false_or_unclear() -> None:
    broad, sharp = np.array([0.9, 0.95, 1.0, 0.95]), np.array([0.3, 0.5, 0.4, 0.4])
    assert fall_between(broad, sharp, 0.1)["verdict"] == "true"
    assert fall_between(sharp, broad, 0.1)["verdict"] == "false"
    assert fall_between(broad, broad, 0.1)["verdict"] == "false"
    wide = np.array([0.2, 1.0, 0.5, 0.9])
    assert fall_between(broad, wide, 0.1)["verdict"] == "unclear"
    assert fall_between(broad, sharp, 0.6)["verdict"] == "unclear", "a fall, but smaller than was asked for"
    assert fall_between(broad[:1], sharp[:1], 0.1)["verdict"] == "unclear", "one head each: no spread to judge by"
    found = fall_between(broad, sharp, 0.1)
    error = math.sqrt(broad.var(ddof=1) / 4 + sharp.var(ddof=1) / 4)
    assert (found["difference"], found["error"]) == (pytest.approx(0.55), pytest.approx(error))
    assert (found["low"], found["high"]) == (pytest.approx(0.55 - 2 * error), pytest.approx(0.55 + 2 * error))


# ---------------------------------------------------------------------- heads set by hand


def test_the_heads_of_the_clock_look_at_an_operand_each_on_every_input() -> None:
    found = ag.lenses.attention_by_part("planted:clock")
    assert found["covered"] == {"inputs": 12_769, "of": 12_769, "method": "exhaustive", "wrong": 0}
    assert classes_of(found) == {"L0H0": "first operand", "L0H1": "second operand"}
    for head in found["heads"]:
        assert head["agreement"] == 1
        assert head["stable"]
        assert head["entropy_share"] == pytest.approx(0, abs=1e-6)
    assert found["broad_early_sharp_late"] == {"verdict": "one layer"}
    assert [one["input"] for one in found["inputs"]] == ["5+8=", "90+90=", "50+0="]
    assert [one["got"] for one in found["inputs"]] == ["13", "67", "50"]
    shown = found["attention"].values[0, :, :, [FIRST, SECOND]]
    np.testing.assert_allclose(shown, [[[1] * 3, [0] * 3], [[0] * 3, [1] * 3]], atol=1e-6)


def test_every_class_is_found_where_it_was_planted() -> None:
    found = attention_by_part(by_hand(((FIRST,), (SIGN,), (SECOND,), (EQUALS,), (), (FIRST, SECOND), (FIRST, SIGN))))
    assert list(classes_of(found).values()) == [*NAMES, "spread", "both operands", "mixed"]
    assert all(head["agreement"] == 1 for head in found["heads"])
    halves = found["heads"][5]
    assert halves["entropy_share"] == pytest.approx(math.log(2) / math.log(4), abs=1e-6)
    assert halves["shares"]["first operand"] == pytest.approx(0.5, abs=1e-6)
    assert found["counts"] == dict.fromkeys((*NAMES, "spread", "both operands", "mixed"), 1)


def test_a_head_that_goes_by_content_is_not_stable() -> None:
    """It looks at the operand with the larger number, at both alike where they are equal."""
    subject = by_hand(((), (FIRST,)))
    model, width = subject.model, TASK.p + TASK.n_ctx
    stream = Stream(number=TASK.p, place=TASK.n_ctx)
    size = SHARP * torch.arange(TASK.p, dtype=torch.float)[None] @ stream.read("number")
    plant(
        model, (0, 0), query=stream.read("place")[[EQUALS]], key=size, value=stream.read("number")[:1],
        out=torch.zeros(stream.size, 1),
    )  # fmt: skip
    assert model.block(0).attn.d_head == width
    chooses, fixed = attention_by_part(subject)["heads"]
    assert (fixed["class"], fixed["stable"]) == ("first operand", True)
    assert not chooses["stable"]
    larger = 21 / 49  # pairs in which the first is larger
    assert chooses["by_input"]["first operand"] == pytest.approx(larger, abs=1e-9)
    assert chooses["by_input"]["second operand"] == pytest.approx(larger, abs=1e-9)
    assert chooses["by_input"][chooses["class"]] == chooses["agreement"] < 0.2


def test_broad_early_and_sharp_late_is_found_where_it_is_and_not_the_other_way_round() -> None:
    broad, sharp = ((), ()), ((FIRST,), (SECOND,))
    told = {}
    for name, layers in {"yes": (broad, sharp), "no": (sharp, broad), "neither": (broad, broad)}.items():
        found = attention_by_part(by_hand(*layers))
        told[name] = found["broad_early_sharp_late"]["verdict"]
        ends = [layer["entropy_share"] for layer in found["layers"]]
        np.testing.assert_allclose(found["entropy by layer"].values, ends)
    assert told == {"yes": "true", "no": "false", "neither": "false"}


def test_constant_attention_is_spread_in_every_form() -> None:
    for form in ("a+b=", "ab=", "ab"):
        found = attention_by_part(untrained(Modular(p=5, form=form), attn_scale=0.0))
        assert set(classes_of(found).values()) == {"spread"}
        assert all(head["entropy_share"] == pytest.approx(1, abs=1e-6) for head in found["heads"])
        assert found["broad_early_sharp_late"]["verdict"] == "false"


@pytest.mark.parametrize("task", [Group(group="S3"), Modular(p=11, operation="-", form="ab=")])
def test_other_tasks_of_pairs_show_their_edge_cases(task: Binary) -> None:
    found = attention_by_part(untrained(task))
    wanted = [task.decode(row[: task.prompt_length].tolist()) for row in task.edge_inputs()[:3]]
    assert [one["input"] for one in found["inputs"]] == wanted


# ---------------------------------------------------------------------- nothing planted


def test_shuffled_and_random_clocks_hardly_look_at_an_operand_and_never_at_both() -> None:
    """8 of 600 heads do in 300 such models, and no model has both: a shuffled head may rest on any one position."""
    found = [
        attention_by_part(subject, n_inputs=300)["heads"]
        for seed in range(12)
        for subject in (
            subject_of(shuffled(PLANTED.load("clock")(), seed), "shuffled"),
            untrained(Modular(), seed, d_model=32, n_layers=1),
        )
    ]
    named = [[head["class"] for head in heads if head["stable"] and "operand" in head["class"]] for heads in found]
    assert sum(map(len, named)) <= 2, named
    assert all(len(set(each)) < 2 for each in named), named


def test_small_random_weights_look_at_all_alike_and_sharp_ones_change_with_the_input() -> None:
    found = [attention_by_part(untrained(TASK, seed, init_matrix_std=0.02)) for seed in range(5)]
    assert {name for one in found for name in classes_of(one).values()} == {"spread"}
    assert {one["broad_early_sharp_late"]["verdict"] for one in found} == {"false"}
    sharp = [
        head for seed in range(10) for head in attention_by_part(untrained(TASK, seed, init_matrix_std=1.0))["heads"]
    ]
    assert np.mean([head["stable"] for head in sharp]) < 0.5


# ---------------------------------------------------------------------- what it says and draws


def test_panels_are_shares_with_a_plot_for_each_head_of_each_layer() -> None:
    found = attention_by_part(by_hand(((FIRST,), ()), ((SECOND,), ()), ((), (SIGN,))), ["1+2", "6+6"])
    assert found["attention"].values.shape == (3, 2, 2, 4)
    np.testing.assert_allclose(found["attention"].values.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(found["shares"].values.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(found["shares by layer"].values.sum(0), 1, atol=1e-6)
    assert found["shares by layer"].values[1].tolist() == pytest.approx([0.125, 0.125, 0.625], abs=1e-6)
    assert found["classes"].words.tolist() == [
        ["first operand", "spread"],
        ["second operand", "spread"],
        ["spread", "+"],
    ]
    assert found["shares"].words[0, 0] == "1.00±0.00"
    assert ag.Finding.from_json(found.to_json()).to_json() == found.to_json()
    assert "49 inputs" in found.claim
    assert found.plot() is not None


def test_a_larger_domain_is_sampled_and_that_is_said() -> None:
    found = attention_by_part(untrained(TASK), n_inputs=10, seed=3)
    assert found["covered"]["method"] == "sampled"
    assert (found["covered"]["inputs"], found["covered"]["of"]) == (10, 49)
    assert "a random 10 inputs" in found.claim
    again = attention_by_part(untrained(TASK), n_inputs=10, seed=3)
    assert again.to_json() == found.to_json()


def test_the_command_and_the_page_show_it(run) -> None:
    code, said, _ = run("lens", "attention_by_part", "planted:clock", "--input", "90+90", "--json", "--quiet")
    assert code == 0
    assert [one["input"] for one in json.loads(said)["inputs"]] == ["90+90"]
    for subject in (by_hand(((FIRST,), ()), ((SECOND,), ())), by_hand(((FIRST,),))):
        asked = questions_of(subject, prompts_of(subject))
        page = render(subject, {name: asked[name]() for name in ("verdict", "attention", "attention_by_part")})
        assert "Attention by input part" in page
    adder = untrained(Addition(n_digits=1))
    assert "attention_by_part" not in questions_of(adder, prompts_of(adder))


def test_one_text_may_be_given_without_a_list() -> None:
    subject = by_hand(((FIRST,), ()))
    one, listed = (attention_by_part(subject, inputs) for inputs in ("1+2", ["1+2"]))
    assert [shown["input"] for shown in one["inputs"]] == [shown["input"] for shown in listed["inputs"]]
    assert len(one["inputs"]) == 1


def test_what_cannot_be_looked_at_is_one_line() -> None:
    with pytest.raises(TaskMismatchError, match="planted:induction reads free text"):
        attention_by_part("planted:induction")
    with pytest.raises(ConfigError, match="n_inputs is 1"):
        attention_by_part(untrained(TASK), n_inputs=1)
    with pytest.warns(RenamedWarning, match="n_inputs"), pytest.raises(ConfigError, match="n_inputs is 1: "):
        attention_by_part(untrained(TASK), at_most=1)
    with pytest.raises(VocabularyError, match="7 in '7"):
        attention_by_part(untrained(TASK), ["7+1"])


# ---------------------------------------------------------------------- the recipe


def test_the_recipe_is_three_layers_of_four_heads_for_at_most_fifty_epochs() -> None:
    config = mod113_3l()
    assert (config.task.p, config.task.form) == (113, "a+b=")
    assert (config.model.n_layers, config.model.n_heads) == (3, 4)
    assert config.data.n_train + config.data.n_test == 12_769
    assert config.data.n_test >= 2_500
    per_epoch = math.ceil(config.data.n_train / config.train.batch)
    assert config.train.steps == 50 * per_epoch
    assert config.train.eval_every == per_epoch
