"""The vocabulary: panels, findings, files, sites, tables, threads."""

import csv
import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from algoscope.core.draw import facets, find_browser, rows_of_plots
from algoscope.core.errors import AlgoscopeError, ArgumentError, DrawingError, RunFolderError, UnknownNameError
from algoscope.core.files import write_atomically
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Mark, Panel
from algoscope.core.progress import Bar
from algoscope.core.registry import Entry, Table
from algoscope.core.sites import find_site, sites_of_kinds
from algoscope.core.threads import WORTH_SHARING, free_cores, in_order, right_sized, threads

floats = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))
arrays = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=4, max_side=4), elements=floats)


def panel_of(values: np.ndarray, **fields) -> Panel:
    axes = tuple(Axis(f"axis{i}", tuple(range(n))) for i, n in enumerate(values.shape))
    return Panel(**{"name": "p", "axes": axes, "values": values, "unit": "logits", "view": "heatmap"} | fields)


@given(arrays)
def test_findings_survive_json_and_list_every_cell_in_csv(values: np.ndarray) -> None:
    finding = Finding("kind", "claim", {"n": 1}, (panel_of(values, marks=(Mark(1.5, "here", "xy"),)),), {"seed": 0})
    again = Finding.from_json(finding.to_json())
    assert (again.kind, again.claim, again.facts, again.provenance) == ("kind", "claim", {"n": 1}, {"seed": 0})
    np.testing.assert_array_equal(again["p"].values, values)
    assert again["p"].marks == finding["p"].marks
    rows = list(csv.DictReader(io.StringIO(finding.to_csv())))
    assert len(rows) == np.isfinite(values).sum()
    for row in rows:
        index = tuple(int(row[f"axis{i}"]) for i in range(values.ndim))
        assert float(row["value"]) == values[index]


def test_facts_stand_at_the_top_of_the_json() -> None:
    assert json.loads(Finding("kind", "claim", {"wrong": 3}).to_json())["wrong"] == 3


def test_the_largest_cells_come_first() -> None:
    finding = Finding("kind", "claim", panels=(panel_of(np.array([[1.0, -5.0], [np.nan, 2.0]])),))
    assert finding.top(2) == [("p", (0, 1), -5.0), ("p", (1, 1), 2.0)]


def test_a_panel_whose_labels_do_not_fit_is_refused() -> None:
    with pytest.raises(ArgumentError, match="labels"):
        Panel("p", (Axis("x", (1, 2)),), np.zeros(3), "u", view="bars")


def test_a_head_with_a_name_of_its_own_gets_no_second_letter() -> None:
    axes = (Axis("head", ("L7H0", "L7H1")), Axis("query", (0, 1)), Axis("key", (0, 1)))
    panel = Panel("attention", axes, np.zeros((2, 2, 2)), "share of attention")
    assert [facet.heading for facet in facets(panel)] == ["attention: L7H0", "attention: L7H1"]


def test_leading_axes_become_facets_side_by_side() -> None:
    axes = (Axis("layer", (0, 1)), Axis("head", (0, 1, 2)), Axis("query", ("a", "b")), Axis("key", ("a", "b")))
    panel = Panel("attention", axes, np.arange(24.0).reshape(2, 3, 2, 2), "share", view="heatmap", beside="x")
    assert [facet.heading for facet in facets(panel)][:4] == [f"attention: L{n // 3} H{n % 3}" for n in range(4)]
    rows = rows_of_plots([panel, panel])
    assert [len(row) for row in rows] == [2] * 6
    np.testing.assert_array_equal(rows[4][1].values, panel.values[1, 1])


@pytest.mark.parametrize("suffix", ["html", "png", "svg", "json", "csv"])
def test_a_finding_is_written_in_every_form(suffix: str, tmp_path: Path) -> None:
    finding = Finding("kind", "claim", panels=(panel_of(np.array([[0.0, 1.0], [np.nan, 0.5]]), scale="unit"),))
    content = finding.save(tmp_path / f"x.{suffix}").read_bytes()
    start = {"html": b"<!doctype html>", "png": b"\x89PNG", "svg": b"<svg", "json": b"{", "csv": b"panel,unit"}[suffix]
    assert content.startswith(start)
    if suffix == "html":
        assert b'src="http' not in content


