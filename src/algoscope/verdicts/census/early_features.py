"""Features of early checkpoints that are invariant under a permutation of heads."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from algoscope.data import seeded
from algoscope.lenses.heads.attention_targets import as_shares
from algoscope.lenses.heads.head_roles import ROLES
from algoscope.lenses.inputs.probe_set import ProbeSet, answer_numbers, probe_set_of
from algoscope.lenses.over_training.checkpoint_series import recalled
from algoscope.lenses.over_training.timeline_lens import role_numbers, weight_numbers
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task, Tokens
from algoscope.verdicts.census.outcome_prediction import Features

TRIED = 48  # inputs whose tokens are changed one at a time
ROLE_INPUTS = 32
PROBE_INPUTS = 512


def deciding(task: Task, seed: int = 0) -> Bool[Tensor, "read key"]:
    """The prompt positions that determine each answer token: changing one changes the token at least half as often as
    changing the most influential position does (in a sum, the two digits of its column). A row is all false where no
    single change has an effect.

    Every prompt token of 48 random inputs is replaced by another of the task's `ordinals`; replacements that give no
    valid prompt are not counted.
    """
    generator, n = seeded(torch.device("cpu"), seed, 7), task.prompt_length
    rows = task.sample(TRIED, generator)
    changed, tried = torch.zeros(task.n_ctx - n, n), torch.zeros(n)
    for row in rows.tolist():
        for place in range(n):
            pick = int(torch.randint(len(task.ordinals), (), generator=generator))
            token = task.vocabulary.index(task.ordinals[pick])
            text = task.decode([*row[:place], token, *row[place + 1 : n]])
            if token == row[place] or not task.valid(text) or task.encode(task.prompt(text))[place] != token:
                continue
            tried[place] += 1
            changed[:, place] += (torch.tensor(task.sequence(text)[n:]) != torch.tensor(row[n:])).float()
    share = changed / tried.clamp(min=1)
    most = share.amax(dim=1, keepdim=True)
    return (share >= most / 2) & (most > 0)


def early_numbers(
    subject: Subject, tokens: Tokens, probe: ProbeSet, decides: Bool[Tensor, "read key"]
) -> dict[str, float]:
    """Losses in nats by answer token, the `norm` of all weights, for each role the `best` head's score, and by layer
    `deciding`, the best head's attention to the deciding positions (0 = none, 1 = all), and `entropy`, the heads' mean
    (nats).
    """
    numbers = {name: x for name, x in answer_numbers(subject, probe).items() if name.startswith("loss")}
    numbers["norm"] = weight_numbers(subject)["norm: all weights"]
    scores = role_numbers(subject, ROLE_INPUTS, seed=0)
    for role in ROLES:
        best = [score for name, score in scores.items() if name.endswith(f" {role}")]
        numbers |= {f"best {role}": max(best)} if best else {}
    layers, at = range(subject.cfg.n_layers), subject.task.answer_slice
    _, cache = subject.run(tokens[:, :-1], record=[("pattern", layer) for layer in layers], at=slice(0, 0))
    for layer in layers:
        pattern = as_shares(cache["pattern", layer][:, :, at].double(), subject.cfg)
        numbers[f"L{layer} entropy"] = float(torch.special.entr(pattern).sum(dim=-1).mean())
        reached = decides.any(dim=1)
        if reached.any():
            there = pattern[..., : decides.shape[1]] * decides
            share = there.sum(dim=-1)[..., reached].mean(dim=(0, 2))
            numbers[f"L{layer} deciding"] = float(share.max())
    return numbers


def early_features(
    members: Sequence[Run], steps: Sequence[int], decides: Bool[Tensor, "read key"]
) -> tuple[list[str], Features]:
    """All features of `early_numbers` at the given steps (`NAME @STEP`) for each run [run feature]; missing ones are
    left out. Cached in the run folders, as those of a timeline are.
    """
    task = members[0].config.task
    probe = probe_set_of(task, n_inputs=PROBE_INPUTS, per_class=1)
    tokens = task.sample(PROBE_INPUTS, seeded(torch.device("cpu"), 1))
    rows = []
    for run in members:
        row: dict[str, float] = {}
        for step in steps:
            numbers = recalled(
                open_subject(f"run:{run.path}@{step}"),
                f"first steps n_inputs={PROBE_INPUTS}",
                lambda model: early_numbers(model, tokens, probe, decides),
            )
            row |= {f"{name} @{step}": value for name, value in numbers.items()}
        rows.append(row)
    names = [name for name in rows[0] if all(np.isfinite(row.get(name, np.nan)) for row in rows)]
    return names, np.array([[row[name] for name in names] for row in rows])
