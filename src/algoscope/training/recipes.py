"""Runs by name. A recipe is a function that returns a complete config; a variant calls another and changes fields."""

from algoscope.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from algoscope.tasks.addition import Addition


def add3_reference() -> RunConfig:
    """The reference: loss on every position, a fixed set, 200 warm-up steps then cosine, 150 epochs of 98 steps."""
    task = Addition(n_digits=3)
    return RunConfig(
        recipe="add3_reference",
        task=task,
        model=ModelConfig(
            d_vocab=task.d_vocab,
            n_ctx=task.n_ctx,
            d_model=32,
            d_mlp=64,
            n_layers=2,
            n_heads=1,
            init_embed_std=0.02,
            init_matrix_std=0.02,
        ),
        data=DataConfig(source="fixed", n_train=50_000, train_seed=42, n_test=10_000, test_seed=123, loss_on="all"),
        optim=OptimConfig(name="adamw", lr=0.01, weight_decay=0.1, clip=1.0, warmup_steps=200, decay="cosine"),
        train=TrainConfig(steps=150 * 98, batch=512, log_every=49, eval_every=98, checkpoint_every=980),
    )


def add3() -> RunConfig:
    """The fast way: fresh pairs, loss on the answer only, Muon on the matrices, outputs that start at zero, and a
    learning rate that falls as soon as the model has got it.
    """
    reference = add3_reference()
    return RunConfig(
        recipe="add3",
        task=reference.task,
        model=reference.model.model_copy(
            update={"init_embed_std": 0.1, "init_matrix_std": None, "init_zero_out": True}
        ),
        data=DataConfig(source="fresh", hard_share=0.45, loss_on="answer"),
        optim=OptimConfig(
            name="muon",
            lr=0.01,
            muon_lr=0.015,
            hold=0.8,
            decay="cosine",
            decay_at=0.99,
            decay_steps=300,
            final_lr=0.02,
        ),
        train=TrainConfig(steps=1500, batch=256, checkpoint_every=256),
    )
