"""Runs by name. A recipe is a function that returns a complete config; a variant calls another and changes fields."""

from algoscope.config import DataConfig, ModelConfig, OptimConfig, RunConfig, StartConfig, TrainConfig
from algoscope.tasks.addition import Addition
from algoscope.tasks.copying import Copying
from algoscope.tasks.modular import Modular
from algoscope.tasks.reversal import Reversal
from algoscope.tasks.subtraction import Subtraction


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


def add5() -> RunConfig:
    """Five digits, two heads a layer: 17,952 parameters. Right in every class of carry chain and in every pattern of
    columns, as far as `certify` draws from them.
    """
    return _longer("add5", n_digits=5, repeat_share=0.0, decay_steps=400, steps=2_000)


def add10() -> RunConfig:
    """Ten digits, 10^20 sums, the same model with 15 more positions: 18,432 parameters. A tenth of the draws repeat
    their columns: without them a model can be right in every class and wrong at 9999999999+9999999999.
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
    """Sums of 1 to 20 digits, one width a batch; digits of equal significance share a position, so that it also adds
    longer numbers: `run:NAME?n_digits=60`. One layer of four heads, which may rest: where a sum ends, there is no
    digit to look at.
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


def grok113() -> RunConfig:
    """Memorisation first, generalisation later: the published set-up (Nanda et al., arXiv 2301.05217). One layer
    without norms, 30 % of the 12,769 pairs in one batch, weight decay 1, the loss in float64. 20,000 steps.
    226,944 parameters: the published 226,816, and the answer's position, which no prompt reaches.
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
    """`grok113` made cheap: p = 59, half of the pairs, 40,640 parameters without biases, twice its learning rate and
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
    """A training set of fixed size; every other pair of the domain is held out. The run's seed divides them."""
    return DataConfig(source="fixed", n_train=n_train, n_test=task.domain_size - n_train, test_seed=None)


def copy8() -> RunConfig:
    """A small GPT on repeated patterns: 2,000 sequences of 24 letters, each a pattern of 3 to 5 of 8 letters, seen 100
    times; loss on every position, which the first letters of each sequence keep above `Copying.irreducible_loss`.

    Embeddings start as N(0, 1), PyTorch's own default: with 0.02 the loss falls as far, and no head has a sharp role.
    """
    task = Copying()
    return RunConfig(
        recipe="copy8",
        task=task,
        model=ModelConfig(
            d_vocab=task.d_vocab,
            n_ctx=task.n_ctx,
            d_model=64,
            d_mlp=256,
            n_layers=2,
            n_heads=2,
            act_fn="gelu",
            init_embed_std=1.0,
        ),
        data=DataConfig(source="fixed", n_train=2_000, n_test=2_000, loss_on="all"),
        optim=OptimConfig(lr=3e-4, weight_decay=0.01, hold=1.0),
        train=TrainConfig(steps=100 * 32, batch=64, log_every=8, eval_every=32, checkpoint_every=32),
    )


def copy8_fresh() -> RunConfig:
    """`copy8` with new sequences at every step, for longer and faster. Of the 37,360 sequences it ends with none wrong
    (seed 0) or a few (seed 1: 136, all with patterns of five letters, most of which take three letters to tell the
    next).
    """
    fixed = copy8()
    return RunConfig(
        recipe="copy8_fresh",
        task=fixed.task,
        model=fixed.model,
        data=DataConfig(source="fresh", loss_on="all"),
        optim=fixed.optim.model_copy(update={"lr": 1e-3, "hold": 0.5}),
        train=fixed.train.model_copy(update={"steps": 6_400, "checkpoint_every": 64}),
    )


def copy26() -> RunConfig:
    """Patterns of 4 to 13 of 26 letters, new ones at every step: too many lengths to know each by heart, and rotary
    positions, which do not say where in the sequence a token stands. A previous-token head and induction heads form
    within a few hundred steps. Two layers of attention, 34,816 parameters.
    """
    task = Copying(n_symbols=26, length=64, shortest=4, longest=13)
    return RunConfig(
        recipe="copy26",
        task=task,
        model=ModelConfig(
            d_vocab=task.d_vocab,
            n_ctx=task.n_ctx,
            d_model=64,
            d_mlp=None,
            n_layers=2,
            n_heads=4,
            positions="rotary",
            init_embed_std=1.0,
        ),
        data=DataConfig(source="fresh", n_test=512, loss_on="all"),
        optim=OptimConfig(name="muon", lr=0.003, muon_lr=0.02, weight_decay=0.01, hold=1.0),
        train=TrainConfig(steps=1_500, batch=64, log_every=10, eval_every=50, checkpoint_every=50),
    )


def mod113_3l() -> RunConfig:
    """Addition modulo 113 on `a + b =`, three layers of four heads: 80 % of the pairs, at most 50 epochs of 20 steps.

    Large batches and embeddings that start as N(0, 1) take it off its plateau, ln 113 nats; weight decay makes it
    generalise. The learning rate falls over 350 steps from where a batch is right to 99 %: the last held-out pairs come
    right on the way.
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


def reverse5() -> RunConfig:
    """Five letters of eight, written backwards, by one head and nothing else: 4,960 parameters, about 120 steps."""
    task = Reversal()
    return RunConfig(
        recipe="reverse5",
        task=task,
        model=ModelConfig(d_vocab=task.d_vocab, n_ctx=task.n_ctx, d_model=32, d_mlp=None, n_layers=1, n_heads=1),
        data=DataConfig(source="fresh"),
        optim=OptimConfig(lr=0.01, hold=0.8, decay_at=0.99, decay_steps=100, final_lr=0.02),
        train=TrainConfig(steps=600, batch=128),
    )


def sub3_lora() -> RunConfig:
    """Subtraction from an adder: every weight of `add3-s0` stays, and updates of rank 4 beside its matrices, 3,584
    numbers, learn to subtract. At most twice the steps of `add3`, and twice its decay.
    """
    adder = add3()
    return RunConfig(
        recipe="sub3_lora",
        task=Subtraction(n_digits=3),
        model=adder.model,
        data=adder.data,
        optim=adder.optim.model_copy(update={"decay_steps": 600}),
        train=adder.train.model_copy(update={"steps": 3_000}),
        start=StartConfig(run="add3-s0"),
    )
