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
        "max_of_two": Entry("algoscope.tasks.small.max_of_two:MaxOfTwo", "the larger of two numbers below 64"),
        "max_of": Entry("algoscope.tasks.small.max_of:MaxOf", "the largest of k numbers"),
        "palindromes": Entry("algoscope.tasks.small.palindromes:Palindromes", "does a word read the same backwards"),
        "brackets": Entry("algoscope.tasks.small.brackets:Brackets", "are brackets balanced"),
        "sorted_list": Entry("algoscope.tasks.small.sorted_list:SortedList", "digits in ascending order"),
        "first_unique": Entry("algoscope.tasks.small.first_unique:FirstUnique", "the first letter that occurs once"),
        "cumulative_sum": Entry("algoscope.tasks.small.cumulative_sum:CumulativeSum", "running sums modulo m"),
    },
)
