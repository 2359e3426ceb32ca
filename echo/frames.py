"""Frames of one split at one size: echoes, their label maps, and a row of facts for each."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from echo.labels import CAMUS, Classes


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of one split, in one order.

    Attributes:
        images: uint8 (N, S, S), rows are depth.
        labels: uint8 (N, S, S), the source's classes (CAMUS: 0 to 3).
        sdm_labels: uint8 (N, S, S), the diffusion model's classes (CAMUS: 0 to 4).
        index: one row a frame: patient, class_label (its place in `classes.conditions`), spacing_row_mm and
            spacing_col_mm (NaN where unknown), and the source's own: view, phase, quality, ef; or case, condition.
        classes: what the labels mean.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    sdm_labels: NDArray[np.uint8]
    index: pd.DataFrame
    classes: Classes = CAMUS

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: NDArray) -> "Frames":
        """The frames at those rows (indices, or a mask)."""
        index = self.index[rows] if np.asarray(rows).dtype == bool else self.index.iloc[rows]
        arrays = self.images[rows], self.labels[rows], self.sdm_labels[rows]
        return Frames(*arrays, index.reset_index(drop=True), self.classes)

    @property
    def titles(self) -> list[str]:
        """What each frame shows: its condition, such as "4CH ED"; nothing where there is none."""
        return [self.classes.conditions[k] if self.classes.conditions else "" for k in self.index["class_label"]]
