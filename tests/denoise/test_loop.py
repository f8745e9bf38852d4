"""Our loop against diffusers' scheduler and pipeline, and what blending must keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline
from diffusers.models.attention_processor import MochiAttnProcessor2_0
from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg
from torch import Tensor

from storyreel.denoise import loop
from storyreel.denoise.lead import Lead, Leads
from storyreel.denoise.loop import (
    SegmentState,
    begin,
    denoise,
    denoised,
    euler,
    first_noise,
    fresh_noise,
    next_velocities,
    rescaled,
    sample,
    segment_noise,
)
from storyreel.denoise.prompts import PromptWriter, all_prompts
from storyreel.denoise.state import Stored
from storyreel.errors import NumericsError
from storyreel.models.attention import Keys
from storyreel.models.base import Adapter, Request, stacked
from storyreel.models.mochi import MochiAdapter
from storyreel.models.specs import MODELS
from storyreel.story.plan import Plan, Segment
from tests.conftest import FakeAdapter, FakeScorer, plan_of
from tests.tiny import CPU, MOCHI, TINY, mochi_transformer, mochi_vae

SCENES = (("a fox in the park", "a fox walks"), ("a dog in the park", "a dog sleeps"), ("the park", "a dog"))
HEAD = "render: {model: tiny}\nscenes:\n"
STORY = HEAD + "".join(f"  - [{scene}, {action}]\n" for scene, action in SCENES)
CUTS = HEAD + "".join(f"  - {{scene: {s}, action: {a}, transition: cut}}\n" for s, a in SCENES)
CUT_SCENE = "  - {scene: a fox in the park, action: a fox sleeps, transition: cut}\n"
# With a cast: a shot of two scenes, then other places, and a cut.
CAST = """
render: {model: tiny}
cast: {fox: {name: a fox}, dog: {name: a dog}}
scenes:
  - ["{fox} in the park", "{fox} walks"]
  - ["{fox} in the park", "{fox} sleeps"]
  - ["{dog} at home", "{dog} walks"]
  - {scene: "{fox} at sea", action: "{fox} sleeps", transition: cut}
