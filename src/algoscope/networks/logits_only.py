"""A network of which only the logits are known: a function from tokens to logits, or a module that is not converted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from algoscope.core.errors import SubjectError
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.networks.taps import NO_TAP, Tap
from algoscope.networks.transformer import EVERYWHERE, Transformer


@dataclass(frozen=True)
class LogitsShape:
    """What is known of its shape, under the names of a `ModelConfig`."""

    d_vocab: int
    """Tokens that it may be given."""
    n_logits: int
    n_ctx: int
    causal: bool = False
    """Whether it is causal is not known: each prefix is read by itself, as greedy decoding reads it."""


class LogitsOnly(nn.Module):
    """It is called as a `Transformer` is; nothing in it is recorded or cached. It has no parameters of its own.

    Args:
        read: tokens [batch pos] to logits [batch pos d_vocab], or [batch d_vocab] of the last position.
        shape: its sizes.
        last_only: whether `read` gives the last position alone; then every prefix is read by itself.
        like: a tensor of the float type and on the device of its logits.
        why: why no more than logits is known.
        convert: the same network in another float type; None where that is not possible.
    """

    def __init__(
        self,
        read: Callable[[Int[Tensor, "batch pos"]], Tensor],
        shape: LogitsShape,
        last_only: bool,
        like: Tensor,
        why: str,
        convert: Callable[[torch.dtype], "LogitsOnly"] | None = None,
    ) -> None:
        super().__init__()
        self.read, self.cfg, self.last_only, self.like, self.why = read, shape, last_only, like, why
        self.convert = convert

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        at: slice = EVERYWHERE,
        cache: KeyValueCache | None = None,
        tap: Tap = NO_TAP,
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the positions `at`. With a mask, padding on the left is cut off before the network sees it."""
        if mask is not None and not mask.all():
            return self._without_padding(tokens, at, mask)
        if not self.last_only:
            return self._read(tokens, 3)[:, at]
        ends = range(*at.indices(tokens.shape[1]))
        each = [self._read(tokens[:, : end + 1], 2 if end else None) for end in ends]
        return torch.stack([one.flatten(0, -2) for one in each], dim=1) if each else self._zeros(len(tokens), 0)

    def _read(self, tokens: Int[Tensor, "batch pos"], ndim: int | None) -> Tensor:
        logits = self.read(tokens)
        if ndim not in (None, logits.ndim) or logits.shape[-1] != self.cfg.n_logits:
            first = "[batch d_vocab]" if self.last_only else "[batch pos d_vocab]"
            raise SubjectError(
                f"a black box gives {list(logits.shape)} for tokens of shape {list(tokens.shape)}, but {first} with "
                f"{self.cfg.n_logits} logits before: it must give the same for every length"
            )
        return logits

    def _without_padding(
        self, tokens: Int[Tensor, "batch pos"], at: slice, mask: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch read d_vocab"]:
        n_pos, n_padding = tokens.shape[1], (~mask).sum(dim=1)
        if not mask.equal(torch.arange(n_pos, device=mask.device) >= n_padding[:, None]):
            raise SubjectError("of a model of which only logits are known, padding is cut off: put it on the left")
        start, stop, _ = at.indices(n_pos)
        logits = self._zeros(len(tokens), n_pos)
        for n in n_padding.unique().tolist():
            rows, first = n_padding == n, max(start, n)
            if first < stop:
                logits[rows, first:stop] = self(tokens[rows, n:], at=slice(first - n, stop - n))
        return logits[:, at]

    def _zeros(self, n_inputs: int, n_pos: int) -> Float[Tensor, "batch pos d_vocab"]:
        return self.like.new_zeros(n_inputs, n_pos, self.cfg.n_logits)


Network = Transformer | LogitsOnly
