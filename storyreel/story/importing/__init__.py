"""Stories that other programs have, as a story of this one: what a file is, and what becomes of it.

A format is a function from a `Source` to a `Draft`, and a line of `FORMATS`; `convert` writes the draft as
YAML.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from storyreel import __version__
from storyreel.errors import Fault, FormatError, ScriptError
from storyreel.models.specs import ModelSpec
from storyreel.story.importing import benchmarks, fountain, prompts, text
from storyreel.story.importing.draft import Draft
from storyreel.story.importing.members import place
from storyreel.story.importing.source import NotThisError, Source
from storyreel.story.importing.writing import written
from storyreel.story.planning import Overrides, make_plan, nearest_seconds
from storyreel.story.schema import Story, parse_story

MAX_SAID = 12  # lines at the head of a story about what was left out


@dataclass(frozen=True)
class Format:
    """A format by its name: what it is, how it is read; ``recognised`` unless it has to be asked for."""

    name: str
    what: str
    read: Callable[[Source, float | None], Draft]
    recognised: bool = True


# In the order in which they are tried: what is said by keys first, what any text could be last.
FORMATS = {
    one.name: one
    for one in (
        Format("storymem", "scenes of StoryMem, ST-Bench or EntityBench", benchmarks.read_storymem),
        Format("vistory", "a story.json of ViStoryBench", benchmarks.read_vistory),
        Format("vimax", "a story of ViMax's benchmark", benchmarks.read_vimax),
        Format("holocine", "captions of HoloCine", benchmarks.read_holocine),
        Format("travel", "a map of prompts by frames, as of AnimateDiff", prompts.read_travel),
        Format("prompts", "a list of prompts in JSON, YAML or Python", prompts.read_prompts),
        Format("framepack", "prompts with seconds, as [0s-2s: …]", text.read_framepack),
        Format("relay", "prompts with ranges, as [0%:50%] …", text.read_relay),
        Format("fountain", "a screenplay in Fountain", fountain.read_fountain),
        Format("text", "prompts, one a line or a paragraph", text.read_text),
        Format("lines", "a prompt a line", text.read_lines, recognised=False),
        Format("paragraphs", "a prompt a paragraph", text.read_paragraphs, recognised=False),
    )
}


@dataclass(frozen=True)
class Imported:
    """A story's text, and what is to be said of it.

    ``guessed`` is what the source does not say, ``left_out`` what a story has no place for, ``changed`` which
    lengths the model cannot have, ``problems`` why it cannot render the story as it is.
    """

    format: Format
    text: str
    story: Story
    guessed: list[str]
    left_out: list[str]
    changed: list[str] = field(default_factory=list)
    problems: list[Fault] = field(default_factory=list)


def convert(path: str, raw: bytes, spec: ModelSpec, wanted: str = "", fps: float | None = None) -> Imported:
    """Return what a file becomes as a story.

    ``spec`` is the model whose lengths of scenes it gets, ``wanted`` the name of its format, "" to recognise
    it; ``fps`` the frames a second of one that counts frames. Raises FormatError.
    """
    kind, draft = _read(Source(path, raw), wanted, fps)
    draft.clean(path)
    changed = _fit(draft, spec)
    texts = [[shot.scene, *([shot.action] if shot.action else [])] for shot in draft.shots]
    cast, told, said = place(draft.cast, texts)
    for words in said:
        draft.guess(words)
    for shot, prompts_told in zip(draft.shots, told, strict=True):
        for one in cast:
            if one.is_called(shot.who) and not any(f"{{{one.key}" in prompt for prompt in prompts_told):
                draft.leave_out(f"{one.of}, who is there though no prompt says so", shot.where)
    losses = draft.losses()
    name = path.replace("\\", "/").rpartition("/")[2]
    left = len(losses) - MAX_SAID
    head = [
        f"From {name} ({kind.what}), by storyreel {__version__}.",
        *draft.remarks,
        *(f"Guessed: {words}." for words in draft.guesses),
        *(f"Left out: {words}." for words in losses[:MAX_SAID]),
        *([f"Left out: {left} more things."] if left > 0 else []),
    ]
    model = "" if spec.name == "mini" else spec.name
    story_text = written(draft, cast, told, head, model)
    try:
        story = parse_story("the imported story", story_text.encode())
    except ScriptError as error:  # such as one that is too large
        words = f"{path} makes no valid story: {error.faults[0].message}"
        raise FormatError(words, "Make it smaller or plainer, and import it again.") from None
    return Imported(kind, story_text, story, draft.guesses, losses, changed, _problems(story))


def _read(source: Source, wanted: str, fps: float | None) -> tuple[Format, Draft]:
    if wanted:
        try:
            return FORMATS[wanted], FORMATS[wanted].read(source, fps)
        except NotThisError as error:
            words = f"{source.path} is not {FORMATS[wanted].what}: {error}"
            raise FormatError(words, "Leave out --from to have it recognised.") from None
    _refuse_story(source)
    tried: dict[str, list[str]] = {}
    for one in FORMATS.values():
        if one.recognised:
            try:
                return one, one.read(source, fps)
            except NotThisError as error:
                tried.setdefault(str(error), []).append(one.name)
    lines = "\n".join(f"  {', '.join(names)}: {why}" for why, names in tried.items())
    remedy = "Say what it is: --from FORMAT; or write its prompts into a text file, one a line."
    raise FormatError(f"{source.path} is of no format that is known; tried:\n{lines}", remedy)


def _refuse_story(source: Source) -> None:
    if source.suffix in (".yaml", ".yml", ""):
        try:
            parse_story(source.path, source.text.encode())
        except ScriptError:
            return
        raise FormatError(f"{source.path} is a story already", f"Render it: storyreel render {source.path}")


def _fit(draft: Draft, spec: ModelSpec) -> list[str]:
    """Give scenes lengths that a model can have; return what was changed."""
    shares = [shot.share for shot in draft.shots if shot.share is not None]
    if shares:
        whole = len(draft.shots) * spec.seconds
        if max(shares) - min(shares) > 2:  # of 100: thirds are equal
            draft.guess(f"the film is of {whole:g} seconds: the source has only shares of it")
        for shot in draft.shots:
            if shot.share is not None and max(shares) - min(shares) > 2:
                shot.seconds = shot.share / 100 * whole
                shot.remarks.append(f"{shot.share:g} % of the film")
    changed = []
    for number, shot in enumerate(draft.shots, 1):
        if shot.seconds is None:
            continue
        nearest = nearest_seconds(spec, shot.seconds)
        if abs(nearest - shot.seconds) > 1e-6:
            shot.remarks.append(
                f"{shot.seconds:g} seconds in the source; the nearest that {spec.name} can: {nearest:g}"
            )
            changed.append(f"scene {number}: {nearest:g} seconds instead of {shot.seconds:g}")
            shot.seconds = nearest
    return changed


def _problems(story: Story) -> list[Fault]:
    """Return why a story's model cannot render it, as it is."""
    try:
        make_plan(story, "story", Overrides())
    except ScriptError as error:
        return error.faults
    return []