"""


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setitem(MODELS, "tiny", TINY)
    return plan_of(STORY)


def without_all(text: str = STORY, **overrides: object) -> Plan:
    return plan_of(text, without=frozenset({"all"}), **overrides)


class Film:
    """A film in memory: ``leads`` and finished ``latents`` of its segments, by their index."""

    def __init__(self, adapter: Adapter, plan: Plan, scorer: FakeScorer | None = None) -> None:
        self.adapter, self.plan = adapter, plan
        self.latents: dict[int, Tensor] = {}
        self.leads: dict[int, Lead | None] = {}
        self.under_way: list[int] = []  # how many segments were, at every model evaluation
        self.writer = PromptWriter(adapter, plan, scorer)
        self._leads = Leads(adapter, plan, self.latents.__getitem__)
        self._endings: dict[int, Tensor | None] = {}

    def start(self, segment: Segment) -> SegmentState | None:
        sources = self.plan.sources(segment)
        if not all(source in self.latents for source in sources):
            return None
        before, seam = segment.index - 1, self.plan.seam(segment)
        published = self.plan.settings.method.blending == "published"
        # As the story has it, whatever the sources are: a scene that shows somebody again is another shot.
        goes_on = seam is not None and seam.strength > 0 and (published or seam.transition == "continue")
        lead = self.leads[segment.index] = self._leads.of(segment)
        return begin(
            self.adapter,
            self.plan,
            segment,
            self.writer.prompts(segment),
            lead,
            self.latents[before] if goes_on else None,
            self._endings[before] if goes_on else None,
        )

    def made(self, start: Callable[[Segment], SegmentState | None] | None = None) -> Film:
        def watch(window: Sequence[SegmentState]) -> None:
            self.under_way.append(len(window))

        segments = [s for s in self.plan.segments if s.index not in self.latents]
        start = start or self.start
        for done in denoise(self.adapter, self.plan.settings, segments, self.writer, start, watch):
            self.latents[done.segment.index] = done.x
            self._endings[done.segment.index] = done.prompts.ending
        return self


def film(adapter: Adapter, plan: Plan, scorer: FakeScorer | None = None) -> list[Tensor]:
    """Return the latents of every segment."""
    made = Film(adapter, plan, scorer).made()
    return [made.latents[segment.index] for segment in plan.segments]


class WithPreview(MochiAdapter):
    """The tiny model with a picture of its latents, so that a scorer has something to see."""

    @classmethod
    def of(cls, tiny: MochiAdapter) -> WithPreview:
        return cls(TINY, tiny.device, tiny.parts)

    def preview(self, latents: Tensor) -> Tensor | None:
        return latents[0, :3].transpose(0, 1).tanh()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


class StockProcessor(MochiAttnProcessor2_0):  # type: ignore[misc]
    """diffusers' own, told which tokens are there by a mask."""

    def __call__(
        self, attn: Any, video: Tensor, encoder_hidden_states: Tensor, attention_mask: Keys, **angles: Any
    ) -> Any:
        return super().__call__(attn, video, encoder_hidden_states, attention_mask.weights > 0, **angles)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_loop_equals_the_stock_pipeline(plan: Plan, tiny: MochiAdapter, guidance: float) -> None:
    """Latents of `MochiPipeline` and ours agree to 1e-6, with guidance and without."""
    steps = 6
    plan = without_all(steps=steps, guidance=guidance)
    segment = plan.segments[1]
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    parts = replace(tiny.parts, experts=[mochi_transformer()], scheduler=scheduler)
    adapter = MochiAdapter(MOCHI, CPU, parts)
    text, negative = adapter.encode(segment.prompt), adapter.encode("")
    ours = film(adapter, plan)[1]
    for block in adapter.experts[0].transformer_blocks:
        block.attn1.processor = StockProcessor()
    with_stock_attention = film(adapter, plan)[1]

    pipeline = MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=mochi_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=mochi_transformer(),
    )
    pipeline.set_progress_bar_config(disable=True)
    states, weights = stacked([negative, text])
    theirs = pipeline(
        prompt_embeds=states[1:],
        prompt_attention_mask=weights[1:].bool(),
        negative_prompt_embeds=states[:1],
        negative_prompt_attention_mask=weights[:1].bool(),
        latents=segment_noise(plan, segment),
        height=64,
        width=64,
        num_frames=6 * (ours.shape[2] - 1) + 1,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
    ).frames
    # The loop alone: the largest difference of any element. Seen: 0.
    assert relative(with_stock_attention, theirs) <= 1e-6
    # Batched attention rounds otherwise, and guidance enlarges that: in norm. Seen: 4e-7.
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-6


def test_euler_equals_the_scheduler() -> None:
    generator = torch.Generator().manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.35, 0.1])
    ours = theirs = torch.randn(1, 2, 3, 4, 4, generator=generator)
    sigmas = scheduler.sigmas.tolist()
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = torch.randn(ours.shape, generator=generator)
        theirs = scheduler.step(velocity, timestep, theirs, return_dict=False)[0]
        ours = euler(ours, velocity, sigmas[i], sigmas[i + 1])
    assert relative(ours, theirs) <= 1e-6


