"""The report, and the words and tables that the terminal shares with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storyreel.evaluation.films import Film, Span
from storyreel.evaluation.findings import Finding
from storyreel.evaluation.frames import Pictures
from storyreel.evaluation.metrics import METRICS
from storyreel.evaluation.report import is_report, report_page, run_heads, titled
from storyreel.evaluation.result import Evaluation, Scored
from storyreel.evaluation.statistics import Row, compare


@pytest.mark.parametrize(
    ("runs", "heads"),
    [
        (["out/ablation/full", "out/ablation/without-all"], ["full", "without-all"]),
        (["out", "baseline"], ["out", "baseline"]),
        (["out", "/data/out"], ["out", "/data/out"]),
        (["/a/out", "/b/out"], ["/a/out", "/b/out"]),
        (["out/nyc"], ["out/nyc"]),
    ],
    ids=str,
)
def test_runs_side_by_side_are_told_by_their_names(runs: list[str], heads: list[str]) -> None:
    assert list(run_heads(runs).values()) == heads


EVIL = '"><script>alert(1)</script>&amp;'


def evaluation(*runs: str) -> Evaluation:
    """Three scenes whose every word is an attack, the second of them with a finding."""
    scenes: list[dict[str, Any]] = [{"jump": value, "motion": 1.0} for value in (1.0, 9.0, 1.1)]
    seams = [{"after": after, "blended": True, "seam_ratio": float(after)} for after in (1, 2)]
    whole = dict.fromkeys(METRICS) | {"jump": 3.7, "motion": 1.0, "seam_ratio": 1.5}
    scores = {"scenes": scenes, "seams": seams, "film": whole, "prompts_cut": []}
    spans = tuple(Span(EVIL, f"{EVIL}!", 24 * i, 24 * (i + 1), i > 0) for i in range(3))
    films = [
        Film(run, EVIL, Path("x.mp4"), EVIL, 12.0, spans, notes=(EVIL,), seconds=6.0, story="x")
        for run in runs
    ]
    pictures = [Pictures(b"middle", b"first", b"last")] * 3
    scored = [Scored(film, scores, [Finding("jump", 2, 3.5, EVIL)], pictures) for film in films]
    rows = [Row(run, "x", "x", whole) for run in runs]
    return Evaluation(scored, compare(rows, METRICS, runs[0]), {"clip_add": EVIL}, {})


@pytest.mark.parametrize("runs", [(EVIL,), (EVIL, "other")], ids=["one", "two"])
def test_nothing_from_outside_is_markup(runs: tuple[str, ...]) -> None:
    page = report_page(evaluation(*runs))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;" in page
    assert '""' not in page.replace('class=""', "")  # no attribute is ended early


def test_a_report_shows_where_a_film_is_bad() -> None:
    page = report_page(evaluation("out"))
    assert "<li><b>0:03.5</b>" in page
    assert (
        "<b>Scene 2</b>, 0:02.0: largest step inside the scene <b>9.00</b> usual steps (usually 1.10)" in page
    )
    assert "<b>Scenes 2 and 3</b>, 0:04.0: seam ratio\n<b>2.00</b> usual steps (usually 1.50)" in page
    assert page.count('<figure class="bad">') == 1
    assert '<rect class="wrong" x="1.1"' in page
    assert "<title>scenes 2 and 3: 2.00</title>" in page
    assert page.count("data:image/jpeg;base64,") == 1 + 2 + 3  # a scene, both sides of a seam, every scene
    assert "In numbers" in page


def test_times_are_the_films_with_its_cards() -> None:
    whole = evaluation("out")
    whole.films[0] = replace(whole.films[0], film=replace(whole.films[0].film, cards=((0.0, 3.0),)))
    page = report_page(whole)
    assert "<b>Scene 2</b>, 0:05.0: " in page
    assert "<b>Scenes 2 and 3</b>, 0:07.0: " in page


def test_only_a_report_is_taken_for_one(tmp_path: Path) -> None:
    page, other = tmp_path / "eval.html", tmp_path / "story.yaml"
    page.write_text(report_page(evaluation("out")))
    other.write_text("scenes: [a fox]")
    assert is_report(page)
    assert not is_report(other)


def test_one_prompt_alone_is_shown_once_and_told_once() -> None:
    whole = evaluation("out")
    film = whole.films[0].film
    one = Span("a fox sits", "a fox sits", 0, 24, False)
    assert (one.prompt, replace(one, action="it runs").prompt) == ("a fox sits", "a fox sits it runs")
    whole.films[0] = replace(whole.films[0], film=replace(film, spans=(one, *film.spans[1:])))
    page = report_page(whole)
    assert page.count("a fox sits") == 1
    assert "<br><small></small>" not in page


def test_a_report_shows_how_looks_are_kept_over_the_film() -> None:
    whole = evaluation("out")
    assert "by distance" not in report_page(whole)
    curve = [{"distance": d, "pairs": 3 - d, "colour": 100.0 / d, "wear": 0.0, "look": 0.0} for d in (1, 2)]
    whole.films[0].scores["looks_by_distance"] = curve
    page = report_page(whole)
    assert "The same look, by distance" in page
    assert "<title>2 scenes apart: 50.0 of 1 pairs</title>" in page
    assert page.count("% of pairs, ") == 3


def test_a_report_shows_similarity_by_distance() -> None:
    whole = evaluation("out")
    curve = [{"distance": d, "pairs": 3 - d, "similarity": value} for d, value in ((1, 0.8125), (2, -0.25))]
    whole.films[0].scores["similarity_by_distance"] = curve
    page = report_page(whole)
    assert "Similarity, by distance" in page
    assert "The same look, by distance" not in page
    assert "<title>1 scenes apart: 0.812 of 2 pairs</title>" in page
    assert "mean cosine of pairs, -0.250 to 0.812" in page
    assert 'y="18.8"' in page  # as high as it is alike
    assert 'height="0.8"' in page  # none has no bar below the ground


def test_what_a_still_has_stands_beside_a_metric() -> None:
    assert titled(METRICS["boundary_similarity"]) == "boundary similarity, shot goes on (a still: 1) ↑"
    assert titled(METRICS["drift_motion"]) == "drift of motion (a still: 0) ↓"
    assert "still" not in titled(METRICS["motion"])


def test_what_chance_gives_stands_beside_a_metric() -> None:
    assert titled(METRICS["colour_kept"]) == "same colour of coat or clothes, % of scenes (chance 25) ↑"
    assert "chance" not in titled(METRICS["characters"])


def test_a_report_leads_to_the_pages_of_the_films(tmp_path: Path) -> None:
    scored = evaluation("out")
    folder = tmp_path / "a film #1"
    folder.mkdir()
    film = replace(scored.films[0].film, folder=folder, sha256="5ha")
    scored = replace(scored, films=[replace(scored.films[0], film=film)])
    assert "data-film" not in report_page(scored, tmp_path)  # it has no page
    (folder / "index.html").touch()
    link = '<a href="{}" data-film="5ha">'
    assert link.format("index.html") in report_page(scored, folder)
    assert link.format("a%20film%20%231/index.html") in report_page(scored, tmp_path)
    assert link.format("../a%20film%20%231/index.html") in report_page(scored, tmp_path / "reports")
    assert "data-film" not in report_page(scored)
