"""The phantom's anatomy: virtual patients whose left heart beats, as label maps with known volumes.

Everything is analytic, in millimetres: lateral `x` to the right, depth `z` downwards, the transducer at (0, 0). One
left ventricle a patient is seen in both apical views, so its volumes are known exactly.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label as components

from echo.config import VIEWS

QUALITIES = {"Good": 217, "Medium": 214, "Poor": 69}  # how often each occurs among the 500 CAMUS patients
SECTOR_DEG = (73.0, 75.0, 75.0, 80.0, 88.0)  # opening angles of a few scanner presets


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


def anatomy(patient: VirtualPatient, view: str, phase: str, x: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
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
    a = anatomy(patient, view, phase, x, z)
    label = np.zeros((size, size), np.uint8)
    label[a["la"] < 0] = 3
    label[(a["epi"] < 0) & (a["ends"] < 0) & (a["endo"] >= 0)] = 2
    label[(a["endo"] < 0) & (a["base"] < 0)] = 1
    for structure in (1, 2, 3):  # the sharp corners at the valve plane can leave a pixel standing alone
        parts, _ = components(label == structure)
        counts = np.bincount(parts.ravel())
        label[(parts > 0) & (parts != 1 + counts[1:].argmax())] = 0
    return label
