"""The evaluation asks the right questions, counts right, and keeps what it found."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from storyreel.mini import evaluate
from storyreel.mini.evaluate import (
    Result,
    Studio,
    Trial,
    alone_trials,
    drawn_looks,
    judged,
    likelihood,
    open_trials,
    pair_example,
    random_trials,
    rising_scores,
    shares,
    story_trials,
    worst_sheet,
)
from storyreel.mini.judge import ACTIONS, CASTS, PLACES, Judge, Opinion, Verdict
from storyreel.mini.lessons import HEIGHT, HELD_OUT, WIDTH, crossed_example, held_out_example
from storyreel.mini.nearest import Scene
from storyreel.mini.world import LOOKS, Action, Character, Light, Look, Place
from storyreel.models.scorer import Scorer
from storyreel.models.specs import MINI_WEIGHTS

CPU = torch.device("cpu")
BLACK = torch.zeros(2, HEIGHT, WIDTH, 3, dtype=torch.uint8)
FOX = frozenset({Character.FOX})
RED_FOX = Verdict(
    FOX, Place.CENTRAL_PARK, Action.SPIN, {Character.FOX: Look("red", "red scarf")}, Light.DUSK, 1
)
ASKED = Trial("a fox", FOX, Place.CENTRAL_PARK, Action.SPIN)


def opinion(verdict: Verdict = RED_FOX, readable: bool = True) -> Opinion:
    """An opinion that is nearly sure of its verdict: log-probability -0.5 each, -9 of the rest."""

    def sure(count: int, index: int) -> Tensor:
        return torch.where(torch.arange(count) == index, -0.5, -9.0)

    casts = sure(len(CASTS), CASTS.index(verdict.characters))
    places = sure(len(PLACES), PLACES.index(verdict.place))
    actions = sure(len(ACTIONS), ACTIONS.index(verdict.action))
    return Opinion(casts, places, actions, verdict, readable, 0.0)


class Sure(Judge):
    """A judge that is always of one opinion."""

    def __init__(self, said: Opinion) -> None:
        super().__init__()
        self.said = said

    def judge(self, clip: Tensor) -> Opinion:
        return self.said


def result(
    right: tuple[bool | None, ...] = (True, True, True, None, None),
    distance: float | None = None,
    said: Opinion | None = None,
) -> Result:
    who, place, action, looks, light = right
    return Result(ASKED, said or opinion(), (who, place, action, looks, light), distance, -1.0, BLACK)


def test_every_scene_of_every_story_is_tried() -> None:
    trials = story_trials()
    assert len(trials) == 101
    first = trials[0]
    assert first.prompt == "a corgi dog is inside of the subway train. a corgi dog is sitting"
    assert first.characters == frozenset({Character.CORGI})
    assert (first.place, first.action) == (Place.SUBWAY_TRAIN, Action.SIT)
    for trial in trials:
        scene = trial.scene
        assert scene is not None
        assert (frozenset(scene.cast), scene.place, scene.action) == (
            trial.characters,
            trial.place,
            trial.action,
        )
        assert not trial.looks  # the stories leave them open
        assert trial.light is scene.light is None


def test_prompts_alone_are_asked_only_what_they_say() -> None:
    scenes, actions = alone_trials("scene"), alone_trials("action")
    assert len({t.prompt for t in scenes}) == len(scenes) > 60
    assert all(t.action is None for t in scenes)
    assert all(t.place is None and t.action is not None for t in actions)
    unnamed = [t for t in scenes if t.place is None]
    assert {t.prompt for t in unnamed} == {
        "a man and a woman are enjoying the cherry blossoms together",
    }
    walking = next(t for t in actions if t.prompt == "a corgi dog is walking")
    assert walking.action is Action.WALK  # not a way through a door


def test_unseen_prompts_are_of_held_out_combinations() -> None:
    for trial in random_trials(held_out_example, 30, 1):
        assert trial.characters is not None
        (who,) = trial.characters
        assert (who, trial.place, trial.action) in HELD_OUT


def test_random_prompts_are_asked_for_what_they_state() -> None:
    trials = random_trials(crossed_example, 200, 1)
    assert [t.prompt for t in trials[:20]] == [t.prompt for t in random_trials(crossed_example, 20, 1)]
    lit = [t for t in trials if t.light]
    stated = [t for t in trials if any(look != Look("") for look in t.looks.values())]
    assert 40 < len(lit) < 100
    assert 60 < len(stated) < 140
    words = {Light.DAY: "day", Light.DUSK: "dusk|sunset|evening", Light.NIGHT: "night|dark"}
    for trial in trials:
        if trial.light:
            assert any(word in trial.prompt for word in words[trial.light].split("|"))
        for look in trial.looks.values():
            assert look.colour in trial.prompt
            assert look.wear in trial.prompt


def test_prompts_that_leave_looks_open_are_of_everybody_alike() -> None:
    trials = open_trials(24, 1)
    assert Counter(who for t in trials for who in t.characters or ()) == dict.fromkeys(Character, 4)
    assert not any(t.looks for t in trials)
    assert not any(t.light for t in trials)


def test_pairs_have_two_characters() -> None:
    assert all(len(t.characters or ()) == 2 for t in random_trials(pair_example, 20, 1))


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, (True, True, True, None, None)),
        ({"characters": frozenset({Character.CAT})}, (False, True, True, None, None)),
        ({"place": None, "action": Action.SIT}, (True, None, False, None, None)),
        ({"looks": {Character.FOX: Look("red")}, "light": Light.DUSK}, (True, True, True, True, True)),
        ({"looks": {Character.FOX: Look("red", "blue collar")}}, (True, True, True, False, None)),
        ({"looks": {Character.FOX: Look("", "red scarf")}}, (True, True, True, True, None)),
        ({"looks": {Character.CAT: Look("grey")}, "light": Light.DAY}, (True, True, True, False, False)),
        ({"looks": {Character.FOX: Look("")}}, (True, True, True, None, None)),
    ],
)
def test_a_verdict_is_held_against_what_was_asked(
    changes: Mapping[str, object], right: tuple[bool | None, ...]
) -> None:
    trial = replace(ASKED, **changes)  # type: ignore[arg-type]
    assert judged(Sure(opinion()), trial, BLACK).right == right
    unreadable = judged(Sure(opinion(readable=False)), trial, BLACK).right
    assert unreadable == tuple(None if answer is None else False for answer in right)


def test_a_clip_is_measured_against_its_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judged(Sure(opinion()), ASKED, BLACK).distance is None
    asked: list[tuple[Scene, tuple[int, ...]]] = []

    def distances(scene: Scene, frames: object) -> list[float]:
        asked.append((scene, frames.shape))  # type: ignore[attr-defined]
        return [10.0, 30.0, 17.0]

    monkeypatch.setattr(evaluate, "nearest_true", distances)
    scene = Scene(Place.CENTRAL_PARK, (Character.FOX,), Action.SPIN)
    assert judged(Sure(opinion()), replace(ASKED, scene=scene), BLACK).distance == 17.0
    assert asked == [(scene, tuple(BLACK.shape))]


def test_likelihood_is_of_what_was_asked() -> None:
    assert likelihood(opinion(), ASKED) == pytest.approx(-1.5)
    assert likelihood(opinion(), replace(ASKED, place=None)) == pytest.approx(-1.0)
    assert likelihood(opinion(), replace(ASKED, action=Action.SIT)) == pytest.approx(-10.0)


def test_shares_count_only_what_was_asked() -> None:
    rows: list[tuple[bool | None, ...]] = [
        (True, True, None, True, None),
        (True, False, None, None, None),
        (False, None, None, False, None),
    ]
    distances = [20.0, 18.004, None]
    results = [result(right, far) for right, far in zip(rows, distances, strict=True)]
    results.append(result(said=opinion(readable=False)))
    assert shares(results) == {
        "clips": 4,
        "characters": 75.0,
        "place": 66.7,
        "action": 100.0,
        "looks": 50.0,
        "unreadable": 25.0,
        "nearest_db": 19.0,
        "worst_db": 18.0,
    }


def test_drawn_looks_are_counted_over_all_characters() -> None:
    looks = LOOKS[Character.FOX][:3]  # of one colour: without anything, a scarf, a collar
    said = [opinion(replace(RED_FOX, looks={Character.FOX: look})) for look in looks]
    said.append(opinion(replace(RED_FOX, looks={Character.MAN: Look("white", "red cap")}, light=Light.DAY)))
    assert drawn_looks([result(said=one) for one in said]) == {
        "light": {"day": 25.0, "dusk": 75.0},
        "set": {"1": 100.0},
        "wear": {"0": 25.0, "1": 50.0, "2": 25.0},
        "colour": {"0": 75.0, "3": 25.0},
    }


def test_an_unreadable_clip_is_called_so() -> None:
    told = "red fox with a red scarf, central park by dusk, spin"
    assert result().seen == told
    assert result(said=opinion(readable=False)).seen == f"unreadable ({told})"


def test_the_worst_come_first(tmp_path: Path) -> None:
    white = torch.full_like(BLACK, 255)
    results = [replace(result(), likelihood=value) for value in (-1.0, -3.0, -2.0)]
    results[1] = replace(results[1], frames=white)
    worst_sheet(results, tmp_path / "worst.png", count=2)
    with Image.open(tmp_path / "worst.png") as sheet:
        assert sheet.size == (6 * WIDTH, 2 * (HEIGHT + 26))
        first, second = (sheet.getpixel((WIDTH // 2, y)) for y in (HEIGHT // 2, HEIGHT + 26 + HEIGHT // 2))
    assert (first, second) == ((255, 255, 255), (0, 0, 0))


def test_unknown_parts_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", "everything"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "unknown: everything" in capsys.readouterr().err


def test_missing_weights_are_named_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["evaluate", "judge", "--weights", str(tmp_path / "none"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="are not here"):
        evaluate.main()


# With the package's weights


@pytest.mark.slow  # of the weights
def test_the_score_of_the_estimate_rises_while_noise_goes() -> None:
    studio = Studio(MINI_WEIGHTS, CPU)
    scorer = Scorer.load(MINI_WEIGHTS / "scorer", CPU)
    scores = rising_scores(studio, scorer, story_trials()[:2], every=2, steps=8)
    assert len(scores) == 4
    assert scores[-1] > scores[0] + 0.05


def test_the_command_writes_scores_and_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["evaluate", "judge", "codec", "scorer", "unseen", "--clips", "4", "--prompts", "1"]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(tmp_path), "--device", "cpu"])
    evaluate.main()
    table = json.loads((tmp_path / "scores.json").read_text())
    assert table["judge"]["clips"] == table["scorer"]["clips"] == 4
    assert table["codec"]["clips"] == 1
    assert table["codec"]["psnr"] > 20
    assert table["unseen"]["clips"] == 1
    assert table["unseen"]["nearest_db"] > 0
    with Image.open(tmp_path / "worst.png") as sheet:
        assert sheet.width == 6 * WIDTH
