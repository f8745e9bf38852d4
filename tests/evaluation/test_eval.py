"""Films of the embedded model's world, spoiled on purpose: each fault must be found, where it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from storyreel.cli.app import run
from storyreel.evaluation.encoders import Encoders
from storyreel.evaluation.metrics import METRICS
from storyreel.film import ffmpeg, reader, writer
from storyreel.mini.plots import PLOTS, STORIES, Lesson
from storyreel.mini.world import LOOKS, Action, ByteArray, Character, Light, Place, draw_clip, stage_clip
from storyreel.models.specs import MODELS, ModelSpec
from tests.conftest import FakeAdapter, FakeEngine, made_once
from tests.evaluation.test_films import rendered

W, H, FPS = 192, 128, 12
SCENE = 2 * FPS
STORY = """\
title: A corgi <b>in</b> New York
cast:
  first: {name: a corgi dog, possessive: its}
scenes:  # every picture is drawn anew: no shot goes on
  - scene: "{first} is inside of the subway train"
    action: "{first} is sitting"
    transition: dissolve
  - scene: "{first} is looking out the subway window"
    action: "{first} is standing"
    transition: dissolve
  - scene: "{first} is looking at the streets of Times Square, NYC"
    action: "{first} is tilting its head curiously"
    transition: dissolve
  - scene: "{first} is waiting for a bus at the Times Square bus stop in NYC"
    action: "{first} is standing"
    transition: dissolve
  - scene: "{first} has arrived at Central Park"
    action: "{first} is sniffing the ground"
    transition: dissolve
  - scene: "{first} is biting a red ball in Central Park"
    action: "{first} is wagging its tail"
    transition: dissolve
"""
Spoil = Callable[[ByteArray], ByteArray]


class Cartoonist(FakeAdapter):
    """Shows of every scene what the embedded model learned it from."""

    def __init__(self, spec: ModelSpec, lessons: Iterator[Lesson]) -> None:
        super().__init__(spec)
        self._lessons = lessons

    def decode(self, latents: Tensor) -> Tensor:
        lesson, frames = next(self._lessons), 1 + self.spec.frames_per_latent * (latents.shape[2] - 1)
        return torch.from_numpy(picture(lesson.place, Character.CORGI, lesson.shows, frames, lesson.ball))


def picture(place: Place, who: Character, action: Action, frames: int, ball: bool = False) -> ByteArray:
    """Draw a clip as every scene of an unspoiled film is: the same look and the same light."""
    looks, seed = (LOOKS[who][0],), Random(1)
    clip = stage_clip(seed, place, (who,), action, ball, looks, light=Light.DAY, arrangement=0)
    return draw_clip(clip, frames, FPS, W, H)[0]


def draw_film(folder: Path) -> None:
    """Write the story, and to ``out`` what a render leaves of it, in the size that it is scored in."""
    (folder / "walk.yaml").write_text(STORY)
    spec, engine = replace(MODELS["mini"], upscale=1), FakeEngine()
    lessons = [n for n in PLOTS[STORIES["nyc"][0]] if f'scene: "{n.scene}"\n' in STORY]
    engine.fake = Cartoonist(spec, iter(lessons))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "mini", spec)
        patch.setattr("storyreel.rendering.Engine", lambda *options, **others: engine)
        assert run(["render", str(folder / "walk.yaml"), "--out", str(folder / "out"), "--steps", "2"]) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the story, and in ``out`` its film."""
    made = made_once(tmp_path_factory, "walk", draw_film)
    return shutil.copytree(made, tmp_path_factory.mktemp("eval") / "place")


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a fresh install: no weights but the embedded model's, except where a test wants them."""
    if "extras" not in request.keywords:
        monkeypatch.setattr(Encoders, "folder", lambda self, name: None)


def frames_of(path: Path) -> ByteArray:
    data = b"".join(reader.read_frames(path, W, H))
    return np.frombuffer(data, np.uint8).reshape(-1, H, W, 3).copy()


def write_film(frames: ByteArray, path: Path, fps: int = FPS) -> Path:
    with writer.SegmentWriter(path, W, H, fps, 1) as encoder:
        encoder.write(frames.tobytes())
    return path


