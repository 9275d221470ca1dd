"""module, our transformer -> how far they differ, and the part at which they first part ways."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from algoscope.formats.own_modules.building import Check
from algoscope.formats.own_modules.calling import why
from algoscope.formats.own_modules.linear_maps import linear_maps
from algoscope.formats.own_modules.module_runs import ModuleRuns
from algoscope.formats.own_modules.outputs import Output
from algoscope.formats.own_modules.safe_copy import SMALL
from algoscope.formats.own_modules.tracing import Recorder, Unexplained, Weights
from algoscope.networks.taps import Tap
from algoscope.networks.transformer import Transformer

TOLERANCE = 1e-9  # of the largest logit
LONG = 200_000_000  # multiplications of weights and positions that a comparison at all lengths may take
ENTRIES = 8_000_000  # logits of one comparison


def lengths_to_compare(n_ctx: int, n_parameters: int, d_vocab: int, shortest: int) -> list[int]:
    """Every length up to the context; where that is too much, a spread of short, odd and long ones."""
    if n_ctx * (n_ctx + 1) // 2 * n_parameters <= LONG and n_ctx <= 32:
        return list(range(shortest, n_ctx + 1))
    affordable = max(8, min(n_ctx, 20 * LONG // max(n_parameters, 1), ENTRIES // d_vocab))
    spread = [1, 2, 3, 5, 8, 13, 27, affordable // 2 + 1, affordable]
    if n_parameters > SMALL:
        spread = [1, 2, affordable]
    return sorted({n for n in spread if shortest <= n <= min(n_ctx, affordable)})


def special_tokens(d_vocab: int) -> Tensor:
    """The first tokens of a vocabulary and the last ones, in turn: those that a module may treat in a way of its own,
    such as padding.
    """
    first = torch.arange(min(4, d_vocab // 2))
    return torch.stack([first, d_vocab - 1 - first], dim=1).flatten()


def run_ours(model: Transformer, tokens: Tensor) -> Tensor:
    """Logits of our transformer, computed in float64 also where its weights are float32."""
    if model.embed.weight.dtype == torch.float64:
        return model(tokens)
    with Recorder(Weights(nn.Module()), torch.float64):
        return model(tokens)


def largest_difference(
    runs: ModuleRuns, model: Transformer, checks: Sequence[Check], output: Output, seed: int | None,
    lengths: Sequence[int],
) -> float:  # fmt: skip
    """The largest difference of what both return, relative to the largest logit, on random tokens of each length.

    Raises Unexplained, naming the first part that differs, where it exceeds 1e-9.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for length in lengths:
        n = 2 if length < 64 else 1
        tokens = torch.randint(0, model.cfg.d_vocab, (n, length), generator=generator)
        ends = special_tokens(model.cfg.d_vocab)[: (length + 1) // 2]
        tokens[0, : len(ends)] = ends
        try:
            theirs = runs.outputs(tokens, seed)
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
            raise Unexplained("length", f"it cannot read {length} tokens ({why(error)})") from error
        ours = run_ours(model, tokens)
        ours = output.of(ours if theirs.ndim == 3 and theirs.shape[1] == length else ours[:, -1:])
        theirs = theirs.reshape(ours.shape) if theirs.numel() == ours.numel() else theirs
        if theirs.shape != ours.shape:
            raise Unexplained("head", f"it returns {list(theirs.shape)} for {length} tokens")
        difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-300))
        if not difference <= TOLERANCE:
            raise _first_difference(runs, model, checks, tokens, seed, difference)
        largest = max(largest, difference)
    return largest


def _first_difference(
    runs: ModuleRuns, model: Transformer, checks: Sequence[Check], tokens: Tensor, seed: int | None, difference: float
) -> Unexplained:
    """The error that names the first part whose input or output differs."""
    batch = tokens.shape[0]
    maps = {found.event.index: found for found in linear_maps(runs.recorded(tokens, seed), batch)}
    tap = _Reader(frozenset(check.kind for check in checks))
    with Recorder(Weights(nn.Module()), torch.float64):
        model(tokens, tap=tap)
    weights = "its own weights" if seed is None else "random weights"
    where = "the output"
    for check in checks:
        theirs = check.value(maps, batch)
        ours = tap.values[check.kind, check.layer].flatten(2)
        if theirs is None or theirs.shape != ours.shape:
            continue
        if not float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max()):
            where = check.part
            break
    what = f"on {tokens.shape[1]} tokens with {weights} the logits differ by {difference:.1e} of the largest one"
    return Unexplained(where, f"{what}, first at {where}")


class _Reader(Tap):
    """Keeps the values of some sites."""

    layers = None

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self.values: dict[tuple[str, int | None], Tensor] = {}

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        if kind in self.kinds:
            self.values[kind, layer] = value
        return value
