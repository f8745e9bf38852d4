"""The life of a render, with a fake model: what is made, kept, made again and left alone."""

from __future__ import annotations

import errno
import gc
import json
import pkgutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from storyreel import checkpoint, video
from storyreel.checkpoint import FilmFolder
from storyreel.errors import MissingError, NumericsError, OutputError, StoppedError, StoryreelError
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.render import Engine, Rendered, about_film, about_plan, about_scenes, film_tags, render
from storyreel.verify import verify
from tests.conftest import FakeAdapter, FakeEngine, FakeScorer, Silent, plan_of
from tests.test_stream import FakeWriter

SCENES = [("a park", "a fox sits"), ("a street", "it walks"), ("a bus", "it looks"), ("a home", "it sleeps")]
SCENES += [("a lake", "it swims"), ("a hill", "it runs")]


def story(scenes: list[tuple[str, str]] = SCENES, title: str = "Foxes", cut: int | None = None) -> str:
    lines = [f"title: {title}", "render: {model: fake}", "scenes:"]
    for index, (scene, action) in enumerate(scenes):
        transition = ", transition: cut" if index == cut else ""
        lines.append(f"  - {{scene: {scene}, action: {action}{transition}}}")
    return "\n".join(lines) + "\n"


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
    """Everything but times: the film, the page, the segments."""
    kept = (".mp4", ".safetensors", ".html")
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.suffix in kept}


class Stopping(Silent):
    """Asks to stop after some forwards, as a signal would."""

    def __init__(self, engine: FakeEngine, after: int) -> None:
        super().__init__()
        self._engine, self._after = engine, after

    def forward(self) -> None:
        super().forward()
        self._engine.stop.asked = self.forwards >= self._after


pytestmark = pytest.mark.usefixtures("fake_model")


def test_a_render_leaves_what_was_promised(tmp_path: Path) -> None:
    result, progress, _ = make(tmp_path)
    assert result.film == tmp_path / "foxes" / "foxes.mp4"
    assert (result.segments, result.rendered) == (6, 6)
    assert progress.forwards == 6 * 3
    assert progress.finished == list(range(6))
    names = {p.name for p in (tmp_path / "foxes").iterdir()} - {".lock"}
    assert names == {"foxes.mp4", "index.html", "manifest.json", "segments", "events.jsonl"}
    expected = {f"{n:02d}{e}" for n in range(1, 7) for e in (".mp4", ".safetensors")}
    assert {p.name for p in (tmp_path / "foxes" / "segments").iterdir()} == expected
    with av.open(str(result.film)) as film:
        assert len(film.chapters()) == 6
        assert sum(1 for _ in film.decode(video=0)) == 6 * 6


