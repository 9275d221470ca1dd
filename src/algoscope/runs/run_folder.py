"""The run folder: the one module that knows its layout.

    runs/<name>/
      config.json                       the complete config, written first
      metrics.jsonl                     one row per logged step
      checkpoints/step_00000100.safetensors
      state/step_00000100.safetensors   state of the optimisers, for a resume; only the newest is kept
      findings/*.json                   findings of lenses and verdicts
      timeline/*.json                   values of one measure at one checkpoint, so that none is measured twice
      run.json                          seed, versions, weights hash, final numbers; written last: the run is finished

All writes are atomic: a killed process leaves the old file or the new one.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from algoscope.config import RunConfig
from algoscope.core.ambient import find_device
from algoscope.core.arguments import checked_arguments
from algoscope.core.errors import CheckpointError, RunFolderError
from algoscope.core.files import disk_errors, write_atomically
from algoscope.core.finding import Finding
from algoscope.networks.transformer import Transformer
from algoscope.runs import paths, reading
from algoscope.runs._lock import delete, held, is_held
from algoscope.runs.paths import CONFIG, METRICS, SUMMARY, absolute, find_run, is_run, run_folders, runs_directory
from algoscope.runs.summary import RunSummary


def weights_hash(weights: reading.Weights) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names: equal hashes, equal weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor.item()).encode())
    return digest.hexdigest()


@checked_arguments
@dataclass(frozen=True, init=False)
class Run:
    """A run folder on disk, finished or not.

    Args:
        path: the folder; kept as an absolute path.

    Example:
        >>> from pathlib import Path
        >>> import algoscope as ag
        >>> ag.Run(Path("runs/nothing-here")).steps
        []
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", absolute(path))  # the working directory may change

    # ------------------------------------------------------------------ finding runs

    @classmethod
    def find(cls, name: str, directory: str | Path) -> "Run":
        """The run called `name` in a directory, or at that path.

        Args:
            name: a run, a recipe with a single run (`add3` for `add3-s0`), or a path.
            directory: where runs are; see `runs_directory`.
        Returns:
            The run, finished or not.
        Raises:
            RunFolderError: where no run matches, and where several do.
        """
        return cls(find_run(name, runs_directory(directory)))

    @classmethod
    def all(cls, directory: str | Path) -> list["Run"]:
        """Every run in a directory, by name.

        Args:
            directory: where runs are; see `runs_directory`.
        Returns:
            The runs, finished or not.
        """
        return [cls(path) for path in run_folders(runs_directory(directory))]

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> "Run":
        """A new folder with its config.

        Args:
            path: the folder; its last part is the run's name.
            config: the complete config.
        Returns:
            The run, which has no checkpoint yet.
        Raises:
            RunFolderError: where the run exists, for an invalid name, and for a folder that holds other files.
        """
        run = cls(Path(path))
        paths.checked_name(run.path.name)
        run.refuse_if_taken()
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
            if others := [entry.name for entry in run.path.iterdir() if not entry.name.startswith(".")]:
                raise RunFolderError(f"{run.path} is no run, but holds {min(others)}: choose another --name")
        with run._locked():
            run.refuse_if_taken()  # by another process, meanwhile
            write_atomically(run.path / CONFIG, config.model_dump_json(indent=2))
        return run

    # ------------------------------------------------------------------ reading

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def address(self) -> str:
        """How a command names the run, quoted for a shell: its name in the default directory, else its path."""
        return paths.address(self.path)

    @property
    def is_whole(self) -> bool:
        """Whether the run is finished."""
        return (self.path / SUMMARY).is_file()

    @property
    def is_training(self) -> bool:
        """Whether a process is training the run: it holds the lock, which the system frees when the process ends."""
        return not self.is_whole and is_held(self.path)

    @property
    def config(self) -> RunConfig:
        """The complete config, from `config.json`. Raises RunFolderError where it cannot be read."""
        return reading.read_config(self.path / CONFIG)

    @property
    def summary(self) -> RunSummary:
        """The final numbers, from `run.json`. Raises RunFolderError where it is not finished or cannot be read."""
        if not self.is_whole:
            self.refuse_if_training()
            raise RunFolderError(f"run {self.path} {self._stopped()}")
        return reading.read_summary(self.path / SUMMARY)

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return paths.steps_in(self.path)

    @property
    def newest_step(self) -> int | None:
        """The last step that has a checkpoint; None where there is none."""
        return self.steps[-1] if self.steps else None

    def metrics(self) -> list[dict[str, Any]]:
        """The logged metrics; a line that a crash has truncated is left out.

        Returns:
            A row for each logged step, ascending: `step`, `loss` (nats), `train_accuracy` (share of whole answers right
            in the batch), `lr`, `examples`, `seconds`, and at evaluations `test_loss` and `test_accuracy`.
        """
        return reading.read_rows(self.path / METRICS)

    def model(self, step: int | None = None, device: torch.device | str = "cpu") -> Transformer:
        """The model at a checkpoint.

        Args:
            step: of the checkpoint; by default the newest.
            device: the PyTorch device of the weights.
        Returns:
            The transformer with the weights of that step.
        Raises:
            CheckpointError: where the checkpoint is missing, truncated, or does not fit the config.
        """
        if step is None:
            step = self.summary.last_checkpoint if self.is_whole else self.newest_step
        if step is None or step not in self.steps:
            have = ", ".join(map(str, self.steps)) or "none"
            raise CheckpointError(f"run {self.name} has no checkpoint at step {step or 0}; it has: {have}")
        path = self._checkpoint(step)
        return reading.load_model(self.config, reading.read_tensors(path), path).to(find_device(device))

    def findings(self) -> list[Finding]:
        """The findings stored in the folder.

        Returns:
            Findings of lenses and verdicts about the final weights, by kind.
        """
        if not self.is_whole:
            return []
        stored = map(reading.read_finding, sorted(self.path.glob("findings/*.json")))
        final = self.summary.weights_sha256
        return [f for f in stored if f.provenance.get("weights_sha256") == final]

    def numbers(self, measure: str, weights_sha256: str) -> dict[str, float] | None:
        """The stored values of a measure at one checkpoint.

        Args:
            measure: its name with its options.
            weights_sha256: of the checkpoint's weights.
        Returns:
            The values by name (NaN: no value), or None where nothing is stored.
        """
        return reading.read_numbers(self._numbers(measure, weights_sha256), measure, weights_sha256)

    def finding(self, kind: str, weights_sha256: str) -> Finding | None:
        """The stored finding of one kind about the given weights.

        Args:
            kind: such as "certify" or "roles".
            weights_sha256: hash of the weights that it must be about.
        Returns:
            The finding, or None; a damaged one counts as none, and is replaced by the next.
        """
        try:
            kept = reading.read_finding(self._finding(kind))
        except RunFolderError:
            return None
        return kept if kept.provenance.get("weights_sha256") == weights_sha256 else None

    # ------------------------------------------------------------------ writing

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training or removing the run, within the body.

        Raises:
            RunFolderError: where another process holds the lock, and where the run has been removed.
        """
        self._refuse_if_gone()
        with self._locked():
            self._refuse_if_gone()
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with held(self.path) as is_ours:
            if not is_ours:
                raise self._busy()
            yield

    def refuse_if_training(self) -> None:
        """Raise RunFolderError where another process is training the run."""
        if self.is_training:
            raise self._busy()

    def refuse_if_taken(self) -> None:
        """Raise RunFolderError where the run exists, with its state and the way out."""
        if is_run(self.path):
            self.refuse_if_training()
            state = "exists and is finished: " if self.is_whole else f"{self._stopped()}, "
            raise RunFolderError(f"run {self.path} {state}choose another --name, or `algoscope runs rm {self.address}`")

    def refuse_another(self, config: RunConfig) -> None:
        """Raise RunFolderError where the run has another config than this one."""
        if different := reading.first_difference(self.config, config):
            self.refuse_if_training()
            field, ours, requested = different
            raise RunFolderError(
                f"run {self.path} has another config: {field} is {ours!r}, not {requested!r}; use the settings it was "
                f"started with, choose another --name or --runs-dir, or `algoscope runs rm {self.address}`"
            )

    def _busy(self) -> RunFolderError:
        return RunFolderError(
            f"run {self.path} is being trained by another process, which is at step {self.newest_step or 0}: wait "
            "until it ends, interrupt it, or choose another --name"
        )

    def _stopped(self) -> str:
        return f"stopped at step {self.newest_step or 0}: go on with --resume"

    def _refuse_if_gone(self) -> None:
        if not is_run(self.path):
            raise RunFolderError(f"there is no run at {self.path}: it has been removed, or never was one")

    def _write(self, path: Path, content: bytes | str) -> None:
        """Write a file of an existing run; a removed one is not made again."""
        self._refuse_if_gone()
        write_atomically(path, content)

    def save_checkpoint(self, step: int, weights: reading.Weights, state: reading.Weights) -> None:
        """Write the weights, then the optimiser state; older states are deleted only when both are on disk.

        Args:
            step: number of steps taken.
            weights: of the model, by name.
            state: of the optimisers and averages, by name.
        """
        self._write(self._checkpoint(step), save({k: v.contiguous() for k, v in weights.items()}))
        path = self._checkpoint(step, "state")
        self._write(path, save({k: v.contiguous() for k, v in state.items()}))
        for other in path.parent.glob("step_*.safetensors"):
            if other != path:
                other.unlink()

    def resumable(self) -> tuple[int, dict[str, Tensor], dict[str, Tensor]] | None:
        """The checkpoint from which a resume continues.

        Returns:
            The newest step with both weights and state, and those two; None where there is none.
        """
        for step in reversed(paths.steps_in(self.path, "state")):
            if step in self.steps:
                weights, state = self._checkpoint(step), self._checkpoint(step, "state")
                return step, reading.read_tensors(weights), reading.read_tensors(state)
        return None

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to the log.

        Args:
            rows: as `metrics` returns them.
        """
        self._refuse_if_gone()
        path = self.path / METRICS
        with disk_errors(path), path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def cut_metrics(self, after: int) -> None:
        """Delete the rows of steps that will be taken again.

        Args:
            after: the last step whose row stays.
        """
        rows = [row for row in self.metrics() if row["step"] <= after]
        self._write(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in rows))

    def cut_checkpoints(self, keep: Callable[[int], bool]) -> None:
        """Delete all checkpoints but those to keep.

        Args:
            keep: whether to keep the checkpoint of a step.
        """
        for step in self.steps:
            if not keep(step):
                self._checkpoint(step).unlink()

    def finish(self, summary: RunSummary) -> None:
        """Write `run.json`, which marks the run as finished.

        Args:
            summary: the final numbers.
        """
        self._write(self.path / SUMMARY, summary.model_dump_json(indent=2))

    def keep(self, finding: Finding) -> None:
        """Store a finding in the folder, if it is about the final weights of the run.

        Args:
            finding: the finding; a stored one of the same kind is replaced.
        """
        if self.is_whole and finding.provenance.get("weights_sha256") == self.summary.weights_sha256:
            self._write(self._finding(finding.kind), finding.to_json())

    def keep_numbers(self, measure: str, weights_sha256: str, numbers: Mapping[str, Any]) -> None:
        """Store the values of a measure at a checkpoint; values that are not finite are stored as null.

        Args:
            measure: its name with its options.
            weights_sha256: of the checkpoint's weights.
            numbers: the values by name, numbers that may be infinite or none at all.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        kept = {"measure": measure, "weights_sha256": weights_sha256, "numbers": finite}
        self._write(self._numbers(measure, weights_sha256), json.dumps(kept, allow_nan=False))

    def remove(self) -> None:
        """Delete the folder; `config.json` goes first, so that an interrupted deletion leaves no run.

        Raises:
            RunFolderError: for a folder that is no run, where a process is training it, and where a file stays.
        """
        with self.lock():
            self._refuse_if_gone()
            delete(self.path)

    def _numbers(self, measure: str, weights_sha256: str) -> Path:
        which = hashlib.sha256(measure.encode()).hexdigest()
        return self.path / "timeline" / f"{which[:16]}-{weights_sha256[:16]}.json"

    def _finding(self, kind: str) -> Path:
        return self.path / "findings" / f"{kind}.json"

    def _checkpoint(self, step: int, folder: str = "checkpoints") -> Path:
        return self.path / folder / f"step_{step:08d}.safetensors"
