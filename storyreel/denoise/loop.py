"""The denoising loop: segments from noise to latents, one after the other or several at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from storyreel.denoise.lead import Lead
from storyreel.denoise.prompts import Prompts, PromptWriter
from storyreel.errors import NumericsError, UsageError
from storyreel.method.blending import published_blend, renoised, with_lead
from storyreel.method.step_skipping import Pace, continued
from storyreel.models.base import Adapter, Request, Text
from storyreel.models.device_errors import plugin_faults
from storyreel.plugins import Plugin
from storyreel.story.plan import Plan, Segment, Settings, Slot, derived_seed

Blend = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]  # as `with_lead`


@dataclass
class Stream:
    """What is denoised of a segment, its picture or its sound: x_σ (1, C, lead + own, H, W) and its lead.

    ``noise`` (1, C, L, H, W) is that of the lead, ``known`` are the last velocities that were computed, each
    with its σ, if steps are to be skipped. ``blend`` puts the lead into x.
    """

    x: Tensor
    lead: Lead | None = None
    noise: Tensor | None = None
    known: tuple[tuple[float, Tensor], ...] = ()
    blend: Blend = with_lead

    def at(self, sigma: float) -> Tensor:
        """Return x with its lead at a noise level."""
        if self.lead is None or self.noise is None:
            return self.x
        return self.blend(self.x, self.lead.latents, self.lead.weights, self.noise, sigma)

    def go(self, velocity: Tensor, sigma: float, lower: float, fresh: Tensor | None) -> None:
        """Go down from σ to ``lower``, by an Euler step, or by the estimate with ``fresh`` noise.

        The lead goes its own way, from its noise to what it is.
        """
        if fresh is None:
            self.x = euler(self.x, velocity, sigma, lower)
        else:
            self.x = torch.lerp(denoised(self.x, velocity, sigma), fresh, lower)
        self.x = self.at(lower)


@dataclass(kw_only=True)
class SegmentState(Stream):
    """A segment under way after ``step`` steps: its picture as a `Stream`, its prompts, and its ``sound``.

    ``sigmas`` are its noise levels from 1 to 0, ``pace`` says which steps are computed, ``ending`` (D,) is a
    scorer's vector of how the segment that it goes on from ends.
    ``broken`` () is the step in which x first held NaN or infinity, infinite without; on the device.
    """

    segment: Segment
    step: int
    prompts: Prompts
    sigmas: list[float]
    broken: Tensor
    pace: Pace
    ending: Tensor | None = None
    sound: Stream | None = None

    @property
    def sigma(self) -> float:
        """The present noise level."""
        return self.sigmas[self.step]

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All that is denoised: the picture, and of a model that makes sound that too."""
        return (self,) if self.sound is None else (self, self.sound)


@torch.inference_mode()
def denoise(
    adapter: Adapter,
    settings: Settings,
    segments: Sequence[Segment],
    writer: PromptWriter,
    start: Callable[[Segment], SegmentState | None],
    on_forward: Callable[[Sequence[SegmentState]], None],
) -> Iterator[SegmentState]:
    """Yield segments, in their order, as they are finished.

    ``start`` begins one, or takes it up where it was left; it returns None as long as a segment is not
    finished without which it cannot begin. As many are denoised at a time as the adapter answers requests
    at a time. ``on_forward`` is called with them after every model evaluation, when they are still as the
    step began. Raises NumericsError for NaN or infinity.
    """
    window: list[SegmentState] = []
    waiting = list(segments)
    while window or waiting:
        while waiting and len(window) < adapter.at_once:
            if window and waiting[0].loras != window[0].segment.loras:
                break  # which is another model, as it were
            begun = start(waiting[0])
            if begun is None:
                break
            window.append(begun)
            waiting.pop(0)
        if not window:
            raise RuntimeError(f"scene {waiting[0].number} waits for one that does not come")
        # One may have begun ahead of those before it, and waits for them.
        unfinished = [begun for begun in window if begun.step < settings.steps]
        _step(adapter, settings, unfinished, writer, lambda: on_forward(window))
        while window and window[0].step == settings.steps:
            _check(window[0])
            yield window.pop(0)


