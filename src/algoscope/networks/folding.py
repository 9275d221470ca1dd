"""Folding norms and centring weights, which leaves the predicted probabilities unchanged.

It is done only on request, on a copy, and every change is reported.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from algoscope.networks.lora import whole
from algoscope.networks.norms import Norm
from algoscope.networks.taps import precise
from algoscope.networks.transformer import Transformer


@torch.no_grad()
def fold(model: Transformer) -> tuple[Transformer, tuple[str, ...]]:
    """A copy that predicts the same probabilities, and a line for each change; of half precision in float32.

    Weights and biases of norms are folded into the matrices that read them; norms of outputs and of sums stay. Value
    biases are moved through the output matrix into its bias, where attention sums to one. Where all that reads the
    stream subtracts the mean (LayerNorm), all matrices that write to it are centred. The unembedding is centred over
    the vocabulary: this subtracts the mean of the logits at each position, on which no probability depends, unless
    logits are capped. Source: the weight processing of TransformerLens, which does it by default.
    """
    half = model.embed.weight.dtype != precise(model.embed.weight.dtype)
    model = whole(copy.deepcopy(model).float() if half else model)
    cfg = model.cfg.model_copy(
        update={"attn_bias": True, "attn_out_bias": True, "mlp_bias": True, "tied_head": False, "head_bias": True}
    )
    folded = Transformer(cfg).to(model.embed.weight)
    folded.position_ids = model.position_ids
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights.setdefault("unembed.weight", model.W_U.detach().clone())
    missing = {name: torch.zeros_like(value) for name, value in folded.state_dict().items() if name not in weights}
    folded.load_state_dict(weights | missing)
    changes = []
    if _fold_norms(folded):
        which = "all norms" if cfg.norms == "pre" else "those norms that stand before matrices"
        changes.append(f"the weights and biases of {which} were folded into the matrices that read them")
    if not cfg.softmax_plus_one and cfg.attn_rate == 1:  # attention sums to one
        for block in map(folded.block, range(cfg.n_layers)):
            group = block.attn.v.bias.unflatten(0, (-1, block.attn.d_head))
            values = group.repeat_interleave(cfg.n_heads // cfg.kv_heads, dim=0).flatten()
            block.attn.o.bias.add_(block.attn.o.weight @ values)
            block.attn.v.bias.zero_()
        changes.append("value biases were moved through the output matrices into their biases")
    if cfg.normalization_type == "LN" and cfg.norms == "pre" and cfg.final_norm:
        _centre_writing(folded)
        changes.append("embeddings, output matrices and their biases were centred: LayerNorm subtracts the mean anyway")
    assert isinstance(folded.unembed, nn.Linear)
    if cfg.output_logits_soft_cap is None:
        folded.unembed.weight.sub_(folded.unembed.weight.mean(dim=0))
        folded.unembed.bias.sub_(folded.unembed.bias.mean())
        changes.append("the unembedding was centred over the vocabulary: each position's logits have mean 0")
    if model.cfg.tied_head:
        changes.append("the unembedding is no longer tied to the token embedding")
    return folded, tuple(changes)


def _fold_norms(model: Transformer) -> bool:
    """Fold the norms that stand before matrices; whether there are any."""
    readers: list[tuple[nn.Module | None, list[nn.Linear]]] = []
    for block in map(model.block, range(model.cfg.n_layers)):
        if "input" in block.norm_at:
            readers.append((block.ln1, [block.attn.q, block.attn.k, block.attn.v]))
            if block.mlp is not None:
                gates = [block.mlp.w_in] + ([] if block.mlp.w_linear is None else [block.mlp.w_linear])
                readers.append((block.ln2, gates))
    assert isinstance(model.unembed, nn.Linear)
    readers.append((model.ln_final, [model.unembed]))
    norms = [(norm, matrices) for norm, matrices in readers if isinstance(norm, Norm)]
    for norm, matrices in norms:
        _fold_into(norm, matrices)
    return bool(norms)


def _fold_into(norm: Norm, readers: list[nn.Linear]) -> None:
    for reader in readers:
        if norm.bias is not None:
            reader.bias.add_(reader.weight @ norm.bias)
        reader.weight.mul_(norm.weight)
    norm.weight.fill_(1)
    if norm.bias is not None:
        norm.bias.zero_()


def _centre_writing(model: Transformer) -> None:
    writers: list[Float[Tensor, "... d_model"]] = [model.embed.weight]
    if model.pos_embed is not None:
        writers.append(model.pos_embed.weight)
    for block in map(model.block, range(model.cfg.n_layers)):
        writers += [block.attn.o.weight.T, block.attn.o.bias]
        if block.mlp is not None:
            writers += [block.mlp.w_out.weight.T, block.mlp.w_out.bias]
    for writer in writers:
        writer.sub_(writer.mean(dim=-1, keepdim=True))
