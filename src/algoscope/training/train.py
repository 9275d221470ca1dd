"""The training loop. The config determines the weights: same recipe, seed and device, same weights, bit for bit."""

import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from algoscope.config import RunConfig, override
from algoscope.core.ambient import find_device, settled
from algoscope.core.arguments import Folder, Seed, checked_arguments
from algoscope.core.errors import AlgoscopeError, Interrupted
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import threads
from algoscope.recipes.named import config_of
from algoscope.runs.paths import is_run, new_folder
from algoscope.runs.run_folder import Run
from algoscope.tasks.base import Task
from algoscope.training.initial_weights import with_start_hash
from algoscope.training.member import Member
from algoscope.training.model_stack import Stack


@checked_arguments
@settled(gradients=True)
def train(
    recipe: str | RunConfig,
    *,
    task: str | Task | None = None,
    seed: Seed | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    runs_dir: Folder = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Run:
    """Train a run, write it to the folder `runs_dir/name`, and return it.

    The same recipe, seed and settings give the same weights, bit for bit, on the same machine and build of PyTorch.
    Ctrl-C finishes the step and saves the state.

    Args:
        recipe: the name of a recipe, a complete config, or a file of one, NAME.json.
        task: another task to train on: one that ships or your own, as a value or by name (`max?k=3`, `FILE.py:CLASS`);
            None: that of the recipe.
        seed: of the initial weights and the data; None: the seed in the config.
        name: the name of the run's folder; by default the recipe and the seed, such as `add3-s0`.
        settings: fields of the config to change, by name, as `--set` does: `{"lr": 0.01, "n_digits": 2}`.
        runs_dir: the folder of runs; by default `$ALGOSCOPE_RUNS` or `runs`.
        resume: whether to continue an interrupted run from its newest checkpoint; the final weights are those of an
            uninterrupted run. A finished run is returned unchanged. A recipe by name, without `seed`, `settings` and
            `task`, continues with those that the run was started with.
        device: `cpu`, `cuda` or `mps`.
        progress: whether to show a progress bar.
    Returns:
        The finished run.
    Raises:
        ConfigError: for an unknown setting or device, and for an illegal value.
        RunFolderError: for a run that exists, unless `resume` is set; for one of another config; for one that another
            process is training; for an invalid name.
        DivergedError: for a loss or a weight that is not finite; the last good checkpoint is kept.
        Interrupted: after Ctrl-C.

    Example:
        >>> import tempfile, algoscope as ag
        >>> short = {"n_digits": 1, "steps": 3, "batch": 8, "data.n_test": 10}
        >>> run = ag.train("add3", settings=short, runs_dir=tempfile.mkdtemp(), progress=False)
        >>> run.name, run.newest_step
        ('add3-s0', 3)
    """
    config = config_of(recipe, task)
    config = override(config, dict(settings or {}) | ({} if seed is None else {"seed": seed}))
    torch_device = find_device(device)
    path = new_folder(f"{config.recipe}-s{config.seed}" if name is None else name, runs_dir)
    if isinstance(recipe, str) and not settings and seed is None and task is None and resume and is_run(path):
        started = Run(path).config
        config = started if started.recipe == config.recipe else config
    run = open_run(path, with_start_hash(config, path.parent), resume)
    if run.is_whole:
        return run
    watcher = Bar(f"train {path.name}", "steps") if progress else Watcher()
    with watcher, finishing_the_step() as stop:
        failed = train_together([run], torch_device, watcher, stop)
    if failed:
        raise failed[run.name]
    return run


def open_run(path: Path, config: RunConfig, resume: bool) -> Run:
    """A new run, or an existing one with the same config that is to be resumed."""
    if not resume or not is_run(path):
        return Run.create(path, config)
    run = Run(path)
    run.refuse_another(config)
    return run


@contextmanager
def finishing_the_step() -> Iterator[threading.Event]:
    """Within the body, Ctrl-C and SIGTERM set the event instead of interrupting a step."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@settled(gradients=True)
def train_together(
    runs: Sequence[Run], device: torch.device, watcher: Watcher, stop: threading.Event
) -> dict[str, AlgoscopeError]:
    """Train runs whose configs agree in shape as one stack of models, until each has finished or diverged.

    Returns the errors of the others by name: those that diverged, that cannot be read, and that another process trains.
    Raises Interrupted where `stop` is set, after saving every state.
    """
    failed: dict[str, AlgoscopeError] = {}
    everyone, starts = [], []
    with ExitStack() as held:
        for run in runs:
            try:
                held.enter_context(run.lock())
                member = Member(run, run.config, device)
                starts.append(member.restore())
                everyone.append(member)
            except AlgoscopeError as error:
                failed[run.name] = error
        if not everyone:
            return failed
        members = everyone
        held.enter_context(threads(members[0].config.train.threads))
        held.enter_context(torch.autograd.set_detect_anomaly(False))  # a loss that is not finite has its own error
        stack = Stack([member.config for member in members], starts, device)
        left = _indices(members, failed, lambda index: members[index].begin(stack, index))
        while left:
            if len(left) < len(members):
                members, stack = [members[index] for index in left], stack.only(left)
            left = _advance(members, stack, failed)
            _show_progress(everyone, watcher)
            if stop.is_set() and left:
                _save_and_stop([members[index] for index in left], stack, left)
    return failed


def _advance(members: Sequence[Member], stack: Stack, failed: dict[str, AlgoscopeError]) -> list[int]:
    """One step of every member; returns the indices of those with steps left."""
    batches = [member.batch() for member in members]
    losses, logits = stack.gradient(
        torch.stack([batch.tokens for batch in batches]), batches[0].at, batches[0].position_ids
    )
    stack.step([member.share() for member in members])
    return _indices(
        members,
        failed,
        lambda index: members[index].after_step(stack, index, batches[index], losses[index], logits[index]),
    )


def _indices(
    members: Sequence[Member], failed: dict[str, AlgoscopeError], has_steps_left: Callable[[int], bool]
) -> list[int]:
    """The indices of the members with steps left; the error of one leaves the others."""
    left = []
    for index, member in enumerate(members):
        try:
            if has_steps_left(index):
                left.append(index)
        except AlgoscopeError as error:
            failed[member.run.name] = error
    return left


def _show_progress(everyone: Sequence[Member], watcher: Watcher) -> None:
    first = everyone[0]
    if first.step % first.config.train.log_every == 0 or len(everyone) > 1:
        n_finished = f"{sum(member.is_done for member in everyone)} of {len(everyone)} runs finished"
        done, total = sum(member.step for member in everyone), sum(member.schedule.end for member in everyone)
        watcher.advance(done, total, first.note if len(everyone) == 1 else n_finished)


def _save_and_stop(members: Sequence[Member], stack: Stack, indices: Sequence[int]) -> NoReturn:
    """Save all states, then raise Interrupted."""
    for index, member in zip(indices, members, strict=True):
        member.save(stack, index)
    first = members[0]
    if len(members) == 1:
        raise Interrupted(
            f"stopped at step {first.step} of {first.schedule.end}; the state is saved in {first.run.path}: "
            f"go on with --resume --name {first.run.name}{_elsewhere(first.run)}"
        )
    raise Interrupted(
        f"stopped; the states of {len(members)} runs are saved in {first.run.path.parent}: go on with --resume"
        f"{_elsewhere(first.run)}"
    )


def _elsewhere(run: Run) -> str:
    """The option that names the run's folder, where it is not the default."""
    return "" if run.address == run.name else f" --runs-dir {shlex.quote(str(run.path.parent))}"