def _step(
    adapter: Adapter,
    settings: Settings,
    window: Sequence[SegmentState],
    writer: PromptWriter,
    on_forward: Callable[[], None],
) -> None:
    """Take every segment one step further. All have the same LoRAs."""
    if window:
        adapter.merge_loras(window[0].segment.loras)
    levels = [begun.sigma for begun in window]
    velocities = next_velocities(adapter, window, writer.negative, settings, on_forward)
    for begun, sigma, of_streams in zip(window, levels, velocities, strict=True):
        estimate = denoised(begun.x, of_streams[0], sigma)
        lower = begun.sigmas[begun.step + 1]
        for index, (stream, velocity) in enumerate(zip(begun.streams, of_streams, strict=True)):
            # A velocity that is guessed in the next step belongs to the noise that it was computed with.
            renoises = adapter.spec.renoises and lower > 0 and begun.pace.computed[begun.step + 1]
            fresh = fresh_noise(begun.segment, begun.step, stream.x, index) if renoises else None
            stream.go(velocity, sigma, lower, fresh)
        begun.step += 1
        for stream in begun.streams:
            whole = stream.x.isfinite().all()
            begun.broken = torch.where(whole, begun.broken, begun.broken.clamp(max=begun.step))
        own = estimate[:, :, begun.segment.lead :]
        writer.weigh(begun.prompts, own, sigma, lower, begun.step, begun.ending)


def begin(
    adapter: Adapter,
    plan: Plan,
    segment: Segment,
    prompts: Prompts,
    lead: Lead | None = None,
    before: Tensor | None = None,
    ending: Tensor | None = None,
) -> SegmentState:
    """Return a segment as pure noise.

    ``before`` are the latents of the one before it, which the published blending alone asks for; ``ending``
    (D,) is how that one ends, where this one goes on from it.
    """
    noise = first_noise(plan, segment, before).to(adapter.device)
    shift = plan.settings.shift
    sigmas = plan.plugged_levels(math.prod(noise.shape[2:]))
    if sigmas is None and plan.spec.sigmas:
        sigmas = [*plan.spec.sigmas, 0.0]
    if sigmas is None:
        sigmas = adapter.sigmas(plan.settings.steps, noise.shape, *(() if shift is None else (shift,)))
    never = torch.full((), math.inf, device=adapter.device)
    plugin = plan.settings.method.plugged.get("blending")
    blend = with_lead if plugin is None else plugged_blend(plugin)
    sound = None
    if plan.spec.sound is not None:
        heard = sound_noise(plan, segment).to(adapter.device)
        sound = _stream(heard, None if lead is None else lead.sound, blend)
    return SegmentState(
        **vars(_stream(noise, lead, blend)),
        segment=segment,
        step=0,
        prompts=prompts,
        sigmas=sigmas,
        broken=never,
        pace=plan.pace,
        ending=ending,
        sound=sound,
    )


def _stream(noise: Tensor, lead: Lead | None, blend: Blend) -> Stream:
    if lead is None:
        return Stream(noise)
    of_lead = noise[:, :, : lead.latents.shape[2]].clone()
    # What is given clean is so at every level: its own noise.
    of_lead[:, :, : lead.clean] = lead.latents[:, :, : lead.clean]
    return Stream(noise, lead, of_lead, blend=blend)


def plugged_blend(plugin: Plugin) -> Blend:
    """Return a plugin's formula, which is held to latents of x's shape. Raises UsageError."""
    formula = plugin.function()

    def blend(x: Tensor, lead: Tensor, weights: Tensor, noise: Tensor, sigma: float) -> Tensor:
        with plugin_faults(plugin.words):
            blended = formula(x, lead, weights, noise, sigma)
        if not isinstance(blended, Tensor) or blended.shape != x.shape:
            found = tuple(blended.shape) if isinstance(blended, Tensor) else type(blended).__name__
            words = f"{plugin.words} gives {found} for latents {tuple(x.shape)}"
            raise UsageError(words, "Have it return latents of the shape of x.")
        return blended.to(x)

    return blend


