"""Taps read and replace activations while a model computes. What one returns unchanged changes nothing."""

import torch
from jaxtyping import Float
from torch import Tensor


class Tap:
    """Reads or replaces activations at sites of these `kinds`, in these `layers` (None: in all). This base class does
    nothing; a subclass overrides all three.
    """

    kinds: frozenset[str] = frozenset()
    layers: frozenset[int | None] | None = None

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        """Return the value, or a replacement of the same shape."""
        return value


NO_TAP = Tap()


def precise(dtype: torch.dtype) -> torch.dtype:
    """The type for sums, squares and exponentials of values of this type: float32 for a half-precision one."""
    return torch.promote_types(dtype, torch.float32)


def tap_rounded(tap: Tap, kind: str, layer: int | None, value: Float[Tensor, "..."], dtype: torch.dtype) -> Tensor:
    """Tap a value that the model keeps in a wider type than its own, `dtype`: the tap sees it rounded, and entries that
    it returns unchanged keep their digits.
    """
    if value.dtype == dtype or kind not in tap.kinds:
        return tap(kind, layer, value)
    rounded = value.to(dtype)
    new = tap(kind, layer, rounded)
    if torch.is_grad_enabled():
        return new.to(value.dtype)  # what the tap saw must be on the path to the logits
    return value if new is rounded else torch.where(new == rounded, value, new.to(value.dtype))


def is_traced() -> bool:
    """Whether every tapped value must be on the path to the logits: for gradients, and in an exported graph."""
    return torch.is_grad_enabled() or torch.compiler.is_exporting()
