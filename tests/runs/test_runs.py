"""Run folders: found by name, refused with one line where something is wrong with them."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import algoscope as ag
from algoscope.core.errors import CheckpointError, RunFolderError, SubjectError
from algoscope.runs.run_folder import Run, weights_hash


def test_a_run_opens_by_name_by_path_and_at_a_step(small_run: Run) -> None:
    directory = small_run.path.parent
    by_name = ag.open("run:small", runs_dir=directory)
    by_path = ag.open(f"run:{small_run.path}")
    assert by_name.weights_sha256 == by_path.weights_sha256 == small_run.summary.weights_sha256
    early = ag.open("run:small@16", runs_dir=directory)
    assert early.weights_sha256 != by_name.weights_sha256
    assert ag.open("run:small@0", runs_dir=directory).weights_sha256 == by_name.before_training().weights_sha256


def test_a_recipes_name_finds_its_only_member(small_run: Run, tmp_path: Path) -> None:
    shutil.copytree(small_run.path, tmp_path / "add3-s0")
    assert ag.open("run:add3", runs_dir=tmp_path).origin.name == "add3-s0"
    shutil.copytree(small_run.path, tmp_path / "add3-s1")
    with pytest.raises(RunFolderError, match="add3-s0, add3-s1"):
        ag.open("run:add3", runs_dir=tmp_path)


def test_a_moved_folder_is_all_that_is_needed(own_run: Run, small_run: Run) -> None:
    moved = own_run.path.rename(own_run.path.with_name("elsewhere"))
    assert ag.open(f"run:{moved}").weights_sha256 == small_run.summary.weights_sha256


def test_weights_in_a_file_open_with_the_config_beside_them(small_run: Run, tmp_path: Path) -> None:
    shutil.copy(sorted(small_run.path.glob("checkpoints/*"))[-1], tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no config file for .*model\.json or config\.json"):
        ag.open(f"file:{tmp_path}/model.safetensors")
    shutil.copy(small_run.path / "config.json", tmp_path / "model.json")
    opened = ag.open(f"file:{tmp_path}/model.safetensors")
    assert opened.weights_sha256 == small_run.summary.weights_sha256
    assert opened.origin is None


def test_pickles_are_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(SubjectError, match="never from a pickle"):
        ag.open(f"file:{tmp_path}/model.pt")


@pytest.mark.parametrize("name", ["nonsense", "run:", "hf:", "what:ever", "run:small@last"])
def test_other_forms_are_refused(name: str, small_run: Run) -> None:
    with pytest.raises(SubjectError):
        ag.open(name, runs_dir=small_run.path.parent)


def test_a_missing_run_is_named_with_those_that_exist(small_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"'smal'.*small"):
        ag.open("run:smal", runs_dir=small_run.path.parent)
    with pytest.raises(RunFolderError, match="it has no runs"):
        ag.open("run:small", runs_dir=tmp_path / "nowhere")


def test_a_missing_step_is_named_with_those_that_exist(small_run: Run) -> None:
    with pytest.raises(CheckpointError, match=r"step 17.*16, 32"):
        ag.open("run:small@17", runs_dir=small_run.path.parent)


def spoil(run: Run, change: str) -> None:
    newest = sorted(run.path.glob("checkpoints/*"))[-1]
    weights = run.model().state_dict()
    if change == "renamed":
        weights["blocks.9.what"] = weights.pop("embed.weight")
    elif change == "reshaped":
        weights["embed.weight"] = weights["embed.weight"][:3].clone()
    elif change == "empty file":
        return newest.write_bytes(b"")
    elif change == "text":
        return newest.write_text("not weights at all")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, newest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("renamed", "blocks.9.what"),
        ("reshaped", "embed.weight.*3, 32.*14, 32"),
        ("empty file", "no complete"),
        ("text", "no complete"),
    ],
)
def test_weights_that_do_not_fit_are_named(own_run: Run, change: str, words: str) -> None:
    spoil(own_run, change)
    with pytest.raises(CheckpointError, match=words) as raised:
        ag.open(own_run)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": "x"}', '{"model": 5, "task": {"kind": "addition"}}'])
def test_a_spoiled_config_is_one_line(own_run: Run, text: str) -> None:
    (own_run.path / "config.json").write_text(text)
    with pytest.raises(ag.AlgoscopeError) as raised:
        ag.open(own_run)
    assert "\n" not in str(raised.value)


def test_a_cut_last_row_of_metrics_is_left_out(own_run: Run) -> None:
    whole = own_run.metrics()
    with (own_run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 70, "lo')
    assert own_run.metrics() == whole


@pytest.mark.parametrize("name", ["a b", "a\nb", "-x", ".hidden", "a:b"])
def test_names_that_are_no_folder_are_refused(name: str, tmp_path: Path, small_run: Run) -> None:
    with pytest.raises(RunFolderError, match="cannot name a run"):
        Run.create(tmp_path / name, small_run.config)


def test_hash_tells_one_bit_apart(small_run: Run) -> None:
    weights = {name: tensor.clone() for name, tensor in small_run.model().state_dict().items()}
    before = weights_hash(weights)
    weights["embed.weight"].view(torch.int32)[0, 0] ^= 1
    assert weights_hash(weights) != before


def test_remove_leaves_nothing(own_run: Run) -> None:
    own_run.remove()
    assert not own_run.path.exists()
