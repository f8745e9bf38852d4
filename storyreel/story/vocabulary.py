"""What a model can draw at all, where that is known, and what a story asks of it beyond that.

Most models were taught from the world at large, and nobody can list what they know. One that was
taught a world of its own knows the words of its lessons and no others: it draws something else for
them, and says nothing. Its table entry names a file with all that it can draw.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import compress, groupby

from pydantic import TypeAdapter, ValidationError

from storyreel.errors import Fault, MissingError
from storyreel.models.specs import ModelSpec
from storyreel.story.schema import Piece, Story

MAX_WORDS = 25  # of a story that are warned of one by one
MAX_PLACES = 3  # of a warning that are named besides the first
SHOWN = 40  # characters of a word
NEAR = 0.78  # how alike two words must be spelled, of 1: "corgy" and "corgi", not "snowy" and "now"
MOST = 2  # characters in one scene of a world

# They add nothing to a picture by themselves. Negations are not among them: what is not there is
# drawn like what is there.
_GRAMMAR = (
    "a an the this that these those he she it they him her them his hers its their theirs himself herself "
    "itself themselves i me my we us our you your who whom whose which what when where while as than then so "
    "and or but if because since until too also just very really quite again now once here there be been "
    "being am is are was were will would can could may might shall should must do does did doing done have "
    "has had having of in on at by to for from with within into onto over above under below behind before "
    "after between among beside besides beyond near next through across along around about against toward "
    "towards during up down off out upon like both each other some one"
)
GRAMMAR = frozenset(_GRAMMAR.split())


@dataclass(frozen=True)
class Character:
    """Who can be drawn: the plain name, the words that mean it, and the looks a prompt may state."""

    name: str
    words: tuple[str, ...]
    colours: tuple[str, ...]
    wear: tuple[str, ...]
    example: str


@dataclass(frozen=True)
class Place:
    """Where it can be: plain words, the phrases that name it, and the places those do not mean then."""

    name: str
    phrases: tuple[str, ...]
    hides: tuple[str, ...]


@dataclass(frozen=True)
class Action:
    """What can be done: plain words, the phrases that may mean it, who does it, where, and how many."""

    name: str
    phrases: tuple[str, ...]
    characters: tuple[str, ...]
    places: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Vocabulary:
    """All that a model was taught: by keys, what it can draw; and every word of its lessons, small."""

    characters: dict[str, Character]
    places: dict[str, Place]
    actions: dict[str, Action]
    light: dict[str, tuple[str, ...]]
    words: tuple[str, ...]

    def knows(self, word: str) -> bool:
        """Tell whether a word is one of the lessons', a regular form of one, or only grammar."""
        word = re.sub(r"(?<=.)'(s|re|ll|ve|m|d)$", "", word)
        if word in GRAMMAR or word in self._forms:
            return True
        # A noun is no verb: "train" does not make "training" known. And there is one of each character.
        stems = self._verbs if word.endswith(("ing", "ed")) else self._stems
        return stem(word) in stems and stem(word) not in self._one_of_each

    def nearest(self, word: str) -> str | None:
        """Return the known word that is spelled most like another; None if none is."""
        if stem(word) in self._one_of_each:
            return stem(word)
        candidates = [known for known in self.words if len(known) > 2 and known not in GRAMMAR]
        return next(iter(get_close_matches(word, candidates, 1, NEAR)), None)

    def characters_in(self, text: str) -> list[str]:
        """Return the keys of the characters that a text names."""
        said = set(words_of(text))
        return [key for key, one in self.characters.items() if said & set(one.words)]

    def places_in(self, text: str) -> list[str]:
        """Return the keys of the places that a text names."""
        found = self._found(text, self._place_phrases)
        hidden = {other for key in found for other in self.places[key].hides}
        return [key for key in found if key not in hidden]

    def actions_in(self, text: str) -> list[str]:
        """Return the keys of all actions that a text may mean."""
        return self._found(text, self._action_phrases)

    def odd_looks(self, text: str) -> list[str]:
        """Return the looks that a text states and that no lesson had of such a character: "a purple fox"."""
        text, found = " ".join(words_of(text)), []
        for pattern, one in self._mentions:
            for match in pattern.finditer(text):
                colour, noun, wear = match.groups()
                if colour and colour not in one.colours:
                    found.append(f"a {colour} {noun}")
                if wear and wear not in one.wear:
                    found.append(f"a {noun} with a {wear}")
        return list(dict.fromkeys(found))

    def shown(self, action: str, characters: Sequence[str], places: Sequence[str]) -> bool:
        """Tell whether an action was ever shown of these characters, at one of these places."""
        taught = self.actions[action]
        return (
            len(characters) in taught.counts
            and set(characters) <= set(taught.characters)
            and (not places or bool(set(places) & set(taught.places)))
        )

    @staticmethod
    def _found(text: str, phrases: Mapping[str, Sequence[str]]) -> list[str]:
        stems = _stems(text)
        return [key for key, some in phrases.items() if any(phrase in stems for phrase in some)]

    @cached_property
    def _forms(self) -> frozenset[str]:
        adverbs = (word.removesuffix("ly") for word in self.words)
        return frozenset([*self.words, *adverbs, *(f"{word}ly" for word in self.words)])

    @cached_property
    def _stems(self) -> frozenset[str]:
        return frozenset(stem(word) for word in self.words)

    @cached_property
    def _verbs(self) -> frozenset[str]:
        doing = [word for word in self.words if word.endswith("ing")]
        doing += [phrase.split()[0] for taught in self.actions.values() for phrase in taught.phrases]
        return frozenset(stem(word) for word in doing)

    @cached_property
    def _one_of_each(self) -> frozenset[str]:
        return frozenset(word for one in self.characters.values() for word in one.words)

    @cached_property
    def _mentions(self) -> list[tuple[re.Pattern[str], Character]]:
        """What finds each character in plain words, with a colour before it and something that it wears."""
        wear = {thing for one in self.characters.values() for thing in one.wear}
        colours = {colour for one in self.characters.values() for colour in one.colours}
        colours |= {thing.split()[0] for thing in wear}
        before = rf"(?:({'|'.join(sorted(colours))}) )?"
        behind = rf"(?: (?:\w+ )??(?:with|in|wearing) an? ({'|'.join(sorted(wear))})\b)?"
        found = []
        for one in self.characters.values():
            said = "|".join({*one.name.split()[1:], *one.words})
            noun = rf"((?:(?:{said}) )*(?:{'|'.join(one.words)}))"
            found.append((re.compile(rf"\b{before}{noun}\b{behind}"), one))
        return found

    @cached_property
    def _place_phrases(self) -> dict[str, list[str]]:
        return {key: [_stems(phrase) for phrase in place.phrases] for key, place in self.places.items()}

    @cached_property
    def _action_phrases(self) -> dict[str, list[str]]:
        return {key: [_stems(phrase) for phrase in action.phrases] for key, action in self.actions.items()}


