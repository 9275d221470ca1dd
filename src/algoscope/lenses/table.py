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
        "embeddings": Entry(
            "algoscope.lenses.embedding_geometry:embeddings",
            "token and position embeddings: PCA, cosine similarity, effective dimension, before and after training",
        ),
    },
)
