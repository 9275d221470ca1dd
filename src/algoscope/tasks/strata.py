"""What some tasks can do besides: count their classes, and draw from each, however large the domain is."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from algoscope.tasks.base import Tokens

WORD = 62  # random bits drawn at once

WholeNumbers = Shaped[np.ndarray, "batch"]  # Python's integers, of any length (dtype object)


class Stratified(ABC):
    """A task that numbers the members of every class of its schemes: class k of size s has members 0 to s - 1."""

    @abstractmethod
    def class_sizes(self, by: str) -> tuple[int, ...]:
        """How many inputs each class of the scheme has, exactly; together the whole domain."""

    @abstractmethod
    def class_members(self, by: str, kinds: Int[Tensor, "batch"], rank: WholeNumbers) -> Tokens:
        """Member number `rank` of class number `kinds`, with its answer: each member has one rank."""

    def sample_class(self, by: str, kinds: Int[Tensor, "batch"], generator: torch.Generator) -> Tokens:
        """For each row an independent uniform draw from its class, on the generator's device."""
        sizes = np.array(self.class_sizes(by), dtype=object)[kinds.cpu().numpy()]
        return self.class_members(by, kinds.to(generator.device), uniform_below(sizes, generator))


def uniform_below(sizes: WholeNumbers, generator: torch.Generator) -> WholeNumbers:
    """Independent whole numbers, each uniform from 0 to one below its size: exactly so, by drawing as many bits as the
    size has and again where they make too much.
    """
    bits = np.array([int(size).bit_length() for size in sizes], dtype=object)
    n_words = -(-max(bits, default=0) // WORD)
    drawn = np.zeros(len(sizes), dtype=object)
    missing = np.arange(len(sizes))
    while len(missing):
        words = torch.randint(2**WORD, (n_words, len(missing)), generator=generator, device=generator.device)
        value = np.zeros(len(missing), dtype=object)
        for word in words.cpu().numpy().astype(object):
            value = (value << WORD) | word
        drawn[missing] = value >> (n_words * WORD - bits[missing])
        missing = missing[drawn[missing] >= sizes[missing]]
    return drawn