def test_the_manifest_says_how_to_make_it_again(tmp_path: Path) -> None:
    make(tmp_path, seed=7)
    manifest = json.loads((tmp_path / "foxes" / "manifest.json").read_text())
    assert manifest["model"]["name"] == "fake"
    assert set(manifest["model"]["weights"]) == {"model.safetensors"}
    assert manifest["settings"]["seed"] == 7
    assert (manifest["settings"]["guidance"], manifest["settings"]["guidance_2"]) == (3, None)
    assert {"storyreel", "torch", "diffusers", "transformers", "ffmpeg"} <= set(manifest["versions"])
    assert [s["scene"] for s in manifest["segments"]] == [scene for scene, _ in SCENES]
    for segment in manifest["segments"]:
        assert set(segment["files"]) == {f"{segment['number']}.mp4", f"{segment['number']}.safetensors"}
        assert segment["seconds"] >= 0
    assert manifest["film"]["file"] == "foxes.mp4"
    events = [json.loads(line) for line in (tmp_path / "foxes" / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["started", *["segment"] * 6, "finished"]


def test_the_guidance_of_a_second_expert_is_told_too() -> None:
    own, chosen = (plan_of(story(), model="wan-2.2-a14b", guidance=guidance) for guidance in (None, 4.0))
    settings = [about_plan(plan)["settings"] for plan in (own, chosen)]
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


def test_two_renders_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(tmp_path / name, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a["foxes/segments/01.safetensors"] != c["foxes/segments/01.safetensors"]


def finished(out: Path) -> tuple[set[str], set[str]]:
    """Return the numbers of the segments whose latents and whose pictures the manifest knows."""
    manifest = json.loads((out / "foxes" / "manifest.json").read_text())
    recorded = [s for s in manifest["segments"] if "key" in s]
    return {s["number"] for s in recorded}, {s["number"] for s in recorded if s["video_key"]}


@pytest.mark.parametrize("method", [(), ("window=1",), ("memory=0.5",)], ids=str)
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
    assert len(latents) >= (at - 3) // 3  # no more than what is under way is lost
    assert len(pictures) >= len(latents) - 1
    result, progress, _ = make(tmp_path / "torn", method=method)
    assert result.rendered == 6 - len(pictures)
    assert progress.forwards == progress.promised <= 18 - 3 * len(latents)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


METHODS: list[dict[str, Any]] = [
    {},
    {"method": ("window=1",)},
    {"method": ("window=2", "memory=0.5")},
    {"method": ("blending=published",), "guidance": 3.0},
    {"steps": 8, "speed": "fast"},
]


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_a_stopped_render_goes_on_inside_the_window(tmp_path: Path, options: dict[str, Any]) -> None:
    """Stopped again and again after a few forwards: little is done twice, and the film is the same."""
    engine = FakeEngine()
    engine.fake_scorer = FakeScorer("a bus")
    _, whole, _ = make(tmp_path / "whole", engine=engine, **options)
    window = tmp_path / "torn" / "foxes" / "segments" / "window.safetensors"
    forwards, resumed = 0, 0
    for stop_after in (3, 5, 4, 6, 7, 1000):
        engine = FakeEngine()
        engine.fake_scorer = FakeScorer("a bus")
        progress = Stopping(engine, stop_after)
        try:
            render(plan_of(story(), **options), "foxes", tmp_path / "torn", engine, progress)
        except StoppedError:
            assert progress.forwards <= stop_after
            resumed += window.exists()
        else:
            assert progress.forwards == progress.promised
        forwards += progress.forwards
    assert resumed >= 3
    assert forwards <= whole.forwards + 5 * 3  # what one step of the window had begun
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")
    assert "window" not in json.loads((tmp_path / "torn" / "foxes" / "manifest.json").read_text())


def test_a_killed_render_goes_on_from_the_window_that_was_kept_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "whole", steps=8)
    monkeypatch.setattr("storyreel.render.KEEP_EVERY", 0.0)
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
def test_a_window_that_does_not_fit_is_not_used(tmp_path: Path, change: str) -> None:
    engine = FakeEngine()
    with pytest.raises(StoppedError):
        render(plan_of(story(), steps=8), "foxes", tmp_path, engine, Stopping(engine, 6))
    window = tmp_path / "foxes" / "segments" / "window.safetensors"
    options: dict[str, Any] = {"steps": 8}
    engine, text = FakeEngine(), story()
    if change == "bit":
        data = bytearray(window.read_bytes())
        data[-1] ^= 1
        window.write_bytes(data)
    elif change == "gone":
        window.unlink()
    elif change == "seed":
        options["seed"] = 5
    elif change == "scene":
        text = story([*SCENES[:1], ("a river", "it swims"), *SCENES[2:]])
    elif change == "device":
        engine.device = "cuda"
    _, progress, _ = make(tmp_path, text, engine, overwrite=change == "overwrite", **options)
    assert progress.forwards == progress.promised == 6 * 8
    assert not window.exists()
    make(tmp_path / "whole", text, **options)
    assert contents(tmp_path / "foxes") == contents(tmp_path / "whole" / "foxes")


def test_a_window_waits_while_an_earlier_segment_is_mended(tmp_path: Path) -> None:
    make(tmp_path / "whole", steps=8)
    engine = FakeEngine()
    with pytest.raises(StoppedError):
        render(plan_of(story(), steps=8), "foxes", tmp_path, engine, Stopping(engine, 30))
    (tmp_path / "foxes" / "segments" / "01.safetensors").unlink()
    _, progress, _ = make(tmp_path, steps=8)
    assert progress.forwards == progress.promised
    assert contents(tmp_path / "foxes") == contents(tmp_path / "whole" / "foxes")


WHERE = {
    "while encoding": ("storyreel.video.SegmentWriter.write", 9),
    "when ffmpeg ends": ("storyreel.video._finish", 4),
    "at the latents": ("storyreel.stored.write_atomically", 3),
    "before latents are recorded": ("storyreel.checkpoint.FilmFolder.record_latents", 5),
    "before pictures are recorded": ("storyreel.checkpoint.FilmFolder.record_video", 5),
    "at the manifest": ("storyreel.checkpoint.FilmFolder.write_manifest", 6),
    "while joining": ("storyreel.video.join", 1),
    "at the last ffmpeg": ("storyreel.video._finish", 7),
    "at the page": ("storyreel.render.write_atomically", 1),
    "at the last manifest": ("storyreel.checkpoint.FilmFolder.write_manifest", 14),
}


@pytest.mark.parametrize("where", WHERE)
def test_an_interrupt_anywhere_costs_nothing_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The n-th call of something is interrupted before it does its work."""
    make(tmp_path / "whole")
    target, nth = WHERE[where]
    path, name = target.rsplit(".", 1)
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
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")
    assert not list((tmp_path / "torn").rglob(".*.part*"))


@pytest.mark.parametrize("kind", [".mp4", ".safetensors"])
@pytest.mark.parametrize("number", ["01", "02", "04", "05", "06"])
def test_a_damaged_segment_is_made_again_and_no_other(tmp_path: Path, number: str, kind: str) -> None:
    """Segments of one latent frame, so that a dissolve reaches over a whole one."""
    make(tmp_path, seconds=0.25)
    before = contents(tmp_path)
    folder = tmp_path / "foxes" / "segments"
    times = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    path = folder / f"{number}{kind}"
    path.write_bytes(path.read_bytes()[:-1])
    result, progress, _ = make(tmp_path, seconds=0.25)
    assert result.rendered == 1
    assert progress.forwards == progress.promised
    assert (progress.forwards == 0) == (kind == ".mp4")  # pictures come from latents
    assert contents(tmp_path) == before
    changed = {p.name for p in folder.iterdir() if p.stat().st_mtime_ns != times[p.name]}
    assert changed == {f"{number}.mp4"} | ({f"{number}.safetensors"} if kind == ".safetensors" else set())


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


def test_a_changed_scene_changes_those_beside_it_and_what_grows_out_of_them(tmp_path: Path) -> None:
    """Three scenes before a changed one were denoised beside it; one more shows it through its end."""

    def change(name: str, index: int, cut: int | None) -> int:
        """Change one scene of a finished film; return how many were rendered again."""
        scenes = [*SCENES]
        scenes[index] = ("a river", "a fox drinks")
        make(tmp_path / name, story(cut=cut))
        result, _, _ = make(tmp_path / name, story(scenes, cut=cut))
        make(tmp_path / f"{name}-fresh", story(scenes, cut=cut))
        assert contents(tmp_path / name) == contents(tmp_path / f"{name}-fresh")
        return result.rendered

    assert change("last", 5, None) == 5
    assert change("first", 0, None) == 6
    assert change("before a cut", 0, 5) == 5
    assert change("behind a cut", 5, 5) == 1
    assert change("between", 3, 3) == 3


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"steps": 2}, {"guidance": 2.0}, {"seconds": 0.25}], ids=lambda o: next(iter(o))
)
def test_every_setting_is_part_of_a_segments_key(tmp_path: Path, options: dict[str, object]) -> None:
    make(tmp_path)
    result, _, _ = make(tmp_path, **options)  # type: ignore[arg-type]
    assert result.rendered == 6


def test_versions_and_recipe_are_part_of_a_segments_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    monkeypatch.setattr("storyreel.render.RECIPE", 99)
    assert make(tmp_path)[0].rendered == 6
    monkeypatch.setattr("storyreel.video.encoder_version", lambda: "other")
    assert make(tmp_path)[0].rendered == 6
    assert make(tmp_path)[0].rendered == 0


def test_a_longer_first_scene_leaves_what_is_behind_a_cut(tmp_path: Path) -> None:
    make(tmp_path, story(cut=4))
    longer = story(cut=4).replace("action: a fox sits", "action: a fox sits, seconds: 1")
    assert make(tmp_path, longer)[0].rendered == 4


def test_a_started_render_is_not_taken_for_the_film_before(tmp_path: Path) -> None:
    make(tmp_path)
    engine = FakeEngine()

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    engine.adapter(MODELS["fake"]).on_predict = interrupt
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, story([("a river", "it swims"), *SCENES[1:]]), engine=engine)
    manifest = json.loads((tmp_path / "foxes" / "manifest.json").read_text())
    assert manifest["film"] == {}
    assert not any("key" in segment for segment in manifest["segments"])
    assert not (tmp_path / "foxes" / "foxes.mp4").exists()
    events = [json.loads(line) for line in (tmp_path / "foxes" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "stopped"
    assert events[-1]["reason"] == "KeyboardInterrupt"


def test_a_shorter_story_leaves_no_strangers(tmp_path: Path) -> None:
    make(tmp_path)
    make(tmp_path, story(SCENES[:2]))
    assert len(list((tmp_path / "foxes" / "segments").iterdir())) == 4


def test_other_weights_are_another_film(tmp_path: Path, fake_model: ModelSpec) -> None:
    make(tmp_path)
    (fake_model.weights / "model.safetensors").write_bytes(b"other weights")
    result, _, _ = make(tmp_path)
    assert result.rendered == 6


def test_overwrite_renders_everything_again(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    result, _, _ = make(tmp_path, overwrite=True)
    assert result.rendered == 6
    assert contents(tmp_path) == before


def test_nan_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    fake = engine.adapter(MODELS["fake"])
    predict = fake.predict

    def broken(*arguments):  # type: ignore[no-untyped-def]
        factor = float("nan") if len(fake.predicted) >= 12 else 1.0
        return [factor * v for v in predict(*arguments)]

    monkeypatch.setattr(fake, "predict", broken)
    with pytest.raises(NumericsError, match=r"scene 4 .* step 3"):
        make(tmp_path, engine=engine)
    assert finished(tmp_path) == ({"01", "02", "03"}, {"01", "02"})
    result, progress, _ = make(tmp_path)
    assert (result.rendered, progress.forwards) == (4, 9 - 3)


def test_an_output_that_cannot_be_written_is_said_before_the_model_loads(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    engine = FakeEngine()
    with pytest.raises(OutputError, match="cannot write"):
        make(blocker, engine=engine)
    assert engine.asked == 0


def test_memory_holds_one_window_however_long_the_story(tmp_path: Path) -> None:
    """Living tensors are counted at every forward: they are a window's, not the story's."""

    def most_bytes(scenes: int) -> tuple[int, int]:
        engine, peak = FakeEngine(), 0

        def count(_: int) -> None:
            nonlocal peak
            tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
            peak = max(peak, sum(t.nbytes for t in tensors))

        engine.adapter(MODELS["fake"]).on_predict = count
        gc.collect()
        gc.freeze()  # what was there before is no part of it, and would be walked through every time
        tracemalloc.start()
        make(tmp_path / str(scenes), story([SCENES[i % 6] for i in range(scenes)]), engine, steps=1)
        _, others = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        gc.unfreeze()
        return peak, others

    most_bytes(1)  # what is loaded once
    (short, short_others), (long, long_others) = most_bytes(8), most_bytes(32)
    assert long <= short * 1.02
    # All else that Python knows of: a scene adds its record, and none of its pictures.
    assert long_others - short_others < 24 * 6 * (96 * 64 * 3) / 4


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
    assert [seam["transition"] for seam in seams] == ["blend", "blend", "cut", "blend", "blend"]
    assert all((seam["overlap"] > 0) == (seam["transition"] == "blend") for seam in seams)
    assert all(0 <= seam["similarity"] <= 1 for seam in seams if seam["overlap"])
    page = (tmp_path / "foxes" / "index.html").read_text()
    assert page.count("<polyline") == 6
    assert page.count("(blended over") == 4
    assert page.count("(cut)") == 1


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
    assert (tmp_path / "foxes" / "segments" / "01.safetensors").exists()
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

    monkeypatch.setattr("storyreel.models.base.load_adapter", full)
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

    def full() -> str:  # as when no memory can be pinned
        raise error

    adapter.on_predict, adapter.economise = fail_once, full  # type: ignore[method-assign]
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

    monkeypatch.setattr("storyreel.models.base.load_adapter", load)
    monkeypatch.setattr("storyreel.models.base.pick_device", lambda name: torch.device("cuda", 0))
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

    monkeypatch.setattr("storyreel.models.base.load_adapter", bug)
    with pytest.raises(RuntimeError, match="shapes differ"):
        Engine("cuda").adapter(MODELS["fake"])


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
    assert make(tmp_path, story().replace("model: fake", "model: fake, quantize: fp8"))[0].segments == 6
    assert make(tmp_path)[0].rendered == 6


def test_one_engine_has_a_model_as_it_is_and_in_fp8() -> None:
    engine, spec = Engine("cpu"), MODELS["mini"]
    whole, stored = engine.adapter(spec), engine.adapter(spec.quantized("fp8"))
    assert isinstance(whole, PipelineAdapter)
    assert isinstance(stored, PipelineAdapter)
    assert engine.adapter(spec) is whole
    assert stored._sizes()[0] < 0.3 * whole._sizes()[0]
    x = torch.randn(1, spec.latent_channels, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (a,), (b,) = (m.predict(x, 0.5, [m.encode("a corgi dog is sitting")]) for m in (whole, stored))
    assert 0.01 < float((b - a).norm() / a.norm()) < 0.1


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


def faults(out: Path, **options: object) -> dict[str, str]:
    """What `verify` finds wrong, by the names of files."""
    found = verify(plan_of(story(), **options), "foxes", out)
    return {Path(path).name: fault for path, fault in found.items() if fault}


def test_verify_reads_everything_back(tmp_path: Path, fake_model: ModelSpec) -> None:
    assert faults(tmp_path) == {"foxes": "not rendered"}
    make(tmp_path)
    files = verify(plan_of(story()), "foxes", tmp_path)
    assert {Path(path).name for path in files} == {
        "model.safetensors",
        *(f"{n:02d}{suffix}" for n in range(1, 7) for suffix in (".mp4", ".safetensors")),
        *("foxes.mp4", "index.html", "manifest.json"),
    }
    assert not any(files.values())
    before = {p: p.read_bytes() for p in (tmp_path / "foxes").rglob("*") if p.is_file()}
    folder = tmp_path / "foxes"
    for name in ("segments/02.mp4", "segments/03.safetensors", "foxes.mp4", "index.html", "manifest.json"):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 3] ^= 1
        (folder / name).write_bytes(data)
        found = faults(tmp_path)
        assert Path(name).name in found
        assert name == "manifest.json" or len(found) == 1
        (folder / name).write_bytes(before[folder / name])
    assert faults(tmp_path) == {}
    assert {p: p.read_bytes() for p in before} == before  # nothing was rendered, nothing mended
    assert len(faults(tmp_path, seed=5)) == 15
    (fake_model.weights / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    assert faults(tmp_path) == {"model.safetensors": "is damaged or missing"}


def test_verify_counts_the_frames_that_a_recorded_film_has(tmp_path: Path) -> None:
    """A shorter film with a hash of its own, as an older version may have recorded it."""
    make(tmp_path)
    with FilmFolder(tmp_path / "foxes", "foxes") as folder:
        with video.SegmentWriter(folder.video("02"), 96, 64, 12, 1) as writer:
            writer.write(bytes(5 * 96 * 64 * 3))
        folder.record_video("02", folder.records["02"].video_key, 0.0)
        plan = plan_of(story())
        folder.write_manifest(about_film(plan), about_scenes(plan))
    assert faults(tmp_path)["02.mp4"] == "has 5 frames instead of 6"


class KilledError(BaseException):
    """Stands for a SIGKILL: nothing that is called afterwards does anything to the disk."""


class Disk:
    """Counts what `checkpoint` does to the disk, and spoils the n-th of it."""

    NAMES = ("_write", "_sync", "_rename")

    def __init__(self, patch: pytest.MonkeyPatch, nth: int, spoil: str) -> None:
        self.count, self._nth, self._spoil, self.dead = 0, nth, spoil, False
        for name in self.NAMES:
            patch.setattr(checkpoint, name, self._spoilt(getattr(checkpoint, name)))
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


@pytest.fixture
def plain_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Films are their frames; without ffmpeg hundreds of renders take seconds."""

    def join(segments: list[Path], path: Path, *arguments: object) -> None:
        path.write_bytes(b"".join(segment.read_bytes() for segment in segments))

    monkeypatch.setattr("storyreel.video.SegmentWriter", FakeWriter)
    monkeypatch.setattr("storyreel.video.join", join)
    monkeypatch.setattr("storyreel.render.versions", dict)
    monkeypatch.setattr("storyreel.render.KEEP_EVERY", 0.0)  # windows are written after every forward


@pytest.mark.parametrize("spoil", ["disk full", "killed in it", "killed after it"])
@pytest.mark.usefixtures("plain_films")
def test_nothing_that_happens_to_a_write_spoils_the_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    """Every write, sync and rename of a render goes wrong in turn; then the same render runs again.

    In between, every file is as it is in the end, or absent.
    """
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
        names = {name for name in contents(out) if not Path(name).name.startswith((".", "window"))}
        assert {name: contents(out)[name] for name in names} == {name: whole[name] for name in names}, nth
        if (manifest := out / "foxes" / "manifest.json").exists():
            json.loads(manifest.read_text())
        make(out, text, steps=2)
        assert contents(out) == whole, nth
        assert not list(out.rglob(".*.part*")), nth
    assert nth > 40
    # A folder that cannot be synced is no reason to fail: some file systems cannot.
    expected = (nth - 1) * 3 // 4 if spoil == "disk full" else nth - 1
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


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
@pytest.mark.parametrize("death", DYING)
def test_when_ffmpeg_dies_what_is_finished_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    """The third ffmpeg of a render dies; one clear error, and the next run goes on."""
    make(tmp_path / "whole")
    script, count = tmp_path / "ffmpeg", tmp_path / "count"
    begin = f'echo >> "{count}"\n[ $(wc -l < "{count}") -lt 3 ] && exec "{video.ffmpeg()}" "$@"'
    script.write_text(f"#!/bin/sh\n{begin}\n{death}\n")
    script.chmod(0o755)
    kind, words = DYING[death]
    with monkeypatch.context() as patch:
        patch.setattr(video, "ffmpeg", lambda: str(script))
        with pytest.raises(kind, match=words) as caught:
            make(tmp_path / "torn")
    assert type(caught.value) is kind
    assert finished(tmp_path / "torn")[1] == {"01", "02"}
    assert make(tmp_path / "torn")[0].rendered == 4
    assert contents(tmp_path / "torn" / "foxes") == contents(tmp_path / "whole" / "foxes")
