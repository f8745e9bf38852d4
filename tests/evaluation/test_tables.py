"""The paper's tables: what is in their cells, and their text in every format."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.evaluation.metrics import METRICS
from storyreel.evaluation.statistics import Row, compare
from storyreel.evaluation.table_formats import (
    TEXTS,
    csv_text,
    in_latex,
    is_table,
    json_text,
    latex_text,
    markdown_text,
)
from storyreel.evaluation.tables import Table, blocks, cost_table, quality_table

EVIL = r"100 % of my_method & <b>#1</b> | $x^2$ ~ {a} \input{b} [c] *d*"
LATEX = next((name for name in ("tectonic", "lualatex", "pdflatex") if shutil.which(name)), None)


def rows(stories: int = 6, runs: tuple[str, ...] = ("out/full", "out/without-sar", EVIL)) -> list[Row]:
    """Two seeds a story; every further run has more of everything, and a little of the story's own."""
    return [
        Row(
            run,
            (f"seed-{seed}/s{story}", "told"),
            f"s{story}",
            {"motion": 5 + more + (more and 0.1 * story) + seed, "double_exposure": 2.0, "clip_add": None},
        )
        for more, run in enumerate(runs)
        for story in range(stories)
        for seed in (0, 1)
    ]


def table(stories: int = 6, published: bool = False, further: tuple[str, ...] = ()) -> Table:
    return quality_table(rows(stories), {EVIL: EVIL}, ["clip_add"], published, further)


def test_a_cell_is_over_stories_each_the_mean_of_its_seeds() -> None:
    (full, without, evil) = table(3).lines
    assert (full.name, without.name) == ("full", "without-sar")
    assert (full.cells["motion"].mean, full.cells["motion"].std, full.cells["motion"].count) == (5.5, 0, 3)
    assert without.cells["motion"].mean == pytest.approx(6.6)
    assert without.cells["motion"].std == pytest.approx(0.1)  # of 6.5, 6.6 and 6.7: no seed is in it
    assert full.cells["motion"].difference is None
    differences = compare(rows(3), ["motion"], "out/full")["differences"]
    assert without.cells["motion"].difference == differences["out/without-sar"]["motion"]
    assert evil.cells["motion"].difference == differences[EVIL]["motion"]
    assert table(3).notes[0] == "Mean ± sample standard deviation over 3 stories, each the mean of 2 seeds."


def test_similarity_is_not_shown_without_that_of_stills() -> None:
    found = table(further=("boundary_similarity", "shot_similarity")).panels[-1]
    keys = [column.key for column in found.columns]
    assert keys == ["boundary_similarity", "boundary_of_stills", "shot_similarity"]
    assert "motion" in {column.key for column in table().columns}


def test_a_mean_that_leaves_ruins_out_is_not_shown_without_their_share() -> None:
    """A method that ruins half of its scenes wins by the others, and the table says so."""
    values = {
        "full": {"identity": 0.2, "shown": 1.0, "clip_identity": 0.1, "clip_shown": 1.0},
        "ruined": {"identity": 0.4, "shown": 0.5, "clip_identity": 0.3, "clip_shown": 0.25},
    }
    films = [Row(run, story, story, of) for run, of in values.items() for story in ("a", "b")]
    found = quality_table(films, {}, [])
    (panel,) = (panel for panel in found.panels if any(c.key == "identity" for c in panel.columns))
    keys = [column.key for column in panel.columns]
    assert keys[keys.index("identity") + 1] == "shown"
    assert [line.cells["shown"].mean for line in found.lines] == [1.0, 0.5]
    (note,) = (note for note in found.notes if "Ruins are left out" in note)
    assert "as can be recognised: identity. " in note
    assert "recognised is the share of scenes that is left" in note
    found = quality_table(films, {}, [], further=("clip_identity", "told_apart", "clip_told_apart"))
    keys = [column.key for column in found.panels[-1].columns]
    assert keys == ["clip_identity", "clip_shown", "told_apart", "shown", "clip_told_apart"]
    assert [column.key for column in found.columns].count("shown") == 1  # of a program's table
    assert csv_text(found).splitlines()[0].count(",shown,") == 1
    assert (
        quality_table(films, {}, [], further=("identity", "shown")).panels
        == quality_table(films, {}, []).panels
    )
    notes = [note for note in found.notes if "Ruins are left out" in note]
    assert "identity, scene told apart (model's own encoder). " in notes[0]
    assert "right character (CLIP), scene told apart (CLIP). " in notes[1]
    assert "shows anything told (CLIP) is the share" in notes[1]


