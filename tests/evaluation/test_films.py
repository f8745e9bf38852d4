"""Which films are scored, in which runs, and when their scenes begin: without a picture decoded."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from storyreel.errors import StoryreelError, UsageError
from storyreel.evaluation.films import Film, collect, find_films, foreign_film, looked_at, rendered_film
from storyreel.film import reader
from storyreel.film.reader import Facts, Frames
from storyreel.story.planning import make_plan
from storyreel.story.schema import parse_story

STORY = """\
cast: {first: {name: a fox, possessive: its}}
scenes:
  - ["{first} is in the park", "{first} sits"]
  - ["{first} is on a street", "{first} walks"]
  - {scene: "{first} is on a bus", action: "{first} looks", transition: cut}
"""
FPS, SCENE = 12, 24


def rendered(folder: Path, story: str = STORY, fps: int = FPS, **settings: Any) -> Path:
    """Write what a render leaves of a story, but for a picture."""
    folder.mkdir(parents=True)
    film = folder / "film.mp4"
    film.write_bytes(os.fsencode(folder))
    parsed = parse_story("story.yaml", story.encode())
    manifest = {
        "title": "Foxes",
        "story": parsed.model_dump(mode="json"),
        "model": {"name": "mini"},
        "settings": {"fps": fps, **settings},
        # Without any blending: the story wants it all the same.
        "segments": [
            {
                "scene": s.scene,
                "action": s.action,
                "start": SCENE * s.index,
                "frames": SCENE,
                "blended": False,
            }
            for s in make_plan(parsed, "foxes").segments
        ],
        "film": {"file": film.name, "sha256": hashlib.sha256(film.read_bytes()).hexdigest()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def runs(*out: Path) -> list[tuple[str, str, str]]:
    films, errors = collect(out, [])
    assert errors == []
    return [(film.run, film.name, film.story) for film in films]


@pytest.fixture
def ablation(tmp_path: Path) -> Path:
    """A run of two films, and in it an ablation of two variants and two seeds."""
    out = tmp_path / "out"
    rendered(out / "foxes")
    rendered(out / "dogs")
    for variant in ("full", "without-all"):
        for seed in (0, 1):
            rendered(out / "ablation" / variant / f"seed-{seed}" / "foxes")
    return out


def test_a_run_is_its_own_films_and_no_deeper_ones(ablation: Path) -> None:
    out = str(ablation)
    assert runs(ablation) == [(out, "dogs", "dogs"), (out, "foxes", "foxes")]
    assert runs(ablation / "foxes") == [(out, "foxes", "foxes")]
    for file in ("film.mp4", "manifest.json"):
        assert runs(ablation / "foxes" / file) == [(out, "foxes", "foxes")]


def test_the_variants_of_an_ablation_are_runs(ablation: Path) -> None:
    variants = [str(ablation / "ablation" / name) for name in ("full", "without-all")]
    names = ["seed-0/foxes", "seed-1/foxes"]
    expected = [(run, name, "foxes") for run in variants for name in names]
    assert runs(ablation / "ablation") == expected
    assert runs(ablation / "ablation" / "full") == expected[:2]
    seed = ablation / "ablation" / "full" / "seed-1"
    assert runs(seed) == [(str(seed), "foxes", "foxes")]


def test_the_first_variant_is_that_of_the_table(ablation: Path) -> None:
    """What others differ from is `full` where it is there, not what comes first in the alphabet."""
    for variant in ("crossfade", "continuation", "mine"):
        rendered(ablation / "ablation" / variant / "seed-0" / "foxes")
    found = list(dict.fromkeys(Path(run).name for run, _, _ in runs(ablation / "ablation")))
    assert found == ["full", "without-all", "crossfade", "continuation", "mine"]


def test_what_is_no_run_says_what_to_type(ablation: Path, tmp_path: Path) -> None:
    for folder in ("foxes", "dogs"):
        (ablation / folder / "manifest.json").unlink()
    remedies = {
        ablation: f"storyreel eval {ablation / 'ablation'}",
        tmp_path: f"eval {ablation / 'ablation'}",
    }
    for out, words in remedies.items():
        with pytest.raises(UsageError, match="its films lie deeper") as caught:
            find_films(out)
        assert caught.value.remedy.endswith(words)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no rendered film"):
        find_films(tmp_path / "empty")
    (tmp_path / "other.mp4").write_bytes(b"")
    for other in ("other.mp4", "nowhere"):
        with pytest.raises(UsageError, match=r"is no folder of a render|is not there") as caught:
            find_films(tmp_path / other)
        assert f"--video {tmp_path / other}" in caught.value.remedy


def test_blending_is_what_the_story_wants_whatever_was_rendered(tmp_path: Path) -> None:
    film = rendered_film("out", "foxes", "foxes", rendered(tmp_path / "foxes"))
    assert [span.blended for span in film.spans] == [False, True, False]
    assert [(span.start, span.stop) for span in film.spans] == [(0, 24), (24, 48), (48, 72)]
    assert film.times == tuple(i / 12 for i in range(72))
    assert looked_at(film, 12).spans == film.spans
    assert looked_at(film, 12).picks == tuple(range(72))
    for way in ("continue", "dissolve"):  # a story may say how a scene is to grow out of the one before
        text = STORY.replace("transition: cut", f"transition: {way}")
        film = rendered_film("out", "foxes", "foxes", rendered(tmp_path / way, text))
        assert [span.blended for span in film.spans] == [False, True, True]
    for way in ("fade", "dip"):  # as little as a cut
        text = STORY.replace("transition: cut", f"transition: {way}")
        film = rendered_film("out", "foxes", "foxes", rendered(tmp_path / way, text))
        assert [span.blended for span in film.spans] == [False, True, False]
        assert [span.fades for span in film.spans] == [(False, False), (False, True), (True, False)]
        for rate, reach in ((12, 5), (6, 3)):  # no judge and no encoder sees a fade that is meant
            seen = [span.clear(rate) for span in looked_at(film, rate).spans]
            third, (first, second) = 2 * rate, (4 * rate - reach, 4 * rate + reach)
            assert [(s.start, s.stop) for s in seen] == [(0, third), (third, first), (second, 6 * rate)]


@pytest.mark.parametrize(("method", "reach"), [({}, 2), ({"blending": "crossfade"}, 6)])
def test_a_scene_is_judged_where_no_dissolve_mixes_it(
    tmp_path: Path, method: dict[str, str], reach: int
) -> None:
    """What is mixed is a fact of the render: the story alone does not say it."""
    path = rendered(tmp_path / "foxes", method=method) / "manifest.json"
    assert all(
        span.unmixed(FPS) == span for span in rendered_film("out", "foxes", "foxes", path.parent).spans
    )
    manifest = json.loads(path.read_text())
    for segment, (way, strength) in zip(
        manifest["segments"], [("", 0), ("dissolve", 1.0), ("continue", 1.0)], strict=True
    ):
        seam = {"transition": way, "strength": strength, "sides": None}
        segment["decided"] = {"lead": 1, "seam": seam if way else None}

    def judged() -> list[tuple[int, int]]:
        path.write_text(json.dumps(manifest))
        film = rendered_film("out", "foxes", "foxes", path.parent)
        assert all(span.clear(FPS) == span for span in film.spans)  # all other measures take it as it is
        return [(span.start, span.stop) for span in (span.unmixed(FPS) for span in film.spans)]

    assert judged() == [(0, SCENE - reach), (SCENE + reach, 2 * SCENE), (2 * SCENE, 3 * SCENE)]
    manifest["segments"][1]["decided"]["seam"]["strength"] = 0.0  # there is no dissolve then
    assert judged() == [(0, SCENE), (SCENE, 2 * SCENE), (2 * SCENE, 3 * SCENE)]


RETAKEN = """\
cast: {first: {name: a fox, possessive: its}}
scenes:
  - {scene: "{first} is in the park", action: "{first} sits", retake: {take: 2, action: "{first} dances"}}
  - ["{first} is in the park", "{first} walks"]
  - {scene: "{first} runs in the park", retake: {take: 3, scene: "{first} runs on a bus"}}
  - {scene: "{first} is in the park", action: "{first} eats", retake: 2}
