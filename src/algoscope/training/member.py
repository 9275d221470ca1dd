"""A run during training: its folder, data, schedule, and the losses since the last check."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.config import BY_DIGIT, RunConfig
from algoscope.core.errors import DivergedError, RunFolderError
from algoscope.data import batches, held_out
from algoscope.networks.digit_positions import random_position_ids
from algoscope.networks.evaluation import answers_right, evaluate
from algoscope.networks.transformer import PositionIds
from algoscope.runs.reading import load_model
from algoscope.runs.run_folder import Run, weights_hash
from algoscope.runs.summary import RunSummary
from algoscope.tasks.base import Task, Tokens
from algoscope.training.initial_weights import first_model
from algoscope.training.model_stack import Stack, Start
from algoscope.training.optim import Schedule

LOG_SPACED_UNTIL = 1024  # checkpoints at 0, 1, 2, 4, ... up to here, beside those at regular intervals


@dataclass(frozen=True)
class Batch:
    """The examples of a step: their task (the run's, possibly at another width), and the positions of the loss."""

    task: Task
    tokens: Tokens
    at: slice
    position_ids: PositionIds | None


class Member:
    """The data, schedule, log and folder of a run. Its weights are row `index` of a `Stack`."""

    def __init__(self, run: Run, config: RunConfig, device: torch.device) -> None:
        self.run, self.config, self.device = run, config, device
        self.task: Task = config.task
        self.test = held_out(self.task, config.data, config.seed, device)
        self.batches = batches(self.task, config.data, config.train.batch, config.seed, self.test)
        self.schedule = Schedule.planned(config.optim, config.train.steps)
        self.step, self.seconds, self.examples, self.note, self.tested = 0, 0.0, 0, "", ""
        self.losses: list[Tensor] = []

    @property
    def is_done(self) -> bool:
        return self.step >= self.schedule.end

    def restore(self) -> Start:
        """Load the newest checkpoint, or the initial weights, and delete what was written after it."""
        checkpoint, model = self.run.resumable(), first_model(self.run, self.config, self.device)
        if checkpoint is None:
            self.run.cut_metrics(after=-1)
            return Start(model)
        self.step, weights, state = checkpoint
        model.load_state_dict(load_model(self.config, weights, self.run.path).state_dict())
        self.run.cut_metrics(after=self.step)
        self.run.cut_checkpoints(keep=lambda step: step <= self.step)
        rows = self._logged_until(self.step - self.step % self.config.train.log_every)
        self.seconds = rows[-1].get("seconds", 0.0) if rows else 0.0
        for row in rows:
            self._adjust_schedule(row)
        self.examples = self.batches.examples_before(self.step)
        return Start(model, state)

    def begin(self, stack: Stack, index: int) -> bool:
        """Start the clock; save the initial weights of a new run. Returns whether there are steps left."""
        self.began = time.perf_counter() - self.seconds
        if self.step == 0:
            self.save(stack, index)
        if self.is_done:  # it was interrupted before its summary was written
            self._finish(stack, index)
        return not self.is_done

    def batch(self) -> Batch:
        """The batch of the next step."""
        task, tokens = self.batches.task_at(self.step), self.batches.batch(self.step)
        ids = None
        if self.config.model.positions in BY_DIGIT:
            ids = random_position_ids(self.config.model, task, len(tokens), self.batches.chance(self.step))
        return Batch(task, tokens, self._read(task), ids)

    def _read(self, task: Task) -> slice:
        """The positions that the loss reads."""
        return task.answer_slice if self.config.data.loss_on == "answer" else slice(0, task.n_ctx - 1)

    def share(self) -> float:
        return self.schedule.share(self.step)

    def after_step(
        self,
        stack: Stack,
        index: int,
        batch: Batch,
        loss: Float[Tensor, ""],
        logits: Float[Tensor, "batch read d_vocab"],
    ) -> bool:
        """Count a step that was taken; log, evaluate and save where due. The last step finishes the run. Returns
        whether there are steps left.
        """
        train, share = self.config.train, self.share()
        self.losses.append(loss)
        self.step += 1
        self.examples += len(batch.tokens)
        logged = self.step % train.log_every == 0 or self.is_done
        if logged or is_checkpoint(self.step, train.checkpoint_every):
            self._check_losses()
        if logged:
            self._log(stack, index, loss, logits, batch, share)
        if self._is_scheduled(self.step):
            self.save(stack, index)
        if self.is_done:
            self._finish(stack, index)
        return not self.is_done

    def save(self, stack: Stack, index: int) -> None:
        """Save a checkpoint of this step. Raises DivergedError where a weight is not finite."""
        weights = stack.weights(index)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            raise DivergedError(
                f"a weight is no longer finite after step {self.step}; the last good checkpoint is step "
                f"{self.run.newest_step} in {self.run.path}; try a lower learning rate (--set lr=...)"
            )
        self.run.save_checkpoint(self.step, weights, stack.state(index))
        self.run.cut_checkpoints(keep=lambda step: step == self.step or self._is_scheduled(step))

    # ------------------------------------------------------------------ within a step

    def _check_losses(self) -> None:
        finite = torch.isfinite(torch.stack(self.losses))
        if not finite.all():
            step = self.step - len(self.losses) + int((~finite).nonzero()[0, 0]) + 1
            raise DivergedError(
                f"the loss is {float(self.losses[step - self.step - 1])} at step {step}; the last good checkpoint is "
                f"step {self.run.newest_step} in {self.run.path}; try a lower learning rate (--set lr=...)"
            )
        self.losses.clear()

    def _log(self, stack: Stack, index: int, loss: Tensor, logits: Tensor, batch: Batch, share: float) -> None:
        answer = logits[:, -(batch.task.n_ctx - batch.task.prompt_length) :]
        row = {
            "step": self.step,
            "loss": float(loss),
            "train_accuracy": float(answers_right(answer, batch.tokens[:, batch.task.prompt_length :]).float().mean()),
            "lr": self.config.optim.lr * share,
            "examples": self.examples,
            "seconds": round(time.perf_counter() - self.began, 3),
        }
        if self.step % self.config.train.eval_every == 0 or self.is_done:
            row["test_loss"], row["test_accuracy"] = self._evaluate(stack, index)
            self.tested = f"test {row['test_accuracy']:.2%}"
        self.note = f"loss {row['loss']:.4f} {self.tested}"
        self.run.append_metrics([row])
        self._adjust_schedule(row)

    def _adjust_schedule(self, row: Mapping[str, Any]) -> None:
        """Adjust the schedule to the accuracies in a row of metrics."""
        stop_at = self.config.train.stop_at
        if row["step"] > self.config.data.curriculum:  # until then, batches are easier than the task
            self.schedule = self.schedule.after_accuracy(row["step"], row["train_accuracy"])
        if stop_at is not None and row.get("test_accuracy", -1.0) >= stop_at:
            self.schedule = replace(self.schedule, end=row["step"])

    def _evaluate(self, stack: Stack, index: int) -> tuple[float, float]:
        """Mean loss (over the positions of the training loss) and share of whole answers right, on the test inputs."""
        at = self._read(self.task)

        def logits_of(tokens: Tokens) -> Float[Tensor, "batch read d_vocab"]:
            return stack.answers(index, self.task, tokens[:, :-1], at)

        return evaluate(self.task, self.test, logits_of, at, self.config.train)

    # ------------------------------------------------------------------ the folder

    def _logged_until(self, step: int) -> list[dict[str, Any]]:
        """The logged metrics; decay and end of a run depend on them. Raises RunFolderError where a row is missing."""
        rows = self.run.metrics()
        if step and (not rows or rows[-1]["step"] < step):
            raise RunFolderError(
                f"{self.run.path} has no metrics of step {step}: restore metrics.jsonl, or `algoscope runs rm "
                f"{self.run.address}` and train again"
            )
        return rows

    def _is_scheduled(self, step: int) -> bool:
        """Whether an uninterrupted run keeps a checkpoint of this step; others are deleted after the next one."""
        return step == self.schedule.end or is_checkpoint(step, self.config.train.checkpoint_every)

    def _finish(self, stack: Stack, index: int) -> None:
        last, weights = self._logged_until(self.step)[-1], stack.weights(index)
        summary = RunSummary.of(
            self.config,
            steps=self.step,
            examples=self.examples,
            seconds=last["seconds"],
            loss=last["loss"],
            test_accuracy=last["test_accuracy"],
            parameters=sum(p.numel() for p in stack.model.parameters()),
            trained_parameters=stack.flat.values.shape[1],
            weights_sha256=weights_hash(weights),
            device=str(self.device),
            stacked=len(stack.configs),
        )
        self.run.finish(summary)


def is_checkpoint(step: int, every: int) -> bool:
    """Whether a step is 0, 1, 2, 4, ..., 1,024 or a multiple of `every`."""
    return step % every == 0 or (step <= LOG_SPACED_UNTIL and step & (step - 1) == 0)
