"""The logit lens: the unembedding applied to the residual stream after the embedding and after every block."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.arguments import Count, Folder, checked_arguments
from algoscope.core.errors import ConfigError, VocabularyError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.numbers import decimals
from algoscope.core.panel import Axis, Label, Panel
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.measures import PROBABILITY, Measure
from algoscope.networks.evaluation import kl_divergence
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.prompt import Prompt
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts, Token, texts_of

LISTED = 5  # tokens at each layer and position, where nothing else is said
FINAL = "the final prediction"
GRIDS: dict[str, tuple[str, Measure, str]] = {  # title, measure, and the first sentence of the caption
    "probability": (
        "probability of the target",
        replace(PROBABILITY, key="probability"),
        "The top token after the embedding and after each block, at each position, and the probability of the target.",
    ),
    "rank": (
        "rank of the target",
        Measure("tokens before it", "it is first", scale="log", key="rank"),
        "How many tokens have a larger logit than the target: 0 = it is the top token.",
    ),
    "entropy": (
        "entropy of the prediction",
        Measure("nats of entropy", "certain", key="entropy"),
        "Entropy of the predicted distribution in nats: 0 = certain, the top of the scale = all tokens equally likely.",
    ),
    "kl": (
        "KL(final || lens)",
        Measure("nats from the final prediction", FINAL, key="kl"),
        "Kullback-Leibler divergence of the prediction from the final one, in nats: 0 = the same prediction.",
    ),
    "difference": (
        "logit difference, target - rival",
        Measure("logits", "equal logits", scale="signed", key="difference"),
        "The logit of the target minus that of the rival: blue = the target's is larger, orange = the rival's.",
    ),
}
ABOUT = (
    "The logit lens applies the final norm and the unembedding to the residual stream after the embedding and after "
    "every block, as if it were the last one. The target is the model's final prediction, at the answer positions of "
    "a task the right token; the rival is the other token with the largest final logit. A target that is not the top "
    "token in an early layer may still be represented there, in directions that the unembedding does not read."
)

Chances = Float[Tensor, "pos d_vocab"]  # logarithms of probabilities, in float64
Chosen = Int[Tensor, "pos"]
Grid = Float[np.ndarray, "layer pos"]


@checked_arguments
@measurement
def logit(
    subject: AnyModel,
    inputs: Texts,
    *,
    target: Token | None = None,
    rival: Token | None = None,
    top: Count | None = None,
    runs_dir: Folder = None,
) -> Finding:
    """Apply the final norm and the unembedding to the residual stream after the embedding and after every block.

    logits = W_U norm(stream) + b_U. With a task, each input is completed by the model's own greedy answer. The target
    at a position is the model's final prediction there, and at the answer positions of a task the right token; the
    rival is the other token with the largest final logit. Probabilities are computed in float64.

    Args:
        subject: a model, by name or opened.
        inputs: prompts of the task, or texts, one or several.
        target: one token that is the target at all positions: its text, or its id.
        rival: one token that is the rival at all positions: its text, or its id.
        top: how many tokens are listed at each layer and position; by default 5, or all of a smaller vocabulary.
        runs_dir: where run folders are looked for; by default the usual place.

    Returns:
        A finding with five panels [layer position] for each input, the first row being the embedding (with learned
        positions added): `probability ...` of the target, 0 = ruled out, 1 = certain; `rank ...`, how many tokens rank
        above the target, 0 = it is the top token (of equal logits the lower id is first); `entropy ...` of the
        prediction in nats, 0 = certain, log(d_vocab) = all tokens equally likely; `kl ...`, KL(final || lens) in nats,
        0 = the same prediction; `difference ...`, the target's logit minus the rival's. And by layer, over the answer
        positions of a task (all positions of a text) of all inputs: `agreement by layer`, the share at which the top
        token is the final one, and `mean kl by layer`.

        Facts: `agreement` and `mean_kl` [layer], and for the first input `tokens`, `layers`, `target` and `rival` (by
        position), `first_answer` (the position that predicts the first token of the answer), `readable_after` (the
        layer from which the target is the top token at every answer position, None if it is not so after the last
        block), and [layer][position] lists `top` ({token, probability}, best first), `probability`, `rank`, `entropy`,
        `kl`, `difference`. With several inputs, `inputs` holds these facts for each.

    Raises:
        ConfigError: without inputs, or for a `top` outside the vocabulary.
        VocabularyError: for a text that cannot be read, and for a target or a rival that is not one token.

    Source:
        nostalgebraist, "interpreting GPT: the logit lens" (2020).

    Example:
        >>> import algoscope as ag
        >>> ag.lenses.logit("planted:induction", "qwertyq", target="w")["readable_after"]
        1
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    texts = texts_of(inputs)
    if not texts:
        raise ConfigError("the logit lens needs at least one input, such as --input 123+456")
    top = min(LISTED, subject.cfg.n_logits) if top is None else top
    if not 1 <= top <= subject.cfg.n_logits:
        raise ConfigError(f"top is {top}: choose from 1 to the {subject.cfg.n_logits} tokens of {subject.name}")
    named = target_and_rival(subject, target, rival)
    readings = [_read(subject, text, named, top) for text in texts]
    agreement, mean_kl = (
        np.concatenate([values[:, one.counted] for values, one in zip(grids, readings, strict=True)], axis=1).mean(
            axis=1
        )
        for grids in ([one.agrees for one in readings], [one.grids["kl"] for one in readings])
    )
    documents = [one.document() for one in readings]
    grids = [_grid(one, name, subject.cfg.n_logits) for name in GRIDS for one in readings]
    return subject.finding(
        "logit",
        "; ".join(one.claim() for one in readings),
        {
            **documents[0],
            "agreement": agreement.tolist(),
            "mean_kl": mean_kl.tolist(),
            **({"inputs": documents} if len(documents) > 1 else {}),
        },
        [*grids, *_by_layer(readings[0].layers, agreement, mean_kl)],
        about=ABOUT,
        tables=[_table(readings[0])],
    )


