"""Drawing: what a figure holds, and how it looks in a real browser."""

import base64
import csv
import json
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from algoscope.core.draw import compose, facets, rows_of_plots
from algoscope.core.errors import AlgoscopeError, DrawingError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Mark, Panel


def grid(values: np.ndarray, **fields) -> Panel:
    """A heatmap [... layer position]."""
    names = ("input", "layer", "position")[-values.ndim :]
    axes = tuple(
        Axis(name, tuple(f"t_{i}" for i in range(n)) if name == "position" else tuple(range(n)))
        for name, n in zip(names, values.shape, strict=True)
    )
    return Panel(**{"name": "grid", "axes": axes, "values": values, "unit": "logits", "scale": "signed"} | fields)


def row(values: np.ndarray, names: tuple[str, ...], **fields) -> Panel:
    axes = (Axis("component", names, "component"),)
    return Panel(**{"name": "row", "axes": axes, "values": values, "unit": "share", "view": "bars"} | fields)


def drawn(*panels: Panel) -> dict:
    """The figure of a finding with these panels, as Plotly reads it."""
    return decoded(json.loads(compose(Finding("kind", "claim", panels=panels)).to_json()))


def decoded(value: object) -> object:
    """The figure with arrays, which Plotly stores in binary, as lists; NaN as None."""
    if isinstance(value, dict) and "bdata" in value:
        array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"]).astype(object)
        array[array != array] = None  # NaN
        return array.reshape([int(n) for n in value.get("shape", str(array.size)).split(",")]).tolist()
    if isinstance(value, dict):
        return {key: decoded(one) for key, one in value.items()}
    return [decoded(one) for one in value] if isinstance(value, list) else value


def texts(*lines: list[str]) -> np.ndarray:
    return np.array(lines, dtype=object)


# ---------------------------------------------------------------------- words


def test_words_stand_in_the_cells_and_everything_in_the_hover() -> None:
    words = texts(["<EOS>", " the"], ["\n", "abcdefghijk"])
    more = texts(["0.9  <EOS>\n0.1  b", "x"], ["y", "z"])
    trace = drawn(grid(np.array([[1.5, -2.0], [0.0, 4.0]]), words=words, hover=more))["data"][0]
    assert trace["text"] == [["&lt;EOS&gt;", "·the"], ["↵", "abcdefghijk"]]
    assert trace["texttemplate"] == "%{text}"
    assert trace["customdata"][0][0] == [1.5, "<br><i>&lt;EOS&gt;</i><br>0.9  &lt;EOS&gt;<br>0.1  b"]
    note = "layer %{y}<br>position %{x}<br><b>%{z:.8~g}</b> logits%{customdata[1]}<extra></extra>"
    assert trace["hovertemplate"] == note


def test_words_are_shortened_to_their_cells_and_left_out_where_nothing_of_them_would_be_read() -> None:
    def words_of(n: int) -> tuple[list[str] | None, str]:
        trace = drawn(grid(np.zeros((2, n)), words=np.full((2, n), "understanding", dtype=object)))["data"][0]
        return trace.get("text", [None])[0], trace["customdata"][0][0][1]

    assert words_of(8)[0][0] == "unders…"
    assert words_of(60)[0][0] == "unde…"
    assert words_of(300)[0] is None
    assert "understanding" in words_of(300)[1]
    letters = np.full((2, 300), "a", dtype=object)
    assert drawn(grid(np.zeros((2, 300)), words=letters))["data"][0]["text"][0][0] == "a"


def test_words_go_with_their_cells_into_facets_and_through_json() -> None:
    values = np.arange(12.0).reshape(2, 2, 3)
    words = np.array([f"w{int(v)}" for v in values.flat], dtype=object).reshape(values.shape)
    panel = grid(values, words=words, hover=words + "!", span=(-3.0, 20.0), marks=(Mark(0.5, "half", "y", "below"),))
    again = Finding.from_json(Finding("kind", "claim", panels=(panel,)).to_json())["grid"]
    for one in (panel, again):
        second = facets(one)[1]
        assert second.words.tolist() == [["w6", "w7", "w8"], ["w9", "w10", "w11"]]
        assert second.hover.tolist() == [["w6!", "w7!", "w8!"], ["w9!", "w10!", "w11!"]]
    assert (again.span, again.marks) == (panel.span, panel.marks)
    with pytest.raises(AlgoscopeError, match="words"):
        grid(values, words=words[0])


