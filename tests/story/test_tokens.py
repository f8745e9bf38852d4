"""Prompts are counted as the model counts them, or it is said that they were not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from storyreel.cli.app import run
from storyreel.models.specs import MODELS, find_model
from storyreel.story.planning import make_plan
from storyreel.story.schema import parse_story
from storyreel.story.tokens import estimated_tokens, fewest_tokens, token_counter


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as T5's, of pieces, and nothing else."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "corpus.txt").write_text("a fox sleeps in the park\na dog walks over there\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=24,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


TEXTS = ["", "a fox", "a fox sleeps in the park, and a quixotic dog walks", "猫が走る over there", "a  b\tc"]


def test_pieces_are_counted_as_the_model_counts_them(pieces: Path) -> None:
    count = token_counter(pieces)
    assert count is not None
    tokenizer = AutoTokenizer.from_pretrained(pieces)
    assert [count(text) for text in TEXTS] == [len(tokenizer(text).input_ids) for text in TEXTS]


@given(text=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=80))
def test_no_count_is_below_the_fewest(text: str, pieces: Path) -> None:
    count = token_counter(pieces)
    assert count is not None
    assert fewest_tokens(text) <= count(text)
    assert fewest_tokens(text) <= estimated_tokens(text)


def test_a_damaged_tokenizer_counts_nothing(tmp_path: Path) -> None:
    for name in ("spiece.model", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"\x00<html>")
        assert token_counter(tmp_path) is None


def test_every_tokenizer_of_a_model_that_is_here_is_asked(
    pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = pieces.parent / "weights"
    weights.mkdir()
    (weights / "tokenizer").symlink_to(pieces)
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["ltx-2b"], name="tiny", hub=None, weights=weights))
    story = parse_story("s.yaml", b"render: {model: tiny}\nscenes:\n  - " + b"quixotic " * 20)
    with pytest.raises(Exception, match=r"\d{3} tokens together, model tiny reads 128"):
        make_plan(story, "s")


@pytest.fixture
def story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    assert not find_model("ltx-2b").weights.exists()
    return tmp_path / "story.yaml"


HEAD = "render: {model: ltx-2b}\nscenes:\n  - a fox\n  - "


def test_what_no_tokenizer_could_make_short_enough_is_refused(
    story: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story.write_text(HEAD + "a fox walks " * 60 + "\n")
    assert run(["validate", str(story)]) == 65
    assert (
        f"{story}:4:5: error: scene and action have 181 tokens together at the least"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("command", [["validate"], ["render", "--dry-run"], ["batch", "--dry-run"]])
def test_what_may_be_too_long_is_said_to_be_uncounted(
    command: list[str], story: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story.write_text(HEAD + "quixotical " * 60 + "\n")
    assert run([*command, str(story)]) == 0
    _, err = capsys.readouterr()
    assert re.search(
        r"scene 2 may be too long: model ltx-2b reads 128 tokens, and it has 16\d by an estimate", err
    )
    assert "scene 1" not in err
    story.write_text(HEAD + "a fox walks " * 20 + "\n")
    assert run([*command, str(story)]) == 0
    assert capsys.readouterr().err == ""
