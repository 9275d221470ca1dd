"""Direct logit attribution: the logits that each component of the residual stream adds to the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import ConfigError, VocabularyError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.core.sites import Key, Site
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.measures import ADDED_LOGITS
from algoscope.lenses.reading.logit_lens import target_and_rival
from algoscope.lenses.residual_parts import added_by_heads, is_sum, needs_sum, output_norm
from algoscope.networks.norms import Norm
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.prompt import Prompt
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts, Token, texts_of

Vectors = Float[Tensor, "part d_model"]
BIAS = "attn bias"
CONSTANT = "final bias"
LISTED = 30  # parts in the table
ABOUT = (
    "The last residual stream is the sum of the outputs of the embeddings, the heads and the MLPs. With "
    "the scale of the final norm fixed at its value in the run, logits are linear in that stream, so the logit "
    "difference between the target and its rival is a sum of one contribution per part (direct logit attribution). "
    "These are direct contributions only: effects through later layers show in activation patching."
)


@checked_arguments
@measurement
def attribution(
    subject: AnyModel,
    inputs: Texts,
    *,
    target: Token | None = None,
    rival: Token | None = None,
    runs_dir: Folder = None,
) -> Finding:
    """Split the logit difference target - rival into the contributions of the components of the residual stream.

    The last residual stream is the sum of the embedding, the position embedding, each head's `result`, attention's
    output biases and each MLP's output. With the final norm's scale s frozen at that of the run, the rest is linear, so
    the parts h_i, each centred where the norm centres, add up to the difference:

        contribution_i = (h_i - mean(h_i)) / s . (gamma * (W_U[target] - W_U[rival]))

    and the constant contributions of the final norm's bias and the unembedding's bias are the part `final bias`. Where
    a norm stands between attention and the stream, its scale is that of the run too; where logits are capped, the
    logits of this lens are those before the cap.

    With a task, each input is completed by the model's own greedy answer, every answer position is split, the target is
    the right token and the rival the mean of the task's other ordinals (of the other digits). On a text the last
    position is split, the target is what the model predicts and the rival its runner-up.

    Args:
        subject: a model, by name or opened.
        inputs: prompts of the task, or texts, one or several.
        target: one token that is the target at all positions: its text, or its id.
        rival: one token that is the rival at all positions: its text, or its id.
        runs_dir: where run folders are looked for; by default the usual place.

    Returns:
        A finding with the panels, means over the inputs, `each part` [answer component] and `by layer` [answer layer
        component]: the logits that a component adds to the difference, 0 = nothing, positive = it raises the target.
        Facts, of the first input's first answer position: `position`, `target`, `rivals`, `parts` ({component,
        contribution}), their `sum`, the `logit_difference` of the run, and `largest`, the part of largest magnitude;
        the same for every input and answer position in `answers`.

    Raises:
        ConfigError: without inputs.
        SubjectError: for a model that normalises the stream after each sum.
        VocabularyError: for a text that cannot be read, and for a target or a rival that is not one token.

    Source:
        Elhage et al., A Mathematical Framework for Transformer Circuits (2021).

    Example:
        >>> import algoscope as ag
        >>> ag.lenses.attribution("planted:induction", "qwertyq")["largest"]["component"]
        'L1H0'
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    needs_sum(subject, "logit attribution")
    texts = texts_of(inputs)
    if not texts:
        raise ConfigError("the attribution lens needs at least one input, such as --input 123+456")
    named = target_and_rival(subject, target, rival)
    names = _components(subject)
    splits = [_split(subject, text, named, names) for text in texts]
    documents = [split.document() for answers in splits for split in answers]
    mean = np.mean([[split.contributions for split in answers] for answers in splits], axis=0)
    answers = _answers(splits)
    return subject.finding(
        "attribution",
        _claim(splits, mean, names),
        {**documents[0], "answers": documents},
        [_part_panel(names, answers, mean), _layer_panel(subject, names, answers, mean)],
        about=ABOUT,
        tables=[_table(names, answers, mean)],
    )


@dataclass(frozen=True)
class _Split:
    """The logit difference at one answer position of one input, in parts."""

    text: str
    label: str
    position: int
    target: str
    rivals: tuple[str, ...]
    names: tuple[str, ...]
    contributions: Float[np.ndarray, "component"]
    difference: float

    def document(self) -> dict[str, Any]:
        parts = [
            {"component": name, "contribution": float(value)}
            for name, value in zip(self.names, self.contributions, strict=True)
        ]
        return {
            "input": self.text,
            "position": self.position,
            "target": self.target,
            "rivals": list(self.rivals),
            "parts": parts,
            "sum": float(self.contributions.sum()),
            "logit_difference": self.difference,
            "largest": parts[int(np.abs(self.contributions).argmax())],
        }


