"""The story as a user writes it in YAML: what it may hold, and every fault of one that is read."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from storyreel.errors import Fault, ScriptError, UsageError
from storyreel.method.settings import Method, legal_values
from storyreel.models.lora import STRONGEST
from storyreel.story.cards import card_lines
from storyreel.story.quoting import ODD_BLANKS
from storyreel.story.yaml_source import MAX_BYTES, Source, character, parse

MAX_PROMPT = 2000  # characters, with the names filled in
MAX_SCENES = 1000
SIZE_PATTERN = r"[1-9][0-9]{1,4}x[1-9][0-9]{1,4}"
MAX_SECONDS = 600.0
MAX_LORAS = 20  # that are merged at a time
MAX_SOUND = 4 * 3600.0  # seconds of a file that is heard
MAX_ERRORS = 200  # of pydantic's that are reported of one file
HANGUL_FILLER = "\u3164"  # a letter that shows nothing

STDIN = Path("-")  # stands for standard input
SCHEMA_ID = "https://storyreel.invalid/story.schema.json"  # a name, not a place to fetch from
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([a-z][a-z0-9_]*)(?:\.([a-z_]+))?\}|[{}][^{}]{0,40}}?")
CAST_FIELDS = ("name", "noun", "possessive")
_CARDS = ("opening", "ending")
# Keys of free texts.
_TEXTS = (
    *("title", "scene", "action", *_CARDS, "card", *CAST_FIELDS, "say", "text", "audio", "file"),
    *("negative", "picture", "lora"),
)
# What `say` takes for a file's name instead of words: it ends like sound, or like a film that has some.
SOUND_FILE = re.compile(
    r"\.(wav|flac|mp3|m4a|m4b|aac|ogg|oga|opus|aiff?|caf|wma|mka|mp4|m4v|mov|mkv|webm|avi)$", re.I
)


def one_line(value: object) -> object:
    """Join the lines of a folded text; one without a visible character becomes empty."""
    if not isinstance(value, str):
        return value
    visible = any(unicodedata.category(c)[0] in "LNPS" and c != HANGUL_FILLER for c in value)
    return " ".join(value.split()) if visible else ""


def _lines(value: object) -> object:
    """Tidy a text of several lines; one without a visible character becomes empty."""
    if not isinstance(value, str):
        return value
    return card_lines(value) if one_line(value) else ""


def _no_braces(value: str) -> str:
    if "{" in value or "}" in value:
        raise PydanticCustomError("braces", "texts of the cast have no placeholders; take out the braces")
    return value


def _no_placeholders(value: str) -> str:
    if "{" in value or "}" in value:
        raise PydanticCustomError("braces", "a negative prompt has no placeholders; take out the braces")
    return value


Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, pattern=r"\S"), BeforeValidator(one_line)]
CastText = Annotated[Prompt, AfterValidator(_no_braces)]
Negative = Annotated[
    str, Field(max_length=MAX_PROMPT), BeforeValidator(one_line), AfterValidator(_no_placeholders)
]
CardLines = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT), BeforeValidator(_lines)]
FileName = Annotated[str, Field(min_length=1, max_length=1000)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
OwnSeconds = Annotated[
    Annotated[Seconds, Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(lambda value: "auto" if value == "auto" else "number"),
]
Size = Annotated[str, Field(pattern=f"^{SIZE_PATTERN}$", examples=["96x64", "848x480"])]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Transition = Literal["blend", "continue", "dissolve", "cut", "fade", "dip"]
APART = ("cut", "fade", "dip")  # transitions that an editor makes: nothing of the shot before is in the next


class _Strict(BaseModel):
    """No unknown keys, no silent conversions, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what came to the format LATER and is not used: hashes of older stories stay the same."""
        written: dict[str, Any] = handler(self)
        return {key: value for key, value in written.items() if key not in self.LATER or value is not None}


class Character(_Strict):
    """A member of the cast: ``{first}`` in a prompt becomes ``name``."""

    LATER = frozenset({"picture"})

    name: CastText = Field(description="With its article: 'a corgi dog'.")
    possessive: CastText = Field(default="its", description="his, her, its, their: {first.possessive}.")
    noun: CastText | None = Field(default=None, description="Without article; by default taken from name.")
    picture: FileName | None = Field(
        default=None,
        description="A picture file, with which the first scene that names the member begins. It is the "
        "first of the film, or begins with cut, fade or dip.",
    )

    def field(self, name: str) -> str:
        """Return the text of a field, by its name."""
        if name == "noun":
            return self.noun or re.sub(r"^(an?|the)\s+", "", self.name)
        return {"name": self.name, "possessive": self.possessive}[name]


class Card(_Strict):
    """Text on a plain picture, for some seconds: a title, or the end."""

    text: CardLines = Field(description="Names are filled in, as in a prompt; lines stay lines.")
    seconds: Seconds = Field(default=3.0, description="To the nearest frame.")
    ground: Literal["black", "white"] = Field(default="black", description="The text is of the other colour.")

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "minLength": 1, "pattern": r"\S"}, handler(schema)]}


def _long_card(value: object) -> object:
    """Turn a card's text into its long form."""
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        words = "a card is text, or has the keys {known}"
        raise PydanticCustomError("card", words, {"known": ", ".join(Card.model_fields)})
    return value


