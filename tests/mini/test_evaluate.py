"""The evaluation asks the right questions, counts right, and keeps what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from storyreel.mini import evaluate
from storyreel.mini.evaluate import (
    Result,
    Studio,
    Trial,
    alone_trials,
    random_trials,
    rising_scores,
    shares,
    story_trials,
)
from storyreel.mini.lessons import HELD_OUT, held_out_example
from storyreel.mini.world import Action, Character, Place
from storyreel.models.scorer import Scorer
from storyreel.models.specs import MINI_WEIGHTS

CPU = torch.device("cpu")
BLACK = torch.zeros(25, 64, 96, 3, dtype=torch.uint8)


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(MINI_WEIGHTS, CPU)


def test_every_scene_of_every_story_is_tried() -> None:
    trials = story_trials()
    assert len(trials) == 101
    first = trials[0]
    assert first.prompt == "a corgi dog is inside of the subway train. a corgi dog is sitting"
    assert first.characters == frozenset({Character.CORGI})
    assert (first.place, first.action) == (Place.SUBWAY_TRAIN, Action.SIT)


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


def test_shares_count_only_what_was_asked() -> None:
    trial = Trial("", None, None, None)
    rows: list[tuple[bool | None, bool | None, bool | None]] = [
        (True, True, None),
        (True, False, None),
        (False, None, None),
    ]
    results = [Result(trial, "", right, 0.0, BLACK) for right in rows]
    assert shares(results) == {"clips": 3, "characters": 66.7, "place": 50.0}


def test_a_black_clip_is_found_wrong(studio: Studio) -> None:
    trial = Trial("a fox", frozenset({Character.FOX}), Place.CENTRAL_PARK, Action.SPIN)
    result = studio.judged(trial, BLACK)
    assert False in result.right
    assert result.likelihood < -1


@pytest.mark.slow  # of the weights
def test_the_score_of_the_estimate_rises_while_noise_goes(studio: Studio) -> None:
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
    with Image.open(tmp_path / "worst.png") as sheet:
        assert sheet.width == 6 * 96 * 2


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