def _components(subject: Subject) -> tuple[str, ...]:
    """The parts of the last residual stream, in the order in which they are added, and the constant."""
    cfg = subject.cfg
    names = ["embed", *(["pos_embed"] if Site("pos_embed") in subject.sites else [])]
    for layer in range(cfg.n_layers):
        names += [f"L{layer}H{head}" for head in range(cfg.n_heads)]
        names += [f"L{layer} {BIAS}"] if _has_out_bias(subject) else []
        names += [f"L{layer} MLP"] if cfg.d_mlp is not None else []
    return (*names, *([CONSTANT] if _has_constant(subject) else []))


def _has_constant(subject: Subject) -> bool:
    norm = subject.model.ln_final
    return (isinstance(norm, Norm) and norm.bias is not None) or subject.cfg.head_bias


def _has_out_bias(subject: Subject) -> bool:
    """Whether attention adds more than its heads: the bias of its output, or of the norm that follows."""
    cfg, norm = subject.cfg, output_norm(subject, 0)
    if norm is not None and norm.bias is not None:
        return True
    return cfg.attn_bias if cfg.attn_out_bias is None else cfg.attn_out_bias


def _split(subject: Subject, text: str, named: tuple[int | None, int | None], names: tuple[str, ...]) -> list[_Split]:
    """Every answer position of one input."""
    prompt, cfg = subject.lay_out(text), subject.cfg
    tokens, start = prompt.tokens, prompt.first_answer
    kinds = [
        "result",
        *(["attn_out"] if _has_out_bias(subject) else []),
        *(["mlp_out"] if cfg.d_mlp is not None else []),
    ]
    norm = output_norm(subject, 0)
    kinds += [] if norm is None else [norm.scale_kind]
    whole = [site.name for site in subject.sites if site.kind in ("embed", "pos_embed", "ln_final_scale")]
    record: list[Key] = [*whole, *((kind, layer) for layer in range(cfg.n_layers) for kind in kinds)]
    record += [("resid_post", -1)]
    logits, cache = subject.run(tokens, record=record, at=slice(start, None))
    splits = []
    for number, pos in enumerate(range(start, tokens.shape[1])):
        target, rivals = _compared(subject, prompt, number, logits[0, number].double(), named)
        among = [target, *rivals]
        added = _added(subject, _scaled(subject, _streams(subject, cache, pos), cache, pos), among)[: len(names)]
        final = logits[0, number, among].double()
        if cfg.output_logits_soft_cap is not None:  # before the cap, logits are a sum
            stream = cache["resid_post", -1][0, pos : pos + 1]
            final = _added(subject, _scaled(subject, stream, cache, pos), among).sum(dim=0)
        splits.append(
            _Split(
                text=text,
                label=_label(subject, number, target, rivals),
                position=pos,
                target=subject.text.token(target),
                rivals=tuple(subject.to_str_tokens(torch.tensor(rivals))),
                names=names,
                contributions=(added[:, 0] - added[:, 1:].mean(dim=-1)).cpu().numpy(),
                difference=float(final[0] - final[1:].mean()),
            )
        )
    return splits


def _label(subject: Subject, number: int, target: int, rivals: list[int]) -> str:
    compared = f"'{subject.text.token(target)}'"
    compared += f" against '{subject.text.token(rivals[0])}'" if len(rivals) == 1 else ""
    return f"answer token {number + 1}: {compared}" if subject.has_task else compared


def _compared(
    subject: Subject, prompt: Prompt, number: int, final: Float[Tensor, "d_vocab"], named: tuple[int | None, int | None]
) -> tuple[int, list[int]]:
    """The target and its rivals at the answer position of this number."""
    target, rival = named
    if target is None:
        target = int(final.argmax()) if prompt.right is None else prompt.right[number]
    if rival is not None:
        if target == rival:
            token = subject.text.token(target)
            raise VocabularyError(
                f"{prompt.text!r}: target and rival are both '{token}' at answer token {number + 1}: choose another"
            )
        return target, [rival]
    if subject.has_task:
        ordinals = [subject.text.encode(token)[0] for token in subject.task.ordinals]
        return target, [token for token in ordinals if token != target]
    others = final.clone()
    others[target] = -torch.inf
    return target, [int(others.argmax())]


