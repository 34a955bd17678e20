"""The score directory: whole or absent, read back as it was written; the report page stands on its own."""

import dataclasses
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from steval.cli.commands.score import print_report
from steval.errors import ConfigError, DataError
from steval.evaluator.metrics.catalog import BY_COLUMN, with_arrow
from steval.evaluator.report.html import number, render_report
from steval.evaluator.report.report import ScoreReport
from steval.evaluator.schemas import BREAKDOWN_SCHEMA
from steval.evaluator.scoring import score
from steval.evaluator.tables import CSV_TABLES, read_score_dir, write_score_dir
from support.score_screens import real_screen, synthetic_screen

PROMISED_FILES = {"results.parquet", "results.csv", "breakdown.csv", "score.json", "integrity.csv", "report.html"}
PROMISED_COLUMNS = {"metric", "family", "value", "baseline", "ceiling", "normalised", "unclipped", "best"}


@pytest.fixture(scope="module")
def report():
    screen = real_screen()
    return score(
        screen.prediction(),
        screen.real,
        columns=screen.columns,
        train=screen.train,
        profile="full",
        ceiling=True,
        splits=1,
        bootstrap=100,
        model_record={"checkpoint": "<b>run</b>.safetensors", "step": 3},
    )


@pytest.fixture(scope="module")
def raw():
    screen = real_screen()
    return score(screen.prediction(), screen.real, columns=screen.columns, integrity="none")


@pytest.fixture(scope="module")
def page_text(report):
    return render_report(report)


def equal(first, second):
    for field in dataclasses.fields(ScoreReport):
        one, other = getattr(first, field.name), getattr(second, field.name)
        assert one.equals(other) if isinstance(one, pl.DataFrame) else one == other, field.name


def test_written_and_read_back(report, raw, tmp_path):
    for name, each in (("full", report), ("raw", raw)):
        directory = write_score_dir(each, tmp_path / "scores" / name)
        assert {path.name for path in directory.iterdir()} >= PROMISED_FILES
        equal(each, read_score_dir(directory))
        for table, schema in CSV_TABLES.items():
            assert list(schema) == getattr(each, table).columns
    assert set(BREAKDOWN_SCHEMA) >= PROMISED_COLUMNS
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["full", "raw"]


