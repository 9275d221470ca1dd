"""Path patching: which heads and MLPs affect one receiver directly?"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Panel
from algoscope.core.sites import Key
from algoscope.lenses.interventions.contrast_pairs import (
    Alignment,
    Answers,
    Direction,
    Pair,
    by_effect,
    effects_table,
    half_way,
    is_critical,
    of_the_gap,
)
from algoscope.lenses.interventions.metrics import AnyMetric
from algoscope.lenses.interventions.patched_runs import PatchedRun, Patching
from algoscope.lenses.measures import RECOVERED
from algoscope.lenses.residual_parts import needs_sum, output_norm
from algoscope.networks.taps import NO_TAP
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.edits import Patch
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts

STACK = 2**13  # tokens in one batch
Mlps = Literal["frozen", "free"]
SHOWN = 20  # senders in the table
ABOUT = (
    "Path patching changes one path at a time: the output of one sender (a head or an MLP) is taken from the other "
    "run, but only one receiver gets the changed output; all other heads and MLPs keep their outputs of the base run. "
    "`recovered` = (patched - corrupt) / (clean - corrupt), where each is the metric of that run: 0 = as the corrupt "
    "run, 1 = as the clean run. With MLPs frozen only the direct path through the residual stream counts; with MLPs "
    "free, paths through the MLPs in between count too."
)

Through = Callable[[Subject, "Receiver", Sequence["Sender"], PatchedRun], "Input"]
Stream = Float[Tensor, "batch pos d_model"]
Input = Float[Tensor, "sender batch *rest"]  # the input of a receiver, or the logits at the metric's position


@checked_arguments
@measurement
def path_patching(
    subject: AnyModel,
    clean: Texts,
    corrupt: Texts,
    *,
    receiver: str = "logits",
    mlps: Mlps = "frozen",
    direction: Direction = "denoise",
    metric: AnyMetric = "logit_diff",
    target: Answers = None,
    rival: Answers = None,
    align: Alignment = None,
    runs_dir: Folder = None,
) -> Finding:
    """Send the other run's output of one head or MLP to one receiver alone, and measure the share of the gap recovered.

    For each sender, the base input is run with the sender's output from the other input, while every other head and MLP
    keeps its output of the base run; the resulting input of the receiver is recorded. A second run of the base input
    replaces only that input. So only the direct path counts, from the sender's output through the residual stream to
    the receiver. The options are those of activation patching: `denoise` runs the corrupt input and sends clean
    outputs, `noise` runs the clean input and sends corrupt ones, and `recovered` = (patched - corrupt) / (clean -
    corrupt): 0 = as the corrupt run, 1 = as the clean run.

    Args:
        subject: a causal model, by name or opened.
        clean: the inputs whose answers are to be restored, one or several.
        corrupt: as many inputs with other answers, of any length, as for `patch`.
        receiver: `L1H0.q`, `L1H0.k` or `L1H0.v` (of k and v the key/value head, where they are grouped), `L1 MLP`, or
            `logits`.
        mlps: whether MLPs between sender and receiver are frozen, or recomputed (free), so that paths through them
            count.
        direction: which run is the base: the corrupt one (denoise) or the clean (noise).
        metric: a function of the logits: the logit difference of target and rival, the target's probability, the KL
            divergence from the clean run in nats, or whether the target is the top token. Or a function of your own,
            as in TransformerLens: of the logits [batch pos d_vocab], to a number for each input; or FILE.py:NAME.
        target, rival: an answer of one token or of several, or several answers that count alike, in place of the clean
            and of the corrupt input's answer, as for `patch`.
        align: pairs (clean position, corrupt position) to match inputs by, as for `patch`.
        runs_dir: where run folders are looked for; by default the usual place.

    Returns:
        A finding with the panels, means over the pairs, `paths` [layer sender], the share of the gap recovered, NaN
        where a sender does not come before the receiver, and `in a row` [sender], the same as bars. Facts: `receiver`,
        `mlps`, `baselines` {clean, corrupt} (means of the metric), `senders` ({sender, recovered, per_example}),
        `largest` (the sender that moves the metric furthest from the base run) and `critical` (those that carry half of
        the gap: recovered at least 0.5 when denoising, at most 0.5 when noising).

    Raises:
        ConfigError: for a receiver that the model does not have, or without a sender before it.
        PairingError: for inputs that cannot be compared.
        SubjectError: for a model that is not causal, or normalises the stream after each sum.
        UnknownNameError: for another metric, direction or choice of `mlps`.
        VocabularyError: for a target or rival that is no text of tokens, or with a task not one token.

    Source:
        Wang et al., arXiv 2211.00593.

    Example:
        >>> import algoscope as ag
        >>> ag.lenses.path_patching("planted:induction", "abcda", "cbada", receiver="L1H0.k")["largest"]["sender"]
        'L0H1'
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    where = Receiver.parse(subject, receiver)
    senders = where.senders(subject)
    pair = Pair(subject, clean, corrupt, target, rival, metric, align)
    patching = Patching.of(pair, _recorded(subject, where), direction)
    through = _direct_inputs if mlps == "frozen" else _inputs_through_mlps
    patched = patching.scale.combined([_patched(patching, run, where, senders, through) for run in patching.runs])
    recovered = patching.scale.recovered(patched).double().cpu().numpy()  # [sender batch]
    return _finding(patching, where, senders, recovered, str(mlps))