def target_and_rival(subject: Subject, target: Token | None, rival: Token | None) -> tuple[int | None, int | None]:
    """Ids of the given target and rival, or None. Raises VocabularyError if one is not a single token, or both are the
    same.
    """
    tokens = [None if token is None else subject.to_single_token(token) for token in (target, rival)]
    if tokens[0] is not None and tokens[0] == tokens[1]:
        raise VocabularyError(f"target and rival are both '{subject.text.token(tokens[0])}': give two different tokens")
    return tokens[0], tokens[1]


@dataclass(frozen=True)
class _Reading:
    """The results for one input. Grids are [layer pos]; `counted` are the positions that summaries use."""

    text: str
    has_task: bool
    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    layers: tuple[Label, ...]
    first_answer: int
    target: tuple[str, ...]
    rival: tuple[str, ...]
    top: list[list[list[dict[str, Any]]]]
    agrees: Grid
    grids: dict[str, Grid]

    @property
    def counted(self) -> slice:
        return slice(self.first_answer, None) if self.has_task else slice(None)

    @property
    def readable_after(self) -> Label | None:
        """The layer from which the target is the top token at every answer position."""
        there = (self.grids["rank"][:, self.first_answer :] == 0).all(axis=1)
        since = len(there) - int(np.logical_and.accumulate(there[::-1]).sum())
        return self.layers[since] if since < len(there) else None

    def document(self) -> dict[str, Any]:
        """The JSON document of this input."""
        whole = {name: values.tolist() for name, values in self.grids.items()}
        whole["rank"] = self.grids["rank"].astype(int).tolist()
        return {
            "input": self.text,
            "tokens": list(self.tokens),
            "layers": list(self.layers),
            "first_answer": self.first_answer,
            "target": list(self.target),
            "rival": list(self.rival),
            "readable_after": self.readable_after,
            "top": self.top,
            **whole,
        }

    def claim(self) -> str:
        target = f"'{''.join(self.target[self.first_answer :])}'"
        where = "at every answer position" if self.has_task else "at the last position"
        after = self.readable_after
        if after is None:
            return f"{self.text}: {target} is not the top prediction {where}, not even after the last block"
        when = "from the embedding on" if after == "embed" else f"from layer {after} on"
        return f"{self.text}: {target} is the top prediction {where} {when}"


def _read(subject: Subject, text: str, named: tuple[int | None, int | None], top: int) -> _Reading:
    prompt, n = subject.lay_out(text), subject.cfg.n_layers
    logits, cache = subject.run(
        prompt.tokens, record=[("resid_pre", 0), *(("resid_post", layer) for layer in range(n))]
    )
    streams = [cache["resid_pre", 0], *(cache["resid_post", layer] for layer in range(n))]
    last = logits[0].cpu().double()
    target = _targets(prompt, last.argmax(dim=-1)) if named[0] is None else _everywhere(named[0], last)
    others = last.scatter(-1, target[:, None], -torch.inf)
    rival = others.argmax(dim=-1) if named[1] is None else _everywhere(named[1], last)
    rows: dict[str, list[Tensor]] = {name: [] for name in (*GRIDS, "agrees")}
    tops = []
    for stream in streams:
        raw = subject.unembed(stream)[0].cpu().double()
        chances = raw.log_softmax(dim=-1)
        chance = chances.exp()
        first = _first(raw, top)
        tops.append([_listed(subject, *row) for row in zip(first, chance, strict=True)])
        rows["agrees"].append((first[:, 0] == last.argmax(dim=-1)).double())
        rows["probability"].append(_of(chance, target))
        rows["rank"].append(_rank(raw, target))
        rows["entropy"].append(-(chance * chances).sum(dim=-1))
        rows["kl"].append(kl_divergence(last, raw))
        rows["difference"].append(_of(raw, target) - _of(raw, rival))
    grids = {name: torch.stack(each).numpy() for name, each in rows.items()}
    return _Reading(
        text=text,
        has_task=subject.has_task,
        tokens=prompt.words,
        labels=prompt.labels,
        layers=("embed", *range(n)),
        first_answer=prompt.first_answer,
        target=tuple(subject.to_str_tokens(target)),
        rival=tuple(subject.to_str_tokens(rival)),
        top=tops,
        agrees=grids.pop("agrees"),
        grids=grids,
    )


