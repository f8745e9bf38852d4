"""The film's page: one HTML file beside the film, readable from disk without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from storyreel.film.inventory import Inventory
from storyreel.film.keys import film_tags
from storyreel.film.store import Decided, DecidedSeam
from storyreel.story.plan import Plan

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
video { width: 100%; background: #000; border-radius: .5rem; }
ol { padding: 0; list-style: none; }
li { display: grid; grid-template-columns: 4.5rem 1fr; gap: .75rem; padding: .5rem; border-radius: .4rem; }
li.now { background: color-mix(in srgb, currentColor 10%, transparent); }
button { font: inherit; font-variant-numeric: tabular-nums; cursor: pointer; align-self: start; }
small, dd, dt { opacity: .75; } dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
li svg { width: 8rem; height: 2rem; grid-column: 2; overflow: visible; }
polyline { fill: none; stroke: currentColor; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
line { stroke: currentColor; opacity: .25; vector-effect: non-scaling-stroke; }
"""

_SCRIPT = """
const film = document.querySelector("video");
const scenes = [...document.querySelectorAll("li")];
for (const scene of scenes) {
  scene.querySelector("button").onclick = () => {
    film.currentTime = Number(scene.dataset.start) + 0.001;
    film.play();
  };
}
film.ontimeupdate = () => {
  for (const scene of scenes) {
    const { start, end } = scene.dataset;
    scene.classList.toggle("now", film.currentTime >= start && film.currentTime < end);
  }
};
"""


def film_page(plan: Plan, name: str, tags: dict[str, str], decided: Mapping[str, Decided]) -> str:
    """Return the page: player, scenes to jump to, seams, and where the film comes from.

    ``decided`` is what the manifest says of each segment's seam and prompt weights.
    """
    fps = plan.spec.fps
    rows = []
    for segment in plan.segments:
        start, end = segment.start / fps, (segment.start + segment.frames) / fps
        made: Decided = decided.get(segment.number, {})
        note = f" <small>({_seam(seam)})</small>" if (seam := made.get("seam")) else ""
        action = "" if segment.action == segment.scene else f"<br><small>{escape(segment.action)}</small>"
        rows.append(
            f'<li data-start="{start:g}" data-end="{end:g}"><button>{_clock(start)}</button>'
            f"<div>{escape(segment.scene)}{note}{action}</div>"
            f"{_curve(made.get('prompt_weights') or [])}</li>"
        )
    facts = "\n".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in tags.items())
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,">
<title>{escape(plan.title)}</title>
<style>{_STYLE}</style>
<h1>{escape(plan.title)}</h1>
<video src="{escape(name)}.mp4" controls loop preload="metadata"></video>
<h2>Scenes</h2>
<ol>
{chr(10).join(rows)}
</ol>
<h2>Made from</h2>
<dl>
{facts}
</dl>
<script>{_SCRIPT}</script>
</html>
"""


def _seam(seam: DecidedSeam) -> str:
    if seam["transition"] == "cut" or not seam["overlap"]:
        return "cut"
    alike = "" if seam["similarity"] is None else f", actions {100 * seam['similarity']:.0f} % alike"
    return f"blended over {seam['overlap']} latent frames at strength {seam['strength']:.2f}{alike}"


def _curve(weights: Sequence[tuple[float, float]]) -> str:
    """Draw the action prompt's weight over the denoising steps, from 0 at the bottom to 1."""
    if len(weights) < 2:
        return ""
    points = " ".join(
        f"{100 * i / (len(weights) - 1):.1f},{100 - 100 * w:.1f}" for i, (_, w) in enumerate(weights)
    )
    return (
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none"><title>weight of the action prompt over the '
        f'steps</title><line x1="0" x2="100" y1="50" y2="50"/><polyline points="{points}"/></svg>'
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def film_page_of(name: str, film: dict[str, str], there: Inventory) -> str:
    """Return the page of a film."""
    decided = {record.number: record.decided for record in there.latents.values()}
    return film_page(there.plan, name, film_tags(there.plan, film.get("storyreel", "")), decided)
