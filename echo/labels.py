"""Label schemes: the classes of a data source, the diffusion model's, and the sector that makes the difference.

CAMUS: 0 background, 1 LV endocardium (cavity), 2 LV myocardium, 3 left atrium.
SDM (the paper's released code): 0 outside the sector, 1 LV endocardium, 2 tissue inside the sector, 3 LV myocardium,
4 left atrium. Classes of any other ultrasound are numbered alike; without a sector, SDM's are the source's own.
"""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from monai.transforms.utils import get_largest_connected_component_mask
from numpy.typing import NDArray
from scipy import ndimage
from skimage.morphology import convex_hull_image

from echo.config import VIEW_PHASES

CAMUS_NAMES = ("background", "LV endo", "LV myo", "LA")
SDM_NAMES = ("outside", "LV endo", "tissue", "LV myo", "LA")
NUM_CAMUS, NUM_SDM = len(CAMUS_NAMES), len(SDM_NAMES)

# What the paper scores, as sets of CAMUS classes: the epicardial region is cavity and wall together.
STRUCTURES = {"LV endo": (1,), "LV epi": (1, 2), "LA": (3,)}
HEART = "apical heart"  # a wall around the cavity, an atrium below


@dataclass(frozen=True)
class Classes:
    """What the label maps of a data source mean; the source declares it, and `Frames` carry it.

    Attributes:
        names: of the classes; a place is the value in a label map, and 0 is the background.
        structures: what is scored: name -> the classes whose union it is; without any, each class but the background.
        sector: whether the image fills an ultrasound sector only, so that the background is outside of it or tissue.
        conditions: names of the classes of a whole image, such as its view; the place is its `class_label`.
        anatomy: which check an augmented map has to pass: "" for one of any organ, or HEART, which has volumes too.
    """

    names: tuple[str, ...]
    structures: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sector: bool = False
    conditions: tuple[str, ...] = ()
    anatomy: str = ""

    def __post_init__(self) -> None:
        """As `to_json` gives them too: pairs for a dictionary, lists for tuples."""
        found = dict(self.structures) or {name: (k,) for k, name in enumerate(self.names) if k}
        object.__setattr__(self, "structures", {name: tuple(values) for name, values in found.items()})
        for name in ("names", "conditions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def to_json(self) -> dict:
        """The arguments, JSON-able; structures as pairs, whose order no file loses."""
        return asdict(self) | {"structures": list(self.structures.items())}

    @property
    def sdm_names(self) -> tuple[str, ...]:
        """The classes that the diffusion model is conditioned on."""
        return ("outside", self.names[1], "tissue", *self.names[2:]) if self.sector else self.names


CAMUS = Classes(CAMUS_NAMES, STRUCTURES, True, tuple(" ".join(pair) for pair in VIEW_PHASES), HEART)


def sector_mask(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The insonified sector of an echo (H, W) as one filled, convex region (H, W).

    The released code takes `image != 0` pixel by pixel, which punches holes wherever blood is black and so leaks image
    content into the label map. An apical sector is convex (an angle below 180 degrees and an arc), so here it is the
    convex hull of the largest bright component.
    """
    bright = ndimage.binary_opening(ndimage.median_filter(image, 3) > 2, iterations=1)
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


def to_sdm(label: NDArray[np.uint8], sector: NDArray[np.bool_] | None, classes: Classes = CAMUS) -> NDArray[np.uint8]:
    """A source's classes (..., H, W) with the sector's mask -> SDM classes; structures may reach outside the sector.

    Without a sector they are the same.
    """
    if not classes.sector:
        return label
    inside = np.array([2, 1, *range(3, len(classes.sdm_names))], np.uint8)
    return np.where((label == 0) & ~sector, np.uint8(0), inside[label])


def to_camus(label: NDArray[np.uint8], classes: Classes = CAMUS) -> NDArray[np.uint8]:
    """SDM classes (..., H, W) -> the source's classes, by default CAMUS's: both backgrounds become 0."""
    return np.array([0, 1, 0, *range(2, len(classes.names))], np.uint8)[label] if classes.sector else label


def one_hot(label: NDArray[np.uint8], num_classes: int = NUM_SDM) -> torch.Tensor:
    """Classes (B, H, W) -> one-hot float32 (B, num_classes, H, W)."""
    index = torch.as_tensor(np.ascontiguousarray(label)).long()
    return torch.nn.functional.one_hot(index, num_classes).movedim(-1, -3).float().contiguous()
