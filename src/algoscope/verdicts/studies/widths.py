"""Accuracy of a study's members at widths beyond the trained ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from algoscope.config import RunConfig
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Mark, Panel
from algoscope.core.threads import threads
from algoscope.data import seeded
from algoscope.networks.evaluation import tokens_right
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from algoscope.verdicts.studies.plans import Study
from algoscope.verdicts.studies.predictions import AtWidth, Prediction, WidthShares

FRESH_SEED = 2025
TOKENS = 2**13  # in one batch
PARTS = {"whole": slice(None), "digits": slice(0, -1), "rest": slice(1, None)}  # tokens of the answer
SUMMARIES = {
    "median": "sums answered right, median over seeds",
    "worst": "sums answered right, worst seed",
    "digits": "all digits right, with or without a right end, median",
    "rest": "right after the first digit, given it, median",
}
CAPTION = (
    "Accuracy by number of digits. Each line is a variant; the vertical line marks the longest trained sums. `median` "
    "and `worst`: whole answers, over the seeds; `digits`: all digits right, with or without a right end of sequence; "
    "`rest`: everything after the first digit right, given that digit."
)


class AccuracyByWidth:
    """Accuracy of every member on fresh random sums of each width of the plan."""

    kind = "length"
    about = (
        "All members answer the same fresh sums of every width, drawn uniformly (there are only 100 sums of one "
        "digit, all of them in the training set). An answer is right where all its digits and the end of sequence are."
    )

    def __init__(self, plan: Study) -> None:
        self.widths, self.fresh = plan.widths, plan.fresh

    def measure(self, run: Run) -> WidthShares:
        """The member's shares, from its folder if they are stored there."""
        asked = {"widths": list(self.widths), "fresh": self.fresh}
        kept = run.finding("widths", run.summary.weights_sha256)
        if kept is not None and kept["asked"] == asked:
            shares = kept["shares"]
        else:
            with threads(1):
                measured = [shares_right(run, width, self.fresh) for width in self.widths]
            shares = {part: [at_width[part] for at_width in measured] for part in PARTS}
            finding = Finding(
                kind="widths",
                claim=f"right at {self.widths[-1]} digits: {shares['whole'][-1]:.1%} of {self.fresh:,}",
                facts={"asked": asked, "shares": shares},
                provenance={"subject": f"run:{run.name}", "weights_sha256": run.summary.weights_sha256},
            )
            run.keep(finding)
        return WidthShares(**{part: dict(zip(self.widths, shares[part], strict=True)) for part in PARTS})

    def covers(self, prediction: Prediction[Any]) -> bool:
        return isinstance(prediction, AtWidth) and prediction.width in self.widths

    def row(self, members: Sequence[WidthShares | None], control: Sequence[WidthShares | None]) -> dict[str, Any]:
        """If no member has finished, the shares over the seeds are null."""
        shares = {part: [list(getattr(m, part).values()) for m in members if m is not None] for part in PARTS}
        nobody = [None] * len(self.widths)
        median = {part: np.median(some, axis=0).tolist() if some else nobody for part, some in shares.items()}
        return {
            "accuracy": shares["whole"],
            "median": median["whole"],
            "worst": np.min(shares["whole"], axis=0).tolist() if shares["whole"] else nobody,
            "digits": median["digits"],
            "rest": median["rest"],
        }

    def facts(self, config: RunConfig) -> dict[str, Any]:
        longest = config.task.width or 0
        trained = [config.data.shortest or longest, longest]
        return {"widths": list(self.widths), "trained": trained, "fresh": self.fresh}

    def claim(self, facts: Mapping[str, Any]) -> str:
        judged = [prediction["came_true"] for row in facts["rows"] for prediction in row["predictions"]]
        shortest, longest = facts["trained"]
        return f"Trained on {shortest} to {longest} digits; {sum(judged)} of {len(judged)} predictions came true"

    def panels(self, facts: Mapping[str, Any]) -> tuple[Panel, ...]:
        return tuple(self._panel(what, facts) for what in SUMMARIES)

    def _panel(self, what: str, facts: Mapping[str, Any]) -> Panel:
        shares = [[np.nan if share is None else share for share in row[what]] for row in facts["rows"]]
        variants = tuple(row["variant"] for row in facts["rows"])
        return Panel(
            name=what,
            title=SUMMARIES[what],
            axes=(Axis("variant", variants), Axis("width", self.widths, "digits")),
            values=np.array(shares, dtype=float),
            unit="share of sums right",
            zero="every sum wrong",
            one="every sum right",
            view="lines",
            scale="unit",
            beside="width",
            marks=(Mark(facts["trained"][1], "longest trained"),),
            caption=CAPTION,
        )

    def tables(self, facts: Mapping[str, Any]) -> tuple[ResultTable, ...]:
        shares = [
            (row["variant"], what, *("" if share is None else f"{share:.3f}" for share in row[what]))
            for row in facts["rows"]
            for what in SUMMARIES
        ]
        judged = [
            (row["variant"], prediction["width"], prediction["says"], prediction["median"], prediction["came_true"])
            for row in facts["rows"]
            for prediction in row["predictions"]
        ]
        return (
            ResultTable(
                f"share of {self.fresh:,} sums right, by digits",
                ("variant", "over seeds", *map(str, self.widths)),
                tuple(shares),
            ),
            ResultTable("predictions", ("variant", "digits", "predicted", "median", "came true"), tuple(judged)),
        )


def shares_right(run: Run, width: int, fresh: int) -> dict[str, float]:
    """Shares of `fresh` sums of a width: `whole`, answered right; `digits`, all digits right, with or without a right
    end; `rest`, right after the first digit, given that digit.

    Raises TaskMismatchError for a width beyond the model's positions.
    """
    task = run.config.task.of_width(width)
    subject = Subject(f"run:{run.name}?n_digits={width}", run.model(), task)
    tokens = task.sample(fresh, seeded(torch.device("cpu"), FRESH_SEED, width))
    n_right = dict.fromkeys(PARTS, 0)
    with torch.no_grad():
        for batch in tokens.split(max(1, TOKENS // task.n_ctx)):
            right = tokens_right(subject.answer_logits(batch), batch[:, task.prompt_length :])
            for part, read in PARTS.items():
                n_right[part] += int(right[:, read].all(dim=1).sum())
    return {part: count / fresh for part, count in n_right.items()}
