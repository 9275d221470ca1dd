"""Learning curves: plateau, jump, and whether training accuracy rose first.

Every statement follows from an explicit rule, given in the docstrings and captions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from algoscope.core.arguments import checked_arguments
from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Mark, Panel

LEARNED = 0.5  # a curve has risen when accuracy first reaches this share
FLAT = 0.1  # the loss on a plateau varies by at most this share of its total decrease
PLATEAU_SHARE = 0.15  # and the plateau lasts at least this share of the steps before the jump
APART = 1.5  # "training first": the test curve rises after at least this many times the steps
MEMORISED = 0.9  # training accuracy at which training inputs count as learned
ABOUT = (
    "Loss and accuracy as logged during training. If training accuracy reaches 90 % long before test accuracy reaches "
    "50 %, and the training inputs are a fixed set, the model memorised them before it generalised."
)
CAPTION = (
    "Loss and accuracy by training step. Loss is the cross-entropy of the right next token, in nats (0 = probability "
    "1); accuracy is the share of inputs whose whole answer is right. The dashed vertical line is the jump: the "
    "first evaluation with at least half of the test inputs right. A dashed horizontal line marks "
    "a plateau: the longest interval before the jump in which the loss varies by at most a tenth of its total decrease."
)

Row = Mapping[str, Any]
Steps = Int[np.ndarray, "row"]
Values = Float[np.ndarray, "row"]


@checked_arguments
def read_curves(rows: Sequence[Row], *, fixed: bool | None = None) -> Finding:
    """Loss and accuracy by step, with the plateau, the jump, and whether training and test rose together.

    The jump is the first evaluation with at least half of the test inputs right. The plateau is the longest interval
    before it in which the loss varies by at most a tenth of its total decrease, if it is at least 15 % of those steps.

    Args:
        rows: the logged rows of a run, as `run.metrics()` gives them: `step` with `loss` and `train_accuracy`, and at
            evaluations `test_loss` and `test_accuracy`.
        fixed: whether the training inputs are a fixed set, which alone can be memorised, as `data.source` of the run's
            config says; None: not known, so nothing is said of memorisation.
    Returns:
        A finding with panels `training loss` and `test loss` [step] (nats per position; 0 = probability 1),
        `training accuracy` and `test accuracy` [step] (share of whole answers right), and facts `plateau` {from, to,
        loss} or None; `jump` {step, from, to} or None, where `from` is the last evaluation before it with at most 10 %
        right and `to` the first with 90 % (each None where there is none); `first_perfect_step` on the test inputs or
        None; `order`: "together", "training first" (at 90 % while the test stayed below 50 % for half as long again) or
        "not learned".

    Example:
        >>> import algoscope as ag
        >>> shares = {step: min(1.0, step / 50) for step in range(1, 101)}
        >>> rows = [
        ...     {"step": step, "loss": 1 - a, "train_accuracy": a, "test_loss": 1 - a, "test_accuracy": a}
        ...     for step, a in shares.items()
        ... ]
        >>> ag.curves(rows)["jump"]
        {'step': 25, 'from': 5, 'to': 45}
    """
    steps, loss = _series(rows, "loss")
    if not len(steps):
        raise ConfigError("there are no rows with a step and a loss: give those that `Run.metrics` returns")
    train_steps, train = _series(rows, "train_accuracy")
    test_steps, test = _series(rows, "test_accuracy")
    _, test_loss = _series(rows, "test_loss")
    jump = find_jump(test_steps, test)
    plateau = find_plateau(steps, loss, before=_start(jump) if jump else int(steps[-1]))
    order = training_or_together(train_steps, train, test_steps, test)
    perfect = test_steps[test >= 1.0]
    marks = []
    if plateau:
        marks.append(Mark(plateau["loss"], f"plateau {plateau['loss']:.3f}", "y"))
    jumped = [Mark(jump["step"], f"jump: step {jump['step']:,}", "x")] if jump else []
    return Finding(
        kind="curves",
        claim=_sentence(jump, plateau, order, int(steps[-1]), fixed),
        about=ABOUT,
        facts={
            "steps": int(steps[-1]),
            "plateau": plateau,
            "jump": jump,
            "first_perfect_step": int(perfect[0]) if len(perfect) else None,
            "order": order,
        },
        panels=(
            _lines("training loss", steps, loss, "nats per position", (*marks, *jumped)),
            _lines("test loss", test_steps, test_loss, "nats per position", (*marks, *jumped)),
            _lines("training accuracy", train_steps, train, "share of whole answers right", tuple(jumped)),
            _lines("test accuracy", test_steps, test, "share of whole answers right", tuple(jumped)),
        ),
    )


def find_jump(steps: Steps, accuracy: Values) -> dict[str, Any] | None:
    """Where test accuracy first reaches 0.5 (`step`), the last evaluation before it with 0.1 or less (`from`), and the
    first after it with 0.9 or more (`to`); None for one that never happened.

    None when it never does. Between evaluations the step is the later one.
    """
    risen = np.flatnonzero(accuracy >= LEARNED)
    if not len(risen):
        return None
    at = risen[0]
    low = np.flatnonzero(accuracy[:at] <= 0.1)
    high = np.flatnonzero(accuracy[at:] >= 0.9)
    return {
        "step": int(steps[at]),
        "from": int(steps[low[-1]]) if len(low) else None,
        "to": int(steps[at + high[0]]) if len(high) else None,
    }


def _start(jump: Mapping[str, Any]) -> int:
    """The step before which nothing had risen, as far as was evaluated."""
    return int(jump["step"] if jump["from"] is None else jump["from"])


def beside(step: int, jump: Mapping[str, Any]) -> str:
    """Whether a step is before, during or after a jump; one that never reached 90 % has not ended."""
    if step < _start(jump):
        return "before"
    return "during" if jump["to"] is None or step <= jump["to"] else "after"


def find_plateau(steps: Steps, loss: Values, before: int) -> dict[str, int | float] | None:
    """The longest interval of logged steps up to `before` in which the smoothed loss varies by at most a tenth of its
    total decrease; None where it is shorter than 15 % of those steps. Smoothing is a running median of five rows.
    """
    padded = np.pad(loss, 2, mode="edge")
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1)
    tolerance = FLAT * (smooth.max() - smooth.min())
    last = int(np.searchsorted(steps, before, side="right"))
    best, left = (0, 0), 0
    for right in range(last):
        while np.ptp(smooth[left : right + 1]) > tolerance:
            left += 1
        if right - left > best[1] - best[0]:
            best = (left, right)
    begin, end = best
    if steps[end] - steps[begin] < PLATEAU_SHARE * before:
        return None
    return {"from": int(steps[begin]), "to": int(steps[end]), "loss": float(np.median(loss[begin : end + 1]))}


def training_or_together(
    train_steps: Int[np.ndarray, "logged"],
    train: Float[np.ndarray, "logged"],
    test_steps: Int[np.ndarray, "evaluated"],
    test: Float[np.ndarray, "evaluated"],
) -> str:
    """Whether training and test accuracy rose together, or the model memorised its training inputs first.

    "training first" when training accuracy reached 0.9 while test accuracy stayed below 0.5 for half as long again;
    "not learned" when neither rose; else "together".
    """
    train_learned = train_steps[train >= MEMORISED]
    test_learned = test_steps[test >= LEARNED]
    if not len(train_learned) and not len(test_learned):
        return "not learned"
    if len(train_learned) and (not len(test_learned) or test_learned[0] > APART * train_learned[0]):
        return "training first"
    return "together"


def _sentence(
    jump: Mapping[str, Any] | None,
    plateau: Mapping[str, int | float] | None,
    order: str,
    steps: int,
    fixed: bool | None,
) -> str:
    parts = []
    if plateau:
        parts.append(f"the loss stayed near {plateau['loss']:.3f} from step {plateau['from']:,} to {plateau['to']:,}")
    if jump:
        before = [] if jump["from"] is None else [f"10 % at {jump['from']:,}"]
        after = f"never 90 % until {steps:,}" if jump["to"] is None else f"90 % at {jump['to']:,}"
        parts.append(f"test accuracy passed 50 % at step {jump['step']:,} ({', '.join([*before, after])})")
    if order == "together":
        parts.append("training and test accuracy rose together")
    elif order == "not learned":
        parts.append(f"neither training nor test was learned in {steps:,} steps")
    elif fixed:
        parts.append(f"training inputs were memorised {'first' if jump else 'and test inputs not learned'}")
    else:
        then = "long before" if jump else "and"
        never = "test accuracy passed 50 %" if jump else "test accuracy never 50 %"
        parts.append(f"training accuracy passed 90 % {then} {never}")
    return "; ".join(parts)


def _series(rows: Sequence[Row], name: str) -> tuple[Steps, Values]:
    kept = [row for row in rows if name in row]
    return np.array([row["step"] for row in kept], dtype=int), np.array([row[name] for row in kept], dtype=float)


def _lines(name: str, steps: Steps, values: Values, unit: str, marks: tuple[Mark, ...]) -> Panel:
    share = unit.startswith("share")
    return Panel(
        name=name,
        axes=(Axis("step", tuple(map(int, steps)), "training step"),),
        values=values,
        unit=unit,
        zero="no answer right" if share else "probability 1 for the right token",
        one="every answer right" if share else "",
        view="lines",
        scale="unit" if share else "free",
        marks=marks,
        caption=CAPTION,
    )