"""
RETOLD = (
    ("a fox is in the park", "a fox dances"),
    ("a fox is in the park", "a fox walks"),
    ("a fox runs on a bus", "a fox runs on a bus"),
    ("a fox is in the park", "a fox eats"),
)


def test_a_retake_is_scored_by_its_own_prompts(tmp_path: Path) -> None:
    """Its seams were planned by the first takes, whatever it shows instead."""
    folder = rendered(tmp_path / "foxes", RETAKEN)
    film = rendered_film("out", "foxes", "foxes", folder)
    assert film.told == RETOLD
    assert film.spans[2].others["a panda"] == "a panda runs on a bus"
    assert [span.goes_on for span in film.spans] == [True] * 4
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["segments"][1]["action"] = "a fox is walking"  # what was drawn, whatever the story would say now
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert rendered_film("out", "foxes", "foxes", folder).told[1][1] == "a fox is walking"


@pytest.mark.parametrize("places", [("in the park", "in a bus"), ("in the park", "in a park")])
def test_a_shot_goes_on_where_the_plan_says_so_also_without_a_cast(
    tmp_path: Path, places: tuple[str, str]
) -> None:
    """Whom all actions begin with is no place, whoever has no cast."""
    text = f"scenes: [[a fox {places[0]}, a fox sits], [a fox {places[1]}, a fox sleeps]]"
    (seam,) = make_plan(parse_story("story.yaml", text.encode()), "foxes").seams
    film = rendered_film("out", "foxes", "foxes", rendered(tmp_path / "foxes", text))
    assert film.spans[1].goes_on is (seam.transition == "continue")
    assert seam.transition == ("dissolve" if places[1] == "in a bus" else "continue")


@pytest.mark.usefixtures("clip")
def test_a_foreign_film_is_scored_by_the_prompts_of_retakes(tmp_path: Path) -> None:
    assert foreign(tmp_path, segments="equal", story=RETAKEN).told == RETOLD


def test_which_steps_a_plugins_noise_levels_skip_is_not_known(tmp_path: Path) -> None:
    for speed, cost in (("exact", {"forwards": 12}), ("fast", {})):
        folder = rendered(tmp_path / speed, steps=4, speed=speed, method={"levels": "own"})
        assert collect([folder], [])[0][0].cost == cost


def test_what_a_film_cost_is_in_its_manifest_as_far_as_that_says(tmp_path: Path) -> None:
    folder = rendered(tmp_path / "foxes", steps=4, speed="exact")
    assert collect([folder], [])[0][0].cost == {"forwards": 4 * 3}
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for number, segment in enumerate(manifest["segments"]):
        segment |= {"latents": 8, "decided": {"lead": number}, "seconds": 1.5}
    path.write_text(json.dumps(manifest))
    film = collect([folder], [])[0][0]
    assert film.cost == {"forwards": 12, "latents": 3 * 8 + 0 + 1 + 2, "render_seconds": 4.5}
    for damage in (float("nan"), -1.0, "long"):
        manifest["segments"][1]["seconds"] = damage
        path.write_text(json.dumps(manifest))
        (error,) = collect([folder], [])[1]
        assert "is no manifest of a render" in str(error)


def test_names_in_any_script_are_told(tmp_path: Path) -> None:
    for name in ("雪の狐", "лиса", "ثعلب", "a b", "\udcff"):
        film = rendered_film(str(tmp_path), name, name, rendered(tmp_path / name))
        film.label.encode()


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What any film says of itself, to be changed by the test: six seconds of 12 frames a second."""
    said: dict[str, Any] = {"fps": 12.0, "tags": {}, "chapters": (0.0, 2.0, 4.0), "hdr": ""}
    said |= {"times": tuple(i / 12 for i in range(72)), "changes": (0.0, *[3.0] * 71)}
    facts = ("fps", "tags", "chapters", "hdr")
    monkeypatch.setattr(reader, "probe", lambda path: Facts(96, 64, **{key: said[key] for key in facts}))
    monkeypatch.setattr(reader, "survey", lambda path: Frames(said["times"], said["changes"]))
    return said


