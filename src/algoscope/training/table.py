"""The recipes and the studies by name."""

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
        "grok113": Entry(
            "algoscope.training.recipes:grok113",
            "addition modulo 113, 30 % of the pairs: memorised first, understood later; half an hour",
        ),
        "grok59": Entry(
            "algoscope.training.recipes:grok59",
            "the same made cheap, modulo 59: under a minute",
        ),
    },
)

STUDIES = Table(
    "study",
    {
        "grokking": Entry(
            "algoscope.training.studies:grokking",
            "what shortens the wait between memorising and generalising: nine variants of grok59",
        ),
    },
)
