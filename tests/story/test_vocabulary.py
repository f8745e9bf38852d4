"""What a model cannot draw of a story is said before anything is rendered, each with its place."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyreel.cli.app import run
from storyreel.cli.results import result_schema
from storyreel.cli.stories import STARTER
from storyreel.errors import MAX_SHOWN, Fault, MissingError, ScriptError
from storyreel.mini.plots import STORIES
from storyreel.models.specs import MODELS, ModelSpec
from storyreel.story.schema import parse_story
from storyreel.story.vocabulary import MAX_WORDS, Vocabulary, load_vocabulary, plain, spelled, warnings_of
from tests.conftest import ROOT, FakeEngine

MINI = MODELS["mini"]
FOX = '  - ["a fox in Central Park", "a fox is sitting"]\n'
DRAGON = """\
# mini knows neither; it draws something else and says nothing. The same with the prompts in Chinese.
scenes:
  - [A snowy mountain at dawn, A dragon breathes fire over the village.]
  - [一座雪山, 一条龙在喷火]
render: {steps: 4, seconds: 1}
"""


PARIS = """\
cast:
  first: {name: a dragon, possessive: its}
scenes:
  - ["{first} is walking in front of the White House", "{first} is looking around"]
  - ["{first} is sitting in Paris", "the dragon's fire is bright"]
  - scene: A DRAGON is standing near the U.S. Capitol in Paris
    action: "{first} is sitting on a sofa"
"""


def known() -> Vocabulary:
    vocabulary = load_vocabulary(MINI)
    assert vocabulary is not None
    return vocabulary


def warned(text: str, spec: ModelSpec = MINI) -> list[Fault]:
    return warnings_of(parse_story("story.yaml", text.encode()), spec)


def words_of(faults: list[Fault]) -> dict[str, tuple[int, int]]:
    """Return the unknown words with their places."""
    return {
        fault.message.split("'")[1]: (fault.line, fault.column)
        for fault in faults
        if "does not know '" in fault.message
    }


@pytest.mark.parametrize("name", STORIES)
def test_nothing_is_said_of_the_shipped_stories(name: str) -> None:
    assert warned((ROOT / "stories" / f"{name}.yaml").read_text()) == []


def test_nothing_is_said_of_the_story_to_start_from_and_of_casts_with_a_look() -> None:
    assert warned(STARTER) == []
    example = (ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert warned(example) == []
    nyc = (ROOT / "stories" / "nyc.yaml").read_text()
    assert warned(nyc.replace("a corgi dog", "a black corgi dog with a red scarf", 2)) == []


def test_every_unknown_word_has_its_place() -> None:
    found = warned(DRAGON)
    assert words_of(found) == {
        "snowy": (3, 8),
        "mountain": (3, 14),
        "dawn": (3, 26),
        "dragon": (3, 34),
        "fire": (3, 50),
        "village": (3, 64),
        "一座雪山": (4, 6),
        "一条龙在喷火": (4, 12),
    }
    assert found[3].message == "mini does not know 'dragon'; `storyreel models mini` lists what it draws"
    assert found[3].source == DRAGON.splitlines()[2]
    assert [fault.message.split(";")[0] for fault in found[8:]] == [
        "scene 1 names nobody whom mini knows",
        "scene 1 names no place that mini knows",
        "scene 2 names no action that mini knows",
    ]
    assert "a siamese cat, a panda or a fox (also scene 2)" in found[8].message


def test_a_dragon_in_paris_is_four_words() -> None:
    """Whatever their case, and in a possessive too."""
    found = warned(PARIS)
    assert words_of(found) == {"dragon": (2, 19), "paris": (5, 29), "fire": (5, 51), "sofa": (7, 38)}
    ends = [fault.message.partition(" (also at ")[2] for fault in found[:4]]
    assert ends == ["5:42, 6:14)", "6:58)", "", ""]
    (scene,) = found[4:]
    assert scene.message.startswith("scene 2 names no place that mini knows")


def test_a_word_of_the_cast_is_where_it_was_typed() -> None:
    text = """\
cast:
  first: {name: 'the green dragon''s friend', possessive: its}
  second: {name: a man, noun: gentleman}
  third: {name: an elf that no scene mentions}
scenes:
  - ["{first} and {second} are in Central Park", "{first} is sitting beside the {second.noun}"]
  - ["{first} is in Central Park", "{first.noun} is sitting"]