def foreign(tmp_path: Path, name: str = "film.mp4", segments: str = "chapters", story: str = STORY) -> Film:
    path = tmp_path / "foxes.yaml"
    path.write_text(story)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    return foreign_film(path, tmp_path / name, segments)


def starts(film: Film) -> list[int]:
    return [span.start for span in film.spans]


def test_scenes_begin_by_the_times_of_frames(tmp_path: Path, clip: dict[str, Any]) -> None:
    for segments in ("chapters", "equal", "2,4", "0,2,4"):
        film = foreign(tmp_path, segments=segments)
        assert starts(film) == [0, 24, 48]
        assert [span.blended for span in film.spans] == [False, True, False]
        assert film.notes == ()
    clip["times"] = tuple(round(i / 12, 3) + 0.001 for i in range(72))  # as Matroska keeps them
    assert starts(foreign(tmp_path)) == [0, 24, 48]


def test_where_frames_are_missing_times_decide(tmp_path: Path, clip: dict[str, Any]) -> None:
    """Half a second of the first scene has no frames of its own: a player shows the one before."""
    clip["times"] = tuple(t for i, t in enumerate(clip["times"]) if not 3 <= i <= 8)
    clip["changes"] = (0.0, *[3.0] * 65)
    film = foreign(tmp_path)
    assert starts(film) == [0, 18, 42]
    assert "its frame rate varies" in film.notes[0]
    seen = looked_at(film, 12)
    assert starts(seen) == [0, 24, 48]
    assert seen.picks[:10] == (0, 1, 2, 2, 2, 2, 2, 2, 2, 3)
    assert seen.frames == 72


