"""The one training loop. A run is its config: same recipe, seed and device, same weights, bit for bit."""

import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

import algoscope.version as version
from algoscope.config import RunConfig, TrainConfig, override
from algoscope.core.errors import ConfigError, DivergedError, Interrupted, RunFolderError
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import threads
from algoscope.data import batches, held_out
from algoscope.networks.build import build
from algoscope.networks.places import at_width_of, drawn_places
from algoscope.networks.transformer import Place
from algoscope.tasks.base import Task, Tokens
from algoscope.training.grok import log_stablemax
from algoscope.training.optim import Optimisers, Schedule
from algoscope.training.runs import Run, load_model, runs_directory, weights_hash
from algoscope.training.table import RECIPES

LOG_SPACED_UNTIL = 1024  # checkpoints at 0, 1, 2, 4, ... up to here, beside those at even distances
EVAL_CHUNK = 2048
SMALL_VOCABULARY = 32


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
    place = _device(device)
    path = runs_directory(runs_dir) / (name or f"{config.recipe}-s{config.seed}")
    if resume and (path / "config.json").exists() and not settings and seed is None:
        config = Run(path).config
    watcher = Bar(f"train {path.name}", "steps") if progress else Watcher()
    run = _open(path, config, resume)
    if run.is_whole:
        return run
    lock = run.lock()
    try:
        with threads(config.train.threads), watcher, _finishing_the_step() as stop:
            _Training(run, config, place, watcher, stop).go()
    finally:
        lock.release()
    return run


def _open(path: Path, config: RunConfig, resume: bool) -> Run:
    if not resume or not (path / "config.json").exists():
        return Run.create(path, config)
    run = Run(path)
    if run.config != config:
        raise RunFolderError(f"run {path} has another config; resume it with the settings it was started with")
    return run


def _device(name: str) -> torch.device:
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} is not available here; known: cpu, cuda, mps") from error


@contextmanager
def _finishing_the_step() -> Iterator[threading.Event]:
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


