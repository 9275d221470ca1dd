"""Our sites are the places of TransformerLens: the same values and the same gradients there, on the same weights."""

from collections import defaultdict
from collections.abc import Sequence

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge

from algoscope.config import ModelConfig
from algoscope.core.errors import UnknownNameError
from algoscope.core.sites import KINDS, Site, find_site
from algoscope.formats.config_inference import layout_to_config
from algoscope.formats.layout_reading import tensors_to_layout
from algoscope.formats.model_building import layout_to_weights
from algoscope.formats.transformerlens import lens_config_to_fields
from algoscope.networks.taps import Tap
from algoscope.networks.transformer import Transformer
from algoscope.subjects.huggingface import convert
from hf_models import D_VOCAB, make, save

Theirs = dict[str, list[torch.Tensor]]  # it norms the input of queries, of keys and of values each for itself
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
    theirs: Theirs = defaultdict(list)

    def keep(value: torch.Tensor, hook) -> torch.Tensor:
        if value.requires_grad:
            value.retain_grad()
            theirs[hook.name].append(value)
        return value

    def wanted(name: str) -> bool:
        return not name.endswith(("hook_mlp_in", "attn_in", "_input"))

    (bridge.run_with_hooks(tokens, fwd_hooks=[(wanted, keep)]) * weight).sum().backward()
    ours = Listener()
    model = convert(make(request.param))
    (model.requires_grad_(True)(tokens, tap=ours) * weight).sum().backward()
    return theirs, ours.values, model.sites


def compare(
    theirs: Theirs,
    ours: dict[Site, torch.Tensor],
    sites: tuple[Site, ...],
    not_there: Sequence[str] = (),
) -> set[str]:
    """Every value of theirs that has a name of ours; returns the kinds whose gradients were compared too."""
    compared, with_gradient = set(), set()
    for name, values in theirs.items():
        try:
            site = find_site(name, sites)
        except UnknownNameError:
            continue
        mine, value = ours[site], values[-1]
        gradients = [value.grad for value in values if value.grad is not None]
        gradient = sum(gradients) if gradients else None
        if site.kind.startswith(("q_norm", "k_norm")):  # it norms heads in rows, or before positions
            value, gradient = (laid_out(part, mine.shape) for part in (value, gradient))
        assert mine.shape == value.shape, name
        seen = value > -1e30  # what the mask hides is minus infinity, or nearly
        torch.testing.assert_close(mine[seen], value[seen], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        if gradient is not None:
            assert (mine.grad - gradient)[seen].abs().max() < 1e-4 * gradient.abs().max(), f"gradient at {name}"
            with_gradient.add(site.kind)
        compared.add(site)
    missing = {site.kind for site in set(sites) - compared}
    assert missing <= set(not_there), f"every site of ours is a place of theirs, but {missing}"
    return with_gradient


def laid_out(value: torch.Tensor | None, shape: torch.Size) -> torch.Tensor | None:
    if value is None or value.shape == shape:
        return value
    return value.transpose(1, 2) if value.ndim == 4 else value.reshape(shape)


def test_values_and_gradients_at_every_place(both: tuple) -> None:
    theirs, ours, sites = both
    only_read = {kind for kind in KINDS if kind.endswith(("_scale", "_normalized"))}  # it computes its norms elsewhere
    partial = ("rot_q", "rot_k")  # it does not tap queries and keys that are turned in part; its older form does
    assert compare(theirs, ours, sites, partial) >= {site.kind for site in sites} - only_read - set(partial)


CLASSIC = {
    "layer norm": {"normalization_type": "LN", "act_fn": "gelu_new", "positional_embedding_type": "standard"},
    "RMS, grouped, gated": {
        "normalization_type": "RMS", "act_fn": "silu", "gated_mlp": True, "positional_embedding_type": "rotary",
        "rotary_dim": 4, "n_key_value_heads": 2, "use_qk_norm": True,
    },
}  # fmt: skip


def same_weights(classic: HookedTransformer) -> Transformer:
    """Ours with the weights of theirs."""
    reading = tensors_to_layout(classic.state_dict(), None, {}, "it")
    stated = lens_config_to_fields(classic.cfg.to_dict(), "its config")
    inferred = layout_to_config(reading, stated, {}, classic.cfg.n_ctx, "it")
    cfg = ModelConfig(**{row.what: row.value for row in inferred if not row.what.startswith("weights.")})
    model = Transformer(cfg)
    model.load_state_dict({name: value.clone() for name, value in layout_to_weights(reading, cfg).items()})
    return model


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
@pytest.mark.parametrize("kind", CLASSIC)
def test_norms_too_and_their_gradients(kind: str) -> None:
    options = {"n_layers": 2, "d_model": 24, "n_ctx": 16, "d_head": 6, "n_heads": 4, "d_mlp": 40, "d_vocab": D_VOCAB}
    classic = HookedTransformer(HookedTransformerConfig(**options, **CLASSIC[kind], seed=0, use_attn_result=True))
    draw = torch.Generator().manual_seed(0)
    for name, weight in classic.named_parameters():
        if not (name.endswith("mlp.b_in") and classic.cfg.gated_mlp):  # it adds that one after the product
            weight.data += 0.2 * torch.randn(weight.shape, generator=draw)
    tokens = torch.randint(D_VOCAB, (2, 7), generator=draw)
    weight = torch.randn(2, 7, D_VOCAB, generator=draw)
    theirs: Theirs = defaultdict(list)

    def keep(value: torch.Tensor, hook) -> torch.Tensor:
        value.retain_grad()
        theirs[hook.name].append(value)
        return value

    (classic.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, keep)]) * weight).sum().backward()
    ours, model = Listener(), same_weights(classic)
    (model(tokens, tap=ours) * weight).sum().backward()
    assert compare(theirs, ours.values, model.sites) == {site.kind for site in model.sites}
