"""Clean and corrupt inputs of different length: matched from the start while equal, the rest from the end."""

import numpy as np
import pytest
import torch

import algoscope as ag
from algoscope.core.errors import AlgoscopeError
from algoscope.lenses.interventions.contrast_pairs import _matched

MODEL = "planted:induction"


@pytest.mark.parametrize(
    ("clean", "corrupt", "expected"),
    [
        ("abxcd", "abcd", ([0, 1, 3, 4], [0, 1, 2, 3])),
        ("abxyzcd", "abwcd", ([0, 1, 4, 5, 6], [0, 1, 2, 3, 4])),
        ("xabc", "abc", ([1, 2, 3], [0, 1, 2])),
        ("abc", "abcde", ([0, 1, 2], [0, 1, 2])),
        ("a", "bcd", ([0], [2])),
    ],
)
def test_what_matches(clean: str, corrupt: str, expected: tuple[list[int], list[int]]) -> None:
    assert _matched(list(map(ord, clean)), list(map(ord, corrupt))) == expected


@pytest.mark.parametrize("lens", [ag.lenses.patch, ag.lenses.attribution_patching])
def test_the_extra_position_is_missing_and_the_others_are_those_of_a_patch_by_hand(lens) -> None:
    clean, corrupt, sites = "abcdxa", "cbada", ["resid_pre", "head_position", "head", "pattern"]
    found = lens(MODEL, clean, corrupt, sites=sites, direction="noise")
    missing = np.isnan(found["resid_pre"].values)
    assert missing[:, 0].all()
    assert not missing[:, 1:].any(), "a of abcdxa has no counterpart in cbada"
    assert found["per_example"]["resid_pre"][0][0][0] is None
    assert np.isnan(found["head_position"].values[:, :, 0]).all()
    assert not np.isnan(found["head"].values).any()
    assert "NaN" not in found.to_json()
    exact = ag.lenses.patch(MODEL, clean, corrupt, sites=["resid_pre"], direction="noise")
    model = ag.open(MODEL)
    _, cache = model.run(model.to_tokens(corrupt), record=[("resid_pre", 1)])
    top, bottom = exact["baselines"]["clean"], exact["baselines"]["corrupt"]
    target, rival = (model.to_single_token(exact[name][0]) for name in ("target", "rival"))
    for pos in range(1, 6):
        edit = ag.Patch(("resid_pre", 1), value=cache["resid_pre", 1][:, pos - 1], pos=pos)
        last = model.run(model.to_tokens(clean), edits=[edit])[0][0, -1]
        recovered = (float(last[target] - last[rival]) - bottom) / (top - bottom)
        assert exact["resid_pre"].values[1, pos] == pytest.approx(recovered, abs=1e-5)


def test_every_lens_that_patches_takes_them_and_says_how() -> None:
    about = "matched token by token: from the start as far as they are equal, the rest from the end"
    path = ag.lenses.path_patching(MODEL, "abcdxa", "cbada", receiver="L1H0.k")
    assert about in path.about
    assert np.isfinite([row["recovered"] for row in path["senders"]]).all()
    several = ag.lenses.patch(MODEL, ["abcdxa", "abcdya"], ["cbada", "cbaea"], metric=lambda logits: logits[:, -1, 1])
    assert about in several.about
    assert torch.isfinite(torch.tensor(several["head"].values)).all()


@pytest.mark.parametrize(
    "lens", [ag.lenses.patch, ag.lenses.attribution_patching, ag.lenses.path_patching], ids=lambda lens: lens.__name__
)
def test_an_alignment_of_ones_own(lens) -> None:
    same = lens(MODEL, "abcdxa", "cbada")
    by_hand = [(1, 0), (2, 1), (3, 2), (4, 3), (-1, -1)]
    assert lens(MODEL, "abcdxa", "cbada", align=by_hand).panels[0].values == pytest.approx(
        same.panels[0].values, nan_ok=True
    )
    last = lens(MODEL, "abcdxa", "cbada", align=[(5, 4)])
    assert "as `align` says" in last.about
    for pairs, words in (
        ([(6, 0)], "the clean inputs have 6 tokens, so no position 6"),
        ([(0, 1), (2, 1)], "position 1 of the corrupt inputs has two counterparts"),
        ([], "no positions"),
    ):
        with pytest.raises(AlgoscopeError, match=words):
            lens(MODEL, "abcdxa", "cbada", align=pairs)


def test_only_aligned_positions_are_patched() -> None:
    found = ag.lenses.patch(MODEL, "abcda", "cbada", sites=["resid_pre"], align=[(4, 4), (0, 0)])
    assert np.isnan(found["resid_pre"].values[:, 1:4]).all()
    whole = ag.lenses.patch(MODEL, "abcda", "cbada", sites=["resid_pre"])
    np.testing.assert_allclose(found["resid_pre"].values[:, [0, 4]], whole["resid_pre"].values[:, [0, 4]], atol=1e-6)
    crossed = ag.lenses.patch(MODEL, "abcda", "cbada", sites=["resid_pre"], align=[(1, 3)])
    assert crossed["resid_pre"].axes[1].labels[3] == "d_3"
    assert np.isfinite(crossed["resid_pre"].values[:, 3]).all()
