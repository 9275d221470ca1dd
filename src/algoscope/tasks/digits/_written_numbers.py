"""How two numbers and a result are written as tokens: widths, order of digits, separators, vocabulary."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from functools import cache, cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from algoscope.core.errors import VocabularyError
from algoscope.tasks.base import Task, Tokens

DIGITS = tuple("0123456789")
EOS, PAD = "<EOS>", "<PAD>"
NAMES = ("units", "tens", "hundreds", "thousands")  # of columns; beyond, by their power of ten

Digits = Int[Tensor, "batch digit"]  # as we write them, both operands with leading zeros to the wider one's digits
Columns = Int[Tensor, "batch _"]  # units first; the result may have more or fewer of them than the operands


class WrittenNumbers(Task):
    """Two numbers with leading zeros and a result, as tokens: `123+456=9750<EOS>`, or the same digits otherwise.

    By default tokens 0 to 9 are the digits, then come the sign, `=`, `<EOS>` and `<PAD>`: all signs have one token id,
    so that weights of one task run on another.
    """

    sign: ClassVar[str]
    result: ClassVar[str]  # name of the answer

    n_digits: int = Field(default=3, ge=1, le=200, description="digits of each operand")
    reversed: bool = Field(default=True, description="write the result with its units digit first")
    operands_reversed: bool = Field(
        default=False, description="write the operands with their units digit first, too: 321+654= means 123 + 456"
    )
    second_digits: int | None = Field(None, ge=1, le=200, description="digits of the second operand; None: n_digits")
    answer_digits: int | None = Field(
        None, ge=1, le=400, description="digits of the result, its lowest; None: one more than the wider operand"
    )
    prefix: str = Field("", description="tokens before the first operand, such as 0 or <BOS>")
    between: str | None = Field(None, description="tokens between the operands, such as 000; None: the sign")
    equals: str = Field("=", description="tokens before the result; empty: none")
    ends: bool = Field(True, description="sequences end with <EOS>")
    padding: bool = Field(True, description="the vocabulary has <PAD>")
    tokens: str | None = Field(
        None, description="the vocabulary in order, such as +=0123456789<EOS>; None: digits, signs, <EOS>, <PAD>"
    )

    @model_validator(mode="after")
    def _has_its_tokens(self) -> "WrittenNumbers":
        listed = self.vocabulary
        twice = [token for token in listed if listed.count(token) > 1]
        if twice:
            raise ValueError(f"tokens {self.tokens!r} has {twice[0]!r} twice")
        missing = [token for token in self._needed if token not in listed]
        if missing:
            raise ValueError(f"tokens {self.tokens!r} lacks {' '.join(missing)}")
        return self

    # ------------------------------------------------------------------ sequences

    @property
    def _sign_between(self) -> str:
        return self.sign if self.between is None else self.between

    @cached_property
    def _needed(self) -> tuple[str, ...]:
        signs = split_tokens(self._sign_between + self.equals + self.prefix)
        return tuple(dict.fromkeys([*DIGITS, *signs, *[EOS] * self.ends]))

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        if self.tokens is not None:
            return split_tokens(self.tokens)
        return tuple(dict.fromkeys([*self._needed, *[PAD] * self.padding]))

    @cached_property
    def used_tokens(self) -> tuple[str, ...]:
        return tuple(token for token in self.vocabulary if token in self._needed)

    @property
    def ordinals(self) -> tuple[str, ...]:
        return DIGITS

    @property
    def widths(self) -> tuple[int, int]:
        """Digits of the first and of the second operand."""
        return self.n_digits, self.second_digits or self.n_digits

    @property
    def n_columns(self) -> int:
        """Digits of the wider operand."""
        return max(self.widths)

    @property
    def result_digits(self) -> int:
        """Digits of the result as it is written."""
        return self.answer_digits or self.n_columns + 1

    @property
    def _starts(self) -> tuple[int, int]:
        """The positions of the first digits of the operands."""
        start = len(split_tokens(self.prefix))
        return start, start + self.n_digits + len(split_tokens(self._sign_between))

    @property
    def prompt_length(self) -> int:
        return self._starts[1] + self.widths[1] + len(split_tokens(self.equals))

    @property
    def n_ctx(self) -> int:
        return self.prompt_length + self.result_digits + self.ends

    @property
    def answer_names(self) -> tuple[str, ...]:
        names = [NAMES[i] if i < len(NAMES) else f"10^{i}" for i in range(self.result_digits)]
        return (*(names if self.reversed else names[::-1]), *["end"] * self.ends)

    @property
    def parts(self) -> Mapping[str, slice]:
        (first, second), (n, m) = self._starts, self.widths
        ranges = {
            "prefix": slice(0, first),
            "first operand": slice(first, first + n),
            self.sign if self._sign_between == self.sign else "separator": slice(first + n, second),
            "second operand": slice(second, second + m),
            "=" if self.equals == "=" else "before the answer": slice(second + m, self.prompt_length),
            f"{self.result} so far": slice(self.prompt_length, self.n_ctx - 1),
        }
        return {name: part for name, part in ranges.items() if part.start < part.stop}

    @property
    def significance(self) -> tuple[int, ...]:
        def of_number(width: int, units_first: bool) -> range:
            return range(1, width + 1) if units_first else range(width, 0, -1)

        row = [0] * self.n_ctx
        for start, width in zip(self._starts, self.widths, strict=True):
            row[start : start + width] = of_number(width, self.operands_reversed)
        end = self.prompt_length + self.result_digits
        row[self.prompt_length : end] = of_number(self.result_digits, self.reversed)
        return tuple(row)

    @property
    def width(self) -> int:
        return self.n_digits

    def of_width(self, width: int) -> "WrittenNumbers":
        changed = {"n_digits": width}
        for field in ("second_digits", "answer_digits"):
            if (digits := getattr(self, field)) is not None:
                changed[field] = max(1, digits + width - self.n_digits)
        return type(self)(**{**self.model_dump(), **changed})

    def prompt(self, text: str) -> str:
        """A sum with its sign, `12+7`, or a prompt as the model reads it."""
        operands = self._read(text)
        if operands is None:
            if self.sign in self.vocabulary:
                self.encode(text)  # raises for a character outside the vocabulary
            raise VocabularyError(f"{text!r} is not a {self.result}: write it as {self._example}")
        pad = str.ljust if self.operands_reversed else str.rjust
        first, second = (pad(digits, width, "0") for digits, width in zip(operands, self.widths, strict=True))
        return f"{self.prefix}{first}{self._sign_between}{second}{self.equals}"

    def _read(self, text: str) -> tuple[str, str] | None:
        """The digits of the operands in a text, as they are written there; None for a text of another form."""
        prefix, between, equals = map(re.escape, (self.prefix, self._sign_between, self.equals))
        whole = rf"{prefix}(\d{{{self.n_digits}}}){between}(\d{{{self.widths[1]}}}){equals}"
        if (written := re.fullmatch(whole, text, flags=re.ASCII)) is not None:
            return written[1], written[2]
        before, after = ("" if any(map(str.isdigit, sign)) else sign for sign in (prefix, equals))
        typed = rf"\s*(?:{before})?\s*(\d+)\s*{re.escape(self.sign)}\s*(\d+)\s*(?:=|{after})?\s*"
        if (written := re.fullmatch(typed, text, flags=re.ASCII)) is None:
            return None
        cut = str.rstrip if self.operands_reversed else str.lstrip
        first, second = (cut(digits, "0") or "0" for digits in written.groups())
        for digits, width in zip((first, second), self.widths, strict=True):
            if len(digits) > width:
                raise VocabularyError(f"{digits} in {text!r} has {len(digits)} digits; the task has {width}")
        return first, second

    @property
    @abstractmethod
    def _example(self) -> str:
        """An example of an input, for error messages."""

    # ------------------------------------------------------------------ digits

    def written(self, first: Digits, second: Digits, result: Columns) -> Tokens:
        """Whole sequences for operands as digits, and the digits of their result, units first."""
        first, second = (
            digits[:, self.n_columns - n :] for digits, n in zip((first, second), self.widths, strict=True)
        )
        if self.operands_reversed:
            first, second = first.flip(1), second.flip(1)
        to_ids = torch.tensor(self._digit_ids, device=first.device)

        def fixed(text: str) -> Tokens:
            ids = torch.tensor([self.vocabulary.index(token) for token in split_tokens(text)], dtype=torch.long)
            return ids.to(first.device).expand(len(first), -1)

        columns = [
            fixed(self.prefix),
            to_ids[first],
            fixed(self._sign_between),
            to_ids[second],
            fixed(self.equals),
            to_ids[result if self.reversed else result.flip(1)],
            fixed(EOS * self.ends),
        ]
        return torch.cat(columns, dim=1)

    def operand_digits(self, tokens: Int[Tensor, "batch read"]) -> tuple[Digits, Digits]:
        """The digits of the two numbers in the prompts of `tokens` (whole sequences or prompts alone)."""
        to_digits = torch.zeros(self.d_vocab, dtype=torch.long)
        to_digits[list(self._digit_ids)] = torch.arange(10)
        to_digits = to_digits.to(tokens.device)

        def digits(start: int, width: int) -> Digits:
            number = to_digits[tokens[:, start : start + width]]
            return F.pad(number.flip(1) if self.operands_reversed else number, (self.n_columns - width, 0))

        (first, second), (n, m) = self._starts, self.widths
        return digits(first, n), digits(second, m)

    @cached_property
    def _digit_ids(self) -> tuple[int, ...]:
        return tuple(map(self.vocabulary.index, DIGITS))


@cache
def split_tokens(text: str) -> tuple[str, ...]:
    """The tokens of a text: `<NAME>` is one, and so is any other character."""
    return tuple(re.findall(r"<[^<>\s]+>|.", text, flags=re.DOTALL))
