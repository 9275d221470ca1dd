"""The checker of signatures while tests run: an int is a float, as everywhere else in Python."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
