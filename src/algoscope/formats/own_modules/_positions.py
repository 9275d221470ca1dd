"""position embeddings -> the table of the module that they are rows of, the sines that they are, or their values."""

from dataclasses import dataclass

import torch
from torch import Tensor

from algoscope.formats.own_modules.embedding_reading import Embedding, embedding_weight
from algoscope.formats.own_modules.module_runs import ModuleRuns
from algoscope.formats.own_modules.norm_fitting import same
from algoscope.formats.own_modules.tracing import MATRIX, Weights
from algoscope.networks.position_encodings import sinusoidal_embedding

LARGEST_OFFSET = 8  # rows that a table may have before that of the first position


@dataclass(frozen=True)
class PositionTable:
    """Rows of a tensor of the module, from `first` on, times a factor."""

    name: str
    first: int
    n_rows: int
    factor: float
    turned: bool = False
    """Whether its columns are the positions."""

    def of(self, weights: Weights, seed: int | None, stored: bool) -> Tensor:
        """The rows with the weights of a seed, or as the module stores them."""
        whole = weights.tensors[self.name] if stored else weights.value(weights.tensors[self.name], seed)
        rows = (whole.T if self.turned else whole.reshape(-1, whole.shape[-1]))[self.first : self.first + self.n_rows]
        return rows if self.factor == 1.0 else rows * self.factor


def find_table(values: Tensor, weights: Weights, seed: int | None) -> PositionTable | None:
    """The tensor of which position embeddings [pos d_model] are consecutive rows, or a multiple of them."""
    n, d_model = values.shape
    for name, tensor in weights.tensors.items():
        if tensor.ndim < 2 or not tensor.is_floating_point():
            continue
        sides = []
        if tensor.shape[-1] == d_model and tensor.numel() // d_model == max(tensor.shape[:-1]):  # one axis of positions
            sides.append((weights.value(tensor, seed).reshape(-1, d_model), False))
        if tensor.ndim == MATRIX and tensor.shape[0] == d_model:
            sides.append((weights.value(tensor, seed).T, True))
        for rows, turned in sides:
            for first in range(min(len(rows) - n, LARGEST_OFFSET) + 1):
                part = rows[first : first + n]
                factor = float((values * part).sum() / part.pow(2).sum().clamp(min=1e-300))
                if same(factor * part, values):
                    factor = 1.0 if abs(factor - 1) < 1e-9 else factor
                    return PositionTable(name, first, len(rows) - first, factor, turned)
    return None


def is_sinusoidal(values: Tensor) -> bool:
    """Whether position embeddings are the sines and cosines of our formula."""
    n, d_model = values.shape
    return same(sinusoidal_embedding(torch.arange(n).double(), d_model), values)


def computed_positions(runs: ModuleRuns, embedding: Embedding, n_ctx: int) -> Tensor:
    """Position embeddings that a module computes as it runs, for every position."""
    first, last = embedding.event.index, embedding.last
    run = runs.events_at({first, last}, torch.zeros(2, n_ctx, dtype=torch.long))
    _, e = embedding_weight(run, next(event for event in run.events if event.index == first))
    *_, (_, total) = run.streams(embedding.d_model, last, last + 1)
    return (total - embedding.scale * e)[0]
