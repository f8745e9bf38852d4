"""What other programs take of a finished film: clips, stills, moving pictures, captions, edit lists, sizes.

The film is read and never changed. A clip of the film's own size holds its very pictures: every scene begins
with a whole one, so that nothing is encoded again. Sound comes along where a format can hold it.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from storyreel.errors import MissingError, OutputError, UsageError
from storyreel.files import file_hash, read_json, replacing, write_atomically, writing
from storyreel.film import captions, edit_lists, ffmpeg, reader
from storyreel.film.mp4 import check_length, disable_subtitles
from storyreel.film.provenance import add_xmp, xmp_packet
from storyreel.film.timeline import Clip, Timeline
from storyreel.film.writer import TIMESCALE
from storyreel.film.yardsticks import YARDSTICKS, as_json, script_of

if TYPE_CHECKING:
    from PIL.Image import Image

Fit = Literal["pad", "crop", "stretch"]
Still = Literal["first", "middle", "last"]

FORMATS = ("film", "clips", "stills", "gif", "webp", "avif", "vtt", "srt", "edl", "otio")
TO_AN_EDITOR = ("clips", "stills", "vtt", "srt", "edl", "otio")
PICTURES = ("film", "clips", "stills", "gif", "webp", "avif", *YARDSTICKS)  # what has a size
STILLS = ("stills", *(name for name, of in YARDSTICKS.items() if of.reads == "stills"))
SMALL = 480  # pixels of the longer side of moving pictures, where no size is asked for
MOST_GIF = 50  # frames a second: browsers slow down what is shown for less than 20 ms
RECORD = ".storyreel-export"  # and the film's name: what was written here, by name: its SHA-256
AGAIN = "Then run the same command again."
ELSEWHERE = "choose another --to"

_SCALE = "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp:in_color_matrix=bt709:in_range=tv"
_BT709 = ":out_color_matrix=bt709:out_range=tv"
_H264 = ["-c:v", "libx264", "-preset", "medium", "-crf", "16", "-pix_fmt", "yuv420p", "-threads", "2"]
_H264 += ["-color_primaries", "bt709", "-color_trc", "bt709", "-colorspace", "bt709", "-color_range", "tv"]
_MP4 = ["-fflags", "+bitexact", "-video_track_timescale", str(TIMESCALE)]
_MP4 += ["-movflags", "+faststart+use_metadata_tags", "-f", "mp4"]
_SOUND = ["-c:a", "aac", "-b:a", "192k"]
# Of each, the first that an ffmpeg has. SVT is four times as fast as libaom at the same quality.
_AV1 = {
    "libsvtav1": ["-crf", "30", "-preset", "8", "-svtav1-params", "lp=1"],
    "libaom-av1": ["-crf", "27", "-cpu-used", "8", "-row-mt", "1", "-threads", "2"],
}
_WEBP = {"libwebp_anim": ["-quality", "80", "-loop", "0"]}


@dataclass(frozen=True)
class Exported:
    """A file that was written. ``scene`` counts from 1, and is None where it is of the whole film.

    ``frames`` are those of its pictures; None of captions and edit lists.
    """

    format: str
    file: Path
    scene: int | None
    frames: int | None
    bytes: int


@dataclass(frozen=True)
class Wanted:
    """How pictures are to be: of a ``size``, None for the film's own; ``fit`` says how they get into another.

    ``still`` is which picture of a scene stands for it. ``script`` is that of a benchmark, which the film
    tells.
    """

    size: tuple[int, int] | None = None
    fit: Fit = "pad"
    still: Still = "middle"
    script: Path | None = None


@dataclass(frozen=True)
class _File:
    """A file to be: what writes it to a path."""

    format: str
    name: str
    write: Callable[[Path], None]
    scene: int | None = None
    frames: int | None = None


def parse_formats(text: str) -> tuple[str, ...]:
    """Read names of formats with commas between, or "all", in the order of `FORMATS`. Raises UsageError.

    "all" has none of the `YARDSTICKS`.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    known = f"Known: {', '.join((*FORMATS, *YARDSTICKS))}, or all, which leaves out benchmarks."
    if unknown := [name for name in names if name not in (*FORMATS, *YARDSTICKS, "all")]:
        raise UsageError(f"--as: {unknown[0]!r} is no format", known)
    if not names:
        raise UsageError("--as names no format", known)
    wanted = {*names, *(FORMATS if "all" in names else ())}
    return tuple(name for name in (*FORMATS, *YARDSTICKS) if name in wanted)


