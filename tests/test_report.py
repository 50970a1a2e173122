"""report.html held against the files it is made from, and opened in a browser."""

import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from benchmarks.results import Results, write_results
from common.errors import run_command
from pipeline.graph import Entry, Record, save_graph, save_record
from pipeline.report import __main__ as command
from pipeline.report.charts import MOST_POINTS, Line, chart, in_stretches
from pipeline.report.page import render
from pipeline.report.read import read_run
from pipeline.stage import Stage
from tests.browser import CHROMIUM, Page

EVIL = "<script>alert(1)<b>"  # a row's name may be anything that a folder's may
ROWS = ("densecl-MINI", "random", EVIL)
CLASSES = ("disk", "square", "traffic-light")
TABLE = """<section id="t"><h3>{title}</h3><div class="scroll"><table><caption>of ours</caption>
<tbody class="measured"><tr><th scope="row">densecl</th>
<td><a href="#t-1">{number}</a> <span class="verdict off">off</span></td></tr></tbody></table></div>
<ol><li id="t-1"><a href="../benchmarks/mini_voc/random/seed_1/results.json">seed 1</a></li></ol>
<figure><svg viewBox="0 0 9 9"><defs><path id="p" d="M0 0h9"/></defs>
<use xlink:href="#p"/></svg></figure></section>"""


def results_of(row, number):
    return Results(
        benchmark="mini_voc_r50_c4",
        row=row,
        seed=1,
        metrics={"AP": 10.0 + number, "AP50": 30.5 + number}
        | {f"AP50-{name}": 20.25 + 10 * k + number for k, name in enumerate(CLASSES)},
        engine="torchvision",
        engine_version="torchvision 0.29.2",
        weights_sha256=None if row == "random" else f"{number}" * 64,
        config_sha256="c" * 64,
        schedule={"iterations": 600, "batch": 4},
        trained_on=["mini_voc_2007_trainval"],
        device="1 x CPU",
        environment={"python": "3.11", "packages": {"torch": "2.15"}},
        seconds=123.0,
        restarts=number,
        commit="d" * 40,
    )


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)


def lines(values):
    return "".join(json.dumps(value) + "\n" for value in values)


def write_trial(folder, row, number):
    trial = folder / "benchmarks" / "mini_voc" / row / "seed_1"
    curve = [{"step": step, "total_loss": 100 / step} for step in range(20, 601, 20)]
    evaluations = [{"step": step, "AP": step / 60, "AP50": step / 30} for step in (200, 400)]
    write(trial / "metrics.jsonl", lines(curve + evaluations))
    write_results(trial / "results.json", results_of(row, number))
    write(trial / "DONE", {})
    files = {"truth": "7_truth.jpg", "prediction": "7_prediction.png"}
    write(
        trial / "examples" / "examples.json",
        [{"image": "000007", "files": files, "caption": f"seen by {row}"}],
    )
    for name in files.values():
        Image.new("RGB", (32, 24), (200, 40 * number, 0)).save(trial / "examples" / name)


def write_correspondence(folder):
    rows = [("random", 40, 10), ("densecl-MINI", 25, 20), (EVIL, 0, 0)]
    names = {name: f"0_{number}.png" for number, (name, *_) in enumerate(rows)}
    content = {
        "threshold": 0.9,
        "rows": [
            {"weights": name, "images": 1, "matches": matches, "agree": agree}
            for name, matches, agree in rows
        ],
        "pictures": [{"image": "disk_00007.jpg", "files": names}],
    }
    write(folder / "correspondence.json", content)
    for name in names.values():
        Image.new("RGB", (60, 24), (0, 200, 40)).save(folder / name)


