"""The life of a render, with a fake model: what is made, kept, made again and left alone."""

from __future__ import annotations

import errno
import gc
import json
import pkgutil
import re
import signal
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import av
import pytest
import torch

from storyreel import files
from storyreel.errors import (
    MissingError,
    NumericsError,
    OutputError,
    StoppedError,
    StoryreelError,
)
from storyreel.film import keys, writer
from storyreel.film.ffmpeg import program
from storyreel.film.folder import FilmFolder
from storyreel.film.keys import film_tags, plan_facts
from storyreel.models.base import MemoryMode, Request
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.rendering import Engine, Rendered, render
from storyreel.story.plan import LOOKED_AT, Segment
from tests.conftest import (
    VERSIONS,
    FakeAdapter,
    FakeEngine,
    FakeScorer,
    Silent,
    encode_nothing,
    made_once,
    plan_of,
)
from tests.film.test_decode import FakeWriter
from tests.tiny import velocities

SCENES = [("a park", "a fox sits"), ("a street", "it walks"), ("a bus", "it looks"), ("a home", "it sleeps")]
SCENES += [("a lake", "it swims"), ("a hill", "it runs")]


def story(scenes: list[tuple[str, str]] = SCENES, title: str = "Foxes", cut: int | None = None) -> str:
    """A story in shots of a scene, three scenes and two; all others go on in the last one's."""
    lines = [f"title: {title}", "render: {model: fake}", "scenes:"]
    for index, (scene, action) in enumerate(scenes):
        transition = "cut" if index == cut else "dissolve" if index in (0, 1, 4) else "continue"
        lines.append(f"  - {{scene: {scene}, action: {action}, transition: {transition}}}")
    return "\n".join(lines) + "\n"


# With a cast, whose members stand in later scenes' leads.
CAST = """
title: Foxes
cast: {fox: {name: a fox}, dog: {name: a dog}}
render: {model: fake}
scenes:
  - ["{fox} in a park", "{fox} sits"]
  - ["{fox} in a park", it walks]
  - ["{dog} at home", "{dog} sleeps"]
  - {scene: "{fox} and {dog} by a lake", action: they look, transition: cut}
  - [a hill, it rains]
"""
LOOKS = 2 * len(LOOKED_AT)  # how often the model is asked where the two are


def make(
    out: Path,
    text: str | None = None,
    engine: FakeEngine | None = None,
    overwrite: bool = False,
    **options: object,
) -> tuple[Rendered, Silent, FakeEngine]:
    engine, progress = engine or FakeEngine(), Silent()
    result = render(plan_of(text or story(), **options), "foxes", out, engine, progress, overwrite)
    return result, progress, engine


def contents(out: Path) -> dict[str, bytes]:
    """Everything but times: films, pages, segments, also of former films."""
    kept = (".mp4", ".safetensors", ".html")
    return {str(p.relative_to(out)): untimed(p) for p in sorted(out.rglob("*")) if p.suffix in kept}


GROWS = b'class="growth"'  # in the page of a film that is not complete


def untimed(path: Path) -> bytes:
    """What a file holds; of a page, all but how long its scenes took."""
    data = path.read_bytes()
    return re.sub(rb'<span class="took">[^<]*</span>', b"", data) if path.suffix == ".html" else data


def film(out: Path) -> dict[str, bytes]:
    """The film that is there, its page, and the segments that it consists of."""
    folder = out / "foxes"
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [f"segments/{name}" for segment in manifest["segments"] for name in segment["files"]]
    return {name: untimed(folder / name) for name in ("foxes.mp4", "index.html", *names)}


def states(out: Path) -> list[Path]:
    """The states of segments under way."""
    return list((out / "foxes" / "segments").glob("*.state.safetensors"))


