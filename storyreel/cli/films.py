"""Commands about films that are there: how they are, whether they are whole, what they say and do not use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storyreel.cli.options import USUAL_OUT, Json, Out, OutOptions, flag, option
from storyreel.cli.reading import (
    film_folder,
    film_folders,
    is_story,
    raise_all,
    read,
    worst,
)
from storyreel.cli.results import Exported, Verified, failed, print_json
from storyreel.cli.telling import complain, note
from storyreel.errors import ScriptError, StoryreelError, UsageError, counted, printable
from storyreel.film.export import Fit, Still
from storyreel.origin import with_extra
from storyreel.story.planning import parse_size

if TYPE_CHECKING:
    from storyreel.film.signature import Signature

CONTAINER = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # what ffmpeg says of any MP4


def status(
    options: OutOptions,
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Films, folders of films, or stories. Default: OUT.",
            metavar="FILM|OUT|STORY…",
            is_eager=True,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how films are: done, running, stopped, failed or waiting, and how many scenes they have.

    Without a name these are the films of the last submission in OUT, else all films there. For a story,
    the options are those of render: done is only a film as they would make it.
    """
    given = places or []
    stories = [place for place in given if is_story(place)]
    show_status([place for place in given if place not in stories], stories, options, as_json)


def show_status(places: list[Path], stories: list[Path], options: OutOptions, as_json: bool) -> None:
    """Print how films are: in places and of stories; without either, in the usual place.

    Raises the errors of faulty stories after that.
    """
    from storyreel.film.status import all_films

    rows: dict[str, dict[str, Any]] = {}
    for place in places or ([] if stories else [options.out]):
        if (folder := film_folder(place)) is not None:
            folder = folder.resolve()  # . has no name
            found = all_films(folder.parent, {folder.name: None}, note)
        elif place.is_dir() or (not places and not place.exists()):
            found = all_films(place, {}, note)
            if not found:
                note(f"no films in {place}")
        else:
            remedy = "Name a film, its folder, a folder of films, or a story that ends in .yaml."
            raise UsageError(f"{place} is neither a film nor a folder of films", remedy)
        rows |= {name if name not in rows else str(place / name): row for name, row in found.items()}
    options.check_name(stories)
    casts = options.cast_files()
    plans, errors = read(stories, options.plan, options.film_name, casting=options.casting(), casts=casts)
    if plans:
        rows |= all_films(options.out, plans, note)
    if as_json:
        print_json(rows)
    for name, row in rows.items() if not as_json else ():
        total = "? scenes" if row["total"] is None else counted(row["total"], "scene")
        slurm_says = f", Slurm {row['job']} {row['slurm']}" if row.get("slurm") else ""
        reason = f": {row['reason']}" if row["reason"] else ""
        print(printable(f"{name}: {row['state']}, {row['scenes']} of {total}{slurm_says}{reason}"))
    raise_all(errors.values())


def verify(
    places: Annotated[list[Path], typer.Argument(help="Films, or folders of films.", metavar="FILM|OUT…")],
    as_json: Json = False,
) -> None:
    """Read films back and say whether every file is whole and decodes; no story and no weights are needed.

    A film is held against its own manifest. Nothing is written. With render --verify it is held against a
    story, and the weights of its model are read too.
    """
    from storyreel.film.verify import verify_folder

    found: dict[str, Mapping[str, str] | StoryreelError] = {}
    for folder in dict.fromkeys(film_folders(places)):
        try:
            found[str(folder)] = verify_folder(folder)
        except StoryreelError as error:
            found[str(folder)] = error
    remedy = "Render such a film again: only what is missing or damaged is made anew."
    print_verified(found, remedy, as_json)


