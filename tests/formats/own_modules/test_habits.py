"""Habits of writing modules by hand: what is computed beside the logits, and what only some tokens or calls show."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import algoscope as ag
from algoscope.core.ambient import settled
from algoscope.core.errors import SubjectError
from algoscope.formats.own_modules.conversion import convert

V, D, H, N = 2000, 12, 2, 6


class OneClass(nn.Module):
    """All weights in one class, blocks stacked in each; tokens and positions are columns; norms have no weights; the
    output bias is added after the sum.
    """

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        shapes = {
            "E": (D, V), "P": (D, N), "Q": (2, 6, H, D), "K": (2, D, 6, H), "V": (2, H, 6, D), "O": (2, 6, D, H),
            "b_Q": (2, H, 6), "b_O": (2, D), "U": (V, D), "value": (D, 1),
        }  # fmt: skip
        self.w = nn.ParameterDict({name: torch.randn(shape, generator=draw) / 3 for name, shape in shapes.items()})

    def blocks(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        w, n = self.w, tokens.shape[1]
        x = w["E"][:, tokens].permute(1, 2, 0) + w["P"][:, :n].T
        hidden = torch.ones(n, n).triu(1) > 0 if mask is None else mask
        for i in range(2):
            h = F.rms_norm(x, (D,))
            q = torch.einsum("btd,ehd->bthe", h, w["Q"][i]) + w["b_Q"][i]
            k = torch.einsum("btd,deh->bthe", h, w["K"][i])
            v = torch.einsum("btd,hed->bthe", h, w["V"][i])
            pattern = (torch.einsum("bqhe,bkhe->bhqk", q, k) / 6**0.5).masked_fill(hidden, -1e9).softmax(-1)
            z = torch.einsum("bhqk,bkhe->bqhe", pattern, v)
            x = x + torch.einsum("bqhe,edh->bqd", z, w["O"][i]) + w["b_O"][i]
        return F.rms_norm(x, (D,))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(tokens)
        return x @ self.w["value"], torch.einsum("btd,vd->btv", x, self.w["U"])


class Padded(OneClass):
    """Hides the keys at which a token stands."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        later = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1) > 0
        x = self.blocks(tokens, later | (tokens == self.padding)[:, None, None])
        return x @ self.w["value"], x @ self.w["U"].T


class Masked(OneClass):
    """Needs a mask, which some other masks fit too, at one token."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if tokens.shape[1] > 1 and mask.dtype == torch.bool:
            raise TypeError("the mask is a tensor of floats")
        return self.blocks(tokens, mask < 0) @ self.w["U"].T


@settled()
def test_weights_in_one_class_with_a_value_beside_the_logits() -> None:
    module = OneClass()
    conversion = convert(module)
    cfg = conversion.model.cfg
    assert conversion.largest_difference < 1e-12
    assert conversion.unused == ("w.value",)
    assert (cfg.n_ctx, cfg.normalization_type, cfg.positions, cfg.n_layers) == (N, "RMS", "learned", 2)
    tokens = torch.randint(0, V, (3, N), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(conversion.model(tokens), module(tokens)[1], rtol=1e-4, atol=1e-4)


@settled()
@pytest.mark.parametrize("padding", [0, 1, V - 1])
def test_a_module_that_hides_a_token_at_an_end_of_its_vocabulary_is_refused(padding: int) -> None:
    with pytest.raises(SubjectError, match=r"its mask is|first at block 0 attention"):
        convert(Padded(padding))


@settled()
def test_a_mask_that_fits_at_one_token_only_is_not_taken() -> None:
    conversion = convert(Masked())
    assert conversion.model.cfg.n_ctx == N
    assert "minus infinity" in conversion.call


def test_hooks_that_the_model_is_computed_without_are_named() -> None:
    module = nn.Sequential(OneClass())
    module[0].register_forward_hook(lambda *_: None)
    assert "computed without the hooks of 0, which" in ag.open(module).note