def write_run(folder):
    """A whole run folder with one failed stage."""
    pretrain = folder / "pretrain" / "densecl-MINI"
    names = ("loss", "loss_global", "loss_dense", "top1_global", "match_entropy", "lr")
    logged = [{"step": s, **dict.fromkeys(names, 1 / s)} for s in range(10, 310, 10)]
    write(pretrain / "metrics.jsonl", lines(logged))
    write(pretrain / "config.yaml", "seed: 3\noptim: {epochs: 10, batch_size: 64}\n")
    write(pretrain / "env.json", {"commit": "d" * 40, "gpus": [], "packages": {"torch": "2.15"}})
    write(pretrain / "DONE", {"checkpoint_sha256": "5" * 64})
    manifest = {"pickle_sha256": "0" * 64, "verified": ["values: bit-equal"]}
    write(folder / "weights" / "densecl-MINI.json", manifest)
    write_correspondence(folder / "correspondence")
    for number, row in enumerate(ROWS):
        write_trial(folder, row, number)
    titles = {"one": "Table 1", "two": "Table 2"}
    for name, title in titles.items():
        write(folder / "tables" / f"{name}.html", TABLE.format(title=title, number="12.34 (1)"))
    index = [
        {"name": n, "title": t, "kind": "own", "measured": True, "files": [f"{n}.html", f"{n}.md"]}
        for n, t in titles.items()
    ]
    write(folder / "tables" / "tables.json", index)
    log = folder / "logs" / "benchmarks" / "mini_coco" / "random" / "seed_1.log"
    write(log, "starting\n" + 2000 * "...\n" + "error: no such folder <coco>\n\n")
    stages = {
        "pretrain/densecl-MINI": Record(state="done", seconds=75.0),
        **{f"benchmarks/mini_voc/{row}/seed_1": Record(state="done") for row in ROWS},
        "benchmarks/mini_coco/random/seed_1": Record(state="failed", note="exit code 3"),
        "tables": Record(state="done"),
        "report": Record(state="running"),
    }
    save_graph(folder, {name: Entry(Stage(name, (), ()), (), "") for name in stages})
    for name, record in stages.items():
        save_record(folder, name, record)
    return folder


