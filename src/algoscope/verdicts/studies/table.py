"""The studies by name."""

from algoscope.core.registry import Entry, Table

STUDIES = Table(
    "study",
    {
        "low_rank": Entry(
            "algoscope.verdicts.studies.plans:low_rank",
            "which rank an adder's matrices need: add3 with matrices of rank 1 to 16",
        ),
        "grokking": Entry(
            "algoscope.verdicts.studies.plans:grokking",
            "what shortens the delay between memorising and generalising: nine variants of grok59",
        ),
        "design": Entry(
            "algoscope.verdicts.studies.plans:design",
            "which components the adder needs, and which sums are wrong without them: twelve variants of add3",
        ),
        "training": Entry(
            "algoscope.verdicts.studies.plans:training",
            "what training the adder needs: weight decay, learning rate, 500 to 50,000 pairs; eight variants",
        ),
        "length": Entry(
            "algoscope.verdicts.studies.plans:length",
            "which position encodings extrapolate from 20 digits to 100: three variants of add20",
        ),
    },
)
