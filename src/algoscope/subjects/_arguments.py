"""What a run is given, in every form in which people write it: token ids, masks, positions, sites, edits."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from algoscope.core.errors import EditError, VocabularyError
from algoscope.core.sites import Key, Site

TokenIds = Shaped[Tensor, "..."] | np.ndarray | Sequence[Any]
"""Token ids [batch pos], or [pos] of one input: a tensor, an array or lists of whole numbers."""
MaskLike = Shaped[Tensor, "..."] | np.ndarray | Sequence[Any] | None
"""[batch pos]: true, or 1, at tokens; false, or 0, at padding."""
Positions = slice | SupportsIndex
"""A slice of positions, or one."""
Keys = Key | Iterable[Any]
"""Sites under any of their names, one or several."""


def token_ids(tokens: Any, device: torch.device) -> Int[Tensor, "batch pos"]:
    """Token ids as integers [batch pos] on a device. Raises VocabularyError for what is no such thing."""
    if isinstance(tokens, Tensor) and tokens.dtype == torch.long and tokens.ndim == 2 and tokens.shape[1]:
        return _tensor("tokens", tokens).to(device)
    if isinstance(tokens, str | Mapping) or (isinstance(tokens, Sequence) and any(isinstance(t, str) for t in tokens)):
        what = "a text" if not isinstance(tokens, Mapping) else "what a tokenizer returns"
        way = "model.to_tokens(text)" if not isinstance(tokens, Mapping) else "its input_ids"
        raise VocabularyError(f"tokens are numbers [batch pos], not {what}: give {way}")
    ids = _tensor("tokens", tokens)
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        kind = str(ids.dtype).removeprefix("torch.")
        raise VocabularyError(f"tokens are whole numbers [batch pos], not {kind}: texts become tokens by to_tokens")
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or not ids.shape[1]:
        what = "there are no tokens" if not ids.numel() else "tokens are [batch pos], or [pos] of one input"
        raise VocabularyError(f"{what}: their shape is {tuple(ids.shape)}")
    return ids.to(device, torch.long)


def mask_of(mask: Any, ids: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"] | None:
    """An attention mask as true and false. Raises VocabularyError for another shape, and for numbers but 0 and 1."""
    if mask is None:
        return None
    given = _tensor("attention_mask", mask).to(ids.device)
    given = given[None] if given.ndim == 1 else given
    if given.shape != ids.shape:
        raise VocabularyError(
            f"attention_mask has the shape {tuple(given.shape)}, the tokens {tuple(ids.shape)}: give 1 at every token "
            "and 0 at padding, [batch pos]"
        )
    if not ((given == 0) | (given == 1)).all():
        odd = given[(given != 0) & (given != 1)][0].item()
        raise VocabularyError(f"attention_mask holds {odd:g}: give 1 at every token and 0 at padding, [batch pos]")
    return given.bool()


def positions(at: Any, n_pos: int) -> slice:
    """A slice of positions. Raises VocabularyError for a position out of range, and for what names none."""
    if isinstance(at, slice):
        if at.step is None or at.step > 0:
            return at
    else:
        try:
            number = operator.index(at)
        except TypeError:
            raise VocabularyError(f"at={at!r} names no positions: give a slice, or one position") from None
        if -n_pos <= number < n_pos:
            return slice(number, number + 1 or None)
        raise VocabularyError(f"at={number} is out of range: there are {n_pos} positions")
    raise VocabularyError(f"at={at!r} runs backwards: give a slice with a positive step")


def vocabulary_ids(among: Any, d_vocab: int, device: torch.device) -> Int[Tensor, "some"] | None:
    """Tokens of the vocabulary. Raises VocabularyError for what is none."""
    if among is None:
        return None
    ids = _tensor("among", among).flatten()
    if ids.is_floating_point() or ids.dtype == torch.bool or not ids.numel():
        raise VocabularyError(f"among={among!r} names no tokens: give their numbers")
    if int(ids.min()) < -d_vocab or int(ids.max()) >= d_vocab:
        raise VocabularyError(f"among={ids.tolist()}: there are {d_vocab} tokens")
    return ids.to(device, torch.long)


def keys_of(sites: Any) -> list[Key]:
    """The keys of sites, one or several."""
    if sites is None or sites == ():
        return []
    parts = list(sites[:2]) if isinstance(sites, tuple | list) else []
    is_key = len(parts) == 2 and isinstance(parts[0], str) and not isinstance(parts[1], str | tuple | list | Site)
    if is_key:
        return [tuple(sites)]
    return list(sites) if isinstance(sites, Iterable) and not isinstance(sites, str) else [sites]


def edits_of(edits: Any, kind: type[Any]) -> list[Any]:
    """Edits, one or several. Raises EditError for what is none."""
    if isinstance(edits, tuple) and not edits:
        return []
    listed = list(edits) if isinstance(edits, Iterable) else [] if edits is None else [edits]
    for edit in listed:
        if not isinstance(edit, kind):
            raise EditError(
                f"{edit!r} is no edit: give Zero, Mean, Resample, Patch, Add or Rotate, such as ag.Zero(('z', 0))"
            )
    return listed


def _tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        try:
            value = torch.from_numpy(np.array(value))
        except (TypeError, ValueError):
            raise VocabularyError(
                f"{name} must be whole numbers [batch pos], rows of equal length (pad makes them so), not "
                f"{type(value).__name__}"
            ) from None
    if value.is_meta:
        raise VocabularyError(f"{name} are on the meta device, where tensors have no numbers: make them on the CPU")
    return value
