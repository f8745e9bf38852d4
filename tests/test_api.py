"""storyreel in Python: what the commands do, as functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import storyreel
from storyreel import Progress, StoryreelError
from storyreel.errors import DamagedError, MissingError, ScriptError, UsageError
from storyreel.models.specs import ModelSpec
from storyreel.rendering import Engine
from tests.conftest import ROOT, FakeEngine

TEXT = """\
title: Foxes <3
render: {model: fake, seed: 5}
scenes:
  - ["a park", "a fox sits"]
  - ["a street", "it walks"]
  - {scene: "a bus", action: "it looks", transition: cut}
"""


@pytest.fixture
def story(tmp_path: Path, fake_model: ModelSpec) -> Path:
    path = tmp_path / "foxes.yaml"
    path.write_text(TEXT)
    return path


def test_the_import_loads_nothing_and_knows_its_names() -> None:
    code = (
        "import sys, storyreel; "
        "assert not set(sys.modules) & {'torch', 'pydantic', 'typer', 'yaml', 'numpy'}, 'loaded'; "
        "assert set(storyreel.__all__) <= set(dir(storyreel)); "
        "storyreel.plan('stories/nyc.yaml'); assert 'torch' not in sys.modules, 'a plan takes no torch'; "
        "from storyreel import *; import storyreel.rendering; assert callable(storyreel.render); "
        "print(storyreel.nothing)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.endswith("AttributeError: module 'storyreel' has no attribute 'nothing'\n"), (
        done.stderr
    )


def test_a_film_is_rendered_and_opened(story: Path, tmp_path: Path) -> None:
    engine, heard = FakeEngine(), list[Progress]()
    film = storyreel.render(
        story,
        out=tmp_path / "out",
        engine=engine,
        progress=heard.append,
        steps=3,
        method={"lead_noise": 0.25},
    )
    assert film.path == tmp_path / "out" / "foxes" / "foxes.mp4"
    assert film.path.is_file()
    assert (film.title, film.settings["seed"], film.settings["model"]) == ("Foxes <3", 5, "fake")
    assert [(scene.scene, scene.action) for scene in film.scenes][1] == ("a street", "it walks")
    assert [scene.start for scene in film.scenes] == [0, *(s.start for s in film.scenes[1:])]
    assert film.seconds == sum(scene.seconds for scene in film.scenes) > 0
    assert film.scenes[0].seam is None
    assert [scene.seam["transition"] for scene in film.scenes[1:] if scene.seam] == ["dissolve", "cut"]
    assert {len(scene.weights) for scene in film.scenes} == {3}
    assert heard[-1].evaluations == heard[-1].evaluations_needed == 9
    assert (heard[0].scenes, heard[-1].scenes, heard[-1].scenes_total) == (0, 3, 3)

    assert storyreel.Film.open(film.path.parent) == film
    asked = engine.asked
    assert (
        storyreel.render(story, out=tmp_path / "out", engine=engine, steps=3, method={"lead_noise": 0.25})
        == film
    )
    assert engine.asked == asked
    storyreel.render(story, out=tmp_path / "out", engine=engine, steps=3, progress=heard.append, seed=6)
    assert any("seed 5 -> 6" in progress.message for progress in heard)
    assert heard[-1].message.startswith("0.")  # what former scenes take


def test_a_notebook_shows_it(story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = storyreel.render(story, out=tmp_path / "out", engine=FakeEngine(), steps=1)
    html = film._repr_html_()
    assert 'src="data:video/mp4;base64,' in html
    assert "Foxes &lt;3: 3 scenes" in html
    monkeypatch.setattr("storyreel.api.INLINE", 0)
    assert f'src="{film.path.as_uri()}"' in film._repr_html_()


def test_a_story_and_a_plan_are_taken_too(story: Path, tmp_path: Path) -> None:
    told = storyreel.load_story(story)
    planned = storyreel.plan(told, name="plan", steps=2, seed=3, without=["twb"])
    assert (planned.settings.steps, planned.settings.seed, planned.title) == (2, 3, "Foxes <3")
    film = storyreel.render(planned, name="mine", out=tmp_path, engine=FakeEngine())
    assert film.path == tmp_path / "mine" / "mine.mp4"
    again = storyreel.render(told, name="other", out=tmp_path, engine=FakeEngine(), steps=2, seed=3)
    assert again.settings["seed"] == 3
    for taken, settings in ((told, {}), (planned, {}), (planned, {"name": "mine", "steps": 3})):
        with pytest.raises(UsageError):
            storyreel.render(taken, out=tmp_path, **settings)  # type: ignore[arg-type]


def test_a_story_is_read_with_a_cast(story: Path, tmp_path: Path) -> None:
    story.write_text("render: {model: fake}\nscenes: ['{first} wags {first.possessive} tail']\n")
    plot = storyreel.load_story(story, cast={"first": "a fox", "first.possessive": "her"})
    film = storyreel.render(plot, name="her", out=tmp_path / "out", engine=FakeEngine())
    assert [scene.scene for scene in film.scenes] == ["a fox wags her tail"]
    (tmp_path / "dog.yaml").write_text("cast: {first: {name: a dog}}\n")
    for path in (tmp_path / "dog.yaml", str(tmp_path / "dog.yaml")):
        assert storyreel.load_story(story, cast=path).cast["first"].name == "a dog"
    for cast, words in (
        ({"second": "a"}, "no such member"),
        ({"": "a"}, "no member of a cast"),
        ("nowhere.yaml", "cannot be read"),
        (5, "not valid"),
    ):
        with pytest.raises(UsageError, match=words):
            storyreel.load_story(story, cast=cast)  # type: ignore[arg-type]


def test_errors_are_storyreels_own(story: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no finished film"):
        storyreel.Film.open(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="nowhere"):
        storyreel.render(tmp_path / "nowhere.yaml")
    given: tuple[dict[str, Any], ...] = (
        {"steps": 0},
        {"seed": -1},
        {"steps": "8"},
        {"seed": 1.5},
        {"guidance": 0.5},
        {"size": "1"},
    )
    for wrong in given:
        with pytest.raises(UsageError, match=next(iter(wrong)) + "|1"):
            storyreel.plan(story, **wrong)
    with pytest.raises(UsageError, match="story"):
        storyreel.plan(None)  # type: ignore[arg-type]
    for wrong in (
        {"size": (96, 64)},
        {"seconds": "1"},
        {"seconds": True},
        {"guidance": "3"},
        {"method": ["beta=0.2"]},
        {"without": 3},
        {"without": "alles"},
        {"weights": tmp_path / "nowhere"},
    ):
        with pytest.raises(UsageError):
            storyreel.plan(story, **wrong)
    assert storyreel.plan(story, without="twb, sar") == storyreel.plan(story, without=["sar", "twb"])
    assert storyreel.plan(story, without="all") != storyreel.plan(story, without=None)
    for name in ("../x", ".", "a/b", "/x", "a\0b", "", "segments", 5):
        with pytest.raises(UsageError, match="name"):
            storyreel.render(story, name=name, out=tmp_path / "out")  # type: ignore[arg-type]
    for options in ({"device": "banana"}, {"device": None}, {"engine": "cpu"}):
        with pytest.raises(UsageError):
            storyreel.render(story, out=tmp_path / "out", **options)
    with pytest.raises(UsageError):
        storyreel.evaluate(tmp_path, device="banana")
    with pytest.raises(UsageError):
        storyreel.evaluate(tmp_path, weights_dir=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
    story.write_text("scenes: 1\n")
    with pytest.raises(ScriptError):
        storyreel.plan(story)
    with pytest.raises(StoryreelError):
        storyreel.evaluate(tmp_path / "nowhere")
    assert storyreel.Engine is Engine


@pytest.mark.usefixtures("ffmpeg", "fresh_install")
def test_films_are_scored(story: Path, tmp_path: Path) -> None:
    film = storyreel.render(story, out=tmp_path / "out", engine=FakeEngine(), steps=1)
    evaluation = storyreel.evaluate([film], device="cpu", own=False)
    (scored,) = evaluation.films
    assert scored.film.path == film.path
    assert len(scored.scores["scenes"]) == 3
    assert storyreel.evaluate(tmp_path / "out", device="cpu", own=False).films[0].scores == scored.scores


def test_a_damaged_film_is_not_opened(story: Path, tmp_path: Path) -> None:
    film = storyreel.render(story, out=tmp_path, engine=FakeEngine(), steps=1)
    folder = film.path.parent
    assert storyreel.Film.open(film.path) == film
    text = (folder / "manifest.json").read_text()
    elsewhere = text.replace(f'"file": "{film.path.name}"', '"file": "/etc/hostname"')
    assert elsewhere != text
    for damage in (text.replace('"action"', '"acton"'), text.replace('"settings"', '"setings"'), elsewhere):
        (folder / "manifest.json").write_text(damage)
        with pytest.raises(DamagedError, match="damaged"):
            storyreel.Film.open(folder)
    (folder / "manifest.json").write_text(text)
    film.path.unlink()
    with pytest.raises(MissingError, match="is not there"):
        storyreel.Film.open(folder)


def test_what_cannot_be_scored_is_said_before_anything_is(
    story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = storyreel.render(story, out=tmp_path / "out", engine=FakeEngine(), steps=1)
    monkeypatch.setattr(
        "storyreel.evaluation.evaluator.Evaluator.score", lambda *_: pytest.fail("a film is scored first")
    )
    with pytest.raises(StoryreelError):
        storyreel.evaluate([film, tmp_path / "nowhere"], device="cpu")
