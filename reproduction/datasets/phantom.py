"""The embedded default data: an ultrasound image of each virtual patient, written in CAMUS's own layout.

The anatomy is `anatomy`'s. The image is formed in polar coordinates (depth x beam) and scan-converted, as in a
sector scanner.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from echo.config import SPLITS, VIEW_PHASES, VIEWS
from echo.progress import tqdm
from echo.resume import read_json
from reproduction.datasets import layout
from reproduction.datasets.anatomy import VirtualPatient, anatomy, label_map, virtual_patient

VERSION = 1
N_DEPTH, N_BEAMS = 384, 192  # polar grid: finer than the 256 x 256 image it is converted to

# Level of noise, haze and side lobes (dB below a saturating echo), and depth of the drop-outs (dB).
DEGRADATION = {
    "Good": {"noise": -53, "haze": -46, "side_lobe": -25, "drop_out": 9},
    "Medium": {"noise": -49, "haze": -42, "side_lobe": -22, "drop_out": 12},
    "Poor": {"noise": -45, "haze": -38, "side_lobe": -18, "drop_out": 16},
}


# Image formation


@lru_cache(maxsize=16)
def _scan_maps(sector_deg: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Polar grid coordinates of each pixel, (2, size, size), and which lie in the sector, (size, size)."""
    half = np.radians(sector_deg / 2)
    z = (np.arange(size)[:, None] + 0.5) / size
    x = ((np.arange(size)[None, :] + 0.5) / size * 2 - 1) * np.sin(half)
    r, theta = np.hypot(x, z), np.arctan2(x, z)
    inside = (r < 1) & (np.abs(theta) < half)
    return np.stack([r * (N_DEPTH - 1), (theta / half + 1) / 2 * (N_BEAMS - 1)]), inside


@lru_cache(maxsize=64)
def _bumps(n: int, knots: int) -> np.ndarray:
    """(n, knots) overlapping Gaussian bumps whose squares sum to one at each of the n points."""
    gap = np.arange(n)[:, None] * knots / n - np.arange(knots)
    bumps = np.exp(-((gap / 0.9) ** 2))
    return bumps / np.sqrt((bumps**2).sum(1, keepdims=True))


def _smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """A smooth random field of unit variance on the polar grid, from (rows, columns) knots."""
    return _bumps(N_DEPTH, rows) @ rng.standard_normal((rows, columns)) @ _bumps(N_BEAMS, columns).T


def _echogenicity(patient, view, phase, r, theta, rng) -> np.ndarray:
    """Backscatter (dB; 0 saturates) on the polar grid: tissue, specular interfaces, drop-out of the walls."""
    a = anatomy(patient, view, phase, r * np.sin(theta), r * np.cos(theta))
    step_r, step_t = r[1, 0] - r[0, 0], theta[0, 1] - theta[0, 0]
    along, across = np.gradient(a["epi"], step_r, step_t)
    facing = np.abs(along) / (np.hypot(along, across / r) + 1e-6)  # 1: interface perpendicular to the beam
    muscle = (a["epi"] < 0) & (a["ends"] < 4)

    drop = DEGRADATION[patient.quality]["drop_out"]
    grain = _smooth_noise(rng, 70, 50)
    streaks = rng.standard_normal((20, 24))  # fibres run along the wall
    fibres = map_coordinates(streaks, [np.clip(a["endo"], 0, 40) / 2.2, r * np.cos(theta) / 8], order=1)
    db = -32 + 6 * _smooth_noise(rng, 4, 5) + 4 * _smooth_noise(rng, 40, 14)
    # bright fat and fibrous tissue: pericardium, atrioventricular groove, what lies behind the atria
    db += 9 * np.exp(-((a["epi"] / 4) ** 2)) * facing + 8 * np.exp(-(((a["base"] - 4) / 9) ** 2))
    db += 9 * np.exp(-(((a["rv"] - 3) / 3) ** 2)) + 6 * np.exp(-(((a["la"] - 2) / 3) ** 2))
    db += np.clip(3 + 9 * _smooth_noise(rng, 12, 4), -4, 20) / (1 + np.exp((28 - a["base"]) / 4))
    lost = drop * (1 - facing) * np.clip(0.7 * _smooth_noise(rng, 4, 4) + 0.3, 0, 1.2)
    db = np.where(muscle, -23 + 5 * fibres + 3 * grain + 4 * _smooth_noise(rng, 8, 8) + 3 * facing - lost, db)
    right = (a["rv"] < 0) | (a["ra"] < 0)
    blood = ((a["endo"] < 0) & (a["base"] < 0)) | (a["la"] < 0) | right
    db = np.where(blood, -52 + 2 * grain, db)
    # trabeculae and papillary muscles make the endocardial border ragged inside the traced contour
    ragged = blood & (a["endo"] > -4 + 2.5 * grain) & (a["base"] < -8)
    db = np.where(ragged & ~right, -32 + 4 * grain, db)
    db += 12 * np.exp(-((a["endo"] / 1.2) ** 2)) * facing**2 * (a["base"] < 0)

    sag = rng.normal(-1 if phase == "ES" else -4, 2)  # closed leaflets bow from annulus to annulus
    leaflet = np.exp(-(((a["base"] - sag * a["bow"]) / 1.1) ** 2)) * (a["bow"] > 0)
    return np.maximum(db, -12 + 4 * grain + 20 * np.log10(leaflet + 1e-6))


