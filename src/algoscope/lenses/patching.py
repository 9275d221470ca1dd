"""The patching lens: which sites carry what tells one input from another?"""

from collections.abc import Sequence
from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.errors import PairingError, SubjectError, UnknownNameError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Panel
from algoscope.core.sites import KINDS
from algoscope.lenses.metrics import METRICS, Reading
from algoscope.subjects.base import Subject
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.edits import Patch
from algoscope.subjects.opening import open_subject
from algoscope.tasks.base import Tokens
from algoscope.training.runs import Run

SWEEPS: dict[str, tuple[str, tuple[str, ...]]] = {  # name: the kind of site, and what is patched one at a time
    "resid_pre": ("resid_pre", ("position",)),
    "resid_mid": ("resid_mid", ("position",)),
    "resid_post": ("resid_post", ("position",)),
    "attn_out": ("attn_out", ("position",)),
    "mlp_out": ("mlp_out", ("position",)),
    "mlp": ("mlp_out", ("position",)),
    "head": ("z", ("head",)),
    "head_position": ("z", ("head", "position")),
    "q": ("q", ("head",)),
    "k": ("k", ("head",)),
    "v": ("v", ("head",)),
    "pattern": ("pattern", ("head",)),
    "neuron": ("post", ("unit",)),
}
SMALLEST_GAP = 1e-4
Direction = Literal["denoise", "noise"]


def patch(
    subject: str | Run | Subject,
    clean: str | Sequence[str],
    corrupt: str | Sequence[str],
    *,
    sites: Sequence[str] = ("resid_pre", "attn_out", "mlp_out", "head"),
    direction: str = "denoise",
    metric: str = "logit_diff",
    runs_dir: str | None = None,
) -> Finding:
    """Copy one activation at a time from one run into the other, and see how far the answer follows.

    `denoise` runs the corrupt input and puts clean activations in: what restores the answer is sufficient.
    `noise` runs the clean input and puts corrupt ones in: what breaks it is necessary. Both are read on one scale,
    `recovered` = (patched - corrupt) / (clean - corrupt): 0 = as the corrupt run, 1 = as the clean run; values outside
    are possible and are not clipped. The metric is read at the first answer position at which the right answers of the
    two inputs differ; up to there both runs are given the right answer, which is the same.

    `sites` names sweeps: resid_pre, resid_mid, resid_post, attn_out, mlp_out by layer and position; head, q, k, v,
    pattern by layer and head; head_position; neuron. One panel each, [layer, position | head | ...], the mean over the
    pairs. Facts: `baselines` {clean, corrupt} (means of the metric), `per_example` (each panel's cells for every pair),
    `raw` (the metric itself in each cell, mean over the pairs).

    Raises PairingError where the numbers of inputs differ, where a pair has the same answer, and where the metric does
    not tell the two runs apart (a gap below 1e-4 would only amplify noise); SubjectError for a model that is not
    causal, which would see the answer; UnknownNameError for a sweep, direction or metric that there is not.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    if not subject.cfg.causal:
        raise SubjectError(f"{subject.name} is not causal: it would see the answer that it is asked for")
    _check_names(sites, direction, metric)
    cleans, corrupts = ([text] if isinstance(text, str) else list(text) for text in (clean, corrupt))
    pair = _paired(subject, cleans, corrupts)
    (clean_logits, clean_values), (corrupt_logits, corrupt_values) = (
        subject.run(tokens, record=_recorded(subject, sites), at=pair.read) for tokens in (pair.clean, pair.corrupt)
    )
    reading = Reading(pair.at(clean_logits), pair.at(corrupt_logits), pair.target, pair.rival)
    measure = METRICS[metric]
    top, bottom = measure(reading.clean, reading), measure(reading.corrupt, reading)
    gap = top - bottom
    if bool((gap.abs() < SMALLEST_GAP).any()):
        worst = int(gap.abs().argmin())
        raise PairingError(
            f"{metric} does not tell {cleans[worst]!r} from {corrupts[worst]!r} (gap {float(gap[worst]):.2g}): "
            "choose another pair or another metric"
        )
    base, values = (pair.corrupt, clean_values) if direction == "denoise" else (pair.clean, corrupt_values)
    labels = [f"{token}_{i}" for i, token in enumerate(subject.to_str_tokens(base[0]))]
    panels, per_example, raw = [], {}, {}
    for name in sites:
        axes, edits = _sweep(subject, name, values, labels)
        shape = tuple(len(axis.labels) for axis in axes)
        logits = subject.run_each(base, edits, at=pair.read)
        patched = torch.stack([measure(pair.at(one), reading) for one in logits])  # [cell batch]
        recovered = (patched - bottom) / gap
        per_example[name] = recovered.T.reshape(len(cleans), *shape).tolist()
        raw[name] = patched.mean(dim=1).reshape(shape).tolist()
        panels.append(_panel(name, axes, recovered.mean(dim=1).reshape(shape).double().cpu().numpy()))
    return Finding(
        kind="patch",
        claim=_claim(panels, direction, metric, cleans, corrupts),
        facts={
            "subject": subject.name,
            "clean": cleans[0] if len(cleans) == 1 else cleans,
            "corrupt": corrupts[0] if len(corrupts) == 1 else corrupts,
            "metric": metric,
            "direction": direction,
            "baselines": {"clean": float(top.mean()), "corrupt": float(bottom.mean())},
            "raw": raw,
            "per_example": per_example,
        },
        panels=tuple(panels),
        provenance={"subject": subject.name, "weights_sha256": subject.weights_sha256},
    )


class _Pair:
    """Clean and corrupt sequences of the same length, and where the metric is read."""

    def __init__(self, subject: Subject, clean: Tokens, corrupt: Tokens, names: Sequence[tuple[str, str]]) -> None:
        start = subject.task.prompt_length
        differs = clean[:, start:] != corrupt[:, start:]
        same = (~differs.any(dim=1)).nonzero()[:, 0].tolist()
        if same:
            left, right = names[same[0]]
            raise PairingError(f"{left!r} and {right!r} have the same answer: nothing tells the two runs apart")
        first = differs.int().argmax(dim=1)
        rows = torch.arange(len(clean), device=clean.device)
        self.target, self.rival = clean[rows, start + first], corrupt[rows, start + first]
        self.clean, self.corrupt = clean[:, :-1], corrupt[:, :-1]
        self.read = slice(start - 1 + int(first.min()), start + int(first.max()))
        self._place: Int[Tensor, "batch"] = first - first.min()

    def at(self, logits: Float[Tensor, "batch read d_vocab"]) -> Float[Tensor, "batch d_vocab"]:
        """The logits at each pair's own reading position."""
        return logits[torch.arange(len(logits), device=logits.device), self._place]