AnyCard = Annotated[Card, BeforeValidator(_long_card)]


Decibels = Annotated[float, Field(ge=-60, le=20, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, le=MAX_SOUND, allow_inf_nan=False)]


class SceneSound(_Strict):
    """A sound from a file, in its short form the file's name. It is levelled before anything is added."""

    file: FileName = Field(description="Sound, or a film with sound; relative to the story's file.")
    volume: Decibels = Field(default=0.0, description="In dB, added to the usual level.")
    start: Moment = Field(default=0.0, description="Seconds from the beginning of the scene, or film.")
    skip: Moment = Field(default=0.0, description="Seconds that are left out at the file's beginning.")
    fade: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] | None = Field(
        default=None, description="Seconds in which it comes and goes."
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        short = {"type": "string", "minLength": 1, "maxLength": 1000, "description": "Short form: a file."}
        return {"anyOf": [short, handler(schema)]}


class Music(SceneSound):
    """The film's own sound: music, or an atmosphere. Where somebody speaks it is softer."""

    loop: bool = Field(default=False, description="Begin again where the file ends, up to the film's end.")


class Say(_Strict):
    """What is said in a scene: a text for the voice, or a recording, whose words may be told for captions.

    Its short form is the text; one that ends like a file of sound is a file's name.
    """

    text: Prompt | None = Field(default=None, description="The words; without a file, the voice says them.")
    file: FileName | None = Field(default=None, description="A recording; relative to the story's file.")
    volume: Decibels = Field(default=0.0, description="In dB, added to the usual level.")
    start: Moment = Field(default=0.0, description="Seconds from the beginning of the scene.")

    @model_validator(mode="after")
    def _something(self) -> Say:
        if self.text is None and self.file is None:
            raise PydanticCustomError("say", "something is said: give it a text, or a file")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        short = {"type": "string", "minLength": 1, "maxLength": MAX_PROMPT, "pattern": r"\S"}
        short["description"] = "Short form: words for the voice, or the name of a recording's file."
        return {"anyOf": [short, handler(schema)]}


class VoiceSettings(_Strict):
    """The voice that says texts; it comes with storyreel's extra ``voice``."""

    speaker: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")] = Field(
        default="heart", description="A speaker of the package that is on this machine."
    )
    speed: Annotated[float, Field(ge=0.5, le=2, allow_inf_nan=False)] = Field(
        default=1.0, description="2 is twice as fast."
    )


def _sound_form(value: object) -> object:
    """Turn the short form of a sound, a file's name, into the long one."""
    if isinstance(value, str):
        return {"file": value}
    if not isinstance(value, dict):
        raise PydanticCustomError("sound", "a sound is the name of a file, or has the key file")
    return value


def _say_form(value: object) -> object:
    """Turn the short form of what is said, words or a file's name, into the long one."""
    if isinstance(value, str):
        return {"file" if SOUND_FILE.search(value) else "text": value}
    if not isinstance(value, dict):
        words = "what is said is a text, the name of a recording, or has the key text or file"
        raise PydanticCustomError("say", words)
    return value


