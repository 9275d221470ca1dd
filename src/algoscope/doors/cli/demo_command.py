"""`algoscope demo`."""

import click

from algoscope.doors.cli.common import common, show_json
from algoscope.doors.cli.model_commands import show_verdict
from algoscope.doors.table import PUBLIC


@click.command()
@common
def demo(as_json: bool, quiet: bool, runs_dir: str | None) -> int:
    """Train the 3-digit adder, certify it on all 1,000,000 sums, look inside, and write the report."""
    done = PUBLIC.load("demo")(runs_dir=runs_dir, progress=not quiet)
    facts, seconds = done["verdict"].facts, done["seconds"]
    if as_json:
        show_json(
            {
                "run": done["run"].name,
                "path": str(done["run"].path),
                "report": str(done["report"]),
                "seconds": seconds,
                "training": done["run"].summary.model_dump(mode="json"),
                "verdict": facts,
            }
        )
    else:
        show_verdict(done["verdict"])
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        click.echo(f"{parts}\nreport: {done['report'].resolve()}")
    return 0 if facts["wrong"] == 0 else 1
