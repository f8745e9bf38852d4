"""Films: frames to H.264 segments, segments to one MP4. Everything goes through ffmpeg's argv."""

from __future__ import annotations

import mmap
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from storyreel.errors import MissingError, OutputError, StoryreelError

TIMESCALE = 24_000  # ticks per second: whole for every usual frame rate
READ_AT_ONCE = 4 << 20  # bytes of frames
AI_GENERATED = "https://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

# The thread count changes x264's bytes, so it is fixed.
_ENCODER = ["-c:v", "libx264", "-preset", "medium", "-crf", "16"]
_ENCODER += ["-pix_fmt", "yuv420p", "-threads", "2", "-bf", "2"]
_COLOUR = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
_EXACT = ["-fflags", "+bitexact", "-video_track_timescale", str(TIMESCALE), "-f", "mp4"]


@cache
def ffmpeg() -> str:
    """Return the path of ffmpeg. Raises MissingError."""
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        remedy = "Reinstall it (pip install --force-reinstall imageio-ffmpeg), or set IMAGEIO_FFMPEG_EXE."
        raise MissingError(f"ffmpeg is missing: {error}", remedy) from None


def encoder_version() -> str:
    """Return ffmpeg's version, for keys and manifests."""
    import imageio_ffmpeg

    ffmpeg()
    try:
        return str(imageio_ffmpeg.get_ffmpeg_version())
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingError(f"ffmpeg does not start: {error}", "Check IMAGEIO_FFMPEG_EXE.") from None


def _argument(path: Path) -> str:
    """Name a file so that ffmpeg takes it for nothing else."""
    return f"file:{path.resolve()}"


def _start(arguments: Sequence[str], errors: Any, **options: Any) -> subprocess.Popen[bytes]:
    command = [ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments]
    try:
        # A session of its own: Ctrl-C is for storyreel, which then ends ffmpeg itself.
        return subprocess.Popen(command, stderr=errors, start_new_session=True, **options)
    except OSError as error:
        remedy = "Check IMAGEIO_FFMPEG_EXE."
        raise MissingError(f"ffmpeg does not start: {error.strerror}", remedy) from None


def _failed(code: int, errors: Any) -> StoryreelError:
    errors.seek(0)
    words = errors.read().decode(errors="replace").strip()
    last = words.splitlines()[-1] if words else f"exit code {code}"
    if "No space left" in words or "Permission denied" in words or "Read-only" in words:
        return OutputError(
            f"ffmpeg cannot write: {last}", "Make room or choose another --out, then run again."
        )
    return StoryreelError(f"ffmpeg failed: {last}", "Run again; finished segments are kept.")


