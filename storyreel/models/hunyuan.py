"""HunyuanVideo 1.5 in diffusers' classes, from text alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import (
    extract_glyph_texts,
    format_text_input,
)
from torch import Tensor, nn
from transformers import BatchEncoding, Qwen2_5_VLTextModel, T5EncoderModel

from storyreel.models.attention import Keys, attend, joined
from storyreel.models.base import Text
from storyreel.models.hunyuan_decoder import decoder_of
from storyreel.models.loading import TextEncoder
from storyreel.models.pipeline import PipelineAdapter, with_shift
from storyreel.models.streaming import stream

# How the pipeline reads a prompt: as its methods have it for whoever says nothing else.
READING = signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
SYSTEM: str = READING["system_message"].default
LAYER: int = -1 - READING["num_hidden_layers_to_skip"].default  # whose states are taken
GLYPHS: int = (
    signature(HunyuanVideo15Pipeline._get_byt5_prompt_embeds).parameters["tokenizer_max_length"].default
)
MARK = "\ue000"  # a sign that no text has

QWEN_7B: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
BYT5_SMALL: dict[str, Any] = {  # with tokens for colours and fonts
    "d_model": 1472,
    "vocab_size": 1510,
    "d_kv": 64,
    "d_ff": 3584,
    "num_layers": 12,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
}


class TextTransformer(HunyuanVideo15Transformer3DModel):  # type: ignore[misc]  # diffusers has no types
    """diffusers' transformer, for texts of any weights: without masks, and without waiting for the device.

    Asked with masks, as diffusers' pipeline does, it answers as ever.
    """

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Any,
        encoder_attention_mask: Any,
        **options: Any,
    ) -> Any:
        """Return ε - x0 (B, C', F, H, W) at ``hidden_states`` (B, C, F, H, W) and ``timestep`` (B,).

        Without masks, ``encoder_hidden_states`` are (B, L, D) of both text encoders, and in place of
        ``encoder_attention_mask`` stands how they are attended to.
        """
        texts = (encoder_hidden_states, encoder_attention_mask)
        if isinstance(encoder_attention_mask, Tensor):
            return super().forward(hidden_states, timestep, *texts, **options)
        return self._velocity(hidden_states, timestep, *texts)

    def _velocity(self, x: Tensor, time: Tensor, states: Sequence[Tensor], keys: Sequence[Keys]) -> Tensor:
        times, rotation = self.time_embed, self.rope(x)
        modulation = times.timestep_embedder(times.time_proj(time).to(x.dtype))
        kinds = self.cond_type_embed.weight
        words = self._refined(states[0], time, keys[0]) + kinds[0]
        glyphs = self.context_embedder_2(states[1]) + kinds[1]
        text, all_keys = joined(((words, keys[0]), (glyphs, keys[1])))
        video = self.x_embedder(x)
        for block in self.transformer_blocks:
            video, text = block(video, text, modulation, all_keys, rotation)
        output = self.proj_out(self.norm_out(video, modulation))
        frames, patch = self.config.patch_size_t, self.config.patch_size
        count, height, width = x.shape[2] // frames, x.shape[3] // patch, x.shape[4] // patch
        output = output.unflatten(2, (-1, frames, patch, patch)).unflatten(1, (count, height, width))
        whole: Tensor = output.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return whole

    def _refined(self, states: Tensor, time: Tensor, keys: Keys) -> Tensor:
        """Return a language model's states (B, L, D) as the transformer's tokens."""
        refiner, weights = self.context_embedder, keys.weights[..., None]
        mean = (states * weights).sum(1) / weights.sum(1)
        modulation = refiner.time_text_embed(time, mean.to(states.dtype))
        tokens: Tensor = refiner.proj_in(states)
        for block in refiner.token_refiner.refiner_blocks:
            tokens = block(tokens, modulation, keys)
        return tokens


class TextAttention:
    """Attention of a text's tokens to each other, with the layers of the refiner."""

    _attention_backend: Any = None  # the name by which diffusers sets it

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: None, attention_mask: Keys
    ) -> Tensor:
        """Attend, (B, L, D)."""
        q, k, v = (_heads(attn, layer, hidden_states) for layer in (attn.to_q, attn.to_k, attn.to_v))
        attended = attend(q, k, v, attention_mask, backend=self._attention_backend)
        output: Tensor = attn.to_out[0](torch.cat(attended).flatten(2))
        return output