def scene(number: int) -> slice:
    return slice((number - 1) * SCENE, number * SCENE)


def swapped(film: ByteArray) -> ByteArray:
    film[scene(2)], film[scene(5)] = film[scene(5)].copy(), film[scene(2)].copy()
    return film


def frozen(film: ByteArray) -> ByteArray:
    begin = scene(3).start + 6
    film[begin : begin + FPS] = film[begin]
    return film


def cut(film: ByteArray) -> ByteArray:
    middle = scene(4).start + SCENE // 2
    film[middle : scene(4).stop] = film[scene(6).start + 8 : scene(6).start + 8 + SCENE // 2]
    return film


def tinted(film: ByteArray) -> ByteArray:
    last = film[scene(6)]
    last[:] = (last * np.array([1.15, 0.95, 0.75])).clip(0, 255).astype(np.uint8)
    return film


def replaced(film: ByteArray) -> ByteArray:
    film[scene(5)] = picture(Place.CENTRAL_PARK, Character.PANDA, Action.SNIFF, SCENE)
    return film


def evaluated(
    place: Path, spoil: Spoil, capsys: pytest.CaptureFixture[str], story: str = "walk.yaml"
) -> tuple[dict[str, Any], Path]:
    film = write_film(spoil(frames_of(place / "out/walk/walk.mp4")), place / f"{spoil.__name__}.mp4")
    page = place / f"{spoil.__name__}.html"
    options = ["--segments", "equal", "--report", str(page), "--json"]
    assert run(["eval", "--story", str(place / story), "--video", str(film), *options]) == 0
    (scored,) = json.loads(capsys.readouterr().out)["films"]
    return scored, page


def worst(scored: dict[str, Any], metric: str, lowest: bool = False) -> int:
    values = [entry[metric] for entry in scored["scores"]["scenes"]]
    return 1 + values.index(min(values) if lowest else max(values))


def test_nothing_stands_out_in_an_unspoiled_film(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored, _ = evaluated(place, lambda film: film, capsys)
    assert scored["findings"] == []


def test_swapped_scenes_are_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored, _ = evaluated(place, swapped, capsys)
    margins = [entry["told_apart"] for entry in scored["scores"]["scenes"]]
    assert sorted(range(1, 7), key=lambda n: margins[n - 1])[:2] in ([2, 5], [5, 2])
    assert {f["scene"] for f in scored["findings"] if f["metric"] == "told_apart"} == {2, 5}


def test_a_frozen_second_is_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored, page = evaluated(place, frozen, capsys)
    assert worst(scored, "frozen") == 3
    (finding,) = scored["findings"]
    assert (finding["metric"], finding["scene"], finding["seconds"]) == ("frozen", 3, 4.5)
    assert scored["scores"]["scenes"][2]["frozen"] == pytest.approx(1)
    assert "Scene 3 stands still for 1 s from here" in page.read_text()


@pytest.mark.slow  # a shot detector
@pytest.mark.extras
def test_a_hard_cut_is_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored, _ = evaluated(place, cut, capsys)
    assert worst(scored, "jump") == worst(scored, "shot_cut_inside") == 4
    found = {(f["metric"], f["scene"], f["seconds"]) for f in scored["findings"]}
    assert ("jump", 4, 7.0) in found


def test_a_tint_is_found_where_the_shot_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind a dissolve, or told at dusk, it is none."""
    parts = STORY.rpartition("transition: dissolve")
    shot = parts[0] + "transition: continue" + parts[2]
    dusk = shot.replace("a red ball in Central Park", "a red ball in Central Park at dusk")
    wanted = {"walk.yaml": [], "shot.yaml": [6], "dusk.yaml": []}
    (place / "shot.yaml").write_text(shot)
    (place / "dusk.yaml").write_text(dusk)
    for story, scenes in wanted.items():
        scored, _ = evaluated(place, tinted, capsys, story)
        assert [f["scene"] for f in scored["findings"] if f["metric"] == "colour_drift"] == scenes
        if scenes:
            assert worst(scored, "colour_drift") == 6


def test_another_character_is_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scored, _ = evaluated(place, replaced, capsys)
    assert worst(scored, "identity", lowest=True) == 5
    (finding,) = (f for f in scored["findings"] if f["metric"] == "identity")
    assert finding["scene"] == 5
    assert "panda" in finding["words"]


def test_rendered_folders_are_scored_and_compared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = place / "other"
    shutil.copytree(place / "out", other)
    write_film(frozen(frames_of(other / "walk/walk.mp4")), other / "walk/walk.mp4")
    both = ["eval", str(place / "out"), str(other), "--report", str(place / "both.html")]
    assert run(both) == 0
    printed, said = capsys.readouterr()
    assert "Scene 3 stands still for 1 s" in printed
    assert "One film a column, looked at 12 times a second." in printed
    assert "note: this is not the film that was rendered" in printed
    assert "CLIP-add" not in printed  # a metric without weights has no row
    assert "storyreel pull eval" in said
    page = (place / "both.html").read_text()
    assert "its file has been changed" in page
    assert "<b>in</b>" not in page  # a story's words are no markup
    assert "A corgi &lt;b&gt;in&lt;/b&gt; New York" in page

    assert run([*both, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    difference = report["differences"][str(other)]["frozen"]
    assert (difference["mean"], difference["low"]) == (pytest.approx(1 / 6), None)
    assert (difference["pairs"], difference["stories"], difference["p"]) == (1, 1, None)
    assert report["command"] == ["storyreel eval", *both[1:], "--json"]
    assert report["differences"][str(other)]["clip_add"] is None
    assert "storyreel pull eval" in report["missing"]["clip_add"]


def test_wrong_films_are_told_and_the_others_scored(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = place / "half" / "walk"
    shutil.copytree(place / "out" / "walk", half)
    manifest = json.loads((half / "manifest.json").read_text())
    (half / "manifest.json").write_text(json.dumps(manifest | {"film": {}}))
    short = place / "short" / "walk"
    shutil.copytree(place / "out" / "walk", short)
    write_film(frames_of(short / "walk.mp4")[:-1], short / "walk.mp4")
    fast = place / "fast" / "walk"
    shutil.copytree(place / "out" / "walk", fast)
    write_film(frames_of(fast / "walk.mp4"), fast / "walk.mp4", fps=15)
    (place / "text.mp4").write_text("no film")
    folders = [half.parent, short.parent, fast.parent, place / "nowhere", place / "out" / "walk"]
    story, report = str(place / "walk.yaml"), str(place / "wrong.html")
    foreign = ["--story", story, "--video", str(place / "text.mp4"), "--report", report]
    assert run(["eval", *map(str, folders), *foreign]) == 1  # as the first of them
    printed, said = capsys.readouterr()
    for words in (
        "holds half a render",
        "has 143 frames, its scenes 144",
        "has 15 frames a second, by its manifest 12",
        "nowhere is not there",
        "text.mp4 is not a film",
    ):
        assert said.count(words) == 1, words
    assert "walk: nothing stands out" in printed


@pytest.mark.parametrize(
    ("report", "words"),
    [("walk.yaml", "is no report of storyreel's"), ("nowhere/eval.html", "is not a folder")],
)
def test_a_report_replaces_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], report: str, words: str
) -> None:
    story = tmp_path / "walk.yaml"
    story.write_text("scenes: [a fox]")
    assert run(["eval", "--story", str(story), "--video", "x.mp4", "--report", str(tmp_path / report)]) == 2
    assert words in capsys.readouterr().err
    assert story.read_text() == "scenes: [a fox]"


def test_where_a_report_cannot_go_is_said_before_anything_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = rendered(tmp_path / "foxes")
    (folder / "eval.html").write_text("notes of my own")
    assert run(["eval", str(folder)]) == 2
    assert "is no report of storyreel's" in capsys.readouterr().err
    (folder / "eval.html").unlink()
    monkeypatch.setattr("os.access", lambda path, mode, **_: mode != os.W_OK)  # as in an archive
    assert run(["eval", str(folder)]) == 2
    assert "eval.html cannot be written\nName another file: --report FILE" in capsys.readouterr().err


def remade(film: Path, name: str, *options: str) -> Path:
    """Make another film of one with ffmpeg."""
    other = film.with_name(name)
    command = [ffmpeg.program(), "-v", "error", "-y", "-i", str(film), "-map", "0:v", *options, str(other)]
    subprocess.run(command, check=True)
    return other


def test_the_same_film_made_one_of_25_frames_a_second(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repeated frames neither make it smoother nor make it jump: it is looked at as what it is."""
    own = place / "out/walk/walk.mp4"
    fast = remade(own, "fast.mp4", "-r", "25", "-c:v", "libx264", "-qp", "0")
    story, page = str(place / "walk.yaml"), str(place / "fast.html")
    foreign = ["--story", story, "--video", str(fast), "--segments", "equal", "--report", page, "--json"]
    assert run(["eval", str(place / "out"), *foreign]) == 0
    ours, theirs = json.loads(capsys.readouterr().out)["films"]
    assert (ours["fps"], theirs["fps"]) == (12, 12)
    assert theirs["notes"] == [
        "52% of its 25 frames a second repeat the one before: it is looked at as a film of 12"
    ]
    assert theirs["findings"] == ours["findings"] == []
    for name, value in ours["scores"]["film"].items():
        # Only a render knows the sides of a seam before any dissolve.
        if value is not None and METRICS[name].status != "cost" and not name.startswith("sides"):
            assert theirs["scores"]["film"][name] == pytest.approx(value, rel=0.05, abs=0.05), name


@pytest.mark.parametrize("source", ["testsrc", "noise"])
def test_a_test_card_shows_nobody(place: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    card = place / f"{source}.mp4"
    drawn = "testsrc=s=192x128:r=12:d=12"
    if source == "noise":
        drawn = "color=gray:s=192x128:r=12:d=12,noise=alls=80:allf=t"
    command = [ffmpeg.program(), "-v", "error", "-f", "lavfi", "-i", drawn, str(card)]
    subprocess.run(command, check=True)
    story, page = str(place / "walk.yaml"), str(place / "card.html")
    foreign = ["--story", story, "--video", str(card), "--segments", "equal", "--report", page]
    assert run(["eval", *foreign]) == 0
    printed = capsys.readouterr().out
    assert printed.count("No scene can be recognised") == 1
    assert "another character" not in printed
    assert "looks like scene" not in printed


def test_a_required_metric_without_weights_is_69(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", str(place / "out"), "--require", "lpips", "--weights-dir", str(place)]) == 69
    assert "metric lpips needs alexnet" in capsys.readouterr().err
    assert run(["eval", str(place / "out"), "--require", "beauty"]) == 2
    assert run(["eval"]) == 2
    assert run(["eval", "--story", str(place / "walk.yaml")]) == 2


def test_a_report_that_cannot_be_written_costs_no_numbers_and_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that is read only."""
    film = SimpleNamespace(film=SimpleNamespace(folder=None))
    scored = SimpleNamespace(films=[film], plain=lambda: {"films": ["scored"]})
    monkeypatch.setattr("storyreel.evaluation.evaluator.evaluate", lambda *options: (scored, []))
    folder = rendered(tmp_path / "foxes")

    def page(evaluation: object, place: Path) -> str:
        if place == folder:
            (folder / "eval.html").mkdir()  # where the report would go
        return "page"

    monkeypatch.setattr("storyreel.evaluation.report.report_page", page)
    assert run(["eval", str(folder), "--json"]) == 73
    printed, said = capsys.readouterr()
    assert json.loads(printed)["films"] == ["scored"]
    assert "--report FILE" in said
    assert run(["eval", str(folder), "--json", "--report", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == "page"


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_report_opens_in_a_browser_without_a_network(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = place / "frozen.html"
    if not page.exists():  # no other test has had it made
        evaluated(place, frozen, capsys)
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-quic"]
    options += ["--enable-logging=stderr", "--v=0", "--window-size=1200,2400"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    picture = tmp_path / "report.png"
    command = [CHROMIUM, *options, f"--screenshot={picture}", page.as_uri()]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0
    assert "CONSOLE" not in done.stderr
    assert picture.stat().st_size > 50_000
    assert "http://" not in page.read_text()
    assert "https://" not in page.read_text()