def render(patient: VirtualPatient, view: str, phase: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """B-mode image (size, size) uint8, row = depth, at least 1 inside the sector and exactly 0 outside it.

    Many unresolved scatterers at random depths within a wavelength give, once the carrier is demodulated, a
    circular Gaussian field; its envelope after the pulse and the beam is fully developed speckle (Burckhardt
    1978, IEEE Trans. Sonics Ultrason. 25(1):1-6). The beam widens away from its focus, and in mm with depth,
    as beams diverge. Images smaller than 256 average one of 256 or more pixels, as a resampled one would.
    """
    level = DEGRADATION[patient.quality]
    r = np.linspace(0, patient.depth, N_DEPTH)[:, None] + 0.2
    half = np.radians(patient.sector_deg / 2)
    theta = np.linspace(-half, half, N_BEAMS)[None, :]
    deep, across = r / patient.depth, theta / half

    db = _echogenicity(patient, view, phase, r, theta, rng)
    db = db - rng.normal(5, 3) * deep  # attenuation that the time gain compensation leaves
    shadow = np.clip(_smooth_noise(rng, 2, 8) - 0.6, 0, 1.5) * level["drop_out"] * 0.6
    edge = rng.uniform(0.05, 0.30, 2)
    ribs = 1 / (1 + np.exp((np.where(across < 0, *(1 - edge)) - np.abs(across)) / 0.04))
    db = db - shadow * np.clip(3 * deep, 0, 1) - rng.uniform(0, 18) * ribs
    amplitude = 10 ** (db / 20)
    amplitude = amplitude + 10 ** (level["side_lobe"] / 20) * gaussian_filter1d(amplitude, 20, axis=1, truncate=2)
    haze = 10 ** ((level["haze"] + 4 * _smooth_noise(rng, 6, 6)) / 20) * (0.4 + 1.2 * np.exp(-3 * deep))
    ring = 4 * np.cos(2 * np.pi * r / rng.uniform(4, 7)) + 3 * _smooth_noise(rng, 50, 3)  # transducer reverberation
    near = 10 ** ((-20 + ring) / 20) * np.exp(-(((r - rng.uniform(9, 15)) / rng.uniform(4, 8)) ** 2))
    amplitude = (amplitude + haze) * (1 - 0.85 * np.exp(-((r / 22) ** 2))) + near

    echo = rng.standard_normal((2, N_DEPTH, N_BEAMS)) * amplitude
    echo = gaussian_filter1d(echo, 1.2, axis=1)  # pulse
    focused, wide = gaussian_filter1d(echo, 1.0, axis=2), gaussian_filter1d(echo, 2.2, axis=2)
    defocus = np.clip(np.abs(deep - 0.45) / 0.55, 0, 1)
    # each blur is rescaled to unit noise gain, so that its width alone changes with depth
    echo = (1 - defocus) * focused * 2.8 + defocus * wide * 4.2
    echo += rng.standard_normal(echo.shape) * 10 ** ((level["noise"] + 6 * deep) / 20)
    envelope = np.hypot(*echo)
    # scanners compound frames and filter speckle: part of its contrast goes, its grain stays
    envelope = envelope**0.6 * gaussian_filter(envelope, 2.0, truncate=2) ** 0.4

    dynamic = patient.dynamic_range_db
    grey = 1 + (20 * np.log10(envelope + 1e-6) + patient.gain_db) / dynamic
    factor = max(1, -(-256 // size))
    fine, _ = _scan_maps(patient.sector_deg, size * factor)
    image = map_coordinates(255 * np.clip(grey, 0.01, 1) ** 1.3, fine, order=1, mode="nearest")
    image = image.reshape(size, factor, size, factor).mean((1, 3))
    return np.where(_scan_maps(patient.sector_deg, size)[1], np.round(image), 0).astype(np.uint8)


# Patients on disk


def _write_patient(folder: Path, seed: int, number: int, size: int) -> None:
    """The ten files of one patient, each drawn from its own seed; those that exist are left alone."""
    name = folder.name
    cfgs = [folder / f"Info_{view}.cfg" for view in VIEWS]
    files = [folder / f"{name}_{v}_{p}{kind}.nii.gz" for v, p in VIEW_PHASES for kind in ("", "_gt")]
    if all(path.exists() for path in cfgs + files):
        return
    seeds = np.random.SeedSequence([seed, number]).spawn(1 + len(VIEW_PHASES))
    patient = virtual_patient(np.random.default_rng(seeds[0]))
    spacing = patient.spacing_mm(size)
    for (view, phase), frame_seed in zip(VIEW_PHASES, seeds[1:], strict=True):
        image = render(patient, view, phase, size, np.random.default_rng(frame_seed))
        label = label_map(patient, view, phase, size)
        layout.write_frame(folder, view, phase, image, label, spacing)
    info = (
        f"ED: 1\nES: {patient.n_frames}\nNbFrame: {patient.n_frames}\n"
        f"Sex: {patient.sex}\nAge: {patient.age}\n"
        f"ImageQuality: {patient.quality}\nEF: {patient.ef:.0f}\nFrameRate: {patient.frame_rate}\n"
        f"LVedv: {patient.edv_ml:.1f}\nLVesv: {patient.esv_ml:.1f}\n"
    )
    layout.write_info(folder, info)


def write_phantom(
    root: str | Path, patients: Mapping[str, int], seed: int, size: int = 256, progress: bool = True
) -> Path:
    """Write a phantom data set in the layout of CAMUS's 2023 NIfTI release and return `root`.

    `patients` maps "training", "validation" and "testing" to counts; patients are numbered from 1 in that
    order, and patient k is the same whatever the counts. A cut-off run resumes; a finished one returns.
    Raises ValueError for an unknown split, a negative count, or a folder that holds a different phantom.
    """
    root = Path(root)
    if unknown := set(patients) - set(SPLITS):
        raise ValueError(f"unknown split {sorted(unknown)}: expected some of {list(SPLITS)}")
    if min(patients.values(), default=0) < 0:
        raise ValueError(f"negative number of patients: {dict(patients)}")
    counts = {split: int(patients.get(split, 0)) for split in SPLITS}
    claim = {"patients": counts, "seed": seed, "size": size, "version": VERSION}
    # the claim stands under a temporary name during the run, so that no two seeds mix in one folder
    done, begun = root / "phantom.json", root / "phantom.json.begun"
    for path in (done, begun):
        if path.exists() and (held := read_json(path)) != claim:
            raise ValueError(f"{root} holds another phantom ({held}); asked for {claim}: choose a new folder")
    if done.exists():
        return root
    layout.write_bytes(begun, (json.dumps(claim, indent=1) + "\n").encode())

    names = [f"patient{number:04d}" for number in range(1, sum(counts.values()) + 1)]
    for number, name in enumerate(tqdm(names, desc="phantom", unit="patient", disable=not progress), start=1):
        _write_patient(root / "database_nifti" / name, seed, number, size)
    remaining = iter(names)
    layout.write_splits(root, {split: [next(remaining) for _ in range(count)] for split, count in counts.items()})
    begun.replace(done)
    return root