def test_sound_may_begin_before_the_picture(tmp_path: Path, clip: dict[str, Any]) -> None:
    clip["times"] = tuple(t + 0.5 for t in clip["times"])
    clip["chapters"] = (0.0, 2.5, 4.5)
    film = looked_at(foreign(tmp_path), 12)
    assert starts(film) == [0, 30, 54]
    assert film.picks[:8] == (0, 0, 0, 0, 0, 0, 0, 1)


def test_repeated_frames_are_left_out_with_a_note(tmp_path: Path, clip: dict[str, Any]) -> None:
    clip["fps"], clip["times"] = 25.0, tuple(i / 25 for i in range(150))
    source = [int(12 * i / 25 + 0.5) for i in range(150)]
    clip["changes"] = (0.0, *(3.0 if a != b else 0.05 for a, b in pairwise(source)))
    film = foreign(tmp_path)
    assert film.fps == 12
    assert film.notes == (
        "52% of its 25 frames a second repeat the one before: it is looked at as a film of 12",
    )
    seen = looked_at(film, film.fps)
    assert [source[pick] for pick in seen.picks] == list(range(72))
    assert starts(seen) == [0, 24, 48]


def test_hdr_is_told(tmp_path: Path, clip: dict[str, Any]) -> None:
    clip["hdr"] = "PQ"
    film = foreign(tmp_path)
    assert film.hdr == "PQ"
    assert film.notes == ("it is HDR (PQ): it was mapped to SDR before it was looked at",)


@pytest.mark.parametrize(
    ("segments", "words"),
    {
        "2": "1 times do not fit a story of 3 scenes",
        "2,30": r"do not fit into its 6\.00 s",
        "4,2": r"do not fit into its 6\.00 s",
        "2,nan": "times do not fit",
        "soon": "makes no sense",
    }.items(),
)
def test_segments_that_do_not_fit(tmp_path: Path, clip: dict[str, Any], segments: str, words: str) -> None:
    with pytest.raises(StoryreelError, match=words):
        foreign(tmp_path, segments=segments)


def test_chapters_must_be_as_many_as_scenes(tmp_path: Path, clip: dict[str, Any]) -> None:
    clip["chapters"] = ()
    with pytest.raises(StoryreelError, match="has 0 chapters, the story 3 scenes") as caught:
        foreign(tmp_path)
    assert "--segments equal" in caught.value.remedy
    clip["times"], clip["changes"] = (0.0, 0.1), (0.0, 1.0)
    with pytest.raises(StoryreelError, match="has 2 frames, the story 3 scenes"):
        foreign(tmp_path)


@pytest.mark.usefixtures("clip")
class TestForeignRuns:
    def test_two_films_of_one_stem_are_two_runs(self, tmp_path: Path) -> None:
        for names in (("film.mp4", "film.mkv"), ("a/foxes.mp4", "a/foxes.webm")):
            films, errors = collect([], [partial(foreign, tmp_path, name) for name in names])
            assert errors == []
            assert [film.run for film in films] == [str(tmp_path / name) for name in names]

    def test_other_names_are_their_own_runs(self, tmp_path: Path) -> None:
        names = ("film.mp4", "vlogger/foxes.mp4", "other.mp4")
        films, _ = collect([], [partial(foreign, tmp_path, name) for name in names])
        assert [film.run for film in films] == [str(tmp_path / name) for name in ("film", "vlogger", "other")]

    def test_a_film_that_is_named_twice_is_scored_once_and_told(self, tmp_path: Path) -> None:
        folder = rendered(tmp_path / "out" / "foxes")
        films, errors = collect([tmp_path / "out", folder], [lambda: foreign(tmp_path)] * 2)
        assert [(film.run, film.name) for film in films] == [
            (str(tmp_path / "out"), "foxes"),
            (str(tmp_path / "film"), "foxes"),
        ]
        assert [error.message.endswith("is named twice") for error in errors] == [True, True]

    def test_films_of_other_words_are_no_pair(self, tmp_path: Path) -> None:
        folder = rendered(tmp_path / "out" / "foxes")
        other = STORY.replace("a fox", "a dog")
        films, _ = collect([folder], [lambda: foreign(tmp_path, story=other)])
        assert films[0].told != films[1].told
        assert films[1].notes == (f"its prompts are not those of {films[0].label}: the two are not compared",)


