"""The attention lens: the attention pattern of each head, for chosen inputs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import ConfigError, UnknownNameError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Mark, Panel
from algoscope.lenses.heads.attention_targets import as_shares
from algoscope.lenses.heads.head_panels import ATTENTION, MOST_ROWS, head_axes, head_names
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.reading.logit_attribution import attribution
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts, texts_of

MANY_HEADS = 32  # above this, a report shows only the heads that add most to the answer
SHOWN_HEADS = 8

ABOUT = (
    "At each position (the query) every attention head distributes a total of 1 over the visible positions (the "
    "keys). L0H0 is head 0 of layer 0. A pattern shows where a head attends, not whether this affects the answer; "
    "ablation and patching show that."
)


@checked_arguments
@measurement
def attention(subject: AnyModel, inputs: Texts, heads: Texts = None, *, runs_dir: Folder = None) -> Finding:
    """Show the attention pattern of every head on each input, the model's own answer included.

    With a task, each input (`123+456`) is completed by the model's greedy answer.

    Args:
        subject: a model, by name or opened.
        inputs: one text or several.
        heads: the heads to show, such as L5H1; by default all.
        runs_dir: where runs are.
    Returns:
        A finding with a panel `attention <input>` for each input [layer head query key], or [head query key] of chosen
        heads: the share of the query's attention on the key, 0 = none, 1 = all of it, NaN where the causal mask hides
        the key; axes are labelled `token_position`. With a task, a panel `where answers look` [layer head part]: the
        mean share that the answer positions put on each part of the sequence, over the inputs. Fact `inputs`: each
        text, the model's answer (`got`) and, with a task, the right answer (`expected`).
    Raises:
        ConfigError: for no inputs.
        VocabularyError: for an input that is not a prompt of the task.
        UnknownNameError: for a head that the model does not have.

    Example:
        >>> import algoscope as ag
        >>> heads = ag.lenses.attention("planted:induction", "abcab")
        >>> pattern = heads["attention abcab"].values        # [layer head query key]
        >>> round(float(pattern[1, 0, 4, 2]), 2)              # the last b attends to the token after the first b
        1.0
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    texts, chosen = texts_of(inputs), texts_of(heads)
    if not texts:
        raise ConfigError("the attention lens needs at least one input, such as --input 123+456")
    names = head_names(subject.cfg)
    for name in chosen:
        if name not in names:
            raise UnknownNameError("head", name, names)
    patterns, labels, answers = dict[str, np.ndarray](), dict[str, tuple[str, ...]](), list[dict[str, str | None]]()
    layers = range(subject.cfg.n_layers)
    for text in texts:
        prompt = subject.lay_out(text)
        logits, cache = subject.run(prompt.tokens, record=[("pattern", layer) for layer in layers])
        patterns[text] = np.stack([cache["pattern", layer][0].double().cpu().numpy() for layer in layers])
        labels[text] = prompt.labels
        if subject.has_task:
            answers.append({"input": text, "got": prompt.got, "expected": prompt.expected})
        else:
            answers.append({"input": text, "got": subject.to_str_tokens(logits[0, -1:].argmax(dim=-1))[0]})
    caption = _caption(subject, len(texts), chosen)
    panels = [_pattern_panel(subject, text, pattern, labels[text], caption) for text, pattern in patterns.items()]
    if chosen:
        panels = [_of_heads(panel, [names.index(name) for name in chosen], chosen) for panel in panels]
    if subject.has_task:
        by_part = np.mean([_share_by_part(subject, pattern) for pattern in patterns.values()], axis=0)
        panels.append(_part_panel(subject, by_part))
        table = _part_table(subject, by_part, chosen or names)
    else:
        table = _key_table(patterns, labels, names, chosen or names)
    return subject.finding(
        "attention",
        f"attention of {subject.cfg.n_layers} x {subject.cfg.n_heads} heads on {', '.join(texts)}",
        {"inputs": answers},
        panels,
        about=ABOUT,
        tables=[table],
    )


# ---------------------------------------------------------------------- panels


def _caption(subject: Subject, n_texts: int, chosen: Sequence[str]) -> str:
    several = " on each input, side by side" if n_texts > 1 else ""
    text = (
        f"Attention of {'the chosen heads' if chosen else 'each head'}{several}. Rows are queries, columns are keys; "
    )
    text += "dark = much attention (fixed scale 0 to 1), so that figures can be compared cell by cell. "
    text += "Labels are tokens with their positions."
    if subject.cfg.attn_rate < 1:
        text += " The model adds a constant at every key (attention rate below 1), so rows do not sum to 1."
    if subject.cfg.causal:
        text += " Grey cells are keys after the query, which the causal mask hides."
    if subject.has_task:
        text += " The dashed lines separate the prompt from the answer that the model wrote."
    return text


