"""Pairs of clean and corrupt inputs: their tokens, the position of the metric, the tokens that it compares."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.errors import PairingError, SubjectError
from algoscope.core.finding import ResultTable
from algoscope.core.panel import Mark
from algoscope.core.sites import KINDS, Site, find_site
from algoscope.lenses.interventions.metrics import (
    PAIRWISE,
    MetricName,
    OwnMetric,
    Reading,
    find_metric,
    measure_of,
    named,
)
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts, Token, texts_of
from algoscope.tasks.base import Tokens

ALIGNED = (
    " Inputs of different length are matched token by token: from the start as far as they are equal, the rest from "
    "the end. A position without a counterpart keeps its own activation, and is shown as missing."
)
HALF = 0.5  # least share of the gap of a critical component
SMALLEST_GAP = 1e-4

Direction = Literal["denoise", "noise"]
Answers = Token | Sequence[Token] | None
Counterparts = tuple[list[int], list[int]]
"""Positions of a clean input, and of its corrupt one, that stand for each other."""
Cell = tuple[str, float]
"""A patched activation, and the share of the gap that it recovers."""


class Pair:
    """Clean and corrupt sequences [batch pos], and where the metric is read.

    With a task, both sequences contain the right answers up to the first position at which these differ, and the metric
    compares the right tokens there. Without a task it is read at the last position and compares the model's own
    predictions there in the two runs, or the tokens `target` and `rival`. A metric of the user's own is a function of
    the logits of every position. Texts of different length are matched token by token (`ALIGNED`).
    """

    clean: Tokens
    corrupt: Tokens
    target: Int[Tensor, "batch target"]
    rival: Int[Tensor, "batch rival"]
    _counterparts: Sequence[Counterparts] = ()  # where the sides differ in length

    def __init__(
        self,
        subject: Subject,
        clean: Texts,
        corrupt: Texts,
        target: Answers,
        rival: Answers,
        metric: MetricName | str | OwnMetric,
    ) -> None:
        if not subject.cfg.causal:
            raise SubjectError(f"{subject.name} is not causal: it would see the answer")
        self.cleans, self.corrupts = (list(texts_of(texts)) for texts in (clean, corrupt))
        if not self.cleans or len(self.cleans) != len(self.corrupts):
            raise PairingError(
                f"{len(self.cleans)} clean and {len(self.corrupts)} corrupt inputs: give one corrupt for each clean"
            )
        self.subject = subject
        if subject.has_task:
            self._of_a_task()
        else:
            self._of_free_text()
        for name, answers in (("target", target), ("rival", rival)):
            if answers is not None:
                setattr(self, name, self._tokens(answers).expand(len(self.clean), -1))
        self.metric, self._code = find_metric(metric)
        if not isinstance(self.metric, str):
            self.read = slice(None)

    def _tokens(self, answers: Token | Sequence[Token]) -> Int[Tensor, "answer"]:
        """One token or several, none twice. Raises PairingError for none."""
        listed = [answers] if isinstance(answers, str | int) else answers
        ids = dict.fromkeys(self.subject.to_single_token(token) for token in listed)
        if not ids:
            raise PairingError("no answer: give one token, or several that count alike")
        return torch.tensor(list(ids), device=self.subject.device)

    def _of_a_task(self) -> None:
        task, start = self.subject.task, self.subject.task.prompt_length
        clean, corrupt = (
            torch.tensor([task.sequence(text) for text in texts], device=self.subject.device)
            for texts in (self.cleans, self.corrupts)
        )
        differs = clean[:, start:] != corrupt[:, start:]
        same = (~differs.any(dim=1)).nonzero()[:, 0].tolist()
        if same:
            left, right = self.cleans[same[0]], self.corrupts[same[0]]
            raise PairingError(f"{left!r} and {right!r} have the same answer: the two runs cannot be distinguished")
        first = differs.int().argmax(dim=1)
        rows = torch.arange(len(clean), device=clean.device)
        self.target, self.rival = clean[rows, start + first, None], corrupt[rows, start + first, None]
        self.whole, self.clean, self.corrupt = clean, clean[:, :-1], corrupt[:, :-1]
        self.read = slice(start - 1 + int(first.min()), start + int(first.max()))
        self._place: Int[Tensor, "batch"] = first - first.min()

    def _of_free_text(self) -> None:
        rows = [[self.subject.to_tokens(text) for text in texts] for texts in (self.cleans, self.corrupts)]
        self.clean, self.corrupt = (self._stacked(side) for side in rows)
        if self.clean.shape != self.corrupt.shape:
            self._counterparts = [
                _matched(*pair) for pair in zip(self.clean.tolist(), self.corrupt.tolist(), strict=True)
            ]
        self.read = slice(-1, None)
        self._place = torch.zeros(len(self.clean), dtype=torch.long, device=self.clean.device)
        self.target, self.rival = (
            self.subject.run(tokens, at=self.read)[0].argmax(dim=-1) for tokens in (self.clean, self.corrupt)
        )

    def aligned(self, values: ActivationCache, base: ActivationCache, direction: Direction) -> ActivationCache:
        """The values of the other run at the positions of the base run; those without a counterpart keep their own."""
        if not self._counterparts:
            return values
        moved: dict[Site, Tensor] = {}
        for name in base:
            site = find_site(name, self.subject.sites)
            moved[site] = base[name].clone()
            for row, (here, there) in enumerate(self._by_base(direction)):
                to, of = [torch.tensor(side) for side in (here, there)]
                if "key" in KINDS[site.kind].axes:
                    moved[site][row][:, to[:, None], to] = values[name][row][:, of[:, None], of]
                else:
                    moved[site][row, to] = values[name][row, of]
        return ActivationCache(moved, self.subject.sites)

    def missing(self, direction: Direction) -> Bool[np.ndarray, "batch pos"] | None:
        """The positions of the base run that have no counterpart; None where all have."""
        if not self._counterparts:
            return None
        base = self.corrupt if direction == "denoise" else self.clean
        absent = np.ones(tuple(base.shape), dtype=bool)
        for row, (here, _) in enumerate(self._by_base(direction)):
            absent[row, here] = False
        return absent

    def _by_base(self, direction: Direction) -> list[Counterparts]:
        """Positions of the base run, and their counterparts in the other."""
        return [
            (corrupt, clean) if direction == "denoise" else (clean, corrupt) for clean, corrupt in self._counterparts
        ]

    def _stacked(self, side: Sequence[Int[Tensor, "1 pos"]]) -> Tokens:
        lengths = sorted({tokens.shape[1] for tokens in side})
        if len(lengths) > 1:
            raise PairingError(f"the pairs have different lengths in tokens, {lengths}: patch each length separately")
        return torch.cat(list(side))

    @property
    def title(self) -> str:
        """`A against B`, or how many pairs there are."""
        one = len(self.cleans) == 1
        return f"{self.cleans[0]} against {self.corrupts[0]}" if one else f"{len(self.cleans)} pairs"

    @property
    def facts(self) -> dict[str, object]:
        """The compared texts (strings for a single pair), and each pair's target and rival as tokens."""
        one = len(self.cleans) == 1
        return {
            "clean": self.cleans[0] if one else self.cleans,
            "corrupt": self.corrupts[0] if one else self.corrupts,
            "target": self._labels(self.target),
            "rival": self._labels(self.rival),
            **({} if self._code is None else {"metric_code": vars(self._code) | {"path": str(self._code.path)}}),
        }

    def _labels(self, answers: Int[Tensor, "batch answer"]) -> list[object]:
        """Each pair's answer as a token, or as a list of tokens where there are several."""
        rows = [self.subject.to_str_tokens(row) for row in answers]
        return [row[0] if len(row) == 1 else row for row in rows]

    def at(self, logits: Float[Tensor, "*edit batch read d_vocab"]) -> Float[Tensor, "... d_vocab"]:
        """The logits that the metric reads: at each pair's own reading position, or everywhere."""
        if not isinstance(self.metric, str):
            return logits
        return logits[..., torch.arange(len(self.clean), device=logits.device), self._place, :]

    def reading(
        self, clean: Float[Tensor, "batch read d_vocab"], corrupt: Float[Tensor, "batch other d_vocab"]
    ) -> Reading:
        return Reading(self.at(clean), self.at(corrupt), self.target, self.rival)


