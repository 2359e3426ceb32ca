"""Label schemes: CAMUS's four classes, the diffusion model's five, and the sector that makes the difference.

CAMUS: 0 background, 1 LV endocardium (cavity), 2 LV myocardium, 3 left atrium.
SDM (the paper's released code): 0 outside the sector, 1 LV endocardium, 2 tissue inside the sector, 3 LV myocardium,
4 left atrium.
"""

import numpy as np
import torch
from monai.transforms.utils import get_largest_connected_component_mask
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import convex_hull_image

CAMUS_NAMES = ("background", "LV endo", "LV myo", "LA")
SDM_NAMES = ("outside", "LV endo", "tissue", "LV myo", "LA")
NUM_CAMUS, NUM_SDM = len(CAMUS_NAMES), len(SDM_NAMES)
_CAMUS_TO_SDM = np.array([2, 1, 3, 4], np.uint8)  # of a pixel inside the sector
_SDM_TO_CAMUS = np.array([0, 1, 0, 2, 3], np.uint8)

# What the paper scores, as sets of CAMUS classes: the epicardial region is cavity and wall together.
STRUCTURES = {"LV endo": (1,), "LV epi": (1, 2), "LA": (3,)}


def sector_mask(image: NDArray[np.uint8], threshold: int = 2) -> NDArray[np.bool_]:
    """The insonified sector of an echo (H, W) as one filled, convex region (H, W).

    The released code takes `image != 0` pixel by pixel, which punches holes wherever blood is black and so leaks image
    content into the label map. An apical sector is convex (an angle below 180 degrees and an arc), so here it is the
    convex hull of the largest bright component.
    """
    bright = ndimage.binary_opening(ndimage.median_filter(image, 3) > threshold, iterations=1)
    if not bright.any():
        return np.ones(image.shape, bool)
    return convex_hull_image(get_largest_connected_component_mask(bright, connectivity=1))


def sector_of(sdm_label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The sector's mask of an SDM label map (H, W): what is labelled within the hull of its tissue.

    Not all that is labelled: structures may reach outside the sector, and would leave their shape in it. Not the whole
    hull: it holds pixels that it merely touches, and the sector would grow by one all round.
    """
    return convex_hull_image(sdm_label == SDM_NAMES.index("tissue")) & (sdm_label > 0)


def sector_holes(sector: NDArray[np.bool_]) -> int:
    """How many holes a sector's mask (H, W) has: pieces of its complement that do not reach the image's border."""
    pieces, count = ndimage.label(np.pad(~sector, 1, constant_values=True))
    return count - 1


def to_sdm(label: NDArray[np.uint8], sector: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """CAMUS classes (..., H, W) with the sector's mask -> SDM classes; structures may reach outside the sector."""
    return np.where((label == 0) & ~sector, np.uint8(0), _CAMUS_TO_SDM[label])


def to_camus(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """SDM classes (..., H, W) -> CAMUS classes: both backgrounds become 0."""
    return _SDM_TO_CAMUS[label]


def one_hot(label: NDArray[np.uint8], num_classes: int = NUM_SDM) -> torch.Tensor:
    """Classes (B, H, W) -> one-hot float32 (B, num_classes, H, W)."""
    index = torch.as_tensor(np.ascontiguousarray(label)).long()
    return torch.nn.functional.one_hot(index, num_classes).movedim(-1, -3).float().contiguous()
