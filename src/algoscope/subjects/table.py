"""The forms of model names: the prefix before the colon, and the function that opens it."""

from algoscope.core.registry import Entry, Table

FORMS = Table(
    "form",
    {
        "run": Entry("algoscope.subjects.stored:open_run", "run:NAME, run:NAME@STEP, run:PATH"),
        "file": Entry("algoscope.subjects.stored:open_file", "file:PATH.safetensors"),
        "planted": Entry("algoscope.subjects.planted:open_planted", "planted:NAME"),
        "hf": Entry("algoscope.subjects.huggingface:open_hf", "hf:ID_OR_PATH"),
        "module": Entry("algoscope.subjects.in_memory:open_named", "module:FILE.py:NAME"),
        "foreign": Entry("algoscope.subjects.foreign:open_foreign", "foreign:PATH?task=T"),
    },
)
