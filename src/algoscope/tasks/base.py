"""The interface of tasks. A task is a frozen value: its fields are its config, its methods give the right answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from random import Random
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from pydantic import ConfigDict, model_validator
from torch import Tensor

from algoscope.core.arguments import Natural, Share, checked_arguments
from algoscope.core.errors import TaskError, UnknownNameError, VocabularyError
from algoscope.tasks._members import Prompt
from algoscope.tasks._own import Source, check_members, covering, is_word, prepare
from algoscope.tasks._plain import Inputs, Listed, inputs_of
from algoscope.tasks._written import Written

Tokens = Int[Tensor, "batch pos"]
WRITTEN = frozenset(
    ["prompt", "sequence", "expected", "neighbour", "valid", "encode", "decode", "class_names", "of_width", "sample"]
)  # methods whose arguments a user writes; the others take tensors, and training calls them at every step
ROWS = 10_000  # inputs in a batch
MANY = 12  # positions of a prompt from which they are one part together


def spans(n: int) -> Iterator[range]:
    """The ranges of neighbours among n classes, but for the one that has them all."""
    for first in range(n):
        yield from (range(first, end) for end in range(first + 1, n + 1) if end - first < n)


class Task(Written):
    """A set of inputs, each with exactly one right answer. A task of one's own is a subclass.

    It gives `vocabulary` (the tokens), `prompts` (every prompt; or `draw`, one prompt, where they are too many) and
    `answer`. `classes`, `edge_cases`, `variables`, `corrupt` and `parts` may be given too. Annotated attributes are
    fields, other attributes constants.

    A sequence is the prompt, then the answer, then the end-of-sequence token where the task ends with one: `n_ctx`
    tokens. A model reads all but the last and predicts all but the first; its prediction at the positions
    `answer_slice` (from the last prompt token on) is its answer. Inputs are always whole sequences [batch pos], with
    their right answers.

    Example:
        >>> import algoscope as ag, torch
        >>> task = ag.Modular(p=5)
        >>> task.decode(task.at(torch.tensor([7]))[0].tolist())  # input number 7 of 25
        '1+2=3'
        >>> class Larger(ag.Task):
        ...     vocabulary = ("1", "2", "3")
        ...     def prompts(self):
        ...         return [first + second for first in self.vocabulary for second in self.vocabulary]
        ...     def answer(self, prompt):
        ...         return max(prompt)
        >>> Larger().expected("13"), Larger().domain_size
        ('3', 9)
    """

    kind: str = "Task"
    model_config = ConfigDict(ignored_types=(object,))  # attributes without annotation are constants
    uniform: ClassVar[bool] = True  # is every input drawn with the same probability?
    source: ClassVar[Source | None] = None  # of a task of one's own: its code

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        prepare(cls, Task)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        for name in WRITTEN:
            if not hasattr(method := getattr(cls, name), "checked"):
                setattr(cls, name, checked_arguments(method))

    # ------------------------------------------------------------------ what a task of one's own gives

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens in order: token i is written `vocabulary[i]`; `<EOS>`, where there is one, ends sequences."""
        raise TaskError(f"{self.kind} gives no vocabulary: its tokens, such as vocabulary = ('0', '1')")

    def prompts(self) -> Iterable[Prompt]:
        """Every prompt, as texts or as lists of tokens, all of one length."""
        if self.domain_size is None:
            raise TaskError(f"{self.kind} draws its prompts and gives no list of them")
        for start in range(0, self.domain_size, ROWS):
            yield from self._prompts_of(self.at(torch.arange(start, min(start + ROWS, self.domain_size))))

    def draw(self, random: Random) -> Prompt:
        """One prompt, by chance."""
        generator = torch.Generator().manual_seed(random.getrandbits(62))
        return self._prompts_of(self.sample(1, generator))[0]

    def answer(self, prompt: Prompt) -> str | Sequence[str]:
        """The tokens that are right for a prompt, one or several: a token, a text, or a list of tokens."""
        return [self.token(number) for number in self._row(prompt)[self.prompt_length :]]

    def classes(self, prompt: Prompt) -> Mapping[str, object]:
        """The class of a prompt in every scheme, by name."""
        row = torch.tensor([self._row(prompt)])
        return {by: list(self.class_names(by))[int(self.class_of(row, by))] for by in self.class_schemes}

    def variables(self, prompt: Prompt) -> Mapping[str, object]:
        """Intermediate variables of an algorithm, by name: whole numbers or tokens, one or several."""
        return {name: row[0].tolist() for name, row in self.variables_of(torch.tensor([self._row(prompt)])).items()}

    def edge_cases(self) -> Iterable[Prompt]:
        """Prompts at the edges of the domain, and those that people try first."""
        return self._prompts_of(self.edge_inputs())

    def corrupt(self, prompt: Prompt) -> Prompt:
        """A prompt that differs little and has another answer, for patching."""
        return self.neighbour(prompt if isinstance(prompt, str) else self.joint.join(prompt))

    @property
    def parts(self) -> Mapping[str, slice]:
        """Named stretches of the sequence."""
        return {} if self.prompt_length <= MANY else {"prompt": slice(0, self.prompt_length)}

    def gives(self, member: str) -> bool:
        """Whether the class has a member of its own in place of the default."""
        return getattr(type(self), member) is not getattr(Task, member)

    @property
    def is_plain(self) -> bool:
        """Whether it gives its inputs prompt by prompt; the tasks that ship compute them as tensors."""
        return not self.gives("completed")

    @model_validator(mode="after")
    def _is_whole(self) -> "Task":
        if self.is_plain:
            check_members(self)
        return self

    @cached_property
    def _inputs(self) -> Inputs:
        return inputs_of(self)

    def _prompts_of(self, tokens: Tokens) -> list[Prompt]:
        return [self.decode(row) for row in tokens[:, : self.prompt_length].tolist()]

    def _row(self, prompt: Prompt) -> list[int]:
        return self.sequence(prompt if isinstance(prompt, str) else self.joint.join(prompt))

    # ------------------------------------------------------------------ sequences

    @property
    def joint(self) -> str:
        return " " if self.is_plain and any(map(is_word, self.vocabulary)) else ""

    @property
    def n_ctx(self) -> int:
        """Tokens in one whole sequence."""
        return self._inputs.prompt_length + self._inputs.answer_length

    @property
    def prompt_length(self) -> int:
        """Tokens in the prompt."""
        return self._inputs.prompt_length

    def prompt(self, text: str) -> str:
        """The prompt for a text that a user typed, such as `123+4`.

        Raises:
            VocabularyError: for a text that is no input, with an example of one.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).prompt("123+4")
            '123+004='
        """
        ids, inputs = self.encode(text), self._inputs
        if not inputs.has(ids):
            example = self.decode(inputs.known[len(inputs.known) // 2, : inputs.prompt_length].tolist())
            raise VocabularyError(f"{text!r} is no prompt of {self.kind}: write one such as {example!r}")
        return self.decode(ids)

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        """Whole sequences that begin with these prompts: prompt, right answer, end.

        Args:
            prompts: token ids; tokens after the prompt are ignored.

        Example:
            >>> import algoscope as ag, torch
            >>> ag.Addition(n_digits=1).completed(torch.tensor([[7, 10, 5, 11]])).tolist()  # 7+5= and 21<EOS>
            [[7, 10, 5, 11, 2, 1, 12]]
        """
        return self._inputs.completed(prompts)

    def sequence(self, text: str) -> list[int]:
        """The whole sequence for a text, as token ids: prompt, right answer, end.

        Raises:
            VocabularyError: for a text that is no prompt of the task.

        Example:
            >>> import algoscope as ag
            >>> ag.Modular(p=5).sequence("1+2")
            [1, 5, 2, 6, 3]
        """
        return self.completed(torch.tensor([self.encode(self.prompt(text))]))[0].tolist()

    def expected(self, text: str) -> str:
        """The right answer to a text, up to the end of the sequence.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).expected("999+1")
            '0001<EOS>'
        """
        return self.decode(self.sequence(text)[self.prompt_length :])

    @property
    def answer_slice(self) -> slice:
        """Positions of the model's input at which the logits give the answer."""
        return slice(self.prompt_length - 1, self.n_ctx - 1)

    @property
    def answer_names(self) -> tuple[str, ...]:
        """A name for each token of an answer, in the order of writing; numbered where the task has no names."""
        ends = "<EOS>" in self.used_tokens
        numbers = [f"token {i + 1}" for i in range(self.n_ctx - self.prompt_length - ends)]
        return (*numbers, "end") if ends else tuple(numbers)

    @cached_property
    def all_parts(self) -> Mapping[str, slice]:
        """`parts` in order, with names for what they leave out: together they cover what a model reads."""
        return covering(self.kind, self.parts, self.prompt_length, self.n_ctx - 1) if self.is_plain else self.parts

    @property
    def ordinals(self) -> tuple[str, ...]:
        """The tokens that represent quantities, smallest first."""
        numbers = sorted((token for token in self.used_tokens if token.isdecimal()), key=int)
        return tuple(numbers) if len(numbers) > 1 else self.used_tokens

    @property
    def used_tokens(self) -> tuple[str, ...]:
        """The tokens that occur in sequences, in the order of the vocabulary."""
        return tuple(self.vocabulary[number] for number in self._inputs.used)

    # ------------------------------------------------------------------ inputs

    @property
    def domain_size(self) -> int | None:
        """The number of different inputs; None for a task that draws them and does not list them."""
        return self._inputs.size

    def has_at_most(self, n: int) -> bool:
        """Whether its inputs can be listed and are at most `n`."""
        return self.domain_size is not None and self.domain_size <= n

    def every(self, device: torch.device | str = "cpu") -> Tokens:
        """All inputs, where they can be listed."""
        assert self.domain_size is not None
        return self.at(torch.arange(self.domain_size, device=device))

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        """The inputs with these indices in the domain (lexicographic order), with their answers.

        Example:
            >>> import algoscope as ag, torch
            >>> task = ag.Addition(n_digits=1)
            >>> task.at(torch.arange(task.domain_size)).shape
            torch.Size([100, 7])
        """
        assert isinstance(self._inputs, Listed)  # what is drawn has no domain size
        return self._inputs.at(index)

    def sample(self, n: Natural, generator: torch.Generator, hard_share: Share = 0.0) -> Tokens:
        """Random inputs with their answers, on the generator's device.

        Args:
            n: number of inputs.
            generator: the random generator.
            hard_share: share of draws from the rare and difficult inputs that the task defines; the rest is uniform.

        Example:
            >>> import algoscope as ag, torch
            >>> ag.Reversal(length=3).sample(4, torch.Generator().manual_seed(0)).shape
            torch.Size([4, 8])
        """
        inputs = self._inputs
        if isinstance(inputs, Listed) and not self.gives("draw"):
            return inputs.at(torch.randint(inputs.size, (n,), generator=generator, device=generator.device))
        return inputs.prompted(inputs.sample(n, generator), "draw")

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        """One integer per input: inputs are equal where their keys are."""
        return self._inputs.keys(tokens)

    def edge_inputs(self) -> Tokens:
        """Inputs at the edges of the domain and those that people try first, with their answers."""
        return self._inputs.edge_inputs()

    def neighbour(self, text: str) -> str:
        """An input that differs in a single token and has another answer, for use as the corrupt input of patching.

        Later tokens are tried first.

        Raises:
            VocabularyError: where no such input exists.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).neighbour("123+456")
            '123+450='
        """
        n, sequence = self.prompt_length, self.sequence(text)
        if self.gives("corrupt"):
            return self.decode(self._inputs.corrupted(sequence[:n]))
        for pos in reversed(range(n)):
            for token in self.ordinals:
                other = [*sequence[:pos], self.vocabulary.index(token), *sequence[pos + 1 : n]]
                written = self.decode(other)
                if other != sequence[:n] and self.valid(written) and self.sequence(written)[n:] != sequence[n:]:
                    return written
        if self.is_plain and (nearest := self._inputs.nearest(sequence)) is not None:
            return self.decode(nearest)
        raise VocabularyError(f"no input of {self.kind} differs from {text!r} in one token and in its answer")

    def valid(self, text: str) -> bool:
        """Whether a text is a prompt of the task.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).valid("1234+5")
            False
        """
        try:
            self.prompt(text)
        except VocabularyError:
            return False
        return True

    # ------------------------------------------------------------------ truth

    @property
    def class_schemes(self) -> tuple[str, ...]:
        """The schemes that divide inputs into classes; the first is the default."""
        return self._inputs.schemes

    def class_names(self, by: str) -> Mapping[str, str]:
        """The classes of a scheme, short name to description, in the order of the numbers that `class_of` gives.

        Raises:
            UnknownNameError: for a scheme that is not in `class_schemes`.

        Example:
            >>> import algoscope as ag
            >>> ag.Reversal(length=3).class_names("palindrome")
            {'other': 'reads differently backwards', 'palindrome': 'reads the same backwards'}
        """
        self._check_scheme(by)
        names = self._inputs.names[by]
        return {"all": "every input"} if names == ("all",) else {name: f"{by} is {name}" for name in names}

    def class_phrases(self, by: str) -> Iterator[tuple[str, Sequence[int]]]:
        """Sets of classes that a few words describe, with these words, which follow "where".

        A class without a phrase of its own is described by `class_names`.

        Example:
            >>> import algoscope as ag
            >>> {tuple(kinds): words for words, kinds in ag.Addition(n_digits=5).class_phrases("chain")}[3, 4, 5]
            'a carry runs through two or more columns of nine'
        """
        self._check_scheme(by)
        yield from ()

    def class_of(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        """The class of each input: an index into `class_names(by)`.

        Example:
            >>> import algoscope as ag
            >>> task = ag.Addition(n_digits=3)
            >>> task.class_of(task.edge_inputs(), "chain").tolist()  # 999+1 has the longest chain
            [0, 3, 0, 1, 1, 0]
        """
        self._check_scheme(by)
        return self._inputs.class_numbers(tokens, by)

    def _check_scheme(self, by: str) -> None:
        if by not in self.class_schemes:
            raise UnknownNameError("class scheme", by, self.class_schemes)

    def variables_of(self, tokens: Tokens) -> dict[str, Int[Tensor, "batch column"]]:
        """Intermediate variables of an algorithm for the task, by name: candidates to look for inside a model.

        Example:
            >>> import algoscope as ag, torch
            >>> task = ag.Addition(n_digits=3)
            >>> task.variables_of(torch.tensor([task.sequence("199+1")]))["carry"].tolist()  # units, tens, hundreds
            [[1, 1, 0]]
        """
        return self._inputs.variables(tokens) if self.gives("variables") else {}
