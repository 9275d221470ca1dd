"""The studies by name."""

from algoscope.core.registry import Entry, Table

STUDIES = Table(
    "study",
    {
        "low_rank": Entry(
            "algoscope.verdicts.studies.plans:low_rank",
            "how few directions a matrix an adder needs: add3 with matrices of rank 1 to 16",
        ),
        "grokking": Entry(
            "algoscope.verdicts.studies.plans:grokking",
            "what shortens the wait between memorising and generalising: nine variants of grok59",
        ),
        "design": Entry(
            "algoscope.verdicts.studies.plans:design",
            "which parts of the adder are needed, and which sums go wrong without them: twelve variants of add3",
        ),
        "training": Entry(
            "algoscope.verdicts.studies.plans:training",
            "what training the adder needs: weight decay, learning rate, 500 to 50,000 pairs; eight variants",
        ),
        "length": Entry(
            "algoscope.verdicts.studies.plans:length",
            "which positions carry addition from 20 digits to 100: three variants of add20",
        ),
    },
)
