"""Films read back by PyAV, which shares no code with what wrote them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from storyreel.errors import MissingError, StoryreelError
from storyreel.film import ffmpeg, mp4, reader, writer

WIDTH, HEIGHT, FPS = 32, 16, 12
PROMPTS = ["Zoë = walks; a # b \\ end", "猫が走る\nsecond line", "-y http://evil [0:v] %d <b>{x}"]


def write(path: Path, grey: int, frames: int = 6, upscale: int = 2) -> None:
    with writer.SegmentWriter(path, WIDTH, HEIGHT, FPS, upscale) as encoder:
        for _ in range(frames):
            encoder.write(np.full((HEIGHT, WIDTH, 3), grey, np.uint8).tobytes())


@pytest.fixture
def film(tmp_path: Path) -> Path:
    segments = []
    for index, grey in enumerate((40, 120, 200)):
        segments.append(tmp_path / f"{index}.mp4")
        write(segments[-1], grey)
    chapters = [writer.Chapter(6 * i, 6 * i + 6, text, f"{text}\naction") for i, text in enumerate(PROMPTS)]
    path = tmp_path / "film.mp4"
    writer.join(segments, path, FPS, chapters, {"title": PROMPTS[0], "storyreel_seed": "7"})
    return path


def test_the_film_is_what_players_expect(film: Path) -> None:
    data = film.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # faststart
    with av.open(str(film)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.width, context.height) == (2 * WIDTH, 2 * HEIGHT)
        assert stream.average_rate == stream.base_rate == Fraction(FPS)
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (
            1,
            1,
            1,
            1,
        )
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([i / FPS for i in range(18)])


def test_frames_come_back_in_order_and_colour(film: Path) -> None:
    with av.open(str(film)) as container:
        greys = [f.to_ndarray(format="rgb24").mean() for f in container.decode(video=0)]
    for i, grey in enumerate(greys):
        assert abs(grey - (40, 120, 200)[i // 6]) < 3


def test_chapters_subtitles_and_tags_carry_any_text(film: Path) -> None:
    with av.open(str(film)) as container:
        chapters = container.chapters()
        assert [c["metadata"]["title"] for c in chapters] == PROMPTS
        starts = [Fraction(c["start"]) * (c["time_base"] or 0) for c in chapters]
        assert starts == [0, Fraction(1, 2), 1]
        assert Fraction(chapters[-1]["end"]) * (chapters[-1]["time_base"] or 0) == Fraction(3, 2)
        subtitles = container.streams.subtitles[0]
        assert subtitles.codec_context.name == "mov_text"
        assert not subtitles.disposition & av.stream.Disposition.default
        assert container.metadata["title"] == PROMPTS[0]
        words = b"".join(bytes(packet) for packet in container.demux(subtitles))
    assert "Zoë = walks; a # b \\ end".encode() in words
    assert "猫が走る".encode() in words
    assert b"[0:v] %d" in words
    tags = reader.read_tags(film)
    assert tags["title"] == PROMPTS[0]
    assert tags["storyreel_seed"] == "7"


AS_WRITTEN = [
    "{x} {{y}} {y:i} [z] <b>bold</b> </i> <x> & &amp; &lt; a --> b",
    "00:00:01,000 --> 00:00:02,000",
    "7",
    "-",
    "猫" * 2000,  # longer than ffmpeg's own lines
    "🦊x" * 1000,
    "C:\\fox",
]


def cues(film: Path) -> list[str]:
    """Return subtitles as ffmpeg reads them, without signs that show nothing."""
    command = [ffmpeg.program(), "-v", "error", "-i", str(film), "-f", "srt", "-"]
    text = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    blocks = re.split(r"(?:^|\n\n)\d+\n[\d:,]+ --> [\d:,]+\n", text.replace("\u2060", ""))
    return [block.strip("\n") for block in blocks[1:]]


def test_subtitles_are_shown_as_they_are_written(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 1)
    escapes = [r"A:\News \n \h \t \\n", r"ends with \ ", "\\{x\\}"]
    texts = [*AS_WRITTEN, *escapes, r"{\an8}up"]
    chapters = [writer.Chapter(6 * i, 6 * i + 6, "a", f"{text}\n{text}") for i, text in enumerate(texts)]
    segments = [tmp_path / "a.mp4"] * len(texts)
    writer.join(segments, tmp_path / "film.mp4", FPS, chapters, {})
    assert cues(tmp_path / "film.mp4")[:-1] == [f"{text}\n{text}" for text in texts[:-1]]
    with av.open(str(tmp_path / "film.mp4")) as container:
        packets = [bytes(packet)[2:].decode() for packet in container.demux(subtitles=0)]
    assert [text.replace("\u2060", "") for text in packets if text] == [f"{text}\n{text}" for text in texts]


FOLDERS = ["take#2", "why?", "why?a=b#c", "100%d", "%03d", "%23", "a:b", "http:", "file:", "-y", "a\nb", "~"]
FOLDERS += ["[0-9]*", "{a,b}", "猫 é", " blanks ", "a'b\"c", "a\\b", "$HOME `id`;", "concat:a|b", "x" * 250]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Two short films, by their greys."""
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    found = {}
    for grey in (200, 40):
        write(path, grey)
        found[grey] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_any_legal_path_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: dict[int, bytes]
) -> None:
    """With clips of the same names where ffmpeg would look if it read the path as anything else."""
    for folder, grey in ((tmp_path, 200), (tmp_path / name / name, 40)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "01.mp4").write_bytes(clips[grey])
    monkeypatch.chdir(tmp_path / name)
    film = Path(name) / "film%d#?.mp4"
    chapters = [writer.Chapter(0, 6, "a", "b")]
    writer.join([Path(name) / "01.mp4"], film, FPS, chapters, {"title": "t"})
    assert reader.count_frames(film) == 6
    assert reader.read_tags(film)["title"] == "t"
    facts = reader.probe(film)
    assert (facts.width, facts.height, facts.chapters) == (64, 32, (0.0,))
    grey = np.frombuffer(b"".join(reader.read_frames(film, WIDTH, HEIGHT)), np.uint8).mean()
    assert abs(grey - 40) < 3


