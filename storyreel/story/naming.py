"""What a story's film is called: a name that is a folder's on every system."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path

from storyreel.errors import UsageError
from storyreel.story.schema import STDIN

SEGMENTS = "segments"  # a folder of that name says that what holds it is a film
INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # letters and marks that show nothing


def film_name(path: Path, cast: str = "") -> str:
    """Return the name of a story's film, with that of the ``cast`` behind it where it is one of several."""
    stem = "stdin" if path == STDIN else path.stem
    return slug(f"{stem}-{cast}" if cast else stem)


def check_film_name(name: str) -> None:
    """Raise UsageError for what cannot name a film's folder."""
    if not isinstance(name, str) or slug(name) != name:
        remedy = f"Use {slug(name)!r}." if isinstance(name, str) else "Give a text."
        raise UsageError(f"{name!r:.80} cannot be a film's name", remedy)


def slug(stem: str) -> str:
    """Return a file's name as a folder's: letters and digits of any script, dot, dash, underscore.

    Nothing that a slug names lies outside its parent.
    """
    name = "".join(char if _is_plain(char) else "-" for char in unicodedata.normalize("NFC", stem))
    name = name.strip(".-")
    while name and unicodedata.category(name[0])[0] == "M":  # which would change what stands before it
        name = name[1:].lstrip(".-")
    # Other files of a film add to its name, which has at most 255 bytes.
    if (
        name
        and name == stem
        and name.casefold() != SEGMENTS
        and len(name) <= 80
        and len(name.encode()) <= 160
    ):
        return name
    # What was lost tells stories apart: two of them must never share a folder.
    lost = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = re.sub("-+", "-", name)[:71].encode()[:151].decode(errors="ignore")
    return f"{short.rstrip('.-') or 'story'}-{lost}"


def _is_plain(char: str) -> bool:
    """Tell whether a character shows, and means nothing to a shell, a file system or an address."""
    return char in "._-" or (unicodedata.category(char)[0] in "LMN" and char not in INVISIBLE)
