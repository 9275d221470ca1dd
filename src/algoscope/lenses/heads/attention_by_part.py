"""Attention by part of the input: the part that each head attends to from the answer positions, over all inputs.

The queries are the answer positions (`=` alone in modular arithmetic), each input followed by its right answer. The
parts are those of the task, but the key that is the query's own position is `itself`; an operand is an operand even
there (the form `ab`). A head's share of a part is the mean over the queries; its score there is
(share - chance) / (1 - chance), chance being the share under uniform attention over the visible keys. The entropy is
-sum a ln a over the keys, also as a share of ln n for n visible keys: 0 = one key, 1 = uniform.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.core.arguments import Count, Folder, Seed, checked_arguments
from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding
from algoscope.core.renaming import renamed_options
from algoscope.data import all_or_sample, seeded
from algoscope.lenses.heads._part_panels import panels_of, tables_of
from algoscope.lenses.heads.attention_targets import as_shares, in_portions, visible
from algoscope.lenses.heads.head_panels import head_name
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.networks.evaluation import answers_right
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.prompt import Prompt
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts, texts_of
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.groups.binary import Binary

ITSELF, SPREAD, BOTH, MIXED = "itself", "spread", "both operands", "mixed"
OPERANDS = ("first operand", "second operand")  # as tasks name them
ASKED = ("5 8", "90 90", "50 0")  # shown if they are prompts of the task: a sum, one that wraps, and one with 0
SHOWN = 3  # of a task's edge cases where it cannot

ABOUT = (
    "The attention of every head from the answer positions, by part of the input, over all inputs of "
    "the task (or a random sample of a large one). `itself` is the query's own position. A head is named after a part "
    "if its attention there is far enough from uniform; else it is spread (its entropy is near the largest), attends "
    "to both operands, or is mixed. Agreement is the share of single inputs that give the same class as the mean: a "
    "head that attends by content changes class with the input."
)


@renamed_options(at_most="n_inputs")
@checked_arguments
@measurement
def attention_by_part(
    subject: AnyModel,
    inputs: Texts = None,
    *,
    n_inputs: Count = 20_000,
    threshold: float = 0.4,
    spread_threshold: float = 0.75,
    stable: float = 0.9,
    fall: float = 0.1,
    seed: Seed = 0,
    runs_dir: Folder = None,
) -> Finding:
    """Name every head after the part of the input that it attends to from the answer positions, over all inputs.

    Over all inputs of the task where there are at most `n_inputs`, else over as many random ones. The class is, from
    the means over the inputs: the part of the highest score, if that reaches `threshold`; else `spread`, if the mean
    entropy reaches `spread_threshold`; else `both operands`, if the score of the two together reaches `threshold`; else
    `mixed`. The same rule classes the head on each single input: `agreement` is the share that has the head's class.

    Args:
        subject: a model of a task, by name or opened.
        inputs: inputs to show one by one, each followed by the model's own answer; by default 5 and 8, 90 and 90, 50
            and 0, or the task's first edge cases.
        n_inputs: the most inputs to measure over, 2 at least.
        threshold: the score (0 = as uniform attention, 1 = all attention) from which a head is named after a part; with
            0.4 it puts at least 0.55 of its attention on one of four keys.
        spread_threshold: the entropy, as a share of the largest, from which it is spread.
        stable: the agreement from which a class is stable. That of a head that attends by content is not.
        fall: the least fall of the entropy share from the first layer to the last (see `fall_between`).
        seed: seed of the random inputs.
        runs_dir: where runs live.
    Returns:
        A finding with panels `attention` [layer head input part], `classes` and `entropy` [layer head], `entropy by
        layer` [layer], `shares` [head part] and `shares by layer` [part layer] (means over the inputs); facts `heads`,
        `layers`, `counts` of classes, `broad_early_sharp_late`, `covered` {inputs, of, method, wrong}, `inputs`.
    Raises:
        TaskMismatchError: for a model of free text.
        ConfigError: for fewer than two inputs to measure over.
        VocabularyError: for an input that is not a prompt of the task.

    Example:
        >>> import algoscope as ag
        >>> ag.lenses.attention_by_part("planted:pizza", n_inputs=100)["heads"][0]["class"]
        'spread'
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    tokens, covered = inputs_of(subject, n_inputs, seed)
    parts = input_parts(subject.task, subject.cfg.causal)
    measured = _measured(subject, tokens, parts)
    bounds = {"part": threshold, "spread": spread_threshold, "stable": stable, "fall": fall}
    heads = _heads(parts, measured, bounds)
    layers = _layers(parts, measured)
    falls = fall_between(measured.entropy[:, 0].mean(axis=0), measured.entropy[:, -1].mean(axis=0), fall)
    texts = list(texts_of(inputs)) or _default_inputs(subject.task)
    prompts = [subject.lay_out(text) for text in texts]
    shown = np.stack([_of_one(subject, prompt, parts) for prompt in prompts], axis=2)
    facts = {
        "queries": list(_query_labels(subject)),
        "parts": list(parts.names),
        "covered": covered | {"wrong": measured.wrong},
        "counts": dict(Counter(head["class"] for head in heads)),
        "heads": heads,
        "layers": layers,
        "broad_early_sharp_late": falls if len(layers) > 1 else {"verdict": "one layer"},
        "thresholds": bounds,
        "inputs": [{"input": prompt.text, "got": prompt.got, "expected": prompt.expected} for prompt in prompts],
    }
    panels = panels_of(subject.cfg, facts, measured.shares, measured.entropy, shown)
    tables = tables_of(facts)
    return subject.finding("attention_by_part", _claim(facts), facts, panels, about=ABOUT, tables=tables, seed=seed)


