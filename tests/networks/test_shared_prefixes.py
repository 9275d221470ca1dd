"""The fast path of certification against the plain one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algoscope.config import ModelConfig
from algoscope.networks.build import build
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.networks.shared_prefixes import cache_for, distinct_prefixes, find_cuts, plain_logits, shared_logits
from algoscope.tasks.digits.addition import Addition

TASK = Addition(n_digits=3)
shapes = st.fixed_dictionaries(
    {
        "d_model": st.sampled_from([8, 16, 32]),
        "n_layers": st.integers(1, 3),
        "n_heads": st.sampled_from([1, 2, 4]),
        "d_mlp": st.sampled_from([None, 16]),
        "normalization_type": st.sampled_from(["LN", "RMS", None]),
        "positions": st.sampled_from(["learned", "sinusoidal", "rotary", "alibi", None]),
        "causal": st.booleans(),
        "tied_head": st.booleans(),
        "softmax_plus_one": st.booleans(),
    }
)


@given(shape=shapes, start=st.integers(0, 999_000), n=st.integers(1, 1500), seed=st.integers(0, 99))
def test_sharing_prefixes_changes_no_logit(shape: dict, start: int, n: int, seed: int) -> None:
    model = build(ModelConfig(d_vocab=14, n_ctx=13, init_embed_std=1.0, **shape), seed)
    tokens = TASK.at(torch.arange(start, min(start + n, 1_000_000)))[:, :-1]
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = model.to(dtype)
        with torch.no_grad():
            plain = plain_logits(model, tokens, TASK.answer_slice)
            shared = shared_logits(model, tokens, TASK.answer_slice)
        scale = max(1.0, plain.abs().max().item())
        assert (shared - plain).abs().max().item() <= bound * scale


@pytest.mark.parametrize(("start", "step"), [(0, 1), (123, 1), (0, 7)], ids=["equally shared", "cut off", "gaps"])
def test_long_lists_run_on_in_portions(start: int, step: int) -> None:
    model = build(ModelConfig(d_vocab=14, n_ctx=13, n_heads=4, n_kv_heads=2, init_embed_std=1.0), 0).double()
    tokens = TASK.at(torch.arange(start, start + 6000 * step, step))[:, :-1]
    with torch.no_grad():
        plain, shared = (logits(model, tokens, TASK.answer_slice) for logits in (plain_logits, shared_logits))
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-10)


def test_rows_that_are_all_alike_are_read_all_the_same() -> None:
    model = build(ModelConfig(d_vocab=14, n_ctx=13, init_embed_std=1.0), 0).double()
    tokens = TASK.at(torch.tensor([5]))[:, :-1].repeat(9, 1)
    with torch.no_grad():
        plain, shared = (logits(model, tokens, TASK.answer_slice) for logits in (plain_logits, shared_logits))
    torch.testing.assert_close(shared, plain, rtol=0, atol=1e-10)


def test_equally_shared_prefixes_share_their_cache_without_a_copy() -> None:
    cache = KeyValueCache([(torch.arange(3.0).view(3, 1, 1, 1), torch.zeros(3, 1, 1, 1))])
    whole = cache_for(cache, torch.tensor([1, 1, 2, 2]))
    assert (whole.rows_per_prefix, whole.layers[0][0].data_ptr()) == (2, cache.layers[0][0][1].data_ptr())
    uneven = cache_for(cache, torch.tensor([0, 1, 1, 2]))
    assert (uneven.rows_per_prefix, uneven.layers[0][0].flatten().tolist()) == (1, [0, 1, 1, 2])


def test_plain_is_the_models_own_forward() -> None:
    model = build(ModelConfig(d_vocab=14, n_ctx=13, init_embed_std=1.0), 0).double()
    tokens = TASK.at(torch.arange(0, 1_000_000, 9999))[:, :-1]
    plain = plain_logits(model, tokens, TASK.answer_slice)
    torch.testing.assert_close(plain, model(tokens)[:, TASK.answer_slice], rtol=0, atol=1e-12)


def test_a_model_that_looks_ahead_is_never_shown_the_answer() -> None:
    model = build(ModelConfig(d_vocab=14, n_ctx=13, causal=False, init_embed_std=1.0), 0).double()
    tokens = TASK.at(torch.arange(5))[:, :-1]
    logits = plain_logits(model, tokens, TASK.answer_slice)
    alone = model(tokens[:, :8])[:, -1]
    torch.testing.assert_close(logits[:, 0], alone, rtol=0, atol=1e-12)


def test_distinct_prefixes_of_neighbours_are_found() -> None:
    first, branch = distinct_prefixes(torch.tensor([[1, 2], [1, 2], [1, 3], [0, 3], [0, 3]]))
    assert first.tolist() == [0, 2, 3]
    assert branch.tolist() == [0, 0, 1, 2, 2]


@pytest.mark.parametrize("n", [1, 7, 4000])
def test_cuts_lie_where_prefixes_branch(n: int) -> None:
    prefix = TASK.at(torch.arange(n))[:, : TASK.prompt_length]
    cuts = find_cuts(prefix)
    different = [len(prefix[:, :cut].unique(dim=0)) for cut in cuts]
    assert different == sorted(set(different))
    assert all(count < n for count in different)
