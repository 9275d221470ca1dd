"""The attention lens: where each head looks, for chosen inputs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.errors import ConfigError, UnknownNameError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Mark, Panel
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.reading.logit_attribution import attribution
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject

MANY_HEADS = 32  # above this, a report shows the heads that add most to the answer
SHOWN_HEADS = 8


def attention(
    subject: str | Run | Subject, inputs: Sequence[str], heads: Sequence[str] = (), *, runs_dir: str | None = None
) -> Finding:
    """Attention of every head in every layer on each input, the model's own answer included.

    With a task, each input (`123+456`) is completed by the model's greedy answer; the axes are labelled
    `token_position` over what the model reads. One panel for each input, `attention <input>` [layer head query key]:
    the share of a query's attention on a key, 0 = none, 1 = all of it; a key that the causal mask hides is NaN. One
    panel `where answers look` [layer head part]: the mean share that the answer positions put on each part of the
    sequence, over the inputs; not for free text. `heads` names the only ones to show, `L5H1`; the panels are then
    [head query key]. Facts: for each input its text, what the model says and, with a task,
    the right answer.

    Raises VocabularyError for an input that is not a prompt of the task, ConfigError without inputs, UnknownNameError
    for a head that there is not.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    if not inputs:
        raise ConfigError("the attention lens needs at least one input, such as --input 123+456")
    names = [f"L{layer}H{head}" for layer in range(subject.cfg.n_layers) for head in range(subject.cfg.n_heads)]
    for name in heads:
        if name not in names:
            raise UnknownNameError("head", name, names)
    panels, answers, looks = [], list[dict[str, str | None]](), []
    for text in inputs:
        prompt = subject.lay_out(text)
        logits, cache = subject.run(prompt.tokens, record=[("pattern", layer) for layer in range(subject.cfg.n_layers)])
        pattern = np.stack([cache["pattern", layer][0].double().cpu().numpy() for layer in range(subject.cfg.n_layers)])
        panel = _map(subject, text, pattern, prompt.labels)
        panels.append(_only(panel, [names.index(name) for name in heads], heads) if heads else panel)
        if subject.has_task:
            looks.append(_mass(subject, pattern))
            answers.append({"input": text, "got": prompt.got, "expected": prompt.expected})
        else:
            answers.append({"input": text, "got": subject.to_string(logits[0, -1:].argmax(dim=-1))})
    if looks:
        panels.append(_look_panel(subject, np.mean(looks, axis=0)))
    return Finding(
        kind="attention",
        claim=f"attention of {subject.cfg.n_layers} x {subject.cfg.n_heads} heads on {', '.join(inputs)}",
        facts={"subject": subject.name, "inputs": answers},
        panels=tuple(panels),
        provenance={"subject": subject.name, "weights_sha256": subject.weights_sha256},
    )


def _map(
    subject: Subject, text: str, pattern: Float[np.ndarray, "layer head query key"], labels: tuple[str, ...]
) -> Panel:
    if subject.cfg.causal:
        hidden = np.triu(np.ones(pattern.shape[-2:], dtype=bool), k=1)
        pattern = np.where(hidden, np.nan, pattern)
    return Panel(
        name=f"attention {text}",
        title=text,
        axes=(
            *_heads(subject),
            Axis("query", labels, "query: the position that looks"),
            Axis("key", labels, "key: the position looked at"),
        ),
        values=pattern,
        unit="share of the query's attention",
        zero="looks elsewhere",
        one="looks only here",
        view="heatmap",
        scale="unit",
        beside="attention",
        marks=(Mark(subject.task.prompt_length - 0.5, "input | output", "xy"),) if subject.has_task else (),
    )


def _only(panel: Panel, places: list[int], names: Sequence[str]) -> Panel:
    """The panel of some heads, numbered through all layers."""
    axes = (Axis("head", tuple(names)), *panel.axes[2:])
    return replace(panel, axes=axes, values=panel.values.reshape(-1, *panel.values.shape[2:])[places])


def _mass(subject: Subject, pattern: Float[np.ndarray, "layer head query key"]) -> Float[np.ndarray, "layer head part"]:
    answer_rows = pattern[:, :, subject.task.answer_slice]
    parts = [answer_rows[..., part].sum(-1).mean(-1) for part in subject.task.parts.values()]
    return np.stack(parts, axis=-1)


def _look_panel(subject: Subject, mass: Float[np.ndarray, "layer head part"]) -> Panel:
    return Panel(
        name="where answers look",
        axes=(*_heads(subject), Axis("part", tuple(subject.task.parts), "part of the sequence")),
        values=mass,
        unit="mean share of attention",
        zero="never looked at",
        one="all attention",
        view="bars",
        scale="unit",
    )


def _heads(subject: Subject) -> tuple[Axis, Axis]:
    return (
        Axis("layer", tuple(range(subject.cfg.n_layers))),
        Axis("head", tuple(range(subject.cfg.n_heads))),
    )


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """What a report asks: the compared prompts; in a model with many heads, those that add most to the answer."""
    if subject.cfg.n_layers * subject.cfg.n_heads <= MANY_HEADS:
        return {"inputs": prompts.compared}
    parts = attribution(subject, [prompts.clean])["parts"]
    heads = [part for part in parts if re.fullmatch(r"L\d+H\d+", part["component"])]
    largest = sorted(heads, key=lambda part: -abs(part["contribution"]))[:SHOWN_HEADS]
    return {"inputs": prompts.compared, "heads": [str(part["component"]) for part in largest]}