# ---------------------------------------------------------------------- inputs


def inputs_of(subject: Subject, n_inputs: int, seed: int) -> tuple[Tokens, dict[str, Any]]:
    """Every input of the subject's task with its right answer (`exhaustive`), or `n_inputs` random ones (`sampled`),
    and which these are. Raises ConfigError for fewer than two.
    """
    task = subject.task
    if n_inputs < 2:
        raise ConfigError(f"n_inputs is {n_inputs}: means over inputs need at least 2")
    tokens = all_or_sample(task, n_inputs, seeded(subject.device, seed))
    method = "exhaustive" if task.has_at_most(n_inputs) else "sampled"
    return tokens, {"inputs": len(tokens), "of": task.domain_size, "method": method}


def _default_inputs(task: Task) -> list[str]:
    if isinstance(task, Binary) and all(map(task.valid, ASKED)):
        return [task.prompt(text) for text in ASKED]
    return [task.decode(row[: task.prompt_length].tolist()) for row in task.edge_inputs()[:SHOWN]]


def _query_labels(subject: Subject) -> tuple[str, ...]:
    """The answer positions, by input part."""
    parts = subject.task.all_parts.items()
    places = range(subject.task.n_ctx - 1)[subject.task.answer_slice]
    return tuple(next(name for name, part in parts if part.start <= place < part.stop) for place in places)


# ---------------------------------------------------------------------- parts and measures


@dataclass(frozen=True)
class InputParts:
    """The parts of a sequence as seen from the answer positions: `masks` says which visible keys are of each."""

    names: tuple[str, ...]
    masks: Bool[Tensor, "part query key"]

    @property
    def n_visible(self) -> Int[Tensor, "query"]:
        """Each key that is visible is of exactly one part."""
        return self.masks.sum(dim=(0, 2))

    @property
    def chance(self) -> Float[np.ndarray, "part"]:
        """The share of each part under uniform attention."""
        share: Float[np.ndarray, "part"] = (self.masks.sum(dim=2).double() / self.n_visible).mean(dim=1).numpy()
        return share

    @property
    def class_names(self) -> tuple[str, ...]:
        return (*self.names, SPREAD, BOTH, MIXED)

    def scores(self, shares: Float[np.ndarray, "*rows part"]) -> Float[np.ndarray, "*rows part"]:
        """0 = as under uniform attention, 1 = all; 0 where a query sees no other part."""
        score: Float[np.ndarray, "*rows part"] = (shares - self.chance) / np.where(self.chance < 1, 1 - self.chance, 1)
        return score


