"""The selfcheck: do the lenses detect planted mechanisms, and none in models without them?

Every trial asks one lens one question. The right answer is yes for the planted model. It is no for shuffled copies (the
same weights in random order), for random models of the same shape, and for decoys: planted models with another
mechanism, or with the same mechanism and wrong answers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from algoscope.core.ambient import settled
from algoscope.core.arguments import Range, checked_arguments
from algoscope.core.errors import AlgoscopeError, ConfigError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import threads
from algoscope.lenses.table import LENSES
from algoscope.networks.build import build
from algoscope.planted.models import Mechanism, shuffled
from algoscope.planted.table import PLANTED
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject
from algoscope.verdicts.lens_trials import _questions as ask
from algoscope.verdicts.lens_trials._questions import Question


@dataclass(frozen=True)
class Trial:
    """One question to one lens: yes for the planted model, no for its shuffled and random copies and the decoys."""

    lens: str
    planted: str
    mechanism: str
    question: Question
    decoys: tuple[str, ...] = ()


TRIALS = (
    Trial("answers", "carry-adder", "every sum is right", ask.answers_are_right),
    Trial("answers", "clock", "every sum modulo 113 is right", ask.answers_are_right),
    Trial("answers", "reversal", "every reversal is right", ask.answers_are_right, ("reversal-wrong",)),
    Trial("attention", "carry-adder", "each head attends to the digits of its column", ask.attention_is_planted),
    Trial("attention", "reversal", "the head attends along the anti-diagonal", ask.attention_is_planted),
    Trial("attention", "reversal-wrong", "the same, though the answers are wrong", ask.attention_is_planted),
    Trial("embeddings", "clock", "numbers lie on circles", ask.numbers_lie_on_circles),
    Trial("clock", "clock", "logits of a clock (multiplied angles)", ask.reads_as("clock"), ("pizza",)),
    Trial("clock", "pizza", "logits of a pizza (length of a vector sum)", ask.reads_as("pizza"), ("clock",)),
    Trial("fourier", "clock", "five key frequencies", ask.has_the_key_frequencies, ("pizza",)),
    Trial("fourier", "pizza", "three key frequencies", ask.has_the_key_frequencies, ("clock",)),
    Trial("attention_by_part", "clock", "each head attends to one operand", ask.heads_attend_to_their_operand),
    Trial(
        "source_attention",
        "reversal",
        "each letter comes from its mirror position",
        ask.source_is_the_mirror_position,
        ("reversal-wrong",),
    ),
    Trial(
        "induction", "induction", "an induction pair", ask.is_an_induction_pair, ("induction-wrong", "previous-token")
    ),
    Trial("induction", "induction-weak", "a pair of six weak heads", ask.is_an_induction_pair, ("previous-token",)),
    Trial("weights", "induction", "OV circuits that copy 26 letters", ask.copies_every_letter, ("previous-token",)),
    Trial("patch", "carry-adder", "one head carries the digit", ask.is_restored_by("column", "123+456", "128+456")),
    Trial("patch", "carry-adder", "one head carries the carry", ask.is_restored_by("below", "105+105", "100+100")),
    Trial(
        "attribution_patching",
        "induction",
        "a pair of heads carries the answer",
        ask.is_restored_by_gradients,
        ("induction-wrong",),
    ),
    Trial("logit", "carry-adder", "the answer is readable from layer 1 on", ask.is_readable_where_planted),
    Trial(
        "logit",
        "induction",
        "the answer is readable from layer 1 on",
        ask.is_readable_where_planted,
        ("induction-wrong",),
    ),
    Trial(
        "attribution",
        "induction",
        "one head writes the answer",
        ask.answer_comes_from_the_induction_head,
        ("induction-wrong",),
    ),
    Trial("path_patching", "induction", "K-composition alone", ask.composes_by_its_keys),
    Trial("path_patching", "induction-wrong", "the same, though the answer is wrong", ask.composes_by_its_keys),
    Trial("roles", "previous-token", "one previous-token head", ask.heads_have_their_roles),
    Trial("roles", "induction", "a previous-token and an induction head", ask.heads_have_their_roles),
    Trial("roles", "induction-wrong", "both, though the answer is wrong", ask.heads_have_their_roles),
    Trial("ablate", "carry-adder", "the needed components, and no others", ask.needs_what_is_planted),
)
NOT_THERE = ("shuffled", "random", "decoys")  # models for which the right answer is no
MOST_FALSE_ALARMS = 0.05
ABOUT = (
    "Each trial asks one lens whether a model has a mechanism that was planted in it by hand. A hit is a yes for the "
    "planted model. A false alarm is a yes for a model without the mechanism: the same weights in shuffled order, "
    "random weights of the same shape, and decoys, planted models with another mechanism, or with the same one and "
    "wrong answers. A lens that rejects a model with an error has detected nothing."
)


@checked_arguments
@settled()
def selfcheck(*, copies: Annotated[int, Range(0)] = 10, progress: bool = False) -> Finding:
    """Test every lens on models whose mechanism is known: it must detect planted mechanisms, and no others.

    Each trial runs on its planted model, on `copies` shuffles of it, on `copies` random models of the same shape, and
    on its decoys. A lens that rejects a model with an error (such as a metric that does not separate the two runs) has
    detected nothing.

    Args:
        copies: how many shuffled and how many random models each trial runs on.
        progress: show a bar.
    Returns:
        A finding with panel `rates` [lens of]: the share of planted models in which the lens detects the mechanism
        (`planted`; 1 = in all), and the shares of shuffled, random and decoy models in which it does so falsely (0 = in
        none); and facts `checks` {lens, model, mechanism, found, false_alarms, trials}, `hit_rate`, `false_alarm_rate`,
        and `holds`: every planted mechanism was detected, and at most one other answer in twenty was a false alarm.
    Raises:
        ConfigError: for fewer than one copy.

    Example:
        >>> import algoscope as ag
        >>> ag.selfcheck(copies=0)
        Traceback (most recent call last):
        algoscope.core.errors.ConfigError: copies is 0: at least 1 is needed to see a false alarm
    """
    if copies < 1:
        raise ConfigError(f"copies is {copies}: at least 1 is needed to see a false alarm")
    rows = []
    with threads(1), Bar("selfcheck", "trials") if progress else Watcher() as bar:  # small models
        for done, trial in enumerate(TRIALS):
            bar.advance(done, len(TRIALS), f"{trial.lens} on {trial.planted}")
            rows.append(_result(trial, copies))
    hits = [row["found"] for row in rows]
    alarms, answers = (sum(sum(row[key].values()) for row in rows) for key in ("false_alarms", "trials"))
    rates = _rates(rows)
    return Finding(
        kind="selfcheck",
        claim=f"{sum(hits)} of {len(hits)} planted mechanisms found, {alarms} false alarms in {answers} trials",
        facts={
            "checks": rows,
            "hit_rate": sum(hits) / len(hits),
            "false_alarm_rate": alarms / answers,
            "holds": all(hits) and alarms <= MOST_FALSE_ALARMS * answers,
        },
        panels=(_panel(rates),),
        provenance={"copies": copies},
        about=ABOUT,
        tables=(_trial_table(rows), _rate_table(rates)),
    )


# ---------------------------------------------------------------------- one trial


def _result(trial: Trial, copies: int) -> dict[str, Any]:
    planted = PLANTED.load(trial.planted)()
    mechanism = planted.mechanism
    claims = {
        kind: [_claims(trial, subject, mechanism) for subject in subjects]
        for kind, subjects in {
            "shuffled": (subject_of(shuffled(planted, seed), "shuffled") for seed in range(copies)),
            "random": _random(trial.planted, copies),
            "decoys": (subject_of(PLANTED.load(name)(), name) for name in trial.decoys),
        }.items()
    }
    return {
        "lens": trial.lens,
        "model": trial.planted,
        "mechanism": trial.mechanism,
        "found": _claims(trial, subject_of(planted, f"planted:{trial.planted}"), mechanism),
        "false_alarms": {kind: sum(answers) for kind, answers in claims.items()},
        "trials": {kind: len(answers) for kind, answers in claims.items()},
    }


def _claims(trial: Trial, subject: Subject, mechanism: Mechanism) -> bool:
    try:
        return bool(trial.question(LENSES.load(trial.lens), subject, mechanism))
    except AlgoscopeError:
        return False


def _random(name: str, copies: int) -> Iterator[Subject]:
    """Models of the planted one's shape, with weights large enough for sharp attention."""
    for seed in range(copies):
        planted = PLANTED.load(name)()
        cfg = planted.model.cfg.model_copy(update={"init_embed_std": 1.0, "init_matrix_std": 0.5})
        planted.model.load_state_dict(build(cfg, seed).state_dict())
        yield subject_of(planted, "random")