def test_score_json_is_plain_json(report, raw, tmp_path):
    text = (write_score_dir(report, tmp_path / "a") / "score.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    summary = json.loads(text)
    assert summary["overall"] == report.score
    assert summary["leaderboard"] == pytest.approx(100 * report.score)
    assert summary["record"]["inputs"]["real"]["sha256"]
    assert summary["record"]["versions"]["cell-eval"] == "0.8.2"
    empty = json.loads((write_score_dir(raw, tmp_path / "b") / "score.json").read_text())
    assert empty["overall"] is None
    assert empty["warnings"]


def test_a_score_is_replaced_and_anything_else_is_not(report, raw, tmp_path):
    target = tmp_path / "score"
    write_score_dir(raw, target)
    write_score_dir(report, target)
    equal(report, read_score_dir(target))
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty and holds no score"):
        write_score_dir(report, other)
    assert (other / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match="is a file"):
        write_score_dir(report, other / "thesis.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "score"]


def test_a_damaged_or_other_directory_is_an_error(report, tmp_path):
    with pytest.raises(DataError, match="is not a score directory"):
        read_score_dir(tmp_path)
    directory = write_score_dir(report, tmp_path / "score")
    (directory / "results.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="damaged"):
        read_score_dir(directory)
    (directory / "score.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="format 99"):
        read_score_dir(directory)


WRITER = """
import resource, signal, sys
from steval.errors import StevalError
from steval.evaluator.tables import read_score_dir, write_score_dir
source, target, limit = sys.argv[1:]
report = read_score_dir(source)
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
print("ready", flush=True)
try:
    while True:
        write_score_dir(report, target)
        if int(limit):
            sys.exit(3)
except StevalError as error:
    print(error, flush=True)
"""


def writer(source, target, limit):
    arguments = [sys.executable, "-c", WRITER, str(source), str(target), str(limit)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], env=environment
    )


def test_killed_at_any_time_the_directory_is_absent_or_whole(raw, tmp_path):
    source = write_score_dir(raw, tmp_path / "source")
    target = tmp_path / "out" / "score"
    process = writer(source, target, 0)
    assert process.stdout.readline() == "ready\n"
    seen = 0
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline and seen < 12:
        process.send_signal(signal.SIGSTOP)
        if target.exists():
            equal(raw, read_score_dir(target))
            seen += 1
        process.send_signal(signal.SIGCONT)
        time.sleep(0.03)
    process.kill()
    process.communicate()
    if target.exists():
        equal(raw, read_score_dir(target))
    assert seen


@pytest.mark.parametrize("limit", [100, 60_000])
def test_a_full_disk_leaves_nothing(raw, tmp_path, limit):
    source = write_score_dir(raw, tmp_path / "source")
    process = writer(source, tmp_path / "score", limit)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "cannot write the score directory" in output
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


class Page(HTMLParser):
    """Collects what a browser would fetch, and the identifiers."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.fetched, self.identifiers, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.identifiers += [values["id"]] if "id" in values else []
        for name in ("src", "href", "xlink:href", "action"):
            if name in values and not values[name].startswith(("#", "data:")):
                self.fetched.append((tag, values[name]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()


def test_the_page_stands_on_its_own(page_text, raw):
    for text in (page_text, render_report(raw)):
        page = Page()
        page.feed(text)
        assert page.open == []
        assert page.fetched == []
        assert len(set(page.identifiers)) == len(page.identifiers)
        assert not re.search(r"@import|url\((?!#)|<script src|fetch\(|XMLHttpRequest|import\(", text)
        for reference in re.findall(r'(?:url\(#|xlink:href="#)([^")]+)', text):
            assert reference in page.identifiers


def test_the_page_shows_what_was_found_and_escapes_names(report, page_text):
    text = page_text
    for row in report.breakdown.iter_rows(named=True):
        assert row["metric"] in text
    for sentence in report.integrity["sentence"]:
        assert sentence.split("'")[0] in text
    assert f"{report.leaderboard:.1f}" in text
    assert "<b>run</b>" not in text
    assert "&lt;b&gt;run&lt;/b&gt;" in text
    assert text.count("<svg") == 5


def test_figures_hold_their_text_as_text(page_text):
    """A reader can search, select and translate it, and an editor can change it."""
    shown = re.findall(r"<text[^>]*>([^<]+)</text>", page_text)
    assert {"prediction", "mae", "real change"} <= {text.strip() for text in shown}


def test_a_name_from_a_file_cannot_end_the_data_of_the_picker(report):
    evil = "</script><script>alert(1)</script>"
    changes = report.changes.with_columns(pl.lit(evil).alias("perturbation"), pl.lit("<!--<script>").alias("gene"))
    text = render_report(dataclasses.replace(report, changes=changes))
    page = Page()
    page.feed(text)
    assert page.open == []
    assert evil not in text
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', text)
    assert list(json.loads(data)) == [evil]


def test_the_page_explains_each_metric(report, page_text):
    shown = html.unescape(page_text)
    for column in report.breakdown["metric"]:
        metric = BY_COLUMN[column]
        assert metric.description in shown
        assert with_arrow(metric.name) in shown
    assert "not recorded" in render_report(
        dataclasses.replace(report, record=report.record | {"model": {"licence": None}})
    )


def test_notes_are_shown_after_flags_and_are_none(report, capsys):
    statuses = ["ok", "note", "fail", "skipped", "warn"]
    rows = report.integrity.head(5).with_columns(pl.Series("status", statuses))
    told = dataclasses.replace(report, integrity=rows)
    assert told.remarks["status"].to_list() == ["fail", "warn", "note"]
    assert told.findings["status"].to_list() == ["fail", "warn"]
    page = render_report(told)
    shown = re.findall(r'<td><span class="chip (\w+)">', page)
    assert shown == ["fail", "warn", "note", "ok", "skipped"]
    assert "1 with a note" in page
    assert dataclasses.replace(report, integrity=rows.clear()).remarks.is_empty()
    print_report(dataclasses.replace(report, integrity=rows.head(2)))
    printed = capsys.readouterr().out
    assert "2 checks, nothing found" in printed
    assert "worth knowing" in printed
    assert rows["check"][1] in printed


def test_the_page_is_the_same_every_time(report, page_text):
    assert render_report(report) == page_text


def test_the_page_by_cell_type_has_a_part_for_each():
    screen = synthetic_screen(cell_types=("K562", "H1"), cells_per_perturbation=30, num_controls=60)
    each = score(screen.prediction(), screen.real, columns=screen.columns, train=screen.train, by="cell_type")
    text = render_report(each)
    assert text.count("<article") == 2
    page = Page()
    page.feed(text)
    assert len(set(page.identifiers)) == len(page.identifiers)


def test_numbers_for_people():
    assert [number(value) for value in (None, float("nan"), 3, 12345, 0.123456, -0.5, 4321.9)] == [
        "–", "–", "3", "12,345", "0.123", "−0.5", "4,322",
    ]  # fmt: skip
