"""Reads films, ours and others': what they say of themselves, and their frames. No film depends on it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

from storyreel.errors import StoryreelError
from storyreel.film.ffmpeg import finish, local_file, running, temporary_file

READ_AT_ONCE = 4 << 20  # bytes of frames
# What a film may come in. None of these can name another file to be read, as a playlist does.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_INPUT = ["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS]
# Brightness coded for HDR displays (ITU-R BT.2100), by ffmpeg's names; and the way to what other films have:
# 100 cd/m² become white, what is above is pressed together instead of cut off.
HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
_TO_SDR = "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=mobius:desat=0,"
_TO_SDR += "zscale=t=bt709:m=bt709:r=tv,format=yuv420p,"


@dataclass(frozen=True)
class Facts:
    """What a film says of itself: its size, frames a second, its tags and its chapters' starts in seconds.

    The size is that of a player's window: upright, in square pixels. ``fps`` is 0 where nothing is said.
    ``hdr`` is "PQ" or "HLG" where brightness is coded for such a display, else "".
    """

    width: int
    height: int
    fps: float
    tags: dict[str, str]
    chapters: tuple[float, ...]
    hdr: str = ""


def probe(path: Path) -> Facts:
    """Return what a film says of itself. Raises StoryreelError for any other file."""
    words = _metadata(path)
    # YUV4MPEG2 begins with a line for machines, as in "YUV4MPEG2 W768 H512 F12:1 Ip A1:1". ffmpeg has turned
    # the picture upright by then, and V leaves out pictures of covers.
    picture = ["-map", "0:V:0", "-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "pipe:1"]
    code, output, messages = _run(["-loglevel", "info", *_INPUT, "-i", local_file(path), *picture])
    head = output.partition(b"\n")[0].decode("ascii", "replace")
    found = re.match(r"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+) I. (?:A(\d+):(\d+) )?", head)
    if code or found is None or "0" in found.groups()[:2]:
        raise _not_a_film(path)
    width, height, frames, seconds, across, down = (int(group or 0) for group in found.groups())
    wide = across / down if across and down else 1.0  # 0:0 is unknown
    fps = frames / seconds if seconds else 0.0
    parts = [
        dict(re.findall(r"^(\w+)=(.*)$", part, re.M))
        for part in re.split(r"(?<!\\)\n\[CHAPTER\]\n", f"\n{words}")[1:]  # not one that a tag says
    ]
    starts = (int(part["START"]) * float(Fraction(part["TIMEBASE"])) for part in parts)
    streams = re.findall(r"^ *Stream #0:.*: Video: (.*)$", messages.decode(errors="replace"), re.M)
    film = next((stream for stream in streams if "(attached pic)" not in stream), "")
    hdr = next((name for transfer, name in HDR.items() if transfer in film), "")
    return Facts(max(1, round(width * wide)), height, fps, _tags(words), tuple(starts), hdr)


def has_sound(path: Path) -> bool:
    """Tell whether a film has a sound track. Raises StoryreelError for any other file."""
    code, _, messages = _run(
        ["-loglevel", "info", *_INPUT, "-i", local_file(path), "-f", "ffmetadata", "pipe:1"]
    )
    if code:
        raise _not_a_film(path)
    return re.search(r"^ *Stream #0:.*: Audio: ", messages.decode(errors="replace"), re.M) is not None


@dataclass(frozen=True)
class Frames:
    """When every frame of a film is shown, in seconds, and how much it changes.

    ``changes`` are mean absolute differences from the frame before, 0 to 255, of small grey pictures.
    """

    times: tuple[float, ...]
    changes: tuple[float, ...]


def survey(path: Path) -> Frames:
    """Return when a film's frames are shown, by decoding all of it. Raises StoryreelError if it is damaged.

    Times count from the file's own beginning, which sound may make earlier than the first frame. They never
    fall: a frame whose time lies before that of the frame before is shown right after it.
    """
    # scdet notes the change in percent; AVTB is a millionth of a second.
    filters = "scale=64:36:flags=area,format=gray,scdet=t=100,settb=AVTB,metadata=mode=print:file=-"
    code, output, messages = _run([*_decoded(path), "-vf", filters, "-f", "null", "-"])
    words = output.decode("ascii", "replace")
    times = [int(ticks) / 1e6 for ticks in re.findall(r"^frame:\d+ +pts:(-?\d+)", words, re.M)]
    changes = [2.55 * float(share) for share in re.findall(r"^lavfi\.scd\.mafd=([\d.]+)", words, re.M)]
    if code or not times or len(times) != len(changes):
        raise _unreadable(path, messages, "its frames have no times" if changes else "it has no frames")
    return Frames(tuple(accumulate(times, max)), tuple(changes))


def count_frames(path: Path) -> int:
    """Return how many frames a film has, by decoding it. Raises StoryreelError if it is damaged."""
    code, output, messages = _run([*_decoded(path), "-f", "null", "-progress", "pipe:1", "-"])
    counts = re.findall(rb"^frame=\s*(\d+)", output, re.M)
    if code or not counts:
        raise _unreadable(path, messages, "it has no frames")
    return int(counts[-1])


def _not_a_film(path: Path) -> StoryreelError:
    return StoryreelError(f"{path} is not a film that ffmpeg can read", "Name an MP4, MOV, MKV, WebM or AVI.")


def _unreadable(path: Path, words: bytes, otherwise: str) -> StoryreelError:
    lines = words.decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else otherwise
    return StoryreelError(f"cannot read the film {path}: {reason}", "Render it again.")


def read_frames(path: Path, width: int, height: int, matrix: str = "bt709", hdr: str = "") -> Iterator[bytes]:
    """Yield a film's frames, rgb24 of ``width`` x ``height``, some whole frames at a time.

    ``matrix`` is the film's colour matrix, ``auto`` what it says itself; of a film whose ``hdr`` is "PQ" or
    "HLG", brightness and colours are brought to what other films have.

    They are scaled by the mean over areas, which undoes `SegmentWriter`'s enlargement. ffmpeg ends when the
    caller stops early. Raises StoryreelError for a file that is not a film, or is damaged.
    """
    frame = width * height * 3
    chunk = max(1, READ_AT_ONCE // frame) * frame
    ranges = f"in_range={'auto' if matrix == 'auto' else 'tv'}:out_range=pc"
    scale = f"scale={width}:{height}:flags=area+accurate_rnd+full_chroma_int+full_chroma_inp"
    arguments = [
        *_decoded(path),
        *["-vf", f"{_TO_SDR if hdr else ''}{scale}:in_color_matrix={matrix}:{ranges}"],
        *["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"],
    ]
    with (
        temporary_file() as errors,
        running(arguments, errors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        whole = True
        while whole and (frames := process.stdout.read(chunk)):
            whole = len(frames) % frame == 0
            if whole:
                yield frames
        if process.wait() or not whole:
            errors.seek(0)
            words = errors.read()
            if hdr and b"No such filter" in words:
                remedy = "Name one that has the filters zscale and tonemap, in IMAGEIO_FFMPEG_EXE."
                raise StoryreelError(f"{path} is HDR ({hdr}), which this ffmpeg cannot map to SDR", remedy)
            raise _unreadable(path, words, "it ends inside a frame")


def read_tags(path: Path) -> dict[str, str]:
    """Return a film's own tags, as ffmpeg reads them. Raises StoryreelError for any other file."""
    return _tags(_metadata(path))


