"""Layer 5, the lenses: analyses of a model's activations and weights. `algoscope.lenses.NAME` is the lens of that name.

This module itself is a public namespace, as `algoscope` is: it is above the layers and imports each lens on first use.
"""

from typing import TYPE_CHECKING, Any

from algoscope.doors.public import PUBLIC_LENSES
from algoscope.lenses.table import LENSES as LENSES

if TYPE_CHECKING:  # for editors and type checkers; at run time a lens is imported on first use
    from algoscope.doors.timeline import timeline as timeline
    from algoscope.lenses.heads.attention_by_part import attention_by_part as attention_by_part
    from algoscope.lenses.heads.attention_maps import attention as attention
    from algoscope.lenses.heads.head_roles import roles as roles
    from algoscope.lenses.heads.source_attention import source_attention as source_attention
    from algoscope.lenses.induction_circuit.induction_heads import induction as induction
    from algoscope.lenses.induction_circuit.phase_change import induction_phase as induction_phase
    from algoscope.lenses.interventions.ablation import ablate as ablate
    from algoscope.lenses.interventions.activation_patching import patch as patch
    from algoscope.lenses.interventions.attribution_patching import attribution_patching as attribution_patching
    from algoscope.lenses.interventions.path_patching import path_patching as path_patching
    from algoscope.lenses.modular_arithmetic.clock_or_pizza import clock as clock
    from algoscope.lenses.modular_arithmetic.fourier_lens import fourier as fourier
    from algoscope.lenses.modular_arithmetic.progress_measures import progress_measures
    from algoscope.lenses.parameters.embedding_geometry import embeddings as embeddings
    from algoscope.lenses.parameters.weight_spectra import weights as weights
    from algoscope.lenses.reading.answers import answers as answers
    from algoscope.lenses.reading.logit_attribution import attribution as attribution
    from algoscope.lenses.reading.logit_lens import logit as logit

    progress = progress_measures
else:

    def __getattr__(name: str) -> Any:
        if name in LENSES:
            return PUBLIC_LENSES.load(name)
        raise AttributeError(f"module 'algoscope.lenses' has no lens {name!r}; it has {', '.join(LENSES)}")


def __dir__() -> list[str]:
    return [*LENSES, "LENSES"]
