"""Recipes of n-digit addition."""

from algoscope.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from algoscope.tasks.digits.addition import Addition


def add3_reference() -> RunConfig:
    """The reference: loss on every position, a fixed set, 200 warm-up steps, cosine decay, 150 epochs of 98 steps."""
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
    """The fast recipe: fresh inputs, loss on the answer only, Muon on the matrices, output matrices initialised to
    zero. The learning rate decays over 400 steps once training accuracy reaches 99 %; with 300 steps one seed in twenty
    ended with a few wrong sums on some processors.
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
            decay_steps=400,
            final_lr=0.02,
        ),
        train=TrainConfig(steps=2_000, batch=256, checkpoint_every=256),
    )


def add5() -> RunConfig:
    """Five digits, two heads a layer: 17,952 parameters. Right in every class of carry chains and every pattern of
    columns, for the inputs that `certify` draws.
    """
    return _longer("add5", n_digits=5, repeat_share=0.0, decay_steps=400, steps=2_000)


def add10() -> RunConfig:
    """Ten digits, 10^20 sums, the same model with 15 more positions: 18,432 parameters. A tenth of the draws have
    repeated columns: without them a model can be right in every class but wrong on 9999999999+9999999999.
    """
    return _longer("add10", n_digits=10, repeat_share=0.1, decay_steps=600, steps=3_000)


def _longer(recipe: str, n_digits: int, repeat_share: float, decay_steps: int, steps: int) -> RunConfig:
    """`add3` with two heads for more digits. It needs no curriculum."""
    small, task = add3(), Addition(n_digits=n_digits)
    return RunConfig(
        recipe=recipe,
        task=task,
        model=small.model.model_copy(update={"n_ctx": task.n_ctx, "n_heads": 2}),
        data=small.data.model_copy(update={"repeat_share": repeat_share}),
        optim=small.optim.model_copy(update={"decay_steps": decay_steps}),
        train=small.train.model_copy(update={"steps": steps}),
    )


def add20() -> RunConfig:
    """Sums of 1 to 20 digits, one width per batch. Digits of equal significance share a position embedding, so that the
    model also adds longer numbers: `run:NAME?n_digits=60`. One layer of four heads with softmax_plus_one: past the end
    of an operand there is no digit to attend to.
    """
    task = Addition(n_digits=20)
    return RunConfig(
        recipe="add20",
        task=task,
        model=ModelConfig(
            d_vocab=task.d_vocab,
            n_ctx=task.n_ctx,
            d_model=128,
            d_mlp=256,
            n_layers=1,
            n_heads=4,
            d_head=64,
            positions="coupled",
            n_ids=128,
            softmax_plus_one=True,
            tied_head=False,
            init_embed_std=0.3,
            init_zero_out=True,
        ),
        data=DataConfig(source="fresh", shortest=1, hard_share=0.3, n_test=1_000),
        optim=OptimConfig(
            name="muon",
            lr=0.002,
            muon_lr=0.02,
            betas=(0.9, 0.98),
            clip=1.0,
            warmup_steps=50,
            hold=0.5,
            decay="linear",
            final_lr=0.02,
        ),
        train=TrainConfig(steps=2_000, batch=64, eval_every=500, checkpoint_every=1_000),
    )
