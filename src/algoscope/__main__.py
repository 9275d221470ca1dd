"""`python -m algoscope` is the `algoscope` command."""

from algoscope.doors.cli.main import main

main()
