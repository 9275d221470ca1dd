"""The closed list of sites: the activations of a decoder that can be read or replaced, named as in TransformerLens.

Shapes (these axis names are used in every signature):

    batch     independent inputs                     pos        token position in the context
    d_model   width of the residual stream           d_head     width of one head
    head      query head                             kv_head    key/value head (fewer when grouped)
    query     attending position                     key        attended position
    d_mlp     width of the feed-forward              d_vocab    tokens in the vocabulary
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, SupportsIndex

from algoscope.core.arguments import Form
from algoscope.core.errors import UnknownNameError


@dataclass(frozen=True)
class SiteKind:
    """A family of sites: its full name (`{layer}` where it occurs in every block), its shape, and an alias."""

    template: str
    shape: str
    alias: str = ""

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(self.shape.split())

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.template


KINDS: dict[str, SiteKind] = {
    "embed": SiteKind("hook_embed", "batch pos d_model", "embed.hook_out"),
    "pos_embed": SiteKind("hook_pos_embed", "batch pos d_model", "pos_embed.hook_out"),
    "resid_pre": SiteKind("blocks.{layer}.hook_resid_pre", "batch pos d_model", "blocks.{layer}.hook_in"),
    "ln1_scale": SiteKind("blocks.{layer}.ln1.hook_scale", "batch pos 1"),
    "ln1_normalized": SiteKind("blocks.{layer}.ln1.hook_normalized", "batch pos d_model"),
    "q": SiteKind("blocks.{layer}.attn.hook_q", "batch pos head d_head", "blocks.{layer}.attn.q.hook_out"),
    "k": SiteKind("blocks.{layer}.attn.hook_k", "batch pos kv_head d_head", "blocks.{layer}.attn.k.hook_out"),
    "v": SiteKind("blocks.{layer}.attn.hook_v", "batch pos kv_head d_head", "blocks.{layer}.attn.v.hook_out"),
    "q_norm_scale": SiteKind("blocks.{layer}.attn.q_norm.hook_scale", "batch pos head 1"),
    "q_norm_normalized": SiteKind("blocks.{layer}.attn.q_norm.hook_normalized", "batch pos head d_head"),
    "k_norm_scale": SiteKind("blocks.{layer}.attn.k_norm.hook_scale", "batch pos kv_head 1"),
    "k_norm_normalized": SiteKind("blocks.{layer}.attn.k_norm.hook_normalized", "batch pos kv_head d_head"),
    "rot_q": SiteKind("blocks.{layer}.attn.hook_rot_q", "batch pos head d_head"),
    "rot_k": SiteKind("blocks.{layer}.attn.hook_rot_k", "batch pos kv_head d_head"),
    "attn_scores": SiteKind("blocks.{layer}.attn.hook_attn_scores", "batch head query key"),
    "pattern": SiteKind("blocks.{layer}.attn.hook_pattern", "batch head query key"),
    "z": SiteKind("blocks.{layer}.attn.hook_z", "batch pos head d_head", "blocks.{layer}.attn.o.hook_in"),
    "result": SiteKind("blocks.{layer}.attn.hook_result", "batch pos head d_model"),
    "ln1_post_scale": SiteKind("blocks.{layer}.ln1_post.hook_scale", "batch pos 1"),
    "ln1_post_normalized": SiteKind("blocks.{layer}.ln1_post.hook_normalized", "batch pos d_model"),
    "attn_out": SiteKind("blocks.{layer}.hook_attn_out", "batch pos d_model", "blocks.{layer}.attn.hook_out"),
    "resid_mid": SiteKind("blocks.{layer}.hook_resid_mid", "batch pos d_model", "blocks.{layer}.ln2.hook_in"),
    "ln2_scale": SiteKind("blocks.{layer}.ln2.hook_scale", "batch pos 1"),
    "ln2_normalized": SiteKind("blocks.{layer}.ln2.hook_normalized", "batch pos d_model"),
    "pre": SiteKind("blocks.{layer}.mlp.hook_pre", "batch pos d_mlp", "blocks.{layer}.mlp.in.hook_out"),
    "pre_linear": SiteKind("blocks.{layer}.mlp.hook_pre_linear", "batch pos d_mlp", "blocks.{layer}.mlp.in.hook_out"),
    "post": SiteKind("blocks.{layer}.mlp.hook_post", "batch pos d_mlp", "blocks.{layer}.mlp.out.hook_in"),
    "ln2_post_scale": SiteKind("blocks.{layer}.ln2_post.hook_scale", "batch pos 1"),
    "ln2_post_normalized": SiteKind("blocks.{layer}.ln2_post.hook_normalized", "batch pos d_model"),
    "mlp_out": SiteKind("blocks.{layer}.hook_mlp_out", "batch pos d_model", "blocks.{layer}.mlp.hook_out"),
    "resid_post": SiteKind("blocks.{layer}.hook_resid_post", "batch pos d_model", "blocks.{layer}.hook_out"),
    "ln_final_scale": SiteKind("ln_final.hook_scale", "batch pos 1"),
    "ln_final_normalized": SiteKind("ln_final.hook_normalized", "batch pos d_model"),
}


@dataclass(frozen=True)
class Site:
    """One named activation of a model: a kind, and the layer (`None` for kinds that occur once)."""

    kind: str
    layer: int | None = None
    alias: str = field(default="", compare=False, repr=False)
    """Its newer name, among the sites of a model: in some the module of that name computes another value."""

    @property
    def name(self) -> str:
        return KINDS[self.kind].template.format(layer=self.layer)


def sites_of_kinds(kinds: Iterable[str], n_layers: int, without_alias: Iterable[str] = ()) -> tuple[Site, ...]:
    """Every site of these kinds in a model with `n_layers` blocks, in the order of `KINDS`."""
    wanted, unaliased = set(kinds), set(without_alias)
    return tuple(
        Site(kind, layer, "" if kind in unaliased else spec.alias.format(layer=layer))
        for kind, spec in KINDS.items()
        if kind in wanted
        for layer in (range(n_layers) if spec.per_layer else [None])
    )


Key = Annotated[
    str | tuple[str, SupportsIndex] | tuple[str, SupportsIndex, str] | Site,
    Form("a site, such as ('z', 0) or 'blocks.0.attn.hook_z'"),
]


def find_site(key: Key, sites: Sequence[Site]) -> Site:
    """The one of `sites` with a name: `blocks.0.attn.hook_pattern`, `("pattern", -1)`, `("scale", 0, "ln1")`, the
    newer `blocks.0.hook_in`, or a site itself. In a gated feed-forward, `mlp.in.hook_out` is the linear factor, and
    `mlp.gate.hook_out` the input of the activation function.

    Raises UnknownNameError for an unknown name and for a layer outside the model.
    """
    given: Any = tuple(key) if isinstance(key, list) else key
    matches: list[Site] = []
    if isinstance(given, tuple) and len(given) in (2, 3) and hasattr(given[1], "__index__"):
        kind, layer, *part = given
        layer = operator.index(layer)
        kind = f"{part[0]}_{kind}" if part and kind in ("scale", "normalized") else kind
        of_kind = [site for site in sites if site.kind == kind]
        matches = of_kind[layer : layer + 1 or None] if -len(of_kind) <= layer < len(of_kind) else []
    elif isinstance(given, Site):
        matches = [site for site in sites if site == given]
    elif isinstance(given, str):
        name = given.replace("mlp.gate.hook_out", "mlp.hook_pre")
        matches = [
            site for site in sites if name in (site.name, site.alias) or (site.layer is None and name == site.kind)
        ]
    if not matches:
        raise UnknownNameError("site", str(key), [site.name for site in sites])
    return matches[-1]
