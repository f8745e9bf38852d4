"""Films that the world draws itself: scenes go on where the place stays, or each is apart."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

import numpy as np
import pytest

from storyreel.errors import UsageError
from storyreel.mini.true_films import lessons_of, main, shares, true_film, verdict_on
from storyreel.mini.world import DOOR_ACTIONS
from storyreel.story.plan import Plan
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import load_story, parse_story

STORIES = Path(__file__).parents[2] / "stories"


def plan_of(name: str) -> Plan:
    return make_plan(load_story(STORIES / f"{name}.yaml"), name, Overrides())


def across(scenes: list[np.ndarray]) -> list[float]:
    """How far the pictures on both sides of each seam are apart, of 255."""
    return [float(np.abs(one[-1].astype(int) - other[0]).mean()) for one, other in itertools.pairwise(scenes)]


@pytest.mark.parametrize("name", ["nyc_human", "dc_fox"])
def test_scenes_go_on_where_the_place_stays_and_nowhere_if_each_is_apart(name: str) -> None:
    plan = plan_of(name)
    kept, apart = (list(true_film(plan, Random(5), each)) for each in (False, True))
    assert [len(scene) for scene in kept] == [segment.frames for segment in plan.segments]
    goes_on = [plan.goes_on(segment) for segment in plan.segments[1:]]
    doors = [lesson.shows in DOOR_ACTIONS for lesson, _ in lessons_of(plan.segments)][1:]  # may come in
    for near, far, on, door in zip(across(kept), across(apart), goes_on, doors, strict=True):
        assert not on or door or near < min(far, 12)


def test_what_a_film_keeps_is_seen_and_what_it_does_not_is_missed() -> None:
    plan = plan_of("dc")
    kept, apart = (shares(verdict_on(plan, 1, each)) for each in (False, True))
    assert kept["look_kept"] > 90 > 60 > apart["look_kept"]
    assert kept["light_kept"] > 90 > 60 > apart["light_kept"]
    assert kept["characters"] > 90
    assert apart["characters"] > 90
    assert kept["jump"] < 1.5 < apart["jump"]


def test_a_story_of_other_scenes_has_no_true_film() -> None:
    story = parse_story("mine.yaml", b'scenes:\n  - ["a park", "a fox sits"]\n')
    with pytest.raises(UsageError, match="no shipped story has 'a park / a fox sits'"):
        list(true_film(make_plan(story, "mine", Overrides()), Random(0)))


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["true_films", str(STORIES / "nyc.yaml"), "--seeds", "1"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kept", "apart"]
    assert lines[1].split()[0] == "characters"
    monkeypatch.setattr("sys.argv", ["true_films", "nowhere.yaml"])
    with pytest.raises(SystemExit, match="nowhere"):
        main()
