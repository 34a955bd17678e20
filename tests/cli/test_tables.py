"""Tables and facts at any width: every key and number whole, nothing wider than the terminal."""

import re

import pytest
from rich.cells import cell_len

from steval.cli.output import print_facts, print_table

WIDTHS = (60, 80, 120, None)
METRICS = ["overlap_at_N", "pearson_delta", "discrimination_score_l1", "clustering_agreement", "de_spearman_lfc_sig"]
TABLES = {
    "score": (
        ("cell_type", "metric", "family", "value", "baseline", "ceiling", "replicate", "normalised", "unclipped", "best"),
        [("K562", name, "de", -0.12341 * n, 0.2, None, 1e-5, 0.5, -3.25, "high") for n, name in enumerate(METRICS)],
    ),
    "perturbations": (
        ("perturbation", *METRICS, "de_nsig_counts_real", "de_nsig_counts_pred", "mse", "mae", "roc_auc"),
        [(f"GENE{n}", *(n / 7 + k for k in range(5)), 12000 + n, 900, 0.25, None, float("nan")) for n in range(3)],
    ),
    "leaderboard": (
        ("rank", "checkpoint", "data", "request", "overall", "overall_low", "overall_high", "integrity_fail", "state"),
        [(n, f"runs/long-name-of-a-run-{n}", "replogle-k562", "all", 0.31, 0.2, 0.4, 0, "done") for n in range(2)],
    ),
    "compare": (
        ("metric", "runs/a/checkpoints/best-val", "runs/b/checkpoints/best-val", "difference", "p"),
        [(name, 0.1, 0.2, -0.1, 0.03125) for name in METRICS],
    ),
    "doctor": (
        ("severity", "topic", "evidence", "change"),
        [("warning", "learning rate", "the loss rose in 12 of the last 20 steps " * 3, "set phases.0.optimiser.rate to 1e-4")],
    ),
    "unicode": (("name", "value"), [("遺伝子の名前", 1.5), ("plain", 2)]),
}  # fmt: skip


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_every_key_and_number_is_whole(name, width, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    columns, rows = TABLES[name]
    print_table("Title", columns, rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= (width or 160)
    words = {word for line in lines for word in line.split()}
    for row in rows:
        for value in row:
            if isinstance(value, int | float) and value == value:
                shown = f"{value:.4f}" if isinstance(value, float) and not 1e-12 < abs(value) < 1e-3 else f"{value:.4g}"
                assert (shown if isinstance(value, float) else str(value)) in words
        for key in (value for value in row[:2] if isinstance(value, str)):
            assert set(key.split()) <= words
    text = squeezed("".join(lines))
    for column in columns:
        if not column.endswith(("_low", "_high")) and column not in ("ceiling", "mae", "roc_auc"):
            assert squeezed(column) in text or all(piece in text for piece in re.split(r"(?<=_)| ", column))


@pytest.mark.parametrize("width", WIDTHS)
def test_empty_columns_are_left_out_and_intervals_are_joined(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width or 0))
    print_table(
        "T",
        ("name", "empty", "score", "score_low", "score_high"),
        [("a", None, 1.0, 0.5, 1.5), ("b", None, 2.0, None, None)],
    )
    text = capsys.readouterr().out
    assert "empty" not in text
    assert "0.5000 to 1.5000" in text


def test_keys_are_repeated_where_a_table_is_divided(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    columns, rows = TABLES["perturbations"]
    print_table("T", columns, rows)
    text = capsys.readouterr().out
    assert text.count("perturbation") == text.count("GENE1") > 1


def test_texts_are_left_and_numbers_right(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    print_table("T", ("what", "n", "text"), [("a", 1, "x"), ("bb", 1000, 5)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:5] == ["a        1  x", "bb    1000  5"]


@pytest.mark.parametrize("width", [40, 60, 80, None])
def test_facts_keep_names_and_values(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width or 0))
    values = {
        "format": "steval",
        "perturbations": "100: " + ", ".join(f"GENE{n}" for n in range(40)),
        "a rather long name of a fact": 3,
    }
    print_facts("T", [*values.items(), ("nothing", None)])
    text = capsys.readouterr().out
    assert max(map(cell_len, text.splitlines())) <= (width or 160)
    for name, value in values.items():
        assert squeezed(name) in squeezed(text)
        assert set(str(value).split()) <= set(text.split())
    assert "nothing" not in text


def test_names_cannot_command_the_terminal(capsys):
    evil = "a\x1b]0;owned\x07\x1b[2J\x9b31mb\u202ec"
    print_table(evil, (evil,), [(evil,)])
    print_facts(evil, [(evil, evil)])
    text = capsys.readouterr().out
    assert not set("\x1b\x07\x9b\u202e") & set(text)
    assert r"\x1b]0;owned\x07" in text
