"""What can be followed over checkpoints: every lens, and the verdicts, which no lens imports. The doors fill it."""

from algoscope.core.registry import Entry, Table

FOLLOWED: Table[Entry] = Table("lens or verdict", {})
