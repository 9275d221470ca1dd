"""Edits: at every site they change the output or say why not; many at once equal one at a time."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from algoscope.core.errors import EditError, UnknownNameError
from algoscope.core.sites import KINDS, find_site
from algoscope.subjects import sweep
from algoscope.subjects.edits import Add, Mean, Patch, Resample, Rotate, Zero
from algoscope.subjects.subject import Subject
from random_models import FAMILIES, TASK, subject

READ = TASK.answer_slice


def tokens(n: int = 3, seed: int = 0) -> torch.Tensor:
    return TASK.sample(n, torch.Generator().manual_seed(seed))[:, :-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_at_every_site_changes_the_output(family: str) -> None:
    model, read = subject(family), tokens()
    draw = torch.Generator().manual_seed(0)
    plain, cache = model.run(read)[0], model.run_with_cache(read)[1]
    for site in model.sites:
        noise = torch.rand(cache[site.name].shape[1:], dtype=torch.float64, generator=draw)
        edit = Add(site.name, value=noise)
        changed, after = model.run(read, record=[site.name], edits=[edit])
        torch.testing.assert_close(model.run_each(read, [edit])[0], changed, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(after[site.name], cache[site.name] + noise, rtol=0, atol=1e-12)
        assert (changed - plain).abs().max() > 1e-6, site
    again, _ = model.run(read)
    assert torch.equal(again, plain), "the model is as it was"


def test_limits_choose_positions_heads_keys_and_units() -> None:
    model, read = subject(), tokens()
    _, cache = model.run_with_cache(read)

    def after(edit) -> torch.Tensor:
        return model.run(read, record=[edit.site], edits=[edit])[1][edit.site]

    same = partial(torch.testing.assert_close, rtol=0, atol=1e-12)
    expected = cache["z", 0].clone()
    expected[:, 2, 1] = 0
    same(after(Zero(("z", 0), pos=2, head=1)), expected)
    expected = cache["pattern", 1].clone()
    expected[:, 0, :, 3] = 0
    same(after(Zero(("pattern", 1), head=0, key=3)), expected)
    expected = cache["post", 1].clone()
    expected[:, [0, -1], 5] = 0
    same(after(Zero(("post", 1), pos=(0, -1), unit=5)), expected)
    scores = after(Zero(("attn_scores", 0)))
    assert torch.equal(scores.isneginf(), cache["attn_scores", 0].isneginf()), "the future stays hidden"
    assert scores[~scores.isneginf()].abs().max() == 0


def test_what_each_edit_puts_in() -> None:
    model, read = subject(), tokens(5)
    value = model.run(tokens(5, seed=1), record=[("resid_mid", 0)])[1]["resid_mid", 0]
    old = model.run(read, record=[("resid_mid", 0)])[1]["resid_mid", 0]
    site = ("resid_mid", 0)

    def after(*edits) -> torch.Tensor:
        return model.run(read, record=[site], edits=edits)[1][site]

    assert torch.equal(after(Patch(site, value=value)), value)
    assert torch.equal(after(Mean(site, value=value)), value.mean(0, keepdim=True).expand_as(old))
    resampled = after(Resample(site, value=value, seed=3))
    assert torch.equal(resampled.sort(0).values, value.sort(0).values)
    assert not torch.equal(resampled, value)
    direction = torch.arange(16.0, dtype=torch.float64)
    torch.testing.assert_close(after(Add(site, value=direction, scale=2.0)), old + 2 * direction)
    basis = torch.linalg.qr(torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    rotated = after(Rotate(site, value=value, basis=basis))
    torch.testing.assert_close(rotated @ basis, value @ basis)
    outside = torch.eye(16, dtype=torch.float64) - basis @ basis.T
    torch.testing.assert_close(rotated @ outside, old @ outside)
    torch.testing.assert_close(after(Zero(site), Add(site, value=direction)), direction.expand_as(old))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Zero(("resid_pre", 0), head=1), "head=1.*batch.*pos.*d_model"),
        (Zero(("z", 0), head=2), "head 2.*2"),
        (Zero(("z", 0), pos=(0, 10)), "pos 10.*9"),
        (Patch(("z", 0), value=torch.zeros(3, 8, 2, 8)), r"\(3, 8, 2, 8\).*\(3, 9, 2, 8\)"),
        (Patch(("z", 0), value=torch.zeros(2, 3, 9, 2, 8)), "does not fit"),
        (Add(("z", 0), value=torch.zeros(5, 9, 2, 8)), r"\(5, 9, 2, 8\) does not fit \(3, 9, 2, 8\)"),
        (Mean(("z", 0), value=torch.zeros(5, 8, 2, 8)), r"\(1, 8, 2, 8\) does not fit \(3, 9, 2, 8\)"),
        (
            Rotate(("resid_mid", 0), value=torch.zeros(16), basis=torch.eye(8)),
            "basis of 8 rows does not fit 16 units",
        ),
    ],
)
def test_an_edit_that_cannot_be_made_is_one_line(edit, words: str) -> None:
    for run in (lambda: subject().run(tokens(), edits=[edit]), lambda: subject().run_each(tokens(), [edit])):
        with pytest.raises(EditError, match=words) as raised:
            run()
        assert "\n" not in str(raised.value)


# ---------------------------------------------------------------------- values of what an edit covers

N = 9  # as many inputs as positions, so that one can be taken for the other


def numbered(site, n: int = N) -> torch.Tensor:
    """A value for a whole site, no two entries alike."""
    shape = subject().model.shape_of(find_site(site, subject().sites), n, N)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def limited(**limits) -> Zero:
    """An edit with limits of types that no annotation allows."""
    edit = Zero(("resid_pre", 1))
    for name, limit in limits.items():
        object.__setattr__(edit, name, limit)
    return edit


SLICED = [  # (site, limits, what the edit covers of a whole value)
    (("resid_pre", 1), {"pos": 3}, lambda v: v[:, 3]),
    (("resid_pre", 1), {"pos": -2}, lambda v: v[:, -2]),
    (("resid_pre", 1), {"pos": 3}, lambda v: v[:, 3:4]),
    (("resid_pre", 1), {"pos": (1, 3)}, lambda v: v[:, [1, 3]]),
    (("resid_pre", 1), {"pos": (3, 1)}, lambda v: v[:, [3, 1]]),
    (("resid_pre", 1), {"pos": [1, -1]}, lambda v: v[:, [1, -1]]),
    (("resid_pre", 1), {"pos": slice(2, 5)}, lambda v: v[:, 2:5]),
    (("resid_pre", 1), {"pos": np.int64(3)}, lambda v: v[:, 3]),
    (("resid_pre", 1), {"pos": torch.tensor([1, 3])}, lambda v: v[:, [1, 3]]),
    (("resid_pre", 1), {"pos": 3, "unit": 5}, lambda v: v[:, 3, 5]),
    (("resid_pre", 1), {"unit": (5, 2)}, lambda v: v[..., [5, 2]]),
    (("resid_pre", 1), {"pos": (4, 1), "unit": (5, 2)}, lambda v: v[:, [4, 1]][..., [5, 2]]),
    (("z", 0), {"head": 0}, lambda v: v[..., 0, :]),
    (("z", 0), {"head": 1, "pos": 3}, lambda v: v[:, 3, 1]),
    (("z", 0), {"head": 1, "pos": 3}, lambda v: v[:, 3]),
    (("z", 0), {"head": 1, "pos": (3, 1)}, lambda v: v[:, [3, 1], 1]),
    (("z", 0), {"head": 1, "pos": (3, 1)}, lambda v: v[:, [3, 1]]),
    (("pattern", 0), {"head": 1, "key": 2}, lambda v: v[:, 1, :, 2]),
    (("pattern", 0), {"pos": 4}, lambda v: v[:, :, 4]),
    (("post", 0), {"unit": 3}, lambda v: v[..., 3]),
    (("ln1_scale", 0), {"pos": 3}, lambda v: v[:, 3]),
]


@pytest.mark.parametrize(("site", "limits", "part"), SLICED)
@pytest.mark.parametrize("incremental", [True, False], ids=["swept", "whole"])
def test_a_slice_as_value_is_the_value_of_what_the_edit_covers(site, limits, part, incremental: bool) -> None:
    model, read, value = subject(), tokens(N), numbered(site)
    basis = torch.linalg.qr(numbered(site)[0].flatten(0, -2).mT)[0][:, :2]
    kinds = [Patch, Add, partial(Resample, seed=2), Mean]
    if not limits.keys() & {"unit", "key"} and value.shape[-1] > 2:
        kinds.append(partial(Rotate, basis=basis))
    whole = [kind(site, value=value, **limits) for kind in kinds]
    sliced = [kind(site, value=part(value), **limits) for kind in kinds]
    runs = [model.run_each(read, edits, incremental=incremental) for edits in (whole, sliced)]
    torch.testing.assert_close(*runs, rtol=0, atol=1e-10)
    assert all((one != model.run(read)[0]).any() for one in runs[0])


@pytest.mark.parametrize("edit", [Patch, Add])
def test_a_number_and_a_vector_are_repeated(edit) -> None:
    model, read, site = subject(), tokens(N), ("resid_pre", 1)
    value, whole = numbered(site)[0, 0], torch.full((N, N, 16), 0.5, dtype=torch.float64)
    for limits in ({}, {"pos": 3}, {"pos": (1, 3)}):
        pairs = [(value, value.expand(N, N, 16)), (0.5, whole), (np.full(16, 0.5), whole), ([0.5] * 16, whole)]
        for short, full in pairs:
            runs = [model.run(read, edits=[edit(site, value=given, **limits)])[0] for given in (short, full)]
            assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            Patch(("resid_pre", 1), value=torch.zeros(4, 16), pos=3),
            r"\(4, 16\) does not fit .*\(9, 16\) \[batch d_model\]",
        ),
        (Patch(("resid_pre", 1), value=torch.zeros(9, 9), pos=3), "does not fit"),
        (Patch(("resid_pre", 1), value=torch.zeros(9, 16), pos=(1, 3)), "does not fit"),
        (Patch(("resid_pre", 1), value=torch.zeros(9, 3, 16), pos=(1, 3)), r"\(9, 2, 16\) \[batch pos d_model\]"),
        (Patch(("z", 0), value=torch.zeros(9, 8), head=1), "does not fit"),
        (Patch(("resid_pre", 1), value=numbered(("resid_pre", 1)), pos=(*range(1, 9), 0)), "two ways"),
        (Zero(("resid_pre", 1), pos=(1, 1)), "names an index twice"),
        (Zero(("resid_pre", 1), pos=()), "cover nothing"),
        (Zero(("resid_pre", 1), pos=slice(5, 2)), "cover nothing"),
        (limited(pos=1.5), "whole number"),
        (limited(pos="3"), "whole number"),
        (limited(pos=True), "whole number"),
        (limited(pos=(1, 2.0)), "whole number"),
        (limited(pos={"a": 1}), "whole number"),
        (Mean(("resid_pre", 1), value=torch.zeros(16)), "axis for inputs"),
        (Resample(("resid_pre", 1), value=3.0), "axis for inputs"),
        (Rotate(("resid_mid", 0), value=torch.zeros(16), basis=torch.ones(16)), "not orthonormal"),
    ],
)
def test_a_value_or_limit_that_fits_in_no_way_is_one_line(edit, words: str) -> None:
    for run in (lambda: subject().run(tokens(N), edits=[edit]), lambda: subject().run_each(tokens(N), [edit])):
        with pytest.raises(EditError, match=words) as raised:
            run()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", ["a", None, 1 + 2j, torch.ones(16, device="meta"), {"a": 1}])
def test_what_is_no_array_of_numbers_is_no_value(value) -> None:
    with pytest.raises(EditError, match="value"):
        Patch(("resid_pre", 1), value=0)._tensor("value", value)


def test_a_rotation_of_some_units_is_that_of_all_there() -> None:
    model, read, value = subject(), tokens(3), numbered(("resid_mid", 0), 3)
    basis = torch.linalg.qr(torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    runs = [
        model.run(read, record=[("resid_mid", 0)], edits=[Rotate(("resid_mid", 0), value=value, basis=basis, **limits)])
        for limits in ({}, {"unit": (3, 7)})
    ]
    every, some = (cache["resid_mid", 0] for _, cache in runs)
    line = Rotate(("resid_mid", 0), value=value, basis=basis[:, 0])
    assert torch.equal(
        model.run(read, edits=[line])[0],
        model.run(read, edits=[Rotate(("resid_mid", 0), value=value, basis=basis[:, :1])])[0],
    )
    assert torch.equal(every[..., [3, 7]], some[..., [3, 7]])
    assert (every[..., 0] != some[..., 0]).all()


def test_no_edits_are_an_error() -> None:
    for each in (subject().run_each, partial(subject().run_each, incremental=False)):
        with pytest.raises(EditError, match=r"no edits.*at least one") as raised:
            each(tokens(), [])
        assert "\n" not in str(raised.value)


def test_an_edit_at_no_site_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="resid_pre"):
        subject().run(tokens(), edits=[Zero(("resid_pree", 0))])


# ---------------------------------------------------------------------- many at once


def some_edits(model: Subject, n_inputs: int, seed: int) -> list:
    """One edit of every kind of site in every layer, at places drawn from the seed, and some that cover it whole."""
    draw = torch.Generator().manual_seed(seed)
    donor = model.run_with_cache(tokens(n_inputs, seed + 1))[1]
    edits = []
    for site in model.sites:
        limits = {}
        axes = dict(zip(KINDS[site.kind].axes, donor[site.name].shape, strict=True))
        for limit, names in Zero.LIMITS.items():
            size = next((axes[name] for name in names if name in axes), None)
            if size and torch.rand(1, generator=draw) < 0.6:
                limits[limit] = int(torch.randint(-size, size, (1,), generator=draw))
        edits.append(Patch(site.name, value=donor[site.name], **limits))
        if "scale" not in site.kind:  # a norm is divided by it
            edits.append(Zero(site.name, **limits))
    return edits


@pytest.mark.long
@settings(max_examples=3)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    seed=st.integers(0, 1000),
    n_inputs=st.integers(1, 4),
    at=st.builds(slice, st.integers(-9, 9), st.none() | st.integers(0, 9), st.none() | st.integers(1, 3)),
    n_layers=st.integers(1, 3),
    d_head=st.sampled_from([4, 6, 10]),
)
@example(family="reference", seed=0, n_inputs=2, at=slice(1, None, 2), n_layers=2, d_head=4)
@example(family="parallel", seed=0, n_inputs=2, at=slice(2, 5), n_layers=2, d_head=4)
@example(family="not causal", seed=0, n_inputs=1, at=slice(0, 0), n_layers=1, d_head=4)
@example(family="grouped", seed=0, n_inputs=1, at=slice(0, 0), n_layers=1, d_head=4)
def test_many_edits_together_equal_one_full_run_each(
    family: str, seed: int, n_inputs: int, at: slice, n_layers: int, d_head: int
) -> None:
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model, read = subject(family, seed, dtype, n_layers=n_layers, d_head=d_head), tokens(n_inputs, seed)
        edits = some_edits(model, n_inputs, seed)
        plain = model.run_each(read, edits, at=at, incremental=False)
        fast = model.run_each(read, edits, at=at)
        scale = max(1.0, float(plain.abs().max())) if plain.numel() else 1.0
        torch.testing.assert_close(fast, plain, rtol=0, atol=bound * scale)


def test_a_mean_over_more_inputs_than_the_run_has() -> None:
    model, read, reference = subject(), tokens(2), tokens(7, seed=1)
    sites = [("z", 0), ("resid_mid", 1), ("pattern", 1), "hook_embed"]
    donor = model.run(reference, record=sites)[1]
    edits = [Mean(site, value=donor[site], pos=pos) for site in sites for pos in (None, 3)]
    plain = model.run_each(read, edits, incremental=False)
    torch.testing.assert_close(model.run_each(read, edits), plain, rtol=0, atol=1e-10)
    means = [Patch(edit.site, value=edit.value.mean(dim=0, keepdim=True), pos=edit.pos) for edit in edits]
    assert torch.equal(model.run_each(read, means, incremental=False), plain)


def watch_climbs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(start, how many edits) of every stack from now on."""
    seen, climb = [], sweep._Base.climb

    def watched(base, stack, start: int) -> torch.Tensor:
        seen.append((start, len(stack)))
        return climb(base, stack, start)

    monkeypatch.setattr(sweep._Base, "climb", watched)
    return seen