def _streams(subject: Subject, cache: ActivationCache, pos: int) -> Vectors:
    """The output of each component at a position, in the order of `_components`."""
    rows = [cache[kind][0, pos] for kind in ("embed", "pos_embed") if Site(kind) in subject.sites]
    for layer in range(subject.cfg.n_layers):
        heads = added_by_heads(subject, cache, layer, pos)
        rows += heads.unbind()
        rows += [cache["attn_out", layer][0, pos] - heads.sum(dim=0)] if _has_out_bias(subject) else []
        rows += [cache["mlp_out", layer][0, pos]] if subject.cfg.d_mlp is not None else []
    return torch.stack(rows)


def _scaled(subject: Subject, parts: Vectors, cache: ActivationCache, pos: int) -> Vectors:
    """Parts of the stream as the final norm scales them in the run."""
    norm = subject.model.ln_final
    if not isinstance(norm, Norm):
        return parts
    centred = parts - parts.mean(dim=-1, keepdim=True) if norm.centred else parts
    return centred / cache["ln_final_scale"][0, pos]


@torch.no_grad()
def _added(subject: Subject, parts: Vectors, among: list[int]) -> Float[Tensor, "row token"]:
    """The logits that each scaled part adds to some tokens, and in the last row the constant of each."""
    model = subject.model
    norm, b_u = model.ln_final, model.b_U
    constant = torch.zeros_like(parts[0])
    if isinstance(norm, Norm):
        parts, constant = parts * norm.weight, constant if norm.bias is None else norm.bias
    added = (torch.cat([parts, constant[None]]) @ model.W_U[among].mT.to(parts.dtype)).double()
    if b_u is not None:
        added[-1] += b_u[among]
    return added


# ---------------------------------------------------------------------- table and panels


def _answers(splits: Sequence[Sequence[_Split]]) -> tuple[str, ...]:
    """Labels of the answer positions: their tokens if there is one input."""
    if len(splits) == 1:
        return tuple(split.label for split in splits[0])
    return tuple(f"answer token {number + 1}" for number in range(len(splits[0])))


def _table(
    names: tuple[str, ...], answers: tuple[str, ...], mean: Float[np.ndarray, "answer component"]
) -> ResultTable:
    """The parts by the size of their largest contribution."""
    order = np.argsort(-np.abs(mean).max(axis=0), kind="stable")[:LISTED]
    return ResultTable(
        title="Contributions by size",
        columns=("part", *answers),
        rows=tuple((names[i], *mean[:, i].tolist()) for i in order),
        caption=f"Logits that each part adds to the logit of the target minus that of its rival, largest first (up to "
        f"{LISTED} parts). Over all parts a column adds up to the logit difference of the run.",
    )


def _part_panel(names: tuple[str, ...], answers: tuple[str, ...], mean: Float[np.ndarray, "answer component"]) -> Panel:
    return ADDED_LOGITS.panel(
        "each part",
        (Axis("answer", answers, "answer"), Axis("component", names, "part of the residual stream")),
        mean,
        caption="Logits that each part adds to the logit difference target - rival. Blue = it raises the target, "
        "orange = "
        "it lowers it. The parts add up to the logit difference; the scale of the final norm is that of the run.",
        title="contribution of each part",
        view="bars",
    )


def _layer_panel(
    subject: Subject, names: tuple[str, ...], answers: tuple[str, ...], mean: Float[np.ndarray, "answer component"]
) -> Panel:
    """The parts that have a layer, [answer layer component]."""
    in_layers = [i for i, name in enumerate(names) if name.startswith("L")]
    n = subject.cfg.n_layers
    labels = tuple(names[i].removeprefix("L0").strip() for i in in_layers[: len(in_layers) // n])
    return ADDED_LOGITS.panel(
        "by layer",
        (
            Axis("answer", answers, "answer"),
            Axis("layer", tuple(range(n)), "layer"),
            Axis("component", labels, "head (H) or MLP"),
        ),
        mean[:, in_layers].reshape(len(answers), n, -1),
        caption="The same contributions by layer: rows are layers, layer 0 on top, columns the heads and the MLP of a "
        "layer. Blue = raises the target against its rival, orange = lowers it.",
        title="contributions by layer",
    )


def _claim(
    splits: Sequence[Sequence[_Split]], mean: Float[np.ndarray, "answer component"], names: tuple[str, ...]
) -> str:
    answer, component = np.unravel_index(np.abs(mean).argmax(), mean.shape)
    difference = float(np.mean([each[answer].difference for each in splits]))
    inputs = splits[0][0].text if len(splits) == 1 else f"the mean of {len(splits)} inputs"
    largest = f"{names[component]} adds {mean[answer, component]:+.4g}"
    return f"{inputs}, {_answers(splits)[answer]}: of a logit difference of {difference:.4g}, {largest}, the most"


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: the clean prompt, where the stream is a sum."""
    return {"inputs": [prompts.clean]} if is_sum(subject) else None
