"""`python -m algoscope` is the `algoscope` command."""

from algoscope.doors.cli import main

main()
