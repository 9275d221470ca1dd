"""Repeated blocks of random tokens: the default inputs of lenses on free text."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.core.errors import SubjectError
from algoscope.data import seeded
from algoscope.subjects.subject import Subject

LONGEST_BLOCK = 24  # largest length of a repeated block, in tokens
LENGTHS = 16  # different lengths of such blocks, at most
Batches = list[Int[Tensor, "_batch _pos"]]  # each with one sequence length


def repeated_blocks(subject: Subject, n_inputs: int, seed: int, n_lengths: int = LENGTHS) -> Batches:
    """Random rows for a model of free text, in batches of one length: the tokens that its tokenizer prepends to every
    text (such as BOS), then a block of different random tokens, then the same block again. Special tokens are not in
    blocks.

    Block length is constant within a batch and varies between batches (`n_lengths` lengths, if so many fit): from a
    third of the longest to the longest, which is 24 tokens or half the context. With `n_lengths=1`, the longest.

    Raises SubjectError where the context or the vocabulary holds no block of two tokens.
    """
    start = subject.text.encode("")
    usable = usable_tokens(subject, start)
    longest = min(LONGEST_BLOCK, (subject.cfg.n_ctx - len(start)) // 2, len(usable))
    if longest < 2:
        raise SubjectError(
            f"{subject.name} has a context of {subject.cfg.n_ctx} and {subject.cfg.d_vocab} tokens: too few to repeat "
            "a block of two; give texts as inputs"
        )
    generator = seeded(torch.device("cpu"), seed)
    shortest = max(2, longest // 3) if n_lengths > 1 else longest
    lengths = (shortest + torch.randperm(longest - shortest + 1, generator=generator))[:n_lengths].tolist()
    batches = []
    for i, length in enumerate(lengths[:n_inputs]):
        n = len(range(i, n_inputs, len(lengths)))
        block = distinct_blocks(usable, n, length, generator)
        rows = torch.cat([torch.tensor(start, dtype=torch.long).expand(n, -1), block, block], dim=1)
        batches.append(rows.to(subject.device))
    return batches


def usable_tokens(subject: Subject, start: Sequence[int]) -> Int[Tensor, "some"]:
    """The tokens that blocks may contain: those that the task uses, or all, without `start` and special tokens."""
    known = set(range(subject.cfg.d_vocab))
    if subject.has_task:
        known = {subject.task.vocabulary.index(token) for token in subject.task.used_tokens}
    return torch.tensor(sorted(known - subject.text.special.union(start)))


def distinct_blocks(
    usable: Int[Tensor, "some"], n: int, length: int, generator: torch.Generator
) -> Int[Tensor, "n length"]:
    """`n` random rows of `length` different tokens among the usable ones."""
    return usable[torch.rand(n, len(usable), generator=generator).topk(length).indices]
