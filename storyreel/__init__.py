"""One coherent film from a story of scene pairs, with a pretrained text-to-video model.

    import storyreel

    film = storyreel.render("story.yaml", model="mini")

What is public is loaded when it is first used: the import alone loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storyreel.api import Film, Progress, Scene, evaluate, load_story, plan, render
    from storyreel.engine import Engine
    from storyreel.errors import StoryreelError

__version__ = "0.2.0"
__all__ = [
    "Engine",
    "Film",
    "Progress",
    "Scene",
    "StoryreelError",
    "evaluate",
    "load_story",
    "plan",
    "render",
]

_ELSEWHERE = {"Engine": "storyreel.engine", "StoryreelError": "storyreel.errors"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "storyreel.api")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
