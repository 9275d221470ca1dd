"""The tasks by name."""

from algoscope.core.registry import Entry, Table

TASKS = Table(
    "task",
    {
        "addition": Entry(
            "algoscope.tasks.digits.addition:Addition", "n-digit addition, the sum written units first or last"
        ),
        "subtraction": Entry(
            "algoscope.tasks.digits.subtraction:Subtraction",
            "n-digit subtraction, in ten's complement where it is negative",
        ),
        "modular": Entry(
            "algoscope.tasks.groups.modular:Modular", "a + b, a - b or a * b modulo p, each number one token"
        ),
        "group": Entry("algoscope.tasks.groups.group:Group", "products in a finite group, given by name or table"),
        "copying": Entry("algoscope.tasks.strings.copying:Copying", "a short pattern, repeated to the end"),
        "reversal": Entry("algoscope.tasks.strings.reversal:Reversal", "letters of any alphabet, in reverse order"),
    },
)
