"""The one denoising loop: a window that moves over a run of segments, from noise to latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from storyreel.denoise.anchors import Anchors
from storyreel.denoise.prompts import Prompts, PromptWriter
from storyreel.errors import NumericsError
from storyreel.method.blending import blend_overlap, constrain, published_blend, renoised
from storyreel.method.step_skipping import SPEEDS, continued
from storyreel.models.base import Adapter, Memory, Request, Text
from storyreel.story.plan import Plan, Seam, Segment, Settings, admits, derived_seed


@dataclass
class Take:
    """A segment on its way: x_σ (1, C, lead + own, H, W) after ``step`` steps, and what it is told.

    ``sigmas`` are its noise levels from 1 to 0, ``known`` the last velocities that were computed, each
    with its σ, if steps are to be left out. ``broken`` is the tick in which it first held NaN or
    infinity, on the device.
    """

    segment: Segment
    x: Tensor
    step: int
    prompts: Prompts
    memory: Memory | None
    sigmas: list[float]
    broken: Tensor
    known: tuple[tuple[float, Tensor], ...] = ()

    @property
    def sigma(self) -> float:
        """The noise level that it has come to."""
        return self.sigmas[self.step]


@dataclass
class State:
    """Where the denoising of a run stands: all it needs to go on.

    ``before`` are the latents of the segment that was finished last, ``ending`` is how a scorer
    saw its end.
    """

    before: Tensor | None
    takes: list[Take]
    ending: Tensor | None = None


@torch.inference_mode()
def denoise(
    adapter: Adapter,
    plan: Plan,
    run: Sequence[Segment],
    writer: PromptWriter,
    anchors: Anchors | None,
    state: State,
    on_forward: Callable[[], None],
) -> Iterator[tuple[Take, State]]:
    """Yield the segments of a run as they are finished, each with the state of those behind it.

    Segments begin a few steps apart and are denoised side by side; in every step neighbours
    agree on their overlap. ``run`` are the segments that have not begun in ``state``; without
    ``anchors`` they remember nothing. ``state`` moves along; when ``on_forward`` is called, it stands
    where the step began. Raises NumericsError for NaN or infinity.
    """
    settings, method = plan.settings, plan.settings.method
    takes, waiting, tick = state.takes, list(run), 0
    while takes or waiting:
        if waiting and admits([take.step for take in takes], method.window, settings.steps):
            segment = waiting.pop(0)
            memory = None if anchors is None else anchors.memory(segment)
            takes.append(begin(adapter, plan, segment, writer.prompts(segment), memory, state.before))
        velocities = next_velocities(adapter, takes, writer.negative, settings, on_forward)
        levels = [take.sigma for take in takes]
        estimates = [denoised(t.x, v, sigma) for t, v, sigma in zip(takes, velocities, levels, strict=True)]
        agreed = blend_seams(plan, takes, estimates, levels, state.before)
        for index, (take, sigma) in enumerate(zip(takes, levels, strict=True)):
            # What blending changed, as velocity; elsewhere this is exactly the model's own.
            velocity = velocities[index] + (estimates[index] - agreed[index]) / sigma
            take.x = euler(take.x, velocity, sigma, take.sigmas[take.step + 1])
            take.step += 1
            take.broken = torch.where(take.x.isfinite().all(), take.broken, take.broken.clamp(max=tick))
            seen = takes[index - 1].prompts.ending if index else state.ending
            seen = seen if is_blended(plan.seam(take.segment)) else None
            writer.weigh(take.prompts, agreed[index], sigma, take.step, seen)
        if takes[0].step == settings.steps:
            _check(takes, tick)
            done = takes.pop(0)
            state.before, state.ending = done.x, done.prompts.ending
            yield done, state
        tick += 1


def begin(
    adapter: Adapter,
    plan: Plan,
    segment: Segment,
    prompts: Prompts,
    memory: Memory | None = None,
    before: Tensor | None = None,
) -> Take:
    """Return a segment as pure noise, ``before`` being the latents finished last."""
    noise = first_noise(plan, segment, before).to(adapter.device)
    sigmas = adapter.sigmas(plan.settings.steps, noise.shape)
    never = torch.full((), math.inf, device=adapter.device)
    return Take(segment, noise, 0, prompts, memory, sigmas, never)


def sample(adapter: Adapter, plan: Plan, segment: Segment, text: Text) -> Tensor:
    """Return the latents of one segment by itself, told one text: the base model's own way."""
    writer = PromptWriter(adapter, plan.settings, None)
    state = State(None, [begin(adapter, plan, segment, Prompts(text))])
    (done, _), *_ = denoise(adapter, plan, [], writer, None, state, lambda: None)
    return done.x


def _check(takes: Sequence[Take], tick: int) -> None:
    """Raise NumericsError if a take has been spoilt, naming the one that was first and its step."""
    spoilt = torch.stack([take.broken for take in takes]).tolist()
    first = min(spoilt)
    if first < math.inf:
        take = takes[spoilt.index(first)]
        raise NumericsError(
            f"scene {take.segment.index + 1} turned to NaN or infinity in denoising step "
            f"{take.step - (tick - int(first))}",
            "Try a lower --guidance or more --steps; finished scenes are kept.",
        )


