"""Recipes of modular addition."""

from algoscope.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from algoscope.tasks.groups.modular import Modular


def grok113() -> RunConfig:
    """Grokking, memorisation before generalisation, in the published set-up (Nanda et al., arXiv 2301.05217). One
    layer without norms, 30 % of the 12,769 pairs in one batch, weight decay 1, the loss in float64. 20,000 steps.
    226,944 parameters: the published 226,816, and a position embedding for the answer, which is never used.
    """
    p, d_model = 113, 128
    task = Modular(p=p, form="ab=")
    return RunConfig(
        recipe="grok113",
        task=task,
        model=ModelConfig(
            d_vocab=task.d_vocab,
            n_ctx=task.n_ctx,
            d_model=d_model,
            d_mlp=4 * d_model,
            n_layers=1,
            n_heads=4,
            act_fn="relu",
            normalization_type=None,
            tied_head=False,
            init_embed_std=d_model**-0.5,
            init_matrix_std=d_model**-0.5,
            init_unembed_std=task.d_vocab**-0.5,
        ),
        data=_every_pair(task, n_train=3_830),
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.98), weight_decay=1.0, warmup_steps=10, hold=1.0),
        train=TrainConfig(
            steps=20_000, batch=3_830, loss_dtype="float64", log_every=10, eval_every=50, checkpoint_every=500
        ),
    )


def grok59() -> RunConfig:
    """A cheaper `grok113`: p = 59, half of the pairs, 40,640 parameters without biases, twice its learning rate and
    weight decay. 2,000 steps.
    """
    big, p, d_model = grok113(), 59, 64
    task = Modular(p=p, form="ab=")
    narrow = {"d_vocab": task.d_vocab, "d_vocab_out": p, "d_model": d_model, "d_mlp": 2 * d_model, "mlp_bias": False}
    scales = {"init_embed_std": d_model**-0.5, "init_matrix_std": d_model**-0.5, "init_unembed_std": p**-0.5}
    n_train = task.domain_size // 2
    return RunConfig(
        recipe="grok59",
        task=task,
        model=big.model.model_copy(update=narrow | scales),
        data=_every_pair(task, n_train),
        optim=big.optim.model_copy(update={"lr": 2e-3, "weight_decay": 2.0}),
        train=big.train.model_copy(update={"steps": 2_000, "batch": n_train, "checkpoint_every": 200}),
    )


def _every_pair(task: Modular, n_train: int) -> DataConfig:
    """A training set of fixed size; all other pairs of the domain are held out. The split depends on the run's seed."""
    return DataConfig(source="fixed", n_train=n_train, n_test=task.domain_size - n_train, test_seed=None)


def mod113_3l() -> RunConfig:
    """Addition modulo 113 on `a + b =`, three layers of four heads: 80 % of the pairs, at most 50 epochs of 20 steps.

    Large batches and embeddings initialised as N(0, 1) shorten the plateau at ln 113 nats; weight decay makes it
    generalise. The learning rate decays over 350 steps once training accuracy reaches 99 %; the last held-out pairs are
    learned during the decay.
    """
    task = Modular(p=113)
    n_train = task.domain_size * 4 // 5
    per_epoch = -(-n_train // 512)
    return RunConfig(
        recipe="mod113_3l",
        task=task,
        model=ModelConfig(
            d_vocab=task.d_vocab,
            d_vocab_out=task.p,
            n_ctx=task.n_ctx,
            d_model=64,
            d_mlp=256,
            n_layers=3,
            n_heads=4,
            tied_head=False,
            init_embed_std=1.0,
        ),
        data=_every_pair(task, n_train),
        optim=OptimConfig(
            name="muon",
            lr=2e-3,
            muon_lr=0.01,
            betas=(0.9, 0.98),
            weight_decay=2.0,
            warmup_steps=10,
            hold=0.6,
            decay_at=0.99,
            decay_steps=350,
            final_lr=0.02,
        ),
        train=TrainConfig(steps=50 * per_epoch, batch=512, eval_every=per_epoch, checkpoint_every=100),
    )
