"""Changes of a story's file: one value differs afterwards, and every other byte is where it was."""

from __future__ import annotations

import copy
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from storyreel.errors import OutputError, ScriptError, StoryreelError, UsageError
from storyreel.story.edit import edit_story, with_scene_key
from storyreel.story.schema import STDIN, parse_story
from storyreel.story.yaml_source import parse
from tests.conftest import ROOT

# name: (the scene as written, the scene with `seed: 7`)
ADDED = {
    "pair": ('  - ["a, b", c] # why\n', '  - {scene: "a, b", action: c, seed: 7} # why\n'),
    "pair with a comma at its end": ("  - [a, b, ]\n", "  - {scene: a, action: b, seed: 7, }\n"),
    "pair on several lines": (
        "  - [\n      a, # one\n      'b'   # two\n    ]\n",
        "  - {\n      scene: a, # one\n      action: 'b', seed: 7   # two\n    }\n",
    ),
    "pair of dashes": (
        "  - - a # one\n    # two\n    - >\n      b\n      c\n\n",
        "  - scene: a # one\n    # two\n    action: >\n      b\n      c\n    seed: 7\n\n",
    ),
    "one prompt": ("  - a fox, asleep # why\n", "  - scene: a fox, asleep # why\n    seed: 7\n"),
    "one prompt in quotes": ("  -   'it''s'\n", "  -   scene: 'it''s'\n      seed: 7\n"),
    "one prompt on two lines": (
        "  - a fox\n    asleep\n",
        "  - scene: a fox\n      asleep\n    seed: 7\n",
    ),
    "one prompt on the line after its dash": (
        "  -\n    a fox\n    asleep\n",
        "  -\n    scene: a fox\n      asleep\n    seed: 7\n",
    ),
    "folded prompt": (
        "  - > # why\n    a fox\n\n     asleep\n",
        "  - scene: > # why\n      a fox\n\n       asleep\n    seed: 7\n",
    ),
    "folded prompt that is indented far": (
        "  - >-\n        a fox\n        asleep\n",
        "  - scene: >-\n        a fox\n        asleep\n    seed: 7\n",
    ),
    "folded prompt that says its indent": (
        "  - |3\n      a fox\n     asleep\n",
        "  - scene: |3\n        a fox\n       asleep\n    seed: 7\n",
    ),
    "folded prompt that keeps its end": (
        "  - |+\n    a fox\n\n\n",
        "  - scene: |+\n      a fox\n\n\n    seed: 7\n",
    ),
    "long form": ("  - scene: a\n    action: b # why\n", "  - scene: a\n    action: b # why\n    seed: 7\n"),
    "long form with a comment further in": (
        "  - scene: a\n    action: b\n\n      # of b\n    # of what comes\n",
        "  - scene: a\n    action: b\n\n      # of b\n    seed: 7\n    # of what comes\n",
    ),
    "long form in braces": ("  - { scene: a, action: b }\n", "  - { scene: a, action: b, seed: 7 }\n"),
    "long form in braces on lines": (
        "  - {\n    scene: a, # one\n    action: b # two\n    }\n",
        "  - {\n    scene: a, # one\n    action: b, seed: 7 # two\n    }\n",
    ),
    "a seed that is there": ("  - {scene: a, seed:   3  }\n", "  - {scene: a, seed:   7  }\n"),
    "a seed with a comment": (
        "  - seed: 3 # why\n    scene: a\n",
        "  - seed: 7 # why\n    scene: a\n",
    ),
    "a seed without a value": ("  - seed: # why\n    scene: a\n", "  - seed: 7 # why\n    scene: a\n"),
    "a seed without a value in braces": ("  - {seed, scene: a}\n", "  - {seed: 7, scene: a}\n"),
    "a seed on several lines": (
        "  - scene: a\n    seed: # one\n      take: 3 # two\n      action: b\n    seconds: 1\n",
        "  - scene: a\n    seed: # one\n      7\n    seconds: 1\n",
    ),
    "a seed as a mapping": (
        "  - scene: a\n    seed:\n      take: 3\n      action: b\n    seconds: 1\n",
        "  - scene: a\n    seed: 7\n    seconds: 1\n",
    ),
    "a seed as a folded text": (
        "  - seed: > # why\n      3\n\n    scene: a\n",
        "  - seed: 7 # why\n\n    scene: a\n",
    ),
}

