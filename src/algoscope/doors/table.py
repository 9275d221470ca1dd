"""What the package offers by name: `algoscope.NAME`, and what the commands call. Loaded on first use."""

from algoscope.core.registry import Entry, Table
from algoscope.lenses.over_training.followable import FOLLOWED
from algoscope.lenses.table import LENSES

PUBLIC = Table(
    "name",
    {
        "train": Entry("algoscope.training.train:train", "train a recipe or a config into a run folder"),
        "train_many": Entry("algoscope.training.population:train_many", "train many runs together"),
        "Population": Entry("algoscope.training.population:Population", "what became of many runs"),
        "open": Entry("algoscope.subjects.opening:open_subject", "the model that a string names"),
        "certify": Entry(
            "algoscope.verdicts.certification.certify:certify", "count the inputs that a model answers wrongly"
        ),
        "study": Entry("algoscope.verdicts.studies.studying:study", "a controlled comparison over seeds"),
        "census": Entry("algoscope.verdicts.census.census:census", "what many seeds of one recipe learned"),
        "import_weights": Entry("algoscope.subjects.foreign:import_weights", "a run folder of another tool's weights"),
        "export": Entry("algoscope.subjects.exporting:export", "a model as files of another tool"),
        "merge": Entry("algoscope.subjects.merging:merge", "a run of updates or factors as one of whole matrices"),
        "selfcheck": Entry(
            "algoscope.verdicts.lens_trials.selfcheck:selfcheck", "the lenses on models whose mechanism is known"
        ),
        "report": Entry("algoscope.doors.report.report:report", "one offline HTML page about a model"),
        "demo": Entry("algoscope.doors.demo:run_demo", "the main job: train, certify, look, report"),
        "checkup": Entry("algoscope.doors.checkup:checkup", "what this machine and installation can do"),
        "curves": Entry("algoscope.runs.learning_curves:read_curves", "plateau and jump in a run's metrics"),
        "params": Entry("algoscope.doors.params:params", "parameters by component, beside published shapes"),
        "runs_directory": Entry("algoscope.runs.paths:runs_directory", "where runs live"),
        "Run": Entry("algoscope.runs.run_folder:Run", "a run folder"),
        "override": Entry("algoscope.config:override", "a config with some fields changed"),
        "RunConfig": Entry("algoscope.config:RunConfig", "everything that a run depends on"),
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
        "Addition": Entry("algoscope.tasks.digits.addition:Addition", "the addition task"),
        "Subtraction": Entry("algoscope.tasks.digits.subtraction:Subtraction", "the subtraction task"),
        "Group": Entry("algoscope.tasks.groups.group:Group", "products in a finite group"),
        "Modular": Entry("algoscope.tasks.groups.modular:Modular", "arithmetic modulo a number"),
        "Copying": Entry("algoscope.tasks.strings.copying:Copying", "a pattern, repeated"),
        "Reversal": Entry("algoscope.tasks.strings.reversal:Reversal", "reversal of a word"),
        "AlgoscopeError": Entry("algoscope.core.errors:AlgoscopeError", "bad input, in one line"),
    },
)
for followed, entry in {**LENSES, "certify": PUBLIC["certify"]}.items():
    FOLLOWED.add(followed, entry)
