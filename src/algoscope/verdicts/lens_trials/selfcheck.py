"""The lenses on trial: do they find what was planted, and nothing where nothing was?

Every check puts one question to one lens, whose answer is known for a planted model. It is put again to shuffled copies
(the same weights in another order), to random models of the same shape, and to planted models that do something else:
there the right answer is no.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from algoscope import lenses
from algoscope.core.errors import AlgoscopeError, ConfigError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Panel
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import threads
from algoscope.networks.build import build
from algoscope.planted.models import Mechanism, shuffled
from algoscope.planted.table import PLANTED
from algoscope.subjects.planted import subject_of
from algoscope.subjects.subject import Subject

MOSTLY = 0.9  # a share that counts as all
HALF = 0.5  # a share that counts as the greater part
REPEATED = "qwertyuqwe"  # after its last letter comes what followed before
FOLLOWS = "r"
BROKEN = "qwzrtyuqwe"  # the same, where nothing tells that `r` followed `e`
CARRIES = "987+654"  # every column carries: before the carries are known, no digit is right
MOST_FALSE_ALARMS = 0.05


@dataclass(frozen=True)
class Check:
    """One question to one lens. `asks` is true of `model`, and of none of the `decoys`."""

    lens: str
    model: str
    says: str
    asks: Callable[[Subject, Mechanism], bool]
    decoys: tuple[str, ...] = ()


def selfcheck(*, copies: int = 10, progress: bool = False) -> Finding:
    """Put every check to its planted model, to `copies` shuffles of it, to `copies` random models, and to its decoys.

    Panel `rates` [lens of]: the share of planted models in which the lens finds what is there (`planted`: 1 = in all),
    and the shares of shuffled, random and decoy models in which it claims to find it too (0 = in none). Facts: `checks`
    {lens, model, says, found, false_alarms, trials}, `hit_rate`, `false_alarm_rate`, and `holds`: everything planted
    was found, and at most one trial in twenty was a false alarm.

    A lens that refuses a model in one line (a metric that does not separate the two runs, say) has not found anything.
    Raises ConfigError for fewer than one copy.
    """
    if copies < 1:
        raise ConfigError(f"copies is {copies}: at least 1 is needed to see a false alarm")
    rows = []
    with threads(1), Bar("selfcheck", "checks") if progress else Watcher() as bar:  # small models
        for done, check in enumerate(CHECKS):
            bar.advance(done, len(CHECKS), f"{check.lens} on {check.model}")
            rows.append(_put(check, copies))
    hits = [row["found"] for row in rows]
    alarms, trials = (sum(sum(row[key].values()) for row in rows) for key in ("false_alarms", "trials"))
    return Finding(
        kind="selfcheck",
        claim=f"{sum(hits)} of {len(hits)} planted mechanisms found, {alarms} false alarms in {trials} trials",
        facts={
            "checks": rows,
            "hit_rate": sum(hits) / len(hits),
            "false_alarm_rate": alarms / trials,
            "holds": all(hits) and alarms <= MOST_FALSE_ALARMS * trials,
        },
        panels=(_rates(rows),),
        provenance={"copies": copies},
    )


def _put(check: Check, copies: int) -> dict[str, Any]:
    planted = PLANTED.load(check.model)()
    mechanism = planted.mechanism
    said = {
        kind: [_claims(check, subject, mechanism) for subject in subjects]
        for kind, subjects in {
            "shuffled": (subject_of(shuffled(planted, seed), "shuffled") for seed in range(copies)),
            "random": _random(check.model, copies),
            "decoys": (subject_of(PLANTED.load(name)(), name) for name in check.decoys),
        }.items()
    }
    return {
        "lens": check.lens,
        "model": check.model,
        "says": check.says,
        "found": _claims(check, subject_of(planted, f"planted:{check.model}"), mechanism),
        "false_alarms": {kind: sum(answers) for kind, answers in said.items()},
        "trials": {kind: len(answers) for kind, answers in said.items()},
    }


def _claims(check: Check, subject: Subject, mechanism: Mechanism) -> bool:
    try:
        return bool(check.asks(subject, mechanism))
    except AlgoscopeError:
        return False


def _random(name: str, copies: int) -> Iterator[Subject]:
    """Models of the planted one's shape, with weights large enough for heads to be sharp."""
    for seed in range(copies):
        planted = PLANTED.load(name)()
        cfg = planted.model.cfg.model_copy(update={"init_embed_std": 1.0, "init_matrix_std": 0.5})
        planted.model.load_state_dict(build(cfg, seed).state_dict())
        yield subject_of(planted, "random")


