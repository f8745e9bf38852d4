"""What commands are pointed at: stories, and the plans and names of their films; folders of films."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from storyreel.cli.telling import complain, is_quiet, note
from storyreel.errors import OutputError, ScriptError, StoryreelError, UsageError, printable
from storyreel.story.casting import CastFile
from storyreel.story.plan import Plan
from storyreel.story.schema import NOBODY_ELSE, STDIN, Casting, Story, load_story

T = TypeVar("T")

ENDINGS = (".yaml", ".yml")


def read(
    stories: Sequence[Path],
    plan: Callable[[Story, str], T],
    name_of: Callable[[Path, str], str],
    once: bool = True,
    casting: Casting = NOBODY_ELSE,
    casts: Sequence[CastFile] = (),
) -> tuple[dict[str, T], dict[str, StoryreelError]]:
    """Read and plan all stories; return the plans by name, and what is wrong with the others by path.

    With ``once``, two of one name are an error. ``casting`` wins over the stories' own casts. With ``casts``
    there is a film of each that is for a story, and ``name_of`` has its name too; else that is "".
    """
    plans: dict[str, T] = {}
    errors: dict[str, StoryreelError] = {}
    taken: set[str] = set()
    pairs = played(stories, casts)
    for path in stories if casts else ():
        if all(path != other for other, _ in pairs):
            note(printable(f"{shown(path)}: left out, no cast is for it"))
    for one in casts:
        if all(one is not cast for _, cast in pairs):
            note(printable(f"{one.path}: left out, it is for none of the stories"))
    for path, cast in pairs:
        whose = cast.name if cast else ""
        try:
            story = load_story(path, cast.casting if cast else casting)
            if cast and not story.is_cast_anew:
                remedy = "Name its members as the story does, or say whom it is for, as in stories: [nyc]."
                why = "".join(f" ({words})" for words in story.doubts)
                raise UsageError(f"{cast.path} changes nobody in {path}{why}", remedy)
            for words in story.doubts:
                note(printable(f"{shown(path, whose)}: {words}"))
            name = name_of(path, whose)
            if once and name.casefold() in taken:
                remedy = "Rename one of the stories: the file's name is the film's."
                raise UsageError(f"two stories would be written to {name!r}", remedy)
            taken.add(name.casefold())
            plans[name] = plan(story, name)
        except StoryreelError as error:
            errors[shown(path, whose)] = error
    return plans, errors


def played(stories: Sequence[Path], casts: Sequence[CastFile]) -> list[tuple[Path, CastFile | None]]:
    """Return every story with each of some casts that is for it; without casts with None.

    Raises UsageError where there is no such pair, and for standard input, which is read once.
    """
    if not casts:
        return [(path, None) for path in stories]
    if STDIN in stories:
        raise UsageError("--casts cannot be with standard input", "Write the story into a file.")
    if not (pairs := [(path, cast) for path in stories for cast in casts if cast.is_for(path)]):
        remedy = "The key stories of a cast's file says which it is for; without it, that is every one."
        raise UsageError("none of the casts is for any of the stories", remedy)
    return [*pairs]


def raise_all(errors: Collection[StoryreelError]) -> None:
    """Tell all errors; raise the one that decides the exit code."""
    if errors:
        decisive = worst(errors)
        tell(error for error in errors if str(error) != str(decisive))
        raise decisive


def worst(errors: Collection[StoryreelError]) -> StoryreelError:
    """Return what decides the exit code: the first faulty story, else the first error."""
    return min(errors, key=lambda error: not isinstance(error, ScriptError))


def tell(errors: Iterable[StoryreelError]) -> None:
    """Tell errors; what is said of an option that counts for all stories is told once."""
    for text in dict.fromkeys(map(str, errors)):
        complain(text)


def warn(warned: Mapping[str, ScriptError]) -> None:
    """Say what models cannot draw of stories, each with its place, unless that is not wanted."""
    for found in warned.values() if not is_quiet() else ():
        complain(found.format("warning"))


def missing_weights(plans: Iterable[tuple[str, Plan]]) -> dict[str, StoryreelError]:
    """Return what is missing of the models of plans, by the plans' names."""
    from storyreel.models.inventory import check_inventory

    errors: dict[str, StoryreelError] = {}
    for name, plan in plans:
        try:
            check_inventory(plan.spec)
        except StoryreelError as error:
            errors[name] = error
    return errors


def check_out(out: Path) -> None:
    """Raise OutputError if nothing can be written into a folder."""
    from storyreel.files import obstacle, writing

    with writing(out):
        if (why := obstacle(out)) is not None:
            raise OutputError(f"cannot write into {out}: {why}", "Correct that, or choose another --out.")
        if out.exists() and not out.is_dir():
            raise OutputError(f"cannot write into {out}: it is not a folder", "Choose another --out.")


def check_written(path: Path, option: str, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Raise UsageError for a file that cannot be written there, or that would replace something else.

    ``what`` it is, as in "table", and ``is_ours`` tells it of a file that is there.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder", f"Make it, or write {option} {path.name}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path} cannot be written", f"Name another file: {option} FILE")
    if path.exists() and not (path.is_file() and is_ours(path)):
        words = f"{path} is there, and is no {what} of storyreel's"
        raise UsageError(words, "Name another file, or remove it.")


def stories_in(places: Iterable[Path]) -> Iterator[Path]:
    """Yield stories, those of a folder in the order of their names. Raises UsageError if it has none."""
    for place in places:
        if not place.is_dir():
            yield place
            continue
        found = sorted(path for path in place.iterdir() if path.suffix in ENDINGS and path.is_file())
        if not found:
            raise UsageError(f"there is no story in {place}", "Stories are files that end in .yaml or .yml.")
        yield from found


def is_story(place: Path) -> bool:
    """Tell whether a place is named as a story is, not as a film or a folder."""
    return place == STDIN or (place.suffix in ENDINGS and not place.is_dir())


def film_folder(place: Path) -> Path | None:
    """Return the folder of the film that a place is, or is the folder of; None if it is neither."""
    from storyreel.film.folder import is_film_folder

    folder = place.parent if place.is_file() else place
    return folder if is_film_folder(folder) else None


def film_folders(places: Iterable[Path]) -> Iterator[Path]:
    """Yield the folder of every film in some places: films, their folders, or folders of several.

    Raises UsageError for what holds none.
    """
    from storyreel.film.folder import film_folders as films_in

    remedy = "Name a film, its folder, as in out/nyc, or a folder that holds several, as in out."
    for place in places:
        if not place.exists():
            raise UsageError(f"{place} is not there", remedy)
        folder = film_folder(place)
        if not (found := [folder] if folder else films_in(place)):
            raise UsageError(f"there is no film of storyreel in {place}", remedy)
        yield from found


def shown(path: Path, cast: str = "") -> str:
    """Return a story's path as people read it, with the name of who plays in it where there are several."""
    return f"{'stdin' if path == STDIN else path}{f' with {cast}' if cast else ''}"
