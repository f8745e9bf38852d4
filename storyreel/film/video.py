"""Films: frames to H.264 segments, segments to one MP4. Everything goes through ffmpeg's argv."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from storyreel.errors import MissingError, OutputError, StoryreelError
from storyreel.stopping import deferred

TIMESCALE = 24_000  # ticks per second: whole for every usual frame rate
LINE = 1000  # bytes: ffmpeg breaks longer lines of SubRip itself, in the middle of a character too
READ_AT_ONCE = 4 << 20  # bytes of frames
# What a film may come in. None of these can name another file to be read, as a playlist does.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_INPUT = ["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS]
_FFMPEG_REMEDY = (
    "Reinstall it (pip install --force-reinstall imageio-ffmpeg), or let IMAGEIO_FFMPEG_EXE name one."
)
_RUN_AGAIN = "Run again; finished segments are kept."
# Brightness coded for HDR displays (ITU-R BT.2100), by ffmpeg's names; and the way to what other films have:
# 100 cd/m² become white, what is above is pressed together instead of cut off.
HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
_TO_SDR = "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=mobius:desat=0,"
_TO_SDR += "zscale=t=bt709:m=bt709:r=tv,format=yuv420p,"
AI_GENERATED = "https://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

# The thread count changes x264's bytes, so it is fixed.
_ENCODER = ["-c:v", "libx264", "-preset", "medium", "-crf", "16"]
_ENCODER += ["-pix_fmt", "yuv420p", "-threads", "2", "-bf", "2"]
_COLOUR = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
_EXACT = ["-fflags", "+bitexact", "-video_track_timescale", str(TIMESCALE), "-f", "mp4"]

# Becomes ffmpeg, once SIGKILL (9) is to follow its parent's death (1, PR_SET_PDEATHSIG of Linux's prctl).
_LAUNCHER = """
import ctypes, os, sys
told, parent, *command = sys.argv[1:]
os.set_inheritable(int(told), False)
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(parent):
    try:
        os.execv(command[0], command)
    except OSError as error:
        os.write(int(told), str(error.errno).encode())
