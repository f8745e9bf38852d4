"""What an export writes, read back by other programs: PyAV, Pillow, webvtt-py and OpenTimelineIO."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from fractions import Fraction
from html import unescape
from pathlib import Path
from typing import Any

import av
import numpy as np
import opentimelineio as otio
import pytest
import webvtt
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from storyreel.cli.app import run
from storyreel.cli.results import result_schema
from storyreel.errors import MissingError, OutputError, StoryreelError, UsageError
from storyreel.files import digest, file_hash
from storyreel.film import edit_lists, export, ffmpeg, keys, reader
from storyreel.film.export import FORMATS, Wanted, parse_formats
from storyreel.film.timeline import Timeline, timeline_of
from storyreel.models.specs import MODELS
from storyreel.rendering import render
from storyreel.story.importing import convert
from tests.conftest import FAKE_SIZE, FakeAdapter, FakeEngine, Silent, known_recipe, made_once, plan_of

FRAMES = 7, 11, 13, 12  # of the scenes: at 24 a second, few of them begin at a whole millisecond
FPS, UPSCALE = 24, 2
WIDTH, HEIGHT = (UPSCALE * side for side in FAKE_SIZE)
STARTS = [sum(FRAMES[:i]) for i in range(5)]
TITLE = "Ein Füchschen – 東京"
STORY = f"""
title: {TITLE}
render: {{model: fake}}
scenes:
  - {{scene: a fox in the <b>park</b>, action: it sits & waits, seconds: {7 / 24:.9f}}}
  - {{scene: a wolf -- at sea, action: "it swims --> away", seconds: {11 / 24:.9f}, transition: dissolve}}
  - {{scene: 東京で, action: '{{{{\\an8}}}} it walks', seconds: {13 / 24:.9f}, transition: fade}}
  - {{scene: a hill, action: it runs, seconds: 0.5, transition: cut}}
"""
PROMPTS = [
    "a fox in the <b>park</b>\nit sits & waits",
    "a wolf -- at sea\nit swims --> away",
    "東京で\n{\\an8} it walks",
    "a hill\nit runs",
]
Picture = NDArray[np.uint8]


class Moving(FakeAdapter):
    """A bar goes through every scene, so that no frame is like the next."""

    def decode(self, latents: Tensor) -> Tensor:
        pictures = super().decode(latents).clone()
        for index, picture in enumerate(pictures):
            at = 8 * index % FAKE_SIZE[0]
            picture[:, at : at + 8, 0], picture[:, at : at + 8, 1] = 250, 10
            picture[:20, :, 2] = 200
        return pictures


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished film, of a fake model's pictures, which are encoded."""

    def make(folder: Path) -> None:
        weights = folder / "weights"
        (weights / "vae").mkdir(parents=True)
        (weights / "vae" / "model.safetensors").write_bytes(b"weights")
        spec = replace(MODELS["mini"], name="fake", weights=weights, steps=2, upscale=UPSCALE, fps=FPS)
        spec = replace(spec, renoises=False, guidance=3.0)
        spec = replace(spec, size=FAKE_SIZE, min_size=FAKE_SIZE, max_size=FAKE_SIZE, pixels_per_latent=8)
        spec = replace(spec, size_multiple=16, latent_channels=48, vocabulary=None, frames_per_latent=1)
        spec = replace(spec, seconds=0.5, max_latents=40)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(MODELS, "fake", spec)
            patch.setattr(keys, "recipe_of", known_recipe)
            engine = FakeEngine()
            engine.fake = Moving(spec)
            render(plan_of(STORY), "foxes", folder, engine, Silent())

    return made_once(tmp_path_factory, "film-to-export", make) / "foxes"


@pytest.fixture(scope="module")
def timeline(film: Path) -> Timeline:
    return timeline_of(film)


@pytest.fixture(scope="module")
def shown(film: Path) -> list[Picture]:
    """The film's own pictures."""
    return pictures_of(film / "foxes.mp4")


