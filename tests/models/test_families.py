"""What every family must keep, on tiny models of diffusers' real classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from diffusers.models.transformers import transformer_ltx, transformer_ltx2, transformer_wan
from diffusers.schedulers import scheduling_flow_match_euler_discrete
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from storyreel.benchmark.run import stock_latents
from storyreel.benchmark.stock import stock_of
from storyreel.denoise.lead import Lead, Leads
from storyreel.denoise.loop import begin, denoise, fresh_noise, sample, segment_noise
from storyreel.denoise.prompts import PromptWriter, all_prompts
from storyreel.errors import DamagedError, MissingError
from storyreel.method.settings import Method
from storyreel.models import attention
from storyreel.models.base import Text, side_by_side
from storyreel.models.kernels import check_backend
from storyreel.models.loading import adapter_class, codec_dtype, load_adapter
from storyreel.models.ltx import packed
from storyreel.models.ltx2 import LTX2Adapter
from storyreel.models.memory import GB, Weights, Working, highest_mode
from storyreel.models.mochi import MochiAdapter
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.quantized import QuantizedLinear
from storyreel.models.specs import MODELS, QUANTIZATIONS
from storyreel.models.wan import WanAdapter
from storyreel.story.plan import Plan, Settings
from tests.conftest import plan_of
from tests.denoise.test_loop import Film, film
from tests.tiny import CPU, FAMILIES, ltx, ltx_vae, velocities

STORY = "scenes:\n  - [a fox in the park, a fox walks]\n  - [a dog in the park, a dog sleeps]\n"

# A shot of two scenes, and another place.
CAST = """
cast: {fox: {name: a fox}}
scenes:
  - ["{fox} in the park", "{fox} walks"]
  - ["{fox} in the park", "{fox} sleeps"]
  - ["{fox} at home", a dog]
"""


@pytest.fixture(params=FAMILIES)
def adapter(request: pytest.FixtureRequest) -> PipelineAdapter:
    return FAMILIES[request.param]()


@pytest.fixture(params=QUANTIZATIONS)
def stored(request: pytest.FixtureRequest, adapter: PipelineAdapter) -> PipelineAdapter:
    """The same, with its weights stored in each way."""
    return adapter if request.param == adapter.spec.quantize else in_fp8(adapter)


def in_fp8(adapter: PipelineAdapter) -> PipelineAdapter:
    return type(adapter)(adapter.spec.quantized("fp8"), CPU, adapter.parts)


def latents(adapter: PipelineAdapter, frames: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, adapter.spec.latent_channels, frames, 4, 4, generator=generator)


def difference(a: Tensor, b: Tensor) -> float:
    """The largest of any element, by the largest element."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def plan_for(
    adapter: PipelineAdapter, monkeypatch: pytest.MonkeyPatch, text: str = STORY, **overrides: Any
) -> Plan:
    monkeypatch.setitem(MODELS, adapter.spec.name, adapter.spec)
    return plan_of(text, model=adapter.spec.name, **overrides)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' pipeline
