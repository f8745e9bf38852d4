from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from storyreel.method.settings import PARTS, Method, legal_values

KEYS = tuple(Method.model_fields)


def test_the_defaults_are_legal_and_whole() -> None:
    method = Method()
    assert Method.model_validate(method.model_dump()) == method
    assert sum(method.lambdas) == pytest.approx(1)
    assert method.lambdas == (method.alignment, method.smoothness, method.progression)


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_is_described_and_can_be_set(key: str) -> None:
    description = Method.model_fields[key].description
    assert description
    assert description.endswith(".")
    assert legal_values(key)
    default = getattr(Method(), key)
    assert getattr(Method.model_validate({key: default}), key) == default


@pytest.mark.parametrize("key", KEYS)
def test_what_is_said_to_be_legal_is(key: str) -> None:
    """The ends of every range that `legal_values` names are accepted, and what lies beyond is not."""
    words = legal_values(key)
    rest = {"alignment": 1.0, "smoothness": 0.0, "progression": 0.0}

    def accepts(value: object) -> bool:
        values: dict[str, object] = {key: value}
        if key in rest and isinstance(value, float):
            others = [other for other in rest if other != key]
            values |= {others[0]: 1 - value, others[1]: 0.0}
        try:
            Method.model_validate(values)
        except ValidationError:
            return False
        return True

    if words.startswith("true or false"):
        assert accepts(True)
        assert accepts(False)
        assert all(accepts(value) for value in words.split(" or ")[2:])
        assert not accepts(1)
        assert not accepts("anything else")
        return
    if words.startswith("the name of a plugin"):
        assert not accepts("anything else")
        return
    if words.startswith("one of "):
        assert all(accepts(value) for value in words.removeprefix("one of ").split(", "))
        assert not accepts("anything else")
        return
    number: type[int] | type[float] = int if words.startswith("a whole number") else float
    tiny = 1 if number is int else 1e-6
    kind, low, _, *between, high = words.rsplit("number ", 1)[1].split()
    bottom, top = number(float(low)), number(float(high))
    assert accepts(bottom) == (kind == "from")
    assert accepts(top) == (between != ["below"])
    assert accepts(bottom + tiny)
    assert accepts(top - tiny)
    assert not accepts(bottom - tiny)
    assert not accepts(top + tiny)
    assert not accepts(float("nan"))
    assert not accepts(True)


def test_lambdas_sum_to_one() -> None:
    assert Method(alignment=0.2, smoothness=0.3, progression=0.5).lambdas == (0.2, 0.3, 0.5)
    for one in ("alignment", "smoothness", "progression"):
        with pytest.raises(ValidationError, match="must sum to 1, not"):
            Method.model_validate({one: 0.9})


def test_unknown_keys_and_quiet_conversions_are_refused() -> None:
    for values in ({"strenght": 1.0}, {"overlap": "4"}, {"overlap": 4.0}, {"weighting": "yes"}):
        with pytest.raises(ValidationError):
            Method.model_validate(values)


@pytest.mark.parametrize("parts", [set(c) for n in range(4) for c in itertools.combinations(PARTS, n)])
def test_parts_switch_off_what_they_are_and_nothing_else(parts: set[str]) -> None:
    method = Method(overlap=3, strength=0.7)
    left = method.without(parts)
    changed = {key for key in KEYS if getattr(left, key) != getattr(method, key)}
    of = {"dipw": "weighting", "sar": "similarity", "twb": "blending", "identity": "identity"}
    assert changed == {of[part] for part in parts}
    assert (left.weighting, left.similarity) == (False if "dipw" in parts else None, "sar" not in parts)
    assert (left.blending, left.identity) == ("none" if "twb" in parts else "lead", "identity" not in parts)
    assert Method.model_validate(left.model_dump()) == left


def test_what_leads() -> None:
    """Two ways to blend begin a segment with what others have finished, unless that counts nothing."""
    ways = ("lead", "continuation", "crossfade", "published", "none")
    assert [Method.model_validate({"blending": way}).leads for way in ways] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert not Method(strength=0.0).leads
    assert Method(strength=1e-9).leads