def input_parts(task: Task, causal: bool) -> InputParts:
    """The task's parts, and `itself`, seen from its answer positions; a part of which no key is visible is left out."""
    key = torch.arange(task.n_ctx - 1)
    query = key[task.answer_slice][:, None]
    visible_keys = visible(task.n_ctx - 1, causal)[task.answer_slice]
    operands = torch.tensor(task.operand_positions if isinstance(task, Binary) else (), dtype=torch.long)
    itself = (key == query) & ~torch.isin(key, operands)
    others = visible_keys & ~itself
    masks = {name: (key >= part.start) & (key < part.stop) & others for name, part in task.all_parts.items()}
    masks |= {ITSELF: itself}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    return InputParts(tuple(masks), torch.stack(list(masks.values())))


def shares_and_entropy(
    pattern: Float[Tensor, "batch head query key"], parts: InputParts
) -> tuple[Float[Tensor, "batch head part"], Float[Tensor, "batch head"], Float[Tensor, "batch head"]]:
    """Of the attention of the answer positions: the share on each part, the entropy in nats, and as a share of ln n of
    the n visible keys; means over the queries. Where a head may rest, its entropy is that of the keys it attends to,
    times its total attention.
    """
    masks, n_visible = parts.masks.to(pattern.device, pattern.dtype), parts.n_visible.to(pattern.device, pattern.dtype)
    shares = einsum(pattern, masks, "b h q k, part q k -> b h part") / pattern.shape[2]
    entropy = torch.special.entr(pattern).sum(dim=-1) - torch.special.entr(pattern.sum(dim=-1))
    return shares, entropy.mean(dim=-1), (entropy / n_visible.log()).mean(dim=-1)


def classes(
    shares: Float[np.ndarray, "*rows part"],
    entropy: Float[np.ndarray, "*rows"],
    parts: InputParts,
    bounds: Mapping[str, float],
) -> Int[np.ndarray, "*rows"]:
    """The class of a head, on the mean or on single inputs, by its number in `class_names`."""
    score, n_parts = parts.scores(shares), len(parts.names)
    both = np.full(entropy.shape, -np.inf)
    if set(OPERANDS) <= set(parts.names):
        places = [parts.names.index(name) for name in OPERANDS]
        chance = parts.chance[places].sum()
        if chance < 1:
            both = (shares[..., places].sum(axis=-1) - chance) / (1 - chance)
    otherwise = np.where(both >= bounds["part"], n_parts + 1, n_parts + 2)
    otherwise = np.where(entropy >= bounds["spread"], n_parts, otherwise)
    number: Int[np.ndarray, "*rows"] = np.where(score.max(-1) >= bounds["part"], score.argmax(-1), otherwise)
    return number


def fall_between(
    first: Float[np.ndarray, "head"], last: Float[np.ndarray, "head"], least: float
) -> dict[str, float | str | None]:
    """By how much the mean of `last` is below that of `first`, and whether it falls by at least `least`: `true` if the
    interval of two standard errors over the heads (Welch) on either side is above 0 and the difference at least
    `least`, `false` if the interval is below `least`, else `unclear`, as with a single head.
    """
    difference = float(first.mean() - last.mean())
    if min(len(first), len(last)) < 2:
        return {"difference": difference, "error": None, "low": None, "high": None, "verdict": "unclear"}
    error = math.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last))
    low, high = difference - 2 * error, difference + 2 * error
    verdict = "true" if low > 0 and difference >= least else "false" if high < least else "unclear"
    return {"difference": difference, "error": error, "low": low, "high": high, "verdict": verdict}


@dataclass(frozen=True)
class _Measured:
    """Every head on every input: shares of the parts, entropy as a share of ln n, and in nats; and how many inputs are
    answered wrongly.
    """

    shares: Float[np.ndarray, "input layer head part"]
    entropy: Float[np.ndarray, "input layer head"]
    nats: Float[np.ndarray, "input layer head"]
    wrong: int


def _measured(subject: Subject, tokens: Tokens, parts: InputParts) -> _Measured:
    layers, at = range(subject.cfg.n_layers), subject.task.answer_slice
    each: list[list[Tensor]] = []
    wrong = 0
    for portion in in_portions(tokens, subject.cfg):
        logits, cache = subject.run(portion[:, :-1], record=[("pattern", layer) for layer in layers], at=at)
        wrong += int((~answers_right(logits, portion[:, subject.task.prompt_length :])).sum())
        patterns = (as_shares(cache["pattern", layer][:, :, at].double(), subject.cfg) for layer in layers)
        by_layer = [shares_and_entropy(pattern, parts) for pattern in patterns]
        each.append([torch.stack(values, dim=1).cpu() for values in zip(*by_layer, strict=True)])
    shares, nats, entropy = (torch.cat(values).numpy() for values in zip(*each, strict=True))
    return _Measured(shares, entropy, nats, wrong)