@pytest.mark.parametrize("guidance", [None, 1.0, 4.0])  # None is the table's own
def test_without_the_method_latents_equal_the_stock_pipelines(
    stored: PipelineAdapter, monkeypatch: pytest.MonkeyPatch, guidance: float | None
) -> None:
    """From the prompt's words to the last step: text encoding, noise levels, guidance, attention."""
    adapter = stored
    plan = plan_for(adapter, monkeypatch, without=frozenset({"all"}), guidance=guidance, steps=4)
    segment = plan.segments[0]
    (ours, _) = film(adapter, plan)
    noise = segment_noise(plan, segment)
    (theirs,) = stock_latents(adapter, replace(plan, segments=plan.segments[:1]))
    bar = 1e-5 if isinstance(adapter, WanAdapter | LTX2Adapter) else 1e-6
    assert float((ours - theirs).norm() / theirs.norm()) <= bar
    assert difference(noise, theirs) > 0.1


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' pipeline
@pytest.mark.parametrize(
    ("family", "renoises"),
    [
        ("wan", False),
        ("wan", True),
        ("wan of two experts", False),
        ("wan of two experts", True),
        ("later ltx", False),  # whose pipeline hands on a velocity with its sign turned: no estimate
    ],
)
def test_weights_for_few_steps_are_sampled_as_by_the_stock_pipeline(
    family: str, renoises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the noise levels that they were trained at; with fresh noise after each step, it is ours."""
    adapter = FAMILIES[family]()
    few = MODELS["wan-14b:4-step"].sigmas
    changes: dict[str, Any] = {"sigmas": few, "renoises": renoises, "steps": len(few), "guidance": 1.0}
    adapter.spec = replace(adapter.spec, shifts=(), guidance_2=None, guidance_rescale=0.0, **changes)
    plan = plan_for(adapter, monkeypatch, without=frozenset({"all"}))
    segment = plan.segments[0]
    ours = film(adapter, plan)[0]
    drawn: list[Tensor] = []

    def ours_again(shape: Sequence[int], **options: Any) -> Tensor:
        drawn.append(fresh_noise(segment, len(drawn), ours))
        return packed(drawn[-1]) if len(shape) == 3 else drawn[-1]

    monkeypatch.setattr(scheduling_flow_match_euler_discrete, "randn_tensor", ours_again)
    (theirs,) = stock_latents(adapter, replace(plan, segments=plan.segments[:1]))
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5
    assert len(drawn) == renoises * len(few)  # theirs draws some for the last step too, and takes none of it


NASTY = [
    "a fox",
    "  a   fox\t sleeps \n in the park ",
    "a fox &amp; a dog",
    "a dog &amp;quot;sleeps&amp;quot;",
    "the fox\u2019s park \u2014 it sleeps",
    "a fo\u00c3\u00a9 \u00e2\u20ac\u2122 walks",  # UTF-8 that was read as something else
    "\uff41 \uff46\uff4f\uff58\uff0cthere",  # wide letters
    "\ufeffa fox\u200b \x07sleeps\u00a0there",
    "&",
    " ",
    "",
]


@torch.no_grad()
@pytest.mark.parametrize("prompt", NASTY)
def test_a_prompt_is_cleaned_as_the_stock_pipeline_cleans_it(adapter: PipelineAdapter, prompt: str) -> None:
    """Wan's does, with or without ftfy, and the others do not: what reaches the text encoder is the same."""
    adapter.spec = replace(adapter.spec, text_length=64)
    seen: list[list[int]] = []

    def see(module: object, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append((inputs[0] if inputs else named["input_ids"])[0].tolist())

    hook = adapter.text_encoders[0].register_forward_pre_hook(see, with_kwargs=True)
    stock_of(adapter).read(prompt)
    theirs = seen[0]
    seen.clear()
    adapter.encode(prompt)
    hook.remove()
    (ours,) = seen
    assert ours == theirs[: len(ours)]
    assert set(theirs[len(ours) :]) <= {getattr(adapter.parts.tokenizers[0], "pad_token_id", None)}


@pytest.mark.parametrize("prompt", ["a  fox &amp;  sleeps   in the park", "a fox sleeps in the park"])
def test_spans_of_a_prompt_are_found_in_what_was_cleaned(prompt: str) -> None:
    """Offsets are those of the prompt as it was written; the tokens are of the clean one."""
    model = FAMILIES["wan"]()
    at = prompt.index("sleeps")
    found = model.tokens_in(prompt, [(at, at + len("sleeps"))])
    clean, tokenizer = model.clean(prompt), model.parts.tokenizers[0]
    offsets = tokenizer(clean, return_offsets_mapping=True).offset_mapping
    inside = [offset for offset, is_there in zip(offsets, found.tolist(), strict=False) if is_there]
    assert "".join(clean[begin:end] for begin, end in inside).strip() == "sleeps"


def test_random_weights_are_in_the_dtypes_of_loaded_ones(spec_name: str, tmp_path: Path) -> None:
    """Some of Wan stays in fp32, whatever the rest is in: `--random-weights` is to time the same mix."""
    spec = replace(MODELS[spec_name], dtype="bfloat16")
    made = adapter_class(spec).random(spec, CPU)
    for name, module in (("transformer", made.experts[0]), ("vae", made.vae)):
        module.save_pretrained(tmp_path / name)
        loaded = type(module).from_pretrained(tmp_path / name, torch_dtype=module.dtype)
        dtypes = [{key: p.dtype for key, p in m.named_parameters()} for m in (module, loaded)]
        assert dtypes[0] == dtypes[1]
    expected = {torch.bfloat16, torch.float32} if "wan" in spec_name else {torch.bfloat16}
    assert {p.dtype for p in made.experts[0].parameters()} == expected


def test_a_cpu_decodes_in_fp32(spec_name: str) -> None:
    """In bfloat16, of which most have no convolutions, two short scenes of LTX took more than ten minutes."""
    spec = replace(MODELS[spec_name], vae_dtype="bfloat16")
    made = adapter_class(spec).random(spec, CPU)
    assert {p.dtype for p in made.vae.parameters()} == {torch.float32}
    assert codec_dtype(spec, CPU) == torch.float32
    assert codec_dtype(spec, torch.device("meta")) == torch.bfloat16


@torch.no_grad()
def test_a_prompt_of_weight_0_is_not_there(adapter: PipelineAdapter) -> None:
    x = latents(adapter)
    scene, action, negative = (adapter.encode(t) for t in ("a fox in the park", "a dog sleeps", ""))
    for sigma in (0.95, 0.5):
        alone = velocities(adapter, x, sigma, [negative, scene])
        both = velocities(adapter, x, sigma, [negative, side_by_side((scene, action), (1, 0))])
        assert max(difference(b, a) for a, b in zip(alone, both, strict=True)) <= 3e-6
        half = velocities(adapter, x, sigma, [negative, side_by_side((scene, action), (0.5, 0.5))])
        assert difference(half[1], alone[1]) > 1e-4
        twice = velocities(adapter, x, sigma, [negative, side_by_side((scene, scene), (0.3, 0.7))])
        assert difference(twice[1], alone[1]) <= 3e-6


@torch.no_grad()
@pytest.mark.parametrize("weight", [0, 1, 2, 3])
def test_a_token_of_weight_2_is_two_tokens_and_of_0_none(adapter: PipelineAdapter, weight: int) -> None:
    """Of a group of two tokens, beside a row without weights of another length."""
    text, negative, x = adapter.encode("a fox in the park"), adapter.encode(""), latents(adapter)
    count, moved = text.states[0].shape[1], [1, 2]
    of = [torch.zeros(states.shape[1], dtype=torch.long) for states in text.states]
    alike = [states.shape[1] == count for states in text.states]  # LTX-2 has the same tokens for its sound
    for index in (index for index, is_alike in enumerate(alike) if is_alike):
        of[index][moved] = 1
    grouped, _ = text.grouped(torch.cat(of))
    assert grouped.groups == tuple((2,) if is_alike else () for is_alike in alike)
    places = [place for place in range(count) for _ in range(weight if place in moved else 1)]
    written = []
    for states, is_alike, weights in zip(text.states, alike, grouped.weights_by_encoder(), strict=True):
        written.append(states[:, places] if is_alike else states)
        if is_alike:
            weights[:, -2:] = weight
    written_out = Text(tuple(written), torch.ones(1, sum(states.shape[1] for states in written)))
    found = velocities(adapter, x, 0.5, [negative, grouped])
    expected = velocities(adapter, x, 0.5, [negative, written_out])
    assert max(difference(a, b) for a, b in zip(found, expected, strict=True)) <= 3e-6
    if weight != 1:
        assert difference(found[1], velocities(adapter, x, 0.5, [text])[0]) > 1e-4


@torch.no_grad()
def test_without_weights_nothing_is_masked(adapter: PipelineAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the lengths of the texts are; Mochi pools a text by one query, where a mask costs nothing."""
    x, texts = latents(adapter), [adapter.encode(prompt) for prompt in ("", "a fox in the park")]
    masks: list[object] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def seen(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any
    ) -> Tensor:
        masks.extend([attn_mask] if query.shape[2] > 1 else [])
        return attend(query, key, value, attn_mask=attn_mask, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    velocities(adapter, x, 0.5, texts)
    assert masks
    assert set(masks) == {None}


CPU_BACKENDS = ("native", "_native_flash", "_native_math")  # that a CPU can compute in fp32


@torch.no_grad()
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_every_backend_computes_the_same(adapter: PipelineAdapter, backend: str) -> None:
    x, texts = latents(adapter), [adapter.encode(""), adapter.encode("a fox in the park")]
    mixed = side_by_side(texts, (0.5, 2.0))
    expected = velocities(adapter, x, 0.5, [*texts, mixed])
    check_backend(backend, CPU, torch.float32)
    try:
        adapter.attend_by(backend)
        found = velocities(adapter, x, 0.5, [*texts, mixed])
    finally:
        for expert in adapter.experts:
            expert.reset_attention_backend()
    assert max(difference(a, b) for a, b in zip(found, expected, strict=True)) <= 3e-6


@torch.no_grad()
def test_a_chosen_backend_reaches_every_call(
    adapter: PipelineAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also Mochi's, whose own attention in diffusers knows of no backends."""
    chosen: list[object] = []

    def seen(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        chosen.append(options["backend"])
        return query

    where = {
        "attention": attention,
        "wan": transformer_wan,
        "ltx": transformer_ltx,
        "ltx 2": transformer_ltx2,
    }
    text = adapter.encode("a fox")  # reading it is no part of a step
    for module in where.values():
        monkeypatch.setattr(module, "dispatch_attention_fn", seen)
    try:
        adapter.attend_by("_native_math")
        velocities(adapter, latents(adapter), 0.5, [text])
    finally:
        for expert in adapter.experts:
            expert.reset_attention_backend()
    processors = [getattr(module, "processor", None) for module in adapter.experts[0].modules()]
    asked = [processor for processor in processors if hasattr(processor, "_attention_backend")]
    assert len(asked) >= len(adapter.blocks(adapter.experts[0]))
    between = 2 * len(adapter.experts[0].transformer_blocks) if isinstance(adapter, LTX2Adapter) else 0
    assert chosen == ["_native_math"] * (len(asked) - between)  # picture and sound, which is not asked for


@torch.no_grad()
def test_what_a_lead_was_given_is_there_unchanged_in_the_end(
    adapter: PipelineAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a shot, and the cells that show a character, as the segments have them that they are of.

    A model that takes pictures goes on from the last one, and knows it to be without noise.
    """
    made = Film(adapter, plan_for(adapter, monkeypatch, CAST, method=("weighting=true",))).made()
    plan = made.plan
    alone = plan.spec.first_alike or plan.spec.pictures
    on = [False] if alone else [True, False]
    assert [[given.name is not None for given in plan.given(s)] for s in plan.segments] == [[], on, [True]]
    for segment in plan.segments[1:]:
        lead, x = made.leads[segment.index], made.latents[segment.index]
        assert lead is not None
        assert x.isfinite().all()
        for given in plan.given(segment):
            places = slice(given.at, given.at + given.count)
            cells = (lead.weights[:, :, places] == 1).expand_as(x[:, :, places])
            assert cells.any()
            source = made.latents[given.source][:, :, given.first : given.first + given.count]
            assert given.anew == (plan.spec.pictures and given.name is None)
            assert lead.clean == (given.count if given.anew else 0)
            if given.anew:
                shown = adapter.decode(made.latents[given.source])
                count = 1 + plan.spec.frames_per_latent * (given.count - 1)
                source = adapter.encode_pictures(shown[-count:])
            assert torch.equal(x[:, :, places][cells], source[cells])


@torch.no_grad()
def test_a_lead_of_strength_0_is_not_there(adapter: PipelineAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scene is what it would be alone; with a lead it is another."""
    plan = plan_for(adapter, monkeypatch, CAST, method=("strength=0", "weighting=false"))
    latents = film(adapter, plan)
    for segment, x in zip(plan.segments, latents, strict=True):
        assert torch.equal(x, sample(adapter, plan, segment, adapter.encode(segment.prompt)))
    led = film(adapter, plan_for(adapter, monkeypatch, CAST, method=("weighting=false",)))
    own = [
        (x[:, :, -s.latents :], y[:, :, -s.latents :])
        for s, x, y in zip(plan.segments, latents, led, strict=True)
    ]
    assert torch.equal(*own[0])
    assert all(difference(a, b) > 1e-4 for a, b in own[1:])


@torch.no_grad()
def test_segments_denoised_together_are_those_denoised_one_by_one(
    adapter: PipelineAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_for(adapter, monkeypatch, CAST)
    alone = film(adapter, plan)
    adapter.at_once = 3
    together = Film(adapter, plan).made()
    assert all(torch.equal(together.latents[index], x) for index, x in enumerate(alone))


QUICK = [("mochi", "fp8"), ("wan", "none"), ("ltx", "none")]  # of what is traced; the others are slow
TRACED = [
    pytest.param(family, quantize, marks=() if (family, quantize) in QUICK else pytest.mark.slow)
    for family in FAMILIES
    for quantize in QUANTIZATIONS
]


@torch.no_grad()
@pytest.mark.parametrize(("family", "quantize"), TRACED)
def test_the_transformer_is_one_graph_while_weights_change(family: str, quantize: str) -> None:
    adapter = FAMILIES[family]()
    adapter = adapter if quantize == adapter.spec.quantize else in_fp8(adapter)
    x = latents(adapter)
    scene, action = adapter.encode("a fox in the park"), adapter.encode("a dog sleeps")
    text = side_by_side((scene, action), (0.5, 0.5))
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    eager = list(adapter.experts)
    adapter.experts[:] = [torch.compile(e, fullgraph=True, backend=backend) for e in eager]
    outputs = []
    for share in (0.5, 0.2, 0.9):
        text.weights.copy_(side_by_side((scene, action), (share, 1 - share)).weights)
        outputs.append(velocities(adapter, x, 0.5, [text])[0])
    assert len(compiled) == 1
    adapter.experts[:] = eager
    assert difference(outputs[-1], velocities(adapter, x, 0.5, [text])[0]) <= 1e-5
    assert difference(outputs[0], outputs[1]) > 1e-5


@torch.no_grad()
@pytest.mark.parametrize("family", ["mochi", "wan", "ltx"])
def test_texts_of_other_lengths_make_one_more_graph_at_most(family: str) -> None:
    """Of every kind of block: lengths become variables. Wan's texts are all of one length."""
    adapter = FAMILIES[family]()
    x, negative, most = latents(adapter), adapter.encode(""), adapter.spec.text_length
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    for block in adapter.blocks(adapter.experts[0]):
        block.compile(backend=backend, fullgraph=True)
    counts = []
    for length in (5, 6, 8, 11):
        count = most if family == "wan" else length
        text = Text((torch.randn(1, count, 32),), torch.ones(1, count))
        velocities(adapter, x, 0.5, [negative, text])
        counts.append(len(compiled))
    assert counts[0] == (2 if family == "mochi" else 1)  # Mochi's last block is another
    assert counts[1] <= 2 * counts[0]
    assert counts[1:] == counts[1:2] * 3


@pytest.mark.parametrize("at_once", [1, 2, 3, 9])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "later ltx"])  # see below
def test_streamed_decoding_equals_decoding_at_once(family: str, at_once: int) -> None:
    adapter = FAMILIES[family]()
    z = latents(adapter, 6)
    with torch.no_grad():
        once = adapter.vae.decode(adapter._raw(z), return_dict=False)[0]
        adapter.spec = replace(adapter.spec, decoded_at_once=at_once)
        streamed = torch.cat(list(adapter._decoded(adapter._raw(z))), 2)
    assert streamed.shape == once.shape
    assert difference(streamed.clamp(-1, 1), once.clamp(-1, 1)) <= 1e-5
    expected = ((once[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 3, 0)
    assert float((adapter.decode(z) - expected).abs().max()) <= 0.5 + 255e-5
    with torch.no_grad():  # and the VAE is left as it was
        assert torch.equal(adapter.vae.decode(adapter._raw(z), return_dict=False)[0], once)


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_ltx_streams_later_codecs_too(at_once: int) -> None:
    """As of 0.9.7, with a timestep and a way round the upsampling."""
    adapter = ltx(late=True)
    adapter.spec = replace(adapter.spec, decoded_at_once=at_once)
    z = latents(adapter, 5)
    streamed = torch.cat(list(adapter._decoded(adapter._raw(z))), 2)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    blurred = 0.975 * adapter._raw(z) + 0.025 * noise
    once = ltx_vae(late=True).decode(blurred, torch.tensor([0.05]), return_dict=False)[0]
    assert streamed.shape == once.shape
    assert difference(streamed, once) <= 1e-5


def save(adapter: PipelineAdapter, folder: Path) -> None:
    for name, part in adapter.parts.by_name().items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(adapter.parts.options))


@torch.no_grad()
def test_a_saved_model_loads_as_it_was(adapter: PipelineAdapter, tmp_path: Path) -> None:
    save(adapter, tmp_path)
    loaded = load_adapter(replace(adapter.spec, weights=tmp_path), CPU)
    x = latents(adapter)
    assert loaded.sigmas(5, x.shape) == adapter.sigmas(5, x.shape)
    for sigma in (0.95, 0.5):
        (mine,) = velocities(adapter, x, sigma, [adapter.encode("a fox")])
        assert difference(mine, velocities(loaded, x, sigma, [loaded.encode("a fox")])[0]) <= 1e-6
    assert torch.equal(adapter.decode(x), loaded.decode(x))


def test_weights_that_are_not_to_be_read_are_left_out(tmp_path: Path) -> None:
    """As the gates of FastWan's attention: whatever else a file has too much is a fault, by name."""
    adapter = FAMILIES["wan"]()
    save(adapter, tmp_path)
    path = next((tmp_path / "transformer").glob("*.safetensors"))
    own, gate = load_file(path), {"blocks.0.to_gate_compress.weight": torch.zeros(2, 2)}
    save_file(own | gate, path, {"format": "pt"})
    spec = replace(adapter.spec, weights=tmp_path)
    with pytest.raises(DamagedError, match=r"unexpected_keys blocks\.0\.to_gate_compress"):
        load_adapter(spec, CPU)
    spec = replace(spec, unread=MODELS["wan-1.3b:3-step"].unread)
    x, text = latents(adapter), adapter.encode("a fox")
    loaded = load_adapter(spec, CPU)
    assert difference(*(velocities(one, x, 0.5, [text])[0] for one in (loaded, adapter))) <= 1e-6
    save_file(own | gate | {"strange": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.raises(DamagedError, match="unexpected_keys strange"):
        load_adapter(spec, CPU)


def test_what_does_not_fit_is_refused_by_name(adapter: PipelineAdapter, tmp_path: Path) -> None:
    save(adapter, tmp_path)
    spec = replace(adapter.spec, weights=tmp_path)
    for part in ("transformer", "vae", "text_encoder"):
        path = next((tmp_path / part).glob("*.safetensors"))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DamagedError, match=part):
            load_adapter(spec, CPU)
        path.write_bytes(whole)
        tensors = load_file(path)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, path, {"format": "pt"})
        with pytest.raises(DamagedError, match="missing_keys"):
            load_adapter(spec, CPU)
        path.write_bytes(whole)

    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("FlowMatchEulerDiscrete", "DDIM"))
    with pytest.raises(DamagedError, match="noise levels of DDIM"):
        load_adapter(spec, CPU)
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(MissingError, match="model_index"):
        load_adapter(spec, CPU)


def test_a_config_of_another_family_is_refused(tmp_path: Path) -> None:
    save(FAMILIES["wan"](), tmp_path)
    with pytest.raises(DamagedError, match="transformer"):
        load_adapter(replace(FAMILIES["ltx"]().spec, weights=tmp_path), CPU)


def test_an_empty_prompt_is_no_text_where_the_pipeline_says_so() -> None:
    """Mochi 1 was taught that: zeros, none of them attended to."""
    mochi = FAMILIES["mochi"]()
    assert isinstance(mochi, MochiAdapter)
    assert mochi.encode("").weights.any()
    options = {"force_zeros_for_empty_prompt": True}
    mochi = MochiAdapter(mochi.spec, CPU, replace(mochi.parts, options=options))
    assert mochi.encode("").states[0].shape[1] == 0
    assert mochi.encode("a fox").weights.any()
    x = latents(mochi)
    text = side_by_side((mochi.encode("a fox"), mochi.encode("a dog")), (0.4, 0.6))
    assert all(v.isfinite().all() for v in velocities(mochi, x, 0.5, [mochi.encode(""), text]))


def test_the_zeros_behind_a_text_are_there_and_no_part_of_its_meaning() -> None:
    """Wan attends to its padding, as its pipeline does; what is compared of two texts are their words."""
    model = FAMILIES["wan"]()
    text = model.encode("a fox")
    assert text.states[0].shape[1] == model.spec.text_length == int(text.weights.sum())
    words = text.states[0][0][: int((text.states[0] != 0).any(2).sum())]
    assert 0 < len(words) < model.spec.text_length
    assert torch.equal(text.mean(), words.mean(0))


def test_a_tokenizer_of_pieces_loads(tmp_path: Path) -> None:
    """As the real models have it: `spiece.model`, and no `tokenizer.json`."""
    adapter = FAMILIES["ltx"]()
    save(adapter, tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    (tmp_path / "tokenizer").mkdir()
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a fox sleeps in the park\na dog walks over there\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "tokenizer" / "spiece"),
        vocab_size=24,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 32}
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer" / "spiece.vocab").unlink()
    loaded = load_adapter(replace(adapter.spec, weights=tmp_path), CPU)
    assert isinstance(loaded, PipelineAdapter)
    text = loaded.encode("a fox sleeps")
    assert 3 <= int(text.weights.sum()) < 32


def test_a_codec_that_injects_noise_is_refused() -> None:
    adapter = ltx()
    adapter.vae.register_to_config(decoder_inject_noise=(True, False, False, False, False))
    with pytest.raises(DamagedError, match="noise"):
        type(adapter)(adapter.spec, CPU, adapter.parts)


class Apart(TorchDispatchMode):
    """Refuses what would bring data to the device: a GPU's queue would run dry."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        found = tree_leaves((args, kwargs, output))
        places = {t.device.type for t in found if isinstance(t, Tensor) and t.ndim}
        assert len(places) < 2, f"{func} works in two places"
        return output


@pytest.mark.parametrize("weighting", ["true", "texts", "false"])
def test_a_step_asks_nothing_of_the_device(
    adapter: PipelineAdapter, monkeypatch: pytest.MonkeyPatch, weighting: str
) -> None:
    """On tensors without data: whoever asked for a value would raise, as `tolist` does at the very end.

    All three segments have begun, with leads of both kinds; how a character is found is no part of a step.
    """
    plan = plan_for(adapter, monkeypatch, CAST, steps=6, method=(f"weighting={weighting}",))
    adapter.prepare(all_prompts(plan, scored=True))
    done = {s.index: segment_noise(plan, s) for s in plan.segments}
    leads = Leads(adapter, plan, done.__getitem__)
    known = [leads.of(segment) for segment in plan.segments]
    for module in (*adapter.experts, *adapter.text_encoders):
        module.to("meta")
    adapter.device = torch.device("meta")
    adapter.at_once = 3
    writer = PromptWriter(adapter, plan, None)
    begun = []
    for segment, lead in zip(plan.segments, known, strict=True):
        there = None if lead is None else Lead(lead.latents.to("meta"), lead.weights.to("meta"))
        begun.append(begin(adapter, plan, segment, writer.prompts(segment), there))
    assert [state.lead is not None for state in begun] == [False, True, True]
    asked: list[None] = []
    with Apart(), pytest.raises((NotImplementedError, RuntimeError)) as caught:
        next(
            denoise(
                adapter,
                plan.settings,
                plan.segments,
                writer,
                lambda segment: begun[segment.index],
                lambda window: asked.append(None),
            )
        )
    assert len(asked) == 18  # every segment, every step
    assert [entry.name for entry in caught.traceback].count("_check") == 1


@torch.no_grad()
def test_no_memory_mode_changes_a_picture(stored: PipelineAdapter) -> None:
    adapter = stored
    x = latents(adapter)
    text = adapter.encode("a fox in the park")
    (high,), pictures = velocities(adapter, x, 0.5, [text]), adapter.decode(x)
    assert adapter.memory == "high"
    for mode in ("balanced", "low"):
        assert adapter.lower_memory_mode() == mode
        adapter._texts.clear()
        adapter.prepare(["a dog walks"])
        assert torch.equal(adapter.encode("a fox in the park").states[0], text.states[0])
        assert torch.equal(velocities(adapter, x, 0.5, [adapter.encode("a fox in the park")])[0], high)
        assert torch.equal(adapter.decode(x), pictures)
    assert adapter.lower_memory_mode() is None


@torch.no_grad()
def test_fp8_takes_a_quarter_of_fp32_and_changes_the_answer_a_little(adapter: PipelineAdapter) -> None:
    x, texts = latents(adapter), [adapter.encode("a fox in the park")]
    whole = [velocities(adapter, x, sigma, texts)[0] for sigma in (0.95, 0.5)]
    linear = [
        layer
        for expert in adapter.experts
        for block in adapter.blocks(expert)
        for layer in block.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    before, *others = adapter.offload.sizes()
    saved = sum(3 * layer.weight.numel() - 4 * layer.out_features for layer in linear)  # a scale per channel
    quantized = in_fp8(adapter)
    assert quantized.offload.sizes() == (before - saved, *others)
    assert sum(isinstance(m, QuantizedLinear) for e in quantized.experts for m in e.modules()) == len(linear)
    assert quantized.dtype == torch.float32
    for sigma, expected in zip((0.95, 0.5), whole, strict=True):
        (found,) = velocities(quantized, x, sigma, texts)
        assert 1e-4 < float((found - expected).norm() / expected.norm()) < 0.05


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' pipeline
@pytest.mark.filterwarnings("ignore:(?s).*autocast:UserWarning")  # Mochi's
def test_fp8_computes_in_half_precision_as_before(adapter: PipelineAdapter) -> None:
    connectors = [] if adapter.parts.connectors is None else [adapter.connectors]
    for module in (*adapter.experts, adapter.vae, *adapter.text_encoders, *connectors):
        module.to(torch.bfloat16)
    half = type(adapter)(replace(adapter.spec, dtype="bfloat16"), CPU, adapter.parts)
    x = latents(half)
    (expected,) = velocities(half, x, 0.5, [half.encode("a fox")])
    quantized = in_fp8(half)
    (found,) = velocities(quantized, x, 0.5, [quantized.encode("a fox")])
    assert 1e-4 < float((found - expected).norm() / expected.norm()) < 0.05
    noise = x.repeat(1, 1, 1, 2, 2)  # what LTX's pipeline takes
    settings = Settings(0, 32, 32, 2, 1.0, Method())
    assert stock_of(quantized).latents("a fox", noise, settings).isfinite().all()


def test_the_highest_mode_that_fits_is_chosen() -> None:
    def chosen(expert: int, encoders: int, free: int) -> str:
        weights = Weights((expert * GB,), expert * GB, encoders * GB, GB, GB, GB)
        return highest_mode(weights.on_device(Working(6 * GB, 8 * GB)), free * GB)

    assert chosen(20, 10, 40) == "high"
    assert chosen(20, 10, 30) == "balanced"
    assert chosen(20, 10, 16) == "low"
    # Wan 1.3B: its text encoder is what is large, and done before the transformer comes.
    assert chosen(3, 11, 11) == "low"
    assert chosen(3, 11, 13) == "balanced"
    assert chosen(3, 11, 23) == "high"
    assert chosen(3, 11, 1) == "low"  # there is nothing lower to try


def test_the_prompts_of_other_films_are_forgotten(adapter: PipelineAdapter) -> None:
    """A batch loads its model once: its films' prompts must not pile up."""
    adapter.prepare(["a fox", "a dog"])
    kept = adapter._texts["a dog"]
    adapter.prepare(["a dog", "a cat", "a dog"])
    assert list(adapter._texts) == ["a dog", "a cat"]
    assert adapter._texts["a dog"] is kept


@torch.inference_mode()
def test_a_text_is_kept_without_the_zeros_at_its_end(adapter: PipelineAdapter) -> None:
    """Of a thousand scenes, Wan's zeros would be gigabytes."""
    for prompt in ("a dog", ""):
        whole, again = adapter._encode(prompt), adapter.encode(prompt)
        assert torch.equal(again.weights, whole.weights)
        assert all(map(torch.equal, again.states, whole.states))
        kept = adapter._texts[prompt].cut.states
        assert all(states[0, -1].any() for states in kept if states.shape[1])
        assert all(states.untyped_storage().nbytes() == states.nbytes for states in kept)


def test_an_encoded_prompt_can_be_written_into_without_harm(adapter: PipelineAdapter) -> None:
    """The method writes weights into a text's mask; the next time the prompt is as it was."""
    text = adapter.encode("a fox in the park")
    before = text.weights.clone()
    text.weights.zero_()
    text.states[0].zero_()
    assert torch.equal(adapter.encode("a fox in the park").weights, before)
    assert adapter.encode("a fox in the park").states[0].abs().sum() > 0