class JointAttention:
    """Attention of video and text to both, with the layers of the transformer's blocks.

    What comes out where padding is, nothing ever reads.
    """

    _attention_backend: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Keys,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Attend: video (B, N, D) and text (B, L, D), to the same shapes."""
        video, text = hidden_states, encoder_hidden_states
        query = attn.norm_q(_heads(attn, attn.to_q, video))
        key = attn.norm_k(_heads(attn, attn.to_k, video))
        query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        query = torch.cat([query, attn.norm_added_q(_heads(attn, attn.add_q_proj, text))], 1)
        key = torch.cat([key, attn.norm_added_k(_heads(attn, attn.add_k_proj, text))], 1)
        value = torch.cat([_heads(attn, attn.to_v, video), _heads(attn, attn.add_v_proj, text)], 1)
        count, longest = video.shape[1], text.shape[1]
        rows = attend(query, key, value, attention_mask, count, self._attention_backend)
        of_video = torch.cat([row[:, :count] for row in rows]).flatten(2)
        of_text = [row[:, count:].flatten(2) for row in rows]
        padded = torch.cat([nn.functional.pad(row, (0, 0, 0, longest - row.shape[1])) for row in of_text])
        return attn.to_out[0](of_video), attn.to_add_out(padded)


def _heads(attn: Any, layer: nn.Module, x: Tensor) -> Tensor:
    split: Tensor = layer(x).unflatten(2, (attn.heads, -1))
    return split


class HunyuanAdapter(PipelineAdapter):
    """HunyuanVideo 1.5 reads prompts with a language model, and what they quote letter by letter.

    Of a prompt that quotes nothing the second text encoder has no token.
    """

    transformer_class = TextTransformer
    vae_class = AutoencoderKLHunyuanVideo15
    reads_with = (
        TextEncoder(
            Qwen2_5_VLTextModel,
            QWEN_7B,
            {"num_hidden_layers": 3, "intermediate_size": 64},
            template=READING["crop_start"].default,
        ),
        TextEncoder(T5EncoderModel, BYT5_SMALL, {"d_ff": 64, "num_layers": 1}, longest=GLYPHS),
    )
    schedule: ClassVar[dict[str, Any]] = {"shift": 5.0}

    def _prepare(self, transformer: Any) -> None:
        for block in transformer.context_embedder.token_refiner.refiner_blocks:
            block.attn.set_processor(TextAttention())
        for block in transformer.transformer_blocks:
            block.attn.set_processor(JointAttention())

    # Text

    def _tokens(self, index: int, prompt: str) -> Any:
        tokenizer: Any = self.parts.tokenizers[index]
        if index == 0:
            (messages,) = format_text_input([prompt], SYSTEM)
            tokens = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            if tokens.input_ids.shape[1] <= self.reads_with[0].template:
                raise ValueError("its chat template is not the one that this model was taught with")
            return tokens
        quoted = extract_glyph_texts(prompt)
        if quoted is None:
            nothing = torch.zeros(1, 0, dtype=torch.long)
            return BatchEncoding({"input_ids": nothing, "attention_mask": nothing})
        return tokenizer(quoted, return_tensors="pt")

    def _offsets(self, index: int, prompt: str) -> Sequence[tuple[int, int]]:
        """Say of the language model's tokens where they stand in a prompt, and of quoted letters nothing."""
        tokenizer: Any = self.parts.tokenizers[0]
        if index or not tokenizer.is_fast:
            return ()
        marked, whole = (
            tokenizer.apply_chat_template(
                format_text_input([text], SYSTEM)[0], add_generation_prompt=True, tokenize=False
            )
            for text in (MARK, prompt)
        )
        start = marked.index(MARK)
        found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        return [(begin - start, end - start) for begin, end in found[self.reads_with[0].template :]]

    def _encoded(self, encoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; of the language model an inner layer's states are taken."""
        if isinstance(encoder, Qwen2_5_VLTextModel):

            def read(ids: Tensor, attention_mask: Tensor) -> Sequence[Tensor]:
                found = encoder(ids, attention_mask=attention_mask, output_hidden_states=True)
                return [found.hidden_states[LAYER]]

            return super()._encoded(read, ids, mask)
        if not ids.shape[1]:
            return mask.new_zeros(1, 0, encoder.config.d_model, dtype=self.dtype), mask.float()
        return super()._encoded(encoder, ids, mask)

    # Denoising

    def sigmas(self, steps: int, shape: Sequence[int], shift: float | None = None) -> list[float]:
        """Return even noise levels, shifted."""
        scheduler = self.parts.scheduler if shift is None else with_shift(self.parts.scheduler, shift)
        scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
        levels: list[float] = scheduler.sigmas.tolist()
        return levels

    def _velocities(self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        states, keys = zip(*(self._keys(transformer, texts, encoder) for encoder in (0, 1)), strict=True)
        # Behind the latents stand those of a first picture, and where there is one: nowhere.
        unknown = transformer.config.in_channels - x.shape[1]
        given = nn.functional.pad(x.to(self.dtype), (0, 0, 0, 0, 0, 0, 0, unknown))
        time = torch.full((len(texts),), 1000 * sigma, device=x.device)
        output: Tensor = transformer(given.expand(len(texts), -1, -1, -1, -1), time, states, keys)
        return output

    # Pictures

    def _raw(self, latents: Tensor) -> Tensor:
        raw: Tensor = latents / self.vae.config.scaling_factor
        return raw

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        decoder = decoder_of(self.vae.decoder, latents.shape[2])
        yield from stream(decoder, latents, self.spec.decoded_at_once)
