"""The recipes by name."""

from algoscope.core.registry import Entry, Table

RECIPES = Table(
    "recipe",
    {
        "add3": Entry(
            "algoscope.recipes.addition:add3",
            "3-digit addition, 17,760 parameters, the fast way: certified in seconds",
        ),
        "add3_reference": Entry(
            "algoscope.recipes.addition:add3_reference",
            "the same model the usual way: 50,000 pairs, AdamW, 150 epochs, minutes",
        ),
        "add5": Entry(
            "algoscope.recipes.addition:add5",
            "5-digit addition, 17,952 parameters: right in every class of carry chain; under a minute",
        ),
        "add10": Entry(
            "algoscope.recipes.addition:add10",
            "10-digit addition, 18,432 parameters: right in every class of carry chain; about two minutes",
        ),
        "add20": Entry(
            "algoscope.recipes.addition:add20",
            "sums of 1 to 20 digits, with positions that carry to longer ones; minutes",
        ),
        "grok113": Entry(
            "algoscope.recipes.modular:grok113",
            "addition modulo 113, 30 % of the pairs: memorised first, understood later; half an hour",
        ),
        "grok59": Entry(
            "algoscope.recipes.modular:grok59",
            "the same made cheap, modulo 59: under a minute",
        ),
        "copy8": Entry(
            "algoscope.recipes.copying:copy8",
            "copying patterns of 3 to 5 letters, 101,632 parameters, 2,000 sequences 100 times; minutes",
        ),
        "copy8_fresh": Entry(
            "algoscope.recipes.copying:copy8_fresh",
            "the same with new sequences at every step, twice as long: few of all sequences wrong, or none; minutes",
        ),
        "copy26": Entry(
            "algoscope.recipes.copying:copy26",
            "copying patterns of 4 to 13 letters, 34,816 parameters: an induction pair; about a minute",
        ),
        "mod113_3l": Entry(
            "algoscope.recipes.modular:mod113_3l",
            "addition modulo 113 on `a + b =`, 3 layers of 4 heads, within 50 epochs; about a minute",
        ),
        "sub3_lora": Entry(
            "algoscope.recipes.lora:sub3_lora",
            "3-digit subtraction from the adder `add3-s0`, by low-rank updates of its matrices; seconds",
        ),
        "reverse5": Entry(
            "algoscope.recipes.reversal:reverse5",
            "5 letters backwards, one head, 4,960 parameters: certified in seconds",
        ),
    },
)
