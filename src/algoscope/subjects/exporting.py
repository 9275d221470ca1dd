"""Export of models to the formats of other tools."""

import json
from collections.abc import Mapping
from pathlib import Path

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import SubjectError, UnknownNameError
from algoscope.core.files import user_path, write_atomically
from algoscope.core.registry import Entry, Table
from algoscope.formats.transformerlens import NAMINGS
from algoscope.networks.lora import whole
from algoscope.subjects.opening import AnyModel, open_subject
from algoscope.subjects.subject import Subject

FORMATS = Table(
    "export format",
    {
        "transformerlens": Entry(
            "algoscope.formats.transformerlens:model_to_files",
            "FILE.safetensors under the names of TransformerLens, and FILE.json with its config",
        ),
        "huggingface": Entry(
            "algoscope.formats.huggingface:model_to_files", "a folder that AutoModelForCausalLM.from_pretrained loads"
        ),
        "onnx": Entry("algoscope.formats.onnx:model_to_files", "FILE.onnx, a graph whose values are named after sites"),
    },
)
ENDINGS = {"transformerlens": ".safetensors", "huggingface": "", "onnx": ".onnx"}


@checked_arguments
def export(
    subject: AnyModel,
    to: str,
    out: str | Path,
    *,
    naming: str | None = None,
    runs_dir: Folder = None,
) -> tuple[Path, ...]:
    """Export a model to the format of another tool, with the same logits.

    The metadata has the subject's name, the hash of its weights, its task and its vocabulary. A folder for
    `huggingface` has its tokenizer too, which is the vocabulary of a task; other formats have none of free text.

    Args:
        subject: a model, by name or opened.
        to: `transformerlens`, `huggingface` or `onnx`.
        out: a file with the format's ending (`.safetensors`, `.onnx`), or a folder for `huggingface`.
        naming: for `transformerlens` alone: `legacy` (`blocks.0.attn.W_Q`, the default) or `current`
            (`blocks.0.attn.q.weight`).
        runs_dir: the folder of runs; by default `$ALGOSCOPE_RUNS` or `runs`.
    Returns:
        The files that were written.
    Raises:
        UnknownNameError: for an unknown format or naming.
        SubjectError: for a model that the format does not support (with the reason), for another file ending, and for a
            missing package.
        RunFolderError: for a file that cannot be written.

    Example:
        >>> import pathlib, tempfile, algoscope as ag
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> files = ag.export("planted:clock", "transformerlens", folder / "clock.safetensors")
        >>> [file.name for file in files]
        ['clock.safetensors', 'clock.json']
    """
    FORMATS[to]  # raises with the known names
    out = user_path(out)
    if naming is not None and to != "transformerlens":
        raise SubjectError(f"--naming is for --to transformerlens, not {to}")
    if (naming or "legacy") not in NAMINGS:
        raise UnknownNameError("naming", str(naming), NAMINGS)
    if ENDINGS[to] and out.suffix != ENDINGS[to]:
        raise SubjectError(f"--out {out}: {to} is written to a file that ends in {ENDINGS[to]}")
    try:
        write = FORMATS.load(to)
    except ModuleNotFoundError as error:
        raise SubjectError(f"--to {to} needs the package {error.name}: pip install 'algoscope[{to}]'") from error
    opened = open_subject(subject, runs_dir=runs_dir)
    options = {"naming": naming or "legacy"} if to == "transformerlens" else {}
    written: Mapping[Path, bytes | str] = write(whole(opened.model), out, _facts(opened), **options)
    if to == "huggingface":
        written = {**written, **{out / name: content for name, content in _text_files(opened).items()}}
    for path, content in written.items():
        write_atomically(path, content)
    return tuple(written)


def _text_files(subject: Subject) -> dict[str, bytes | str]:
    """The tokenizer of a folder of Hugging Face, where there is one, and the tokens that end a text."""
    ends = sorted(subject.text.end_tokens)
    settings: dict[str, bytes | str] = {"generation_config.json": json.dumps({"eos_token_id": ends})} if ends else {}
    return subject.text.files(subject.cfg.d_vocab) | settings


def _facts(subject: Subject) -> dict[str, str]:
    """Metadata of exported files; every value is text."""
    facts = {"subject": subject.name, "weights_sha256": subject.weights_sha256 or ""}
    if subject.has_task:
        facts["task"] = subject.task.model_dump_json()
        facts["vocabulary"] = json.dumps(subject.task.vocabulary)
    return facts
