"""python -m benchmarks.tables: what it prints, writes, checks and refuses."""

import csv
import dataclasses
import io
import json
import sys
from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from table_runs import (
    COMPARED,
    PAPER,
    TRIAL,
    add,
    add_manifest,
    add_pretraining,
    published,
    run_of,
)

from benchmarks.tables.__main__ import main
from benchmarks.tables.compare import compare
from benchmarks.tables.terminal import show
from common.errors import run_command

T1 = "densecl_T1_voc_det"


def tables(run, capsys, *words):
    """Exit code and everything that the command printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tables", str(run), *words])
        try:
            run_command(main)
            code = 0
        except SystemExit as ended:
            code = ended.code
    printed = capsys.readouterr()
    if isinstance(code, str):  # sys.exit prints a text and exits 1
        return 1, printed.out + code
    return code, printed.out + printed.err


def cells(run, name=T1):
    """(row's label, metric) → the line of the CSV file."""
    with (run / "tables" / f"{name}.csv").open() as file:
        return {(line["pretraining"], line["metric"]): line for line in csv.DictReader(file)}


def index(run):
    return json.loads((run / "tables" / "tables.json").read_text())


def add_mini(run, *rows, benchmark="mini_voc_r50_c4", **changes):
    for row in rows:
        add(run, benchmark=benchmark, row=row, config_sha256="ef" * 32, **changes)


class Page(HTMLParser):
    """Ids, links, headings' scopes and the words of each element of an HTML part."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.tags, self.scopes, self.words = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.scopes += [attributes.get("scope")] if tag == "th" else []
        assert "style" not in attributes or "svg" in self.tags

    def handle_data(self, data):
        self.words += [data.strip()] if data.strip() else []


def test_a_cell_says_mean_spread_count_difference_and_verdict(tmp_path, capsys):
    for seed, value in enumerate([58.4, 58.8, 59.0]):
        add(tmp_path, seed=seed, metrics={**TRIAL.metrics, "AP": value})
    code, printed = tables(tmp_path, capsys, "--check")
    assert code == 0
    cell = cells(tmp_path)["DenseCL IN", "AP"]
    assert float(cell["mean"]) == pytest.approx(58.7333, abs=1e-4)
    assert float(cell["std"]) == pytest.approx(0.3055, abs=1e-4)
    assert float(cell["allowed"]) == pytest.approx(0.3528, abs=1e-4)  # 2 · 0.3055 / √3
    assert (cell["paper"], cell["n"], cell["seeds"]) == ("58.7", "3", "0 1 2")
    assert (cell["difference"], cell["verdict"]) == ("0.03", "reproduced")
    assert cells(tmp_path)["DenseCL CC", "AP"]["verdict"] == "missing"
    text = (tmp_path / "tables" / f"{T1}.md").read_text()
    assert text in printed
    assert "| 58.73 ± 0.31 (3) [1] |" in text and "| +0.03 reproduced " in text
    assert "max(2·std/√n, published noise of one trial)" in text


def test_a_cell_leads_to_the_results_behind_it(tmp_path, capsys):
    folder = add(tmp_path, seed=7)
    tables(tmp_path, capsys)
    cell = cells(tmp_path)["DenseCL IN", "AP75"]
    names = ("weights_sha256", "config_sha256", "commit")
    assert [cell[name] for name in names] == [getattr(TRIAL, name) for name in names]
    assert (cell["engine"], cell["seeds"]) == ("torchvision engine, torchvision 0.29.2", "7")
    text = (tmp_path / "tables" / f"{T1}.md").read_text()
    path = f"../benchmarks/voc_r50_c4_24k/densecl-IN/{folder.name}/results.json"
    assert "58.70 (1) [1]" in text and f"[seed 7]({path})" in text
    page = Page((tmp_path / "tables" / f"{T1}.html").read_text())
    assert page.links == [f"#{T1}-results-1"] * 3 + [path]
    assert f"{T1}-results-1" in page.ids
    assert (tmp_path / "tables" / path).is_file()
    assert TRIAL.weights_sha256[:12] in " ".join(page.words)


def test_the_html_is_a_part_of_a_page_with_marked_up_headings(tmp_path, capsys):
    add(tmp_path, row="<script>alert(1)<b>")
    add(tmp_path, metrics={**TRIAL.metrics, "AP": 50.0})
    add_mini(tmp_path, "densecl-MINI")
    add_manifest(tmp_path, "densecl-MINI", {"optim": {"epochs": 10}})
    tables(tmp_path, capsys)
    ids = []
    for entry in index(tmp_path):
        text = (tmp_path / "tables" / f"{entry['name']}.html").read_text()
        page = Page(text)
        ids += page.ids
        assert text.strip().startswith("<section") and "script" not in page.tags
        assert page.tags.count("section") == page.tags.count("table") == 1
        heads = {"col", "row", "rowgroup"} if entry["kind"] == "paper" else {"col", "rowgroup"}
        assert set(page.scopes) == heads
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(ids) == len(set(ids))
    text = (tmp_path / "tables" / f"{T1}.html").read_text()
    assert "<script>alert(1)<b>" in Page(text).words
    assert '<span class="verdict off">−8.70 off</span>' in text
    assert '<span class="verdict not-published-here">not published here</span>' in text
    link = next(link for link in Page(text).links if "alert" in link)
    assert (tmp_path / "tables" / unquote(link)).is_file()
    text = (tmp_path / "tables" / f"{T1}.md").read_text()
    assert f"]({link})" in text and "<script" not in text
    heads = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("|")]
    assert heads[-2:] == ["paper", "ours"]  # of the row without published numbers


def test_every_table_is_written_and_listed_those_with_results_first(tmp_path, capsys):
    add(tmp_path)
    add_pretraining(tmp_path, "densecl-CC")
    _, printed = tables(tmp_path, capsys)
    entries = index(tmp_path)
    measured = [T1, "densecl_T9_time"]
    assert [entry["name"] for entry in entries if entry["measured"]] == measured
    assert [entry["name"] for entry in entries[:2]] == measured
    names = {
        "_".join(filter(None, [table["id"], part.get("name")]))
        for table in COMPARED
        for part in table["parts"]
    }
    assert {entry["name"] for entry in entries} == names and len(names) == 11
    assert {entry["kind"] for entry in entries} == {"paper"}
    listed = {name for entry in entries for name in entry["files"]}
    assert listed | {"tables.json"} == {path.name for path in (tmp_path / "tables").iterdir()}
    assert "Nothing in this run for Table 2, Table 3 (90k), Table 3 (9k), Table 4a" in printed
    assert "super. IN" in printed and "Table 5 of" not in printed


def test_check_passes_with_the_papers_own_numbers(tmp_path, capsys):
    experiments = run_of(published(), tmp_path, seeds=2).experiments.values()
    for experiment in experiments:
        for results in experiment.trials:
            add(tmp_path, **dataclasses.asdict(results))
    code, printed = tables(tmp_path, capsys, "--check")
    assert code == 0 and "check failed" not in printed
    unmeasured = [entry["name"] for entry in index(tmp_path) if not entry["measured"]]
    assert unmeasured == ["densecl_T9_time"]
    verdicts = {line["verdict"] for t in PAPER.tables for line in cells(tmp_path, t.name).values()}
    assert "reproduced" in verdicts and "off" not in verdicts
    delta = cells(tmp_path, "densecl_T4b_cityscapes")["DenseCL CC − MoCo-v2 CC", "mIoU"]
    assert (delta["paper"], delta["mean"], delta["seeds"]) == ("1.8", "1.8", "1 2; 1 2")


def test_check_lists_every_failure(tmp_path, capsys):
    numbers = {}
    for (benchmark, row, key), value in published().items():
        if benchmark == TRIAL.benchmark:
            moved = 1.2 if (row, key) == ("densecl-CC", "AP75") else 0
            numbers.setdefault(row, {})[key] = value - moved
    for row, metrics in numbers.items():
        add(tmp_path, row=row, metrics={"AP50": 0, "AP75": 0, **metrics})
    code, printed = tables(tmp_path, capsys, "--check")
    assert code == 1
    said = printed[printed.index("check failed:") :].splitlines()[1:]
    paper = "AP75: ours 61.80 (1), paper 63.0"
    assert said == [
        f"Table 1, DenseCL CC, {paper}",
        f"Table 5, λ = 0.5, {paper}",
        f"Table 6, max-sim F, {paper}",
        f"Table 7, S = 7, {paper}",
    ]
    assert tables(tmp_path, capsys)[0] == 0  # without --check


def test_check_needs_something_to_compare(tmp_path, capsys):
    add(tmp_path, schedule={"iterations": 600, "batch": 16})
    add(tmp_path, row="mine-IN")
    code, printed = tables(tmp_path, capsys, "--check")
    assert code == 1 and "nothing in this run is comparable" in printed
    cell = cells(tmp_path)["DenseCL IN", "AP"]
    assert (cell["mean"], cell["difference"], cell["verdict"]) == ("58.7", "", "not comparable")
    assert "DenseCL IN: not comparable: 600 iterations of 16 images, the paper" in printed
    assert cells(tmp_path)["mine-IN", "AP"]["verdict"] == "not published here"
    assert ("mine-IN", "AP") not in cells(tmp_path, "densecl_F3_schedule")


@pytest.mark.parametrize("epochs, verdict", [(200, "reproduced"), (2, "not comparable")])
def test_the_weights_manifest_says_how_long_they_were_trained(tmp_path, capsys, epochs, verdict):
    add(tmp_path)
    add_manifest(tmp_path, "densecl-IN", {"optim": {"epochs": epochs}})
    tables(tmp_path, capsys)
    assert cells(tmp_path)["DenseCL IN", "AP"]["verdict"] == verdict


def test_miniature_results_fill_twins_without_the_papers_numbers(tmp_path, capsys):
    add_mini(tmp_path, "random", "densecl-MINI", "densecl-MINI-lambda_0.3", "mine")
    add_mini(tmp_path, "densecl-MINI", benchmark="mini_voc07_svm_r50", metrics={"mAP": 40.0})
    add_mini(tmp_path, "densecl-MINI", benchmark="mini_coco10_r50_fpn", metrics={"APb": 3.0})
    add_mini(
        tmp_path, "densecl-MINI", benchmark="mini_coco_r50_c4", metrics={"APb": 4.0, "APb-a": 9}
    )
    add_manifest(tmp_path, "densecl-MINI", {"optim": {"epochs": 10}})
    add_pretraining(tmp_path, "densecl-MINI")
    code, printed = tables(tmp_path, capsys, "--check")
    assert code == 1 and "nothing in this run is comparable" in printed
    rows = {
        entry["title"].split(":")[0]: {row for row, _ in cells(tmp_path, entry["name"])}
        for entry in index(tmp_path)
        if entry["measured"]
    }
    assert rows == {
        "Miniature twin of Table 1": {"random", "densecl-MINI", "mine"},
        "Miniature twin of Table 3": {"densecl-MINI"},
        "Miniature twin of Table 5": {"densecl-MINI", "densecl-MINI-lambda_0.3"},
        "Miniature twin of Table 6": {"densecl-MINI"},
        "Miniature twin of Table 7": {"densecl-MINI"},
        "Miniature twin of Schedule figure": {"densecl-MINI"},
        "Miniature twin of Table 9": {"densecl-MINI"},
        "Miniature": {"densecl-MINI"},
    }
    for entry in index(tmp_path):
        if entry["measured"]:
            assert entry["kind"] == "miniature"
            lines = cells(tmp_path, entry["name"]).values()
            assert {line["paper"] for line in lines} == {""}
            assert {line["verdict"] for line in lines} == {""}
            text = (tmp_path / "tables" / f"{entry['name']}.html").read_text()
            assert "never compared with the paper" in text
    assert (
        cells(tmp_path, "miniature_densecl_T5_lambda")["densecl-MINI", "mAP_cls"]["mean"] == "40.0"
    )
    assert set(cells(tmp_path, "mini_coco_r50_c4")) == {("densecl-MINI", "APb")}
    assert {line["verdict"] for line in cells(tmp_path).values()} == {"missing"}


def test_benchmarks_without_published_numbers_have_tables_of_their_own(tmp_path, capsys):
    for row in ("densecl-CC", "random"):
        add(tmp_path, benchmark="coco_r50_c4_2x", row=row, metrics={"APb": 39.6, "APb-cat": 1.0})
        add(tmp_path, benchmark="voc07_svm_r50", row=row, metrics={"mAP": 80.0})
    tables(tmp_path, capsys)
    kinds = {entry["name"]: entry["kind"] for entry in index(tmp_path) if entry["measured"]}
    assert {name for name, kind in kinds.items() if kind == "own"} == {
        "coco_r50_c4_2x",
        "voc07_svm_r50",
    }
    assert list(cells(tmp_path, "coco_r50_c4_2x")) == [("random", "APb"), ("densecl-CC", "APb")]
    assert list(cells(tmp_path, "voc07_svm_r50")) == [("random", "mAP"), ("densecl-CC", "mAP")]
    assert {line["verdict"] for line in cells(tmp_path, "densecl_T2_coco").values()} == {"missing"}


def test_trials_of_different_experiments_are_not_averaged(tmp_path, capsys):
    for engine, seed in (("torchvision", 1), ("detectron2", 2)):
        add(tmp_path, seed=seed, engine=engine)
        add_mini(tmp_path, "densecl-MINI", seed=seed, engine=engine)
    _, printed = tables(tmp_path, capsys)
    cell = cells(tmp_path)["DenseCL IN", "AP"]
    assert (cell["mean"], cell["verdict"]) == ("", "not comparable")
    assert "DenseCL IN: not comparable: trials of 2 different engines" in printed
    assert "densecl-MINI: not averaged: trials of 2 different engines" in printed


def test_unfinished_trials_are_named_and_not_counted(tmp_path, capsys):
    add(tmp_path, seed=1)
    add(tmp_path, seed=2, done=False, metrics={"AP": 0.0})
    add(tmp_path, seed=1, row="moco_v2-IN", done=False)
    code, printed = tables(tmp_path, capsys)
    names = "voc_r50_c4_24k/densecl-IN/seed_2, voc_r50_c4_24k/moco_v2-IN/seed_1"
    assert code == 0 and printed.count(f"Unfinished, not counted: {names}") == 2
    assert "Unfinished" not in (tmp_path / "tables" / "densecl_T5_lambda.md").read_text()
    assert cells(tmp_path)["DenseCL IN", "AP"]["n"] == "1"
    assert cells(tmp_path)["MoCo-v2 IN", "AP"]["verdict"] == "missing"


def test_times_are_named_with_their_device_and_never_judged(tmp_path, capsys):
    add(tmp_path)
    add_pretraining(tmp_path, "densecl-CC", 0.5, gpus=["H200"] * 8)
    add_pretraining(tmp_path, "moco_v2-CC", done=False)
    tables(tmp_path, capsys)
    found = cells(tmp_path, "densecl_T9_time")
    ours = found["DenseCL", "sec_per_epoch_COCO"]
    assert float(ours["mean"]) == pytest.approx(0.5 * (1000 // 30))
    assert (ours["paper"], ours["difference"], ours["verdict"]) == ("106", "", "not comparable")
    assert ours["reason"] == "measured on 8 x H200, the paper's on 8 V100 GPUs"
    assert found["MoCo-v2", "sec_per_epoch_COCO"]["verdict"] == "missing"
    assert found["DenseCL", "sec_per_epoch_ImageNet"]["verdict"] == "missing"


def test_the_figure_has_the_papers_points_and_ours(tmp_path, capsys):
    """Read back from the SVG: one marker per number, at a height that is linear in it."""
    for row, value in (("densecl-CC", 56.0), ("densecl-CC-200ep", 54.0)):
        add(tmp_path, row=row, metrics={**TRIAL.metrics, "AP": value})
    add(tmp_path, row="densecl-CC-400ep", config_sha256="0" * 64)  # not comparable, not drawn
    tables(tmp_path, capsys)
    path = tmp_path / "tables" / "densecl_F3_schedule.svg"
    first = path.read_text()
    assert first in (tmp_path / "tables" / "densecl_F3_schedule.html").read_text()
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(first)
    words = ["".join(text.itertext()).strip() for text in root.iter(f"{svg}text")]
    for word in ("MoCo-v2, paper", "DenseCL, paper", "DenseCL, ours", "epochs of pre-training"):
        assert word in words
    assert "MoCo-v2, ours" not in words
    assert [word for word in words if word in ("200", "400", "800", "1600")] == [
        *("200", "400", "800", "1600")
    ]
    uses = [use for group in root.iter(f"{svg}g") if group.get("clip-path") for use in group]
    heights = [float(use.get("y")) for use in uses if use.tag == f"{svg}use"]
    papers = [52.2, 53.6, 54.7, 55.0, 54.8, 56.2, 56.7, 57.2]
    assert len(heights) == 10
    assert np.corrcoef(heights, [*papers, 54.0, 56.0])[0, 1] < -1 + 1e-9
    tables(tmp_path, capsys)
    assert path.read_text() == first


def test_what_an_earlier_run_wrote_and_this_one_does_not_is_removed(tmp_path, capsys):
    add(tmp_path)
    add_mini(tmp_path, "densecl-MINI")
    tables(tmp_path, capsys)
    (tmp_path / "tables" / "notes.md").write_text("mine")
    assert (tmp_path / "tables" / "miniature_densecl_T1_voc_det.md").exists()
    folder = tmp_path / "benchmarks" / "mini_voc_r50_c4"
    folder.rename(tmp_path / "elsewhere")
    tables(tmp_path, capsys)
    left = {path.name for path in (tmp_path / "tables").iterdir()}
    assert left == {name for e in index(tmp_path) for name in e["files"]} | {
        "tables.json",
        "notes.md",
    }


def test_refuses_a_results_file_changed_by_hand(tmp_path, capsys):
    path = add(tmp_path) / "results.json"
    path.write_text(path.read_text().replace("58.7", "59.9"))
    code, printed = tables(tmp_path, capsys)
    assert code == 2 and "changed after it was written" in printed and printed.count("\n") == 1
    assert not (tmp_path / "tables").exists()


def test_refuses_one_trial_counted_twice(tmp_path, capsys):
    folder = add(tmp_path)
    folder.with_name("seed_2").mkdir()
    for file in folder.iterdir():
        (folder.with_name("seed_2") / file.name).write_bytes(file.read_bytes())
    code, printed = tables(tmp_path, capsys)
    assert code == 2 and "the same trial as" in printed


@pytest.mark.parametrize("name", ["metrics.jsonl", "env.json", "owner.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_refuses_damaged_files_of_a_pretraining(tmp_path, capsys, name, content):
    add(tmp_path)
    (add_pretraining(tmp_path, "densecl-CC") / name).write_text(content)
    code, printed = tables(tmp_path, capsys)
    assert code == 2 and "cannot tell its time per epoch" in printed and printed.count("\n") == 1
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_refuses_a_damaged_manifest(tmp_path, capsys, content):
    add(tmp_path)
    add_manifest(tmp_path, "densecl-IN", {})
    (tmp_path / "weights" / "densecl-IN.json").write_text(content)
    code, printed = tables(tmp_path, capsys)
    assert code == 2 and "densecl-IN.json: not a manifest" in printed and printed.count("\n") == 1


def test_rows_made_under_different_conditions_are_pointed_out(tmp_path, capsys):
    add_mini(tmp_path, "random")
    add_mini(tmp_path, "densecl-MINI", engine="detectron2", schedule={"iterations": 1, "batch": 1})
    add(tmp_path)
    _, printed = tables(tmp_path, capsys)
    assert "The rows of mini_voc_r50_c4 differ in engines, schedules." in printed
    assert printed.count("The rows of") == 1


@pytest.mark.parametrize("run", ["missing", "empty"])
def test_refuses_a_run_without_benchmarks(tmp_path, capsys, run):
    (tmp_path / "empty" / "benchmarks").mkdir(parents=True)
    code, printed = tables(tmp_path / run, capsys)
    assert code == 2 and "no benchmark results" in printed and printed.count("\n") == 1


def test_columns_of_a_table_are_benchmarks_that_the_file_describes():
    used = {column.benchmark for table in PAPER.tables for column in table.columns}
    assert used == PAPER.conditions.keys()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_terminal_shows_every_number_whole(tmp_path, width):
    run = run_of(published(), tmp_path)
    for paper_table in PAPER.tables:
        table = compare(paper_table, PAPER, run)
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        show(console, table)
        text = console.file.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for row in table.rows:
            assert row.label in text
            for cell in row.cells:
                assert cell.metric in text
                assert cell.ours is None or f"{cell.ours.mean:.2f} ± {cell.ours.std:.2f}" in text
