"""LTX-2.5 in diffusers' classes: pictures and their sound from one transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2VideoTransformer3DModel,
    attention_backend,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.utils import DISTILLED_SIGMA_VALUES
from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE
from torch import Tensor
from transformers import Gemma4UnifiedForConditionalGeneration

from storyreel.errors import DamagedError
from storyreel.models.attention import Keys, TextProcessor
from storyreel.models.base import Request, Text
from storyreel.models.loading import Parts, TextEncoder
from storyreel.models.ltx import packed, unpacked
from storyreel.models.ltx_decoder import ltx_decoder
from storyreel.models.memory import MemoryMode
from storyreel.models.pipeline import PipelineAdapter
from storyreel.models.specs import ModelSpec
from storyreel.models.streaming import stream

GEMMA_4: dict[str, Any] = {
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
}
GEMMA_THIN: dict[str, Any] = {
    **GEMMA_4,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 512,
}
CONNECTORS: dict[str, Any] = {
    "video_connector_num_attention_heads": 32,
    "video_connector_num_layers": 8,
    "video_gated_attn": True,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "audio_connector_num_layers": 8,
    "audio_gated_attn": True,
    "rope_type": "split",
    "per_modality_projections": True,
    "proj_bias": True,
}


class LTX2Adapter(PipelineAdapter):
    """A row of tokens for the picture and one for the sound, which attend to each other.

    The text encoder's states go through connectors, which make a row of tokens for each of the two; these
    stand in a `Text` as those of two encoders would.
    """

    transformer_class = LTX2VideoTransformer3DModel
    vae_class = AutoencoderKLLTX2Video
    reads_with = (
        TextEncoder(
            Gemma4UnifiedForConditionalGeneration, {"text_config": GEMMA_4}, {"text_config": GEMMA_THIN}
        ),
    )
    connects_with = TextEncoder(
        LTX2TextConnectors, CONNECTORS, {"video_connector_num_layers": 1, "audio_connector_num_layers": 1}
    )
    sounds_with: ClassVar[dict[str, type[Any]]] = {
        "audio_vae": AutoencoderKLLTX2Audio,
        "vocoder": LTX2VocoderWithBWE,
    }
    schedulers = (FlowMatchEulerDiscreteScheduler,)

    def __init__(
        self, spec: ModelSpec, device: torch.device, parts: Parts, memory: MemoryMode = "auto"
    ) -> None:
        config: Any = parts.vae.config
        if config.timestep_conditioning or config.decoder_causal or any(_each(config.decoder_inject_noise)):
            words = "this VAE decodes otherwise than that of LTX-2.5"
            raise DamagedError(words, "Use Lightricks/LTX-2.5-Diffusers.")
        super().__init__(spec, device, parts, memory)

    def _prepare(self, transformer: Any) -> None:
        for block in transformer.transformer_blocks:
            block.attn2.set_processor(GatedTextProcessor())
            block.audio_attn2.set_processor(GatedTextProcessor())

    # Text

    def clean(self, prompt: str) -> str:
        """Return a prompt without blanks around it, as the pipeline has it."""
        return prompt.strip()

    def _tokens(self, index: int, prompt: str) -> Any:
        """Return a prompt's tokens, which stand at the end of what pads them."""
        tokenizer: Any = self.parts.tokenizers[index]
        return tokenizer(
            self.clean(prompt),
            padding="max_length",
            max_length=self.spec.text_length,
            padding_side="left",
            return_tensors="pt",
        )

    def _encode(self, prompt: str) -> Text:
        """Read a prompt: all layers of the encoder, through the connectors, whose registers count too."""
        tokens = self._checked_tokens(0, prompt)
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        (encoder,) = self.text_encoders
        layers = encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        states = torch.stack(layers, -1).flatten(2)
        with attention_backend("native"):  # they take masks; what is chosen for the transformer may take none
            of_picture, of_sound, counts = self.connectors(states, mask, padding_side="left")
        return Text((of_picture, of_sound), torch.cat([counts, counts], 1).float())

    def blank_text(self, tokens: int) -> Text:
        """Return a text without any meaning, for calculations: all are of one length."""
        length, config = self.spec.text_length, self.connectors.config
        widths = (config.video_hidden_dim, config.audio_hidden_dim)
        states = tuple(
            torch.empty(1, length, width, device=self.device, dtype=self.dtype) for width in widths
        )
        return Text(states, torch.ones(1, 2 * length, device=self.device))

    def tokens_in(self, prompt: str, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Return which tokens lie in spans of a prompt: the connectors put those of words first."""
        clean, before = self.clean(prompt), len(prompt) - len(prompt.lstrip())
        tokenizer: Any = self.parts.tokenizers[0]
        inside = torch.zeros(self.spec.text_length, dtype=torch.bool)
        offsets = tokenizer(clean, return_offsets_mapping=True).offset_mapping if tokenizer.is_fast else ()
        for place, (first, last) in enumerate(offsets):
            inside[place] = any(begin - before < last and first < end - before for begin, end in spans)
        return torch.cat([inside, inside])

    # Denoising

    def sigmas(self, steps: int, shape: Sequence[int], shift: float | None = None) -> list[float]:
        """Return the levels that the distilled weights were made for; for other counts, what is between."""
        known = [*DISTILLED_SIGMA_VALUES, 0.0, 0.0]
        places = (divmod(step * len(DISTILLED_SIGMA_VALUES), steps) for step in range(steps + 1))
        return [known[at] + (known[at + 1] - known[at]) * (rest / steps) for at, rest in places]

    def _answer(self, transformer: Any, request: Request) -> Sequence[Tensor]:
        x, texts, spec, sound = request.x, request.texts, self.spec, request.sound
        assert spec.sound is not None
        heard = x.new_zeros(1, spec.sound.channels, 1, 1, spec.sound.bands) if sound is None else sound
        count, (frames, height, width) = len(texts), x.shape[2:]
        states, keys = self._keys(transformer, texts)
        states_of_sound, keys_of_sound = self._keys(transformer, texts, 1)
        level = torch.full((count,), 1000 * request.sigma, device=x.device)
        positions = transformer.audio_rope.prepare_audio_coords(count, heard.shape[2], x.device)
        picture, of_sound = transformer(
            hidden_states=packed(x).to(self.dtype).expand(count, -1, -1),
            audio_hidden_states=sound_packed(heard).to(self.dtype).expand(count, -1, -1),
            encoder_hidden_states=states,
            audio_encoder_hidden_states=states_of_sound,
            timestep=level,
            sigma=level,
            encoder_attention_mask=keys,
            audio_encoder_attention_mask=keys_of_sound,
            num_frames=frames,
            height=height,
            width=width,
            fps=spec.fps,
            audio_num_frames=heard.shape[2],
            video_coords=self._positions(x).expand(count, -1, -1, -1),
            audio_coords=positions,
            isolate_modalities=sound is None,
            use_cross_timestep=True,
            return_dict=False,
        )
        answer = [unpacked(picture, x.shape)]
        return answer if sound is None else [*answer, sound_unpacked(of_sound, sound.shape)]

    def _velocities(self, transformer: Any, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        return self._answer(transformer, Request(x, sigma, texts))[0]

    def _positions(self, x: Tensor) -> Tensor:
        """Return the ends of every token in seconds, rows and columns, (1, 3, F·H·W, 2).

        As diffusers has them, whose own function sends constants to the device in every step.
        """
        spec = self.spec
        frame, row, column = (torch.arange(n, device=x.device, dtype=torch.float32) for n in x.shape[2:])
        per_latent, side = spec.frames_per_latent, spec.pixels_per_latent
        ends = []
        for behind in (0, 1):
            seconds = ((frame + behind) * per_latent + 1 - per_latent).clamp(min=0) / spec.fps
            axes = (seconds, (row + behind) * side, (column + behind) * side)
            ends.append(torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1))
        return torch.stack(ends, -1)[None]

    # Pictures and sound

    def _raw(self, latents: Tensor) -> Tensor:
        mean, std = (
            v.to(latents.device, latents.dtype).view(1, -1, 1, 1, 1)
            for v in (self.vae.latents_mean, self.vae.latents_std)
        )
        raw: Tensor = latents * std / self.vae.config.scaling_factor + mean
        return raw

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        yield from stream(ltx_decoder(self.vae.decoder, None, latents), latents, self.spec.decoded_at_once)

    @torch.inference_mode()
    def decode_sound(self, latents: Tensor) -> Tensor:
        """Return the samples, fp32 (T, 2) on the CPU, of a clip's sound (1, C, S, 1, M).

        T is that of 4·S - 3 frames of a spectrogram: some 30 ms less than the latents' time.
        """
        vae, vocoder = self.parts.sound.values()
        codec: Any = vae
        with self.offload.decoding():
            mean, std = (v.to(latents.device, latents.dtype) for v in (codec.latents_mean, codec.latents_std))
            raw = sound_unpacked(sound_packed(latents) * std + mean, latents.shape)[:, :, :, 0]
            spectrogram = codec.decode(raw.to(codec.dtype), return_dict=False)[0]
            samples: Tensor = vocoder(spectrogram.to(next(vocoder.parameters()).dtype))[0]
        return samples.float().T.cpu()


class GatedTextProcessor(TextProcessor):
    """Cross-attention of picture or sound to texts, whose heads have gates."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Keys | None = None,
        *_: Any,
    ) -> Tensor:
        """Attend, picture or sound (B, N, D) to text (B, L, D)."""
        attended = self._attended(attn, hidden_states, encoder_hidden_states, attention_mask)
        if attn.to_gate_logits is not None:
            attended = attended * (2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states))).unsqueeze(-1)
        output: Tensor = attn.to_out[0](attended.flatten(2))
        return output


def sound_packed(x: Tensor) -> Tensor:
    """Turn latents of sound (B, C, S, 1, M) into tokens (B, S, C·M)."""
    return x[:, :, :, 0].transpose(1, 2).flatten(2)


def sound_unpacked(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Turn tokens (B, S, C·M) into latents of sound of a shape (…, C, S, 1, M)."""
    latents: Tensor = x.unflatten(2, (shape[-4], shape[-1])).transpose(1, 2).unsqueeze(3)
    return latents


def _each(value: bool | Sequence[bool]) -> Sequence[bool]:
    return [value] if isinstance(value, bool) else value
