"""The embedded default data: virtual patients, an ultrasound image of each, written in CAMUS's own layout.

The anatomy is analytic, in millimetres: lateral `x` to the right, depth `z` downwards, the transducer at
(0, 0). One beating left ventricle per patient is seen in both apical views, so its volumes are known exactly.
The image is formed in polar coordinates (depth x beam) and scan-converted, as in a sector scanner.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates
from scipy.ndimage import label as components

from echo.config import PHASES, SPLITS, VIEWS
from echo.progress import tqdm

VERSION = 1
QUALITIES = {"Good": 217, "Medium": 214, "Poor": 69}  # how often each occurs among the 500 CAMUS patients
SECTOR_DEG = (73.0, 75.0, 75.0, 80.0, 88.0)  # opening angles of a few scanner presets
N_DEPTH, N_BEAMS = 384, 192  # polar grid: finer than the 256 x 256 image it is converted to

# Level of noise, haze and side lobes (dB below a saturating echo), and depth of the drop-outs (dB).
DEGRADATION = {
    "Good": {"noise": -53, "haze": -46, "side_lobe": -25, "drop_out": 9},
    "Medium": {"noise": -49, "haze": -42, "side_lobe": -22, "drop_out": 12},
    "Poor": {"noise": -45, "haze": -38, "side_lobe": -18, "drop_out": 16},
}


@dataclass(frozen=True)
class ViewShape:
    """How one apical view cuts the heart: mm at end-diastole, radians, (left, right) pairs."""

    diameter: float  # largest diameter of the cavity
    contraction: float  # ES diameter / ED diameter
    apex: tuple[float, float]  # (x, z) of the endocardial apex
    tilt: float  # of the long axis; positive leans the base to the right
    bend: float  # sideways bow of the long axis
    slope: float  # of the mitral valve plane against the long axis
    ripples: tuple[tuple[float, ...], tuple[float, ...]]  # relative amplitudes of the contour's first harmonics
    wall: tuple[tuple[float, float], tuple[float, float]]  # relative thickness at apex and base
    flare: tuple[float, float]  # how far the wall's ends reach below the valve plane
    atrium: tuple[float, float, float]  # length, half width, tilt of the left atrium
    right_heart: float  # width of the right ventricle


@dataclass(frozen=True)
class VirtualPatient:
    """A beating left heart, the scanner's settings and what the `Info_*.cfg` file states of the patient."""

    length: float  # endocardial long axis at ED, mm, shared by both views
    shortening: float  # of the long axis, ED to ES, as a fraction
    thickness: float  # of the wall at ED, mm
    centre: float  # where along the long axis the cavity is widest, as a fraction
    taper: float  # relative narrowing from there to the valve plane
    views: tuple[ViewShape, ViewShape]  # in the order of VIEWS
    depth: float  # of the image, mm
    sector_deg: float
    quality: str  # one of QUALITIES
    gain_db: float
    dynamic_range_db: float
    sex: str
    age: int
    n_frames: int
    frame_rate: float

    @property
    def edv_ml(self) -> float:
        """End-diastolic volume, mL, by the biplane method of discs on the analytic shape."""
        return _biplane_ml(self, "ED")

    @property
    def esv_ml(self) -> float:
        """End-systolic volume, mL."""
        return _biplane_ml(self, "ES")

    @property
    def ef(self) -> float:
        """Ejection fraction, per cent."""
        return 100 * (1 - self.esv_ml / self.edv_ml)

    def spacing_mm(self, size: int) -> tuple[float, float]:
        """Pixel size (row, column) in mm of a `size` x `size` image: the sector fills the square, as in CAMUS
        resampled to one, so columns are wider than rows."""
        return self.depth / size, 2 * self.depth * np.sin(np.radians(self.sector_deg / 2)) / size


def virtual_patient(rng: np.random.Generator) -> VirtualPatient:
    """Draw a patient whose EF lies in 20-75 % and EDV in 60-220 mL (drawn again until both hold)."""
    while True:
        patient = _draw_patient(rng)
        if 20 <= patient.ef <= 75 and 60 <= patient.edv_ml <= 220:
            return patient


