"""The tasks by name."""

from algoscope.core.registry import Entry, Table

TASKS = Table(
    "task",
    {
        "addition": Entry("algoscope.tasks.addition:Addition", "n-digit addition, the sum written units first or last"),
    },
)
