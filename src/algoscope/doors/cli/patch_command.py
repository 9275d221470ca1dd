"""`algoscope patch SUBJECT`, short for `algoscope lens patch SUBJECT`."""

from algoscope.doors.cli.lens_command import lens_command

patch = lens_command("patch")
