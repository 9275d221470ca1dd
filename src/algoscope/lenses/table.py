"""The lenses by name: each is registered here once; the command line and the notebook call follow from the entry.

A lens is a function `(subject, ..., keyword options) -> Finding`. It never changes the subject.
"""

from algoscope.core.registry import Entry, Table

LENSES = Table(
    "lens",
    {
        "answers": Entry(
            "algoscope.lenses.reading.answers:answers",
            "answers decoded token by token: edge cases, your own inputs, random draws",
        ),
        "attention": Entry(
            "algoscope.lenses.heads.attention_maps:attention",
            "where each head of each layer looks, for chosen inputs",
        ),
        "looks": Entry(
            "algoscope.lenses.heads.attention_by_part:looks",
            "which part of the input each head looks at where the answer is read, over all inputs; entropy by layer",
        ),
        "alignment": Entry(
            "algoscope.lenses.heads.source_attention:alignment",
            "do heads look where the answer can be read, by position alone, and do they bring it from there",
        ),
        "patch": Entry(
            "algoscope.lenses.interventions.activation_patching:patch",
            "copy activations between a clean and a corrupt run: which sites carry the answer",
        ),
        "roles": Entry(
            "algoscope.lenses.heads.head_roles:roles",
            "what every head looks at over many inputs: the token before, an earlier copy, all alike",
        ),
        "ablate": Entry(
            "algoscope.lenses.interventions.ablation:ablate",
            "take away each head, feed-forward, layer and embedding: what is lost, by class of input",
        ),
        "induction": Entry(
            "algoscope.lenses.induction_circuit.induction_heads:induction",
            "repeated random tokens: which heads find what followed before, what feeds them, what they are worth",
        ),
        "phase": Entry(
            "algoscope.lenses.induction_circuit.phase_change:phase",
            "the scores of the induction lens over the checkpoints of a run: when heads form, how fast the loss falls",
        ),
        "logit": Entry(
            "algoscope.lenses.reading.logit_lens:logit",
            "what the model would say after the embedding and after every block",
        ),
        "attribution": Entry(
            "algoscope.lenses.reading.logit_attribution:attribution",
            "how many logits each head, feed-forward and embedding adds to the answer",
        ),
        "paths": Entry(
            "algoscope.lenses.interventions.path_patching:paths",
            "path patching: which heads and feed-forwards one receiver hears the answer from, directly",
        ),
        "embeddings": Entry(
            "algoscope.lenses.parameters.embedding_geometry:embeddings",
            "token and position embeddings: PCA, cosine similarity, effective dimension, before and after training",
        ),
        "weights": Entry(
            "algoscope.lenses.parameters.weight_spectra:weights",
            "singular values, effective and stable rank of every matrix and of every head's circuits, before and after",
        ),
        "clock": Entry(
            "algoscope.lenses.modular_arithmetic.clock_or_pizza:clock",
            "modular addition: clock or pizza, by gradients and by one circle at a time",
        ),
        "fourier": Entry(
            "algoscope.lenses.modular_arithmetic.fourier_lens:fourier",
            "modular arithmetic and groups: the frequencies or representations that carry the answer, and their share",
        ),
        "progress": Entry(
            "algoscope.lenses.modular_arithmetic.progress_measures:progress_measures",
            "the measures of the fourier lens over the checkpoints of a run, with the phases marked",
        ),
        "timeline": Entry(
            "algoscope.lenses.over_training.timeline_lens:timeline",
            "losses, classes, roles, frequencies, ranks or any number over a run's checkpoints: what formed when",
        ),
    },
)