def _targets(prompt: Prompt, predicted: Chosen) -> Chosen:
    """The model's final predictions, and at a task's answer positions the right tokens."""
    if prompt.right is None:
        return predicted
    return torch.cat([predicted[: prompt.first_answer], torch.tensor(prompt.right)])


def _everywhere(token: int, logits: Chances) -> Chosen:
    return torch.full((len(logits),), token)


def _of(values: Chances, tokens: Chosen) -> Float[Tensor, "pos"]:
    return values.gather(-1, tokens[:, None])[:, 0]


def _rank(logits: Chances, tokens: Chosen) -> Float[Tensor, "pos"]:
    """How many tokens rank above this one; of equal logits the lower id is first, as in an argmax."""
    logit = _of(logits, tokens)[:, None]
    lower = torch.arange(logits.shape[-1]) < tokens[:, None]
    return ((logits > logit) | ((logits == logit) & lower)).sum(dim=-1).double()


def _first(logits: Chances, n: int) -> Int[Tensor, "pos n"]:
    """The top `n` tokens of each position, equal logits by token id."""
    remaining, top = logits.clone(), []
    for _ in range(n):
        top.append(remaining.argmax(dim=-1))
        remaining.scatter_(-1, top[-1][:, None], -torch.inf)
    return torch.stack(top, dim=-1)


def _listed(subject: Subject, first: Int[Tensor, "n"], chance: Float[Tensor, "d_vocab"]) -> list[dict[str, Any]]:
    return [{"token": subject.text.token(i), "probability": float(chance[i])} for i in first.tolist()]


# ---------------------------------------------------------------------- table and panels


def _table(reading: _Reading) -> ResultTable:
    """The top tokens at the answer positions, by layer."""
    places = range(reading.first_answer, len(reading.tokens))
    rows = []
    for layer, top, chances in zip(reading.layers, reading.top, reading.grids["probability"], strict=True):
        cells = (f"'{top[i][0]['token']}' (target {decimals(chances[i], 2)})" for i in places)
        rows.append((layer, *cells))
    return ResultTable(
        title=f"Top token by layer: {reading.text}",
        columns=("layer", *(reading.labels[i] for i in places)),
        rows=tuple(rows),
        caption="The token with the largest logit after the embedding and after each block, and in brackets the "
        "probability of the target. Columns are the positions that predict the answer, labelled with their input "
        "token.",
    )


def _grid(reading: _Reading, name: str, d_vocab: int) -> Panel:
    """One quantity [layer position] of one input, with the top tokens in the cells."""
    values = reading.grids[name]
    first, more = (np.empty(values.shape, dtype=object) for _ in range(2))
    for at in np.ndindex(*values.shape):
        top = reading.top[at[0]][at[1]]
        first[at] = top[0]["token"]
        more[at] = "\n".join(f"{one['probability']:.4f}  '{one['token']}'" for one in top)
    title, measure, caption = GRIDS[name]
    highest = {"rank": d_vocab - 1.0, "entropy": math.log(d_vocab)}.get(name, 0.0)
    return measure.panel(
        f"{name} {reading.text}",
        (
            Axis("layer", reading.layers, "read after layer"),
            Axis("position", reading.labels, "position: its input token"),
        ),
        values,
        caption=f"{caption} Cells show the top token; hovering shows the next best. Layer 0 is on top.",
        title=f"{title}: {reading.text}",
        beside=name,
        span=(0.0, highest),
        words=first,
        hover=more,
    )


def _by_layer(
    layers: tuple[Label, ...], agreement: Float[np.ndarray, "layer"], mean_kl: Float[np.ndarray, "layer"]
) -> Iterator[Panel]:
    """Agreement with the final prediction, and divergence from it, for each layer."""
    share = Measure("share of positions", "none agree with the final token", "all agree", "unit")
    over = "over the answer positions of a task, or all positions of a text"
    for name, measure, values, caption in (
        ("agreement by layer", share, agreement, f"Share of positions whose top token is the final one, {over}."),
        ("mean kl by layer", GRIDS["kl"][1], mean_kl, f"Mean KL(final || lens) in nats, {over}."),
    ):
        axes = [Axis("layer", layers, "read after layer")]
        yield replace(measure, key="values").panel(name, axes, values, caption=caption, view="lines")


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """What a report asks: the clean prompt."""
    return {"inputs": [prompts.clean]}