@dataclass(frozen=True)
class Sender:
    """A head, or a layer's MLP where `head` is None."""

    layer: int
    head: int | None

    @property
    def name(self) -> str:
        return f"L{self.layer} MLP" if self.head is None else f"L{self.layer}H{self.head}"

    @torch.no_grad()
    def change(self, subject: Subject, base: ActivationCache, other: ActivationCache) -> Stream:
        """What changes in the residual stream of the base run with its output of the other run; a norm that follows
        attention sees the other heads as they are.
        """
        if self.head is None:
            return other["mlp_out", self.layer] - base["mlp_out", self.layer]
        heads, norm = base["result", self.layer], output_norm(subject, self.layer)
        difference = other["result", self.layer][:, :, self.head] - heads[:, :, self.head]
        if norm is None:
            return difference
        bias, before = subject.model.block(self.layer).attn.o.bias, heads.sum(dim=2)
        before = before if bias is None else before + bias
        return norm(before + difference, NO_TAP) - norm(before, NO_TAP)


@dataclass(frozen=True)
class Receiver:
    """A receiver: the `q`, `k` or `v` of a head, `mlp_out` of a layer, or the `logits`."""

    kind: str
    layer: int
    head: int | None = None

    @classmethod
    def parse(cls, subject: Subject, text: str) -> "Receiver":
        """Raises ConfigError for one that the model does not have, SubjectError where there are no paths."""
        needs_sum(subject, "path patching")
        cfg = subject.cfg
        match = re.fullmatch(r"L(\d+)(?:H(\d+)\.([qkv])|[ .]?MLP)", text.strip(), flags=re.IGNORECASE)
        if text.strip().lower() == "logits":
            return cls("logits", cfg.n_layers)
        if match and int(match[1]) < cfg.n_layers:
            if match[2] is None and cfg.d_mlp is not None:
                return cls("mlp_out", int(match[1]))
            kind = (match[3] or "").lower()
            if kind and int(match[2]) < (cfg.n_heads if kind == "q" else cfg.kv_heads):
                return cls(kind, int(match[1]), int(match[2]))
        last = cfg.n_layers - 1
        mlps = f", L0 MLP to L{last} MLP" if cfg.d_mlp is not None else ""
        raise ConfigError(
            f"{subject.name} has no receiver {text!r}: write L0H0.q to L{last}H{cfg.n_heads - 1}.q, L0H0.k or L0H0.v "
            f"to L{last}H{cfg.kv_heads - 1}.k or .v{mlps}, or logits"
        )

    @property
    def name(self) -> str:
        if self.kind == "logits":
            return "logits"
        return f"L{self.layer} MLP" if self.head is None else f"L{self.layer}H{self.head}.{self.kind}"

    def stream(self, subject: Subject) -> tuple[str, int]:
        """The residual stream that it reads."""
        if self.kind == "logits":
            return "resid_post", self.layer - 1
        return "resid_mid" if self.kind == "mlp_out" and not subject.cfg.parallel else "resid_pre", self.layer

    def senders(self, subject: Subject) -> list[Sender]:
        """All senders into that stream, in order. Raises ConfigError if there is none."""
        cfg = subject.cfg
        last = self.layer + (self.stream(subject)[0] == "resid_mid")  # it reads the heads of its own layer
        heads = [Sender(layer, head) for layer in range(last) for head in range(cfg.n_heads)]
        mlps = [Sender(layer, None) for layer in range(self.layer) if cfg.d_mlp is not None]
        if not heads:
            raise ConfigError(f"no head and no MLP comes before {self.name}: choose a receiver in a later layer")
        return sorted([*heads, *mlps], key=lambda sender: (sender.layer, sender.head is None, sender.head))


def _recorded(subject: Subject, where: Receiver) -> list[Key]:
    """The outputs of the senders, and the residual stream that the receiver reads."""
    kinds = ("result", "mlp_out") if subject.cfg.d_mlp is not None else ("result",)
    return [*((kind, layer) for kind in kinds for layer in range(subject.cfg.n_layers)), where.stream(subject)]