def test_a_run_of_films_that_were_not_made_alike_is_told(tmp_path: Path) -> None:
    """Other seeds are the same kind; other models, steps or parts of the method are not."""
    out = tmp_path / "out"
    rendered(out / "a", seed=0, steps=16, method={"blending": "lead", "overlap": 2})
    rendered(out / "b", seed=1, steps=16, method={"blending": "lead", "overlap": 2})
    rendered(out / "c", seed=0, steps=8, method={"blending": "none", "overlap": 2})
    rendered(tmp_path / "other" / "c", seed=0, steps=8)
    films, errors = collect([out, tmp_path / "other"], [])
    assert errors == []
    assert [film.notes for film in films if film.name != "c" or film.run != str(out)] == [(), (), ()]
    assert films[2].notes == (
        f"it was not made as {films[0].label} of the same run was: other blending, steps; "
        "means over the run mix both",
    )


def test_times_of_many_hours_are_not_filled_with_pictures(tmp_path: Path, clip: dict[str, Any]) -> None:
    clip["times"] = (*clip["times"][:-1], 1e6)
    with pytest.raises(StoryreelError, match="has 72 frames for 278 hours, by their times"):
        foreign(tmp_path)
    clip["times"] = (*clip["times"][:-1], 3600.0)
    assert looked_at(foreign(tmp_path), 12).frames == 43201


def test_films_of_unlike_rates_are_looked_at_alike(tmp_path: Path, clip: dict[str, Any]) -> None:
    folder = rendered(tmp_path / "out" / "foxes")
    clip["fps"], clip["times"] = 24.0, tuple(i / 24 for i in range(144))
    clip["changes"] = (0.0, *[3.0] * 143)
    ours, theirs = collect([folder], [lambda: foreign(tmp_path)])[0]
    assert (ours.fps, theirs.fps) == (12, 12)
    assert ours.picks == tuple(range(72))
    assert theirs.picks == tuple(range(0, 144, 2))
    assert starts(ours) == starts(theirs) == [0, 24, 48]
    (alone,), _ = collect([], [lambda: foreign(tmp_path)])
    assert alone.fps == 24
    (slow,), _ = collect([], [lambda: foreign(tmp_path)], fps=6)
    assert (slow.fps, starts(slow)) == (6, [0, 12, 24])


def test_rates_without_a_common_one_are_refused_with_the_reason(tmp_path: Path, clip: dict[str, Any]) -> None:
    folder = rendered(tmp_path / "out" / "foxes")
    clip["fps"], clip["times"] = 5.0, tuple(i / 5 for i in range(30))
    clip["changes"] = (0.0, *[3.0] * 29)
    with pytest.raises(
        UsageError, match="films of 5, 12 frames a second have no time base in common"
    ) as caught:
        collect([folder], [lambda: foreign(tmp_path)])
    assert "--fps 5" in caught.value.remedy
    films, errors = collect([folder], [lambda: foreign(tmp_path)], fps=5)
    assert [film.fps for film in films] == [5, 5]
    assert errors == []


def test_no_film_is_looked_at_oftener_than_it_has_pictures(tmp_path: Path, clip: dict[str, Any]) -> None:
    folder = rendered(tmp_path / "out" / "foxes", fps=24)
    films, errors = collect([folder], [lambda: foreign(tmp_path)], fps=24)
    assert [film.path.parent for film in films] == [folder]
    assert errors[0].message.endswith("has 12 pictures a second, and cannot be looked at 24 times")
    assert "--fps 12, or less" in errors[0].remedy
    films, errors = collect([folder], [], fps=0.4)
    assert films == []
    assert "too short to be looked at 0.4 times a second" in errors[0].message


def test_a_changed_film_is_read_again_and_told(tmp_path: Path, clip: dict[str, Any]) -> None:
    folder = rendered(tmp_path / "foxes")
    (folder / "film.mp4").write_bytes(b"another one")
    film = rendered_film("out", "foxes", "foxes", folder)
    assert film.notes == ("this is not the film that was rendered: its file has been changed",)
    clip["times"], clip["changes"] = clip["times"][:-1], clip["changes"][:-1]
    with pytest.raises(StoryreelError, match="has 71 frames, its scenes 72"):
        rendered_film("out", "foxes", "foxes", folder)
    clip["fps"], clip["times"] = 15.0, tuple(i / 15 for i in range(71))
    with pytest.raises(StoryreelError, match="has 15 frames a second, by its manifest 12"):
        rendered_film("out", "foxes", "foxes", folder)