def _draw_patient(rng: np.random.Generator) -> VirtualPatient:
    ejected = 0.18 + 0.58 * rng.beta(2, 2)
    shortening = 0.25 * ejected
    length = rng.normal(80, 6)
    diameter = length * rng.normal(0.60, 0.06)
    apex_z = rng.normal(28, 4)
    views = []
    for view in VIEWS:
        four = view == "4CH"
        tilt = np.radians(rng.normal(6 if four else 3, 4))
        views.append(
            ViewShape(
                diameter=diameter * rng.normal(1, 0.05),
                contraction=np.sqrt((1 - ejected) / (1 - shortening)) * rng.normal(1, 0.02),
                apex=(rng.normal(2 if four else -2, 3), apex_z + rng.normal(0, 2)),
                tilt=tilt,
                bend=rng.normal(0, 2),
                slope=rng.normal(0, 0.10),
                ripples=tuple(tuple(rng.normal(0, 0.07) / (k + 1) for k in range(4)) for _ in "lr"),
                wall=tuple((rng.normal(0.95, 0.12), rng.normal(1.05, 0.12)) for _ in "lr"),
                flare=tuple(rng.uniform(-0.1, 0.6, 2)),
                atrium=(
                    rng.normal(38, 5),
                    rng.normal(17, 2),
                    rng.normal(-0.12 if four else 0.02, 0.10) - tilt / 2,
                ),
                right_heart=rng.normal(34, 5) if four else 0.0,
            )
        )
    quality = str(rng.choice(list(QUALITIES), p=np.array(list(QUALITIES.values())) / sum(QUALITIES.values())))
    return VirtualPatient(
        length=length,
        shortening=shortening,
        thickness=float(np.clip(rng.normal(12.5, 1.8), 8.5, 17)),
        centre=rng.uniform(0.55, 0.72),
        taper=rng.uniform(0.10, 0.35),
        views=tuple(views),
        # the operator sets the depth so that the heart fills the sector
        depth=float(np.clip((apex_z + length) / 0.71 + rng.normal(0, 4), 141, 165)),
        sector_deg=float(rng.choice(SECTOR_DEG)),
        quality=quality,
        gain_db=rng.normal(1.5, 3.0),
        dynamic_range_db=rng.uniform(48, 60),
        sex=str(rng.choice(["F", "M"])),
        age=int(np.clip(rng.normal(65, 14), 20, 95)),
        n_frames=int(rng.integers(14, 26)),
        frame_rate=round(rng.uniform(42, 60), 1),
    )


# Anatomy


def _beat(patient: VirtualPatient, view: str, phase: str) -> tuple[ViewShape, float, float, float, float]:
    """The view's shape and, now: long axis, half diameter, wall thickness (mm), the atrium's growth."""
    shape = patient.views[VIEWS.index(view)]
    length, half = patient.length, shape.diameter / 2
    if phase == "ED":
        return shape, length, half, patient.thickness, 1.0
    shorter, narrower = length * (1 - patient.shortening), half * shape.contraction
    # the muscle is incompressible: a shorter contour carries a thicker wall of about the same area
    thickness = patient.thickness * (length + half) / (shorter + narrower)
    return shape, shorter, narrower, thickness, 1.0 + 1.3 * patient.shortening


def _ripple(amplitudes: tuple[float, ...], s: np.ndarray) -> np.ndarray:
    """Relative change of the half width at fraction `s` of the long axis: a short cosine series."""
    return 1 + sum(a * np.cos((k + 1) * np.pi * s) for k, a in enumerate(amplitudes))


def _diameters(patient: VirtualPatient, view: str, phase: str, s: np.ndarray) -> np.ndarray:
    """Cavity diameter (mm) across the long axis at fractions `s` from apex (0) to valve plane (1)."""
    shape, _, half, _, _ = _beat(patient, view, phase)
    c = patient.centre
    before = np.sqrt(np.clip(1 - (np.minimum(s, c) / c - 1) ** 2, 0, None))
    after = 1 - patient.taper * (np.clip(s - c, 0, None) / (1 - c)) ** 2
    return half * before * after * sum(_ripple(side, s) for side in shape.ripples)


