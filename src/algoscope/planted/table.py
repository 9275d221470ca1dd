"""The planted models by name."""

from algoscope.core.registry import Entry, Table

PLANTED = Table(
    "planted model",
    {
        "previous-token": Entry("algoscope.planted.models:previous_token", "outputs the previous token, by position"),
        "induction": Entry(
            "algoscope.planted.models:induction",
            "outputs the token that followed the current one earlier, by a previous-token and an induction head",
        ),
        "induction-weak": Entry(
            "algoscope.planted.models:induction_weak",
            "induction by three weak previous-token heads and three weak induction heads",
        ),
        "reversal": Entry("algoscope.planted.models:reversal", "reverses 5 letters by position alone"),
        "clock": Entry("algoscope.planted.models:clock", "adds modulo 113 by the cosines of five frequencies"),
        "pizza": Entry(
            "algoscope.planted.pizza:pizza",
            "adds modulo 59 by half the angle of a sum that is symmetric in the operands",
        ),
        "carry-adder": Entry(
            "algoscope.planted.models:carry_adder", "adds 3-digit numbers column by column with an explicit carry"
        ),
        "reversal-wrong": Entry(
            "algoscope.planted.models:reversal_wrong",
            "attends as reversal does, but writes the next letter of the alphabet: wrong on every input",
        ),
        "induction-wrong": Entry(
            "algoscope.planted.models:induction_wrong",
            "induction with the output of the induction head negated: wrong wherever induction is right",
        ),
    },
)