class _Training:
    """One run in memory: the model, its optimisers, its data, and the rows not yet written."""

    def __init__(
        self, run: Run, config: RunConfig, device: torch.device, watcher: Watcher, stop: threading.Event
    ) -> None:
        self.run, self.config, self.device, self.watcher, self.stop = run, config, device, watcher, stop
        self.task: Task = config.task
        self.model = build(config.model, config.seed, device)
        self.optimisers = Optimisers(self.model, config.optim)
        self.test = held_out(self.task, config.data, config.seed, device)
        self.batches = batches(self.task, config.data, config.train.batch, config.seed, self.test)
        self.schedule = Schedule.planned(config.optim, config.train.steps)
        self.step, self.seconds, self.examples, self.note = 0, 0.0, 0, ""
        self.losses: list[Tensor] = []

    def go(self) -> None:
        """From the newest checkpoint, or from the start, to the last step; then the run is whole."""
        self._restore()
        self.began = time.perf_counter() - self.seconds
        if self.step == 0:
            self._save()
        while self.step < self.schedule.end:
            self._advance()
            if self.stop.is_set() and self.step < self.schedule.end:
                self._save()
                raise Interrupted(
                    f"stopped at step {self.step} of {self.schedule.end}; {self.run.path} keeps the state: "
                    f"go on with --resume --name {self.run.name}"
                )
        self._finish()

    # ------------------------------------------------------------------ one step

    def _advance(self) -> None:
        train = self.config.train
        task, tokens = self.batches.task_at(self.step), self.batches.batch(self.step)
        place = drawn_places(self.config.model, task, len(tokens), self.batches.chance(self.step))
        loss, logits = self._gradient(task, tokens, place)
        share = self.schedule.share(self.step)
        self.optimisers.step(share)
        self.losses.append(loss)
        self.step += 1
        self.examples += len(tokens)
        last = self.step == self.schedule.end
        if self.step % train.log_every == 0 or last or is_checkpoint(self.step, train.checkpoint_every):
            self._check_losses()
        if self.step % train.log_every == 0 or last:
            self._log(loss, logits, task, tokens, share, evaluate=self.step % train.eval_every == 0 or last)
        if self._is_scheduled(self.step):
            self._save()

    def _read(self, task: Task) -> slice:
        """The positions that the loss reads."""
        return task.answer_slice if self.config.data.loss_on == "answer" else slice(0, task.n_ctx - 1)

    def _gradient(
        self, task: Task, tokens: Tokens, place: Place | None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch read d_vocab"]]:
        """The batch's mean loss and its logits; its gradient is added up, a part of the batch at a time."""
        losses, logits, at, n_parts = [], [], self._read(task), self.config.train.accumulate
        places = repeat(None) if place is None else place.chunk(n_parts)
        for part, own in zip(tokens.chunk(n_parts), places):  # noqa: B905  # None has no end
            said = self.model(part[:, :-1], at=at, place=own)
            loss = mean_loss(said, part[:, 1:][:, at], self.config.train) * (len(part) / len(tokens))
            loss.backward()
            losses.append(loss.detach())
            logits.append(said.detach())
        if len(losses) == 1:
            return losses[0], logits[0]
        return torch.stack(losses).sum(), torch.cat(logits)

    def _check_losses(self) -> None:
        finite = torch.isfinite(torch.stack(self.losses))
        if not finite.all():
            step = self.step - len(self.losses) + int((~finite).nonzero()[0, 0]) + 1
            raise DivergedError(
                f"the loss is {float(self.losses[step - self.step - 1])} at step {step}; the last good checkpoint is "
                f"step {self.run.newest_step} in {self.run.path}; try a lower learning rate (--set lr=...)"
            )
        self.losses.clear()

    @torch.no_grad()
    def _log(self, loss: Tensor, logits: Tensor, task: Task, tokens: Tokens, share: float, evaluate: bool) -> None:
        answer = logits[:, -(task.n_ctx - task.prompt_length) :]
        row = {
            "step": self.step,
            "loss": float(loss),
            "train_accuracy": float(right(task, answer, tokens).float().mean()),
            "lr": self.config.optim.lr * share,
            "examples": self.examples,
            "seconds": round(time.perf_counter() - self.began, 3),
        }
        if evaluate:
            row["test_loss"], row["test_accuracy"] = self._evaluate()
            self.note = f"test {row['test_accuracy']:.2%}"
        self.run.append_metrics([row])
        self._notice(row)
        self.watcher.advance(self.step, self.schedule.end, f"loss {row['loss']:.4f} {self.note}")

    def _notice(self, row: Mapping[str, Any]) -> None:
        """What a row of metrics changes in the schedule."""
        stop_at = self.config.train.stop_at
        self.schedule = self.schedule.noticed(row["step"], row["train_accuracy"])
        if stop_at is not None and row.get("test_accuracy", -1.0) >= stop_at:
            self.schedule = replace(self.schedule, end=row["step"])

    def _evaluate(self) -> tuple[float, float]:
        """Mean loss (on the positions that training reads) and share of whole answers right, over the test inputs."""
        loss, n_right, at = 0.0, 0, self._read(self.task)
        model = at_width_of(self.model, self.task)
        for tokens in self.test.split(EVAL_CHUNK):
            logits = model(tokens[:, :-1], at=at)
            targets = tokens[:, 1:][:, at]
            loss += float(mean_loss(logits, targets, self.config.train)) * len(tokens)
            answer = logits[:, -(self.task.n_ctx - self.task.prompt_length) :]
            n_right += int(right(self.task, answer, tokens).sum())
        return loss / len(self.test), n_right / len(self.test)

    # ------------------------------------------------------------------ the folder

    def _restore(self) -> None:
        kept = self.run.resumable()
        if kept is None:
            self.run.cut_metrics(after=-1)
            return
        self.step, weights, state = kept
        self.model.load_state_dict(load_model(self.config, weights, self.run.path).state_dict())
        self.optimisers.load({name: tensor.to(self.device) for name, tensor in state.items()})
        self.run.cut_metrics(after=self.step)
        self.run.cut_checkpoints(keep=lambda step: step <= self.step)
        rows = self.run.metrics()
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        for row in rows:
            self._notice(row)
        self.examples = self.batches.examples_before(self.step)

    def _save(self) -> None:
        weights = self.model.state_dict()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise DivergedError(
                f"a weight is no longer finite after step {self.step}; the last good checkpoint is step "
                f"{self.run.newest_step} in {self.run.path}; try a lower learning rate (--set lr=...)"
            )
        self.run.save_checkpoint(self.step, weights, self.optimisers.state())
        self.run.cut_checkpoints(keep=lambda step: step == self.step or self._is_scheduled(step))

    def _is_scheduled(self, step: int) -> bool:
        """Does an uninterrupted run write a checkpoint here? Others are gone once the next is on disk."""
        return step == self.schedule.end or is_checkpoint(step, self.config.train.checkpoint_every)

    def _finish(self) -> None:
        last = self.run.metrics()[-1]
        self.run.finish(
            {
                "recipe": self.config.recipe,
                "seed": self.config.seed,
                "steps": self.step,
                "examples": self.examples,
                "seconds": last["seconds"],
                "loss": last["loss"],
                "test_accuracy": last["test_accuracy"],
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "weights_sha256": weights_hash(self.model.state_dict()),
                "device": str(self.device),
                "threads": torch.get_num_threads(),
                "versions": {
                    "algoscope": version.__version__,
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                },
            }
        )


def mean_loss(
    logits: Float[Tensor, "batch read d_vocab"], targets: Int[Tensor, "batch read"], cfg: TrainConfig
) -> Float[Tensor, ""]:
    """Cross-entropy in nats per position. A small vocabulary comes first in memory, where PyTorch is faster by far."""
    logits = logits.to(getattr(torch, cfg.loss_dtype))
    if cfg.loss == "stablemax":
        return -log_stablemax(logits).gather(-1, targets[..., None]).mean()
    if logits.shape[-1] < SMALL_VOCABULARY:
        return F.cross_entropy(logits.movedim(-1, 0).contiguous()[None], targets[None])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def right(task: Task, answer: Float[Tensor, "batch read d_vocab"], tokens: Tokens) -> Bool[Tensor, "batch"]:
    """Is the whole answer right? Greedy decoding is right exactly where this is: its first error is here too."""
    return (answer.argmax(dim=-1) == tokens[:, task.prompt_length :]).all(dim=1)


def is_checkpoint(step: int, every: int) -> bool:
    """Steps 0, 1, 2, 4, ..., 1,024, and every `every`."""
    return step % every == 0 or (step <= LOG_SPACED_UNTIL and step & (step - 1) == 0)
