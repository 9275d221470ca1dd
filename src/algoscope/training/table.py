"""The recipes by name."""

from algoscope.core.registry import Entry, Table

RECIPES = Table(
    "recipe",
    {
        "add3": Entry(
            "algoscope.training.recipes:add3",
            "3-digit addition, 17,760 parameters, the fast way: certified in seconds",
        ),
        "add3_reference": Entry(
            "algoscope.training.recipes:add3_reference",
            "the same model the usual way: 50,000 pairs, AdamW, 150 epochs, minutes",
        ),
    },
)
