"""What every frame of a film shows, in numbers: nothing is decoded."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyreel.film.dissolve import Frame, Part, Plain, film_frames, lead_pictures
from storyreel.story.plan import Plan
from tests.conftest import plan_of

pytestmark = pytest.mark.usefixtures("fake_model")


def film_plan(latents: list[int], transitions: str, *method: str) -> Plan:
    """A plan at 12 frames a second, of scenes of so many latent frames, which are 3 frames each.

    ``transitions`` are those from the second scene on: d is a dissolve, g a shot that goes on, c a cut, f a
    fade, w a dip to white.
    """
    names = {"d": "dissolve", "g": "continue", "c": "cut", "f": "fade", "w": "dip"}
    lines = [
        f"  - {{scene: a, action: {index}x, seconds: {n / 4}, transition: {names[t]}}}"
        for index, (n, t) in enumerate(zip(latents, "d" + transitions, strict=True))
    ]
    text = "render: {model: fake}\nscenes:\n" + "\n".join(lines)
    return plan_of(text, method=method)


def film(plan: Plan) -> list[Frame]:
    return [frame for segment in plan.segments for frame in film_frames(plan, segment)]


def test_a_scene_alone_shows_its_own_pictures() -> None:
    """Behind those of its lead, which is one latent frame: one picture."""
    plan = film_plan([4], "")
    assert film(plan) == [(Part(0, 1 + i, 1.0),) for i in range(12)]


def test_a_cut_is_no_dissolve() -> None:
    plan = film_plan([4, 4], "c")
    assert film(plan) == [(Part(index, 1 + i, 1.0),) for index in (0, 1) for i in range(12)]


def test_where_the_shot_goes_on_the_lead_is_not_shown() -> None:
    """Two latent frames of it are 1 + 3 pictures."""
    plan = film_plan([4, 4], "g", "overlap=2")
    assert film(plan) == [(Part(0, 1 + i, 1.0),) for i in range(12)] + [
        (Part(1, 4 + i, 1.0),) for i in range(12)
    ]


def test_a_dissolve_by_hand() -> None:
    """A sixth of a second, 2 frames, on either side: the one that is not there at the time stands still."""
    plan = film_plan([4, 4], "d")
    first, second = (film_frames(plan, segment) for segment in plan.segments)
    weights = [(i + 0.5) / 4 for i in range(4)]
    assert first[:10] == [(Part(0, 1 + i, 1.0),) for i in range(10)]
    assert first[10:] == [(Part(0, 11 + i, 1 - w), Part(1, 1, w)) for i, w in enumerate(weights[:2])]
    assert second[:2] == [(Part(0, 12, 1 - w), Part(1, 1 + i, w)) for i, w in enumerate(weights[2:])]
    assert second[2:] == [(Part(1, 3 + i, 1.0),) for i in range(10)]


def test_an_editors_crossfade_is_a_second_long() -> None:
    plan = film_plan([8, 8], "d", "blending=crossfade")
    assert [len(frame) for frame in film(plan)] == [1] * 18 + [2] * 12 + [1] * 18


def test_of_strength_0_nothing_dissolves() -> None:
    assert {len(frame) for frame in film(film_plan([4, 4], "d", "strength=0"))} == {1}


def test_a_dissolve_takes_half_of_a_short_scene_at_most() -> None:
    plan = film_plan([8, 1, 8], "dd")
    assert [len(frame) for frame in film_frames(plan, plan.segments[1])] == [2, 1, 2]
    head, _, tail = film_frames(plan, plan.segments[1])
    of = [{part.segment for part in frame if isinstance(part, Part)} for frame in (head, tail)]
    assert of == [{0, 1}, {1, 2}]


@pytest.mark.parametrize(("letter", "grey"), [("f", 0), ("w", 255)])
@pytest.mark.parametrize("blending", ["lead", "published", "none"])
def test_a_fade_by_hand(letter: str, grey: int, blending: str) -> None:
    """Two fifths of a second, 5 frames, on either side; one frame is the colour alone. No picture is held."""
    plan = film_plan([4, 4], letter, f"blending={blending}")
    first, second = (film_frames(plan, segment) for segment in plan.segments)
    assert first[:7] == [(Part(0, 1 + i, 1.0),) for i in range(7)]
    dark = [(Part(0, 8 + i, 1 - (i + 1) / 5), Plain(grey, (i + 1) / 5)) for i in range(4)]
    assert first[7:] == [*dark, (Plain(grey, 1.0),)]
    assert second[:5] == [(Plain(grey, 1 - (i + 1) / 6), Part(1, 1 + i, (i + 1) / 6)) for i in range(5)]
    assert second[5:] == [(Part(1, 6 + i, 1.0),) for i in range(7)]


def test_a_film_may_begin_with_a_fade() -> None:
    text = "render: {model: fake}\nscenes:\n  - {scene: a, seconds: 1, transition: %s}\n"
    faded, plain = plan_of(text % "fade"), plan_of(text % "cut")
    assert [len(frame) for frame in film(faded)] == [2] * 5 + [1] * 7
    assert {frame[0] for frame in film(faded)[:5]} == {Plain(0, 1 - (i + 1) / 6) for i in range(5)}
    assert {len(frame) for frame in film(plain)} == {1}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data(), latents=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_every_frame_shows_pictures_that_there_are(data: st.DataObject, latents: list[int]) -> None:
    """Whatever a story is: each frame of the film once, its weights 1 together, of neighbours only."""
    transitions = data.draw(st.text("dgcfw", min_size=len(latents) - 1, max_size=len(latents) - 1))
    similar = data.draw(st.lists(st.floats(0, 1), min_size=len(latents) - 1, max_size=len(latents) - 1))
    blending = data.draw(st.sampled_from(["lead", "crossfade", "published", "none"]))
    plan = film_plan(latents, transitions, f"blending={blending}").settled(similar)
    for segment in plan.segments:
        frames = film_frames(plan, segment)
        assert len(frames) == segment.frames
        for at, frame in enumerate(frames):
            assert sum(part.weight for part in frame) == pytest.approx(1)
            assert all(part.weight > 0 for part in frame)
            parts = [part for part in frame if isinstance(part, Part)]
            assert [part.segment for part in parts] == sorted({part.segment for part in parts})
            for part in parts:
                shown = plan.segments[part.segment]
                assert 0 <= part.picture < lead_pictures(plan, shown) + shown.frames
            own = [part.picture for part in parts if part.segment == segment.index]
            assert own == [lead_pictures(plan, segment) + at] or len(frame) == 2 or not parts
        ahead = [f for f in frames if isinstance(f[-1], Part) and f[-1].segment > segment.index]
        assert frames[len(frames) - len(ahead) :] == ahead  # they come last, for the next is decoded later
        if segment.index + 1 < len(plan.segments):
            assert bool(ahead) == (plan.seams[segment.index].transition == "dissolve" and segment.frames > 1)