def _of_one(subject: Subject, prompt: Prompt, parts: InputParts) -> Float[np.ndarray, "layer head part"]:
    """Shares on one input, followed by the model's own answer."""
    layers, at = range(subject.cfg.n_layers), subject.task.answer_slice
    cache = subject.run(prompt.tokens, record=[("pattern", layer) for layer in layers], at=at)[1]
    patterns = (as_shares(cache["pattern", layer][:, :, at].double(), subject.cfg) for layer in layers)
    each = [shares_and_entropy(pattern, parts)[0][0] for pattern in patterns]
    shares: Float[np.ndarray, "layer head part"] = torch.stack(each).cpu().numpy()
    return shares


# ---------------------------------------------------------------------- facts and claim


def _heads(parts: InputParts, measured: _Measured, bounds: Mapping[str, float]) -> list[dict[str, Any]]:
    names = parts.class_names
    mean, deviation = measured.shares.mean(axis=0), measured.shares.std(axis=0)
    overall = classes(mean, measured.entropy.mean(axis=0), parts, bounds)
    single = classes(measured.shares, measured.entropy, parts, bounds)
    score = parts.scores(mean)
    heads = []
    for layer, head in np.ndindex(overall.shape):
        counted = np.bincount(single[:, layer, head], minlength=len(names)) / len(single)
        agreement = float(counted[overall[layer, head]])
        heads.append(
            {
                "layer": layer,
                "head": head,
                "name": head_name(layer, head),
                "class": names[overall[layer, head]],
                "agreement": agreement,
                "stable": agreement >= bounds["stable"],
                "by_input": {name: float(share) for name, share in zip(names, counted, strict=True) if share},
                "shares": dict(zip(parts.names, mean[layer, head].tolist(), strict=True)),
                "spread": dict(zip(parts.names, deviation[layer, head].tolist(), strict=True)),
                "scores": dict(zip(parts.names, score[layer, head].tolist(), strict=True)),
                "entropy_nats": float(measured.nats[:, layer, head].mean()),
                "entropy_share": float(measured.entropy[:, layer, head].mean()),
                "entropy_spread": float(measured.entropy[:, layer, head].std()),
            }
        )
    return heads


def _layers(parts: InputParts, measured: _Measured) -> list[dict[str, Any]]:
    """Means over the heads of each layer; `entropy_spread` is the standard deviation over them."""
    by_head, shares = measured.entropy.mean(axis=0), measured.shares.mean(axis=(0, 2))
    return [
        {
            "layer": layer,
            "entropy_nats": float(measured.nats[:, layer].mean()),
            "entropy_share": float(by_head[layer].mean()),
            "entropy_spread": float(by_head[layer].std()),
            "shares": dict(zip(parts.names, shares[layer].tolist(), strict=True)),
        }
        for layer in range(len(by_head))
    ]


def _claim(facts: Mapping[str, Any]) -> str:
    covered, falls = facts["covered"], facts["broad_early_sharp_late"]
    every = "all" if covered["method"] == "exhaustive" else "a random"
    counted = ", ".join(f"{n} {name}" for name, n in sorted(facts["counts"].items(), key=lambda one: -one[1]))
    unstable = sum(not head["stable"] for head in facts["heads"])
    claim = (
        f"{len(facts['heads'])} heads over {every} {covered['inputs']:,} inputs ({covered['wrong']:,} answered wrongly)"
    )
    claim += f": {counted}; {unstable or 'none'} of them change{'s' * (unstable == 1)} class with the input"
    if falls["verdict"] == "one layer":
        return claim
    first, last = facts["layers"][0], facts["layers"][-1]
    ends = f"entropy {first['entropy_share']:.2f} of the most in layer 0, {last['entropy_share']:.2f} in the last"
    return f"{claim}; broad early, sharp late: {falls['verdict']} ({ends})"


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: applies to tasks of two operands."""
    return {} if subject.has_task and isinstance(subject.task, Binary) else None
