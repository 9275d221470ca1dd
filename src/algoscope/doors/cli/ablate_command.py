"""`algoscope ablate SUBJECT`, short for `algoscope lens ablate SUBJECT`."""

from algoscope.doors.cli.lens_command import lens_command

ablate = lens_command("ablate")
