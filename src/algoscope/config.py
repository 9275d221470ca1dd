"""Layer 1, the config: everything a run depends on, as frozen typed values. A recipe is a function that returns one.

`RunConfig` is complete: its `config.json` is enough to repeat the run. `override` is what `--set` does.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, model_validator

from algoscope.core.arguments import checked_arguments
from algoscope.core.errors import ConfigError
from algoscope.core.sections import Section, first_fault
from algoscope.model_config import BY_DIGIT as BY_DIGIT
from algoscope.model_config import ModelConfig as ModelConfig
from algoscope.model_config import Positive, Share
from algoscope.tasks.base import Task
from algoscope.tasks.capabilities import Repeating, Staged
from algoscope.tasks.specs import RecordedTask, given_again, parsed_task, plain_task

AnyTask = Annotated[Task, BeforeValidator(parsed_task), PlainSerializer(lambda task, info: plain_task(task, info.mode))]


class DataConfig(Section):
    """Where the training inputs come from. Test inputs are held out: never trained on."""

    source: Literal["fresh", "fixed"] = Field("fresh", description="new draws every step, or epochs over a fixed set")
    n_train: Positive = Field(50_000, description="size of the fixed set")
    train_seed: int | None = Field(None, description="seed of the data; None: the run's seed")
    n_test: Positive = Field(2_000, description="size of the test set: held out, evaluated during training")
    test_seed: int | None = Field(123, description="seed of the test inputs; None: the run's seed")
    hard_share: Share = Field(0.0, description="share of fresh draws from the task's difficult inputs")
    repeat_share: Share = Field(0.0, description="share of fresh draws with neighbouring columns made equal")
    curriculum: int = Field(0, ge=0, description="first steps, in which inputs grow from one digit to all; 0: none")
    shortest: Positive | None = Field(None, description="smallest width of fresh batches; the largest is the task's")
    loss_on: Literal["all", "answer"] = Field("answer", description="positions that the loss reads")


class OptimConfig(Section):
    """AdamW, or Muon on the matrices of the blocks with AdamW on the rest."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(0.01, gt=0, description="peak learning rate of AdamW")
    betas: tuple[Share, Share] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    muon_lr: float = Field(0.02, gt=0)
    muon_momentum: Share = 0.95
    newton_schulz_steps: Positive = 5
    clip: float | None = Field(None, gt=0, description="largest gradient norm; None: not clipped")
    warmup_steps: int = Field(0, ge=0, description="linear, from 0")
    decay: Literal["cosine", "linear"] = "cosine"
    hold: Share = Field(0.0, description="share of the steps after warm-up at the peak, before decay starts")
    decay_at: Share | None = Field(None, description="training accuracy of a logged batch at which decay starts early")
    decay_steps: Positive = Field(200, description="steps of an early decay; the run ends with it")
    final_lr: Share = Field(0.0, description="learning rate at the end, as a share of the peak")
    average: Share | None = Field(None, description="decay per step of the averaged weights that checkpoints hold")
    grokfast: Literal["ema", "ma"] | None = Field(None, description="add a mean of gradients: exponential or windowed")
    grokfast_strength: float = Field(2.0, ge=0, description="factor of the added mean gradient")
    grokfast_alpha: Share = Field(0.98, description="decay per step of the exponential mean")
    grokfast_window: Positive = Field(100, description="steps in the window; nothing is added until it is full")
    perpendicular: bool = Field(False, description="gradients are projected perpendicular to their weights, norm kept")
    norm_clamp: float | None = Field(None, gt=0, description="norm of all weights, as a multiple of the initial norm")


class TrainConfig(Section):
    """Number of steps, batch size, loss, and intervals of logging, evaluation and checkpoints."""

    steps: Positive = Field(description="largest number of steps; an early decay ends the run sooner")
    batch: Positive
    accumulate: Positive = Field(1, description="parts of a batch over which gradients are accumulated, to save memory")
    loss: Literal["softmax", "stablemax"] = Field("softmax", description="how logits become probabilities")
    loss_dtype: Literal["float32", "float64"] = Field("float32", description="float type of the loss")
    threads: Positive = Field(1, description="PyTorch threads; in the config because bit-exact sums depend on it")
    log_every: Positive = Field(10, description="steps between rows of metrics")
    eval_every: Positive = Field(50, description="steps between evaluations on the test inputs")
    stop_at: Share | None = Field(None, description="test accuracy at which the run ends")
    checkpoint_every: Positive = Field(1024, description="steps between checkpoints, beside 0, 1, 2, 4, ... 1,024")


