"""`algoscope study NAME`: a controlled comparison."""

from typing import Any

import click

from algoscope.doors.common import common, names, show_table
from algoscope.doors.runs_commands import parse_seeds, parse_settings
from algoscope.doors.table import PUBLIC
from algoscope.training.table import STUDIES


@click.command()
@click.argument("name", shell_complete=names(STUDIES))
@click.option("--seeds", default="0..2", show_default=True, metavar="A..B", help="Every variant with every seed.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a config field in all members.")
@click.option("--out", metavar="FILE", help="Write .html, .png, .svg, .json or .csv, by the ending.")
@common
def study(
    name: str,
    seeds: str,
    settings: tuple[str, ...],
    out: str | None,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> None:
    """Train the variants of the study NAME over seeds and compare them with their control: one table, one figure.

    Its members are ordinary runs, NAME-VARIANT-s<seed>; those that are whole already are not trained again.
    """
    found = PUBLIC.load("study")(
        name, seeds=parse_seeds(seeds), settings=parse_settings(settings), runs_dir=runs_dir, progress=not quiet
    )
    if out is not None:
        found.save(out)
    if as_json:
        click.echo(found.to_json())
        return
    (_lengths if found.kind == "length" else _arrivals)(found)
    click.echo(found.claim)


def _arrivals(found: Any) -> None:
    """When each variant arrived, beside its control."""
    rows = [
        (
            row["variant"],
            row["meaning"],
            _steps(row["memorised"]),
            _steps(row["generalised"]),
            "never" if row["median"] is None else f"{row['median']:,.0f}",
            row["outcome"] if row["variant"] != row["against"] else "",
            f"{row['expected']} than {row['against']}: {'yes' if row['came_true'] else 'NO'}"
            if row["expected"]
            else "",
        )
        for row in found["rows"]
    ]
    columns = ["variant", "what is changed", "memorised", "generalised", "median", "outcome", "expected"]
    show_table("", columns, rows, numeric=["median"])


def _lengths(found: Any) -> None:
    """How much of each width each variant gets right, then what was predicted."""
    columns = ["variant", "over seeds", *map(str, found["widths"])]
    shares = [
        (row["variant"] if over == "median" else "", over, *("" if s is None else f"{s:.3f}" for s in row[over]))
        for row in found["rows"]
        for over in ("median", "worst", "digits", "rest")
    ]
    show_table(f"share of {found['fresh']:,} sums right, by digits", columns, shares, numeric=columns[2:])
    judged = [
        (row["variant"], said["width"], said["says"], f"{said['median']:.3f}", "yes" if said["came_true"] else "NO")
        for row in found["rows"]
        for said in row["predictions"]
    ]
    show_table("predicted", ["variant", "digits", "median", "found", "came true"], judged, numeric=["digits", "found"])


def _steps(steps: list[int | None]) -> str:
    return " ".join("never" if step is None else f"{step:,}" for step in steps)
