"""Made nnU-Net raw datasets: discs of bright tissue in noise, in any format, with any number of classes."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from skimage.draw import disk
from skimage.io import imsave


def slice_of(rng: np.random.Generator, classes: int, shape: tuple[int, int], leave_out: int = 0):
    """(image float (H, W) in [0, 1], label uint8 (H, W)): a disc for each class, one below the other."""
    label = np.zeros(shape, np.uint8)
    height, width = shape
    for k in range(1, classes + 1):
        centre = height * k / (classes + 1), width * rng.uniform(0.4, 0.6)
        rows, columns = disk(centre, min(shape) / (2.5 * (classes + 1)) * rng.uniform(0.9, 1.2), shape=shape)
        if k != leave_out:
            label[rows, columns] = k
    return np.clip(0.15 + 0.7 * label / classes + rng.normal(0, 0.05, shape), 0, 1), label


def write(path: Path, array: np.ndarray, spacing: tuple[float, float]) -> None:
    """An array (H, W) or (H, W, 3) as PNG, TIFF or NIfTI (stored (W, H, 1), with a spacing (row, column) in mm)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(np.atleast_3d(array.T), np.diag([spacing[1], spacing[0], 8.0, 1.0])), path)
    else:
        imsave(path, array, check_contrast=False)


def made_set(
    root: Path,
    names: tuple[str, ...] = ("LV",),
    ending: str = ".png",
    dtype: type = np.uint8,
    rgb: bool = False,
    spacing: tuple[float, float] = (1.5, 0.75),
    shape: tuple[int, int] = (48, 40),
    patients: int = 6,
    tests: int = 2,
    test_labels: bool = True,
    splits: bool = True,
    every_other: int = 0,
    modality: str = "MRI",
) -> Path:
    """Write a dataset of two slices a patient, named p01_0, p01_1, ...; returns its folder.

    Args:
        names: of the classes but the background.
        tests: patients in imagesTs; the last of the others is the validation patient, where there are `splits`.
        every_other: a class that every second slice lacks.
    """
    rng = np.random.default_rng(0)
    cases = [(f"p{p:02d}_{k}", "Tr" if p <= patients else "Ts") for p in range(1, patients + tests + 1) for k in (0, 1)]
    for number, (case, part) in enumerate(cases):
        image, label = slice_of(rng, len(names), shape, every_other if number % 2 else 0)
        if rgb:
            image = np.stack([image, image**2, np.sqrt(image)], axis=-1)
        top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
        write(root / f"images{part}" / f"{case}_0000{ending}", (image * top).astype(dtype), spacing)
        if part == "Tr" or test_labels:
            write(root / f"labels{part}" / f"{case}{ending}", label, spacing)
    training = [case for case, part in cases if part == "Tr"]
    channels = dict(zip("012", "RGB", strict=True)) if rgb else {"0": modality}
    facts = {"channel_names": channels, "labels": {"background": 0} | {name: k for k, name in enumerate(names, 1)}}
    facts |= {"numTraining": len(training), "file_ending": ending, "licence": "CC0 1.0"}
    (root / "dataset.json").write_text(json.dumps(facts))
    if splits:
        (root / "splits_final.json").write_text(json.dumps([{"train": training[:-2], "val": training[-2:]}]))
    return root


def change_json(path: Path, **changes) -> None:
    """Set some keys of a JSON object, or remove those that are None."""
    facts = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))
