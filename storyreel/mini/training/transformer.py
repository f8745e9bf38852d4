"""The training of text encoder and transformer together, by flow matching."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

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

from .clips import Drawers, Drawn, Pool, trained_codec
from .layout import CELLS, PATCH, TAGS, LayoutHead, layout_loss
from .loop import Average, AverageState, Muon, Run, autocast, in_bf16, save_sheet
from .told import ToldHead, told_by, told_loss

GRID = (HEIGHT // codec.PIXELS_PER_LATENT // PATCH, WIDTH // codec.PIXELS_PER_LATENT // PATCH)
LAYOUT_AFTER = 3  # blocks: where the layout is read off
LAYOUT_SHARE = 1.0  # of its loss beside that of the velocity
TOLD_SHARE = 0.03  # of the loss of what the text tells
POOLED_SHARES = (
    0.05,
    0.01,
)  # of the losses of the mean errors of frames and of clips, and of characters in both
# What a lead shows, and in how many of the steps with leads: the end of another scene, a picture of the
# characters elsewhere, or both, the end behind the picture.
END, PORTRAIT, BOTH = "end", "portrait", "both"
LEADS = {END: 0.25, PORTRAIT: 0.4, BOTH: 0.35}
LEAD_LENGTHS = (0.75, 0.2, 0.05)  # how often one, two or three latent frames are
LEAD_NOISE = 0.4  # at most, of the noise of the rest


def fitted_tokenizer(folder: Path, seed: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer from ``folder``, or fit and keep it there."""
    path = folder / "tokenizer"
    if not path.exists():
        nets.build_tokenizer(all_texts(Random(seed), 12_000)).save_pretrained(path)
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


