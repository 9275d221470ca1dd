"""What a file leaves open, settled by the answers of the model to its task.

Each way to read the file is a model; where one answers right and the others do not, it is the one. Where several answer
alike, what is usual stays assumed, and what has no usual value (the number of heads) is asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

import torch

from algoscope.config import RunConfig
from algoscope.core.errors import AlgoscopeError, CheckpointError
from algoscope.data import all_or_sample
from algoscope.formats.checkpoint_files import CheckpointFile
from algoscope.formats.config_inference import Inferred
from algoscope.formats.layout_reading import OpenChoice
from algoscope.networks.evaluation import evaluate
from algoscope.networks.shared_prefixes import shared_logits
from algoscope.networks.transformer import Transformer

Choices = Mapping[str, Any]
TRIED = "tried"
RIGHT, CLEARLY = 0.9, 0.05  # share of right answers of a reading that is taken, and how much less others have
N_INPUTS = 1_000
MOST_READINGS = 48
MOST_WORK = 2e12  # weights times tokens times readings: about a minute


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """An imported model: its config, its weights, and how each field of the config was inferred."""

    config: RunConfig
    model: Transformer
    account: tuple[Inferred, ...]
    left_out: tuple[str, ...]
    file: CheckpointFile


Read = Callable[[Choices], ImportedModel]


@torch.no_grad()
def answers_of(config: RunConfig, model: Transformer, n_inputs: int) -> dict[str, float]:
    """Loss in nats per answer position and the share of whole answers that are right, over all inputs or a sample."""
    task = config.task
    tokens = all_or_sample(task, n_inputs, torch.Generator().manual_seed(0))
    at = task.answer_slice
    loss, accuracy = evaluate(task, tokens, lambda batch: shared_logits(model, batch[:, :-1], at), at, config.train)
    return {"loss": loss, "test_accuracy": accuracy}


def settle(read: Read) -> ImportedModel:
    """The model that `read` gives, with what it leaves open settled by its answers.

    Raises what `read` raises; OpenChoice for what the answers leave open too.
    """
    search, asked = _Search(read), None
    try:
        search.model({})
    except OpenChoice as open_choice:
        asked = open_choice
    starts = [{}] if asked is None else list(search.required({}))
    if asked is not None and not starts:
        raise asked
    if not any(_alternatives(search.model(start)) for start in starts) and asked is None:
        return search.model({})
    if search.work(starts[0]) * len(starts) > MOST_WORK:
        if asked is not None:
            raise asked
        return search.model({})
    best = max(starts, key=search.score)
    if search.right(best) < RIGHT:
        tried = search.all_of(sorted(starts, key=search.score, reverse=True)[:2])
        best = next((one for one in tried if search.right(one) >= RIGHT), best)
    if search.right(best) < RIGHT:
        if asked is not None:
            raise asked
        return search.model({})
    return search.confirmed(best, asked)


def _alternatives(imported: ImportedModel) -> dict[str, tuple[Any, ...]]:
    """The other values of each row of the account that nothing settles, under the names of settings."""
    return {_setting(row): row.others for row in imported.account if row.others}


def _setting(row: Inferred) -> str:
    return row.what if row.what.startswith("weights.") else f"model.{row.what}"


class _Search:
    """Readings of a file, and how well each answers."""

    def __init__(self, read: Read) -> None:
        self.read = read
        self.models: dict[str, ImportedModel] = {}
        self.scores: dict[str, tuple[float, float]] = {}
        self.options: dict[str, tuple[Any, ...]] = {}
        """The values of each setting that is asked for."""

    def required(self, tried: Choices) -> Iterator[dict[str, Any]]:
        """The ways to set what is asked for, where the weights allow them."""
        try:
            self.model(tried)
        except OpenChoice as open_choice:
            self.options[open_choice.name] = open_choice.values
            for value in open_choice.values:
                yield from self.required({**tried, open_choice.name: value})
        except AlgoscopeError:
            return
        else:
            yield dict(tried)

    def model(self, tried: Choices) -> ImportedModel:
        key = str(sorted(tried.items()))
        if key not in self.models:
            self.models[key] = self.read(tried)
        return self.models[key]

    def work(self, tried: Choices) -> float:
        imported = self.model(tried)
        return N_INPUTS * imported.config.task.n_ctx * sum(w.numel() for w in imported.model.parameters())

    def score(self, tried: Choices) -> tuple[float, float]:
        """Share of right answers, and the loss below 0; least of all where the weights do not allow it."""
        key = str(sorted(tried.items()))
        if key not in self.scores:
            try:
                imported = self.models.get(key) or self.read(tried)
                answers = answers_of(imported.config, imported.model, N_INPUTS)
                self.scores[key] = answers["test_accuracy"], -answers["loss"]
            except AlgoscopeError:
                self.scores[key] = -1.0, 0.0
        return self.scores[key]

    def right(self, tried: Choices) -> float:
        return self.score(tried)[0]

    def all_of(self, starts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every combination of the values that are open, the usual ones first, as far as there is time."""
        combinations: list[dict[str, Any]] = []
        most = min(MOST_READINGS, int(MOST_WORK / self.work(starts[0])))
        for start in starts:
            open_values = _alternatives(self.model(start))
            for values in product(*((None, *others) for others in open_values.values())):
                changed = {name: v for (name, o), v in zip(open_values.items(), values, strict=True) if v is not None}
                combinations.append({**start, **changed})
        combinations.sort(key=len)
        return list(islice(combinations, most))

    def confirmed(self, best: dict[str, Any], asked: OpenChoice | None) -> ImportedModel:
        """The best reading, whose account says of each open field what other values would have answered."""
        required = dict(self.options)
        usual = self.model({name: value for name, value in best.items() if name in required})
        values_of = {name: tuple(v for v in values if v != best[name]) for name, values in required.items()}
        rows = {_setting(row): row for row in usual.account if row.others}
        for name, row in rows.items():
            values_of[name] = tuple(v for v in (row.value, *row.others) if v != best.get(name, row.value))
        imported, right = self.model(best), self.right(best)
        how: dict[str, str] = {}
        for name, values in values_of.items():
            rival, value = max(
                ((self.right({**best, name: v}), v) for v in values), default=(-1.0, None), key=lambda p: p[0]
            )
            if right - rival >= CLEARLY:
                how[name] = f"from the answers: {right:.1%} are right, at most {max(rival, 0):.1%} otherwise"
            elif name in required:
                raise OpenChoice(
                    name,
                    values,
                    f"{asked}; answers leave it open ({right:.1%} right with {best[name]}, {rival:.1%} with {value})",
                )
            else:
                how[name] = f"{rows[name].how}; {right:.1%} of the answers are right, {rival:.1%} with {value}"
        account = tuple(replace(row, how=how.get(_setting(row), row.how), others=()) for row in imported.account)
        _refuse_rate_between(best, right, imported)
        return replace(imported, account=account)


def _refuse_rate_between(best: Choices, right: float, imported: ImportedModel) -> None:
    """An attention rate is a number that answers only come near to. Raises CheckpointError where it is not 1."""
    rate = best.get("model.attn_rate")
    if rate is not None:
        raise CheckpointError(
            f"{imported.file.path}: {right:.1%} of its answers are right with an attention rate near {rate}, fewer "
            "with plain softmax (1): give the rate with --set model.attn_rate=X"
            + (" --no-causal" if best.get("model.causal") is False else "")
        )
