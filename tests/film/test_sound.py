"""Where sounds stand in a film: planned from its segments, without a sound being made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from storyreel.film.sound import (
    CUT_FADE,
    DUCKED,
    FILM_FADE,
    LEVELS,
    RATE,
    SKIP_FADE,
    captions,
    ducking,
    placed,
    recorded_track,
    samples,
    track_facts,
)
from storyreel.story.plan import Plan
from storyreel.story.sounds import Line, Sound, Soundtrack, Voice
from tests.conftest import plan_of

SCENES = "scenes:\n" + "  - {scene: a park, action: a fox sits, seconds: 2}\n" * 4
A = Sound("scene", 1, "a.wav", "0", seconds=1.5, loudness=-30.0, peak=-12.0)
MUSIC = replace(A, kind="music", scene=None, seconds=60.0)
SPEECH = replace(A, kind="speech", lines=(Line("Hello.", 0.1, 0.5), Line("[Oz](/ˈɑz/)!", 0.6, 1.5)))


def plan(*sounds: Sound) -> Plan:
    """Eight seconds in four scenes of two."""
    return replace(plan_of(SCENES), sound=Soundtrack(sounds))


def test_a_sound_begins_with_the_first_frame_of_its_scene() -> None:
    made = plan(*(replace(A, scene=scene) for scene in range(4)), replace(A, start=0.25))
    begins = [part.begin for part in placed(made)]
    assert begins == [2 * RATE * scene for scene in range(4)] + [round(2.25 * RATE)]
    assert [part.end - part.begin for part in placed(made)] == [round(1.5 * RATE)] * 5
    later = replace(made, segments=tuple(replace(s, start=s.start + 5) for s in made.segments))
    assert [part.begin - before for part, before in zip(placed(later), begins, strict=True)] == [20_000] * 5


@pytest.mark.parametrize("fps", [8, 12, 16, 24, 30])
def test_frames_are_whole_samples(fps: int) -> None:
    made = plan(A)
    made = replace(made, spec=replace(made.spec, fps=fps))
    assert samples(made, 7 * fps) == 7 * RATE
    assert samples(made, 1) * fps == RATE


def test_a_scenes_sound_ends_with_its_scene_and_fades_where_it_is_cut() -> None:
    whole, cut, inside, asked = placed(
        plan(A, replace(A, seconds=9.0), replace(A, skip=1.0), replace(A, fade=0.5))
    )
    assert (whole.fade_in, whole.fade_out) == (0, 0)  # what begins with a stroke keeps it
    assert (cut.end, cut.fade_in, cut.fade_out) == (4 * RATE, 0, round(CUT_FADE * RATE))
    assert (inside.end - inside.begin, inside.fade_in) == (RATE // 2, round(SKIP_FADE * RATE))
    assert (asked.fade_in, asked.fade_out) == (RATE // 2, RATE // 2)
    (short,) = placed(plan(replace(A, fade=5.0)))
    assert short.fade_in + short.fade_out <= short.end - short.begin


def test_music_fades_at_the_films_ends() -> None:
    long, short, again, late = (
        placed(plan(sound))[0]
        for sound in (
            MUSIC,
            replace(MUSIC, seconds=3.0),
            replace(MUSIC, seconds=3.0, loop=True),
            replace(MUSIC, start=1.0, skip=2.0, fade=0.0),
        )
    )
    assert (long.begin, long.end) == (0, 8 * RATE) == (again.begin, again.end)
    assert long.fade_in == long.fade_out == round(FILM_FADE * RATE)
    assert (short.begin, short.end) == (0, 3 * RATE)
    assert (late.begin, late.end, late.fade_in, late.fade_out) == (RATE, 8 * RATE, 0, 0)


def test_every_sound_is_brought_to_the_level_of_its_kind() -> None:
    def gain(**changed: object) -> float:
        return placed(plan(replace(A, **changed)))[0].gain  # type: ignore[arg-type]

    assert gain() == LEVELS["scene"] + 30
    assert gain(volume=-5.0) == LEVELS["scene"] + 25
    assert gain(peak=-3.0) == 2  # no peak above -1 dBTP
    assert gain(loudness=None) == 6  # a click has no loudness: its peak comes to -6
    assert placed(plan(SPEECH))[0].gain == 11
    assert placed(plan(SPEECH, MUSIC))[1].gain < placed(plan(SPEECH))[0].gain


def test_music_gives_way_to_speech() -> None:
    near = replace(SPEECH, scene=2, seconds=1.0)
    course = ducking(placed(plan(MUSIC, SPEECH, near)))
    seconds = [1.0, 1.7, 2.0, 3.0, 3.7, 4.5, 5.0, 5.3, 5.6, 7.0]
    gains = np.interp([second * RATE for second in seconds], *course)
    assert gains == pytest.approx([0, 0, DUCKED, DUCKED, DUCKED, DUCKED, DUCKED, DUCKED / 2, 0, 0])
    assert np.interp([0.0, 99.0], *ducking(placed(plan(MUSIC, A)))) == pytest.approx([0, 0])
    assert np.interp([0.0], *ducking(placed(plan(replace(SPEECH, scene=0))))) == pytest.approx([DUCKED])


def test_captions_follow_the_speech() -> None:
    found = captions(plan(replace(SPEECH, start=0.25, scene=3), SPEECH, A))
    assert [(cue.start, cue.end, cue.text) for cue in found] == [
        (2.1, 2.5, "Hello."),
        (2.6, 3.5, "Oz!"),
        (6.35, 6.75, "Hello."),
        (6.85, 7.75, "Oz!"),
    ]


def test_what_is_recorded_is_read_back_and_names_no_place_of_this_machine() -> None:
    track = Soundtrack((MUSIC, replace(SPEECH, text="Hello.", path=None)), Voice("fake", "1", "heart", 1.0))
    assert recorded_track(track_facts(track)) == track
    assert "path" not in str(track_facts(track))
