"""What a type checker knows of the public API: `make check` runs mypy over this file, and nothing runs it.

An `Any` where a function should be makes `assert_type` fail; a misspelt name that passes makes its `type: ignore`
an unused one.
"""

from typing import assert_type

import algoscope as ag

assert_type(ag.open("planted:clock"), ag.Subject)
assert_type(ag.certify("planted:clock", sample=10), ag.Finding)
assert_type(ag.lenses.roles("planted:induction"), ag.Finding)
assert_type(ag.lenses.progress("run:add3"), ag.Finding)
assert_type(ag.train("add3").name, str)
ag.certify("planted:clock", samples=10)  # type: ignore[call-arg]
ag.certyfi  # type: ignore[attr-defined]
ag.lenses.rolls  # type: ignore[attr-defined]