# name: (the scene with a seed, the scene without)
REMOVED = {
    "last": ("  - scene: a\n    seed: 3 # why\n", "  - scene: a\n"),
    "first": ("  - seed: 3\n    scene: a\n", "  - scene: a\n"),
    "first, before a comment": (
        "  - seed: 3 # why\n    # of a\n    scene: a\n",
        "  -\n    # of a\n    scene: a\n",
    ),
    "in the middle": (
        "  - scene: a\n    # of the seed\n    seed: 3\n\n    action: b\n",
        "  - scene: a\n    # of the seed\n\n    action: b\n",
    ),
    "several lines": (
        "  - scene: a\n    seed:\n      take: 3\n      x: 4\n    action: b\n",
        "  - scene: a\n    action: b\n",
    ),
    "in braces": ("  - {scene: a, seed: 3, action: b}\n", "  - {scene: a, action: b}\n"),
    "first in braces": ("  - { seed: 3, scene: a }\n", "  - { scene: a }\n"),
    "last in braces": ("  - {scene: a, seed: 3 }\n", "  - {scene: a }\n"),
    "a line of its own in braces": (
        "  - {\n    scene: a, # one\n    seed: 3, # two\n    action: b # three\n    }\n",
        "  - {\n    scene: a, # one\n    action: b # three\n    }\n",
    ),
    "the last line in braces": (
        "  - {\n    scene: a, # one\n    seed: 3 # two\n    }\n",
        "  - {\n    scene: a, # one\n     # two\n    }\n",
    ),
    "not there": ("  - [a, b]\n", "  - [a, b]\n"),
    "not there, one prompt": ("  - a\n", "  - a\n"),
}  # fmt: skip

AROUND = ("# a story\nscenes:\n  - [x, y]\n", "  - [z,   z]\n\n# the end")


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "BOM"])
@pytest.mark.parametrize("name", ADDED)
def test_a_key_is_set_in_every_layout(name: str, mark: str, ends: str) -> None:
    before, after = (mark + (AROUND[0] + scene + AROUND[1]).replace("\n", ends) for scene in ADDED[name])
    assert with_scene_key(before, 2, "seed", 7) == after
    assert with_scene_key(after, 2, "seed", 7) == after


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("name", REMOVED)
def test_a_key_is_removed_in_every_layout(name: str, ends: str) -> None:
    before, after = ((AROUND[0] + scene + AROUND[1]).replace("\n", ends) for scene in REMOVED[name])
    assert with_scene_key(before, 2, "seed", None) == after


@pytest.mark.parametrize(
    ("story", "after"),
    [
        ("scenes:\n- a", "scenes:\n- scene: a\n  seed: 7"),
        ("scenes:\n- scene: a\n", "scenes:\n- scene: a\n  seed: 7\n"),
        ("scenes: [[a, b], c]", "scenes: [{scene: a, action: b, seed: 7}, c]"),
        ("scenes: ['a, b', [c, d]]\n", "scenes: [{scene: 'a, b', seed: 7}, [c, d]]\n"),
        ('{"scenes": [["a", "b"]]}', '{"scenes": [{"scene": "a", "action": "b", "seed": 7}]}'),
        ('{"scenes":\n["a"]}', '{"scenes":\n[{"scene": "a", "seed": 7}]}'),
        ("---\nscenes:\n- a\n...\n", "---\nscenes:\n- scene: a\n  seed: 7\n...\n"),
    ],
)
def test_the_first_scene_of_a_file_in_every_layout(story: str, after: str) -> None:
    assert with_scene_key(story, 1, "seed", 7) == after


def test_values_are_written_as_they_are_read() -> None:
    text = 'it\'s "a" fox: {x} # – \\ 狐 🦊'
    value = {"take": 3, "action": text, "word": "cut", "no": "no", "low": 1e-07, "high": 1e22, "is": True}
    after = with_scene_key("scenes:\n- a\n", 1, "retake", value)
    assert parse("s", after.encode()).data["scenes"] == [{"scene": "a", "retake": value}]
    line = after.splitlines()[-1]
    assert line.startswith("  retake: {take: 3, action: \"it's")
    assert 'word: cut, "no": "no", low: 1.0e-07' in line


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), [1], b"x", "a\x07", "\u202e", "\ud800"], ids=repr
)
def test_what_yaml_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="cannot hold"):
        with_scene_key("scenes: [a]", 1, "seed", value)