def _paired(subject: Subject, cleans: Sequence[str], corrupts: Sequence[str]) -> _Pair:
    if not cleans or len(cleans) != len(corrupts):
        raise PairingError(f"{len(cleans)} clean and {len(corrupts)} corrupt inputs: give one corrupt for each clean")
    task = subject.task
    clean, corrupt = (
        subject.to_tokens([task.prompt(text) + task.expected(text) for text in texts]) for texts in (cleans, corrupts)
    )
    return _Pair(subject, clean, corrupt, list(zip(cleans, corrupts, strict=True)))


def _check_names(sites: Sequence[str], direction: str, metric: str) -> None:
    for kind, given, known in (
        *(("sweep", name, SWEEPS) for name in sites),
        ("direction", direction, ("denoise", "noise")),
        ("metric", metric, METRICS),
    ):
        if given not in known:
            raise UnknownNameError(kind, given, known)


def _recorded(subject: Subject, sites: Sequence[str]) -> list[tuple[str, int]]:
    kinds = {SWEEPS[name][0] for name in sites}
    return [(kind, layer) for kind in sorted(kinds) for layer in range(subject.cfg.n_layers)]


def _sweep(
    subject: Subject, name: str, values: ActivationCache, labels: list[str]
) -> tuple[tuple[Axis, ...], list[Patch]]:
    """The axes of a sweep and one patch for each cell, in the order of the axes."""
    kind, along = SWEEPS[name]
    shape = dict(zip(KINDS[kind].shape.split(), values[kind, 0].shape, strict=True))
    choices: dict[str, tuple[str, Axis]] = {}
    for part in along:
        if part == "position":
            choices["pos"] = (part, Axis("position", tuple(labels), "position patched"))
        elif part == "head":
            n = shape.get("head", shape.get("kv_head", 0))
            choices["head"] = (part, Axis("head", tuple(range(n)), "head"))
        else:
            choices["unit"] = (part, Axis("unit", tuple(range(shape["d_mlp"])), "neuron"))
    layers = Axis("layer", tuple(range(subject.cfg.n_layers)), "layer")
    axes = (layers, *(axis for _, axis in choices.values()))
    edits = [
        Patch((kind, layer), value=values[kind, layer], **dict(zip(choices, picks, strict=True)))
        for layer, *picks in product(*(range(len(axis.labels)) for axis in axes))
    ]
    return axes, edits


def _panel(name: str, axes: tuple[Axis, ...], values: Float[np.ndarray, "..."]) -> Panel:
    return Panel(
        name=name,
        axes=axes,
        values=values,
        unit="share of the gap recovered",
        zero="as the corrupt run",
        one="as the clean run",
        view="heatmap",
        scale="signed",
        site=name,
        quantity="recovered",
    )


def _claim(panels: list[Panel], direction: str, metric: str, cleans: list[str], corrupts: list[str]) -> str:
    best = max(
        ((panel.name, labels, value) for panel in panels for labels, value in panel.cells()),
        key=lambda cell: cell[2] if direction == "denoise" else -cell[2],
    )
    where = ", ".join(f"{axis.name} {label}" for axis, label in zip(panels_axes(panels, best[0]), best[1], strict=True))
    verb = "restores" if direction == "denoise" else "leaves"
    pairs = f"{cleans[0]} against {corrupts[0]}" if len(cleans) == 1 else f"{len(cleans)} pairs"
    return f"{pairs}: patching {best[0]} at {where} {verb} {best[2]:.0%} of the {metric} gap"


def panels_axes(panels: list[Panel], name: str) -> tuple[Axis, ...]:
    return next(panel.axes for panel in panels if panel.name == name)