@pytest.fixture
def whole(fake_model: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Have the film that nothing happens to, as ffmpeg encodes it or as its frames, rendered once."""

    def undisturbed() -> Path:
        kind = "frames" if issubclass(writer.SegmentWriter, FakeWriter) else "encoded"
        return made_once(tmp_path_factory, f"whole-{kind}", lambda out: make(out) and None)

    return undisturbed


class Stopping(Silent):
    """Asks to stop after some forwards, as a signal would."""

    def __init__(self, engine: FakeEngine, after: int) -> None:
        super().__init__()
        self._engine, self._after = engine, after

    def forward(self) -> None:
        super().forward()
        if self.forwards >= self._after:
            self._engine.stop.ask(signal.SIGTERM, None)


pytestmark = pytest.mark.usefixtures("fake_model")


@pytest.mark.usefixtures("ffmpeg")
def test_a_render_leaves_what_was_promised(tmp_path: Path) -> None:
    result, progress, _ = make(tmp_path)
    assert result.film == tmp_path / "foxes" / "foxes.mp4"
    assert (result.segments, result.rendered) == (6, 6)
    assert progress.forwards == 6 * 3
    assert progress.finished == list(range(6))
    names = {p.name for p in (tmp_path / "foxes").iterdir()} - {".lock"}
    assert names == {"foxes.mp4", "index.html", "manifest.json", "segments", "events.jsonl"}
    expected = {f"{n:02d}{e}" for n in range(1, 7) for e in (".mp4", ".safetensors")}
    found = [p.name for p in (tmp_path / "foxes" / "segments").iterdir()]
    assert {re.sub(r"-[0-9a-f]{8}", "", name) for name in found} == expected | {f"{e}.json" for e in expected}
    assert len(found) == 24
    with av.open(str(result.film)) as video:
        assert len(video.chapters()) == 6
        assert sum(1 for _ in video.decode(video=0)) == 6 * 6


@pytest.mark.usefixtures("ffmpeg")
def test_the_manifest_says_how_to_make_it_again(tmp_path: Path) -> None:
    make(tmp_path, seed=7)
    manifest = json.loads((tmp_path / "foxes" / "manifest.json").read_text())
    assert manifest["model"]["name"] == "fake"
    assert set(manifest["model"]["weights"]) == {"vae/model.safetensors"}
    assert manifest["settings"]["seed"] == 7
    assert (manifest["settings"]["guidance"], manifest["settings"]["guidance_2"]) == (3, None)
    assert {"storyreel", "torch", "diffusers", "transformers", "ffmpeg"} <= set(manifest["versions"])
    assert [s["scene"] for s in manifest["segments"]] == [scene for scene, _ in SCENES]
    assert manifest["device"] == "cpu"
    assert "method/blending.py" in manifest["recipe"]["latents"]
    for segment in manifest["segments"]:
        names = {f"{segment['number']}-{segment['key'][:8]}.safetensors"}
        names.add(f"{segment['number']}-{segment['video_key'][:8]}.mp4")
        assert set(segment["files"]) == names
        assert segment["seconds"] >= 0
    assert manifest["film"]["file"] == "foxes.mp4"
    events = [json.loads(line) for line in (tmp_path / "foxes" / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["started", *["segment"] * 6, "finished"]


def test_the_guidance_of_a_second_expert_is_told_too() -> None:
    own, chosen = (plan_of(story(), model="wan-2.2-a14b", guidance=guidance) for guidance in (None, 4.0))
    settings = [plan_facts(plan)["settings"] for plan in (own, chosen)]
    assert [(s["guidance"], s["guidance_2"]) for s in settings] == [(4, 3), (4, None)]
    assert [film_tags(plan)["storyreel_guidance"] for plan in (own, chosen)] == ["4 and 3", "4"]


def test_a_second_run_loads_no_model_and_changes_no_byte(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "foxes").rglob("*.mp4")}
    result, progress, engine = make(tmp_path)
    assert (result.rendered, progress.forwards, engine.asked) == (0, 0, 0)
    assert contents(tmp_path) == before
    assert {p: p.stat().st_mtime_ns for p in times} == times


@pytest.mark.usefixtures("ffmpeg")
def test_two_renders_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(tmp_path / name, seed=seed)
    a, b, c = (list(film(tmp_path / name).items()) for name in "abc")
    assert a == b
    assert a[2][1] != c[2][1]  # the first latents, with the state of those behind them


def finished(out: Path, but: Collection[str] = ()) -> tuple[set[str], set[str]]:
    """Return the numbers of the segments of which latents, and of which pictures, are recorded.

    Those of another film are named by ``but``.
    """
    names = [path.name for path in (out / "foxes" / "segments").glob("*.json")]
    names = [name for name in names if f"segments/{name.removesuffix('.json')}" not in but]
    latents = {name[:2] for name in names if re.fullmatch(r"\d\d-\w{8}\.safetensors\.json", name)}
    return latents, {name[:2] for name in names if name.endswith(".mp4.json")}


@pytest.mark.parametrize("method", [(), ("blending=continuation",), ("blending=published",)], ids=str)
@pytest.mark.parametrize("at", [0, 5, 11, 12, 13, 17])
def test_an_interrupted_render_goes_on_to_the_same_film(
    tmp_path: Path, at: int, method: tuple[str, ...]
) -> None:
    make(tmp_path / "whole", method=method)
    engine = FakeEngine()

    def interrupt(count: int) -> None:
        if count == at:
            raise KeyboardInterrupt

    engine.adapter(MODELS["fake"]).on_predict = interrupt
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "torn", engine=engine, method=method)
    assert not (tmp_path / "torn" / "foxes" / "foxes.mp4").exists()
    latents, pictures = finished(tmp_path / "torn")
    assert len(latents) == at // 3  # no more than what is under way is lost
    assert len(pictures) >= len(latents) - 1
    result, progress, _ = make(tmp_path / "torn", method=method)
    assert result.rendered == 6 - len(pictures)
    assert progress.forwards == progress.promised <= 18 - 3 * len(latents)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_nowhere_to_put_temporary_files_is_told_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    film = contents(tmp_path)

    def fail() -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    engine = FakeEngine()
    with pytest.raises(OutputError, match=r"No usable temporary directory found in \['/tmp'\]") as told:
        make(tmp_path, engine=engine, overwrite=True)
    assert "TMPDIR" in told.value.remedy
    assert engine.asked == 0
    assert contents(tmp_path) == film


METHODS: list[dict[str, Any]] = [
    {},
    {"method": ("blending=continuation", "weighting=texts")},
    {"method": ("blending=published",), "guidance": 3.0},
    {"without": frozenset({"all"})},
    {"steps": 8, "speed": "fast"},
]


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_a_stopped_render_goes_on_inside_a_segment(tmp_path: Path, options: dict[str, Any]) -> None:
    """Stopped again and again after a few forwards: little is done twice, and the film is the same."""
    engine = FakeEngine()
    engine.fake_scorer = FakeScorer("a bus")
    _, whole, _ = make(tmp_path / "whole", engine=engine, **options)
    forwards, resumed = 0, 0
    for stop_after in (3, 5, 4, 6, 7, 1000):
        engine = FakeEngine()
        engine.fake_scorer = FakeScorer("a bus")
        progress = Stopping(engine, stop_after)
        try:
            render(plan_of(story(), **options), "foxes", tmp_path / "torn", engine, progress)
        except StoppedError:
            assert progress.forwards <= stop_after
            resumed += bool(states(tmp_path / "torn"))
        else:
            assert progress.forwards == progress.promised
        forwards += progress.forwards
    assert resumed >= 3
    assert forwards <= whole.forwards + 5  # each stop costs the step that had begun
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")
    assert not (tmp_path / "torn" / "foxes" / "unfinished.json").exists()


def test_how_a_character_is_found_is_found_again(tmp_path: Path) -> None:
    """A render with a cast is interrupted whenever the model is asked for something: the film is the same."""
    _, progress, engine = make(tmp_path / "whole", CAST, steps=2)
    assert engine.fake is not None
    asked = len(engine.fake.predicted)
    assert (progress.forwards, asked) == (5 * 2, 5 * 2 + LOOKS)
    for at in range(asked):
        out = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            make(out, CAST, engine=raising(FakeEngine(), at), steps=2)
        _, progress, _ = make(out, CAST, steps=2)
        assert progress.forwards == progress.promised
        assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("text", [story(), story(cut=3), CAST], ids=["shots", "a cut", "a cast"])
def test_several_devices_make_the_same_film(tmp_path: Path, text: str) -> None:
    """Also where they were stopped, and go on as one or as more."""
    make(tmp_path / "whole", text, steps=8)
    for name, first, then in (("two", 2, 2), ("three, then one", 3, 1), ("one, then three", 1, 3)):
        out, engine = tmp_path / name, FakeEngine()
        engine.adapter(MODELS["fake"]).at_once = first
        with pytest.raises(StoppedError):
            render(plan_of(text, steps=8), "foxes", out, engine, Stopping(engine, 13))
        # Of the first segment all is there; of all under way, so is their state.
        assert len(states(out)) >= 1
        engine = FakeEngine()
        engine.adapter(MODELS["fake"]).at_once = then
        _, progress, _ = make(out, text, engine, steps=8)
        assert progress.forwards == progress.promised
        assert contents(out) == contents(tmp_path / "whole")


def test_a_state_goes_on_beside_an_earlier_segment_that_is_mended(tmp_path: Path) -> None:
    """With several devices the later one is ahead, and waits."""
    make(tmp_path / "whole", steps=8)
    engine = FakeEngine()
    with pytest.raises(StoppedError):
        render(plan_of(story(), steps=8), "foxes", tmp_path, engine, Stopping(engine, 14))
    assert [path.name[:2] for path in states(tmp_path)] == ["02"]
    segment(tmp_path, "01", ".safetensors").unlink()
    engine = FakeEngine()
    engine.adapter(MODELS["fake"]).at_once = 2
    _, progress, _ = make(tmp_path, engine=engine, steps=8)
    assert progress.forwards == progress.promised == 8 + 3 + 4 * 8
    assert contents(tmp_path / "foxes") == contents(tmp_path / "whole" / "foxes")


def test_a_killed_render_goes_on_from_the_state_that_was_kept_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "whole", steps=8)
    monkeypatch.setattr("storyreel.rendering.KEEP_EVERY", 0.0)
    engine = FakeEngine()

    def interrupt(count: int) -> None:
        if count == 30:
            raise KeyboardInterrupt

    engine.adapter(MODELS["fake"]).on_predict = interrupt
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "torn", engine=engine, steps=8)
    _, progress, _ = make(tmp_path / "torn", steps=8)
    assert 18 <= progress.forwards == progress.promised <= 18 + 3
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", ["bit", "gone", "seed", "scene", "device", "overwrite"])
def test_a_state_that_does_not_fit_is_not_used(tmp_path: Path, change: str) -> None:
    engine = FakeEngine()
    with pytest.raises(StoppedError):
        render(plan_of(story(), steps=8), "foxes", tmp_path, engine, Stopping(engine, 6))
    (state,) = states(tmp_path)
    options: dict[str, Any] = {"steps": 8}
    engine, text = FakeEngine(), story()
    if change == "bit":
        data = bytearray(state.read_bytes())
        data[-1] ^= 1
        state.write_bytes(data)
    elif change == "gone":
        state.unlink()
    elif change == "seed":
        options["seed"] = 5
    elif change == "scene":
        text = story([("a river", "it swims"), *SCENES[1:]])
    elif change == "device":
        engine.device = "cuda"
    _, progress, _ = make(tmp_path, text, engine, overwrite=change == "overwrite", **options)
    assert progress.forwards == progress.promised == 6 * 8
    # One that is of another film waits until that is wanted again.
    assert state.exists() == (change in ("seed", "scene", "device"))
    engine = FakeEngine()
    engine.device = "cuda" if change == "device" else "cpu"
    make(tmp_path / "whole", text, engine, **options)
    assert film(tmp_path) == film(tmp_path / "whole")


def test_a_state_waits_while_another_film_is_made(tmp_path: Path) -> None:
    make(tmp_path / "whole", steps=8)
    engine = FakeEngine()
    with pytest.raises(StoppedError):
        render(plan_of(story(), steps=8), "foxes", tmp_path, engine, Stopping(engine, 10))
    make(tmp_path, steps=8, seed=77)
    _, progress, _ = make(tmp_path, steps=8)
    assert progress.forwards == progress.promised <= 6 * 8 - 8
    assert film(tmp_path) == film(tmp_path / "whole")


def test_a_state_waits_while_an_earlier_segment_is_mended(tmp_path: Path) -> None:
    make(tmp_path / "whole", steps=8)
    engine = FakeEngine()
    with pytest.raises(StoppedError):
        render(plan_of(story(), steps=8), "foxes", tmp_path, engine, Stopping(engine, 30))
    segment(tmp_path, "01", ".safetensors").unlink()
    _, progress, _ = make(tmp_path, steps=8)
    assert progress.forwards == progress.promised
    assert contents(tmp_path / "foxes") == contents(tmp_path / "whole" / "foxes")


def segment(out: Path, number: str, suffix: str) -> Path:
    """A file of a segment, of which there is one version."""
    (path,) = (out / "foxes" / "segments").glob(f"{number}-????????{suffix}")
    return path


WHERE = {
    "while encoding": ("storyreel.film.writer.SegmentWriter.write", 9),
    "when ffmpeg ends": ("storyreel.film.ffmpeg.finish", 4),
    "at the note of what is rendered": ("storyreel.film.folder.FilmFolder.begin", 1),
    "at the latents": ("storyreel.denoise.state.write_atomically", 3),
    "before latents are recorded": ("storyreel.film.store.Store.keep", 5),
    "before pictures are recorded": ("storyreel.film.store.Store.keep", 6),
    "at a record": ("storyreel.film.store.write_atomically", 8),
    "while joining": ("storyreel.film.writer.join", 1),
    "at the last ffmpeg": ("storyreel.film.ffmpeg.finish", 7),
    "at a page that grows": ("storyreel.film.page.write_atomically", 1),
    "at the page": ("storyreel.rendering.write_page", 1),
    "at the manifest": ("storyreel.film.folder.FilmFolder.publish", 1),
}


@pytest.mark.usefixtures("ffmpeg")
@pytest.mark.parametrize("where", WHERE)
def test_an_interrupt_anywhere_costs_nothing_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, whole: Callable[[], Path]
) -> None:
    """The n-th call of something is interrupted before it does its work."""
    target, nth = WHERE[where]
    path, name = target.rsplit(".", 1)
    if not path.startswith(("storyreel.film.writer", "storyreel.film.ffmpeg")):
        encode_nothing(monkeypatch)
    owner = pkgutil.resolve_name(path)
    original, calls = getattr(owner, name), 0

    def interrupted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            if name == "_finish":
                args[0].kill()  # type: ignore[attr-defined]
                original(*args)
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "torn")
    _, pictures = finished(tmp_path / "torn")
    result, _, _ = make(tmp_path / "torn")
    assert result.rendered == 6 - len(pictures)
    assert contents(tmp_path / "torn") == contents(whole())
    assert not list((tmp_path / "torn").rglob(".*.part*"))


@pytest.mark.parametrize("kind", [".mp4", ".safetensors"])
@pytest.mark.parametrize("number", ["01", "02", "04", "05", "06"])
def test_a_damaged_segment_is_made_again_and_no_other(tmp_path: Path, number: str, kind: str) -> None:
    """Segments of one latent frame, so that a dissolve reaches over a whole one."""
    make(tmp_path, seconds=0.25)
    before = contents(tmp_path)
    folder = tmp_path / "foxes" / "segments"
    times = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    path = segment(tmp_path, number, kind)
    path.write_bytes(path.read_bytes()[:-1])
    result, progress, _ = make(tmp_path, seconds=0.25)
    assert result.rendered == 1
    assert progress.forwards == progress.promised
    assert (progress.forwards == 0) == (kind == ".mp4")  # pictures come from latents
    assert contents(tmp_path) == before
    changed = {p.name for p in folder.iterdir() if p.stat().st_mtime_ns != times[p.name]}
    again = {segment(tmp_path, number, suffix).name for suffix in (".mp4", kind)}
    assert changed == again | {f"{name}.json" for name in again}


@pytest.mark.usefixtures("ffmpeg")
def test_a_damaged_film_is_joined_again_without_a_model(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    (tmp_path / "foxes" / "foxes.mp4").write_bytes(b"")
    (tmp_path / "foxes" / "index.html").unlink()
    _, _, engine = make(tmp_path)
    assert engine.asked == 0
    assert contents(tmp_path) == before


def test_a_changed_title_renders_nothing_again(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    result, _, engine = make(tmp_path, story(title="Vixens"))
    assert (result.rendered, engine.asked) == (0, 0)
    after = contents(tmp_path)
    assert after["foxes/foxes.mp4"] != before["foxes/foxes.mp4"]
    segments = {name for name in before if "segments" in name}
    assert {n: after[n] for n in segments} == {n: before[n] for n in segments}


def test_a_changed_scene_changes_the_rest_of_its_shot_and_what_dissolves_into_it(tmp_path: Path) -> None:
    def change(name: str, index: int, cut: int | None) -> tuple[int, int]:
        """Change one scene of a finished film; return how many were denoised again, and how many encoded."""
        scenes = [*SCENES]
        scenes[index] = ("a river", "a fox drinks")
        make(tmp_path / name, story(cut=cut))
        result, progress, _ = make(tmp_path / name, story(scenes, cut=cut))
        make(tmp_path / f"{name}-fresh", story(scenes, cut=cut))
        assert film(tmp_path / name) == film(tmp_path / f"{name}-fresh")
        return progress.forwards // 3, result.rendered

    assert change("last", 5, None) == (1, 1)
    assert change("a shot of its own", 0, None) == (1, 2)  # a dissolve shows it in the next one's video
    assert change("in a shot", 2, None) == (2, 3)
    assert change("first of a shot", 1, None) == (3, 5)
    assert change("before a cut", 1, 3) == (2, 3)
    assert change("behind a cut", 3, 3) == (1, 2)


def test_with_a_scorer_a_scene_is_what_its_key_covers_too(tmp_path: Path) -> None:
    """What other scenes say, or do not say any more, changes nothing that is there."""

    def scored() -> FakeEngine:
        engine = FakeEngine()
        engine.fake_scorer = FakeScorer("a bus")
        return engine

    changed = story([*SCENES[:2], ("a river", "it looks"), *SCENES[3:]])
    make(tmp_path / "kept", engine=scored(), steps=8)
    make(tmp_path / "kept", changed, scored(), steps=8)
    make(tmp_path / "fresh", changed, scored(), steps=8)
    assert film(tmp_path / "kept") == film(tmp_path / "fresh")


def test_who_is_changed_in_the_first_scene_is_changed_in_all_that_show_him(tmp_path: Path) -> None:
    """Across dissolves and cuts; without identity a scene of another place is nobody's business."""
    changed = CAST.replace('"{fox} sits"', '"{fox} jumps"')
    for name, options, again in (
        ("identity", {}, [0, 1, 3]),
        ("none", {"without": frozenset({"identity"})}, [0, 1]),
    ):
        make(tmp_path / name, CAST, **options)  # type: ignore[arg-type]
        before = json.loads((tmp_path / name / "foxes" / "manifest.json").read_text())["segments"]
        _, progress, _ = make(tmp_path / name, changed, **options)  # type: ignore[arg-type]
        after = json.loads((tmp_path / name / "foxes" / "manifest.json").read_text())["segments"]
        assert [i for i in range(5) if before[i]["key"] != after[i]["key"]] == again
        assert progress.forwards == 3 * len(again)
        make(tmp_path / f"{name}-fresh", changed, **options)  # type: ignore[arg-type]
        assert film(tmp_path / name) == film(tmp_path / f"{name}-fresh")


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"steps": 2}, {"guidance": 2.0}, {"seconds": 0.25}], ids=lambda o: next(iter(o))
)
def test_every_setting_is_part_of_a_segments_key(tmp_path: Path, options: dict[str, object]) -> None:
    make(tmp_path)
    result, _, _ = make(tmp_path, **options)  # type: ignore[arg-type]
    assert result.rendered == 6


