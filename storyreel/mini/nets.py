"""The embedded model's networks before training: sizes and initial values."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MochiTransformer3DModel
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from storyreel.models.mochi_attention import use_batched_attention

from .codec import CHANNELS

TEXT_WIDTH = 128
TEXT_LENGTH = 80  # tokens
CLIP_WIDTH = 96
CLIP_IMAGE = 96  # pixels square
ROPE_BASE = 192  # `MochiRoPE` stretches every picture to this area


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Fit a byte-level BPE; every text ends in ``</s>``, so that "" still has one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
        padding_side="right",
    )


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    """Return a small T5 encoder, to be trained together with the transformer."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=2 * TEXT_WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


@torch.no_grad()
def build_transformer(grid: tuple[int, int]) -> MochiTransformer3DModel:
    """Return a small Mochi transformer; ``grid`` is (rows, columns) of its patches.

    Mochi's ``pos_frequencies`` start at zero, which leaves the model without any sense of
    place: they get log-spaced values, slightly different in every head. Modulations and the
    output start at zero, so that training starts from the identity.
    """
    model = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=7,
        attention_head_dim=32,
        num_layers=6,
        pooled_projection_dim=TEXT_WIDTH,
        in_channels=CHANNELS,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=128,
        max_sequence_length=TEXT_LENGTH,
    )
    heads, pairs = model.pos_frequencies.shape[1:]
    stretch = math.sqrt(ROPE_BASE**2 / (grid[0] * grid[1]))
    temporal, spatial = pairs // 4, (pairs - pairs // 4) // 2
    frequencies = torch.zeros_like(model.pos_frequencies)
    for head in range(heads):
        jitter = 1 + 0.15 * torch.randn(3)
        frequencies[0, head, :temporal] = torch.linspace(0.3, 1.8, temporal) * jitter[0]
        for axis, cells in ((1, grid[0]), (2, grid[1])):
            start = temporal + (axis - 1) * spatial
            turns = torch.linspace(math.log(0.8 * math.pi), math.log(math.pi / cells / 1.5), spatial)
            frequencies[axis, head, start : start + spatial] = turns.exp() / stretch * jitter[axis]
    model.pos_frequencies.copy_(frequencies)
    for block in model.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            layer = getattr(norm, "linear", None) or norm.linear_1
            layer.weight.zero_()
            layer.bias.zero_()
    use_batched_attention(model)
    for layer in (model.norm_out.linear, model.proj_out):
        layer.weight.zero_()
        layer.bias.zero_()
    return model


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return Mochi's scheduler: σ is turned round, 1 is clean."""
    return FlowMatchEulerDiscreteScheduler(invert_sigmas=True)


def build_clip(vocabulary: int) -> CLIPModel:
    """Return a small text-image encoder.

    Patches of its square picture stand for 32 by 21 pixels of a 192x128 one.
    """
    shared = {"num_attention_heads": 4, "hidden_size": CLIP_WIDTH, "intermediate_size": 3 * CLIP_WIDTH}
    text = {"vocab_size": vocabulary, "max_position_embeddings": TEXT_LENGTH, "num_hidden_layers": 2}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    vision = {"image_size": CLIP_IMAGE, "patch_size": 16, "num_hidden_layers": 4}
    return CLIPModel(
        CLIPConfig(
            text_config=shared | text | tokens,
            vision_config=shared | vision,
            projection_dim=CLIP_WIDTH,
        )
    )
