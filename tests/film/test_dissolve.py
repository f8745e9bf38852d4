"""What every frame of a film shows, in numbers: nothing is decoded."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyreel.film.dissolve import Frame, Part, film_frames, lead_pictures
from storyreel.story.plan import Plan
from tests.conftest import plan_of

pytestmark = pytest.mark.usefixtures("fake_model")


def film_plan(latents: list[int], transitions: str, overlap: int = 2) -> Plan:
    """A plan at 12 frames a second, of scenes of so many latent frames, which are 3 frames each.

    ``transitions`` are those from the second scene on: b for a blend and c for a cut.
    """
    lines = [
        f"  - {{scene: a, action: b, seconds: {n / 4}, transition: {'cut' if t == 'c' else 'blend'}}}"
        for n, t in zip(latents, "b" + transitions, strict=True)
    ]
    text = "render: {model: fake}\nscenes:\n" + "\n".join(lines)
    return plan_of(text, method=(f"overlap={overlap}",))


def film(plan: Plan) -> list[Frame]:
    return [frame for segment in plan.segments for frame in film_frames(plan, segment)]


def test_a_scene_alone_shows_its_own_pictures() -> None:
    """Behind those of its lead, which is one latent frame: one picture."""
    plan = film_plan([4], "")
    assert film(plan) == [(Part(0, 1 + i, 1.0),) for i in range(12)]


def test_a_cut_is_no_dissolve() -> None:
    plan = film_plan([4, 4], "c")
    assert film(plan) == [(Part(index, 1 + i, 1.0),) for index in (0, 1) for i in range(12)]


def test_a_dissolve_by_hand() -> None:
    """An overlap of one latent frame is one picture, and a third of a second, 4 frames, on either side."""
    plan = film_plan([4, 4], "b", overlap=1)
    first, second = (film_frames(plan, segment) for segment in plan.segments)
    weights = [(i + 0.5) / 9 for i in range(9)]
    # The earlier scene ends with picture 12 and stands still then; the later one stands still at its first.
    assert first[:7] == [(Part(0, 1 + i, 1.0),) for i in range(7)]
    assert first[7:] == [(Part(0, 8 + i, 1 - w), Part(1, 0, w)) for i, w in enumerate(weights[:5])]
    assert second[:4] == [(Part(0, 12, 1 - w), Part(1, 1 + i, w)) for i, w in enumerate(weights[5:])]
    assert second[4:] == [(Part(1, 5 + i, 1.0),) for i in range(8)]


def test_a_longer_overlap_moves_on_both_sides() -> None:
    """Three latent frames are 7 pictures: the later scene's lead is shown while it moves."""
    plan = film_plan([8, 8], "b", overlap=3)
    mixed = [frame for frame in film(plan) if len(frame) == 2]
    assert [frame[1].picture for frame in mixed] == [0, 0, 0, 0, *range(11)]
    assert [frame[0].picture for frame in mixed] == [*range(14, 25), 24, 24, 24, 24]


def test_a_dissolve_takes_half_of_a_short_scene_at_most() -> None:
    plan = film_plan([8, 1, 8], "bb", overlap=1)
    assert [len(frame) for frame in film_frames(plan, plan.segments[1])] == [2, 1, 2]
    head, _, tail = film_frames(plan, plan.segments[1])
    assert ({part.segment for part in head}, {part.segment for part in tail}) == ({0, 1}, {1, 2})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data(), latents=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_every_frame_shows_pictures_that_there_are(data: st.DataObject, latents: list[int]) -> None:
    """Whatever a story is: each frame of the film once, its weights 1 together, of neighbours only."""
    transitions = data.draw(st.text("bc", min_size=len(latents) - 1, max_size=len(latents) - 1))
    similar = data.draw(st.lists(st.floats(0, 1), min_size=len(latents) - 1, max_size=len(latents) - 1))
    plan = film_plan(latents, transitions, overlap=1).settled(similar)
    for segment in plan.segments:
        frames = film_frames(plan, segment)
        assert len(frames) == segment.frames
        for at, frame in enumerate(frames):
            assert sum(part.weight for part in frame) == pytest.approx(1)
            assert all(part.weight > 0 for part in frame)
            assert [part.segment for part in frame] == sorted({part.segment for part in frame})
            for part in frame:
                shown = plan.segments[part.segment]
                assert 0 <= part.picture < lead_pictures(plan, shown) + shown.frames
            own = [part.picture for part in frame if part.segment == segment.index]
            assert own == [lead_pictures(plan, segment) + at] or len(frame) == 2
        ahead = [frame for frame in frames if frame[-1].segment > segment.index]
        assert frames[len(frames) - len(ahead) :] == ahead  # they come last, for the next is decoded later
        if segment.index + 1 < len(plan.segments) and not plan.segments[segment.index + 1].blended:
            assert not ahead
