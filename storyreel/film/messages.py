"""What a render tells its user of the film: how it will differ, what is kept, and of other machines."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from storyreel.film.clean import size_words, unneeded
from storyreel.film.differences import differences
from storyreel.film.folder import UNFINISHED_PAGE, FilmFolder
from storyreel.film.inventory import Inventory
from storyreel.film.manifest import Manifest
from storyreel.film.reasons import alone_messages


def difference_messages(folder: FilmFolder, wanted: Manifest, inventory: Inventory) -> Iterator[str]:
    """Yield how the film that is wanted differs from the one in the folder, if it does.

    If a change of one scene makes others be rendered too, also how that scene could be changed alone.
    """
    renders = bool(inventory.missing)
    stays = "; what is there stays until the new film is complete" if renders else ""
    if renders and folder.film_path.exists():
        stays += f", which grows in {UNFINISHED_PAGE}"
    before = folder.present or folder.unfinished
    if folder.present is None and folder.film_path.exists() and renders:
        yield f"the film that is there is of an earlier version, or its manifest is damaged{stays}"
    elif before is not None and (found := differences(before, wanted)):
        which = "the film that is there" if folder.present else "the film that was begun"
        yield f"differs from {which}: {'; '.join(found)}{stays}"
        yield from alone_messages(inventory, before)


def device_messages(inventory: Inventory, device: str) -> Iterator[str]:
    """Yield a warning if kept segments were computed on other devices: the last digits differ by device."""
    others = sorted({record.device for record in inventory.latents.values()} - {device})
    if others and inventory.undone:
        yield (
            f"{len(inventory.latents)} scenes that are kept were computed on {' and '.join(others)}, the "
            f"others will be on {device}: that makes another film than either alone, in its last digits "
            "(--overwrite makes all of it as here)"
        )


def unused_messages(folder: FilmFolder) -> Iterator[str]:
    """Yield how much is kept of former scenes, if any, and how to remove it. Raises OutputError."""
    if size := sum(unneeded(folder).values()):
        yield (
            f"{size_words(size)} of former scenes are kept: to go back to them renders nothing. What no film "
            f"uses can go: storyreel clean {shlex.quote(str(folder.path))}"
        )