def test_findings_from_before_there_were_words_can_be_read() -> None:
    plain = Finding("kind", "claim", panels=(grid(np.eye(2), marks=(Mark(1.0, "here"),)),)).to_dict()
    del plain["panels"][0]["span"]
    plain["panels"][0]["marks"] = [[1.0, "here", "x"]]
    panel = Finding.from_json(json.dumps(plain))["grid"]
    assert (panel.words, panel.hover, panel.span, panel.marks) == (None, None, None, (Mark(1.0, "here"),))


# ---------------------------------------------------------------------- scales


def ranges(figure: dict) -> list[tuple[float, float]]:
    return [(trace["zmin"], trace["zmax"]) for trace in figure["data"]]


def test_signed_colours_have_one_range_for_all_facets_and_for_the_panels_that_share_it() -> None:
    small, large = np.full((2, 2, 2), 0.5), np.array([[[1.0, -7.0], [0.0, 2.0]]] * 2)
    other = grid(np.full((2, 2), 30.0), unit="nats")
    first, second = grid(np.stack([small[0], -3 * small[0]]), shares="x"), grid(large, name="other", shares="x")
    figure = drawn(first, second, other)
    assert ranges(figure) == [(-7, 7)] * 4 + [(-30, 30)]
    assert all(trace["colorscale"][1] == [0.5, "#ffffff"] for trace in figure["data"])
    assert [trace["colorscale"][0][1] for trace in figure["data"]] == ["#e66100"] * 5
    assert [facet.span for facet in facets(grid(large[:1]))] == [(-7, 2)]


def test_a_signed_scale_on_which_one_means_something_reaches_one() -> None:
    assert ranges(drawn(grid(np.full((2, 2), 0.01), one="as the clean run"))) == [(-1, 1)]
    assert ranges(drawn(grid(np.full((2, 2), 0.01)))) == [(-0.01, 0.01)]
    assert ranges(drawn(grid(np.zeros((2, 2))))) == [(-1, 1)]


def test_a_span_is_the_least_that_colours_cover() -> None:
    assert ranges(drawn(grid(np.array([[1.0, 2.0]]), scale="free", span=(0.0, 5.0)))) == [(0, 5)]
    assert ranges(drawn(grid(np.array([[1.0, 9.0]]), scale="free", span=(0.0, 5.0)))) == [(0, 9)]
    assert ranges(drawn(grid(np.array([[3.0, 3.0]]), scale="free"))) == [(3, 4)]


def test_a_logarithmic_heatmap_says_the_true_numbers() -> None:
    trace = drawn(grid(np.array([[0.0, 9.0, 99.0]]), scale="log", unit="tokens"))["data"][0]
    assert trace["z"] == [[0, 1, 2]]
    bar = trace["colorbar"]
    np.testing.assert_allclose(10 ** np.array(bar["tickvals"]) - 1, [0, 1, 10, 100], atol=1e-9)
    assert bar["ticktext"] == ["0", "1", "10", "100"]
    assert [cell[0] for cell in trace["customdata"][0]] == [0, 9, 99]
    assert "<b>%{customdata[0]:.8~g}</b> tokens" in trace["hovertemplate"]


def test_each_unit_has_one_colour_bar_beside_its_first_row() -> None:
    figure = drawn(
        grid(np.eye(2), beside="a"),
        grid(np.eye(2), name="second", beside="a"),
        grid(np.eye(2), name="third", unit="nats"),
        grid(np.eye(2), name="fourth"),
    )
    bars = [(i, trace["colorbar"]) for i, trace in enumerate(figure["data"]) if trace["showscale"]]
    assert [(i, bar["title"]["text"]) for i, bar in bars] == [(1, "<br>logits"), (2, "<br>nats")]
    layout = figure["layout"]
    for (_, bar), axis in zip(bars, ("2", "3"), strict=True):
        assert bar["x"] == layout[f"xaxis{axis}"]["domain"][1]
        assert bar["y"] == layout[f"yaxis{axis}"]["domain"][1]


def test_the_first_layer_is_on_top_and_axes_say_which_is_which() -> None:
    layout = drawn(grid(np.eye(3)))["layout"]
    assert layout["yaxis"]["autorange"] == "reversed"
    assert (layout["yaxis"]["title"]["text"], layout["xaxis"]["title"]["text"]) == ("layer", "position")
    assert layout["yaxis"]["ticktext"] == ["0", "1", "2"]
    assert layout["xaxis"]["ticktext"][1] == "t<sub>1</sub>"


