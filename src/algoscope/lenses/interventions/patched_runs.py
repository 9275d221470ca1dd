"""The runs of a pair into which activations are copied, and the scale on which their metric is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.errors import PairingError
from algoscope.core.sites import Key
from algoscope.lenses.interventions.contrast_pairs import Direction, Pair
from algoscope.lenses.interventions.metrics import FORCED, PAIRWISE, Logits, Reading, measure_of, named
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.edits import Patch
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Tokens

SMALLEST_GAP = 1e-4

RunLogits = Float[Tensor, "batch _read d_vocab"]  # at the positions that a run reads


class Scale:
    """A metric on the scale 0 = as the corrupt run, 1 = as the clean run. `among`: the tokens whose logits it reads.

    Where answers are teacher-forced, each has a run of its own (`PatchedRun`), which gives a number (`of`), and the
    metric is made of those of all runs (`combined`). Else there is one run, whose number is the metric.

    Raises PairingError if the metric does not separate the two runs: a tiny gap would only amplify noise.
    """

    among: Int[Tensor, "some"] | None = None

    def __init__(self, pair: Pair, clean: Sequence[RunLogits], corrupt: Sequence[RunLogits]) -> None:
        """From the logits of each run of the clean and of the corrupt input, at the positions that it reads."""
        self.pair, self.name = pair, named(pair.metric)
        self._clean, self._forced = clean, FORCED[pair.metric] if pair.forced else None  # type: ignore[index]
        if self._forced is None:
            self._measure, self._reading = measure_of(pair.metric), self._find_reading(clean[0], corrupt[0])
        self.top, self.bottom = (
            self.combined([self.of(self.chosen(logits)[None], number)[0] for number, logits in enumerate(side)])
            for side in (clean, corrupt)
        )
        self.gap = self.top - self.bottom
        if bool((self.gap.abs() < SMALLEST_GAP).any()):
            worst = int(self.gap.abs().argmin())
            raise PairingError(
                f"{self.name} does not separate {pair.cleans[worst]!r} from {pair.corrupts[worst]!r} (gap "
                f"{float(self.gap[worst]):.2g}): choose another pair, another metric, or a target and a rival"
            )

    def _find_reading(self, clean: Logits, corrupt: RunLogits) -> Reading:
        """The references of the metric; a metric of few tokens needs no other logits."""
        reading = self.pair.reading(clean, corrupt)
        if self.pair.metric not in PAIRWISE:
            return reading
        self.among = torch.cat([reading.target, reading.rival], dim=1).unique()
        target, rival = (torch.searchsorted(self.among, token) for token in (reading.target, reading.rival))
        return Reading(reading.clean[:, self.among], reading.corrupt[:, self.among], target, rival)

    @property
    def baselines(self) -> dict[str, float]:
        """The metric of the two runs, means over the pairs."""
        return {"clean": float(self.top.mean()), "corrupt": float(self.bottom.mean())}

    def chosen(self, logits: Float[Tensor, "*rest d_vocab"]) -> Float[Tensor, "*rest some"]:
        """The logits of the tokens `among`, all where it is None."""
        return logits if self.among is None else logits[..., self.among]

    def of(self, logits: Float[Tensor, "edit batch read some"], number: int = 0) -> Float[Tensor, "edit batch"]:
        """A number for each edited run of this number and pair, from the logits of the tokens `among`."""
        if self._forced is None:
            return torch.stack([self._measure(self.pair.at(one), self._reading) for one in logits])
        of_one, clean, answer = self._forced.of_one, self._clean[number], self.pair.forced_answers[number]
        return torch.stack([of_one(one, clean, answer) for one in logits])

    def combined(self, numbers: Sequence[Float[Tensor, "*edit batch"]]) -> Float[Tensor, "*edit batch"]:
        """The metric, from the numbers of all runs."""
        if self._forced is None:
            return numbers[0]
        n_targets, every = len(self.pair.target), torch.stack(list(numbers))
        return self._forced.of_all(every[:n_targets], every[n_targets:])

    def recovered(self, patched: Float[Tensor, "*edit batch"]) -> Float[Tensor, "*edit batch"]:
        return (patched - self.bottom) / self.gap


@dataclass(frozen=True)
class PatchedRun:
    """One run into which activations are copied: the base input, and where answers are teacher-forced, one of them."""

    number: int
    tokens: Tokens  # the base input, and all tokens of the answer but the last
    old: ActivationCache  # its activations
    new: ActivationCache  # those of the other input at its positions
    read: slice


@dataclass(frozen=True)
class Patching:
    """What the lenses that patch share: the runs that are patched, and how they are measured."""

    pair: Pair
    direction: Direction
    scale: Scale
    runs: Sequence[PatchedRun]

    @classmethod
    def of(cls, pair: Pair, record: Sequence[Key], direction: Direction) -> "Patching":
        """Runs both inputs, with each answer that is teacher-forced. Raises PairingError as `Scale` does."""
        runs, logits = [], []
        for number, answer in enumerate(pair.forced_answers or [None]):
            before = [] if answer is None else [answer[:, :-1]]
            read = pair.read if answer is None else slice(-answer.shape[1], None)
            clean, corrupt = (torch.cat([side, *before], dim=1) for side in (pair.clean, pair.corrupt))
            (clean_logits, clean_values), (corrupt_logits, corrupt_values) = (
                pair.subject.run(tokens, record=record, at=read) for tokens in (clean, corrupt)
            )
            base, old, other = corrupt, corrupt_values, clean_values
            if direction == "noise":
                base, old, other = clean, clean_values, corrupt_values
            runs.append(PatchedRun(number, base, old, pair.aligned(other, old, direction), read))
            logits.append((clean_logits, corrupt_logits))
        clean_side, corrupt_side = zip(*logits, strict=True)
        return cls(pair, direction, Scale(pair, clean_side, corrupt_side), runs)

    @property
    def subject(self) -> Subject:
        return self.pair.subject

    @property
    def base(self) -> Tokens:
        """The input that is patched, without answers."""
        return self.pair.corrupt if self.direction == "denoise" else self.pair.clean

    @property
    def labels(self) -> tuple[str, ...]:
        """The positions of the base input."""
        return self.subject.token_labels(self.base[0])

    @property
    def missing(self) -> Bool[np.ndarray, "_pair pos"] | None:
        return self.pair.missing(self.direction)

    def each(self, edits_of: Callable[[PatchedRun], Sequence[Patch]]) -> Float[Tensor, "edit batch"]:
        """The metric with each edit alone, which has the values of each run in turn."""
        return self.scale.combined([self.of_run(run, edits_of(run)) for run in self.runs])

    def of_run(self, run: PatchedRun, edits: Sequence[Patch]) -> Float[Tensor, "edit batch"]:
        """The number of one run with each edit alone."""
        return self.subject.run_each(
            run.tokens, edits, at=run.read, among=self.scale.among, reduce=partial(self.scale.of, number=run.number)
        )
