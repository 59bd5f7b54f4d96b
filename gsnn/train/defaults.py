"""How long to train where nobody says."""

from __future__ import annotations

import math


def default_epochs(n_samples: int, batch_size: int) -> int:
    """About 2,000 steps, in 30 to 400 epochs."""
    return max(30, min(400, math.ceil(2000 / math.ceil(n_samples / batch_size))))