def _rates(rows: list[dict[str, Any]]) -> Panel:
    """Shares by lens: of planted models found, and of others claimed."""
    names = list(dict.fromkeys(str(row["lens"]) for row in rows))
    kinds = ("planted", "shuffled", "random", "decoys")
    values = np.full((len(names), len(kinds)), np.nan)
    for i, name in enumerate(names):
        own = [row for row in rows if row["lens"] == name]
        values[i, 0] = np.mean([bool(row["found"]) for row in own])
        for j, kind in enumerate(kinds[1:], start=1):
            trials = sum(row["trials"][kind] for row in own)
            if trials:
                values[i, j] = sum(row["false_alarms"][kind] for row in own) / trials
    return Panel(
        name="rates",
        title="in how many models each lens finds it",
        axes=(Axis("lens", tuple(names), "lens"), Axis("of", kinds, "models: only the planted ones have it")),
        values=values,
        unit="share of models",
        zero="found in none",
        one="found in all",
        view="heatmap",
        scale="unit",
    )


# ---------------------------------------------------------------------- the questions


def answers_all(subject: Subject, mechanism: Mechanism) -> bool:
    facts = lenses.answers(subject, n_random=50).facts
    return facts["edge_cases_right"] == facts["edge_cases"] and facts["random_right"] == facts["random"]


def looks_as_planted(subject: Subject, mechanism: Mechanism) -> bool:
    """Every head that looks by position puts its attention on the planted keys."""
    texts = [subject.task.decode(row[: subject.task.prompt_length].tolist()) for row in subject.task.edge_cases()[:2]]
    panels = [panel for panel in lenses.attention(subject, texts).panels if panel.beside]
    for role, looks in mechanism.looks.items():
        layer, head = mechanism.heads[role]
        for panel in panels:
            pattern = np.nan_to_num(panel.values[layer, head])
            share = [pattern[query, list(keys)].sum() for query, keys in looks.items() if query < len(pattern)]
            if np.mean(share) < MOSTLY:
                return False
    return True


def looks_at_its_operand(subject: Subject, mechanism: Mechanism) -> bool:
    """Each planted head is named after the operand that it brings, and keeps to it."""
    heads = {(head["layer"], head["head"]): head for head in lenses.looks(subject)["heads"]}
    return all(
        heads[place]["class"] == f"{role} operand" and heads[place]["stable"] for role, place in mechanism.heads.items()
    )


def mirrors(subject: Subject, mechanism: Mechanism) -> bool:
    """The planted head stands on the anti-diagonal by position alone, and what it brings is the answer."""
    found = lenses.alignment(subject, at_most=2_000, n_pairs=500)
    names = {f"L{layer}H{head}" for layer, head in mechanism.heads.values()}
    named = {name for row in found["positions"] for name in row["heads"]}
    return found["verdict"] == "by position alone" and found["causal"] == "carried" and named == names


def is_an_induction_pair(subject: Subject, mechanism: Mechanism) -> bool:
    """The pair is found, and it is the planted one."""
    found = lenses.induction(subject, n_inputs=16)
    if found["mechanism"] != "induction pair":
        return False
    (layer, head), (before, other) = mechanism.heads["induction"], mechanism.heads["previous"]
    return (found["pair"]["induction"], found["pair"]["earlier"]) == (f"L{layer}H{head}", f"L{before}H{other}")


