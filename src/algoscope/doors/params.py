"""Parameter counts: one model by component, and compared with published models."""

from pathlib import Path
from typing import Any

from algoscope.config import ModelConfig
from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import UnknownNameError
from algoscope.networks.parameters import SHAPES, count_parameters, counts_of
from algoscope.recipes.table import RECIPES
from algoscope.subjects.opening import AnyModel, AnyTask, open_subject


@checked_arguments
def params(what: ModelConfig | AnyModel, *, task: AnyTask = None, runs_dir: Folder = None) -> dict[str, Any]:
    """Count parameters by component, and compare the total with published models.

    No weight is allocated for a recipe, a published shape or a config.

    Args:
        what: a model, by name, opened or in memory, a recipe, a published shape (`gpt2`, `llama3-8b`) or a config.
        task: what a model is asked, where opening it needs that; None: what it was trained on.
        runs_dir: where runs are; by default $ALGOSCOPE_RUNS, else `./runs`.
    Returns:
        `total`; `components` [{name, parameters}] in the order of the forward pass; `scale` [{name, total, times}]:
        this model and the published shapes, smallest first, with their size in multiples of this model.
    Raises:
        UnknownNameError: for any other name.

    Example:
        >>> import algoscope as ag
        >>> ag.params("gpt2")["total"]
        124439808
    """
    components = _counts(what, task, runs_dir)
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


def _counts(what: ModelConfig | AnyModel, task: AnyTask, runs_dir: str | Path | None) -> dict[str, int]:
    if isinstance(what, ModelConfig):
        return count_parameters(what)
    if not isinstance(what, str) or ":" in what:
        subject = open_subject(what, task=task, runs_dir=runs_dir)
        return counts_of(subject.model)
    if what in SHAPES:
        return count_parameters(SHAPES[what])
    if what in RECIPES:
        config = RECIPES.load(what)()
        return count_parameters(config.model, config.start)
    raise UnknownNameError("model", what, [*SHAPES, *RECIPES, "run:NAME", "file:PATH.safetensors"])
