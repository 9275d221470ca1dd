"""Tokens, masks, positions, sites and edits are taken as people write them, or answered in one line."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import algoscope as ag
from algoscope.core.errors import AlgoscopeError, EditError, UnknownNameError, VocabularyError
from algoscope.core.sites import KINDS
from algoscope.subjects._arguments import mask_of, token_ids
from algoscope.subjects.edits import Zero
from algoscope.subjects.subject import Subject
from random_models import FAMILIES, TASK, subject

READ = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
ONE = READ[:1]


def one_line(ask, words: str, error: type[AlgoscopeError] = VocabularyError) -> None:
    with pytest.raises(error, match=words) as raised:
        ask()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "tokens",
    [READ.int(), READ.to(torch.uint8), READ.tolist(), tuple(map(tuple, READ.tolist())), READ.numpy(), list(READ)],
    ids=["int32", "uint8", "lists", "tuples", "NumPy", "list of tensors"],
)
def test_tokens_in_every_form_are_the_same_tokens(tokens) -> None:
    model = subject()
    edits = [ag.Zero(("z", 0), head=0)]
    assert torch.equal(model.run(tokens)[0], model.run(READ)[0])
    assert torch.equal(model.run_each(tokens, edits), model.run_each(READ, edits))
    assert torch.equal(model.generate_tokens(tokens, 2), model.generate_tokens(READ, 2))
    assert torch.equal(
        model.run_with_cache(tokens, "hook_embed")[1]["embed"], model.run(READ, record="embed")[1]["embed"]
    )


@pytest.mark.parametrize("tokens", [ONE[0], ONE[0].tolist(), ONE[0].numpy(), range(1, 6)])
def test_one_row_of_tokens_is_a_batch_of_one(tokens) -> None:
    whole = torch.tensor([list(tokens)])
    assert torch.equal(subject().run(tokens)[0], subject().run(whole)[0])


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (READ.float(), "whole numbers .* not float32.*to_tokens"),
        (READ.bool(), "not bool"),
        ([[1.5, 2]], "not float64"),
        ("abc", "not a text: give model.to_tokens"),
        (["abc", "abd"], "not a text"),
        ({"input_ids": READ}, "give its input_ids"),
        ([[1, 2], [3]], "rows of equal length"),
        (None, "NoneType|not float|whole numbers"),
        ([], "there are no tokens"),
        (torch.zeros(1, 0, dtype=torch.long), "there are no tokens"),
        (READ[None], r"\(1, 2, 5\)"),
        (torch.tensor(3), r"\(\)"),
        (READ.to("meta"), "meta device"),
    ],
)
def test_what_is_no_tokens_is_one_line(tokens, words: str) -> None:
    one_line(lambda: token_ids(tokens, torch.device("cpu")), words)


def test_tokens_of_a_task_are_checked_too() -> None:
    adder = ag.open("planted:carry-adder")
    whole = adder.task.edge_inputs()
    assert torch.equal(adder.answer_logits(whole.tolist()), adder.answer_logits(whole))
    one_line(lambda: adder.answer_logits(whole.float()), "not float32")
    one_line(lambda: adder.answer_logits(whole + 14), "outside the 14 tokens")


# ---------------------------------------------------------------------- masks

PADDED = torch.tensor([[0, 0, 4, 1, 5], [9, 2, 6, 5, 3]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.float(), MASK.double(), MASK.tolist(), MASK.numpy()])
def test_a_mask_of_zeros_and_ones_hides_the_padding(mask) -> None:
    model = subject()
    alone = model.run(PADDED[:1, 2:])[0]
    for logits in (model.run(PADDED, attention_mask=mask)[0], model.run_with_cache(PADDED, attention_mask=mask)[0]):
        torch.testing.assert_close(logits[:1, 2:], alone, rtol=0, atol=1e-10)
    generated = model.generate_tokens(PADDED, 2, attention_mask=mask)
    assert torch.equal(generated[:1], model.generate_tokens(PADDED[:1, 2:], 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_of_padded_inputs_agree_between_both_ways(family: str) -> None:
    model = subject(family)
    cache = model.run_with_cache(READ)[1]
    edits = [ag.Patch(site.name, value=cache[site], pos=pos) for site in model.sites for pos in (None, 3)]
    plain = model.run_each(PADDED, edits, attention_mask=MASK, incremental=False)
    swept = model.run_each(PADDED, edits, attention_mask=MASK)
    torch.testing.assert_close(swept, plain, rtol=0, atol=1e-10 * max(1.0, float(plain.abs().max())))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (MASK * 2, "holds 2: give 1 at every token"),
        ((1 - MASK) * -1e9, "holds -1e"),
        (MASK[:, :4], r"\(2, 4\), the tokens \(2, 5\)"),
        (MASK[0], r"\(1, 5\), the tokens \(2, 5\)"),
        (MASK[:, None, None], "the tokens"),
        ("left", "attention_mask"),
    ],
)
def test_what_is_no_mask_is_one_line(mask, words: str) -> None:
    one_line(lambda: mask_of(mask, PADDED), words)


# ---------------------------------------------------------------------- sites, positions, edits


@pytest.mark.parametrize(
    "names",
    [
        ["blocks.0.attn.hook_z"],
        "blocks.0.attn.hook_z",
        "blocks.0.attn.o.hook_in",
        ("z", 0),
        ["z", 0],
        [("z", np.int64(0))],
        lambda name: name == "blocks.0.attn.hook_z",
        ("blocks.0.attn.hook_z", "blocks.0.attn.o.hook_in"),
    ],
)
def test_names_are_names_one_or_several_under_any_of_them(names) -> None:
    logits, cache = subject().run_with_cache(READ, names_filter=names)
    assert list(cache) == ["blocks.0.attn.hook_z"]
    assert torch.equal(logits, subject().run(READ)[0])


def test_a_site_is_a_name_of_itself() -> None:
    model = subject()
    site = model.sites[3]
    assert list(model.run(READ, record=site)[1]) == list(model.run_with_cache(READ, [site])[1]) == [site.name]
    assert torch.equal(model.run(READ, edits=ag.Zero(site))[0], model.run(READ, edits=[ag.Zero(site.name)])[0])


@pytest.mark.parametrize("names", ["z", ["blocks.0.hook_nothing"], [("z", 9)]])
def test_an_unknown_name_is_one_line(names) -> None:
    one_line(lambda: subject().run_with_cache(READ, names), "unknown site", UnknownNameError)


def test_one_position_and_one_edit_and_listed_tokens() -> None:
    model, edit = subject(), ag.Zero(("z", 0), head=0)
    for at, same in ((-1, slice(-1, None)), (2, slice(2, 3)), (np.int64(0), slice(0, 1))):
        assert torch.equal(model.run(READ, at=at)[0], model.run(READ, at=same)[0])
        assert torch.equal(model.run_each(READ, edit, at=at), model.run_each(READ, [edit], at=same))
    assert torch.equal(model.run(READ, edits=edit)[0], model.run(READ, edits=(edit,))[0])
    for each in (model.run_each, partial(model.run_each, incremental=False)):
        whole = each(READ, [edit])
        assert torch.equal(each(READ, edit, among=[3, 7]), each(READ, [edit], among=torch.tensor([3, 7])))
        torch.testing.assert_close(each(READ, edit, among=3), whole[..., 3:4])


def test_positions_and_tokens_that_are_none_are_one_line() -> None:
    model, edit = subject(), ag.Zero(("z", 0), head=0)
    one_line(lambda: model.run(READ, at=5), "at=5 is out of range: there are 5 positions")
    one_line(lambda: model.run(READ, at=slice(3, 1, -1)), "backwards")
    one_line(lambda: model.run_each(READ, edit, among=[99]), r"among=\[99\]: there are 14 tokens")
    one_line(lambda: model.run_each(READ, edit, among=[1.5]), "among")
    one_line(lambda: model.run(READ, edits=["zero"]), "'zero' is no edit", EditError)
    one_line(lambda: model.unembed(torch.zeros(1, 2, 3)), r"\[batch pos 16\], not \(1, 2, 3\)", AlgoscopeError)


# ---------------------------------------------------------------------- results for measuring


def overflowing() -> Subject:
    """A model in float16 of which block 1 overflows."""
    model = subject(dtype=torch.float32)
    model = model.to_dtype(torch.float16)
    model.model.block(1).mlp.w_out.weight.fill_(6e4)
    model.model.block(1).mlp.w_in.weight.fill_(1e3)
    return model


def test_an_activation_that_overflows_is_named() -> None:
    model = overflowing()
    line = r"the activations of block 1 are not finite in float16: use to_dtype\(torch.float32\)"
    one_line(lambda: model.run(READ), line, AlgoscopeError)
    one_line(lambda: model.for_measuring().run(READ, record=("resid_post", 1), at=slice(0, 0)), line, AlgoscopeError)
    assert model.run(READ, record=("resid_pre", 1), at=slice(0, 0))[1]["resid_pre", 1].isfinite().all()


def test_an_edit_that_overflows_is_the_users_own_and_no_measurement() -> None:
    model, edit = subject(), ag.Patch(("resid_pre", 1), value=torch.nan)
    assert model.run(READ, edits=edit)[0].isnan().all()
    for ask in (model.for_measuring().run, model.for_measuring().run_each):
        one_line(lambda ask=ask: ask(READ, edits=edit), r"with Patch at \('resid_pre', 1\)", AlgoscopeError)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_for_measuring_are_the_models_own_in_a_type_for_sums(dtype: torch.dtype) -> None:
    model = subject().to_dtype(dtype)
    exact, wide = model.for_measuring(), torch.promote_types(dtype, torch.float32)
    assert exact.dtype == dtype
    assert exact.weights_sha256 == model.weights_sha256
    assert not model.measured
    for mine, theirs in (
        (exact.run(READ)[0], model.run(READ)[0]),
        (exact.run(READ, record="embed")[1]["embed"], model.run(READ, record="embed")[1]["embed"]),
        (exact.run_each(READ, ag.Zero(("z", 0))), model.run_each(READ, ag.Zero(("z", 0)))),
        (exact.token_embedding(), model.token_embedding()),
    ):
        assert mine.dtype == wide
        assert theirs.dtype == dtype
        assert torch.equal(mine, theirs.to(wide))
    assert exact.folded()[0].dtype == wide
    assert exact.folded()[0].measured


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_inputs_give_what_unpadded_ones_give_at_every_site(family: str) -> None:
    model, plain = subject(family), TASK.sample(2, torch.Generator().manual_seed(0))[:, :6]
    names = [site.name for site in model.sites]
    padded, mask = F.pad(plain, (3, 0)), F.pad(torch.ones_like(plain), (3, 0))
    logits, cache = model.run(padded, record=names, attention_mask=mask)
    expected, whole = model.run(plain, record=names)
    same = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
    same(logits[:, 3:], expected)
    same(model(padded, attention_mask=mask)[:, 3:], expected)
    same(model.run(padded, attention_mask=mask, grad=True)[0].detach()[:, 3:], expected)
    for site in model.sites:
        axes = KINDS[site.kind].axes
        kept = tuple(slice(3, None) if axis in ("pos", "query", "key") else slice(None) for axis in axes)
        same(cache[site.name][kept], whole[site.name])
    assert torch.equal(model.generate_tokens(padded, 2, attention_mask=mask), model.generate_tokens(plain, 2))
    edit = Zero(("z", 0), pos=4)
    moved = model.generate_tokens(padded, 2, attention_mask=mask, edits=replace(edit, pos=7))
    assert torch.equal(moved, model.generate_tokens(plain, 2, edits=edit))


def test_the_answers_of_padded_sequences_are_those_of_whole_ones() -> None:
    model, whole = subject(), TASK.sample(3, torch.Generator().manual_seed(0))
    mask = torch.ones_like(whole)
    same = model.answer_logits(whole, attention_mask=mask)
    torch.testing.assert_close(same, model.answer_logits(whole), rtol=1e-10, atol=1e-10)
    mask[:, :2] = 0
    assert (model.answer_logits(whole, attention_mask=mask) != same).any()
