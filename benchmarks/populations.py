"""P2: models per minute, many seeds together against one after another in eager PyTorch.

The other side is the same recipe as one writes it first: the network without anything of ours but its first weights,
`torch.optim.Muon` and `torch.optim.AdamW`, PyTorch's default threads, one seed after another; its evaluation, logging
and checkpoints are not counted. Ours is `train_many` as a user calls it, with everything counted, its processes started
anew each time. Both train as many steps as ours needs.

Run `python benchmarks/populations.py [largest population, default 64] [seeds of the other side, default 3]`. With
`stacks` instead: what a step costs a member, by batch and by members in a stack.
"""

import statistics
import sys
import tempfile
from functools import partial

import torch
import torch.nn.functional as F

import algoscope as ag
import harness
from algoscope.config import RunConfig, override
from algoscope.data import Batches, batches, held_out
from algoscope.networks.build import build
from algoscope.recipes.addition import add3
from algoscope.runs.run_folder import Run
from algoscope.training.model_stack import Stack, Start
from algoscope.training.optim import Schedule
from algoscope.training.population import plan_for, train_many
from sides.plain import Plain

CPU = torch.device("cpu")


def one_after_another(config: RunConfig, steps: int) -> float:
    """Seconds of one seed in eager PyTorch."""
    cfg = config.optim
    model = Plain(build(config.model, config.seed))
    named = list(model.named_parameters())
    matrices = [p for name, p in named if name.startswith("blocks.") and p.ndim == 2]
    rest = [p for _, p in named if not any(p is matrix for matrix in matrices)]
    optimisers = [
        (torch.optim.Muon(matrices, lr=cfg.muon_lr, momentum=cfg.muon_momentum, weight_decay=0.0), cfg.muon_lr),
        (torch.optim.AdamW(rest, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay), cfg.lr),
    ]
    schedule = Schedule.planned(cfg, config.train.steps)
    data = batches(
        config.task, config.data, config.train.batch, config.seed, held_out(config.task, config.data, 0, CPU)
    )
    at = config.task.answer_slice

    def train() -> None:
        for step in range(steps):
            tokens = data.batch(step)
            logits = model(tokens[:, :-1])[:, at]
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:][:, at].flatten())
            for optimiser, peak in optimisers:
                optimiser.zero_grad()
                optimiser.param_groups[0]["lr"] = peak * schedule.share(step)
            loss.backward()
            for optimiser, _ in optimisers:
                optimiser.step()

    return harness.seconds(train)


def populations(largest: int, n_other: int) -> None:
    threads = torch.get_num_threads()
    sizes = [2**i for i in range(largest.bit_length()) if 2**i <= largest]
    rows, steps = [], []
    other: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            configs = {f"p{size}-s{seed}": override(add3(), {"seed": seed}) for seed in range(size)}
            found: list[Run] = []

            def together(configs: dict[str, RunConfig] = configs, found: list[Run] = found) -> None:
                found.extend(train_many(configs, runs_dir=folder, progress=False).runs.values())

            spent = harness.seconds(together)
            steps += [run.summary.steps for run in found]
            rows.append((size, f"{spent:.1f}", f"{60 * len(found) / spent:.1f}"))
            if len(other) < n_other:
                torch.set_num_threads(threads)
                other.append(one_after_another(override(add3(), {"seed": len(other)}), round(statistics.median(steps))))
            print(*rows[-1], other, file=sys.stderr, flush=True)
    harness.heading("Models per minute (P2)")
    harness.table(["population of `add3`", "seconds", "models a minute"], rows)
    alone = 60 / statistics.median(other)
    print(f"\nOne after another, eager PyTorch, {threads} threads: {harness.spread(other)} s, {alone:.1f} a minute.")
    print(f"Ratio at {sizes[-1]}: **{float(rows[-1][2]) / alone:.1f}**.")


def stacks() -> None:
    torch.set_num_threads(1)
    config = add3()
    test = held_out(config.task, config.data, 0, CPU)
    rows = []
    for batch in (16, 32, 64, 128, 256):
        data = batches(config.task, config.data, batch, 0, test)
        at = config.task.answer_slice
        sides = {}
        for size in (1, 4, 16):
            cfgs = [override(config, {"seed": seed, "batch": batch}) for seed in range(size)]
            stack = Stack(cfgs, [Start(build(cfg.model, cfg.seed)) for cfg in cfgs], CPU)

            sides[str(size)] = partial(_steps, stack, data, at)
        taken = harness.alternate(sides, 5)
        alone = statistics.median(taken["1"])
        rows.append(
            (
                batch,
                *(harness.spread(1000 * s / 64 for s in taken[size]) for size in sides),
                f"{alone / statistics.median(taken['16']):.2f}",
            )
        )
    harness.heading("What a step costs a member of a stack, one thread")
    columns = ["batch", "alone, ms", "in a stack of 4, ms", "in a stack of 16, ms", "16 against alone"]
    harness.table(columns, rows)
    print(f"\n`add3`'s own batch of {config.train.batch} is trained in {_said(config)}.")


def _steps(stack: Stack, data: Batches, at: slice) -> None:
    """Sixty-four steps, divided among the members."""
    n_members = len(stack.configs)
    for step in range(64 // n_members):
        stack.gradient(data.batch(step).expand(n_members, -1, -1), at)
        stack.step([1.0] * n_members)


def _said(config: RunConfig) -> str:
    with tempfile.TemporaryDirectory() as folder:
        runs = [Run.create(Run(ag.runs_directory(folder) / f"s{s}").path, config) for s in range(16)]
        sizes = {len(stack) for stack in plan_for(runs, CPU, workers=1).stacks}
    return f"stacks of {max(sizes)}" if max(sizes) > 1 else "processes of its own"


if __name__ == "__main__":
    if sys.argv[1:2] == ["stacks"]:
        stacks()
    else:
        populations(*map(int, sys.argv[1:] or (64, 3)))
