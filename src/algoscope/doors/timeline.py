"""The public timeline lens, which can also track verdicts: the lens layer cannot import them."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from algoscope.core.finding import Finding
from algoscope.lenses.over_training.timeline_lens import timeline as timeline_of_lenses
from algoscope.subjects.subject import Subject
from algoscope.verdicts.certification.certify import certify

P = ParamSpec("P")


def following(lens: Callable[P, Finding], **measures: Callable[[Subject], Finding]) -> Callable[P, Finding]:
    """A lens whose option `measures` has this default."""

    @wraps(lens)
    def offered(*args: P.args, **kwargs: P.kwargs) -> Finding:
        kwargs.setdefault("measures", measures)
        return lens(*args, **kwargs)

    return offered


timeline = following(timeline_of_lenses, certify=certify)
