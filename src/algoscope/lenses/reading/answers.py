"""The answer lens: the model's own greedy answers, token by token, and the probability of each right token."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.core.arguments import Count, Folder, checked_arguments
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.core.renaming import renamed_options
from algoscope.data import seeded
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.measures import PROBABILITY
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts, texts_of
from algoscope.tasks.base import Tokens

RANDOM_SEED = 7
ABOUT = (
    "The model decodes greedily, each predicted token fed back as input, so one wrong token can change those after "
    "it. The inputs are the task's edge cases, the given inputs, and random ones, of which only the accuracy is "
    "reported. An answer is right if all its tokens are."
)


@renamed_options(n_random="n_inputs")
@checked_arguments
@measurement
def answers(subject: AnyModel, inputs: Texts = None, *, n_inputs: Count = 200, runs_dir: Folder = None) -> Finding:
    """Decode the task's edge cases, the inputs and random ones greedily, and count how many are right.

    Every answer is decoded token by token, without teacher forcing.

    Args:
        subject: a model of a task, by name or opened.
        inputs: further prompts of the task, one or several, such as `123+456`; none by default.
        n_inputs: how many random inputs are drawn, uniformly from the task's domain.
        runs_dir: where run folders are looked for; by default the usual place.

    Returns:
        A finding with the panel `probability` [case digit]: the probability of the right token at each answer position,
        given the model's own tokens before it, 0 = ruled out, 1 = certain. Facts: `cases` (input, expected, got,
        right), `edge_cases_right` of `edge_cases`, `random_right` of `random`.

    Raises:
        VocabularyError: for an input that is not a prompt of the task.
        TaskMismatchError: for a model of free text, which has no right answers.

    Example:
        >>> import algoscope as ag
        >>> answers = ag.lenses.answers("planted:carry-adder", "7+8", n_inputs=20)
        >>> answers["cases"][-1]["got"], answers["random_right"]
        ('5100<EOS>', 20)
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    task = subject.task
    edge = task.edge_inputs().to(subject.device)
    extra = [torch.tensor([task.sequence(text)], device=subject.device) for text in texts_of(inputs)]
    cases = torch.cat([edge, *extra])
    got = _decode(subject, cases)
    random = task.sample(n_inputs, seeded(subject.device, RANDOM_SEED))
    random_right = int((_decode(subject, random) == random[:, task.prompt_length :]).all(dim=1).sum())
    rows = [_row(subject, case, answer) for case, answer in zip(cases, got, strict=True)]
    edge_right = sum(row["right"] for row in rows[: len(edge)])
    return subject.finding(
        "answers",
        f"{edge_right}/{len(edge)} edge cases and {random_right}/{n_inputs} random inputs decoded right",
        {
            "cases": rows,
            "edge_cases": len(edge),
            "edge_cases_right": edge_right,
            "random": n_inputs,
            "random_right": random_right,
        },
        [_panel(subject, cases, got, rows)],
        about=ABOUT,
        tables=[_table(rows)],
    )


def _decode(subject: Subject, sequences: Tokens) -> Int[Tensor, "batch answer"]:
    n = subject.task.prompt_length
    return subject.generate_tokens(sequences[:, :n], sequences.shape[1] - n)


def _row(subject: Subject, case: Int[Tensor, "pos"], got: Int[Tensor, "answer"]) -> dict[str, Any]:
    n = subject.task.prompt_length
    return {
        "input": subject.to_string(case[:n]),
        "expected": subject.to_string(case[n:]),
        "got": subject.to_string(got),
        "right": bool((case[n:] == got).all()),
        "expected_tokens": subject.to_str_tokens(case[n:]),
        "got_tokens": subject.to_str_tokens(got),
    }


def _table(rows: list[dict[str, Any]]) -> ResultTable:
    """Every case, and which tokens of its answer are wrong."""
    cells = []
    for row in rows:
        pairs = zip(row["expected_tokens"], row["got_tokens"], strict=True)
        wrong = [str(i) for i, (expected, got) in enumerate(pairs, start=1) if expected != got]
        tokens = (" ".join(row["got_tokens"]), " ".join(row["expected_tokens"]))
        cells.append((row["input"], *tokens, "right" if row["right"] else "wrong", ", ".join(wrong)))
    return ResultTable(
        title="Edge cases and given inputs, token by token",
        columns=("input", "model's answer", "right answer", "verdict", "wrong tokens"),
        rows=tuple(cells),
        caption="The model's greedy answer to each input, in the order in which its tokens are written, beside the "
        "right one. `wrong tokens` counts from 1.",
    )


def _panel(subject: Subject, cases: Tokens, got: Int[Tensor, "batch answer"], rows: list[dict[str, Any]]) -> Panel:
    n = subject.task.prompt_length
    read = torch.cat([cases[:, :n], got], dim=1)[:, :-1]
    logits, _ = subject.run(read, at=subject.task.answer_slice)
    probability: Float[np.ndarray, "case digit"] = (
        logits.double().softmax(-1).gather(-1, cases[:, n:, None])[..., 0].cpu().numpy()
    )
    return PROBABILITY.panel(
        "probability",
        (
            Axis("case", tuple(row["input"] for row in rows), "input"),
            Axis("digit", tuple(range(1, probability.shape[1] + 1)), "token of the answer, in the order written"),
        ),
        probability,
        caption="Probability of the right token at each position of the answer, after the model's own earlier tokens. "
        "Rows are inputs, columns are the tokens of the answer in the order in which they are written: "
        "1 (dark) = certain, 0 (white) = ruled out.",
        title="probability of the right token",
    )


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: edge cases and random inputs of a task."""
    return {} if subject.has_task else None