@pytest.fixture
def renoising(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A film of weights that were trained for three steps, each from an estimate with fresh noise."""
    changes: dict[str, Any] = {"weighting": False, "renoises": True, "guidance": 1.0}
    spec = replace(TINY, name="few", sigmas=(1.0, 0.757, 0.522), **changes)
    monkeypatch.setitem(MODELS, "few", spec)
    return plan_of(CAST, model="few")


def test_fresh_noise_is_added_to_each_estimate_but_the_last(renoising: Plan) -> None:
    """The sampler of distribution matching distillation, step by step."""
    segment = renoising.segments[0]
    adapter = FakeAdapter(renoising.spec)
    (made, *_) = film(adapter, renoising)
    assert [sigma for sigma, _ in adapter.predicted[:3]] == [1.0, 0.757, 0.522]
    (text, x) = adapter.encode(segment.prompt), segment_noise(renoising, segment)
    for step, (sigma, lower) in enumerate([(1.0, 0.757), (0.757, 0.522), (0.522, 0.0)]):
        (velocity,) = adapter.answer(Request(x, sigma, [text]))
        noise = fresh_noise(segment, step, x)
        x = (1 - lower) * denoised(x, velocity, sigma) + lower * noise
        assert abs(float(noise.mean())) < 0.1
        assert 0.9 < float(noise.std()) < 1.1
    assert relative(made, x) <= 1e-5
    other = [fresh_noise(renoising.segments[1], 0, x), fresh_noise(segment, 1, x)]
    assert not any(torch.equal(fresh_noise(segment, 0, x), noise) for noise in other)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_fresh_noise_is_sent_to_a_gpu_without_a_wait(
    renoising: Plan, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    """From pinned memory alone that is so; what is drawn is the same."""
    like, drawn, sent = torch.zeros(1, 2, 3, 4, 4), [], []
    expected = fresh_noise(renoising.segments[0], 0, like)

    class There:
        """What is known of latents on a GPU."""

        shape, is_cuda = like.shape, on_gpu

    class Noise:
        def __init__(self, values: Tensor) -> None:
            self.values = values

        def to(self, there: There, non_blocking: bool = False) -> Tensor:
            sent.append(non_blocking)
            return self.values

    draw = torch.randn

    def noted(shape: Sequence[int], generator: torch.Generator, pin_memory: bool = False) -> Noise:
        drawn.append(pin_memory)
        return Noise(draw(shape, generator=generator))

    monkeypatch.setattr(torch, "randn", noted)
    found = fresh_noise(renoising.segments[0], 0, cast(Tensor, There()))
    assert (drawn, sent) == ([on_gpu], [on_gpu])
    assert torch.equal(found, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_fresh_noise_is_the_same_and_nothing_waits_for_it(renoising: Plan) -> None:
    like = torch.zeros(1, 2, 3, 4, 4)
    there = like.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = fresh_noise(renoising.segments[0], 0, there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), fresh_noise(renoising.segments[0], 0, like))


def test_noise_is_fresh_only_where_a_velocity_is_computed_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is guessed belongs to the noise of the last that was computed, and is that one."""
    spec = replace(TINY, name="renoised", renoises=True, steps=8, weighting=False)
    monkeypatch.setitem(MODELS, "renoised", spec)
    plan = plan_of(CAST, model="renoised", speed="balanced")
    segment = plan.segments[0]
    drawn: list[int] = []

    def noted(segment: Segment, step: int, like: Tensor, stream: int = 0) -> Tensor:
        drawn.append(step)
        return fresh_noise(segment, step, like, stream)

    monkeypatch.setattr(loop, "fresh_noise", noted)
    adapter = FakeAdapter(spec)
    writer = PromptWriter(adapter, plan, None)
    begun = begin(adapter, plan, segment, writer.prompts(segment))
    assert list(denoise(adapter, plan.settings, [segment], writer, lambda _: begun, lambda _: None)) == [
        begun
    ]
    computed = begun.pace.computed
    assert 0 < sum(computed) < len(computed)
    assert drawn == [step for step in range(len(computed) - 1) if computed[step + 1]]
    assert len(begun.known) == 1


def test_a_lead_stands_in_every_step_whatever_noise_is_added(renoising: Plan) -> None:
    whole = Film(FakeAdapter(renoising.spec), renoising).made()
    leads = {index: lead for index, lead in whole.leads.items() if lead is not None}
    assert len(leads) == 2
    for index, lead in leads.items():
        given = lead.weights.expand_as(lead.latents) == 1
        assert bool(given.any())
        shown = whole.latents[index][:, :, : lead.latents.shape[2]]
        assert torch.equal(shown[given], lead.latents[given])


def test_fresh_noise_is_the_same_after_a_break(renoising: Plan, tmp_path: Path) -> None:
    """It is kept nowhere, and depends on nothing but the segment and the step."""
    (segment, *_) = renoising.segments
    whole = film(FakeAdapter(renoising.spec), renoising)[0]
    half = Film(FakeAdapter(renoising.spec), renoising)
    stored = Stored(tmp_path / "half")

    class LeftError(Exception):
        pass

    def leave(window: Sequence[SegmentState]) -> None:
        if window[0].step == 2:
            stored.save_state(window[0])
            raise LeftError

    with suppress(LeftError):
        for _ in denoise(half.adapter, renoising.settings, [segment], half.writer, half.start, leave):
            pass
    again = Film(FakeAdapter(renoising.spec), renoising)

    def go_on(segment: Segment) -> SegmentState | None:
        begun = again.start(segment)
        if begun is not None and segment.index == 0:
            stored.restore(begun, 2)
        return begun

    assert torch.equal(again.made(go_on).latents[0], whole)


def test_a_model_that_knows_the_answer_is_taken_at_its_word() -> None:
    x0, eps = torch.full((1, 1, 1, 1, 1), 0.3), torch.full((1, 1, 1, 1, 1), -2.0)
    x, sigma = 0.4 * x0 + 0.6 * eps, 0.6
    assert math.isclose(float(denoised(x, eps - x0, sigma)), 0.3, rel_tol=1e-6)
    assert math.isclose(float(euler(x, eps - x0, sigma, 0.0)), 0.3, rel_tol=1e-6)
    assert math.isclose(float(euler(x, eps - x0, sigma, 0.2)), 0.8 * 0.3 - 0.2 * 2.0, rel_tol=1e-6)


def test_noise_is_reproducible_and_its_segments_are_independent(plan: Plan) -> None:
    noises = [segment_noise(plan, s) for s in plan.segments]
    assert torch.equal(noises[0], segment_noise(plan, plan.segments[0]))
    for segment, noise in zip(plan.segments, noises, strict=True):
        assert noise.shape == (1, 12, segment.lead + segment.latents, 8, 8)
        assert abs(float(noise.mean())) < 0.1
        assert abs(float(noise.std()) - 1) < 0.05
    frames = torch.cat(noises, 2)[0].transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(frames) - torch.eye(len(frames))
    assert float(correlation.abs().max()) < 0.2  # of 768 numbers
    other = plan_of(STORY, seed=1)
    assert not torch.equal(noises[0], segment_noise(other, other.segments[0]))


def test_what_is_shown_has_the_same_noise_however_long_the_lead_is(plan: Plan) -> None:
    longer = plan_of(STORY, seconds=2.0)
    short, long = segment_noise(plan, plan.segments[0]), segment_noise(longer, longer.segments[0])
    assert torch.equal(short, long[:, :, : short.shape[2]])
    segment = plan.segments[1]
    alone = replace(segment, lead=1)
    assert segment.lead == 2
    noise, of_alone = segment_noise(plan, segment), segment_noise(plan, alone)
    assert torch.equal(noise[:, :, 2:], of_alone[:, :, 1:])
    assert torch.equal(noise[:, :, :1], of_alone[:, :, :1])


def test_a_lead_is_what_it_was_given_when_all_is_done(plan: Plan, tiny: MochiAdapter) -> None:
    plan = plan_of(CAST)
    assert [seam.transition for seam in plan.seams] == ["continue", "dissolve", "cut"]
    made = Film(tiny, plan).made()
    assert [lead is not None for lead in made.leads.values()] == [False, True, False, True]
    for segment in plan.segments:
        lead, x = made.leads[segment.index], made.latents[segment.index]
        if lead is None:
            continue
        held = lead.weights.expand_as(lead.latents) == 1
        assert held.any()
        assert torch.equal(x[:, :, : segment.lead][held], lead.latents[held])
        for given in plan.given(segment):
            source = made.latents[given.source][:, :, given.first : given.first + given.count]
            places = slice(given.at, given.at + given.count)
            assert bool(held[:, :, places].all()) or given.name
            assert torch.equal(x[:, :, places][held[:, :, places]], source[held[:, :, places]])


def test_the_model_sees_a_lead_clearer_than_the_rest(plan: Plan) -> None:
    """At a share of the noise level, with the noise that the lead began with; the rest is as it stands.

    With a text and without, so that guidance amplifies nothing of the lead.
    """
    seen: list[tuple[float, Tensor]] = []

    class Watched(FakeAdapter):
        def answer(self, request: Request) -> list[Tensor]:
            seen.append((request.sigma, request.x))
            return super().answer(request)

    for share in (0.5, 0.0, 1.0):
        seen.clear()
        plan = plan_of(STORY, method=(f"lead_noise={share}",))
        made = Film(Watched(TINY), plan).made()
        segment = plan.segments[1]
        lead = made.leads[1]
        assert lead is not None
        noise, level = segment_noise(plan, segment), 1.0
        for sigma, x in seen[plan.settings.steps : 2 * plan.settings.steps]:
            clear = torch.lerp(lead.latents, noise[:, :, : segment.lead], sigma * share)
            assert torch.allclose(x[:, :, : segment.lead], clear, atol=1e-6)
            assert sigma <= level
            level = sigma
        first = seen[plan.settings.steps][1]
        assert torch.equal(first[:, :, segment.lead :], noise[:, :, segment.lead :])


def _given(begun: SegmentState, segment: Segment) -> SegmentState:
    return begun


def test_strength_0_leaves_independent_segments_bit_for_bit(tiny: MochiAdapter, plan: Plan) -> None:
    """With a scorer too, which could carry one segment's end into the next one's weights."""
    adapter, scorer = WithPreview.of(tiny), FakeScorer("a fox walks")
    plan = plan_of(CAST, method=("strength=0.0",))
    whole, led = film(adapter, plan, scorer), film(adapter, plan_of(CAST), scorer)
    for segment, independent in zip(plan.segments, whole, strict=True):
        made = Film(adapter, plan, scorer)
        alone = begin(adapter, plan, segment, made.writer.prompts(segment))
        start = partial(_given, alone)
        (done,) = denoise(adapter, plan.settings, [segment], made.writer, start, lambda _: None)
        assert torch.equal(independent, done.x)
    own = [x[:, :, -s.latents :] for s, x in zip(plan.segments, whole, strict=True)]
    blended = [x[:, :, -s.latents :] for s, x in zip(plan.segments, led, strict=True)]
    # The first is nobody's continuation, and nobody has seen the dog of the third.
    assert [torch.equal(a, b) for a, b in zip(own, blended, strict=True)] == [True, False, True, False]


def test_the_stronger_the_nearer_to_what_was_given(tiny: MochiAdapter, plan: Plan) -> None:
    distances = []
    for strength in (1.0, 0.7, 0.3):
        first, second, _ = film(tiny, plan_of(STORY, method=(f"strength={strength}",)))
        distances.append(float((second[:, :, :2] - first[:, :, -2:]).norm()))
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert len(set(distances)) == 3


@pytest.mark.parametrize("transition", ["cut", "dissolve"])
def test_without_identity_a_scene_behind_a_seam_of_two_places_is_independent(
    tiny: MochiAdapter, transition: str, plan: Plan
) -> None:
    """It comes out as if the story began there, whatever is before it."""
    scene = CUT_SCENE.replace("cut", transition).replace("park", "bus")
    options: dict[str, object] = {"method": ("identity=false",)}
    whole = plan_of(STORY + scene, **options)
    latents = film(tiny, whole)
    for a, b in zip(latents, film(tiny, plan_of(STORY, **options)), strict=False):
        assert torch.equal(a, b)
    other = STORY.replace("a fox in the park", "a dog at sea") + scene
    assert torch.equal(film(tiny, plan_of(other, **options))[-1], latents[-1])


def test_identity_reaches_across_a_cut(tiny: MochiAdapter, plan: Plan) -> None:
    text = CAST.replace("{fox} in the park", "{fox} in the sea", 1).replace("{fox} sleeps", "it sleeps", 1)
    for identity, same in (("true", False), ("false", True)):
        method = (f"identity={identity}",)
        one, other = (film(tiny, plan_of(t, method=method))[-1][:, :, -2:] for t in (CAST, text))
        assert torch.equal(one, other) == same


def test_without_all_is_the_base_model_segment_by_segment(tiny: MochiAdapter, plan: Plan) -> None:
    plan = without_all(CAST)
    latents = film(tiny, plan)
    for segment, x in zip(plan.segments, latents, strict=True):
        assert torch.equal(x, sample(tiny, plan, segment, tiny.encode(segment.prompt)))


def test_one_device_works_at_one_segment_after_the_other(plan: Plan) -> None:
    adapter = FakeAdapter(TINY)
    film(adapter, plan)
    levels = [sigma for sigma, _ in adapter.predicted]
    assert levels == adapter.sigmas(3, ())[:-1] * 3


class Together(FakeAdapter):
    """Answers three requests at a time, as three devices do, and remembers how many came together."""

    at_once = 3

    def __init__(self) -> None:
        super().__init__(TINY)
        self.asked: list[int] = []

    def predict(self, requests: Sequence[Request]) -> Iterator[list[Tensor]]:
        self.asked.append(len(requests))
        return super().predict(requests)


FOUR = HEAD + "".join(f"  - [{place}, {place} again]\n" for place in ("park", "bus", "home", "sea"))


@pytest.mark.parametrize("text", [FOUR, STORY, CAST], ids=["four places", "one shot", "a cast"])
def test_several_devices_make_the_same_latents(plan: Plan, tiny: MochiAdapter, text: str) -> None:
    plan = plan_of(text)
    alone, together = film(tiny, plan), Film(tiny, plan)
    tiny.at_once = 3
    together.made()
    assert together.under_way == [1] * 9 if text == STORY else max(together.under_way) > 1
    for index, expected in enumerate(alone):
        assert torch.equal(together.latents[index], expected)


def test_segments_that_need_nothing_of_each_other_are_denoised_together(plan: Plan) -> None:
    adapter = Together()
    plan = plan_of(FOUR, steps=4)
    made = Film(adapter, plan).made()
    assert adapter.asked == [3] * 4 + [1] * 4
    assert made.under_way == [3] * 12 + [1] * 4
    assert list(made.latents) == [0, 1, 2, 3]
    adapter = Together()
    Film(adapter, plan_of(STORY, steps=4)).made()  # one shot: each waits for the one before
    assert adapter.asked == [1] * 12


@pytest.mark.parametrize("at", [1, 3, 4])
def test_one_that_is_ahead_waits_for_those_before_it(plan: Plan, tmp_path: Path, at: int) -> None:
    """As when an earlier one is to be mended, and the state of a later one is there."""
    plan = plan_of(FOUR, steps=4)
    whole = Film(Together(), plan).made()
    kept = Film(Together(), plan)
    ahead = left_after(kept, plan.segments[1], at)
    Stored(tmp_path / "state").save_state(ahead)
    again = Film(Together(), plan)

    def start(segment: Segment) -> SegmentState | None:
        begun = again.start(segment)
        if begun is not None and segment.index == 1:
            Stored(tmp_path / "state").restore(begun, at)
        return begun

    again.made(start)
    assert list(again.latents) == [0, 1, 2, 3]
    for index in range(4):
        assert torch.equal(again.latents[index], whole.latents[index])


class LeftError(Exception):
    pass


def left_after(made: Film, segment: Segment, steps: int) -> SegmentState:
    """Return a segment after so many steps or, where some are skipped, a few more."""
    begun = made.start(segment)
    assert begun is not None

    def watch(window: Sequence[SegmentState]) -> None:
        if window[0].step >= steps:
            raise LeftError

    run = denoise(made.adapter, made.plan.settings, [segment], made.writer, lambda _: begun, watch)
    with suppress(LeftError):
        list(run)
    assert steps <= begun.step < steps + 3
    return begun


def test_what_waits_for_nothing_that_comes_is_an_error(plan: Plan) -> None:
    adapter = FakeAdapter(TINY)
    writer = PromptWriter(adapter, plan, None)
    with pytest.raises(RuntimeError, match="scene 01 waits for one that does not come"):
        list(denoise(adapter, plan.settings, plan.segments, writer, lambda _: None, lambda _: None))


@pytest.mark.parametrize("scored", [False, True], ids=["without scorer", "with scorer"])
@pytest.mark.parametrize("options", [{}, {"method": ("weighting=texts",)}, {"speed": "fast"}], ids=str)
def test_a_state_is_all_it_takes_to_go_on(
    tiny: MochiAdapter, plan: Plan, tmp_path: Path, options: dict[str, object], scored: bool
) -> None:
    """Of the second segment of a shot, left halfway; its lead is made again."""
    adapter, steps = WithPreview.of(tiny), 8
    scorer = FakeScorer("a fox walks") if scored else None
    plan = plan_of(CAST, steps=steps, **options)
    whole = Film(adapter, plan, scorer).made()
    kept = Film(adapter, plan, scorer)
    kept.latents[0] = whole.latents[0]
    kept._endings[0] = whole._endings[0]
    left = left_after(kept, plan.segments[1], 4)
    path = tmp_path / "state"
    Stored(path).save_state(left)
    again = kept.start(plan.segments[1])
    assert again is not None
    Stored(path).restore(again, left.step)
    assert (again.step, torch.equal(again.x, left.x)) == (left.step, True)
    begun = again
    (done,) = denoise(adapter, plan.settings, [begun.segment], kept.writer, lambda _: begun, lambda _: None)
    assert torch.equal(done.x, whole.latents[1])
    assert len(done.prompts.decided()) == (steps if plan.settings.method.weighting else 0)


def test_equal_prompts_make_every_weight_the_same(tiny: MochiAdapter, plan: Plan) -> None:
    """Scene, action and both are one text then: weighted or not, the film is the same."""
    text = HEAD + "  - [a fox sleeps, a fox sleeps]\n" * 2
    plain = film(tiny, plan_of(text, without=frozenset({"dipw"})))
    for weighting in ("true", "texts"):
        method = (f"weighting={weighting}", "temperature=0.05")
        for a, b in zip(film(tiny, plan_of(text, method=method)), plain, strict=True):
            assert torch.allclose(a, b, atol=2e-5 * float(b.abs().max()))


def test_the_published_form_pulls_the_first_noise(plan: Plan) -> None:
    plan = plan_of(STORY, method=("blending=published",))
    before = torch.ones(1, 12, 3, 8, 8)
    segment = plan.segments[1]
    pulled, noise = first_noise(plan, segment, before), segment_noise(plan, segment)
    gamma = plan.settings.method.gamma
    assert torch.allclose(pulled, 2 * gamma + math.sqrt(1 - (2 * gamma) ** 2) * noise, atol=1e-5)
    assert torch.equal(first_noise(plan, segment, None), noise)
    assert torch.equal(first_noise(plan_of(CUTS), segment, before), noise)


def test_the_published_form_pulls_towards_the_neighbour(plan: Plan) -> None:
    """Each of five scenes begins with its own neighbour's latents in its noise, not with an earlier one's."""
    begun: list[Tensor] = []

    class Watched(FakeAdapter):
        def answer(self, request: Request) -> list[Tensor]:
            if request.sigma == 1:
                begun.append(request.x)
            return super().answer(request)

    text = HEAD + "".join(f"  - [a {n}, it goes]\n" for n in ("fox", "dog", "cat", "cow", "ape"))
    plan = plan_of(text, method=("blending=published", "gamma=0.4"))
    latents = film(Watched(TINY), plan)
    for segment, noise in zip(plan.segments, begun, strict=True):
        before = latents[segment.index - 1] if segment.index else None
        assert torch.equal(noise, first_noise(plan, segment, before))
    assert not torch.equal(begun[4], segment_noise(plan, plan.segments[4]))


@pytest.mark.parametrize("at", [0, 4])
def test_nan_stops_with_scene_and_step_named(plan: Plan, at: int) -> None:
    class Broken(FakeAdapter):
        def answer(self, request: Request) -> list[Tensor]:
            factor = math.nan if len(self.predicted) == at else 1.0
            return [factor * v for v in super().answer(request)]

    broken = Film(Broken(TINY), plan)
    with pytest.raises(NumericsError, match=f"scene {at // 3 + 1} .* step {at % 3 + 1}"):
        broken.made()
    assert list(broken.latents) == list(range(at // 3))


@pytest.mark.parametrize("left", [3, 4], ids=["under way", "done before an earlier one"])
def test_nan_is_not_forgotten_with_a_break(plan: Plan, tmp_path: Path, left: int) -> None:
    """The step that broke a segment is named, also where none is left for it to take."""

    class Broken(FakeAdapter):
        def answer(self, request: Request) -> list[Tensor]:
            factor = math.nan if len(self.predicted) == 1 else 1.0
            return [factor * v for v in super().answer(request)]

    plan = plan_of(FOUR, steps=4)
    kept, stored = Film(Broken(TINY), plan), Stored(tmp_path / "state")
    ahead = kept.start(plan.segments[1])
    assert ahead is not None

    def watch(window: Sequence[SegmentState]) -> None:
        if window[0].step == left:
            raise LeftError

    with suppress(LeftError, NumericsError):
        list(denoise(kept.adapter, plan.settings, [ahead.segment], kept.writer, lambda _: ahead, watch))
    assert ahead.step == left
    stored.save_state(ahead)
    again = Film(Together(), plan)

    def start(segment: Segment) -> SegmentState | None:
        begun = again.start(segment)
        if begun is not None and segment.index == 1:
            stored.restore(begun, left)
        return begun

    with pytest.raises(NumericsError, match=r"scene 2 .* step 2"):
        again.made(start)
    assert list(again.latents) == [0]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_guided_velocity_is_rescaled_as_diffusers_does(share: float) -> None:
    torch.manual_seed(0)
    text, guided = torch.randn(1, 4, 3, 5, 6), 3 * torch.randn(1, 4, 3, 5, 6)
    found = rescaled(guided, text, share)
    assert torch.allclose(found, rescale_noise_cfg(guided, text, share), rtol=1e-5, atol=1e-6)
    spread = share * float(text.std()) + (1 - share) * float(guided.std())
    assert float(found.std()) == pytest.approx(spread, rel=1e-5)


@pytest.mark.usefixtures("plan")
def test_guidance_leads_away_from_the_negative_prompt() -> None:
    plans = [plan_of(STORY, negative=text) for text in ("", "a grey day")]
    adapters = [FakeAdapter(TINY) for _ in plans]
    asked = []
    for adapter, plan in zip(adapters, plans, strict=True):
        writer = PromptWriter(adapter, plan, None)
        assert torch.equal(writer.negative.states[0], adapter.encode(plan.settings.negative).states[0])
        assert plan.settings.negative in all_prompts(plan, scored=True)
        asked.append(film(adapter, plan))
    assert not any(torch.equal(a, b) for a, b in zip(*asked, strict=True))


@pytest.mark.parametrize("weight", [None, 1.0, 4.0])
def test_what_shows_a_character_as_first_shown_counts_in_every_step(
    weight: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", replace(TINY, identity_weight=weight))
    asked: list[set[float] | None] = []

    class Counting(FakeAdapter):
        def answer(self, request: Request) -> list[Tensor]:
            counts = request.counts
            asked.append(None if counts is None else set(counts.unique().tolist()))
            return super().answer(request)

    plan = plan_of(CAST)
    film(Counting(TINY), plan)
    weighed = [counts for counts in asked if counts is not None]
    if weight == 4:
        assert len(weighed) == plan.settings.steps  # of the last scene alone, which a fox is brought into
        assert all(4.0 in counts for counts in weighed)
    else:
        assert not weighed


def test_a_speed_goes_on_from_no_other_experts_velocity(plan: Plan) -> None:
    """Nor is guidance then the same: the line through both would lead nowhere."""

    class TwoExperts(FakeAdapter):
        def expert_at(self, sigma: float) -> int:
            return 0 if sigma >= 0.5 else 1

    adapter = TwoExperts(TINY)
    settings = replace(plan.settings, speed="balanced", steps=10, guidance_2=1.0)
    plan = replace(plan, settings=settings)
    writer = PromptWriter(adapter, plan, None)
    begun = begin(adapter, plan, plan.segments[0], writer.prompts(plan.segments[0]))
    lines = []
    for begun.step in range(10):
        next_velocities(adapter, [begun], writer.negative, settings, lambda: None)
        lines.append({adapter.expert_at(sigma) for sigma, _ in begun.known})
        if begun.sigma == 0.4:  # the second expert's first, whatever the plan counted on
            assert begun.known[-1][0] == 0.4
    assert all(len(experts) == 1 for experts in lines)
    assert lines[0] == {0}
    assert lines[-1] == {1}
    assert len(begun.known) == 2