class Trainer:
    """Text encoder, transformer and the heads for layout and text, with their lessons and optimisers."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.device, self._precision = torch.device(options.device), options.precision
        self._leads: float = options.leads
        self._texts = Random(seed)
        self._noise = torch.Generator().manual_seed(seed)
        folder = Path(options.out)
        self.vae = trained_codec(folder).to(self.device)
        self.tokenizer = fitted_tokenizer(folder, options.seed)
        text_encoder, transformer = networks(folder, len(self.tokenizer))
        self.text_encoder, self.transformer = text_encoder.to(self.device), transformer.to(self.device)
        self.head = LayoutHead(transformer.patch_embed.proj.out_channels).to(self.device)
        self.told_head = ToldHead(nets.TEXT_WIDTH).to(self.device)
        groups = Drawers(options.drawers, 1000 * (seed + 1)) if options.drawers else None
        self.pool = Pool(self.vae, options.pool, seed + 1, groups)
        if options.compile:
            for block in self.transformer.transformer_blocks:
                block.compile(dynamic=True)
        self._middle: list[Tensor] = []
        self.transformer.transformer_blocks[LAYOUT_AFTER - 1].register_forward_hook(
            lambda block, inputs, output: self._middle.append(output[0])
        )
        blocks = self.transformer.transformer_blocks.named_parameters()
        matrices = [p for n, p in blocks if p.ndim == 2 and "norm" not in n]
        chosen = {id(p) for p in matrices}
        self.parameters = [*self.transformer.parameters(), *self.text_encoder.parameters()]
        self.all_parameters = [*self.parameters, *self.head.parameters(), *self.told_head.parameters()]
        self._rest = [p for p in self.all_parameters if id(p) not in chosen]
        bf16 = in_bf16(self.device, self._precision)
        self.muon = Muon(matrices, lr=7e-3, weight_decay=0.1, bf16=bf16)
        self.adam = torch.optim.AdamW(self._rest, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.0)
        self._rates = [(g, g["lr"]) for optimiser in (self.muon, self.adam) for g in optimiser.param_groups]

    def _embed(self, told: list[str]) -> tuple[Tensor, Tensor]:
        tokens = self.tokenizer(told, padding=True, truncation=True, return_tensors="pt").to(self.device)
        states = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        return states, tokens.attention_mask.bool()

    def learn(self, size: int, fresh: int) -> float:
        """Add the gradients of ``size`` lessons to what is there, and return the mean error of the velocity.

        What leads counts in neither. Gradients are summed over lessons; `update` divides them.
        """
        device, noise = self.device, self._noise
        led = self._texts.random() < self._leads
        lead = self._texts.choices(list(LEADS), list(LEADS.values()))[0] if led else None
        goes_on = lead in (END, BOTH)
        # A lead shows another pose than what is told: were it mostly the same, the model would keep it. And
        # what has none begins at once: were it to go on from something, no sample's beginning were certain.
        lessons = self.pool.batch(size, fresh, going_on=goes_on)
        clean = torch.stack([lesson.latents for lesson in lessons]).to(device).float()
        layout = torch.stack([lesson.layout for lesson in lessons]).to(device)
        given = None
        if goes_on:  # the end of a scene is no codec's first frame
            first = 1 if lead == BOTH else 0  # how many frames it has before it
            again = [1] * first + list(range(1, clean.shape[2]))
            clean, layout = clean[:, :, again], layout[:, again]
        if lead in (PORTRAIT, BOTH):
            given = put_first(clean, layout, lessons)
        cover = covered(layout, clean.shape)
        left = torch.ones((), device=device)
        if led:
            left = noise_left(noise, given, goes_on, clean.shape).to(device)
        facts = torch.stack([lesson.facts for lesson in lessons]).to(device)
        eps = torch.randn(clean.shape, generator=noise).to(device)
        sigma = torch.sigmoid(torch.randn(size, generator=noise) - 0.3)
        uniform = torch.rand(size, generator=noise)
        sigma = torch.where(torch.rand(size, generator=noise) < 0.25, uniform, sigma).to(device)
        s = sigma.view(-1, 1, 1, 1, 1)  # Mochi's: 0 is noise, 1 is clean
        noisy, target = torch.lerp(clean, eps, (1 - s) * left), clean - eps
        weight = (1 + 3 * cover * s) * (left == 1)
        texts = [sample_text(self._texts, lesson.example) for lesson in lessons]
        told = torch.stack([told_by(text, one.example) for text, one in zip(texts, lessons, strict=True)])
        with autocast(device, self._precision):
            states, mask = self._embed(texts)
            velocity = self.transformer(noisy, states, 1000 * sigma, mask, return_dict=False)[0]
            predicted = self.head(self._middle.pop())
            read = self.told_head(states, mask)
        error = velocity.float() - target
        # Errors that differ from one latent frame to the next flicker: they count once more.
        flicker = (error.diff(dim=2).square() * weight[:, :, 1:] * (weight[:, :, :-1] > 0)).mean()
        loss = (error.square() * weight).mean() + 0.5 * flicker
        free = weight > 0
        certain = 1.0 if goes_on else 0.5  # else light and set may be open, and means hold these too
        for where in (free, cover.clamp_max(1) * free):
            of_frames, of_clips = pooled_losses(error, where)
            loss = loss + certain * (POOLED_SHARES[0] * of_frames + POOLED_SHARES[1] * of_clips)
        loss = loss + LAYOUT_SHARE * layout_loss(predicted, layout, facts)
        loss = loss + TOLD_SHARE * told_loss(read, told.to(device))
        (size * loss).backward()
        counts = (weight > 0).expand_as(error)
        return float(error.detach()[counts].square().mean())

    def update(self, lessons: int, rate: float) -> None:
        """Move the parameters by the gradients of so many lessons; ``rate`` scales the learning rates."""
        for group, own in self._rates:
            group["lr"] = own * rate
        torch._foreach_div_([p.grad for p in self.all_parameters if p.grad is not None], lessons)
        nn.utils.clip_grad_norm_(self._rest, 1.0)
        self.muon.step()
        self.adam.step()
        self.muon.zero_grad()
        self.adam.zero_grad()

    def save(self, folder: Path, sheet: Path) -> None:
        """Write the networks as they are, and a sheet of what they draw."""
        self.transformer.save_pretrained(folder / "transformer")
        self.text_encoder.save_pretrained(folder / "text_encoder")
        parts = Parts([self.transformer], self.vae, [self.text_encoder], [self.tokenizer])
        save_sheet(list(sample_films(MochiAdapter(MODELS["mini"], self.device, parts))), sheet)
        self._middle.clear()
        for network in (self.transformer, self.text_encoder):
            network.train()


def rate_at(step: int, progress: float) -> float:
    """Return the factor of the learning rates: up within 50 steps, even, and down over the last 70 %."""
    return min(1.0, (step + 1) / 50) * min(1.0, (1 - progress) / 0.7 + 0.01)


def train_transformer(options: argparse.Namespace) -> None:
    """Train text encoder and transformer together by flow matching, with heads for layout and text."""
    folder = Path(options.out)
    run = Run("transformer", folder, options.steps, options.minutes)
    torch.manual_seed(options.seed)
    trainer = Trainer(options, run.fresh_seed(options.seed))
    average = Average(trainer.parameters)

    def step_fn(step: int, progress: float) -> float:
        error = trainer.learn(options.batch, options.fresh)
        trainer.update(options.batch, options.rate * rate_at(step, progress))
        average.update(step, 0.9985)
        return error

    def sheet_fn(path: Path) -> None:
        average.swap()
        trainer.save(folder, path)
        average.swap()

    run.loop(state_of(trainer, average), step_fn, sheet_fn)


def state_of(trainer: Trainer, average: Average) -> dict[str, Any]:
    """Return what a checkpoint holds."""
    return {
        "transformer": trainer.transformer,
        "text_encoder": trainer.text_encoder,
        "head": trainer.head,
        "told_head": trainer.told_head,
        "muon": trainer.muon,
        "adam": trainer.adam,
        "average": AverageState(average),
    }


def covered(layout: Tensor, shape: torch.Size) -> Tensor:
    """Return how much of each latent belongs to an actor or, twice, to the ball: (B, 1, L, H, W)."""
    side = round(CELLS**0.5)
    rows, columns = shape[3] // PATCH, shape[4] // PATCH
    tags = layout[..., : len(TAGS) * CELLS].float().unflatten(-1, (len(TAGS), side, side)) / 255
    cover = tags.sum(3) + tags[:, :, :, -1]  # (B, L, tokens, side, side)
    cells = cover.unflatten(2, (rows, columns)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    return nn.functional.adaptive_avg_pool2d(cells, (shape[3], shape[4]))[:, None]


def pooled_losses(error: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squares of an error's (B, C, L, H, W) means over frames, and over clips.

    Of the cells that ``where`` (B, 1, L, H, W) weighs, from 0 to 1; times how many these are, so that white
    noise loses as much as by itself. In much noise nobody knows yet where somebody will stand: a coat that
    is certain is then a small error in each of many cells, which their squares hardly tell from none, and
    their mean does. (Hoogeboom et al. 2023, arXiv 2301.11093, pool errors too, for large pictures.)
    """
    counted = error * where
    of_frames = counted.sum((3, 4)).square() / where.sum((3, 4)).clamp_min(1)
    of_clips = counted.sum((2, 3, 4)).square() / where.sum((2, 3, 4)).clamp_min(1)
    return of_frames.mean(), of_clips.mean()