class LoraFile(_Strict):
    """A LoRA: a file of low-rank changes that are merged into the model's weights. Short: the file's name."""

    file: FileName = Field(description="Of safetensors; relative to the story's file.")
    weight: Annotated[float, Field(ge=-STRONGEST, le=STRONGEST, allow_inf_nan=False)] = Field(
        default=1.0, description="How strongly it counts."
    )
    experts: Literal["all", "high", "low"] | None = Field(
        default=None,
        description="Of a model with two transformers, that which it is for: for high noise levels, or low "
        "ones. By default what the file's name says with high_noise or low_noise, else all.",
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        short = {"type": "string", "minLength": 1, "maxLength": 1000, "description": "Short form: a file."}
        return {"anyOf": [short, handler(schema)]}


def _lora_form(value: object) -> object:
    """Turn the short form of a LoRA, a file's name, into the long one."""
    if isinstance(value, str):
        return {"file": value}
    if not isinstance(value, dict):
        raise PydanticCustomError("lora", "a LoRA is the name of a file, or has the key file")
    return value


class _OneOrSeveral:
    """Lets an editor accept one item in place of a list."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


Loras = Annotated[
    list[Annotated[LoraFile, BeforeValidator(_lora_form)]],
    Field(max_length=MAX_LORAS),
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    _OneOrSeveral(),
]


class Retake(_Strict):
    """Another take of a scene, which the film shows instead of the first one.

    It is made to fit between the first takes of its neighbours, and changes no other scene.
    """

    take: Annotated[int, Field(ge=2, le=9999)] = Field(description="Its number; the first take is 1.")
    seed: Seed | None = Field(default=None, description="Else it follows from the number.")
    scene: Prompt | None = Field(default=None, description="Else as the scene's own.")
    action: Prompt | None = Field(default=None, description="Else as the scene's own.")

    @property
    def written(self) -> int | dict[str, Any]:
        """What a story says of it: its number, if that is all."""
        said = self.model_dump(exclude_none=True)
        return said if len(said) > 1 else self.take

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        number = {"type": "integer", "minimum": 2, "maximum": 9999, "description": "Short form: the number."}
        return {"anyOf": [number, handler(schema)]}


def _numbered(value: object) -> object:
    """Turn the short form of a retake, its number, into the long one."""
    return {"take": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Scene(_Strict):
    """One scene: the setting, and what the character does there. One prompt alone is both."""

    LATER = frozenset({"card", "say", "audio", "seed", "retake", "picture", "lora"})

    scene: Prompt = Field(description="The setting, with who is there.")
    action: Prompt = Field(description="What the character does; by default the scene prompt says it too.")
    seconds: OwnSeconds | None = Field(
        default=None,
        description="Length in the film; else the story's. auto: that of its speech, else of its audio.",
    )
    transition: Transition = Field(
        default="blend",
        description="How the scene begins: continue goes on in the shot before, dissolve passes over to "
        "another place, blend is one of the two, by whether both scenes name one place; cut is a hard cut, "
        "fade passes through black, dip through white.",
    )
    seed: Seed | None = Field(
        default=None, description="Else it follows from the film's and the scene prompt."
    )
    retake: Annotated[Retake | None, BeforeValidator(_numbered)] = Field(
        default=None, description="The take that the film shows, if it is not the first one."
    )
    say: Annotated[Say, BeforeValidator(_say_form)] | None = Field(
        default=None, description="What is said: words for the voice, or a recording."
    )
    audio: Annotated[SceneSound, BeforeValidator(_sound_form)] | None = Field(
        default=None, description="What else is heard in the scene: a file."
    )
    card: AnyCard | None = Field(default=None, description="Text that is shown before the scene.")
    picture: FileName | None = Field(
        default=None,
        description="A picture file that the scene begins with, relative to the story's file; scaled, and "
        "cut at its centre, to the film's size.",
    )
    lora: Loras | None = Field(
        default=None, description="LoRAs of this scene, instead of the film's; [] is none."
    )

    @property
    def shown(self) -> tuple[str, str]:
        """The scene and the action prompt, as written, of the take that the film shows."""
        if self.retake is None:
            return self.scene, self.action
        scene = self.retake.scene or self.scene
        own = scene if self.action == self.scene else self.action  # one prompt is both
        return scene, self.retake.action or own

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        prompt = {"type": "string", "minLength": 1, "maxLength": MAX_PROMPT, "pattern": r"\S"}
        pair = {
            "type": "array",
            "prefixItems": [
                prompt | {"title": "scene prompt"},
                prompt | {"title": "action prompt"},
            ],
            "items": False,
            "minItems": 2,
            "description": "Short form: [scene prompt, action prompt].",
        }
        one = prompt | {"title": "prompt", "description": "Shortest form: one prompt for scene and action."}
        long = handler(schema)
        long["required"] = ["scene"]
        return {"anyOf": [one, pair, long]}


def _long_form(value: object) -> object:
    """Turn the short forms of a scene, a pair of prompts or one for both, into the long one."""
    if isinstance(value, str):
        return {"scene": value, "action": value}
    if isinstance(value, list):
        if len(value) != 2:
            hint = "; quote a prompt that holds a comma" if len(value) > 2 else ""
            words = "a scene is a pair [scene prompt, action prompt], not {n} items{hint}"
            raise PydanticCustomError("pair", words, {"n": len(value), "hint": hint})
        return {"scene": value[0], "action": value[1]}
    if not isinstance(value, dict):
        raise PydanticCustomError(
            "scene", "a scene is a pair [scene prompt, action prompt], one prompt, or has the key scene"
        )
    if value and not value.keys() & Scene.model_fields.keys():
        words = "a scene has the keys {known}, none of them is here; quote it if it is text with a colon"
        raise PydanticCustomError("scene", words, {"known": ", ".join(Scene.model_fields)})
    if "scene" in value and "action" not in value:
        return value | {"action": value["scene"]}
    return value


class RenderSettings(_Strict):
    """How to render the story; the command line takes precedence."""

    LATER = frozenset({"negative", "shift", "lora"})

    model: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    seed: Seed | None = None
    size: Size | None = Field(default=None, description="WIDTHxHEIGHT in pixels.")
    seconds: Seconds | None = Field(default=None, description="Length of scenes that name none.")
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] | None = None
    negative: Negative | None = Field(
        default=None,
        description="What guidance leads away from, in all scenes; empty text is nothing. Default: the "
        "model's.",
    )
    shift: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = Field(
        default=None,
        description="How strongly noise levels are shifted towards noise, for a model with a choice of that. "
        "Default: the model's, by the pictures' size.",
    )
    speed: Literal["exact", "balanced", "fast"] | None = Field(
        default=None, description="How much of the denoising is computed and how much is guessed."
    )
    quantize: Literal["none", "fp8"] | None = Field(
        default=None, description="fp8 stores the model's weights in less memory, at some cost in quality."
    )
    lora: Loras | None = Field(
        default=None, description="LoRAs of all scenes that name none of their own: a file, or several."
    )
    method: Method = Field(default=Method(), description="How segments become one film.")


@dataclass(frozen=True)
class Casting:
    """Who plays a story's members instead: texts by member and field. One with a name is somebody new.

    ``singly`` are those who were named one by one: a story that knows nobody of that name refuses them.
    ``files`` has the file of each who is of one.
    """

    texts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    singly: frozenset[str] = frozenset()
    files: Mapping[str, str] = field(default_factory=dict)


NOBODY_ELSE = Casting()


@dataclass(frozen=True)
class Piece:
    """A part of a prompt: its text, and how it is written there.

    One that a placeholder stands for is a ``field`` of a ``member`` of the cast.
    """

    text: str
    written: str
    member: str | None = None
    field: str | None = None


class Story(_Strict):
    """A film in scene pairs."""

    LATER = frozenset({"opening", "ending", "font", "audio", "voice"})

    title: (
        Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S"), BeforeValidator(one_line)] | None
    ) = None
    cast: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Character] = {}
    scenes: list[Annotated[Scene, BeforeValidator(_long_form)]] = Field(min_length=1, max_length=MAX_SCENES)
    opening: AnyCard | None = Field(default=None, description="Text that the film begins with.")
    ending: AnyCard | None = Field(default=None, description="Text that the film ends with.")
    font: Annotated[str, Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="A TrueType or OpenType file for cards, from the story's folder on."
    )
    render: RenderSettings = RenderSettings()
    audio: Annotated[Music, BeforeValidator(_sound_form)] | None = Field(
        default=None, description="Music, or another sound, for all of the film: a file."
    )
    voice: VoiceSettings | None = Field(default=None, description="The voice that says texts.")

    _source: Source | None = PrivateAttr(None)
    _given: frozenset[tuple[str, str]] = PrivateAttr(frozenset())  # texts of the cast that the file lacks
    _doubts: tuple[str, ...] = PrivateAttr(())
    _cast_files: dict[str, str] = PrivateAttr({})

    def fault(self, message: str, *location: str | int) -> Fault:
        """Return a fault at ``location``, keys and indices, for checks of a later stage."""
        return self._source.fault(message, location) if self._source else Fault(message)

    @property
    def path(self) -> str:
        """The file that the story was read from."""
        return self._source.path if self._source else "story"

    @property
    def has_sound(self) -> bool:
        """Tell whether anything is to be heard."""
        return self.audio is not None or any(scene.say or scene.audio for scene in self.scenes)

    def cards(self) -> Iterator[tuple[int, Card, tuple[str | int, ...]]]:
        """Yield the cards in their order: before which scene, by its index, each is shown, and its place."""
        if self.opening:
            yield 0, self.opening, ("opening",)
        for index, scene in enumerate(self.scenes):
            if scene.card:
                yield index, scene.card, ("scenes", index, "card")
        if self.ending:
            yield len(self.scenes), self.ending, ("ending",)

    @property
    def font_path(self) -> Path | None:
        """The file of the cards' font."""
        return Path(self.path).parent / self.font if self.font else None

    def loras(self) -> Iterator[tuple[int | None, LoraFile, tuple[str | int, ...]]]:
        """Yield all LoRAs with their places; each with the index of its scene, None for the film's."""
        of_scenes = ((index, scene.lora) for index, scene in enumerate(self.scenes))
        for scene, files in ((None, self.render.lora), *of_scenes):
            place: tuple[str | int, ...] = ("render",) if scene is None else ("scenes", scene)
            for index, file in enumerate(files or ()):
                yield scene, file, (*place, "lora", index)

    @property
    def is_from_file(self) -> bool:
        """Tell whether it was read from a file, beside which others lie, and not from a manifest."""
        return self._source is not None

    def where(self, words: Sequence[str], *location: str | int) -> list[Fault]:
        """Return the place of each of some words of a text, in their order, as faults that say nothing."""
        if self._source is None:
            return [Fault("")] * len(words)
        if location[:1] == ("cast",) and location[1:] in self._given:  # where that member is first mentioned
            for place, text in _prompts(self._source):
                for match in _PLACEHOLDER.finditer(text):
                    if match[1] == location[1]:
                        return self._source.where([match[0]], place) * len(words)
        match location:  # the short form has indices where the long one has keys; one prompt may be both
            case ("scenes", int(index), "scene" | "action" as key):
                given = self._source.data["scenes"][index]
                if isinstance(given, list):
                    location = ("scenes", index, ("scene", "action").index(key))
                elif isinstance(given, dict) and key not in given:
                    location = ("scenes", index, "scene")
        return self._source.where(words, location)

    @property
    def cast_files(self) -> Mapping[str, str]:
        """The files of those members who are not the story's own, by the member."""
        return self._cast_files

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is probably not meant of the casting that it was read with."""
        return self._doubts

    @property
    def is_cast_anew(self) -> bool:
        """Whether the casting that it was read with changes anybody's texts."""
        return bool(self._given)

    def filled(self, text: str) -> str:
        """Return a prompt with its placeholders filled in."""
        return "".join(piece.text for piece in self.pieces(text))

    def pieces(self, text: str) -> Iterator[Piece]:
        """Yield the parts of a prompt, one after the other: plain text, and what stands for the cast."""
        at = 0
        for match in _PLACEHOLDER.finditer(text):
            if at < match.start():
                yield Piece(text[at : match.start()], text[at : match.start()])
            if match[0] in ("{{", "}}"):
                yield Piece(match[0][0], match[0])
            else:
                field = match[2] or "name"
                yield Piece(self.cast[match[1]].field(field), match[0], match[1], field)
            at = match.end()
        if at < len(text):
            yield Piece(text[at:], text[at:])


def _placeholder_problems(text: str, cast: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with each bad placeholder of a prompt.

    This is not `str.format`: there are no conversions, no indices and no attributes but the
    declared fields. A literal brace is written twice.
    """
    for match in _PLACEHOLDER.finditer(text):
        who, field = match[1], match[2] or "name"
        if match[0] in ("{{", "}}"):
            continue
        if who is None:
            yield f"{match[0]!r} is not a placeholder; a literal brace is written twice"
        elif who not in cast:
            none = f"none: the story has no cast, and there is no --cast {who}=NAME"
            known = ", ".join(f"{{{name}}}" for name in cast) or none
            yield f"unknown placeholder {match[0]}; known: {known}"
        elif field not in CAST_FIELDS:
            yield f"{match[0]}: a character has {', '.join(CAST_FIELDS)}, not {field!r}"


def with_retake(story: Story, number: int, retake: dict[str, Any]) -> Story:
    """Return a story of which the scene of a number, from 1, is shown in another take.

    ``retake`` is what a story would say of it. Raises UsageError.
    """
    for text in (retake.get("scene"), retake.get("action")):
        for problem in _placeholder_problems(text or "", story.cast):
            raise UsageError(f"{text!r:.80}: {problem}")
    try:
        checked = Retake.model_validate(retake)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise UsageError(
            f"{fault['loc'][0]} {fault['input']!r:.60} is not valid", f"{fault['msg']}."
        ) from None
    return _with_take(story, number, checked)


def with_first_take(story: Story, number: int) -> Story:
    """Return a story of which the scene of a number, from 1, is shown in its first take."""
    return _with_take(story, number, None)


def _with_take(story: Story, number: int, retake: Retake | None) -> Story:
    scenes = list(story.scenes)
    scenes[number - 1] = scenes[number - 1].model_copy(update={"retake": retake})
    return story.model_copy(update={"scenes": scenes})


def load_story(path: Path, casting: Casting = NOBODY_ELSE) -> Story:
    """Read and check a story, from standard input for "-"; ``casting`` wins over its own cast.

    Raises UsageError without a file, and for whom it does not know; ScriptError with all faults.
    """
    if path == STDIN:
        return parse_story("stdin", sys.stdin.buffer.read(MAX_BYTES + 1) if sys.stdin else b"", casting)
    return parse_story(str(path), read_story(path), casting)


def read_story(path: Path) -> bytes:
    """Return what is in a story's file, or a little more than the longest has.

    Raises UsageError without one.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # it may be a film or a device
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder", "Name the story's YAML file.") from None
    except OSError as error:
        remedy = "Check the name, or write a story to start from: storyreel new STORY.yaml"
        raise UsageError(f"{path} cannot be read: {error.strerror}", remedy) from None


def parse_story(path: str, raw: bytes, casting: Casting = NOBODY_ELSE) -> Story:
    """Check the text of a story; ``casting`` wins over its own cast.

    Raises ScriptError with all its faults, UsageError for somebody whom it does not know.
    """
    source = parse(path, raw)
    try:
        return _checked(source, casting)
    except ScriptError:
        if (plain := source.with_plain_blanks()) is None:
            raise
        return _checked(plain, casting)  # which raises too


def parse_cast(path: str, raw: bytes) -> dict[str, Character]:
    """Check the cast of a file, which may be a story. Raises ScriptError with all its faults."""
    source = parse(path, raw)
    cast = source.data.get("cast") if isinstance(source.data, dict) else None
    faults = list(source.faults)
    if cast is None:
        faults = faults or [source.fault("there is no cast in it: a mapping with the key cast")]
    else:
        try:
            story = Story.model_validate({"cast": cast, "scenes": ["-"]})
        except ValidationError as error:
            items = error.errors(include_url=False)[:MAX_ERRORS]
            faults += [_located(source, item) for item in items]
        else:
            if not faults:
                return story.cast
    raise ScriptError(path, faults)


def _with_cast(
    source: Source, casting: Casting
) -> tuple[Source, frozenset[tuple[str, str]], tuple[str, ...]]:
    """Return a story's data with those who play instead, which texts of its cast the file lacks, and doubts.

    Of a file, members whom the story does not know are left out. Raises UsageError.
    """
    own = source.data.get("cast", {}) if isinstance(source.data, dict) else None
    if not casting.texts or not isinstance(own, dict):
        return source, frozenset(), ()
    found = [match for _, text in _prompts(source) for match in _PLACEHOLDER.finditer(text) if match[1]]
    mentioned = {match[1]: None for match in found}
    possessives = {match[1] for match in found if match[2] == "possessive"}
    cast, given, doubts, strangers = dict(own), set(), list[str](), list[str]()
    known = ", ".join(map(str, dict.fromkeys([*own, *mentioned]))) or "nobody"
    for who, texts in casting.texts.items():
        before = own.get(who)
        if who not in own and who not in mentioned:
            if who in casting.singly:
                words = f"--cast {who}: {source.path} has no such member, and no prompt mentions {{{who}}}"
                raise UsageError(words, f"It knows {known}.")
            strangers.append(who)
            continue
        if "name" in texts:
            cast[who] = dict(texts)
        elif who not in own:
            words = f"--cast {who}.{next(iter(texts))}: {source.path} has no name for {who}"
            raise UsageError(words, f"Give one too: --cast {who}=NAME")
        elif isinstance(before, dict):
            cast[who] = before | dict(texts)
        given |= {(who, name) for name in (CAST_FIELDS if "name" in texts else texts)}
        if who in casting.singly and who not in mentioned:
            doubts.append(f"no prompt mentions {{{who}}}, whom --cast names")
        is_lost = isinstance(before, dict) and before.get("possessive", "its") != "its"
        if is_lost and who in possessives and "possessive" not in cast[who]:
            words = f"{{{who}.possessive}} is 'its' for {texts['name']}"
            doubts.append(f"{words}: --cast {who}.possessive=… says otherwise")
    if strangers:
        doubts.append(f"left out of the cast that is given: {', '.join(strangers)}; the story knows {known}")
    source = replace(source, data=source.data | {"cast": cast})
    return source, frozenset(given), tuple(doubts)


def _checked(source: Source, casting: Casting) -> Story:
    path = source.path
    source, given, doubts = _with_cast(source, casting)
    if not isinstance(source.data, dict):
        fault = source.fault("a story is a mapping with the key scenes")
        raise ScriptError(path, [*source.faults, fault])
    # What YAML refused is missing in the data: faults that follow from that are left out.
    refused = {(fault.line, fault.column) for fault in source.faults}
    faults = [*_prompt_faults(source), *source.lost_texts(_TEXTS)]
    try:
        story = Story.model_validate(source.data)
    except ValidationError as error:
        items = (item for item in error.errors(include_url=False) if not _is_repeated(source, item))
        faults += [_located(source, item) for item in islice(items, MAX_ERRORS)]
    else:
        story._source, story._given, story._doubts = source, given, doubts
        story._cast_files = {who: file for who, file in casting.files.items() if who in story.cast}
        if not faults and not refused:
            return story
    mended = {fault.line for fault in source.faults if fault.mended}
    faults = [f for f in faults if (f.line, f.column) not in refused and f.line not in mended]
    raise ScriptError(path, [*source.faults, *dict.fromkeys(faults)])


def _is_repeated(source: Source, error: Any) -> bool:
    """Tell whether an error is about an action that is the scene prompt, which has the same error."""
    match error["loc"]:
        case ("scenes", int(index), "action"):
            scene = source.data["scenes"][index]
            return isinstance(scene, dict) and "action" not in scene and "scene" in scene
    return False


def _located(source: Source, error: Any) -> Fault:
    """Turn one of pydantic's errors into a fault at its place, in plain words."""
    location = list(error["loc"])
    names_character = len(location) == 3 and location[0] == "cast" and location[2] == "[key]"
    if names_character:
        location.pop()
    if len(location) > 2 and location[0] == "scenes":
        scene = source.data["scenes"][location[1]]
        if isinstance(scene, list):  # the short form has indices where the long one has keys
            location[2] = ("scene", "action").index(location[2])
    if "lora" in location[:-1]:
        at = location.index("lora")
        if not isinstance(_value_at(source.data, location[: at + 1]), list):
            del location[at + 1]  # one alone is checked as a list of one
    message = _in_words(error, location, names_character)
    if "lora" in location[:-1] and location[-1] in LoraFile.model_fields and error["type"] != "missing":
        message = f"{location[-1]}: {message}"
    return source.fault(message, location, key=names_character or error["type"] == "extra_forbidden")


def _value_at(data: Any, location: Sequence[str | int]) -> Any:
    """Return what stands at a location that exists."""
    for part in location:
        data = data[part]
    return data


def _in_words(error: Any, location: list[str | int], names_character: bool) -> str:
    name = location[-1] if location else "story"
    setting = str(location[2]) if location[:2] == ["render", "method"] and location[2:] else ""
    given = error["input"]
    shown = "nothing" if given is None else str(given).lower() if isinstance(given, bool) else repr(given)
    shown = shown if len(shown) <= 60 else shown[:59] + "…"
    match error["type"]:
        case _ if names_character:
            return f"{name!r} cannot name a character: small letters, digits and _ only"
        case "extra_forbidden":
            hint = "; quote it if it is text" if " " in str(name) and location[:1] == ["scenes"] else ""
            return f"unknown key {name!r}; allowed: {_allowed_keys(location)}{hint}{_odd_blank(name)}"
        case "missing":
            return f"the key {name!r} is missing"
        case "plugin":
            return f"{setting}: {error['msg']}"
        case _ if setting in Method.model_fields:  # of a setting of several kinds, the kind is named too
            return f"{setting} must be {legal_values(setting)}, not {shown}"
        case "string_type" if name == "picture" and isinstance(given, dict):
            return "write the file's name alone, as in picture: fox.png"
        case _ if name == "weight" and "lora" in location[:-1]:
            return f"use a number from -{STRONGEST:g} to {STRONGEST:g}, not {shown}"
        case "string_type":
            return f"expected text, not {shown}; quote it if it is text"
        case "string_too_short":
            return "empty text"
        case "string_pattern_mismatch":
            return f"{shown} is not a size; write WIDTHxHEIGHT, as in 96x64"
        case "model_type" | "dict_type":
            return f"expected a mapping with {_allowed_keys([*location, ''])}, not {shown}{_odd_blank(given)}"
        case "list_type":
            return f"expected a list of scenes, not {shown}{_odd_blank(given)}"
        case "too_short":
            return "a story has at least one scene"
        case "too_long" if name == "lora":
            return f"at most {MAX_LORAS} LoRAs at a time"
        case "too_long":
            return f"a story has at most {MAX_SCENES} scenes"
        case "int_type" | "float_type" | "int_from_float":
            kind = "a whole number" if error["type"].startswith("int") else "a number"
            own = location[:1] == ["scenes"] and location[2:] == ["seconds", "number"]
            return f"expected {kind}{' or auto' if own else ''}, not {shown}; write it plainly, as in 10"
        case _:
            return str(error["msg"][0]).lower() + str(error["msg"][1:])


def _odd_blank(text: object) -> str:
    """Name a blank in a text that does not separate anything in YAML; "" if there is none."""
    found = re.search(f"[{ODD_BLANKS}]", text) if isinstance(text, str) else None
    return f"; {character(found[0])} is not a blank in YAML: type a plain one" if found else ""


def _allowed_keys(location: list[str | int]) -> str:
    """Return the keys that the mapping around ``location`` may have."""
    if location[:1] == ["cast"]:
        fields = Character.model_fields if len(location) > 2 else {"first": None}
    elif (location[0:1] + location[2:3])[-1:] == ["card"] or (location and location[0] in _CARDS):
        fields = Card.model_fields
    elif "lora" in location[:-1]:
        fields = LoraFile.model_fields
    elif location[:1] == ["scenes"]:
        parts = {"say": Say.model_fields, "audio": SceneSound.model_fields, "retake": Retake.model_fields}
        fields = parts.get(str(location[2]), Scene.model_fields) if len(location) > 3 else Scene.model_fields
    elif location[:1] in (["audio"], ["voice"]) and len(location) > 1:
        fields = Music.model_fields if location[0] == "audio" else VoiceSettings.model_fields
    else:
        inner = Method.model_fields if location[1:2] == ["method"] else RenderSettings.model_fields
        fields = inner if len(location) > 1 else Story.model_fields
    return ", ".join(fields)


def _prompt_faults(source: Source) -> Iterator[Fault]:
    """Yield the faults of all placeholders, also in a story with other faults."""
    cast = source.data.get("cast")
    known = list(cast) if isinstance(cast, dict) else []
    for place, prompt in _prompts(source):
        for problem in _placeholder_problems(prompt, known):
            yield source.fault(problem, place)


def _prompts(source: Source) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield every prompt as the file has it, with its location."""
    scenes = source.data.get("scenes") if isinstance(source.data, dict) else None
    for index, scene in enumerate(scenes if isinstance(scenes, list) else ()):
        for place, prompt in _prompts_in(scene):
            if isinstance(prompt, str):
                yield ("scenes", index, *place), prompt
    for name in _CARDS:
        if isinstance(text := _text_of(source.data.get(name)), str):
            yield (name,), text


def _prompts_in(scene: object) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """Yield what may be prompts of a scene in any form, each with its place there."""
    if isinstance(scene, str):
        yield ("scene",), scene
    elif isinstance(scene, list):
        yield from (((place,), prompt) for place, prompt in enumerate(scene))
    elif isinstance(scene, dict):
        retake = scene.get("retake")
        for key in ("scene", "action"):
            yield (key,), scene.get(key)
            if isinstance(retake, dict):
                yield ("retake", key), retake.get(key)
        yield ("card",), _text_of(scene.get("card"))
        say = scene.get("say")
        if isinstance(say, dict):
            yield ("say", "text"), say.get("text")
        elif isinstance(say, str) and not SOUND_FILE.search(say):
            yield ("say",), say


def _text_of(given: object) -> object:
    """Return a card's text, whichever its form; anything else as it is."""
    return given.get("text") if isinstance(given, dict) else given


def story_schema() -> dict[str, Any]:
    """Return the story format's JSON Schema (draft 2020-12), for editors."""
    schema = Story.model_json_schema()
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID}
    return head | schema