def sample(adapter: Adapter, plan: Plan, segment: Segment, text: Text) -> Tensor:
    """Return the latents (1, C, lead + own, H, W) of one segment alone, of one text: the base model's way."""
    writer = PromptWriter(adapter, plan, None)
    begun = begin(adapter, plan, segment, Prompts(text))
    (finished,) = denoise(adapter, plan.settings, [segment], writer, lambda _: begun, lambda _: None)
    return finished.x


def _check(begun: SegmentState) -> None:
    """Raise NumericsError if a segment holds NaN or infinity, naming its step."""
    if (step := begun.broken.item()) < math.inf:
        raise NumericsError(
            f"scene {begun.segment.index + 1} turned to NaN or infinity in denoising step {int(step)}",
            "Try a lower --guidance, more --steps, or another model; finished scenes are kept.",
        )


def first_noise(plan: Plan, segment: Segment, before: Tensor | None) -> Tensor:
    """Return the x_1 of a segment (1, C, lead + own, H, W): its noise, or `published_blend` of it.

    ``before`` are the latents of the segment before it.
    """
    noise, seam, method = segment_noise(plan, segment), plan.seam(segment), plan.settings.method
    if method.blending != "published" or seam is None or seam.strength == 0 or before is None:
        return noise
    gamma = method.gamma * seam.strength
    tail = before[:, :, -min(3, before.shape[2]) :].cpu()
    return renoised(published_blend(noise, tail, method.beta, gamma), noise, gamma)


def latents_shape(plan: Plan, segment: Segment) -> tuple[int, int, int, int, int]:
    """Return the shape (1, C, lead + own, H, W) of a segment's latents in a settled plan."""
    spec, settings = plan.spec, plan.settings
    rows, columns = settings.height // spec.pixels_per_latent, settings.width // spec.pixels_per_latent
    return 1, spec.latent_channels, segment.lead + segment.latents, rows, columns


def segment_noise(plan: Plan, segment: Segment) -> Tensor:
    """Return a segment's noise (1, C, lead + own, H, W), drawn on the CPU."""
    _, channels, _, rows, columns = latents_shape(plan, segment)

    def draw(seed: int, frames: int) -> Tensor:
        # Frame by frame, so that a longer scene begins like a shorter one.
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(frames, channels, rows, columns, generator=generator)

    # The lead's comes from a generator of its own: what is shown does not depend on how long it is.
    lead = draw(derived_seed(segment.seed, -1), segment.lead)
    noise = torch.cat([lead, draw(segment.seed, segment.latents)])
    return noise.transpose(0, 1)[None].contiguous()


def sound_shape(plan: Plan, segment: Segment) -> tuple[int, int, int, int, int]:
    """Return the shape (1, C, S, 1, M) of the latents of a segment's sound, of a model that makes some."""
    spec, sound = plan.spec, plan.spec.sound
    assert sound is not None
    return 1, sound.channels, spec.sound_latents(segment.lead + segment.latents), 1, sound.bands


def sound_noise(plan: Plan, segment: Segment) -> Tensor:
    """Return the noise (1, C, S, 1, M) of a segment's sound, drawn on the CPU; a lead's has its own."""
    _, channels, whole, _, bands = sound_shape(plan, segment)
    lead = plan.spec.sound_latents(segment.lead)

    def draw(name: str, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed(segment.seed, name))
        return torch.randn(count, channels, 1, bands, generator=generator)

    noise = torch.cat([draw("sound before", lead), draw("sound", whole - lead)])
    return noise.transpose(0, 1)[None].contiguous()


def fresh_noise(segment: Segment, step: int, like: Tensor, stream: int = 0) -> Tensor:
    """Return noise of a tensor's shape, on its device, which a segment, a step and a stream alone decide."""
    generator = torch.Generator().manual_seed(derived_seed(segment.seed, f"step {step} of {stream}"))
    # From pinned memory, as a copy from any other would have the step wait for the GPU.
    noise = torch.randn(like.shape, generator=generator, pin_memory=like.is_cuda)
    return noise.to(like, non_blocking=like.is_cuda)


