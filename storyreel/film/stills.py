"""Small pictures of scenes for pages: made once of each segment's video, and kept in its record."""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from storyreel.errors import StoryreelError
from storyreel.film import reader
from storyreel.film.inventory import Inventory
from storyreel.film.store import Decided, Store
from storyreel.story.plan import Plan

LONGEST = 256  # pixels of its longer side
MOST = 9_000  # bytes of a JPEG: a page of a hundred scenes stays below 1.5 MB
QUALITIES = (75, 60, 45, 30, 15)  # of JPEG: the first that is small enough; the last is so for noise


def keep_still(store: Store, inventory: Inventory, index: int) -> None:
    """Make a segment's picture of its video, and keep it in the record, if that has none.

    Pages do without where the video cannot be read or nothing can be written.
    """
    record = inventory.video[index]
    if "still" in record.decided:
        return
    with suppress(StoryreelError):
        still = still_of(store.folder / record.file, still_size(inventory.plan))
        decided: Decided = {**record.decided, "still": base64.b64encode(still).decode()}
        record = replace(record, decided=decided)
        store.write(record)
        inventory.video[index] = record


def still_size(plan: Plan) -> tuple[int, int]:
    """Return the width and height of a plan's small pictures."""
    size = plan.settings.width * plan.spec.upscale, plan.settings.height * plan.spec.upscale
    scale = min(1, LONGEST / max(size))
    width, height = (max(1, round(scale * side)) for side in size)
    return width, height


def still_of(path: Path, size: tuple[int, int]) -> bytes:
    """Return the picture in the middle of a video as a JPEG of at most `MOST` bytes.

    Raises StoryreelError if the video cannot be read.
    """
    from PIL import Image

    width, height = size
    frame = width * height * 3
    frames = b"".join(reader.read_frames(path, width, height))
    middle = len(frames) // frame // 2 * frame
    picture = Image.frombytes("RGB", size, frames[middle : middle + frame])
    data = b""
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        data = file.getvalue()
        if len(data) <= MOST:
            break
    return data