def _matched(clean: Sequence[int], corrupt: Sequence[int]) -> Counterparts:
    """Tokens match from the start as far as they are equal, and the rest from the end."""
    n = min(len(clean), len(corrupt))
    same = next((i for i in range(n) if clean[i] != corrupt[i]), n)
    return tuple([*range(same), *range(len(side) - n + same, len(side))] for side in (clean, corrupt))  # type: ignore[return-value]


class Scale:
    """A metric on the scale 0 = as the corrupt run, 1 = as the clean run. `among`: the tokens whose logits it reads.

    Raises PairingError if the metric does not separate the two runs: a tiny gap would only amplify noise.
    """

    def __init__(self, pair: Pair, reading: Reading) -> None:
        self.name, self.measure = named(pair.metric), measure_of(pair.metric)
        self.among: Int[Tensor, "some"] | None = None
        if pair.metric in PAIRWISE:
            self.among = torch.cat([reading.target, reading.rival], dim=1).unique()
            target, rival = (torch.searchsorted(self.among, token) for token in (reading.target, reading.rival))
            reading = Reading(reading.clean[:, self.among], reading.corrupt[:, self.among], target, rival)
        self.reading = reading
        self.top, self.bottom = self.measure(reading.clean, reading), self.measure(reading.corrupt, reading)
        self.gap = self.top - self.bottom
        if bool((self.gap.abs() < SMALLEST_GAP).any()):
            worst = int(self.gap.abs().argmin())
            raise PairingError(
                f"{self.name} does not separate {pair.cleans[worst]!r} from {pair.corrupts[worst]!r} (gap "
                f"{float(self.gap[worst]):.2g}): choose another pair, another metric, or a target and a rival"
            )

    @property
    def baselines(self) -> dict[str, float]:
        """The metric of the two runs, means over the pairs."""
        return {"clean": float(self.top.mean()), "corrupt": float(self.bottom.mean())}

    def of(self, logits: Float[Tensor, "edit batch *pos d_vocab"]) -> Float[Tensor, "edit batch"]:
        """The metric of many runs, from the logits of the tokens `among` (all where it is None)."""
        return torch.stack([self.measure(one, self.reading) for one in logits])

    def recovered(self, patched: Float[Tensor, "*edit batch"]) -> Float[Tensor, "*edit batch"]:
        return (patched - self.bottom) / self.gap


