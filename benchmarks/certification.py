"""P3: certifying all 1,000,000 sums, against one plain batched forward, and against decoding one sum at a time.

Run `python benchmarks/certification.py [RUN folder; without one it trains add3]`.
"""

import os
import sys
import tempfile
from collections.abc import Callable

import torch

import algoscope as ag
import harness
from algoscope.core.threads import threads
from algoscope.subjects.subject import Subject

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


def on(n: int, work: Callable[[], None]) -> None:
    """The work with n threads."""
    with threads(n):
        work()


def main(path: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subject = ag.open(f"run:{path}" if path else ag.train("add3", runs_dir=folder, progress=False))
    all_sums = subject.task.at(torch.arange(1_000_000))
    harness.heading("Certification of all 1,000,000 sums (P3)")
    cores = len(os.sched_getaffinity(0))
    taken = harness.alternate(
        {
            "decode": lambda: on(1, lambda: one_at_a_time(subject)),
            **{f"plain {n}": lambda n=n: on(n, lambda: plain_forward(subject, all_sums)) for n in (1, cores)},
            **{f"certify {n}": lambda n=n: ag.certify(subject, n_threads=n) for n in (1, cores)},
        },
        rounds=5,
    )
    rows = []
    for n in (1, cores):
        ours, plain = taken[f"certify {n}"], taken[f"plain {n}"]
        share = [mine / theirs for mine, theirs in zip(ours, plain, strict=True)]
        faster = [1e6 / DECODED * one / mine for mine, one in zip(ours, taken["decode"], strict=True)]
        rows.append((n, *(harness.spread(values) for values in (ours, plain, share)), harness.spread(faster, 4)))
    harness.table(
        [
            "threads", "`certify`, s", "plain batched forward, s", "`certify` / plain",
            "times faster per sum than decoding one at a time (1 thread)",
        ],
        rows,
    )  # fmt: skip
    print(f"\nDecoding was timed on {DECODED:,} sums. `certify` includes the enumeration, the margins, the classes")
    print("and the comparison with float64; the plain forward is given its inputs and only runs the model.")


if __name__ == "__main__":
    main(*sys.argv[1:])