def test_a_cell_that_does_not_exist_is_grey_and_says_so() -> None:
    masked, values = drawn(grid(np.array([[1.0, np.nan]])))["data"]
    assert (masked["z"], values["z"]) == ([[None, 0]], [[1, None]])
    assert "<b>none</b>" in masked["hovertemplate"]
    axes = (Axis("query", ("a",)), Axis("key", ("a", "b")))
    masked, _ = drawn(Panel("p", axes, np.array([[1.0, np.nan]]), "share", scale="unit"))["data"]
    assert "a later position" in masked["hovertemplate"]


# ---------------------------------------------------------------------- bars


@pytest.mark.parametrize(("strong", "expected"), [("above", [1, 1, 0, 0]), ("below", [0, 1, 1, 1])])
def test_bars_that_reach_the_threshold_stand_out(strong: str, expected: list[int]) -> None:
    values = np.array([0.9, 0.5, 0.1234567891, -0.3])
    mark = Mark(0.5, "50 %", "y", strong)
    figure = drawn(row(values, ("a", "b", "c", "d"), scale="signed", one="all", marks=(mark,)))
    trace, layout = figure["data"][0], figure["layout"]
    vivid, pale = ["#2166ac"] * 3 + ["#e66100"], ["#b9d2e8"] * 3 + ["#f8d0b0"]
    assert trace["marker"]["color"] == [(pale, vivid)[on][i] for i, on in enumerate(expected)]
    assert trace["customdata"][2] == "component c<br><b>0.12345679</b> share"
    lines = [shape for shape in layout["shapes"] if shape["y0"] == shape["y1"] == 0.5]
    assert [line["line"]["dash"] for line in lines] == ["dash"]
    assert "50 %" in [note["text"] for note in layout["annotations"]]
    low, high = layout["yaxis"]["range"]
    assert low < -0.3 < 0.9 < high


def test_signed_bars_share_their_ordinate_over_facets_and_show_the_threshold() -> None:
    axes = (Axis("input", ("x", "y")), Axis("component", ("a", "b")))
    values = np.array([[0.1, 0.2], [-0.4, 0.0]])
    panel = Panel("p", axes, values, "share", view="bars", scale="signed", marks=(Mark(0.5, "50 %", "y"),))
    layout = drawn(panel)["layout"]
    assert layout["yaxis"]["range"] == layout["yaxis2"]["range"]
    low, high = layout["yaxis"]["range"]
    assert low < -0.4
    assert high > 0.5
    assert {trace["marker"]["color"][0] for trace in drawn(panel)["data"]} == {"#b9d2e8", "#f8d0b0"}


def test_bars_at_numbers_stay_at_their_numbers() -> None:
    axes = (Axis("margin", (0.25, 0.75, 9.25)),)
    assert drawn(Panel("p", axes, np.ones(3), "inputs", view="bars"))["data"][0]["x"] == [0.25, 0.75, 9.25]
    equal = row(np.ones(2), ("same", "same"))
    assert drawn(equal)["data"][0]["x"] == [0, 1], "equal labels are two bars"


def test_lines_over_labels_that_are_no_numbers_keep_their_order_and_equal_labels_their_points() -> None:
    panel = Panel("p", (Axis("layer", ("embed", 0, 1)),), np.arange(3.0), "nats", view="lines")
    figure = drawn(panel)
    assert figure["data"][0]["x"] == [0, 1, 2]
    assert figure["layout"]["xaxis"]["ticktext"] == ["embed", "0", "1"]


def test_an_equal_unit_alone_shares_no_scale() -> None:
    small, large = grid(np.eye(2)), grid(-4_000 * np.eye(2), name="b")
    spans = [plots[0].span for plots in rows_of_plots([small, large])]
    assert spans == [(0, 1), (-4_000, 0)]
    figure = drawn(small, large)
    assert ranges(figure) == [(-1, 1), (-4_000, 4_000)]
    assert [trace["showscale"] for trace in figure["data"]] == [True, True]
    for choice in ("shares", "beside"):
        pair = (grid(np.eye(2), **{choice: "x"}), grid(-4_000 * np.eye(2), name="b", **{choice: "x"}))
        shared = drawn(*pair, grid(np.eye(2), name="c", unit="nats", **({"shares": "x"} if choice == "shares" else {})))
        assert ranges(shared) == [(-4_000, 4_000)] * 2 + [(-1, 1)]
    assert Finding.from_json(Finding("k", "c", panels=pair).to_json())["b"].shares == pair[1].shares


