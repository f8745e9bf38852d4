"""Training of the embedded model, one command per part, on a CPU or a GPU.

    python -m storyreel.mini.train codec --out run        # bases, then the decoder
    python -m storyreel.mini.train transformer --out run  # text encoder and transformer
    python -m storyreel.mini.train export --out run       # fp16 weights for the package

Clips are drawn on the fly. Every part keeps ``run/<part>.pt`` (weights, optimisers, step) and
goes on from there when it is started again; ``run/<part>.log`` holds the loss, and
``run/<part>.png`` what it draws. ``--minutes`` ends the learning rate's schedule in time on a
slow machine.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from storyreel.models.mochi import MochiAdapter
from storyreel.models.specs import MINI_WEIGHTS, MODELS
from storyreel.plan import Overrides, make_plan
from storyreel.sampling import denoise
from storyreel.story import Story

from . import codec, nets
from .lessons import FPS, HEIGHT, WIDTH, Example, all_texts, sample_example, sample_text
from .plots import PLOTS, STORIES, words
from .world import BALL_TAG, draw_clip

LENGTHS = ((9, 0.55), (5, 0.35), (13, 0.1))  # latent frames of a lesson, and how often
GRID = (HEIGHT // codec.PIXELS_PER_LATENT // 2, WIDTH // codec.PIXELS_PER_LATENT // 2)
BACKSTAGE = 1  # seed of the clips that the bases are fitted on
BASIS_CLIPS = 320


def draw(example: Example, latent_frames: int) -> tuple[Tensor, Tensor]:
    """Draw a lesson's pictures (3, T, H, W) in [-1, 1] and owners (T, H, W)."""
    frames = codec.FRAMES_PER_LATENT * (latent_frames - 1) + 1
    images, owners = draw_clip(example.clip, frames, FPS, WIDTH, HEIGHT)
    video = torch.from_numpy(images).permute(3, 0, 1, 2).float() / 127.5 - 1
    return video, torch.from_numpy(owners)


def coverage(owners: Tensor) -> Tensor:
    """Return how much of each latent cell belongs to an actor: (T, H, W) to (L, H/8, W/8)."""
    mask = (owners > 0).float() + (owners == BALL_TAG).float()
    mask = torch.cat([mask[:1].expand(codec.FRAMES_PER_LATENT - 1, -1, -1), mask])
    return torch.nn.functional.avg_pool3d(
        mask[None], (codec.FRAMES_PER_LATENT, codec.PIXELS_PER_LATENT, codec.PIXELS_PER_LATENT)
    )[0]


def fitted_stages(folder: Path) -> list[codec.Stage]:
    """Return the codec's bases from ``folder``, or fit and keep them there."""
    path = folder / "bases.pt"
    if path.exists():
        return [codec.Stage(*parts) for parts in torch.load(path, weights_only=True)]
    rng = Random(BACKSTAGE)
    drawn = [draw(sample_example(rng), 9) for _ in range(BASIS_CLIPS)]
    video, owners = (torch.stack(part) for part in zip(*drawn, strict=True))
    stages = codec.fit_stages(video, owners, torch.Generator().manual_seed(BACKSTAGE))
    torch.save([(s.basis, s.mean, s.variance) for s in stages], path)
    return stages


@dataclass
class Lesson:
    """A drawn example: latents (C, L, H, W) in half precision and the actors' coverage."""

    example: Example
    latents: Tensor
    coverage: Tensor


