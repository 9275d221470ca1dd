"""Single parts of modules, each in a small decoder: what ours can hold is found, what it cannot is named."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algoscope.core.ambient import settled
from algoscope.core.errors import SubjectError
from algoscope.formats.own_modules.conversion import convert

D, V, N = 12, 7, 6


class Attention(nn.Module):
    def __init__(self, pattern: Callable[[Tensor, Tensor], Tensor], heads: int = 2, d_v: int = 6) -> None:
        super().__init__()
        self.heads, self.pattern = heads, pattern
        self.q, self.k, self.v = nn.Linear(D, D), nn.Linear(D, D, bias=False), nn.Linear(D, heads * d_v)
        self.o = nn.Linear(heads * d_v, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        ahead = torch.arange(x.shape[1]) - torch.arange(x.shape[1])[:, None]
        return self.o((self.pattern(q @ k.mT, ahead) @ v).transpose(1, 2).flatten(2))


def causal(scores: Tensor, ahead: Tensor) -> Tensor:
    return (scores * 0.3).masked_fill(ahead > 0, -1e9).softmax(-1)


def windowed(scores: Tensor, ahead: Tensor) -> Tensor:
    return scores.masked_fill((ahead > 0) | (ahead <= -3), -torch.inf).softmax(-1)


def rated(scores: Tensor, ahead: Tensor) -> Tensor:
    return 0.4 * scores.softmax(-1) + 0.6


def capped(scores: Tensor, ahead: Tensor) -> Tensor:
    return (20 * torch.tanh(scores / 20)).masked_fill(ahead > 0, -torch.inf).softmax(-1)


def plus_one(scores: Tensor, ahead: Tensor) -> Tensor:
    weights = scores.exp() * (ahead <= 0)
    return weights / (1 + weights.sum(-1, keepdim=True))


def sigmoid(scores: Tensor, ahead: Tensor) -> Tensor:
    return scores.sigmoid() * (ahead <= 0)


class StdNorm(nn.Module):
    """Divides by the standard deviation plus epsilon, which no norm of ours does."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.g * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-3)


class VarNorm(nn.Module):
    """LayerNorm with a variance that divides by one less."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.g * (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5) + self.b


class Decoder(nn.Module):
    def __init__(
        self,
        pattern: Callable[[Tensor, Tensor], Tensor] = causal,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        act: Callable[[Tensor], Tensor] = F.gelu,
        scaled: bool = False,
        after: Callable[[Tensor], Tensor] = lambda y: y,
        **options: Any,
    ) -> None:
        super().__init__()
        self.act, self.after = act, after
        self.tok, self.pos = nn.Embedding(V, D), nn.Embedding(N, D)
        self.attn, self.n1, self.n2, self.nf = Attention(pattern, **options), norm(D), norm(D), norm(D)
        self.up, self.down, self.head = nn.Linear(D, 20), nn.Linear(20, D), nn.Linear(D, V)
        self.gamma = nn.Parameter(torch.zeros(D)) if scaled else None
        self.alpha = nn.Parameter(torch.zeros(1)) if scaled else None

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok(tokens) + self.pos(torch.arange(tokens.shape[1]))
        a = self.attn(self.n1(x))
        x = x + (a if self.gamma is None else self.gamma * a)
        m = self.down(self.act(self.up(self.n2(x))))
        x = x + (m if self.alpha is None else self.alpha * m)
        return self.after(self.head(self.nf(x)))


CAN: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "a window": (partial(Decoder, windowed), {"windows": (3,), "causal": True}),
    "an attention rate": (partial(Decoder, rated), {"attn_rate": 0.4, "causal": False}),
    "a cap": (partial(Decoder, capped), {"attn_scores_soft_cap": 20.0}),
    "softmax plus one": (partial(Decoder, plus_one), {"softmax_plus_one": True, "attn_scale": 1.0}),
    "a scale": (partial(Decoder, causal), {"attn_scale": pytest.approx(0.3, rel=1e-12)}),
    "values of another size": (partial(Decoder, d_v=9), {"d_head": 9}),
    "a norm by the unbiased variance": (partial(Decoder, norm=VarNorm), {"normalization_type": "LN"}),
    "scaled branches that are zero": (partial(Decoder, scaled=True), {"n_layers": 1}),
    "squared ReLU": (partial(Decoder, act=lambda x: F.relu(x) ** 2), {"act_fn": "relu_squared"}),
    "fewer logits": (partial(Decoder, after=lambda y: y[..., :5]), {"d_vocab_out": 5}),
    "the last position": (partial(Decoder, after=lambda y: y[:, -1]), {"d_vocab_out": None}),
}
CANNOT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sigmoid": (partial(Decoder, sigmoid), "attention in attn: its pattern is no softmax"),
    "std norm": (partial(Decoder, norm=StdNorm), r"attn.q\) is no norm of the residual stream.*n1 is between"),
    "relu6": (partial(Decoder, act=F.relu6), "with random weights the logits differ by"),
    "elu": (partial(Decoder, act=F.elu), "up is read by down through an activation that is none of ours"),
    "mean": (partial(Decoder, after=lambda y: y.mean(1)), "returns is not the output of its last matrix"),
}


@settled()
@pytest.mark.parametrize("what", CAN)
def test_what_ours_can_hold_is_found(what: str) -> None:
    make, fields = CAN[what]
    conversion = convert(make())
    assert conversion.largest_difference < 1e-12
    assert {name: getattr(conversion.model.cfg, name) for name in fields} == fields


@settled()
@pytest.mark.parametrize("what", CANNOT)
def test_what_ours_cannot_hold_is_named(what: str) -> None:
    make, message = CANNOT[what]
    with pytest.raises(SubjectError, match=message):
        convert(make())


@settled()
def test_probabilities_are_read_as_the_logits_before() -> None:
    module = Decoder(after=lambda y: y.log_softmax(-1))
    conversion = convert(module)
    assert conversion.probabilities == "log_softmax"
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(conversion.model(tokens).log_softmax(-1), module(tokens))


@settled()
def test_unused_weights_are_named() -> None:
    module = Decoder()
    module.dead = nn.Linear(2, 2)
    assert convert(module).unused == ("dead.bias", "dead.weight")


@settled()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_float_type_stays(dtype: torch.dtype) -> None:
    assert convert(Decoder().to(dtype)).model.embed.weight.dtype == dtype


@settled()
def test_wrappers_are_looked_through() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's compiler uses what PyTorch deprecates
        compiled = torch.compile(Decoder())
    for module in (nn.DataParallel(Decoder()), compiled):
        assert convert(module).largest_difference < 1e-12


@settled()
def test_parametrised_weights_are_taken_as_they_are() -> None:
    module = Decoder()
    nn.utils.parametrizations.weight_norm(module.head)
    conversion = convert(module)
    torch.testing.assert_close(conversion.model.W_U, module.head.weight)


def test_a_module_that_needs_more_than_tokens_is_told() -> None:
    class Two(Decoder):
        def forward(self, tokens: Tensor, graph: Tensor) -> Tensor:
            return super().forward(tokens)

    with settled(), pytest.raises(SubjectError, match=r"Two.forward needs 'graph' beside the tokens"):
        convert(Two())
