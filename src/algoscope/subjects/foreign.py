"""Weights of other tools: `foreign:PATH` opens them, `import_weights` makes a run folder of them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch

from algoscope.config import RunConfig
from algoscope.core.errors import SubjectError
from algoscope.data import all_or_sample
from algoscope.formats.model_building import file_to_model
from algoscope.networks.evaluation import evaluate
from algoscope.networks.shared_prefixes import shared_logits
from algoscope.networks.transformer import Transformer
from algoscope.runs.paths import runs_directory
from algoscope.runs.run_folder import Run, weights_hash
from algoscope.runs.summary import ImportedFrom, Inference, RunSummary
from algoscope.subjects.subject import Subject
from algoscope.tasks.table import TASKS

ASKED = 2_000  # inputs that an imported model answers at once, to show whether it was understood


def import_weights(
    path: str | Path,
    task: str,
    *,
    settings: Mapping[str, Any] | None = None,
    layout: str | None = None,
    act: str | None = None,
    causal: bool | None = None,
    name: str | None = None,
    runs_dir: str | Path | None = None,
) -> Run:
    """A run folder, whole, with the weights of a file that another tool has written; its only checkpoint is step 1.

    `task` is one of `TASKS`. `settings` are the task's fields (`{"p": 59, "form": "ab"}`) and fields of the model's
    config (`model.n_heads`), which win over what is inferred. `layout` names one of `LAYOUTS` where names and shapes do
    not settle it, `act` the activation, `causal` the mask. By default the run is called as the file.

    The summary's `imported` says what was inferred and how, and what was left out of the file; `test_accuracy` and
    `loss` are those of up to 2,000 of the task's inputs. Raises what `file_to_model` raises, and RunFolderError where
    there is such a run.
    """
    found = file_to_model(Path(path), task, settings or {}, layout, act, causal)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).lstrip("._-")
    run = Run.create(runs_directory(runs_dir) / (name or stem or "imported"), found.config)
    weights = found.model.state_dict()
    run.save_checkpoint(1, weights, {})
    run.finish(
        RunSummary.of(
            found.config,
            steps=0,
            examples=0,
            seconds=0.0,
            **answers_of(found.config, found.model),
            parameters=sum(weight.numel() for weight in weights.values()),
            weights_sha256=weights_hash(weights),
            imported=ImportedFrom(
                file=found.file.path.name,
                sha256=found.file.sha256,
                account=tuple(Inference(what=row.what, value=row.value, how=row.how) for row in found.account),
                left_out=found.left_out,
            ),
        )
    )
    return run


def open_foreign(name: str, rest: str, directory: Path, device: str) -> Subject:
    """A model from `PATH?task=T&FIELD=VALUE...`, percent-encoded where a value has `&`, `=` or `%`.

    Beside the fields that `import_weights` takes as settings there are `layout`, `act` and `causal` (true or false).
    Raises SubjectError without a task, and what `file_to_model` raises.
    """
    path, _, query = rest.partition("?")
    given = {key: unquote(value) for key, _, value in (pair.partition("=") for pair in query.split("&")) if key}
    task = given.pop("task", None)
    if task is None:
        raise SubjectError(
            f"{name!r} does not say which task the model was made for: write {name}{'&' if query else '?'}task=modular "
            f"(known: {', '.join(TASKS)}), and the task's fields after it, such as &p=113&form=ab%3D"
        )
    causal = given.pop("causal", None)
    if causal not in (None, "true", "false"):
        raise SubjectError(f"{name!r}: causal is true or false, not {causal!r}")
    layout, act = given.pop("layout", None), given.pop("act", None)
    masked = None if causal is None else causal == "true"
    found = file_to_model(Path(path), task, given, layout, act, masked)
    return Subject(name, found.model.to(device), found.config.task)


@torch.no_grad()
def answers_of(config: RunConfig, model: Transformer) -> dict[str, float]:
    """Loss in nats per answer position and the share of whole answers that are right, over all inputs or a sample."""
    task = config.task
    tokens = all_or_sample(task, ASKED, torch.Generator().manual_seed(0))
    at = task.answer_slice
    loss, accuracy = evaluate(task, tokens, lambda some: shared_logits(model, some[:, :-1], at), at, config.train)
    return {"loss": loss, "test_accuracy": accuracy}
