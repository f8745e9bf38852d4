"""What storyreel says that mini can draw is what mini's lessons show and say."""

from __future__ import annotations

import io
import re
from base64 import b64decode
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storyreel.cli.app import run
from storyreel.mini.lessons import Example, action_example, held_out_example, sample_example, sample_text
from storyreel.mini.plots import PLOTS, STORIES
from storyreel.mini.vocabulary import as_text, mini_vocabulary
from storyreel.mini.world import Action, Character, Light, Place, allowed_actions
from storyreel.models.specs import MODELS
from storyreel.story.schema import Story
from storyreel.story.vocabulary import Vocabulary, listing, load_vocabulary, warnings_of, words_of
from tests.conftest import ROOT

MINI = MODELS["mini"]
REWRITE = "run: python -m storyreel.mini.vocabulary"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    found = load_vocabulary(MINI)
    assert found is not None
    return found


def test_the_file_says_what_the_lessons_say() -> None:
    assert MINI.vocabulary is not None
    assert MINI.vocabulary.read_text("utf-8") == as_text(mini_vocabulary()), REWRITE


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_nothing_is_said_of_what_was_taught(seed: int, held_out: bool) -> None:
    rng = Random(seed)
    example = held_out_example(rng) if held_out else sample_example(rng)
    vocabulary = load_vocabulary(MINI)
    assert vocabulary is not None
    assert [word for word in words_of(sample_text(rng, example)) if not vocabulary.knows(word)] == []
    if example.scene:
        story = Story.model_validate({"scenes": [[example.scene, example.action]]})
        assert [fault.message for fault in warnings_of(story, MINI)] == []


def test_texts_name_whom_where_and_what_the_clip_shows(vocabulary: Vocabulary) -> None:
    rng = Random(3)
    seen: set[str] = set()
    for _ in range(1500):
        example = sample_example(rng)
        clip, text = example.clip, f"{example.scene} {example.action}"
        assert set(vocabulary.characters_in(text)) == {who.value for who in clip.cast}, text
        assert vocabulary.places_in(example.scene) == [clip.place.value] * bool(example.scene), text
        # What an action prompt means by itself is the place's affair too: nothing else may be named.
        assert set(vocabulary.places_in(example.action)) <= {clip.place.value}, text
        assert clip.action.value in vocabulary.actions_in(text), text
        seen |= {clip.place.value, clip.action.value, *clip.cast}
    assert seen >= {*Place, *Character, *vocabulary.actions}


def test_an_action_is_taught_to_whom_the_world_lets_do_it(vocabulary: Vocabulary) -> None:
    solo = [Action(key) for key, taught in vocabulary.actions.items() if 1 in taught.counts]
    for action in solo:
        for who in Character:
            for place in Place:
                allowed = action in allowed_actions(who, place)
                assert vocabulary.shown(action.value, [who.value], [place.value]) == allowed, (
                    action,
                    who,
                    place,
                )
    assert {*vocabulary.actions} == {*Action} - {Action.FLEE, Action.CAUGHT}  # which answer chase and catch


def test_its_own_lists_can_be_drawn(vocabulary: Vocabulary) -> None:
    """A story that is put together from the lists has nothing to be warned of."""
    lights = [words for some in vocabulary.light.values() for words in some]
    assert {*vocabulary.light} == {*Light}
    for index, (key, taught) in enumerate(vocabulary.actions.items()):
        place = taught.places[index % len(taught.places)]
        who = taught.characters[index % len(taught.characters)]
        other = "a panda" if who != "panda" else "a fox"
        subject = vocabulary.characters[who].example
        scene = f"{subject} {vocabulary.places[place].name} {lights[index % len(lights)]}"
        action = f"{vocabulary.characters[who].name} is {taught.name.replace('somebody', other)}"
        if "or a bus" in taught.name:  # two places in one name
            continue
        story = Story.model_validate({"scenes": [[scene, action]]})
        assert [fault.message for fault in warnings_of(story, MINI)] == [], key


def test_the_card_has_the_same_lists(vocabulary: Vocabulary) -> None:
    card = " ".join((ROOT / "storyreel" / "mini" / "README.md").read_text("utf-8").split())
    for kind, entries in listing(vocabulary).items():
        if kind == "looks":
            for entry in entries:
                assert f"- {entry}." in card
        else:
            assert f"- {kind.capitalize()}: {'; '.join(entries)}." in card


def test_an_action_alone_names_its_action(vocabulary: Vocabulary) -> None:
    rng = Random(1)
    for plot, cast in STORIES.values():
        for scene in PLOTS[plot]:
            example: Example = action_example(rng, scene, cast)
            assert scene.alone.value in vocabulary.actions_in(example.action), example.action


def test_the_page_shows_everything(
    vocabulary: Vocabulary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    assert run(["models", "mini", "--page", str(path)]) == 0
    assert capsys.readouterr().err == f"page: {path}\n"
    page = path.read_text("utf-8")
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    looks = sum(len(one.colours) + len(one.wear) for one in vocabulary.characters.values())
    assert len(pictures) == looks + 6 * len(vocabulary.places) + len(vocabulary.actions)
    assert len(set(pictures)) > 0.97 * len(pictures)  # standing is a look too
    for data in pictures[:: len(pictures) // 10]:
        picture = Image.open(io.BytesIO(b64decode(data)))
        assert picture.size == (192, 128)
        assert len(picture.convert("L").getcolors() or ()) > 20
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    captions = " ".join(re.findall("<figcaption>([^<]*)", page))
    for one in vocabulary.characters.values():
        for words in (*one.colours, *one.wear):
            assert words in captions
    for place in vocabulary.places.values():
        assert f"{place.name} at night" in captions
    for taught in vocabulary.actions.values():
        assert taught.name.replace("somebody", "a siamese cat") in captions
    assert run(["models", "mini", "--page", str(path)]) == 0  # over its own
    (tmp_path / "story.yaml").write_text("scenes: []")
    assert run(["models", "mini", "--page", str(tmp_path / "story.yaml")]) == 2
    assert (tmp_path / "story.yaml").read_text() == "scenes: []"
    assert run(["models", "mini", "--page", str(tmp_path / "nowhere" / "page.html")]) == 73
