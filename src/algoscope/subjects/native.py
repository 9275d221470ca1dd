"""Our own transformer as a subject."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.errors import CheckpointError, SubjectError
from algoscope.core.sites import Site, find_site
from algoscope.networks.prefixes import shared_logits
from algoscope.networks.transformer import KeyValues, Transformer
from algoscope.subjects.base import Subject
from algoscope.subjects.cache import ActivationCache, Key
from algoscope.subjects.edits import Edit, Editor
from algoscope.subjects.sweep import run_each
from algoscope.tasks.base import Task, Tokens
from algoscope.training.runs import Run, load_model, read_config, read_tensors, runs_directory, weights_hash


class NativeSubject(Subject):
    """A Transformer with its task."""

    def __init__(self, name: str, model: Transformer, task: Task, origin: Run | None = None) -> None:
        self.name, self.model, self.task, self.origin = name, model.eval().requires_grad_(False), task, origin
        self.cfg: ModelConfig = model.cfg

    @torch.no_grad()
    def run(
        self, tokens: Tokens, *, record: Sequence[Key] = (), edits: Sequence[Edit] = (), at: slice = slice(None)
    ) -> tuple[Float[Tensor, "batch read d_vocab"], ActivationCache]:
        editor = Editor(self._located(edits), frozenset(find_site(key, self.sites) for key in record))
        logits = self.model(tokens, at=at, tap=editor)
        return logits, ActivationCache(editor.values, self.sites)

    @torch.no_grad()
    def run_each(
        self, tokens: Tokens, edits: Sequence[Edit], *, at: slice = slice(None)
    ) -> Float[Tensor, "edit batch read d_vocab"]:
        return run_each(self.model, tokens, self._located(edits), at)

    def _located(self, edits: Sequence[Edit]) -> list[tuple[Site, Edit]]:
        return [(find_site(edit.site, self.sites), edit) for edit in edits]

    @torch.no_grad()
    def answer_logits(self, tokens: Tokens) -> Float[Tensor, "batch read d_vocab"]:
        return shared_logits(self.model, tokens[:, :-1], self.task.answer_slice)

    @torch.no_grad()
    def generate_tokens(
        self, prompts: Int[Tensor, "batch read"], n_new: int, *, use_cache: bool = True
    ) -> Int[Tensor, "batch new"]:
        past = KeyValues() if use_cache and self.cfg.causal else None
        tokens, fresh = prompts, prompts
        for _ in range(n_new):
            logits = self.model(tokens if past is None else fresh, at=slice(-1, None), past=past)
            fresh = logits.argmax(dim=-1)
            tokens = torch.cat([tokens, fresh], dim=1)
        return tokens[:, prompts.shape[1] :]

    # ------------------------------------------------------------------ identity

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.model.sites

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    @property
    def weights_sha256(self) -> str:
        return weights_hash(self.model.state_dict())

    def to_dtype(self, dtype: torch.dtype) -> "NativeSubject":
        return NativeSubject(self.name, copy.deepcopy(self.model).to(dtype), self.task, self.origin)

    def before_training(self) -> "NativeSubject | None":
        if self.origin is None or 0 not in self.origin.steps:
            return None
        return NativeSubject(f"{self.name}@0", self.origin.model(0, self.device).to(self.dtype), self.task, self.origin)

    def token_embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        return self.model.embed.weight.detach()

    def position_embedding(self) -> Float[Tensor, "pos d_model"] | None:
        return None if self.model.pos_embed is None else self.model.pos_embed.weight.detach()


FORMS = "run:NAME, run:NAME@STEP, run:PATH, file:PATH.safetensors"


def open_subject(name: str | Run | Subject, *, runs_dir: str | Path | None = None, device: str = "cpu") -> Subject:
    """The model that a string names: `run:NAME[@STEP]`, `run:PATH`, `file:PATH.safetensors`; or that of a Run.

    Raises RunFolderError where there is no such run, CheckpointError for weights that are missing, truncated or do
    not fit, SubjectError for another form.
    """
    if isinstance(name, Subject):
        return name
    if isinstance(name, Run):
        return NativeSubject(f"run:{name.name}", name.model(device=device), name.config.task, name)
    form, _, rest = name.partition(":")
    if form == "run" and rest:
        return _from_run(name, rest, runs_directory(runs_dir), device)
    if form == "file" and rest:
        return _from_file(name, Path(rest), device)
    raise SubjectError(f"{name!r} does not name a model: write one of {FORMS}")


def _from_run(name: str, rest: str, directory: Path, device: str) -> NativeSubject:
    where, _, step = rest.partition("@")
    if step and not step.isdecimal():
        raise SubjectError(f"{name!r}: the step after '@' must be a number, not {step!r}")
    run = Run.find(where, directory)
    return NativeSubject(name, run.model(int(step) if step else None, device), run.config.task, run)


def _from_file(name: str, path: Path, device: str) -> NativeSubject:
    if path.suffix != ".safetensors":
        raise SubjectError(f"{name!r}: weights are read from .safetensors files only, never from a pickle")
    weights = read_tensors(path)
    beside = [path.with_suffix(".json"), path.with_name("config.json")]
    config_path = next((candidate for candidate in beside if candidate.is_file()), None)
    if config_path is None:
        raise CheckpointError(f"no config beside {path}: expected {beside[0].name} or {beside[1].name}")
    config = read_config(config_path)
    return NativeSubject(name, load_model(config, weights, path).to(device), config.task)
