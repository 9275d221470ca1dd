"""The one training loop. A run is its config: same recipe, seed and device, same weights, bit for bit."""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

from algoscope.config import RunConfig, override
from algoscope.core.errors import ConfigError, DivergedError, Interrupted, RunFolderError
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import threads
from algoscope.recipes.table import RECIPES
from algoscope.runs.paths import runs_directory
from algoscope.runs.run_folder import Run
from algoscope.training.initial_weights import settled
from algoscope.training.member import Member
from algoscope.training.model_stack import Stack


def train(
    recipe: str | RunConfig,
    *,
    seed: int | None = None,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Run:
    """Train a recipe (or a complete config) into the folder `runs_dir/name` and return the run.

    `settings` changes fields of the config by name, as `--set` does. With `resume`, a run that was interrupted goes
    on from its newest checkpoint and ends with the weights that an uninterrupted one has; a whole run is returned as
    it is. The default name is the recipe and the seed.

    Raises ConfigError, RunFolderError, DivergedError (the run keeps its last good checkpoint), and Interrupted
    (Ctrl-C: the step is finished, the state is kept).
    """
    config = RECIPES.load(recipe)() if isinstance(recipe, str) else recipe
    config = override(config, dict(settings or {}) | ({} if seed is None else {"seed": seed}))
    place = find_device(device)
    path = runs_directory(runs_dir) / (name or f"{config.recipe}-s{config.seed}")
    if resume and (path / "config.json").exists() and not settings and seed is None:
        config = Run(path).config
    run = open_run(path, settled(config, path.parent), resume)
    if run.is_whole:
        return run
    watcher = Bar(f"train {path.name}", "steps") if progress else Watcher()
    with watcher, finishing_the_step() as stop:
        failed = train_together([run], place, watcher, stop)
    if failed:
        raise failed[run.name]
    return run


def open_run(path: Path, config: RunConfig, resume: bool) -> Run:
    """The run in a folder that is new, or that holds the same config and is to be resumed."""
    if not resume or not (path / "config.json").exists():
        return Run.create(path, config)
    run = Run(path)
    if run.config != config:
        raise RunFolderError(f"run {path} has another config; resume it with the settings it was started with")
    return run


def find_device(name: str) -> torch.device:
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available here; known: cpu, cuda, mps") from error


@contextmanager
def finishing_the_step() -> Iterator[threading.Event]:
    """Within the body, Ctrl-C and SIGTERM set the event instead of striking between two parameters."""
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


def train_together(
    runs: Sequence[Run], device: torch.device, watcher: Watcher, stop: threading.Event
) -> dict[str, DivergedError]:
    """Train runs whose configs agree in shape, as one batch of models, until each is whole or has diverged.

    Those that diverge are returned by name. Raises Interrupted where `stop` is set, after every state is kept.
    """
    failed: dict[str, DivergedError] = {}
    with ExitStack() as held:
        for run in runs:
            held.callback(run.lock().release)
        everyone = members = [Member(run, run.config, device) for run in runs]
        held.enter_context(threads(members[0].config.train.threads))
        stack = Stack([member.config for member in members], [member.restore() for member in members], device)
        left = [place for place, member in enumerate(members) if member.begin(stack, place)]
        while left:
            if len(left) < len(members):
                members, stack = [members[place] for place in left], stack.only(left)
            left = _advance(members, stack, failed)
            _say(everyone, watcher)
            if stop.is_set() and left:
                _keep([members[place] for place in left], stack, left)
    return failed


def _advance(members: Sequence[Member], stack: Stack, failed: dict[str, DivergedError]) -> list[int]:
    """One step of every member; the places of those that go on."""
    batches = [member.batch() for member in members]
    losses, logits = stack.gradient(
        torch.stack([batch.tokens for batch in batches]), batches[0].at, batches[0].position_ids
    )
    stack.step([member.share() for member in members])
    left = []
    for place, member in enumerate(members):
        try:
            goes_on = member.took(stack, place, batches[place], losses[place], logits[place])
        except DivergedError as error:
            failed[member.run.name] = error
            continue
        if goes_on:
            left.append(place)
    return left


def _say(everyone: Sequence[Member], watcher: Watcher) -> None:
    first = everyone[0]
    if first.step % first.config.train.log_every == 0 or len(everyone) > 1:
        whole = f"{sum(member.is_done for member in everyone)} of {len(everyone)} runs whole"
        done, total = sum(member.step for member in everyone), sum(member.schedule.end for member in everyone)
        watcher.advance(done, total, first.note if len(everyone) == 1 else whole)


def _keep(members: Sequence[Member], stack: Stack, places: Sequence[int]) -> NoReturn:
    """Save all states, then raise Interrupted."""
    for place, member in zip(places, members, strict=True):
        member.save(stack, place)
    first = members[0]
    if len(members) == 1:
        raise Interrupted(
            f"stopped at step {first.step} of {first.schedule.end}; {first.run.path} keeps the state: "
            f"go on with --resume --name {first.run.name}"
        )
    raise Interrupted(f"stopped; {len(members)} runs in {first.run.path.parent} keep their state: go on with --resume")
