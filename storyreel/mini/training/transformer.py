"""The training of text encoder and transformer together, by flow matching."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from diffusers import MochiTransformer3DModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from storyreel.denoise.loop import sample
from storyreel.mini import codec, nets
from storyreel.mini.lessons import HEIGHT, WIDTH, all_texts, sample_text
from storyreel.mini.plots import PLOTS, STORIES, words
from storyreel.models.loading import Parts
from storyreel.models.mochi import MochiAdapter
from storyreel.models.mochi_attention import use_batched_attention
from storyreel.models.specs import MODELS
from storyreel.story.planning import Overrides, make_plan
from storyreel.story.schema import Story

from .clips import Pool, fitted_stages
from .codec import trained_codec
from .loop import Average, AverageState, Run, autocast, save_sheet

GRID = (HEIGHT // codec.PIXELS_PER_LATENT // 2, WIDTH // codec.PIXELS_PER_LATENT // 2)


def fitted_tokenizer(folder: Path, seed: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer from ``folder``, or fit and keep it there."""
    path = folder / "tokenizer"
    if not path.exists():
        nets.build_tokenizer(all_texts(Random(seed), 6000)).save_pretrained(path)
    return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)


def networks(folder: Path, vocabulary: int) -> tuple[T5EncoderModel, MochiTransformer3DModel]:
    """Return text encoder and transformer from ``folder``, or new ones."""
    if not (folder / "transformer").exists():
        return nets.build_text_encoder(vocabulary), nets.build_transformer(GRID)
    transformer = MochiTransformer3DModel.from_pretrained(folder / "transformer", local_files_only=True)
    use_batched_attention(transformer)
    return T5EncoderModel.from_pretrained(
        folder / "text_encoder", local_files_only=True
    ).train(), transformer.train()


def train_transformer(options: argparse.Namespace) -> None:
    """Train text encoder and transformer together by flow matching."""
    device, folder = torch.device(options.device), Path(options.out)
    run = Run("transformer", folder, options.steps, options.minutes)
    torch.manual_seed(options.seed)
    seed = run.fresh_seed(options.seed)
    texts = Random(seed)
    noise = torch.Generator().manual_seed(seed)
    stages = fitted_stages(folder)
    tokenizer = fitted_tokenizer(folder, options.seed)
    text_encoder, transformer = networks(folder, len(tokenizer))
    text_encoder, transformer = text_encoder.to(device), transformer.to(device)
    pool = Pool(stages, options.pool, seed + 1)
    if options.compile:
        for block in transformer.transformer_blocks:
            block.compile(dynamic=True)

    matrices = [
        p for n, p in transformer.transformer_blocks.named_parameters() if p.ndim == 2 and "norm" not in n
    ]
    chosen = {id(p) for p in matrices}
    parameters = [*transformer.parameters(), *text_encoder.parameters()]
    rest = [p for p in parameters if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.05)
    adam = torch.optim.AdamW(rest, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.0)
    rates = [(group, group["lr"]) for optimiser in (muon, adam) for group in optimiser.param_groups]
    average = Average(parameters)

    def embed(told: list[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
        """Encode every prompt apart; the tokens of two stand side by side, each at half weight."""
        texts = [(*prompts, "")[:2] for prompts in told]
        flat = [prompt for side in zip(*texts, strict=True) for prompt in side]
        tokens = tokenizer(flat, padding=True, truncation=True, return_tensors="pt").to(device)
        states = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        mask = tokens.attention_mask.bool()
        missing = [len(told) + i for i, prompts in enumerate(told) if len(prompts) < 2]
        mask[missing] = False
        states, mask = torch.cat(states.chunk(2), 1), torch.cat(mask.chunk(2), 1)
        order = (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
        weight = torch.tensor([[1 / len(prompts)] for prompts in told], device=device)
        return states.take_along_dim(order[..., None], 1), mask.take_along_dim(order, 1) * weight

    def step_fn(step: int, progress: float) -> float:
        scale = options.rate * min(1.0, (step + 1) / 50) * min(1.0, (1 - progress) / 0.7 + 0.01)
        for group, rate in rates:
            group["lr"] = rate * scale
        lessons = pool.batch(options.batch, options.fresh)
        clean = torch.stack([lesson.latents for lesson in lessons]).float()
        cover = torch.stack([lesson.coverage for lesson in lessons]).float()
        eps = torch.randn(clean.shape, generator=noise)
        sigma = torch.sigmoid(torch.randn(len(lessons), generator=noise) - 0.3)
        uniform = torch.rand(len(lessons), generator=noise)
        sigma = torch.where(torch.rand(len(lessons), generator=noise) < 0.25, uniform, sigma)
        s = sigma.view(-1, 1, 1, 1, 1)  # Mochi's: 0 is noise, 1 is clean
        noisy, target, weight = (1 - s) * eps + s * clean, clean - eps, 1 + 3 * cover * s
        with autocast(device):
            states, mask = embed([sample_text(texts, lesson.example) for lesson in lessons])
            velocity = transformer(
                noisy.to(device), states, (1000 * sigma).to(device), mask, return_dict=False
            )[0]
        error, weight = velocity.float() - target.to(device), weight.to(device)
        # Errors that differ from one latent frame to the next flicker: they count once more.
        flicker = (error.diff(dim=2).square() * weight[:, :, 1:]).mean()
        ((error.square() * weight).mean() + 0.5 * flicker).backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step()
        adam.step()
        muon.zero_grad()
        adam.zero_grad()
        average.update(step, 0.9985)
        return float(error.detach().square().mean())

    def sheet_fn(path: Path) -> None:
        average.swap()
        transformer.save_pretrained(folder / "transformer")
        text_encoder.save_pretrained(folder / "text_encoder")
        vae = trained_codec(folder, stages)
        parts = Parts([transformer], vae, [text_encoder], [tokenizer])
        adapter = MochiAdapter(MODELS["mini"], device, parts)
        save_sheet(list(sample_films(adapter)), path)
        for network in (transformer, text_encoder):
            network.train()
        average.swap()

    state = {
        "transformer": transformer,
        "text_encoder": text_encoder,
        "muon": muon,
        "adam": adam,
        "average": AverageState(average),
    }
    run.loop(state, step_fn, sheet_fn)


def sample_films(adapter: MochiAdapter, story: str = "nyc", scenes: int = 12) -> Iterator[Tensor]:
    """Yield pictures (3, T, H, W) of a story's first scenes, each rendered alone."""
    plot, cast = STORIES[story]
    lessons = PLOTS[plot][:scenes]
    pairs = [[words(lesson.scene, cast), words(lesson.action, cast)] for lesson in lessons]
    overrides = Overrides(steps=12, without=frozenset({"all"}))
    plan = make_plan(Story.model_validate({"scenes": pairs}), story, overrides)
    for segment in plan.segments:
        frames = adapter.decode(sample(adapter, plan, segment, adapter.encode(segment.prompt)))
        yield frames.permute(3, 0, 1, 2).float() / 127.5 - 1
