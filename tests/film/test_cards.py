"""Titles and end cards: drawn, joined, and in no way of the scenes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFont

from storyreel.errors import ScriptError, UsageError
from storyreel.evaluation.films import looked_at, rendered_film
from storyreel.film import cards
from storyreel.film.dissolve import Part, film_frames
from storyreel.film.keys import film_facts, film_key, ingredients
from storyreel.film.timeline import timeline_of
from storyreel.film.verify import verify_folder
from storyreel.models.specs import ModelSpec
from storyreel.story.cards import ENGLISH
from storyreel.story.plan import Card
from tests.conftest import FAKE_SIZE, FakeEngine, Silent, plan_of
from tests.test_rendering import contents, make

pytestmark = pytest.mark.usefixtures("fake_model")

STORY = """
title: Foxes
cast: {fox: {name: a fox}}
render: {model: fake, seconds: 0.5}
scenes:
  - ["{fox} in a park", "{fox} sits"]
  - {scene: "{fox} by a lake", action: "{fox} walks", transition: dissolve}
  - {scene: "{fox} at home", action: "{fox} sleeps", transition: fade}
"""
TITLED = (
    STORY
    + """
opening: "A {fox.noun}'s day"
ending: {text: "The End\\n\\nby nobody", seconds: 0.25, ground: white}
"""
)
WITH_CARD = TITLED.replace("transition: dissolve", "transition: dissolve, card: {text: Later, seconds: 1}")


def ink(picture: Image.Image) -> NDArray[np.bool_]:
    """Where a picture is not its ground."""
    pixels = np.asarray(picture.convert("L")).astype(int)
    where: NDArray[np.bool_] = np.abs(pixels - pixels[0, 0]) > 100
    return where


def card(text: str, ground: str = "black") -> Card:
    return Card(0, text, ground, 12, 0)


@pytest.mark.parametrize(("width", "height"), [(768, 512), (384, 256), (1280, 704), (480, 832), (96, 64)])
@pytest.mark.parametrize("text", ["The End", "A corgi in New York\n\nby nobody", "a word " * 40, "W" * 300])
def test_a_card_stands_in_the_middle_and_is_as_large_as_it_fits(text: str, width: int, height: int) -> None:
    where = ink(cards.card_picture(card(text.strip()), width, height))
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    assert where.any()
    assert rows[0] >= 0.08 * height
    assert rows[-1] <= 0.92 * height
    assert columns[0] >= 0.08 * width
    assert columns[-1] <= 0.92 * width
    assert abs(rows[0] + rows[-1] - height) <= 0.1 * height  # letters reach up and down differently
    assert abs(columns[0] + columns[-1] - width) <= 0.04 * width
    if height >= 256:  # and then 300 letters can still be read
        assert rows[-1] - rows[0] >= 0.04 * height


def test_text_is_of_the_other_colour_and_lines_stay_lines() -> None:
    black, white = (cards.card_picture(card("one\n\ntwo", ground), 384, 256) for ground in ("black", "white"))
    assert (black.getpixel((0, 0)), white.getpixel((0, 0))) == ((0, 0, 0), (255, 255, 255))
    assert np.array_equal(np.asarray(black), 255 - np.asarray(white))
    rows = ink(black).any(1)
    assert (np.diff(rows.astype(int)) == 1).sum() == 2  # two runs of ink
    assert (
        cards.card_picture(card("one"), 384, 256).tobytes()
        != cards.card_picture(card("two"), 384, 256).tobytes()
    )


def test_a_title_is_not_broken_where_it_fits_in_a_smaller_size() -> None:
    rows = ink(cards.card_picture(card("A corgi in New York"), 384, 256)).any(1).astype(int)
    assert (np.diff(rows) == 1).sum() == 1
    rows = ink(cards.card_picture(card("A corgi in New York, who is waiting for a bus"), 384, 256)).any(1)
    assert (np.diff(rows.astype(int)) == 1).sum() > 1


def test_letters_that_stories_may_use_are_those_that_the_font_knows() -> None:
    """No less: any other printable sign below 3000 is drawn as what is missing."""
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    missing = cards._ink(font, "\uffff")
    found = {c for c in map(chr, range(32, 0x3000)) if c.isprintable() and cards._ink(font, c) != missing}
    assert found | {" "} == ENGLISH


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(text=st.text(sorted(ENGLISH - {"{", "}"} | {"\n"}), min_size=1, max_size=300))
def test_whatever_is_legal_is_drawn_inside_the_picture(text: str) -> None:
    if any(c not in " \n" for c in text) and text.count("\n") < 8:
        where = ink(cards.card_picture(card(text.strip()), 192, 128))
        assert not where[:8].any()
        assert not where[-8:].any()
        assert not where[:, :8].any()
        assert not where[:, -8:].any()


def test_cards_lie_on_the_timeline_and_in_no_key_of_a_segment() -> None:
    plain, titled = plan_of(STORY), plan_of(WITH_CARD)
    assert [(c.before, c.text, c.frames, c.start, c.ground) for c in titled.cards] == [
        (0, "A fox's day", 36, 0, "black"),
        (1, "Later", 12, 42, "black"),
        (3, "The End\n\nby nobody", 3, 66, "white"),
    ]
    assert [segment.start for segment in titled.segments] == [36, 54, 60]
    assert (plain.frames, titled.frames) == (18, 69)
    assert [replace(s, start=0) for s in titled.segments] == [replace(s, start=0) for s in plain.segments]
    assert (titled.forwards, titled.seams) == (plain.forwards, plain.seams)
    assert "cards" not in plain.story


def test_stories_without_cards_are_what_they_were() -> None:
    """A film's tags name its story's digest."""
    story = plan_of(STORY).story
    assert set(story) == {"title", "cast", "scenes", "render"}
    assert {key for scene in story["scenes"] for key in scene} == {"scene", "action", "seconds", "transition"}
    assert plan_of(TITLED).story["ending"] == {
        "text": "The End\n\nby nobody",
        "seconds": 0.25,
        "ground": "white",
    }


def test_a_card_renders_nothing_and_a_changed_one_neither(tmp_path: Path) -> None:
    make(tmp_path, STORY)
    before = contents(tmp_path)
    result, progress, engine = make(tmp_path, TITLED)
    assert (result.rendered, progress.forwards, engine.asked) == (0, 0, 0)
    assert any("the cards" in words for words in progress.heard), progress.heard
    after = contents(tmp_path)
    assert {name for name in before if before[name] != after.get(name)} == {
        "foxes/foxes.mp4",
        "foxes/index.html",
    }
    assert set(after) == set(before)  # no card is left behind
    changed = TITLED.replace("The End", "Fin")
    assert make(tmp_path, changed)[0].rendered == 0
    assert contents(tmp_path)["foxes/foxes.mp4"] != after["foxes/foxes.mp4"]
    assert make(tmp_path, TITLED)[0].rendered == 0
    assert contents(tmp_path) == after  # the same bytes again
    make(tmp_path, STORY)
    assert contents(tmp_path) == before


def test_a_scene_does_not_dissolve_over_a_card(tmp_path: Path) -> None:
    """Its two neighbours are encoded again, once, and nothing is denoised."""
    make(tmp_path, TITLED)
    result, progress, _ = make(tmp_path, WITH_CARD)
    assert (result.rendered, progress.forwards) == (2, 0)
    cut = WITH_CARD.replace("transition: dissolve", "transition: cut")
    assert make(tmp_path, cut)[1].forwards > 0  # which is another lead, as without a card
    clips = timeline_of(tmp_path / "foxes").clips
    assert [clip.number for clip in clips] == [None, 1, None, 2, 3, None]


def test_of_two_scenes_with_a_card_between_neither_shows_the_other() -> None:
    for text, mixed in ((TITLED, 4), (WITH_CARD, 0)):
        plan = plan_of(text)
        assert plan.seams[0].transition == "dissolve"
        frames = [frame for segment in plan.segments[:2] for frame in film_frames(plan, segment)]
        assert sum(len({part.segment for part in f if isinstance(part, Part)}) == 2 for f in frames) == mixed


def test_all_that_a_card_shows_is_in_the_films_key(fake_model: ModelSpec) -> None:
    def key(text: str, **other: str) -> str:
        plan = plan_of(text)
        facts = film_facts(plan, ingredients(fake_model), "cpu")
        return film_key(plan, facts | {"drawn_by": facts["drawn_by"] | other}, ["a", "b", "c"])

    black = TITLED.replace("ground: white", "ground: black")
    keys = [key(TITLED), key(black), key(WITH_CARD)]
    keys += [key(TITLED, font="another"), key(TITLED, pillow="0"), key(TITLED, recipe="another")]
    assert len(set(keys)) == len(keys)
    assert key(TITLED) == keys[0]


def test_a_film_with_cards_is_whole(tmp_path: Path) -> None:
    make(tmp_path, WITH_CARD)
    assert not any(verify_folder(tmp_path / "foxes").values())
    timeline = timeline_of(tmp_path / "foxes")
    assert [(clip.start, clip.frames, clip.number) for clip in timeline.clips] == [
        (0, 36, None),
        (36, 6, 1),
        (42, 12, None),
        (54, 6, 2),
        (60, 6, 3),
        (66, 3, None),
    ]
    assert timeline.clips[-1].caption == "The End\nby nobody"  # an empty line would end a caption
    words = [clip.join and (clip.join.words, clip.join.before, clip.join.behind) for clip in timeline.clips]
    assert words == [
        None,
        ("cut from a card", 0, 0),
        ("cut to a card", 0, 0),
        ("dissolve, with a card between", 0, 0),
        ("fade through black over 6 frames", 3, 3),
        ("cut to a card", 0, 0),
    ]
    manifest = tmp_path / "foxes" / "manifest.json"
    text = json.loads(manifest.read_text())
    text["cards"][1]["frames"] += 1
    manifest.write_text(json.dumps(text))
    assert any(verify_folder(tmp_path / "foxes").values())


def test_a_card_is_no_scene_to_eval(tmp_path: Path) -> None:
    """The scenes are looked at as if they were all of the film, and nothing grows over a card."""
    make(tmp_path, WITH_CARD)
    film = looked_at(rendered_film("out", "foxes", "foxes", tmp_path / "foxes"), 12)
    assert [(span.start, span.stop) for span in film.spans] == [(0, 6), (6, 12), (12, 18)]
    assert film.picks == (*range(36, 42), *range(54, 66))
    assert (film.frames, film.seconds) == (18, 1.5)
    assert [span.blended for span in film.spans] == [False, False, False]
    assert [span.fades for span in film.spans] == [(False, False), (False, True), (True, False)]
    times = [film.time_of(span.start / film.fps) for span in film.spans]
    assert times == [segment.start / 12 for segment in plan_of(WITH_CARD).segments]
    half = looked_at(rendered_film("out", "foxes", "foxes", tmp_path / "foxes"), 6)
    assert half.picks == (36, 38, 40, 54, 56, 58, 60, 62, 64)


@pytest.mark.usefixtures("ffmpeg")
def test_the_film_shows_its_cards(tmp_path: Path) -> None:
    make(tmp_path, WITH_CARD)
    with av.open(str(tmp_path / "foxes" / "foxes.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        chapters = [(c["start"], c["end"], c["metadata"]["title"]) for c in container.chapters()]
        bases = {c["time_base"] for c in container.chapters()}
    assert len(frames) == 69
    for part in plan_of(WITH_CARD).cards:
        wanted = np.asarray(cards.card_picture(part, *FAKE_SIZE)).astype(int)
        for frame in frames[part.start : part.start + part.frames]:
            assert np.abs(frame - wanted).mean() < 4
    (base,) = bases
    assert base is not None
    assert [(round(a * base * 12), round(b * base * 12), title) for a, b, title in chapters] == [
        (0, 36, "A fox's day"),
        (36, 42, "a fox in a park"),
        (42, 54, "Later"),
        (54, 60, "a fox by a lake"),
        (60, 66, "a fox at home"),
        (66, 69, "The End by nobody"),
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("opening: Füchse", "'ü' is not in the font that comes along"),
        ("opening: {text: 東京, seconds: 1}", "font: NotoSans-Regular.ttf"),
        ("opening: שלום", "from left to right"),
        ('opening: "{bear} and {fox}"', "unknown placeholder {bear}"),
        ("opening: {text: a, ground: red}", "input should be 'black' or 'white'"),
        ("opening: {text: a, secs: 2}", "unknown key 'secs'; allowed: text, seconds, ground"),
        ("opening: {seconds: 2}", "the key 'text' is missing"),
        ("opening: [a, b]", "a card is text, or has the keys text, seconds, ground"),
        ('opening: " "', "empty text"),
        (f"opening: {'long ' * 70}", "at most 300 characters"),
        ('opening: "' + r"a\n" * 8 + 'a"', "at most 8 lines"),
        ("opening: {text: a, seconds: 0}", "greater than 0"),
        ("opening: a\nfont: none.ttf", "there is no font none.ttf"),
    ],
)
def test_what_cannot_be_a_card_is_a_fault_with_its_place(given: str, words: str) -> None:
    with pytest.raises(ScriptError) as caught:
        plan_of(f"{STORY}\n{given}\n")
    (fault,) = caught.value.faults
    assert words in fault.message
    assert fault.line > STORY.count("\n")


def test_a_scenes_card_has_its_place_too() -> None:
    for text, words in (
        ("Füchse", "'ü' is not"),
        ("{bear}", "unknown placeholder"),
        ("{text: a, x: 1}", "key 'x'"),
    ):
        quoted = text if ":" in text else f'"{text}"'
        with pytest.raises(ScriptError) as caught:
            plan_of(STORY.replace("transition: fade", f"transition: fade, card: {quoted}"))
        (fault,) = caught.value.faults
        assert words in fault.message
        assert "at home" in fault.source


def test_a_font_that_somebody_has(tmp_path: Path) -> None:
    """Pillow's own as a file: it is read, it lacks what it lacks, and it is in the film's key."""
    own = ImageFont.load_default(20)
    assert isinstance(own, ImageFont.FreeTypeFont)
    file = tmp_path / "own.ttf"
    file.write_bytes(own.font_bytes)
    plan = replace(plan_of(TITLED), font=file)
    cards.check_font(plan)
    assert cards.card_picture(plan.cards[0], 384, 256, file) == cards.card_picture(plan.cards[0], 384, 256)
    assert cards.drawn_by(plan)["font"] != cards.drawn_by(replace(plan, font=None))["font"]
    lacking = replace(plan, cards=(replace(plan.cards[0], text="Füchse"),))
    with pytest.raises(UsageError, match=r"own\.ttf has no 'ü'"):
        cards.check_font(lacking)
    file.write_bytes(b"no font")
    with pytest.raises(UsageError, match=r"own\.ttf cannot be read"):
        cards.check_font(plan)


def test_a_font_lies_beside_the_story(tmp_path: Path, fake_engine: FakeEngine) -> None:
    from storyreel.cli.app import run
    from storyreel.story.planning import make_plan
    from storyreel.story.schema import load_story

    own = ImageFont.load_default(20)
    assert isinstance(own, ImageFont.FreeTypeFont)
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "own.ttf").write_bytes(own.font_bytes)
    story = tmp_path / "fox.yaml"
    story.write_text(f"{TITLED}\nfont: fonts/own.ttf\n")
    assert make_plan(load_story(story), "fox").font == tmp_path / "fonts" / "own.ttf"
    assert run(["render", str(story), "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "fonts" / "own.ttf").unlink()
    assert not any(verify_folder(tmp_path / "out" / "fox").values())  # which needs no font
    assert run(["validate", str(story)]) == 65


def test_a_render_that_fails_leaves_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("storyreel.film.writer.join", fail)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, TITLED)
    assert not list(tmp_path.rglob("card-*"))
    assert Silent().heard == []