@pytest.fixture
def sounding(film: Path, tmp_path: Path) -> Path:
    """The same film with sound: one tone up to the third scene, and a higher one from there on."""
    folder = tmp_path / "sounding" / "foxes"
    (folder / "segments").mkdir(parents=True)
    turn = STARTS[2] / FPS
    tone = f"aevalsrc='0.5*sin(2*PI*t*if(lt(t,{turn}),400,1600))':s=48000:d={STARTS[4] / FPS}"
    command = [
        ffmpeg.program(),
        "-loglevel",
        "error",
        "-i",
        str(film / "foxes.mp4"),
        "-f",
        "lavfi",
        "-i",
        tone,
    ]
    command += ["-map", "0:v", "-map", "1:a", "-map", "0:s", "-c", "copy", "-c:a", "aac"]
    command += ["-map_metadata", "0", "-map_chapters", "0", "-movflags", "+use_metadata_tags"]
    subprocess.run([*command, str(folder / "foxes.mp4")], check=True)
    (folder / "manifest.json").write_bytes((film / "manifest.json").read_bytes())
    changed(folder, lambda manifest: manifest["film"].update(sha256=file_hash(folder / "foxes.mp4")))
    return folder


def pictures_of(path: Path) -> list[Picture]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        rate = container.streams.video[0].average_rate
        times = [frame.time for frame in frames]
        if path.suffix == ".mp4":
            assert times == pytest.approx([i / float(rate or 1) for i in range(len(frames))], abs=1e-6)
        return [frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in frames]


def sound_of(path: Path) -> tuple[NDArray[Any], int]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        return samples, stream.codec_context.sample_rate


def pitch(samples: NDArray[Any], rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.fft.rfftfreq(len(samples), 1 / rate)[spectrum.argmax()])


def exported(timeline: Timeline, formats: str, to: Path, **wanted: Any) -> list[export.Exported]:
    return list(export.export(timeline, parse_formats(formats), to, Wanted(**wanted)))


def apart(one: Picture, other: Picture) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def test_the_film_on_a_timeline(timeline: Timeline, shown: list[Picture]) -> None:
    assert (timeline.name, timeline.title, timeline.fps) == ("foxes", TITLE, FPS)
    assert (timeline.height, timeline.width, 3) == shown[0].shape
    assert timeline.frames == len(shown)
    assert [(clip.start, clip.frames, clip.number) for clip in timeline.clips] == [
        (start, frames, number) for number, (start, frames) in enumerate(zip(STARTS, FRAMES, strict=False), 1)
    ]
    joins = [clip.join for clip in timeline.clips]
    assert joins[0] is None
    found = [(j.transition, j.before, j.behind, j.words) for j in joins if j]
    assert found == [  # a sixth of a second, and two fifths, of which a short scene gives half
        ("dissolve", 3, 4, "dissolve over 7 frames"),
        ("fade", 5, 6, "fade through black over 11 frames"),
        ("cut", 0, 0, "cut"),
    ]


def test_clips_are_the_films_very_pictures(timeline: Timeline, shown: list[Picture], tmp_path: Path) -> None:
    files = exported(timeline, "clips", tmp_path)
    assert [file.file.name for file in files] == [f"foxes-0{n}.mp4" for n in (1, 2, 3, 4)]
    for file, start, frames, prompts in zip(files, STARTS, FRAMES, PROMPTS, strict=False):
        found = pictures_of(file.file)
        assert (len(found), file.frames) == (frames, frames)
        assert all(map(np.array_equal, found, shown[start : start + frames]))
        with av.open(str(file.file)) as container:
            assert container.duration is not None
            assert container.duration / av.time_base == pytest.approx(frames / FPS, abs=1e-3)
            assert container.metadata["title"] == prompts.splitlines()[0]
            assert "trainedAlgorithmicMedia" in container.metadata["comment"]
            assert not container.chapters()
            assert not container.streams.audio


SHOTS = {
    "entitybench": [f"foxes/001_00{n}.mp4" for n in (1, 2, 3, 4)],
    "storymem": [f"foxes/01_0{n}.mp4" for n in (1, 2, 3, 4)],
    "msvbench": [f"Evaluation/data/videos/foxes/00{n}.mp4" for n in (1, 2, 3, 4)],
    "vbench": [f"foxes/foxes-0{n}.mp4" for n in (1, 2, 3, 4)],
}


