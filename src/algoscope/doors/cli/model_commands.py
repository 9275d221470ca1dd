"""Commands about one model: demo, certify, report, generate, params."""

import click

from algoscope.core.finding import Finding
from algoscope.core.registry import Entry, Table
from algoscope.doors import public
from algoscope.doors.cli.common import (
    common,
    complete_subject,
    echo,
    names,
    show_json,
    show_result,
    show_table,
    task_option,
)
from algoscope.recipes.table import RECIPES

VERDICTS = Table(
    "function",
    {"keep": Entry("algoscope.verdicts.certification.kept:keep_verdict", "store a verdict, unless a stronger one is")},
)
SUBJECT = click.argument("subject", shell_complete=complete_subject)


@click.command()
@common
def demo(as_json: bool, quiet: bool, runs_dir: str | None) -> int:
    """Train the 3-digit adder, certify it on all 1,000,000 sums, analyse it, and write the report."""
    done = public.demo(runs_dir=runs_dir, progress=not quiet)
    facts, seconds = done["verdict"].facts, done["seconds"]
    if as_json:
        show_json(
            {
                "run": done["run"].name,
                "path": str(done["run"].path),
                "report": str(done["report"]),
                "seconds": seconds,
                "training": done["run"].summary.model_dump(mode="json"),
                "verdict": facts,
            }
        )
    else:
        show_verdict(done["verdict"])
        parts = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
        echo(f"{parts}\nreport: {done['report'].resolve()}")
    return 0 if facts["wrong"] == 0 else 1


@click.command()
@SUBJECT
@task_option
@click.option("--by", metavar="SCHEME", help="How inputs are sorted into classes (addition: chain, pattern).")
@click.option("--sample", type=int, metavar="N", help="Check N random inputs instead of all, with an interval.")
@click.option("--per-class", type=int, metavar="N", help="Check N random inputs of every class, with intervals.")
@click.option(
    "--limit-counterexamples",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="Number of counterexamples to show.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Cores to use.  [default: those free now]")
@common
def certify(
    subject: str,
    task: str | None,
    by: str | None,
    sample: int | None,
    per_class: int | None,
    limit_counterexamples: int,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> int:
    """Count every input that SUBJECT answers wrongly. Exit code 1 when there is one.

    Of more than 10^8 inputs, every class is sampled and weighted by its exact size.
    """
    model = public.open(subject, task=task, runs_dir=runs_dir)
    verdict = public.certify(
        model,
        by=by,
        sample=sample,
        per_class=per_class,
        limit_counterexamples=limit_counterexamples,
        n_threads=threads,
        progress=not quiet,
    )
    if sample is None and model.origin is not None and not VERDICTS.load("keep")(model, verdict) and not quiet:
        echo("not saved: the run folder holds a stronger verdict about these weights", err=True)
    if as_json:
        show_json(verdict)
    else:
        show_verdict(verdict)
    return 0 if verdict.facts["wrong"] == 0 else 1


def show_verdict(verdict: Finding) -> None:
    """A verdict for the terminal: the count and its scope, the margin, the classes, some counterexamples."""
    facts, domain = verdict.facts, verdict["domain"]
    size = "inputs that the task draws" if domain["size"] is None else f"{domain['size']:,} inputs"
    scope = {
        "exhaustive": "all inputs",
        "sampled": f"a sample of the {size}",
        "stratified": f"draws from every class of the {size}",
    }[domain["method"]]
    if facts["wrong"] and domain["method"] == "stratified":
        echo(verdict.claim)
    else:
        echo(f"{facts['wrong']:,} wrong of {domain['checked']:,} ({scope}), accuracy {facts['accuracy']:.6%}")
    if "note" in facts:
        echo(facts["note"])
    if facts["interval_95"]:
        low, high = facts["interval_95"]
        echo(f"95 % interval of the accuracy: {low:.6%} to {high:.6%}")
    if facts["wrong"] and domain["method"] != "stratified":
        echo(facts["where"]["words"])
    if facts["better_fit"]:
        echo(facts["better_fit"]["words"])
    for table in verdict.tables:
        show_result(table)
    weights = facts["weights_sha256"]
    echo(f"{facts['seconds']:.1f} s, {facts['dtype']}, {f'weights {weights[:12]}' if weights else 'weights not known'}")


@click.command()
@SUBJECT
@task_option
@click.option("--out", type=click.Path(), metavar="FILE.html", help="Default: report.html in the run folder.")
@click.option("--clean", metavar="TEXT", help="The prompt that figures show.  [default: an edge case of the task]")
@click.option("--corrupt", metavar="TEXT", help="The prompt that it is compared with.  [default: a near neighbour]")
@common
def report(
    subject: str,
    task: str | None,
    out: str | None,
    clean: str | None,
    corrupt: str | None,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> None:
    """Write one offline HTML page about SUBJECT: training, verdict, every lens that applies to it, parameters."""
    path = public.report(subject, out, task=task, clean=clean, corrupt=corrupt, runs_dir=runs_dir, progress=not quiet)
    if as_json:
        show_json({"report": str(path)})
    else:
        echo(f"report: {path}")


@click.command()
@SUBJECT
@click.argument("text")
@task_option
@click.option("--tokens", type=click.IntRange(min=1), metavar="N", help="New tokens of a model of free text.")
@click.option("--no-cache", is_flag=True, help="Recompute all positions for every new token.")
@common
def generate(
    subject: str,
    text: str,
    task: str | None,
    tokens: int | None,
    no_cache: bool,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> None:
    """Generate the answer to the prompt TEXT (such as 123+456), or a continuation, token by token."""
    model = public.open(subject, task=task, runs_dir=runs_dir)
    answer = model.generate(text, tokens, use_cache=not no_cache)
    if model.note and not quiet:
        echo(model.note, err=True)
    if not as_json:
        echo(answer)
    elif model.has_task:
        show_json({"prompt": model.task.prompt(text), "answer": answer, "expected": model.task.expected(text)})
    else:
        show_json({"prompt": text, "answer": answer})


@click.command()
@click.argument("what", metavar="SUBJECT|RECIPE|gpt2|llama3-8b", shell_complete=names(RECIPES))
@task_option
@common
def params(what: str, task: str | None, as_json: bool, quiet: bool, runs_dir: str | None) -> None:
    """Count parameters by component, from the config alone, and compare the model with GPT-2 small and Llama 3 8B."""
    counts = public.params(what, task=task, runs_dir=runs_dir)
    if as_json:
        show_json(counts)
        return
    rows = [
        (row["name"], row["parameters"], f"{row['parameters'] / counts['total']:.1%}") for row in counts["components"]
    ]
    total = ("total", counts["total"], "100.0%")
    show_table("", ["component", "parameters", "share"], [*rows, total], numeric=["parameters", "share"])
    echo()
    scale = [(row["name"], row["total"], f"{row['times']:,.4g}") for row in counts["scale"]]
    show_table("", ["scale", "parameters", "times this model"], scale, numeric=["parameters", "times this model"])
