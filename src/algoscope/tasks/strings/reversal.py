"""Reversal: the prompt `abcde|`, then the letters in reverse order, `edcba<EOS>`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from algoscope.core.arguments import Natural, Share
from algoscope.core.errors import VocabularyError
from algoscope.core.numbers import how_many
from algoscope.tasks.base import Task, Tokens, spans
from algoscope.tasks.strings.letters import Letters, draw_letters

SEPARATOR, EOS, PAD = "|", "<EOS>", "<PAD>"
RESERVED = "|<>"  # used in the separator and the special tokens


class Reversal(Task):
    """`length` letters of any alphabet, a separator, and the same letters in reverse order. Letters may repeat.

    Its classes: `distinct` (how many different letters) and `palindrome` (is the answer the input itself?).

    Args:
        alphabet: the letters, each once, in their order.
        length: letters in each input.

    Example:
        >>> import algoscope as ag
        >>> ag.Reversal(length=5).expected("abcde")
        'edcba<EOS>'
    """

    kind: Literal["reversal"] = "reversal"
    alphabet: str = Field(default="abcdefgh", min_length=2, description="the letters, each once, in their order")
    length: int = Field(default=5, ge=1, description="letters in each input")

    @model_validator(mode="after")
    def _writable(self) -> "Reversal":
        twice = [letter for letter in self.alphabet if self.alphabet.count(letter) > 1]
        if twice:
            raise ValueError(f"alphabet {self.alphabet!r} has {twice[0]!r} more than once; give each letter once")
        barred = [letter for letter in self.alphabet if letter in RESERVED or letter.isspace()]
        if barred:
            raise ValueError(f"alphabet {self.alphabet!r} has {barred[0]!r}; {RESERVED} and spaces are not allowed")
        if self.domain_size >= 2**63:
            raise ValueError(f"{self.length} letters of {len(self.alphabet)} are 2^63 inputs or more; ask for fewer")
        return self

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return (*self.alphabet, SEPARATOR, EOS, PAD)

    @property
    def n_ctx(self) -> int:
        return 2 * self.length + 2

    @property
    def prompt_length(self) -> int:
        return self.length + 1

    @property
    def parts(self) -> Mapping[str, slice]:
        n = self.length
        return {
            "letters": slice(0, n),
            SEPARATOR: slice(n, n + 1),
            "reversed so far": slice(n + 1, self.n_ctx - 1),
        }

    @property
    def sources(self) -> Mapping[str, Mapping[int, tuple[int, ...]]]:
        """The anti-diagonal: the letter predicted at position q is that at 2 n - 1 - q."""
        n = self.length
        return {"letter": {query: (2 * n - 1 - query,) for query in range(n, 2 * n)}}

    @property
    def ordinals(self) -> tuple[str, ...]:
        """The letters, in the order of the alphabet, which has no meaning for this task."""
        return tuple(self.alphabet)

    @property
    def used_tokens(self) -> tuple[str, ...]:
        return self.vocabulary[:-1]

    def prompt(self, text: str) -> str:
        written = re.fullmatch(rf"\s*([{re.escape(self.alphabet)}]+)\s*\|?\s*", text)
        if written is None:
            self.encode(text)  # raises for a character outside the vocabulary
            example = (self.alphabet * self.length)[: self.length]
            raise VocabularyError(f"{text!r} is not {self.length} letters of {self.alphabet}: write it as {example}")
        letters = written.group(1)
        if len(letters) != self.length:
            raise VocabularyError(f"{letters!r} has {len(letters)} letters; the task reverses {self.length}")
        return letters + SEPARATOR

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        return self.sequences(self.letters(prompts))

    @property
    def domain_size(self) -> int:
        return len(self.alphabet) ** self.length

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        return self.sequences(index[:, None] // self._weights(index.device) % len(self.alphabet))

    def sample(self, n: Natural, generator: torch.Generator, hard_share: Share = 0.0) -> Tokens:
        """Hard draws have at most two different letters: a model that finds a letter by content instead of by position
        cannot tell equal letters apart.
        """
        return self.sequences(draw_letters(n, self.length, len(self.alphabet), generator, hard_share))

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        return (self.letters(tokens) * self._weights(tokens.device)).sum(dim=1)

    def edge_inputs(self) -> Tokens:
        """Edge cases; for 5 of 8 letters abcde, edcba, aaaaa, hhhhh, ababa, abcba, aaaab, baaaa."""
        n, last = self.length, len(self.alphabet) - 1
        up = torch.arange(n) % (last + 1)
        inward = torch.minimum(torch.arange(n), torch.arange(n - 1, -1, -1)) % (last + 1)
        one_at_end = (torch.arange(n) == n - 1).long()
        rows = [up, up.flip(0), 0 * up, 0 * up + last, torch.arange(n) % 2, inward, one_at_end, one_at_end.flip(0)]
        return self.sequences(torch.stack(rows))

    # ------------------------------------------------------------------ letters

    def sequences(self, letters: Letters) -> Tokens:
        """Whole sequences for letters given by their numbers in the alphabet: prompt, reversed letters, `<EOS>`."""
        separator = torch.full_like(letters[:, :1], len(self.alphabet))
        return torch.cat([letters, separator, letters.flip(1), separator + 1], dim=1)

    def letters(self, tokens: Int[Tensor, "batch read"]) -> Letters:
        """The letters in the prompts of `tokens` (whole sequences or prompts alone), by their numbers."""
        return tokens[:, : self.length]

    def _weights(self, device: torch.device) -> Int[Tensor, "column"]:
        """The weight of each letter in the index of an input; that of the first is the largest."""
        return len(self.alphabet) ** torch.arange(self.length - 1, -1, -1, device=device)

    # ------------------------------------------------------------------ classes

    def variables_of(self, tokens: Tokens) -> dict[str, Int[Tensor, "batch column"]]:
        """For each letter of the answer, in the order written: `source`, the position it is copied from, and `letter`,
        its number in the alphabet.
        """
        letter = self.letters(tokens).flip(1)
        source = torch.arange(self.length - 1, -1, -1, device=tokens.device).expand_as(letter)
        return {"source": source, "letter": letter}

    @property
    def class_schemes(self) -> tuple[str, ...]:
        return ("distinct", "palindrome")

    def class_names(self, by: str) -> Mapping[str, str]:
        """`distinct`: D1, D2, ... by the number of different letters. `palindrome`: is the answer the input itself?"""
        self._check_scheme(by)
        if by == "palindrome":
            return {"other": "reads differently backwards", "palindrome": "reads the same backwards"}
        most = min(self.length, len(self.alphabet))
        return {"D1": "one letter throughout"} | {f"D{n}": f"{n} different letters" for n in range(2, most + 1)}

    def class_phrases(self, by: str) -> Iterator[tuple[str, Sequence[int]]]:
        yield from super().class_phrases(by)
        if by == "palindrome":
            yield "the input reads differently backwards", (0,)
            yield "the input reads the same backwards", (1,)
            return
        most = len(self.class_names(by))
        for kinds in spans(most):
            alike, number = kinds[-1] == 0, how_many(kinds[0] + 1, kinds[-1] + 1, 1, most)
            yield "the input is one letter throughout" if alike else f"the input has {number} different letters", kinds

    def class_of(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        self._check_scheme(by)
        letters = self.letters(tokens)
        if by == "palindrome":
            return (letters == letters.flip(1)).all(dim=1).long()
        in_order = letters.sort(dim=1).values
        return (in_order[:, 1:] != in_order[:, :-1]).long().sum(dim=1)