def is_critical(recovered: float, direction: Direction) -> bool:
    """Whether it moves the metric by half of the gap. Denoising starts at 0 and noising at 1."""
    return recovered >= HALF if direction == "denoise" else recovered <= HALF


def by_effect(cells: Iterable[Cell], direction: Direction) -> list[Cell]:
    """Sort key: largest effect first."""
    return sorted(cells, key=lambda cell: -cell[1] if direction == "denoise" else cell[1])


def effects_table(cells: Sequence[Cell], direction: Direction, *, title: str, column: str, caption: str) -> ResultTable:
    """The patched activations, the share of the gap that each recovers, and whether it is critical."""
    return ResultTable(
        title=title,
        columns=(column, "recovered", "critical"),
        rows=tuple((name, value, "yes" if is_critical(value, direction) else "no") for name, value in cells),
        caption=f"{caption} The {len(cells)} with the largest effect, means over the pairs of inputs. Critical: half "
        "of the gap or more.",
    )


def of_the_gap(recovered: float) -> str:
    """An effect in words: a share in per cent, and what goes beyond either run as a multiple of the gap."""
    return f"{recovered:.0%}" if 0 <= recovered <= 1 else f"{recovered:.2f}"


def half_way(direction: Direction) -> Mark:
    """The line from which bars are critical."""
    return Mark(HALF, "50 %", "y", "above" if direction == "denoise" else "below")
