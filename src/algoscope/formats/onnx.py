"""Export to an ONNX graph with PyTorch's exporter; values in the graph have the names of their sites.

The input is `tokens` [batch pos], the output `logits` [batch pos d_vocab]; both axes are dynamic.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnxscript  # noqa: F401  # needed by torch.onnx.export: imported here to fail early
import torch
from jaxtyping import Int
from torch import Tensor, nn

from algoscope.core.errors import SubjectError
from algoscope.core.sites import KINDS, Site
from algoscope.networks.taps import Tap
from algoscope.networks.transformer import Transformer

OPSET = 20
LARGEST = 2_000_000_000  # largest size of one file, in bytes
NAMED = frozenset(KINDS) - {"result"}
"""Kinds of sites in the graph; `result` is excluded for its size."""


def model_to_files(model: Transformer, out: Path, facts: Mapping[str, str]) -> dict[Path, bytes | str]:
    """The graph as one file. `facts` go into its metadata.

    Raises SubjectError for a model too large for one file.
    """
    size = sum(weight.numel() for weight in model.parameters()) * 4
    if size > LARGEST:
        raise SubjectError(f"{size:,} bytes of weights do not fit into one ONNX file: export --to huggingface")
    graph = model_to_graph(model)
    graph.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in facts.items())
    return {out: graph.SerializeToString()}


def model_to_graph(model: Transformer) -> onnx.ModelProto:
    """The model in float32 as a checked graph.

    Sites are outputs during the export, so that they keep their names; afterwards they are inner values of the graph.
    """
    plain = copy.deepcopy(model).float().cpu().requires_grad_(False)
    if plain.position_ids is not None:
        plain.position_ids = plain.position_ids.cpu()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("pos", max=plain.cfg.n_ctx)}
    with _quiet():
        program = torch.onnx.export(
            _WithSites(plain).eval(),
            (torch.zeros(2, 2, dtype=torch.long),),
            dynamo=True,
            dynamic_shapes=(axes,),
            input_names=["tokens"],
            output_names=["logits", *(site.name for site in _Sites.of(plain))],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    del graph.graph.output[1:]
    for value in (*graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output, graph.graph):
        del value.metadata_props[:]  # stack traces with paths of this machine
    graph.doc_string = json.dumps(plain.cfg.model_dump())
    onnx.checker.check_model(graph, full_check=True)
    return graph


class _Sites(Tap):
    """Records the activations that get names, in the order of computation."""

    kinds = NAMED

    def __init__(self) -> None:
        self.values: dict[Site, Tensor] = {}

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        if kind in self.kinds:
            self.values[Site(kind, layer)] = value
        return value

    @classmethod
    def of(cls, model: Transformer) -> tuple[Site, ...]:
        """The sites that a model computes."""
        tap = cls()
        model(torch.zeros(1, 1, dtype=torch.long), tap=tap)
        return tuple(tap.values)


class _WithSites(nn.Module):
    """A model that returns its logits and the values at its sites."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> tuple[Tensor, ...]:
        tap = _Sites()
        logits = self.model(tokens, tap=tap)
        return (logits, *tap.values.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of the exporter, on which a user cannot act."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
