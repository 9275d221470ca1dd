"""The AdderBoard's test put to 10-digit adders: its 10 edge cases and 10,000 pairs of `random.Random(2025)`.

Usage: python benchmarks/board_pairs.py RUN_FOLDER...
Answers are decoded greedily, token by token, and read as a user would read them.
"""

import random
import sys

import torch

import algoscope as ag
from algoscope.tasks.digits.addition import Addition

LARGEST = 9_999_999_999
EDGE_CASES = (
    (0, 0),
    (0, 1),
    (LARGEST, 0),
    (LARGEST, 1),
    (LARGEST, LARGEST),
    (5_000_000_000, 5_000_000_000),
    (1_111_111_111, 8_888_888_889),
    (1_234_567_890, 9_876_543_210),
    (LARGEST, LARGEST),
    (1, LARGEST),
)


def board_pairs(seed: int = 2025, n_random: int = 10_000) -> list[tuple[int, int]]:
    """The test list; both operands below 10^10."""
    draw = random.Random(seed)
    return [*EDGE_CASES, *((draw.randint(0, LARGEST), draw.randint(0, LARGEST)) for _ in range(n_random))]


def n_correct(subject: ag.Subject, pairs: list[tuple[int, int]]) -> int:
    """How many sums the subject decodes as Python computes them."""
    task = subject.task
    assert isinstance(task, Addition)
    first, second = torch.tensor(pairs).T
    prompts = task.sequences(first, second)[:, : task.prompt_length]
    correct = 0
    for rows, part in zip(prompts.split(1000), torch.arange(len(pairs)).split(1000), strict=True):
        said = subject.generate_tokens(rows.to(subject.device), task.n_ctx - task.prompt_length)
        for row, tokens in zip(part.tolist(), said.tolist(), strict=True):
            digits = task.decode(tokens).removesuffix("<EOS>")
            written = digits[::-1] if task.reversed else digits
            correct += written == f"{sum(pairs[row]):0{task.n_digits + 1}d}"
    return correct


if __name__ == "__main__":
    asked = board_pairs()
    for folder in sys.argv[1:]:
        print(f"{folder}: {n_correct(ag.open(f'run:{folder}'), asked):,} of {len(asked):,}")