def _metadata(path: Path) -> str:
    """Return tags and chapters in ffmpeg's own format. Raises StoryreelError for any other file."""
    code, output, _ = _run([*_INPUT, "-i", local_file(path), "-f", "ffmetadata", "pipe:1"])
    if code:
        raise _not_a_film(path)
    return output.decode(errors="replace")


def _decoded(path: Path) -> list[str]:
    """Return the arguments that decode every frame of a film, and end at the first damage."""
    strictly = ["-xerror", "-err_detect", "explode", *_INPUT]
    return [*strictly, "-i", local_file(path), "-map", "0:V:0", "-fps_mode", "passthrough"]


def _run(arguments: Sequence[str]) -> tuple[int, bytes, bytes]:
    """Return ffmpeg's exit code, its output and its messages."""
    with temporary_file() as errors, temporary_file() as output:
        with running(arguments, errors, stdin=subprocess.DEVNULL, stdout=output) as process:
            code = finish(process)
        output.seek(0)
        errors.seek(0)
        return code, output.read(), errors.read()


def _tags(words: str) -> dict[str, str]:
    tags: dict[str, str] = {}
    text = re.sub(r"\\(.)", lambda m: "\0" + m[1] if m[1] != "\n" else "\0n", words, flags=re.S)
    for line in text.splitlines():
        if line.startswith("["):
            break
        key, mark, value = line.partition("=")
        if mark:
            tags[key] = value.replace("\0n", "\n").replace("\0", "")
    return tags
