"""Scores films: what can be measured of each, scene by scene, and how runs differ."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from storyreel import __version__, plugins
from storyreel.errors import MissingError, StoryreelError
from storyreel.evaluation.encoders import Encoders
from storyreel.evaluation.films import Film
from storyreel.evaluation.findings import findings
from storyreel.evaluation.frames import Pictures, look_at
from storyreel.evaluation.kept_scores import keep_scores, read_scores, scores_key
from storyreel.evaluation.metrics import METRICS, known_metrics, plugged_measures
from storyreel.evaluation.result import Evaluation, Scored, rows_of
from storyreel.evaluation.scores import film_scores
from storyreel.evaluation.statistics import compare
from storyreel.evaluation.verdicts import asked, film_verdict, looks_of_judge
from storyreel.evaluation.weights import BLIP, CLIP, OWN, WEIGHTS
from storyreel.film import ffmpeg
from storyreel.film.hashes import RememberedHashes
from storyreel.film.recipe import plugin_sources
from storyreel.models.scorer import Scorer
from storyreel.models.specs import known_model

SCORER = "scorer"  # the folder of a text-image encoder among a model's weights


class Evaluator:
    """Scores films one after the other; every model is loaded once.

    ``weights_dir`` has pretrained models by their names, ``weights`` is the folder of the model that films
    were made with, where it is not that of the table. With ``own`` a film's model is asked too: its
    text-image encoder and its judge.
    """

    def __init__(
        self,
        device: torch.device,
        weights_dir: Path | None = None,
        own: bool = True,
        weights: Path | None = None,
    ) -> None:
        transformers.utils.logging.disable_progress_bar()  # ours is enough
        self._encoders = Encoders(device, weights_dir)
        self._device = device
        self._own = own
        self._weights = weights
        self._scorers: dict[Path, Scorer] = {}
        self._measures = plugged_measures()
        self.names = {name for name in WEIGHTS if self._encoders.folder(name) is not None}

    def require(self, metrics: Iterable[str]) -> None:
        """Raise MissingError if any of ``metrics`` has no weights, and DamagedError if they do not fit."""
        for name in metrics:
            needs = known_metrics()[name].needs
            if needs in WEIGHTS:
                if needs not in self.names:
                    weights = WEIGHTS[needs]
                    raise MissingError(f"metric {name} needs {needs}, which is not here", weights.remedy)
                self._encoders.get(needs)

    def missing(self) -> dict[str, str]:
        """Return why metrics have no value, with the command that helps."""
        return {
            metric.name: f"{metric.needs} is not here: {WEIGHTS[metric.needs].remedy}"
            for metric in known_metrics().values()
            if metric.needs in WEIGHTS and metric.needs not in self.names
        }

    def score(self, film: Film, tell: Callable[[int], None]) -> Scored:
        """Score one film, or take the scores kept beside it; ``tell`` hears how many frames went by."""
        folder = self._own_folder(film)
        if folder is None and self._own and _of_scorer(film):
            note = "the weights it was made with are not here, and its model's own encoder is not asked"
            film = replace(film, notes=(*film.notes, f"{note} (--weights names their folder)"))
        if self._own and film.folder and (asking := looks_of_judge(film)) is not None:
            note = f"its model's judge, which looks {asking:g} times a second, is not asked"
            film = replace(film, notes=(*film.notes, f"{note}: these films have no such time base"))
        key = scores_key(film, [self.repeat, self._own, _scorer_hashes(folder)])
        kept = read_scores(film.folder, key) if film.folder else None
        if kept is None:
            kept = self._measure(film, folder, tell)
            if film.folder is not None:
                keep_scores(film.folder, key, *kept)
        scores, pictures = kept
        return Scored(film, scores, findings(film, scores), pictures)

    def _measure(
        self, film: Film, folder: Path | None, tell: Callable[[int], None]
    ) -> tuple[dict[str, Any], list[Pictures]]:
        """Return a film's scores and each scene's pictures; ``folder`` is where its model's encoder lies."""
        own = self._scorer(folder) if folder else None
        spec = known_model(film.model or "")
        strangeness = asked(spec.strangeness) if own is not None and spec is not None else None
        measures = self._measures
        look = look_at(film, self._encoders, self.names, own, strangeness, tell, measures)
        texts = {CLIP: self._encoders.get(CLIP)} if CLIP in self.names else {}
        if own is not None:
            texts[OWN] = own
        readers = {BLIP: self._encoders.get(BLIP)} if BLIP in self.names else {}
        verdict = film_verdict(film) if self._own else None
        return film_scores(film, look, texts, readers, verdict), [scene.pictures for scene in look.scenes]

    def _own_folder(self, film: Film) -> Path | None:
        """Return where the text-image encoder lies that a film was made with; None if it is not here.

        Of a film that storyreel did not make, nothing is known but its model's name.
        """
        spec = known_model(film.model or "")
        if spec is None or not self._own:
            return None
        made_with = _of_scorer(film)
        for folder in (self._weights, spec.weights):
            if folder is not None and (folder / SCORER).is_dir():
                here = _scorer_hashes(folder / SCORER)
                if film.weights is None or (made_with and made_with.items() <= here.items()):
                    return folder / SCORER
        return None

    def _scorer(self, folder: Path) -> Scorer:
        if folder not in self._scorers:
            self._scorers[folder] = Scorer.load(folder, self._device)
        return self._scorers[folder]

    @cached_property
    def repeat(self) -> dict[str, Any]:
        """What it takes to get the same numbers again."""
        return {
            "storyreel": __version__,
            "versions": {name: metadata.version(name) for name in ("torch", "transformers", "numpy")}
            | {"ffmpeg": ffmpeg.version(), "python": platform.python_version()},
            "device": str(self._device),
            "weights": {name: self._encoders.about(name) for name in sorted(self.names)},
        } | self._plugged()

    def _plugged(self) -> dict[str, Any]:
        """Return the plugins that make numbers, each with its source; nothing without any."""
        found = plugins.offered("metrics", METRICS).items()
        said = {name: {"place": one.place, "sources": plugin_sources(one.module)} for name, one in found}
        return {"plugins": said} if said else {}


def _of_scorer(film: Film) -> dict[str, str]:
    """Return the SHA-256 of the files of the text-image encoder that a film was made with, by their names."""
    return {name: value for name, value in (film.weights or {}).items() if name.startswith(f"{SCORER}/")}


def _scorer_hashes(folder: Path | None) -> dict[str, str]:
    """Return the SHA-256 of an encoder's files, by their names in its model's folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder else []
    return {f"{SCORER}/{path.name}": value for path, value in RememberedHashes().of(files).items()}


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
    rows = rows_of(scored)
    comparison = compare(rows, known_metrics(), rows[0].run if rows else None)
    return Evaluation(scored, comparison, evaluator.missing(), evaluator.repeat), errors
