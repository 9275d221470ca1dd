"""A model of ours as an ONNX graph, written node by node: every value is called what its site is called.

Inputs are `tokens` [batch pos], output is `logits` [batch pos d_vocab]; both axes are free, up to the context.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from algoscope.core.errors import SubjectError
from algoscope.formats.transformerlens import position_table
from algoscope.networks.transformer import ADDED, Attention, FeedForward, NoNorm, Norm, Transformer

OPSET, IR_VERSION = 20, 10  # of ONNX 1.16
LARGEST = 2_000_000_000  # bytes that one file may hold


def model_to_files(model: Transformer, out: Path, facts: Mapping[str, str]) -> dict[Path, bytes | str]:
    """The graph as one file. `facts` go into its metadata.

    Raises SubjectError for a model too large for one file.
    """
    size = sum(weight.numel() for weight in model.parameters()) * 4
    if size > LARGEST:
        raise SubjectError(f"{size:,} bytes of weights do not fit into one ONNX file: export --to huggingface")
    made = graph(model)
    made.metadata_props.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in facts.items())
    return {out: made.SerializeToString()}


@torch.no_grad()
def graph(model: Transformer) -> onnx.ModelProto:
    """The model in float32 as a checked graph."""
    return _Graph(model).made()


class _Graph:
    """The nodes so far; a value is known by its name."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.cfg = model, model.cfg
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def made(self) -> onnx.ModelProto:
        cfg = self.cfg
        self._places()
        self.bias = self._bias()
        stream = self._enter()
        for layer in range(cfg.n_layers):
            stream = self._block(layer, stream)
        stream = self._norm(self.model.ln_final, stream, "ln_final")
        self._linear(stream, self.model.W_U, self.model.b_U, "unembed", "logits")
        whole = helper.make_graph(
            self.nodes,
            "transformer",
            [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "pos"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "pos", cfg.n_logits])],
            list(self.constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        made = helper.make_model(whole, producer_name="algoscope", opset_imports=opsets, ir_version=IR_VERSION)
        made.doc_string = json.dumps(cfg.model_dump())
        onnx.checker.check_model(made, full_check=True)
        return made

    # ------------------------------------------------------------------ nodes

    def node(self, kind: str, inputs: Sequence[str], name: str, **options: Any) -> str:
        """A node with one output of that name, which is returned."""
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **options))
        return name

    def constant(self, value: Tensor | np.ndarray | Sequence[int], name: str) -> str:
        """A stored value; floats in float32, whole numbers in int64."""
        array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else np.asarray(value)
        kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
        self.constants.setdefault(name, numpy_helper.from_array(array.astype(kind, order="C"), name))
        return name

    def number(self, value: float, name: str) -> str:
        return self.constant(np.array(value, dtype=np.float32), name)

    def shaped(self, x: str, shape: Sequence[int], name: str) -> str:
        """Another shape; 0 keeps the axis there."""
        return self.node("Reshape", [x, self.constant(shape, f"shape {' '.join(map(str, shape))}")], name)

    def _linear(self, x: str, weight: Tensor, bias: Tensor | None, part: str, name: str) -> str:
        matrix = self.constant(weight.T, f"{part}.weight")
        if bias is None:
            return self.node("MatMul", [x, matrix], name)
        product = self.node("MatMul", [x, matrix], f"{name} before bias")
        return self.node("Add", [product, self.constant(bias, f"{part}.bias")], name)

    def _norm(self, norm: Norm | NoNorm, x: str, part: str) -> str:
        if isinstance(norm, NoNorm):
            return x
        weight, name = self.constant(norm.weight, f"{part}.weight"), f"{part} out"
        if norm.bias is not None:
            inputs = [x, weight, self.constant(norm.bias, f"{part}.bias")]
            return self.node("LayerNormalization", inputs, name, axis=-1, epsilon=norm.eps)
        square = self.node("Mul", [x, x], f"{part} square")
        mean = self.node("ReduceMean", [square, self.constant([-1], "last axis")], f"{part} mean", keepdims=1)
        raised = self.node("Add", [mean, self.number(norm.eps, f"{part} eps")], f"{part} raised")
        scale = self.node("Sqrt", [raised], f"{part}.hook_scale")
        return self.node("Mul", [self.node("Div", [x, scale], f"{part}.hook_normalized"), weight], name)

    # ------------------------------------------------------------------ positions

    def _places(self) -> None:
        """The number of each position, and for each query and key how far the key is ahead."""
        shape = self.node("Shape", ["tokens"], "shape of tokens", start=1, end=2)
        n_pos = self.node("Squeeze", [shape], "number of positions")
        zero, one = self.constant(np.array(0), "zero"), self.constant(np.array(1), "one")
        place = self.node("Range", [zero, n_pos, one], "place")
        query = self.node("Unsqueeze", [place, self.constant([1], "second axis")], "place of the query")
        self.node("Sub", [place, query], "ahead")

    def _enter(self) -> str:
        model = self.model
        x = self.node("Gather", [self.constant(model.embed.weight, "embed.weight"), "tokens"], "hook_embed")
        if self.cfg.positions in ADDED:
            table = position_table(model)
            assert table is not None
            added = self.node("Gather", [self.constant(table, "pos_embed.weight"), "place"], "hook_pos_embed")
            x = self.node("Add", [x, added], "stream")
        if self.cfg.positions == "rotary":
            turn = model.attention_context(self.cfg.n_ctx).angles
            assert turn is not None  # [pos 1 pair 2]
            for name, part in zip(("cosine", "sine"), turn.unbind(dim=-1), strict=True):
                self.node("Gather", [self.constant(part, f"rotary {name}"), "place"], name)
        return x

    def _bias(self) -> str | None:
        """What is added to scores [head query key]: minus infinity ahead where the mask is causal, and ALiBi."""
        terms = []
        if self.cfg.causal:
            ahead = self.node("Greater", ["ahead", "zero"], "key is ahead")
            hidden = self.number(-np.inf, "minus infinity")
            terms.append(self.node("Where", [ahead, hidden, self.number(0.0, "nothing")], "causal mask"))
        if self.cfg.positions == "alibi":
            heads = np.arange(1, self.cfg.n_heads + 1)
            slopes = self.constant(2.0 ** (-8 * heads / self.cfg.n_heads)[:, None, None], "slopes")
            far = self.node(
                "Cast", [self.node("Abs", ["ahead"], "distance")], "distance in floats", to=TensorProto.FLOAT
            )
            terms.append(self.node("Neg", [self.node("Mul", [slopes, far], "slope times distance")], "alibi"))
        if len(terms) == 2:
            return self.node("Add", terms, "score bias")
        return terms[0] if terms else None

    # ------------------------------------------------------------------ blocks

    def _block(self, layer: int, x: str) -> str:
        block, at = self.model.block(layer), f"blocks.{layer}"
        heard = self._attention(block.attn, self._norm(block.ln1, x, f"{at}.ln1"), at)
        if block.mlp is None or block.ln2 is None:
            return self.node("Add", [x, heard], f"{at}.hook_resid_post")
        mid = self.node("Add", [x, heard], f"{at} sum" if block.parallel else f"{at}.hook_resid_mid")
        read = self._norm(block.ln2, x if block.parallel else mid, f"{at}.ln2")
        return self.node("Add", [mid, self._feed_forward(block.mlp, read, at)], f"{at}.hook_resid_post")

    def _attention(self, attention: Attention, x: str, block: str) -> str:
        cfg, at = self.cfg, f"{block}.attn"
        heads = {}
        for letter in "qkv":
            linear, n = getattr(attention, letter), cfg.n_heads if letter == "q" else cfg.kv_heads
            flat = self._linear(x, linear.weight, linear.bias, f"{at}.{letter}", f"{at}.{letter} flat")
            value = self.shaped(flat, [0, 0, n, cfg.head_size], f"{at}.hook_{letter}")
            norm = {"q": attention.q_norm, "k": attention.k_norm, "v": None}[letter]
            value = value if norm is None else self._norm(norm, value, f"{at}.{letter}_norm")
            if cfg.positions == "rotary" and letter != "v":
                value = self._turn(value, f"{at}.hook_rot_{letter}")
            heads[letter] = self._spread(value, f"{at}.{letter}") if n < cfg.n_heads else value
        q, v = (self.node("Transpose", [heads[x]], f"{at}.{x} by head", perm=[0, 2, 1, 3]) for x in "qv")
        k = self.node("Transpose", [heads["k"]], f"{at}.k by head", perm=[0, 2, 3, 1])
        products = self.node("MatMul", [q, k], f"{at} products")
        scale, scores = self.number(attention.scale, "score scale"), f"{at}.hook_attn_scores"
        if self.bias is None:
            self.node("Mul", [products, scale], scores)
        else:
            self.node("Add", [self.node("Mul", [products, scale], f"{at} scaled"), self.bias], scores)
        mixed = self.node("MatMul", [self._softmax(scores, at), v], f"{at} mixed")
        z = self.node("Transpose", [mixed], f"{at}.hook_z", perm=[0, 2, 1, 3])
        flat = self.shaped(z, [0, 0, cfg.n_heads * cfg.head_size], f"{at}.z flat")
        return self._linear(flat, attention.o.weight, attention.o.bias, f"{at}.o", f"{block}.hook_attn_out")

    def _softmax(self, scores: str, at: str) -> str:
        if not self.cfg.softmax_plus_one:
            return self.node("Softmax", [scores], f"{at}.hook_pattern", axis=-1)
        pads = self.constant([0, 0, 0, 0, 0, 0, 0, 1], "one more key")
        padded = self.node("Pad", [scores, pads], f"{at} padded")
        spread = self.node("Softmax", [padded], f"{at} padded pattern", axis=-1)
        ends = [self.constant([end], f"end {end}") for end in (0, -1)]
        return self.node("Slice", [spread, *ends, self.constant([3], "key axis")], f"{at}.hook_pattern")

    def _spread(self, value: str, at: str) -> str:
        """Keys or values [batch pos kv_head d_head], repeated for the heads that share them."""
        cfg = self.cfg
        alone = self.shaped(value, [0, 0, cfg.kv_heads, 1, cfg.head_size], f"{at} alone")
        group = self.constant([1, 1, 1, cfg.n_heads // cfg.kv_heads, 1], "group")
        together = self.node("Expand", [alone, group], f"{at} together")
        return self.shaped(together, [0, 0, cfg.n_heads, cfg.head_size], f"{at} of every head")

    def _turn(self, value: str, name: str) -> str:
        """Rotary positions: two halves of the entries that turn, turned against each other."""
        half, rest = self.cfg.rotary_size // 2, self.cfg.head_size - self.cfg.rotary_size
        parts = [f"{name} left", f"{name} right"] + ([f"{name} rest"] if rest else [])
        sizes = self.constant([half, half] + ([rest] if rest else []), "rotary sizes")
        self.nodes.append(helper.make_node("Split", [value, sizes], parts, f"{name} split", axis=-1))
        left, right = parts[:2]
        products = {
            (x, wave): self.node("Mul", [x, wave], f"{x} {wave}") for x in (left, right) for wave in ("cosine", "sine")
        }
        new_left = self.node("Sub", [products[left, "cosine"], products[right, "sine"]], f"{left} turned")
        new_right = self.node("Add", [products[right, "cosine"], products[left, "sine"]], f"{right} turned")
        return self.node("Concat", [new_left, new_right, *parts[2:]], name, axis=-1)

    def _feed_forward(self, mlp: FeedForward, x: str, block: str) -> str:
        at = f"{block}.mlp"
        pre = self._linear(x, mlp.w_in.weight, mlp.w_in.bias, f"{at}.w_in", f"{at}.hook_pre")
        linear = mlp.w_linear
        post = self._activation(pre, f"{at}.hook_post" if linear is None else f"{at} gate")
        if linear is not None:
            factor = self._linear(x, linear.weight, linear.bias, f"{at}.w_linear", f"{at}.hook_pre_linear")
            post = self.node("Mul", [post, factor], f"{at}.hook_post")
        return self._linear(post, mlp.w_out.weight, mlp.w_out.bias, f"{at}.w_out", f"{block}.hook_mlp_out")

    def _activation(self, x: str, name: str) -> str:
        act = self.cfg.act_fn
        if act == "relu":
            return self.node("Relu", [x], name)
        if act == "silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x], f"{name} sigmoid")], name)
        return self.node("Gelu", [x], name, approximate="tanh" if act == "gelu_tanh" else "none")
