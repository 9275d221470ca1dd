"""The prompts that a report looks at."""

from dataclasses import dataclass

LARGE = 10_000_000  # parameters from which on a report does without a run for every component, and without spectra


@dataclass(frozen=True)
class Prompts:
    """`clean` is the prompt that single inputs are shown with; `corrupt` has another answer; `other` is a second one to
    compare attention on.

    A lens that a report may show has a function `for_report(subject, prompts)` beside it: the options to call it with,
    or None where it does not apply to the subject.
    """

    clean: str
    corrupt: str | None = None
    other: str | None = None

    @property
    def compared(self) -> list[str]:
        """The one or two inputs that stand side by side."""
        return [prompt for prompt in (self.clean, self.other) if prompt]
