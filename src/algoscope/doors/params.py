"""Parameter tables: one model by component, and beside published shapes."""

from pathlib import Path
from typing import Any

from algoscope.config import ModelConfig
from algoscope.core.errors import UnknownNameError
from algoscope.networks.parameters import SHAPES, count_parameters, counts_of
from algoscope.recipes.table import RECIPES
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject


def params(what: str | ModelConfig | Subject, *, runs_dir: str | Path | None = None) -> dict[str, Any]:
    """Parameters of a subject, a recipe, a published shape (`gpt2`, `llama3-8b`) or a config.

    Returns `total`, `components` ({name, parameters} in the order of the data's path) and `scale`: the totals of this
    model and of the published shapes, with `times`, how many times this model they are. No weight is allocated for a
    recipe, a shape or a config.

    Raises UnknownNameError for a name that is none of these, and what `open_subject` raises.
    """
    components = _counts(what, runs_dir)
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


def _counts(what: str | ModelConfig | Subject, runs_dir: str | Path | None) -> dict[str, int]:
    if isinstance(what, ModelConfig):
        return count_parameters(what)
    if isinstance(what, Subject) or ":" in what:
        subject = open_subject(what, runs_dir=runs_dir)
        return counts_of(subject.model)
    if what in SHAPES:
        return count_parameters(SHAPES[what])
    if what in RECIPES:
        config = RECIPES.load(what)()
        return count_parameters(config.model, config.start)
    raise UnknownNameError("model", what, [*SHAPES, *RECIPES, "run:NAME", "file:PATH.safetensors"])
