"""How far the colours of a shot drift: those of a scene's end, against the beginning of the shot.

A fault only where the place stays and no light is told: another place has other colours, and what is told at
dusk is meant to look so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from storyreel.evaluation.films import Span

# In lower case and without a plural's s. A word that is no light here ("a light jacket") leaves a scene out
# for nothing, which is the smaller mistake.
_LIGHT = """
    afternoon bonfire campfire candle candlelight candlelit cloudy dark darken darkening darkness dawn day
    daybreak daylight daytime dim dimly dusk evening firelight firework floodlight foggy gloom gloomy glow
    glowing headlight lamp lamplight lantern light lighting lightning lit midday midnight misty moon moonlight
    moonlit morning neon night nightfall nighttime noon overcast silhouette spotlight starlight starlit storm
    stormy streetlight sun sunlight sunlit sunny sunrise sunset sunshine twilight
"""
LIGHT_WORDS = frozenset(_LIGHT.split())
LONGEST = 1.0  # seconds of a scene's end, and of a shot's beginning


@dataclass(frozen=True)
class Drift:
    """ΔE of a scene's end from the beginning of its shot, in scene ``since``, or where the shot was relit.

    Lightness is left out; ``since`` is an index.
    """

    distance: float
    since: int


def told_light(*prompts: str) -> frozenset[str]:
    """Return the words of some prompts that tell a light, or a time of day."""
    words = re.findall(r"[^\W\d_]+", " ".join(prompts).casefold())
    return LIGHT_WORDS.intersection(word.removesuffix("s") for word in words)


def drifts(
    spans: Sequence[Span], inside: Sequence[tuple[int, int]], colours: Tensor, fps: float
) -> list[Drift | None]:
    """Return how far every scene's colours drift; None where it is told another light than its shot before.

    ``inside`` are the frames of every scene that no transition reaches, ``colours`` (T, P, 2) CIELAB's a and
    b in some patches of every frame, ``fps`` frames a second. The median over patches counts: a tint is
    everywhere, and what comes and goes is not.
    """
    found: list[Drift | None] = []
    light, since, beginning = frozenset[str](), 0, None
    follows = [*(span.goes_on for span in spans[1:]), False]
    for index, (span, quiet, continued) in enumerate(zip(spans, inside, follows, strict=True)):
        clear = span.clear(fps)
        start, stop = clear.start, clear.stop if continued else min(clear.stop, quiet[1])
        if index == 0 or not span.goes_on:
            light, beginning = frozenset(), None
            start = max(start, quiet[0])
        length = max(1, min(round(LONGEST * fps), (stop - start) // 3))
        end = colours[stop - length : stop].mean(0)
        told = told_light(span.scene, span.action)
        if told and told != light:
            light, since, beginning = told, index, end
            found.append(None)
            continue
        if beginning is None:
            since, beginning = index, colours[start : start + length].mean(0)
        found.append(Drift(float((end - beginning).median(0).values.norm()), since))
    return found
