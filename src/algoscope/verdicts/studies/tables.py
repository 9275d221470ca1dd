"""A study's rows in words: what was changed, what goes wrong where, and which statements came true."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Row = Mapping[str, Any]
Words = list[tuple[str, ...]]  # the first row has the headings
WORDS = (
    "variant",
    "what is changed",
    "memorised",
    "generalised",
    "outcome",
    "expected",
)  # columns that are not numbers


def tables(facts: Mapping[str, Any]) -> list[tuple[str, Words]]:
    """The tables of a study, each with its title."""
    rows = facts["rows"]
    if facts["measures"] == "steps":
        return [("", arrivals(rows))]
    where = "share wrong, median over the seeds, by class of input and by column of the answer"
    return [("", changes(rows)), (where, places(rows)), ("", statements(rows))]


def arrivals(rows: Sequence[Row]) -> Words:
    """One row for each variant: the steps until each seed memorised and generalised, and what was expected of that."""
    words: Words = [("variant", "what is changed", "memorised", "generalised", "median", "outcome", "expected")]
    for row in rows:
        middle = "never" if row["median"] is None else f"{row['median']:,.0f}"
        outcome = row["outcome"] if row["variant"] != row["against"] else ""
        expected = f"{row['expected']} than {row['against']}: {'yes' if row['came_true'] else 'NO'}"
        steps = (_steps(row["memorised"]), _steps(row["generalised"]))
        words.append((row["variant"], row["meaning"], *steps, middle, outcome, expected if row["expected"] else ""))
    return words


def _steps(steps: Sequence[int | None]) -> str:
    return " ".join("never" if step is None else f"{step:,}" for step in steps)


def changes(rows: Sequence[Row]) -> Words:
    """One row for each variant: how many seeds have every input right, how many inputs go wrong, the training loss."""
    words: Words = [("variant", "what is changed", "all right", "wrong, median", "min to max", "loss, median")]
    for row in rows:
        wrong = _there(row["wrong"])
        spread = f"{min(wrong):,} to {max(wrong):,}" if wrong else ""
        loss = f"{median(_there(row['loss'])):.2g}" if wrong else ""
        middle = f"{median(wrong):,.0f}" if wrong else "diverged"
        right = f"{wrong.count(0)} of {len(row['wrong'])}"
        words.append((row["variant"], row["meaning"], right, middle, spread, loss))
    return words


def places(rows: Sequence[Row]) -> Words:
    """One row for each variant: the median share wrong in each class of input, then in each column of the answer."""
    classes, columns = (
        list(dict.fromkeys(name for row in rows for name in row[by])) for by in ("by_class", "by_column")
    )
    words: Words = [("variant", *classes, *columns)]
    for row in rows:
        shares = [
            row[by].get(name, []) for by, names in (("by_class", classes), ("by_column", columns)) for name in names
        ]
        words.append((row["variant"], *(short_share(median_of(share)) for share in shares)))
    return words


def statements(rows: Sequence[Row]) -> Words:
    """One row for each statement that was made before the study was run."""
    words: Words = [("variant", "expected", "came true", "seeds")]
    for row in rows:
        for said in row["predictions"]:
            judged = _there(said["by_seed"])
            came_true = "yes" if said["came_true"] else "NO"
            words.append((row["variant"], said["says"], came_true, f"{sum(judged)} of {len(said['by_seed'])}"))
    return words


def median_of(shares: Sequence[float | None]) -> float:
    """The median over the seeds that have one; NaN where none has."""
    there = _there(shares)
    return float(median(there)) if there else float("nan")


def short_share(share: float) -> str:
    """A share in a few letters: `0`, `<.01%`, `0.03%`, `12%`, `>99.9%`, `100%`; 0 and 100 % are exact."""
    if share != share:
        return ""
    if share in (0, 1):
        return "100%" if share else "0"
    percent = 100 * share
    if percent < 0.01:
        return "<.01%"
    if percent > 99.95:
        return ">99.9%"
    decimals = 2 if percent < 1 else 1 if percent < 10 or percent > 99 else 0
    return f"{percent:.{decimals}f}%"


def short_count(count: float) -> str:
    """A count in a few letters: `0`, `213`, `12.3k`, `987k`, `1.00M`."""
    if count < 1e4:
        return f"{count:,.0f}"
    return f"{count / 1e6:.2f}M" if count >= 999_500 else f"{count / 1e3:.3g}k"


def _there(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value is not None]
