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
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from algoscope.config import RunConfig, parse_config
from algoscope.core.errors import CheckpointError, RunFolderError
from algoscope.core.files import disk_errors, write_atomically
from algoscope.core.finding import Finding
from algoscope.networks.lora import add_updates
from algoscope.networks.transformer import Transformer
from algoscope.runs.paths import CONFIG, METRICS, NAME, SUMMARY, find_run, is_run, run_folders, steps_in
from algoscope.runs.summary import RunSummary

Weights = Mapping[str, Tensor]


def weights_hash(weights: Weights) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names: equal hashes, equal weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor.item()).encode())
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError where it is missing, truncated or of another format."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is no complete safetensors file ({error}); restore it or train again") from error


def read_config(path: Path) -> RunConfig:
    """A `config.json`. Raises RunFolderError where it is missing, truncated, or no valid config."""
    try:
        return parse_config(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read as a config: {error}") from error


@dataclass(frozen=True)
class Run:
    """A run folder on disk, finished or not.

    Args:
        path: the folder.

    Example:
        >>> from pathlib import Path
        >>> import algoscope as ag
        >>> ag.Run(Path("runs/nothing-here")).steps
        []
    """

    path: Path

    # ------------------------------------------------------------------ finding runs

    @classmethod
    def find(cls, name: str, directory: Path) -> "Run":
        """The run called `name` in a directory, or at that path.

        Args:
            name: a run, a recipe with a single run (`add3` for `add3-s0`), or a path.
            directory: where runs are; see `runs_directory`.
        Returns:
            The run, finished or not.
        Raises:
            RunFolderError: where no run matches, and where several do.
        """
        return cls(find_run(name, directory))

    @classmethod
    def all(cls, directory: Path) -> list["Run"]:
        """Every run in a directory, by name.

        Args:
            directory: where runs are; see `runs_directory`.
        Returns:
            The runs, finished or not.
        """
        return [cls(path) for path in run_folders(directory)]

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> "Run":
        """A new folder with its config.

        Args:
            path: the folder; its last part is the run's name.
            config: the complete config.
        Returns:
            The run, which has no checkpoint yet.
        Raises:
            RunFolderError: where the run exists, and for an invalid name.
        """
        if not NAME.fullmatch(path.name):
            raise RunFolderError(f"{path.name!r} cannot name a run: use letters, digits, '.', '_' and '-'")
        run = cls(path)
        if is_run(path):
            hint = "" if run.is_whole else "go on with --resume, "
            state = "exists and is finished" if run.is_whole else f"stopped at step {run.newest_step or 0}"
            raise RunFolderError(f"run {path} {state}: {hint}choose another --name, or `algoscope runs rm {run.name}`")
        write_atomically(path / CONFIG, config.model_dump_json(indent=2))
        return run

    # ------------------------------------------------------------------ reading

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def is_whole(self) -> bool:
        """Whether the run is finished."""
        return (self.path / SUMMARY).is_file()

    @property
    def config(self) -> RunConfig:
        """The complete config, from `config.json`. Raises RunFolderError where it cannot be read."""
        return read_config(self.path / CONFIG)

    @property
    def summary(self) -> RunSummary:
        """The final numbers, from `run.json`. Raises RunFolderError where it is not finished or cannot be read."""
        if not self.is_whole:
            raise RunFolderError(f"run {self.name} stopped at step {self.newest_step or 0}: go on with --resume")
        try:
            return RunSummary.model_validate_json((self.path / SUMMARY).read_bytes())
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{self.path / SUMMARY} cannot be read: {error}") from error

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return steps_in(self.path)

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
        path = self.path / METRICS
        rows = []
        for line in path.read_text().splitlines() if path.is_file() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

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
        wanted = self.newest_step if step is None else step
        if wanted is None or wanted not in self.steps:
            have = ", ".join(map(str, self.steps)) or "none"
            raise CheckpointError(f"run {self.name} has no checkpoint at step {wanted}; it has: {have}")
        path = self._checkpoint(wanted)
        return load_model(self.config, read_tensors(path), path).to(device)

    def findings(self) -> list[Finding]:
        """The findings stored in the folder.

        Returns:
            Findings of lenses and verdicts about the newest weights, by kind.
        """
        return [Finding.from_json(path.read_text()) for path in sorted(self.path.glob("findings/*.json"))]

    def numbers(self, measure: str, weights_sha256: str) -> dict[str, float] | None:
        """The stored values of a measure at one checkpoint.

        Args:
            measure: its name with its options.
            weights_sha256: of the checkpoint's weights.
        Returns:
            The values by name (NaN: no value), or None where nothing is stored.
        """
        try:
            kept = json.loads(self._numbers(measure, weights_sha256).read_text())
            if (kept["measure"], kept["weights_sha256"]) != (measure, weights_sha256):
                return None
            return {name: math.nan if value is None else float(value) for name, value in kept["numbers"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # missing or invalid: it is measured again

    def finding(self, kind: str, weights_sha256: str) -> Finding | None:
        """The stored finding of one kind about the given weights.

        Args:
            kind: such as "certify" or "roles".
            weights_sha256: hash of the weights that it must be about.
        Returns:
            The finding, or None.
        """
        kept = [f for f in self.findings() if f.kind == kind and f.provenance.get("weights_sha256") == weights_sha256]
        return kept[0] if kept else None

    # ------------------------------------------------------------------ writing

    def lock(self) -> FileLock:
        """Lock the run, so that no other process trains it.

        Returns:
            The lock, held; the system frees it when the process dies.
        Raises:
            RunFolderError: where another process holds it.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        with disk_errors(self.path):
            try:
                lock.acquire()
            except Timeout as error:
                raise RunFolderError(
                    f"run {self.path} is being trained by another process; choose another --name"
                ) from error
        return lock

    def save_checkpoint(self, step: int, weights: Weights, state: Weights) -> None:
        """Write the weights, then the optimiser state; older states are deleted only when both are on disk.

        Args:
            step: number of steps taken.
            weights: of the model, by name.
            state: of the optimisers and averages, by name.
        """
        write_atomically(self._checkpoint(step), save({k: v.contiguous() for k, v in weights.items()}))
        path = self.path / "state" / self._checkpoint(step).name
        write_atomically(path, save({k: v.contiguous() for k, v in state.items()}))
        for other in path.parent.glob("step_*.safetensors"):
            if other != path:
                other.unlink()

    def resumable(self) -> tuple[int, dict[str, Tensor], dict[str, Tensor]] | None:
        """The checkpoint from which a resume continues.

        Returns:
            The newest step with both weights and state, and those two; None where there is none.
        """
        for path in sorted(self.path.glob("state/step_*.safetensors"), reverse=True):
            step = int(path.stem.removeprefix("step_"))
            if step in self.steps:
                return step, read_tensors(self._checkpoint(step)), read_tensors(path)
        return None

    def append_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to the log.

        Args:
            rows: as `metrics` returns them.
        """
        path = self.path / METRICS
        with disk_errors(path), path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def cut_metrics(self, after: int) -> None:
        """Delete the rows of steps that will be taken again.

        Args:
            after: the last step whose row stays.
        """
        rows = [row for row in self.metrics() if row["step"] <= after]
        write_atomically(self.path / METRICS, "".join(json.dumps(row) + "\n" for row in rows))

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
        write_atomically(self.path / SUMMARY, summary.model_dump_json(indent=2))

    def keep(self, finding: Finding) -> None:
        """Store a finding in the folder, if it is about the final weights of the run.

        Args:
            finding: the finding; a stored one of the same kind is replaced.
        """
        if self.is_whole and finding.provenance.get("weights_sha256") == self.summary.weights_sha256:
            write_atomically(self.path / "findings" / f"{finding.kind}.json", finding.to_json())

    def keep_numbers(self, measure: str, weights_sha256: str, numbers: Mapping[str, float]) -> None:
        """Store the values of a measure at a checkpoint; values that are not finite are stored as null.

        Args:
            measure: its name with its options.
            weights_sha256: of the checkpoint's weights.
            numbers: the values by name.
        """
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        kept = {"measure": measure, "weights_sha256": weights_sha256, "numbers": finite}
        write_atomically(self._numbers(measure, weights_sha256), json.dumps(kept, allow_nan=False))

    def remove(self) -> None:
        """Delete the folder; `config.json` goes first, so that an interrupted deletion leaves no run."""
        with disk_errors(self.path):
            (self.path / CONFIG).unlink(missing_ok=True)
            shutil.rmtree(self.path)

    def _numbers(self, measure: str, weights_sha256: str) -> Path:
        which = hashlib.sha256(measure.encode()).hexdigest()
        return self.path / "timeline" / f"{which[:16]}-{weights_sha256[:16]}.json"

    def _checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step:08d}.safetensors"


def load_model(config: RunConfig, weights: Weights, origin: Path) -> Transformer:
    """A model with these weights. Raises CheckpointError, naming the first tensor that does not fit the config."""
    with torch.device("meta"):
        model = Transformer(config.model)
        if config.start is not None:
            add_updates(model, config.start)
    expected = model.state_dict()
    for name in sorted(set(expected) | set(weights)):
        if name not in weights or name not in expected:
            what = "lacks the tensor" if name not in weights else "has a tensor that the config does not have:"
            raise CheckpointError(f"{origin} {what} {name!r}")
        if weights[name].shape != expected[name].shape:
            got, wanted = list(weights[name].shape), list(expected[name].shape)
            raise CheckpointError(f"{origin}: {name!r} has shape {got}, the config expects {wanted}")
    model.load_state_dict(dict(weights), assign=True)
    return model
