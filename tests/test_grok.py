"""What changes the wait between memorising and generalising: each option does what its formula says."""

import pytest
import torch
from torch import nn

from algoscope.config import OptimConfig
from algoscope.networks.build import build
from algoscope.training.grok import NormClamp, SlowGradient, keep_perpendicular, log_stablemax, norm_of
from algoscope.training.recipes import grok59, grok113
from algoscope.training.table import RECIPES

SHAPES = [(3, 4), (5,)]


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in SHAPES]


def gradients(n: int) -> list[list[torch.Tensor]]:
    torch.manual_seed(1)
    return [[torch.randn(shape, dtype=torch.float64) for shape in SHAPES] for _ in range(n)]


def changed(cfg: OptimConfig, given: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    members = parameters()
    slow = SlowGradient(members, cfg)
    out = []
    for step in given:
        for member, gradient in zip(members, step, strict=True):
            member.grad = gradient.clone()
        slow.change()
        out.append([member.grad.clone() for member in members])
    return out


def test_the_exponential_mean_of_gradients_is_added() -> None:
    given = gradients(6)
    found = changed(OptimConfig(grokfast="ema", grokfast_alpha=0.9, grokfast_strength=3.0), given)
    for i in range(2):
        h = torch.zeros_like(given[0][i])
        for step in range(6):
            h = 0.9 * h + 0.1 * given[step][i]
            torch.testing.assert_close(found[step][i], given[step][i] + 3.0 * h, rtol=0, atol=1e-12)


def test_the_mean_of_a_window_is_added_once_it_is_full() -> None:
    given = gradients(7)
    found = changed(OptimConfig(grokfast="ma", grokfast_window=3, grokfast_strength=5.0), given)
    for step in range(7):
        for i in range(2):
            window = torch.stack([given[s][i] for s in range(max(0, step - 2), step + 1)]).mean(0)
            extra = 5.0 * window if step >= 2 else 0.0
            torch.testing.assert_close(found[step][i], given[step][i] + extra, rtol=0, atol=1e-12)


def test_a_perpendicular_gradient_has_no_part_along_its_weights_and_its_old_length() -> None:
    members = parameters()
    for member, gradient in zip(members, gradients(1)[0], strict=True):
        member.grad = gradient.clone()
    before = [member.grad.norm() for member in members]
    keep_perpendicular(members)
    for member, length in zip(members, before, strict=True):
        assert float((member.detach() * member.grad).sum()) == pytest.approx(0, abs=1e-12)
        assert float(member.grad.norm()) == pytest.approx(float(length))
    zero = nn.Parameter(torch.zeros(3))
    zero.grad = torch.ones(3)
    keep_perpendicular([zero])
    assert zero.grad.tolist() == [1, 1, 1]


def test_clamped_weights_keep_their_norm_together() -> None:
    members = parameters()
    first = norm_of(members)
    clamp = NormClamp(members, 0.5)
    with torch.no_grad():
        members[0].mul_(7)
    shares = [member / norm_of(members) for member in members]
    clamp.change()
    assert float(norm_of(members)) == pytest.approx(0.5 * float(first))
    for member, share in zip(members, shares, strict=True):
        torch.testing.assert_close(member / norm_of(members), share)


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