def put_first(clean: Tensor, layout: Tensor, lessons: list[Drawn]) -> Tensor:
    """Put each lesson's portrait into its first frame, in place, and return where: bool (B, 1, H, W).

    That is where it shows characters, and a rim of a latent round them.
    """
    shown = torch.stack([lesson.portrait for lesson in lessons]).to(clean)
    theirs = torch.stack([lesson.portrait_layout for lesson in lessons]).to(layout)
    there = covered(theirs, shown.shape)[:, :, 0] > 0
    given = nn.functional.max_pool2d(there.float(), 3, 1, 1) > 0
    clean[:, :, 0] = torch.where(given, shown[:, :, 0], clean[:, :, 0])
    tokens = nn.functional.max_pool2d(given.float(), PATCH).flatten(1) > 0
    layout[:, 0] = torch.where(tokens[..., None], theirs[:, 0], layout[:, 0])
    return given


def noise_left(
    generator: torch.Generator, portrait: Tensor | None, goes_on: bool, shape: torch.Size
) -> Tensor:
    """Draw which share of their noise the latents of lessons keep: (B, 1, L, H, W), 1 behind the lead.

    So models learn that begin with pictures (LTX-Video, arXiv 2501.00103). A lead is those cells of the
    first frame that a ``portrait`` (B, 1, H, W) covers; where the lesson ``goes_on``, one to three whole
    frames; or both, the frames behind it.
    """
    size, _, length, rows, columns = shape
    cells = torch.zeros(size, 1, length, rows, columns, dtype=torch.bool)
    before = 0 if portrait is None else 1  # frames, of which a portrait is one
    if goes_on:
        lengths = torch.tensor(LEAD_LENGTHS).multinomial(size, replacement=True, generator=generator) + 1
        whole = torch.arange(length) < before + lengths.clamp(max=length - 1 - before)[:, None]
        cells |= whole[:, None, :, None, None]
    if portrait is not None:
        cells[:, :, 0] = portrait.cpu()
    share = LEAD_NOISE * torch.rand(size, generator=generator).view(-1, 1, 1, 1, 1)
    return torch.where(cells, share, 1.0)


def sample_films(adapter: MochiAdapter, story: str = "dc", scenes: int = 13) -> Iterator[Tensor]:
    """Yield pictures (3, T, H, W) of a story's first scenes, each rendered alone."""
    plot, cast = STORIES[story]
    lessons = PLOTS[plot][:scenes]
    pairs = [[words(lesson.scene, cast), words(lesson.action, cast)] for lesson in lessons]
    overrides = Overrides(steps=12, without=frozenset({"all"}))
    plan = make_plan(Story.model_validate({"scenes": pairs}), story, overrides)
    for segment in plan.segments:
        frames = adapter.decode(sample(adapter, plan, segment, adapter.encode(segment.prompt)))
        yield frames.permute(3, 0, 1, 2).float() / 127.5 - 1
