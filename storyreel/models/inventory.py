"""What must lie in a model's folder before it is loaded: seen at once, without torch, and unread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from storyreel.errors import DamagedError, MissingError
from storyreel.files import read_json
from storyreel.models.specs import COMPONENTS, ModelSpec

_WITHOUT_WEIGHTS = ("scheduler", "tokenizer")
INDEX = ".safetensors.index.json"
_WEIGHTS = (".safetensors", ".json")
# No pickle, no code; of chat templates (.jinja) transformers makes text in a sandbox.
KINDS = (*_WEIGHTS, ".jinja", ".model", ".txt")
OURS = "scorer"  # a component that no pipeline has
PREVIEW = "preview.safetensors"  # beside the components, where a model has one


def check_inventory(spec: ModelSpec) -> None:
    """Raise MissingError or DamagedError if a part of a model, or of its scorer, is not there."""
    folder = spec.weights
    if not any(path.suffix == ".safetensors" for path in weight_files(spec)):
        raise MissingError(f"there are no weights in {folder}", spec.remedy)
    index = _json(spec, folder / "model_index.json")
    wanted = [name for name in index if name in spec.components and _has_class(index[name])]
    for part in [folder / name for name in wanted] + [f for f in [folder / "scorer"] if f.exists()]:
        if not part.is_dir() or not any(part.iterdir()):
            raise MissingError(f"there is no {part.name} in {folder}", spec.remedy)
        if not part.name.startswith(_WITHOUT_WEIGHTS):
            _check_weights(spec, part)
    for added in spec.added:
        if not added.lora.path.is_file():
            words = f"{added.file}, which makes {spec.name} of {spec.base}, is not here"
            raise MissingError(words, f"Run: storyreel pull {spec.name}")


def weight_files(spec: ModelSpec) -> list[Path]:
    """Return the files that are read of a model, whatever else lies in its folder.

    Raises MissingError without any, DamagedError for what is no file.
    """
    folder, parts = spec.weights, (*spec.components, OURS)
    found = [path for part in parts for path in (folder / part).glob("*")]
    names = [
        path.relative_to(folder).as_posix() for path in (*found, *folder.glob("*.json"), folder / PREVIEW)
    ]
    read = [name for name in names if name == PREVIEW] + needed(names, spec.variant, parts)
    files = sorted(path for name in read if (path := folder / name).exists() or path.is_symlink())
    if not any(path.suffix in _WEIGHTS for path in files):
        raise MissingError(f"the weights of model {spec.name} are not here", spec.remedy)
    for path in files:
        if not path.is_file():  # a pipe would never end
            raise DamagedError(f"{path} is no file, or a link that leads nowhere", spec.remedy)
    return files


def needed(names: Sequence[str], variant: str | None, components: Sequence[str] = COMPONENTS) -> list[str]:
    """Return the files that loading a pipeline reads; of a component in several precisions, one."""
    chosen = []
    for name in names:
        path = PurePosixPath(name)
        inside = len(path.parts) == 2 and path.parts[0] in components and path.suffix in KINDS
        if name == "model_index.json" or (inside and ".." not in path.parts):
            chosen.append(name)
    weights = [name for name in chosen if ".safetensors" in name]
    special = {name for name in weights if variant and f".{variant}" in PurePosixPath(name).name}
    replaced = {PurePosixPath(name).parent for name in special}
    plain = {name for name in weights if name not in special and PurePosixPath(name).parent not in replaced}
    ours = special | {name for name in plain if not of_another_variant(name)}
    return [name for name in chosen if name not in weights or name in ours]


def of_another_variant(name: str) -> bool:
    """Tell whether a file of weights is in a precision of its own."""
    return re.search(r"\.(fp16|bf16|fp32)[.-]", PurePosixPath(name).name) is not None


def shapes_of(folder: Path, variant: str | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a component's weights, by the headers of its files alone.

    Nothing where they cannot be read, whatever it is: who reads the component will tell. A ``variant`` counts
    where there is one.
    """
    if variant is not None and not any(folder.glob(f"*.{variant}*.safetensors")):
        variant = None
    index = INDEX if variant is None else INDEX.replace(".json", f".{variant}.json")
    files = sorted(folder.glob("*.safetensors" if variant is None else f"*.{variant}.safetensors"))
    from safetensors import safe_open  # not for the first answers of a command

    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for path in folder.glob(f"*{index}"):
            files = sorted({folder / name for name in read_json(path)["weight_map"].values()})
        for path in files:
            with safe_open(path, "np") as content:  # which refuses files that are cut short
                names = content.keys()
                shapes |= {name: tuple(content.get_slice(name).get_shape()) for name in names}
    except Exception:
        return {}
    return shapes


def _has_class(kind: object) -> bool:
    """Tell whether an entry of model_index.json is [library, class]; without such a part, both are null."""
    return isinstance(kind, list) and any(kind)


def _check_weights(spec: ModelSpec, part: Path) -> None:
    """Raise MissingError if a part has no weights, or not all of the files that its index names."""
    variant = (
        f".{spec.variant}." if spec.variant and any(part.glob(f"*.{spec.variant}*.safetensors")) else "."
    )
    for index in part.glob(f"*{INDEX.replace('.index.', f'.index{variant}')}"):
        shards = _json(spec, index).get("weight_map")
        for name in sorted({str(shard) for shard in shards.values()} if isinstance(shards, dict) else ()):
            if not (part / name).is_file():
                raise MissingError(f"there is no {name} in {part}", spec.remedy)
    if not any(path.is_file() for path in part.glob("*.safetensors")):
        raise MissingError(f"there are no weights in {part}", spec.remedy)


def _json(spec: ModelSpec, path: Path) -> dict[str, object]:
    """Return what a file of settings holds, nothing if there is none."""
    if not path.exists() and not path.is_symlink():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} cannot be read: {error}", spec.remedy) from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path} holds no settings", spec.remedy)
    return content
