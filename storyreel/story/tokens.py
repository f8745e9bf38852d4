"""The tokens of a prompt: counted if the model's tokenizer is on this machine, else estimated."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

CHARACTERS = 4  # of a token of T5 in English text, on average


def token_counter(folder: Path) -> Callable[[str], int] | None:
    """Return a function that counts a text's tokens by the tokenizer in a folder; None if there is none.

    A damaged one counts as none: loading the model reports it.
    """
    for name, load in (("tokenizer.json", _fast), ("spiece.model", _pieces)):
        if (folder / name).is_file():
            try:
                return load(folder / name)
            except Exception:  # of the library's own
                return None
    return None


def _fast(path: Path) -> Callable[[str], int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text).ids)


def _pieces(path: Path) -> Callable[[str], int]:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(path))
    return lambda text: len(pieces.encode(text)) + 1  # the end has a token too


def fewest_tokens(text: str) -> int:
    """Return the least number of tokens of a text: none of T5's spans two words, and the end has one too."""
    return len(text.split()) + 1


def estimated_tokens(text: str) -> int:
    """Return about how many tokens T5 makes of a text: of signs other than ASCII, one a character."""
    plain = sum(char.isascii() for char in text)
    return max(fewest_tokens(text), math.ceil(plain / CHARACTERS) + len(text) - plain + 1)