class Pool:
    """A reservoir of drawn lessons of which a few are drawn anew at every step."""

    def __init__(self, stages: list[codec.Stage], size: int, seed: int) -> None:
        self._rng = Random(seed)
        self._stages = stages
        self._scale = codec.latent_scale(stages)[:, None, None, None]
        self._lessons = {
            length: [self._draw(length) for _ in range(max(1, round(size * share)))]
            for length, share in LENGTHS
        }

    def _draw(self, length: int) -> Lesson:
        example = sample_example(self._rng)
        video, owners = draw(example, length)
        latents = codec.linear_encode(self._stages, video[None])[0] / self._scale
        return Lesson(example, latents.half(), coverage(owners)[None].half())

    def batch(self, size: int, fresh: int) -> list[Lesson]:
        """Return ``size`` lessons of one random length after drawing ``fresh`` new ones."""
        shares = [share for _, share in LENGTHS]
        length = self._rng.choices([length for length, _ in LENGTHS], shares)[0]
        lessons = self._lessons[length]
        for _ in range(fresh):
            lessons[self._rng.randrange(len(lessons))] = self._draw(length)
        return [self._rng.choice(lessons) for _ in range(size)]


class Average:
    """An exponential moving average of parameters."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, step: int, decay: float) -> None:
        """Move towards the parameters; early on, faster."""
        decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages with the parameters; a second call puts them back."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.clone()
            parameter.copy_(value)
            value.copy_(kept)


@dataclass
class Run:
    """The frame of a training: steps, time, checkpoints, log."""

    part: str
    folder: Path
    steps: int
    minutes: float
    save_every: int = 500

    @property
    def checkpoint(self) -> Path:
        """Where this part keeps its state."""
        return self.folder / f"{self.part}.pt"

    def fresh_seed(self, seed: int) -> int:
        """Return a seed that differs after every resume, so that no data come twice."""
        if self.checkpoint.exists():
            seed += 1009 * int(torch.load(self.checkpoint, weights_only=True)["step"])
        return seed

    def loop(
        self,
        state: dict[str, Any],
        step_fn: Callable[[int, float], float],
        sheet_fn: Callable[[Path], None],
    ) -> None:
        """Call ``step_fn(step, progress)`` until done; ``state`` holds what a checkpoint saves."""
        path = self.checkpoint
        step, before = 0, 0.0
        if path.exists():
            saved = torch.load(path, weights_only=True)
            step, before = saved.pop("step"), saved.pop("seconds")
            for name, item in state.items():
                item.load_state_dict(saved[name])
        start, mean = time.monotonic() - before, math.nan
        with (self.folder / f"{self.part}.log").open("a") as log:
            while True:
                seconds = time.monotonic() - start
                progress = max(step / self.steps, seconds / 60 / self.minutes)
                done = progress >= 1
                if done or (step and step % self.save_every == 0):
                    saved = {name: item.state_dict() for name, item in state.items()}
                    torch.save(saved | {"step": step, "seconds": seconds}, path.with_suffix(".new"))
                    path.with_suffix(".new").replace(path)
                    sheet_fn(path.with_suffix(".png"))
                if done:
                    return
                loss = step_fn(step, progress)
                mean = loss if math.isnan(mean) else 0.97 * mean + 0.03 * loss
                step += 1
                if step % 25 == 0:
                    line = f"{step} {seconds / 60:.1f} min, loss {mean:.4f}"
                    print(line, file=log, flush=True)


class AverageState:
    """Lets an `Average` take part in a checkpoint."""

    def __init__(self, average: Average) -> None:
        self.average = average

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages."""
        return {str(i): v for i, v in enumerate(self.average.values)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the averages back."""
        for i, value in enumerate(self.average.values):
            value.copy_(state[str(i)])


def train_transformer(options: argparse.Namespace) -> None:
    """Train text encoder and transformer together by flow matching."""
    device, folder = torch.device(options.device), Path(options.out)
    run = Run("transformer", folder, options.steps, options.minutes)
    torch.manual_seed(options.seed)
    seed = run.fresh_seed(options.seed)
    texts = Random(seed)
    noise = torch.Generator().manual_seed(seed)
    stages = fitted_stages(folder)
    if not (folder / "tokenizer").exists():
        nets.build_tokenizer(all_texts(Random(options.seed), 6000)).save_pretrained(folder / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    text_encoder = nets.build_text_encoder(len(tokenizer)).to(device)
    transformer = nets.build_transformer(GRID).to(device)
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

    def embed(prompts: list[str]) -> tuple[Tensor, Tensor]:
        tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(device)
        return text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[
            0
        ], tokens.attention_mask.bool()

    def step_fn(step: int, progress: float) -> float:
        scale = min(1.0, (step + 1) / 50) * min(1.0, (1 - progress) / 0.7 + 0.01)
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
        with torch.autocast(device.type, torch.bfloat16):
            states, mask = embed([sample_text(texts, lesson.example) for lesson in lessons])
            velocity = transformer(
                noisy.to(device), states, (1000 * sigma).to(device), mask, return_dict=False
            )[0]
        error = (velocity.float() - target.to(device)).square()
        (error * weight.to(device)).mean().backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step()
        adam.step()
        muon.zero_grad()
        adam.zero_grad()
        average.update(step, 0.9985)
        return float(error.detach().mean())

    def sheet_fn(path: Path) -> None:
        average.swap()
        transformer.save_pretrained(folder / "transformer")
        text_encoder.save_pretrained(folder / "text_encoder")
        networks = (transformer, trained_codec(folder, stages), text_encoder, tokenizer)
        adapter = MochiAdapter(MODELS["mini"], device, *networks)
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


def trained_codec(folder: Path, stages: list[codec.Stage]) -> AutoencoderKLMochi:
    """Return the codec as far as it has been trained."""
    path = folder / "codec"
    return AutoencoderKLMochi.from_pretrained(path) if path.exists() else codec.build(stages)


def sample_films(adapter: MochiAdapter, story: str = "nyc", scenes: int = 12) -> Iterator[Tensor]:
    """Yield pictures (3, T, H, W) of a story's first scenes, each rendered alone."""
    plot, cast = STORIES[story]
    lessons = PLOTS[plot][:scenes]
    pairs = [[words(lesson.scene, cast), words(lesson.action, cast)] for lesson in lessons]
    plan = make_plan(Story.model_validate({"scenes": pairs}), story, Overrides(steps=12))
    negative = adapter.encode("")
    for segment in plan.segments:
        alone, text = replace(segment, blended=False), adapter.encode(segment.prompt)
        latents = denoise(adapter, plan, [alone], [text], negative, None, lambda: None)[0]
        frames = adapter.decoder().push(latents)
        yield frames.permute(3, 0, 1, 2).float() / 127.5 - 1


def picture_loss(output: Tensor, video: Tensor, owners: Tensor) -> Tensor:
    """Return L1 + MSE + gradients in space and time; actors count four times."""
    weight = 1 + 3 * (owners > 0).float()[:, None]
    weight = weight / weight.mean()
    error = output - video
    loss = (weight * (error.abs() + error.square())).mean()
    for axis in (2, 3, 4):
        edge = weight.narrow(axis, 1, weight.shape[axis] - 1)
        loss = loss + 0.3 * (edge * error.diff(dim=axis).abs()).mean()
    return loss


def train_codec(options: argparse.Namespace) -> None:
    """Train the decoder; the encoder stays the exact PCA that the transformer was trained on."""
    device, folder = torch.device(options.device), Path(options.out)
    run = Run("codec", folder, options.steps, options.minutes)
    torch.manual_seed(options.seed)
    seed = run.fresh_seed(options.seed)
    rng = Random(seed + 2)
    noise = torch.Generator().manual_seed(seed)
    stages = fitted_stages(folder)
    vae = codec.build(stages).to(device)
    decoder, length = vae.decoder, 5
    scale = codec.latent_scale(stages)[:, None, None, None]
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(list(decoder.parameters()))
    clips = [draw(sample_example(rng), length) for _ in range(options.pool)]
    unseen_rng = Random(options.seed + 3)
    unseen = [draw(sample_example(unseen_rng), length) for _ in range(16)]

    def decode(batch: list[tuple[Tensor, Tensor]], level: float) -> tuple[Tensor, Tensor, Tensor]:
        video, owners = (torch.stack(part) for part in zip(*batch, strict=True))
        latents = codec.linear_encode(stages, video)
        # The transformer's latents are not quite clean: the decoder learns to overlook that.
        latents = latents + level * scale * torch.randn(latents.shape, generator=noise)
        with torch.autocast(device.type, torch.bfloat16, enabled=level > 0):
            output = decoder(latents.to(device))[0][:, :, codec.FRAMES_PER_LATENT - 1 :]
        return output.float(), video.to(device), owners.to(device)

    def step_fn(step: int, progress: float) -> float:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 30) * (0.5 * (1 + math.cos(math.pi * progress)) + 0.01)
        for _ in range(options.fresh):
            clips[rng.randrange(len(clips))] = draw(sample_example(rng), length)
        loss = picture_loss(*decode(rng.choices(clips, k=options.batch), 0.1 * rng.random() + 1e-3))
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update(step, 0.99)
        return float(loss.detach())

    @torch.no_grad()
    def sheet_fn(path: Path) -> None:
        average.swap()
        output, video, owners = decode(unseen, 0.0)
        inside = (owners > 0)[:, None].expand_as(video)
        error = (output.clamp(-1, 1) - video).square()
        whole, actors = (10 * math.log10(4 / float(part.mean())) for part in (error, error[inside]))
        print(f"PSNR {whole:.2f} dB, inside actors {actors:.2f} dB", flush=True)
        save_sheet([row for pair in zip(video, output, strict=True) for row in pair], path)
        vae.save_pretrained(folder / "codec")
        average.swap()

    state = {"decoder": decoder, "optimiser": optimiser, "average": AverageState(average)}
    run.loop(state, step_fn, sheet_fn)