def print_verified(
    found: Mapping[str, Mapping[str, str] | StoryreelError], remedy: str, as_json: bool
) -> None:
    """Print what is wrong with each film's files, "" for nothing; if anything is, exit with its code."""
    results: dict[str, Any] = {}
    for name, files in found.items():
        if isinstance(files, StoryreelError):
            results[name] = failed(files)
            complain(str(files) if isinstance(files, ScriptError) else printable(f"{name}: {files}"))
            continue
        wrong = {path: fault for path, fault in files.items() if fault}
        results[name] = Verified(whole=not wrong, files=len(files), wrong=wrong)
        if not as_json:
            for path, fault in wrong.items():
                print(printable(f"{path} {fault}"))
            whole = len(files) - len(wrong)
            verb = "is" if len(files) == 1 else "are"
            print(printable(f"{name}: {whole} of {counted(len(files), 'file')} {verb} whole"))
    if as_json:
        print_json(results)
    errors = [files for files in found.values() if isinstance(files, StoryreelError)]
    if not_whole := [name for name, result in results.items() if not result.get("whole", True)]:
        errors.insert(0, StoryreelError(f"not whole: {', '.join(not_whole)}", remedy))
        complain(str(errors[0]))
    if errors:
        raise typer.Exit(worst(errors).exit_code)


