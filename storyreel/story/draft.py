"""The draft of a film: the same scenes, prompts, seeds and seams, in few steps and a moment of each scene.

A draft is a plan like any other, and is denoised by the same loop. Noise is drawn frame by frame: a draft's
moment begins with the noise with which the scene begins in the film.
"""

from __future__ import annotations

from dataclasses import replace

from storyreel.story.plan import Plan, Segment
from storyreel.story.schema import Story

STEPS = 4  # at the least; else a quarter of the film's
LATENTS = 4  # of each scene: fewer have another light and other colours more often


def draft_of(plan: Plan) -> Plan:
    """Return the draft of a plan: the first `LATENTS` of each scene, in `STEPS` or more.

    A segment's start stays that in the film.
    """
    steps = plan.settings.steps
    if not plan.spec.sigmas:  # of which none can be left out
        steps = min(steps, max(STEPS, steps // 4))

    def short(segment: Segment) -> Segment:
        own = min(LATENTS, segment.latents)
        return replace(segment, latents=own, frames=own * plan.spec.frames_per_latent)

    segments = tuple(map(short, plan.segments))
    seams = tuple(
        replace(seam, overlap=min(seam.overlap, segments[seam.after - 1].latents)) for seam in plan.seams
    )
    settings = replace(plan.settings, steps=steps, speed="exact")
    replaced = tuple(map(short, plan.replaced))
    draft = replace(plan, settings=settings, segments=segments, seams=seams, replaced=replaced)
    return draft.settled([None] * len(seams))


def with_seed(story: Story, seed: int) -> Story:
    """Return a story in which every scene has the same seed of its own."""
    scenes = [scene.model_copy(update={"seed": seed}) for scene in story.scenes]
    return story.model_copy(update={"scenes": scenes})
