"""The inputs of a task of one's own as tensors: listed once, or drawn."""

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.core.errors import VocabularyError, shown
from algoscope.tasks._members import TWICE, Members, Rows

MOST = 2**24  # prompts that are listed
PROBE = 4_096  # draws from which the tokens and classes of a task without a list of prompts are read
EDGES = 6  # inputs by chance among the edge cases of a task that gives none
FEW = 12  # most answers that are classes of their own
OTHER = "other"  # the class of what no draw of the probe has
FACTOR = 6_364_136_223_846_793_005  # of a hash of prompts that are too long to number
KEPT = 8  # tasks whose inputs are kept
_INPUTS: dict[tuple[type, str], "Inputs"] = {}


class Inputs(Members, ABC):
    """The inputs of a task as tensors."""

    @property
    @abstractmethod
    def size(self) -> int | None:
        """How many inputs there are; None where that is not known."""

    @property
    @abstractmethod
    def known(self) -> Rows:
        """Inputs from which tokens and classes are read: all of them, or draws."""

    @abstractmethod
    def completed(self, prompts: Int[Tensor, "batch read"]) -> Rows:
        """Whole sequences that begin with these prompts."""

    @abstractmethod
    def keys(self, tokens: Rows) -> Int[Tensor, "batch"]:
        """One integer per input, as `Task.keys`."""

    @abstractmethod
    def has(self, prompt: Sequence[int]) -> bool:
        """Whether these tokens are a prompt."""

    def sample(self, n: int, generator: torch.Generator) -> Rows:
        """Draws by `draw`."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        return self.rows(self.drawn(n, seed), "draw").to(generator.device)

    @cached_property
    def used(self) -> tuple[int, ...]:
        """The tokens that occur, by number."""
        return tuple(self.known.unique().tolist())

    def edge_inputs(self) -> Rows:
        """The user's edge cases; else some inputs by chance, with the first and the last."""
        if self.task.gives("edge_cases"):
            cases = self.prompted(self.rows(self.listed("edge_cases"), "edge_cases"), "edge_cases")
            return cases if len(cases) > 1 else torch.cat([cases, self.known[[0, -1]]])
        order = torch.randperm(len(self.known), generator=torch.Generator().manual_seed(0)).tolist()
        return self.known[list(dict.fromkeys([*order[:EDGES], 0, len(self.known) - 1]))]

    def prompted(self, rows: Rows, member: str) -> Rows:
        """Inputs that a member gave. Raises TaskError for one that is not listed."""
        try:
            self.keys(rows)
        except VocabularyError as error:
            raise self.fault(f"{member}() gives what prompts() does not: {error}") from error
        return rows

    def corrupted(self, prompt: Sequence[int]) -> list[int]:
        """What `corrupt` makes of a prompt."""
        [(written, other)] = self._quietly("corrupt", [self.written(prompt)])
        ids = self.ids("corrupt", written, other)
        if not self.has(ids):
            raise self.fault(f"corrupt({shown(written)}) gives {shown(other)}, which is no prompt")
        answer, other_answer = self.completed(torch.tensor([prompt, ids]))[:, self.prompt_length :]
        if torch.equal(answer, other_answer):
            raise self.fault(f"corrupt({shown(written)}) gives {shown(other)}, which has the same answer")
        return ids

    def nearest(self, sequence: Sequence[int]) -> list[int] | None:
        """The prompt with another answer that differs in the fewest tokens from a sequence."""
        n, differs = self.prompt_length, self.known != torch.tensor(sequence)
        distance = differs[:, :n].sum(dim=1) + (n + 1) * ~differs[:, n:].any(dim=1)
        best = int(distance.argmin())
        return self.known[best, :n].tolist() if differs[best, n:].any() else None

    # ------------------------------------------------------------------ classes

    def labels(self, tokens: Rows) -> dict[str, list[str]]:
        """The class of each input in every scheme, by name."""
        if not self.task.gives("classes"):
            answers = tokens[:, self.prompt_length :]
            if self._answers_are_classes:
                return {"answer": [self.task.decode(row) for row in answers.tolist()]}
            return {"all": ["all"] * len(tokens)}
        labels: dict[str, list[str]] = {}
        prompts = map(self.written, tokens[:, : self.prompt_length].tolist())
        for prompt, classes in self._quietly("classes", prompts):
            if not isinstance(classes, Mapping) or not classes or (labels and labels.keys() != classes.keys()):
                schemes = f"with the schemes {', '.join(labels)}" if labels else "such as {'parity': 'even'}"
                raise self.fault(f"classes({shown(prompt)}) gives {shown(classes)}, not a dict {schemes}")
            for scheme, name in classes.items():
                labels.setdefault(str(scheme), []).append(str(name))
        return labels

    @cached_property
    def _answers_are_classes(self) -> bool:
        answers = self.known[:, self.prompt_length :]
        return answers.shape[1] == 1 and 1 < len(answers.unique()) <= FEW

    @cached_property
    def schemes(self) -> tuple[str, ...]:
        return tuple(self.labels(self.known[:1]))

    @cached_property
    def _known_labels(self) -> dict[str, list[str]]:
        return self.labels(self.known)

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The classes of every scheme."""
        others = () if self.is_listed else (OTHER,)
        return {
            by: (*sorted(set(labels) - set(others), key=_natural), *others) for by, labels in self._known_labels.items()
        }

    def class_numbers(self, tokens: Rows, by: str) -> Int[Tensor, "batch"]:
        """The class of each input of a scheme, an index into its names."""
        return self._numbered(self.labels(tokens)[by], by).to(tokens.device)

    def _numbered(self, labels: Sequence[str], by: str) -> Int[Tensor, "batch"]:
        number = {name: i for i, name in enumerate(self.names[by])}
        return torch.tensor([number.get(label, len(number) - 1) for label in labels], dtype=torch.long)

    def variables(self, tokens: Rows) -> dict[str, Int[Tensor, "batch column"]]:
        """What `variables` gives, as whole numbers: a token is its number in the vocabulary."""
        values: dict[str, list[list[int]]] = {}
        names = None
        prompts = map(self.written, tokens[:, : self.prompt_length].tolist())
        for prompt, variables in self._quietly("variables", prompts):
            if not isinstance(variables, Mapping) or (names is not None and variables.keys() != names):
                whose = "" if names is None else f" with the names {', '.join(map(str, names))}"
                raise self.fault(f"variables({shown(prompt)}) gives {shown(variables)}, not a dict{whose}")
            names = variables.keys()
            for name, value in variables.items():
                several = value if isinstance(value, list | tuple) else [value]
                try:
                    columns = [self.number[one] if isinstance(one, str) else _whole(one) for one in several]
                except (KeyError, TypeError, ValueError):
                    raise self.fault(
                        f"variables({shown(prompt)}) gives {name} = {shown(value)}: give whole numbers or tokens"
                    ) from None
                values.setdefault(str(name), []).append(columns)
        try:
            return {name: torch.tensor(rows, device=tokens.device) for name, rows in values.items()}
        except ValueError:
            raise self.fault("variables() gives a different number of values for different prompts") from None


class Listed(Inputs):
    """Inputs that `prompts` lists, in lexicographic order of their tokens, whatever the order of the list."""

    @cached_property
    def known(self) -> Rows:
        n, first = self._counted()
        if n > MOST:
            raise self.fault(f"prompts() gives more than {MOST:,} prompts: give draw(random) instead")
        tokens = self.rows(self.listed(), "prompts")
        if len(tokens) != n or tokens[: len(first), : self.prompt_length].tolist() != first:
            raise self.fault(
                "prompts() gives other prompts when it is called again: make a new list or generator in every call, "
                "without chance"
            )
        tokens = tokens[torch.from_numpy(np.lexsort(tokens[:, : self.prompt_length].numpy().T[::-1]))]
        prompts = tokens[:, : self.prompt_length]
        twice = (prompts[1:] == prompts[:-1]).all(dim=1).nonzero()
        if len(twice):
            raise self.fault(f"prompts() gives {shown(self.written(prompts[int(twice[0])].tolist()))} twice")
        self.check_repeats(tokens)
        return tokens

    def _counted(self) -> tuple[int, list[list[int]]]:
        """The number of prompts, up to one more than may be listed, and the token ids of the first."""
        with redirect_stdout(sys.stderr):
            prompts = islice(self.listed(), MOST + 1)
            first = [self.prompt_ids("prompts", prompt) for prompt in islice(prompts, TWICE)]
            return len(first) + sum(1 for _ in prompts), first

    @property
    def size(self) -> int:
        return len(self.known)

    @cached_property
    def _levels(self) -> list[Int[Tensor, "prefixes"]]:
        """For each position the prefixes that end there, as (number of the prefix before, token)."""
        levels, number = [], torch.zeros(self.size, dtype=torch.long)
        for column in self.known[:, : self.prompt_length].T:
            prefixes = number * len(self.number) + column
            is_new = torch.cat([torch.ones(1, dtype=torch.bool), prefixes[1:] != prefixes[:-1]])
            levels.append(prefixes[is_new])
            number = is_new.long().cumsum(0) - 1
        return levels

    def find(self, tokens: Int[Tensor, "batch read"]) -> Int[Tensor, "batch"]:
        """The number of each prompt in the list; -1 where it is not in it."""
        prompts = tokens[:, : self.prompt_length]
        number, is_known = torch.zeros_like(prompts[:, 0]), ((prompts >= 0) & (prompts < len(self.number))).all(dim=1)
        for level, column in zip(self._levels, prompts.T, strict=True):
            level, prefix = level.to(tokens.device), number * len(self.number) + column
            number = torch.searchsorted(level, prefix).clamp(max=len(level) - 1)
            is_known &= level[number] == prefix
        return torch.where(is_known, number, -1)

    def keys(self, tokens: Rows) -> Int[Tensor, "batch"]:
        number = self.find(tokens)
        if (number < 0).any():
            prompt = tokens[int((number < 0).nonzero()[0]), : self.prompt_length].tolist()
            raise VocabularyError(f"{self.task.decode(prompt)!r} is no prompt of {self.kind}")
        return number

    def at(self, index: Int[Tensor, "batch"]) -> Rows:
        return self.known[index.cpu()].to(index.device)

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Rows:
        return self.at(self.keys(prompts))

    def has(self, prompt: Sequence[int]) -> bool:
        return len(prompt) == self.prompt_length and bool(self.find(torch.tensor([prompt])) >= 0)

    @cached_property
    def _known_numbers(self) -> dict[str, Int[Tensor, "batch"]]:
        return {by: self._numbered(labels, by) for by, labels in self._known_labels.items()}

    def class_numbers(self, tokens: Rows, by: str) -> Int[Tensor, "batch"]:
        return self._known_numbers[by][self.keys(tokens).cpu()].to(tokens.device)


class Drawn(Inputs):
    """Inputs that `draw` draws: how many there are is not known."""

    size = None

    @cached_property
    def known(self) -> Rows:
        tokens = self.rows(self.drawn(PROBE, 0), "draw")
        self.check_repeats(tokens)
        return tokens

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Rows:
        written = map(self.written, prompts[:, : self.prompt_length].tolist())
        return self.rows(written, "draw").to(prompts.device)

    def keys(self, tokens: Rows) -> Int[Tensor, "batch"]:
        """The number of a prompt among all sequences of its length; where these are too many, a hash of 64 bits."""
        d_vocab = len(self.number)
        factor = d_vocab if d_vocab**self.prompt_length < 2**63 else FACTOR
        number = torch.zeros_like(tokens[:, 0])
        for column in tokens[:, : self.prompt_length].T:
            number = number * factor + column  # beyond 64 bits it wraps around
        return number

    @cached_property
    def _tokens_at(self) -> list[frozenset[int]]:
        return [frozenset(column.unique().tolist()) for column in self.known[:, : self.prompt_length].T]

    def has(self, prompt: Sequence[int]) -> bool:
        """Whether each token stands where it also stands in draws."""
        fits = len(prompt) == self.prompt_length
        return fits and all(token in tokens for token, tokens in zip(prompt, self._tokens_at, strict=True))


def inputs_of(task: Any) -> Inputs:
    """The inputs of a task; equal tasks share them."""
    key = type(task), task.model_dump_json()
    if key not in _INPUTS:
        if len(_INPUTS) == KEPT:
            del _INPUTS[next(iter(_INPUTS))]
        _INPUTS[key] = Listed(task) if task.gives("prompts") else Drawn(task)
    return _INPUTS[key]


def _whole(value: Any) -> int:
    """Raises ValueError for what is no whole number."""
    if (number := int(value)) != value:
        raise ValueError
    return number


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    """The order of names in which `9` comes before `10`."""
    return tuple(
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)
    )