def test_versions_are_part_of_a_segments_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(keys, "versions", lambda: VERSIONS | {"torch": "3.0"})
    _, progress, _ = make(tmp_path)
    assert progress.forwards == 6 * 3
    assert "torch 2 -> 3.0" in progress.heard[0]
    # Latents do not depend on what encodes pictures.
    monkeypatch.setattr(keys, "versions", lambda: VERSIONS | {"ffmpeg": "99"})
    result, progress, _ = make(tmp_path)
    assert (result.rendered, progress.forwards) == (6, 0)
    assert make(tmp_path)[0].rendered == 0


def test_another_version_of_storyreel_is_the_same_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    before = film(tmp_path)
    monkeypatch.setattr(keys, "__version__", "99.0")
    monkeypatch.setattr("storyreel.rendering.__version__", "99.0")
    result, progress, engine = make(tmp_path)
    assert (result.rendered, engine.asked, progress.heard) == (0, 0, [])
    assert film(tmp_path) == before  # which says what joined it
    (tmp_path / "foxes" / "foxes.mp4").unlink()
    make(tmp_path)
    assert b"99.0" in (tmp_path / "foxes" / "foxes.mp4").read_bytes()
    assert ">99.0<" in (tmp_path / "foxes" / "index.html").read_text()


def test_a_longer_first_scene_leaves_other_shots(tmp_path: Path) -> None:
    """But for the beginning of the next, which it dissolves into; behind a cut, not even that."""
    for cut, rendered in ((None, 2), (1, 1)):
        make(tmp_path, story(cut=cut))
        longer = story(cut=cut).replace("action: a fox sits", "action: a fox sits, seconds: 1")
        assert make(tmp_path, longer)[0].rendered == rendered


