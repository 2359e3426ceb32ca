"""pyproject.toml gives ranges, requirements.lock exact pins, environment.yml takes the pins: they must agree."""

import re
import subprocess
import tomllib
from importlib.metadata import version

import pytest
import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import echo


def locked(name: str = "requirements.lock") -> list[Requirement]:
    """The pins of a lock, without its hashes."""
    lines = (REPOSITORY / name).read_text().splitlines()
    return [Requirement(line.removesuffix("\\")) for line in lines if line and not line.startswith(("#", " "))]


def project() -> dict:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def wanted() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    everything = [*project()["dependencies"], *(line for extra in extras for line in extra)]
    return [r for r in map(Requirement, everything) if r.name != project()["name"]]


def test_lock_pins_within_the_ranges():
    pins = {canonicalize_name(r.name): r for r in locked()}
    for requirement in wanted():
        pin = pins[canonicalize_name(requirement.name)]
        (spec,) = pin.specifier
        assert spec.operator == "=="
        assert requirement.specifier.contains(spec.version), f"{pin} is outside {requirement}"
    assert not [name for name in pins if re.match("nvidia|cuda|triton", name)]  # torch brings them where it needs them


def test_the_lock_for_gpus_has_the_same_pins_with_hashes_and_cuda():
    pins, more = ({str(r) for r in locked(name)} for name in ("requirements.lock", "requirements-gpu.lock"))
    assert pins <= more
    assert {re.match("nvidia|cuda|triton", pin)[0] for pin in more - pins} == {"nvidia", "cuda", "triton"}
    blocks = re.split(r"^(?=\S)", (REPOSITORY / "requirements-gpu.lock").read_text(), flags=re.M)[1:]
    assert len(blocks) == len(more)
    assert not [block for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", block)]


def test_this_environment_is_the_locked_one():
    here = [r for r in locked() if r.marker is None or r.marker.evaluate()]
    assert len(here) > 100
    wrong = [str(r) for r in here if version(r.name).split("+")[0] not in r.specifier]
    assert not wrong


@pytest.mark.parametrize("line", ["torch>=2.11", "diffusers>=0.39", "accelerate>=1.14", "monai>=1.6.1", "pandas>=2.2"])
def test_ranges_admit_colab(line):
    wide = Requirement(line)
    (ours,) = [r for r in wanted() if r.name == wide.name]
    assert ours.specifier == wide.specifier


def test_conda_takes_the_same_pins():
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python >=3.11,<3.14", "pip"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert environment["name"] == project()["name"]


def test_version_and_files():
    assert echo.__version__ == project()["version"] == version("echo-from-noise")
    for name in ("LICENSE", "CITATION.cff", "CONTRIBUTING.md", "README.md", "data/README.md"):
        assert (REPOSITORY / name).stat().st_size > 500
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["preferred-citation"]["year"] == 2023


def test_no_data_or_pickled_weights_are_tracked():
    try:
        out = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    tracked = out.split()
    assert tracked
    assert not [f for f in tracked if re.search(r"\.(mhd|raw|nii|nii\.gz|pt|pth|ckpt|pkl)$", f)]
    assert [f for f in tracked if f.startswith("data/")] == ["data/README.md", "data/paper_results.csv"]
    # Weights are the phantom's, or have a card with the licence of the data that they derive from.
    weights = {f for f in tracked if f.endswith(".safetensors") and "-phantom/" not in f}
    assert {f.split("/")[1] for f in weights} == {"camus-weights"}
    card = (REPOSITORY / "results" / "camus-weights" / "MODEL_CARD.md").read_text()
    assert "CC BY-NC-SA 4.0" in card and "Leclerc" in card