@pytest.mark.parametrize(
    ("family", "shared"), [*((family, 4) for family in FAMILIES), ("reference", 0), ("reference", 9)]
)
def test_patches_between_inputs_that_begin_alike_start_where_these_differ(
    family: str, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read = subject(family), tokens(2)
    other = torch.cat([read[:, :shared], (read[:, shared:] + 1) % 14], dim=1)
    donor = model.run_with_cache(other)[1]
    edits = [Patch(site.name, value=donor[site.name]) for site in model.sites]
    edits += [Patch(("resid_pre", 1), value=donor["resid_pre", 1], pos=pos) for pos in range(-9, 9)]
    edits += [Patch(("v", 0), value=donor["v", 0], head=1, pos=(7, 2)), Patch(("z", 1), value=donor["z", 1][:1])]
    kin = [edit(("z", 0), value=donor["z", 0]) for edit in (Add, Mean, Resample)]
    plain = model.run_each(read, edits + kin, incremental=False)
    starts = watch_climbs(monkeypatch)
    torch.testing.assert_close(model.run_each(read, edits + kin), plain, rtol=0, atol=1e-10)
    starts.clear()
    model.run_each(read, [edit for edit in edits if edit.value.shape[0] == 2])
    computed = {start for start, _ in starts} - {9}  # what changes nothing starts at the end
    assert computed == ({shared} - {9} if model.cfg.causal else {0})


def test_edits_behind_the_last_position_read_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = subject(), tokens(2)
    edits = [Zero(("resid_pre", 1), pos=pos) for pos in range(9)]
    plain = model.run_each(read, edits, at=slice(2, 6), incremental=False)
    starts = watch_climbs(monkeypatch)
    torch.testing.assert_close(model.run_each(read, edits, at=slice(2, 6)), plain, rtol=0, atol=1e-10)
    assert sorted(starts) == [(0, 6), (6, 3)], "six join the first, three start at the end"


def test_where_memory_runs_out_the_stacks_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = subject(dtype=torch.float32), tokens(2)
    edits = [Zero(("z", layer), pos=pos) for layer in (0, 1) for pos in range(9)]
    expected, sizes = model.run_each(read, edits), []
    climb = sweep._Base.climb

    def climb_while_there_is_room(base, stack, start: int) -> torch.Tensor:
        sizes.append(len(stack))
        if len(stack) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return climb(base, stack, start)

    monkeypatch.setattr(sweep._Base, "climb", climb_while_there_is_room)
    torch.testing.assert_close(model.run_each(read, edits), expected)
    assert max(sizes) > 3
    monkeypatch.setattr(sweep._Base, "climb", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        model.run_each(read, edits)


def test_logits_of_some_tokens_and_what_is_made_of_them() -> None:
    model, read = subject("alibi"), tokens(2)
    edits = [Zero(("z", layer), head=head) for layer in range(3) for head in (0, 1)]
    among = torch.tensor([3, 7])
    whole = model.run_each(read, edits, at=READ)
    for each in (model.run_each, partial(model.run_each, incremental=False)):
        torch.testing.assert_close(each(read, edits, at=READ, among=among), whole[..., among])
        made = each(read, edits, at=READ, reduce=lambda logits: logits.amax(dim=-1))
        torch.testing.assert_close(made, whole.amax(dim=-1))