def _pattern_panel(
    subject: Subject,
    text: str,
    pattern: Float[np.ndarray, "layer head query key"],
    labels: tuple[str, ...],
    caption: str,
) -> Panel:
    if subject.cfg.causal:
        hidden = np.triu(np.ones(pattern.shape[-2:], dtype=bool), k=1)
        pattern = np.where(hidden, np.nan, pattern)
    return Panel(
        name=f"attention {text}",
        title=text,
        axes=(*head_axes(subject.cfg), Axis("query", labels), Axis("key", labels)),
        values=pattern,
        view="heatmap",
        beside="attention",
        caption=caption,
        marks=(Mark(subject.task.prompt_length - 0.5, "input | output", "xy"),) if subject.has_task else (),
        **ATTENTION,
    )


def _of_heads(panel: Panel, indices: list[int], names: Sequence[str]) -> Panel:
    """The panel of chosen heads, numbered across layers."""
    axes = (Axis("head", tuple(names)), *panel.axes[2:])
    return replace(panel, axes=axes, values=panel.values.reshape(-1, *panel.values.shape[2:])[indices])


def _share_by_part(
    subject: Subject, pattern: Float[np.ndarray, "layer head query key"]
) -> Float[np.ndarray, "layer head part"]:
    """The mean share that the answer positions put on each part of the sequence."""
    answer_rows = as_shares(torch.from_numpy(pattern), subject.cfg).numpy()[:, :, subject.task.answer_slice]
    parts = [answer_rows[..., part].sum(-1).mean(-1) for part in subject.task.all_parts.values()]
    return np.stack(parts, axis=-1)


def _part_panel(subject: Subject, by_part: Float[np.ndarray, "layer head part"]) -> Panel:
    return Panel(
        name="where answers look",
        title="attention of the answer positions by input part",
        axes=(*head_axes(subject.cfg), Axis("part", tuple(subject.task.all_parts), "part of the sequence")),
        values=by_part,
        view="bars",
        caption="The same, summed by part. The share of attention that the answer positions (those that predict a "
        "token of the answer) put on each part of the sequence, mean over those positions and the inputs shown. The "
        "bars of a head add up to 1.",
        **ATTENTION,
    )


# ---------------------------------------------------------------------- tables


def _part_table(subject: Subject, by_part: Float[np.ndarray, "layer head part"], shown: Sequence[str]) -> ResultTable:
    parts = tuple(subject.task.all_parts)
    shares = dict(zip(head_names(subject.cfg), by_part.reshape(-1, len(parts)), strict=True))
    rows = [(name, parts[int(shares[name].argmax())], round(float(shares[name].max()), 3)) for name in shown]
    return ResultTable(
        "Where the answer positions attend most",
        ("head", "part of the sequence", "share"),
        _largest(rows),
        "The part that gets the largest mean share of the answer positions' attention, over the inputs shown.",
    )


def _key_table(
    patterns: Mapping[str, Float[np.ndarray, "layer head query key"]],
    labels: Mapping[str, tuple[str, ...]],
    names: Sequence[str],
    shown: Sequence[str],
) -> ResultTable:
    rows = []
    for text, pattern in patterns.items():
        last = dict(zip(names, pattern[:, :, -1].reshape(len(names), -1), strict=True))
        rows += [
            (text, name, labels[text][int(last[name].argmax())], round(float(last[name].max()), 3)) for name in shown
        ]
    return ResultTable(
        "Where the last position attends most",
        ("input", "head", "key", "share"),
        _largest(rows),
        "The key with the largest share of attention at the last position of the text.",
    )


def _largest(rows: Iterable[tuple[Any, ...]]) -> tuple[tuple[Any, ...], ...]:
    """All rows if they are few; else those with the largest share (the last column)."""
    rows = tuple(rows)
    return rows if len(rows) <= MOST_ROWS else tuple(sorted(rows, key=lambda row: -row[-1])[:MOST_ROWS])


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: the compared prompts; of many heads, those that add most to the answer."""
    if subject.cfg.n_layers * subject.cfg.n_heads <= MANY_HEADS:
        return {"inputs": prompts.compared}
    parts = attribution(subject, [prompts.clean])["parts"]
    heads = [part for part in parts if re.fullmatch(r"L\d+H\d+", part["component"])]
    largest = sorted(heads, key=lambda part: -abs(part["contribution"]))[:SHOWN_HEADS]
    return {"inputs": prompts.compared, "heads": [str(part["component"]) for part in largest]}
