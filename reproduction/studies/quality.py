"""How good synthetic images are."""

from pathlib import Path

import numpy as np
import pandas as pd
from monai.networks.nets import UNet

from echo.dice import frame_dice
from echo.frames import Frames
from echo.resume import write_csv
from echo.segmenter import predict
from reproduction.evaluation.images import (
    diversity,
    features,
    frechet_distance,
    histogram_distance,
    inception_features,
    kernel_distance,
    memorisation_test,
    nearest_distances,
    or_nan,
    power_spectrum,
    speckle_statistics,
)
from reproduction.evaluation.segmentation import mean_dice
from reproduction.synthesis.synthetic_set import read_images, read_manifest, set_classes


def label_fidelity(folder: Path, segmenter: UNet, batch_size: int = 256) -> pd.DataFrame:
    """How well each image of a synthetic dataset shows the label map it was painted for: Dice in [0, 1] of what a
    segmenter trained on real images finds.

    Returns:
        One row for each image, kept in the set's `fidelity.csv` too: id, each structure, and their mean.
        `synthetic_set.filter_worst` goes by it.
    """
    names, rows = read_manifest(folder)["id"], []
    for first in range(0, len(names), batch_size):
        some = names[first : first + batch_size]
        images, labels = (read_images(folder, kind, some) for kind in ("images", "labels"))
        rows.append(frame_dice(predict(segmenter, images), labels, set_classes(folder)).set_index(some))
    table = pd.concat(rows).rename_axis("id")
    table["mean"] = table.mean(axis=1)
    table = table.round(5).reset_index()
    write_csv(folder / "fidelity.csv", table)
    return table


def image_quality(
    synthetic: Frames, real: Frames, training: Frames, segmenter: UNet, seed: int, inception: str = ""
) -> dict[str, pd.DataFrame]:
    """Synthetic images beside real ones: fidelity, realism, diversity, speckle, and whether training images come back.

    Args:
        synthetic: images painted for label maps of held-out patients.
        real: the held-out patients' own images.
        training: what the diffusion model was trained on.
        segmenter: trained on real images.
        inception: weights for `metrics.inception_features`; given them, FID is measured too.

    Returns:
        "quality": one row for each measure, with the value of the synthetic images and, beside it, of real ones: Dice
        in %, distances to `real` (of as many training images, where real images stand), MS-SSIM of random pairs of a
        condition, speckle's signal-to-noise ratio in each region; NaN where there are too few images. "spectrum": power
        at each frequency. "nearest": distance of each synthetic and held-out image to the nearest training image, in
        grey levels and in features. "memorisation": the test of each.
    """
    others = training.select(np.linspace(0, len(training) - 1, min(len(training), len(synthetic))).astype(int))
    sets = {"synthetic": synthetic, "real": real}
    found = {
        name: features(segmenter, f.images) for name, f in (*sets.items(), ("others", others), ("training", training))
    }
    dice, classes = {k: mean_dice(segmenter, f) for k, f in sets.items()}, real.classes
    rows = {f"Dice of {name}, %": {k: values[name] for k, values in dice.items()} for name in classes.structures}
    for name, distance in (("Fréchet distance", frechet_distance), ("kernel distance", kernel_distance)):
        rows[name] = {
            "synthetic": or_nan(distance, found["synthetic"], found["real"]),
            "real": or_nan(distance, found["others"], found["real"]),
        }
    if inception:
        large = {name: inception_features(f.images, inception) for name, f in (*sets.items(), ("others", others))}
        rows["FID"] = {
            "synthetic": or_nan(frechet_distance, large["synthetic"], large["real"]),
            "real": or_nan(frechet_distance, large["others"], large["real"]),
        }
    lowest = 1 if classes.sector else 0  # class of a pixel in the image; all of them where there is no sector
    in_sector = {name: f.images[f.sdm_labels >= lowest] for name, f in (*sets.items(), ("others", others))}
    rows["grey-level distance"] = {
        "synthetic": histogram_distance(in_sector["synthetic"], in_sector["real"]),
        "real": histogram_distance(in_sector["others"], in_sector["real"]),
    }
    rows["MS-SSIM of pairs"] = {
        name: or_nan(diversity, f.images, seed, groups=f.index["class_label"]) for name, f in sets.items()
    }
    speckle = {
        k: speckle_statistics(f.images, f.sdm_labels, classes.sdm_names).groupby("region")["snr"].mean()
        for k, f in sets.items()
    }
    for region in ("LV endo", "LV myo", "tissue"):
        if classes.sector and region in classes.sdm_names:
            rows[f"speckle SNR, {region}"] = {k: values.get(region, np.nan) for k, values in speckle.items()}
    quality = pd.DataFrame(rows).T.rename_axis("measure").reset_index()

    spectrum = pd.concat([power_spectrum(f.images).assign(images=k) for k, f in sets.items()], ignore_index=True)
    tests, nearest = [], []
    for space, (a, b, c) in {
        "grey levels": (synthetic.images, real.images, training.images),
        "features": (found["synthetic"], found["real"], found["training"]),
    }.items():
        test = memorisation_test(a, b, c)
        tests.append({"space": space} | test | {"copies": len(test["copies"])})
        for name, queries in (("synthetic", a), ("real", b)):
            nearest.append(nearest_distances(queries, c).assign(space=space, images=name))
    return {
        "quality": quality,
        "spectrum": spectrum,
        "nearest": pd.concat(nearest, ignore_index=True),
        "memorisation": pd.DataFrame(tests),
    }


def spectrum_ratio(spectrum: pd.DataFrame) -> pd.Series:
    """Mean power of synthetic images as a fraction of the real ones', in three bands of cycles per image side.

    Args:
        spectrum: as `image_quality` returns it: power for each frequency, of synthetic and of real images.
    """
    power = spectrum.pivot(index="frequency", columns="images", values="power")
    bands = pd.cut(power.index, [0, 5, 14, np.inf], labels=["up to 5", "6 to 14", "above 14"])
    return (power["synthetic"] / power["real"]).groupby(bands, observed=False).mean()
