"""What heads add to the residual stream, where a norm stands between them and it; and models whose stream is no sum."""

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.core.errors import SubjectError
from algoscope.networks.norms import Norm
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.subject import Subject


def is_sum(subject: Subject) -> bool:
    """Whether the residual stream is the sum of what embeddings, heads and MLPs add to it."""
    return subject.cfg.norms != "post"


def needs_sum(subject: Subject, lens: str) -> None:
    """Raises SubjectError for a model that normalises the stream itself."""
    if not is_sum(subject):
        raise SubjectError(
            f"{subject.name} normalises the residual stream after each sum (norms post), so it is not the sum of the "
            f"outputs of heads and MLPs, which {lens} splits: use activation_patching or ablation"
        )


def output_norm(subject: Subject, layer: int) -> Norm | None:
    """The norm of attention's output in a layer, where there is one."""
    block = subject.model.block(layer)
    name = block.norm_at.get("output")
    norm = None if name is None else block.get_submodule(name.format(half=1))
    return norm if isinstance(norm, Norm) else None


@torch.no_grad()
def added_by_heads(subject: Subject, cache: ActivationCache, layer: int, pos: int) -> Float[Tensor, "head d_model"]:
    """What each head of a layer adds to the stream of the first input at a position: its `result`, or where a norm
    follows attention, that with the scale of the run. What else attention adds are biases.
    """
    result, norm = cache["result", layer][0, pos], output_norm(subject, layer)
    if norm is None:
        return result
    centred = result - result.mean(dim=-1, keepdim=True) if norm.centred else result
    return centred / cache[norm.scale_kind, layer][0, pos] * norm.weight
