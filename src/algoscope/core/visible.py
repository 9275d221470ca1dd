"""Text that is data, made visible: tokens, names and paths may hold characters that a terminal or a page would obey
instead of showing, and that no picture or encoding can hold.
"""

import re

# Control characters, line separators, characters that turn the direction of writing, and what XML and UTF-8 refuse
_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")


def visible(text: object) -> str:
    """The text with each character that would be obeyed written as Python does (`\\x1b`); line breaks and tabs stay."""
    return _OBEYED.sub(lambda match: match.group().encode("unicode_escape").decode(), str(text))


def one_line(text: object) -> str:
    """Visible text for a cell, a label or a title, where line breaks and tabs are shown as signs."""
    return visible(text).replace("\n", "\u21b5").replace("\t", "\u21e5")
