"""Our sites are the places of TransformerLens: the same values and the same gradients there, on the same weights."""

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from algoscope.core.errors import UnknownNameError
from algoscope.core.sites import KINDS, Site, find_site
from algoscope.networks.transformer import Tap
from algoscope.subjects.huggingface import convert
from hf_models import D_VOCAB, make, save

FAMILIES = ["gpt2", "pythia", "llama", "qwen3"]


class Listener(Tap):
    """Keeps what passes, with its gradient."""

    kinds = frozenset(KINDS)

    def __init__(self) -> None:
        self.values: dict[Site, torch.Tensor] = {}

    def __call__(self, kind: str, layer: int | None, value: torch.Tensor) -> torch.Tensor:
        value.retain_grad()
        self.values[Site(kind, layer)] = value
        return value


@pytest.fixture(scope="module", params=FAMILIES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Every value by name, from theirs and from ours, after the same backward pass."""
    folder = save(tmp_path_factory.mktemp("tl") / request.param, request.param)
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
    bridge.set_use_attn_result(True)
    tokens = torch.randint(D_VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, 7, D_VOCAB, generator=torch.Generator().manual_seed(1))
    theirs: dict[str, torch.Tensor] = {}

    def keep(value: torch.Tensor, hook) -> torch.Tensor:
        if value.requires_grad:
            value.retain_grad()
            theirs[hook.name] = value
        return value

    bridge.set_use_hook_mlp_in(True)
    (bridge.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, keep)]) * weight).sum().backward()
    ours = Listener()
    model = convert(make(request.param))
    (model.requires_grad_(True)(tokens, tap=ours) * weight).sum().backward()
    return theirs, ours.values, model.sites


def test_values_and_gradients_at_every_place(both: tuple) -> None:
    theirs, ours, sites = both
    compared = set()
    for name, value in theirs.items():
        try:
            site = find_site(name, sites)
        except UnknownNameError:
            continue
        mine = ours[site]
        assert mine.shape == value.shape, name
        seen = ~value.isneginf() & (value > -1e30)
        torch.testing.assert_close(mine[seen], value[seen], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert (mine.grad is None) == (value.grad is None), name
        if value.grad is not None:
            scale = value.grad.abs().max()
            assert (mine.grad - value.grad)[seen].abs().max() < 1e-4 * scale, f"gradient at {name}"
        compared.add(site)
    assert set(sites) - compared == set(), "every site of ours is a place of theirs"
