"""The training of the text-image encoder: pictures against captions, contrastively."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from storyreel.mini import nets
from storyreel.mini.lessons import ALL_PAIRS, FPS, HEIGHT, WIDTH, Example, sample_example
from storyreel.mini.world import (
    DOOR_ACTIONS,
    Action,
    Character,
    Clip,
    Place,
    Stage,
    caption,
    sample_clip,
    stage_clip,
)
from storyreel.models.scorer import Scorer
from storyreel.story.plan import joined_prompt

from .loop import Average, AverageState, Muon, Run, autocast, cosine, in_bf16
from .transformer import fitted_tokenizer

GROUP = 12  # clips that differ in one thing from the first of them
PICTURES = 3
SECONDS = 2.0
MEAN = STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Pairing:
    """Pictures uint8 (N, H, W, 3) of one clip, a text, and what the text says of the clip.

    ``says`` holds those of "who", "where" and "what" that the text fixes.
    """

    clip: Clip
    pictures: Tensor
    text: str
    says: frozenset[str]

    def fits(self, other: Clip) -> bool:
        """Tell whether the text is true of another clip too."""
        ours, theirs = facts(self.clip), facts(other)
        return all(ours[key] == theirs[key] for key in self.says)


def facts(clip: Clip) -> dict[str, object]:
    """Return who, where and what of a clip."""
    who = tuple(actor.character for actor in clip.actors)
    return {"who": who, "where": clip.place, "what": (clip.action, clip.ball)}


def told(rng: Random, example: Example) -> tuple[str, frozenset[str]]:
    """Draw a text for an example and what it fixes."""
    kind = rng.random()
    if example.scene and (kind < 0.3 or not example.speaks_alone):
        if kind < 0.28:
            return joined_prompt(example.scene, example.action), frozenset(("who", "where", "what"))
        return example.scene, frozenset(("who", "where"))
    if kind < 0.8 or not example.scene or example.clip.ball or example.clip.action in DOOR_ACTIONS:
        return example.action, frozenset(("who", "what"))
    return caption(rng, example.clip, "both"), frozenset(("who", "where", "what"))


def varied(rng: Random, clip: Clip) -> Clip:
    """Return a clip with another place, other characters or another action than ``clip``."""
    who, place, action = tuple(a.character for a in clip.actors), clip.place, clip.action
    for _ in range(20):
        changed = rng.random()
        try:
            if changed < 0.8:
                other = rng.choice(tuple(Action))
                return stage_clip(rng, place, who, other)
            if changed < 0.9:
                cast = (rng.choice(tuple(Character)),) if len(who) == 1 else rng.choice(ALL_PAIRS)
                return stage_clip(rng, place, cast, action)
            return stage_clip(rng, rng.choice(tuple(Place)), who, action)
        except (ValueError, KeyError):
            continue
    return stage_clip(rng, place, who, sample_clip(rng, place, who).action)


def pictures(rng: Random, clip: Clip, count: int = PICTURES) -> Tensor:
    """Draw pictures at times spread over a clip, uint8 (N, H, W, 3)."""
    stage = Stage(clip, WIDTH, HEIGHT)
    times = [(i + rng.random()) * SECONDS / count for i in range(count)]
    return torch.stack([torch.from_numpy(stage.frame(round(t * FPS) / FPS)[0]) for t in times])


def sample_group(rng: Random) -> list[Pairing]:
    """Draw an example and others that differ from it in one thing: hard to tell apart."""
    first = sample_example(rng)
    others = [varied(rng, first.clip) for _ in range(GROUP - 1)]
    examples = [first]
    for clip in others:
        alone = clip.action not in DOOR_ACTIONS
        examples.append(Example(clip, caption(rng, clip, "scene"), caption(rng, clip, "action"), alone))
    return [Pairing(e.clip, pictures(rng, e.clip), *told(rng, e)) for e in examples]


def blurred(images: Tensor, rng: Random, noise: torch.Generator) -> Tensor:
    """Blur and speckle pictures (N, 3, H, W): previews of a half-denoised clip look like that."""
    if rng.random() < 0.6:
        size = images.shape[2:]
        small = F.interpolate(images, scale_factor=rng.uniform(0.25, 0.9), mode="area")
        images = F.interpolate(small, size, mode="bilinear", align_corners=False)
    return images + torch.randn(images.shape, generator=noise) * rng.uniform(0.0, 0.12)


def contrast(scores: Tensor, fits: Tensor) -> Tensor:
    """Return the cross-entropy of scores (clips, texts) in both directions; several may fit."""
    share = fits.float()
    by_clip = (share / share.sum(1, keepdim=True).clamp_min(1) * scores.log_softmax(1)).sum(1)
    by_text = (share / share.sum(0, keepdim=True).clamp_min(1) * scores.log_softmax(0)).sum(0)
    return -(by_clip.mean() + by_text.mean()) / 2


def scorer_network(folder: Path, vocabulary: int) -> CLIPModel:
    """Return the text-image encoder from ``folder``, or a new one."""
    if not (folder / "scorer").exists():
        return nets.build_clip(vocabulary)
    return CLIPModel.from_pretrained(folder / "scorer", local_files_only=True).float()


def train_scorer(options: argparse.Namespace) -> None:
    """Train the text-image encoder on groups of clips that are hard to tell apart."""
    device, folder = torch.device(options.device), Path(options.out)
    run = Run("scorer", folder, options.steps, options.minutes)
    torch.manual_seed(options.seed)
    seed = run.fresh_seed(options.seed + 5)
    rng, noise = Random(seed), torch.Generator().manual_seed(seed)
    tokenizer = fitted_tokenizer(folder, options.seed)
    model = scorer_network(folder, len(tokenizer)).to(device)
    scorer = Scorer(model, tokenizer, MEAN, STD)
    model.train()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = Muon(matrices, lr=4.4e-3, weight_decay=0.1, bf16=in_bf16(device, options.precision))
    adam = torch.optim.AdamW(rest, lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.0)
    rates = [(group, group["lr"]) for optimiser in (muon, adam) for group in optimiser.param_groups]
    average = Average(list(model.parameters()))
    pool = [sample_group(rng) for _ in range(max(2, min(options.pool, 3000) // GROUP))]

    def step_fn(step: int, progress: float) -> float:
        for rated, rate in rates:
            rated["lr"] = options.rate * rate * min(1.0, (step + 1) / 50) * cosine(progress)
        for _ in range(options.fresh):
            pool[rng.randrange(len(pool))] = sample_group(rng)
        batch = [p for group in rng.choices(pool, k=max(1, options.batch // GROUP)) for p in group]
        images = torch.cat([p.pictures for p in batch]).permute(0, 3, 1, 2).float() / 127.5 - 1
        fits = torch.tensor([[p.fits(q.clip) for p in batch] for q in batch], device=device)
        with autocast(device, options.precision):
            seen = scorer.embed_pictures(blurred(images, rng, noise).to(device))
            said = scorer.embed_texts([p.text for p in batch])
        seen = seen.view(len(batch), PICTURES, -1).mean(1)
        loss = contrast(model.logit_scale.exp().clamp(max=100) * seen @ said.T, fits)
        loss.backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        muon.step()
        adam.step()
        muon.zero_grad()
        adam.zero_grad()
        average.update(step, 0.995)
        return float(loss.detach())

    def save_fn(_: Path) -> None:
        average.swap()
        model.save_pretrained(folder / "scorer")
        tokenizer.save_pretrained(folder / "scorer")
        config = {"image_mean": MEAN, "image_std": STD, "size": nets.CLIP_IMAGE}
        (folder / "scorer" / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")
        average.swap()

    state = {"model": model, "muon": muon, "adam": adam, "average": AverageState(average)}
    run.loop(state, step_fn, save_fn)
