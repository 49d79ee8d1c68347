"""From logits to probabilities and a label, as the server does it, for what is rolled up on this side."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from limner.types import Prediction


def decide(logits: NDArray[np.floating], labels: Sequence[str], *, temperature: float, threshold: float) -> Prediction:
    """Return the prediction that logits `(k,)` stand for.

    Parameters
    ----------
    labels
        Of the model, in the order of the logits.
    temperature
        That the logits are divided by before the softmax, over 0.
    threshold
        With two labels: probability of the second from which it is chosen.
    """
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max())
    probabilities = exponentials / exponentials.sum()
    chosen = int(probabilities[1] >= threshold) if len(labels) == 2 else int(probabilities.argmax())
    return Prediction(label=labels[chosen], probabilities=tuple(probabilities.tolist()), logits=tuple(logits.tolist()))
