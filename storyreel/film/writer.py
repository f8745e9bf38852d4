"""Writes films: frames are encoded to H.264 segments, segments are joined to one MP4.

Whatever is changed here encodes every segment again: this module is part of the recipe.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from storyreel.film import ffmpeg
from storyreel.film.mp4 import blank, check_length, check_sound, write_subtitles

RATE = 48_000  # samples a second of what is heard
TIMESCALE = 24_000  # ticks per second: whole for every usual frame rate

# The thread count changes x264's bytes, so it is fixed.
_ENCODER = ["-c:v", "libx264", "-preset", "medium", "-crf", "17"]
# How finely a frame is coded depends on no frame before the last key frame, nor on any behind the next one.
_ENCODER += ["-x264-params", "qcomp=1:mbtree=0"]
_ENCODER += ["-pix_fmt", "yuv420p", "-threads", "2", "-bf", "2"]
_COLOUR = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
_EXACT = ["-fflags", "+bitexact", "-video_track_timescale", str(TIMESCALE), "-f", "mp4"]


class SegmentWriter:
    """Encodes one segment as its frames come; after a failure the file is not to be used.

    Frames are ``width`` x ``height`` pixels, enlarged ``upscale`` times for watching. Those in ``parts`` are
    key frames, with which a part of the segment begins that changes to the others do not touch. ``sound`` is
    a file of raw samples, fp32 in two channels, that is kept beside them without loss. As a context
    it raises OutputError or StoryreelError if ffmpeg fails, MissingError if it does not start.
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: int,
        upscale: int,
        parts: Sequence[int] = (),
        sound: Path | None = None,
    ) -> None:
        self._path, self._fps, self._bytes_per_frame, self._bytes = path, fps, width * height * 3, 0
        size = f"{width * upscale}:{height * upscale}"
        scale = f"scale={size}:flags=lanczos+accurate_rnd+full_chroma_int:out_color_matrix=bt709:out_range=tv"
        self._arguments = [
            *f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i pipe:0".split(),
            *(["-an"] if sound is None else _kept_sound(sound)),
            *["-vf", f"{scale},{_COLOUR},setsar=1"],
            *_ENCODER,
            *(
                ["-force_key_frames", ",".join(f"{(part - 0.5) / fps:.6f}" for part in parts)]
                if parts
                else []
            ),
            *["-flags:v", "+bitexact", "-map_metadata", "-1"],
            *_EXACT,
            ffmpeg.local_file(path),
        ]

    def __enter__(self) -> SegmentWriter:
        with ExitStack() as stack:
            self._errors = stack.enter_context(ffmpeg.temporary_file())
            self._process = stack.enter_context(
                ffmpeg.running(self._arguments, self._errors, stdin=subprocess.PIPE)
            )
            self._stack = stack.pop_all()
        return self

    def write(self, frames: bytes) -> None:
        """Append whole frames, rgb24. Raises OutputError or StoryreelError if ffmpeg has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frames)
            self._bytes += len(frames)
        except BrokenPipeError:
            raise ffmpeg.failure(self._process.wait(), self._errors) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                if (code := ffmpeg.finish(self._process)) != 0:
                    raise ffmpeg.failure(code, self._errors)
                check_length(self._path, self._bytes // self._bytes_per_frame, self._fps)


def _kept_sound(path: Path) -> list[str]:
    """Return the arguments that keep raw samples, input 1, beside the pictures of input 0."""
    source = ["-f", "f32le", "-ar", str(RATE), "-ch_layout", "stereo", "-i", ffmpeg.local_file(path)]
    return [
        *source,
        "-map",
        "0:v",
        "-map",
        "1:a",
        "-c:a",
        "flac",
        "-sample_fmt",
        "s16",
        "-flags:a",
        "+bitexact",
    ]


@dataclass(frozen=True)
class Chapter:
    """A scene in the film: ``start`` and ``end`` in frames, its title and its subtitle."""

    start: int
    end: int
    title: str
    subtitle: str


@dataclass(frozen=True)
class Cue:
    """Words of a subtitle, from a second of the film up to another."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Audio:
    """What is heard: ffmpeg's arguments that read it, its filters, its length in samples, the words in it."""

    source: Sequence[str]
    filters: str
    samples: int
    captions: Sequence[Cue]


