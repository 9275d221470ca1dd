"""Configs: complete, strict, and the same after a trip through JSON."""

import json

import pytest

from algoscope.config import SHORT, field_names, override, parse_config
from algoscope.core.errors import ConfigError
from algoscope.recipes.addition import add3, add3_reference


@pytest.mark.parametrize("recipe", [add3, add3_reference])
def test_config_survives_json(recipe) -> None:
    config = recipe()
    assert parse_config(json.loads(config.model_dump_json())) == config


def test_every_field_can_be_set_by_its_name() -> None:
    config = add3()
    plain = config.model_dump()
    for name in field_names(config):
        path = SHORT.get(name, name).split(".")
        value = plain
        for part in path:
            value = value[part]
        assert override(config, {name: value}) == config, name


def test_strings_are_read_as_the_field_says() -> None:
    config = override(add3(), {"lr": "1e-3", "steps": "7", "model.attn_bias": "true", "optim.betas": "[0.8, 0.9]"})
    assert (config.optim.lr, config.train.steps, config.model.attn_bias) == (0.001, 7, True)
    assert config.optim.betas == (0.8, 0.9)
    assert override(add3(), {"model.d_mlp": "none"}).model.d_mlp is None


def test_sizes_follow_the_task() -> None:
    assert override(add3(), {"n_digits": 5}).model.n_ctx == 19
    assert override(add3(), {"model.n_ctx": 32}).model.n_ctx == 32


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stepz": 5}, ["stepz", "steps"]),
        ({"optim.lrr": 5}, ["optim.lrr", "optim.lr"]),
        ({"steps": "many"}, ["steps", "many"]),
        ({"steps": 0}, ["steps", "0"]),
        ({"lr": "nan"}, ["lr", "nan"]),
        ({"lr": -1}, ["lr", "-1"]),
        ({"n_heads": 5}, ["d_model 32", "n_heads 5"]),
        ({"model.act_fn": "tanhh"}, ["act_fn", "tanhh"]),
        ({"model": 5}, ["model"]),
        ({"model.n_ctx": 4}, ["n_ctx", "4", "12"]),
        ({"data.source": "fixed", "data.n_train": 10}, ["batch", "n_train"]),
    ],
)
def test_bad_settings_are_named_on_one_line(settings: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        override(add3(), settings)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


def test_reference_recipe_is_the_published_one() -> None:
    config = add3_reference()
    assert (config.data.n_train, config.data.train_seed) == (50_000, 42)
    assert (config.data.n_test, config.data.test_seed) == (10_000, 123)
    assert (config.optim.name, config.optim.lr, config.optim.warmup_steps) == ("adamw", 0.01, 200)
    assert (config.optim.decay, config.optim.clip, config.data.loss_on) == ("cosine", 1.0, "all")
    assert config.optim.weight_decay > 0
    assert (config.train.batch, config.train.steps) == (512, 150 * 98)  # 98 batches of 512 cover 50,000 pairs


def test_both_recipes_train_the_same_network() -> None:
    ours, theirs = add3().model.model_dump(), add3_reference().model.model_dump()
    assert {k for k in ours if ours[k] != theirs[k]} <= {"init_embed_std", "init_matrix_std", "init_zero_out"}


def test_sizes_that_were_given_stay_and_others_follow_the_task() -> None:
    plain = add3().model_dump()
    wide = parse_config(plain | {"model": plain["model"] | {"n_ctx": 40}})
    changed = override(wide, {"n_digits": 2, "lr": 0.5})
    assert (changed.model.n_ctx, changed.model.d_vocab) == (40, changed.task.d_vocab)
    assert override(add3(), {"n_digits": 2}).model.n_ctx == changed.task.n_ctx
