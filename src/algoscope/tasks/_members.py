"""The members of a task of one's own, called prompt by prompt: what they give is checked and becomes token ids."""

import random
import re
import sys
import traceback
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from sysconfig import get_path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.core.errors import AlgoscopeError, TaskError, shown

Prompt = str | Sequence[str]
Rows = Int[Tensor, "batch pos"]
TWICE = 64  # answers, prompts and draws that are asked for twice
FAULTS = (Exception, SystemExit)  # what code of the user's raises, but for an interruption
LIBRARIES = (str(Path(__file__).parents[1]), "<frozen", *map(get_path, ("stdlib", "purelib")))  # not the user's code


class Members:
    """The members of a task: prompts of one length, each with an answer; answers have one length too.

    `prompts` may list them, or `draw` draws them. Both give prompts as texts or as lists of tokens, and `answer`,
    `classes`, `variables` and `corrupt` get them in the form in which these give them.
    """

    def __init__(self, task: Any) -> None:
        self.task, self.kind = task, task.kind
        self.number = {token: number for number, token in enumerate(task.vocabulary)}
        self.is_listed = task.gives("prompts")
        with redirect_stdout(sys.stderr):  # what the code prints is no result
            first = self._first()
            self.as_text = isinstance(first, str)
            ids = self.ids("prompts" if self.is_listed else "draw", (), first)
            [(prompt, answer)] = self.each("answer", [self.written(ids)])
            if task.gives("draw"):
                self._check_draws()
        self.prompt_length, self.answer_length = len(ids), len(self.ids("answer", prompt, answer))

    # ------------------------------------------------------------------ calling the members

    def fault(self, text: str) -> TaskError:
        return TaskError(f"{self.kind}: {text}")

    def each(self, member: str, arguments: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Each argument with what a member gives for it."""
        function, argument = getattr(self.task, member), None
        try:
            for argument in arguments:
                yield argument, function(argument)
        except AlgoscopeError:
            raise
        except FAULTS as error:
            raise failed(self.kind, f"{member}({shown(argument)})", error) from error

    def _quietly(self, member: str, arguments: Iterable[Any]) -> list[tuple[Any, Any]]:
        """The same at once; what the code prints goes to standard error."""
        with redirect_stdout(sys.stderr):
            return list(self.each(member, arguments))

    def listed(self, member: str = "prompts") -> Iterator[Any]:
        """What `prompts()` or `edge_cases()` gives, one by one."""
        function: Callable[[], Any] = getattr(self.task, member)
        try:
            prompts = function()
            if isinstance(prompts, str) or not isinstance(prompts, Iterable):
                raise self.fault(f"{member}() gives {shown(prompts)}: give a list of prompts")
            yield from prompts
        except AlgoscopeError:
            raise
        except FAULTS as error:
            raise failed(self.kind, f"{member}()", error) from error

    def drawn(self, n: int, seed: int) -> Iterator[Any]:
        """`n` prompts from `draw`."""
        generator = random.Random(seed)
        return (prompt for _, prompt in self.each("draw", (generator for _ in range(n))))

    def _check_draws(self) -> None:
        """Raise TaskError where draws from the same random numbers differ."""
        one, other = ([self.ids("draw", (), prompt) for prompt in self.drawn(TWICE, 0)] for _ in range(2))
        if one != other:
            raise self.fault("draw(random) gives other prompts for the same seed: draw with its argument")

    def _first(self) -> Any:
        for prompt in islice(self.listed(), 1) if self.is_listed else self.drawn(1, 0):
            return prompt
        raise self.fault("prompts() gives no prompt")

    # ------------------------------------------------------------------ tokens

    def ids(self, member: str, prompt: Any, value: Any) -> list[int]:
        """The token ids of what a member gave for a prompt: a token, a text, or a list of tokens."""
        number = self.number
        try:
            if isinstance(value, Set | Mapping):
                raise TypeError  # they have no order of tokens
            elif not isinstance(value, str):
                ids = [number[token] for token in value]
            elif value in number:
                ids = [number[value]]
            elif self.task.joint:
                ids = [number[token] for token in value.split()]
            else:
                ids = [number[token] for token in value] if number.keys() >= set(value) else self._parsed(value)
        except KeyError as error:
            token = error.args[0]
            hint = "" if isinstance(token, str) else f", and is {shown(token)}, not a text"
            raise self.fault(
                f"{self._call(member, prompt)} gives {shown(value)}: {token!r} is not in the vocabulary{hint}"
            ) from None
        except TypeError:
            raise self.fault(
                f"{self._call(member, prompt)} gives {shown(value)}: give a token, a text, or a list of tokens"
            ) from None
        if not ids:
            raise self.fault(f"{self._call(member, prompt)} gives nothing: {shown(value)} has no token")
        return ids

    def _parsed(self, text: str) -> list[int]:
        """A text of tokens without spaces, some of them longer than a letter, such as `<EOS>`."""
        pattern = "|".join(re.escape(token) for token in sorted(self.number, key=len, reverse=True))
        return [self.number[token] for token in re.findall(f"{pattern}|.", text, flags=re.DOTALL)]

    @staticmethod
    def _call(member: str, prompt: Any) -> str:
        return f"{member}()" if prompt == () else f"{member}({shown(prompt)})"

    def written(self, ids: Sequence[int]) -> Prompt:
        """A prompt in the form in which the members take it."""
        return self.task.decode(ids) if self.as_text else tuple(self.task.vocabulary[number] for number in ids)

    def rows(self, prompts: Iterable[Any], member: str) -> Rows:
        """Whole sequences, prompt and answer, for prompts that a member gave."""
        tokens, n_ctx = array("q"), self.prompt_length + self.answer_length
        with redirect_stdout(sys.stderr):
            for prompt, ids, answer in self._answered(prompts, member):
                right = self.ids("answer", prompt, answer)
                if len(right) != self.answer_length:
                    raise self.fault(
                        f"answers have different lengths: answer({shown(prompt)}) has {len(right)} tokens, that to "
                        f"{shown(self._first())} {self.answer_length}; fill the shorter ones with a token of your own"
                    )
                tokens.extend(ids)
                tokens.extend(right)
        return torch.from_numpy(np.array(tokens, dtype=np.int64).reshape(-1, n_ctx))

    def _answered(self, prompts: Iterable[Any], member: str) -> Iterator[tuple[Prompt, list[int], Any]]:
        """Prompts in the form of the members, their token ids, and what `answer` gives."""
        ids: list[int] = []

        def checked() -> Iterator[Prompt]:
            nonlocal ids
            for prompt in prompts:
                ids = self.prompt_ids(member, prompt)
                if self.as_text:
                    yield prompt if isinstance(prompt, str) else self.written(ids)
                else:
                    yield self.written(ids) if isinstance(prompt, str) else tuple(prompt)

        for prompt, answer in self.each("answer", checked()):
            yield prompt, ids, answer

    def prompt_ids(self, member: str, prompt: Any) -> list[int]:
        ids = self.ids(member, (), prompt)
        if len(ids) != self.prompt_length:
            raise self.fault(
                f"prompts have different lengths: {shown(prompt)} has {len(ids)} tokens, {shown(self._first())} "
                f"{self.prompt_length}; fill the shorter ones with a token of your own"
            )
        return ids

    def check_repeats(self, rows: Rows) -> None:
        """Raise TaskError where an answer differs from that which was given before."""
        some = rows[:: -(-len(rows) // TWICE)].flip(0)  # in another order, for answers that depend on it
        prompts = [self.written(row) for row in some[:, : self.prompt_length].tolist()]
        for row, again in zip(some, self.rows(prompts, "prompts"), strict=True):
            if not torch.equal(row, again):
                prompt = self.written(row[: self.prompt_length].tolist())
                one, other = (self.task.decode(each[self.prompt_length :].tolist()) for each in (row, again))
                raise self.fault(
                    f"answer({shown(prompt)}) gives {one!r}, then {other!r}: an answer depends on its prompt alone"
                )


def failed(kind: str, call: str, error: BaseException) -> TaskError:
    """An exception of the user's code, in one line with its place."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(LIBRARIES)]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return TaskError(f"{kind}: {call} fails with {reason}{where}")