def export(
    timeline: Timeline, formats: Sequence[str], to: Path, wanted: Wanted = Wanted(), overwrite: bool = False
) -> Iterator[Exported]:
    """Write a film in some of `FORMATS` and `YARDSTICKS` into the folder ``to``; yield each once it is whole.

    What an export wrote here before is replaced; anything else is, only with ``overwrite``. Raises UsageError
    before anything is written, OutputError, MissingError where ffmpeg lacks an encoder, or StoryreelError.
    """
    files = list(_files(timeline, formats, to, wanted))
    _refuse(timeline, files, to, wanted, overwrite)
    with writing(to, ELSEWHERE, AGAIN):
        to.mkdir(parents=True, exist_ok=True)
    for file in files:
        path = to / file.name
        with writing(path.parent, ELSEWHERE, AGAIN):
            path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path, ELSEWHERE, AGAIN), replacing(path) as part:
            file.write(part)
        record = record_of(timeline.name, to)
        with writing(record, ELSEWHERE, AGAIN):
            text = json.dumps(
                _written(timeline.name, to) | {file.name: file_hash(path)}, indent=2, ensure_ascii=False
            )
            write_atomically(record, text + "\n")
        yield Exported(file.format, path, file.scene, file.frames, path.stat().st_size)


def _refuse(timeline: Timeline, files: Sequence[_File], to: Path, wanted: Wanted, overwrite: bool) -> None:
    """Raise for what is not to be written, before anything is."""
    movies = any(file.name.endswith(".mp4") for file in files)
    if wanted.size and movies and any(side % 2 for side in wanted.size):
        width, height = (side + side % 2 for side in wanted.size)
        words = f"{wanted.size[0]}x{wanted.size[1]} is no size of an MP4, whose sides are even"
        raise UsageError(words, f"Give --size {width}x{height}.")
    for name in {file.format for file in files} & {"webp", "avif"}:
        _encoder(_WEBP if name == "webp" else _AV1, name)
    written = _written(timeline.name, to)
    for file in files:
        path = to / file.name
        if path.resolve() == timeline.path.resolve():
            raise UsageError(f"{path} is the film itself", "Choose another --to.")
        if path.is_dir():
            raise UsageError(f"{path} is a folder", "Remove it, or choose another --to.")
        if path.exists() and not overwrite and written.get(file.name) != file_hash(path):
            words = f"{path} is there already, and is not what an export wrote"
            raise UsageError(words, "Choose another --to, or replace it with --overwrite.")


def record_of(film: str, to: Path) -> Path:
    """Return the file that says what exports of a film wrote: a film's own, since several may run at once."""
    return to / f"{RECORD}-{film}.json"


def _written(film: str, to: Path) -> dict[str, str]:
    """Return the SHA-256 of what exports of a film wrote, by name; a damaged record says nothing."""
    with suppress(OSError, ValueError):
        record = read_json(record_of(film, to))
        if isinstance(record, dict):
            return {name: value for name, value in record.items() if isinstance(value, str)}
    return {}


def left_over(timeline: Timeline, to: Path) -> list[str]:
    """Return what earlier exports wrote into ``to`` of scenes that the film has no more, by name."""
    clip = re.compile(rf"({re.escape(timeline.name)}-\d+)\.(?:mp4|png)")
    there = {clip.name for clip in timeline.scenes}
    found = (
        (name, clip.fullmatch(name)) for name in sorted(_written(timeline.name, to)) if (to / name).is_file()
    )
    return [name for name, matched in found if matched and matched[1] not in there]


