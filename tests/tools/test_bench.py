import json
import subprocess
import sys

import nbformat
import pytest
import torch
from conftest import REPOSITORY
from golden import tiny_inputs, tiny_unet
from torch import nn

from echo.fast import FASTER
from echo.sampler import SCHEDULERS
from echo.spade import Conditioning
from echo.unet import AttentionBlock
from tools import bench_cascade
from tools.bench import AMORTISED, paper_estimate
from tools.variants import SAMPLING, TRAINING, Case, prepare


@pytest.mark.parametrize("name", ["as published", "ours, PyTorch's GroupNorm", "ours, einsum attention"])
def test_a_variant_exchanges_its_modules_alone(name):
    unet, inputs = tiny_unet(), tiny_inputs()
    call = inputs["epsilon"], inputs["t"], Conditioning(inputs["label_map"])
    kinds = {type(m) for m in unet.modules()}
    with torch.no_grad():
        plain = unet(*call).sample
        prepare(unet, SAMPLING[name])
        torch.testing.assert_close(unet(*call).sample, plain, rtol=1e-4, atol=1e-4)
    slow = {"as published": set(FASTER), "ours, PyTorch's GroupNorm": {nn.GroupNorm}}.get(name, {AttentionBlock})
    assert {type(m) for m in unet.modules()} == {kind if kind in slow else FASTER.get(kind, kind) for kind in kinds}


def test_the_papers_training_fits_80_gb_at_its_batch():
    one, twelve = paper_estimate(1), paper_estimate(12)
    assert one["weights_gb"] == twelve["weights_gb"] == pytest.approx(652.2e6 * 22 / 1e9, rel=1e-3)
    assert twelve["activations_gb"] == pytest.approx(12 * one["activations_gb"])
    assert 40 < twelve["weights_gb"] + twelve["activations_gb"] < 80


def test_quick_bench_measures_every_row():
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench", "--quick"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    facts = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert all(facts[key] > 0 for key in ("training_step_speedup", "sampling_step_speedup", "memory_ratio"))
    assert set(facts["ceilings_tflops"]) == {
        f"{kind} {dtype}" for kind in ("matmul", "convolution") for dtype in ("float32", "bfloat16")
    }
    for name in ("nothing", "a busy process", *TRAINING, *SAMPLING, AMORTISED, *SCHEDULERS):
        assert f"| {name} |" in done.stdout


def test_a_notebooks_time_and_memory(tmp_path):
    def run(source: str) -> subprocess.CompletedProcess:
        """Measure a notebook of one cell, from a new process: this one's own peak would count."""
        content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(content, tmp_path / "a.ipynb")
        path = str(tmp_path / "a.ipynb")
        program = f"from tools.notebooks import *; import json; print(json.dumps(measure(Path({path!r}))))"
        command = [sys.executable, "-c", program]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    small, large = (json.loads(run(s).stdout) for s in ("1", 'import time; x = b"1" * 10**9; time.sleep(1)'))
    assert 0.9 < large["peak_gb"] - small["peak_gb"] < 1.1
    assert large["seconds"] > 1
    failed = run("1 / 0")
    assert failed.stderr.splitlines()[-1] == f"RuntimeError: {tmp_path}/a.ipynb failed"
    assert "ZeroDivisionError" in failed.stderr


@pytest.mark.parametrize("file", sorted((REPOSITORY / "results" / "bench").glob("*.json")), ids=lambda p: p.stem)
def test_the_page_says_what_was_measured(file):
    facts = json.loads(file.read_text())
    table = (REPOSITORY / "docs" / "speed.md").read_text()
    for row in facts["steps"]:
        if row["variant"] == "ours":
            assert f"| {row['network']} | {row['step']} step | {row['speedup']:.1f} x |" in table
    assert f"{facts['memory_ratio']:.2f} of" in table


def test_the_first_stage_is_compared_with_a_peer_of_its_size():
    pytest.importorskip("einops")
    found = {}
    for name in bench_cascade.NETWORKS:
        found[name] = bench_cascade.measure_step(Case("compact", 56, 2, 2), name, "channels_last", 0.0)
        assert found[name]["training"][0] > 0 and found[name]["sampling"][0] > 0
    _, equal, monai = (found[name]["parameters"] for name in bench_cascade.NETWORKS)
    assert equal == pytest.approx(monai, rel=0.03)


def test_an_image_of_the_cascade_and_a_step_of_the_authors_are_measured():
    assert bench_cascade.measure_cascade(0.0, batch=1)["image"][0] > 0
    assert bench_cascade.measure_authors(0.0, quick=True)["step"][0] > 0
