"""Sound through ffmpeg: what may be read, how it is decoded, and how long and how loud it is (EBU R128)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from storyreel.film import ffmpeg
from storyreel.film.sound import RATE

# What a sound may come in, by ffmpeg's names. None of these can name another file to be read.
CONTAINERS = "wav,w64,flac,mp3,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,ogg,aiff,caf,aac,asf,au,ac3,eac3,amr"
STEREO = f"aresample={RATE},aformat=sample_fmts=flt:channel_layouts=stereo"
SILENT = -70.0  # LUFS or dBTP: what is softer is not there
_BLOCK = 0.4  # seconds that a loudness is measured in


class NoSoundError(Exception):
    """A file is not sound that ffmpeg can read; says why."""


@dataclass(frozen=True)
class Measured:
    """How many seconds of sound there are, how loud in LUFS, and the true peak in dBTP.

    Loudness is None of what is shorter than 0.4 seconds, or too soft to have one.
    """

    seconds: float
    loudness: float | None
    peak: float


def of_file(path: Path) -> list[str]:
    """Return the arguments that have ffmpeg read a file of sound, or of a film."""
    safely = ["-protocol_whitelist", "file,pipe", "-format_whitelist", CONTAINERS]
    return [*safely, "-vn", "-sn", "-dn", "-i", ffmpeg.local_file(path)]


def of_mix(path: Path) -> list[str]:
    """Return the arguments that have ffmpeg read raw samples, fp32 of two channels."""
    return ["-f", "f32le", "-ar", str(RATE), "-ch_layout", "stereo", "-i", ffmpeg.local_file(path)]


def measure(source: Sequence[str], filters: str = "anull", most: float | None = None) -> Measured:
    """Decode all of a source, or the ``most`` seconds of it, and measure it behind some filters.

    Raises NoSoundError for what cannot be read to its end.
    """
    limit = [] if most is None else ["-t", f"{most:g}"]
    arguments = [
        *[
            "-loglevel",
            "info",
            "-nostats",
            "-progress",
            "pipe:1",
            "-xerror",
            *source,
            "-map",
            "0:a:0",
            *limit,
        ],
        *["-af", f"{STEREO},{filters},ebur128=peak=true:framelog=quiet", "-f", "null", "-"],
    ]
    with ffmpeg.temporary_file() as errors, ffmpeg.temporary_file() as output:
        with ffmpeg.running(arguments, errors, stdin=subprocess.DEVNULL, stdout=output) as process:
            code = ffmpeg.finish(process)
        output.seek(0)
        errors.seek(0)
        progress, messages = output.read().decode(), errors.read().decode(errors="replace")
    if "matches no streams" in messages:
        raise NoSoundError("has no sound in it")
    times = re.findall(r"^out_time_us=(\d+)$", progress, re.M)
    found = re.findall(r"^\s+(I|Peak):\s+(\S+) (?:LUFS|dBFS)$", messages, re.M)
    seconds = int(times[-1]) / 1e6 if times else 0.0
    if code and seconds:
        raise NoSoundError(f"is damaged after {seconds:.1f} seconds; save it anew, as WAV or FLAC")
    if code or len(found) != 2:
        raise NoSoundError("is no sound that ffmpeg can read; name a WAV, FLAC or MP3 that plays elsewhere")
    loudness, peak = (float(value) for _, value in found)
    known = seconds >= _BLOCK and loudness > SILENT
    return Measured(seconds, loudness if known else None, peak)