def join(
    segments: Sequence[Path],
    path: Path,
    fps: int,
    chapters: Sequence[Chapter],
    tags: dict[str, str],
    audio: Audio | None = None,
) -> None:
    """Join segments of one folder without encoding again, with chapters, subtitles, tags, and sound.

    There is a chapter per segment. The subtitles are off by default; where words are spoken, these are the
    first track, and what the chapters say is the second. Titles and tags reach ffmpeg only
    inside files, and subtitles not at all. The files lie beside the segments, hidden, since the concat
    demuxer safely reads only plain names; and ffmpeg works in that folder, since to this demuxer a path is
    an address, in which # and ? end the folders' names. Raises OutputError or StoryreelError.
    """
    folder = segments[0].parent
    prompts = [Cue(chapter.start / fps, chapter.end / fps, chapter.subtitle) for chapter in chapters]
    lines = ["ffconcat version 1.0"]
    for segment, chapter in zip(segments, chapters, strict=True):
        lines += [f"file {segment.name}", f"duration {(chapter.end - chapter.start) / fps:.9f}"]
    texts = {
        "list.txt": "\n".join(lines) + "\n",
        "meta.txt": _metadata(chapters, fps, tags),
        "scenes.srt": _blank_subtitles(prompts),
    }
    if audio and audio.captions:
        texts["spoken.srt"] = _blank_subtitles(audio.captions)
    helpers = {name: folder / f".join.part.{name}" for name in texts}
    arguments = [
        *["-protocol_whitelist", "file,pipe"],
        *["-f", "concat", "-safe", "1", "-i", f"file:{helpers['list.txt'].name}"],
        *["-f", "srt", "-i", ffmpeg.local_file(helpers["scenes.srt"])],
        *["-f", "ffmetadata", "-i", ffmpeg.local_file(helpers["meta.txt"])],
        *(_heard(audio, helpers) if audio else ["-map", "0:v", "-map", "1:s"]),
        *["-map_metadata", "2", "-map_chapters", "2", "-c:v", "copy", "-c:s", "mov_text"],
        *["-metadata:s:s:0", "language=eng", "-disposition:s:0", "0"],
        *["-movflags", "+faststart+use_metadata_tags"],
        *_EXACT,
        ffmpeg.local_file(path),
    ]
    try:
        for name, text in texts.items():
            helpers[name].write_text(text, "utf-8")
        with (
            ffmpeg.temporary_file() as errors,
            ffmpeg.running(arguments, errors, stdin=subprocess.DEVNULL, cwd=folder) as process,
        ):
            if (code := ffmpeg.finish(process)) != 0:
                raise ffmpeg.failure(code, errors)
    finally:
        for helper in helpers.values():
            helper.unlink(missing_ok=True)
    tracks = [audio.captions, prompts] if audio and audio.captions else [prompts]
    write_subtitles(path, [[_subtitle(cue) for cue in track] for track in tracks])
    if audio:
        check_sound(path, audio.samples)
    check_length(path, sum(chapter.end - chapter.start for chapter in chapters), fps)


def _metadata(chapters: Sequence[Chapter], fps: int, tags: dict[str, str]) -> str:
    """Return tags and chapters in ffmpeg's own format."""

    def escape(text: str) -> str:
        return re.sub(r"([=;#\\\n])", r"\\\1", text)

    lines = [";FFMETADATA1", *(f"{key}={escape(value)}" for key, value in tags.items())]
    for chapter in chapters:
        lines += ["[CHAPTER]", f"TIMEBASE=1/{fps}", f"START={chapter.start}", f"END={chapter.end}"]
        lines.append(f"title={escape(chapter.title)}")
    return "\n".join(lines) + "\n"


def _heard(audio: Audio, helpers: Mapping[str, Path]) -> list[str]:
    """Return the arguments for the sound and the words in it; inputs 0, 1 and 2 are there.

    ffmpeg's AAC encoder adds 1024 samples before the sound. The muxer's edit list has players leave them out.
    """
    inputs, maps, words = list(audio.source), ["-map", "0:v", "-map", "3:a"], []
    if audio.captions:
        inputs += ["-f", "srt", "-i", ffmpeg.local_file(helpers["spoken.srt"])]
        maps += ["-map", "4:s"]
        words = ["-metadata:s:s:0", "handler_name=Spoken words", "-metadata:s:s:1", "handler_name=Prompts"]
        words += ["-metadata:s:s:1", "language=eng", "-disposition:s:1", "0"]
    coding = ["-af", audio.filters, "-c:a", "aac", "-b:a", "192k", "-flags:a", "+bitexact"]
    return [*inputs, *maps, "-map", "1:s", *coding, *words]


def _blank_subtitles(cues: Sequence[Cue]) -> str:
    r"""Return cues in SubRip, each a `blank` text as long as the real one that `write_subtitles` puts there.

    ffmpeg would read the texts themselves as markup: <b>, {\an8}, \N for a line's end.
    """

    def clock(seconds: float) -> str:
        ms = round(1000 * seconds)
        return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"

    blocks = []
    for number, cue in enumerate(cues, 1):
        text = blank(_subtitle(cue)).decode()
        blocks.append(f"{number}\n{clock(cue.start)} --> {clock(cue.end)}\n{text}\n")
    return "\n".join(blocks)


def _subtitle(cue: Cue) -> bytes:
    r"""Return a subtitle as it stands in the film, in a track of plain text.

    Players that decode it with ffmpeg take \N, \n and \h for blanks all the same; a word joiner, which
    shows nothing, keeps these signs apart. (What stands in braces, some of these players hide.)
    """
    return re.sub(r"(?<=\\)(?=[Nnh])", "\u2060", cue.text).encode()