def load_vocabulary(spec: ModelSpec) -> Vocabulary | None:
    """Read what a model can draw; None if that is not known. Raises MissingError."""
    if spec.vocabulary is None:
        return None
    try:
        return _FORMAT.validate_python(json.loads(spec.vocabulary.read_text("utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise MissingError(
            f"cannot read what {spec.name} can draw: {spec.vocabulary}: {why}", spec.remedy
        ) from None


_FORMAT = TypeAdapter(Vocabulary)


def spelled(text: str) -> Iterator[str]:
    """Yield the words of a text as they are spelled: letters, digits, marks and pictures of any script."""
    for inside, chars in groupby(text, _is_of_a_word):
        if inside and (word := "".join(chars).strip("'’")):
            yield word


def _is_of_a_word(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] in "LNM" or category == "So" or char in "'’"


def plain(word: str) -> str:
    """Return a word as it is compared, and as the lessons' tokenizer reads it: without capitals."""
    return unicodedata.normalize("NFKC", word).lower().replace("’", "'")


def words_of(text: str) -> list[str]:
    """Return the words of a text as they are compared."""
    return [plain(word) for word in spelled(text)]


def stem(word: str) -> str:
    """Return what the regular forms of an English word have in common: "walk" of "walking" and "walks"."""
    if word.endswith(("ies", "ied")) and len(word) > 4:
        return f"{word[:-3]}y"
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) >= len(ending) + 3 and not word.endswith(("ss", "us")):
            word = word.removesuffix(ending)
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word.removesuffix("e")


def _stems(text: str) -> str:
    """Return a text's stems with a blank around each, so that a phrase is found as a part of it."""
    return f" {' '.join(stem(word) for word in words_of(text))} "


def warnings_of(story: Story, spec: ModelSpec) -> list[Fault]:
    """Return what a model cannot draw of a story, each with its first place; nothing if that is not known.

    First the words that it does not know, then what scenes lack or have too much of. Raises MissingError.
    """
    vocabulary = load_vocabulary(spec)
    if vocabulary is None:
        return []
    return [*_unknown_words(story, vocabulary, spec.name), *_odd_scenes(story, vocabulary, spec.name)]


def _unknown_words(story: Story, vocabulary: Vocabulary, model: str) -> Iterator[Fault]:
    places: dict[str, dict[Fault, None]] = {}
    for text, location in _texts(story):
        written = [word for piece in story.pieces(text) for word in _written(piece)]
        unknown = [not word.startswith("{") and not vocabulary.knows(plain(word)) for word in written]
        if any(unknown):
            for word, place in compress(zip(written, story.where(written, *location), strict=True), unknown):
                places.setdefault(plain(word).removesuffix("'s"), {})[place] = None
    for word, found in list(places.items())[:MAX_WORDS]:
        first, *others = found
        also = _and_more([f"{place.line}:{place.column}" for place in others])
        shown = word if len(word) <= SHOWN else word[: SHOWN - 1] + "…"
        near = vocabulary.nearest(word)
        hint = (
            f"the nearest it knows: {near!r}" if near else f"`storyreel models {model}` lists what it draws"
        )
        yield first.saying(f"{model} does not know {shown!r}; {hint}{f' (also at {also})' if also else ''}")
    if left := list(places.values())[MAX_WORDS:]:
        yield next(iter(left[0])).saying(f"{model} does not know this and {len(left) - 1} more words")


def _texts(story: Story) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Yield every text that is told to a model, with its location; of the cast, what scenes mention."""
    prompts = [
        (text, ("scenes", index, key))
        for index, scene in enumerate(story.scenes)
        for key, text in (("scene", scene.scene), ("action", scene.action))
    ]
    mentioned = {
        (piece.member, piece.field): None
        for text, _ in prompts
        for piece in story.pieces(text)
        if piece.member is not None and piece.field is not None
    }
    for member, field in mentioned:
        if field == "noun" and story.cast[member].noun is None:
            field = "name"
        text = story.cast[member].field(field)
        yield text, ("cast", member, field)
    yield from prompts


def _written(piece: Piece) -> Iterable[str]:
    """Return the words of a piece as the file has them; a placeholder is one."""
    return [piece.written] if piece.member is not None else spelled(piece.text)


def _odd_scenes(story: Story, vocabulary: Vocabulary, model: str) -> Iterator[Fault]:
    scenes: dict[str, list[int]] = {}
    for index in range(len(story.scenes)):
        for sentence in _scene_problems(story, index, vocabulary, model):
            scenes.setdefault(sentence, []).append(index)
    for sentence, (first, *others) in scenes.items():
        also = _and_more([str(index + 1) for index in others])
        of_others = f" (also scene{'s' if len(others) > 1 else ''} {also})" if also else ""
        yield story.fault(f"scene {first + 1} {sentence}{of_others}", "scenes", first)


def _scene_problems(story: Story, index: int, vocabulary: Vocabulary, model: str) -> Iterator[str]:
    scene = story.scenes[index]
    text = f"{story.filled(scene.scene)} {story.filled(scene.action)}"
    who, places = _cast_of(story, index, vocabulary), vocabulary.places_in(text)
    known = [key for key in who if key in vocabulary.characters]
    actions = vocabulary.actions_in(text)
    if len(who) > MOST:
        yield (
            f"has {len(who)} characters; {model} draws one or two: some will be missing, or two run into one"
        )
    elif len(set(who)) < len(who):
        yield f"has two of one kind; {model} was shown different characters only: two may become one"
    elif not who:
        names = _listed([one.name for one in vocabulary.characters.values()], "or")
        yield f"names nobody whom {model} knows; it draws any of these: {names}"
    if looks := vocabulary.odd_looks(text):
        yield f"asks for a look that {model} was never shown: {_listed(looks, 'and')}; it draws another"
    if not places:
        names = _listed([place.name for place in vocabulary.places.values()], "or")
        yield f"names no place that {model} knows; it draws any of these: {names}"
    if not actions:
        yield f"names no action that {model} knows; it draws any that it does (storyreel models {model})"
    elif 0 < len({*known}) == len(who) <= MOST and not any(
        vocabulary.shown(action, who, places) for action in actions
    ):
        does = _listed(list(dict.fromkeys(vocabulary.actions[action].name for action in actions)), "or")
        subject = _listed([vocabulary.characters[key].name for key in known], "and")
        at = f" {vocabulary.places[places[0]].name}" if places else ""
        yield f"asks for what {model} was never shown, {subject} {does}{at}; it draws something like it"


def _cast_of(story: Story, index: int, vocabulary: Vocabulary) -> list[str]:
    """Return who is in a scene: keys of characters, or for a member of the cast nobody knows, its name."""
    scene = story.scenes[index]
    pieces = [*story.pieces(scene.scene), *story.pieces(scene.action)]
    members = {p.member: None for p in pieces if p.member is not None and p.field != "possessive"}
    who = [
        key
        for member in members
        for key in vocabulary.characters_in(story.cast[member].name) or [story.cast[member].name]
    ]
    plain_text = " ".join(piece.text for piece in pieces if piece.member is None)
    return who + [key for key in vocabulary.characters_in(plain_text) if key not in who]


def _and_more(items: Sequence[str]) -> str:
    """Return the first of some items, and how many more there are."""
    more = len(items) - MAX_PLACES
    return ", ".join(items[:MAX_PLACES]) + (f" and {more} more" if more > 0 else "")


def _listed(items: Sequence[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def listing(vocabulary: Vocabulary) -> dict[str, list[str]]:
    """Return all that a model draws, by what it is, in the words of its lessons."""
    characters = vocabulary.characters

    def action(taught: Action) -> str:
        able = [one.name for key, one in characters.items() if key in taught.characters]
        unable = [one.name for key, one in characters.items() if key not in taught.characters]
        if not unable:
            return taught.name
        who = _listed(able, "or") if len(able) < len(unable) else f"not {_listed(unable, 'or')}"
        return f"{taught.name} ({who})"

    return {
        "characters": [one.name for one in characters.values()],
        "places": [place.name for place in vocabulary.places.values()],
        "actions": [action(taught) for taught in vocabulary.actions.values()],
        "looks": [
            f'{one.name}: {", ".join(one.colours)}; {", ".join(one.wear)}; as in "{one.example}"'
            for one in characters.values()
        ],
        "light": [words for some in vocabulary.light.values() for words in some],
    }
