"""What the package offers by name: `algoscope.NAME`, and what the commands call. Loaded on first use."""

from algoscope.core.registry import Entry, Table

PUBLIC = Table(
    "name",
    {
        "train": Entry("algoscope.training.train:train", "train a recipe or a config into a run folder"),
        "open": Entry("algoscope.subjects.native:open_subject", "the model that a string names"),
        "certify": Entry("algoscope.verdicts.certify:certify", "count the inputs that a model answers wrongly"),
        "report": Entry("algoscope.doors.report:report", "one offline HTML page about a model"),
        "demo": Entry("algoscope.doors.demo:run_demo", "the main job: train, certify, look, report"),
        "checkup": Entry("algoscope.doors.checkup:checkup", "what this machine and installation can do"),
        "curves": Entry("algoscope.training.curves:read_curves", "plateau and jump in a run's metrics"),
        "params": Entry("algoscope.doors.params:params", "parameters by component, beside published shapes"),
        "runs_directory": Entry("algoscope.training.runs:runs_directory", "where runs live"),
        "Run": Entry("algoscope.training.runs:Run", "a run folder"),
        "RunConfig": Entry("algoscope.config:RunConfig", "everything that a run depends on"),
        "ModelConfig": Entry("algoscope.config:ModelConfig", "the shape of a transformer"),
        "Transformer": Entry("algoscope.networks.transformer:Transformer", "the model"),
        "Subject": Entry("algoscope.subjects.base:Subject", "a model under study"),
        "Finding": Entry("algoscope.core.finding:Finding", "a result with labels and units"),
        "Panel": Entry("algoscope.core.panel:Panel", "a labelled array"),
        "Addition": Entry("algoscope.tasks.addition:Addition", "the addition task"),
        "AlgoscopeError": Entry("algoscope.core.errors:AlgoscopeError", "bad input, in one line"),
    },
)
