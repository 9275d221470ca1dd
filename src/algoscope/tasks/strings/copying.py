"""Copying: a short random pattern, repeated to the end of the sequence, `abcabcabc...`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from string import ascii_lowercase
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from algoscope.core.arguments import Natural, Share
from algoscope.core.errors import ConfigError, VocabularyError
from algoscope.core.numbers import how_many
from algoscope.tasks.base import Task, Tokens, spans
from algoscope.tasks.strings.letters import Letters, draw_letters

LARGEST = 2**24  # largest domain over which losses are summed
PORTION = 2**16  # sequences per batch of such a sum


class Copying(Task):
    """A pattern of `shortest` to `longest` letters, repeated and cut at `length`. Letters of a pattern may repeat.

    The prompt is the shortest prefix that determines the rest for every pattern: `longest` + (`longest` - 1) - 1
    letters, or `longest` where all patterns are equally long. Two sequences with a common prefix of
    p + q - gcd(p, q) letters, one with pattern length p and one with q, are equal; for shorter prefixes there are
    counterexamples (Fine and Wilf 1965). There is no separator and no end-of-sequence.

    An input is a sequence; several patterns may give the same one (`aaa` and `aaaa` do). There are 37,360 with 8
    letters and patterns of 3 to 5. A draw is a pattern: first its length, uniformly, then each letter, uniformly.

    Its classes: `period` (the smallest number of letters that repeats) and `context` (the number of letters that
    determines the next one).

    Args:
        n_symbols: letters: the first of the alphabet.
        length: tokens in a sequence.
        shortest: letters in the shortest pattern.
        longest: letters in the longest pattern.

    Example:
        >>> import algoscope as ag
        >>> task = ag.Copying(n_symbols=8, length=12, shortest=3, longest=3)
        >>> task.prompt("abc"), task.expected("abc")
        ('abc', 'abcabcabc')
    """

    uniform: ClassVar[bool] = False
    kind: Literal["copying"] = "copying"
    n_symbols: int = Field(default=8, ge=2, le=len(ascii_lowercase), description="letters: the first of the alphabet")
    length: int = Field(default=24, ge=2, description="tokens in a sequence")
    shortest: int = Field(default=3, ge=1, description="letters in the shortest pattern")
    longest: int = Field(default=5, ge=1, description="letters in the longest pattern")

    @model_validator(mode="after")
    def _fits(self) -> "Copying":
        if self.shortest > self.longest:
            raise ValueError(f"shortest {self.shortest} is above longest {self.longest}")
        if self.longest >= 63 or sum(self.n_symbols**n for n in self.lengths) >= 2**63:
            raise ValueError(
                f"patterns of {self.shortest} to {self.longest} of {self.n_symbols} letters are 2^63 inputs or more; "
                "ask for fewer"
            )
        if self.length <= self.prompt_length:
            raise ValueError(
                f"length {self.length} leaves nothing to copy: the first {self.prompt_length} letters fix the rest"
            )
        return self

    @property
    def lengths(self) -> range:
        """The lengths that a pattern may have."""
        return range(self.shortest, self.longest + 1)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return tuple(ascii_lowercase[: self.n_symbols])

    @property
    def n_ctx(self) -> int:
        return self.length

    @property
    def prompt_length(self) -> int:
        return self.longest if self.shortest == self.longest else 2 * self.longest - 2

    @property
    def parts(self) -> Mapping[str, slice]:
        return {
            "beginning": slice(0, self.prompt_length),
            "copied so far": slice(self.prompt_length, self.length - 1),
        }

    @property
    def ordinals(self) -> tuple[str, ...]:
        """The letters in the order of the alphabet, which has no meaning for this task."""
        return self.vocabulary

    @property
    def used_tokens(self) -> tuple[str, ...]:
        return self.vocabulary

    # ------------------------------------------------------------------ text

    def prompt(self, text: str) -> str:
        """The prompt for a pattern (`abc`), or for a prefix of a sequence that is longer than any pattern."""
        written = text.strip()
        letters = torch.tensor([self.encode(written)], dtype=torch.long)
        lengths = f"{self.shortest} to {self.longest}" if len(self.lengths) > 1 else f"{self.longest}"
        if letters.shape[1] <= self.longest:
            if letters.shape[1] < self.shortest:
                raise VocabularyError(f"{written!r} has {letters.shape[1]} letters; a pattern has {lengths}")
            return self.decode(self._repeated(letters, self.prompt_length)[0].tolist())
        fitting = [n for n in self.lengths if bool(_repeats(letters, n))]
        if not fitting:
            raise VocabularyError(
                f"{written!r} repeats no pattern of {lengths} letters: write one, such as {self._shown}"
            )
        prompts = {tuple(self._repeated(letters[:, :n], self.prompt_length)[0].tolist()) for n in fitting}
        if len(prompts) > 1:
            raise VocabularyError(
                f"{written!r} is a prefix of several sequences: write its pattern of {lengths} letters, or "
                f"{self.prompt_length} letters"
            )
        return self.decode(prompts.pop())

    @property
    def _shown(self) -> str:
        """An example of a pattern, for error messages."""
        return "".join(self.vocabulary[pos % self.n_symbols] for pos in range(self.longest))

    def neighbour(self, text: str) -> str:
        """The pattern with one letter changed, and with it every copy: the last letter, if the answer is long enough to
        contain it; if possible to a letter that is not in the pattern.
        """
        prompt = torch.tensor([self.encode(self.prompt(text))])
        n = int(self._pattern_length(prompt))
        pattern = prompt[:, :n].clone()
        pos = n - 1 if self.length - self.prompt_length >= n else (self.length - 1) % n
        others = [token for token in range(self.n_symbols) if token != pattern[0, pos]]
        pattern[0, pos] = next((token for token in others if token not in pattern), others[0])
        return self.decode(self._repeated(pattern, self.prompt_length)[0].tolist())

    # ------------------------------------------------------------------ inputs

    @property
    def domain_size(self) -> int:
        return sum(often * self.n_symbols**n for n, often in self._counted.items())

    def at(self, index: Int[Tensor, "batch"]) -> Tokens:
        """Decodes the index letter by letter, by counting the inputs with each prefix."""
        left, prompts = index, torch.zeros(len(index), 0, dtype=torch.long, device=index.device)
        for pos in range(self.prompt_length):
            begin = torch.zeros(len(index), self.n_symbols, dtype=torch.long, device=index.device)
            for n, often in self._counted.items():
                fits = often * _repeats(prompts, n).long()
                if pos < n:
                    begin += (fits * self.n_symbols ** (n - 1 - pos))[:, None]
                else:
                    begin.scatter_add_(1, prompts[:, pos - n, None], fits[:, None])
            passed = begin.cumsum(dim=1)
            letter = (passed <= left[:, None]).sum(dim=1, keepdim=True)
            left = left - (passed - begin).gather(1, letter)[:, 0]
            prompts = torch.cat([prompts, letter], dim=1)
        return self.completed(prompts)

    def sample(self, n: Natural, generator: torch.Generator, hard_share: Share = 0.0) -> Tokens:
        """Hard draws have at most two different letters: then the same letter has different successors, so copying what
        followed its last occurrence is not enough.
        """
        device = generator.device
        length = torch.randint(self.shortest, self.longest + 1, (n, 1), generator=generator, device=device)
        letters = draw_letters(n, self.longest, self.n_symbols, generator, hard_share)
        return letters.gather(1, torch.arange(self.length, device=device) % length)

    def keys(self, tokens: Tokens) -> Int[Tensor, "batch"]:
        """The index of each input in the domain: the number of inputs before it in lexicographic order."""
        prompts = tokens[:, : self.prompt_length]
        pos = torch.arange(self.prompt_length, device=tokens.device)
        total = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        for n, often in self._counted.items():
            earlier = prompts * self.n_symbols ** (n - 1 - pos).clamp(min=0)
            earlier[:, n:] = prompts[:, :-n] < prompts[:, n:]
            fits = torch.ones_like(prompts, dtype=torch.bool)  # up to the letter before
            fits[:, n + 1 :] = (prompts[:, n:] == prompts[:, :-n]).cumprod(dim=1)[:, :-1].bool()
            total += often * (earlier * fits).sum(dim=1)
        return total

    @cached_property
    def _periods(self) -> tuple[int, ...]:
        """The possible smallest periods of sequences: the divisors of pattern lengths."""
        return tuple(d for d in range(1, self.longest + 1) if any(n % d == 0 for n in self.lengths))

    @cached_property
    def _counted(self) -> dict[int, int]:
        """The coefficient for each n of the sequences that repeat n letters, such that every input is counted once.

        The number with smallest period d is the sum over n that divide d of mobius(d / n) times the number that
        repeat n.
        """
        times = {n: sum(mobius(d // n) for d in self._periods if d % n == 0) for n in self._periods}
        return {n: often for n, often in times.items() if often}

    def edge_inputs(self) -> Tokens:
        """Edge cases: for 8 letters the patterns abcde, abc, aaaaa, hhhhh, aaaab, abcba, edcba, abab."""
        k, last = self.n_symbols, self.n_symbols - 1
        up, up_short, two = (torch.arange(n) % m for n, m in ((self.longest, k), (self.shortest, k), (self.longest, 2)))
        inward = torch.minimum(torch.arange(self.longest), torch.arange(self.longest - 1, -1, -1)) % k
        at_end = (torch.arange(self.longest) == self.longest - 1).long()
        even = two[: self.longest - 1] if self.longest % 2 and self.shortest < self.longest else two
        patterns = [up, up_short, 0 * up, 0 * up + last, at_end, inward, up.flip(0), even]
        return torch.cat([self._repeated(pattern[None], self.length) for pattern in patterns])

    # ------------------------------------------------------------------ sequences

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        return self._copied(prompts, self._pattern_length(prompts), self.length)

    def _pattern_length(self, tokens: Int[Tensor, "batch read"]) -> Int[Tensor, "batch"]:
        """The shortest pattern of an allowed length that these prompts or sequences repeat."""
        fits = torch.stack([_repeats(tokens[:, : self.prompt_length], n) for n in self.lengths], dim=1)
        return fits.long().argmax(dim=1) + self.shortest

    def _copied(
        self, tokens: Int[Tensor, "batch read"], period: Int[Tensor, "batch"], length: int
    ) -> Int[Tensor, "batch column"]:
        """The first `period` letters of each row, repeated and cut at `length`."""
        return tokens.gather(1, torch.arange(length, device=tokens.device) % period[:, None])

    def _repeated(self, pattern: Letters, length: int) -> Tokens:
        """One pattern per row, all of one length, repeated and cut at `length`."""
        return pattern[:, torch.arange(length, device=pattern.device) % pattern.shape[1]]

    # ------------------------------------------------------------------ irreducible loss

    def surprisal(self, tokens: Tokens) -> Float[Tensor, "batch predicted"]:
        """-ln P(token | all tokens before it), in nats, of every token but the first, under the distribution of
        draws: no predictor has a smaller mean. Infinite where a token is impossible, and NaN after it.

        The first t tokens have probability mean over n of [they repeat a pattern of n letters] n_symbols^-min(t, n).
        """
        total = []
        for n in self.lengths:
            agrees = torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
            agrees[:, n:] = tokens[:, n:] == tokens[:, :-n]
            free = torch.arange(1, tokens.shape[1] + 1, device=tokens.device).clamp(max=n)
            total.append(agrees.cumprod(dim=1) * float(self.n_symbols) ** -free.double())
        chance = torch.stack(total).mean(dim=0)
        return chance[:, :-1].log() - chance[:, 1:].log()

    @cached_property
    def irreducible_losses(self) -> Float[Tensor, "predicted"]:
        """The mean surprisal of each predicted token over draws, in nats: a sum over all inputs, in float64.

        Raises ConfigError for a task of more than 2^24 inputs.
        """
        if self.domain_size > LARGEST:
            raise ConfigError(f"{self.domain_size:,} inputs are too many to sum over: see irreducible_loss")
        losses = torch.zeros(self.length - 1, dtype=torch.double)
        for index in torch.arange(self.domain_size).split(PORTION):
            tokens = self.at(index)
            losses += self.chance(tokens) @ self.surprisal(tokens)
        return losses

    @property
    def irreducible_loss(self) -> float:
        """The smallest expected loss on fresh draws, in nats per predicted token: that of the optimal predictor. A
        model can be below it on sequences that it has memorised.

        It is the entropy of a draw minus that of its first letter, divided by the number of predicted tokens: the
        cross-entropy of any other predictor exceeds it by a KL divergence. All inputs of one smallest period d have the
        same probability, the mean over n of [d divides n] n_symbols^-n.
        """
        k, entropy = self.n_symbols, 0.0
        for d in self._periods:
            inputs = sum(mobius(d // n) * k**n for n in range(1, d + 1) if d % n == 0)
            chance = sum(float(k) ** -n for n in self.lengths if n % d == 0) / len(self.lengths)
            entropy -= inputs * chance * math.log(chance)
        return (entropy - math.log(k)) / (self.length - 1)

    def chance(self, tokens: Tokens) -> Float[Tensor, "batch"]:
        """The probability of each of these sequences under draws; over all inputs they sum to 1."""
        ways = [_repeats(tokens, n).double() * float(self.n_symbols) ** -n for n in self.lengths]
        return torch.stack(ways).mean(dim=0)

    # ------------------------------------------------------------------ classes

    def variables_of(self, tokens: Tokens) -> dict[str, Int[Tensor, "batch column"]]:
        """For each token of the answer: `period`, the length of the (shortest) pattern, `source`, the position one
        period back, which holds the same letter, and `letter`, its number in the alphabet.
        """
        pos = torch.arange(self.prompt_length, self.length, device=tokens.device)
        period = self._pattern_length(tokens)[:, None].expand(-1, len(pos))
        source = pos - period
        return {"period": period, "source": source, "letter": tokens.gather(1, source)}

    @property
    def class_schemes(self) -> tuple[str, ...]:
        return ("period", "context")

    def class_names(self, by: str) -> Mapping[str, str]:
        """`period`: P1, P2, ... by the smallest number of letters that the sequence repeats, which divides the length
        of its pattern: `aaa` is P1, `abab` P2. `context`: C0, C1, ... by how many previous letters determine the
        next one at every position: for C1 the current letter is enough, for C2 the letter before it is needed too.
        """
        self._check_scheme(by)
        if by == "context":
            few = {"C0": "one letter throughout", "C1": "each letter is always followed by the same one"}
            more = {f"C{n}": f"the last {n} letters determine the next" for n in range(2, self.longest)}
            return dict(list((few | more).items())[: self.longest])
        return {f"P{d}": "one letter throughout" if d == 1 else f"repeats {d} letters" for d in self._periods}

    def class_phrases(self, by: str) -> Iterator[tuple[str, Sequence[int]]]:
        yield from super().class_phrases(by)
        numbers = self._periods if by == "period" else range(self.longest)  # of letters
        for kinds in spans(len(numbers)):
            first, last = numbers[kinds[0]], numbers[kinds[-1]]
            alike = last == numbers[0] and last <= 1
            number = how_many(first, last, numbers[0], numbers[-1])
            if alike:
                yield "the sequence is one letter throughout", kinds
            elif by == "period":
                yield f"the sequence repeats {number} letters", kinds
            else:
                yield f"{number} letter{' determines' if last == 1 else 's determine'} the next", kinds

    def class_of(self, tokens: Tokens, by: str) -> Int[Tensor, "batch"]:
        self._check_scheme(by)
        period = self._pattern_length(tokens)
        written = self._copied(tokens, period, 3 * self.longest)  # enough to compare any two positions
        if by == "context":
            return self._context(written)
        fits = torch.stack([_repeats(written, d) for d in range(1, self.longest + 1)], dim=1)
        smallest = fits.long().argmax(dim=1) + 1
        return torch.searchsorted(torch.tensor(self._periods, device=tokens.device), smallest)

    def _context(self, written: Int[Tensor, "batch column"]) -> Int[Tensor, "batch"]:
        """One more than the length of the longest substring that has two different successors."""
        needed = torch.zeros(len(written), dtype=torch.long, device=written.device)
        for shift in range(1, self.longest):
            same = written[:, shift:] == written[:, :-shift]
            run = torch.zeros_like(needed)
            for column in same.unbind(dim=1):
                needed = torch.where(column, needed, torch.maximum(needed, run + 1))
                run = torch.where(column, run + 1, 0)
        return needed


def _repeats(tokens: Int[Tensor, "batch column"], n: int) -> Bool[Tensor, "batch"]:
    """Whether every letter equals the one `n` positions before it."""
    return (tokens[:, n:] == tokens[:, :-n]).all(dim=1)


def mobius(n: int) -> int:
    """1 or -1 for a product of an even or odd number of different primes, 0 where a square divides n."""
    sign = 1
    for prime in range(2, n + 1):
        if n % prime == 0:
            n //= prime
            if n % prime == 0:
                return 0
            sign = -sign
    return sign