# ---------------------------------------------------------------------- rates


def _rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Detection rates by lens: on planted, then shuffled, random and decoy models (NaN: no such models)."""
    rates = {}
    for lens in dict.fromkeys(str(row["lens"]) for row in rows):
        trials = [row for row in rows if row["lens"] == lens]
        rates[lens] = [float(np.mean([row["found"] for row in trials]))]
        for kind in NOT_THERE:
            models = sum(row["trials"][kind] for row in trials)
            alarms = sum(row["false_alarms"][kind] for row in trials)
            rates[lens].append(alarms / models if models else float("nan"))
    return rates


def _panel(rates: Mapping[str, Sequence[float]]) -> Panel:
    kinds = Axis("of", ("planted", *NOT_THERE), "models: only the planted ones have the mechanism")
    return Panel(
        name="rates",
        title="share of models in which each lens detects the mechanism",
        axes=(Axis("lens", tuple(rates), "lens"), kinds),
        values=np.array(list(rates.values())),
        unit="share of models",
        zero="detected in none",
        one="detected in all",
        view="heatmap",
        scale="unit",
        caption=(
            "Detection rate of each lens, and its false alarms. First column: planted models, where 1 is right. The "
            "others: shuffled copies, random models and decoys, where 0 is right."
        ),
    )


def _trial_table(rows: Sequence[Mapping[str, Any]]) -> ResultTable:
    return ResultTable(
        title="Trials",
        columns=("lens", "planted model", "mechanism", "result", *NOT_THERE),
        rows=tuple(
            (
                row["lens"],
                row["model"],
                row["mechanism"],
                "found" if row["found"] else "MISSED",
                *(f"{row['false_alarms'][kind]}/{row['trials'][kind]}" for kind in NOT_THERE),
            )
            for row in rows
        ),
        caption="The last three columns are false alarms out of the models tested.",
    )


def _rate_table(rates: Mapping[str, Sequence[float]]) -> ResultTable:
    return ResultTable(
        title="Rates by lens",
        columns=("lens", "hit rate", *(f"false alarms, {kind}" for kind in NOT_THERE)),
        rows=tuple((lens, *(None if np.isnan(rate) else rate for rate in row)) for lens, row in rates.items()),
        caption="Shares of models with a detected mechanism: planted models (1 is right), others (0 is right).",
    )
