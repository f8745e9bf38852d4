"""Attention to tokens that count more or less, in groups of keys and without a mask.

A mask of any kind keeps a GPU from its fastest kernels, and rows of a batch have texts of different lengths.
So each row is attended to by itself, with exactly its tokens. Where tokens have weights, keys of one weight
are a group: a softmax over all keys is a mean of the softmaxes over the groups, each in proportion to its
weight times the sum of its exponentials, whose logarithm kernels return (log-sum-exp).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from storyreel.models.base import Text, padded, stacked
from storyreel.models.kernels import Kernel


class Row(NamedTuple):
    """The tokens of one text: ``plain`` ones that count once, then ``groups`` of one weight each.

    ``weights`` (1 + groups,) are those of the plain ones, 1, and of the groups; None without groups. Sizes
    belong to the text, weights may change in every step.
    """

    plain: int
    groups: tuple[int, ...] = ()
    weights: Tensor | None = None


class Keys(NamedTuple):
    """How the texts of a batch are attended to.

    ``rows`` has one entry for each, ``weights`` (B, L) those of all tokens, 0 for what pads; ``kernel``
    returns log-sum-exps, None if there is none: then weights become a mask. ``video`` (N,) says how often the
    tokens of video count, None where each does once.
    """

    rows: tuple[Row, ...]
    weights: Tensor
    kernel: Kernel | None = None
    video: Tensor | None = None

    @property
    def ndim(self) -> int:
        """No mask of two dimensions, which LTX would turn into one of its own: it hands it on as it is."""
        return 0


def keys_of(texts: Sequence[Text], kernel: Kernel | None, encoder: int = 0) -> tuple[Tensor, Keys]:
    """Return one encoder's states (B, L, D) of several texts, padded with zeros, and how they count."""
    states, weights = stacked(texts, encoder)
    rows = []
    for index, text in enumerate(texts):
        groups = text.groups[encoder] if text.groups else ()
        begin = plain = text.states[encoder].shape[1] - sum(groups)
        firsts = []  # of each group the first token's weight, by slices: an index would be sent to the device
        for size in groups:
            firsts.append(weights[index, begin : begin + 1])
            begin += size
        of_all = torch.cat([torch.ones_like(firsts[0]), *firsts]) if firsts else None
        rows.append(Row(plain, groups, of_all))
    return states, Keys(tuple(rows), weights, kernel)


def joined(parts: Sequence[tuple[Tensor, Keys]]) -> tuple[Tensor, Keys]:
    """Return the tokens of several encoders, (B, L, D) each with how they count, as those of one text."""
    tokens, weights, rows = [], [], []
    for index, each in enumerate(zip(*(keys.rows for _, keys in parts), strict=True)):
        sizes = [(row.plain, *row.groups) for row in each]
        states, shares = (
            [x[index : index + 1, : sum(of)].split(of, 1) for x, of in zip(whole, sizes, strict=True)]
            for whole in ([x for x, _ in parts], [keys.weights for _, keys in parts])
        )
        # All that count once stand first.
        ours, ones = (
            torch.cat([x[0] for x in found] + [group for x in found for group in x[1:]], 1)
            for found in (states, shares)
        )
        grouped = [row.weights for row in each if row.weights is not None]
        of_all = torch.cat([grouped[0][:1], *(found[1:] for found in grouped)]) if grouped else None
        groups = tuple(size for row in each for size in row.groups)
        rows.append(Row(sum(row.plain for row in each), groups, of_all))
        tokens.append(ours)
        weights.append(ones)
    return padded(tokens), Keys(tuple(rows), padded(weights), parts[0][1].kernel)