def test_joining_encodes_nothing_again(film: Path, tmp_path: Path) -> None:
    def slices(path: Path) -> list[bytes]:
        """Return the coded pictures; parameter sets may be repeated in a joined film."""
        found = []
        with av.open(str(path)) as container:
            for packet in container.demux(video=0):
                data = bytes(packet)
                while data:
                    size = int.from_bytes(data[:4], "big")
                    unit, data = data[4 : 4 + size], data[4 + size :]
                    if unit[0] & 31 in (1, 5):
                        found.append(unit)
        return found

    assert len(slices(film)) == 18
    assert slices(film) == [unit for i in range(3) for unit in slices(tmp_path / f"{i}.mp4")]


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 77)
    write(tmp_path / "b.mp4", 77)
    write(tmp_path / "c.mp4", 78)
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


def test_an_exception_leaves_no_ffmpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), writer.SegmentWriter(path, WIDTH, HEIGHT, FPS, 1) as encoder:
        encoder.write(bytes(WIDTH * HEIGHT * 3))
        process = encoder._process
        raise KeyboardInterrupt
    assert process.poll() is not None


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
def test_a_dying_ffmpeg_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho 'x264 [error]: malloc failed' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "program", lambda: str(script))
    with pytest.raises(StoryreelError, match="malloc failed"):
        write(tmp_path / "a.mp4", 1, frames=500)
    monkeypatch.setattr(ffmpeg, "program", lambda: str(tmp_path / "nothing"))
    with pytest.raises(MissingError, match="does not start"):
        write(tmp_path / "a.mp4", 1)
    monkeypatch.undo()
    ffmpeg.program.cache_clear()
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    with pytest.raises(MissingError, match="does not start"):
        ffmpeg.version()
    ffmpeg.program.cache_clear()


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    for data in (os.urandom(999), b";FFMETADATA1\ntitle=hello\n"):
        path.write_bytes(data)
        with pytest.raises(StoryreelError, match="not a film"):
            reader.read_tags(path)


