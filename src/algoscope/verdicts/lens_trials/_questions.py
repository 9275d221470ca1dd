"""The questions of the trials: each applies a lens to a subject, and is true if the lens detects the mechanism."""

from collections.abc import Callable

import numpy as np

from algoscope.core.finding import Finding
from algoscope.planted.models import Mechanism
from algoscope.subjects.subject import Subject

Lens = Callable[..., Finding]
Question = Callable[[Lens, Subject, Mechanism], bool]

MOSTLY = 0.9  # least share that counts as nearly all
HALF = 0.5  # least share that counts as most
REPEATED = "qwertyuqwe"  # induction predicts the token after the earlier `e`
FOLLOWS = "r"
BROKEN = "qwzrtyuqwe"  # the same without the pair `er`
CARRIES = "987+654"  # every column carries: without the carries no digit is right


def answers_are_right(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """Every edge case and every random input is answered right."""
    facts = lens(subject, n_inputs=50).facts
    return facts["edge_cases_right"] == facts["edge_cases"] and facts["random_right"] == facts["random"]


def attention_is_planted(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """Every head that attends by position puts its attention on the planted keys."""
    texts = [subject.task.decode(row[: subject.task.prompt_length].tolist()) for row in subject.task.edge_inputs()[:2]]
    panels = [panel for panel in lens(subject, texts).panels if panel.beside]
    for role, keys_of in mechanism.looks.items():
        layer, head = mechanism.heads[role]
        for panel in panels:
            pattern = np.nan_to_num(panel.values[layer, head])
            share = [pattern[query, list(keys)].sum() for query, keys in keys_of.items() if query < len(pattern)]
            if np.mean(share) < MOSTLY:
                return False
    return True


def heads_attend_to_their_operand(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """Each planted head is classed by the operand that it copies, on every input."""
    heads = {(head["layer"], head["head"]): head for head in lens(subject)["heads"]}
    return all(
        heads[where]["class"] == f"{role} operand" and heads[where]["stable"] for role, where in mechanism.heads.items()
    )


def source_is_the_mirror_position(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """The planted head attends along the anti-diagonal by position alone, and carries the answer from there."""
    finding = lens(subject, n_inputs=2_000, n_pairs=500)
    planted = {f"L{layer}H{head}" for layer, head in mechanism.heads.values()}
    named = {name for row in finding["positions"] for name in row["heads"]}
    return finding["verdict"] == "by position alone" and finding["causal"] == "carried" and named == planted


def is_an_induction_pair(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """The mechanism is an induction pair, of the planted heads: one or several of each role."""
    finding = lens(subject, n_inputs=16)
    if finding["mechanism"] != "induction pair":
        return False
    planted = {
        kind: sorted(f"L{layer}H{head}" for role, (layer, head) in mechanism.heads.items() if role.startswith(kind))
        for kind in ("induction", "previous")
    }
    pair = finding["pair"]
    return (pair["induction_heads"], pair["earlier_heads"]) == (planted["induction"], planted["previous"])


def numbers_lie_on_circles(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """Circles explain nearly all of the variance of the number embeddings."""
    return bool(lens(subject)["circularity"]["after"] >= MOSTLY)


def reads_as(verdict: str) -> Question:
    """The verdict and the frequencies of the circles are the planted ones."""

    def asks(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
        finding = lens(subject, n_inputs=200)
        circles = {row["frequency"]: row["reads_as"] for row in finding["circles"]}
        planted = dict.fromkeys(mechanism.frequencies, verdict) | dict.fromkeys(mechanism.accompanying, "accompanying")
        return bool(finding["verdict"] == verdict and circles == planted)

    return asks


def has_the_key_frequencies(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """The planted frequencies, and no others, carry the answer."""
    finding = lens(subject)
    keys = {key["component"] for key in finding["keys"]}
    return bool(finding["verdict"] == "characters" and keys == set(mechanism.frequencies))


def copies_every_letter(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """The OV circuits of the planted heads have rank 26, all directions alike; those of the others have rank 0."""
    rows = {row["matrix"]: row["after"] for row in lens(subject)["matrices"]}
    letters = float(subject.cfg.d_vocab)
    planted = {f"L{layer}H{head} OV" for layer, head in mechanism.heads.values()}
    ranks = {name: (row["effective_rank"], row["stable_rank"]) for name, row in rows.items() if name.endswith("OV")}
    return planted <= set(ranks) and all(
        np.allclose(both, letters if name in planted else 0.0) for name, both in ranks.items()
    )


def is_restored_by(role: str, clean: str, corrupt: str) -> Question:
    """Patching the head of this role restores the answer, and no other head restores half of it."""

    def asks(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
        recovered = lens(subject, clean, corrupt, sites=["head"])["head"].values
        planted = mechanism.heads[role]
        others = [value for where, value in np.ndenumerate(recovered) if where != planted]
        return bool(recovered[planted] >= HALF and max(others) < HALF)

    return asks


def is_restored_by_gradients(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """The answer is right, and each planted head, and no other, restores all of it; behind the induction head, where
    everything is linear, gradients say the same.
    """
    if subject.generate(REPEATED, 1) != FOLLOWS:
        return False
    layer, _ = mechanism.heads["induction"]
    panels = lens(subject, REPEATED, BROKEN, sites=["head"], target=FOLLOWS, rival="z")
    exact, by_gradients = panels["head, exact"].values, panels["head"].values
    planted = np.zeros_like(exact)
    planted[tuple(zip(*mechanism.heads.values(), strict=True))] = 1
    return np.allclose(exact, planted, atol=1e-3) and np.allclose(by_gradients[layer], planted[layer], atol=1e-3)


def is_readable_where_planted(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """The right answer is readable from the residual stream from the planted layer on, and not before."""
    if subject.has_task:
        readable_after = lens(subject, [CARRIES])["readable_after"]
        return bool(subject.lay_out(CARRIES).is_right and readable_after == mechanism.readable_after)
    return bool(lens(subject, [REPEATED], target=FOLLOWS)["readable_after"] == mechanism.readable_after)


def answer_comes_from_the_induction_head(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """Nearly all positive contribution to the token after the previous occurrence is the induction head's."""
    layer, head = mechanism.heads["induction"]
    parts = lens(subject, [REPEATED], target=FOLLOWS, rival="z")["parts"]
    positive = {part["component"]: part["contribution"] for part in parts if part["contribution"] > 0}
    return positive.get(f"L{layer}H{head}", 0) > MOSTLY * sum(positive.values())


def composes_by_its_keys(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """The induction head's keys depend on the previous-token head alone, its values on no head."""
    layer, head = mechanism.heads["induction"]
    previous = "L{}H{}".format(*mechanism.heads["previous"])
    for entry, senders in (("k", [previous]), ("v", [])):
        receiver = f"L{layer}H{head}.{entry}"
        rows = lens(subject, REPEATED, BROKEN, receiver=receiver, target=FOLLOWS, rival="z")["senders"]
        if [row["sender"] for row in rows if row["recovered"] >= HALF] != senders:
            return False
    return True


def heads_have_their_roles(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """Every planted role is that of its head, and of no other."""
    named = {"previous": "previous-token", "induction": "induction"}
    planted = {where: named[role] for role, where in mechanism.heads.items()}
    roles = {(row["layer"], row["head"]): row["role"] for row in lens(subject, n_inputs=64)["heads"]}
    return all(
        (role == planted[where]) if where in planted else role not in planted.values() for where, role in roles.items()
    )


def needs_what_is_planted(lens: Lens, subject: Subject, mechanism: Mechanism) -> bool:
    """Ablating a planted head or feed-forward makes answers wrong; ablating any other head changes nothing."""
    rows = lens(subject, kind=["zero"], n_inputs=200, per_class=20)["components"]
    needed = {f"L{layer}H{head}" for layer, head in mechanism.heads.values()}
    needed |= {f"L{layer} MLP" for layer in mechanism.feed_forwards}
    drops = {row["component"]: row["drop"] for row in rows if "H" in row["component"] or row["component"] in needed}
    return all(drop > 0.1 if name in needed else drop == 0 for name, drop in drops.items())
