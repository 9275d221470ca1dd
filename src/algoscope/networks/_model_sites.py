"""The sites of a model, and the shapes of their values."""

from algoscope.config import ModelConfig
from algoscope.core.sites import KINDS, Site, sites_of_kinds
from algoscope.networks.position_encodings import ADDED


def sites_of(cfg: ModelConfig) -> tuple[Site, ...]:
    """Every site of a model of this config, in the order of `core.sites.KINDS`."""
    absent = set[str]()
    if cfg.positions not in ADDED:
        absent |= {"pos_embed"}
    if cfg.positions != "rotary":
        absent |= {"rot_q", "rot_k"}
    if cfg.normalization_type is None:
        absent |= {kind for kind in KINDS if kind.startswith("ln")}
    if not cfg.final_norm:
        absent |= {"ln_final_scale", "ln_final_normalized"}
    if cfg.norms != "both":
        absent |= {kind for kind in KINDS if "_post_" in kind}
    if not cfg.qk_norm:
        absent |= {kind for kind in KINDS if kind.startswith(("q_norm", "k_norm"))}
    if cfg.parallel:
        absent |= {"resid_mid"}
    if cfg.d_mlp is None:
        absent |= {kind for kind in KINDS if kind.startswith("ln2")} | {"resid_mid", "pre", "post", "mlp_out"}
    if cfg.d_mlp is None or not cfg.gated_mlp:
        absent |= {"pre_linear"}
    other_value = set[str]()  # where the module of the alias computes another value than the one we tap
    if cfg.norms in ("output", "both"):
        other_value |= {"attn_out", "mlp_out"}
    if cfg.norms in ("post", "output"):
        other_value |= {"resid_mid"}
    return sites_of_kinds(set(KINDS) - absent, cfg.n_layers, other_value)


def shape_of(cfg: ModelConfig, site: Site, n_inputs: int, n_pos: int) -> tuple[int, ...]:
    """The shape of a site's value for tokens [n_inputs n_pos] without a cache. A norm over all heads has one scale."""
    sizes = {"batch": n_inputs, "head": cfg.n_heads, "kv_head": cfg.kv_heads, "d_head": cfg.head_size, "1": 1}
    sizes |= dict.fromkeys(("pos", "query", "key"), n_pos) | {"d_model": cfg.d_model, "d_mlp": cfg.d_mlp or 0}
    if cfg.qk_norm_over == "all" and site.kind in ("q_norm_scale", "k_norm_scale"):
        sizes |= {"head": 1, "kv_head": 1}
    return tuple(sizes[axis] for axis in KINDS[site.kind].axes)
