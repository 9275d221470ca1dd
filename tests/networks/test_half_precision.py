"""Half precision: as `transformers` computes it, and the same whether or not anybody looks."""

import copy

import pytest
import torch
from torch import Tensor

import algoscope as ag
from algoscope.networks.norms import Norm
from algoscope.networks.taps import NO_TAP, Tap
from algoscope.subjects.huggingface import convert
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from hf_models import D_VOCAB, make

HALVES = (torch.float16, torch.bfloat16)
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)
families = pytest.mark.parametrize("family", ["gpt2", "pythia", "neox in series", "llama", "llama 3", "qwen3"])
streams = pytest.mark.parametrize("stream", [1, 300, 3000])
TOKENS = torch.randint(D_VOCAB, (3, 30), generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.long  # the walks ask some of it each time


@torch.no_grad()
def pair(family: str, stream: int, dtype: torch.dtype) -> tuple[Subject, torch.nn.Module]:
    """A model whose residual stream is about `stream` large, ours and the library's, in this float type."""
    library = make(family)
    library.get_input_embeddings().weight.mul_(stream)
    ours = Subject(family, convert(copy.deepcopy(library)), text=Numbers(D_VOCAB))
    return ours.to_dtype(dtype), library.to(dtype)


def apart(first: Tensor, second: Tensor) -> float:
    return float((first.double() - second.double()).abs().max())


@halves
@families
@streams
@torch.no_grad()
def test_half_precision_is_that_of_the_library_to_its_own_spread(family: str, stream: int, dtype: torch.dtype) -> None:
    ours, library = pair(family, stream, dtype)
    fused, exact = library(TOKENS).logits, copy.deepcopy(library).double()(TOKENS).logits
    library.set_attn_implementation("eager")
    logits = ours.run(TOKENS)[0]
    assert logits.dtype == dtype
    assert apart(logits, fused) <= 2 * max(apart(fused, exact), apart(fused, library(TOKENS).logits))
    assert float((logits.argmax(-1) == fused.argmax(-1)).double().mean()) > 0.9


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
@families
@streams
def test_recording_changes_no_bit(family: str, stream: int, dtype: torch.dtype) -> None:
    model, _ = pair(family, stream, dtype)
    logits, cache = model.run_with_cache(TOKENS)
    assert torch.equal(logits, model.run(TOKENS)[0])
    assert logits.isfinite().all()
    assert all(cache[name].dtype == dtype for name in cache)
    sites = [("ln1_scale", 1), ("ln2_normalized", 0), ("attn_scores", 1), ("result", 0), ("pattern", 2)]
    unchanged = [ag.Patch(site, value=cache[site]) for site in sites]
    assert torch.equal(model.run(TOKENS, edits=unchanged)[0], logits)


@halves
@families
def test_edits_in_half_precision_agree_between_both_ways(family: str, dtype: torch.dtype) -> None:
    model, _ = pair(family, 10, dtype)
    edits = [
        ag.Zero(("attn_scores", 1), head=0, pos=5),
        ag.Zero(("z", 1), head=1),
        ag.Zero(("result", 0), head=1),
        ag.Zero(("ln1_normalized", 1), pos=7),
        ag.Add(("resid_pre", 1), value=torch.ones(24), pos=3),
    ]
    whole, swept = (model.run_each(TOKENS, edits, incremental=how) for how in (False, True))
    spread = apart(model.run(TOKENS)[0], model.to_dtype(torch.float64).run(TOKENS)[0])
    assert apart(whole, swept) <= spread
    assert all((one != model.run(TOKENS)[0]).any() for one in whole)


@halves
@families
def test_a_cache_of_keys_and_values_changes_no_word(family: str, dtype: torch.dtype) -> None:
    model, _ = pair(family, 300, dtype)
    written = [model.generate_tokens(TOKENS[:, :9], 8, use_cache=use) for use in (True, False)]
    assert torch.equal(*written)


@halves
def test_rotary_angles_of_far_positions_are_not_rounded_to_half(dtype: torch.dtype) -> None:
    """Position 2,049 is none in bfloat16, nor in float16 beyond 2,048."""
    cfg = ag.ModelConfig(d_vocab=7, n_ctx=3000, d_model=16, n_heads=2, n_layers=1, positions="rotary")
    model = ag.Transformer(cfg).to(dtype)
    near, far = (model.attention_context(1, first).angles[None] for first in (2048, 2049))
    assert far is not None
    assert near is not None
    assert (near != far).any()
    exact = torch.cos(torch.tensor(2049.0, dtype=torch.float64))
    assert float(far[0, 0, 0, 0]) == pytest.approx(float(exact), abs=0.01)


class Replaced(Tap):
    """Replaces the quotient of a norm at one row by ones."""

    kinds = frozenset({"ln1_normalized"})

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        return value if kind not in self.kinds else torch.cat([torch.ones_like(value[:1]), value[1:]])


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("centred", [True, False], ids=["LN", "RMS"])
@torch.no_grad()
def test_a_norm_is_edited_where_it_is_replaced_and_else_exact(centred: bool, dtype: torch.dtype) -> None:
    norm = Norm(8, "ln1", 0, centred, 1e-5)
    norm.weight.mul_(torch.arange(1, 9))
    norm = norm.to(dtype)
    x = (1000 * torch.randn(3, 8, generator=torch.Generator().manual_seed(1))).to(dtype)
    plain, edited = norm(x, NO_TAP), norm(x, Replaced())
    assert torch.equal(plain[1:], edited[1:])
    assert torch.equal(edited[0].float(), torch.arange(1.0, 9.0))