def numbers_on_circles(subject: Subject, mechanism: Mechanism) -> bool:
    """The similarity of two numbers depends on their distance alone: what varies along diagonals is next to nothing."""
    similarity = lenses.embeddings(subject)["token similarity"].values[-1]
    by_distance = np.stack([np.roll(row, -i) for i, row in enumerate(similarity)])[:, 1:]
    total = by_distance.var()
    return bool(total > 0 and by_distance.var(axis=0).mean() < (1 - MOSTLY) * total)


def reads_as(verdict: str) -> Callable[[Subject, Mechanism], bool]:
    """The verdict is right, and so are the circles: those planted, in their parts."""

    def asks(subject: Subject, mechanism: Mechanism) -> bool:
        found = lenses.clock(subject, n_triples=200)
        circles = {row["frequency"]: row["reads_as"] for row in found["circles"]}
        planted = dict.fromkeys(mechanism.frequencies, verdict) | dict.fromkeys(mechanism.accompanying, "accompanying")
        return bool(found["verdict"] == verdict and circles == planted)

    return asks


def has_its_frequencies(subject: Subject, mechanism: Mechanism) -> bool:
    """The planted frequencies, and no others, carry the answer."""
    found = lenses.fourier(subject)
    return bool(
        found["verdict"] == "characters" and {key["component"] for key in found["keys"]} == set(mechanism.frequencies)
    )


def copies_every_letter(subject: Subject, mechanism: Mechanism) -> bool:
    """The OV circuits of the planted heads have as many directions, all alike, as there are letters; others none."""
    rows = {row["matrix"]: row["after"] for row in lenses.weights(subject)["matrices"]}
    letters = float(subject.cfg.d_vocab)
    planted = {f"L{layer}H{head} OV" for layer, head in mechanism.heads.values()}
    ranks = {name: (row["effective_rank"], row["stable_rank"]) for name, row in rows.items() if name.endswith("OV")}
    return planted <= set(ranks) and all(
        np.allclose(found, letters if name in planted else 0.0) for name, found in ranks.items()
    )


def carries_the(role: str, clean: str, corrupt: str) -> Callable[[Subject, Mechanism], bool]:
    """Among heads, that of the role restores the answer, and no other restores half of it."""

    def asks(subject: Subject, mechanism: Mechanism) -> bool:
        values = lenses.patch(subject, clean, corrupt, sites=["head"])["head"].values
        own = mechanism.heads[role]
        others = [value for place, value in np.ndenumerate(values) if place != own]
        return bool(values[own] >= HALF and max(others) < HALF)

    return asks


def readable_where_planted(subject: Subject, mechanism: Mechanism) -> bool:
    """The right answer stands in the residual stream from the planted layer on, and not before."""
    if subject.has_task:
        found = lenses.logit(subject, [CARRIES])
        return bool(subject.lay_out(CARRIES).is_right and found["readable_after"] == mechanism.readable_after)
    return bool(lenses.logit(subject, [REPEATED], target=FOLLOWS)["readable_after"] == mechanism.readable_after)


def speaks_for_the_answer(subject: Subject, mechanism: Mechanism) -> bool:
    """Of all that speaks for the token that followed before, nearly everything comes from the induction head."""
    layer, head = mechanism.heads["induction"]
    found = lenses.attribution(subject, [REPEATED], target=FOLLOWS, rival="z")
    speaking = {part["component"]: part["contribution"] for part in found["parts"] if part["contribution"] > 0}
    return speaking.get(f"L{layer}H{head}", 0) > MOSTLY * sum(speaking.values())


def hears_by_its_keys(subject: Subject, mechanism: Mechanism) -> bool:
    """The induction head's keys hear the answer from the previous-token head alone, its values from no head."""
    layer, head = mechanism.heads["induction"]
    sender = "L{}H{}".format(*mechanism.heads["previous"])
    for entry, heard in (("k", [sender]), ("v", [])):
        receiver = f"L{layer}H{head}.{entry}"
        found = lenses.paths(subject, REPEATED, BROKEN, receiver=receiver, target=FOLLOWS, rival="z")
        if [row["sender"] for row in found["senders"] if row["recovered"] >= HALF] != heard:
            return False
    return True


