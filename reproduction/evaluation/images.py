"""How a set of synthetic images compares with real ones.

No single number says that synthetic images are good. Here are their realism (Fréchet and kernel distance of features,
grey levels, speckle, spectrum), their diversity (MS-SSIM) and their independence of the training images (nearest
distances). How well they follow their label maps is `frame_dice` of a segmenter's prediction.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from monai.metrics.regression import compute_ms_ssim
from monai.networks.layers import SkipConnection
from monai.networks.nets import UNet
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, stats
from scipy.signal.windows import hann

from echo.labels import SDM_NAMES

# Wang et al. 2003: weight of each scale, finest first, and the side of its window in pixels.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


MS_SSIM_WINDOW = 11


class TooFew(ValueError):
    """There are too few images for a measure."""


def or_nan(measure: Callable[..., float], *arguments, **options) -> float:
    """A measure of these arguments; NaN where there are too few images for it."""
    try:
        return measure(*arguments, **options)
    except TooFew:
        return np.nan


@torch.no_grad()
def features(network: UNet, images: NDArray[np.uint8], batch_size: int = 64) -> NDArray[np.float32]:
    """Features (N, D) of images uint8 (N, S, S): what the deepest level of a segmenter says, averaged over pixels.

    Take one segmenter, trained on real images, for all the sets compared: distances in the features of different
    networks do not compare, nor do ours with published FIDs, whose features are an ImageNet classifier's.
    A network without residual units (the paper's) instance-normalises that level, and little is left of it to average.

    Args:
        network: as `echo.segmenter.build_segmenter` returns; D is its last number of channels. It is left in
            evaluation mode.
    """
    network.eval()
    device = next(network.parameters()).device
    deepest = [m for m in network.modules() if isinstance(m, SkipConnection)][-1].submodule  # they are nested
    kept = []
    hook = deepest.register_forward_hook(lambda _module, _inputs, output: kept.append(output.mean((2, 3)).cpu()))
    try:
        for first in range(0, len(images), batch_size):
            network(torch.from_numpy(images[first : first + batch_size]).to(device).float()[:, None] / 255)
    finally:
        hook.remove()
    return torch.cat(kept).float().numpy()


@torch.no_grad()
def inception_features(images: NDArray[np.uint8], weights: str | Path, batch_size: int = 32) -> NDArray[np.float32]:
    """Features (N, 2048) of images uint8 (N, S, S) by the network of published FIDs: the `frechet_distance` of two sets
    of them is their FID (Heusel et al. 2017), which needs thousands of images to settle.

    Args:
        weights: torch-fidelity's file (`weights-inception-2015-12-05-*.pth`).

    Raises:
        ImportError: without the package torch-fidelity, which nothing else here needs.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ImportError("FID needs the package torch-fidelity: pip install torch-fidelity") from None
    network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights)).eval()
    batches = (images[k : k + batch_size] for k in range(0, len(images), batch_size))
    found = [network(torch.from_numpy(batch)[:, None].expand(-1, 3, -1, -1).contiguous())[0] for batch in batches]
    return torch.cat(found).float().numpy()


def _feature_pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"two sets of at least 2 features (N, D) are needed, not {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise TooFew(f"two sets of at least 2 features (N, D) are needed, not {a.shape} and {b.shape}")
    return a, b


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Squared Fréchet distance between normal distributions fitted to features (N, D) and (M, D) (Heusel et al. 2017,
    eq. 6); 0, up to rounding, for equal sets.

    It is biased upwards, the more the fewer images there are: compare sets of equal size, and see
    `kernel_distance`. N < D is allowed.

    Raises:
        TooFew: for fewer than 2 rows.
        ValueError: for different D.
    """
    a, b = _feature_pair(a, b)
    roots = []
    for x in (a, b):
        eigenvalues, vectors = np.linalg.eigh(np.cov(x, rowvar=False).reshape(x.shape[1], -1))
        roots.append(vectors * np.sqrt(eigenvalues.clip(0)) @ vectors.T)
    # Tr (A B)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2), which exists for singular A and B too.
    between = np.linalg.norm(roots[0] @ roots[1], "nuc")
    spread = sum(np.square(root).sum() for root in roots) - 2 * between
    return float(np.square(a.mean(0) - b.mean(0)).sum() + spread)


def kernel_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Kernel inception distance between features (N, D) and (M, D): the unbiased estimate of MMD^2 with the kernel
    (x . y / D + 1)^3 (Bińkowski et al. 2018).

    Its expectation is 0 for sets of one distribution, so single values may be slightly negative.

    Raises:
        TooFew: for fewer than 2 rows.
        ValueError: for different D.
    """
    a, b = _feature_pair(a, b)
    aa, bb, ab = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (aa, bb))
    return float(within - 2 * ab.mean())


