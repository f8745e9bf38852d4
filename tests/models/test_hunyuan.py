"""HunyuanVideo 1.5's two text encoders, its chat template and its decoder, on a tiny model of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15Transformer3DModel
from torch import Tensor

from storyreel.benchmark.run import stock_latents
from storyreel.benchmark.stock import stock_of
from storyreel.errors import DamagedError, MissingError, PromptError
from storyreel.models.attention import attend, joined, keys_of, masked
from storyreel.models.base import Text, side_by_side
from storyreel.models.inventory import check_inventory, needed, weight_files
from storyreel.models.kernels import lse_kernel
from storyreel.models.loading import load_adapter
from storyreel.models.specs import MODELS
from tests.conftest import plan_of
from tests.denoise.test_loop import film
from tests.models.test_decoding import of_clip
from tests.models.test_families import difference, latents, save
from tests.tiny import CPU, HUNYUAN, hunyuan, velocities

QUOTING = 'a fox in the park, a sign says "dog" and \u201cpark\u201d'
STORY = f"scenes:\n  - ['{QUOTING}', a fox walks]\nrender: {{negative: 'there sleeps \"a dog\"'}}\n"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' pipeline
def test_quoted_words_are_read_letter_by_letter_as_the_pipeline_reads_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the prompt and in the negative one, to the last step; without the letters it is another film."""
    monkeypatch.setitem(MODELS, HUNYUAN.name, HUNYUAN)
    adapter = hunyuan()
    plan = plan_of(STORY, model=HUNYUAN.name, without=frozenset({"all"}), guidance=4.0, steps=3)
    (ours,) = film(adapter, plan)
    (theirs,) = stock_latents(adapter, plan)
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-6
    text = adapter.encode(plan.segments[0].prompt)
    silent = Text((text.states[0], text.states[1][:, :0]), text.weights[:, : text.states[0].shape[1]])
    (spoken,), (unspoken,) = (velocities(adapter, ours, 0.5, [one]) for one in (text, silent))
    assert difference(spoken, unspoken) > 1e-3


def test_only_what_is_quoted_has_letters() -> None:
    adapter = hunyuan()
    assert adapter.encode("a fox walks").states[1].shape == (1, 0, 24)
    letters = 'Text "dog". Text "park". '
    assert adapter.encode(QUOTING).states[1].shape == (1, len(letters) + 1, 24)  # and an end


@torch.no_grad()
def test_weights_reach_both_text_encoders() -> None:
    adapter = hunyuan()
    x = latents(adapter)
    scene, action, negative = (adapter.encode(t) for t in (QUOTING, 'a dog "sleeps"', "there"))
    alone = velocities(adapter, x, 0.7, [negative, scene])
    both = velocities(adapter, x, 0.7, [negative, side_by_side((scene, action), (1, 0))])
    assert max(difference(b, a) for a, b in zip(alone, both, strict=True)) <= 3e-6
    for encoder in (0, 1):
        mixed = side_by_side((scene, action), (0.5, 0.5))
        (half,) = velocities(adapter, x, 0.7, [mixed])
        mixed.weights_by_encoder()[encoder][:] *= 2.5
        (other,) = velocities(adapter, x, 0.7, [mixed])
        assert difference(other, half) > 1e-5


def test_two_encoders_tokens_are_one_text() -> None:
    """Those that count once stand first, whichever encoder they are of, and the attention is the same."""
    generator = torch.Generator().manual_seed(0)

    def text(*sizes: int) -> Text:
        states = [torch.randn(1, size, 8, generator=generator) for size in sizes]
        return Text(tuple(states), torch.ones(1, sum(sizes)))

    plain, few = text(3, 0), text(2, 4)
    of = torch.tensor([1, 0, 0, 2, 0, 0, 1])
    grouped, _ = text(4, 3).grouped(of)
    grouped.weights_by_encoder()[0][:, -1:] = 0.5
    grouped.weights_by_encoder()[0][:, -2:-1] = 2.0
    grouped.weights_by_encoder()[1][:, -1:] = 3.0
    texts: Sequence[Text] = [plain, few, grouped]
    kernel = lse_kernel(None, CPU, torch.float32, 8)
    parts = [keys_of(texts, kernel, encoder) for encoder in (0, 1)]
    tokens, keys = joined(parts)
    assert [(row.plain, row.groups) for row in keys.rows] == [(3, ()), (6, ()), (4, (1, 1, 1))]
    assert keys.weights[2].tolist() == [1, 1, 1, 1, 2.0, 0.5, 3.0]
    query = torch.randn(3, 5, 2, 4, generator=generator)
    side = torch.cat([states for states, _ in parts], 1).unflatten(2, (2, 4))
    beside = torch.cat([keys.weights for _, keys in parts], 1)
    expected = masked(query, side, side, beside, 0)
    heads = tokens.unflatten(2, (2, 4))
    found = torch.cat(attend(query, heads, heads, keys))
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "prompt", ["a fox sleeps in the park", "Assistant: there, a dog sleeps", "\u2603 sleeps"]
)
def test_words_are_found_behind_the_template(prompt: str) -> None:
    adapter = hunyuan()
    begin = prompt.index("sleeps")
    found = adapter.tokens_in(prompt, [(begin, begin + len("sleeps"))])
    text = adapter.encode(prompt)
    assert found.shape == (text.weights.shape[1],)
    tokenizer = adapter.parts.tokenizers[0]
    ids = adapter._tokens(0, prompt).input_ids[0][108:]
    assert tokenizer.decode(ids[found]).strip() == "sleeps"


