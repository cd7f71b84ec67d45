from itertools import pairwise

import pytest

from models.recipe import Recipe, learning_rate


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    """One cycle: low at the start, the peak after the warm-up, nothing at the end."""
    recipe = Recipe(peak_rate=0.1, warmup_share=0.2)
    assert learning_rate(recipe, 0.0) == pytest.approx(0.005)
    assert learning_rate(recipe, 0.2) == pytest.approx(0.1)
    assert learning_rate(recipe, 0.6) == pytest.approx(0.05)
    assert learning_rate(recipe, 1.0) == pytest.approx(0.0)


def test_the_rate_never_jumps() -> None:
    """Neighbouring steps differ by little, at the end of the warm-up too."""
    rates = [learning_rate(Recipe(), step / 1000) for step in range(1001)]
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.001
