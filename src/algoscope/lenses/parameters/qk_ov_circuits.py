"""QK and OV circuits from the weights: copying, matching, and composition of heads.

Everything is computed from the factors of W_V W_O and W_Q W_K^T, never from their products, in float64.
Source: Elhage et al., A Mathematical Framework for Transformer Circuits (2021).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from algoscope.data import seeded
from algoscope.lenses.residual_parts import needs_sum, output_norm
from algoscope.networks.norms import Norm
from algoscope.subjects.subject import Subject

MOST_TOKENS = 1024  # of a larger vocabulary, this many are drawn at random
DRAWS = 100  # pairs of random heads
ENTRIES = ("Q", "K", "V")

Head = tuple[int, int]
"""(layer, head)"""
Wide = Float[Tensor, "*head d_model d_head"]
Square = Float[Tensor, "*head rank d_head"]


@dataclass(frozen=True)
class Factors:
    """The matrices of a layer's heads for row vectors: a head's scores are x W_Q W_K^T y^T, and it writes y W_V W_O.

    `W_O` is transposed, [head d_model d_head], like the others.
    """

    W_Q: Wide
    W_K: Wide
    W_V: Wide
    W_O: Wide

    @cached_property
    def r_q(self) -> Square:
        return _r(self.W_Q)

    @cached_property
    def r_k(self) -> Square:
        return _r(self.W_K)

    @cached_property
    def r_v(self) -> Square:
        return _r(self.W_V)

    @cached_property
    def r_o(self) -> Square:
        return _r(self.W_O)

    @property
    def ov_norm(self) -> Float[Tensor, "*head"]:
        """The Frobenius norm of W_V W_O."""
        return _norm(self.r_v @ self.r_o.mT)

    @property
    def qk_norm(self) -> Float[Tensor, "*head"]:
        """The Frobenius norm of W_Q W_K^T."""
        return _norm(self.r_q @ self.r_k.mT)


class Circuits:
    """The folded weights of a subject: norms folded in, weights that write to the residual stream and unembedding
    centred.

    Token vectors are W_E, each divided by its norm's scale where the blocks norm what they read. W_O includes the
    weights of a norm that follows it.
    Position embeddings, MLPs and the scale of a norm in between are left out, and so are rotary positions: W_Q W_K^T is
    that of a query and a key at the same position. `tokens` are the rows and columns of the circuits: all that a task
    uses, or of a large vocabulary 1,024, drawn by `seed`.
    """

    def __init__(self, subject: Subject, seed: int = 0) -> None:
        needs_sum(subject, "a circuit of weights")
        folded, _ = subject.folded()
        self.subject, self.model, self.cfg = folded, folded.model, folded.cfg
        self.tokens = _tokens(subject, seed)

    def layer(self, number: int) -> Factors:
        """The heads of one layer; keys and values are repeated for every head of their group."""
        attn, group = self.model.block(number).attn, self.cfg.n_heads // self.cfg.kv_heads
        q, k, v, o = (module.weight.detach().double() for module in (attn.q, attn.k, attn.v, attn.o))
        if (norm := output_norm(self.subject, number)) is not None:
            o = (o - o.mean(dim=0) if norm.centred else o) * norm.weight.detach().double()[:, None]
        q, k, v, o = (w.unflatten(0, (-1, attn.d_head)).mT for w in (q, k, v, o.mT))
        return Factors(q, k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0), o)

    @cached_property
    def embedding(self) -> Float[Tensor, "token d_model"]:
        rows = self.model.W_E.detach().double()[self.tokens]
        if not isinstance(self.model.block(0).ln1, Norm) or self.cfg.norms == "output":
            return rows
        return rows / (rows.pow(2).mean(dim=1, keepdim=True) + self.cfg.eps).sqrt()

    @cached_property
    def unembedding(self) -> Float[Tensor, "token d_model"]:
        return self.model.W_U.detach().double()[self.tokens]

    # ------------------------------------------------------------------ copying

    def ov(self, layer: int, head: int) -> Float[Tensor, "token output"]:
        """W_E W_V W_O W_U: the logits that attending to a token adds to each token."""
        heads = self.layer(layer)
        return self._ov(heads.W_V[head], heads.W_O[head])

    def _ov(self, w_v: Wide, w_o: Wide) -> Float[Tensor, "token output"]:
        return (self.embedding @ w_v) @ (self.unembedding @ w_o).mT

    def copying_eigenvalues(self, layer: int) -> Float[Tensor, "head"]:
        """Sum of the eigenvalues of W_E W_V W_O W_U over the sum of their magnitudes: 1 = it raises the attended token,
        -1 = it lowers it, 0 = neither. NaN for a head with zero output.

        The nonzero eigenvalues are those of the small matrix W_O W_U W_E W_V.
        """
        heads = self.layer(layer)
        small = (self.unembedding @ heads.W_O).mT @ (self.embedding @ heads.W_V)
        values = torch.linalg.eigvals(small)
        return values.real.sum(dim=-1) / values.abs().sum(dim=-1)

    def copying_top1(self, layer: int) -> Float[Tensor, "head"]:
        """The share of tokens that attending to them raises most; by chance 1 over their number."""
        heads = self.layer(layer)
        return torch.stack([_on_diagonal(self._ov(*one)) for one in zip(heads.W_V, heads.W_O, strict=True)])

    # ------------------------------------------------------------------ matching

    def matching(self, sender: Head, receiver: Head) -> Float[Tensor, "query token"]:
        """W_E W_Q (W_E W_V W_O W_K)^T: the score of a query token with a key to which the sender has written a
        token."""
        writes, reads = self.layer(sender[0]), self.layer(receiver[0])
        written = (self.embedding @ writes.W_V[sender[1]]) @ (writes.W_O[sender[1]].mT @ reads.W_K[receiver[1]])
        return (self.embedding @ reads.W_Q[receiver[1]]) @ written.mT

    def matching_top1(self, sender: Head, receiver: Head) -> float:
        """The share of query tokens that score a key highest whose written token is themselves."""
        return float(_on_diagonal(self.matching(sender, receiver)))

    def pointing(self, sender: Head, receiver: Head, n: int) -> Float[Tensor, "pos key"] | None:
        """W_pos W_V W_O W_Q (W_pos W_K)^T over the first `n` positions: the score of a query to which the sender has
        written a position, with the key at each position. None unless positions are learned vectors.
        """
        if self.model.W_pos is None:
            return None
        positions = self.model.W_pos.detach().double()[:n]
        writes, reads = self.layer(sender[0]), self.layer(receiver[0])
        written = (positions @ writes.W_V[sender[1]]) @ (writes.W_O[sender[1]].mT @ reads.W_Q[receiver[1]])
        return written @ (positions @ reads.W_K[receiver[1]]).mT

    def pointing_top1(self, sender: Head, receiver: Head, n: int, block: int) -> float | None:
        """The share of the positions of a first block of `block` tokens, except its last, for which the highest-scoring
        of `n` keys is the next position.
        """
        scores = self.pointing(sender, receiver, n)
        if scores is None:
            return None
        best = scores[: block - 1].argmax(dim=1)
        return float((best == torch.arange(1, block, device=best.device)).double().mean())

    # ------------------------------------------------------------------ composition

    @cached_property
    def chance(self) -> tuple[float, float]:
        """Mean and standard deviation of the composition score of random heads of this shape."""
        return composition_by_chance(self.cfg.d_model, self.cfg.head_size)

    def composition(self) -> Float[np.ndarray, "entry sender receiver"]:
        """The composition scores of every head with every head of a later layer; NaN for all other pairs.

            Q = |OV1 QK2| / (|OV1| |QK2|)     K = |OV1 QK2^T| / (|OV1| |QK2|)     V = |OV1 OV2| / (|OV1| |OV2|)

        with OV = W_V W_O, QK = W_Q W_K^T and Frobenius norms; between 0 and 1. Heads are numbered through all layers.
        """
        n_layers, n_heads = self.cfg.n_layers, self.cfg.n_heads
        scores = np.full((len(ENTRIES), n_layers, n_heads, n_layers, n_heads), np.nan)
        layers = [self.layer(number) for number in range(n_layers)]
        for later, second in enumerate(layers):
            for earlier, first in enumerate(layers[:later]):
                for i, values in enumerate(composed(first, second)):
                    scores[i, earlier, :, later] = values.cpu().numpy()
        return scores.reshape(len(ENTRIES), n_layers * n_heads, n_layers * n_heads)


def composed(first: Factors, second: Factors) -> Iterator[Float[Tensor, "sender receiver"]]:
    """The Q, K and V composition scores of the heads of two layers.

    The norm of A M B^T is that of R_A M R_B^T, where A = Q_A R_A with orthonormal columns Q_A: for
    OV1 QK2 = W_V1 (W_O1 W_Q2) W_K2^T only matrices of d_head x d_head are left.
    """
    out, v = first.W_O.mT[:, None], first.r_v[:, None]
    for reads, rest, norm in (
        (second.W_Q, second.r_k, second.qk_norm),
        (second.W_K, second.r_q, second.qk_norm),
        (second.W_V, second.r_o, second.ov_norm),
    ):
        yield _norm(v @ (out @ reads) @ rest.mT) / (first.ov_norm[:, None] * norm)


@cache
def composition_by_chance(d_model: int, d_head: int, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation of the composition score of 100 pairs of heads whose matrices are Gaussian, of these
    shapes; the same for Q, K and V.
    """
    draw = seeded(torch.device("cpu"), seed)
    drawn = []
    for _ in range(DRAWS):
        first, second = (Factors(*torch.randn(4, 1, d_model, d_head, generator=draw).double()) for _ in range(2))
        drawn.append(next(composed(first, second)))
    scores = torch.stack(drawn)
    return float(scores.mean()), float(scores.std())


def _r(matrix: Wide) -> Square:
    return torch.linalg.qr(matrix, mode="r").R


def _norm(matrix: Float[Tensor, "*head row column"]) -> Float[Tensor, "*head"]:
    return torch.linalg.matrix_norm(matrix)


def _on_diagonal(circuit: Float[Tensor, "token token"]) -> Float[Tensor, ""]:
    """The share of rows whose largest entry is on the diagonal; constant rows do not count."""
    there = circuit.argmax(dim=1) == torch.arange(len(circuit), device=circuit.device)
    return (there & (circuit.amax(dim=1) > circuit.amin(dim=1))).double().mean()


def _tokens(subject: Subject, seed: int) -> Int[Tensor, "token"]:
    if subject.has_task:
        used = set(subject.task.used_tokens)
        return torch.tensor([i for i, token in enumerate(subject.task.vocabulary) if token in used])
    drawn = torch.randperm(subject.cfg.d_vocab, generator=seeded(torch.device("cpu"), seed))
    return drawn[:MOST_TOKENS].sort().values
