import numpy as np
import pytest

from models.export import fit_temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_fit_finds_the_temperature_that_the_truth_was_drawn_at(temperature: float) -> None:
    """Truth drawn from the softmax of logits / T is best explained by T again."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 7)).astype(np.float32)
    # The Gumbel trick: the largest of logits plus Gumbel noise is a draw from their softmax.
    truth = (logits / temperature + rng.gumbel(size=logits.shape)).argmax(axis=1)
    assert fit_temperature(logits, truth) == pytest.approx(temperature, rel=0.05)