def first_noise(plan: Plan, segment: Segment, before: Tensor | None) -> Tensor:
    """Return what a segment begins with; in the published form, with some of the one before in it.

    ``before`` are the latents finished last. In the published form these are the segment's own
    neighbour's, since its window is 1.
    """
    noise, seam, method = segment_noise(plan, segment), plan.seam(segment), plan.settings.method
    if method.blending != "published" or seam is None or seam.strength == 0 or before is None:
        return noise
    gamma = method.gamma * seam.strength
    tail = before[:, :, -min(3, before.shape[2]) :].cpu()
    return renoised(published_blend(noise, tail, method.beta, gamma), noise, gamma)


def segment_noise(plan: Plan, segment: Segment) -> Tensor:
    """Return a segment's noise (1, C, lead + own, H, W), drawn on the CPU.

    A part of it is the whole story's, which makes segments alike. Where a segment is blended
    with the one before, the overlap's noise is that one's.
    """
    noise = _own_noise(plan, segment)
    if is_blended(plan.seam(segment)):
        noise[:, :, : segment.lead] = _own_noise(plan, plan.segments[segment.index - 1])[
            :, :, -segment.lead :
        ]
    return noise


def _own_noise(plan: Plan, segment: Segment) -> Tensor:
    spec, settings = plan.spec, plan.settings
    rows, columns = settings.height // spec.pixels_per_latent, settings.width // spec.pixels_per_latent

    def draw(seed: int) -> Tensor:
        # Frame by frame, so that a longer scene begins like a shorter one.
        generator = torch.Generator().manual_seed(seed)
        frames = segment.lead + segment.latents
        noise = torch.randn(frames, spec.latent_channels, rows, columns, generator=generator)
        return noise.transpose(0, 1)[None].contiguous()

    own, shared = draw(segment.seed), settings.method.shared_noise
    if not shared:
        return own
    return math.sqrt(shared) * draw(derived_seed(settings.seed, -1)) + math.sqrt(1 - shared) * own


def next_velocities(
    adapter: Adapter,
    takes: Sequence[Take],
    negative: Text,
    settings: Settings,
    on_forward: Callable[[], None],
) -> list[Tensor]:
    """Return every take's velocity: the transformer's, or where the speed leaves that out, a likely one.

    With classifier-free guidance; at guidance 1 without a second pass.
    """
    speed, steps = SPEEDS[settings.speed], settings.steps
    asking = [take for take in takes if speed.computes(take.step, steps) or not take.known]
    experts = [adapter.expert_at(take.sigma) for take in asking]
    strengths = [
        settings.guidance_of(expert) if speed.guides(take.step, steps) else 1.0
        for take, expert in zip(asking, experts, strict=True)
    ]
    requests = []
    for take, strength in zip(asking, strengths, strict=True):
        texts = [take.prompts.text] if strength == 1 else [negative, take.prompts.text]
        requests.append(Request(take.x, take.sigma, texts, take.memory))
    found: dict[int, Tensor] = {}
    for take, strength, answer in zip(asking, strengths, adapter.predict_all(requests), strict=True):
        found[take.segment.index] = (
            answer[-1] if strength == 1 else answer[0] + strength * (answer[1] - answer[0])
        )
        on_forward()
    if speed.every > 1:  # not before all are there: until then the takes stand where they stood
        for take, expert in zip(asking, experts, strict=True):
            before = () if speed.turns(take.step, steps) else take.known[-1:]
            # Another expert's velocity, with another guidance, is on no line with this one.
            before = tuple(known for known in before if adapter.expert_at(known[0]) == expert)
            take.known = (*before, (take.sigma, found[take.segment.index]))
    return [
        found[take.segment.index] if take.segment.index in found else continued(take.known, take.sigma)
        for take in takes
    ]


def denoised(x: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """Return the estimate x̂0 = x - σ·v."""
    return x - sigma * velocity


def euler(x: Tensor, velocity: Tensor, sigma: float, lower: float) -> Tensor:
    """Step from σ down to ``lower`` along the velocity ε - x0."""
    return x + (lower - sigma) * velocity


def is_blended(seam: Seam | None) -> bool:
    """Tell whether the segments on both sides of a seam have anything to do with each other."""
    return seam is not None and seam.overlap > 0 and seam.strength > 0


def blend_seams(
    plan: Plan,
    takes: Sequence[Take],
    estimates: Sequence[Tensor],
    levels: Sequence[float],
    before: Tensor | None,
) -> list[Tensor]:
    """Return the estimates x̂0 as neighbours agree on them; a finished neighbour only gives.

    ``levels`` are the noise levels of the takes. Whoever is below the method's release level
    goes on by itself.
    """
    agreed, release = list(estimates), plan.settings.method.release
    for i, take in enumerate(takes):
        seam = plan.seam(take.segment)
        if seam is None or not is_blended(seam):
            continue
        if i > 0:
            earlier, later = blend_overlap(agreed[i - 1], agreed[i], seam.overlap, seam.strength)
            agreed[i - 1] = earlier if levels[i - 1] > release else agreed[i - 1]
            agreed[i] = later if levels[i] > release else agreed[i]
        elif before is not None and levels[0] > release:
            agreed[0] = constrain(before, agreed[0], seam.overlap, seam.strength)
    return agreed
