"""What the package offers by name: `algoscope.NAME`.

Editors and type checkers read the imports; at run time each name is loaded on first use, from its row of the table.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from algoscope.core.registry import Entry, Table
from algoscope.lenses.table import LENSES

if TYPE_CHECKING:
    from algoscope.config import ModelConfig as ModelConfig
    from algoscope.config import RunConfig as RunConfig
    from algoscope.config import override as override
    from algoscope.core.errors import AlgoscopeError as AlgoscopeError
    from algoscope.core.finding import Finding as Finding
    from algoscope.core.panel import Panel as Panel
    from algoscope.doors.checkup import checkup as checkup
    from algoscope.doors.demo import run_demo
    from algoscope.doors.params import params as params
    from algoscope.doors.report.report import report as report
    from algoscope.lenses.heads.attention_targets import AttentionTarget as AttentionTarget
    from algoscope.networks.transformer import Transformer as Transformer
    from algoscope.runs.learning_curves import read_curves
    from algoscope.runs.paths import runs_directory as runs_directory
    from algoscope.runs.run_folder import Run as Run
    from algoscope.subjects.edits import Add as Add
    from algoscope.subjects.edits import Mean as Mean
    from algoscope.subjects.edits import Patch as Patch
    from algoscope.subjects.edits import Resample as Resample
    from algoscope.subjects.edits import Rotate as Rotate
    from algoscope.subjects.edits import Zero as Zero
    from algoscope.subjects.exporting import export as export
    from algoscope.subjects.foreign import import_weights as import_weights
    from algoscope.subjects.merging import merge as merge
    from algoscope.subjects.opening import open_subject
    from algoscope.subjects.subject import Subject as Subject
    from algoscope.tasks.base import Task as Task
    from algoscope.tasks.digits.addition import Addition as Addition
    from algoscope.tasks.digits.subtraction import Subtraction as Subtraction
    from algoscope.tasks.groups.group import Group as Group
    from algoscope.tasks.groups.modular import Modular as Modular
    from algoscope.tasks.strings.copying import Copying as Copying
    from algoscope.tasks.strings.reversal import Reversal as Reversal
    from algoscope.training.population import Population as Population
    from algoscope.training.population import train_many as train_many
    from algoscope.training.train import train as train
    from algoscope.verdicts.census.census import census as census
    from algoscope.verdicts.certification.certify import certify as certify
    from algoscope.verdicts.lens_trials.selfcheck import selfcheck as selfcheck
    from algoscope.verdicts.studies.study import study as study

    demo = run_demo
    curves = read_curves
    open = open_subject

PUBLIC = Table(
    "name",
    {
        "train": Entry("algoscope.training.train:train", "train a recipe or a config into a run folder"),
        "train_many": Entry("algoscope.training.population:train_many", "train many runs together"),
        "Population": Entry("algoscope.training.population:Population", "the results of many runs"),
        "open": Entry("algoscope.subjects.opening:open_subject", "a model, by its name or in memory"),
        "certify": Entry(
            "algoscope.verdicts.certification.certify:certify", "count the inputs that a model answers wrongly"
        ),
        "study": Entry("algoscope.verdicts.studies.study:study", "a controlled comparison over seeds"),
        "census": Entry("algoscope.verdicts.census.census:census", "a comparison of many seeds of one recipe"),
        "import_weights": Entry(
            "algoscope.subjects.foreign:import_weights", "a run folder from another tool's weights"
        ),
        "export": Entry("algoscope.subjects.exporting:export", "a model as files of another tool"),
        "merge": Entry(
            "algoscope.subjects.merging:merge", "a run with LoRA or low-rank factors as one with full matrices"
        ),
        "selfcheck": Entry(
            "algoscope.verdicts.lens_trials.selfcheck:selfcheck", "the lenses on models whose mechanism is known"
        ),
        "report": Entry("algoscope.doors.report.report:report", "one offline HTML page about a model"),
        "demo": Entry("algoscope.doors.demo:run_demo", "train, certify, analyse, report"),
        "checkup": Entry("algoscope.doors.checkup:checkup", "versions, devices, threads and missing programs"),
        "curves": Entry("algoscope.runs.learning_curves:read_curves", "plateau and jump in a run's metrics"),
        "params": Entry("algoscope.doors.params:params", "parameters by component, beside published shapes"),
        "runs_directory": Entry("algoscope.runs.paths:runs_directory", "the runs directory"),
        "Run": Entry("algoscope.runs.run_folder:Run", "a run folder"),
        "override": Entry("algoscope.config:override", "a config with some fields changed"),
        "RunConfig": Entry("algoscope.config:RunConfig", "the complete config of a run"),
        "ModelConfig": Entry("algoscope.config:ModelConfig", "the shape of a transformer"),
        "Transformer": Entry("algoscope.networks.transformer:Transformer", "the model"),
        "Subject": Entry("algoscope.subjects.subject:Subject", "a model under study"),
        "Zero": Entry("algoscope.subjects.edits:Zero", "edit: zeros"),
        "Mean": Entry("algoscope.subjects.edits:Mean", "edit: the mean over inputs"),
        "Resample": Entry("algoscope.subjects.edits:Resample", "edit: another input's activation"),
        "Patch": Entry("algoscope.subjects.edits:Patch", "edit: a value from another run"),
        "Add": Entry("algoscope.subjects.edits:Add", "edit: a direction added"),
        "Rotate": Entry("algoscope.subjects.edits:Rotate", "edit: a subspace from another run"),
        "Finding": Entry("algoscope.core.finding:Finding", "a result with labels and units"),
        "Panel": Entry("algoscope.core.panel:Panel", "a labelled array"),
        "AttentionTarget": Entry(
            "algoscope.lenses.heads.attention_targets:AttentionTarget", "keys that a head may attend to"
        ),
        "Task": Entry("algoscope.tasks.base:Task", "a task; one of your own is a subclass"),
        "Addition": Entry("algoscope.tasks.digits.addition:Addition", "the addition task"),
        "Subtraction": Entry("algoscope.tasks.digits.subtraction:Subtraction", "the subtraction task"),
        "Group": Entry("algoscope.tasks.groups.group:Group", "products in a finite group"),
        "Modular": Entry("algoscope.tasks.groups.modular:Modular", "arithmetic modulo a number"),
        "Copying": Entry("algoscope.tasks.strings.copying:Copying", "a pattern, repeated"),
        "Reversal": Entry("algoscope.tasks.strings.reversal:Reversal", "reversal of a word"),
        "AlgoscopeError": Entry("algoscope.core.errors:AlgoscopeError", "bad input, in one line"),
    },
)
PUBLIC_LENSES = Table(
    "lens",
    {**LENSES, "timeline": replace(LENSES["timeline"], target="algoscope.doors.timeline:timeline")},
    renamed=LENSES.renamed,
)
"""`algoscope.lenses.NAME`: the lenses, with verdicts added to the timeline."""


if not TYPE_CHECKING:  # so that a type checker reports unknown names

    def __getattr__(name: str) -> Any:
        if name in PUBLIC:
            return PUBLIC.load(name)
        raise AttributeError(f"module 'algoscope' has no attribute {name!r}")
