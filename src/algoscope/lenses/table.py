"""The lenses by name: each is registered here once, for the command line, the notebook and the report.

A lens is a function `(subject, ..., keyword options) -> Finding`. It never changes the subject. Rows are in the order
of a report.
"""

from dataclasses import dataclass

from algoscope.core.registry import Entry, Table


@dataclass(frozen=True)
class LensEntry(Entry):
    """A lens: the heading of its section in a report, and whether its module has `for_report` (`inputs/prompts.py`)."""

    title: str
    reported: bool = True


LENSES = Table(
    "lens",
    {
        "answers": LensEntry(
            "algoscope.lenses.reading.answers:answers",
            "answers decoded token by token: edge cases, your own inputs, random draws",
            "Answers",
        ),
        "attention": LensEntry(
            "algoscope.lenses.heads.attention_maps:attention",
            "the attention pattern of every head on chosen inputs",
            "Attention",
        ),
        "attention_by_part": LensEntry(
            "algoscope.lenses.heads.attention_by_part:attention_by_part",
            "share of attention on each part of the input at the answer positions, over all inputs; entropy",
            "Attention by input part",
        ),
        "source_attention": LensEntry(
            "algoscope.lenses.heads.source_attention:source_attention",
            "do heads attend to the source of the answer, by position alone, and do they carry the answer",
            "Attention to the sources of the answer",
        ),
        "logit": LensEntry(
            "algoscope.lenses.reading.logit_lens:logit",
            "the unembedding applied to the residual stream after the embedding and after every block",
            "Logit lens",
        ),
        "attribution": LensEntry(
            "algoscope.lenses.reading.logit_attribution:attribution",
            "how many logits each head, MLP and embedding adds to the answer",
            "Logit attribution",
        ),
        "patch": LensEntry(
            "algoscope.lenses.interventions.activation_patching:patch",
            "activation patching between a clean and a corrupt run: how much of the answer each site restores",
            "Activation patching",
        ),
        "attribution_patching": LensEntry(
            "algoscope.lenses.interventions.attribution_patching:attribution_patching",
            "activation patching at every site at once, approximated by gradients, beside the exact effects",
            "Attribution patching",
            reported=False,
        ),
        "path_patching": LensEntry(
            "algoscope.lenses.interventions.path_patching:path_patching",
            "path patching: which heads and MLPs affect one receiver directly",
            "Path patching",
            reported=False,
        ),
        "roles": LensEntry(
            "algoscope.lenses.heads.head_roles:roles",
            "every head scored over many inputs: previous token, duplicate token, induction, uniform, sparse",
            "Head roles",
        ),
        "ablate": LensEntry(
            "algoscope.lenses.interventions.ablation:ablate",
            "each head, MLP, layer and embedding ablated in three ways: the cost, by class of input",
            "Ablation",
        ),
        "embeddings": LensEntry(
            "algoscope.lenses.parameters.embedding_geometry:embeddings",
            "token and position embeddings: PCA, cosine similarity, effective dimension, before and after training",
            "Embeddings",
        ),
        "weights": LensEntry(
            "algoscope.lenses.parameters.weight_spectra:weights",
            "singular values, effective and stable rank of every matrix and of every head's circuits, before and after",
            "Weights",
        ),
        "fourier": LensEntry(
            "algoscope.lenses.modular_arithmetic.fourier_lens:fourier",
            "modular arithmetic and groups: key frequencies or representations, and their share of the logits",
            "Fourier components",
        ),
        "clock": LensEntry(
            "algoscope.lenses.modular_arithmetic.clock_or_pizza:clock",
            "modular addition: clock or pizza, by gradients and by keeping one circle of the embedding at a time",
            "Clock or pizza",
        ),
        "timeline": LensEntry(
            "algoscope.lenses.over_training.timeline_lens:timeline",
            "losses, classes, roles, frequencies, ranks or any number over a run's checkpoints: what formed when",
            "Timeline",
        ),
        "progress": LensEntry(
            "algoscope.lenses.modular_arithmetic.progress_measures:progress_measures",
            "the measures of the fourier lens over the checkpoints of a run, with the phases marked",
            "Progress measures",
        ),
        "induction": LensEntry(
            "algoscope.lenses.induction_circuit.induction_heads:induction",
            "induction heads on repeated random tokens: scores, the head each depends on, and the loss without each",
            "Induction heads",
        ),
        "induction_phase": LensEntry(
            "algoscope.lenses.induction_circuit.phase_change:induction_phase",
            "the scores of the induction lens over the checkpoints of a run: when heads form, how fast the loss falls",
            "Induction over training",
        ),
    },
    renamed={
        "looks": "attention_by_part",
        "alignment": "source_attention",
        "paths": "path_patching",
        "phase": "induction_phase",
    },
)
