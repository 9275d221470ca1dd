"""The small tasks: how many lines each takes, and how many seeds of its recipe answer every prompt.

Run `python benchmarks/small_tasks.py [seeds, default 5]`.
"""

import inspect
import sys
import tempfile

import algoscope as ag
import harness
from algoscope.recipes.table import RECIPES
from algoscope.tasks.table import TASKS

SMALL = [name for name, entry in TASKS.items() if ".small." in entry.target]


def main(n_seeds: int = 5) -> None:
    harness.heading("Small tasks")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in SMALL:
            lines = len(inspect.getsource(sys.modules[TASKS.load(name).__module__]).splitlines())
            runs = [
                ag.train(RECIPES.load(name)(), seed=seed, runs_dir=folder, progress=False) for seed in range(n_seeds)
            ]
            wrong = [ag.certify(run)["wrong"] for run in runs]
            rows.append(
                [
                    f"`{name}`",
                    lines,
                    f"{runs[0].config.task.domain_size:,}",
                    f"{wrong.count(0)} of {n_seeds}"
                    + (f" (wrong: {', '.join(map(str, filter(None, wrong)))})" if any(wrong) else ""),
                    harness.spread((run.summary.steps for run in runs), 4),
                ]
            )
            print(name, wrong, file=sys.stderr, flush=True)
    harness.table(["recipe", "lines of the task's file", "prompts", "seeds with none wrong", "steps"], rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