def test_images_without_a_browser_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "plotly.graph_objects.Figure.to_image", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("x"))
    )
    monkeypatch.setattr("algoscope.core.draw.find_browser", lambda: None)
    with pytest.raises(DrawingError, match=r"Chromium.*\.html"):
        Finding("kind", "claim", panels=(panel_of(np.zeros((2, 2))),)).save(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw_and_unknown_endings_are_named(tmp_path: Path) -> None:
    with pytest.raises(DrawingError, match="no panels"):
        Finding("kind", "claim").plot()
    with pytest.raises(DrawingError, match=r"\.gif.*\.png"):
        Finding("kind", "claim").save(tmp_path / "x.gif")


def test_this_machine_can_draw() -> None:
    assert find_browser()


# ---------------------------------------------------------------------- files


def test_a_file_is_old_or_new_and_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, "old")
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunFolderError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert [other.name for other in path.parent.iterdir()] == ["file"]


# ---------------------------------------------------------------------- sites and tables


def test_sites_answer_to_both_of_their_names() -> None:
    sites = sites_of_kinds({"pattern", "embed", "resid_post"}, 3)
    assert find_site("blocks.2.attn.hook_pattern", sites) == find_site(("pattern", -1), sites)
    assert find_site("hook_embed", sites).kind == "embed"
    for key in ("blocks.3.attn.hook_pattern", ("pattern", 3), ("patern", 0), "pattern"):
        with pytest.raises(UnknownNameError):
            find_site(key, sites)


def test_unknown_names_list_the_known_and_the_nearest() -> None:
    table = Table("fruit", {"apple": Entry("os:path", "red"), "pear": Entry("os:sep", "green")})
    with pytest.raises(UnknownNameError, match=r"unknown fruit 'aple': did you mean 'apple'[?] known: apple, pear"):
        table["aple"]
    assert issubclass(UnknownNameError, AlgoscopeError)
    assert table.load("pear") == "/"


# ---------------------------------------------------------------------- threads and progress


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    seen = []

    def fail() -> None:
        with threads(before + 1):
            seen.append(torch.get_num_threads())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
    assert free_cores() >= 1


@pytest.mark.parametrize(
    ("given", "operations", "taken"),
    [(3, WORTH_SHARING - 1, 1), (3, WORTH_SHARING, 3), (1, WORTH_SHARING - 1, 1), (1, 1e12, 1)],
)
def test_small_work_takes_one_thread_and_large_work_those_that_are_set(
    given: int, operations: float, taken: int
) -> None:
    with threads(given):
        with right_sized(operations):
            assert torch.get_num_threads() == taken
        assert torch.get_num_threads() == given


@pytest.mark.parametrize("n_workers", [1, 3])
def test_work_on_many_threads_comes_back_in_order_and_without_gradients(n_workers: int) -> None:
    weight = torch.ones(1, requires_grad=True)
    begun: list[int] = []

    def work(n: int) -> torch.Tensor:
        begun.append(n)
        time.sleep(0.002 * (n % 3))
        return weight * n

    results = in_order(work, iter(range(20)), n_workers)
    first = next(results)
    assert len(begun) <= 2 * n_workers + 1  # the rest waits until it is wanted
    rest = list(results)
    assert [int(x) for x in (first, *rest)] == list(range(20))
    assert not any(x.requires_grad for x in (first, *rest))


def test_a_failure_on_a_thread_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda n: 1 // (n - 5), range(10), 2))


def test_progress_says_rate_time_left_and_the_number_that_matters(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr("algoscope.core.progress.time.perf_counter", lambda: float(next(clock)))
    with Bar("train add3", "steps") as bar:
        bar.advance(0, 1000, "loss 2.1")
        bar.advance(500, 1000, "loss 0.5")
    _, err = capsys.readouterr()
    assert "500/1,000 steps, loss 0.5" in err
    assert "steps/s" in err
    assert "s left" in err