# ---------------------------------------------------------------------- text that is data

NASTY = (
    *("<b>x</b>", "</script><script>alert(1)</script>", "a&amp;b", "%{x} %{meta}", "$x^2$", "{{7*7}}", "a<br>b"),
    *("\x1b[31mred\0", "\udce9", "\x0bvt\x85", "\uffff", "東京🙂", "שלום \u202e", "same", "same", "2", "1", "q\"'q"),
    *("<extra>e</extra>", " lead", "long " * 8 + "END", "line\nbreak"),
)
SEEN = {
    "\x1b[31mred\0": r"\x1b[31mred\x00",
    "\udce9": r"\udce9",
    "\x0bvt\x85": r"\x0bvt\x85",
    "\uffff": r"\uffff",
    "שלום \u202e": r"שלום \u202e",
    " lead": "·lead",
    "line\nbreak": "line↵break",
}


def nasty() -> Finding:
    """Every text of a finding holds what a terminal, a page, Plotly or a spreadsheet would obey."""
    n = len(NASTY)
    values = np.arange(float(n * n)).reshape(n, n)
    axes = (Axis("query <b>", NASTY), Axis("key $k$", NASTY))
    words = np.array([[text] * n for text in NASTY], dtype=object)
    label, mark = (Axis("c <i>", NASTY),), Mark(2.5, "mark <b>", "xy")
    return Finding(
        "kind</title><script>alert(1)</script>",
        "claim <b>bold</b> $x$ %{x} \x1b[1m & </script>",
        {"texts": list(NASTY)},
        (
            Panel("heat $t$", axes, values, "unit %{z} <u>", marks=(mark,), caption="C <b>. $c$"),
            Panel("words", axes, values, "w", words=words, hover=words),
            Panel("bars", label, np.arange(float(n)), "share <b>", view="bars"),
            Panel("lines", label, np.arange(float(n)), "share $s$", view="lines"),
            Panel("dots", (*label, Axis("xy", ("<b>one</b>", "$2$"))), np.ones((n, 2)), "u", view="scatter"),
        ),
    )


