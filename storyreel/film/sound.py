"""Where every sound of a film stands, how loud it is there, and which captions follow: planned, as pure data.

All times come from the plan's segments: a sound of a scene begins with the first frame of its segment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from storyreel.film.writer import RATE as RATE  # samples a second, of everything that is mixed
from storyreel.story.plan import Plan
from storyreel.story.sounds import Kind, Sound, Soundtrack

# Every sound is brought to the level of its kind, in LUFS, before its volume is added: so a voice lies as far
# above the music whatever the files are like.
LEVELS: dict[Kind, float] = {"speech": -16.0, "scene": -22.0, "music": -22.0}
SHORT_PEAK = -6.0  # dBTP, of sounds that are too short to have a loudness
OWN_PEAK = -1.0  # dBTP that no sound is brought above, before its volume is added
DUCKED = -10.0  # dB: how much softer music is where somebody speaks
DUCK_BEFORE, DUCK_AFTER = 0.3, 0.6  # seconds in which it goes down before speech, and comes back
DUCK_THROUGH = 2.0  # seconds of silence between two speeches in which it does not come back
FILM_FADE = 1.0  # seconds in which music comes and goes
CUT_FADE = 0.1  # seconds in which a scene's sound goes that its scene's end cuts off
SKIP_FADE = 0.02  # seconds in which a sound comes that begins inside of its file
_TRACK = TypeAdapter(Soundtrack)
PRONOUNCED = re.compile(r"\[([^\]]+)\]\(/[^)]*/\)")  # [word](/how it sounds/)


@dataclass(frozen=True)
class Placed:
    """A sound in its film, from its sample ``begin`` up to ``end``; gain in dB, fades in samples."""

    sound: Sound
    begin: int
    end: int
    gain: float
    fade_in: int
    fade_out: int


@dataclass(frozen=True)
class Caption:
    """Words that are spoken, with their seconds in the film."""

    start: float
    end: float
    text: str


def samples(plan: Plan, frames: int | None = None) -> int:
    """Return how many samples go with the first frames of a film; with all of them if none are given."""
    return round((plan.frames if frames is None else frames) * RATE / plan.spec.fps)


def placed(plan: Plan) -> list[Placed]:
    """Return all sounds of a film where they stand, those of scenes in their order."""
    return [_placed(plan, sound) for sound in plan.sound.sounds] if plan.sound else []


def _placed(plan: Plan, sound: Sound) -> Placed:
    first, last = 0, samples(plan)
    if sound.scene is not None:
        segment = plan.segments[sound.scene]
        first, last = samples(plan, segment.start), samples(plan, segment.start + segment.frames)
    begin = first + round(sound.start * RATE)
    whole = last if sound.loop else begin + round((sound.seconds - sound.skip) * RATE)
    end = min(whole, last)
    come = go = sound.fade
    if sound.kind == "music":
        come, go = (FILM_FADE if fade is None else fade for fade in (come, go))
    come = (SKIP_FADE if sound.skip else 0.0) if come is None else come
    go = (CUT_FADE if whole > last else 0.0) if go is None else go
    half = (end - begin) // 2
    return Placed(sound, begin, end, _gain(sound), min(round(come * RATE), half), min(round(go * RATE), half))


def _gain(sound: Sound) -> float:
    """Return what brings a sound to the level of its kind, and its volume, in dB."""
    level = SHORT_PEAK - sound.peak
    if sound.loudness is not None:
        level = LEVELS[sound.kind] - sound.loudness
    return min(level, OWN_PEAK - sound.peak) + sound.volume


def ducking(sounds: Sequence[Placed]) -> tuple[list[float], list[float]]:
    """Return the samples where the gain of music bends, and its dB there; it is straight in between."""
    spoken: list[list[int]] = []
    for part in sorted((p for p in sounds if p.sound.kind == "speech"), key=lambda p: p.begin):
        if spoken and part.begin - spoken[-1][1] < DUCK_THROUGH * RATE:
            spoken[-1][1] = max(spoken[-1][1], part.end)
        else:
            spoken.append([part.begin, part.end])
    at, gain = [0.0], [0.0]
    for begin, end in spoken:
        at += [begin - DUCK_BEFORE * RATE, float(begin), float(end), end + DUCK_AFTER * RATE]
        gain += [0.0, DUCKED, DUCKED, 0.0]
    return at[1:] or at, gain[1:] or gain


def captions(plan: Plan) -> list[Caption]:
    """Return the words that are spoken in a film, as far as they are known, in their order."""
    found = []
    for part in placed(plan):
        begin, end = part.begin / RATE, part.end / RATE
        for line in part.sound.lines:
            text = PRONOUNCED.sub(r"\1", line.text)
            found.append(Caption(begin + line.start, min(begin + line.end, end), text))
    return sorted((cue for cue in found if cue.end > cue.start), key=lambda cue: (cue.start, cue.end))


def track_facts(track: Soundtrack) -> dict[str, Any]:
    """Return what a film's sound is made from, as plain data, without any place on this machine."""
    facts = asdict(track)
    for sound in facts["sounds"]:
        del sound["path"]
    return facts


def recorded_track(facts: Any) -> Soundtrack:
    """Return what `track_facts` has written. Raises pydantic's ValidationError."""
    return _TRACK.validate_python({key: facts[key] for key in ("sounds", "voice")})