def inspect(
    film: Annotated[Path, typer.Argument(help="A film, or its folder.", metavar="FILM")],
    trust: Annotated[
        Path | None,
        option("FILE", "Certificates in PEM: whoever has one of theirs, or is one, is a trusted signer."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a film says of itself: story, seed, model, versions; and what its signature is worth.

    A signature is valid, trusted, invalid (as with a certificate that has expired) or tampered, which
    means that the film was changed after it was signed. Nothing is fetched to find that out.
    """
    from storyreel.film.folder import FilmFolder
    from storyreel.film.reader import read_tags
    from storyreel.film.signature import read_signature

    path = film
    if film.is_dir() and film_folder(film) is not None:
        folder = FilmFolder(film, film.resolve().name)
        folder.load()
        folder.take_recorded_name()
        path = folder.film_path
    if not path.is_file():
        raise UsageError(f"{path} is not a file", "Name an MP4 that storyreel rendered, or its folder.")
    tags = {key: value for key, value in read_tags(path).items() if key not in CONTAINER}
    signature = read_signature(path, trust)
    if as_json:
        print_json(tags | {"signature": asdict(signature)})
    else:
        for key, value in tags.items():
            print(printable(f"{key}: {value}"))
        print(printable(f"signature: {_signature_words(signature)}"))


def _signature_words(signature: Signature) -> str:
    signer = f" by {signature.signer}" if signature.signer else ""
    problems = f" ({', '.join(signature.problems)})" if signature.problems else ""
    match signature.state:
        case "none":
            return "none"
        case "unread":
            return f"there is one; to read it: {with_extra('c2pa')}"
        case "valid":
            return f"valid{signer}, who is not known here: --trust FILE names certificates to go by{problems}"
        case "trusted":
            return f"trusted{signer}{problems}"
        case "invalid":
            return f"invalid{signer}: the certificate does not count{problems}"
        case "tampered":
            return f"TAMPERED: the film is not as it was signed{signer}{problems}"


def export(
    film: Annotated[Path, typer.Argument(help="A finished film, or its folder.", metavar="FILM")],
    formats: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="FORMATS",
            help="Some of film, clips, stills, gif, webp, avif, vtt, srt, edl, otio, with commas; or all. "
            "For benchmarks: entitybench, storymem, msvbench, vistorybench, vbench. "
            "Default: film with --size; else clips, stills, vtt, srt, edl and otio, as for an editor.",
        ),
    ] = None,
    to: Annotated[Path | None, option("DIR", "Folder for the files. Default: export, in the film's.")] = None,
    size: Annotated[
        str | None,
        option("WxH", "Size of pictures. Default: the film's; of gif, webp and avif 480 pixels at most."),
    ] = None,
    fit: Annotated[
        Fit | None,
        option(Fit, "How pictures get into another shape: with bars, cut, or out of shape. Default: pad."),
    ] = None,
    still: Annotated[
        Still | None, option(Still, "Which picture of a scene a still is. Default: middle.")
    ] = None,
    script: Annotated[
        Path | None,
        option("FILE", "The benchmark's script that the film tells, which names its shots' files."),
    ] = None,
    overwrite: Annotated[bool, flag("--overwrite", "Replace also what no export wrote.")] = False,
    as_json: Json = False,
) -> None:
    """Write a finished film for other programs: clips, pictures, captions, edit lists, for benchmarks.

    Each file is named as it is finished. The film itself stays as it is, and what an export wrote before
    is replaced.
    """
    from storyreel.film.export import PICTURES, STILLS, TO_AN_EDITOR, Wanted, left_over, parse_formats
    from storyreel.film.export import export as export_film
    from storyreel.film.timeline import timeline_of
    from storyreel.film.yardsticks import YARDSTICKS

    names = parse_formats(formats) if formats is not None else ("film",) if size else TO_AN_EDITOR
    wanted = Wanted(parse_size(size) if size is not None else None, fit or "pad", still or "middle", script)
    unused = {
        "--size": (size, PICTURES),
        "--still": (still, STILLS),
        "--script": (script, tuple(YARDSTICKS)),
    }
    for name, (value, users) in unused.items():
        if value is not None and not {*names} & {*users}:
            words = f"{name} is of {', '.join(users)}, and none of them is written"
            raise UsageError(words, f"Name one with --as, or leave {name} out.")
    if fit is not None and size is None:
        raise UsageError("--fit says how pictures get to a --size", "Add --size WxH, or leave --fit out.")
    timeline = timeline_of(_folder_of(film))
    if film.is_file() and film.resolve() != timeline.path.resolve():
        raise UsageError(f"{film} is not the film in {film.parent}", f"Name that: {timeline.path}")
    files: list[Exported] = []
    target = to or timeline.path.parent / "export"
    try:
        for file in export_film(timeline, names, target, wanted, overwrite):
            files.append(Exported(**asdict(file) | {"file": str(file.file)}))  # type: ignore[typeddict-item]
            if not as_json:
                print(printable(str(file.file)), flush=True)
    finally:  # what was done is told whatever ends the rest
        if as_json and files:
            print_json(files)
    if old := left_over(timeline, target):
        note(f"of scenes that the film has no more, an earlier export left {', '.join(old)} in {target}")


def _folder_of(film: Path) -> Path:
    """Return the folder of one film. Raises UsageError for what is none."""
    if (folder := film_folder(film)) is not None:
        return folder
    there = "is no film of storyreel, nor the folder of one" if film.exists() else "is not there"
    raise UsageError(f"{film} {there}", "Name a film that storyreel rendered, or its folder, as in out/nyc.")


def clean(
    places: Annotated[
        list[Path] | None,
        typer.Argument(help="Films, or folders of films. Default: OUT.", metavar="FILM|OUT…"),
    ] = None,
    out: Out = USUAL_OUT,
    yes: Annotated[bool, flag("--yes", "Remove it; else it is only listed.")] = False,
    takes: Annotated[bool, flag("--takes", "Also takes of scenes that are in no film.")] = False,
    as_json: Json = False,
) -> None:
    """List what no film uses, scenes of former seeds, settings and texts; with --yes, remove it.

    What the present film needs stays, and so do the work of a render that was not finished and, without
    --takes, all takes that were made.
    """
    from storyreel.film.clean import folders_of_films, remove_unused, size_words, unused
    from storyreel.film.recorded import renew_page

    done = "removed" if yes else "would be removed"
    films = folders_of_films(film_folder(path) or path for path in places or [out])
    rows = [(remove_unused if yes else unused)(path, takes) for path in films]
    for row in rows if yes and takes else ():
        renew_page(row.folder)  # which shows takes
    if as_json:
        print_json(
            [
                {
                    "folder": str(row.folder),
                    "files": [path.name for path in row.files],
                    "bytes": row.size,
                    "removed": yes and bool(row.files),
                    "reason": row.reason,
                }
                for row in rows
            ]
        )
        return
    for row in rows:
        if row.reason:
            complain(printable(f"{row.folder}: {row.reason}"))
        elif row.files:
            print(printable(f"{row.folder}: {len(row.files)} files, {size_words(row.size)} {done}"))
    count, size = sum(len(row.files) for row in rows), sum(row.size for row in rows)
    print(f"{count} files, {size_words(size)} {done}" + ("" if yes or not count else ": add --yes"))
