"""The trained parts as one folder of fp16 weights, and the way back."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLMochi, MochiTransformer3DModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, PreTrainedTokenizerFast, T5EncoderModel

from storyreel.errors import UsageError
from storyreel.mini import codec, nets
from storyreel.mini.judge import WEIGHTS
from storyreel.models.checksums import write_checksums
from storyreel.models.inventory import PREVIEW

from .clips import BACKSTAGE, CALIBRATION_CLIPS, drawn_videos, trained_codec

INDEX = {
    "_class_name": "MochiPipeline",
    "force_zeros_for_empty_prompt": False,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "MochiTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLMochi"],
}


def export(options: argparse.Namespace) -> None:
    """Write the averaged weights in fp16 as a folder that diffusers' MochiPipeline can load.

    The text-image encoder lies in it, the judge beside it, if they have been trained.
    """
    folder, target = Path(options.out), Path(options.to)
    target.mkdir(parents=True, exist_ok=True)
    vae = trained_codec(folder)
    preview = codec.fit_preview(vae, drawn_videos(BACKSTAGE, min(options.pool, CALIBRATION_CLIPS), 3)[0])
    save_file({key: value.half() for key, value in preview.items()}, target / PREVIEW)
    vae.half().save_pretrained(target / "vae")
    transformer = MochiTransformer3DModel.from_pretrained(folder / "transformer", local_files_only=True)
    transformer.half().save_pretrained(target / "transformer")
    T5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True).half().save_pretrained(
        target / "text_encoder"
    )
    PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", local_files_only=True).save_pretrained(
        target / "tokenizer"
    )
    nets.build_scheduler().save_pretrained(target / "scheduler")
    if (folder / "scorer").exists():
        shutil.copytree(folder / "scorer", target / "scorer", dirs_exist_ok=True)
        CLIPModel.from_pretrained(folder / "scorer", local_files_only=True).half().save_pretrained(
            target / "scorer"
        )
    if (folder / WEIGHTS.name).exists():
        judge = {name: value.half() for name, value in load_file(folder / WEIGHTS.name).items()}
        save_file(judge, target.parent / WEIGHTS.name)
    for path in target.rglob("config.json"):  # a path of this machine is no part of a model
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (target / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    write_checksums(target)
    print(f"{target}: {sum(p.stat().st_size for p in target.rglob('*') if p.is_file()) / 1e6:.1f} MB")


def import_weights(options: argparse.Namespace) -> None:
    """Begin a run with exported weights, so that training goes on from them.

    Their tokenizer is kept; every part starts anew with its optimiser. Raises UsageError for a run with
    checkpoints: training would go on from those.
    """
    source, folder = Path(options.to), Path(options.out)
    if begun := sorted(path.name for path in folder.glob("*.pt")):
        raise UsageError(
            f"{folder} is the folder of a training: {', '.join(begun)}", "Import into another --out."
        )
    vae = AutoencoderKLMochi.from_pretrained(source / "vae", local_files_only=True, torch_dtype=torch.float32)
    vae.save_pretrained(folder / "codec")
    transformer = MochiTransformer3DModel.from_pretrained(source / "transformer", local_files_only=True)
    transformer.float().save_pretrained(folder / "transformer")
    T5EncoderModel.from_pretrained(source / "text_encoder", local_files_only=True).float().save_pretrained(
        folder / "text_encoder"
    )
    PreTrainedTokenizerFast.from_pretrained(source / "tokenizer", local_files_only=True).save_pretrained(
        folder / "tokenizer"
    )
    if (source / "scorer").exists():
        shutil.copytree(source / "scorer", folder / "scorer", dirs_exist_ok=True)
    if (judge := source.parent / WEIGHTS.name).exists():
        shutil.copy(judge, folder)
