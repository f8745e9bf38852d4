"""The film's page: one HTML file beside the film, readable from disk without a network."""

from __future__ import annotations

from html import escape

from storyreel.plan import Plan

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


def film_page(plan: Plan, name: str, tags: dict[str, str]) -> str:
    """Return the page: player, scenes to jump to, seams, and where the film comes from."""
    fps = plan.spec.fps
    rows = []
    for segment in plan.segments:
        start, end = segment.start / fps, (segment.start + segment.frames) / fps
        seam = "" if segment.index == 0 else "blended" if segment.blended else "cut"
        note = f" <small>({seam})</small>" if seam else ""
        rows.append(
            f'<li data-start="{start:g}" data-end="{end:g}"><button>{_clock(start)}</button>'
            f"<div>{escape(segment.scene)}{note}<br><small>{escape(segment.action)}</small></div></li>"
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


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
