"""The story format: what is allowed, and forty-odd ways to get it wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyreel.cli.app import run
from storyreel.errors import Fault, ScriptError
from storyreel.story.schema import MAX_PROMPT, parse_story, story_schema
from storyreel.story.yaml_source import MAX_BYTES
from tests.conftest import ROOT

PAIR = 'scenes:\n  - ["a fox in the park", "a fox sleeps"]\n'
CAST = "cast:\n  first: {name: a fox, possessive: its}\n"


def parsed(text: str | bytes) -> object:
    return parse_story("story.yaml", text if isinstance(text, bytes) else text.encode())


def test_short_and_long_scenes_casts_and_settings() -> None:
    story = parse_story(
        "s.yaml",
        b"""
title: A fox
cast:
  first: {name: a red fox, possessive: her}
  second: {name: The Panda, noun: bear}
scenes:
  - ["{first} meets {second}", "{first} wags {first.possessive} tail at the {second.noun}"]
  - scene: "{{literal}} {first.noun} and {second.name}"
    action: >
      a folded
      prompt
    seconds: 3
    transition: cut
render: {model: mini, seed: 7, size: 192x128, seconds: 2.5, steps: 9, guidance: 1}
""",
    )
    first, second = story.scenes
    assert story.filled(first.scene) == "a red fox meets The Panda"
    assert story.filled(first.action) == "a red fox wags her tail at the bear"
    assert story.filled(second.scene) == "{literal} red fox and The Panda"
    assert second.action == "a folded prompt"
    assert (first.seconds, first.transition) == (None, "blend")
    assert (second.seconds, second.transition) == (3, "cut")
    assert (story.render.seed, story.render.seconds, story.render.guidance) == (7, 2.5, 1)


def test_a_story_needs_neither_title_nor_cast() -> None:
    story = parse_story("s.yaml", PAIR.encode())
    assert story.title is None
    assert story.filled(story.scenes[0].scene) == "a fox in the park"


# name: (the script, line of the fault, words of the message)
BROKEN: dict[str, tuple[str | bytes, int, str]] = {
    "empty file": ("", 1, "empty"),
    "only a comment": ("# nothing\n", 1, "empty"),
    "a list": ("- a\n- b\n", 1, "mapping"),
    "a word": ("hello\n", 1, "mapping"),
    "no scenes": ("title: A\n", 1, "'scenes' is missing"),
    "no scene": ("scenes: []\n", 1, "at least one scene"),
    "scenes are null": ("scenes:\n", 1, "list"),
    "unknown key": (PAIR + "scnes: 1\n", 3, "unknown key 'scnes'"),
    "unknown key in a scene": (
        "scenes:\n  - scene: a\n    action: b\n    secs: 2\n",
        4,
        "unknown key 'secs'",
    ),
    "unknown key in the cast": (
        "cast:\n  first: {name: a, age: 3}\n" + PAIR,
        2,
        "unknown key 'age'; allowed: name",
    ),
    "unknown setting": (PAIR + "render: {sed: 7}\n", 3, "unknown key 'sed'; allowed: model"),
    "unknown quantization": (
        PAIR + "render: {quantize: int3}\n",
        3,
        "input should be 'none' or 'fp8'",
    ),
    "empty prompt": ('scenes:\n  - ["", b]\n', 2, "empty text"),
    "blank prompt": ('scenes:\n  - [a, "  "]\n', 2, "empty text"),
    "three items": ("scenes:\n  - [a, b, c]\n", 2, "not 3 items"),
    "one item": ("scenes:\n  - [a]\n", 2, "not 1 items"),
    "scene is a number": ("scenes:\n  - 7\n", 2, "a scene is a pair"),
    "scene is an empty text": ("scenes:\n  - ''\n", 2, "empty text"),
    "action without scene": ("scenes:\n  - action: a\n", 2, "'scene' is missing"),
    "scene is a mapping by chance": ("scenes:\n  - Close-up: a fox\n", 2, "quote it if it is text"),
    "a comma in a prompt": (
        "scenes:\n  - [a fox, in a park, it sits]\n",
        2,
        "quote a prompt that holds a comma",
    ),
    "duplicate key": ("title: A\ntitle: B\n" + PAIR, 2, "duplicate key 'title'; first on line 1"),
    "duplicate character": ("cast:\n  a: {name: b}\n  a: {name: c}\n" + PAIR, 3, "duplicate key"),
    "alias bomb": (
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        2,
        "aliases",
    ),
    "3,000 brackets": ("scenes: " + "[" * 3000 + "]" * 3000, 1, "levels deep"),
    "3,000 braces": ("{a: " * 3000 + "1" + "}" * 3000, 1, "levels deep"),
    "unclosed bracket": ("scenes: [\n", 2, "not valid YAML"),
    "tab as indent": ("scenes:\n\t- [a, b]\n", 2, "not valid YAML"),
    "a tag that would run code": ('scenes: !!python/object/apply:os.system ["id"]\n', 1, "tag"),
    "a custom tag": ("scenes:\n  - !exec [a, b]\n", 2, "tag"),
    "binary": ("title: !!binary aGk=\n" + PAIR, 1, "binary"),
    "a tag that drops text": ("title: !!null hello\n" + PAIR, 1, "tag"),
    "a tag that breaks the reader": ('render: {seed: !!int ""}\n' + PAIR, 1, "tag"),
    "a tag on a key": ("!!int title: x\n" + PAIR, 1, "tag"),
    "an escape beyond Unicode": ('title: "\\UFFFFFFFF"\n' + PAIR, 1, "not valid YAML"),
    "a character that is none": ("title: a\ufffe\n" + PAIR, 1, "U+FFFE"),
    "octal": ("render: {seed: 010}\n" + PAIR, 1, "written plainly"),
    "a number YAML does not know": ("render: {steps: 1e3}\n" + PAIR, 1, "expected a whole number"),
    "an invisible prompt": ('scenes:\n  - ["\u200b", b]\n', 2, "empty text"),
    "a cast that is text": ("cast: {first: a dog}\n" + PAIR, 1, "expected a mapping with name"),
    "render is null": ("render:\n" + PAIR, 1, "expected a mapping with model"),
    "a placeholder in the cast": ('cast: {a: {name: "{b}"}}\n' + PAIR, 1, "no placeholders"),
    "unknown model": (PAIR + "render: {model: sora}\n", 3, "known: mini"),
    "more tokens than the model reads": (f"scenes:\n  - [{'quixotic ' * 60}, b]\n", 2, "tokens"),
    "60,000 duplicate keys": ("render: {" + "a: 1, " * 30_000 + "}\n" + PAIR, 1, "more than 20000 values"),
    "6,000 duplicate keys": ("render: {" + "a: 1, " * 6_000 + "}\n" + PAIR, 1, "unknown key 'a'"),
    "a file of control characters": ("\x01" * 200_000, 1, "U+0001"),
    "a line of overrides": ("# " + "\u202e" * 80_000 + "\n" + PAIR, 1, "U+202E"),
    "merge key": ("<<: {title: A}\n" + PAIR, 1, "<<"),
    "a key that is a list": ("? [a]\n: b\n" + PAIR, 1, "plain text"),
    "unknown placeholder": (CAST + 'scenes:\n  - ["{third} walks", b]\n', 4, "unknown placeholder {third}"),
    "placeholder without cast": ('scenes:\n  - [a, "{first} walks"]\n', 2, "no cast"),
    "attribute": (CAST + 'scenes:\n  - ["{first.__class__}", b]\n', 4, "name, noun, possessive"),
    "deep attribute": (CAST + 'scenes:\n  - ["{first.name.upper}", b]\n', 4, "not a placeholder"),
    "index": (CAST + 'scenes:\n  - ["{first[0]}", b]\n', 4, "not a placeholder"),
    "conversion": (CAST + 'scenes:\n  - ["{first!r}", b]\n', 4, "not a placeholder"),
    "format": (CAST + 'scenes:\n  - ["{first:>999999999}", b]\n', 4, "not a placeholder"),
    "empty placeholder": (CAST + 'scenes:\n  - ["{} walks", b]\n', 4, "not a placeholder"),
    "lone brace": ('scenes:\n  - ["a } b", b]\n', 2, "not a placeholder"),
    "bad character name": ("cast:\n  First One: {name: a}\n" + PAIR, 2, "cannot name a character"),
    "seconds 0": ("scenes:\n  - {scene: a, action: b, seconds: 0}\n", 2, "greater than 0"),
    "seconds negative": ("scenes:\n  - {scene: a, action: b, seconds: -1}\n", 2, "greater than 0"),
    "seconds NaN": ("scenes:\n  - {scene: a, action: b, seconds: .nan}\n", 2, "finite"),
    "seconds infinite": ("scenes:\n  - {scene: a, action: b, seconds: .inf}\n", 2, "finite"),
    "seconds 1e12": ("scenes:\n  - {scene: a, action: b, seconds: 1.0e+12}\n", 2, "600"),
    "seconds text": ("scenes:\n  - {scene: a, action: b, seconds: two}\n", 2, "expected a number"),
    "seconds true": ("scenes:\n  - {scene: a, action: b, seconds: true}\n", 2, "expected a number"),
    "seconds as a clock": ("scenes:\n  - {scene: a, action: b, seconds: 12:30}\n", 2, "written plainly"),
    "endless number": (f"render: {{seed: {'9' * 5000}}}\n" + PAIR, 1, "written plainly"),
    "seed negative": (PAIR + "render: {seed: -1}\n", 3, "greater than or equal to 0"),
    "seed fraction": (PAIR + "render: {seed: 1.5}\n", 3, "whole number"),
    "size in words": (PAIR + "render: {size: big}\n", 3, "WIDTHxHEIGHT"),
    "steps 0": (PAIR + "render: {steps: 0}\n", 3, "greater than or equal to 1"),
    "transition unknown": (
        "scenes:\n  - {scene: a, action: b, transition: wipe}\n",
        2,
        "'blend', 'continue', 'dissolve', 'cut', 'fade' or 'dip'",
    ),
    "numbers as prompts": ("scenes:\n  - [1, 2]\n", 2, "expected text, not 1"),
    "norway": ("scenes:\n  - [no, b]\n", 2, "expected text, not false"),
    "nothing as prompt": ("scenes:\n  - [~, b]\n", 2, "expected text, not nothing"),
    "date as prompt": ("scenes:\n  - [2024-01-02, b]\n", 2, "a date"),
    "impossible date": ("title: 2024-13-45\n" + PAIR, 1, "a date"),
    "title number": ("title: 5\n" + PAIR, 1, "expected text, not 5"),
    "prompt too long": (f"scenes:\n  - [{'a' * (MAX_PROMPT + 1)}, b]\n", 2, "at most 2000"),
    "escape character": (b"title: a\x1bb\n" + PAIR.encode(), 1, "U+001B"),
    "escaped control": ('title: "a\\eb"\n' + PAIR, 1, "not even as an escape"),
    "escaped bidi": ('scenes:\n  - ["a\\u202eb", c]\n', 2, "U+202E (right-to-left override)"),
    "bidi": ("scenes:\n  - [a \u202e b, c]\n", 2, "U+202E (right-to-left override)"),
    "null byte": (b"title: a\x00b\n" + PAIR.encode(), 1, "U+0000"),
    "latin-1": ("title: caf\xe9\n".encode("latin-1") + PAIR.encode(), 1, "not UTF-8"),
    "utf-16": (PAIR.encode("utf-16"), 1, "not UTF-8"),
    "two documents": (PAIR + "---\n" + PAIR, 3, "one document"),
    "too large": (PAIR + "#" * MAX_BYTES, 1, "larger than 256 KB"),
    "model the table lacks a size for": (PAIR + "render: {size: 100x100}\n", 3, "nearest it can is 192x128"),
    "length the model cannot do": (
        "scenes:\n  - {scene: a, action: b, seconds: 2.1}\n",
        2,
        "nearest it can: 2 or 2.25",
    ),
    "length beyond the model": (
        "scenes:\n  - {scene: a, action: b, seconds: 30}\n",
        2,
        "nearest it can: 3",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_script(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, line, words = BROKEN[name]
    path = tmp_path / "story.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run(["validate", str(path)]) == 65
    out, err = capsys.readouterr()
    assert out == ""
    head, *rest = err.splitlines()
    assert head.startswith(f"{path}:{line}:"), head
    assert words in head
    column = int(head.removeprefix(f"{path}:").split(":")[1])
    assert column >= 1
    assert ": error: " in head
    assert rest[1].endswith("^")
    assert "Traceback" not in err


def test_all_faults_of_a_file_are_told_in_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(
        'title: 5\ntitle: 6\nscenes:\n  - ["{first} x", ""]\n  - ["a\\e", 5]\n  - 7\nrender: {sed: 1}\n'
    )
    assert run(["validate", str(path)]) == 65
    heads = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(path))]
    places = [tuple(int(part) for part in head.split(":")[1:3]) for head in heads]
    assert places == [(1, 8), (2, 1), (4, 6), (4, 19), (5, 6), (5, 13), (6, 5), (7, 10)]
    path.write_text('scenes:\n  - {}\n  - ["{a} {b}", c]\n')
    assert run(["validate", str(path)]) == 65
    assert capsys.readouterr().err.count(": error: ") == 4


def test_the_caret_stands_under_the_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "story.yaml"
    path.write_text("scenes:\n  - {scene: a, action: b, secnds: 3}\n")
    run(["validate", str(path)])
    _, source, caret = capsys.readouterr().err.splitlines()
    assert source[caret.index("^") :].startswith("secnds")


def test_several_files_are_all_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, worse = (tmp_path / name for name in ("good.yaml", "bad.yaml", "worse.yaml"))
    good.write_text(PAIR)
    bad.write_text("scenes: 1\n")
    worse.write_text("- 1\n")
    assert run(["validate", str(bad), str(good), str(worse)]) == 65
    out, err = capsys.readouterr()
    assert str(good) in out
    assert f"{bad}:1:" in err
    assert f"{worse}:1:" in err


_WORDS = ["\t", ":", "-", '"', "'", "[", "]", "{", "}", "&a", "*a", "!!", "|", ">", "\x00", "\x1b", "é"]
_WORDS += ["%", "@", "`", "---\n", "...\n", "? ", "#", ",", "\r", "\u2028", "\ufeff", "1e999", "0x", "<<: "]
_WORDS += ["=", "!!binary x", "!!timestamp z", "!!int z", ".inf", ".nan", "9" * 5000, "\u202e", "{first}"]
GOOD = (ROOT / "stories" / "dc.yaml").read_text()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_stories_give_faults_and_nothing_else(data: st.DataObject) -> None:
    text = GOOD[: data.draw(st.integers(200, 900))]
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 20))
        text = text[:at] + data.draw(st.sampled_from(["", *_WORDS])) + text[at + cut :]
    _faults_or_story(text.encode("utf-8", "surrogatepass"))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_noise_gives_faults_and_nothing_else(raw: bytes) -> None:
    _faults_or_story(raw)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "title": _values,
            "cast": _values,
            "scenes": _values | st.lists(_values),
            "render": _values,
        },
    )
)
def test_any_data_gives_faults_and_nothing_else(data: object) -> None:
    _faults_or_story(yaml.safe_dump(data, allow_unicode=True).encode())


def _faults_or_story(raw: bytes) -> None:
    try:
        parse_story("s.yaml", raw)
    except ScriptError as error:
        assert error.faults
        for fault in error.faults:
            assert fault.line >= 1
            assert fault.column >= 1
        assert str(error).startswith("s.yaml:")


def test_schema_agrees_with_the_reader() -> None:
    schema = story_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in sorted((ROOT / "stories").glob("*.yaml")):
        validator.validate(yaml.safe_load(path.read_text()))
    for name in (
        "unknown key",
        "three items",
        "one item",
        "scene is a number",
        "action without scene",
        "numbers as prompts",
        "seconds 0",
    ):
        text = BROKEN[name][0]
        assert not validator.is_valid(yaml.safe_load(text)), name


def test_a_scene_may_have_one_prompt_which_is_both() -> None:
    short = "scenes:\n  - a fox in the park\n  - {scene: a fox sleeps, seconds: 2, transition: cut}\n"
    story = parse_story("s.yaml", short.encode())
    assert [(s.scene, s.action, s.transition) for s in story.scenes] == [
        ("a fox in the park", "a fox in the park", "blend"),
        ("a fox sleeps", "a fox sleeps", "cut"),
    ]
    long = 'scenes:\n  - ["a fox in the park", "a fox in the park"]\n'
    assert parse_story("s.yaml", long.encode()).scenes[0] == story.scenes[0]
    jsonschema.Draft202012Validator(story_schema()).validate(yaml.safe_load(short))
    with pytest.raises(ScriptError) as caught:
        parse_story("s.yaml", b"scenes:\n  - '{first} x'\n  - {scene: 7}\n  - {scene: ''}\n")
    assert [(fault.line, fault.column) for fault in caught.value.faults] == [(2, 5), (3, 13), (4, 13)]


# A line that lacks quotes, where the fault is, and the line as it was meant.
UNQUOTED = [
    ("  - scene: Close-up: a fox in Central Park", 20, '- scene: "Close-up: a fox in Central Park"'),
    ('  - scene: "Wait" says a fox', 19, "- scene: '\"Wait\" says a fox'"),
    ('  - scene: "Run!", says a fox', 18, "- scene: '\"Run!\", says a fox'"),
    ("  - scene: {first} is in the park", 20, '- scene: "{first} is in the park"'),
    ("  - {first} is in the park", 13, '- "{first} is in the park"'),
    ("  - [{first} walks, {first} sits]", 14, '- ["{first} walks", "{first} sits"]'),
    ("  - scene: 'It's a fox'", 16, '- scene: "It\'s a fox"'),
    ('  - ["a "red" fox", it sits]', 10, "- ['a \"red\" fox', it sits]"),
    ("  - {scene: Close-up: a fox, action: it sits}", 21, '- {scene: "Close-up: a fox", action: it sits}'),
    ("  - [a fox at gate #7, it sits]", 20, '- ["a fox at gate #7", it sits]'),
    ("  - scene: @night, a fox", 12, '- scene: "@night, a fox"'),
    ("  - scene: [sigh] a fox", 19, '- scene: "[sigh] a fox"'),
    ("  - scene: > a fox", 14, '- scene: "> a fox"'),
    ("  - scene: *star* fox", 17, '- scene: "*star* fox"'),
    ("  - scene: *star fox", 12, '- scene: "*star fox"'),
    ("  - scene: 50% - a fox: the film # the first", 23, '- scene: "50% - a fox: the film" # the first'),
    ("  - scene: a fox at gate #7 of the station", 26, '- scene: "a fox at gate #7 of the station"'),
    ("  - a fox at gate # 7", 19, '- "a fox at gate # 7"'),
    ('  - scene: a "red" fox #7', 24, "- scene: 'a \"red\" fox #7'"),
]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize(("line", "column", "meant"), UNQUOTED)
def test_text_that_lacks_quotes_is_refused_and_shown_with_them(
    line: str, column: int, meant: str, end: str
) -> None:
    """With what is wrong behind it; and written so it is read."""
    rest = "render: {sed: 7}\n"
    text = f"{CAST}scenes:\n{line}\n{rest}".replace("\n", end)
    with pytest.raises(ScriptError) as caught:
        parse_story("s.yaml", text.encode())
    fault, following = caught.value.faults
    assert (fault.line, fault.column, fault.mended) == (4, column, meant)
    assert "quote it" in fault.message
    assert fault.source == line
    assert str(caught.value).splitlines()[3] == f"write | {meant}"
    assert (following.line, following.message[:17]) == (5, "unknown key 'sed'")
    indent = line[: len(line) - len(line.lstrip())]
    parse_story("s.yaml", f"{CAST}scenes:\n{indent}{meant}\n".replace("\n", end).encode())


@pytest.mark.parametrize(
    "comment",
    ["# the first", "#  the first", "# é", "#\tthe first", "# (7)", "#"],
)
def test_comments_stay_comments(comment: str) -> None:
    text = f"{CAST}scenes: {comment}\n  - scene: a fox {comment if len(comment) > 1 else '# x'}\n"
    text += f'    transition: cut #or blend\n    action: "it sits" {comment}7\n  - [a, b] {comment}7\n'
    text += "  #- a fox at gate #7\n  - |\n    at gate #7\nrender: {seed: 7} #7\n"
    assert [scene.scene for scene in parse_story("s.yaml", text.encode()).scenes] == [
        "a fox",
        "a",
        "at gate #7",
    ]


def test_a_text_over_several_lines_is_cut_off_by_no_number_sign() -> None:
    lists = b"scenes:\n  - [a fox at gate #7,\n     it sits]\n"
    lines = b"scenes:\n  - scene: a fox at gate #7\n      of the station\n    action: b\n"
    for text, column in ((lists, 20), (lines, 26)):
        with pytest.raises(ScriptError) as caught:
            parse_story("s.yaml", text)
        (fault,) = caught.value.faults
        assert (fault.line, fault.column, fault.mended) == (2, column, "")
        assert "number sign" in fault.message


def test_a_comment_is_not_blamed_for_what_is_wrong_beside_it() -> None:
    for line in ("  - [a, b] #first\n", '  - {scene: "a", action: b} #1\n', "  # [a #1\n", '  - "a" #1\n'):
        with pytest.raises(ScriptError) as caught:
            parse_story("s.yaml", f"scenes:\n{line}  - [c, d\n".encode())
        assert "comment" not in caught.value.faults[-1].message
        assert caught.value.faults[-1].line >= 3


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("title: t\nscenes:\n\u00a0\u00a0- [a, b]\n", [(3, 1)]),
        ("scenes:\n  -\u00a0[a, b]\n  -\u3000[c, d]\nrender:\u202f{seed: 1}\n", [(2, 4), (3, 4), (4, 8)]),
        ("scenes:\n  - scene: a\n\u2007   action: b: c\n", [(3, 1), (3, 14)]),
        ("scenes:\n  - scene:\u200ba fox\n    action: b\n", [(2, 11)]),
    ],
)
def test_a_blank_that_is_none_is_named_where_it_is(text: str, places: list[tuple[int, int]]) -> None:
    with pytest.raises(ScriptError) as caught:
        parse_story("s.yaml", text.encode())
    assert [(fault.line, fault.column) for fault in caught.value.faults] == places
    assert re.match(r"U\+[0-9A-F]{4} \(.*(space|SPACE).*\) is not a blank", caught.value.faults[0].message)


def test_a_blank_that_is_none_is_named_in_keys_and_lists_too() -> None:
    for text in ("scenes:\n  \u00a0- [a, b]\n", PAIR + "render: {seed:\u00a07}\n"):
        with pytest.raises(ScriptError, match=r"U\+00A0 \(no-break space\) is not a blank"):
            parse_story("s.yaml", text.encode())


def test_other_blanks_inside_a_text_are_text() -> None:
    story = parse_story("s.yaml", "scenes:\n  - [　猫が走る, 'Qui\u00a0? Lui\u00a0!']\n".encode())
    assert (story.scenes[0].scene, story.scenes[0].action) == ("猫が走る", "Qui ? Lui !")


def test_many_lines_that_lack_quotes_are_told_in_one_run() -> None:
    with pytest.raises(ScriptError) as caught:
        parse_story("s.yaml", (CAST + "scenes:\n" + "  - {first} sits: here\n" * 30).encode())
    assert [fault.line for fault in caught.value.faults] == list(range(4, 34))


def test_the_schema_beside_the_examples_is_this_one() -> None:
    path = ROOT / "stories" / "story.schema.json"
    assert json.loads(path.read_text()) == story_schema()
    for story in (ROOT / "stories").glob("*.yaml"):
        assert story.read_text().startswith(f"# yaml-language-server: $schema={path.name}\n")


@pytest.mark.parametrize(("before", "cells"), [("猫が", 4), ("e\u0301", 1), ("é", 1), ("ab", 2)])
def test_a_caret_counts_cells_of_a_terminal_and_not_characters(before: str, cells: int) -> None:
    fault = Fault("wrong", 3, len(before) + 1, f"{before}x")
    assert fault.format("a.yaml").splitlines()[2] == "      | " + " " * cells + "^"
