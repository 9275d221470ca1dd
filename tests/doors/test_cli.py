"""The command line as a user meets it: results on standard output, one line of error, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from algoscope.doors.cli.main import COMMANDS
from algoscope.recipes.table import RECIPES
from algoscope.runs.run_folder import Run
from algoscope.tasks.table import TASKS
from conftest import SMALL

SETTINGS = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]


def json_of(run, *args: object) -> dict:
    code, out, err = run(*args, "--json", "--quiet")
    assert err == ""
    assert code in (0, 1)
    return json.loads(out)


# ---------------------------------------------------------------------- the main path


@pytest.mark.long
def test_train_certify_look_report_from_the_command_line(run, runs_dir: Path, tmp_path: Path) -> None:
    code, out, _ = run("train", "add3", *SETTINGS, "--name", "mine")
    assert code == 0
    assert "mine" in out
    summary = json_of(run, "runs", "show", "mine")
    assert summary["summary"]["steps"] == 60
    verdict = json_of(run, "certify", "run:mine", "--by", "pattern", "--limit-counterexamples", 2)
    assert verdict["domain"] == {"size": 100, "method": "exhaustive", "checked": 100}
    assert verdict["wrong"] > 0
    code, out, _ = run("certify", "run:mine")
    assert code == 1, "a verdict that does not hold"
    assert "wrong of 100 (all inputs)" in out
    code, out, _ = run("report", "run:mine")
    assert (runs_dir / "mine" / "report.html").is_file()
    assert str(runs_dir / "mine" / "report.html") in out
    for suffix in ("html", "png"):
        path = tmp_path / f"heads.{suffix}"
        code, _, _ = run("lens", "attention", "run:mine", "--input", "1+2", "--input", "9+9", "--out", path)
        assert code == 0
        assert path.stat().st_size > 500
    code, out, _ = run("runs", "rm", "mine")
    assert code == 0
    assert not (runs_dir / "mine").exists()


def test_demo_certifies_every_sum(demo: dict) -> None:
    assert demo["verdict"].facts["wrong"] == 0
    assert demo["run"].is_whole
    assert demo["report"].is_file()
    assert set(demo["seconds"]) == {"training", "certification", "report"}


def test_certify_json_of_the_demo_exits_zero(run, demo: dict) -> None:
    code, out, _ = run("certify", f"run:{demo['run'].path}", "--sample", 2000, "--json", "--quiet")
    assert code == 0
    assert json.loads(out)["wrong"] == 0


def test_generate_answers_and_says_what_is_right(run, demo: dict) -> None:
    found = json_of(run, "generate", f"run:{demo['run'].path}", "123+456")
    assert found == {"prompt": "123+456=", "answer": "9750<EOS>", "expected": "9750<EOS>"}
    code, out, _ = run("generate", f"run:{demo['run'].path}", "999+1", "--no-cache")
    assert (code, out) == (0, "0001<EOS>\n")


def test_generate_goes_on_after_free_text(run) -> None:
    asked = ("generate", "planted:induction", "qwertyuqwe", "--tokens", 3)
    assert run(*asked) == (0, "rty\n", "")
    assert json_of(run, *asked) == {"prompt": "qwertyuqwe", "answer": "rty"}


def test_report_compares_the_prompts_that_are_given(run, tmp_path: Path) -> None:
    arguments = ["report", "planted:induction", "--clean", "abcda", "--corrupt", "cbada"]
    found = json_of(run, *arguments, "--out", tmp_path / "page.html")
    assert found == {"report": str(tmp_path / "page.html")}
    page = (tmp_path / "page.html").read_text()
    assert "abcda" in page
    assert "cbada" in page
    assert run(*arguments[:4], "--out", tmp_path / "alone.html", "--quiet")[0] == 0
    assert '<section id="patch">' in page
    assert '<section id="patch">' not in (tmp_path / "alone.html").read_text()


@pytest.mark.parametrize(("what", "total"), [("add3", 17_760), ("gpt2", 124_439_808), ("llama3-8b", 8_030_261_248)])
def test_params_to_the_digit(run, what: str, total: int) -> None:
    found = json_of(run, "params", what)
    assert found["total"] == total == sum(row["parameters"] for row in found["components"])
    code, out, _ = run("params", what)
    assert code == 0
    assert f"{total:,}" in out


def test_lists(run, runs_dir: Path) -> None:
    assert [row["name"] for row in json_of(run, "recipes")] == list(RECIPES)
    assert [row["name"] for row in json_of(run, "tasks")] == list(TASKS)
    assert {"attention", "embeddings", "answers"} <= {row["name"] for row in json_of(run, "lenses")}
    assert json_of(run, "runs") == []
    assert "threads" in {row["what"] for row in json_of(run, "doctor")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Usage: algoscope" in out


def test_completion_knows_runs_recipes_and_planted_models(small_run: Run) -> None:
    env = {**os.environ, "ALGOSCOPE_RUNS": str(small_run.path.parent), "_ALGOSCOPE_COMPLETE": "bash_complete"}
    for words, expected in (
        ("algoscope certify run:", "run:small"),
        ("algoscope train ", "add3_reference"),
        ("algoscope generate planted:ind", "planted:induction"),
    ):
        typed = {**env, "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        done = subprocess.run([Path(sys.executable).with_name("algoscope")], env=typed, capture_output=True, text=True)
        assert expected in done.stdout


# ---------------------------------------------------------------------- errors: one line, exit code 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "ad3"], ["ad3", "add3", "add3_reference"]),
        (["train", "add3", "--set", "stepz=5"], ["stepz", "steps"]),
        (["train", "add3", "--set", "steps"], ["steps", "="]),
        (["train", "add3", "--set", "steps=many"], ["many"]),
        (["train", "add3", "--seed", "-1"], ["-1"]),
        (["train", "add3", "--device", "abacus"], ["abacus"]),
        (["certify", "run:nowhere"], ["nowhere", "algoscope train"]),
        (["certify", "file:nowhere.safetensors"], ["nowhere.safetensors"]),
        (["certify", "run:SMALL", "--by", "weekday"], ["weekday", "chain, pattern"]),
        (["certify", "run:SMALL", "--sample", "0"], ["0"]),
        (["certify", "run:SMALL@17"], ["17", "16, 32"]),
        (["generate", "run:SMALL", "1+a"], ["'a'"]),
        (["generate", "run:SMALL", "12+3"], ["12", "1"]),
        (["lens", "atention", "run:SMALL"], ["atention", "attention"]),
        (["lens", "attention", "run:SMALL"], ["--input"]),
        (["lens", "attention", "run:SMALL", "--input", "1+2", "--out", "x.gif"], [".gif", ".png"]),
        (["report", "run:SMALL", "--quiet", "--out", "/proc/nowhere/x.html"], ["/proc/nowhere"]),
        (["params", "gpt3"], ["gpt3", "gpt2"]),
        (["runs", "show", "nowhere"], ["nowhere"]),
        (["runs", "rm", "nowhere"], ["nowhere"]),
        (["certifi", "run:SMALL"], ["certifi", "certify"]),
        (["certify"], ["SUBJECT"]),
        (["certify", "run:SMALL", "--bad"], ["--bad"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    run, small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGOSCOPE_RUNS", "runs")
    code, out, err = run(*(arg.replace("SMALL", str(small_run.path)) for arg in args))
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("algoscope: ")
    assert all(word in err for word in words), err
    assert not Path("runs").exists(), "nothing is left behind"


def test_a_truncated_checkpoint_is_one_line(run, tmp_path: Path) -> None:
    assert run("train", "add3", *SETTINGS, "--name", "cut", "--runs-dir", tmp_path, "--quiet")[0] == 0
    newest = sorted((tmp_path / "cut" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    code, _, err = run("certify", "run:cut", "--runs-dir", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert newest.name in err


def test_a_nan_loss_is_one_line(run, runs_dir: Path) -> None:
    code, _, err = run("train", "add3", *SETTINGS, "--set", "lr=1e30", "--set", "optim.muon_lr=1e30", "--quiet")
    assert (code, err.count("\n")) == (2, 1)
    assert "step" in err


# ---------------------------------------------------------------------- as a process


def start(*args: object, **env: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "algoscope", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **env})


def test_ctrl_c_leaves_a_run_that_resumes_to_the_same_weights(run, tmp_path: Path) -> None:
    settings = [*SETTINGS, "--set", "steps=300", "--set", "optim.decay_at=none"]
    process = start("train", "add3", *settings, "--name", "long", "--runs-dir", tmp_path)
    checkpoint = tmp_path / "long" / "checkpoints" / "step_00000016.safetensors"
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "--resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    _, err = (resumed := start("train", "add3", "--resume", "--name", "long", "--runs-dir", tmp_path)).communicate()
    assert resumed.returncode == 0, err
    assert run("train", "add3", *settings, "--name", "straight", "--runs-dir", tmp_path, "--quiet")[0] == 0
    hashes = {Run(tmp_path / name).summary.weights_sha256 for name in ("long", "straight")}
    assert len(hashes) == 1


def test_piped_output_has_no_colour_and_json_stands_alone(run, small_run: Run) -> None:
    out, err = start("certify", f"run:{small_run.path}").communicate()
    assert "\x1b" not in out + err
    assert json.loads(run("certify", f"run:{small_run.path}", "--json")[1])["task"] == "addition"


def test_a_reader_that_leaves_early_is_no_error(small_run: Run) -> None:
    process = start("certify", f"run:{small_run.path}", "--json")
    process.stdout.close()
    with process.stderr as errors:
        assert "Traceback" not in errors.read()
    process.wait()
