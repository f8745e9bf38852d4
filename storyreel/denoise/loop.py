"""The denoising loop: a window that moves over a run of segments, from noise to latents."""

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
from storyreel.models.base import Adapter, Context, Request, Text
from storyreel.story.plan import Plan, Seam, Segment, Settings, admits, derived_seed


@dataclass
class SegmentState:
    """A segment under way: x_σ (1, C, lead + own, H, W) after ``step`` steps, its prompts and its context.

    ``sigmas`` are its noise levels from 1 to 0, ``known`` the last velocities that were computed, each
    with its σ, if steps are to be skipped. ``broken`` () is the round of the loop in which x first held NaN
    or infinity, infinite without; on the device.
    """

    segment: Segment
    x: Tensor
    step: int
    prompts: Prompts
    context: Context | None
    sigmas: list[float]
    broken: Tensor
    known: tuple[tuple[float, Tensor], ...] = ()

    @property
    def sigma(self) -> float:
        """The present noise level."""
        return self.sigmas[self.step]


@dataclass
class State:
    """The state of a run's denoising: the latents finished last and the segments in the window.

    ``before`` (1, C, lead + own, H, W) is None where there is none, ``ending`` (D,) is a scorer's vector of
    how that segment ends.
    """

    before: Tensor | None
    window: list[SegmentState]
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
) -> Iterator[tuple[SegmentState, State]]:
    """Yield the segments of a run as they are finished, each with the state of those behind it.

    Segments begin a few steps apart and are denoised side by side; in every step the estimates of
    neighbours are blended in their overlap. ``run`` are the segments that have not begun in ``state``;
    without ``anchors`` they have no context. ``state`` is changed in place; when ``on_forward`` is called,
    after every model evaluation, it is still that of the step's beginning. Raises NumericsError for NaN or
    infinity.
    """
    settings, method = plan.settings, plan.settings.method
    window, waiting, tick = state.window, list(run), 0
    while window or waiting:
        if waiting and admits([begun.step for begun in window], method.window, settings.steps):
            segment = waiting.pop(0)
            context = None if anchors is None else anchors.context(segment)
            window.append(begin(adapter, plan, segment, writer.prompts(segment), context, state.before))
        velocities = next_velocities(adapter, window, writer.negative, settings, on_forward)
        levels = [begun.sigma for begun in window]
        estimates = [denoised(s.x, v, sigma) for s, v, sigma in zip(window, velocities, levels, strict=True)]
        blended = blend_seams(plan, window, estimates, levels, state.before)
        for index, (begun, sigma) in enumerate(zip(window, levels, strict=True)):
            # What blending changed, as velocity; elsewhere this is exactly the model's own.
            velocity = velocities[index] + (estimates[index] - blended[index]) / sigma
            begun.x = euler(begun.x, velocity, sigma, begun.sigmas[begun.step + 1])
            begun.step += 1
            begun.broken = torch.where(begun.x.isfinite().all(), begun.broken, begun.broken.clamp(max=tick))
            ending = window[index - 1].prompts.ending if index else state.ending
            ending = ending if is_blended(plan.seam(begun.segment)) else None
            writer.weigh(begun.prompts, blended[index], sigma, begun.step, ending)
        if window[0].step == settings.steps:
            _check(window, tick)
            finished = window.pop(0)
            state.before, state.ending = finished.x, finished.prompts.ending
            yield finished, state
        tick += 1


def begin(
    adapter: Adapter,
    plan: Plan,
    segment: Segment,
    prompts: Prompts,
    context: Context | None = None,
    before: Tensor | None = None,
) -> SegmentState:
    """Return a segment as pure noise, ``before`` being the latents finished last."""
    noise = first_noise(plan, segment, before).to(adapter.device)
    sigmas = adapter.sigmas(plan.settings.steps, noise.shape)
    never = torch.full((), math.inf, device=adapter.device)
    return SegmentState(segment, noise, 0, prompts, context, sigmas, never)


def sample(adapter: Adapter, plan: Plan, segment: Segment, text: Text) -> Tensor:
    """Return the latents (1, C, lead + own, H, W) of one segment alone, of one text: the base model's way."""
    writer = PromptWriter(adapter, plan.settings, None)
    state = State(None, [begin(adapter, plan, segment, Prompts(text))])
    (finished, _), *_ = denoise(adapter, plan, [], writer, None, state, lambda: None)
    return finished.x