def test_what_is_not_there_says_why() -> None:
    cells = table().lines[0].cells
    assert cells["clip_add"].why == "no weights"
    assert cells["characters"].why == "no judge"
    assert cells["identity"].why == "no encoder"
    assert cells["sides"].why == "–"
    texts = {text for block in blocks(table()) for line in block.measured for text in line}
    assert {"no weights", "no judge", "no encoder"} <= texts


def test_a_star_is_for_what_no_correction_takes_away() -> None:
    """Of six stories the least p is 2/64; Holm doubles it for the first of two, which is too much."""
    assert all(line.cells["motion"].difference["p"] == 2 / 64 for line in table().lines[1:])  # type: ignore[index]
    assert not re.search(r"\d\*", str([block.measured for block in blocks(table())]))
    alone = quality_table(rows(6, ("out/full", "out/without-sar")), {}, [])
    (row,) = (line for block in blocks(alone)[-1:] for line in block.measured)  # the last panel's differences
    assert row == ("without-sar", "0.0 [0.0, 0.0]", "+1.25* [+1.12, +1.38] (+5.6)")
    assert any("at least 0.031, after the correction 0.031." in note for note in alone.notes)
    assert any("0.062: none can have a star, whatever it is." in note for note in table().notes)


def test_what_cannot_be_seen_is_said() -> None:
    (note,) = (note for note in table().notes if "cannot be seen" in note)
    found = [line.cells["motion"].difference["detectable"] for line in table().lines[1:]]  # type: ignore[index]
    assert f"motion {sum(found) / 2:.2f}" in note  # the median of two
    assert "With 6 stories" in note
    one = quality_table(rows(1), {}, [])
    assert "One story, each the mean of 2 seeds: there is no spread over stories." in one.notes
    assert any("nothing can be said of others" in note for note in one.notes)
    assert not any("cannot be seen" in note for note in one.notes)


def test_published_figures_stand_beside_ours_as_they_are() -> None:
    found = {line.title: line for line in table(published=True).lines if line.is_published}
    assert found["Vlogger (published)"].cells["lpips"].mean == 0.6193
    assert found["full (published)"].cells["blip_itm_double"].std == 1.6253
    first, *others = blocks(table(published=True))
    assert first.published[2][:3] == ("full (published)", "0.3055 ± 0.0095", "0.3211 ± 0.0122")
    assert not any(block.published for block in others)  # which the paper has no numbers for
    assert any("arXiv 2503.06310; figures as printed there" in note for note in table(published=True).notes)
    costs = cost_table([Row("full", 0, "a", {"memory_gb": 0.5, "seconds": 3.0})], {}, [], published=True)
    (block,) = blocks(costs)
    assert ("without SAR (published)", "30.5775", "1205.0", "–", "–") in block.published
    assert block.measured == (("full", "0.5000", "3.0", "–", "–"),)


def test_further_columns_have_a_panel_of_their_own() -> None:
    further = table(further=("seam_ratio", "motion"))
    assert [column.key for column in further.panels[-1].columns] == ["seam_ratio"]
    assert further.panels[-1].columns[0].title == METRICS["seam_ratio"].title


