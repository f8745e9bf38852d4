"""What a LoRA's file holds, and whether it fits a model: by the headers of both alone, without torch.

A file names the layers that it changes as diffusers does, or as the model's authors do, with dots or, as
kohya's tools, with underscores instead. diffusers' own converters are not used: they leave out differences of
norms, of modulations and of some biases without a word, fail for files that leave out a layer, and need the
data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from storyreel.models.inventory import shapes_of
from storyreel.models.lora import Lora
from storyreel.models.specs import ModelSpec

Shape = tuple[int, ...]
ScaleOf = Callable[[str, int], float]  # of a layer and a rank

NAMED = 3  # of what does not fit, so many are named
METADATA = "lora_adapter_metadata"  # peft's configuration, in files that diffusers has saved
PREFIXES = ("", "transformer.", "diffusion_model.", "model.diffusion_model.", "lora_unet_", "lora_unet__")
# How keys end, and what that is of a layer: two matrices with their scale, or a difference as it is.
ENDS = {
    **dict.fromkeys((".lora_A.weight", ".lora_A.default.weight", ".lora_down.weight"), "down"),
    **dict.fromkeys((".lora_B.weight", ".lora_B.default.weight", ".lora_up.weight"), "up"),
    ".lora_B.bias": "bias of up",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
    ".diff_m": "modulation",
}
# What is no LoRA, though files of it are called one; by parts of their keys.
OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lokr_": "LoKr",
    "hada_": "LoHa",
    "oft_": "OFT",
}
# Of one layer, what its numbers may be; an alpha may be any.
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
# How the layers of text encoders begin, in diffusers' files, kohya's and those of ComfyUI.
TEXT_ENCODERS = re.compile(r"text_(encoder|model)|lora_te|te\d?[._]|(cond_stage_model|conditioner)\.")


class UnfitError(ValueError):
    """A file is no LoRA, or not one of this model."""


@dataclass(frozen=True)
class Change:
    """How a file changes one parameter, the ``target``: by its keys.

    It adds ``scale`` times the product of ``up`` and ``down``, or the ``difference``. With ``alpha``, the
    scale is that key's value over the ``rank``.
    """

    target: str
    up: str = ""
    down: str = ""
    difference: str = ""
    alpha: str = ""
    rank: int = 1
    scale: float = 1.0


def lora_problem(lora: Lora, spec: ModelSpec) -> str | None:
    """Return why a LoRA cannot be merged into a model; None if it can.

    Without the model's weights only what the file itself shows is found (`is_fit_known`).
    """
    try:
        if not lora.path.exists():
            return f"there is no LoRA {lora.path}"
        check_file(lora.path)
        if lora.experts != "all" and spec.boundary_ratio is None:
            words = f"model {spec.name} has one transformer for all noise levels"
            return f"{words}; leave out that {lora.path.name} is for {lora.experts} ones"
        for model in _models(lora, spec):
            if model:
                changes_of(lora.path, model, spec.authors_names)
    except UnfitError as error:
        return f"the LoRA {lora.path.name} does not fit model {spec.name}: {error}"
    except OSError as error:
        return f"the LoRA {lora.path} cannot be read: {error.strerror or error}"
    return None


def is_fit_known(lora: Lora, spec: ModelSpec) -> bool:
    """Tell whether the weights that a LoRA changes are here, so that its fit could be looked at."""
    return all(_models(lora, spec))


def _models(lora: Lora, spec: ModelSpec) -> Iterator[Mapping[str, Shape]]:
    """Yield the shapes of each transformer that a LoRA changes; none for one that is not here."""
    folders = ("transformer",) if spec.boundary_ratio is None else ("transformer", "transformer_2")
    for expert, name in enumerate(folders):
        if lora.changes(expert):
            folder = spec.weights / name
            yield shapes_of(folder, spec.variant) if folder.is_dir() else {}


def check_file(path: Path) -> None:
    """Raise UnfitError for what is wrong with a file, whatever the model; OSError if it cannot be read."""
    shapes, metadata = header(path)
    scale = _scale_of(metadata)
    for name, keys in _by_layer(shapes).items():
        for _ in _changes(name, keys, shapes, {}, scale):
            pass
    if odd := [key for key in shapes if not _end(key)]:
        raise UnfitError(f"beside layers, it has what is of no LoRA: {_named(odd)}")


def header(path: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    """Return the shapes of a LoRA's tensors, and what else its header says. Raises UnfitError or OSError."""
    from safetensors import SafetensorError, safe_open  # not for stories without

    with path.open("rb"):  # it says why, where that fails
        pass
    try:
        with safe_open(path, "np") as content:
            slices = {name: content.get_slice(name) for name in content.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            kinds = {name: str(part.get_dtype()) for name, part in slices.items()}
            metadata = dict(content.metadata() or {})
    except (SafetensorError, ValueError) as error:
        raise UnfitError(f"it cannot be read as safetensors, and nothing else is read ({error})") from None
    for key in shapes:
        for part, kind in OTHERS.items():
            if part in key:
                raise UnfitError(f"it is a {kind}, of which no merging is known here: {key}")
    if not any(map(_end, shapes)):
        raise UnfitError(f"it is no LoRA: {f'it has {_named(shapes)}' if shapes else 'it is empty'}")
    if texts := [key for key in shapes if TEXT_ENCODERS.match(key)]:
        raise UnfitError(f"it changes a text encoder, which is not done here: {_named(texts)}")
    if whole := [
        key for key, kind in kinds.items() if kind not in FLOATS and _end(key) not in ("", ".alpha")
    ]:
        words = f"its numbers are {kinds[whole[0]]}, not floating point: {_named(whole)}"
        raise UnfitError(f"{words}; such files need a scale that is not read here")
    return shapes, metadata


def changes_of(
    path: Path, model: Mapping[str, Shape], authors_names: Sequence[tuple[str, str]] = ()
) -> list[Change]:
    """Return what a file changes in a transformer that has parameters of the shapes ``model``.

    ``authors_names`` as in `ModelSpec`. Raises UnfitError, or OSError for a file that cannot be read.
    """
    shapes, metadata = header(path)
    targets, scale = _targets(model, authors_names), _scale_of(metadata)
    found, unknown, unfit = list[Change](), list[str](), list[str]()
    for name, keys in _by_layer(shapes).items():
        for change, shape in _changes(name, keys, shapes, targets, scale):
            if change.target not in model:
                unknown += [key for key in (change.down, change.up, change.difference) if key]
            elif not _fits(shape, model[change.target]):
                unfit.append(
                    f"{change.target} is {_words(model[change.target])}, in the file {_words(shape)}"
                )
            else:
                found.append(change)
    unknown += [key for key in shapes if not _end(key)]
    if unknown:
        raise UnfitError(f"the model has nothing by the names of {_named(unknown)}")
    if unfit:
        raise UnfitError(f"sizes differ: {_named(unfit)}")
    return found


def _end(key: str) -> str:
    return next((end for end in ENDS if key.endswith(end)), "")


def _by_layer(shapes: Mapping[str, Shape]) -> dict[str, dict[str, str]]:
    """Return the keys of a file by the names of their layers, and by what they are of one."""
    layers: dict[str, dict[str, str]] = {}
    for key in shapes:
        if end := _end(key):
            layers.setdefault(key.removesuffix(end), {})[ENDS[end]] = key
    return layers


def _targets(model: Mapping[str, Shape], authors_names: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the parameters of a model by all names that a file may have for their layers.

    A weight has its layer's name; what is no weight of a layer, such as a table, has its own.
    """
    targets = {}
    for parameter in model:
        name = authors = parameter.removesuffix(".weight")
        for ours, theirs in authors_names:
            authors = authors.replace(ours, theirs)
        for known in (name, authors):
            targets[known] = targets[known.replace(".", "_")] = parameter
    return targets


def _changes(
    name: str,
    keys: Mapping[str, str],
    shapes: Mapping[str, Shape],
    targets: Mapping[str, str],
    scale_of: ScaleOf,
) -> Iterator[tuple[Change, Shape]]:
    """Yield the changes of a layer, each with the shape that it has; a target may be unknown.

    Raises UnfitError for what makes no change of any model.
    """
    weight = _target(name, targets)
    layer = weight.removesuffix(".weight")
    up, down, alpha = (keys.get(part, "") for part in ("up", "down", "alpha"))
    if bool(up) != bool(down):
        raise UnfitError(f"a matrix without its other one: {up or down}")
    if not up and (single := alpha or keys.get("bias of up")):
        raise UnfitError(f"it belongs to matrices that are not there: {single}")
    if alpha and math.prod(shapes[alpha]) != 1:
        raise UnfitError(f"{alpha} is no single number")
    if up:
        rank = _rank(up, down, shapes)
        scale = 1.0 if alpha else scale_of(layer, rank)
        product = Change(weight, up, down, alpha=alpha, rank=rank, scale=scale)
        yield product, (shapes[up][0], *shapes[down][1:])
        if bias := keys.get("bias of up"):  # the matrices' scale counts for it too
            yield replace(product, target=f"{layer}.bias", up="", down="", difference=bias), shapes[bias]
    for part, target in (
        ("weight", weight),
        ("bias", f"{layer}.bias"),
        ("modulation", _target(f"{name}.modulation", targets)),
    ):
        if difference := keys.get(part):
            yield Change(target, difference=difference), shapes[difference]


def _target(name: str, targets: Mapping[str, str]) -> str:
    """Return the parameter that a name in a file is for; the name itself where there is none."""
    names = (name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix))
    return next((targets[known] for known in names if known in targets), name)


def _rank(up: str, down: str, shapes: Mapping[str, Shape]) -> int:
    """Return the rank of two matrices. Raises UnfitError if they have none in common."""
    (out, *inner), (rank, *wide) = shapes[up] or (0,), shapes[down] or (0,)
    if not (out and rank and inner and wide and math.prod(inner) == rank):
        raise UnfitError(
            f"the ranks of {up}, {_words(shapes[up])}, and {down}, {_words(shapes[down])}, differ"
        )
    return rank


def _fits(shape: Shape, wanted: Shape) -> bool:
    """Tell whether a change has a parameter's shape; that of a convolution may be a matrix."""
    return shape[:1] == wanted[:1] and math.prod(shape[1:]) == math.prod(wanted[1:])


def _scale_of(metadata: Mapping[str, str]) -> ScaleOf:
    """Return a function (layer, rank) that returns the scale of matrices without an alpha of their own.

    That is 1, unless the file has peft's configuration, as diffusers saves it.
    """
    try:
        config = json.loads(metadata.get(METADATA, "{}"))
        config = {name.removeprefix("transformer."): value for name, value in config.items()}
        usual = None if config.get("lora_alpha") is None else float(config["lora_alpha"])
        others = {str(name): float(value) for name, value in (config.get("alpha_pattern") or {}).items()}
        rooted = bool(config.get("use_rslora"))
        kind = "DoRA" if config.get("use_dora") else ""
    except (ValueError, TypeError, AttributeError) as error:
        raise UnfitError(f"what it says of itself as {METADATA} makes no sense ({error})") from None
    if not all(map(math.isfinite, [*others.values(), usual or 0.0])):
        raise UnfitError(f"an alpha in {METADATA} is no finite number")
    if kind:
        raise UnfitError(f"it is a {kind}, of which no merging is known here")

    def scale(layer: str, rank: int) -> float:
        named = (alpha for name, alpha in others.items() if re.match(rf"(.*\.)?({name})$", layer))
        alpha = next(named, usual)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if rooted else rank)

    return scale


def _words(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a number"


def _named(what: Iterable[str]) -> str:
    found: Collection[str] = dict.fromkeys(what)
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join([*found][:NAMED]) + more