def _files(timeline: Timeline, formats: Sequence[str], to: Path, wanted: Wanted) -> Iterator[_File]:
    """Yield the files of some formats, whole films and texts as well as those of every scene."""
    name, frames = timeline.name, timeline.frames
    width, height = wanted.size or (timeline.width, timeline.height)
    if "film" in formats:
        yield _File(
            "film", f"{name}-{width}x{height}.mp4", lambda part: _film(timeline, wanted, part), None, frames
        )
    if "clips" in formats:
        for clip in timeline.scenes:
            yield _File(
                "clips",
                f"{clip.name}.mp4",
                partial(_clip, timeline, clip, wanted),
                clip.number,
                clip.frames,
            )
    if "stills" in formats:
        pictures = _stills(timeline, wanted)
        for clip in timeline.scenes:
            yield _File(
                "stills",
                f"{clip.name}.png",
                partial(_save, pictures, timeline, clip),
                clip.number,
                1,
            )
    moving: Mapping[str, Callable[[Timeline, Wanted, Path], None]] = {
        "gif": _gif,
        "webp": _webp,
        "avif": _avif,
    }
    for kind in (kind for kind in moving if kind in formats):
        slower = kind == "gif" and timeline.fps > MOST_GIF
        count = -(-frames * MOST_GIF // timeline.fps) if slower else frames
        yield _File(
            kind,
            f"{name}.{kind}",
            partial(moving[kind], timeline, wanted),
            None,
            count,
        )
    texts: dict[str, Callable[[], str]] = {
        "vtt": lambda: captions.webvtt(timeline),
        "srt": lambda: captions.subrip(timeline),
        "edl": lambda: edit_lists.edl(timeline, reader.has_sound(timeline.path)),
        "otio": lambda: edit_lists.otio(timeline, reader.has_sound(timeline.path), to),
    }
    for kind in (kind for kind in texts if kind in formats):
        yield _File(
            kind,
            f"{name}.{kind}",
            partial(_write, texts[kind]),
        )
    script = script_of(timeline, wanted.script) if wanted.script or {*formats} & {*YARDSTICKS} else None
    for kind in (kind for kind in YARDSTICKS if kind in formats):
        assert script is not None
        yardstick = YARDSTICKS[kind]
        pictures = _stills(timeline, wanted)
        for index, clip in enumerate(timeline.scenes):
            write = (
                partial(_clip, timeline, clip, wanted)
                if yardstick.reads == "clips"
                else partial(_save, pictures, timeline, clip)
            )
            shown = f"{kind}/{yardstick.name(timeline, script, index)}"
            yield _File(kind, shown, write, clip.number, clip.frames if yardstick.reads == "clips" else 1)
        if yardstick.script is not None and wanted.script is None:
            told, data = yardstick.script(timeline, script)
            yield _File(kind, f"{kind}/{told}", partial(_write, partial(as_json, data)))


def _write(text: Callable[[], str], part: Path) -> None:
    part.write_text(text(), "utf-8")


def _film(timeline: Timeline, wanted: Wanted, part: Path) -> None:
    """Write the whole film at a size, with chapters, captions, tags and sound."""
    if wanted.size in (None, (timeline.width, timeline.height)):
        shutil.copyfile(timeline.path, part)
        return
    streams = ["-map", "0:V:0", "-map", "0:a?", "-map", "0:s?", "-c", "copy"]
    streams += ["-map_metadata", "0", "-map_chapters", "0"]
    _run([*_input(timeline), *streams, *_resized(timeline, wanted), "-disposition:s:0", "0", *_MP4], part)
    disable_subtitles(part)
    check_length(part, timeline.frames, timeline.fps)
    add_xmp(part, _xmp(timeline, timeline.title, timeline.scenes))


def _clip(timeline: Timeline, clip: Clip, wanted: Wanted, part: Path) -> None:
    """Write a scene, with its sound."""
    own = wanted.size in (None, (timeline.width, timeline.height))
    begin, half = Fraction(clip.start, timeline.fps), Fraction(1, 2 * timeline.fps)
    # Pictures that are copied begin with the whole one that is not behind this time. Those that are decoded
    # begin with the first that is not before it: half a frame earlier leaves no doubt which one that is.
    inputs = _input(timeline, begin if own else max(begin - half, Fraction(0)))
    pictures = ["-c:v", "copy"] if own else _resized(timeline, wanted)
    streams = ["-map", "0:V:0", *pictures, "-frames:v", str(clip.frames)]
    if reader.has_sound(timeline.path):
        inputs += _input(timeline, begin)
        streams += ["-map", "1:a", *_SOUND, "-t", _seconds(Fraction(clip.frames, timeline.fps))]
    tags = ["-map_metadata", "0", "-map_chapters", "-1", "-metadata", f"title={clip.title}"]
    _run([*inputs, *streams, *tags, *_MP4], part)
    check_length(part, clip.frames, timeline.fps)
    add_xmp(part, _xmp(timeline, clip.title, [clip]))


def _stills(timeline: Timeline, wanted: Wanted) -> Iterator[Image]:
    """Yield a picture of every scene, all in one reading of the film."""
    from PIL import Image

    shares: dict[Still, float] = {"first": 0.0, "middle": 0.5, "last": 1.0}
    share = shares[wanted.still]
    picks = [clip.start + min(clip.frames - 1, int(share * clip.frames)) for clip in timeline.scenes]
    size = timeline.width, timeline.height
    frame, count = 3 * size[0] * size[1], 0
    for data in reader.read_frames(timeline.path, *size):
        for begin in range(0, len(data), frame):
            if count == picks[0]:
                yield _fitted(Image.frombytes("RGB", size, data[begin : begin + frame]), wanted)
                if not picks[1:]:
                    return
                picks.pop(0)
            count += 1


def _fitted(picture: Image, wanted: Wanted) -> Image:
    from PIL import Image, ImageOps

    if wanted.size is None:
        return picture
    lanczos = Image.Resampling.LANCZOS
    if wanted.fit == "pad":
        return ImageOps.pad(picture, wanted.size, lanczos, color=(0, 0, 0))
    if wanted.fit == "crop":
        return ImageOps.fit(picture, wanted.size, lanczos)
    return picture.resize(wanted.size, lanczos)


def _save(pictures: Iterator[Image], timeline: Timeline, clip: Clip, part: Path) -> None:
    """Write the next of some pictures as a PNG that says where it comes from."""
    from PIL.PngImagePlugin import PngInfo

    from storyreel.film.keys import AI_GENERATED

    words = PngInfo()
    words.add_text("Comment", f"Generated by AI ({AI_GENERATED})")
    words.add_itxt("XML:com.adobe.xmp", _xmp(timeline, clip.title, [clip]).decode())
    next(pictures).save(part, "PNG", pnginfo=words)


def _xmp(timeline: Timeline, title: str, clips: Sequence[Clip]) -> bytes:
    """Return the XMP that says of a file that it is generated, and from which prompts."""
    prompts = [" / ".join(clip.caption.splitlines()) for clip in clips]
    return xmp_packet(title, timeline.model, prompts)


def _gif(timeline: Timeline, wanted: Wanted, part: Path) -> None:
    """Write an animated GIF that begins anew at its end.

    Each picture has 256 colours of its own: one palette for all would be made of the whole film in memory,
    and of twelve places. Nothing is dithered, which would move. A GIF's pictures stand for whole hundredths
    of a second; ffmpeg rounds when each begins, so that the film is as long as it was.
    """
    rate = f",fps={MOST_GIF}" if timeline.fps > MOST_GIF else ""
    palette = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=none"
    filters = f"{_filters(timeline, _small(timeline, wanted), '')}{rate},{palette}"
    _run(
        [*_input(timeline), "-an", "-sn", "-filter_complex", f"[0:V:0]{filters}", "-loop", "0", "-f", "gif"],
        part,
    )


def _webp(timeline: Timeline, wanted: Wanted, part: Path) -> None:
    """Write an animated WebP, whose colours are always coded as BT.601 says."""
    filters = _filters(timeline, _small(timeline, wanted), ":out_color_matrix=bt601:out_range=tv")
    _moving(timeline, filters, _encoder(_WEBP, "webp"), "webp", part)


def _avif(timeline: Timeline, wanted: Wanted, part: Path) -> None:
    """Write an animated AVIF."""
    filters = _filters(timeline, _small(timeline, wanted), _BT709)
    _moving(timeline, filters, _encoder(_AV1, "avif"), "avif", part)


def _moving(timeline: Timeline, filters: str, encoder: Sequence[str], kind: str, part: Path) -> None:
    pictures = ["-map", "0:V:0", "-an", "-sn", "-vf", filters, "-pix_fmt", "yuv420p"]
    _run([*_input(timeline), *pictures, *encoder, "-f", kind], part)


def _small(timeline: Timeline, wanted: Wanted) -> Wanted:
    """Return how moving pictures are to be: of the size that is asked for, else not too large for a page."""
    longest = max(timeline.width, timeline.height)
    if wanted.size or longest <= SMALL:
        return wanted
    width, height = (
        max(2, 2 * round(side * SMALL / longest / 2)) for side in (timeline.width, timeline.height)
    )
    return Wanted((width, height), "stretch")


def _resized(timeline: Timeline, wanted: Wanted) -> list[str]:
    """Return the arguments that encode pictures of another size."""
    return ["-vf", f"{_filters(timeline, wanted, _BT709)},setpts=N/{timeline.fps}/TB", *_H264]


def _filters(timeline: Timeline, wanted: Wanted, colours: str) -> str:
    """Return the filters that bring pictures to a size; of Lanczos, since no film is pixel art."""
    width, height = wanted.size or (timeline.width, timeline.height)
    how = {
        "pad": (":force_original_aspect_ratio=decrease", f",pad={width}:{height}:-1:-1:black"),
        "crop": (":force_original_aspect_ratio=increase", f",crop={width}:{height}"),
        "stretch": ("", ""),
    }
    aspect, after = how[wanted.fit]
    return f"scale={width}:{height}{aspect}:{_SCALE}{colours}{after},setsar=1"


def _input(timeline: Timeline, begin: Fraction | None = None) -> list[str]:
    """Return the arguments that read a film, from a time on."""
    seek = [] if begin is None else ["-ss", _seconds(begin)]
    safely = ["-protocol_whitelist", "file,pipe", "-format_whitelist", reader.CONTAINERS]
    return [*safely, *seek, "-i", ffmpeg.local_file(timeline.path)]


def _seconds(time: Fraction) -> str:
    """Return a time as ffmpeg counts it, in whole microseconds, not before it."""
    return f"{math.ceil(time * 1_000_000)}us"


def _encoder(choices: Mapping[str, Sequence[str]], kind: str) -> list[str]:
    """Return the arguments of the first encoder that there is. Raises MissingError."""
    for name, options in choices.items():
        if name in _encoders():
            return ["-c:v", name, *options]
    remedy = f"Leave out {kind}, or let IMAGEIO_FFMPEG_EXE name an ffmpeg that has {' or '.join(choices)}."
    raise MissingError(f"this ffmpeg writes no {kind}", remedy)


@cache
def _encoders() -> frozenset[str]:
    done = subprocess.run([ffmpeg.program(), "-encoders"], capture_output=True, stdin=subprocess.DEVNULL)
    return frozenset(re.findall(r"^ V\S+ +(\S+)", done.stdout.decode(errors="replace"), re.M))


def _run(arguments: Sequence[str], part: Path) -> None:
    """Have ffmpeg write a file. Raises OutputError or StoryreelError."""
    with (
        ffmpeg.temporary_file() as errors,
        ffmpeg.running([*arguments, ffmpeg.local_file(part)], errors, stdin=subprocess.DEVNULL) as process,
    ):
        if code := ffmpeg.finish(process):
            error = ffmpeg.failure(code, errors)
            remedy = "Make room or choose another --to." if isinstance(error, OutputError) else ""
            raise type(error)(error.message, f"{remedy} {AGAIN}".strip())