def test_csv_has_every_number_by_its_name() -> None:
    found = list(csv.DictReader(io.StringIO(csv_text(table(published=True)))))
    ours = {line["row"]: line for line in found if line["source"] == "measured"}
    cell = table().lines[1].cells["motion"]
    assert cell.difference is not None
    assert float(ours["without-sar"]["motion"]) == cell.mean
    assert float(ours["without-sar"]["motion_std"] or "nan") == cell.std
    assert float(ours["without-sar"]["motion_p_holm"]) == cell.difference["p_holm"]
    assert float(ours["without-sar"]["motion_g"]) == cell.difference["effect"]
    assert ours["full"]["clip_add"] == ours["full"]["motion_p"] == ""
    assert ours[Path(EVIL).name]["title"] == EVIL
    published = {line["row"]: line for line in found if line["source"] == "published"}
    assert published["mochi"]["dino"] == "0.953"


def test_markdown_has_as_many_cells_in_every_line_of_a_block() -> None:
    text = markdown_text(table(published=True))
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1
    assert r"\<b>" in text
    assert "<b>" not in text.replace(r"\<b>", "")


def test_latex_has_as_many_cells_as_columns_and_no_command_of_ours() -> None:
    text = latex_text(table(published=True))
    found = re.findall(r"\\begin\{tabular\}\{(l(r+))\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert [len(columns) for _, columns, _ in found] == [5, 4, 5, 2]
    for columns, _, body in found:
        for line in (line for line in body.splitlines() if line.endswith(r"\\")):
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line
        assert body.count(r"\toprule") == body.count(r"\bottomrule") == 1
    assert found[0][2].count(r"\midrule") == 2  # before ours, and before what was published
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert r"\input{b}" not in text
    assert r"100 \% of my\_method \& " in text


@given(st.text(st.sampled_from(r"ab1 \{}&%$#_~^<>±−–↑↓[]*|'" + '"')))
def test_no_text_is_a_command_in_latex(text: str) -> None:
    found = in_latex(text)
    known = r"\\textbackslash\{\}|\\textasciitilde\{\}|\\textasciicircum\{\}|\\[{}&%$#_]|\$\\?[a-z<>−-]+\$"
    assert not re.search(r"[\\{}&%$#_~^<>±−–↑↓]", re.sub(known, "", found.removeprefix("{}")))
    assert not found.startswith(("[", "*"))


@pytest.mark.skipif(LATEX is None, reason="neither pdflatex nor lualatex nor tectonic is here")
def test_latex_compiles(tmp_path: Path) -> None:
    (tmp_path / "quality.tex").write_text(latex_text(table(published=True)), "utf-8")
    costs = [Row(run, 0, "a", {"memory_gb": 0.5, "seconds": 3.0}) for run in ("full", "stock")]
    (tmp_path / "cost.tex").write_text(latex_text(cost_table(costs, {}, [EVIL], True)), "utf-8")
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        "\\input{quality.tex}\n\\input{cost.tex}\n\\end{document}\n"
    )
    options = [] if LATEX == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    command = [str(LATEX), *options, "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    if LATEX == "tectonic" and "network" in done.stderr:
        pytest.skip("tectonic has not got its packages")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000


def test_only_tables_are_known_as_such(tmp_path: Path) -> None:
    for ending, kind in ((".csv", "csv"), (".md", "markdown"), (".tex", "latex")):
        path = tmp_path / f"table{ending}"
        path.write_text(TEXTS[kind](table()), "utf-8")
        assert is_table(path)
        path.write_text("\\documentclass{article}\n")
        assert not is_table(path)
    path = tmp_path / "table.json"
    path.write_text(json_text({"command": ["storyreel"], "table": table().plain()}))
    assert is_table(path)
    assert json.loads(path.read_text())["table"]["number"] == 3
    path.write_text("{}")
    assert not is_table(path)


def test_a_table_is_the_same_again() -> None:
    for text in TEXTS.values():
        assert text(table(published=True)) == text(table(published=True))
