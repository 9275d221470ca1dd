"""Training many runs at once: every member is an ordinary run, equal to training it alone.

Members of one shape are stacked (trained as one batch of models) where that is faster, and the stacks are distributed
over processes with one thread each. By measurement (docs/benchmarks.md) stacking is faster on a CPU while the overhead
of calling a step's operations exceeds their computation, and always on a GPU.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from algoscope.config import BY_DIGIT, RunConfig
from algoscope.core.ambient import find_device, settled
from algoscope.core.arguments import Count, Folder, checked_arguments
from algoscope.core.errors import Interrupted
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import free_cores
from algoscope.networks.parameters import count_parameters
from algoscope.runs.paths import is_run, new_folder, runs_directory
from algoscope.runs.run_folder import Run
from algoscope.tasks.specs import is_only_here
from algoscope.training.initial_weights import with_start_hash
from algoscope.training.train import finishing_the_step, open_run
from algoscope.training.worker_pool import Tally, one_by_one, share_out

STACK_UP_TO = 16  # members of a stack on a CPU
STACK_ON_GPU = 256
SMALL_STEP = 1.5e7  # parameters times tokens per step, up to which stacking is faster on a CPU
OWN = {  # fields in which members of a stack may differ; all others must agree
    "model": {"init_embed_std", "init_matrix_std", "init_unembed_std", "init_zero_out"},
    "data": {"n_test", "train_seed", "test_seed", "hard_share"},
    "optim": {
        "lr", "betas", "weight_decay", "muon_lr", "muon_momentum", "warmup_steps", "decay", "hold", "decay_at",
        "decay_steps", "final_lr", "grokfast_strength", "grokfast_alpha", "clip", "norm_clamp", "average",
    },
    "train": {"steps", "log_every", "eval_every", "stop_at", "checkpoint_every"},
}  # fmt: skip


@checked_arguments
@dataclass(frozen=True)
class Population:
    """The result of `train_many`.

    Example:
        >>> import tempfile, algoscope as ag
        >>> ag.train_many({}, runs_dir=tempfile.mkdtemp(), progress=False)
        Population(runs={}, failed={})
    """

    runs: Mapping[str, Run]
    """The finished runs, by name."""
    failed: Mapping[str, str]
    """The reason why each of the others failed, by name."""


@dataclass(frozen=True)
class Plan:
    """How a population is trained: its stacks, and the number of worker processes."""

    stacks: tuple[tuple[Run, ...], ...]
    workers: int


@checked_arguments
@settled(gradients=True)
def train_many(
    members: Mapping[str, RunConfig],
    *,
    runs_dir: Folder = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    workers: Count | None = None,
    stack: Count | None = None,
    progress: bool = True,
) -> Population:
    """Train many runs at once, each into its own run folder and equal to training it alone.

    A run that is alone in its stack is equal bit for bit, others up to float tolerance (`run.json` has the size of the
    stack). A member that diverges, or whose process dies, does not stop the others. Ctrl-C saves the state of every
    member.

    Args:
        members: configs by name of the run.
        runs_dir: the folder of runs; by default `$ALGOSCOPE_RUNS` or `runs`.
        resume: whether to keep finished members and continue interrupted ones.
        device: `cpu`, `cuda` or `mps`.
        workers: number of worker processes; None: the number of free cores; one where a task is defined in a notebook
            or a script.
        stack: members per stack; None: the fastest number by measurement.
        progress: whether to show a progress bar.
    Returns:
        The finished runs, and why the others failed.
    Raises:
        ArgumentError: for numbers below 1.
        RunFolderError: for a member that exists, unless `resume` is set, that has another config, or whose name is
            invalid; raised before any run is made.
        Interrupted: after Ctrl-C.

    Example:
        >>> import tempfile, algoscope as ag
        >>> short = {"n_digits": 1, "steps": 3, "batch": 8, "data.n_test": 10}
        >>> config = ag.train("add3", settings=short, runs_dir=tempfile.mkdtemp(), progress=False).config
        >>> seeds = {f"s{seed}": config.model_copy(update={"seed": seed}) for seed in (0, 1)}
        >>> sorted(ag.train_many(seeds, runs_dir=tempfile.mkdtemp(), workers=1, progress=False).runs)
        ['s0', 's1']
    """
    torch_device, folder = find_device(device), runs_directory(runs_dir)
    wanted = {new_folder(name, folder): with_start_hash(config, folder) for name, config in members.items()}
    for path, config in wanted.items():
        if is_run(path):
            open_run(path, config, resume)  # raises where it does not fit, before any run is made
    runs = {path.name: open_run(path, config, resume) for path, config in wanted.items()}
    plan = plan_for([run for run in runs.values() if not run.is_whole], torch_device, workers, stack)
    with (
        Bar(f"train {len(runs)} runs", "steps") if progress else Watcher() as watcher,
        finishing_the_step() as stop,
    ):
        tally = Tally(plan.stacks, watcher)
        if plan.workers > 1:
            failed = share_out(plan.stacks, str(torch_device), plan.workers, tally, stop)
        else:
            failed = one_by_one(plan.stacks, torch_device, tally, stop)
    left = [name for name, run in runs.items() if not run.is_whole and name not in failed]
    if left:
        raise Interrupted(f"stopped; {len(left)} of {len(runs)} runs in {folder} are not finished: go on with --resume")
    return Population({name: run for name, run in runs.items() if run.is_whole}, failed)


def plan_for(
    runs: Sequence[Run], device: torch.device, workers: int | None = None, stack: int | None = None
) -> Plan:  # fmt: skip
    """The stacks of unfinished runs, and the number of processes."""
    by_shape: dict[str, list[Run]] = {}
    for run in runs:
        by_shape.setdefault(_shape(run), []).append(run)
    workers = workers or (free_cores() if device.type == "cpu" else 1)
    share = -(-len(runs) // workers) if workers else 1  # so that every process has a stack
    stacks = []
    for group in by_shape.values():
        size = stack or min(worth_stacking(group[0].config, device), share)
        stacks += [tuple(group[at : at + size]) for at in range(0, len(group), size)]
    if any(is_only_here(run.config.task) for run in runs):
        workers = 1
    return Plan(tuple(stacks), max(1, min(workers, len(stacks))))


def worth_stacking(config: RunConfig, device: torch.device) -> int:
    """The number of members of such a config to stack; 1 where stacking is not faster."""
    if config.start is not None or config.data.shortest is not None or config.model.positions in BY_DIGIT:
        return 1  # such members have separate base weights or batches of different widths
    if device.type != "cpu":
        return STACK_ON_GPU
    work = sum(count_parameters(config.model).values()) * config.train.batch * config.task.n_ctx
    return STACK_UP_TO if work <= SMALL_STEP else 1


def _shape(run: Run) -> str:
    """The key of a stack: the config without the fields in which members may differ; where batches differ in size, also
    the step to resume from.
    """
    config = run.config
    plain = config.model_dump()
    del plain["recipe"], plain["seed"]
    for section, names in OWN.items():
        for name in names:
            plain[section][name] = plain[section][name] is None
    if config.data.source == "fixed":
        plain["from"] = run.newest_step
    return json.dumps(plain, sort_keys=True)