def test_every_text_is_read_in_the_picture_as_it_is(tmp_path: Path) -> None:
    root = ET.fromstring(nasty().save(tmp_path / "a.svg").read_bytes())
    texts = {"".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")}
    for text in NASTY:
        text = SEEN.get(text, text)
        assert (text if len(text) <= 24 else text[:23] + "…") in texts
    for text in ("query <b>", "key $k$", "heat $t$", "unit %{z} <u>", "mark <b>", "C <b>. $c$", "<b>one</b>", "$2$"):
        assert text in texts
    assert r"claim <b>bold</b> $x$ %{x} \x1b[1m & </script>" in texts


def test_every_text_is_read_on_the_page_and_no_two_cells_are_one(chromium: Browser, tmp_path: Path) -> None:
    page = chromium.new_context(offline=True).new_page()
    dialogs: list[object] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    page.goto(nasty().save(tmp_path / "a.html").as_uri())
    page.wait_for_selector(".main-svg")
    box, n = page.locator(".heatmaplayer image").first.bounding_box(), len(NASTY)
    cells = {(0, 3): "query <b> <b>x</b>key $k$ %{x} %{meta}3 unit %{z} <u>"}
    cells[13, 14] = f"query <b> samekey $k$ same{13 * n + 14} unit %{{z}} <u>"
    cells[15, 16] = f"query <b> 2key $k$ 1{15 * n + 16} unit %{{z}} <u>"
    cells[20, 18] = f"query <b> {'long ' * 8}ENDkey $k$ <extra>e</extra>{20 * n + 18} unit %{{z}} <u>"
    for (row, column), note in cells.items():
        page.mouse.move(box["x"] + box["width"] * (column + 0.5) / n, box["y"] + box["height"] * (row + 0.5) / n)
        page.wait_for_timeout(300)
        assert page.locator(".hovertext").first.text_content().replace("\u200b", "") == note
    assert dialogs == []
    assert page.title() == "algoscope: kind</title><script>alert(1)</script>"
    page.context.close()


def test_every_text_reaches_json_and_csv_exactly(tmp_path: Path) -> None:
    again = Finding.from_json(nasty().save(tmp_path / "a.json").read_text())
    assert (again.claim, again["texts"], again["words"].axes) == (nasty().claim, list(NASTY), nasty()["words"].axes)
    with nasty().save(tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[2] for row in rows[1 : 1 + len(NASTY) ** 2 : len(NASTY)]] == [
        r"\udce9" if text == "\udce9" else text for text in NASTY
    ]


# ---------------------------------------------------------------------- sizes


def attention(n_layers: int, n_heads: int, n: int) -> Finding:
    """Attention of many heads on one text."""
    values = np.random.default_rng(0).random((n_layers, n_heads, n, n), dtype=np.float32).astype(float)
    values[..., np.triu(np.ones((n, n), dtype=bool), k=1)] = np.nan
    tokens = tuple(f"·token_{i}" for i in range(n))
    axes = (Axis("layer", tuple(range(n_layers))), Axis("head", tuple(range(n_heads))))
    axes = (*axes, Axis("query", tokens), Axis("key", tokens))
    return Finding("attention", "claim", panels=(Panel("text", axes, values, "share", scale="unit", beside="text"),))


def test_many_heads_stand_in_columns_and_few_below_each_other() -> None:
    (many,), (few,) = attention(12, 12, 4).panels, attention(2, 4, 4).panels
    assert [len(row) for row in rows_of_plots([many])] == [4] * 36
    assert [len(row) for row in rows_of_plots([few])] == [1] * 8
    pairs = rows_of_plots([many, replace(many, name="other")])
    titles = [plot.title for plot in pairs[0]]
    assert titles == ["text: L0 H0", "other: L0 H0", "text: L0 H1", "other: L0 H1"]


def test_a_png_of_a_tall_figure_is_a_png(tmp_path: Path) -> None:
    tall = Finding("kind", "claim", panels=tuple(grid(np.eye(20), name=f"panel {i}") for i in range(36)))
    head = tall.save(tmp_path / "tall.png").read_bytes()[:24]
    width, height = struct.unpack(">II", head[16:])
    assert head.startswith(b"\x89PNG")
    assert height <= 32_000
    assert 640 * 0.75 <= width < 640 * 2, "smaller than twice the size, but legible"


def test_what_no_png_and_no_page_holds_is_one_line_that_says_the_way_out(tmp_path: Path) -> None:
    tall = Finding("kind", "claim", panels=tuple(grid(np.eye(20), name=f"panel {i}") for i in range(90)))
    with pytest.raises(DrawingError, match=r"pixels, more than a PNG holds: ask for less, or write .html or .svg"):
        tall.save(tmp_path / "tall.png")
    for ending in ("html", "png", "svg"):
        with pytest.raises(DrawingError, match=r"^9,000,000 cells are more .*: choose heads \(--head L0H1"):
            attention(12, 12, 250).save(tmp_path / f"a.{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("error", "reason"), [(TimeoutError(), "it took too long"), (RuntimeError("a\nb"), "a↵b")])
def test_a_browser_that_fails_is_not_said_to_be_missing(error, reason, monkeypatch, tmp_path: Path) -> None:
    def fails(*args: object, **options: object) -> bytes:
        raise error

    monkeypatch.setattr("plotly.graph_objects.Figure.to_image", fails)
    monkeypatch.setattr("algoscope.core.draw.find_browser", lambda: "/usr/bin/chromium")
    with pytest.raises(DrawingError, match=rf"^the browser could not draw the PNG: {reason}; write .html instead$"):
        Finding("kind", "claim", panels=(grid(np.eye(2)),)).save(tmp_path / "a.png")


def test_a_page_of_attention_takes_some_bytes_for_each_cell_not_a_sentence(tmp_path: Path) -> None:
    small, large = (attention(2, 12, n).save(tmp_path / "a.html").stat().st_size for n in (10, 60))
    assert (large - small) / (24 * (60**2 - 10**2)) < 20


# ---------------------------------------------------------------------- in a browser


def boxes(chromium: Browser, finding: Finding, path: Path) -> tuple[dict, list[dict]]:
    """Where the drawing is, and where each of its texts is."""
    page = chromium.new_context(offline=True, viewport={"width": 3000, "height": 2000}).new_page()
    page.goto(finding.save(path).as_uri())
    page.wait_for_selector(".main-svg")
    frame, texts = page.evaluate(
        """() => {
            const place = e => { const r = e.getBoundingClientRect();
                return {left: r.left, right: r.right, top: r.top, bottom: r.bottom, text: e.textContent} };
            return [place(document.querySelector('.main-svg')), [...document.querySelectorAll('svg text')].map(place)];
        }"""
    )
    page.context.close()
    return frame, [text for text in texts if text["text"]]


def touching(texts: list[dict]) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than a pixel."""
    left, right, top, bottom = (np.array([text[side] for text in texts]) for side in ("left", "right", "top", "bottom"))
    across = np.minimum.outer(right, right) - np.maximum.outer(left, left)
    down = np.minimum.outer(bottom, bottom) - np.maximum.outer(top, top)
    pairs = np.argwhere(np.triu((across > 1) & (down > 1), k=1))
    return [(texts[i]["text"], texts[j]["text"]) for i, j in pairs]


def crowded() -> Finding:
    """Long names, many of them, words in cells, several units."""
    names = tuple(f"L{layer}{part}" for layer in range(12) for part in (*(f"H{h}" for h in range(12)), " MLP"))
    draw = np.random.default_rng(0)
    tokens = tuple(f"{'·capital' if i % 3 else 'Paris'}_{i}" for i in range(30))
    words = np.full((13, 30), "word", dtype=object)
    axes = (Axis("layer", ("embed", *range(12)), "layer read after"), Axis("position", tokens, "position"))
    return Finding(
        "kind",
        "a claim that is long enough to need a second line " * 8,
        panels=(
            row(draw.normal(size=len(names)), names, scale="signed", marks=(Mark(0.5, "50 %", "y"),)),
            Panel("a", axes, draw.random((13, 30)), "probability", scale="unit", words=words),
            Panel("b", axes, 400 * draw.normal(size=(13, 30)), "logits", scale="signed", words=words),
            Panel("c", axes, draw.random((13, 30)), "nats", scale="free"),
        ),
    )


def test_no_text_touches_another_and_none_leaves_the_drawing(chromium: Browser, tmp_path: Path) -> None:
    frame, texts = boxes(chromium, crowded(), tmp_path / "crowded.html")
    said = [text["text"] for text in texts]
    assert said.count("word") == 2 * 13 * 30
    assert "L11 MLP" in said, "the last of a long list"
    assert touching(texts) == []
    assert touching([*texts, texts[0]]), "this check can fail"
    for text in texts:
        assert frame["left"] <= text["left"] < text["right"] <= frame["right"], text
        assert frame["top"] <= text["top"] < text["bottom"] <= frame["bottom"], text


def test_each_title_stands_over_its_plot() -> None:
    layout = drawn(grid(np.zeros((5, 2, 2))), row(np.ones(2), ("a", "b")))["layout"]
    for number, note in enumerate(layout["annotations"][:4], start=1):
        low, high = layout[f"xaxis{number if number > 1 else ''}"]["domain"]
        assert note["x"] == pytest.approx((low + high) / 2)
        assert (note["xanchor"], note["text"]) == ("center", f"grid: {number - 1}")
    tops = [layout[f"yaxis{number}"]["domain"] for number in (2, 5, 9)]
    assert 1 == tops[0][1] > tops[0][0] > tops[1][1] > tops[1][0] > tops[2][1] > tops[2][0] >= 0


def test_what_is_said_on_pointing_is_dark_on_light(chromium: Browser, tmp_path: Path) -> None:
    path = Finding("kind", "claim", panels=(grid(np.eye(2), hover=texts(["x y", ""], ["", ""])),)).save(
        tmp_path / "a.html"
    )
    page = chromium.new_context(offline=True).new_page()
    page.goto(path.as_uri())
    box = page.locator(".heatmaplayer image").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.wait_for_selector(".hovertext")
    assert page.locator(".hovertext").text_content().replace("\u200b", "") == "layer 0position t_01 logitsx y"
    fill = page.evaluate("getComputedStyle(document.querySelector('.hovertext path')).fill")
    ink = page.evaluate("getComputedStyle(document.querySelector('.hovertext text')).fill")
    assert (fill, ink) == ("rgb(255, 255, 255)", "rgb(31, 41, 51)")
    page.context.close()
