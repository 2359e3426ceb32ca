"""Damaged files of a dataset: each gives a clean read or one clear line, no other exception, and nothing is deleted."""

import gzip
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

from reproduction.datasets.camus import open_camus
from reproduction.datasets.errors import DataError, DataFaults
from reproduction.datasets.phantom import write_phantom

sys.path.insert(0, str(Path(__file__).parent))
from damage import damage


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """The same patients as NIfTI packed, NIfTI plain and MetaImage."""
    counts = {"training": 1, "validation": 1, "testing": 1}
    packed, plain, meta = (tmp_path_factory.mktemp(name) for name in ("packed", "plain", "meta"))
    for root in (packed, plain, meta):
        write_phantom(root, counts, 0, size=32, progress=False)
    for path in plain.rglob("*.nii.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    (meta / "database_nifti").rename(meta / "training")
    for path in meta.rglob("*.nii.gz"):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ".mhd"))
        path.unlink()
    return {"packed": packed, "plain": plain, "meta": meta}


def read_all(root: Path) -> None:
    camus = open_camus(root)
    for key in camus.keys(camus.patients()):
        camus.frame(*key)
    camus.digest()


def try_one(sources: dict[str, Path], seed: int) -> str | None:
    """Damages one file, reads everything, mends it; the fault's message, if any."""
    root = list(sources.values())[seed % 3]
    wanted = (".gz", ".nii", ".mhd", ".raw", ".cfg", ".txt")
    files = sorted(path for path in root.rglob("*") if path.suffix in wanted)
    path = files[(seed * 7919) % len(files)]
    before, names = path.read_bytes(), sorted(root.rglob("*"))
    path.write_bytes(damage(before, seed // 3))
    try:
        read_all(root)
        return None
    except DataFaults as error:
        return str(error).splitlines()[1].strip()
    except DataError as error:
        return str(error)
    finally:
        assert sorted(root.rglob("*")) == names
        path.write_bytes(before)


def fuzz(sources: dict[str, Path], count: int, capfd) -> None:
    faults = [message for seed in range(count) if (message := try_one(sources, seed))]
    assert all("\n" not in message and message.startswith("/") for message in faults)
    assert count / 4 < len(faults) < count  # the damage is felt, and not everything is refused
    assert capfd.readouterr() == ("", "")
    for root in sources.values():
        read_all(root)


def test_sound_files_are_read(sources):
    for root in sources.values():
        read_all(root)


def test_200_damaged_files(sources, capfd):
    fuzz(sources, 200, capfd)


@pytest.mark.slow
def test_1000_damaged_files(sources, capfd):
    fuzz(sources, 1000, capfd)
