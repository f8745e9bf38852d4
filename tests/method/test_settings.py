from __future__ import annotations

import itertools

import pytest
from pydantic import ValidationError

from storyreel.errors import ScriptError
from storyreel.method.settings import PARTS, Method, legal_values
from tests.conftest import plan_of

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

    if words == "true or false":
        assert accepts(True)
        assert accepts(False)
        assert not accepts(1)
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


def test_published_blending_goes_one_by_one() -> None:
    assert Method(blending="published").window == Method(blending="published", window=1).window == 1
    assert Method(blending="joint").window == 4
    with pytest.raises(ValidationError, match="window must be 1 or left out, not 3"):
        Method(blending="published", window=3)
    again = Method.model_validate(Method(blending="published").model_dump())
    assert again.window == 1


def test_unknown_keys_and_quiet_conversions_are_refused() -> None:
    for values in ({"strenght": 1.0}, {"window": "4"}, {"window": 4.0}, {"weighting": "yes"}):
        with pytest.raises(ValidationError):
            Method.model_validate(values)


@pytest.mark.parametrize("parts", [set(c) for n in range(4) for c in itertools.combinations(PARTS, n)])
def test_parts_switch_off_what_they_are_and_nothing_else(parts: set[str]) -> None:
    method = Method(context=0.5, window=3, strength=0.7)
    left = method.without(parts)
    changed = {key for key in KEYS if getattr(left, key) != getattr(method, key)}
    expected = {"dipw": {"weighting"}, "sar": {"similarity"}, "twb": {"blending", "shared_noise", "context"}}
    assert changed == set().union(*(expected[part] for part in parts))
    assert (left.weighting, left.similarity) == (False if "dipw" in parts else None, "sar" not in parts)
    if "twb" in parts:
        assert (left.blending, left.shared_noise, left.context) == ("none", 0, 0)
    assert Method.model_validate(left.model_dump()) == left


def test_context_is_understood_by_its_old_name() -> None:
    assert Method.model_validate({"memory": 0.3}) == Method(context=0.3)
    with pytest.raises(ValidationError, match=r"memory\n.*Extra inputs"):
        Method.model_validate({"memory": 0.3, "context": 0.2})
    story = "render: {method: {memory: 0.3}}\nscenes:\n  - [a, b]\n"
    assert plan_of(story).settings.method.context == 0.3
    assert plan_of(story, method=("memory=0.1",)).settings.method.context == 0.1
    with pytest.raises(ScriptError, match=r"story.yaml:1:\d+: error: context must be a number from 0 to 1"):
        plan_of(story.replace("0.3", "7"))