def ms_ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Multi-scale structural similarity in [0, 1] of each pair of images of two stacks uint8 (N, S, S) (Wang et al.
    2003, eq. 7); 1 for equal images.

    The window is Wang's, 11 pixels at every scale; each scale halves the image, so that small images have room for
    the finest of the five scales only: 5 from S = 176, 4 from 99, 3 from 44, 2 from 22. Their weights are Wang's, made
    to sum to 1, so values compare between images of one size. Negative correlation counts as none. The black
    surroundings of the sector are alike in all images and raise the value.

    Raises:
        ValueError: for stacks of different shape, or S < 11.
    """
    if a.shape != b.shape:
        raise ValueError(f"stacks {a.shape} and {b.shape} differ in shape")
    size = min(a.shape[1:])
    if size < MS_SSIM_WINDOW:
        raise ValueError(f"images of {size} pixels are smaller than the window of {MS_SSIM_WINDOW}")
    # The k-th scale has a side of S / 2**k; MONAI asks for k**2, which is more at k = 3.
    scales = sum(size >= MS_SSIM_WINDOW * max(2**k, k**2) for k in range(len(MS_SSIM_WEIGHTS)))
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    x, y = (torch.from_numpy(stack).float()[:, None] / 255 for stack in (a, b))
    values = [
        compute_ms_ssim(p, q, 2, kernel_size=MS_SSIM_WINDOW, weights=weights.tolist())[:, 0]
        for p, q in zip(x.split(256), y.split(256), strict=True)
    ]
    return torch.cat(values).numpy()


def diversity(images: NDArray[np.uint8], seed: int, pairs: int = 200, groups: ArrayLike | None = None) -> float:
    """Mean `ms_ssim` of random pairs of different images out of a stack uint8 (N, S, S), drawn with replacement; the
    lower, the more diverse (Odena et al. 2017). Compare with that of real images.

    Args:
        groups: N values; pairs are then of one group only, such as the images painted for one label map, which says
            how much the noise alone varies. Groups of one image are left out.

    Raises:
        TooFew: when no group has two images.
    """
    labels = np.zeros(len(images), int) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    counts = np.bincount(labels, minlength=1)
    order = np.argsort(labels, kind="stable")  # rows, a group after the other
    starts = np.cumsum(counts) - counts
    candidates = np.flatnonzero(counts[labels[order]] > 1)  # places in that order
    if not len(candidates):
        raise TooFew("no two images to compare: every group has fewer than 2")
    rng = np.random.default_rng(seed)
    first = rng.choice(candidates, pairs)
    start, count = (per_group[labels[order[first]]] for per_group in (starts, counts))
    second = start + (first - start + rng.integers(1, count)) % count
    return float(ms_ssim(images[order[first]], images[order[second]]).mean())


def speckle_statistics(
    images: NDArray[np.uint8], sdm_labels: NDArray[np.uint8], names: tuple[str, ...] = SDM_NAMES
) -> pd.DataFrame:
    """First-order grey-level statistics of each image and region; images and SDM label maps are uint8 (N, S, S).

    A region loses one pixel at its border, where its neighbour shines in, unless nothing would remain. The
    signal-to-noise ratio mean / sd of fully developed speckle is 1.91 in a linear envelope (Burckhardt 1978; Wagner et
    al. 1983); in log-compressed grey levels, as here, it has no such value, and serves to compare sets.

    Returns:
        One row for each image and region: image (row of the stack), region (of `names`, but "outside"), pixels, mean
        and sd in grey levels, snr = mean / sd. An absent region has no row; snr is NaN where sd is 0.

    Raises:
        ValueError: for different shapes.
    """
    if images.shape != sdm_labels.shape:
        raise ValueError(f"images {images.shape} and labels {sdm_labels.shape} differ in shape")
    rows = []
    for k, (image, label) in enumerate(zip(images, sdm_labels, strict=True)):
        for value, region in enumerate(names):
            mask = label == value
            if region == "outside" or not mask.any():
                continue
            inner = ndimage.binary_erosion(mask)
            grey = image[inner if inner.any() else mask].astype(float)
            mean, sd = grey.mean(), grey.std()
            row = {"image": k, "region": region, "pixels": grey.size, "mean": mean, "sd": sd}
            rows.append(row | {"snr": mean / sd if sd > 0 else np.nan})
    return pd.DataFrame(rows, columns=["image", "region", "pixels", "mean", "sd", "snr"])


def histogram_distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Wasserstein-1 distance in grey levels, [0, 255], between the histograms of two arrays uint8 of any shape.

    Give it what lies in the sector, `images[sdm_labels > 0]`: its black surroundings would make all sets alike.
    """
    levels = np.arange(256)
    return float(stats.wasserstein_distance(levels, levels, *(np.bincount(x.ravel(), minlength=256) for x in (a, b))))


