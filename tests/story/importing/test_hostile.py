"""Files that mean no good, or are badly made: a story, or a refusal with what to do; never a traceback."""

from __future__ import annotations

import json
import string
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyreel.errors import FormatError
from storyreel.models.specs import find_model
from storyreel.story.importing import FORMATS, Imported, convert
from storyreel.story.schema import parse_story

MINI = find_model("mini")

# name: (the file, words of the refusal)
REFUSED: dict[str, tuple[bytes, str]] = {
    "huge.txt": (b"a fox\n" * 1_000_000, "larger than 4 MB"),
    "binary.txt": (bytes(range(1, 256)), "line 2 is not UTF-8"),
    "null.txt": (b"a\0b", "no text file"),
    "latin.txt": ("a café\nb".encode("latin-1"), "line 1 is not UTF-8"),
    "half.txt": (b"\xff\xfea", "not UTF-16"),
    "empty.txt": (b"", "is empty"),
    "blank.txt": (b"\xef\xbb\xbf \r\n", "is empty"),
    "invisible.txt": ("\u3164\n\u200b".encode(), "has no prompt"),
    "deep.json": (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "deeper.json": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deep"),
    "nan.json": (b'{"prompts": ["a"], "x": NaN}', "NaN"),
    "infinite.json": (b'{"prompts": ["a"], "x": 1e999}', "1e999"),
    "twice.json": (b'{"prompts": ["a"], "prompts": ["b"]}', "'prompts' twice"),
    "digits.json": (b'{"prompts": ["a"], "x": ' + b"9" * 10_000 + b"}", "too long"),
    "numbers.json": (b'{"prompts": [1, 2]}', "no list of prompts"),
    "mixed.json": (b'["a", 1]', "no list of prompts"),
    "nothing.json": (b"null", "no mapping"),
    "cut.json": (b'{"scenes": [{"video_prompts": "a"}]}', "scenes[0].video_prompts is no list"),
    "frames.json": (b'{"0": "a", "00": "b"}', "two prompts for one frame"),
    "shots.json": (b'{"Shots": [{"Static Shot Description": 5}]}', "has no prompt"),
    "alias.yaml": (b"a: &a [x]\nprompts: *a\n", "line 2: aliases"),
    "twice.yaml": (b"prompts: [a]\nprompts: [b]\n", "duplicate key"),
    "tag.yaml": (b"prompts: !!python/object/apply:os.system [id]\n", "tag"),
    "deep.py": (b"prompts = " + b"(" * 5000 + b")" * 5000, "Python"),
    "nul.py": (b"prompts = ['a']\0", "no text file"),
    "computed.py": (b"prompts = [f'{x}']", "no list of prompts"),
    "struck.fountain": (b"/* INT. PARK", "has no prompt"),
    "sections.fountain": (b"#\n" * 5000, "has no prompt"),
    "headings.fountain": (b"INT. PARK\n" * 3000, "3000 prompts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name: str) -> None:
    raw, words = REFUSED[name]
    with pytest.raises(FormatError) as caught:
        convert(name, raw, MINI)
    assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("bom.txt", b"\xef\xbb\xbfa fox\r\na dog\r\n"),
        ("utf16.txt", "a fox\r\na dog".encode("utf-16")),
        ("old.txt", b"a fox\ra dog\r"),
        ("bom.json", b'\xef\xbb\xbf["a fox", "a dog"]'),
        ("escape.py", b"prompts = ['a fox', 'a dog']\nx = '\\d'"),  # Python warns of that
        ("stdin", b"- a fox\n- a dog\n"),
        ("stdin", b'["a fox", "a dog"]'),
        ("stdin", b"a fox\na dog\n"),
    ],
)
def test_marks_ends_of_lines_and_encodings_change_nothing(name: str, raw: bytes) -> None:
    assert [scene.scene for scene in convert(name, raw, MINI).story.scenes] == ["a fox", "a dog"]


def test_braces_and_signs_of_yaml_are_text() -> None:
    texts = [
        "a {fox} }} {{ x",
        "[x] #7: 'a' \"b\"",
        "yes",
        "- ~",
        "1.5",
        "null",
        "*a &b !c",
        "a: b # c",
        "\\N % @ `",
    ]
    made = convert("a.json", json.dumps({"title": "t: #1 {x}", "prompts": texts}).encode(), MINI)
    assert [made.story.filled(scene.scene) for scene in made.story.scenes] == texts
    assert made.story.title == "t: #1 {x}"


def test_what_no_story_may_have_is_left_out_and_said() -> None:
    made = convert("a.json", b'{"title": "a\\u001bb", "prompts": ["a \\ud800 \\u202e fox"]}', MINI)
    assert made.story.scenes[0].scene == "a fox"
    assert made.left_out == ["control characters (the title, prompts[0])"]
    entity = b'{"scenes":[{"video_prompts":["a"],"action_descriptions":["b"],"cut":1}],"entity_descriptions":'
    entity += (
        b'{"a":{"name":"{b}","description":"x {y}"}},"entity_schedule":{"1:1":{"places":5,"characters":[1]}}}'
    )
    assert convert("a.json", entity, MINI).story.scenes[0].scene == "b"


@pytest.mark.parametrize(
    "raw",
    [
        b"(" * 19_000,
        b"(a:1" * 1500 + b")" * 1500,
        b"[1s:" * 50_000,
        b"[[a]]" * 50_000 + b"\n\nINT. X\n\na",
        b"*a " * 60_000,
        b"( " * 9_000,
    ],
)
def test_no_text_takes_long(raw: bytes) -> None:
    began = time.process_time()
    for name in ("a.txt", "a.fountain"):
        try:
            convert(name, raw, MINI)
        except FormatError:
            continue
    assert time.process_time() - began < 20  # of this process: some of these once took minutes


_KEYS = [
    *("prompts", "prompt", "scenes", "video_prompts", "action_descriptions", "cut", "Shots", "0", "16"),
    *("Static Shot Description", "Setting Description", "Characters", "en", "shots", "shot_captions"),
    *("entity_schedule", "entity_descriptions", "1:1", "name", "title", "seed", "prompt_map", "params"),
]
_WORDS = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)
_SIGNS = st.text(alphabet=string.punctuation + " \n\t019asBA", max_size=60)
_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS | _SIGNS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def is_whole(made: Imported) -> None:
    """Hold a result against its promises: a story, readable lines, and nothing lost on the way."""
    again = parse_story("again", made.text.encode())
    assert again.model_dump() == made.story.model_dump()
    for line in made.text.splitlines():
        assert len(line) <= 110 or " " not in line.strip().removeprefix("# ").removeprefix("- ")[90:]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_VALUES)
def test_any_data_becomes_a_story_or_is_refused(value: Any) -> None:
    raw = json.dumps(value).encode()
    for name in ("a.json", "a.yaml"):
        try:
            is_whole(convert(name, raw, MINI))
        except FormatError as error:
            assert error.remedy


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_WORDS | _SIGNS, min_size=1, max_size=6), st.sampled_from(["", *FORMATS]))
def test_any_text_becomes_a_story_or_is_refused(texts: list[str], wanted: str) -> None:
    raw = "\n".join(texts).encode("utf-8", "surrogatepass")
    for name in ("a.txt", "a.fountain", "a.py"):
        try:
            is_whole(convert(name, raw, MINI, wanted))
        except FormatError as error:
            assert error.remedy


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=300), min_size=1
    )
)
def test_prompts_come_back_as_they_were(texts: list[str]) -> None:
    wanted = [" ".join(text.split()) for text in texts]
    wanted = [text for text in wanted if any(char.isprintable() and char not in " \u3164" for char in text)]
    try:
        made = convert("a.json", json.dumps({"global_caption": "", "shot_captions": texts}).encode(), MINI)
    except FormatError:
        assert not wanted
        return
    assert [made.story.filled(scene.scene) for scene in made.story.scenes] == wanted