def next_velocities(
    adapter: Adapter,
    window: Sequence[SegmentState],
    negative: Text,
    settings: Settings,
    on_forward: Callable[[], None],
) -> list[list[Tensor]]:
    """Return the velocities of every segment's streams: the transformer's, or those that go on in their line.

    With classifier-free guidance away from the negative prompt; at guidance 1 without a second pass.
    """
    computed = [begun for begun in window if _is_computed(adapter, begun)]
    experts = [adapter.expert_at(begun.sigma) for begun in computed]
    strengths = [
        settings.guidance_of(expert) if begun.pace.guided[begun.step] else 1.0
        for begun, expert in zip(computed, experts, strict=True)
    ]
    requests = []
    for begun, strength in zip(computed, strengths, strict=True):
        asked = [begun.prompts.text] if strength == 1 else [negative, begun.prompts.text]
        shown, *heard = (stream.at(begun.sigma * settings.method.lead_noise) for stream in begun.streams)
        clean, counts = 0, None
        if begun.lead is not None:
            clean, counts = begun.lead.clean, begun.lead.counts(settings.method.identity_weight)
        requests.append(Request(shown, begun.sigma, asked, clean, heard[0] if heard else None, counts))
    velocities: dict[Slot, list[Tensor]] = {}
    for begun, strength, answer in zip(computed, strengths, adapter.predict(requests), strict=True):
        texts = 1 if strength == 1 else 2
        velocities[begun.segment.slot] = [
            _guided(answer[at : at + texts], strength, settings.guidance_rescale)
            for at in range(0, len(answer), texts)
        ]
        on_forward()
    if settings.speed != "exact":  # not before all are there: until then the segments are as the step began
        for begun, expert in zip(computed, experts, strict=True):
            for stream, velocity in zip(begun.streams, velocities[begun.segment.slot], strict=True):
                # Of other noise a velocity is on no line with this one.
                turned = begun.pace.turns(begun.step) or adapter.spec.renoises
                before = () if turned else stream.known[-1:]
                # Another expert's velocity, with another guidance, is on no line with this one.
                before = tuple(known for known in before if adapter.expert_at(known[0]) == expert)
                stream.known = (*before, (begun.sigma, velocity))
    return [
        velocities[begun.segment.slot]
        if begun.segment.slot in velocities
        else [continued(stream.known, begun.sigma) for stream in begun.streams]
        for begun in window
    ]


def _guided(answer: Sequence[Tensor], strength: float, share: float) -> Tensor:
    """Return a prompt's velocity, led away with a ``strength`` from that of the negative one before it."""
    if strength == 1:
        return answer[-1]
    guided = answer[0] + strength * (answer[1] - answer[0])
    return rescaled(guided, answer[1], share) if share else guided


def _is_computed(adapter: Adapter, begun: SegmentState) -> bool:
    """Tell whether a segment's step is computed: of another expert no velocity can be continued."""
    if begun.pace.computed[begun.step] or not begun.known:
        return True
    return adapter.expert_at(begun.sigma) != adapter.expert_at(begun.known[-1][0])


def rescaled(guided: Tensor, text: Tensor, share: float) -> Tensor:
    """Return a guided velocity whose spread is by ``share`` that of the text's own, both (1, C, F, H, W).

    High guidance widens it, which shows as too much contrast (arXiv 2305.08891, section 3.4).
    """
    return guided * (share * text.std() / guided.std() + 1 - share)


def denoised(x: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """Return the estimate x̂0 = x - σ·v."""
    return x - sigma * velocity


def euler(x: Tensor, velocity: Tensor, sigma: float, lower: float) -> Tensor:
    """Step from σ down to ``lower`` along the velocity ε - x0."""
    return x + (lower - sigma) * velocity