def power_spectrum(images: NDArray[np.uint8]) -> pd.DataFrame:
    """Radially averaged power spectrum, mean over images uint8 (N, S, S): where synthetic speckle has another grain.

    Each image loses its (window-weighted) mean and is tapered by a Hann window against its borders; the periodogram
    is divided by the window's power, so that white noise of variance v has power v at every frequency.

    Returns:
        One row for each frequency: frequency in cycles per image side, 1 to S / 2, each a ring 1 wide, and power in
        squared grey levels.
    """
    size = images.shape[-1]
    window = np.outer(*2 * [hann(size, sym=False)])
    total = np.zeros((size, size))
    for image in images:
        centred = image - np.average(image, weights=window)
        total += np.abs(np.fft.fft2(window * centred)) ** 2
    power = total / (len(images) * np.square(window).sum())
    cycles = np.fft.fftfreq(size, 1 / size)
    ring = np.hypot(*np.meshgrid(cycles, cycles)).round().astype(int).ravel()
    radial = np.bincount(ring, power.ravel()) / np.bincount(ring)
    frequency = np.arange(1, size // 2 + 1)
    return pd.DataFrame({"frequency": frequency, "power": radial[frequency]})


def nearest_distances(queries: NDArray, references: NDArray, neighbours: int = 50) -> pd.DataFrame:
    """How far each query is from the nearest reference.

    Args:
        queries: images (N, S, S), compared by their root mean square difference in grey levels, or features (N, D),
            by Euclidean distance.
        references: as many images or features as there are, (M, S, S) or (M, D).
        neighbours: how many nearest references `relative` is measured by; M where that is less.

    Returns:
        One row for each query: distance, index (the nearest reference's row), and relative, in [0, 1]: distance over
        the mean distance of the nearest `neighbours` (Carlini et al. 2023, for CIFAR-10): a copy is close to one only.

    Raises:
        ValueError: when the two differ in more than their number.
    """
    if queries.shape[1:] != references.shape[1:]:
        raise ValueError(f"queries {queries.shape} and references {references.shape} do not compare")
    scale = np.sqrt(np.prod(queries.shape[1:])) if queries.ndim > 2 else 1.0
    x, y = (torch.from_numpy(np.asarray(a).reshape(len(a), -1)) for a in (queries, references))
    y, count = y.double(), min(neighbours, len(y))
    near, index = zip(*[torch.cdist(part.double(), y).topk(count, largest=False) for part in x.split(256)], strict=True)
    near, index = torch.cat(near).numpy() / scale, torch.cat(index).numpy()
    return pd.DataFrame({"distance": near[:, 0], "index": index[:, 0], "relative": near[:, 0] / near.mean(1)})


def memorisation_test(synthetic: NDArray, heldout: NDArray, training: NDArray, alpha: float = 0.5) -> dict:
    """Whether synthetic images are closer to the training images than unseen real ones are.

    A three-sample test (Meehan et al. 2020): the `nearest_distances` to the training set of synthetic and of
    held-out real images, one-sided Mann-Whitney. It assumes that both sets show alike contents: paint the label maps
    of the held-out patients, since maps augmented from the training set bring its sectors and hearts along. Frames of
    one patient are not independent, so p is somewhat too small. Nor is a small p proof: smooth images are close to
    everything, and score one without memory, if a larger one in relative distance. Shifted or re-contrasted copies
    escape in grey levels: repeat the test in features.

    A synthetic image is called a copy when its relative distance is below `alpha` (Carlini et al. take 0.5, of 50
    neighbours) and below that of every held-out image.

    Args:
        synthetic, heldout, training: images (N, S, S) or features (N, D), each with its own N.

    Returns:
        p_value and p_value_relative of the two distances; closer and closer_relative, the probability in [0, 1] that
        a synthetic image is closer than a held-out one (0.5 if nothing is memorised); median_synthetic and
        median_heldout, distances; copies, the rows of `synthetic` (K,) called so.
    """
    return compare_nearest(*(nearest_distances(images, training) for images in (synthetic, heldout)), alpha)


def compare_nearest(ours: pd.DataFrame, real: pd.DataFrame, alpha: float = 0.5) -> dict:
    """`memorisation_test`'s result, from the `nearest_distances` of synthetic and of held-out images."""
    result = {}
    for kind, suffix in (("distance", ""), ("relative", "_relative")):
        u, p = stats.mannwhitneyu(ours[kind], real[kind], alternative="less")
        result |= {f"p_value{suffix}": float(p), f"closer{suffix}": float(1 - u / (len(ours) * len(real)))}
    return result | {
        "median_synthetic": float(ours["distance"].median()),
        "median_heldout": float(real["distance"].median()),
        "copies": np.flatnonzero(ours["relative"] < min(alpha, real["relative"].min())),
    }
