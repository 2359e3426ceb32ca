import numpy as np
import pytest

from echo.metrics import frame_dice


def squares(*corners: int) -> np.ndarray:
    """Label maps (n, 20, 20) with a wall square of 8 x 8 at (4, corner) and a cavity of 4 x 4 in its middle."""
    label = np.zeros((len(corners), 20, 20), np.uint8)
    for one, corner in zip(label, corners, strict=True):
        one[4:12, corner : corner + 8] = 2
        one[6:10, corner + 2 : corner + 6] = 1
        one[14:16, corner : corner + 4] = 3
    return label


def test_dice_of_shifted_squares():
    dice = 100 * frame_dice(squares(4, 6), squares(4, 4))
    assert dice.iloc[0].tolist() == [100, 100, 100]
    # Shifted by 2: cavity overlaps in 2 of 4 columns, the epicardial region in 6 of 8, the atrium in 2 of 4.
    assert dice.iloc[1].tolist() == pytest.approx([50, 75, 50])


def test_epicardium_is_cavity_and_wall():
    label = squares(4)
    swapped = np.choose(label, [0, 2, 1, 3]).astype(np.uint8)
    dice = frame_dice(swapped, label).iloc[0]
    assert dice["LV epi"] == 1
    assert dice["LV endo"] == 0


def test_missing_structures():
    label = squares(4)
    without = np.where(label == 3, 0, label).astype(np.uint8)
    assert frame_dice(without, label)["LA"].item() == 0  # missed
    assert frame_dice(label, without)["LA"].item() == 0  # invented
    both = frame_dice(without, without)["LA"]
    assert both.isna().item()  # rightly absent
    with pytest.raises(ValueError, match="differ in shape"):
        frame_dice(label, label[:, 1:])