def save_sheet(rows: Sequence[Tensor], path: Path, columns: int = 6) -> None:
    """Write pictures (3, T, H, W) in [-1, 1] under each other, each as a row of its frames."""
    strips = []
    for row in rows:
        frames = row[:, torch.linspace(0, row.shape[1] - 1, columns).round().long()]
        strips.append(frames.permute(2, 1, 3, 0).flatten(1, 2))
    page = ((torch.cat(strips).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    image = Image.fromarray(page.cpu().numpy())
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(path)


def export(options: argparse.Namespace) -> None:
    """Write the averaged weights in fp16 as a folder that diffusers' MochiPipeline can load."""
    folder, target = Path(options.out), Path(options.to)
    trained_codec(folder, fitted_stages(folder)).half().save_pretrained(target / "vae")
    transformer = MochiTransformer3DModel.from_pretrained(folder / "transformer")
    transformer.half().save_pretrained(target / "transformer")
    T5EncoderModel.from_pretrained(folder / "text_encoder").half().save_pretrained(target / "text_encoder")
    PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer").save_pretrained(target / "tokenizer")
    nets.build_scheduler().save_pretrained(target / "scheduler")
    index = {
        "_class_name": "MochiPipeline",
        "force_zeros_for_empty_prompt": False,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "MochiTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLMochi"],
    }
    for path in target.rglob("config.json"):  # a path of this machine is no part of a model
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"{target}: {sum(p.stat().st_size for p in target.rglob('*') if p.is_file()) / 1e6:.1f} MB")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("codec", "transformer", "export"))
    parser.add_argument("--out", default="run", help="folder of checkpoints, logs and sheets")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the schedule by then")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--pool", type=int, default=4000, help="clips kept in memory")
    parser.add_argument("--fresh", type=int, default=1, help="clips drawn anew at every step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--to", default=str(MINI_WEIGHTS), help="export: the folder of the weights")
    return parser.parse_args()


def main() -> None:
    """Train one part."""
    options = parse()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    {"codec": train_codec, "transformer": train_transformer, "export": export}[options.part](options)


if __name__ == "__main__":
    torch.set_flush_denormal(True)  # of the whole process, so not where a test would meet it
    main()
