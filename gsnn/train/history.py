"""What a fit saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class History:
    """What ``fit`` saw, one entry per finished epoch.

    Losses are in the units the network is trained in (standardised ones with ``standardize``).
    ``train_loss`` is measured while the weights move, in training mode; ``val_loss`` after the epoch,
    in eval mode, NaN without validation data. ``best_epoch`` counts from 1 and names the epoch whose
    weights the model holds now.
    """

    train_loss: tuple[float, ...]
    val_loss: tuple[float, ...]
    lr: tuple[float, ...]
    best_epoch: int
    stopped_early: bool

    def to_frame(self) -> pd.DataFrame:
        """Columns ``epoch`` (from 1), ``train_loss``, ``val_loss``, ``lr``."""
        import pandas as pd

        epochs = np.arange(1, len(self.train_loss) + 1)
        return pd.DataFrame(
            {"epoch": epochs, "train_loss": self.train_loss, "val_loss": self.val_loss, "lr": self.lr}
        )