class SegmentWriter:
    """Encodes one segment as its frames come; after a failure the file is not to be used.

    Frames are ``width`` x ``height``, enlarged ``upscale`` times for watching.
    """

    def __init__(self, path: Path, width: int, height: int, fps: int, upscale: int) -> None:
        self._path = path
        size = f"{width * upscale}:{height * upscale}"
        scale = f"scale={size}:flags=lanczos+accurate_rnd+full_chroma_int:out_color_matrix=bt709:out_range=tv"
        self._arguments = [
            *f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i pipe:0 -an".split(),
            *["-vf", f"{scale},{_COLOUR},setsar=1"],
            *_ENCODER,
            *["-flags:v", "+bitexact", "-map_metadata", "-1"],
            *_EXACT,
            _argument(path),
        ]

    def __enter__(self) -> SegmentWriter:
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = _start(self._arguments, self._errors, stdin=subprocess.PIPE)
        except StoryreelError:
            self._errors.close()
            raise
        return self

    def write(self, frames: bytes) -> None:
        """Append frames, rgb24. Raises OutputError or StoryreelError if ffmpeg has died."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frames)
        except BrokenPipeError:
            raise _failed(self._process.wait(), self._errors) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._process.kill()
            code = _finish(self._process)
            if kind is None and code != 0:
                raise _failed(code, self._errors)
        finally:
            self._errors.close()


def _finish(process: subprocess.Popen[bytes]) -> int:
    """Wait for ffmpeg and return its exit code; whatever interrupts the wait ends ffmpeg."""
    try:
        if process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()
        return process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise


@dataclass(frozen=True)
class Chapter:
    """A scene in the film: ``start`` and ``end`` in frames, its title and its subtitle."""

    start: int
    end: int
    title: str
    subtitle: str


def join(
    segments: Sequence[Path], path: Path, fps: int, chapters: Sequence[Chapter], tags: dict[str, str]
) -> None:
    """Join segments of one folder without encoding again, with chapters, subtitles and tags.

    The subtitles are off by default. What a story says reaches ffmpeg only inside files. These
    lie beside the segments, hidden, since the concat demuxer safely reads only plain names.
    """
    lines = ["ffconcat version 1.0"]
    for segment, chapter in zip(segments, chapters, strict=True):
        lines += [f"file {segment.name}", f"duration {(chapter.end - chapter.start) / fps:.9f}"]
    texts = {
        "list.txt": "\n".join(lines) + "\n",
        "meta.txt": _metadata(chapters, fps, tags),
        "scenes.srt": _subtitles(chapters, fps),
    }
    helpers = {name: segments[0].parent / f".join.part.{name}" for name in texts}
    arguments = [
        *["-protocol_whitelist", "file,pipe"],
        *["-f", "concat", "-safe", "1", "-i", _argument(helpers["list.txt"])],
        *["-f", "srt", "-i", _argument(helpers["scenes.srt"])],
        *["-f", "ffmetadata", "-i", _argument(helpers["meta.txt"])],
        *["-map", "0:v", "-map", "1:s", "-map_metadata", "2", "-map_chapters", "2"],
        *["-c:v", "copy", "-c:s", "mov_text"],
        *["-metadata:s:s:0", "language=eng", "-disposition:s:0", "0"],
        *["-movflags", "+faststart+use_metadata_tags"],
        *_EXACT,
        _argument(path),
    ]
    try:
        for name, text in texts.items():
            helpers[name].write_text(text, "utf-8")
        with tempfile.TemporaryFile() as errors:
            code = _finish(_start(arguments, errors, stdin=subprocess.DEVNULL))
            if code != 0:
                raise _failed(code, errors)
    finally:
        for helper in helpers.values():
            helper.unlink(missing_ok=True)
    _switch_off_subtitles(path)


def _switch_off_subtitles(path: Path) -> None:
    """Clear the enabled flag of subtitle tracks, which ffmpeg's muxer sets on the first one.

    ISO/IEC 14496-12: moov/trak/tkhd starts with version (1 byte) and flags (3 bytes), of
    which bit 0 is track_enabled; moov/trak/mdia/hdlr has its type behind 8 bytes.
    """
    with path.open("rb+") as file, mmap.mmap(file.fileno(), 0) as data:

        def boxes(start: int, end: int, kind: bytes) -> Iterator[tuple[int, int]]:
            while start + 8 <= end:
                size, name = struct.unpack_from(">I4s", data, start)
                header = 8
                if size == 1:
                    (size,), header = struct.unpack_from(">Q", data, start + 8), 16
                if name == kind:
                    yield start + header, start + size
                start += max(size, 8)

        for moov in boxes(0, len(data), b"moov"):
            for trak in boxes(*moov, b"trak"):
                handlers = [h for mdia in boxes(*trak, b"mdia") for h, _ in boxes(*mdia, b"hdlr")]
                if any(data[h + 8 : h + 12] == b"sbtl" for h in handlers):
                    for tkhd, _ in boxes(*trak, b"tkhd"):
                        data[tkhd + 3] &= 0xFE


def _metadata(chapters: Sequence[Chapter], fps: int, tags: dict[str, str]) -> str:
    def escape(text: str) -> str:
        return re.sub(r"([=;#\\\n])", r"\\\1", text)

    lines = [";FFMETADATA1", *(f"{key}={escape(value)}" for key, value in tags.items())]
    for chapter in chapters:
        lines += ["[CHAPTER]", f"TIMEBASE=1/{fps}", f"START={chapter.start}", f"END={chapter.end}"]
        lines.append(f"title={escape(chapter.title)}")
    return "\n".join(lines) + "\n"


def _subtitles(chapters: Sequence[Chapter], fps: int) -> str:
    def clock(frame: int) -> str:
        ms = round(1000 * frame / fps)
        return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"

    cues = []
    for number, chapter in enumerate(chapters, 1):
        # SubRip knows <b>, {\an8} and times with -->: a prompt is shown as it is written.
        text = chapter.subtitle.replace("<", "‹").replace("{", "(").replace("-->", "--›")
        cues.append(f"{number}\n{clock(chapter.start)} --> {clock(chapter.end)}\n{text}\n")
    return "\n".join(cues)


def read_frames(path: Path, width: int, height: int) -> Iterator[bytes]:
    """Yield a film's frames, rgb24 of ``width`` x ``height``, some whole frames at a time.

    They are scaled by the mean over areas, which takes back `SegmentWriter`'s enlargement. ffmpeg
    ends when the caller stops early. Raises StoryreelError for no film, or one that is damaged.
    """
    frame = width * height * 3
    chunk = max(1, READ_AT_ONCE // frame) * frame
    scale = f"scale={width}:{height}:flags=area+accurate_rnd+full_chroma_int+full_chroma_inp"
    arguments = [
        *["-xerror", "-err_detect", "explode", "-protocol_whitelist", "file,pipe"],
        *["-f", "mp4", "-i", _argument(path), "-map", "0:v:0", "-fps_mode", "passthrough"],
        *["-vf", f"{scale}:in_color_matrix=bt709:in_range=tv:out_range=pc"],
        *["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"],
    ]
    with tempfile.TemporaryFile() as errors:
        process = _start(arguments, errors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            whole = True
            while whole and (frames := process.stdout.read(chunk)):
                whole = len(frames) % frame == 0
                if whole:
                    yield frames
            if process.wait() or not whole:
                errors.seek(0)
                words = errors.read().decode(errors="replace").strip().splitlines()
                reason = words[-1] if words else "it ends inside a frame"
                raise StoryreelError(f"cannot read the film {path}: {reason}", "Render it again.")
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def read_tags(path: Path) -> dict[str, str]:
    """Return a film's own tags, as ffmpeg reads them. Raises StoryreelError for no film."""
    source = ["-protocol_whitelist", "file,pipe", "-f", "mp4", "-i", _argument(path)]
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        process = _start(
            [*source, "-f", "ffmetadata", "pipe:1"], errors, stdin=subprocess.DEVNULL, stdout=output
        )
        if _finish(process):
            raise StoryreelError(f"{path} is not a film that ffmpeg can read", "Name an MP4 of storyreel's.")
        output.seek(0)
        words = output.read().decode(errors="replace")
    tags: dict[str, str] = {}
    text = re.sub(r"\\(.)", lambda m: "\0" + m[1] if m[1] != "\n" else "\0n", words, flags=re.S)
    for line in text.splitlines():
        if line.startswith("["):
            break
        key, mark, value = line.partition("=")
        if mark:
            tags[key] = value.replace("\0n", "\n").replace("\0", "")
    return tags
