"""Parameter tables: one model by component, and beside published shapes."""

from pathlib import Path
from typing import Any

from algoscope.config import ModelConfig
from algoscope.core.errors import UnknownNameError
from algoscope.networks.parameters import SHAPES, count_parameters
from algoscope.subjects.opening import open_subject
from algoscope.training.table import RECIPES


def params(what: str | ModelConfig, *, runs_dir: str | Path | None = None) -> dict[str, Any]:
    """Parameters of a subject, a recipe, a published shape (`gpt2`, `llama3-8b`) or a config.

    Returns `total`, `components` ({name, parameters} in the order of the data's path) and `scale`: the totals of this
    model and of the published shapes, with `times`, how many times this model they are. No weight is allocated for a
    recipe, a shape or a config.

    Raises UnknownNameError for a name that is none of these, and what `open_subject` raises.
    """
    components = count_parameters(_config(what, runs_dir))
    total = sum(components.values())
    others = {name: sum(count_parameters(cfg).values()) for name, cfg in SHAPES.items()}
    return {
        "total": total,
        "components": [{"name": name, "parameters": n} for name, n in components.items()],
        "scale": [
            {"name": name, "total": n, "times": n / total}
            for name, n in sorted({"this model": total, **others}.items(), key=lambda item: item[1])
        ],
    }


def _config(what: str | ModelConfig, runs_dir: str | Path | None) -> ModelConfig:
    if isinstance(what, ModelConfig):
        return what
    if what in SHAPES:
        return SHAPES[what]
    if ":" in what:
        return open_subject(what, runs_dir=runs_dir).cfg
    if what in RECIPES:
        return RECIPES.load(what)().model
    raise UnknownNameError("model", what, [*SHAPES, *RECIPES, "run:NAME", "file:PATH.safetensors"])
