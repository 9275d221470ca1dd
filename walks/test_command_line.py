"""A walk over the command line: generated commands in a world of runs, folders and paths with odd names.

Whatever is typed: an exit code of the list, no traceback, one line of error; with `--json` one document and nothing
else; what is said to be written is there and is what its ending says; what is said to be the next command works; the
run that another process trains, and every other run, stays.
"""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo
from algoscope.doors.cli.main import main
from outcomes import CONTROL, is_what_its_ending_says
from values import NAMES_OF_RUNS, ODD_FOLDERS

SET = [part for name, value in zoo.SHORT.items() for part in ("--set", f"{name}={value}")]
RUN_NAMES = [*NAMES_OF_RUNS, "CON", "live", "add"]
TEXTS = ["The city of Paris", "a", "", "東京 🙂", "[/b] [bold]x[/]", "a\x1b[31mb", "<script>", "1+2=", "x" * 300, "-1"]
ENCODINGS = ["utf-8", "cp1252", "ascii"]
ENTRY = ("-m", "algoscope")


@dataclass
class Said:
    """What a command printed, and how it ended."""

    args: list[str]
    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"algoscope {shlex.join(self.args)}\nexit {self.code}\n{self.out[-600:]}\n{self.err[-1500:]}"


class Question(io.TextIOBase):
    """A standard input that nobody may ask."""

    def read(self, *_: object) -> str:
        raise AssertionError("it waits for an answer on standard input")

    readline = read

    def isatty(self) -> bool:
        return False


def algoscope(args: Sequence[str], encoding: str = "utf-8", **environment: str) -> Said:
    """Run a command in this process, its outputs piped, as a terminal of this encoding takes them."""
    kinds = ("strict", "backslashreplace")  # as Python opens the two where they are piped
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors) for errors in kinds]
    before, (out, err), code = (sys.stdin, sys.stdout, sys.stderr), streams, 0
    had = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = Question(), out, err
    try:
        main(list(args))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
        for name, value in had.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    for stream in streams:
        stream.flush()
    return Said(list(args), code, *(stream.buffer.getvalue().decode(encoding, "replace") for stream in streams))


# ---------------------------------------------------------------------- what holds after every command


def check(said: Said, sandbox: Path) -> None:
    assert said.code in (0, 1, 2, 3), said
    verdicts = ("certify", "selfcheck", "study", "demo", "doctor")
    assert said.code != 1 or said.args[0] in verdicts, f"1 means that a verdict does not hold\n{said}"
    assert "Traceback" not in said.err, said
    for stream in (said.out, said.err):
        seen = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", stream)
        assert not seen or "\r" in seen[0], f"control characters reach the terminal: {said}"
    if said.code == 2:
        lines = [line for line in said.err.splitlines() if line.strip()]
        assert lines, said
        assert sum(line.startswith("algoscope: ") for line in lines) == 1, said
        assert lines[-1].startswith("algoscope: "), said
        assert len(lines[-1]) <= 1000, said
        assert not said.out, f"something on standard output beside an error\n{said}"
    elif "--json" in said.args:
        json.loads(said.out, parse_constant=lambda constant: pytest.fail(f"{constant} in JSON: {said}"))
    for written in re.findall(r"(?:written|report): (.+)$", said.out, re.MULTILINE):
        for path in written.split(", "):
            is_what_its_ending_says(Path(path).expanduser())
    stray = [path for path in sandbox.rglob("*") if path.name in ("~", "esc")]
    for path in stray:
        shutil.rmtree(path)
    assert not stray, f"{stray[0]} was made\n{said}"


# ---------------------------------------------------------------------- a world


@dataclass
class World:
    """A runs directory with a finished run, one that is being trained."""

    runs: Path
    trainer: subprocess.Popen[bytes]

    def whole(self) -> None:
        assert self.trainer.poll() is None, "the run in training has died"
        assert (self.runs / "live" / "config.json").exists(), "the run in training is gone"
        assert (self.runs / "add" / "config.json").exists(), "a finished run is gone"


