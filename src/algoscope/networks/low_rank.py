"""Low-rank matrices: a product of two factors, and a frozen matrix with a low-rank update.

Both are linear maps whose `weight` is the full matrix, so code that reads weights works for all. It is computed at each
access: writing into it has no effect.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Computed(nn.Linear):
    """A linear map whose `weight` is computed from other tensors."""

    def __init__(self, in_features: int, out_features: int) -> None:
        nn.Module.__init__(self)  # the constructor of Linear would create a weight
        self.in_features, self.out_features = in_features, out_features

    @property
    def weight(self) -> Float[Tensor, "out in"]:  # type: ignore[override]  # read-only, unlike that of Linear
        raise NotImplementedError


class LowRank(Computed):
    """W = A B, with A [out rank] called `left` and B [rank in] called `right`, and an ordinary bias."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(in_features, out_features)
        self.rank = rank
        self.left = nn.Parameter(torch.empty(out_features, rank))
        self.right = nn.Parameter(torch.empty(rank, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)

    @property
    def weight(self) -> Float[Tensor, "out in"]:  # type: ignore[override]
        return self.left @ self.right

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Apply the factors in turn, unless the full matrix has fewer entries than both."""
        if self.left.numel() + self.right.numel() < self.in_features * self.out_features:
            return F.linear(F.linear(x, self.right), self.left, self.bias)
        return F.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def draw(self, std: float, zero: bool, generator: torch.Generator) -> None:
        """Draw uniform factors of equal Frobenius norm whose product has entries of this standard deviation; with
        `zero` the left factor, and so the product, is zero. The bias is unchanged.
        """
        tall = (self.in_features / self.out_features) ** 0.25
        each = std**0.5 / self.rank**0.25
        for factor, share in ((self.left, tall), (self.right, 1 / tall)):
            bound = 3**0.5 * each * share
            factor.uniform_(-bound, bound, generator=generator)
        if zero:
            self.left.zero_()


class Updated(Computed):
    """W = W0 + (alpha / rank) B A: `base` keeps W0 and the bias, `left` is B [out rank], `right` is A [rank in].

    Source: Hu et al., LoRA (arXiv 2106.09685), whose letters are in the opposite order to A B above.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__(base.in_features, base.out_features)
        self.base, self.scale = base, alpha / rank
        self.left = nn.Parameter(base.weight.new_empty(base.out_features, rank))
        self.right = nn.Parameter(base.weight.new_empty(rank, base.in_features))

    @property
    def weight(self) -> Float[Tensor, "out in"]:  # type: ignore[override]
        return self.base.weight + self.scale * (self.left @ self.right)

    @property
    def bias(self) -> Float[Tensor, "out"] | None:  # type: ignore[override]
        return self.base.bias

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        return self.base(x) + self.scale * F.linear(F.linear(x, self.right), self.left)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Set B to zero, so that W = W0, and draw A uniformly within 1/sqrt(fan in), as for a full matrix."""
        self.left.zero_()
        bound = self.in_features**-0.5
        self.right.uniform_(-bound, bound, generator=generator)


def linear(in_features: int, out_features: int, bias: bool, rank: int | None) -> nn.Linear:
    """A linear map with a full matrix, or with one of the given rank."""
    if rank is None:
        return nn.Linear(in_features, out_features, bias=bias)
    return LowRank(in_features, out_features, rank, bias)