class Elements(HTMLParser):
    """Tags with their attributes, and the text of each table's cells under its caption."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.tables, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag in ("caption", "tr"):
            self.tables[-1].append([])
        if tag in ("td", "th", "caption"):
            self.tables[-1][-1].append("")
        self.inside = tag in ("td", "th", "caption") or (self.inside and tag != "table")

    inside = False

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th", "caption")

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.tables[-1][-1][-1] += data

    def attributes(self, name):
        return [values[name] for _, values in self.tags if name in values]

    def table(self, caption):
        """The rows of each table whose caption begins so."""
        texts = [[[" ".join(c.split()) for c in row] for row in table] for table in self.tables]
        (found,) = [table[1:] for table in texts if table[0][0].startswith(caption)]
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "a & <i>b")


@pytest.fixture(scope="module")
def html(run):
    return render(read_run(run))


@pytest.fixture(scope="module")
def page(html):
    return Elements(html)


def test_results_by_class_are_those_of_the_files(page):
    head, *rows = page.table("AP50 by class")
    assert head == ["class", *ROWS]
    assert rows == [
        [name, *(f"{20.25 + 10 * k + number:.1f}" for number in range(3))]
        for k, name in enumerate(CLASSES)
    ]


def test_correspondences_are_those_of_the_file(page):
    assert page.table("Pairs of positions")[1:] == [
        ["random", "1", "40", "10 (25 %)"],
        ["densecl-MINI", "1", "25", "20 (80 %)"],
        [EVIL, "1", "0", "0"],
    ]


def test_provenance_is_that_of_the_files(page):
    trials = page.table("Every trial")
    assert trials[1] == ["mini_voc_r50_c4"]
    for number, (row, cells) in enumerate(zip(ROWS, trials[2:])):
        weights = "random" if row == "random" else f"{number}" * 12
        expected = [f"{row}, seed 1", "torchvision 0.29.2", weights, "c" * 12, "d" * 12]
        assert cells == [*expected, "600 × 4", "1 x CPU", "2 min 03 s", str(number)]
    (pretraining,) = page.table("What was pre-trained")[1:]
    expected = ["densecl-MINI", "finished", "10", "64", "3", "5" * 12, "d" * 12, "2.15", "CPU"]
    assert pretraining == [*expected, "1 min 15 s"]
    (weights,) = page.table("Converted backbones")[1:]
    assert weights == ["densecl-MINI", "–", "0" * 12, "–", "values: bit-equal"]
    for whole in ("0" * 64, "5" * 64, "c" * 64):
        assert whole in page.text


def test_it_says_what_did_not_run_and_why(page):
    first, *rest = page.table("The stages of the run")[1:]
    why = "exit code 3, see its log: error: no such folder <coco>"
    assert first == ["benchmarks/mini_coco/random/seed_1", "failed", why, ""]
    assert [row[1] for row in rest] == ["done"] * 5
    assert "1 of 6 stages did not run" in " ".join(page.text.split())


def test_a_miniature_run_is_not_compared(page):
    assert "Nothing here is comparable with the paper." in " ".join(page.text.split())


def test_tables_keep_their_numbers_and_their_links(page):
    assert sum(table[1:] == [["densecl", "12.34 (1) off"]] for table in page.tables) == 2
    assert "cells off2" in page.text
    links = [values.get("href") for _, values in page.tags]
    assert links.count("benchmarks/mini_voc/random/seed_1/results.json") == 3
    assert "tables/one.md" in links and "tables/one.html" not in links


def test_ids_are_unique_and_every_reference_has_its_aim(page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    aims = page.attributes("href") + page.attributes("xlink:href")
    inner = [aim[1:] for aim in aims if aim.startswith("#")]
    assert len(inner) > 10 and set(inner) <= set(ids)
    for aim in re.findall(r"url\(#([^)]*)\)", " ".join(page.attributes("clip-path"))):
        assert aim in ids


def test_names_are_text_and_nothing_is_fetched_or_run(page, html):
    assert page.text.count(EVIL) > 5 and "a & <i>b" in page.text
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "iframe", "object", "b", "i"} - {"i"}
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    for reference in page.attributes("href"):
        assert not re.match(r"\w+:", reference) or reference == "data:,"
    assert "url(http" not in html and "@import" not in html


def test_headings_are_in_order_and_pictures_have_words(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    pictures = [values for tag, values in page.tags if tag == "img"]
    assert len(pictures) == 1 + 2 * len(ROWS) and all(values["alt"] for values in pictures)
    described = [values.get("aria-label", "") for tag, values in page.tags if tag == "svg"]
    assert any("densecl-MINI seed 1 from 3.333 to 10" in words for words in described)


def test_the_same_files_give_the_same_page(run, html):
    assert render(read_run(run)) == html


# --- curves ---


def test_a_drawn_curve_is_the_data():
    points = [(float(step), float(np.sin(step))) for step in range(0, 50, 5)]
    svg = chart([Line("a", points, 1)], "step", "loss", "Loss", marked=False)
    (path,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--series-1\)', svg)
    drawn = np.array([[float(n) for n in pair] for pair in re.findall(r"([\d.]+) ([\d.]+)", path)])
    assert len(drawn) == len(points)
    for column in (0, 1):  # an affine map, but for the digits that were cut
        data = np.array(points)[:, column]
        slope, offset = np.polyfit(data, drawn[:, column], 1)
        assert np.abs(slope * data + offset - drawn[:, column]).max() < 0.02
        assert (slope > 0) == (column == 0)


def test_text_of_a_chart_is_text_in_the_colours_of_the_page():
    svg = chart([Line("a", [(0.0, 0.001), (9.0, 0.004)], 0)], "step", "$rate$", "T", marked=True)
    assert re.search(r">\$rate\$</text>", svg) and ">0.0032</text>" in svg
    assert "font-family" not in svg
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)) <= {
        "none",
        "currentColor",
        *("var(--muted)", "var(--rule)", "var(--series-0)"),
    }


@pytest.mark.parametrize("count", [1, 2, MOST_POINTS, MOST_POINTS + 1, 20 * MOST_POINTS, 12_345])
def test_stretches_hold_every_point_once(count):
    values = np.random.default_rng(0).normal(size=count)
    points = list(enumerate(values.tolist()))
    stretches = in_stretches(points)
    assert len(stretches) == min(count, MOST_POINTS)
    assert max(s.high for s in stretches) == values.max()
    assert min(s.low for s in stretches) == values.min()
    if count % MOST_POINTS == 0:
        parts = values.reshape(MOST_POINTS, -1)
        assert [s.low for s in stretches] == parts.min(axis=1).tolist()
        assert [s.high for s in stretches] == parts.max(axis=1).tolist()
        assert np.allclose([s.mean for s in stretches], parts.mean(axis=1))


def test_a_long_log_makes_a_small_page(tmp_path):
    values = np.random.default_rng(0).normal(size=100_000).tolist()
    values[54_321] = 99.0
    log = lines({"step": step, "loss": value} for step, value in enumerate(values))
    write(tmp_path / "pretrain" / "long" / "metrics.jsonl", log)
    run = read_run(tmp_path)
    assert len(run.pretrainings[0].curves["loss"]) == 100_000
    assert len(render(run)) < 150_000


# --- what is missing or damaged ---


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\udcff", None])
def test_the_page_comes_out_of_a_damaged_run(tmp_path, content):
    folder = write_run(tmp_path / "run")
    (folder / "logs" / "benchmarks" / "mini_coco" / "random" / "seed_1.log").unlink()
    damaged = [
        *("graph.json", "pretrain/densecl-MINI/config.yaml", "pretrain/densecl-MINI/env.json"),
        *("weights/densecl-MINI.json", "tables/tables.json"),
        "benchmarks/mini_voc/random/seed_1/results.json",
        "benchmarks/mini_voc/random/seed_1/examples/examples.json",
        "benchmarks/mini_voc/densecl-MINI/seed_1/examples/7_prediction.png",
    ]
    for name in damaged:
        path = folder / name
        path.unlink()
        if content is not None:
            path.write_bytes(content.encode("utf-8", "surrogateescape"))
    text = Elements(render(read_run(folder))).text
    named = [name for name in damaged if f"{name}: " in text]
    gone = [] if content is not None else ["weights/densecl-MINI.json"]  # nothing says it was there
    assert named == [name for name in damaged if name not in gone]
    assert EVIL in text


def test_a_number_that_was_changed_is_not_shown(tmp_path):
    folder = write_run(tmp_path / "run")
    file = folder / "benchmarks" / "mini_voc" / "random" / "seed_1" / "results.json"
    file.write_text(file.read_text().replace("31.5", "77.7"))
    page = Elements(render(read_run(folder)))
    (row,) = [row for row in page.table("Every trial") if row[0] == "random, seed 1"]
    assert row[1].startswith("no results") and "77.7" not in page.text
    assert "random/seed_1/results.json: changed after it was written" in page.text


def call(monkeypatch, folder):
    monkeypatch.setattr(sys, "argv", ["report", str(folder)])
    run_command(command.main)


def test_an_unfinished_run_has_a_page_too(tmp_path, monkeypatch, capsys):
    log = tmp_path / "benchmarks" / "voc" / "random" / "seed_1" / "metrics.jsonl"
    write(log, '{"step": 20, "total_loss": 3.5}\n{"step": 40, "total_loss": NaN}\n{"st')
    call(monkeypatch, tmp_path)
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'report.html'}\n")
    text = " ".join(Elements((tmp_path / "report.html").read_text()).text.split())
    assert "0 of 1 trials finished" in text and "comparable" not in text
    assert "metrics.jsonl: 1 of 3 lines damaged" in text and "graph.json: missing" in text


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_run_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as left:
        call(monkeypatch, tmp_path / name)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{name}: not a run folder" in error
    assert not list(tmp_path.glob("*/*"))


# --- in a browser ---

CONTRAST = """(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    while (e && numbers(getComputedStyle(e).backgroundColor)[3] === 0) e = e.parentElement;
    return e ? getComputedStyle(e).backgroundColor : "rgb(255, 255, 255)";
  };
  return Math.min(...[...document.body.querySelectorAll("*")]
    .filter(e => e.checkVisibility())
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(e => {
      const ink = getComputedStyle(e)[e.closest("svg") ? "fill" : "color"];
      const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    }));
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the page in")
def test_it_opens_in_a_browser_on_a_desk_and_on_a_phone(html, tmp_path):
    (tmp_path / "report.html").write_text(html)
    browser = Page(tmp_path / "profile")
    try:
        for width, dark in ((1280, False), (390, True)):
            browser.open(tmp_path / "report.html", width, dark=dark)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            widths = browser.evaluate("[...document.images].map(image => image.naturalWidth)")
            assert widths == [60] * len(ROWS) + [32] * (1 + len(ROWS))
            charts = "[...document.querySelectorAll('figure svg')].map(s => s.clientWidth)"
            drawn = browser.evaluate(charts)
            assert len(drawn) == 5 + 3 + 2 and min(drawn) > 200
            tables = browser.evaluate(
                "[...document.querySelectorAll('table')].map(t => [t.rows.length, t.clientWidth])"
            )
            assert len(tables) == 2 + 2 + 1 + 1 + 3 + 1
            assert all(rows > 0 and across > 100 for rows, across in tables)
            assert browser.evaluate(CONTRAST) >= 4.5
            fetched = "performance.getEntriesByType('resource').map(e => e.name)"
            assert not [n for n in browser.evaluate(fetched) if not n.startswith("data:")]
        assert browser.errors == []
    finally:
        browser.close()
