"""How a task's tokens are written: texts to token ids and back, by the vocabulary alone; which of them are digits."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from algoscope.core.errors import TaskMismatchError, VocabularyError
from algoscope.core.sections import Section

LISTED = 40  # longest vocabulary that an error lists in full


class Written(Section):
    """Texts in a vocabulary. Tokens are joined without spaces, or with spaces where `joint` is one."""

    kind: str
    whole_numbers: ClassVar[bool] = False  # is a run of digits one token, or each digit a token of its own?

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens in order: token i is written `vocabulary[i]`; `<EOS>`, where there is one, ends sequences."""
        raise NotImplementedError

    @property
    def n_ctx(self) -> int:
        """Tokens in one whole sequence."""
        raise NotImplementedError

    @property
    def joint(self) -> str:
        """What stands between the tokens of a text: nothing, or a space."""
        return ""

    @cached_property
    def token_pattern(self) -> re.Pattern[str]:
        """The next token of a text."""
        longest_first = sorted(self.vocabulary, key=len, reverse=True)
        ends = {token: r"(?![0-9])" if self.whole_numbers and token.isdecimal() else "" for token in longest_first}
        either = "|".join(re.escape(token) + end for token, end in ends.items())
        return re.compile(rf"({either})(?:\s+|$)" if self.joint else f"({either})")

    def encode(self, text: str) -> list[int]:
        """Token ids of a text written in the vocabulary.

        Raises:
            VocabularyError: for a character (or a whole number) that no token covers, and for a text longer than the
                context.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).encode("12+<EOS>")
            [1, 2, 10, 12]
        """
        ids, at = [], 0
        text = text.strip() if self.joint else text
        while at < len(text):
            match = self.token_pattern.match(text, at)
            if match is None:
                one = r"\S+" if self.joint else "[0-9]+|." if self.whole_numbers else "."
                unknown = re.findall(one, text[at:], flags=re.DOTALL)[0]
                raise VocabularyError(
                    f"{unknown!r} at character {at + 1} of {text!r} is not in the vocabulary of {self.kind}: "
                    f"{' '.join(self.listed)}"
                )
            ids.append(self.vocabulary.index(match[1]))
            at = match.end()
        if len(ids) > self.n_ctx:
            raise VocabularyError(f"{text!r} has {len(ids)} tokens; the context of {self.kind} holds {self.n_ctx}")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).decode([1, 2, 10, 12])
            '12+<EOS>'
        """
        return self.joint.join(map(self.token, ids))

    def token(self, number: int) -> str:
        """A token as it is written; one beyond the vocabulary, which a model with more logits may give, as `<59>`.

        Example:
            >>> import algoscope as ag
            >>> ag.Modular(p=5).token(4), ag.Modular(p=5).token(59)
            ('4', '<59>')
        """
        return self.vocabulary[number] if number < len(self.vocabulary) else f"<{number}>"

    @property
    def d_vocab(self) -> int:
        """The number of tokens in the vocabulary."""
        return len(self.vocabulary)

    @property
    def listed(self) -> tuple[str, ...]:
        """The vocabulary for display; of a long one the first and last tokens."""
        known = self.vocabulary
        return known if len(known) <= LISTED else (*known[: LISTED // 4], "...", *known[-LISTED // 4 :])

    # ------------------------------------------------------------------ positions

    @property
    def sources(self) -> Mapping[str, Mapping[int, tuple[int, ...]]]:
        """The positions that determine the answer, by name: for each position at which an answer token is predicted,
        the positions of the tokens that determine it. Empty where the task names none.
        """
        return {}

    @property
    def significance(self) -> tuple[int, ...] | None:
        """The significance of the digit at each position of a sequence: 1 for the units, 2 for the tens and so on; 0
        for tokens that are no digit of a number. None where the task has no digits.
        """
        return None

    @property
    def width(self) -> int | None:
        """The number of digits of its inputs; None for a task without a width."""
        return None

    def of_width(self, width: int) -> Any:
        """The same task at another width, such as sums of more digits.

        Raises:
            TaskMismatchError: for a task that has no width.

        Example:
            >>> import algoscope as ag
            >>> ag.Addition(n_digits=3).of_width(5).prompt("1+2")
            '00001+00002='
        """
        raise TaskMismatchError(f"the task {self.kind} has no width")