@pytest.fixture(scope="module")
def world(somewhere: Path) -> Iterator[World]:
    runs = somewhere / "here" / "runs"
    shutil.copytree(zoo.runs(), runs)
    long = ["train", "add3", *SET, "--set", "steps=1000000", "--set", "train.checkpoint_every=500", "--name", "live"]
    command = [sys.executable, *ENTRY, *long, "--runs-dir", str(runs), "--quiet"]
    trainer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any((runs / "live").glob("*/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    trainer.send_signal(signal.SIGSTOP)  # it holds the run, and takes no processor
    yield World(runs, trainer)
    trainer.send_signal(signal.SIGCONT)
    trainer.kill()
    trainer.wait()


# ---------------------------------------------------------------------- the walk

SUBJECTS = [
    "planted:induction", "planted:carry-adder", "run:add", "run:copy", "run:live", "run:nowhere", "run:",
    "run:add@4", "run:add@x", "hf:nowhere", "hf:gpt2", "hf:ends", "hf:llama", "hf:neox", "file:x", "nonsense", "",
    "foreign:x?task=addition",
]  # fmt: skip
OUTS = ["o.json", "~/o.json", "no/such/o.json", "o.xyz", "o", "[o].csv", "o.html", ".", "o.csv"]
COUNTS = ["4", "1", "0", "-1", "x", "1e9"]
SETTINGS = ["lr=x", "nonsense=1", "seed", "steps=-1", "lr=nan", "=", "task=3", "lr=[/b]"]
subjects = st.sampled_from(SUBJECTS).map(lambda name: f"hf:{zoo.hf(name[3:])}" if name[3:] in zoo.FOLDERS else name)
text, run_name, out, count = (st.sampled_from(each) for each in (TEXTS, RUN_NAMES, OUTS, COUNTS))
out_option = out.map(lambda path: f"--out={path}")
setting = st.one_of(st.sampled_from(SETTINGS), text.map("lr={}".format))


def words(*parts: Any) -> st.SearchStrategy[list[str]]:
    """A command line of fixed words and drawn ones."""
    return st.tuples(*(st.just(part) if isinstance(part, str) else part for part in parts)).map(list)


COMMANDS = {
    "generate": words("generate", subjects, text, "--tokens", count),
    "logit": words("lens", "logit", subjects, "--input", text, out_option),
    "target": words("lens", "logit", subjects, "--input", "The city", "--target", text),
    "attention": words("lens", "attention", subjects, "--input", text, out_option),
    "roles": words("lens", "roles", subjects, "--n-inputs", count),
    "weights": words("lens", "weights", subjects, out_option),
    "embeddings": words("lens", "embeddings", subjects),
    "a lens": words("lens", text, subjects),
    "patch": words("patch", subjects, "--clean", text, "--corrupt", text),
    "patch a pair": words("patch", subjects, "--clean", zoo.PAIR[0], "--corrupt", zoo.PAIR[1]),
    "ablate": words("ablate", subjects, "--n-inputs", count),
    "certify": words("certify", subjects, "--sample", count),
    "params": words("params", st.one_of(subjects, text)),
    "runs": words("runs"),
    "runs show": words("runs", "show", st.one_of(run_name, text)),
    "runs rm": words("runs", "rm", st.one_of(run_name, text)),
    "train": words("train", "add3", *SET, "--name", run_name),
    "resume": words("train", "add3", *SET, "--name", run_name, "--resume"),
    "a recipe": words("train", text, "--name", run_name),
    "settings": words("train", "add3", *SET, "--set", setting, "--name", run_name),
    "seeds": words("train", "add3", *SET, "--seeds", st.sampled_from(["0..1", "1..0", "x", "0.."]), "--name", run_name),
    "export": words("export", subjects, "--to", st.sampled_from(["transformerlens", "huggingface", "x"]), "--out", out),
    "merge": words("merge", subjects, "--name", run_name),
    "import": words("import", out, "--task", st.sampled_from(["addition", "x", ""]), "--name", run_name),
    "recipes": words("recipes", text),
    "census": words("census", run_name, "copy", "--n-inputs", "8"),
    "report": words("report", subjects, st.sampled_from(["--out=x.pdf", "--out=no/such/x.html", "--out=."])),
    "study": words("study", text, "--seeds", st.sampled_from(["x", "1..0", ""])),
    "timeline": words("lens", "timeline", subjects),
    "doctor": words("doctor", "--runs-dir", st.sampled_from([*ODD_FOLDERS, "~/rr", "", "a\x1bb"])),
    "nonsense": words(text, text),
}


@pytest.mark.parametrize("family", COMMANDS)
@given(data=st.data())
def test_a_command(world: World, somewhere: Path, family: str, data: st.DataObject) -> None:
    command = data.draw(COMMANDS[family])
    if command == ["runs", "rm", "add"]:
        return
    if family != "nonsense":
        command += data.draw(st.sampled_from([["--quiet"], ["--quiet", "--json"]]))
    before = {path.name for path in world.runs.iterdir()}
    said = algoscope(command, data.draw(st.sampled_from(ENCODINGS)), ALGOSCOPE_RUNS=str(world.runs))
    new = {path.name for path in world.runs.iterdir() if not path.name.startswith(".")} - before
    try:
        check(said, somewhere)
        world.whole()
        listed = algoscope(["runs", "--json", "--quiet"], ALGOSCOPE_RUNS=str(world.runs))
        assert new <= {row["run"] for row in json.loads(listed.out)}, f"{new} was made, and is not listed\n{said}"
        follow(said, ALGOSCOPE_RUNS=str(world.runs))
    finally:
        for name in new:
            shutil.rmtree(world.runs / name)


def follow(said: Said, **environment: str) -> None:
    """What a command says to do next can be done."""
    found = re.search(r"next: algoscope (.+)$", said.out, re.MULTILINE)
    if found:
        after = algoscope([*shlex.split(found[1]), "--sample", "3"], **environment)
        assert after.code in (0, 1), f"what it says to do next does not work:\n{said}\n{after}"


@pytest.mark.parametrize("odd", ODD_FOLDERS)
def test_a_folder_with_an_odd_name(odd: str, somewhere: Path) -> None:
    """A path that exists is the path, wherever one may be given."""
    runs = somewhere / "odd" / odd
    shutil.copytree(zoo.runs() / "add", runs / "a")
    model = somewhere / "models" / odd
    shutil.copytree(zoo.hf("gpt2"), model)
    for command in (
        ["generate", f"run:{runs / 'a'}", "1+2="], ["runs", "--runs-dir", str(runs)], ["params", f"run:{runs / 'a'}"],
        ["runs", "show", "a", "--runs-dir", str(runs)], ["doctor", "--runs-dir", str(runs)],
        ["certify", "run:a", "--sample", "4", "--runs-dir", str(runs)], ["generate", f"hf:{model}", "a"],
        ["lens", "attention", f"run:{runs / 'a'}", "--input", "1+2=", "--out", str(runs / "x.json")],
    ):  # fmt: skip
        said = algoscope([*command, "--quiet"])
        check(said, somewhere)
        assert said.code in (0, 1), said


@pytest.mark.parametrize("odd", ["r@home", "~/rr", "plain", "sp ace", "[x]"])
@pytest.mark.parametrize("how", ["option", "variable"])
def test_what_comes_next_after_training_in_another_directory(odd: str, how: str, somewhere: Path) -> None:
    option, variable = (["--runs-dir", odd], {}) if how == "option" else ([], {"ALGOSCOPE_RUNS": odd})
    said = algoscope(["train", "add3", *SET, "--name", how, "--quiet", *option], **variable)
    check(said, somewhere)
    assert said.code == 0, said
    assert "next: algoscope" in said.out
    follow(said, **variable)


@pytest.mark.parametrize("name", RUN_NAMES)
def test_a_name_of_a_run(name: str, somewhere: Path) -> None:
    """A name that is taken is listed and can be opened; any other is refused, and leaves nothing."""
    parent = Path(tempfile.mkdtemp(dir=somewhere))
    runs = ["--runs-dir", str(parent / "runs")]
    said = algoscope(["train", "add3", *SET, "--name", name, "--quiet", *runs])
    check(said, somewhere)
    if said.code == 0:
        rows = json.loads(algoscope(["runs", "--json", *runs]).out)
        assert name in [row["run"] for row in rows], f"trained, and not listed\n{said}"
        opened = algoscope(["generate", f"run:{name}", "1+2=", *runs])
        assert opened.code == 0, opened
    found = {str(path.parent.relative_to(parent)) for path in parent.rglob("config.json")}
    assert found == ({f"runs/{name}"} if said.code == 0 else set()), said


@pytest.mark.parametrize(
    "command", [["runs", "rm"], ["train", "add3", *SET, "--name"], ["train", "add3", *SET, "--resume", "--name"]]
)
def test_a_run_in_training_is_said_to_be_one(world: World, somewhere: Path, command: list[str]) -> None:
    said = algoscope([*command, "live", "--quiet"], ALGOSCOPE_RUNS=str(world.runs))
    check(said, somewhere)
    world.whole()
    assert said.code == 2, said
    assert "train" in said.err.replace("train add3", ""), said
    assert "rm live" not in said.err, said
    rows = json.loads(algoscope(["runs", "--json"], ALGOSCOPE_RUNS=str(world.runs)).out)
    assert next(row["state"] for row in rows if row["run"] == "live").startswith("training"), rows


@pytest.mark.parametrize("damage", ["{not json", "", "{}", "\x00", None])
@pytest.mark.parametrize("file", ["config.json", "run.json", "metrics.jsonl"])
def test_a_damaged_run_beside_a_healthy_one(file: str, damage: str | None, somewhere: Path) -> None:
    runs = Path(tempfile.mkdtemp(dir=somewhere)) / "runs"
    for name in ("add", "damaged"):
        shutil.copytree(zoo.runs() / "add", runs / name)
    (runs / "damaged" / file).unlink() if damage is None else (runs / "damaged" / file).write_text(damage)
    for command in (["runs"], ["runs", "--json"], ["runs", "show", "damaged"], ["generate", "run:damaged", "1+2="]):
        said = algoscope([*command, "--runs-dir", str(runs), "--quiet"])
        check(said, somewhere)
        assert command[1:] not in ([], ["--json"]) or (said.code == 0 and "add" in said.out), said


@pytest.mark.parametrize(
    "request_", [["grok59"], ["copy8"], ["add3", *SET, "--seed", "4"], ["add3", *SET, "--set", "lr=0.5"]]
)
def test_resuming_another_request_is_refused(world: World, somewhere: Path, request_: list[str]) -> None:
    command = ["train", *request_, "--name", "add", "--resume", "--json", "--quiet"]
    said = algoscope(command, ALGOSCOPE_RUNS=str(world.runs))
    check(said, somewhere)
    assert said.code == 2, said


@pytest.mark.parametrize("damage", zoo.DAMAGES)
def test_a_damaged_folder(damage: str, somewhere: Path) -> None:
    """One line that names what is wrong, from every command that opens it, with and without `--json`."""
    model, word = f"hf:{zoo.damaged(damage)}", zoo.DAMAGES[damage][2]
    for command in (["generate", model, "The city"], ["lens", "logit", model, "--input", "The city", "--json"]):
        said = algoscope([*command, "--quiet"])
        check(said, somewhere)
        assert said.code == (2 if word else 0), said
        assert word in said.err, said


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", ["gpt2", "ends", "llama"])
def test_texts_of_every_script(kind: str, encoding: str, somewhere: Path) -> None:
    model = f"hf:{zoo.hf(kind)}"
    for given_ in TEXTS[:6]:
        for command in (["generate", model, given_], ["lens", "logit", model, "--input", given_]):
            for option in ([], ["--json"]):
                check(algoscope([*command, *option, "--quiet"], encoding), somewhere)


@pytest.mark.parametrize("kind", ["gpt2", "ends", "llama"])
def test_the_labels_of_tokens(kind: str) -> None:
    looked = ["lens", "logit", f"hf:{zoo.hf(kind)}", "--input", zoo.PAIR[0], "--target", " Paris", "--json", "--quiet"]
    said = algoscope(looked)
    assert said.code == 0, said
    document = json.loads(said.out)
    assert "Paris" in str(document["target"]), document["target"]
    shown = "".join(document["tokens"])
    assert "city of" in shown.replace("▁", " "), shown
    labels = [str(label) for panel in document["panels"] for axis in panel["axes"].values() for label in axis]
    assert all(label and not CONTROL.search(label) for label in labels), labels


@pytest.mark.parametrize("out", ["a.png", "a.svg", "a.html", "a.json", "a.csv", "a.pdf", "a.xyz"])
@pytest.mark.parametrize("size", ["small", "tall"])
def test_a_written_file_is_what_its_ending_says(size: str, out: str, somewhere: Path) -> None:
    model, given_ = {"small": ("planted:induction", "abcab"), "tall": (f"hf:{zoo.hf('tall')}", zoo.PAIR[0])}[size]
    path = somewhere / f"{size}-{out}"
    said = algoscope(["lens", "attention", model, "--input", given_, "--out", str(path), "--quiet"])
    check(said, somewhere)
    assert path.exists() == (said.code == 0), said
    if path.exists():
        is_what_its_ending_says(path)


def test_the_size_of_a_page_does_not_grow_with_the_square_of_the_text(somewhere: Path) -> None:
    path = somewhere / "long.html"
    words_ = " ".join([zoo.PAIR[0]] * 8)
    said = algoscope(["lens", "attention", f"hf:{zoo.hf('tall')}", "--input", words_, "--out", str(path), "--quiet"])
    check(said, somewhere)
    assert said.code == 2 or path.stat().st_size < 20e6, f"{path.stat().st_size / 1e6:.0f} MB"


@pytest.mark.parametrize("edge", ["> /dev/full", ">&-", "2>&-", ">&- 2>&-", "| head -c 1"])
@pytest.mark.parametrize("command", ["params gpt2", "generate planted:induction abcab", "lenses"])
def test_standard_output_that_takes_nothing(command: str, edge: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    shell = f"{shlex.quote(sys.executable)} {shlex.join(ENTRY)} {command} {edge}"
    ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment, timeout=120)
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "Exception ignored" not in ended.stderr, ended.stderr
    assert ended.returncode != 1, "1 means that a verdict does not hold"
    if edge == "> /dev/full":
        assert ended.returncode == 2, ended
        assert ended.stderr.count("\n") == 1, ended.stderr
