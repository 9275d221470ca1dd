"""The config that a name stands for: a recipe, or a file of JSON; with another task where one is given."""

import json
from pathlib import Path

from algoscope.config import RunConfig, parse_config, with_task
from algoscope.core.errors import ConfigError
from algoscope.core.files import user_path
from algoscope.recipes.table import RECIPES
from algoscope.tasks.base import Task
from algoscope.tasks.specs import as_task


def config_of(recipe: str | RunConfig, task: Task | str | None = None) -> RunConfig:
    """The config of a recipe by name, of a file NAME.json, or one as it is.

    A file may leave out what has a default, its name, and a task that is given here.

    Raises:
        UnknownNameError: for an unknown recipe.
        ConfigError: for a file that cannot be read, and a config that does not fit.
    """
    task = None if task is None else as_task(task)
    if isinstance(recipe, str) and recipe.endswith(".json"):
        return _of_file(user_path(recipe), task)
    config: RunConfig = RECIPES.load(recipe)() if isinstance(recipe, str) else recipe
    return config if task is None else with_task(config, task)


def _of_file(path: Path, task: Task | None) -> RunConfig:
    try:
        plain = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read as a config: {why}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path} cannot be read as a config: it holds no object of JSON")
    named = {"recipe": path.stem} | plain
    if task is None and "task" not in named:
        raise ConfigError(f"{path} names no task: give --task NAME, or one of your own, --task FILE.py:CLASS")
    if task is not None and "task" in named:
        return with_task(parse_config(named), task)
    return parse_config(named if task is None else named | {"task": task})
