"""module -> conversion: our transformer in place of a module, and the comparison that shows it computes the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algoscope.config import ModelConfig
from algoscope.core.errors import ConfigError, SubjectError
from algoscope.formats.own_modules._comparing import largest_difference, lengths_to_compare
from algoscope.formats.own_modules._pattern_fitting import fit_mask
from algoscope.formats.own_modules._positions import PositionTable, computed_positions, find_table, is_sinusoidal
from algoscope.formats.own_modules.building import Make, Plan, structure_to_plan
from algoscope.formats.own_modules.calling import ways_to_call
from algoscope.formats.own_modules.embedding_reading import Run
from algoscope.formats.own_modules.linear_maps import factors, linear_maps
from algoscope.formats.own_modules.module_runs import COSTLY, LONGEST, SEED, ModuleRuns
from algoscope.formats.own_modules.outputs import Output, fit_output
from algoscope.formats.own_modules.rotary_fitting import exact_table
from algoscope.formats.own_modules.safe_copy import SMALL, copy_of, float_type, release_freed_memory, unwrapped
from algoscope.formats.own_modules.structure import Structure, read_structure
from algoscope.formats.own_modules.tracing import OwnWeightWritten, Unexplained, Value, Weights
from algoscope.networks.transformer import Transformer

MLP = ("w_in", "w_linear", "w_out")
WIDE = 16.0  # factor of the inputs of feed-forward activations
LONGEST_PATTERN = 1024  # positions of the input on which windows are read


@dataclass(frozen=True, eq=False)
class Conversion:
    """Our transformer in place of a module, and how far it was shown to be the same.

    Attributes:
        model: our transformer.
        largest_difference: of the logits, both computed in float64, relative to the largest logit; over the module's
            own weights and random ones.
        lengths: numbers of tokens of the inputs that were compared.
        call: how the module was called.
        sources: for each weight of ours the weights of the module that it is made of.
        unused: weights of the module that no logit depends on.
        rounded: tables of cosines and sines that the module holds rounded, and ours computes.
        probabilities: `softmax` or `log_softmax`, where the module returns these and ours the logits before.
    """

    model: Transformer
    largest_difference: float
    lengths: tuple[int, ...]
    call: str
    sources: Mapping[str, tuple[str, ...]]
    unused: tuple[str, ...]
    rounded: tuple[str, ...]
    probabilities: str | None


def convert(module: nn.Module, n_ctx: int | None = None, at_least: int = 1) -> Conversion:
    """Our transformer for a module that maps tokens to logits, compared with it in float64.

    Args:
        module: it, its mode, its gradients and its hooks stay as they are.
        n_ctx: the longest input; None: what the module takes.
        at_least: the longest input of a module that takes any.
    Raises:
        SubjectError: for a module that is no transformer of ours, naming the part, and for one that cannot be run.
    """
    copied, own_type = copy_of(module), float_type(unwrapped(module))
    problems: list[tuple[int, str]] = []
    of_one: Conversion | None = None
    for call in ways_to_call(copied):
        runs = ModuleRuns(copied, call, own_type, Weights(copied))
        try:
            found = _Attempt(runs, n_ctx, at_least).convert()
            if found.lengths[-1] > 1 or n_ctx == 1:
                return found
            of_one = of_one or found  # at one token any mask will do: another way to call it may take more
        except Unexplained as problem:
            problems.append((problem.event, str(problem)))
        except ConfigError as error:
            problems.append((0, str(error)))
        except OwnWeightWritten as problem:
            raise SubjectError(f"it writes to its own weight {problem} as it runs") from problem
    if of_one is not None:
        return of_one
    _, message = next((problem for problem in problems if problem[0] >= 0), problems[0])
    raise SubjectError(message)


class _Attempt:
    """One way to call a module, followed to the end."""

    def __init__(self, runs: ModuleRuns, n_ctx: int | None, at_least: int) -> None:
        self.runs, self.weights, self.n_ctx, self.at_least = runs, runs.weights, n_ctx, at_least
        self.in_float64 = runs.n_parameters <= SMALL

    def convert(self) -> Conversion:
        runs = self.runs
        run, used = runs.first_run()
        structure = self._structure(run, used)
        rounded = self._unround(structure)
        if rounded:
            run, used = runs.on_noise(run.tokens)
            structure = self._structure(run, used)
        plan = structure_to_plan(structure)
        sources = self._sources(run, plan)
        output = self._output(run, structure, plan)
        table = self._positions(structure, plan)
        self._use_stored_frequencies(plan)
        self._windows(structure, plan)
        fields = plan.fields
        shortest = 1 if runs.takes(1) else run.tokens.shape[1]
        lengths = lengths_to_compare(fields["n_ctx"], runs.n_parameters, fields["d_vocab"], shortest)
        with torch.device("meta"):
            model = Transformer(ModelConfig(**_without_defaults(fields)))
        model = model.to(torch.float64 if self.in_float64 else runs.own_type).to_empty(device="cpu")
        model.eval().requires_grad_(False)
        self._widen(sources, plan)
        difference = 0.0
        for seed in (SEED + 1, None):
            self._fill(model, plan, table, run.tokens, seed)
            difference = max(difference, largest_difference(runs, model, plan.checks, output, seed, lengths))
        named = {self.weights.name_of(weight): name for name, weight in self.weights.parameters.items()}
        return Conversion(
            model=model.to(runs.own_type),
            largest_difference=difference,
            lengths=tuple(lengths),
            call=runs.call.summary,
            sources=sources,
            unused=tuple(sorted(name for stored, name in named.items() if stored not in used)),
            rounded=tuple(rounded),
            probabilities=output.probabilities,
        )

    def _structure(self, run: Run, used: set[str]) -> Structure:
        """The structure of a run; where a part is none of ours, its weights that are in no matrix are named too."""
        try:
            return read_structure(run)
        except Unexplained as problem:
            known = {
                self.weights.name_of(arg.raw)
                for one in linear_maps(run.events, run.batch)
                for arg in one.event.args
                if isinstance(arg, Value)
            }
            beside = sorted(name for name in used - known if problem.path and name.startswith(f"{problem.path}."))
            if beside:
                raise Unexplained(problem.part, f"{problem}; it uses {', '.join(beside[:3])}", problem.event) from None
            raise

    def _sources(self, run: Run, plan: Plan) -> dict[str, tuple[str, ...]]:
        """The module's weights of which each weight of ours is made; buffers among them are redrawn like parameters."""
        names: dict[tuple[int, int], str] = {}
        for event in run.events:
            for i, arg in enumerate(event.args):
                if (event.index, i) in plan.places and isinstance(arg, Value):
                    names[event.index, i] = self.weights.name_of(arg.raw) or f"what {event.path} computes"
        self.weights.carried |= set(names.values()) & set(self.weights.buffers)
        return {ours: tuple(dict.fromkeys(names[place] for place in places)) for ours, places in plan.sources.items()}

    def _unround(self, structure: Structure) -> list[str]:
        """Put exact tables in place of those cosines and sines that the module holds rounded."""
        rotation = next((one for one in structure.rotations if one.is_rounded), None)
        if rotation is None:
            return []
        names = []
        for name, table in self.weights.buffers.items():
            exact = exact_table(table, rotation.frequencies, rotation.magnitude)
            if exact is not None:
                self.weights.exact[name] = exact
                names.append(name)
        if not names:
            raise Unexplained("attention", "its rotary angles are rounded, and no table of cosines and sines shows why")
        return names

    def _windows(self, structure: Structure, plan: Plan) -> None:
        """The sliding windows of all blocks, from the patterns on a long input."""
        n_ctx, affordable = plan.fields["n_ctx"], max(LONGEST, COSTLY // max(self.runs.n_parameters, 1))
        length = min(n_ctx, affordable, LONGEST_PATTERN)
        if not plan.fields["causal"] or length <= structure.n_positions or self.runs.n_parameters > SMALL:
            return
        groups = [[(g.mix.index, g.on_left) for g in unit.groups] for unit in structure.attention]
        indices = {index for unit in groups for index, _ in unit}
        run = self.runs.events_at(indices, torch.zeros(2, length, dtype=torch.long))
        of_index = {event.index: factors(event) for event in run.events}
        windows = []
        for layer, unit in enumerate(groups):
            seen = [of_index[index][0] if on_left else of_index[index][1].mT for index, on_left in unit]
            mask = fit_mask(torch.cat(seen) != 0)
            if mask is None or not mask[0]:
                raise Unexplained(f"block {layer}", f"block {layer}: its mask is not causal on {length} tokens")
            windows.append(mask[1])
        plan.fields["windows"] = tuple(windows) if any(windows) else None

    def _widen(self, sources: Mapping[str, tuple[str, ...]], plan: Plan) -> None:
        """Let random weights give activations large inputs, which limits such as that of ReLU6 do not let through."""
        for layer in range(plan.fields["n_layers"] if plan.fields["d_mlp"] else 0):
            w_in, w_linear, w_out = (sources.get(f"blocks.{layer}.mlp.{name}.weight", ()) for name in MLP)
            twice = w_in == w_linear or plan.fields["act_fn"] == "relu_squared"
            self.weights.factors |= dict.fromkeys(w_in, WIDE) | dict.fromkeys(w_out, WIDE ** (-2 if twice else -1))

    def _use_stored_frequencies(self, plan: Plan) -> None:
        """Rotary frequencies as a buffer of the module holds them, rather than as measured."""
        measured = plan.fields.get("rotary_frequencies") or ()
        for value in self.weights.buffers.values():
            if measured and value.numel() == len(measured) and value.is_floating_point():
                stored = value.double().flatten()
                if torch.allclose(stored, torch.tensor(measured, dtype=torch.float64), rtol=1e-9, atol=0):
                    plan.fields["rotary_frequencies"] = tuple(stored.tolist())

    def _output(self, run: Run, structure: Structure, plan: Plan) -> Output:
        """What the module does with the output of its last matrix; what it cuts or scales is done to ours."""
        y, shown = structure.head_values(run)
        output = fit_output(y, shown, run.scalars)
        if output.n_logits != structure.head.n_out or output.factor != 1.0:
            plan.cut_head(structure.head, output)
        if output.soft_cap is not None:
            plan.fields["output_logits_soft_cap"] = output.soft_cap
        return output

    def _positions(self, structure: Structure, plan: Plan) -> PositionTable | Tensor | None:
        """The table of position embeddings; in the plan their kind, and the longest input."""
        values, table = structure.embedding.positions, None
        if values is not None:
            if plan.fields["positions"] is not None:
                raise Unexplained("embedding", f"it has {plan.fields['positions']} positions and position embeddings")
            table = find_table(values, self.weights, SEED)
            sines = table is None and is_sinusoidal(values)
            plan.fields["positions"] = "sinusoidal" if sines else "learned"
        if table is not None and table.name in self.weights.buffers:
            self.weights.carried.add(table.name)
        limits = [n for n in (self.n_ctx, None if table is None else table.n_rows) if n is not None]
        n_ctx = plan.fields["n_ctx"] = self.runs.longest(min(limits, default=None), self.at_least)
        if table is None and plan.fields["positions"] == "learned":
            return computed_positions(self.runs, structure.embedding, n_ctx)
        return table

    def _fill(
        self, model: Transformer, plan: Plan, table: PositionTable | Tensor | None, tokens: Tensor, seed: int | None
    ) -> None:
        """Give our transformer the module's own weights, or random ones."""
        stored = seed is None and not self.in_float64
        places = self.runs.arguments(plan.places, tokens, seed, stored)
        makes: dict[str, Make] = dict(plan.makes)
        if isinstance(table, Tensor):
            makes["pos_embed.weight"] = lambda _: table
        elif table is not None:
            makes["pos_embed.weight"] = lambda _: table.of(self.weights, seed, stored)[: model.cfg.n_ctx]
        weights = model.state_dict()
        for name, value in weights.items():
            if name in makes:
                value.copy_(makes[name](places))
            elif name.endswith(".bias"):
                value.zero_()
            else:
                raise Unexplained(name, f"nothing in it is our {name}")
        if not self.in_float64:
            release_freed_memory()
        if extra := set(makes) - set(weights):
            raise Unexplained(min(extra), f"ours has no {min(extra)}")


def _without_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config without those that follow from others."""
    known: dict[str, Any] = {"attn_bias": False, "attn_out_bias": False, "mlp_bias": False, **fields}
    if known["d_head"] * known["n_heads"] == known["d_model"]:
        del known["d_head"]
    if known["attn_scale"] == fields["d_head"] ** -0.5:
        del known["attn_scale"]
    if known["attn_out_bias"] == known["attn_bias"]:
        del known["attn_out_bias"]
    return known
