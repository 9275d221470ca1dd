"""Runs whose matrices are products or sums, written as runs whose matrices are whole."""

from pathlib import Path

from algoscope.core.errors import SubjectError
from algoscope.networks.lora import whole
from algoscope.runs.paths import runs_directory
from algoscope.runs.run_folder import Run, weights_hash
from algoscope.runs.summary import MergedFrom, RunSummary
from algoscope.subjects.foreign import answers_of
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject


def merge(subject: str | Run | Subject, *, name: str | None = None, runs_dir: str | Path | None = None) -> Run:
    """A run folder, whole, with the same model in plain matrices: W0 + (alpha / rank) B A for each update, A B for each
    pair of factors. Its only checkpoint is step 1; the run that is merged, and the one it started from, stay as they
    are. By default it is called `NAME-merged`.

    The logits are the same up to rounding. The summary's `merged` says from which weights it was made; its
    `test_accuracy` and `loss` are those of up to 2,000 of the task's inputs. Raises SubjectError for a subject that is
    no run, or has nothing to merge, RunFolderError where there is such a run, and what `open_subject` raises.
    """
    opened = open_subject(subject, runs_dir=runs_dir)
    origin = opened.origin
    if origin is None:
        raise SubjectError(f"{opened.name} is no run: merge takes one, such as run:sub3_lora-s0")
    plain = whole(opened.model)
    if plain is opened.model:
        raise SubjectError(f"{opened.name} has no updates and no factors to merge: its matrices are whole")
    config = origin.config.model_copy(update={"recipe": "merged", "model": plain.cfg, "start": None})
    run = Run.create(runs_directory(runs_dir) / (name or f"{origin.name}-merged"), config)
    weights = plain.state_dict()
    run.save_checkpoint(1, weights, {})
    run.finish(
        RunSummary.of(
            config,
            steps=0,
            examples=0,
            seconds=0.0,
            **answers_of(config, plain),
            parameters=sum(weight.numel() for weight in weights.values()),
            weights_sha256=weights_hash(weights),
            merged=MergedFrom(subject=opened.name, weights_sha256=opened.weights_sha256),
        )
    )
    return run
