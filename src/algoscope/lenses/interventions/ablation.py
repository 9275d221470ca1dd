"""The ablation lens: what is lost without each head, feed-forward, attention, layer and embedding?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor

from algoscope.core.errors import ConfigError, SubjectError, UnknownNameError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Panel, Scale
from algoscope.core.sites import Key
from algoscope.data import seeded
from algoscope.lenses.inputs.probe_set import members_by_class
from algoscope.lenses.inputs.prompts import LARGE, Prompts
from algoscope.lenses.inputs.repeated_tokens import repeated_blocks
from algoscope.networks.evaluation import answers_right, cross_entropy, kl_divergence
from algoscope.networks.parameters import count_parameters
from algoscope.runs.run_folder import Run
from algoscope.subjects.edits import Edit, Patch, Zero
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Tokens

KINDS = {
    "zero": "zeros",
    "mean": "its mean over the reference inputs, position by position",
    "resample": "what it is on another of the reference inputs, drawn at random",
}
POOL = 100_000  # inputs among which those of each class are looked for; a domain no larger is looked through whole
PORTION = 2**24  # numbers of one run that are kept at once
MOST = 5  # components named in `most_needed`
PARTS = ("head", "feed-forward")  # what `most_needed` compares: the rest is made of them, or comes before them


def ablate(
    subject: str | Run | Subject,
    *,
    kind: str | Sequence[str] = tuple(KINDS),
    by: str = "",
    n_inputs: int = 2000,
    per_class: int = 200,
    inputs: Sequence[str] = (),
    n_texts: int = 16,
    seed: int = 0,
    runs_dir: str | None = None,
) -> Finding:
    """Take one component away at a time, in each of the ways `kind` names, and measure what is lost.

    Components: each head (`L0H1`, its `z`), each feed-forward (`L0 MLP`), each attention (`L0 attention`, all heads and
    the output's bias), each layer with a feed-forward (`L0`, both together), and the embeddings (`embed`, `pos_embed`).
    What stands in their place: `zero`, zeros; `mean`, the mean over the reference inputs at each position; `resample`,
    what it is on another of them. The three answer different questions: zeros are often nothing that the rest of the
    model has ever seen. Positions are the same for every input, so only `zero` takes `pos_embed` away.

    With a task, the reference is `n_inputs` random inputs. An input is right where every answer position is, each given
    the right answer before it. `accuracy` is over those inputs, with its 95 % Clopper-Pearson interval, and `drop` the
    accuracy that is lost; `by_class` is over up to `per_class` inputs of each class of the scheme `by` (empty: the
    task's first), looked for in the whole domain or in 100,000 draws from it.

    With free text, the reference is `inputs`, all cut to the length of the shortest so that positions can be compared,
    or `n_texts` rows of random tokens in a block that comes twice. `loss_increase` (of the cross-entropy of the next
    token) and `kl` (from the prediction without ablation) are in nats, means over all tokens predicted, or over those
    of the second copy, which the first determines; `by_class` also has the first copy, which nothing determines.

    Panels, with a task: `overall` [component kind] and `KIND by class` [component class], accuracies. With free text:
    `loss` and `kl` [component kind]. Facts: `baseline` without ablation, `components` (each in each way),
    `most_needed` (for each way, the five heads and feed-forwards that cost most), `reference`, `kinds`.

    Raises UnknownNameError for a kind or a scheme that there is not, ConfigError for fewer than two inputs or no kind,
    and for `inputs` to a model with a task, SubjectError for a model that is not causal and so would see the answer.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    kinds = (kind,) if isinstance(kind, str) else tuple(dict.fromkeys(kind))
    for name in kinds:
        if name not in KINDS:
            raise UnknownNameError("kind of ablation", name, KINDS)
    if not kinds:
        raise ConfigError(f"ablation of no kind: give one or more of {', '.join(KINDS)}")
    if not subject.cfg.causal:
        raise SubjectError(f"{subject.name} is not causal: it would see the answer that it is asked for")
    if subject.has_task:
        trial = _of_task(subject, by, n_inputs, per_class, inputs, seed)
    else:
        trial = _of_text(subject, inputs, n_texts, seed)
    parts = components(subject)
    base_values, without = _measured(subject, trial, parts, kinds, seed)
    base, lost = trial.said(base_values), "drop" if trial.whole else "loss_increase"
    rows = []
    for i, part in enumerate(parts):
        for name in kinds:
            said = trial.said(without[name][i])
            row = {"component": part.name, "group": part.group, "kind": name, **said}
            rows.append(row | {lost: trial.lost(base, said)})
    facts = {
        "subject": subject.name,
        "kinds": {name: KINDS[name] for name in kinds},
        "reference": {"n": trial.n_reference, "meaning": trial.meaning, "seed": seed},
        "baseline": base,
        "components": rows,
        "most_needed": {name: _most_needed(rows, name, lost) for name in kinds},
    }
    return Finding(
        kind="ablate",
        claim=_claim(facts, trial),
        facts=facts,
        panels=_panels(facts, trial),
        provenance={"subject": subject.name, "weights_sha256": subject.weights_sha256, "seed": seed},
    )


# ---------------------------------------------------------------------- components


@dataclass(frozen=True)
class Component:
    """A part of the model that can be taken away: the sites of its output, and which head of them it is."""

    name: str
    group: str
    sites: tuple[Key, ...]
    head: int | None = None

    def edits(self, reference: Mapping[Key, Tensor] | None) -> list[Edit]:
        """What takes it away: values of `reference` in its place, [batch pos ...] or [1 pos ...]; zeros without one."""
        if reference is None:
            return [Zero(site, head=self.head) for site in self.sites]
        return [Patch(site, value=reference[site], head=self.head) for site in self.sites]


def components(subject: Subject) -> list[Component]:
    """Everything that is ablated, layer by layer, and then the embeddings."""
    parts = []
    for layer in range(subject.cfg.n_layers):
        attention, mlp = ("attn_out", layer), ("mlp_out", layer)
        parts += [Component(f"L{layer}H{h}", "head", (("z", layer),), h) for h in range(subject.cfg.n_heads)]
        parts.append(Component(f"L{layer} attention", "attention", (attention,)))
        if subject.cfg.d_mlp is not None:
            parts.append(Component(f"L{layer} MLP", "feed-forward", (mlp,)))
            parts.append(Component(f"L{layer}", "layer", (attention, mlp)))
    present = {site.kind for site in subject.sites}
    return parts + [Component(name, "embedding", (name,)) for name in ("embed", "pos_embed") if name in present]


def others(n: int, n_reference: int, seed: int) -> Int[Tensor, "batch"]:
    """For each of `n` inputs, of which the first are the reference inputs themselves, another one of these: along a
    random cycle, so that none is given itself.
    """
    generator = seeded(torch.device("cpu"), seed, 1)
    order = torch.randperm(n_reference, generator=generator)
    following = torch.empty_like(order)
    following[order] = order.roll(-1)
    rest = torch.randint(n_reference, (max(0, n - n_reference),), generator=generator)
    return torch.cat([following, rest])[:n]


# ---------------------------------------------------------------------- what is measured


@dataclass(frozen=True)
class _Trial:
    """What the model is tried on: whole sequences, of which the first `n_reference` are the reference inputs."""

    tokens: Tokens
    n_reference: int
    meaning: str
    at: slice  # positions whose logits are read
    whole: bool  # is an answer right only as a whole, or does each token count?
    classes: Mapping[str, tuple[slice, slice]]  # rows and places that each takes together; the first counts most

    @property
    def targets(self) -> Int[Tensor, "batch read"]:
        return self.tokens[:, 1:][:, self.at]

    def read(
        self,
        logits: Float[Tensor, "edit batch read d_vocab"],
        targets: Int[Tensor, "batch read"],
        base: Float[Tensor, "batch read d_vocab"],
    ) -> Float[Tensor, "edit batch place measure"]:
        """Is the answer right (1 or 0)? Or, for each token, the loss, and the divergence from the whole model's
        prediction, whose logits are `base`.
        """
        if self.whole:
            return answers_right(logits, targets.expand(len(logits), -1, -1))[..., None, None].to(logits.dtype)
        loss = cross_entropy(logits, targets.expand(len(logits), -1, -1))
        return torch.stack([loss, kl_divergence(base, logits)], dim=-1)

    def said(self, values: Float[np.ndarray, "batch place measure"]) -> dict[str, Any]:
        """The measures of the class that counts most, and those of each class."""
        means = {name: values[where].mean(axis=(0, 1)).tolist() for name, where in self.classes.items()}
        if not self.whole:
            by_class = [{"class": name, "loss": loss, "kl": kl} for name, (loss, kl) in means.items()]
            return {"loss": by_class[0]["loss"], "kl": by_class[0]["kl"], "by_class": by_class}
        first, *names = means
        n_right = int(values[self.classes[first]].sum())
        bounds = binomtest(n_right, self.n_reference).proportion_ci(0.95, method="exact")
        return {
            "accuracy": n_right / self.n_reference,
            "interval_95": [float(bounds.low), float(bounds.high)],
            "by_class": [
                {"class": name, "n": len(values[self.classes[name]]), "accuracy": means[name][0]} for name in names
            ],
        }

    def lost(self, base: Mapping[str, Any], without: Mapping[str, Any]) -> float:
        """What one ablation costs: accuracy, or nats for each token."""
        return base["accuracy"] - without["accuracy"] if self.whole else without["loss"] - base["loss"]


def _of_task(subject: Subject, by: str, n_inputs: int, per_class: int, inputs: Sequence[str], seed: int) -> _Trial:
    task, everywhere = subject.task, slice(None)
    if inputs:
        raise ConfigError(f"{subject.name} has a task, whose inputs are drawn: leave out {', '.join(inputs)}")
    if n_inputs < 2 or per_class < 1:
        raise ConfigError(f"ablation needs 2 inputs or more and 1 of each class, not {n_inputs} and {per_class}")
    scheme = by or task.class_schemes[0]
    plain = task.sample(n_inputs, seeded(subject.device, seed, 0))
    if task.domain_size <= POOL:
        pool = task.at(torch.arange(task.domain_size, device=subject.device))
    else:
        pool = task.sample(POOL, seeded(subject.device, seed, 3))
    order = torch.randperm(len(pool), generator=seeded(torch.device("cpu"), seed, 2)).to(subject.device)
    chosen = members_by_class(task, scheme, pool[order], per_class)
    ends = np.cumsum([n_inputs, *map(len, chosen.values())]).tolist()
    rows = {name: (slice(ends[i], ends[i + 1]), everywhere) for i, name in enumerate(chosen) if len(chosen[name])}
    return _Trial(
        tokens=torch.cat([plain, *chosen.values()]),
        n_reference=n_inputs,
        meaning=f"{n_inputs:,} random inputs of {task.kind}",
        at=task.answer_slice,
        whole=True,
        classes={"": (slice(0, n_inputs), everywhere), **rows},
    )


def _of_text(subject: Subject, inputs: Sequence[str], n_texts: int, seed: int) -> _Trial:
    n, everywhere = len(inputs) or n_texts, slice(None)
    if n < 2:
        raise ConfigError(f"ablation needs 2 texts or more, so that there is another one to take from, not {n}")
    if inputs:
        rows = [subject.to_tokens(text)[0] for text in inputs]
        length = min(map(len, rows))
        if length < 2:
            raise ConfigError("a text of 1 token predicts nothing: give texts of 2 tokens or more")
        cut = torch.stack([row[:length] for row in rows])
        classes = {"all tokens": (everywhere, everywhere)}
        return _Trial(cut, n, f"{n:,} texts of {length} tokens", everywhere, whole=False, classes=classes)
    [tokens] = repeated_blocks(subject, n, seed, n_lengths=1)
    start = (tokens.shape[1] + len(subject.text.encode(""))) // 2  # of the second copy
    classes = {"second copy": (everywhere, slice(start, None)), "first copy": (everywhere, slice(None, start))}
    return _Trial(tokens, n, f"{n:,} rows of random tokens, each block twice", everywhere, False, classes)


# ---------------------------------------------------------------------- runs


def _measured(
    subject: Subject, trial: _Trial, parts: Sequence[Component], kinds: Sequence[str], seed: int
) -> tuple[Float[np.ndarray, "batch place measure"], dict[str, Float[np.ndarray, "component batch place measure"]]]:
    """The measures of every input without ablation, and for each kind without each component."""
    sites = sorted({site for part in parts for site in part.sites}, key=str)
    read, targets, cfg = trial.tokens[:, :-1], trial.targets, subject.cfg
    another = others(len(read), trial.n_reference, seed).to(read.device)
    size = max(1, PORTION // (read.shape[1] * max(cfg.d_vocab, 4 * cfg.n_layers * cfg.d_model)))
    means = _means(subject, read[: trial.n_reference], sites, size) if "mean" in kinds else None
    bases: list[Tensor] = []
    found: dict[str, list[Tensor]] = {name: [] for name in kinds}
    for rows in torch.arange(len(read), device=read.device).split(size):
        logits = subject.run(read[rows], at=trial.at)[0]
        measure = partial(trial.read, targets=targets[rows], base=logits)
        bases.append(measure(logits[None])[0])
        for name in kinds:
            reference = means if name == "mean" else None
            if name == "resample":
                reference = _recorded(subject, read[another[rows]], sites)
            edits = [part.edits(reference) for part in parts]
            found[name].append(_without_each(subject, read[rows], edits, trial.at, measure))
    together = {name: torch.cat(values, dim=1).cpu().double().numpy() for name, values in found.items()}
    return torch.cat(bases).cpu().double().numpy(), together


def _without_each(
    subject: Subject, tokens: Tokens, edits: Sequence[list[Edit]], at: slice, measure: Callable[[Tensor], Tensor]
) -> Float[Tensor, "component batch place measure"]:
    """One run for each component, all edits of that component made in it."""
    single = [i for i, members in enumerate(edits) if len(members) == 1]
    each = subject.run_each(tokens, [edits[i][0] for i in single], at=at, reduce=measure)
    found = dict(zip(single, each, strict=True))
    for i, members in enumerate(edits):
        if i not in found:
            found[i] = measure(subject.run(tokens, edits=members, at=at)[0][None])[0]
    return torch.stack([found[i] for i in range(len(edits))])


def _recorded(subject: Subject, tokens: Tokens, sites: Sequence[Key]) -> Mapping[Key, Tensor]:
    return subject.run(tokens, record=sites, at=slice(0, 0))[1]


def _means(subject: Subject, tokens: Tokens, sites: Sequence[Key], size: int) -> Mapping[Key, Tensor]:
    """The mean over all inputs at each position, [1 pos ...], from `size` inputs at a time."""
    total = dict[Key, Tensor]()
    for portion in tokens.split(size):
        values = _recorded(subject, portion, sites)
        for site in sites:
            total[site] = total.get(site, 0) + values[site].sum(dim=0, keepdim=True) / len(tokens)
    return total


# ---------------------------------------------------------------------- what is said


def _most_needed(rows: Sequence[Mapping[str, Any]], kind: str, lost: str) -> list[dict[str, Any]]:
    those = sorted((row for row in rows if row["kind"] == kind and row["group"] in PARTS), key=lambda row: -row[lost])
    return [{"component": row["component"], lost: row[lost]} for row in those[:MOST]]


def _claim(facts: Mapping[str, Any], trial: _Trial) -> str:
    base, said = facts["baseline"], []
    for kind, needed in facts["most_needed"].items():
        if trial.whole:
            cost = f"{base['accuracy'] - needed[0]['drop']:.1%} right without it"
        else:
            cost = f"+{needed[0]['loss_increase']:.3g} nats a token"
        said.append(f"{needed[0]['component']} by {kind} ({cost})")
    well = f"{base['accuracy']:.1%} right" if trial.whole else f"loss {base['loss']:.3g} nats"
    which = "" if trial.whole else f" a token, {next(iter(trial.classes))}"
    given = f"{', '.join(facts['kinds'])} ablation over {trial.meaning}, each position by itself: {well}{which}"
    return f"{given}; most needed of heads and feed-forwards: {', '.join(said)}"


def _panels(facts: Mapping[str, Any], trial: _Trial) -> tuple[Panel, ...]:
    """With a task accuracies, of the whole model in the first row; else what the loss gains, and the divergence."""
    base, kinds = facts["baseline"], tuple(facts["kinds"])
    by_kind = [[row for row in facts["components"] if row["kind"] == kind] for kind in kinds]
    names = tuple(row["component"] for row in by_kind[0])
    across = Axis("kind", kinds, "put in its place")
    if not trial.whole:
        loss, kl = ([[row[of] for row in same] for same in by_kind] for of in ("loss_increase", "kl"))
        which = next(iter(trial.classes))
        units, meaning = ("nats more a token", "nats from the whole model"), {"zero": "as without ablation"}
        return (
            _panel("loss", f"increase of the loss, {which}", names, across, loss, units[0], "signed", **meaning),
            _panel("kl", f"divergence of the prediction, {which}", names, across, kl, units[1], "free", **meaning),
        )
    rows = ("nothing", *names)
    meaning = {"zero": "every input wrong", "one": "every input right", "quantity": "accuracy"}
    overall = [[row["accuracy"] for row in (base, *same)] for same in by_kind]
    title, unit = f"accuracy over {trial.meaning}", "share of inputs right"
    panels = [_panel("overall", title, rows, across, overall, unit, "unit", **meaning)]
    classes = Axis("class", tuple(f"{one['class']} ({one['n']:,})" for one in base["by_class"]), "class (inputs)")
    for kind, same in zip(kinds, by_kind, strict=True):
        values = zip(*([one["accuracy"] for one in row["by_class"]] for row in (base, *same)), strict=True)
        title = f"accuracy by class, {kind} ablation"
        panels.append(_panel(f"{kind} by class", title, rows, classes, list(values), unit, "unit", **meaning))
    return tuple(panels)


def _panel(
    name: str, title: str, rows: tuple[str, ...], columns: Axis, values: Sequence[Sequence[float]], unit: str,
    scale: Scale, **meaning: Any,
) -> Panel:  # fmt: skip
    """A heatmap of components and `columns`, from the values of each column."""
    cells = np.array(values, dtype=float).T
    places = 2 if scale == "unit" else 3
    words = np.vectorize(lambda value: f"{round(value, places) + 0.0:.{places}f}", otypes=[object])(cells)
    axes = (Axis("component", rows, "taken away"), columns)
    return Panel(name, axes, cells, unit, title=title, view="heatmap", scale=scale, words=words, **meaning)


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """What a report asks: every component of a model that is not large."""
    return {} if sum(count_parameters(subject.cfg).values()) < LARGE else None
