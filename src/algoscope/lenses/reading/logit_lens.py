"""The logit lens: what the model would say if it stopped after the embedding, or after any block."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.errors import ConfigError, VocabularyError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Label, Panel, Scale
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.interventions.contrast_pairs import one_token
from algoscope.networks.evaluation import kl_divergence
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.prompt import Prompt
from algoscope.subjects.subject import Subject

QUANTITIES: dict[str, tuple[str, str, Scale, str, str]] = {  # title, unit, scale, what 0 and 1 mean
    "probability": ("probability of the target", "probability", "unit", "ruled out", "certain"),
    "rank": ("rank of the target", "tokens before it", "log", "it is first", ""),
    "entropy": ("entropy of the prediction", "nats of entropy", "free", "certain", ""),
    "kl": ("KL(final || lens)", "nats from the end", "free", "the same prediction as in the end", ""),
    "difference": ("the target's logit minus the rival's", "logits", "signed", "target and rival alike", ""),
}

Chances = Float[Tensor, "pos d_vocab"]  # logarithms of probabilities, in float64
Chosen = Int[Tensor, "pos"]
Grid = Float[np.ndarray, "layer pos"]


def logit(
    subject: str | Run | Subject,
    inputs: Sequence[str],
    *,
    target: str = "",
    rival: str = "",
    top: int = 5,
    runs_dir: str | None = None,
) -> Finding:
    """Read the residual stream with the final norm and the unembedding, after the embedding and after every block.

        logits = W_U norm(stream) + b_U                              nostalgebraist, "interpreting GPT: the logit lens"

    With a task, each input is completed by the model's own greedy answer. The target at a position is the token that
    the model itself says there in the end, and at the answer positions of a task the right token; the rival is the
    best other token in the end. `target` and `rival` name one token each, for all positions.

    Panels [layer position] for each input, the first row being the embedding (with learned positions added), each with
    the token that is first there in the cell and the `top` first on pointing at it:

    - `probability ...` of the target, 0 = ruled out, 1 = certain;
    - `rank ...` of the target: how many tokens stand before it, 0 = it is first; of equals the lower number is first;
    - `entropy ...` of the prediction in nats, 0 = certain, log(d_vocab) = every token alike;
    - `kl ...`: KL(final || lens) in nats, 0 = the same prediction as in the end;
    - `difference ...`: the target's logit minus the rival's.

    And by layer, over the answer positions of a task (all positions of a text) of all inputs: `agreement by layer`,
    the share at which the first token is that of the end, and `mean kl by layer`. Probabilities are computed in
    float64.

    Facts: `agreement` and `mean_kl` [layer], and for the first input `tokens`, `layers`, `target` and `rival` (by
    position), `first_answer` (the position that predicts the first token of the answer), `readable_after` (the layer
    from which on the target is first at every answer position, None where it is not in the end), and [layer][position]
    lists `top` ({token, probability}, first first), `probability`, `rank`, `entropy`, `kl`, `difference`. Several
    inputs have each such a document in `inputs`.

    Raises ConfigError without inputs or for a `top` outside the vocabulary, VocabularyError for a text that cannot be
    read and for a target or a rival that is not one token.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    if not inputs:
        raise ConfigError("the logit lens needs at least one input, such as --input 123+456")
    if not 1 <= top <= subject.cfg.n_logits:
        raise ConfigError(f"top is {top}: choose from 1 to the {subject.cfg.n_logits} tokens of {subject.name}")
    named = target_and_rival(subject, target, rival)
    looks = [_look(subject, text, named, top) for text in inputs]
    agreement, mean_kl = (
        np.concatenate([values[:, look.counted] for values, look in zip(part, looks, strict=True)], axis=1).mean(axis=1)
        for part in ([look.agrees for look in looks], [look.grids["kl"] for look in looks])
    )
    documents = [look.document() for look in looks]
    by_layer = (
        _line(
            "agreement by layer",
            agreement,
            looks[0].layers,
            "share of positions",
            "nowhere as in the end",
            "all as in the end",
        ),
        _line(
            "mean kl by layer", mean_kl, looks[0].layers, "nats from the end", "the same prediction as in the end", ""
        ),
    )
    return Finding(
        kind="logit",
        claim="; ".join(look.claim() for look in looks),
        facts={
            "subject": subject.name,
            **documents[0],
            "agreement": agreement.tolist(),
            "mean_kl": mean_kl.tolist(),
            **({"inputs": documents} if len(documents) > 1 else {}),
        },
        panels=(*(_map(look, name, subject.cfg.n_logits) for name in QUANTITIES for look in looks), *by_layer),
        provenance={"subject": subject.name, "weights_sha256": subject.weights_sha256},
    )


def target_and_rival(subject: Subject, target: str, rival: str) -> tuple[int | None, int | None]:
    """The tokens that a user names; None for an empty text. Raises VocabularyError where one is not one token, or
    where both are the same.
    """
    found = [one_token(subject, text) if text else None for text in (target, rival)]
    if found[0] is not None and found[0] == found[1]:
        raise VocabularyError(f"target and rival are both {target!r}: name two tokens that can be told apart")
    return found[0], found[1]


