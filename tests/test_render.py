"""The life of a render, with a fake model: what is made, kept, made again and left alone."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from storyreel.errors import NumericsError, OutputError
from storyreel.models.specs import ModelSpec
from storyreel.render import Rendered, render
from tests.conftest import FakeEngine, Silent, plan_of

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
    assert {"storyreel", "torch", "diffusers", "transformers", "ffmpeg"} <= set(manifest["versions"])
    assert [s["scene"] for s in manifest["segments"]] == [scene for scene, _ in SCENES]
    for segment in manifest["segments"]:
        assert set(segment["files"]) == {f"{segment['number']}.mp4", f"{segment['number']}.safetensors"}
        assert segment["seconds"] >= 0
    assert manifest["film"]["file"] == "foxes.mp4"
    events = [json.loads(line) for line in (tmp_path / "foxes" / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["started", *["segment"] * 6, "finished"]


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


@pytest.mark.parametrize("at", [0, 5, 11, 12, 13, 17])
def test_an_interrupted_render_goes_on_to_the_same_film(tmp_path: Path, at: int) -> None:
    make(tmp_path / "whole")
    engine = FakeEngine()

    def interrupt(count: int) -> None:
        if count == at:
            raise KeyboardInterrupt

    from storyreel.models.specs import MODELS

    engine.adapter(MODELS["fake"]).on_predict = interrupt
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "torn", engine=engine)
    assert not (tmp_path / "torn" / "foxes" / "foxes.mp4").exists()
    kept = len(list((tmp_path / "torn" / "foxes" / "segments").glob("*.mp4")))
    assert kept == (4 if at >= 12 else 0)
    result, progress, _ = make(tmp_path / "torn")
    assert result.rendered == 6 - kept
    assert progress.forwards == 3 * (6 - kept)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


@pytest.mark.parametrize("number", ["01", "04", "06"])
def test_a_damaged_segment_is_made_again(tmp_path: Path, number: str) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    path = tmp_path / "foxes" / "segments" / f"{number}.mp4"
    path.write_bytes(path.read_bytes()[:-1])
    result, _, _ = make(tmp_path)
    assert result.rendered == 1
    assert contents(tmp_path) == before


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


def test_a_changed_scene_changes_its_window_and_what_grows_out_of_it(tmp_path: Path) -> None:
    changed = [*SCENES[:4], ("a river", "it swims"), SCENES[5]]
    make(tmp_path)
    result, _, _ = make(tmp_path, story(changed))
    assert result.rendered == 2
    make(tmp_path / "cut", story(cut=4))
    first = [("a garden", "a fox sits"), *SCENES[1:]]
    result, _, _ = make(tmp_path / "cut", story(first, cut=4))
    assert result.rendered == 4  # behind the cut nothing depends on it


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
    from storyreel.models.specs import MODELS

    fake = engine.adapter(MODELS["fake"])
    predict = fake.predict

    def broken(x, sigma, texts):  # type: ignore[no-untyped-def]
        factor = float("nan") if len(fake.predicted) >= 12 else 1.0
        return [factor * v for v in predict(x, sigma, texts)]

    monkeypatch.setattr(fake, "predict", broken)
    with pytest.raises(NumericsError, match="scene 5"):
        make(tmp_path, engine=engine)
    result, _, _ = make(tmp_path)
    assert result.rendered == 2


def test_an_output_that_cannot_be_written_is_said_before_the_model_loads(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    engine = FakeEngine()
    with pytest.raises(OutputError, match="cannot write"):
        make(blocker, engine=engine)
    assert engine.asked == 0


def test_memory_holds_one_window_however_long_the_story(tmp_path: Path) -> None:
    """The decoder's stream and the latents of a window are all that a long story keeps."""
    import tracemalloc

    peaks = []
    for count in (8, 40):
        tracemalloc.start()
        make(tmp_path / str(count), story([SCENES[i % 6] for i in range(count)]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 32 * 40_000  # a plan, a text and a record each, no pictures


def test_the_page_shows_text_as_text(tmp_path: Path) -> None:
    evil = [("a </script><script>alert(1)</script>", "b &amp; c")]
    text = f'render: {{model: fake}}\nscenes:\n  - ["{evil[0][0]}", "{evil[0][1]}"]\n'
    make(tmp_path, text)
    page = (tmp_path / "foxes" / "index.html").read_text()
    assert "alert(1)</script>" not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in page
    assert "b &amp;amp; c" in page
    assert "http" not in page.replace("https://cv.iptc.org", "")  # nothing is fetched