def attend(
    query: Tensor, key: Tensor, value: Tensor, keys: Keys, video: int = 0, backend: Any = None
) -> list[Tensor]:
    """Attend, (B, N, heads, D); the first ``video`` keys count once, or as `Keys` says; behind them is text.

    With ``video`` the text asks too, and stands behind the video's queries. Return the rows' outputs in their
    order, (1, N, heads, D), or those of all rows as one; with ``video`` a row's N is shorter by what pads its
    text. ``backend`` is diffusers' name of one, None its own choice.
    """
    key, value = key.to(query.dtype), value.to(query.dtype)  # fp8 and autocast may leave them otherwise
    rows, kernel = keys.rows, keys.kernel
    weighed = any(row.groups for row in rows)
    if keys.video is not None or (weighed and kernel is None):
        return [masked(query, key, value, keys.weights, video, keys.video)]
    if not weighed and all(row.plain == rows[0].plain for row in rows):
        end = video + rows[0].plain
        asking = query[:, :end] if video else query
        return [dispatch_attention_fn(asking, key[:, :end], value[:, :end], backend=backend)]
    outputs = []
    for index, row in enumerate(rows):
        end = video + row.plain
        total = end + sum(row.groups)
        asking = query[index : index + 1, :total] if video else query[index : index + 1]
        k, v = key[index : index + 1], value[index : index + 1]
        if row.weights is None or kernel is None:
            outputs.append(dispatch_attention_fn(asking, k[:, :end], v[:, :end], backend=backend))
        else:
            sizes, weights = ((end, *row.groups), row.weights) if end else (row.groups, row.weights[1:])
            outputs.append(merged(asking, k[:, :total], v[:, :total], sizes, weights, kernel))
    return outputs


def merged(
    query: Tensor, key: Tensor, value: Tensor, sizes: Sequence[int], weights: Tensor, kernel: Kernel
) -> Tensor:
    """Attend, (B, N, heads, D), to groups of keys of ``sizes`` that count by ``weights`` (groups,).

    Weight 0 excludes a group, 2 is as if each of its keys stood there twice. Not all may be 0.
    """
    pairs = list(zip(key.split(sizes, 1), value.split(sizes, 1), strict=True))
    outputs, sums = zip(*kernel(query, pairs), strict=True)
    shares = (torch.stack(sums, -1).float() + weights.log()).softmax(-1)  # (B, N, heads, groups)
    whole: Tensor = outputs[0] * shares[..., :1]  # in fp32
    for output, share in zip(outputs[1:], shares.split(1, -1)[1:], strict=True):
        whole = torch.addcmul(whole, output, share)
    return whole.to(query.dtype)


def masked(
    query: Tensor, key: Tensor, value: Tensor, weights: Tensor, video: int, counts: Tensor | None = None
) -> Tensor:
    """Attend, (B, N, heads, D), to keys of which those behind ``video`` count by ``weights`` (B, L).

    Those before count once, or by ``counts`` (video,).

    For any device, and for training: exact, and slower on a GPU than groups.
    """
    q, k, v = (x.to(query.dtype).transpose(1, 2) for x in (query, key, value))
    output: Tensor = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=added_logits(weights, video, query.dtype, counts)
    )
    return output.transpose(1, 2)


def added_logits(weights: Tensor, video: int, dtype: torch.dtype, counts: Tensor | None = None) -> Tensor:
    """Return what attention adds to its logits, (B, 1, 1, video + L): the logarithm of each token's weight.

    ``weights`` (B, L) are the text tokens', before which ``video`` tokens of weight 1 stand, or of ``counts``
    (video,): softmax of the sums is Σ w·exp(q·k)·v / Σ w·exp(q·k), so that weight 0 excludes a token and 2 is
    two of it.
    """
    before = weights.new_ones(video) if counts is None else counts
    whole = torch.cat([before.to(weights).expand(len(weights), -1), weights], 1)
    return whole.log().to(dtype)[:, None, None]


class TextProcessor:
    """Cross-attention of video to texts, with the layers of Wan and of LTX.

    LTX hands on how texts are attended to in place of a mask; Wan hands on none, and `keys` are set instead:
    a compiler takes their sizes for constants, as it does with whatever a layer holds.
    """

    _attention_backend: Any = None  # the name by which diffusers sets it
    keys: Keys

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Keys | None = None,
        *_: Any,
    ) -> Tensor:
        """Attend, video (B, N, D) to text (B, L, D)."""
        attended = self._attended(attn, hidden_states, encoder_hidden_states, attention_mask)
        output: Tensor = attn.to_out[0](attended.flatten(2))
        return output

    def _attended(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Keys | None
    ) -> Tensor:
        """Return what the heads attend to, (B, N, heads, D)."""
        query = attn.norm_q(attn.to_q(hidden_states))
        key = attn.norm_k(attn.to_k(encoder_hidden_states))
        value = attn.to_v(encoder_hidden_states)
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (query, key, value))
        keys = self.keys if attention_mask is None else attention_mask
        return _joined(attend(q, k, v, keys, backend=self._attention_backend))


def _joined(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows))