"""
    assert words_of(warned(text.replace("dragon''s", "dragon"))) == {
        "dragon": (2, 28),
        "friend": (2, 35),
        "gentleman": (3, 31),
    }
    assert [(f.line, f.column) for f in warned(text)][:2] == [(2, 28), (2, 38)]


def test_a_word_is_found_in_every_way_to_write_a_text() -> None:
    text = """\
scenes:
  - scene: >-
      a fox is in
      Central Park near {{a}} castle
    action: |
      a fox is

      sitting on a throne
  - scene: a fox is in Central Park
      with a moat
    action: "a fox\\
      \\ is sitting on \\u0061 bridge"
  - ['a fox in ''Central'' Park', 'a fox''s knight is sitting']
"""
    assert words_of(warned(text)) == {
        "castle": (4, 31),
        "throne": (8, 20),
        "moat": (10, 14),
        "bridge": (12, 30),
        "knight": (13, 45),
    }


def test_a_word_of_one_prompt_for_both_has_one_place() -> None:
    """Also where what stands before it has letters of it."""
    text = "scenes:\n  - a dragn in Central Park is sitting\n"
    text += "  - {transition: cut, scene: transit fox in Central Park is sitting}\n"
    faults = warned(text)
    assert words_of(faults) == {"dragn": (2, 7), "transit": (3, 30)}
    assert not any("also" in fault.message for fault in faults)


def test_a_word_is_said_once_with_its_other_places_and_many_are_counted() -> None:
    line = '  - ["a fox and a dragn in Central Park", "a fox is sitting"]\n'
    (fault,) = warned("scenes:\n" + 2 * line)
    assert fault.message.endswith("lists what it draws (also at 3:19)")
    (fault,) = warned("scenes:\n" + 9 * line)
    assert fault.message.endswith("(also at 3:19, 4:19, 5:19 and 5 more)")
    letters = "abcdefghij"
    words = [f"qx{one}{other}qx" for one in letters for other in letters]
    text = "".join(f'  - ["a fox in Central Park {word}", "a fox is sitting"]\n' for word in words)
    faults = warned("scenes:\n" + text)
    assert len(faults) == MAX_WORDS + 1
    assert faults[-1].message == f"mini does not know this and {len(words) - MAX_WORDS - 1} more words"
    assert faults[-1].line == MAX_WORDS + 2


@pytest.mark.parametrize(
    "word",
    [
        *("walked", "walk", "Walks", "smiled", "strolled", "waits", "breathes", "boards"),  # forms of verbs
        *("scarves'", "windows", "fox's", "Fox’s", "it's", "they're", "ｆｏｘ", "CORGI"),
        *("playful", "slow", "curious", "she", "while", "behind", "U.S.", "long-haired"),
    ],
)
def test_regular_forms_and_grammar_are_no_false_alarm(word: str) -> None:
    unknown = [one for one in spelled(word) if not known().knows(plain(one))]
    assert unknown == (["scarves"] if word == "scarves'" else [])


@pytest.mark.parametrize(
    "word",
    [
        *("training", "skiing", "parked", "foxes", "corgis", "dogs", "another", "two", "3"),
        *("no", "without", "isn't", "Paris", "knight", "🐉", "龙", "ран", "beard", "bussing"),
    ],
)
def test_what_is_not_drawn_is_no_known_word(word: str) -> None:
    assert [one for one in spelled(word) if not known().knows(plain(one))] == [word]


def test_the_nearest_known_word() -> None:
    nearest = known().nearest
    assert [nearest(word) for word in ("corgy", "siamees", "foxes", "captiol", "cenral", "siting")] == [
        *("corgi", "siamese", "fox", "capitol", "central", "sitting")
    ]
    assert [nearest(word) for word in ("snowy", "dragon", "eiffel", "龙", "x" * 2000)] == [None] * 5


def said_of(scene: str, action: str, cast: str = "") -> list[str]:
    head = f"cast:\n{cast}" if cast else ""
    faults = warned(f"{head}scenes:\n  - [{json.dumps(scene)}, {json.dumps(action)}]\n")
    return [fault.message for fault in faults]


@pytest.mark.parametrize(
    ("scene", "action", "words"),
    [
        (
            "a man, a woman and a fox in Central Park",
            "they are sitting",
            "has 3 characters; mini draws one or",
        ),
        ("a fox and a panda in Central Park", "a man is sitting", "has 3 characters"),
        ("a fox", "a fox is sitting", "names no place that mini knows; it draws any of these: inside of"),
        ("a fox in the house", "a fox is sitting", "names no place"),
        ("a fox in Central Park", "a fox", "names no action that mini knows; it draws any"),
        (
            "it is in Central Park",
            "she is sitting",
            "names nobody whom mini knows; it draws any of these: a man",
        ),
        (
            "a fox in Central Park",
            "a fox is waving",
            "was never shown, a fox waving in Central Park; it draws",
        ),
        ("a man in Central Park", "he is wagging his tail", "never shown, a man wagging its tail"),
        ("a fox in Central Park", "a fox is getting on", "never shown, a fox getting on the subway train or"),
        (
            "a fox and a man in Central Park",
            "a man is kicking a red ball",
            "never shown, a man and a fox kicking",
        ),
        ("a fox on the subway exit stairs", "a fox is sleeping", "never shown, a fox sleeping on the subway"),
        ("a purple fox in Central Park", "a fox is sitting", "look that mini was never shown: a purple fox;"),
        (
            "A Yellow Siamese CAT with a red cap in Central Park",
            "the black cat is sitting in a blue collar",
            "a yellow siamese cat, a siamese cat with a red cap and a black cat; it draws another",
        ),
        (
            "a black corgi dog and a panda sitting with a black hat in Central Park",
            "they are sitting",
            "was never shown: a panda with a black hat;",
        ),
        ("a man with a blue collar in Central Park", "a man is sitting", "a man with a blue collar;"),
    ],
)
def test_scenes_that_cannot_be_drawn(scene: str, action: str, words: str) -> None:
    (message,) = said_of(scene, action)
    assert words in message
    assert message.startswith("scene 1 ")


@pytest.mark.parametrize(
    ("scene", "action"),
    [
        ("a man and a woman at the bus stop in Times Square", "they are waiting for a bus"),
        ("in Central Park", "a fox and a panda are running and smiling"),
        ("The man's dog sees him near the U.S. Capitol", "the corgi walks"),
        ("On the bus, a siamese cat with a blue collar", "the cat is watching the city view"),
        ("a man in a red shirt and a black hat in Central Park", "a man is sitting"),
        ("a black corgi dog with a red scarf meets a grey fox in a red scarf in Central Park", "they smile"),
        ("a golden panda bear with a yellow bandana at night in Central Park", "the black dog sits"),
    ],
)
def test_scenes_that_can_be_drawn(scene: str, action: str) -> None:
    assert said_of(scene, action) == []


def test_members_of_the_cast_are_counted_whether_anybody_knows_them_or_not() -> None:
    cast = "  first: {name: a fox}\n  second: {name: a siamese cat}\n  third: {name: a little thing}\n"
    at = "in Central Park"
    found = said_of(f"{{first}}, {{second}} and {{third}} are {at}", "{first} is sitting", cast)
    assert [text.split(";")[0] for text in found] == [
        "mini does not know 'thing'",
        "scene 1 has 3 characters",
    ]
    assert said_of(f"{{first}} and {{second}} are {at}", "the fox and {third.possessive} cat sit", cast) == []
    twins = "  first: {name: a red fox}\n  second: {name: a grey fox}\n"
    (message,) = said_of(f"{{first}} meets {{second}} {at}", "{first} is smiling", twins)
    assert "has two of one kind" in message


def test_nothing_is_said_of_other_models() -> None:
    others = [spec for spec in MODELS.values() if spec.name != "mini"]
    assert others
    for spec in others:
        assert warned(DRAGON, spec) == []


def test_a_missing_or_damaged_list_is_no_traceback(tmp_path: Path) -> None:
    spec = replace(MINI, vocabulary=tmp_path / "words.json")
    with pytest.raises(MissingError, match="No such file"):
        load_vocabulary(spec)
    for text in ("", "[]", '{"words": ["a"]}', "\udcff"):
        (tmp_path / "words.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(MissingError, match="it is damaged"):
            load_vocabulary(spec)


CHARACTERS = st.characters(categories=("L", "M", "N", "P", "So"), exclude_characters="{}")


@given(
    st.lists(st.text(CHARACTERS, min_size=1, max_size=12), min_size=1, max_size=8), st.sampled_from("'\"|>")
)
def test_whatever_is_written_has_its_place(words: list[str], style: str) -> None:
    prompt = " ".join(["so:", *words])
    written = {
        "'": "'" + prompt.replace("'", "''") + "'",
        '"': '"' + prompt.replace("\\", "\\\\").replace('"', '\\"') + '"',
        "|": f"|\n      {prompt}",
        ">": f">\n      {prompt}",
    }[style]
    text = f"scenes:\n  - scene: {written}\n    action: a fox is sitting in Central Park\n"
    unknown = dict.fromkeys(
        plain(one).removesuffix("'s") for one in spelled(prompt) if not known().knows(plain(one))
    )
    found = [fault for fault in warned(text) if "does not know" in fault.message]
    assert len(found) == len(unknown)
    for word, fault in zip(unknown, found, strict=True):
        assert f"does not know {word!r}; " in fault.message
        assert plain(fault.source[fault.column - 1 :]).replace("''", "'").startswith(word)
        assert fault.source == text.split("\n")[fault.line - 1]


def test_validate_warns_and_with_strict_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dragon.yaml"
    path.write_text(DRAGON, encoding="utf-8")
    assert run(["validate", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{path}: 2 scenes, 2 s of film\n"
    expected = (
        f"{path}:3:34: warning: mini does not know 'dragon'; `storyreel models mini` lists what it draws\n"
    )
    assert expected + f"    3 | {DRAGON.splitlines()[2]}\n      | {33 * ' '}^\n" in err
    assert run(["validate", "--strict", str(path)]) == 65
    out, strict = capsys.readouterr()
    assert out == ""
    assert sorted(strict.splitlines()) == sorted(err.replace("warning:", "error:").splitlines())
    path.write_text(DRAGON.replace("{steps", "{model: mochi, steps"), encoding="utf-8")
    assert run(["validate", "--strict", str(path)]) == 0
    assert capsys.readouterr().err == ""
    assert run(["validate", "--strict", str(ROOT / "stories" / "nyc.yaml")]) == 0


@pytest.fixture
def taught(fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """A fake model that was taught what mini was."""
    monkeypatch.setitem(MODELS, "fake", replace(MODELS["fake"], vocabulary=MINI.vocabulary))
    return fake_engine


@pytest.mark.parametrize("command", ["render", "batch"])
def test_what_renders_warns_first_and_tells_it_as_data(
    command: str,
    tmp_path: Path,
    taught: FakeEngine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, fine = tmp_path / "dragon.yaml", tmp_path / "fine.yaml"
    path.write_text("render: {model: fake}\nscenes:\n" + FOX.replace("is sitting", "is a dragn and sits"))
    fine.write_text("render: {model: fake}\nscenes:\n" + FOX)
    options = [command, str(path), str(fine), "--out", str(tmp_path / "out")]
    warning = f"{path}:3:43: warning: fake does not know 'dragn'; "
    as_data = {"line": 3, "column": 43, "message": "fake does not know 'dragn'; `storyreel models fake` "}

    def told(text: str) -> None:
        results = json.loads(text)
        assert results["fine"]["warnings"] == []
        (one,) = results["dragon"]["warnings"]
        assert {**one, "message": one["message"][: len(as_data["message"])]} == as_data  # type: ignore[arg-type]

    assert run([*options, "--dry-run"]) == 0
    assert capsys.readouterr().err.startswith(warning)
    assert run([*options, "--dry-run", "--json"]) == 0
    told(capsys.readouterr().out)
    assert run([*options, "--strict", "--dry-run"]) == 65
    assert warning.replace("warning", "error") in capsys.readouterr().err
    assert taught.asked == 0
    assert run([*options, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.index(warning) < err.index("rendering 1 scene with")
    told(out)


@pytest.mark.usefixtures("taught")
def test_a_batch_with_strict_renders_what_can_be_drawn(tmp_path: Path) -> None:
    path, fine = tmp_path / "dragon.yaml", tmp_path / "fine.yaml"
    path.write_text(f"render: {{model: fake}}\n{DRAGON.split('render')[0]}")
    fine.write_text("render: {model: fake}\nscenes:\n" + FOX)
    out = tmp_path / "out"
    assert run(["batch", "--strict", str(path), str(fine), "--out", str(out)]) == 65
    assert (out / "fine" / "fine.mp4").exists()
    assert not (out / "dragon").exists()


@pytest.mark.usefixtures("taught")
def test_warnings_are_in_the_json_of_validate_and_faults_with_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dragon.yaml"
    path.write_text(DRAGON, encoding="utf-8")

    def said(*options: str) -> dict[str, Any]:
        run(["validate", str(path), "--json", *options])
        result = json.loads(capsys.readouterr().out)
        jsonschema.Draft202012Validator(result_schema("validate")).validate(result)
        found: dict[str, Any] = result[str(path)]
        return found

    one = {
        "line": 3,
        "column": 34,
        "message": "mini does not know 'dragon'; `storyreel models mini` lists what it draws",
    }
    warned, refused = said(), said("--strict")
    assert one in warned["warnings"]
    assert (warned["valid"], warned["faults"]) == (True, [])
    assert (refused["valid"], refused["warnings"]) == (False, [])
    assert refused["faults"] == warned["warnings"]


def test_a_job_is_warned_of_before_it_is_submitted(
    tmp_path: Path, taught: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    path, fine = tmp_path / "dragon.yaml", tmp_path / "fine.yaml"
    path.write_text("render: {model: fake}\nscenes:\n" + FOX.replace("is sitting", "is a dragn and sits"))
    fine.write_text("render: {model: fake}\nscenes:\n" + FOX)
    options = ["--dry-run", "--out", str(tmp_path / "out")]
    assert run(["submit", str(path), *options]) == 0
    out, err = capsys.readouterr()
    assert err.startswith(f"{path}:3:43: warning: fake does not know 'dragn'; ")
    assert "--strict" not in out
    assert run(["submit", str(path), "--strict", *options]) == 65
    assert f"{path}:3:43: error: fake does not know 'dragn'; " in capsys.readouterr().err
    assert run(["submit", str(fine), "--strict", *options]) == 0
    out, err = capsys.readouterr()
    assert "--strict" in out  # a story that is changed later is refused in the job
    assert "warning" not in err
    assert taught.asked == 0


@pytest.mark.usefixtures("taught")
def test_an_ablation_warns_once_of_a_story_and_tells_it_of_every_film(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dragon.yaml"
    path.write_text("render: {model: fake}\nscenes:\n" + FOX.replace("is sitting", "is a dragn and sits"))
    words = ["ablate", str(path), "--seeds", "2", "--variants", "full", "--dry-run", "--json"]
    assert run([*words, "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err.count("warning: fake does not know 'dragn'") == 1
    assert [len(film["warnings"]) for film in json.loads(out).values()] == [1, 1]


@pytest.mark.usefixtures("taught")
def test_nothing_is_said_where_it_is_not_wanted_or_nothing_is_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "dragon.yaml", str(tmp_path / "out")
    path.write_text("render: {model: fake}\nscenes:\n" + FOX.replace("is sitting", "is a dragn and sits"))
    assert run(["validate", "-q", str(path)]) == 0
    assert run(["render", "-q", str(path), "--out", out]) == 0
    assert run(["status", str(path), "--out", out]) == 0
    assert run(["batch", "--status", str(path), "--out", out]) == 0
    assert run(["verify", out]) == 0
    assert "warning" not in capsys.readouterr().err
    assert run(["render", str(path), "--out", out]) == 0  # there is nothing to render, but a film to be had
    assert "warning" in capsys.readouterr().err


@pytest.mark.usefixtures("taught")
def test_warnings_of_standard_input_have_their_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(DRAGON.encode())))
    assert run(["validate", "-"]) == 0
    assert "stdin:3:34: warning: mini does not know 'dragon'" in capsys.readouterr().err


def test_many_warnings_are_counted() -> None:
    faults = [Fault("too much", line) for line in range(1, MAX_SHOWN + 4)]
    lines = ScriptError("story.yaml", faults).format("warning").splitlines()
    assert lines[0] == "story.yaml:1:1: warning: too much"
    assert lines[-1] == "story.yaml: … and 3 more"


def test_models_lists_what_one_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["models", "mini"]) == 0
    out = capsys.readouterr().out
    for line in ("a siamese cat", "by the Washington Monument", "waving (a man or a woman)", "at dusk"):
        assert f"\n    {line}\n" in out
    assert "mochi" not in out
    assert out.endswith("Wearing nothing cannot be asked for.\n")
    assert run(["models", "mini", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert list(facts) == ["mini"]
    assert facts["mini"]["draws"]["characters"]["panda"]["colours"] == ["white", "brown", "grey", "golden"]
    assert run(["models", "mochi"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mochi: ")
    assert "characters" not in out
    for arguments in (["mochi", "--page", str(tmp_path / "page.html")], ["--page", str(tmp_path / "p.html")]):
        assert run(["models", *arguments]) == 2
        assert "storyreel models mini --page" in capsys.readouterr().err
    assert run(["models", "sora"]) != 0
    assert not list(tmp_path.iterdir())
