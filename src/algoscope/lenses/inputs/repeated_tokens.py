"""Random tokens in blocks that come again: inputs that lenses draw where no texts are given."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.core.errors import SubjectError
from algoscope.data import seeded
from algoscope.subjects.subject import Subject

LONGEST_BLOCK = 24  # tokens of a block that is repeated
LENGTHS = 16  # different lengths of such blocks, where there are so many
Batches = list[Int[Tensor, "_batch _pos"]]  # each of its own length


def repeated_blocks(subject: Subject, n_inputs: int, seed: int, n_lengths: int = LENGTHS) -> Batches:
    """Random rows for a model of free text, in batches of one length: what its tokenizer puts before every text, then a
    block of different random tokens, then the same block again. The special tokens are in no block.

    The blocks of a batch are equally long, those of different batches (`n_lengths`, where so many fit) not: between a
    third of the longest and the longest, which is 24 tokens, or half the context. With one length, the longest.

    Raises SubjectError where the context or the vocabulary holds no block of two tokens.
    """
    start = subject.text.encode("")
    usable = usable_tokens(subject, start)
    longest = min(LONGEST_BLOCK, (subject.cfg.n_ctx - len(start)) // 2, len(usable))
    if longest < 2:
        raise SubjectError(
            f"{subject.name} has a context of {subject.cfg.n_ctx} and {subject.cfg.d_vocab} tokens: too few to repeat "
            "a block of two; give texts of your own as inputs"
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
    """The tokens that blocks are made of: those that the task uses, or all; none of `start`, and not the end."""
    known = set(range(subject.cfg.d_vocab))
    if subject.has_task:
        known = {subject.task.vocabulary.index(token) for token in subject.task.used_tokens}
    return torch.tensor(sorted(known - {*start, subject.text.end_token}))


def distinct_blocks(
    usable: Int[Tensor, "some"], n: int, length: int, generator: torch.Generator
) -> Int[Tensor, "n length"]:
    """`n` random rows of `length` different tokens among the usable ones."""
    return usable[torch.rand(n, len(usable), generator=generator).topk(length).indices]