def test_both_prompts_of_a_short_form_can_be_set() -> None:
    assert with_scene_key("scenes:\n- [a, 'b'] # x\n", 1, "action", "new, text") == (
        'scenes:\n- [a, "new, text"] # x\n'
    )
    assert with_scene_key("scenes:\n- a\n", 1, "action", "new") == "scenes:\n- scene: a\n  action: new\n"
    assert with_scene_key("scenes:\n- a\n", 1, "scene", "new") == "scenes:\n- new\n"
    for story, key in (("scenes: [[a, b]]", "action"), ("scenes: [a]", "scene")):
        with pytest.raises(UsageError, match=f"cannot be without its {key}"):
            with_scene_key(story, 1, key, None)


@pytest.mark.parametrize(
    ("story", "words"),
    [
        ("scenes:\n- &x [a, b]\n", "&x"),
        ("scenes:\n- scene: &y a\n", "&y"),
        ("a: &x [a, b]\nscenes:\n- *x\n", "aliases"),
        ("a: &x {scene: a}\nscenes:\n- <<: *x\n", "aliases"),
        ("scenes:\n- !x [a, b]\n", "tag"),
        ("scenes:\n- a: b: c\n", "quote it"),
    ],
)
def test_what_cannot_be_changed_safely_is_refused_with_its_place(story: str, words: str) -> None:
    with pytest.raises(ScriptError, match=r"story:\d+:\d+: error: .*" + words):
        with_scene_key(story, 1, "seed", 7)


def test_what_cannot_be_changed_alone_is_refused() -> None:
    with pytest.raises(UsageError, match="seed cannot be changed alone") as caught:
        with_scene_key("scenes:\n- ? scene\n  : a\n  ? seed\n  : 3\n", 1, "seed", None)
    assert "story:2" in str(caught.value)
    with pytest.raises(UsageError, match="2 scenes; it has no scene 3"):
        with_scene_key("scenes: [a, b]", 3, "seed", 7)
    with pytest.raises(UsageError, match="no scene 0"):
        with_scene_key("scenes: [a, b]", 0, "seed", 7)


def parsed(text: str) -> Any:
    source = parse("s", text.encode())
    assert not source.faults
    data = source.data
    return {key: value for key, value in data.items() if key != "render" or value}


