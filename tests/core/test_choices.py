"""Options whose type lists their names: another name is one line that says which there are."""

from collections.abc import Sequence
from typing import Literal, get_args

import pytest

from algoscope.core.choices import checked_choices
from algoscope.core.errors import UnknownNameError
from algoscope.lenses.interventions.activation_patching import SWEEPS, Sweep
from algoscope.lenses.interventions.metrics import METRICS, MetricName
from algoscope.lenses.interventions.replacements import KINDS, Kind

Colour = Literal["red", "green"]


@checked_choices(colours="colour")
def paint(what: str, colours: Colour | Sequence[Colour] | None = "red", *, size: int = 1) -> str:
    """Paint."""
    return f"{what} {colours} {size}"


def test_listed_names_pass_and_another_is_named() -> None:
    assert paint("wall") == "wall red 1"
    assert paint("wall", "green", size=2) == "wall green 2"
    assert paint("wall", colours=["red", "green"]) == "wall ['red', 'green'] 1"
    assert paint("wall", None) == "wall None 1"
    for colours in ("gren", ["red", "gren"]):
        with pytest.raises(UnknownNameError, match=r"unknown colour 'gren': did you mean 'green'\? known: green, red"):
            paint("wall", colours)


@pytest.mark.parametrize(("names", "table"), [(Sweep, SWEEPS), (MetricName, METRICS), (Kind, KINDS)])
def test_types_list_the_names_of_their_tables(names: object, table: dict) -> None:
    assert get_args(names) == tuple(table)