def test_a_prompt_that_is_too_long_for_either_encoder_is_refused() -> None:
    """The template does not count."""
    adapter = hunyuan()
    sleeps = len(adapter.parts.tokenizers[0](" sleeps", add_special_tokens=False).input_ids)
    room = HUNYUAN.text_length // sleeps
    adapter.prepare([" ".join(["sleeps"] * (room - 8))])
    with pytest.raises(PromptError, match=f"the model reads {HUNYUAN.text_length}"):
        adapter.prepare([" ".join(["sleeps"] * (room + 1))])
    adapter.spec = replace(HUNYUAN, text_length=1000)
    with pytest.raises(PromptError, match=r"has 309 tokens, the model reads 256"):
        adapter.prepare([f'"{"x" * 299}"'])


@pytest.mark.parametrize("template", [None, "{{ messages[-1].content }}"])
def test_another_chat_template_is_refused_before_anything_is_rendered(
    template: str | None, tmp_path: Path
) -> None:
    adapter = hunyuan()
    adapter.parts.tokenizers[0].chat_template = template
    save(adapter, tmp_path)
    with pytest.raises(DamagedError, match=r"tokenizer.*template"):
        load_adapter(replace(HUNYUAN, weights=tmp_path), CPU)


@torch.no_grad()
def test_asked_with_masks_the_transformer_is_diffusers_own() -> None:
    """Of texts with padding, an image's tokens too."""
    ours = hunyuan().experts[0]
    theirs = HunyuanVideo15Transformer3DModel(**{k: v for k, v in ours.config.items() if k[0] != "_"}).eval()
    theirs.load_state_dict(ours.state_dict())
    ours.set_attn_processor(theirs.attn_processors)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    asked: dict[str, Tensor] = {
        "hidden_states": torch.randn(2, 9, 2, 4, 4),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 4, 32),
        "encoder_attention_mask": mask,
        "encoder_hidden_states_2": torch.randn(2, 4, 24),
        "encoder_attention_mask_2": 1 - mask,
        "image_embeds": torch.randn(2, 3, 8),
    }
    assert torch.equal(ours(**asked, return_dict=False)[0], theirs(**asked, return_dict=False)[0])


@torch.no_grad()
def test_a_folder_with_shards_and_a_guider_loads_as_the_pipeline_has_written_it(tmp_path: Path) -> None:
    """All that is read of it is fetched, and missed where it is not there."""
    adapter = hunyuan()
    stock_of(adapter).pipeline().save_pretrained(tmp_path, max_shard_size="40KB")
    config = tmp_path / "transformer" / "config.json"
    config.write_text(config.read_text().replace("TextTransformer", "HunyuanVideo15Transformer3DModel"))
    assert len(list((tmp_path / "transformer").glob("*-of-*.safetensors"))) > 1
    spec = replace(HUNYUAN, weights=tmp_path)
    check_inventory(spec)
    assert tmp_path / "tokenizer" / "chat_template.jinja" in weight_files(spec)  # which the key is made of
    loaded: Any = load_adapter(spec, CPU)
    x = latents(adapter)
    (mine,), (other,) = (velocities(a, x, 0.5, [a.encode(QUOTING)]) for a in (adapter, loaded))
    assert difference(other, mine) <= 1e-6
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    read = set(needed(sorted(files), None, spec.components))
    assert {file.partition("/")[0] for file in files - read} == {"guider"}  # guidance is a setting here
    (tmp_path / "tokenizer_2").rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match="no tokenizer_2"):
        check_inventory(spec)


def test_of_a_longer_clip_only_keys_and_values_take_more_memory() -> None:
    """Two of each channel of a latent cell; latents and pictures are themselves as long as the clip."""
    peaks = []
    for count in (4, 8):
        counts, peak = of_clip(hunyuan(), count, 4, 4)
        assert counts == [1, *[4] * (count - 1)]
        peaks.append(peak)
    known = 2 * 16 * 4 * 4 * 4 * torch.float32.itemsize  # of four more latent frames
    sample = 4 * 4 * 4 * 4 * torch.float32.itemsize
    assert known <= peaks[1] - peaks[0] <= known + 3 * sample
