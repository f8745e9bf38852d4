"""The table of metrics: what it says of itself holds."""

from __future__ import annotations

from dataclasses import fields

import pytest
from pydantic import ValidationError

from storyreel.evaluation.kept import SceneSeen, looks_kept, places_kept
from storyreel.evaluation.metrics import METRICS, SAMPLES, Metric
from storyreel.evaluation.tables import SHARES
from storyreel.evaluation.verdicts import SceneVerdict
from storyreel.evaluation.weights import JUDGE, OWN, WEIGHTS

FACTS = {"name": "x", "title": "x", "unit": "%", "scope": "scene", "source": "x", "sampling": "x"}


def test_every_metric_needs_something_that_there_is() -> None:
    assert {metric.needs for metric in METRICS.values()} == {*WEIGHTS, OWN, JUDGE, None}


def test_what_a_judge_says_of_a_scene_is_a_metric() -> None:
    """Of its verdicts, and of what is kept from scene to scene."""
    scenes = {name for name, metric in METRICS.items() if metric.needs == JUDGE and metric.scope == "scene"}
    look = {"colour": "red", "wear": ""}
    seen = [SceneSeen({"fox": dict(look, colour="")}, {"fox": look}, "park", "", "day", 0)] * 3
    kept = {name for values in (*looks_kept(seen), *places_kept(seen)) for name in values}
    said = {field.name for field in fields(SceneVerdict)} - {"looks_missing"}  # words
    assert scenes == said | {name for name in kept if name.endswith("_kept")}
    assert {name for name in kept if not name.endswith("_kept")} == {"light_same", "arrangement_same"}


def test_the_number_of_pictures_is_the_one_that_is_taken() -> None:
    words = {
        metric.sampling.split(" a scene")[0] for metric in METRICS.values() if "spread" in metric.sampling
    }
    assert words == {f"{SAMPLES} frames", "4 frames"}


def test_a_slip_in_the_table_is_refused() -> None:
    Metric(**FACTS, status="proxy")  # type: ignore[arg-type]
    for slip in ({"status": "proxi"}, {"status": "proxy", "diggits": 2}, {"status": "proxy", "better": "up"}):
        with pytest.raises(ValidationError):
            Metric(**FACTS, **slip)  # type: ignore[arg-type]


def test_what_is_shown_beside_a_metric_is_there_and_rewards_nothing_by_itself() -> None:
    """It has no direction, but for the shares of scenes that are no ruins."""
    beside = {metric.beside for metric in METRICS.values()} - {None}
    assert beside == {"motion", "boundary_of_stills", *SHARES}
    assert {name for name in beside if METRICS[str(name)].better is not None} == {*SHARES}
    assert {name for name, metric in METRICS.items() if metric.beside == "shown"} == {
        "identity",
        "told_apart",
    }


def test_similarity_of_pictures_says_what_a_still_has() -> None:
    alike = {"dino", "subject_consistency", "background_consistency", "features", "flicker", "ssim"}
    alike |= {"boundary_similarity", "shot_similarity"}
    assert {name for name, metric in METRICS.items() if metric.still == 1} == alike