@pytest.mark.parametrize("name", SHOTS)
def test_benchmarks_find_every_shot_cut_at_its_frame(
    name: str, timeline: Timeline, shown: list[Picture], tmp_path: Path
) -> None:
    files = [file for file in exported(timeline, name, tmp_path) if file.scene is not None]
    assert [file.file.relative_to(tmp_path / name).as_posix() for file in files] == SHOTS[name]
    for file, start, frames in zip(files, STARTS, FRAMES, strict=False):
        assert all(map(np.array_equal, pictures_of(file.file), shown[start : start + frames]))
        assert file.frames == frames
    again = [file.file for file in exported(timeline, name, tmp_path)]  # replaces its own
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - {
        tmp_path / export.record_of("foxes", tmp_path)
    } == {*again}


def test_vistorybench_finds_the_middle_picture_of_every_shot(
    timeline: Timeline, shown: list[Picture], tmp_path: Path
) -> None:
    *stills, script = exported(timeline, "vistorybench", tmp_path)
    (method,) = (tmp_path / "vistorybench").glob("storyreel/base/en/*/01/shots")
    assert datetime.strptime(method.parents[1].name, "%Y%m%d-%H%M%S").year >= 2026
    assert [file.file for file in stills] == [method / f"shot_0{n}.png" for n in (1, 2, 3, 4)]
    for file, start, frames in zip(stills, STARTS, FRAMES, strict=False):
        assert apart(np.asarray(Image.open(file.file)), shown[start + frames // 2]) < 2
    assert script.file == tmp_path / "vistorybench" / "ViStory" / "01" / "story.json"


@pytest.mark.parametrize("name", ["entitybench", "storymem", "vistorybench"])
def test_what_is_written_as_a_script_is_the_story_again(
    name: str, timeline: Timeline, tmp_path: Path
) -> None:
    (script,) = (file.file for file in exported(timeline, name, tmp_path) if file.scene is None)
    done = convert(script.name, script.read_bytes(), MODELS["mini"])
    told = [f"{scene.scene}\n{scene.action}" for scene in done.story.scenes]
    assert [text.replace("{{", "{").replace("}}", "}") for text in told] == PROMPTS
    assert not done.left_out
    if name != "vistorybench":
        assert [scene.transition for scene in done.story.scenes[1:]] == ["cut"] * 3  # no shot goes on
    of_script = exported(timeline, name, tmp_path / "again", script=script)
    assert len(of_script) == len(FRAMES)  # no script beside the benchmark's own


@pytest.mark.parametrize("name", ["entitybench", "storymem", "vistorybench", "vbench"])
def test_shots_are_numbered_as_the_benchmarks_own_script_has_them(
    name: str, timeline: Timeline, tmp_path: Path
) -> None:
    of_two = [{"scene_num": n, "video_prompts": ["a", "b"], "cut": [True, False]} for n in (3, 7)]
    (tmp_path / "00ab__run1.json").write_text(json.dumps({"scenes": of_two}))
    folder = tmp_path / "ViStory" / "16"
    folder.mkdir(parents=True)
    (folder / "story.json").write_text(json.dumps({"Shots": [{"index": n} for n in (2, 3, 5, 8)]}))
    script = folder / "story.json" if name == "vistorybench" else tmp_path / "00ab__run1.json"
    found = [file.file for file in exported(timeline, name, tmp_path / "out", script=script)]
    names = {
        "entitybench": [f"00ab__run1/{n}.mp4" for n in ("003_001", "003_002", "007_001", "007_002")],
        "storymem": [f"00ab__run1/{n}.mp4" for n in ("03_01", "03_02", "07_01", "07_02")],
        "vistorybench": [f"16/shots/shot_0{n}.png" for n in (2, 3, 5, 8)],
        "vbench": [f"00ab__run1/foxes-0{n}.mp4" for n in (1, 2, 3, 4)],
    }
    assert all(path.as_posix().endswith(end) for path, end in zip(found, names[name], strict=True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is no script of"),
        ("[1]", "is no script of"),
        ('{"scenes": [{"video_prompts": 3}]}', "is no script of"),
        ('{"Shots": [{"index": "one"}]}', "is no script of"),
        ('{"Shots": [{"index": 1}]}', "has 1 shot, the film 4 scenes"),
        ('{"Shots": [{"index": 1}, {"index": 1}, {"index": 2}, {"index": 3}]}', "two of its shots alike"),
    ],
)
def test_a_script_that_is_not_the_films(text: str, words: str, timeline: Timeline, tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text(text)
    with pytest.raises(StoryreelError, match=words):
        exported(timeline, "storymem", tmp_path / "out", script=tmp_path / "script.json")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="cannot be read"):
        exported(timeline, "storymem", tmp_path / "out", script=tmp_path / "gone.json")


@pytest.mark.parametrize("size", [None, (96, 96)])
def test_clips_have_their_own_part_of_the_sound(
    sounding: Path, tmp_path: Path, size: tuple[int, int] | None
) -> None:
    files = exported(timeline_of(sounding), "clips", tmp_path / "clips", size=size)
    for file, frames, tone in zip(files, FRAMES, (400, 400, 1600, 1600), strict=True):
        samples, rate = sound_of(file.file)
        assert len(samples) / rate == pytest.approx(frames / FPS, abs=1024 / rate)
        for part in (
            samples[1024 : 1024 + 4096],
            samples[-4096 - 1024 : -1024],
        ):  # from its beginning to its end
            assert pitch(part, rate) == pytest.approx(tone, abs=30)
        assert len(pictures_of(file.file)) == frames


@pytest.mark.parametrize(("fit", "bars"), [("pad", True), ("crop", False), ("stretch", False)])
def test_the_film_at_a_size_keeps_all_but_its_pixels(
    sounding: Path, shown: list[Picture], tmp_path: Path, fit: str, bars: bool
) -> None:
    (file,) = exported(timeline_of(sounding), "film", tmp_path / "out", size=(320, 180), fit=fit)
    assert (file.file.name, file.frames) == ("foxes-320x180.mp4", len(shown))
    found = pictures_of(file.file)
    assert {picture.shape for picture in found} == {(180, 320, 3)}
    assert len(found) == len(shown)
    assert (found[40][:, :20].max() < 20) == bars
    inside = np.asarray(Image.fromarray(found[40][:, 25:295] if bars else found[40]).resize((96, 64)))
    if fit != "crop":
        assert apart(inside, np.asarray(Image.fromarray(shown[40]).resize((96, 64)))) < 6
    with av.open(str(file.file)) as container:
        assert [c["metadata"]["title"] for c in container.chapters()] == [p.splitlines()[0] for p in PROMPTS]
        subtitles = container.streams.subtitles[0]
        assert not subtitles.disposition & av.stream.Disposition.default
        words = b"".join(bytes(packet) for packet in container.demux(subtitles))
        assert all(line.encode() in words for line in ("a hill", "it swims --> away", "東京で"))
        assert container.metadata["title"] == TITLE
        assert container.metadata["storyreel_seed"] == "0"
        context = container.streams.video[0].codec_context
        assert (context.pix_fmt, context.colorspace, context.color_range) == ("yuv420p", 1, 1)
    samples, rate = sound_of(file.file)
    assert len(samples) / rate == pytest.approx(len(shown) / FPS, abs=2048 / rate)


@pytest.mark.parametrize(
    ("still", "at"), [("first", [0, 0, 0, 0]), ("middle", [3, 5, 6, 6]), ("last", [6, 10, 12, 11])]
)
def test_stills_are_pictures_of_the_film(
    timeline: Timeline, shown: list[Picture], tmp_path: Path, still: str, at: list[int]
) -> None:
    files = exported(timeline, "stills", tmp_path, still=still)
    assert [file.file.name for file in files] == [f"foxes-0{n}.png" for n in (1, 2, 3, 4)]
    for file, start, place in zip(files, STARTS, at, strict=False):
        with Image.open(file.file) as picture:
            assert (picture.format, picture.size) == ("PNG", (WIDTH, HEIGHT))
            said = picture.text  # type: ignore[attr-defined]
            assert all("trainedAlgorithmicMedia" in said[name] for name in ("Comment", "XML:com.adobe.xmp"))
            differences = [apart(np.asarray(picture), frame) for frame in shown]
        assert differences[start + place] < 2
        assert min(range(len(shown)), key=differences.__getitem__) == start + place


@pytest.mark.parametrize("kind", ["gif", "webp", "avif"])
@pytest.mark.parametrize("size", [None, (120, 80)])
def test_moving_pictures_are_the_film(
    timeline: Timeline, shown: list[Picture], tmp_path: Path, kind: str, size: tuple[int, int] | None
) -> None:
    (file,) = exported(timeline, kind, tmp_path, size=size)
    with Image.open(file.file) as moving:
        assert moving.format == kind.upper()
        assert moving.size == (size or (WIDTH, HEIGHT))
        assert moving.n_frames == file.frames == len(shown)  # type: ignore[attr-defined]
        assert moving.info.get("loop", 0) == 0
        lengths, colours = [], []
        for index, frame in enumerate(shown):
            moving.seek(index)
            moving.load()
            lengths.append(moving.info["duration"])
            wanted = np.asarray(Image.fromarray(frame).resize(moving.size, Image.Resampling.LANCZOS))
            found = np.asarray(moving.convert("RGB"))
            assert apart(found, wanted) < 5, index
            # Blue, above where the bar goes: coded by another matrix, it would be another blue.
            strip = slice(4, moving.height // 4)
            colours.append(np.abs(found[strip].mean((0, 1)) - wanted[strip].mean((0, 1))).max())
    assert max(colours) < 5, max(colours)
    if kind == "gif":
        assert set(lengths) == {40, 50}  # whole hundredths of a second
    if kind != "avif":  # of which Pillow cuts off parts of a millisecond
        assert sum(lengths) == pytest.approx(1000 * len(shown) / FPS, abs=10)
    if kind != "webp":  # of which this ffmpeg reads no moving ones
        with av.open(str(file.file)) as container:  # an AVIF has its first picture by itself, too
            times = [frame.time for frame in container.decode(container.streams.video[-1])]
        assert times == pytest.approx([i / FPS for i in range(len(shown))], abs=0.0051)


def test_a_large_film_moves_in_a_smaller_picture(timeline: Timeline) -> None:
    small = export._small(replace(timeline, width=768, height=512), Wanted())
    assert small.size == (480, 320)
    assert export._small(timeline, Wanted()).size is None
    assert export._small(replace(timeline, width=768), Wanted((700, 300))).size == (700, 300)


def test_captions_have_times_and_any_text(timeline: Timeline, tmp_path: Path) -> None:
    vtt, srt = exported(timeline, "vtt,srt", tmp_path)
    for captions in (webvtt.read(str(vtt.file)).captions, webvtt.from_srt(str(srt.file)).captions):
        times = [(cue.start_in_seconds, cue.end_in_seconds) for cue in captions]
        ends = [round(start / FPS, 3) for start in STARTS]
        found = [(cue.start, cue.end) for cue in captions]
        assert found == [(clock(a), clock(b)) for a, b in itertools.pairwise(ends)], times
    assert [unescape(caption.text) for caption in webvtt.read(str(vtt.file)).captions] == PROMPTS
    assert [
        caption.raw_text.replace("\u2060", "") for caption in webvtt.from_srt(str(srt.file)).captions
    ] == PROMPTS
    for path in (vtt.file, srt.file):  # as ffmpeg's readers have it, which players use
        with av.open(str(path)) as container:
            stream = container.streams.subtitles[0]
            base = stream.time_base or Fraction(1)
            packets = [packet for packet in container.demux(stream) if packet.size]
        assert [round(float((p.pts or 0) * base), 3) for p in packets] == ends[:-1]
    assert "<b" not in srt.file.read_text().replace("<\u2060", "")
    assert vtt.file.read_text("utf-8").startswith("WEBVTT\n\n")


def clock(seconds: float) -> str:
    return f"00:00:{seconds:06.3f}"


@pytest.mark.parametrize("sound", [False, True])
def test_an_edit_list_holds_every_scene_and_seam(
    request: pytest.FixtureRequest, timeline: Timeline, tmp_path: Path, sound: bool
) -> None:
    if sound:
        timeline = timeline_of(request.getfixturevalue("sounding"))
    (file,) = exported(timeline, "edl", tmp_path / "edl")
    text = file.file.read_text("utf-8")
    assert text.splitlines()[:2] == [f"TITLE: {TITLE}", "FCM: NON-DROP FRAME"]
    read = otio.adapters.read_from_string(text, "cmx_3600", rate=FPS)
    assert read.name == TITLE
    pictures, *others = read.tracks
    assert [track.kind for track in others] == (["Audio", "Audio"] if sound else [])
    assert {track.duration().to_frames() for track in read.tracks} == {timeline.frames}
    clips = list(pictures.find_clips())
    # Where one dissolves into the next, its event begins before the seam.
    begins = [STARTS[0], STARTS[1] - 3, STARTS[2] - 5, STARTS[3], STARTS[4]]
    found = [(clip.source_range.start_time.value, clip.source_range.duration.value) for clip in clips]
    assert found == [(a, b - a) for a, b in itertools.pairwise(begins)]
    assert {clip.metadata["cmx_3600"]["reel"] for clip in clips} == {"FOXES"}
    lengths = [
        item.out_offset.value + item.in_offset.value
        for item in pictures
        if isinstance(item, otio.schema.Transition)
    ]
    assert lengths == [7, 11]
    markers = [(m.marked_range.start_time.value, m.name) for clip in clips for m in clip.markers]
    words = ["dissolve over 7 frames", "fade through black over 11 frames", "cut"]
    assert markers == [(STARTS[i], f"foxes-0{i + 1}: {words[i - 1]}") for i in (1, 2, 3)]


@pytest.mark.parametrize("sound", [False, True])
def test_opentimelineio_holds_every_scene_and_seam(
    request: pytest.FixtureRequest, timeline: Timeline, tmp_path: Path, sound: bool
) -> None:
    if sound:
        timeline = timeline_of(request.getfixturevalue("sounding"))
    (file,) = exported(timeline, "otio", tmp_path / "ä lists")
    read = otio.adapters.read_from_file(str(file.file))
    assert isinstance(read, otio.schema.Timeline)
    assert read.name == TITLE
    pictures, *others = read.tracks
    assert [track.kind for track in others] == (["Audio"] if sound else [])
    whole = otio.opentime.RationalTime(timeline.frames, FPS)
    assert all(track.duration() == whole for track in read.tracks)
    clips = list(pictures.find_clips())
    assert [clip.name for clip in clips] == [f"foxes-0{n}" for n in (1, 2, 3, 4)]
    assert [pictures.range_of_child(clip).start_time.value for clip in clips] == STARTS[:4]
    assert [clip.duration().value for clip in clips] == list(FRAMES)
    assert [clip.metadata["storyreel"]["caption"] for clip in clips] == PROMPTS
    offsets = [
        (item.name, item.transition_type, item.in_offset.value, item.out_offset.value)
        for item in pictures
        if isinstance(item, otio.schema.Transition)
    ]
    assert offsets == [("dissolve", "SMPTE_Dissolve", 3, 4), ("fade", "Custom_Transition", 5, 6)]
    assert [[marker.name for marker in clip.markers] for clip in clips] == [
        [],
        ["dissolve over 7 frames"],
        ["fade through black over 11 frames"],
        ["cut"],
    ]
    assert clips[1].markers[0].metadata["storyreel"]["strength"] == 1
    address = otio.url_utils.filepath_from_url(clips[0].media_reference.target_url)
    assert (file.file.parent / address).resolve() == timeline.path.resolve()
    again = otio.adapters.write_to_string(read, "otio_json")
    assert read.is_equivalent_to(otio.adapters.read_from_string(again, "otio_json"))


@pytest.mark.parametrize(
    ("fps", "rate"), [(8, 24), (12, 24), (15, 30), (16, 48), (24, 24), (25, 25), (30, 30), (60, 60), (7, 7)]
)
def test_timecodes_count_as_editors_do(fps: int, rate: int) -> None:
    assert edit_lists.timecode_rate(fps) == rate
    for frame in (0, 1, fps - 1, fps, 59 * fps + 1, 3600 * fps + 61 * fps):
        code = edit_lists.timecode(frame, fps)
        hours, minutes, seconds, rest = map(int, code.split(":"))
        assert Fraction(frame, fps) == 3600 * hours + 60 * minutes + seconds + Fraction(rest, rate)
        if rate != 7:
            assert otio.opentime.from_timecode(code, rate).to_seconds() == pytest.approx(frame / fps)


@pytest.mark.parametrize(
    ("name", "reel"),
    [("nyc", "NYC"), ("a-story-of-cats", "ASTORYOF"), ("Füchse", "FUCHSE"), ("東京", "FILM"), ("..", "FILM")],
)
def test_reels_have_names_that_any_editor_reads(name: str, reel: str) -> None:
    assert edit_lists.reel_name(name) == reel


def test_only_what_an_export_wrote_is_replaced(timeline: Timeline, tmp_path: Path) -> None:
    exported(timeline, "srt,vtt", tmp_path)
    (tmp_path / "foxes.edl").write_text("mine")
    exported(timeline, "srt,vtt", tmp_path)  # its own
    with pytest.raises(UsageError, match=r"foxes\.edl is there already"):
        exported(timeline, "otio,edl", tmp_path)
    assert not (tmp_path / "foxes.otio").exists()  # nothing is written then
    (tmp_path / "foxes.srt").write_text("corrected by hand")
    with pytest.raises(UsageError, match=r"foxes\.srt is there already") as caught:
        exported(timeline, "srt", tmp_path)
    assert "--overwrite" in caught.value.remedy
    export.record_of("foxes", tmp_path).write_text("[1")  # damaged: it says nothing
    with pytest.raises(UsageError, match=r"foxes\.vtt is there already"):
        exported(timeline, "vtt", tmp_path)
    list(export.export(timeline, ("srt", "edl"), tmp_path, overwrite=True))
    assert "corrected" not in (tmp_path / "foxes.srt").read_text()
    (tmp_path / "foxes.otio").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        list(export.export(timeline, ("otio",), tmp_path, overwrite=True))
    assert not list(tmp_path.glob("*.part*"))
    assert not list(tmp_path.glob(".foxes*"))


def test_what_is_left_of_scenes_that_are_gone_is_told(timeline: Timeline, tmp_path: Path) -> None:
    exported(timeline, "stills,srt", tmp_path)
    assert export.left_over(timeline, tmp_path) == []
    shorter = replace(timeline, clips=timeline.clips[:2])
    (tmp_path / "foxes-05.png").write_text("mine")  # which no export wrote
    exported(shorter, "srt", tmp_path)
    assert export.left_over(shorter, tmp_path) == ["foxes-03.png", "foxes-04.png"]
    (tmp_path / "foxes-03.png").unlink()
    assert export.left_over(shorter, tmp_path) == ["foxes-04.png"]


def test_a_failure_leaves_what_was_there(
    timeline: Timeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = exported(timeline, "gif", tmp_path)
    before = file.file.read_bytes()
    monkeypatch.setattr(export, "_filters", lambda *given: "nonsense")
    with pytest.raises(StoryreelError, match="ffmpeg failed") as caught:
        exported(timeline, "gif", tmp_path)
    assert caught.value.remedy == "Then run the same command again."
    assert file.file.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "foxes.gif",
        export.record_of("foxes", tmp_path).name,
    }


def test_what_cannot_be_written_is_said_before_anything_is(
    timeline: Timeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="321x180 is no size of an MP4") as caught:
        exported(timeline, "all", tmp_path / "odd", size=(321, 180))
    assert caught.value.remedy == "Give --size 322x180."
    exported(timeline, "stills", tmp_path / "odd", size=(321, 181))
    monkeypatch.setattr(export, "_encoders", lambda: frozenset({"libx264"}))
    with pytest.raises(MissingError, match="this ffmpeg writes no avif") as missing:
        exported(timeline, "srt,avif", tmp_path / "avif")
    assert "IMAGEIO_FFMPEG_EXE" in missing.value.remedy
    assert not (tmp_path / "avif").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is not a folder"):
        exported(timeline, "srt", tmp_path / "file" / "inside")


@pytest.mark.parametrize("text", ["", ",", "mp5", "gif,mkv"])
def test_formats_that_there_are_not(text: str) -> None:
    with pytest.raises(UsageError, match=r"--as") as caught:
        parse_formats(text)
    assert "clips" in caught.value.remedy


def test_formats_by_name() -> None:
    assert parse_formats("all") == FORMATS
    assert parse_formats("vbench,all") == (*FORMATS, "vbench")
    assert parse_formats("otio, GIF ,clips") == ("clips", "gif", "otio")


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as a program of another version would write it: sealed."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["film"].pop("seal")
    change(manifest)
    manifest["film"] |= {"seal": digest(manifest["film"])}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["film"].update(sha256="0"), "has been changed"),
        (lambda m: m["segments"][1].update(start=3), "do not join"),
        (lambda m: m["segments"].clear(), "of another version"),
        (lambda m: m["segments"][1].pop("frames"), "of another version"),
        (lambda m: m.update(settings=[]), "of another version"),
        (lambda m: m.update(format=1), "no finished film"),
        (lambda m: m["film"].update(file="other.mp4"), "is not there|has been changed"),
    ],
)
def test_a_film_that_is_not_whole(
    sounding: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    changed(sounding, change)
    with pytest.raises(StoryreelError, match=words) as caught:
        timeline_of(sounding)
    assert "ender it" in caught.value.remedy


class TestCommand:
    def test_files_are_named_line_by_line(
        self, sounding: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        to = tmp_path / "there"
        assert run(["export", str(sounding), "--as", "stills,srt", "--to", str(to)]) == 0
        printed = capsys.readouterr()
        assert printed.out.splitlines() == [
            *(str(to / f"foxes-0{n}.png") for n in (1, 2, 3, 4)),
            str(to / "foxes.srt"),
        ]
        assert printed.err == ""

    def test_without_options_it_writes_what_an_editor_takes(
        self, sounding: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["export", str(sounding / "foxes.mp4"), "--json"]) == 0
        files = json.loads(capsys.readouterr().out)
        import jsonschema

        jsonschema.Draft202012Validator(result_schema("export")).validate(files)
        kinds = [file["format"] for file in files]
        assert kinds == ["clips"] * 4 + ["stills"] * 4 + ["vtt", "srt", "edl", "otio"]
        assert {Path(file["file"]).parent for file in files} == {sounding / "export"}
        assert [file["frames"] for file in files] == [*FRAMES, 1, 1, 1, 1, None, None, None, None]
        assert all(Path(file["file"]).stat().st_size == file["bytes"] for file in files)

    def test_with_a_size_it_writes_the_film(self, sounding: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["export", str(sounding), "--size", "160x90"]) == 0
        assert capsys.readouterr().out.splitlines() == [str(sounding / "export" / "foxes-160x90.mp4")]

    @pytest.mark.parametrize(
        ("words", "code", "said"),
        [
            (["nowhere"], 2, "nowhere is not there"),
            (["FILM", "--as", "mp5"], 2, "'mp5' is no format"),
            (["FILM", "--size", "big"], 2, "'big' is not a size"),
            (["FILM/other.mp4"], 2, "is not the film in"),
            (["EMPTY"], 2, "nor the folder of one"),
            (["FILM", "--as", "clips", "--fit", "pad"], 2, "leave --fit out"),
            (["FILM", "--as", "clips", "--still", "middle"], 2, "leave --still out"),
            (["FILM", "--size", "64x64", "--still", "last"], 2, "leave --still out"),
            (["FILM", "--as", "clips", "--script", "X"], 2, "leave --script out"),
            (["FILM", "--as", "vtt,edl", "--size", "64x64"], 2, "leave --size out"),
        ],
    )
    def test_what_makes_no_sense(
        self,
        sounding: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        words: list[str],
        code: int,
        said: str,
    ) -> None:
        (sounding / "other.mp4").write_bytes(b"other")
        (tmp_path / "empty").mkdir()
        named = [w.replace("FILM", str(sounding)).replace("EMPTY", str(tmp_path / "empty")) for w in words]
        assert run(["export", *named]) == code
        printed = capsys.readouterr()
        assert said in printed.err
        assert printed.out == ""
        assert not (sounding / "export").exists()


@pytest.mark.parametrize(("formats", "size"), [("clips", None), ("clips", (96, 96)), ("film", (96, 96))])
def test_exported_films_say_in_xmp_that_they_are_generated(
    timeline: Timeline, tmp_path: Path, formats: str, size: tuple[int, int] | None
) -> None:
    for file in exported(timeline, formats, tmp_path, size=size):
        data = file.file.read_bytes()
        assert data.count(b"trainedAlgorithmicMedia") >= 1
        assert data.index(b"x:xmpmeta") > data.index(b"mdat")
        assert (
            f"<rdf:li>{timeline.model}" in data.decode("utf-8", "replace") or timeline.model.encode() in data
        )
        assert reader.count_frames(file.file) == file.frames
