"""One rule for each kind of argument, for plain numbers and for those of numpy and torch."""

import math

import numpy as np
import pytest
import torch

from gsnn import _checks

INTS = [3, np.int8(3), np.uint64(3), torch.tensor(3), np.array(3)]
NUMBERS = [0.5, np.float32(0.5), np.float64(0.5), 1, np.int64(1)]
NO_NUMBERS = [True, np.True_, "1", None, math.nan, [0.5], 1j]


@pytest.mark.parametrize("value", INTS)
def test_any_int_is_one(value):
    found = _checks.whole("n", value)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize(
    "value", [True, np.True_, 3.0, np.float64(3), "3", None, 0, -1, [3], torch.tensor(True)]
)
def test_no_positive_int(value):
    with pytest.raises(ValueError, match="^n must be a positive int, got "):
        _checks.whole("n", value)


def test_least_int():
    assert _checks.whole("n", 0, at_least=0) == 0
    with pytest.raises(ValueError, match="^n must be an int of at least 2, got 1$"):
        _checks.whole("n", 1, at_least=2)


@pytest.mark.parametrize("value", NUMBERS)
def test_any_number_is_one(value):
    _checks.positive("a", value)
    _checks.non_negative("a", value)
    _checks.finite("a", value)
    _checks.within("a", value, "(0, 1]")


@pytest.mark.parametrize("value", NO_NUMBERS)
@pytest.mark.parametrize(
    ("check", "words"),
    [
        (_checks.positive, "a positive number"),
        (_checks.non_negative, "a non-negative number"),
        (_checks.finite, "a finite number"),
        (lambda name, value: _checks.within(name, value, "[0, 1)"), r"in \[0, 1\)"),
    ],
)
def test_no_number(value, check, words):
    with pytest.raises(ValueError, match=f"^a must be {words}, got "):
        check("a", value)


@pytest.mark.parametrize("interval", ["[0, 1]", "(0, 1]", "[0, 1)", "(0, 1)"])
def test_ends_of_intervals(interval):
    def fits(value):
        try:
            _checks.within("a", value, interval)
        except ValueError:
            return False
        return True

    assert fits(0.5) and fits(0) == (interval[0] == "[") and fits(1) == (interval[-1] == "]")
    assert not (fits(-1e-9) or fits(1 + 1e-9) or fits(math.inf))


def test_signs_of_numbers():
    for value in (0, 0.0, -1, math.inf):
        with pytest.raises(ValueError, match="positive"):
            _checks.positive("a", value)
    _checks.non_negative("a", 0)
    for value in (-1e-300, math.inf):
        with pytest.raises(ValueError, match="non-negative"):
            _checks.non_negative("a", value)
    _checks.finite("a", -5)
    with pytest.raises(ValueError, match="finite"):
        _checks.finite("a", -math.inf)


def test_options():
    _checks.one_of("how", "max", ("mean", "max"))
    with pytest.raises(ValueError, match="^how must be one of 'mean', 'max', got 'min'$"):
        _checks.one_of("how", "min", ("mean", "max"))