def script(path: Path, text: str) -> str:
    """A shell script that stands in for ffmpeg."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def no_ffmpeg_yet() -> Iterator[None]:
    ffmpeg.program.cache_clear()
    yield
    ffmpeg.program.cache_clear()


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
@pytest.mark.usefixtures("no_ffmpeg_yet")
@pytest.mark.parametrize("named", ["ffmpeg", "./bin/ffmpeg", "none is bundled"])
def test_an_ffmpeg_is_found_by_its_name(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    own = script(tmp_path / "bin" / "ffmpeg", f'exec "{ffmpeg.program()}" "$@"')
    ffmpeg.program.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    if named == "none is bundled":  # the package then names what is on PATH
        monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: "ffmpeg")
    else:
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", named)
    assert ffmpeg.program() == own
    assert ffmpeg.version()
    write(tmp_path / "bin" / "a.mp4", 1)
    writer.join(
        [tmp_path / "bin" / "a.mp4"], tmp_path / "film.mp4", FPS, [writer.Chapter(0, 6, "a", "b")], {}
    )
    assert reader.count_frames(tmp_path / "film.mp4") == 6


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
@pytest.mark.usefixtures("no_ffmpeg_yet")
@pytest.mark.parametrize("kind", ["no such name", "no such file", "folder", "no program", "another program"])
def test_what_is_no_ffmpeg_is_said_to_be_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ffmpeg"
    match kind:
        case "folder":
            path.mkdir()
        case "no program":
            path.write_text("notes")
        case "another program":
            script(path, "echo 'gcc version 9'")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "no-such-ffmpeg" if kind == "no such name" else str(path))
    with pytest.raises(MissingError, match="ffmpeg") as caught:
        ffmpeg.version()
    assert "IMAGEIO_FFMPEG_EXE" in caught.value.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for ffmpeg")
def test_an_ffmpeg_that_ended_early_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that all is well and leaves a valid, shorter film."""
    taken = 4 * WIDTH * HEIGHT * 3
    early = f'(head -c {taken}; cat >/dev/null) | "{ffmpeg.program()}" "$@"'
    monkeypatch.setattr(ffmpeg, "program", lambda: script(tmp_path / "ffmpeg", early))
    with pytest.raises(StoryreelError, match=r"has \[\(4, 0.333.* not \(6, 0.5\)"):
        write(tmp_path / "a.mp4", 1, frames=6)
    assert reader.count_frames(tmp_path / "a.mp4") == 4
    write(tmp_path / "b.mp4", 1, frames=4)
    for nothing in (b"", b"\0\0\0\1moov", (tmp_path / "b.mp4").read_bytes()[:900]):
        (tmp_path / "c.mp4").write_bytes(nothing)
        with pytest.raises(StoryreelError, match="ffmpeg failed"):
            mp4.check_length(tmp_path / "c.mp4", 4, FPS)


def test_a_film_of_other_segments_than_planned_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", 1, frames=5)
    chapter = writer.Chapter(0, 6, "a", "b")
    with pytest.raises(StoryreelError, match="ffmpeg failed"):
        writer.join([tmp_path / "a.mp4"], tmp_path / "film.mp4", FPS, [chapter], {})


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal")
@pytest.mark.parametrize("work", ["write", "read"])
def test_ffmpeg_does_not_outlive_its_parent(tmp_path: Path, work: str) -> None:
    """It ignores its input, as one does that is busy: only the signal ends it."""
    busy = script(tmp_path / "ffmpeg", "exec sleep 60 5>&1")
    code = (
        "import os, pathlib, sys, time\n"
        "from storyreel.film import ffmpeg, mp4, reader, writer\n"
        f"ffmpeg.program = lambda: {busy!r}\n"
        f"path = pathlib.Path({str(tmp_path / 'a.mp4')!r})\n"
        "start = ffmpeg._start\n"
        "def told(*arguments, **options):\n"
        "    process = start(*arguments, **options)\n"
        "    print(process.pid, flush=True)\n"
        "    return process\n"
        "ffmpeg._start = told\n"
        "if sys.argv[1] == 'write':\n"
        "    with writer.SegmentWriter(path, 32, 16, 12, 1):\n"
        "        time.sleep(60)\n"
        "else:\n"
        "    list(reader.read_frames(path, 32, 16))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, work], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        assert alive(orphan)
        parent.kill()
        parent.stdout.close()
    deadline = time.monotonic() + 30  # half of what it sleeps
    while alive(orphan) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(orphan)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_part_of_a_segment_is_coded_alike_whatever_the_others_show(tmp_path: Path) -> None:
    """So a neighbour that is taken again changes no frame that does not show it."""
    noise = np.random.default_rng(0).integers(0, 256, (24, HEIGHT, WIDTH, 3), np.uint8)
    coded = []
    for grey in (0, 255):
        frames, path = noise.copy(), tmp_path / f"{grey}.mp4"
        frames[:2], frames[-3:] = grey, 255 - grey
        with writer.SegmentWriter(path, WIDTH, HEIGHT, FPS, 2, (2, 21)) as encoder:
            encoder.write(frames.tobytes())
        with av.open(str(path)) as container:
            pictures = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        assert len(pictures) == 24
        coded.append(np.stack(pictures))
    apart = (coded[0] != coded[1]).reshape(24, -1).any(1)
    assert apart.tolist() == [at < 2 or at >= 21 for at in range(24)]