def _biplane_ml(patient: VirtualPatient, phase: str, discs: int = 200) -> float:
    """Volume (mL) by the biplane method of discs, pi/4 L/n sum(d_2CH d_4CH) (Lang et al. 2015, JASE
    28(1):1-39). The slope of the valve plane adds on one side what it takes on the other and is left out."""
    _, length, *_ = _beat(patient, "2CH", phase)
    s = (np.arange(discs) + 0.5) / discs
    product = _diameters(patient, "2CH", phase, s) * _diameters(patient, "4CH", phase, s)
    return float(np.pi / 4 * length / discs * product.sum() / 1000)


def _anatomy(patient: VirtualPatient, view: str, phase: str, x: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
    """Level sets at the points (x, z), about in mm and negative inside: `endo` and `epi` (open at the base),
    `base` (positive below the valve plane), `ends` (the wall's lower limit), `la`, `rv`, `ra`. And `bow`: 1
    in the middle of the mitral valve, 0 at its annulus."""
    shape, length, half, thickness, growth = _beat(patient, view, phase)
    dx, dz = x - shape.apex[0], z - shape.apex[1] - (2.0 if phase == "ES" else 0.0)
    sin, cos = np.sin(shape.tilt), np.cos(shape.tilt)
    u, v = dx * sin + dz * cos, dx * cos - dz * sin  # along and across the long axis
    s = np.clip(u / length, 0, 1)
    v = v - shape.bend * np.sin(np.pi * s)
    left = v < 0
    side = np.abs(v) / np.where(left, _ripple(shape.ripples[0], s), _ripple(shape.ripples[1], s))
    wall = thickness * np.where(left, *(apex + (basal - apex) * s for apex, basal in shape.wall))

    centre = patient.centre * length
    above = np.clip(centre - u, 0, None)
    after = 1 - patient.taper * np.clip((s - patient.centre) / (1 - patient.centre), 0, None) ** 2
    endo = (np.hypot(above / centre, side / (half * after)) - 1) * half
    epi = (np.hypot(above / (centre + thickness), side / (half * after + wall)) - 1) * (half + thickness)

    base = u - length - shape.slope * v
    ends = base - np.clip(endo, 0, None) * np.where(left, *shape.flare)

    long, wide = shape.atrium[0] * growth, shape.atrium[1] * growth
    edges = [half * (1 - patient.taper) * _ripple(ripple, 1.0) for ripple in shape.ripples]
    mouth = 0.48 * sum(edges)
    t = np.clip(base / long, 0, 1)
    body = mouth + (wide - mouth) * np.sin(np.pi / 2 * np.clip(t / 0.45, 0, 1))
    body = body * np.sqrt(np.clip(1 - (np.clip(t - 0.45, 0, None) / 0.55) ** 2, 0, None))
    middle = (edges[1] - edges[0]) / 2 + np.tan(shape.atrium[2]) * np.clip(base, 0, long)
    la = np.maximum(np.abs(v - middle) - body, -base)

    outside = np.where(left, epi, -1.0)  # how far beyond the septum: the right heart of 4CH lies there
    reach = shape.right_heart * np.sin(np.pi / 2 * np.clip((u / length - 0.2) / 0.7, 0, 1)) ** 0.8
    rv = np.maximum(np.maximum(outside - 1 - reach, 1 - outside), base + 2)
    ra_v, ra_u = v - (middle - mouth - 4 - 0.55 * shape.right_heart), base - 22
    ra = (np.hypot(ra_v / (0.6 * shape.right_heart + 1e-3), ra_u / 20) - 1) * 18
    ra = np.maximum(ra, body + 3 - (middle - v)) if shape.right_heart else np.ones_like(ra)
    rv = rv if shape.right_heart else np.ones_like(rv)

    bow = 1 - ((v - middle) / (mouth + 1)) ** 2
    return {"endo": endo, "epi": epi, "base": base, "ends": ends, "la": la, "rv": rv, "ra": ra, "bow": bow}


def label_map(patient: VirtualPatient, view: str, phase: str, size: int) -> np.ndarray:
    """Labels (size, size) uint8, row = depth: 0 background, 1 LV endocardium, 2 LV myocardium, 3 left
    atrium. Each structure is one connected component."""
    row_mm, col_mm = patient.spacing_mm(size)
    z = (np.arange(size)[:, None] + 0.5) * row_mm
    x = (np.arange(size)[None, :] + 0.5 - size / 2) * col_mm
    x, z = np.broadcast_arrays(x, z)
    a = _anatomy(patient, view, phase, x, z)
    label = np.zeros((size, size), np.uint8)
    label[a["la"] < 0] = 3
    label[(a["epi"] < 0) & (a["ends"] < 0) & (a["endo"] >= 0)] = 2
    label[(a["endo"] < 0) & (a["base"] < 0)] = 1
    for structure in (1, 2, 3):  # the sharp corners at the valve plane can leave a pixel standing alone
        parts, _ = components(label == structure)
        counts = np.bincount(parts.ravel())
        label[(parts > 0) & (parts != 1 + counts[1:].argmax())] = 0
    return label


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
    a = _anatomy(patient, view, phase, r * np.sin(theta), r * np.cos(theta))
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


# CAMUS layout


def _write(path: Path, data: bytes) -> None:
    """Write through a temporary name, so that a killed run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def _nifti(array: np.ndarray, spacing_mm: tuple[float, float]) -> bytes:
    """A (row, column) uint8 array as .nii.gz bytes, stored (W, H) as CAMUS does; same array, same bytes."""
    image = nib.Nifti1Image(np.ascontiguousarray(array.T), np.diag([-spacing_mm[1], -spacing_mm[0], 1.0, 1.0]))
    return gzip.compress(image.to_bytes(), mtime=0)


def _write_patient(folder: Path, seed: int, number: int, size: int) -> None:
    """The ten files of one patient, each drawn from its own seed; those that exist are left alone."""
    name = folder.name
    frames = [(view, phase) for view in VIEWS for phase in PHASES]
    cfgs = [folder / f"Info_{view}.cfg" for view in VIEWS]
    files = [folder / f"{name}_{v}_{p}{kind}.nii.gz" for v, p in frames for kind in ("", "_gt")]
    if all(path.exists() for path in cfgs + files):
        return
    seeds = np.random.SeedSequence([seed, number]).spawn(1 + len(frames))
    patient = virtual_patient(np.random.default_rng(seeds[0]))
    spacing = patient.spacing_mm(size)
    for (view, phase), frame_seed in zip(frames, seeds[1:], strict=True):
        image = render(patient, view, phase, size, np.random.default_rng(frame_seed))
        _write(folder / f"{name}_{view}_{phase}.nii.gz", _nifti(image, spacing))
        _write(
            folder / f"{name}_{view}_{phase}_gt.nii.gz",
            _nifti(label_map(patient, view, phase, size), spacing),
        )
    info = (
        f"ED: 1\nES: {patient.n_frames}\nNbFrame: {patient.n_frames}\n"
        f"Sex: {patient.sex}\nAge: {patient.age}\n"
        f"ImageQuality: {patient.quality}\nEF: {patient.ef:.0f}\nFrameRate: {patient.frame_rate}\n"
        f"LVedv: {patient.edv_ml:.1f}\nLVesv: {patient.esv_ml:.1f}\n"
    )
    for path in cfgs:
        _write(path, info.encode())


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
        if path.exists() and (held := json.loads(path.read_text())) != claim:
            raise ValueError(f"{root} holds another phantom ({held}); asked for {claim}: choose a new folder")
    if done.exists():
        return root
    _write(begun, (json.dumps(claim, indent=1) + "\n").encode())

    names = [f"patient{number:04d}" for number in range(1, sum(counts.values()) + 1)]
    for number, name in enumerate(tqdm(names, desc="phantom", unit="patient", disable=not progress), start=1):
        _write_patient(root / "database_nifti" / name, seed, number, size)
    remaining = iter(names)
    for split, count in counts.items():
        members = "".join(f"{next(remaining)}\n" for _ in range(count))
        _write(root / "database_split" / f"subgroup_{split}.txt", members.encode())
    begun.replace(done)
    return root
