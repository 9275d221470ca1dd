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
BY_HAND = (
    " Positions of the two inputs are matched as `align` says. A position without a counterpart keeps its own "
    "activation, and is shown as missing."
)
FORCED_ANSWERS = (
    " Answers of several tokens are teacher-forced, each in a run of its own: the input, then the answer's tokens. The "
    "log probability of an answer is the sum over its tokens, each given the input and the answer's tokens before it. "
    "logit_diff is the log probability of the target minus that of the rival; probability is that of the whole target; "
    "exact_match asks whether each of its tokens is the most likely one; kl is summed over the positions that predict "
    "its tokens. Activations are patched at the input's positions; at the answer's tokens they follow from these."
)
HALF = 0.5  # least share of the gap of a critical component

Direction = Literal["denoise", "noise"]
Answers = Token | Sequence[Token] | None
Alignment = Sequence[tuple[int, int]] | None
"""Positions (clean, corrupt) that stand for each other; negative ones count from the end. None: found by tokens."""
Counterparts = tuple[list[int], list[int]]
"""Positions of a clean input, and of its corrupt one, that stand for each other."""
Cell = tuple[str, float]
"""A patched activation, and the share of the gap that it recovers."""


class Pair:
    """Clean and corrupt sequences [batch pos], and where the metric is read.

    With a task, both sequences contain the right answers up to the first position at which these differ, and the metric
    compares the right tokens there. Without a task it is read at the last position and compares the model's own
    predictions there in the two runs, or `target` and `rival`; where these have several tokens they are teacher-forced
    (`forced`). A metric of the user's own is a function of the logits of every position. Texts of different length are
    matched token by token (`ALIGNED`), or as `align` says.
    """

    clean: Tokens
    corrupt: Tokens
    target: list[Int[Tensor, "batch token"]]  # answers that count alike
    rival: list[Int[Tensor, "batch token"]]
    _counterparts: Sequence[Counterparts] = ()  # empty: all positions are their own

    def __init__(
        self,
        subject: Subject,
        clean: Texts,
        corrupt: Texts,
        target: Answers,
        rival: Answers,
        metric: MetricName | str | OwnMetric,
        align: Alignment = None,
    ) -> None:
        if not subject.cfg.causal:
            raise SubjectError(f"{subject.name} is not causal: it would see the answer")
        self.cleans, self.corrupts = (list(texts_of(texts)) for texts in (clean, corrupt))
        if not self.cleans or len(self.cleans) != len(self.corrupts):
            raise PairingError(
                f"{len(self.cleans)} clean and {len(self.corrupts)} corrupt inputs: give one corrupt for each clean"
            )
        self.subject = subject
        self.metric, self._code = find_metric(metric)
        named_answers = [None if answers is None else self._tokens(answers) for answers in (target, rival)]
        if subject.has_task:
            self._of_a_task()
        else:
            self._of_free_text(max((len(ids) for answers in named_answers for ids in answers or ()), default=1))
        for name, answers in zip(("target", "rival"), named_answers, strict=True):
            if answers is not None:
                ids = [torch.tensor(one, device=subject.device) for one in answers]
                setattr(self, name, [one.expand(len(self.clean), -1) for one in ids])
        self.forced = any(answer.shape[1] > 1 for answer in (*self.target, *self.rival))
        self._match(align)
        if self.forced:
            self._require_forced_metric()
        if not isinstance(self.metric, str):
            self.read = slice(None)

    def _tokens(self, answers: Token | Sequence[Token]) -> list[tuple[int, ...]]:
        """The tokens of each answer that counts; one that continues another counts in it. Raises PairingError for none,
        VocabularyError for one of several tokens of a task's model.
        """
        listed = [answers] if isinstance(answers, str | int) else answers
        every = list(dict.fromkeys(map(self._tokens_of_one, listed)))
        if not every:
            raise PairingError("no answer: give one, or several that count alike")
        return [ids for ids in every if not any(ids[:n] in every for n in range(1, len(ids)))]

    def _tokens_of_one(self, answer: Token) -> tuple[int, ...]:
        ids = self.subject.text.find(answer) if isinstance(answer, str) and not self.subject.has_task else []
        return tuple(map(self.subject.to_single_token, ids if len(ids) > 1 else [answer]))

    def _require_forced_metric(self) -> None:
        """Raises PairingError for a metric that answers of several tokens do not serve."""
        if not isinstance(self.metric, str):
            raise PairingError(
                f"{named(self.metric)} reads the logits of the inputs, not those of answers of several tokens: write "
                "the answer's tokens into the inputs, without target and rival, or take logit_diff or probability"
            )
        if self.metric == "kl" and len(self.target) > 1:
            raise PairingError("kl follows the tokens of one target: give one, or take logit_diff or probability")

    def _match(self, align: Alignment) -> None:
        """Which positions are counterparts."""
        lengths = (self.clean.shape[1], self.corrupt.shape[1])
        if align is not None:
            self._counterparts = [_aligned_by_hand(align, lengths)] * len(self.clean)
        elif lengths[0] != lengths[1]:
            pairs = zip(self.clean.tolist(), self.corrupt.tolist(), strict=True)
            self._counterparts = [_matched(*pair) for pair in pairs]
        elif self.forced:  # the answers that follow have no counterparts
            self._counterparts = [(list(range(lengths[0])), list(range(lengths[0])))] * len(self.clean)
        self.about = (ALIGNED if align is None else BY_HAND) + (FORCED_ANSWERS if self.forced else "")

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
        self.target, self.rival = ([side[rows, start + first, None]] for side in (clean, corrupt))
        self.whole, self.clean, self.corrupt = clean, clean[:, :-1], corrupt[:, :-1]
        self.read = slice(start - 1 + int(first.min()), start + int(first.max()))
        self._place: Int[Tensor, "batch"] = first - first.min()

    def _of_free_text(self, n_answer: int) -> None:
        rows = [[self.subject.to_tokens(text) for text in texts] for texts in (self.cleans, self.corrupts)]
        self.clean, self.corrupt = (self._stacked(side) for side in rows)
        self.read = slice(-1, None)
        self._place = torch.zeros(len(self.clean), dtype=torch.long, device=self.clean.device)
        self.target, self.rival = (
            [self.subject.generate_tokens(tokens, n_answer)] for tokens in (self.clean, self.corrupt)
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

    def _labels(self, answers: Sequence[Int[Tensor, "batch _token"]]) -> list[object]:
        """Each pair's answer, a token or the text of several, or a list where several count alike."""
        rows = [
            [self.subject.to_str_tokens(ids)[0] if len(ids) == 1 else self.subject.to_string(ids) for ids in row]
            for row in zip(*answers, strict=True)
        ]
        return [row[0] if len(row) == 1 else row for row in rows]

    @property
    def forced_answers(self) -> list[Int[Tensor, "batch _token"]]:
        """The answers that need a run of their own: the targets, and the rivals where the metric compares them."""
        if not self.forced:
            return []
        return [*self.target, *(self.rival if self.metric in PAIRWISE else [])]

    def at(self, logits: Float[Tensor, "*edit batch read d_vocab"]) -> Float[Tensor, "... d_vocab"]:
        """The logits that the metric reads: at each pair's own reading position, or everywhere."""
        if not isinstance(self.metric, str):
            return logits
        return logits[..., torch.arange(len(self.clean), device=logits.device), self._place, :]

    def reading(
        self, clean: Float[Tensor, "batch read d_vocab"], corrupt: Float[Tensor, "batch other d_vocab"]
    ) -> Reading:
        target, rival = (torch.cat(answers, dim=1) for answers in (self.target, self.rival))
        return Reading(self.at(clean), self.at(corrupt), target, rival)


def _matched(clean: Sequence[int], corrupt: Sequence[int]) -> Counterparts:
    """Tokens match from the start as far as they are equal, and the rest from the end."""
    n = min(len(clean), len(corrupt))
    same = next((i for i in range(n) if clean[i] != corrupt[i]), n)
    return tuple([*range(same), *range(len(side) - n + same, len(side))] for side in (clean, corrupt))  # type: ignore[return-value]


def _aligned_by_hand(align: Sequence[tuple[int, int]], lengths: tuple[int, int]) -> Counterparts:
    """Raises PairingError for a position that an input does not have, or that has two counterparts."""
    sides: list[list[int]] = []
    for name, side, length in zip(("clean", "corrupt"), zip(*align, strict=True), lengths, strict=False):
        outside = [pos for pos in side if not -length <= pos < length]
        if outside:
            raise PairingError(f"align: the {name} inputs have {length} tokens, so no position {outside[0]}")
        sides.append([pos % length for pos in side])
        twice = [pos for pos in sides[-1] if sides[-1].count(pos) > 1]
        if twice:
            raise PairingError(f"align: position {twice[0]} of the {name} inputs has two counterparts: give one")
    if not sides:
        raise PairingError("align: no positions: give pairs (clean position, corrupt position)")
    return sides[0], sides[1]


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