"""


@cache
def ffmpeg() -> str:
    """Return the whole path of ffmpeg. Raises MissingError."""
    return _found_ffmpeg()


def _found_ffmpeg() -> str:
    """Return the path of the package's ffmpeg, or of what IMAGEIO_FFMPEG_EXE names.

    A name without a folder is looked for on PATH, which is where the package ends too if it brings none.
    """
    import imageio_ffmpeg

    try:
        named = str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise MissingError(f"ffmpeg is missing: {error}", _FFMPEG_REMEDY) from None
    if (found := shutil.which(named)) is None:
        where = "on PATH" if os.path.basename(named) == named else "there, or no program"
        raise MissingError(f"ffmpeg does not start: {named} is not {where}", _FFMPEG_REMEDY)
    return os.path.abspath(found)


def encoder_version() -> str:
    """Return ffmpeg's version, for keys and manifests. Raises MissingError."""
    program = _found_ffmpeg()
    try:
        done = subprocess.run([program, "-version"], capture_output=True, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise MissingError(f"ffmpeg does not start: {error.strerror}", _FFMPEG_REMEDY) from None
    if (found := re.match(rb"ffmpeg version (\S+)", done.stdout)) is None:
        words = f"{program} is no ffmpeg: it does not say its version (exit code {done.returncode})"
        raise MissingError(words, _FFMPEG_REMEDY)
    return found[1].decode(errors="replace")


def temporary_file() -> IO[bytes]:
    """Open a file without a name. Raises OutputError."""
    try:
        return tempfile.TemporaryFile()
    except OSError as error:  # which names the folders that were tried, if it is about them all
        remedy = "Set TMPDIR to a folder on a disk with room, then run again: finished segments are kept."
        raise OutputError(f"cannot write a temporary file: {error.strerror}", remedy) from None


def _argument(path: Path) -> str:
    """Name a file so that ffmpeg takes it for nothing else: not an option, an address or a pattern."""
    return f"file:{path.resolve()}"


def _start(arguments: Sequence[str], errors: Any, **options: Any) -> subprocess.Popen[bytes]:
    command = [ffmpeg(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments]
    start = _tied if sys.platform == "linux" else subprocess.Popen
    try:
        # A session of its own: Ctrl-C is for storyreel, which then ends ffmpeg itself.
        return start(command, stderr=errors, start_new_session=True, **options)
    except OSError as error:
        raise MissingError(f"ffmpeg does not start: {error.strerror}", _FFMPEG_REMEDY) from None


def _tied(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start what dies with this process, even if that is killed. Raises OSError.

    On its own, an orphaned ffmpeg would see the end of its input and write a valid, shorter film. A
    ``preexec_fn`` could tie it as well, and would make every start copy this process's page tables.
    """
    heard, told = os.pipe()
    with open(heard, "rb") as answer:
        try:
            launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(told), str(os.getpid())]
            process = subprocess.Popen([*launcher, *command], pass_fds=[told], **options)
        finally:
            os.close(told)
        reason = answer.read()  # ends when ffmpeg runs
    if reason:
        with process:  # which waits for it and closes its pipes
            raise OSError(int(reason), os.strerror(int(reason)))
    return process


@contextmanager
def _running(arguments: Sequence[str], errors: Any, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run ffmpeg; whatever happens, it has ended afterwards."""
    process = None
    try:
        with deferred():  # what a signal raised between its start and its name would leave it alone
            process = _start(arguments, errors, **options)
        yield process
    finally:
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError):  # of frames that it no longer takes
                process.__exit__(None, None, None)


def _failed(code: int, errors: Any) -> StoryreelError:
    errors.seek(0)
    words = errors.read().decode(errors="replace").strip()
    last = words.splitlines()[-1] if words else f"exit code {code}"
    if "No space left" in words or "Permission denied" in words or "Read-only" in words:
        return OutputError(
            f"ffmpeg cannot write: {last}", "Make room or choose another --out, then run again."
        )
    return StoryreelError(f"ffmpeg failed: {last}", _RUN_AGAIN)


class SegmentWriter:
    """Encodes one segment as its frames come; after a failure the file is not to be used.

    Frames are ``width`` x ``height``, enlarged ``upscale`` times for watching.
    """

    def __init__(self, path: Path, width: int, height: int, fps: int, upscale: int) -> None:
        self._path, self._fps, self._bytes_per_frame, self._bytes = path, fps, width * height * 3, 0
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
        with ExitStack() as stack:
            self._errors = stack.enter_context(temporary_file())
            self._process = stack.enter_context(
                _running(self._arguments, self._errors, stdin=subprocess.PIPE)
            )
            self._stack = stack.pop_all()
        return self

    def write(self, frames: bytes) -> None:
        """Append frames, rgb24. Raises OutputError or StoryreelError if ffmpeg has died."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frames)
            self._bytes += len(frames)
        except BrokenPipeError:
            raise _failed(self._process.wait(), self._errors) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                if (code := _finish(self._process)) != 0:
                    raise _failed(code, self._errors)
                check_length(self._path, self._bytes // self._bytes_per_frame, self._fps)


def _finish(process: subprocess.Popen[bytes]) -> int:
    """Tell ffmpeg that nothing more comes, wait for it, and return its exit code."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    return process.wait()


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

    The subtitles are off by default. Titles and tags reach ffmpeg only inside files, and subtitles not
    at all. The files lie beside the segments, hidden, since the concat demuxer safely reads only plain
    names; and ffmpeg works in that folder, since to this demuxer a path is an address, in which # and ?
    end the folders' names.
    """
    folder = segments[0].parent
    lines = ["ffconcat version 1.0"]
    for segment, chapter in zip(segments, chapters, strict=True):
        lines += [f"file {segment.name}", f"duration {(chapter.end - chapter.start) / fps:.9f}"]
    texts = {
        "list.txt": "\n".join(lines) + "\n",
        "meta.txt": _metadata(chapters, fps, tags),
        "scenes.srt": _subtitles(chapters, fps),
    }
    helpers = {name: folder / f".join.part.{name}" for name in texts}
    arguments = [
        *["-protocol_whitelist", "file,pipe"],
        *["-f", "concat", "-safe", "1", "-i", f"file:{helpers['list.txt'].name}"],
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
        with (
            temporary_file() as errors,
            _running(arguments, errors, stdin=subprocess.DEVNULL, cwd=folder) as process,
        ):
            if (code := _finish(process)) != 0:
                raise _failed(code, errors)
    finally:
        for helper in helpers.values():
            helper.unlink(missing_ok=True)
    _write_subtitles(path, [_shown(chapter.subtitle) for chapter in chapters])
    check_length(path, sum(chapter.end - chapter.start for chapter in chapters), fps)


def check_length(path: Path, frames: int, fps: int) -> None:
    """Hold what an MP4 says of its length against what it should be. Raises StoryreelError.

    An ffmpeg that was ended early leaves a valid, shorter film. ISO/IEC 14496-12: behind version and
    flags (4 bytes) and two times, mdhd has the time scale and the duration; behind version, flags
    and a size, stsz has the number of samples.
    """
    found: list[tuple[int, float]] = []
    with suppress(ValueError, struct.error), _mapped(path, mmap.ACCESS_READ) as data:
        for track in _tracks(data, b"vide"):
            ((mdhd, _),) = _boxes(data, track, b"mdia", b"mdhd")
            ((stsz, _),) = _boxes(data, track, b"mdia", b"minf", b"stbl", b"stsz")
            form, at = (">IQ", 20) if data[mdhd] else (">II", 12)
            scale, duration = struct.unpack_from(form, data, mdhd + at)
            found.append((*struct.unpack_from(">I", data, stsz + 8), duration / scale))
    if found != [(frames, frames / fps)]:
        words = f"{path.name} has {found} frames and seconds, not {(frames, frames / fps)}"
        raise StoryreelError(f"ffmpeg failed: {words}", _RUN_AGAIN)


def _write_subtitles(path: Path, texts: Sequence[bytes]) -> None:
    """Put the texts in place of `_subtitles`' blanks, and clear the track's enabled flag.

    ffmpeg's muxer sets that on the first track of its kind. ISO/IEC 14496-12: tkhd starts with version
    (1 byte) and flags (3 bytes), of which bit 0 is track_enabled. 3GPP TS 26.245: a sample is the text's
    length (2 bytes) and the text; an empty one fills a gap.
    """
    with _mapped(path, mmap.ACCESS_WRITE) as data:
        for track in _tracks(data, b"sbtl"):
            for tkhd, _ in _boxes(data, track, b"tkhd"):
                data[tkhd + 3] &= 0xFE
            waiting = iter(texts)
            for at, size in _samples(data, track):
                (length,) = struct.unpack_from(">H", data, at)
                if length:
                    text = next(waiting, b"")
                    if data[at + 2 : at + size] != _blank(text):
                        raise StoryreelError(f"ffmpeg failed: {path.name} has other subtitles", _RUN_AGAIN)
                    data[at + 2 : at + size] = text
            if next(waiting, None) is not None:
                raise StoryreelError(f"ffmpeg failed: {path.name} lacks subtitles", _RUN_AGAIN)


def _samples(data: mmap.mmap, track: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield where a track's samples begin, and their sizes.

    ISO/IEC 14496-12: stsc says how many samples the chunks from a number on hold, stco or co64 where the
    chunks begin, stsz how large all samples are, or each. Entries follow version, flags and a count.
    """
    tables = (b"mdia", b"minf", b"stbl")

    def table(name: bytes, form: str) -> list[tuple[int, ...]]:
        for start, _ in _boxes(data, track, *tables, name):
            (count,) = struct.unpack_from(">I", data, start + 4)
            size = struct.calcsize(form)
            return [struct.unpack_from(form, data, start + 8 + size * i) for i in range(count)]
        return []

    ((stsz, _),) = _boxes(data, track, *tables, b"stsz")
    same, count = struct.unpack_from(">II", data, stsz + 4)
    sizes = [same] * count if same else list(struct.unpack_from(f">{count}I", data, stsz + 12))
    runs = table(b"stsc", ">III")
    chunks = table(b"stco", ">I") or table(b"co64", ">Q")
    for (first, held, _), (following, *_) in pairwise([*runs, (len(chunks) + 1,)]):
        for (at,) in chunks[first - 1 : following - 1]:
            for _ in range(held):
                yield at, (size := sizes.pop(0))
                at += size


@contextmanager
def _mapped(path: Path, access: int) -> Iterator[mmap.mmap]:
    mode = "rb+" if access == mmap.ACCESS_WRITE else "rb"
    with path.open(mode) as file, mmap.mmap(file.fileno(), 0, access=access) as data:
        yield data


def _tracks(data: mmap.mmap, kind: bytes) -> Iterator[tuple[int, int]]:
    """Yield the boxes of an MP4's tracks of one kind, which hdlr names behind 8 bytes."""
    for track in _boxes(data, (0, len(data)), b"moov", b"trak"):
        if any(data[h + 8 : h + 12] == kind for h, _ in _boxes(data, track, b"mdia", b"hdlr")):
            yield track


def _boxes(data: mmap.mmap, within: tuple[int, int], *names: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the contents of boxes begin and end, by their names from the outermost in."""
    if not names:
        yield within
        return
    start, end = within
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1:
            (size,), header = struct.unpack_from(">Q", data, start + 8), 16
        if name == names[0]:
            yield from _boxes(data, (start + header, start + size), *names[1:])
        start += max(size, 8)


def _metadata(chapters: Sequence[Chapter], fps: int, tags: dict[str, str]) -> str:
    def escape(text: str) -> str:
        return re.sub(r"([=;#\\\n])", r"\\\1", text)

    lines = [";FFMETADATA1", *(f"{key}={escape(value)}" for key, value in tags.items())]
    for chapter in chapters:
        lines += ["[CHAPTER]", f"TIMEBASE=1/{fps}", f"START={chapter.start}", f"END={chapter.end}"]
        lines.append(f"title={escape(chapter.title)}")
    return "\n".join(lines) + "\n"


def _subtitles(chapters: Sequence[Chapter], fps: int) -> str:
    r"""Return cues in SubRip, each with as many meaningless bytes as its text has.

    ffmpeg would read the texts themselves as markup: <b>, {\an8}, \N for a line's end.
    """

    def clock(frame: int) -> str:
        ms = round(1000 * frame / fps)
        return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d},{ms % 1000:03d}"

    cues = []
    for number, chapter in enumerate(chapters, 1):
        blank = _blank(_shown(chapter.subtitle)).decode()
        cues.append(f"{number}\n{clock(chapter.start)} --> {clock(chapter.end)}\n{blank}\n")
    return "\n".join(cues)


def _blank(text: bytes) -> bytes:
    """Return lines without a meaning, as long as a text altogether."""
    return b"".join(b"\n" if n % LINE == 0 and n < len(text) else b"x" for n in range(1, len(text) + 1))


def _shown(text: str) -> bytes:
    r"""Return a subtitle as it lies in the film: as it is written, for a track of plain text.

    Players that decode it with ffmpeg take \N, \n and \h for blanks all the same; a word joiner, which
    shows nothing, keeps these signs apart. (What stands in braces, some of these players hide.)
    """
    return re.sub(r"(?<=\\)(?=[Nnh])", "\u2060", text).encode()


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
    """Return what a film says of itself. Raises StoryreelError for what is none."""
    words = _described(path)
    # YUV4MPEG2 begins with a line for machines, as in "YUV4MPEG2 W768 H512 F12:1 Ip A1:1". ffmpeg has turned
    # the picture upright by then, and V leaves out pictures of covers.
    picture = ["-map", "0:V:0", "-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "pipe:1"]
    output, said = _asked(["-loglevel", "info", *_INPUT, "-i", _argument(path), *picture], path)
    head = output.partition(b"\n")[0].decode("ascii")
    found = re.match(r"YUV4MPEG2 W(\d+) H(\d+) F(\d+):(\d+) I. (?:A(\d+):(\d+) )?", head)
    if found is None or "0" in found.groups()[:2]:
        raise _no_film(path)
    width, height, frames, seconds, across, down = (int(group or 0) for group in found.groups())
    wide = across / down if across and down else 1.0  # 0:0 is unknown
    fps = frames / seconds if seconds else 0.0
    parts = [
        dict(re.findall(r"^(\w+)=(.*)$", part, re.M))
        for part in re.split(r"(?<!\\)\n\[CHAPTER\]\n", f"\n{words}")[1:]  # not one that a tag says
    ]
    starts = (int(part["START"]) * float(Fraction(part["TIMEBASE"])) for part in parts)
    streams = re.findall(r"^ *Stream #0:.*: Video: (.*)$", said.decode(errors="replace"), re.M)
    film = next((stream for stream in streams if "(attached pic)" not in stream), "")
    hdr = next((name for transfer, name in HDR.items() if transfer in film), "")
    return Facts(max(1, round(width * wide)), height, fps, _tags(words), tuple(starts), hdr)


@dataclass(frozen=True)
class Frames:
    """When every frame of a film is shown, in seconds, and how much it changes.

    ``changes`` are mean absolute differences from the frame before, 0 to 255, of small grey pictures.
    """

    times: tuple[float, ...]
    changes: tuple[float, ...]


def survey(path: Path) -> Frames:
    """Return when a film's frames are shown, by decoding all of it. Raises StoryreelError for no whole film.

    Times count from the file's own beginning, which sound may make earlier than the first frame. They never
    fall: a frame whose time lies before that of the frame before is shown right after it.
    """
    # scdet notes the change in percent; AVTB is a millionth of a second.
    filters = "scale=64:36:flags=area,format=gray,scdet=t=100,settb=AVTB,metadata=mode=print:file=-"
    arguments = ["-xerror", "-err_detect", "explode", *_INPUT, "-i", _argument(path), "-map", "0:V:0"]
    arguments += ["-fps_mode", "passthrough", "-vf", filters, "-f", "null", "-"]
    with temporary_file() as errors, temporary_file() as output:
        with _running(arguments, errors, stdin=subprocess.DEVNULL, stdout=output) as process:
            code = _finish(process)
        output.seek(0)
        words = output.read().decode("ascii", "replace")
        times = [int(ticks) / 1e6 for ticks in re.findall(r"^frame:\d+ +pts:(-?\d+)", words, re.M)]
        changes = [2.55 * float(share) for share in re.findall(r"^lavfi\.scd\.mafd=([\d.]+)", words, re.M)]
        if code or not times or len(times) != len(changes):
            errors.seek(0)
            otherwise = "its frames have no times" if changes else "it has no frames"
            raise _unreadable(path, errors.read(), otherwise)
    return Frames(tuple(accumulate(times, max)), tuple(changes))


def count_frames(path: Path) -> int:
    """Return how many frames a film has, by decoding it. Raises StoryreelError for no whole film."""
    arguments = ["-xerror", "-err_detect", "explode", *_INPUT, "-i", _argument(path), "-map", "0:V:0"]
    arguments += ["-fps_mode", "passthrough", "-f", "null", "-progress", "pipe:1", "-"]
    with temporary_file() as errors, temporary_file() as output:
        with _running(arguments, errors, stdin=subprocess.DEVNULL, stdout=output) as process:
            code = _finish(process)
        output.seek(0)
        counts = re.findall(rb"^frame=\s*(\d+)", output.read(), re.M)
        if code or not counts:
            errors.seek(0)
            raise _unreadable(path, errors.read(), "it has no frames")
    return int(counts[-1])


def _no_film(path: Path) -> StoryreelError:
    return StoryreelError(f"{path} is not a film that ffmpeg can read", "Name an MP4, MOV, MKV, WebM or AVI.")


def _unreadable(path: Path, words: bytes, otherwise: str) -> StoryreelError:
    lines = words.decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else otherwise
    return StoryreelError(f"cannot read the film {path}: {reason}", "Render it again.")


def read_frames(path: Path, width: int, height: int, matrix: str = "bt709", hdr: str = "") -> Iterator[bytes]:
    """Yield a film's frames, rgb24 of ``width`` x ``height``, some whole frames at a time.

    ``matrix`` is the film's colour matrix, ``auto`` what it says itself; of a film whose ``hdr`` is "PQ" or
    "HLG", brightness and colours are brought to what other films have.

    They are scaled by the mean over areas, which takes back `SegmentWriter`'s enlargement. ffmpeg
    ends when the caller stops early. Raises StoryreelError for no film, or one that is damaged.
    """
    frame = width * height * 3
    chunk = max(1, READ_AT_ONCE // frame) * frame
    ranges = f"in_range={'auto' if matrix == 'auto' else 'tv'}:out_range=pc"
    scale = f"scale={width}:{height}:flags=area+accurate_rnd+full_chroma_int+full_chroma_inp"
    arguments = [
        *["-xerror", "-err_detect", "explode", *_INPUT],
        *["-i", _argument(path), "-map", "0:V:0", "-fps_mode", "passthrough"],
        *["-vf", f"{_TO_SDR if hdr else ''}{scale}:in_color_matrix={matrix}:{ranges}"],
        *["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"],
    ]
    with (
        temporary_file() as errors,
        _running(arguments, errors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process,
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
    """Return a film's own tags, as ffmpeg reads them. Raises StoryreelError for no film."""
    return _tags(_described(path))


def _described(path: Path) -> str:
    """Return tags and chapters in ffmpeg's own format."""
    output, _ = _asked([*_INPUT, "-i", _argument(path), "-f", "ffmetadata", "pipe:1"], path)
    return output.decode(errors="replace")


def _asked(arguments: Sequence[str], path: Path) -> tuple[bytes, bytes]:
    """Return ffmpeg's output about a film, and what it says on it. Raises StoryreelError if that is none."""
    with temporary_file() as errors, temporary_file() as output:
        with _running(arguments, errors, stdin=subprocess.DEVNULL, stdout=output) as process:
            code = _finish(process)
        if code:
            raise _no_film(path)
        output.seek(0)
        errors.seek(0)
        return output.read(), errors.read()


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
