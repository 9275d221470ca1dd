"""Fine-tuning by low-rank updates: the base stays as it is, the sum is the model, and a merge writes it down."""

import copy
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.config import override, parse_config
from algoscope.core.errors import CheckpointError, ConfigError, RunFolderError, SubjectError
from algoscope.doors.report.report import render
from algoscope.networks.lora import whole
from algoscope.recipes.addition import add3
from algoscope.recipes.lora import sub3_lora
from algoscope.runs.reading import read_tensors
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from conftest import SMALL

SIDES = ("left", "right")
TUNED = SMALL | {"start.run": "small", "start.lora_rank": 2}


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tune(runs: Path, name: str = "tuned", **settings) -> Run:
    return ag.train("sub3_lora", name=name, settings=TUNED | settings, runs_dir=runs, progress=False)


@pytest.fixture(scope="module")
def runs(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs directory with an adder that has not learned much (`small`) and a subtractor made of it (`tuned`)."""
    folder = tmp_path_factory.mktemp("lora")
    shutil.copytree(small_run.path, folder / "small")
    tune(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(runs: Path) -> Run:
    return Run(runs / "tuned")


@pytest.fixture(scope="module")
def moved(tuned: Run) -> Subject:
    """The tuned model in float64."""
    return ag.open(tuned).to_dtype(torch.float64)


# ---------------------------------------------------------------------- the base and the update


def test_it_begins_as_its_base_exactly(runs: Path, tuned: Run) -> None:
    base, first = Run(runs / "small").model(), tuned.model(0)
    tokens = tuned.config.task.at(torch.arange(100))
    assert torch.equal(first(tokens), base(tokens))
    assert torch.equal(first.block(0).attn.q.weight, base.block(0).attn.q.weight)
    assert not torch.equal(tuned.model()(tokens), base(tokens))


def test_the_checkpoint_holds_the_base_as_it_was_and_the_update_beside_it(runs: Path, tuned: Run) -> None:
    base = read_tensors(sorted((runs / "small/checkpoints").glob("*"))[-1])
    kept = read_tensors(sorted((tuned.path / "checkpoints").glob("*"))[-1])
    updates = {name for name in kept if name.endswith(("left", "right"))}
    assert len(updates) == 2 * 2 * 6
    of_base = {name.replace(".base.", "."): tensor for name, tensor in kept.items() if name not in updates}
    assert of_base.keys() == base.keys()
    assert all(torch.equal(of_base[name], tensor) for name, tensor in base.items())
    assert all(kept[name].any() for name in updates)


def test_the_weight_is_the_sum_and_the_forward_uses_it(moved: Subject) -> None:
    layer = moved.model.block(1).mlp.w_in
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(layer.weight, layer.base.weight + layer.left @ layer.right, rtol=0, atol=1e-14)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-12)
    assert int(torch.linalg.matrix_rank(layer.weight - layer.base.weight, rtol=1e-10)) == 2


def test_alpha_scales_the_update(runs: Path, tmp_path: Path) -> None:
    run = tune(runs, "alpha", **{"start.lora_alpha": 6.0, "steps": 1, "train.eval_every": 1})
    layer = run.model().block(0).attn.v
    torch.testing.assert_close(layer.weight, layer.base.weight + 3 * layer.left @ layer.right, rtol=0, atol=1e-6)


def test_only_what_is_named_trains(runs: Path) -> None:
    settings = {"start.lora_on": ["q", "w_out"], "start.also_train": ["pos_embed.weight", "blocks.0.*.bias"]}
    run = tune(runs, "named", **settings)
    first, last = (run.model(step).state_dict() for step in (0, None))
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    updates = {f"blocks.{i}.{part}.{side}" for i in (0, 1) for part in ("attn.q", "mlp.w_out") for side in SIDES}
    biases = {"blocks.0.ln1.bias", "blocks.0.ln2.bias", "blocks.0.mlp.w_in.bias", "blocks.0.mlp.w_out.base.bias"}
    assert changed == updates | biases | {"pos_embed.weight"}
    assert run.summary.trained_parameters == sum(last[name].numel() for name in changed)


def test_adamw_tunes_too(runs: Path) -> None:
    run = tune(runs, "adamw", **{"optim.name": "adamw", "optim.clip": 1.0})
    assert run.model().block(0).attn.q.left.any()


def test_parameters_are_counted_with_the_update(tuned: Run, runs: Path) -> None:
    base, whole_run = (ag.params(f"run:{name}", runs_dir=runs)["total"] for name in ("small", "tuned"))
    assert whole_run == base + tuned.summary.trained_parameters
    assert whole_run == tuned.summary.parameters
    assert ag.params("sub3_lora")["total"] == ag.params("add3")["total"] + 4 * 2 * (4 * 64 + 2 * 96)


# ---------------------------------------------------------------------- the folder


def test_the_config_is_complete_and_says_which_weights_it_began_with(runs: Path, tuned: Run) -> None:
    start = tuned.config.start
    assert start is not None
    assert start.weights_sha256 == Run(runs / "small").summary.weights_sha256
    assert parse_config(json.loads(tuned.config.model_dump_json())) == tuned.config


def test_the_folder_opens_where_there_is_no_base(tuned: Run, tmp_path: Path) -> None:
    shutil.copytree(tuned.path, tmp_path / "elsewhere")
    there = ag.open(f"run:{tmp_path / 'elsewhere'}")
    assert there.weights_sha256 == tuned.summary.weights_sha256
    assert ag.certify(there)["wrong"] == ag.certify(tuned)["wrong"]
    again = ag.train("sub3_lora", name="elsewhere", runs_dir=tmp_path, resume=True, progress=False)
    assert again.is_whole


@pytest.mark.parametrize("with_base", [True, False])
def test_a_resumed_run_ends_with_the_same_weights(
    runs: Path, tuned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_base: bool
) -> None:
    shutil.copytree(runs / "small", tmp_path / "small")
    count, save = iter(range(100)), Run.save_checkpoint

    def breaks(self: Run, step: int, *rest) -> None:
        save(self, step, *rest)
        if next(count) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(Run, "save_checkpoint", breaks)
        with pytest.raises(KeyboardInterrupt):
            tune(tmp_path)
    if not with_base:
        shutil.rmtree(tmp_path / "small")
    resumed = ag.train("sub3_lora", name="tuned", runs_dir=tmp_path, resume=True, progress=False)
    assert resumed.summary.weights_sha256 == tuned.summary.weights_sha256


def test_another_base_under_the_same_name_is_noticed(runs: Path, tuned: Run, tmp_path: Path) -> None:
    shutil.copytree(tuned.path, tmp_path / "tuned")
    (tmp_path / "tuned/run.json").unlink()
    ag.train(
        "add3",
        name="small",
        seed=Run(runs / "small").config.seed + 1,
        settings=SMALL,
        runs_dir=tmp_path,
        progress=False,
    )
    with pytest.raises(RunFolderError, match=r"the weights of start.run small have changed: .*: restore it"):
        ag.train("sub3_lora", name="tuned", runs_dir=tmp_path, resume=True, progress=False)


def test_it_can_start_from_a_checkpoint_and_from_factors_and_from_a_tuned_run(runs: Path) -> None:
    ag.train("add3", name="ranked", settings=SMALL | {"model.rank": 3}, runs_dir=runs, progress=False)
    tokens = sub3_lora().task.model_copy(update={"n_digits": 1}).at(torch.arange(100))
    for base, step in (("small@16", 16), ("ranked", None), ("tuned", None)):
        run = tune(runs, f"from-{base.replace('@', '-')}", **{"start.run": base, "steps": 1, "train.eval_every": 1})
        before = whole(Run(runs / base.partition("@")[0]).model(step))
        torch.testing.assert_close(run.model(0)(tokens), before(tokens), rtol=0, atol=0)


def test_a_longer_context_keeps_the_rows_of_its_base(runs: Path) -> None:
    longer = {"n_digits": 2, "start.also_train": ["pos_embed.weight"], "steps": 1, "train.eval_every": 1}
    run = tune(runs, "longer", **longer)
    base, rows = Run(runs / "small").model().pos_embed.weight, run.model(0).pos_embed.weight
    assert (len(base), len(rows)) == (7, 10)
    assert torch.equal(rows[:7], base)
    assert rows[7:].any()
    assert not torch.equal(run.model().pos_embed.weight[7:], rows[7:])


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"start.run": "nobody"}, RunFolderError, "no run 'nobody'"),
        ({"start.run": "small@later"}, ConfigError, "after '@' must be a number"),
        ({"start.run": "small@7"}, CheckpointError, "no checkpoint at step 7"),
        ({"start.weights_sha256": "0" * 64}, RunFolderError, "have changed: hash"),
        ({"d_model": 64}, ConfigError, "start.run small has model.d_model 32, this run 64: set model.d_model to 32"),
        ({"start.also_train": ["embedding"]}, ConfigError, "no tensor matches 'embedding'; known: embed.weight"),
        ({"start.lora_on": []}, ConfigError, "start.lora_on"),
        ({"start.lora_on": ["embed"]}, ConfigError, "start.lora_on"),
        ({"start.lora_rank": 33}, ConfigError, "start.lora_rank 33 is above 32"),
        ({"model.rank": 4}, ConfigError, "set model.rank to none"),
    ],
)
def test_a_bad_start_is_one_line(runs: Path, settings: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as raised:
        tune(runs, "bad", **settings)
    assert "\n" not in str(raised.value)
    shutil.rmtree(runs / "bad", ignore_errors=True)


def test_a_base_that_is_not_whole_is_named(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "small", tmp_path / "small")
    (tmp_path / "small/run.json").unlink()
    with pytest.raises(RunFolderError, match="small is not finished"):
        tune(tmp_path)


def test_a_start_can_be_taken_away_but_not_made_of_nothing() -> None:
    assert override(sub3_lora(), {"start": "none"}).start is None
    with pytest.raises(ConfigError, match=r"start\.run"):
        override(add3(), {"start.run": "small"})


# ---------------------------------------------------------------------- merging


def test_merging_keeps_the_logits_and_touches_nothing_else(runs: Path, tuned: Run, moved: Subject) -> None:
    before = {name: hashes(runs / name) for name in ("small", "tuned")}
    merged = ag.merge(tuned, name="merged", runs_dir=runs)
    assert {name: hashes(runs / name) for name in before} == before
    tokens = tuned.config.task.at(torch.arange(100))
    one, other = tuned.model()(tokens).detach(), merged.model()(tokens).detach()
    torch.testing.assert_close(one, other, rtol=0, atol=4e-6 * float(one.abs().max()))  # float32, added up otherwise
    precise = whole(copy.deepcopy(moved.model))
    torch.testing.assert_close(precise(tokens), moved.model(tokens), rtol=0, atol=1e-12)


def test_a_merged_run_is_a_plain_one(runs: Path, tuned: Run, run) -> None:
    code, out, _ = run("merge", "run:tuned", "--runs-dir", runs, "--json")
    said = json.loads(out)
    assert (code, said["run"], said["merged"]["subject"]) == (0, "tuned-merged", "run:tuned")
    assert said["merged"]["weights_sha256"] == tuned.summary.weights_sha256
    merged = Run(runs / "tuned-merged")
    base = read_tensors(sorted((runs / "small/checkpoints").glob("*"))[-1])
    kept = read_tensors(merged.path / "checkpoints/step_00000001.safetensors")
    assert {name: tensor.shape for name, tensor in kept.items()} == {n: t.shape for n, t in base.items()}
    assert merged.config.start is None
    assert ag.certify(merged)["wrong"] == ag.certify(tuned)["wrong"]
    assert merged.summary.test_accuracy == pytest.approx(1 - ag.certify(tuned)["wrong"] / 100)
    code, _, err = run("merge", "run:tuned", "--runs-dir", runs)
    assert (code, err.count("\n")) == (2, 1)
    code, out, _ = run("merge", "run:tuned", "--runs-dir", runs, "--name", "again")
    assert "17,568 parameters in full matrices" in out


def test_what_has_nothing_to_merge_is_one_line(runs: Path) -> None:
    with pytest.raises(SubjectError, match="neither low-rank updates nor factors"):
        ag.merge("run:small", runs_dir=runs)
    with pytest.raises(SubjectError, match="is not a run"):
        ag.merge("planted:induction", runs_dir=runs)


# ---------------------------------------------------------------------- every lens, unmerged


def test_lenses_see_the_sum(tuned: Run, moved: Subject) -> None:
    plain = moved.with_model(whole(copy.deepcopy(moved.model)))
    asked = {
        "answers": {},
        "attention": {"inputs": ["5-3"]},
        "patch": {"clean": "5-3", "corrupt": "5-4"},
        "roles": {"n_inputs": 16},
        "ablate": {"n_inputs": 20, "per_class": 2},
        "logit": {"inputs": ["5-3"]},
        "attribution": {"inputs": ["5-3"]},
        "path_patching": {"clean": "5-3", "corrupt": "5-4", "receiver": "logits"},
        "embeddings": {},
        "weights": {},
    }
    for name, options in asked.items():
        lens = getattr(ag.lenses, name)
        for mine, theirs in zip(lens(moved, **options).panels, lens(plain, **options).panels, strict=True):
            np.testing.assert_allclose(mine.values, theirs.values, atol=1e-9, err_msg=f"{name} {mine.name}")
    changes = [row["change"]["rank"] for row in ag.lenses.weights(tuned)["matrices"] if row["change"] and row["layer"]]
    assert set(changes) == {2}


def test_its_page_says_what_it_began_with(tuned: Run, runs: Path) -> None:
    page = render(ag.open(tuned), {"attention": ag.lenses.attention(tuned, ["5-3"])})
    assert "the weights of small, which stay" in page
    assert "updates of rank 2 beside" in page
    assert "17,568" not in page
    merged = ag.merge(tuned, name="for-its-page", runs_dir=runs)
    assert "merged from" in render(ag.open(merged), {"attention": ag.lenses.attention(merged, ["5-3"])})
