"""What can be chosen about the method, with its defaults: `render.method` of a story."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from storyreel import plugins
from storyreel.errors import StoryreelError

BLENDINGS = ("lead", "continuation", "crossfade", "published", "none")
PLUGGED = {"blending": "blendings", "levels": "schedulers", "scorer": "scorers"}  # settings, with their kinds


def _known(name: str, info: ValidationInfo) -> str:
    """Return a name that storyreel or a plugin has for a setting, the plugin's object tried out."""
    kind, own = PLUGGED[str(info.field_name)], OWN[str(info.field_name)]
    try:
        plugin = plugins.offered(kind, own).get(name)
        if plugin is not None:
            plugin.function()
    except StoryreelError as error:
        words = f"{error.message}. {error.remedy}".rstrip(". ")
        raise PydanticCustomError("plugin", "{words}", {"words": words}) from None
    if plugin is None and name not in own:
        raise PydanticCustomError("unknown", "unknown name {name}", {"name": name})
    return name


def _is_none(value: object) -> bool:
    return value is None


OWN: dict[str, tuple[str, ...]] = {"blending": BLENDINGS, "levels": (), "scorer": ()}
Blending = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"anyOf": [{"enum": list(BLENDINGS)}, {"type": "string", "minLength": 1}]}),
]
Plugged = Annotated[str, AfterValidator(_known)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
PARTS = ("dipw", "twb", "identity", "sar")


def _are_usual(value: object) -> bool:
    return value in (None, "shots")  # films of before keep their keys


class Method(BaseModel):
    """How segments become one film, and how the two prompts of a scene are weighed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    weighting: bool | Literal["texts"] | None = Field(
        default=None,
        description="DIPW: weigh the words of scene and action in every step; texts weighs two prompts side "
        "by side, as the paper does; false leaves the joined prompt as it is. Default: the model's.",
    )
    emphasis: float | None = Field(
        default=None,
        ge=1,
        le=100,
        allow_inf_nan=False,
        description="How often a word counts whose prompt has all of the weight. Default: the model's.",
    )
    blending: Blending = Field(
        default="lead",
        description="TWB: lead begins a segment with what it shares with earlier ones, continuation with all "
        "of the one before whatever the place, crossfade is an editor's over segments that know nothing of "
        "each other, published is the paper's one-shot form, none leaves the segments to themselves. A "
        "plugin's name is lead with its formula.",
    )
    prompt: Literal["joined", "scene"] = Field(
        default="joined", description="What is told: both prompts in one text, or the scene's alone."
    )
    similarity: bool = Field(
        default=True, description="SAR: segments of similar actions share a shorter overlap."
    )
    identity: bool = Field(
        default=True,
        description="Segments begin with their characters as the first scene that shows them has them; "
        "portraits says which.",
    )
    portraits: Literal["shots", "scenes"] | None = Field(
        default=None,
        exclude_if=_are_usual,
        description="Which segments do: shots, those that begin a shot, or into which somebody from an "
        "earlier scene comes; scenes, all. Default: the model's.",
    )
    identity_weight: float | None = Field(
        default=None,
        ge=1,
        le=100,
        allow_inf_nan=False,
        exclude_if=_is_none,
        description="How often what shows a character as first shown counts in the attention of a segment. "
        "Default: the model's; not every model can weigh it.",
    )
    overlap: int | None = Field(
        default=None, ge=1, le=64, description="Longest overlap in latent frames. Default: the model's."
    )
    strength: Share = Field(default=1.0, description="α, the strength of blending.")
    lead_noise: Share = Field(
        default=0.2,
        description="The noise level at which a lead is shown, as a share of the segment's own: what is "
        "known already may be seen clearer than what is still to be found.",
    )
    temperature: float = Field(
        default=0.1, gt=0, le=100, allow_inf_nan=False, description="τ of the two prompts' softmax."
    )
    alignment: Share = Field(default=0.4, description="λ1: how well the estimate shows each prompt.")
    smoothness: Share = Field(default=0.1, description="λ2: how well the segment before's end does.")
    progression: Share = Field(
        default=0.5, description="λ3: the action while the model decides on it; of texts, first the scene."
    )
    score_below: Share = Field(
        default=0.7, description="The noise level below which estimates are scored; above, they show nothing."
    )
    inertia: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.5, description="How much of a step's weights is kept for the next."
    )
    beta: Share = Field(default=0.8, description="β, the decay of the published blending, per frame.")
    gamma: Annotated[float, Field(ge=0, le=0.5)] = Field(
        default=0.1, description="γ of the published blending."
    )
    # What came later is written where it is used alone: films of before keep their keys.
    levels: Plugged | None = Field(
        default=None, exclude_if=_is_none, description="A plugin's noise levels. Default: the model's."
    )
    scorer: Plugged | None = Field(
        default=None,
        exclude_if=_is_none,
        description="A plugin's text-image encoder. Default: that in the model's folder.",
    )

    @model_validator(mode="after")
    def _lambdas_sum_to_one(self) -> Self:
        total = self.alignment + self.smoothness + self.progression
        if abs(total - 1) > 1e-6:
            raise PydanticCustomError(
                "lambdas",
                "alignment, smoothness and progression must sum to 1, not {total}",
                {"total": f"{total:g}"},
            )
        return self

    def without(self, parts: set[str]) -> Method:
        """Return the method without some of its `PARTS`; without all, segments have nothing in common."""
        changes: dict[str, object] = {}
        if "dipw" in parts:
            changes |= {"weighting": False}
        if "twb" in parts:
            changes |= {"blending": "none"}
        if "identity" in parts:
            changes |= {"identity": False}
        if "sar" in parts:
            changes |= {"similarity": False}
        return self.model_copy(update=changes)

    @property
    def leads(self) -> bool:
        """Whether segments begin with what others have finished."""
        return self.blending not in ("crossfade", "published", "none") and self.strength > 0

    @property
    def plugged(self) -> dict[str, plugins.Plugin]:
        """The plugins that it uses, by the names of settings."""
        named = {setting: getattr(self, setting) for setting in PLUGGED}
        return {
            setting: plugins.offered(PLUGGED[setting], OWN[setting])[name]
            for setting, name in named.items()
            if name is not None and name not in OWN[setting]
        }

    @property
    def lambdas(self) -> tuple[float, float, float]:
        """λ1, λ2 and λ3."""
        return self.alignment, self.smoothness, self.progression


def legal_values(key: str) -> str:
    """Say what a setting may be, as in "a number from 0 to 1"."""
    field = Method.model_fields[key]
    if key in PLUGGED:
        names = (*OWN[key], *plugins.offered(PLUGGED[key], OWN[key]))
        return f"one of {', '.join(names)}" if names else "the name of a plugin, and none is installed"
    kinds = get_args(field.annotation) or (field.annotation,)
    if bool in kinds:
        words = [value for kind in kinds for value in get_args(kind)]
        return " or ".join(["true", "false", *words])
    if float not in kinds and int not in kinds:
        words = [word for kind in kinds if kind is not type(None) for word in get_args(kind) or (kind,)]
        return f"one of {', '.join(words)}"
    limits = {n: getattr(m, n) for m in field.metadata for n in ("ge", "gt", "le", "lt") if hasattr(m, n)}
    low = f"from {limits['ge']:g}" if "ge" in limits else f"above {limits['gt']:g}"
    high = f"{limits['le']:g}" if "le" in limits else f"below {limits['lt']:g}"
    return f"a {'number' if float in kinds else 'whole number'} {low} to {high}"