Matrix = Literal["q", "k", "v", "o", "w_in", "w_linear", "w_out"]


class StartConfig(Section):
    """Low-rank adaptation (LoRA) of another run. Its weights are frozen; an update of its matrices is trained:
    W0 + (lora_alpha / lora_rank) B A.
    """

    run: str = Field(description="name or path of the run; NAME@STEP: a checkpoint of it")
    weights_sha256: str | None = Field(None, description="hash of those weights; filled in when the run is created")
    lora_rank: Positive = Field(4, description="columns of B, rows of A")
    lora_alpha: float | None = Field(None, gt=0, description="None: lora_rank, so that the update is B A")
    lora_on: tuple[Matrix, ...] = Field(
        ("q", "k", "v", "o", "w_in", "w_linear", "w_out"), min_length=1, description="matrices of every block"
    )
    also_train: tuple[str, ...] = Field((), description="other tensors to train, such as `pos_embed.weight`, `*.bias`")


class RunConfig(Section):
    """The complete config of a run: its `config.json` is enough to repeat the run.

    Args:
        recipe: the name of its recipe; by default that of its task.
        task: what the model is trained on: one that ships, or one of your own.
        model: the transformer; `d_vocab` and `n_ctx` follow from the task unless they are given.
        data, optim, train: where training inputs come from; the optimiser; number of steps and intervals of logging.
        seed, start: the seed of weights and data; another run whose weights to start from instead.

    Example:
        >>> import algoscope as ag
        >>> config = ag.RunConfig(
        ...     recipe="mine", task=ag.Reversal(length=4), model={"d_model": 16}, data={}, optim={},
        ...     train={"steps": 100, "batch": 64},
        ... )
        >>> config.model.n_ctx, config.optim.name
        (10, 'adamw')
    """

    recipe: str = ""
    task: AnyTask
    model: ModelConfig
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    seed: int = Field(0, ge=0)
    start: StartConfig | None = Field(None, description="initial weights; None: drawn from the seed")

    @model_validator(mode="before")
    @classmethod
    def _from_task(cls, fields: object) -> object:
        """The name and the sizes that are not given follow from the task."""
        if not isinstance(fields, Mapping) or "task" not in fields:
            return fields
        try:
            task, model = parsed_task(fields["task"]), fields.get("model", {})
        except ValueError:
            return fields  # the field itself says what is wrong
        if isinstance(model, Mapping) and not {"d_vocab", "n_ctx"} <= model.keys():
            model = {"d_vocab": task.d_vocab, "n_ctx": task.n_ctx, **model}
        return {**fields, "recipe": fields.get("recipe") or task.kind, "task": task, "model": model}

    @model_validator(mode="after")
    def _fits(self) -> "RunConfig":
        if isinstance(self.task, RecordedTask):
            return self  # it was checked when its code was there
        if self.data.hard_share and self.task.is_plain:
            raise ValueError(f"data.hard_share {self.data.hard_share}: {self.task.kind} has no inputs known to be hard")
        least = {"d_vocab": self.task.d_vocab, "n_ctx": self.task.n_ctx - 1}  # the last token is never read
        for size, needed in least.items():
            if getattr(self.model, size) < needed:
                raise ValueError(f"model.{size} {getattr(self.model, size)} is below the {needed} of the task")
        if self.start is not None and self.model.rank is not None:
            raise ValueError("start needs full matrices: set model.rank to none")
        if self.start is not None and self.start.lora_rank > self.model.full_rank:
            raise ValueError(f"start.lora_rank {self.start.lora_rank} is above {self.model.full_rank}, the full rank")
        self._fits_digits()
        if self.train.accumulate > self.train.batch:
            raise ValueError(f"train.accumulate {self.train.accumulate} exceeds train.batch {self.train.batch}")
        if self.data.source == "fixed" and self.data.n_train < self.train.batch:
            raise ValueError(f"train.batch {self.train.batch} exceeds data.n_train {self.data.n_train}")
        if self.data.curriculum and (self.data.source == "fixed" or not isinstance(self.task, Staged)):
            raise ValueError(
                f"data.curriculum {self.data.curriculum} needs fresh draws of a task with stages: set it to 0"
            )
        if self.data.repeat_share and (self.data.source == "fixed" or not isinstance(self.task, Repeating)):
            raise ValueError(
                f"data.repeat_share {self.data.repeat_share} needs fresh draws of a task with columns: set it to 0"
            )
        return self

    def _fits_digits(self) -> None:
        """Raises ValueError for digit positions or widths that the task does not support."""
        if self.model.positions in BY_DIGIT:
            significance = self.task.significance
            if significance is None:
                raise ValueError(f"model.positions {self.model.positions} needs digits; {self.task.kind} has none")
            if self.model.n_positions <= max(significance):
                raise ValueError(
                    f"model.n_ids {self.model.n_positions} is below the {max(significance) + 1} of the task"
                )
        shortest, width = self.data.shortest, self.task.width
        if shortest is None:
            return
        if width is None:
            raise ValueError(f"data.shortest {shortest}: the task {self.task.kind} has no width")
        if shortest > width:
            raise ValueError(f"data.shortest {shortest} exceeds the width of the task, {width}")
        if self.data.source == "fixed":
            raise ValueError(f"data.shortest {shortest} is for data.source fresh: a fixed set has one width")


