"""Planted models as subjects."""

from pathlib import Path

from algoscope.planted.models import Planted
from algoscope.planted.table import PLANTED
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Letters


def open_planted(name: str, rest: str, directory: Path, device: str) -> Subject:
    """A planted model by name. Raises UnknownNameError for an unknown one."""
    return subject_of(PLANTED.load(rest)(), name, device)


def subject_of(planted: Planted, name: str, device: str = "cpu") -> Subject:
    """The subject of a planted model, or of a shuffled copy of one."""
    text = None if planted.task else Letters(planted.vocabulary)
    return Subject(name, planted.model.to(device), planted.task, text=text)