def heads_have_their_roles(subject: Subject, mechanism: Mechanism) -> bool:
    """Every planted role is found in its head, and in no other."""
    named = {"previous": "previous-token", "induction": "induction"}
    planted = {(layer, head): named[role] for role, (layer, head) in mechanism.heads.items()}
    found = {(row["layer"], row["head"]): row["role"] for row in lenses.roles(subject, n_inputs=64)["heads"]}
    return all(
        (role == planted[place]) if place in planted else role not in planted.values() for place, role in found.items()
    )


def needed_as_planted(subject: Subject, mechanism: Mechanism) -> bool:
    """Without a planted head or feed-forward answers go wrong; without any other head nothing changes."""
    rows = lenses.ablate(subject, kind=["zero"], n_inputs=200, per_class=20)["components"]
    needed = {f"L{layer}H{head}" for layer, head in mechanism.heads.values()}
    needed |= {f"L{layer} MLP" for layer in mechanism.feed_forwards}
    parts = {row["component"]: row["drop"] for row in rows if "H" in row["component"] or row["component"] in needed}
    return all(drop > 0.1 if name in needed else drop == 0 for name, drop in parts.items())


IN_LAYER_1 = "the answer is readable from layer 1 on"
CHECKS = (
    Check("answers", "carry-adder", "every sum is right", answers_all),
    Check("answers", "clock", "every sum modulo 113 is right", answers_all),
    Check("answers", "reversal", "every reversal is right", answers_all, ("reversal-wrong",)),
    Check("attention", "carry-adder", "each head looks at the digits of its column", looks_as_planted),
    Check("attention", "reversal", "the head looks along the anti-diagonal", looks_as_planted),
    Check("attention", "reversal-wrong", "it looks there though its answers are wrong", looks_as_planted),
    Check("embeddings", "clock", "numbers stand on circles", numbers_on_circles),
    Check("clock", "clock", "it multiplies angles", reads_as("clock"), ("pizza",)),
    Check("clock", "pizza", "it measures the length of a sum", reads_as("pizza"), ("clock",)),
    Check("fourier", "clock", "five frequencies carry it", has_its_frequencies, ("pizza",)),
    Check("fourier", "pizza", "three frequencies carry it", has_its_frequencies, ("clock",)),
    Check("looks", "clock", "each head keeps to its operand", looks_at_its_operand),
    Check("alignment", "reversal", "the letter comes from its mirror place", mirrors, ("reversal-wrong",)),
    Check("induction", "induction", "an induction pair", is_an_induction_pair, ("induction-wrong", "previous-token")),
    Check("weights", "induction", "its heads copy 26 letters alike", copies_every_letter, ("previous-token",)),
    Check("patch", "carry-adder", "one head carries the digit", carries_the("column", "123+456", "128+456")),
    Check("patch", "carry-adder", "one head carries the carry", carries_the("below", "105+105", "100+100")),
    Check("logit", "carry-adder", IN_LAYER_1, readable_where_planted),
    Check("logit", "induction", IN_LAYER_1, readable_where_planted, ("induction-wrong",)),
    Check("attribution", "induction", "one head adds the answer", speaks_for_the_answer, ("induction-wrong",)),
    Check("paths", "induction", "keys hear the head before", hears_by_its_keys),
    Check("paths", "induction-wrong", "the same, though the answer is wrong", hears_by_its_keys),
    Check("roles", "previous-token", "one previous-token head", heads_have_their_roles),
    Check("roles", "induction", "a previous-token and an induction head", heads_have_their_roles),
    Check("roles", "induction-wrong", "both, though the answer is wrong", heads_have_their_roles),
    Check("ablate", "carry-adder", "what is needed, and only that", needed_as_planted),
)
