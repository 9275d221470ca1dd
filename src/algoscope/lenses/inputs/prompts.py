"""The prompts that a report shows."""

from dataclasses import dataclass

LARGE = 10_000_000  # parameters from which a report omits the ablation of every component, and spectra


@dataclass(frozen=True)
class Prompts:
    """`clean` is the prompt shown in figures of a single input; `corrupt` has another answer; `other` is a second
    prompt for attention maps.

    A reported lens has a function `for_report(subject, prompts)` in its module: the options for the call, or None where
    the lens does not apply to the subject.
    """

    clean: str
    corrupt: str | None = None
    other: str | None = None

    @property
    def compared(self) -> list[str]:
        """The one or two inputs shown side by side."""
        return [prompt for prompt in (self.clean, self.other) if prompt]
