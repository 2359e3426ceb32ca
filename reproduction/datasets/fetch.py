"""Downloads: CAMUS from its public page, and the weights that the authors released.

A download is resumed where the server can do that, and begun anew where it cannot. What is under way lies in
`download.part/`; a file or folder appears under its name once all of it is there.
"""

import shutil
import stat
import zlib
from pathlib import Path, PureWindowsPath
from zipfile import BadZipFile, ZipFile, is_zipfile

import pooch
import requests

from echo.config import SPLITS
from echo.progress import tqdm
from reproduction import alone
from reproduction.datasets.camus import Camus, open_camus

# The Human Heart Project's Girder server. It makes the zip of a folder on the fly: no checksum, no length.
CAMUS_URL = "https://humanheart-project.creatis.insa-lyon.fr/database/api/v1"
CAMUS_FOLDERS = {"database_nifti": "63fde55f73e9f004868fb7ac", "database_split": "66e27d12961576b1bad4e4e1"}
CAMUS_LICENCE = "CAMUS is CC BY-NC-SA 4.0, for non-commercial research; to accept that, add --accept-license"
WEIGHTS_URL = "https://zenodo.org/api/records/7921055"

STALL = 60  # seconds without a byte
RETRIES = 5
UNPACKED_GB = 100  # of one zip, at most


def resuming(url: str, output_file: str, source: pooch.Pooch) -> None:
    """A downloader for `source`, which has one file; what came before the line broke is kept as `NAME.part`."""
    (name,) = source.registry_files
    part = source.abspath / f"{name}.part"
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, stream=True, timeout=STALL, headers=headers) as response:
        if response.status_code in (401, 403, 404, 410):
            raise FileNotFoundError(f"{url}: {response.status_code} {response.reason}; look at the page in a browser")
        if response.status_code == 416:  # beyond the end: not a part of this file
            part.unlink()
        response.raise_for_status()
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not resumed:
            tqdm.write(f"{name}: the server cannot resume, so all of it again")
        have, length = have * resumed, response.headers.get("Content-Length")
        bar = {"desc": name, "initial": have, "total": have + int(length) if length else None}
        with part.open("ab" if resumed else "wb") as file, tqdm(**bar, unit="B", unit_scale=True) as progress:
            for block in response.iter_content(2**16):
                progress.update(file.write(block))
    if name.endswith(".zip") and not is_zipfile(part):
        with part.open("rb") as file:
            if file.read(2) == b"PK":
                raise requests.ConnectionError("the zip ends early")
        part.unlink()
        raise FileNotFoundError(f"{url}: no zip but {response.headers.get('Content-Type')}, a login page? look at it")
    part.replace(output_file)


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip into the new folder `target`, without the one folder that all of it may be in.

    Raises:
        ValueError: for a damaged zip, a link, a path that leads out of the folder, more than UNPACKED_GB or the disk.
    """
    unpacked = archive.with_name("unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)  # of a process that was killed
    try:
        with ZipFile(archive) as zipped:
            for entry in zipped.infolist():
                path = PureWindowsPath(entry.filename)  # which knows either slash, and drives
                if path.anchor or ".." in path.parts or stat.S_ISLNK(entry.external_attr >> 16):
                    raise ValueError(f"{entry.filename!r} is a link or leads out of the folder")
            size = sum(entry.file_size for entry in zipped.infolist())  # zipfile writes no byte beyond it
            if size > min(UNPACKED_GB * 1e9, shutil.disk_usage(archive.parent).free):
                raise ValueError(f"{size / 1e9:.1f} GB unpacked are more than {UNPACKED_GB} GB, or than the disk has")
            zipped.extractall(unpacked)
        inside = list(unpacked.iterdir())
        (inside[0] if len(inside) == 1 and inside[0].is_dir() else unpacked).rename(target)
    except (BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{target.name}: nothing was unpacked, the zip is thrown away: {error}") from None


def get(url: str, target: Path, md5: str | None = None, unzip: bool = False) -> None:
    """Download a file, or a zip to unpack, to `target`, unless it is there.

    Raises:
        FileNotFoundError: where the address has no such file.
        ConnectionError: when RETRIES + 1 attempts fail; another call goes on from there.
        ValueError: for a wrong checksum, when another process downloads to the same folder, and as `unpack`.
    """
    if target.is_dir() if unzip else target.is_file() and pooch.file_hash(str(target), alg="md5") == md5:
        return
    name, work = target.name + ".zip" * unzip, target.parent / "download.part"
    source = pooch.create(work, "", registry={name: md5 and f"md5:{md5}"}, urls={name: url}, retry_if_failed=RETRIES)
    with alone(work / ".lock", f"{target.parent}: another process downloads to this folder: wait for it"):
        try:
            source.fetch(name, downloader=resuming)
            unpack(work / name, target) if unzip else (work / name).replace(target)
        except requests.RequestException as error:
            raise ConnectionError(f"{url}: {error}; the same command goes on from here") from None
        finally:
            if not list(work.glob("*.part")):
                shutil.rmtree(work, ignore_errors=True)


def fetch_camus(folder: Path, url: str = CAMUS_URL) -> Camus:
    """Download CAMUS's NIfTI release into `folder`, and open every frame once (`Camus.skipped` has the faults)."""
    for name, identifier in CAMUS_FOLDERS.items():
        get(f"{url}/folder/{identifier}/download", folder / name, unzip=True)
    return open_camus(folder, on_error="skip")


def describe(camus: Camus) -> str:
    """What is there, by split, and what is at fault: lines to print."""
    splits, everyone = ", ".join(f"{len(camus.patients(split))} {split}" for split in SPLITS), camus.patients()
    lines = [f"{camus.root}: {len(everyone)} patients ({splits}), {len(camus.keys(everyone))} frames, each opened once"]
    return "\n".join(lines + [f"skipped {patient}: {reason}" for patient, reason in camus.skipped])


def fetch_weights(folder: Path, url: str = WEIGHTS_URL) -> list[Path]:
    """Download what the record holds into `folder`, unpacked, by its checksums; returns the checkpoints (`*.pt`)."""
    # Not pooch's load_registry_from_doi: it asks doi.org and Zenodo alone, so a mirror (--url) could not serve.
    try:
        files = requests.get(url, timeout=STALL).json()["files"]
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        raise ConnectionError(f"{url}: no record of files, {type(error).__name__}: {error}") from None
    for file in files:
        name, md5 = Path(file["key"]).name, file["checksum"].removeprefix("md5:")
        get(file["links"]["self"], folder / name.removesuffix(".zip"), md5, name.endswith(".zip"))
    return sorted(folder.rglob("*.pt"))
