"""Frames of one split at one size: echoes, their label maps, and a row of facts for each."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of one split, in one order.

    Attributes:
        images: uint8 (N, S, S), rows are depth.
        labels: uint8 (N, S, S), CAMUS classes 0 to 3.
        sdm_labels: uint8 (N, S, S), the diffusion model's classes 0 to 4.
        index: one row a frame: patient, view, phase, class_label (its place in `config.VIEW_PHASES`), quality, ef,
            spacing_row_mm, spacing_col_mm.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    sdm_labels: NDArray[np.uint8]
    index: pd.DataFrame

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: NDArray) -> "Frames":
        """The frames at those rows (indices, or a mask)."""
        index = self.index[rows] if np.asarray(rows).dtype == bool else self.index.iloc[rows]
        return Frames(self.images[rows], self.labels[rows], self.sdm_labels[rows], index.reset_index(drop=True))