def raising(engine: FakeEngine, at: int) -> FakeEngine:
    """Have the fake model be interrupted in a forward pass."""

    def interrupt(count: int) -> None:
        if count == at:
            raise KeyboardInterrupt

    engine.adapter(MODELS["fake"]).on_predict = interrupt
    return engine


def test_a_render_that_was_begun_is_not_taken_for_the_film_before(tmp_path: Path) -> None:
    make(tmp_path)
    before = film(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, story([("a river", "it swims"), *SCENES[1:]]), engine=raising(FakeEngine(), 0))
    assert film(tmp_path) == before
    begun = json.loads((tmp_path / "foxes" / "unfinished.json").read_text())
    assert begun["film"] == {}
    assert begun["segments"][0]["scene"] == "a river"
    events = [json.loads(line) for line in (tmp_path / "foxes" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "stopped"
    assert events[-1]["reason"] == "KeyboardInterrupt"


CHANGES: dict[str, dict[str, Any]] = {
    "seed": {"seed": 77},
    "setting": {"steps": 2},
    "text": {"text": story([*SCENES[:2], ("a river", "it swims"), *SCENES[3:]])},
    "shorter": {"text": story(SCENES[:4])},
    "cut": {"text": story(cut=2)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_to_go_back_renders_nothing(tmp_path: Path, change: str) -> None:
    make(tmp_path)
    before = film(tmp_path)
    options = dict(CHANGES[change])
    text = options.pop("text", None)
    make(tmp_path, text, **options)
    after = film(tmp_path)
    assert after["foxes.mp4"] != before["foxes.mp4"]
    result, progress, engine = make(tmp_path)
    assert (result.rendered, progress.forwards, engine.asked) == (0, 0, 0)
    assert film(tmp_path) == before
    result, _, engine = make(tmp_path, text, **options)
    assert (result.rendered, engine.asked) == (0, 0)
    assert film(tmp_path) == after


def test_a_film_survives_whatever_happens_to_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at ten moments; at every one of them, and at every write, the film is as it was."""
    make(tmp_path)
    before, original = film(tmp_path), files._rename
    looked = 0

    def rename(path: Path, target: Path) -> None:
        nonlocal looked
        original(path, target)
        assert film(tmp_path) == before
        looked += 1

    kept = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "_rename", rename)
        # In the forward pass of that number, and at the very end: each goes on from where the last one was.
        for moment in (0, 7, 3, 3, 3, 2, 0, "decode", "encode", "join"):
            engine = raising(FakeEngine(), moment if isinstance(moment, int) else -1)
            with monkeypatch.context() as once:
                if moment == "decode":
                    once.setattr(FakeAdapter, "decode", interrupt)
                elif moment == "encode":
                    once.setattr("storyreel.film.writer.SegmentWriter", interrupt)
                elif moment == "join":
                    once.setattr(writer, "join", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    make(tmp_path, engine=engine, seed=77)
            assert film(tmp_path) == before
            kept.append(len(finished(tmp_path, but=before)[0]))
    assert kept == [0, 2, 3, 4, 5, 5, 5, 5, 5, 6]
    assert looked > 12
    result, progress, engine = make(tmp_path)
    assert (result.rendered, progress.forwards, engine.asked) == (0, 0, 0)
    assert film(tmp_path) == before
    assert not any("foxes" in path.name for path in (tmp_path / "foxes").glob(".*"))
    make(tmp_path / "other", seed=77)
    assert make(tmp_path, seed=77)[0].rendered == 0
    assert film(tmp_path) == film(tmp_path / "other")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_differs_is_said_before_anything_is_rendered(tmp_path: Path) -> None:
    _, progress, _ = make(tmp_path)
    assert progress.heard == []
    scenes = [*SCENES[:4], ("a lake", "it drinks"), SCENES[5]]
    _, progress, _ = make(tmp_path, story(scenes), seed=1, steps=2)
    words, unused = progress.heard
    assert words == (
        "differs from the film that is there: scene 5's action prompt; seed 0 -> 1; steps 3 -> 2; "
        "what is there stays until the new film is complete, which grows in unfinished.html"
    )
    assert "storyreel clean" in unused
    _, progress, _ = make(tmp_path, story(scenes, title="Vixens"), seed=1, steps=2)
    assert progress.heard == ["differs from the film that is there: title Foxes -> Vixens"]
    begun = tmp_path / "begun"
    with pytest.raises(KeyboardInterrupt):
        make(begun, engine=raising(FakeEngine(), 3))
    _, progress, _ = make(begun, seed=2)
    assert progress.heard[0].startswith("differs from the film that was begun: seed 0 -> 2")


def test_a_film_of_an_earlier_version_stays_until_its_successor_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "foxes"
    (folder / "segments").mkdir(parents=True)
    former = {"foxes.mp4": b"film", "index.html": b"page", "segments/01.mp4": b"pictures"}
    former |= {"manifest.json": b'{"format": 3, "segments": [], "film": {}}', "segments/01.safetensors": b"x"}
    for name, data in former.items():
        (folder / name).write_bytes(data)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, engine=raising(FakeEngine(), 17))
    assert {name: (folder / name).read_bytes() for name in former} == former
    _, progress, _ = make(tmp_path)
    assert "of an earlier version" in progress.heard[0]
    make(tmp_path / "fresh")
    assert film(tmp_path) == film(tmp_path / "fresh")


def test_a_film_has_segments_of_one_kind_of_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto`` takes a complete film of any, and begins a new one where it would have to mix them."""
    automatic = FakeEngine()
    automatic.device = "auto"
    make(tmp_path)
    monkeypatch.setattr("storyreel.models.devices.pick_device", lambda name: torch.device("cuda"))
    assert make(tmp_path, engine=automatic)[0].rendered == 0
    segment(tmp_path, "06", ".safetensors").unlink()
    _, progress, _ = make(tmp_path, engine=automatic)
    assert progress.forwards == 6 * 3
    assert "device cpu -> cuda" in progress.heard[0]
    assert make(tmp_path)[1].forwards <= 3  # what is there of the other is still there


def test_scenes_of_several_machines_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, engine=raising(FakeEngine(), 12))
    engine = FakeEngine()
    engine.compiled = True
    _, progress, _ = make(tmp_path, engine=engine)
    here = f"cpu with OMP_NUM_THREADS={torch.get_num_threads()}"
    words = f"computed on {here}, the others will be on {here}, compiled: that makes another film"
    assert any(words in heard for heard in progress.heard)
    manifest = json.loads((tmp_path / "foxes" / "manifest.json").read_text())
    assert {segment["device"] for segment in manifest["segments"]} == {here, f"{here}, compiled"}


def test_other_weights_are_another_film(tmp_path: Path, fake_model: ModelSpec) -> None:
    make(tmp_path)
    (fake_model.weights / "vae" / "model.safetensors").write_bytes(b"other weights")
    result, _, _ = make(tmp_path)
    assert result.rendered == 6


def test_overwrite_renders_everything_again(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    result, _, _ = make(tmp_path, overwrite=True)
    assert result.rendered == 6
    assert contents(tmp_path) == before


def test_a_scene_is_rendered_again_without_those_that_it_depends_on(tmp_path: Path) -> None:
    make(tmp_path)
    before, progress = contents(tmp_path), Silent()
    plan = plan_of(story())
    done = render(plan, "foxes", tmp_path, FakeEngine(), progress, overwrite=True, only=frozenset({2}))
    assert (done.is_complete, done.rendered) == (True, 1)
    assert progress.forwards == plan.pace.forwards + plan.looks([plan.segments[2]])
    assert contents(tmp_path) == before


def test_a_render_of_everything_again_that_is_stopped_goes_on(tmp_path: Path) -> None:
    make(tmp_path)
    before, engine = contents(tmp_path), FakeEngine()
    with pytest.raises(StoppedError, match="without --overwrite to go on with foxes"):
        render(plan_of(story()), "foxes", tmp_path, engine, Stopping(engine, 8), overwrite=True)
    assert (tmp_path / "foxes" / "foxes.mp4").read_bytes() == before["foxes/foxes.mp4"]
    result, progress, _ = make(tmp_path)
    assert 3 <= result.rendered < 6
    assert progress.forwards <= 6 * 3 - 8 + 1  # the step that had begun
    assert contents(tmp_path) == before


def test_nan_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    fake = engine.adapter(MODELS["fake"])
    answer = fake.answer

    def broken(request: Request) -> list[torch.Tensor]:
        factor = float("nan") if len(fake.predicted) >= 12 else 1.0
        return [factor * v for v in answer(request)]

    monkeypatch.setattr(fake, "answer", broken)
    with pytest.raises(NumericsError, match=r"scene 5 .* step 1"):
        make(tmp_path, engine=engine)
    assert finished(tmp_path) == ({"01", "02", "03", "04"}, {"01", "02", "03"})
    result, progress, _ = make(tmp_path)
    assert (result.rendered, progress.forwards) == (3, 2 * 3)


def test_an_output_that_cannot_be_written_is_said_before_the_model_loads(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    engine = FakeEngine()
    with pytest.raises(OutputError, match="cannot write"):
        make(blocker, engine=engine)
    assert engine.asked == 0


@pytest.mark.slow  # forty scenes, all living objects counted at each
@pytest.mark.usefixtures("ffmpeg")
def test_memory_holds_what_is_under_way_however_long_the_story(tmp_path: Path) -> None:
    """Living tensors are counted at every forward: they are of what is under way, not of the story."""

    def most_bytes(scenes: int, turn: int = 0) -> tuple[int, int]:
        engine, peak = FakeEngine(), 0

        def count(_: int) -> None:
            nonlocal peak
            tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
            peak = max(peak, sum(t.nbytes for t in tensors))

        engine.adapter(MODELS["fake"]).on_predict = count
        gc.collect()
        gc.freeze()  # what was there before is no part of it, and would be walked through every time
        tracemalloc.start()
        make(tmp_path / f"{scenes}-{turn}", story([SCENES[i % 6] for i in range(scenes)]), engine, steps=1)
        _, others = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        gc.unfreeze()
        return peak, others

    most_bytes(1)  # what is loaded once
    (short, short_others), *twice = most_bytes(8), most_bytes(32), most_bytes(32, 1)
    # What another test has left to be loaded late comes once, what a story keeps comes twice.
    long, long_others = (min(values) for values in zip(*twice, strict=True))
    assert long <= short * 1.02
    # All else that Python knows of: a scene adds its record, and none of its pictures.
    assert long_others - short_others < 24 * 6 * (96 * 64 * 3) / 4


class Costs(Silent):
    """Counts, of spells of ten scenes each, the calls of any function and the bytes that are written."""

    def __init__(self, patch: pytest.MonkeyPatch, *spells: int) -> None:
        super().__init__()
        self._spells = spells
        self.calls, self.bytes = Counter[int](), Counter[int]()
        self._spell: int | None = None
        write, log = files._write, FilmFolder.log

        def counted(path: Path, data: bytes) -> None:
            self.bytes[self._spell or 0] += len(data)
            write(path, data)

        def logged(folder: FilmFolder, event: str, **details: object) -> None:
            self.bytes[self._spell or 0] += len(event + repr(details))
            log(folder, event, **details)

        patch.setattr(files, "_write", counted)
        patch.setattr(FilmFolder, "log", logged)

    def segment_finished(self, segment: Segment) -> None:
        if segment.index in self._spells:
            self._spell = segment.index
            sys.setprofile(self._count)
        elif self._spell is not None and segment.index == self._spell + 10:
            sys.setprofile(None)
            self._spell = None
        super().segment_finished(segment)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            self.calls[self._spell or 0] += 1


@pytest.mark.parametrize("scenes", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_scene_costs_the_same_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenes: int
) -> None:
    """Work is counted instead of timed: a machine may be busy.

    But for the page that grows, which is bound by the clock: `tests/film/test_page.py`.
    """
    monkeypatch.setattr("storyreel.film.page.SHARE", 1e9)
    early, late = 10, scenes - 20
    costs = Costs(monkeypatch, early, late)
    text = story([SCENES[index % 6] for index in range(scenes)])
    result = render(plan_of(text, steps=1, seconds=0.25), "foxes", tmp_path, FakeEngine(), costs)
    assert result.rendered == scenes
    assert costs.calls[early] > 1000
    assert costs.calls[late] == pytest.approx(costs.calls[early], rel=0.02)
    assert costs.bytes[early] > 10 * 1000
    assert costs.bytes[late] == pytest.approx(costs.bytes[early], rel=0.02)
    # At the beginning and the end, a little more.
    assert costs.bytes[0] < scenes * costs.bytes[early] / 10 * 1.2


@pytest.mark.parametrize("weighting", [True, False])
def test_page_and_manifest_say_what_was_decided(tmp_path: Path, weighting: bool) -> None:
    make(tmp_path, story(cut=3), steps=8, method=(f"weighting={weighting}",))
    manifest = json.loads((tmp_path / "foxes" / "manifest.json").read_text())
    assert "seam" not in manifest["segments"][0]["decided"] or not manifest["segments"][0]["decided"]["seam"]
    for segment in manifest["segments"]:
        weights = segment["decided"]["prompt_weights"]
        assert len(weights) == 8
        assert all(sum(pair) == pytest.approx(1, abs=1e-3) for pair in weights)
        assert (len({tuple(pair) for pair in weights}) > 1) == weighting  # one joined text: a half each
    seams = [segment["decided"]["seam"] for segment in manifest["segments"][1:]]
    assert [s["transition"] for s in seams] == ["dissolve", "continue", "cut", "dissolve", "continue"]
    assert all((seam["overlap"] > 0) == (seam["transition"] == "continue") for seam in seams)
    assert all(0 <= seam["similarity"] <= 1 for seam in seams if seam["overlap"])
    page = (tmp_path / "foxes" / "index.html").read_text()
    assert page.count("<polyline") == (2 * 6 if weighting else 0)
    assert page.count("Both prompts count the same in all of 8 steps.") == (0 if weighting else 6)
    assert page.count("The shot goes on from scene") == page.count("dissolves into this one") == 2
    assert page.count("A cut: this scene begins at once") == 1


@pytest.mark.parametrize("weighting", ["true", "texts"])
def test_one_prompt_alone_is_weighed_nowhere(tmp_path: Path, weighting: str) -> None:
    alone = ("a fox sits", "a fox sits")
    make(tmp_path, story([alone, ("a park", "a fox runs")]), steps=8, method=(f"weighting={weighting}",))
    manifest = json.loads((tmp_path / "foxes" / "manifest.json").read_text())
    one, two = (segment["decided"]["prompt_weights"] for segment in manifest["segments"])
    assert one == [[0.5, 0.5]] * 8
    assert len({tuple(pair) for pair in two}) > 1
    page = (tmp_path / "foxes" / "index.html").read_text()
    assert page.count("<polyline") == 2  # a curve for each prompt of the second scene


def test_the_page_shows_text_as_text(tmp_path: Path) -> None:
    evil = [("a </script><script>alert(1)</script>", "b &amp; c")]
    text = f'render: {{model: fake}}\nscenes:\n  - ["{evil[0][0]}", "{evil[0][1]}"]\n'
    make(tmp_path, text)
    page = (tmp_path / "foxes" / "index.html").read_text()
    assert "alert(1)</script>" not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert "b &amp;amp; c" in page
    assert "http" not in page.replace("https://cv.iptc.org", "")  # nothing is fetched


def test_out_of_memory_goes_on_a_mode_lower(tmp_path: Path) -> None:
    make(tmp_path / "whole")
    engine = FakeEngine()
    adapter = engine.adapter(MODELS["fake"])

    def fail_once(count: int) -> None:
        if count == 12 and adapter.modes == ["balanced", "low"]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    adapter.on_predict = fail_once
    result, progress, _ = make(tmp_path / "short", engine=engine)
    (heard,) = progress.heard
    assert heard.startswith("out of memory: going on with --memory balanced")
    assert "--quantize fp8" in heard
    assert adapter.modes == ["low"]
    assert result.rendered == 6
    assert sorted(set(progress.finished)) == list(range(6))
    assert contents(tmp_path / "short") == contents(tmp_path / "whole")


def test_out_of_memory_in_the_lowest_mode_is_said_and_costs_nothing_finished(tmp_path: Path) -> None:
    engine = FakeEngine()
    adapter = engine.adapter(MODELS["fake"])

    def fail(count: int) -> None:
        if count >= 12:
            raise torch.OutOfMemoryError("CUDA out of memory")

    adapter.on_predict = fail
    with pytest.raises(MissingError, match="too little memory"):
        make(tmp_path, engine=engine)
    assert adapter.modes == []
    assert segment(tmp_path, "01", ".safetensors").exists()
    adapter.on_predict = lambda count: None
    make(tmp_path, engine=engine)
    make(tmp_path / "whole")
    assert contents(tmp_path / "foxes") == contents(tmp_path / "whole" / "foxes")


def test_a_lack_of_memory_names_fp8_where_it_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine()
    adapter = engine.adapter(MODELS["fake"])

    def fail_once(count: int) -> None:
        if count == 1 and len(adapter.modes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    adapter.on_predict = fail_once
    _, progress, _ = make(tmp_path, engine=engine, quantize="fp8")  # it is there already
    assert progress.heard == ["out of memory: going on with --memory balanced"]

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("storyreel.models.loading.load_adapter", full)
    with pytest.raises(MissingError, match="model fake in mode high") as caught:
        Engine("cpu", "high").adapter(MODELS["fake"])
    assert "--quantize fp8" in caught.value.remedy
    with pytest.raises(MissingError, match="model fake in fp8 in mode high") as caught:
        Engine("cpu", "high").adapter(MODELS["fake"].quantized("fp8"))
    assert "fp8" not in caught.value.remedy


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be …"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["pinned", "cuBLAS"],
)
def test_a_lack_of_memory_is_known_by_its_words(tmp_path: Path, error: RuntimeError) -> None:
    engine = FakeEngine()
    adapter = engine.adapter(MODELS["fake"])

    def fail_once(count: int) -> None:
        if count == 12 and len(adapter.modes) == 2:
            raise error

    adapter.on_predict = fail_once
    result, progress, _ = make(tmp_path, engine=engine)
    assert progress.heard[0].startswith("out of memory: going on with --memory balanced")
    assert result.rendered == 6

    def full() -> MemoryMode | None:  # as when no memory can be pinned
        raise error

    adapter.on_predict, adapter.lower_memory_mode = fail_once, full  # type: ignore[method-assign]
    adapter.modes, adapter.predicted = ["balanced", "low"], []
    with pytest.raises(MissingError, match="the device has too little memory") as caught:
        make(tmp_path, engine=engine, overwrite=True)
    assert "lost" not in str(caught.value)


def test_a_model_that_does_not_fit_after_all_is_loaded_a_mode_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    fits = ["low"]

    def load(spec: ModelSpec, device: torch.device, mode: str) -> FakeAdapter:
        tried.append(mode)
        if mode not in fits:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return FakeAdapter(spec)

    monkeypatch.setattr("storyreel.models.loading.load_adapter", load)
    monkeypatch.setattr("storyreel.models.devices.pick_device", lambda name: torch.device("cuda", 0))
    Engine("cuda").adapter(MODELS["fake"])
    assert tried == ["auto", "balanced", "low"]
    fits.clear()
    for asked, last, words in (
        ("auto", "low", "machine's own memory"),
        ("balanced", "balanced", "--memory low"),
    ):
        with pytest.raises(MissingError, match=f"too little memory for model fake in mode {last}") as caught:
            Engine("cuda", asked).adapter(MODELS["fake"])  # type: ignore[arg-type]
        assert words in caught.value.remedy

    def bug(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("storyreel.models.loading.load_adapter", bug)
    with pytest.raises(RuntimeError, match="shapes differ"):
        Engine("cuda").adapter(MODELS["fake"])


@pytest.mark.parametrize(
    ("compiled", "device", "hub", "expected"),
    [
        (None, "cuda", "a/model", True),
        (None, "cuda", None, False),  # the embedded one
        (None, "cpu", "a/model", False),
        (True, "cpu", None, True),
        (False, "cuda", "a/model", False),
    ],
)
def test_large_models_are_compiled_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, compiled: bool | None, device: str, hub: str | None, expected: bool
) -> None:
    loaded: list[FakeAdapter] = []

    def load(spec: ModelSpec, device: torch.device, mode: str) -> FakeAdapter:
        loaded.append(FakeAdapter(spec))
        loaded[-1].device = device
        return loaded[-1]

    monkeypatch.setattr("storyreel.models.loading.load_adapter", load)
    monkeypatch.setattr("storyreel.models.devices.pick_device", lambda name: torch.device(device, 0))
    engine, heard = Engine(device, compiled=compiled), list[str]()
    for _ in range(2):  # it is loaded once, and said once
        engine.adapter(replace(MODELS["fake"], hub=hub), heard.append)
    assert [adapter.compiled for adapter in loaded] == [expected]
    assert len(heard) == expected
    assert all("--no-compile" in words for words in heard)
    if expected:  # what fails later is said of the film that is rendered then
        later: list[str] = []
        engine.adapter(replace(MODELS["fake"], hub=hub), later.append)
        loaded[0].told("why not")
        assert later == ["why not"]
        assert "why not" not in heard


def test_a_model_that_cannot_be_compiled_renders_and_records_that(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.compiled = True

    def fails(count: int) -> None:
        if count == 1:
            assert engine.fake is not None
            engine.fake.compiled = False
            engine.fake.told("the model cannot be compiled here")

    engine.adapter(MODELS["fake"]).on_predict = fails
    result, progress, _ = make(tmp_path, engine=engine)
    assert result.is_complete
    assert progress.heard.count("the model cannot be compiled here") == 1
    manifest = json.loads((tmp_path / "foxes" / "manifest.json").read_text())
    here = f"cpu with OMP_NUM_THREADS={torch.get_num_threads()}"
    assert {segment["device"] for segment in manifest["segments"]} == {here}


def test_a_gpu_that_multiplies_fp8_makes_another_film(
    tmp_path: Path, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only of weights in fp8, and of models in bfloat16: no other film changes."""
    engine = FakeEngine()
    engine.device = "auto"
    in_half = replace(fake_model, dtype="bfloat16")
    monkeypatch.setitem(MODELS, "fake", in_half)
    monkeypatch.setattr("storyreel.models.devices.pick_device", lambda name: torch.device("cuda"))
    can = {"multiply": False}
    monkeypatch.setattr("storyreel.models.quantized.multiplies_float8", lambda device: can["multiply"])
    make(tmp_path, engine=engine)
    make(tmp_path, engine=engine, quantize="fp8")
    can["multiply"] = True
    assert engine.device_kind(in_half) == engine.device_kind(fake_model.quantized("fp8")) == "cuda"
    assert make(tmp_path, engine=engine)[0].rendered == 0
    assert make(tmp_path, engine=engine, quantize="fp8")[0].rendered == 0  # auto takes what is complete
    engine.device = "cuda"
    result, progress, _ = make(tmp_path, engine=engine, quantize="fp8")
    assert result.rendered == 6
    assert "device cuda -> cuda with fp8 arithmetic" in progress.heard[0]
    manifest = json.loads((tmp_path / "foxes" / "manifest.json").read_text())
    assert manifest["device"] == "cuda with fp8 arithmetic"
    can["multiply"], engine.device = False, "auto"
    assert make(tmp_path, engine=engine, quantize="fp8")[0].rendered == 0


def test_weights_in_fp8_are_recorded_and_make_another_film(tmp_path: Path) -> None:
    make(tmp_path)
    assert make(tmp_path, quantize="none")[0].rendered == 0
    result, _, engine = make(tmp_path, quantize="fp8")
    assert result.rendered == 6
    assert engine.fake is not None
    assert engine.fake.spec.quantize == "fp8"
    manifest = json.loads((tmp_path / "foxes" / "manifest.json").read_text())
    assert manifest["settings"]["quantize"] == "fp8"
    assert make(tmp_path, quantize="fp8")[0].rendered == 0
    assert make(tmp_path, story().replace("model: fake", "model: fake, quantize: fp8"))[0].rendered == 0


def test_one_engine_has_a_model_as_it_is_and_in_fp8() -> None:
    engine, spec = Engine("cpu"), MODELS["mini"]
    whole, stored = engine.adapter(spec), engine.adapter(spec.quantized("fp8"))
    assert isinstance(whole, PipelineAdapter)
    assert isinstance(stored, PipelineAdapter)
    assert engine.adapter(spec.quantized("fp8")) is stored
    assert stored.offload.sizes()[0] < 0.3 * whole.offload.sizes()[0]
    x = torch.randn(1, spec.latent_channels, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (a,), (b,) = (velocities(m, x, 0.5, [m.encode("a corgi dog is sitting")]) for m in (whole, stored))
    assert 0.01 < float((b - a).norm() / a.norm()) < 0.15


def test_a_faster_render_asks_less_and_resumes_to_the_same_film(tmp_path: Path) -> None:
    _, exact, _ = make(tmp_path / "exact", steps=8)
    _, fast, _ = make(tmp_path / "fast", steps=8, speed="fast")
    assert fast.forwards == fast.promised <= exact.forwards / 2
    assert contents(tmp_path / "fast") != contents(tmp_path / "exact")
    engine = FakeEngine()
    adapter = engine.adapter(MODELS["fake"])

    def stop(count: int) -> None:
        if count == 11:
            raise KeyboardInterrupt

    adapter.on_predict = stop
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "again", engine=engine, steps=8, speed="fast")
    make(tmp_path / "again", steps=8, speed="fast")
    assert contents(tmp_path / "again") == contents(tmp_path / "fast")


def test_a_lost_gpu_is_said_and_costs_nothing_finished(tmp_path: Path) -> None:
    engine = FakeEngine()

    def lose(count: int) -> None:
        if count == 12:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with …")

    engine.adapter(MODELS["fake"]).on_predict = lose
    words = r"the GPU is lost \(CUDA error: unspecified launch failure\); finished scenes are kept"
    with pytest.raises(MissingError, match=words):
        make(tmp_path, engine=engine)
    assert len(finished(tmp_path)[0]) >= 3
    assert make(tmp_path)[0].rendered < 6

    def bug(count: int) -> None:
        raise RuntimeError("shapes differ")

    engine.adapter(MODELS["fake"]).on_predict = bug
    with pytest.raises(RuntimeError, match="shapes differ"):
        make(tmp_path / "bug", engine=engine)


class KilledError(BaseException):
    """Stands for a SIGKILL: nothing that is called afterwards does anything to the disk."""


class Disk:
    """Counts what `files` does to the disk, and spoils the n-th of it."""

    NAMES = ("_write", "_sync", "_rename")

    def __init__(self, patch: pytest.MonkeyPatch, nth: int, spoil: str) -> None:
        self.count, self._nth, self._spoil, self.dead = 0, nth, spoil, False
        for name in self.NAMES:
            patch.setattr(files, name, self._spoilt(getattr(files, name)))
        patch.setattr(Path, "unlink", self._unless_dead(Path.unlink))

    def _unless_dead(self, do: Callable[..., object]) -> Callable[..., object]:
        def done(*arguments: Any, **named: Any) -> object:
            if self.dead:
                raise KilledError
            return do(*arguments, **named)

        return done

    def _spoilt(self, do: Callable[..., object]) -> Callable[..., None]:
        def done(*arguments: Any) -> None:
            self.count += 1
            if self.count != self._nth:
                self._unless_dead(do)(*arguments)
                return
            if self._spoil == "killed after it":
                do(*arguments)
            elif isinstance(data := arguments[-1], bytes):
                do(arguments[0], data[: len(data) // 2])
            if self._spoil == "disk full":
                raise OSError(errno.ENOSPC, "No space left on device")
            self.dead = True
            raise KilledError

        return done


@pytest.mark.parametrize("spoil", ["disk full", "killed in it", "killed after it"])
def test_nothing_that_happens_to_a_write_spoils_the_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    """Every write, sync and rename of a render goes wrong in turn; then the same render runs again.

    In between, every file is as it is in the end, or absent; but for the page, which grows.
    """
    monkeypatch.setattr("storyreel.rendering.KEEP_EVERY", 0.0)  # a state is written after every forward
    monkeypatch.setattr("storyreel.film.page.SHARE", 0)  # and the page after every scene
    text, ended = story(SCENES[:2]), []
    make(tmp_path / "whole", text, steps=2)
    whole = contents(tmp_path / "whole")
    for nth in range(1, 1000):
        out = tmp_path / str(nth)
        with monkeypatch.context() as patch:
            disk = Disk(patch, nth, spoil)
            try:
                make(out, text, steps=2)
            except (OutputError, KilledError) as error:
                ended.append(type(error))
        if disk.count < nth:
            break
        left = {n: data for n, data in contents(out).items() if not Path(n).name.startswith(".")}
        left = {n: data for n, data in left.items() if ".state." not in n and GROWS not in data}
        assert left == {name: whole[name] for name in left}, nth
        for path in out.rglob("*.json"):
            assert path.name.startswith(".") or json.loads(path.read_text()), nth
        make(out, text, steps=2)
        assert contents(out) == whole, nth
        assert not list(out.rglob(".*.part*")), nth
    assert nth > 40
    # A folder that cannot be synced is no reason to fail: some file systems cannot. Nor is a page that grows,
    # which is written three times, by four of the calls each.
    expected = (nth - 1 - 3 * 4) * 3 // 4 if spoil == "disk full" else nth - 1
    assert len(ended) == pytest.approx(expected, abs=2)


DYING = {
    "echo 'av_interleaved_write_frame(): No space left on device' >&2; exit 1": (
        OutputError,
        "No space left",
    ),
    "echo 'Read-only file system' >&2; exit 1": (OutputError, "Read-only"),
    "kill -9 $$": (StoryreelError, "ffmpeg failed: exit code -9"),
    "head -c 9 >/dev/null; exit 0": (StoryreelError, "ffmpeg failed"),
}


@pytest.mark.usefixtures("ffmpeg")
@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
@pytest.mark.parametrize("death", DYING)
def test_when_ffmpeg_dies_what_is_finished_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str, whole: Callable[[], Path]
) -> None:
    """The ffmpeg of the third scene dies; one clear error, and the next run goes on.

    Of each scene before, one encodes the video and one makes the picture for the page.
    """
    script, count = tmp_path / "ffmpeg", tmp_path / "count"
    begin = f'echo >> "{count}"\n[ $(wc -l < "{count}") -lt 5 ] && exec "{program()}" "$@"'
    script.write_text(f"#!/bin/sh\n{begin}\n{death}\n")
    script.chmod(0o755)
    kind, words = DYING[death]
    with monkeypatch.context() as patch:
        patch.setattr("storyreel.film.ffmpeg.program", lambda: str(script))
        with pytest.raises(kind, match=words) as caught:
            make(tmp_path / "torn")
    assert type(caught.value) is kind
    assert finished(tmp_path / "torn")[1] == {"01", "02"}
    assert make(tmp_path / "torn")[0].rendered == 4
    assert film(tmp_path / "torn") == film(whole())
