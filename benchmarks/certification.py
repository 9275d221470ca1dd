"""P3: certifying all 1,000,000 sums, against one plain batched forward, and against decoding one sum at a time.

    python benchmarks/certification.py [RUN folder; default: trains add3]
"""

import os
import sys
import tempfile

import harness
import torch

import algoscope as ag
from algoscope.core.threads import threads
from algoscope.subjects.base import Subject

ROWS = 4000
DECODED = 200


def plain_forward(subject: Subject, all_sums: torch.Tensor) -> None:
    """Every sum through the model in batches, logits at every position, as one writes it first."""
    with torch.no_grad():
        for tokens in all_sums.split(ROWS):
            subject.model(tokens[:, :-1])


def one_at_a_time(subject: Subject) -> None:
    """Real greedy decoding with a key-value cache, one sum after another."""
    for prompt in subject.task.at(torch.arange(0, 1_000_000, 1_000_000 // DECODED))[:, : subject.task.prompt_length]:
        subject.generate_tokens(prompt[None], 5)


def main(path: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subject = ag.open(f"run:{path}" if path else ag.train("add3", runs_dir=folder, progress=False))
    all_sums = subject.task.at(torch.arange(1_000_000))
    harness.heading("Certification of all 1,000,000 sums (P3)")
    rows = []
    for n in sorted({1, len(os.sched_getaffinity(0))}):
        with threads(n):
            taken = harness.alternate(
                {
                    "plain": lambda: plain_forward(subject, all_sums),
                    "certify": lambda: ag.certify(subject, n_threads=n),
                    "decode": lambda: one_at_a_time(subject),
                },
                rounds=3,
            )
        per_sum = [seconds / DECODED for seconds in taken["decode"]]
        share = [ours / plain for ours, plain in zip(taken["certify"], taken["plain"], strict=True)]
        faster = [1e6 * one / ours for one, ours in zip(per_sum, taken["certify"], strict=True)]
        rows.append(
            (
                n, harness.spread(taken["plain"]), harness.spread(taken["certify"]), harness.spread(share, 2),
                harness.spread(1e3 * s for s in per_sum), harness.spread(faster, 4),
            )
        )  # fmt: skip
    harness.table(
        [
            "threads", "plain batched forward, s", "`certify`, s", "`certify` / plain",
            "decoding one sum, ms", "times faster per sum",
        ],
        rows,
    )  # fmt: skip
    print("\n`certify` includes the enumeration, the margins, the classes, and the float64 comparison.")


if __name__ == "__main__":
    main(*sys.argv[1:])