def _check(window: Sequence[SegmentState], tick: int) -> None:
    """Raise NumericsError if a segment holds NaN or infinity, naming the first such and its step."""
    broken = torch.stack([begun.broken for begun in window]).tolist()
    first = min(broken)
    if first < math.inf:
        begun = window[broken.index(first)]
        raise NumericsError(
            f"scene {begun.segment.index + 1} turned to NaN or infinity in denoising step "
            f"{begun.step - (tick - int(first))}",
            "Try a lower --guidance or more --steps; finished scenes are kept.",
        )


def first_noise(plan: Plan, segment: Segment, before: Tensor | None) -> Tensor:
    """Return the x_1 of a segment (1, C, lead + own, H, W): its noise, or `published_blend` of it.

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

    A part of it is the whole story's, the method's ``shared_noise``. Where a segment is blended with the one
    before, the overlap's noise is that one's.
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
    window: Sequence[SegmentState],
    negative: Text,
    settings: Settings,
    on_forward: Callable[[], None],
) -> list[Tensor]:
    """Return every segment's velocity: the transformer's, or in a step that is skipped the continued one.

    With classifier-free guidance; at guidance 1 without a second pass.
    """
    speed, steps = SPEEDS[settings.speed], settings.steps
    computed = [begun for begun in window if speed.computes(begun.step, steps) or not begun.known]
    experts = [adapter.expert_at(begun.sigma) for begun in computed]
    strengths = [
        settings.guidance_of(expert) if speed.guides(begun.step, steps) else 1.0
        for begun, expert in zip(computed, experts, strict=True)
    ]
    requests = []
    for begun, strength in zip(computed, strengths, strict=True):
        texts = [begun.prompts.text] if strength == 1 else [negative, begun.prompts.text]
        requests.append(Request(begun.x, begun.sigma, texts, begun.context))
    velocities: dict[int, Tensor] = {}
    for begun, strength, answer in zip(computed, strengths, adapter.predict(requests), strict=True):
        guided = answer[-1] if strength == 1 else answer[0] + strength * (answer[1] - answer[0])
        velocities[begun.segment.index] = guided
        on_forward()
    if speed.every > 1:  # not before all are there: until then the segments are as the step began
        for begun, expert in zip(computed, experts, strict=True):
            before = () if speed.turns(begun.step, steps) else begun.known[-1:]
            # Another expert's velocity, with another guidance, is on no line with this one.
            before = tuple(known for known in before if adapter.expert_at(known[0]) == expert)
            begun.known = (*before, (begun.sigma, velocities[begun.segment.index]))
    return [
        velocities[begun.segment.index]
        if begun.segment.index in velocities
        else continued(begun.known, begun.sigma)
        for begun in window
    ]


def denoised(x: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """Return the estimate x̂0 = x - σ·v."""
    return x - sigma * velocity


def euler(x: Tensor, velocity: Tensor, sigma: float, lower: float) -> Tensor:
    """Step from σ down to ``lower`` along the velocity ε - x0."""
    return x + (lower - sigma) * velocity


def is_blended(seam: Seam | None) -> bool:
    """Tell whether the estimates on both sides of a seam are blended."""
    return seam is not None and seam.overlap > 0 and seam.strength > 0


def blend_seams(
    plan: Plan,
    window: Sequence[SegmentState],
    estimates: Sequence[Tensor],
    levels: Sequence[float],
    before: Tensor | None,
) -> list[Tensor]:
    """Return the estimates x̂0 of the window's segments, blended in their overlaps.

    ``levels`` are the segments' σ: below the method's release level an estimate stays as it is, and only
    acts on its neighbours. So do ``before``, the latents that were finished last.
    """
    blended, release = list(estimates), plan.settings.method.release
    for i, begun in enumerate(window):
        seam = plan.seam(begun.segment)
        if seam is None or not is_blended(seam):
            continue
        if i > 0:
            earlier, later = blend_overlap(blended[i - 1], blended[i], seam.overlap, seam.strength)
            blended[i - 1] = earlier if levels[i - 1] > release else blended[i - 1]
            blended[i] = later if levels[i] > release else blended[i]
        elif before is not None and levels[0] > release:
            blended[0] = constrain(before, blended[0], seam.overlap, seam.strength)
    return blended