def with_task(config: RunConfig, task: Task) -> RunConfig:
    """The config with another task: its sizes follow, and what only some tasks have is left out of the data. The task
    that it records stays, and gets its code.
    """
    again, _ = given_again(config.task, task)
    if again == config.task or (isinstance(config.task, RecordedTask) and again.kind == config.task.kind):
        return config.model_copy(update={"task": again})
    general = DataConfig().model_dump(include={"hard_share", "repeat_share", "curriculum", "shortest"})
    plain = {**config.model_dump(), "recipe": f"{config.recipe}-{task.kind}", "task": task}
    plain["data"] |= general
    for size in ("d_vocab", "n_ctx"):
        del plain["model"][size]
    return parse_config(plain)


SHORT = {"steps": "train.steps", "batch": "train.batch", "lr": "optim.lr", "n_digits": "task.n_digits"} | {
    size: f"model.{size}" for size in ("d_model", "n_layers", "n_heads")
}


@checked_arguments
def override(config: RunConfig, settings: Mapping[str, object]) -> RunConfig:
    """The config with some fields changed, as `--set` does.

    Args:
        config: the config to change.
        settings: new values by name, as in `config.json` (`model.d_model`) or short (`lr`, `steps`). Values may be
            strings, as typed on a command line; `none` stands for None.
    Returns:
        A new config, validated as a whole.
    Raises:
        ConfigError: for an unknown field, and for a value of the wrong type or range.

    Example:
        >>> import algoscope as ag
        >>> from algoscope.recipes.table import RECIPES
        >>> config = ag.override(RECIPES.load("add3")(), {"n_digits": 2, "lr": "0.003"})
        >>> config.task.n_digits, config.model.n_ctx, config.optim.lr
        (2, 10, 0.003)
    """
    plain = config.model_dump() | {"task": config.task.model_dump()}
    for size in ("d_vocab", "n_ctx"):
        if plain["model"][size] == getattr(config.task, size):
            del plain["model"][size]  # follows the task again
    for name, value in settings.items():
        *path, leaf = SHORT.get(name, name).split(".")
        section: dict[str, Any] = plain
        for part in path:
            inner = section.get(part)
            section = inner if isinstance(inner, dict) else {}
        if leaf not in section and (path, leaf) not in ((["model"], "d_vocab"), (["model"], "n_ctx")):
            close = get_close_matches(name, field_names(config), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            raise ConfigError(
                f"no field {name!r} in the config: {hint}`algoscope recipes {config.recipe}` prints them all"
            )
        section[leaf] = _typed(value)
    plain["task"] = _changed(config.task, plain["task"])
    return parse_config(plain)


def _changed(task: Task, fields: Mapping[str, object]) -> Task:
    """The task with the fields of a plain one. Errors name fields as in a RunConfig, `task.FIELD`."""
    if fields == task.model_dump():
        return task
    try:
        return type(task).model_validate(fields)
    except ValidationError as error:
        raise first_fault(error, type(task), "task", "task.") from error


def _typed(value: object) -> object:
    """`none` as None, `[0.9, 0.95]` as a list; other strings are parsed by the type of the field."""
    if isinstance(value, str) and value.lower() == "none":
        return None
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def field_names(config: RunConfig) -> list[str]:
    """Every name that `override` takes."""
    plain = config.model_dump()
    dotted = [
        f"{section}.{leaf}" if isinstance(value, dict) else section
        for section, value in plain.items()
        for leaf in (value if isinstance(value, dict) else [section])
    ]
    return [*SHORT, *dotted]


def parse_config(plain: object) -> RunConfig:
    """A RunConfig from plain JSON values. Raises ConfigError, naming the first invalid field."""
    try:
        return RunConfig.model_validate(plain)
    except ValidationError as error:
        raise first_fault(error, RunConfig, "config") from error