def _patched(
    patching: Patching, run: PatchedRun, where: Receiver, senders: Sequence[Sender], through: Through
) -> Float[Tensor, "sender batch"]:
    """The number of one run for each sender, in groups that fit one batch."""
    size = max(1, STACK // run.tokens.numel())
    chunks = [senders[i : i + size] for i in range(0, len(senders), size)]
    return torch.cat([_answers(patching, run, where, through(patching.subject, where, some, run)) for some in chunks])


def _direct_inputs(
    subject: Subject,
    where: Receiver,
    senders: Sequence[Sender],
    run: PatchedRun,
) -> Input:
    """The receiver's input when all else is frozen: its stream changes by the change of the sender's output alone, so
    one batched run gives it for all senders.
    """
    stream = where.stream(subject)
    changed = torch.stack([run.old[stream] + sender.change(subject, run.old, run.new) for sender in senders])
    rows = changed.flatten(0, 1)
    if where.kind == "logits":
        return subject.unembed(rows[:, run.read]).unflatten(0, (len(senders), -1))
    site = (where.kind, where.layer)
    many = run.tokens.repeat(len(senders), 1)
    _, values = subject.run(many, record=[site], edits=[Patch(stream, value=rows)], at=slice(0, 0))
    return values[site].unflatten(0, (len(senders), -1))


def _inputs_through_mlps(
    subject: Subject,
    where: Receiver,
    senders: Sequence[Sender],
    run: PatchedRun,
) -> Input:
    """The receiver's input when heads are frozen and MLPs are recomputed: one run for each sender."""
    site = (where.kind, where.layer)
    heads = [Patch(("result", layer), value=run.old["result", layer]) for layer in range(subject.cfg.n_layers)]
    inputs = []
    for sender in senders:
        kind = "mlp_out" if sender.head is None else "result"
        sent = Patch((kind, sender.layer), value=run.new[kind, sender.layer], head=sender.head)
        record = [] if where.kind == "logits" else [site]
        logits, values = subject.run(run.tokens, record=record, edits=[*heads, sent], at=run.read)
        inputs.append(logits if where.kind == "logits" else values[site])
    return torch.stack(inputs)


def _answers(patching: Patching, run: PatchedRun, where: Receiver, inputs: Input) -> Float[Tensor, "sender batch"]:
    """The number of this run, with only the receiver's input replaced."""
    if where.kind == "logits":
        return patching.scale.of(patching.scale.chosen(inputs), run.number)
    edits = [Patch((where.kind, where.layer), value=value, head=where.head) for value in inputs]
    return patching.of_run(run, edits)


# ---------------------------------------------------------------------- the finding


def _finding(
    patching: Patching,
    where: Receiver,
    senders: Sequence[Sender],
    recovered: Float[np.ndarray, "sender batch"],
    mlps: str,
) -> Finding:
    subject, pair, direction, metric = patching.subject, patching.pair, patching.direction, patching.scale.name
    values = recovered.mean(axis=1)
    names = [sender.name for sender in senders]
    denoise = direction == "denoise"
    best = int(values.argmax() if denoise else values.argmin())
    rows = [
        {"sender": name, "recovered": float(value), "per_example": each.tolist()}
        for name, value, each in zip(names, values, recovered, strict=True)
    ]
    effect = f"{'restores' if denoise else 'leaves'} {of_the_gap(float(values[best]))}"
    return subject.finding(
        "path_patching",
        f"{pair.title}: the path {names[best]} -> {where.name} {effect} of the {metric} gap",
        {
            **pair.facts,
            "receiver": where.name,
            "mlps": mlps,
            "direction": str(direction),
            "metric": metric,
            "baselines": patching.scale.baselines,
            "senders": rows,
            "largest": {"sender": names[best], "recovered": float(values[best])},
            "critical": [row["sender"] for row in rows if is_critical(row["recovered"], direction)],
        },
        _panels(subject, where, senders, values, direction),
        about=ABOUT + pair.about,
        tables=[
            effects_table(
                by_effect(zip(names, values.tolist(), strict=True), direction)[:SHOWN],
                direction,
                title=f"Senders to {where.name} by effect",
                column="sender",
                caption=f"Share of the gap recovered when only the path from this sender to {where.name} is patched.",
            )
        ],
    )


def _panels(
    subject: Subject,
    where: Receiver,
    senders: Sequence[Sender],
    values: Float[np.ndarray, "sender"],
    direction: Direction,
) -> tuple[Panel, Panel]:
    """The grid of senders, and the same as bars."""
    cfg = subject.cfg
    columns = (*(f"H{head}" for head in range(cfg.n_heads)), *(["MLP"] if cfg.d_mlp is not None else []))
    grid = np.full((cfg.n_layers, len(columns)), np.nan)
    for sender, value in zip(senders, values, strict=True):
        grid[sender.layer, -1 if sender.head is None else sender.head] = value
    in_grid = RECOVERED.panel(
        "paths",
        [Axis("layer", tuple(range(cfg.n_layers)), "layer of the sender"), Axis("sender", columns, "sender")],
        grid,
        caption=f"Share of the gap recovered when one path to {where.name} is patched, for every sender. Rows are "
        "layers, layer 0 on top; columns are heads and the MLP. Blue = towards the clean run, orange = away from it; "
        "grey: the sender does not come before the receiver.",
        title=f"paths to {where.name}",
    )
    in_a_row = replace(
        in_grid,
        name="in a row",
        axes=(Axis("sender", tuple(sender.name for sender in senders), "sender"),),
        values=values,
        caption="The same senders in the order in which they write. Bars that reach the dashed line move the metric "
        "by at least half of the gap between the two runs.",
        view="bars",
        marks=(half_way(direction),),
    )
    return in_grid, in_a_row