# Any layout of a story.
TEXT = st.text(alphabet="ab, :#'\"{}[]-?&*!|>%@`\\é狐🦊", min_size=1, max_size=12).map(lambda t: f"x{t}x")
COMMENT = st.sampled_from(["", "", " # why", "   # - [a, b]: {c}"])
BETWEEN = st.sampled_from(["", "", "", "\n", "# seed: 9\n", "\n# comment\n\n", "   \n"])
BLANK = BETWEEN | st.just("        # deep\n")
VALUE = st.one_of(
    st.integers(min_value=0, max_value=2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    TEXT,
    st.dictionaries(st.sampled_from(["take", "action", "seed"]), st.integers() | TEXT, max_size=3),
)


@st.composite
def scalar(draw: st.DrawFn, block: bool, column: int) -> str:
    """Draw a text as a person may write it; a block text only if ``block``."""
    text = draw(TEXT)
    further = " " * (column + draw(st.integers(1, 4)))
    kinds = ["double", "single", "plain", "lines", "quoted lines"]
    if block:
        kinds += ["block", "block with its indent"]
    match draw(st.sampled_from(kinds)):
        case "double":
            return json.dumps(text, ensure_ascii=draw(st.booleans()))
        case "single":
            return "'" + text.replace("'", "''") + "'"
        case "plain":
            return draw(st.sampled_from(["a fox", "a fox in the park", "x-y", "http://x"]))
        case "lines":
            return f"a fox\n{further}in the\n\n{further}park"
        case "quoted lines":
            return f'"a fox: \\\n{further}in, # the\n{further}park"'
        case "block":
            head = draw(st.sampled_from([">", "|", ">-", "|-", "|+", ">+"])) + draw(COMMENT)
            return f"{head}\n{further}{text}\n\n{further}  more\n{further}end" + draw(
                st.sampled_from(["", "\n"])
            )
        case _:
            indent = draw(st.integers(1, 4))
            inside = " " * (column + indent)
            return f"{draw(st.sampled_from('|>'))}{indent}\n{inside}  {text}\n{inside}end"


@st.composite
def scene(draw: st.DrawFn, column: int) -> str:
    """Draw a scene at a column, in any form, without the dash before it."""
    inner = column + 2
    pad = "\n" + " " * inner
    form = draw(st.sampled_from(["long", "braces", "pair", "dashes", "one"]))
    if form == "one":
        return draw(scalar(True, column)) + "\n"
    if form == "pair":
        gap = draw(st.sampled_from(["", " ", pad + "  "]))
        first, second = (draw(scalar(False, inner)) for _ in range(2))
        between = "," + draw(st.sampled_from([" ", pad + "  ", f" # one{pad}  "]))
        return (
            f"[{gap}{first}{between}{second}{draw(st.sampled_from(['', ' ', ', ', pad]))}]{draw(COMMENT)}\n"
        )
    pairs = [("scene", scalar), ("action", scalar), ("seconds", None), ("seed", None)]
    wanted = [pair for pair in draw(st.permutations(pairs)) if pair[0] == "scene" or draw(st.booleans())]
    if form == "dashes":
        return f"- {draw(scalar(True, inner))}{pad}- {draw(scalar(True, inner))}\n"
    if form == "braces":
        items = [f"{key}: {draw(write(False, inner)) if write else 3}" for key, write in wanted]
        ends = [draw(st.sampled_from([", ", f",{pad}  ", f", # x{pad}  "])) for _ in items[1:]] + [""]
        inside = "".join(item + end for item, end in zip(items, ends, strict=True))
        gap = draw(st.sampled_from(["", " ", pad + "  "]))
        return f"{{{gap}{inside}{draw(st.sampled_from(['', ' ', ', ', pad]))}}}{draw(COMMENT)}\n"
    lines = []
    for key, write in wanted:
        value = draw(write(True, inner)) if write else "3"
        comment = "" if value[0] in "|>" else draw(COMMENT)
        lines.append(f"{key}:{draw(st.sampled_from([' ', '  ']))}{value}{comment}\n{draw(BLANK)}")
    return (
        (" " * inner).join(lines)
        if "\n" not in "".join(lines)
        else "".join(line if index == 0 else " " * inner + line for index, line in enumerate(lines))
    )


@st.composite
def stories(draw: st.DrawFn) -> tuple[str, list[str], str]:
    """Draw a story as the text before its scenes, each scene with its dash, and what follows."""
    column = draw(st.sampled_from([0, 2, 4]))
    dash = " " * column + "- "
    scenes = [dash + draw(scene(column)) for _ in range(draw(st.integers(1, 4)))]
    scenes = [draw(BETWEEN) + text for text in scenes]
    render = draw(st.sampled_from(["", "render: {seed: 3}\n", "render:\n  seed: 3 # x\n  model: mini\n"]))
    before, after = (render, "") if draw(st.booleans()) else ("", render)
    head = draw(st.sampled_from(["", "# a story\n", "title: 'x' # y\n", "---\n"]))
    texts = [head + before + "scenes:\n", *scenes, after + draw(BETWEEN)]
    if draw(st.booleans()):
        texts = [text.replace("\n", "\r\n") for text in texts]
    if draw(st.booleans()):
        texts[0] = "\ufeff" + texts[0]
    if draw(st.booleans()) and not texts[-1]:
        texts[-2] = texts[-2].rstrip("\r\n")
    return texts[0], texts[1:-1], texts[-1]


@settings(
    max_examples=int(os.environ.get("EDIT_EXAMPLES", "150")),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(stories(), st.data())
def test_any_change_of_any_story_leaves_the_rest(
    story: tuple[str, list[str], str], data: st.DataObject
) -> None:
    head, scenes, tail = story
    text = head + "".join(scenes) + tail
    try:
        source = parse("s", text.encode())
    except ScriptError:
        assume(False)
    assume(not source.faults and len(source.data["scenes"]) == len(scenes))
    number = data.draw(st.integers(1, len(scenes)))
    key = data.draw(st.sampled_from(["seed", "take", "seconds", "action"]))
    value = data.draw(TEXT if key == "action" else st.one_of(st.none(), VALUE))
    given_ = source.data["scenes"][number - 1]
    after = changed(text, number, key, value)
    if after is None:
        return

    # Exactly that one thing changed.
    expected = copy.deepcopy(source.data)
    expected["scenes"][number - 1] = long = as_mapping(given_) if value is not None else given_
    if value is not None:
        long[key] = value
    elif isinstance(long, dict):
        long.pop(key, None)
    result = parse("s", after.encode())
    assert not result.faults
    found = copy.deepcopy(result.data)
    if value is not None:
        found["scenes"][number - 1] = as_mapping(found["scenes"][number - 1])
    assert ended(found) == ended(expected)

    # All around the scene is as it was.
    first = head + "".join(scenes[: number - 1])
    last = "".join(scenes[number:]) + tail
    assert after.startswith(first)
    assert after.endswith(last.lstrip())  # empty lines may belong to a text before them
    if value is None or key == "action" or (isinstance(given_, dict) and key in given_):
        return
    undone = changed(after, number, key, None)
    if isinstance(given_, dict):  # one piece was added, and nothing else
        pairs = enumerate(zip(text, after, strict=False))
        same = next((at for at, (old, new) in pairs if old != new), len(text))
        assert after.endswith(text[same:])
        assert undone in (text, None)
    else:  # what was written is there in its order
        written = iter(after)
        assert all(char in written for char in text if not char.isspace() and char not in "[]-")
        assert undone is not None
        again = parse("s", undone.encode()).data["scenes"][number - 1]
        assert ended(as_mapping(again)) == ended(as_mapping(given_))


def changed(text: str, number: int, key: str, value: object) -> str | None:
    """The changed text; None if without the key a comment would become a part of the text before it."""
    try:
        return with_scene_key(text, number, key, value)
    except UsageError:
        assert value is None
        assert "# deep" in text
        return None


def ended(data: Any) -> Any:
    """Data with texts that end in the same way: the last one of a file without a line end has none."""
    return json.loads(json.dumps(data).replace('\\n"', '"'))


def as_mapping(scene: Any) -> dict[str, Any]:
    if isinstance(scene, str):
        return {"scene": scene}
    return dict(zip(("scene", "action"), scene, strict=True)) if isinstance(scene, list) else dict(scene)


@pytest.mark.parametrize("path", sorted((ROOT / "stories").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_story_can_be_changed(path: Path) -> None:
    text = path.read_text()
    story = parse_story("s", text.encode())
    for number in range(1, len(story.scenes) + 1):
        after = with_scene_key(text, number, "seconds", 1.5)
        scenes = parse_story("s", after.encode()).scenes
        assert [scene.seconds for scene in scenes].count(1.5) == 1
        assert scenes[number - 1] == story.scenes[number - 1].model_copy(update={"seconds": 1.5})


STORY = b"scenes:\n  - [a, b] # x\n"


def test_a_file_is_replaced_with_its_mode_and_a_link_stays_one(tmp_path: Path) -> None:
    path, link = tmp_path / "s.yaml", tmp_path / "link.yaml"
    path.write_bytes(STORY)
    path.chmod(0o640)
    link.symlink_to(path)
    assert edit_story(link, lambda text: with_scene_key(text, 1, "seconds", 2))
    assert path.read_bytes() == b"scenes:\n  - {scene: a, action: b, seconds: 2} # x\n"
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    before = path.stat()
    assert not edit_story(path, lambda text: with_scene_key(text, 1, "seconds", 2))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_change_that_makes_the_story_invalid_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(STORY)
    with pytest.raises(UsageError, match=r"would make .*s\.yaml invalid: unknown key 'colour'"):
        edit_story(path, lambda text: with_scene_key(text, 1, "colour", "red"))
    path.write_bytes(broken := b"scenes: [a]\nx: 1\n")
    with pytest.raises(ScriptError, match="unknown key 'x'"):
        edit_story(path, lambda text: with_scene_key(text, 1, "seconds", 2))
    assert path.read_bytes() == broken
    assert [file.name for file in tmp_path.iterdir()] == ["s.yaml"]


def test_a_file_that_somebody_else_changed_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(STORY)

    def change(text: str) -> str:
        path.write_bytes(STORY + b"# mine\n")
        return with_scene_key(text, 1, "seconds", 2)

    with pytest.raises(OutputError, match="changed by somebody else"):
        edit_story(path, change)
    assert path.read_bytes() == STORY + b"# mine\n"
    assert [file.name for file in tmp_path.iterdir()] == ["s.yaml"]


def test_what_is_no_file_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="standard input"):
        edit_story(STDIN, str.upper)
    with pytest.raises(UsageError, match="cannot be read"):
        edit_story(tmp_path / "none.yaml", str.upper)
    path = tmp_path / "s.yaml"
    path.write_bytes(STORY)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoryreelError, match="write-protected"):
        edit_story(path, lambda text: with_scene_key(text, 1, "seconds", 2))
    assert path.read_bytes() == STORY
