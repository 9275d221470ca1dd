"""Runs of a copied module, called in one way: recorded, repeated with other weights, and of other lengths."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from algoscope.formats.own_modules.calling import Call, why
from algoscope.formats.own_modules.embedding_reading import Run, embedding_event
from algoscope.formats.own_modules.linear_maps import Places
from algoscope.formats.own_modules.safe_copy import SMALL, release_freed_memory
from algoscope.formats.own_modules.tracing import (
    AT_EMBEDDING,
    Event,
    OwnWeightWritten,
    Recorder,
    Unexplained,
    Value,
    Weights,
    recording,
)

BATCH = 7  # inputs of the run that is read
COSTLY = 5_000_000_000  # multiplications of a run that is not made only to see whether it is possible
POSITIONS = (5, 4, 3, 2, 1, *range(6, 65))  # lengths to try; some modules take one length only
LONGEST = 256  # positions of a module that takes any number
SEED = 1
CONTEXT = (
    "block_size", "n_ctx", "max_seq_len", "context_length", "max_len", "max_length", "n_positions", "seq_len",
    "max_position_embeddings", "context_size", "ctx_len", "max_seq_length", "sequence_length", "n_context",
    "block_len", "max_sequence_length", "context_window", "ctx_size",
)  # fmt: skip
CONFIGS = ("config", "cfg", "args", "params", "hparams")


@dataclass(frozen=True, eq=False)
class ModuleRuns:
    """A copied module, called in one way, with its weights by name."""

    module: nn.Module
    call: Call
    own_type: torch.dtype
    weights: Weights

    @property
    def n_parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights.parameters.values())

    def outputs(self, tokens: Tensor, seed: int | None) -> Tensor:
        """What the module returns, computed in float64."""
        out = self._run(Recorder(self.weights, self.own_type, seed), tokens)
        if out is None:
            raise Unexplained("head", f"it returns no logits for {tokens.shape[1]} tokens")
        return out

    def recorded(self, tokens: Tensor, seed: int | None) -> list[Event]:
        """Every event of a run."""
        recorder = Recorder(self.weights, self.own_type, seed, keep=lambda index: True)
        self._run(recorder, tokens)
        return recorder.events

    def first_run(self) -> tuple[Run, set[str]]:
        """A run on random tokens with noise for embeddings, at the first length that the module takes; and the names of
        the weights that were used. Raises Unexplained where it takes none.
        """
        error: Exception | None = None
        for n in POSITIONS:
            try:
                zeros = torch.zeros(BATCH, n, dtype=torch.long)
                run = self.events_at({AT_EMBEDDING}, zeros)
                d_vocab = run.embedding_rows(embedding_event(run))
                generator = torch.Generator().manual_seed(0)
                return self.on_noise(torch.randint(0, d_vocab, zeros.shape, generator=generator))
            except (Unexplained, OwnWeightWritten):
                raise
            except Exception as raised:  # a module may fail in any way at a length it does not take
                error = error or raised
        assert error is not None
        raise Unexplained("call", f"{self.call.summary} fails with {why(error)}", -1) from error

    def on_noise(self, tokens: Tensor) -> tuple[Run, set[str]]:
        """A run with random weights and noise for embeddings, and the names of the weights that were used."""
        recorder = Recorder(self.weights, self.own_type, SEED, keep=lambda index: True, noise=_noise())
        out = self._run(recorder, tokens)
        if out is None:
            raise Unexplained("head", "it returns no logits [batch pos d_vocab]")
        if out.ndim == 3 and out.shape[1] not in (1, tokens.shape[1]):
            raise ValueError(f"it returns logits of {out.shape[1]} positions for {tokens.shape[1]} tokens")
        events, beside = recorder.leading_to(out)
        return Run(events, tuple(sorted(recorder.scalars)), out, tokens), recorder.used - beside

    def arguments(self, places: set[tuple[int, int]], tokens: Tensor, seed: int | None, stored: bool) -> Places:
        """Arguments of events in a run with other weights: as the module stores them, or in float64."""
        wanted = {index for index, _ in places}
        last = max(wanted)
        recorder = Recorder(self.weights, self.own_type, seed, lambda index: index in wanted, last, _noise())
        self._run(recorder, tokens)
        found: dict[tuple[int, int], Value] = {}
        for event in recorder.events:
            for i, arg in enumerate(event.args):
                if (event.index, i) in places and isinstance(arg, Value):
                    found[event.index, i] = arg
        if set(found) != places:
            raise Unexplained("run", "it computes something else with other weights")
        return Places(found, stored)

    def events_at(self, indices: set[int], tokens: Tensor) -> Run:
        """Some events of a run on noise, with all up to the embedding where that is among them."""
        every = AT_EMBEDDING in indices
        recorder = Recorder(
            self.weights, self.own_type, SEED, lambda index: every or index in indices, max(indices), _noise()
        )
        self._run(recorder, tokens)
        return Run(recorder.events, (), tokens, tokens)

    def takes(self, length: int) -> bool:
        """Whether it returns logits for an input of that length. Of a large one that is known to take others it is not
        tried.
        """
        if length * self.n_parameters > COSTLY:
            return True
        try:
            out = self._run(Recorder(self.weights, self.own_type), torch.zeros(1, length, dtype=torch.long))
        except Exception:  # a module may fail in any way at a length it does not take
            return False
        return out is not None and (out.ndim == 2 or out.shape[1] in (1, length))

    def longest(self, at_most: int | None, at_least: int) -> int:
        """The longest input it takes, from a table or its attributes, or by trying; where it takes any, `at_least`."""
        named = at_most or self._stated_context()
        if named is not None and self.takes(named):
            return named
        low, step, end = 0, 1, (named or max(LONGEST, at_least)) + 1
        while low + step < end and self.takes(low + step):
            low, step = low + step, step * 2
        end = min(end, low + step)
        while end - low > 1:
            middle = (low + end) // 2
            low, end = (middle, end) if self.takes(middle) else (low, middle)
        return low or max(n for n in POSITIONS if self.takes(n))  # some take no short inputs

    def _stated_context(self) -> int | None:
        for inner in self.module.modules():
            for holder in (inner, *(getattr(inner, name, None) for name in CONFIGS)):
                values = holder if isinstance(holder, Mapping) else getattr(holder, "__dict__", {})
                for name in CONTEXT:
                    if type(values.get(name)) is int and values[name] > 0:
                        return int(values[name])
        return None

    def _run(self, recorder: Recorder, tokens: Tensor) -> Tensor | None:
        out: Tensor | None = None
        with recording(self.module, recorder):
            recorder.mark(tokens)
            out = self.call(self.module, tokens)
        if self.n_parameters > SMALL:
            release_freed_memory()
        return out


def _noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)
