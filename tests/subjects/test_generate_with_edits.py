"""Edits and records while a model generates: with the key-value cache as without, positions over the whole sequence."""

import pytest
import torch

import algoscope as ag
from algoscope.core.errors import EditError, VocabularyError
from algoscope.core.sites import KINDS
from random_models import FAMILIES, TASK, subject

N_PROMPT, N_NEW = 4, 3
USUAL = ("reference", "grouped", "not causal")
SOME = [name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES]
N_POS = N_PROMPT + N_NEW


def prompts(n: int = 2) -> torch.Tensor:
    return TASK.sample(n, torch.Generator().manual_seed(0))[:, :N_PROMPT]


def more(kind: str) -> dict[str, object]:
    """What else an edit at one position is limited to."""
    axes = KINDS[kind].axes
    return {"key": 2} if "key" in axes else {} if "1" in axes else {"unit": 0}


@pytest.mark.parametrize("family", SOME)
def test_edited_with_the_key_value_cache_as_without_at_every_site(family: str) -> None:
    model, draw = subject(family), torch.Generator().manual_seed(0)
    for site in {site.kind: site for site in model.sites}.values():
        noise = torch.rand(model.model.shape_of(site, 1, N_POS)[1:], dtype=torch.float64, generator=draw)
        edits = [
            ag.Add(site.name, value=noise[None], pos=(1, 4, -2)),
            ag.Add(site.name, value=noise),
            ag.Patch(site.name, value=0.5, pos=-2, **more(site.kind)),
        ]
        plain, slow = model.generate_tokens(prompts(), N_NEW, edits=edits, use_cache=False, record=[site.name])
        swift, fast = model.generate_tokens(prompts(), N_NEW, edits=edits, record=[site.name])
        assert torch.equal(plain, swift)
        whole = torch.cat([prompts(), plain], dim=1)
        logits, once = model.run(whole, edits=edits, record=[site.name])
        for cache in (slow, fast):
            torch.testing.assert_close(cache[site.name], once[site.name], rtol=1e-10, atol=1e-10)
        if model.cfg.causal and site.kind != "pattern":  # noise there attends to what comes later
            assert torch.equal(logits[:, N_PROMPT - 1 : -1].argmax(-1), plain), (
                "each token is that of a run on the whole"
            )


def test_an_edit_without_positions_steers_every_new_token_and_one_with_positions_only_those() -> None:
    model = ag.open("planted:induction")
    towards_e = ag.Add(("resid_post", -1), value=model.model.W_U[4], scale=100.0)
    assert model.generate("abcab", 4, edits=towards_e) == "eeee"
    only = [ag.Add(("resid_post", -1), value=model.model.W_U[4], scale=100.0, pos=pos) for pos in (4, 6)]
    assert model.generate("abcab", 1, edits=only[0]) == "e"
    assert model.generate("abcab", 3, edits=only[1]) == "cae"
    assert model.generate_many(["abcab", "xyx"], 2, edits=towards_e) == ["ee", "ee"]


def test_recording_returns_the_text_and_the_activations_of_prompt_and_new_tokens() -> None:
    model = ag.open("planted:induction")
    text, cache = model.generate("abcab", 4, record=[("resid_post", -1), "embed"])
    _, direct = model.run(model.to_tokens("abcab" + text), record=[("resid_post", -1), "embed"])
    assert text == model.generate("abcab", 4) == "cabc"
    assert all(torch.equal(cache[name], direct[name]) for name in direct)
    texts, both = model.generate_many(["abcab", "xyx"], 2, record="embed")
    assert texts == model.generate_many(["abcab", "xyx"], 2)
    assert both["embed"].shape[:2] == (2, 7)


def test_a_value_recorded_on_the_prompt_is_patched_into_the_prompt() -> None:
    model = ag.open("planted:induction")
    _, other = model.run(model.to_tokens("abdab"), record=[("resid_pre", 0)])
    patch = ag.Patch(("resid_pre", 0), value=other["resid_pre", 0], pos=2)
    assert model.generate("abcab", 4, edits=patch, use_cache=False)[:1] == "d"
    assert model.generate("abcab", 4, edits=patch) == model.generate("abcab", 4, edits=patch, use_cache=False)


def test_what_cannot_be_generated_is_said_in_one_line() -> None:
    model = ag.open("planted:induction")
    with pytest.raises(EditError, match="pos 9 is out of range, the site has 9"):
        model.generate("abcab", 4, edits=ag.Zero(("z", 0), pos=9))
    _, other = model.run(model.to_tokens("abdab"), record=[("resid_pre", 0)])
    with pytest.raises(EditError, match="does not fit"):
        model.generate("abcab", 4, edits=ag.Patch(("resid_pre", 0), value=other["resid_pre", 0]))
    with pytest.raises(VocabularyError, match="are read to record"):
        model.generate("abcab", model.cfg.n_ctx - 4, record="embed")
