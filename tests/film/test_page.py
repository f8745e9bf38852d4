"""The film's page: what it shows, when it is written, and that it never costs a render anything."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html import unescape
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from storyreel.cli.app import run
from storyreel.film import page, reader, stills
from storyreel.film.folder import FilmFolder
from storyreel.film.inventory import Inventory
from storyreel.film.keys import film_facts
from storyreel.film.page import GrowingPage, Take, captions, clock, film_page, seconds_words
from storyreel.film.recorded import renew_page
from storyreel.film.store import Decided, Record, Store, read_record
from storyreel.film.verify import verify_folder
from storyreel.film.writer import Chapter
from storyreel.rendering import render
from storyreel.story.plan import Plan, Segment
from tests.conftest import FakeEngine, Silent, plan_of
from tests.film.test_keys import WITH_ENCODER
from tests.test_rendering import contents, make, raising, story

pytestmark = pytest.mark.usefixtures("fake_model")


def inventory_of(plan: Plan, done: int, decided: Decided | None = None) -> Inventory:
    """An inventory of which the first scenes are there."""
    found = Inventory(plan, film_facts(plan, WITH_ENCODER, "cpu"))
    for index in range(done):
        number, keys = f"{index + 1:02d}", found.keys
        weights: Decided = {"prompt_weights": [(0.5, 0.5)] * 3}
        found.latents[index, 1] = Record("latents", number, keys.latents[index], "s", "cpu", 3.0, 0, weights)
        found.video[index] = Record("video", number, keys.video[index], "s", "cpu", 0.4, 0, decided or {})
    return found


def shown(tmp_path: Path, plan: Plan, done: int, **options: Any) -> str:
    """The page of a film of which some scenes are there; of all of them, it is joined."""
    film = {"storyreel": "9"} if done == len(plan.segments) else None
    return film_page(FilmFolder(tmp_path, "foxes"), inventory_of(plan, done), film, **options)


def cues(address: str) -> list[tuple[str, str]]:
    """The times and texts of a WebVTT file in a data address."""
    text = base64.b64decode(address.removeprefix("data:text/vtt;base64,")).decode()
    head, *rest = text.rstrip("\n").split("\n\n")
    assert head == "WEBVTT"
    return [(time, words) for time, _, words in (cue.partition("\n") for cue in rest)]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0:00"), (2.25, "0:02.25"), (4.5, "0:04.5"), (64, "1:04"), (59.999, "1:00")]
)
def test_a_place_in_the_film_reads_as_in_players(seconds: float, words: str) -> None:
    assert clock(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(2, "2 s"), (3.4, "3.4 s"), (75.2, "1 min 15 s"), (7300, "2 h 2 min")]
)
def test_how_long_something_takes_reads_as_people_say_it(seconds: float, words: str) -> None:
    assert seconds_words(seconds) == words


def test_captions_are_a_cue_per_scene_and_no_text_is_more_than_text() -> None:
    chapters = [
        Chapter(0, 30, "a", "a <b>park</b> & more\nit --> sits"),
        Chapter(30, 24 * 3700, "b", "x" * 400 + "\n\n  \nبيت"),
    ]
    (first, words), (second, long) = cues(captions(chapters, 24))
    assert first == "00:00:00.000 --> 00:00:01.250"
    assert second == "00:00:01.250 --> 01:01:40.000"
    assert words == "a &lt;b&gt;park&lt;/b&gt; &amp; more\nit --&gt; sits"
    assert long == "x" * 299 + "…\nبيت"  # a blank line would end the cue


def test_a_seam_is_said_in_words_with_its_numbers_behind(tmp_path: Path) -> None:
    plan = plan_of(story(cut=3))
    page = shown(tmp_path, plan, 6)
    words = [unescape(found) for found in re.findall(r'class="seam">(?:<summary>|<small>)([^<]*)<', page)]
    assert words == [
        "Scene 1 dissolves into this one",
        "The shot goes on from scene 2",
        "A cut: this scene begins at once",
        "Scene 4 dissolves into this one",
        "The shot goes on from scene 5",
    ]
    assert "<dt>Taken over" not in page  # nothing is decided of it
    there = inventory_of(plan, 6, {"sides": {"before": "?", "apart": 3.21}})
    seam = plan.seams[1]
    decided: Any = {"after": 2, "transition": "continue", "overlap": 2, "strength": 0.5, "similarity": 0.62}
    there.latents[2, 1] = replace(there.latents[2, 1], decided={"seam": decided})
    sides: Any = {"sides": {"before": there.keys.latents[1], "apart": 3.21}}
    there.video[2] = replace(there.video[2], decided=sides)
    page = film_page(FilmFolder(tmp_path, "foxes"), there, {})
    assert seam.transition == "continue"
    numbers = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page))
    assert numbers["Taken over"] == "2 latent frames"
    assert numbers["Actions alike"] == "62 %"
    assert numbers["Strength"] == "0.5"
    assert numbers["Sides apart"] == "3.2 of 255, before any dissolve"


def test_nothing_is_said_to_blend_where_nothing_is(tmp_path: Path) -> None:
    page = shown(tmp_path, plan_of(story(), method=("strength=0",)), 6)
    assert page.count("nothing is blended") == 5


def test_weights_that_vary_are_curves_that_name_both_prompts(tmp_path: Path) -> None:
    plan = plan_of(story())
    there = inventory_of(plan, 6)
    weights = [(0.75, 0.25), (0.5, 0.5), (0.4, 0.6)]
    there.latents[0, 1] = replace(there.latents[0, 1], decided={"prompt_weights": weights})
    there.latents[1, 1] = replace(there.latents[1, 1], decided={"prompt_weights": [(0.7, 0.3)] * 3})
    page = film_page(FilmFolder(tmp_path, "foxes"), there, {})
    (label,) = re.findall(r'role="img" aria-label="([^"]*)"', page)
    assert label == (
        "Weight of each prompt over 3 steps of denoising: the scene prompt’s goes from 75 % to 40 %, "
        "the action prompt’s goes from 25 % to 60 %."
    )
    curves = re.findall(r'<polyline class="curve(\d)" points="([^"]*)"', page)
    assert curves == [("1", "36.0,29.0 174.0,50.0 312.0,58.4"), ("2", "36.0,71.0 174.0,50.0 312.0,41.6")]
    assert "scene prompt, 75 % to 40 %" in page
    assert "70 % scene, 30 % action prompt in all of 3 steps." in page
    assert page.count("Both prompts count the same in all of 3 steps.") == 4


def test_a_scene_with_one_prompt_shows_it_once_and_no_weights(tmp_path: Path) -> None:
    page = shown(tmp_path, plan_of("render: {model: fake}\nscenes: [a lake at night]\n"), 1)
    assert page.count("a lake at night") == 1
    assert "count the same" not in page


def test_times_are_where_they_belong(tmp_path: Path) -> None:
    page = shown(tmp_path, plan_of(story()), 6)
    assert page.count('<span class="took">3.4 s</span>') == 6
    assert "<span>6 scenes</span><span>3 s</span>" in page
    assert 'aria-label="Play scene 2, at 0:00.5"' in page
    assert "from 2.5 s to 3 s" in page


def test_an_unfinished_film_lists_what_is_there_and_what_is_to_come(tmp_path: Path) -> None:
    plan = plan_of(story())
    page = shown(tmp_path, plan, 2)
    assert "2 of 6 scenes can be watched" in page
    assert page.count(" disabled ") == page.count("to come<") == 4
    paths = [f"segments/{record.file}" for record in inventory_of(plan, 6).video.values()]
    assert re.findall(r'class="still" data-source="([^"]*)"', page) == paths
    alone = re.findall(r'data-captions="([^"]*)"', page)
    assert [cues(address) for address in alone[:2]] == [
        [("00:00:00.000 --> 00:00:00.500", "a park\na fox sits")],
        [("00:00:00.000 --> 00:00:00.500", "a street\nit walks")],
    ]
    finished = shown(tmp_path, plan, 6)
    assert 'class="growth"' not in finished
    assert set(re.findall(r'class="still" data-source="([^"]*)"', finished)) == {"foxes.mp4"}
    assert " disabled " not in finished


def test_takes_are_shown_where_a_scene_has_some(tmp_path: Path) -> None:
    plan = plan_of(story())
    takes = {1: [Take(1, "", "segments/02-a.mp4", False), Take(2, "AAAA", "segments/02 b#.mp4", True)]}
    page = shown(tmp_path, plan, 6, takes=takes)
    assert page.count('class="takes"') == 1
    assert 'data-source="segments/02%20b%23.mp4"' in page
    assert 'aria-label="Play take 2 of scene 2"' in page
    assert "Take 1</li>" in page
    assert "Take 2 <b>in the film</b></li>" in page
    assert 'class="takes"' not in shown(tmp_path, plan, 6)


EVIL = [
    "</script><script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "{{ 7*7 }} {% x %} </style>",
]


def test_no_text_of_a_story_is_more_than_text(tmp_path: Path) -> None:
    scenes = [[f"{text} one".replace("{", "{{").replace("}", "}}"), "بيت two 🦊"] for text in EVIL]
    told = {"title": EVIL[1], "scenes": scenes, "render": {"model": "fake"}}
    plan = plan_of(json.dumps(told, ensure_ascii=False))
    for done in (0, 3):
        page = shown(tmp_path, plan, done)
        assert page.count("<script>") == page.count("</script>") == 1
        assert page.count("<style>") == page.count("</style>") == 1
        assert "<img src=x" not in page
        texts = [unescape(found) for found in re.findall(r'class="place" dir="auto">([^<]*)<', page)]
        assert texts == [f"{text} one" for text in EVIL]


def test_a_page_of_a_hundred_scenes_stays_small(tmp_path: Path) -> None:
    plan = plan_of(story([("a park in the rain " * 6, "a fox sits on a bench " * 4)] * 100))
    still = base64.b64encode(bytes(stills.MOST)).decode()
    there = inventory_of(plan, 100, {"still": still})
    assert len(film_page(FilmFolder(tmp_path, "foxes"), there, {}).encode()) < 1.5e6


@pytest.mark.parametrize("size", [(96, 64), (256, 256)])
def test_a_picture_is_of_the_middle_and_small_also_of_noise(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    width, height = size
    flat = [bytes([value]) * (width * height * 3) for value in (0, 90, 200)]
    monkeypatch.setattr(reader, "read_frames", lambda *_: iter([flat[0] + flat[1], flat[2]]))
    data = stills.still_of(Path("a.mp4"), size)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == size
        assert picture.getpixel((5, 5)) == pytest.approx((90, 90, 90), abs=2)
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, width * height * 3, dtype=np.uint8).tobytes()
    monkeypatch.setattr(reader, "read_frames", lambda *_: iter([noise]))
    assert len(stills.still_of(Path("a.mp4"), size)) <= stills.MOST


@pytest.mark.parametrize(
    ("size", "upscale", "wanted"), [((848, 480), 1, (256, 145)), ((64, 96), 1, (64, 96))]
)
def test_pictures_keep_the_shape_of_the_film(
    size: tuple[int, int], upscale: int, wanted: tuple[int, int]
) -> None:
    plan = plan_of(story())
    settings = replace(plan.settings, width=size[0], height=size[1])
    plan = replace(plan, settings=settings, spec=replace(plan.spec, upscale=upscale))
    assert stills.still_size(plan) == wanted


@pytest.mark.usefixtures("ffmpeg")
def test_pictures_are_made_once_and_again_only_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = story([("a park", "a fox sits"), ("a street", "it walks")])
    make(tmp_path, short)
    before = contents(tmp_path)
    records = sorted((tmp_path / "foxes" / "segments").glob("*.mp4.json"))
    texts = [path.read_text() for path in records]
    pictures = [json.loads(text)["decided"]["still"] for text in texts]
    page = (tmp_path / "foxes" / "index.html").read_text()
    assert all(f'src="data:image/jpeg;base64,{picture}"' in page for picture in pictures)
    of_film = [*reader.read_frames(tmp_path / "foxes" / "foxes.mp4", 96, 64)]
    frames = b"".join(of_film)
    for index, picture in enumerate(pictures):
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            middle = frames[(6 * index + 3) * 96 * 64 * 3]
            assert image.size == (96, 64)
            assert image.convert("L").getpixel((50, 30)) == pytest.approx(middle, abs=4)

    made: list[Path] = []
    still_of = stills.still_of

    def counted(path: Path, size: tuple[int, int]) -> bytes:
        made.append(path)
        return still_of(path, size)

    monkeypatch.setattr(stills, "still_of", counted)
    make(tmp_path, short)
    assert made == []
    # A film that was made before there were pictures gets them, and nothing else of it changes.
    record = read_record(records[1])
    assert record is not None
    without = record.decided.copy()
    del without["still"]
    Store(records[1].parent).write(replace(record, decided=without))
    result, _, engine = make(tmp_path, short)
    assert (result.rendered, engine.asked, len(made)) == (0, 0, 1)
    assert [path.read_text() for path in records] == texts
    assert contents(tmp_path) == before


def test_a_video_without_a_picture_is_no_fault(tmp_path: Path) -> None:
    """The fake films are no videos."""
    make(tmp_path)
    page = (tmp_path / "foxes" / "index.html").read_text()
    assert page.count('class="blank"') == 6
    assert "still" not in (next((tmp_path / "foxes" / "segments").glob("*.mp4.json"))).read_text()


class Watching(Silent):
    """Reads the page whenever a scene is finished."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.pages: list[str] = []

    def segment_finished(self, segment: Segment) -> None:
        self.pages.append(self.path.read_text())
        super().segment_finished(segment)


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A render that writes the page after every scene, however long that takes."""
    monkeypatch.setattr(page, "SHARE", 0)


@pytest.mark.usefixtures("unhurried")
def test_the_page_grows_with_the_film(tmp_path: Path) -> None:
    watching = Watching(tmp_path / "foxes" / "index.html")
    render(plan_of(story()), "foxes", tmp_path, FakeEngine(), watching)
    assert len(watching.pages) == 6
    for count, text in enumerate(watching.pages, 1):
        assert f"{count} of 6 scenes can be watched" in text
        assert text.count(" disabled ") == 6 - count
        for path in re.findall(r'class="still" data-source="([^"]*)"', text)[:count]:
            assert (tmp_path / "foxes" / path).is_file()
    assert 'class="growth"' not in watching.path.read_text()


@pytest.mark.usefixtures("unhurried")
def test_the_page_of_the_film_that_is_there_stays_while_its_successor_grows(tmp_path: Path) -> None:
    make(tmp_path)
    folder = tmp_path / "foxes"
    before = {name: (folder / name).read_bytes() for name in ("index.html", "foxes.mp4", "manifest.json")}
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, engine=raising(FakeEngine(), 8), seed=1)
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert "1 of 6 scenes can be watched" in (folder / "unfinished.html").read_text()
    assert 'href="index.html"' in (folder / "unfinished.html").read_text()
    assert not any(verify_folder(folder).values())
    make(tmp_path, seed=1)
    assert not (folder / "unfinished.html").exists()
    assert (folder / "index.html").read_bytes() != before["index.html"]


def test_a_page_that_cannot_be_written_stops_no_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "undisturbed")

    def failing(*_: object) -> None:
        raise ValueError("no page")

    monkeypatch.setattr(page, "write_atomically", failing)
    monkeypatch.setattr("storyreel.rendering.write_page", lambda folder, text: None)
    result, _, _ = make(tmp_path)
    assert result.rendered == 6
    events = FilmFolder(tmp_path / "foxes", "foxes").events()
    assert {"page": "ValueError: no page"} in [{e["event"]: e.get("reason")} for e in events]


def test_a_growing_page_takes_a_hundredth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    written: list[float] = []

    def slowly(path: Path, text: str) -> None:
        nonlocal now
        written.append(now)
        now += 2

    monkeypatch.setattr(page, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(page, "write_atomically", slowly)
    growing = GrowingPage(FilmFolder(tmp_path, "foxes"), inventory_of(plan_of(story()), 2))
    for _ in range(1000):
        growing.write()
        now += 1
    assert written[:2] == [1000, 1003]  # before the first, the template was read
    assert 5 <= len(written) <= 7
    assert all(later - earlier >= 200 for earlier, later in pairwise(written[1:]))


def test_what_lies_beside_the_film_is_linked(tmp_path: Path) -> None:
    make(tmp_path)
    folder = tmp_path / "foxes"
    path = folder / "index.html"
    plain = path.read_bytes()
    assert b"eval.html" not in plain
    assert b"sheet.png" not in plain
    sha256 = json.loads((folder / "manifest.json").read_text())["film"]["sha256"]
    (folder / "eval.html").write_text('<a data-film="another">')
    renew_page(folder)
    assert path.read_bytes() == plain  # a report of a film that was here before
    (folder / "eval.html").write_text(f'<a data-film="{sha256}">')
    (folder / "sheet.png").write_bytes(b"")
    renew_page(folder)
    assert b'href="eval.html"' in path.read_bytes()
    assert b'href="sheet.png"' in path.read_bytes()
    assert not any(verify_folder(folder).values())
    make(tmp_path)
    assert b'href="eval.html"' in path.read_bytes()


@pytest.mark.usefixtures("ffmpeg")
def test_eval_links_page_and_report_with_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, story([("a park", "a fox sits"), ("a street", "it walks")]))
    folder = tmp_path / "foxes"
    reported: list[Path] = []

    def report(evaluation: Any, place: Path) -> str:
        reported.append(place)
        return f'<a data-film="{evaluation.films[0].film.sha256}">'

    def evaluate(films: Any, *_: object) -> Any:
        return SimpleNamespace(films=[SimpleNamespace(film=films[0])], plain=dict), []

    monkeypatch.setattr("storyreel.evaluation.evaluator.evaluate", evaluate)
    monkeypatch.setattr("storyreel.evaluation.report.report_page", report)
    assert run(["eval", str(folder), "--json"]) == 0
    assert reported == [folder]
    assert 'href="eval.html"' in (folder / "index.html").read_text()


def test_a_page_is_renewed_only_where_a_complete_film_is(tmp_path: Path) -> None:
    renew_page(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, engine=raising(FakeEngine(), 8))
    before = (tmp_path / "foxes" / "index.html").read_bytes()
    renew_page(tmp_path / "foxes")
    assert (tmp_path / "foxes" / "index.html").read_bytes() == before
    make(tmp_path)
    path, page = tmp_path / "foxes" / "index.html", (tmp_path / "foxes" / "index.html").read_bytes()
    path.write_text("damaged")
    renew_page(tmp_path / "foxes")
    assert path.read_bytes() == page
    with FilmFolder(tmp_path / "foxes", "foxes"):
        path.write_text("damaged")
        renew_page(tmp_path / "foxes")  # in use
        assert path.read_text() == "damaged"
