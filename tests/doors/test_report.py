"""The report in a real browser, at the width of a desk and of a telephone, with the network blocked."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

import algoscope as ag
from algoscope.config import ModelConfig
from algoscope.core.errors import SubjectError
from algoscope.networks.build import build
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from hf_models import save

SECTIONS = ["trained", "curves", "verdict", "answers", "attention", "logit", "attribution", "patch", "roles", "ablate"]
SECTIONS += ["embeddings", "weights", "timeline", "parameters"]
KEPT = {
    "certify",
    "answers",
    "attention",
    "logit",
    "attribution",
    "patch",
    "roles",
    "ablate",
    "embeddings",
    "weights",
    "timeline",
}


def opened(chromium: Browser, path: Path, width: int, said: list[str], asked: list[str]) -> Page:
    """The page, with everything it writes to the console and everything it asks the network for."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    page.set_default_timeout(120_000)  # milliseconds: a machine may be busy with other tests
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelectorAll('.plot .main-svg').length > 0")
    return page


@pytest.fixture(scope="module")
def page_of(chromium: Browser, demo: dict) -> Iterator[Callable[[int], tuple[Page, list[str], list[str]]]]:
    """The demo's page at a width, opened once, with what it wrote to the console and asked for."""
    seen: dict[int, tuple[Page, list[str], list[str]]] = {}

    def at(width: int) -> tuple[Page, list[str], list[str]]:
        if width not in seen:
            said: list[str] = []
            asked: list[str] = []
            seen[width] = opened(chromium, demo["report"], width, said, asked), said, asked
        return seen[width]

    yield at
    for page, _, _ in seen.values():
        page.context.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_every_figure_draws_offline_with_a_clean_console(page_of, width: int) -> None:
    page, said, asked = page_of(width)
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.eval_on_selector_all("section", "sections => sections.map(section => section.id)") == SECTIONS
    assert page.locator(".plot").count() > 40
    drawn = page.evaluate(
        """[...document.querySelectorAll('.plot')].map(plot => ({
            title: plot.querySelector('.gtitle')?.textContent,
            width: plot.querySelector('.main-svg').getBoundingClientRect().width,
            room: plot.getBoundingClientRect().width,
            marks: plot.querySelectorAll(
                '.hm image, .scatterlayer .point, .scatterlayer .js-line, .barlayer .point').length,
        }))"""
    )
    for plot in drawn:
        assert plot["title"]
        assert plot["marks"] > 0, plot
        assert plot["width"] <= plot["room"] + 1, plot
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_what_it_says_is_what_was_found(page_of, demo: dict) -> None:
    text = page_of(1280)[0].inner_text("main")
    facts = demo["verdict"].facts
    assert "0 wrong" in text
    assert "Every one of the 1,000,000 inputs" in text
    assert facts["robust"]
    assert "rounding can change no answer" in text
    assert facts["weights_sha256"] in text
    assert "17,760" in text
    assert "at most 2,000 steps of 256" in text
    assert "as soon as a batch is right to 99 %, that decay begins, takes 400 steps and ends the run" in text
    assert all(finding.claim[1:] in text for finding in demo["run"].findings() if finding.kind != "certify")
    for row in facts["by_class"]:
        assert f"{row['checked']:,}" in text
    curves = ag.curves(demo["run"].metrics())
    assert f"step {curves.facts['jump']['step']:,}" in text


def test_masked_cells_look_masked_and_the_scale_is_fixed(page_of) -> None:
    heads = page_of(1280)[0].evaluate(
        """const cells = z => Array.from(z, row => Array.from(row)).flat().filter(one => !Number.isNaN(one)).length;
        [...document.querySelectorAll('#attention .plot')].filter(p => p.data[0].type == 'heatmap').map(p => ({
            masked: cells(p._fullData[0].z),
            shown: cells(p._fullData[1].z),
            range: [p.data[1].zmin, p.data[1].zmax],
            lines: p.layout.shapes.length,
        }))"""
    )
    assert len(heads) == 4
    assert heads == [{"masked": 66, "shown": 78, "range": [0, 1], "lines": 2}] * 4


@pytest.mark.long
def test_a_model_that_errs_shows_its_counterexamples(chromium: Browser, own_run: Run, tmp_path: Path) -> None:
    path = ag.report(own_run, tmp_path / "small.html")
    page = opened(chromium, path, 1280, [], [])
    text = page.inner_text("main")
    wrong = ag.certify(own_run).facts["wrong"]
    assert f"{wrong} wrong" in text
    assert f"20 of {wrong} counterexamples" in text
    page.context.close()


def test_the_page_stands_alone(demo: dict) -> None:
    html = demo["report"].read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']?https?:", html)
    assert "default-src 'none'" in html


def test_findings_are_kept_beside_the_run(demo: dict) -> None:
    kept = {path.stem: json.loads(path.read_text()) for path in (demo["run"].path / "findings").glob("*.json")}
    assert set(kept) == KEPT
    assert kept["certify"]["wrong"] == 0


def test_a_file_without_a_run_has_a_report_too(small_run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(sorted(small_run.path.glob("checkpoints/*"))[-1].read_bytes())
    (tmp_path / "model.json").write_text((small_run.path / "config.json").read_text())
    path = ag.report(f"file:{tmp_path}/model.safetensors", tmp_path / "page.html")
    page = path.read_text()
    assert '<section id="curves">' not in page
    assert '<section id="verdict">' in page


def test_a_hand_made_sample_is_not_taken_for_the_verdict(own_run: Run, tmp_path: Path) -> None:
    own_run.keep(ag.certify(own_run, sample=10))
    page = ag.report(own_run, tmp_path / "page.html").read_text()
    assert "Every one of the 100 inputs" in page


def test_a_sentence_goes_through_every_lens_on_one_page(chromium: Browser, tmp_path: Path) -> None:
    model = ag.open(f"hf:{save(tmp_path / 'llama', 'llama')}")
    clean = "The capital of Paris"
    n = model.to_tokens(clean).shape[1]
    corrupt = model.to_string(model.to_tokens("The Eiffel Tower is located in")[0, :n])
    path = ag.report(model, tmp_path / "sentence.html", clean=clean, corrupt=corrupt)
    said: list[str] = []
    page = opened(chromium, path, 1280, said, [])
    assert said == []
    shown = page.eval_on_selector_all("section", "sections => sections.map(section => section.id)")
    assert shown == [
        "attention",
        "logit",
        "attribution",
        "patch",
        "roles",
        "ablate",
        "embeddings",
        "weights",
        "parameters",
    ]
    text = page.inner_text("main")
    assert clean in text
    assert corrupt in text
    page.context.close()


def test_a_model_of_free_text_needs_a_prompt(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"reads free text: give a prompt.*--clean"):
        ag.report("planted:induction", tmp_path / "page.html")


@pytest.mark.parametrize("d_vocab", [1, 2, 3, 4])
def test_a_model_of_a_few_tokens_has_a_report_which_says_what_it_leaves_out(d_vocab: int, tmp_path: Path) -> None:
    cfg = ModelConfig(d_vocab=d_vocab, n_ctx=8, d_model=8, n_heads=2)
    model = Subject("few", build(cfg, 0), text=Numbers(d_vocab))
    page = ag.report(model, tmp_path / "page.html", clean=f"0 {d_vocab - 1}").read_text()
    refused = "Left out: few has a context of 8 and 1 tokens: too few to repeat a block of two"
    assert (refused in page) == (d_vocab == 1)
