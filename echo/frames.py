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
        index: one row for each frame: patient, class_label (its place in `classes.conditions`), spacing_row_mm and
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

    def shrunk(self, size: int) -> "Frames":
        """The frames at a smaller side s: images averaged over squares, label maps by the class at their centres.

        Raises:
            ValueError: where S is not a multiple of s.
        """
        whole = self.images.shape[-1]
        if whole == size:
            return self
        if whole % size:
            raise ValueError(f"frames of {whole} pixels cannot be shrunk to {size}: it must be a divisor")
        n, factor = len(self), whole // size
        images = self.images.reshape(n, size, factor, size, factor).mean((2, 4), dtype=np.float32)
        labels, sdm_labels = (shrunk_labels(x, size) for x in (self.labels, self.sdm_labels))
        return Frames(np.rint(images).astype(np.uint8), labels, sdm_labels, self.index, self.classes)


def shrunk_labels(labels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Label maps (N, s, s) of label maps (N, S, S): the class under each small pixel's centre."""
    step = labels.shape[-1] // size
    return np.ascontiguousarray(labels[:, step // 2 :: step, step // 2 :: step])
