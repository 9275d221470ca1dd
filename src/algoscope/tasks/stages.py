"""What some tasks can do besides, for training: make their inputs easier stage by stage, or more regular."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.tasks.base import Tokens


class Staged(ABC):
    """A task whose inputs can be cut down to a stage from 1 to `n_stages`, the last of which has them whole."""

    @property
    @abstractmethod
    def n_stages(self) -> int:
        """The number of stages."""

    @abstractmethod
    def at_stage(self, tokens: Tokens, stage: Int[Tensor, "batch"]) -> Tokens:
        """The inputs cut down to the stage of their row, in the format of the whole task, with their answers."""


class Repeating(ABC):
    """A task whose inputs are made of like parts side by side, which chance alone seldom makes equal."""

    @abstractmethod
    def repeated(self, tokens: Tokens, generator: torch.Generator) -> Tokens:
        """The inputs with most parts made equal to their neighbours, with their answers."""
