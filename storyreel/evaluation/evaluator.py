"""Scores films: what can be measured of each, scene by scene, and how runs differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from storyreel import __version__
from storyreel.errors import MissingError, StoryreelError
from storyreel.evaluation.encoders import Encoders
from storyreel.evaluation.films import Film
from storyreel.evaluation.findings import findings
from storyreel.evaluation.look import look_at
from storyreel.evaluation.registry import BLIP, CLIP, METRICS, OWN, WEIGHTS
from storyreel.evaluation.result import Evaluation, Scored
from storyreel.evaluation.score import film_scores
from storyreel.evaluation.statistics import Row, compare
from storyreel.evaluation.verdicts import asked
from storyreel.film import ffmpeg
from storyreel.models.scorer import Scorer
from storyreel.models.specs import MODELS


class Evaluator:
    """Scores films one after the other; every model is loaded once."""

    def __init__(self, device: torch.device, weights_dir: Path | None = None, own: bool = True) -> None:
        transformers.utils.logging.disable_progress_bar()  # ours is enough
        self._encoders = Encoders(device, weights_dir)
        self._device = device
        self._own = own
        self._scorers: dict[str, Scorer | None] = {}
        self.names = {name for name in WEIGHTS if name != OWN and self._encoders.folder(name) is not None}

    def require(self, metrics: Iterable[str]) -> None:
        """Raise MissingError if any of ``metrics`` has no weights, and DamagedError if they do not fit."""
        for name in metrics:
            needs = METRICS[name].needs
            if needs is not None and needs != OWN:
                if needs not in self.names:
                    weights = WEIGHTS[needs]
                    raise MissingError(f"metric {name} needs {needs}, which is not here", weights.remedy)
                self._encoders.get(needs)

    def missing(self) -> dict[str, str]:
        """Return why metrics have no value, with the command that helps."""
        return {
            metric.name: f"{metric.needs} is not here: {WEIGHTS[metric.needs].remedy}"
            for metric in METRICS.values()
            if metric.needs not in (None, OWN) and metric.needs not in self.names
        }

    def score(self, film: Film, tell: Callable[[int], None]) -> Scored:
        """Score one film; ``tell`` hears how many frames went by."""
        own = self._scorer(film.model)
        strangeness = asked(MODELS[film.model].strangeness) if own is not None and film.model else None
        look = look_at(film, self._encoders, self.names, own, strangeness, tell)
        texts = {CLIP: self._encoders.get(CLIP)} if CLIP in self.names else {}
        if own is not None:
            texts[OWN] = own
        readers = {BLIP: self._encoders.get(BLIP)} if BLIP in self.names else {}
        scores = film_scores(film, look, texts, readers)
        return Scored(film, scores, findings(film, scores), look)

    def _scorer(self, model: str | None) -> Scorer | None:
        """Return the text-image encoder that lies with a model's weights; None without one."""
        if model is None or model not in MODELS or not self._own:
            return None
        if model not in self._scorers:
            folder = MODELS[model].weights / "scorer"
            self._scorers[model] = Scorer.load(folder, self._device) if folder.is_dir() else None
        return self._scorers[model]

    def repeat(self) -> dict[str, Any]:
        """Return what it takes to get the same numbers again."""
        return {
            "storyreel": __version__,
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}
            | {"ffmpeg": ffmpeg.version()},
            "device": str(self._device),
            "weights": {name: self._encoders.about(name) for name in sorted(self.names)},
        }


def evaluate(
    films: Sequence[Film],
    evaluator: Evaluator,
    show: Callable[[Film], AbstractContextManager[Callable[[int], None]]],
    say: Callable[[str], None],
) -> tuple[Evaluation, list[StoryreelError]]:
    """Score every film that can be; return the evaluation and what is wrong with the others."""
    scored, errors = [], []
    for film in films:
        began = time.monotonic()
        try:
            with show(film) as tell:
                scored.append(evaluator.score(film, tell))
        except MissingError:
            raise  # weights that do not fit are no film's fault
        except StoryreelError as error:
            errors.append(error)
            continue
        say(f"{film.label}: scored in {time.monotonic() - began:.1f} s")
    # A pair tells one story in the same words; seeds of a story lie in one group.
    rows = [
        Row(f.run, (f.name, f.told), f.story or f.name, s.scores["film"]) for s in scored for f in [s.film]
    ]
    comparison = compare(rows, METRICS, rows[0].run if rows else None)
    return Evaluation(scored, comparison, evaluator.missing(), evaluator.repeat()), errors
