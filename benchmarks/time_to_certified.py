"""P1: from the start of training to a model that is right on all 1,000,000 sums, against the reference recipe.

The reference is plain eager PyTorch, as one writes it first (`sides/plain.py`): the same 17,760 parameters, the same
initial weights, the published recipe, its clock stopped while it is evaluated on its 10,000 test pairs; it ends at its
first 100 %. Ours is `ag.train(RECIPE)` as a user runs it, clock running through evaluation, logging and checkpoints; a
seed counts when every sum is right. One thread each.

Run `python benchmarks/time_to_certified.py [seeds of ours, default 20] [seeds of the reference, default 5] [recipes]`.
Without a reference (`20 0 add3`) it counts: the share of seeds that end right on every sum, and the steps they took.
Other vector instructions, other roundings, other solutions: `ATEN_CPU_CAPABILITY=default` in front of it.
"""

import statistics
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from torch import nn

import algoscope as ag
import harness
from algoscope.data import batches, held_out
from algoscope.networks.build import build
from algoscope.networks.evaluation import answers_right
from algoscope.recipes.addition import add3_reference
from algoscope.training.optim import Schedule
from sides.plain import Plain


def reference(seed: int) -> tuple[float, int] | None:
    """Seconds and examples to the first 100 % on the test pairs; None if 150 epochs do not reach it."""
    cfg = add3_reference()
    cpu = torch.device("cpu")
    ours = build(cfg.model, seed)
    model = Plain(ours)
    assert sum(parameter.numel() for parameter in model.parameters()) == 17_760
    some = cfg.task.edge_inputs()[:, :-1]
    torch.testing.assert_close(model(some), ours(some))
    optimiser = torch.optim.AdamW(model.parameters(), lr=cfg.optim.lr, weight_decay=cfg.optim.weight_decay)
    schedule = Schedule.planned(cfg.optim, cfg.train.steps)
    test = held_out(cfg.task, cfg.data, cfg.seed, cpu)
    data = batches(cfg.task, cfg.data, cfg.train.batch, seed, test)
    spent = 0.0
    for epoch in range(150):
        began = time.perf_counter()
        for step in range(98 * epoch, 98 * (epoch + 1)):
            tokens = data.batch(step)
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.clip)
            optimiser.param_groups[0]["lr"] = cfg.optim.lr * schedule.share(step)
            optimiser.step()
        spent += time.perf_counter() - began
        with torch.no_grad():
            if answers_right(model(test[:, :-1])[:, cfg.task.answer_slice], test[:, cfg.task.prompt_length :]).all():
                return spent, data.examples_before(98 * (epoch + 1))
    return None


def ours(recipe: str, seed: int, folder: str) -> tuple[float, int, int, int]:
    """Seconds, examples, how many of the 1,000,000 sums are wrong at the end, and steps."""
    run = ag.train(recipe, seed=seed, runs_dir=folder, progress=False)
    return run.summary.seconds, run.summary.examples, ag.certify(run).facts["wrong"], run.summary.steps


def main(n_ours: int = 20, n_reference: int = 5, *recipes: str) -> None:
    torch.set_num_threads(1)
    recipes = recipes or ("add3",)
    slow, fast = [], {recipe: [] for recipe in recipes}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(max(n_ours, n_reference)):
            if seed < n_reference:
                slow.append(reference(seed))
                print("reference", seed, slow[-1], file=sys.stderr, flush=True)
            for recipe in recipes if seed < n_ours else ():
                fast[recipe].append(ours(recipe, seed, folder))
                print(recipe, seed, fast[recipe][-1], file=sys.stderr, flush=True)
    if n_reference:
        compare(slow, fast)
    else:
        count(fast)
    for recipe, found in fast.items():
        print(f"\nWrong sums of each `{recipe}` seed: {', '.join(str(row[2]) for row in found)}.")


def count(fast: dict[str, list]) -> None:
    """How many seeds of each recipe are right on every sum, and in how many steps."""
    harness.heading("Share of certified adders")
    rows = [
        (
            f"`{recipe}`",
            f"{sum(row[2] == 0 for row in found)} of {len(found)}",
            harness.spread((row[3] for row in found), 7),
        )
        for recipe, found in fast.items()
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    harness.table(
        [f"vector instructions: {capability}", "right on all 1,000,000 sums", "steps: median (min to max)"], rows
    )


def compare(slow: list, fast: dict[str, list]) -> None:
    """Seconds and examples of each side, and their ratio."""
    reached = [row for row in slow if row is not None]
    rows = [
        (
            "reference recipe: first 100 % on 10,000 test pairs", f"{len(reached)} of {len(slow)}",
            harness.spread(row[0] for row in reached), harness.spread((row[1] for row in reached), 7), "1",
        )
    ]  # fmt: skip
    for recipe, found in fast.items():
        certified = [row for row in found if row[2] == 0]
        times = statistics.median(a[0] for a in reached) / statistics.median(b[0] for b in certified)
        pairs = [a[0] / b[0] for a in reached for b in certified]
        rows.append(
            (
                f"`{recipe}`: right on all 1,000,000 sums", f"{len(certified)} of {len(found)}",
                harness.spread(row[0] for row in certified), harness.spread((row[1] for row in certified), 7),
                f"**{times:.1f}** ({min(pairs):.1f} to {max(pairs):.1f})",
            )
        )  # fmt: skip
    harness.heading("Time to a certified adder (P1)")
    columns = ["17,760 parameters, one thread", "seeds that get there", "seconds: median (min to max)", "examples"]
    harness.table([*columns, "times faster: medians (pairs of seeds)"], rows)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
