"""Mochi in diffusers' classes: the embedded model is one, at toy size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial

import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from storyreel.errors import PromptError
from storyreel.models.base import Memory, Text, load_component, read_component
from storyreel.models.mochi_attention import recording, use_batched_attention, with_memory
from storyreel.models.specs import ModelSpec

PREVIEW = "preview.safetensors"  # beside the components, where a model has one


class MochiAdapter:
    """One film's use of a Mochi model."""

    def __init__(
        self,
        spec: ModelSpec,
        device: torch.device,
        transformer: MochiTransformer3DModel,
        vae: AutoencoderKLMochi,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerFast,
        preview: dict[str, Tensor] | None = None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.transformer = transformer.to(device).eval()
        self.vae = vae.to(device).eval()
        self.text_encoder = text_encoder.to(device).eval()
        self.tokenizer = tokenizer
        use_batched_attention(self.transformer)
        self._preview = {key: value.to(device) for key, value in (preview or {}).items()}
        config = self.vae.config
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean, device=device).view(shape)
        self._std = torch.tensor(config.latents_std, device=device).view(shape) / config.scaling_factor

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device) -> MochiAdapter:
        """Load from a folder laid out as diffusers lays out a pipeline; compute in fp32."""
        folder, fp32 = spec.weights, torch.float32
        loader = partial(MochiTransformer3DModel.from_pretrained, torch_dtype=fp32, low_cpu_mem_usage=False)
        transformer = load_component(loader, folder / "transformer", MochiTransformer3DModel)
        loader = partial(AutoencoderKLMochi.from_pretrained, torch_dtype=fp32, low_cpu_mem_usage=False)
        vae = load_component(loader, folder / "vae", AutoencoderKLMochi)
        loader = partial(T5EncoderModel.from_pretrained, dtype=fp32)
        text_encoder = load_component(loader, folder / "text_encoder", T5EncoderModel)
        read = partial(PreTrainedTokenizerFast.from_pretrained, local_files_only=True)
        tokenizer = read_component(read, folder / "tokenizer")
        preview = read_component(load_file, folder / PREVIEW) if (folder / PREVIEW).exists() else {}
        preview = {key: value.float() for key, value in preview.items()}
        return cls(spec, device, transformer, vae, text_encoder, tokenizer, preview)

    @torch.inference_mode()
    def encode(self, prompt: str) -> Text:
        """Encode a prompt. Raises PromptError if it is too long to be read whole."""
        length = self.spec.text_length
        tokens = self.tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt")
        if (count := tokens.input_ids.shape[1]) > length:
            raise PromptError(prompt, count, length)
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        return Text(self.text_encoder(ids, attention_mask=mask)[0], mask.bool())

    def sigmas(self, steps: int) -> list[float]:
        """Return evenly spaced noise levels.

        Mochi's own linear-quadratic schedule spends half of its steps above σ = 0.975, which
        pays with 64 steps and not with 16.
        """
        return [1 - step / steps for step in range(steps + 1)]

    def predict(
        self, x: Tensor, sigma: float, texts: Sequence[Text], memory: Memory | None = None
    ) -> list[Tensor]:
        """Return the velocity ε - x0 for each text. Mochi counts σ and v the other way round."""
        with with_memory(self.transformer, memory):
            return list((-self._forward(x, sigma, texts)).split(1))

    @torch.inference_mode()
    def remember(self, latents: Tensor, text: Text) -> Memory:
        """Return what every layer sees in clean frames, seen as a clip of their own."""
        with recording(self.transformer) as seen:
            self._forward(latents, 0.0, [text])
        return Memory(tuple(seen), latents.new_ones(seen[0][0].shape[1]))

    def _forward(self, x: Tensor, sigma: float, texts: Sequence[Text]) -> Tensor:
        with warnings.catch_warnings():  # diffusers asks for an fp32 autocast, which a CPU has not
            warnings.filterwarnings("ignore", message="(?s).*autocast", category=UserWarning)
            output: Tensor = self.transformer(
                hidden_states=x.expand(len(texts), -1, -1, -1, -1),
                encoder_hidden_states=_padded([text.states for text in texts]),
                encoder_attention_mask=_padded([text.mask for text in texts]),
                timestep=torch.full((len(texts),), 1000 * (1 - sigma), device=x.device),
                return_dict=False,
            )[0]
        return output.float()

    @torch.inference_mode()
    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Return the latents (1, C, F, H, W) of pictures, uint8 (T, H, W, 3); T = 1 + k·frames per latent."""
        video = pictures.permute(3, 0, 1, 2)[None].to(self.device).float() / 127.5 - 1
        latents: Tensor = (self.vae.encode(video).latent_dist.mode() - self._mean) / self._std
        return latents

    def preview(self, latents: Tensor) -> Tensor | None:
        """Return a rough picture (F, 3, H, W) in [-1, 1] of each latent frame, by a linear map alone.

        None if the weights bring no map.
        """
        if not self._preview:
            return None
        patches = nn.functional.conv2d(
            latents[0].transpose(0, 1), self._preview["weight"], self._preview["bias"]
        )
        return nn.functional.pixel_shuffle(patches, self.spec.pixels_per_latent)

    def decoder(self) -> MochiDecoder:
        """Return a decoder for a new stream."""
        return MochiDecoder(self.vae, self._mean, self._std, self.spec.decoded_at_once)


def _padded(rows: list[Tensor]) -> Tensor:
    """Stack rows (1, L, …) of different lengths, with zeros at their ends."""
    longest = max(row.shape[1] for row in rows)
    blank = [row.new_zeros(1, longest - row.shape[1], *row.shape[2:]) for row in rows]
    return torch.cat([torch.cat([row, rest], 1) for row, rest in zip(rows, blank, strict=True)])


def _causal_convolutions(module: nn.Module) -> list[CogVideoXCausalConv3d]:
    found = [m for m in module.modules() if isinstance(m, CogVideoXCausalConv3d)]
    return [conv for conv in found if conv.time_kernel_size > 1]


class MochiDecoder:
    """Streams latents through `AutoencoderKLMochi`'s decoder, a few latent frames at a time.

    The decoder is causal. Its convolutions repeat the first frame where there is none before;
    in a stream they must see the frames before instead, which diffusers' own framewise
    decoding gets wrong for Mochi's padding. Here a hook on each convolution prepends what it
    saw last, and its own padding in time is off. Every push begins a new chunk of at most
    ``at_once`` latent frames: the same pushes make the same bytes.
    """

    def __init__(self, vae: AutoencoderKLMochi, mean: Tensor, std: Tensor, at_once: int) -> None:
        self._vae, self._at_once = vae, at_once
        self._mean, self._std = mean, std
        self._seen: dict[nn.Module, Tensor] = {}
        self._skip = vae.temporal_compression_ratio - 1

    @torch.inference_mode()
    def push(self, latents: Tensor) -> Tensor:
        """Return the pictures, uint8 (T, H, W, 3), of the next latents (1, C, F, H, W)."""
        decoder = self._vae.decoder
        convolutions = _causal_convolutions(decoder)
        hooks = [conv.register_forward_pre_hook(self._prepend) for conv in convolutions]
        padding = [conv.time_causal_padding for conv in convolutions]
        try:
            for conv in convolutions:
                conv.time_causal_padding = (*conv.time_causal_padding[:4], 0, 0)
            chunks = []
            for chunk in (latents * self._std + self._mean).split(self._at_once, dim=2):
                frames = decoder(chunk)[0][:, :, self._skip :]
                self._skip = 0
                chunks.append(_to_bytes(frames))
        finally:
            for conv, kept, hook in zip(convolutions, padding, hooks, strict=True):
                conv.time_causal_padding = kept
                hook.remove()
        return torch.cat(chunks)

    def _prepend(self, conv: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert isinstance(conv, CogVideoXCausalConv3d)
        before = conv.time_kernel_size - 1
        seen = self._seen.get(conv)
        if seen is None:
            seen = inputs[0][:, :, :1].expand(-1, -1, before, -1, -1)
        x = torch.cat([seen, inputs[0]], 2)
        self._seen[conv] = x[:, :, -before:].clone()
        return (x, *inputs[1:])


def _to_bytes(frames: Tensor) -> Tensor:
    """Turn pictures (1, 3, T, H, W) in [-1, 1] into uint8 (T, H, W, 3) on the CPU."""
    pixels = ((frames[0].float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).cpu()
