"""What changes the wait between memorising and generalising: each option does what its formula says."""

import pytest
import torch
from torch import nn

from algoscope.config import OptimConfig
from algoscope.networks.build import build
from algoscope.networks.evaluation import log_stablemax
from algoscope.recipes.modular import grok59, grok113
from algoscope.recipes.table import RECIPES
from algoscope.training.grokking_methods import NormClamp, SlowGradient, keep_perpendicular, norms
from algoscope.training.stacked_weights import Flat

SHAPES = [(3, 4), (5,)]


class Parameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.members = nn.ParameterList(nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES)


def rows(n_members: int = 1) -> Flat:
    """Members that all begin alike."""
    model = Parameters()
    flat = Flat(model, n_members, lambda name, p: False)
    for member in range(n_members):
        flat.fill(member, model.state_dict())
    return flat


def gradients(n: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(n, 17, dtype=torch.float64)


def changed(cfgs: list[OptimConfig], given: torch.Tensor) -> torch.Tensor:
    """The gradients [step member entry] that come of the same ones for every member."""
    flat = rows(len(cfgs))
    slow = SlowGradient(flat, cfgs)
    out = []
    for gradient in given:
        flat.grads[:] = gradient
        slow.change()
        out.append(flat.grads.clone())
    return torch.stack(out)


def test_the_exponential_mean_of_gradients_is_added() -> None:
    given = gradients(6)
    cfgs = [OptimConfig(grokfast="ema", grokfast_alpha=a, grokfast_strength=f) for a, f in ((0.9, 3.0), (0.5, 1.0))]
    found = changed(cfgs, given)
    for member, cfg in enumerate(cfgs):
        h = torch.zeros_like(given[0])
        for step in range(6):
            h = cfg.grokfast_alpha * h + (1 - cfg.grokfast_alpha) * given[step]
            wanted = given[step] + cfg.grokfast_strength * h
            torch.testing.assert_close(found[step, member], wanted, rtol=0, atol=1e-12)


def test_the_mean_of_a_window_is_added_once_it_is_full() -> None:
    given = gradients(7)
    found = changed([OptimConfig(grokfast="ma", grokfast_window=3, grokfast_strength=5.0)], given)
    for step in range(7):
        window = given[max(0, step - 2) : step + 1].mean(0)
        extra = 5.0 * window if step >= 2 else 0.0
        torch.testing.assert_close(found[step, 0], given[step] + extra, rtol=0, atol=1e-12)


def test_a_perpendicular_gradient_has_no_part_along_its_weights_and_its_old_length() -> None:
    flat = rows(2)
    flat.values[1, :12] = 0
    flat.grads[:] = gradients(2)
    before = flat.grads.clone()
    keep_perpendicular(flat)
    for stretch in flat.stretches.values():
        along = (flat.values[:, stretch] * flat.grads[:, stretch]).sum(1)
        assert along.tolist() == pytest.approx([0, 0], abs=1e-12)
        torch.testing.assert_close(flat.grads[:, stretch].norm(dim=1), before[:, stretch].norm(dim=1))
    assert torch.equal(flat.grads[1, :12], before[1, :12])  # weights of zero have no direction


def test_clamped_weights_keep_their_norm_together() -> None:
    flat = rows(2)
    first = norms(flat.values)
    clamp = NormClamp(flat, [OptimConfig(norm_clamp=0.5), OptimConfig(norm_clamp=2.0)])
    flat.values[:, :12] *= 7
    shares = flat.values / norms(flat.values)
    clamp.change()
    assert (norms(flat.values) / first).flatten().tolist() == pytest.approx([0.5, 2.0])
    torch.testing.assert_close(flat.values / norms(flat.values), shares)


def test_stablemax_is_its_formula_and_a_distribution() -> None:
    logits = torch.tensor([[-3.0, 0.0, 2.0, 1e6], [-1e6, -1.0, 0.5, 3.0]], dtype=torch.float64)
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits))
    torch.testing.assert_close(log_stablemax(logits), (s / s.sum(-1, keepdim=True)).log(), rtol=1e-9, atol=0)
    small = logits.clone().requires_grad_()
    log_stablemax(small)[0, 1].backward()
    assert small.grad.isfinite().all()


def test_the_published_set_up() -> None:
    cfg = grok113()
    model = build(cfg.model, 0)
    assert sum(p.numel() for p in model.parameters()) == 226_816 + 128
    assert (cfg.model.d_vocab, cfg.model.n_ctx, cfg.data.n_train, cfg.data.n_test) == (114, 4, 3_830, 8_939)
    assert {name for name, _ in model.named_parameters() if name.endswith("bias")} == {
        "blocks.0.mlp.w_in.bias",
        "blocks.0.mlp.w_out.bias",
    }
    assert float(model.W_U.detach().std()) == pytest.approx(114**-0.5, rel=0.02)
    assert float(model.embed.weight.detach().std()) == pytest.approx(128**-0.5, rel=0.02)
    small = grok59()
    assert sum(p.numel() for p in build(small.model, 0).parameters()) == 40_576 + 64
    assert small.data.n_train + small.data.n_test == 59**2


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_complete_under_its_own_name(name: str) -> None:
    assert RECIPES.load(name)().recipe == name
