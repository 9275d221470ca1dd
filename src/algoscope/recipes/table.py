"""The recipes by name."""

from algoscope.core.registry import Entry, Table

RECIPES = Table(
    "recipe",
    {
        "add3": Entry(
            "algoscope.recipes.addition:add3",
            "3-digit addition, 17,760 parameters, fast recipe: certified in seconds",
        ),
        "add3_reference": Entry(
            "algoscope.recipes.addition:add3_reference",
            "the same model, standard recipe: 50,000 pairs, AdamW, 150 epochs; minutes",
        ),
        "add5": Entry(
            "algoscope.recipes.addition:add5",
            "5-digit addition, 17,952 parameters: right in every class of carry chains; under a minute",
        ),
        "add10": Entry(
            "algoscope.recipes.addition:add10",
            "10-digit addition, 18,432 parameters: right in every class of carry chains; about two minutes",
        ),
        "add20": Entry(
            "algoscope.recipes.addition:add20",
            "sums of 1 to 20 digits, with positions that generalise to longer ones; minutes",
        ),
        "grok113": Entry(
            "algoscope.recipes.modular:grok113",
            "addition modulo 113 on 30 % of the pairs: memorises first, generalises later; half an hour",
        ),
        "grok59": Entry(
            "algoscope.recipes.modular:grok59",
            "a cheaper version, modulo 59: under a minute",
        ),
        "copy8": Entry(
            "algoscope.recipes.copying:copy8",
            "copying patterns of 3 to 5 letters, 101,632 parameters, 2,000 sequences, 100 epochs; minutes",
        ),
        "copy8_fresh": Entry(
            "algoscope.recipes.copying:copy8_fresh",
            "the same with new sequences at every step, twice the steps: few sequences wrong, or none; minutes",
        ),
        "copy26": Entry(
            "algoscope.recipes.copying:copy26",
            "copying patterns of 4 to 13 letters, 34,816 parameters: forms induction heads; about a minute",
        ),
        "mod113_3l": Entry(
            "algoscope.recipes.modular:mod113_3l",
            "addition modulo 113 on `a + b =`, 3 layers of 4 heads, within 50 epochs; about a minute",
        ),
        "sub3_lora": Entry(
            "algoscope.recipes.lora:sub3_lora",
            "3-digit subtraction by low-rank fine-tuning of the adder `add3-s0`; seconds",
        ),
        "reverse5": Entry(
            "algoscope.recipes.reversal:reverse5",
            "reversal of 5 letters, one head, 4,960 parameters: certified in seconds",
        ),
        "max_of_two": Entry(
            "algoscope.recipes.small:max_of_two", "the larger of two numbers: right on all 4,096 prompts; seconds"
        ),
        "max_of": Entry(
            "algoscope.recipes.small:max_of", "the largest of three numbers: right on all 4,096 prompts; seconds"
        ),
        "palindromes": Entry(
            "algoscope.recipes.small:palindromes", "palindromes of eight letters: right on all 256 words; seconds"
        ),
        "brackets": Entry(
            "algoscope.recipes.small:brackets", "balanced brackets, ten of them: right on all 1,024 prompts; seconds"
        ),
        "sorted_list": Entry(
            "algoscope.recipes.small:sorted_list", "four digits in order: right on all 4,096 prompts; seconds"
        ),
        "first_unique": Entry(
            "algoscope.recipes.small:first_unique",
            "the first letter that occurs once: right on all 1,024 words; seconds",
        ),
        "cumulative_sum": Entry(
            "algoscope.recipes.small:cumulative_sum", "running sums modulo 8: right on all 4,096 prompts; seconds"
        ),
    },
)
