"""Optional capabilities of tasks: curriculum stages, repeated columns, and counted classes."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from algoscope.tasks.base import Tokens

WORD = 62  # random bits drawn at once

WholeNumbers = Shaped[np.ndarray, "batch"]  # Python's integers, of any length (dtype object)


class Staged(ABC):
    """A task whose inputs can be simplified to a stage from 1 to `n_stages`; the last stage has the full inputs."""

    @property
    @abstractmethod
    def n_stages(self) -> int:
        """The number of stages."""

    @abstractmethod
    def at_stage(self, tokens: Tokens, stage: Int[Tensor, "batch"]) -> Tokens:
        """The inputs simplified to the stage of their row, in the format of the full task, with their answers."""


class Repeating(ABC):
    """A task whose inputs are made of columns, which are rarely equal in random draws."""

    @abstractmethod
    def repeated(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """The inputs with most columns made equal to their neighbours, with their answers."""


class Stratified(ABC):
    """A task that numbers the members of every class of its schemes: class k of size s has members 0 to s - 1.

    So inputs can be drawn within a class however large the domain is: a uniform rank is a uniform member.
    """

    @abstractmethod
    def class_sizes(self, by: str) -> tuple[int, ...]:
        """The exact number of inputs in each class of the scheme; they sum to the size of the domain."""

    @abstractmethod
    def class_members(self, by: str, kinds: Int[Tensor, "batch"], rank: WholeNumbers) -> Tokens:
        """Member number `rank` of class number `kinds`, with its answer: each member has one rank."""


def uniform_below(sizes: WholeNumbers, generator: torch.Generator) -> WholeNumbers:
    """Independent integers, each exactly uniform from 0 to its size minus one, by rejection sampling of as many bits as
    the size has.
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