@dataclass(frozen=True)
class _Look:
    """One input under the lens. Grids are [layer pos]; `counted` are the positions that summaries read."""

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
        """The layer from which on the target is first at every answer position."""
        there = (self.grids["rank"][:, self.first_answer :] == 0).all(axis=1)
        since = len(there) - int(np.logical_and.accumulate(there[::-1]).sum())
        return self.layers[since] if since < len(there) else None

    def document(self) -> dict[str, Any]:
        """What JSON says of this input."""
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
        said = repr("".join(self.target[self.first_answer :]))
        where = "at every answer position" if self.has_task else "at the last position"
        after = self.readable_after
        if after is None:
            return f"{self.text}: {said} is not first {where}, in no layer to the end"
        when = "from the embedding on" if after == "embed" else f"from layer {after} on"
        return f"{self.text}: {said} is first {where} {when}"


def _look(subject: Subject, text: str, named: tuple[int | None, int | None], top: int) -> _Look:
    prompt, n = subject.lay_out(text), subject.cfg.n_layers
    logits, cache = subject.run(
        prompt.tokens, record=[("resid_pre", 0), *(("resid_post", layer) for layer in range(n))]
    )
    streams = [cache["resid_pre", 0], *(cache["resid_post", layer] for layer in range(n))]
    last = logits[0].cpu().double()
    target = _targets(prompt, last.argmax(dim=-1)) if named[0] is None else _everywhere(named[0], last)
    others = last.scatter(-1, target[:, None], -torch.inf)
    rival = others.argmax(dim=-1) if named[1] is None else _everywhere(named[1], last)
    rows: dict[str, list[Tensor]] = {name: [] for name in (*QUANTITIES, "agrees")}
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
    return _Look(
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
    """What the model predicts in the end, and at a task's answer positions the right tokens."""
    if prompt.right is None:
        return predicted
    return torch.cat([predicted[: prompt.first_answer], torch.tensor(prompt.right)])


def _everywhere(token: int, logits: Chances) -> Chosen:
    return torch.full((len(logits),), token)


def _of(values: Chances, tokens: Chosen) -> Float[Tensor, "pos"]:
    return values.gather(-1, tokens[:, None])[:, 0]


def _rank(logits: Chances, tokens: Chosen) -> Float[Tensor, "pos"]:
    """How many tokens stand before this one; of equals the lower number stands first, as in an argmax."""
    own = _of(logits, tokens)[:, None]
    lower = torch.arange(logits.shape[-1]) < tokens[:, None]
    return ((logits > own) | ((logits == own) & lower)).sum(dim=-1).double()


def _first(logits: Chances, n: int) -> Int[Tensor, "pos n"]:
    """The first `n` tokens of each position, equals in the order of their numbers."""
    left, found = logits.clone(), []
    for _ in range(n):
        found.append(left.argmax(dim=-1))
        left.scatter_(-1, found[-1][:, None], -torch.inf)
    return torch.stack(found, dim=-1)


def _listed(subject: Subject, first: Int[Tensor, "n"], chance: Float[Tensor, "d_vocab"]) -> list[dict[str, Any]]:
    return [{"token": subject.text.token(i), "probability": float(chance[i])} for i in first.tolist()]


# ---------------------------------------------------------------------- panels


def _map(look: _Look, quantity: str, d_vocab: int) -> Panel:
    """One quantity [layer position] of one input, with the tokens that are first."""
    values = look.grids[quantity]
    first, more = (np.empty(values.shape, dtype=object) for _ in range(2))
    for at in np.ndindex(*values.shape):
        listed = look.top[at[0]][at[1]]
        first[at] = listed[0]["token"]
        more[at] = "\n".join(f"{one['probability']:.4f}  {one['token']!r}" for one in listed)
    title, unit, scale, zero, one = QUANTITIES[quantity]
    highest = {"rank": d_vocab - 1.0, "entropy": math.log(d_vocab)}.get(quantity, 0.0)
    return Panel(
        name=f"{quantity} {look.text}",
        title=f"{title}: {look.text}",
        axes=(
            Axis("layer", look.layers, "layer read after"),
            Axis("position", look.labels, "position: the token read there"),
        ),
        values=values,
        unit=unit,
        zero=zero,
        one=one,
        view="heatmap",
        scale=scale,
        beside=quantity,
        quantity=quantity,
        span=(0.0, highest),
        words=first,
        hover=more,
    )


def _line(
    name: str, values: Float[np.ndarray, "layer"], layers: tuple[Label, ...], unit: str, zero: str, one: str
) -> Panel:
    """A number for each layer."""
    return Panel(
        name=name,
        axes=(Axis("layer", layers, "layer read after"),),
        values=values,
        unit=unit,
        zero=zero,
        one=one,
        view="lines",
        scale="unit" if one else "free",
    )


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """What a report asks: the clean prompt."""
    return {"inputs": [prompts.clean]}
