"""The lenses by name: each is registered here once; the command line and the notebook call follow from the entry.

A lens is a function `(subject, ..., keyword options) -> Finding`. It never changes the subject.
"""

from algoscope.core.registry import Entry, Table

LENSES = Table(
    "lens",
    {
        "answers": Entry(
            "algoscope.lenses.answer_digits:answers",
            "answers decoded token by token: edge cases, your own inputs, random draws",
        ),
        "attention": Entry(
            "algoscope.lenses.attention_maps:attention",
            "where each head of each layer looks, for chosen inputs",
        ),
        "patch": Entry(
            "algoscope.lenses.patching:patch",
            "copy activations between a clean and a corrupt run: which sites carry the answer",
        ),
        "roles": Entry(
            "algoscope.lenses.head_roles:roles",
            "what every head looks at over many inputs: the token before, an earlier copy, all alike",
        ),
        "ablate": Entry(
            "algoscope.lenses.ablation:ablate",
            "take away each head, feed-forward, layer and embedding: what is lost, by class of input",
        ),
        "logit": Entry(
            "algoscope.lenses.logit_lens:logit",
            "what the model would say after the embedding and after every block",
        ),
        "attribution": Entry(
            "algoscope.lenses.logit_attribution:attribution",
            "how many logits each head, feed-forward and embedding adds to the answer",
        ),
        "paths": Entry(
            "algoscope.lenses.path_patching:paths",
            "path patching: which heads and feed-forwards one receiver hears the answer from, directly",
        ),
        "embeddings": Entry(
            "algoscope.lenses.embedding_geometry:embeddings",
            "token and position embeddings: PCA, cosine similarity, effective dimension, before and after training",
        ),
    },
)
