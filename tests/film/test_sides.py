"""How far the two sides of a seam are apart: measured where both are decoded, and kept with the film."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from storyreel.evaluation.films import looked_at, rendered_film
from storyreel.evaluation.metrics import METRICS
from storyreel.film.sides import MeasuringStream
from storyreel.models.specs import ModelSpec
from storyreel.story.plan import Plan
from tests.conftest import FakeAdapter, FakeDecoder, FakeEngine
from tests.film.test_decode import FakeWriter, film_plan, latents, placed
from tests.test_rendering import SCENES, make, story


@pytest.fixture(autouse=True)
def plain_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storyreel.film.writer.SegmentWriter", FakeWriter)


def measured(plan: Plan, path: Path, of: list[Tensor] | None = None) -> dict[int, float]:
    path.mkdir()
    everything = range(len(plan.segments))
    stream = MeasuringStream(plan, FakeAdapter(plan.spec), everything, placed(path), lambda *_: None)
    with stream:
        for segment in plan.segments:
            stream.push(segment, of[segment.index] if of else latents(segment))
        stream.finish()
    return stream.apart


def greys(plan: Plan) -> list[Tensor]:
    """What every segment's latents are decoded to, its lead first."""
    return [FakeDecoder(plan.spec).push(latents(s))[:, 0, 0, 0].int() for s in plan.segments]


@pytest.mark.parametrize("overlap", [1, 2, 4])
def test_where_the_shot_goes_on_both_sides_show_its_last_moment(
    fake_model: ModelSpec, tmp_path: Path, overlap: int
) -> None:
    plan = film_plan("g", method=(f"overlap={overlap}",))
    (seam,) = plan.seams
    assert (seam.transition, seam.overlap) == ("continue", overlap)
    first, second = greys(plan)
    own = plan.segments[1].frames
    expected = abs(int(first[-1] - second[-own - 1]))
    assert expected > 10
    assert expected != abs(int(first[-1] - second[-own]))
    assert measured(plan, tmp_path / "film") == {1: expected}


def test_one_shot_has_no_two_sides(fake_model: ModelSpec, tmp_path: Path) -> None:
    """Where the later segment's lead is the earlier one's end, nothing is apart, whatever follows."""
    plan = film_plan("g", method=("overlap=3",))
    first, second = (latents(s).clone() for s in plan.segments)
    second[:, :, :3] = first[:, :, -3:]  # the fake codec looks two frames back
    assert measured(plan, tmp_path / "film", [first, second]) == {1: 0}


@pytest.mark.parametrize("blending", ["lead", "none", "crossfade", "published"])
def test_without_an_overlap_the_last_picture_meets_the_first(
    fake_model: ModelSpec, tmp_path: Path, blending: str
) -> None:
    """The same of a dissolve and of baselines, whose segments know nothing of each other."""
    plan = film_plan("b", method=(f"blending={blending}",))
    assert plan.seams[0].overlap == 0
    first, second = greys(plan)
    expected = abs(int(first[-1] - second[-plan.segments[1].frames]))
    assert expected > 10
    assert measured(plan, tmp_path / "film") == {1: expected}


@pytest.mark.parametrize("blending", ["lead", "none"])
def test_a_cut_that_the_story_wants_has_none(fake_model: ModelSpec, tmp_path: Path, blending: str) -> None:
    plan = film_plan("cb", method=(f"blending={blending}",))
    assert list(measured(plan, tmp_path / "cut")) == [2]


def test_what_was_not_decoded_one_after_the_other_has_none(fake_model: ModelSpec, tmp_path: Path) -> None:
    plan = film_plan("gg")
    stream = MeasuringStream(plan, FakeAdapter(plan.spec), (), placed(tmp_path), lambda *_: None)
    with stream:
        for segment in (plan.segments[0], plan.segments[2]):
            stream.push(segment, latents(segment))
        stream.finish()
    assert stream.apart == {}


def sides(out: Path) -> list[float | None]:
    manifest = json.loads((out / "foxes" / "manifest.json").read_text())
    first, *others = [segment["decided"]["seam"] for segment in manifest["segments"]]
    assert first is None
    return [seam["sides"] for seam in others]


def test_a_render_records_them_and_a_film_is_scored_with_them(tmp_path: Path, fake_model: ModelSpec) -> None:
    make(tmp_path, story(cut=2))
    found = sides(tmp_path)
    assert [apart is None for apart in found] == [False, True, False, False, False]
    assert make(tmp_path, story(cut=2))[0].rendered == 0
    assert sides(tmp_path) == found
    film = rendered_film("out", "foxes", "foxes", tmp_path / "foxes")
    assert [span.sides for span in looked_at(film, 12).spans] == [None, *found]
    assert {METRICS[name].better for name in ("sides", "sides_same_place")} == {"lower"}


def test_of_another_film_they_say_nothing(tmp_path: Path, fake_model: ModelSpec) -> None:
    """Hard joins: of a changed scene's neighbours no video is made again, but its sides are compared anew."""
    without: dict[str, Any] = {"without": frozenset({"twb"})}
    make(tmp_path, **without)
    before = sides(tmp_path)
    assert None not in before, before
    changed = [*SCENES[:2], ("an attic", "it barks"), *SCENES[3:]]
    assert make(tmp_path, story(changed), **without)[0].rendered == 1
    after = sides(tmp_path)
    assert (after[0], after[3:]) == (before[0], before[3:])
    assert (after[1] == before[1], after[2] == before[2]) == (False, False)


def test_a_render_that_was_stopped_records_them_all_the_same(tmp_path: Path, fake_model: ModelSpec) -> None:
    make(tmp_path / "whole")
    engine = FakeEngine()

    def interrupt(count: int) -> None:
        if count == 12:
            raise KeyboardInterrupt

    engine.adapter(fake_model).on_predict = interrupt
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "stopped", engine=engine)
    make(tmp_path / "stopped")
    assert sides(tmp_path / "stopped") == sides(tmp_path / "whole")


def test_of_a_file_that_was_changed_nothing_is_known(
    tmp_path: Path, fake_model: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A film that somebody joined anew is not the one that was measured."""
    make(tmp_path)
    film = tmp_path / "foxes" / "foxes.mp4"
    film.write_bytes(film.read_bytes() + b" ")
    from storyreel.film import reader

    times = tuple(i / 12 for i in range(36))
    monkeypatch.setattr(reader, "survey", lambda path: reader.Frames(times, (5.0,) * 36))
    found = rendered_film("out", "foxes", "foxes", tmp_path / "foxes")
    assert [span.sides for span in found.spans] == [None] * 6
