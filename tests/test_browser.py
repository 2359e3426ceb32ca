"""Every committed notebook in JupyterLab, in a real browser: Run All, then what the reader sees."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import nbformat
import pytest
import requests
from conftest import REPOSITORY
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.browser
PATHS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SCREENSHOTS = REPOSITORY / "test-artefacts"
TALLEST = 16_000  # pixels; Chromium draws no taller picture
# Cells are drawn as they scroll into view, unless told otherwise; no news is fetched.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"/>'

# What a reader sees of every code cell, in their order.
LOOK = """() => Promise.all([...document.querySelectorAll(".jp-CodeCell")].map(async (cell) => {
    const all = (selector) => [...cell.querySelectorAll(selector)];
    const images = all(".jp-OutputArea-output img");
    await Promise.all(images.map((image) => image.decode().catch(() => null)));
    return {
        prompt: cell.querySelector(".jp-InputPrompt").innerText,
        errors: all('[data-mime-type$=".stderr"], [data-mime-type$=".error"]').map((node) => node.innerText),
        widths: images.map((image) => image.naturalWidth),
        bars: all(".progress-bar").map((bar) => bar.className),
        widgets: all(".jp-OutputArea-output .jupyter-widgets").length,
        lost: all(".jp-OutputArea-output.jupyter-widgets").map((node) => node.innerText),  // the error in its stead
    };
}))"""
FINISHED = """() => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map((node) => node.innerText);
    const idle = document.querySelector("#jp-main-statusbar").innerText.includes("| Idle");
    const loading = [...document.querySelectorAll(".jp-OutputArea-output")].some(
        (node) => node.innerText === "Loading widget...");
    const shown = prompts.join();  // a folded cell shows none
    return idle && !loading && /\\d/.test(shown) && !shown.includes("*");
}"""
# The digest of each picture of a cell; nothing where one was replaced while it was read.
PICTURES = """(cell) => Promise.all([...cell.querySelectorAll(".jp-OutputArea-output img")].map(
    async (image) => crypto.subtle.digest("SHA-256", await (await fetch(image.src)).arrayBuffer())
)).then((digests) => digests.map((digest) => new Uint8Array(digest).join())).catch(() => null)"""
# How each control is drawn, and how a notebook's saved state names it.
CONTROLS = {
    "slider": (".noUi-handle", "SliderModel'"),
    "dropdown": (".widget-dropdown select", "'DropdownModel'"),
    "button": (".widget-button", "'ButtonModel'"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address, token and folder of a JupyterLab that keeps all it writes in a temporary place."""
    home, root = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("root")
    folder = root / "notebooks"
    folder.mkdir()
    shutil.copytree(REPOSITORY / "figures", root / "figures")  # a notebook opens with one of them
    overrides = home / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    }  # fmt: skip
    environment = os.environ | {name: str(home / place) for name, place in places.items()} | {"JUPYTER_TOKEN": "token"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    with (home / "log.txt").open("w") as log:
        command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}"]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while True:
            try:
                requests.get(f"{address}/api", timeout=5)
                break
            except requests.ConnectionError:
                assert server.poll() is None and time.monotonic() < deadline, (home / "log.txt").read_text()
                time.sleep(0.2)
        yield address, folder
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def opened(chromium, lab, name: str, notebook):
    """A page with a copy of that notebook, and the list that its console's errors join; the kernel ends with it."""
    address, folder = lab
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None  # the outputs stay, as the reader finds them
    nbformat.write(notebook, folder / f"{name}.ipynb")
    console = []
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    page.on("console", lambda message: console.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    # No badge is fetched: what lies outside is an empty picture.
    page.route(lambda url: not url.startswith((address, "blob:", "data:")),
               lambda route: route.fulfill(body=SVG, content_type="image/svg+xml"))  # fmt: skip
    try:
        page.goto(f"{address}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb?token=token")
        yield page, console
    finally:
        page.close()
        sessions = f"{address}/api/sessions"
        for session in requests.get(sessions, params={"token": "token"}, timeout=60).json():
            requests.delete(f"{sessions}/{session['id']}", params={"token": "token"}, timeout=60)


def run_all(page, timeout: float) -> None:
    """Run All Cells from the menu, once the kernel is there; wait at most `timeout` seconds for its end."""
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=60_000)
    for entry in ("Run", "Run All Cells"):
        page.get_by_role("menuitem", name=entry, exact=True).click()
    page.wait_for_function(FINISHED, timeout=1000 * timeout, polling=500)


def problems(page, notebook) -> list[str]:
    """What a reader would complain of in the run notebook, each as "cell N: ..."."""
    found, cells = [], [c for c in notebook.cells if c.cell_type == "code"]
    for n, (cell, seen) in enumerate(zip(cells, page.evaluate(LOOK), strict=True), start=1):
        kept = [o.get("data", {}) for o in cell.outputs]
        complaints = [f"error output {e.strip().splitlines()[-1]}" for e in seen["errors"]]
        if seen["prompt"] != f"[{n}]:" and not cell.metadata.get("jupyter", {}).get("source_hidden"):
            complaints.append(f"its number is {seen['prompt']}")
        if not all(seen["widths"]) or len(seen["widths"]) < sum("image/png" in data for data in kept):
            complaints.append(f"pictures of widths {seen['widths']}")
        if seen["lost"] or seen["widgets"] < sum("application/vnd.jupyter.widget-view+json" in data for data in kept):
            complaints.append(f"a widget is missing {seen['lost']}")
        complaints += [f"unfinished bar {bar}" for bar in seen["bars"] if "progress-bar-success" not in bar]
        found += [f"cell {n}: {complaint}" for complaint in complaints]
    return found


def drag(page, handle) -> None:
    """The mouse pulls a slider's handle towards its farther end."""
    handle.scroll_into_view_if_needed()
    track = handle.locator("xpath=ancestor::*[contains(@class, 'noUi-target')]").bounding_box()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(track["x"] + track["width"] * (0.3 if x - track["x"] > track["width"] / 2 else 0.7), y, steps=10)
    page.mouse.up()


def use_controls(page, timeout: float) -> dict[tuple[int, str], bool]:
    """Use the first slider, dropdown and button of each cell with a picture: whether the picture changed in time."""
    changed = {}
    for n, cell in enumerate(page.locator(".jp-CodeCell").all(), start=1):
        for name, (selector, _model) in CONTROLS.items():
            control = cell.locator(selector).first
            if not control.count() or not cell.locator(".jp-OutputArea-output img").count():
                continue
            before = now = cell.evaluate(PICTURES)
            assert before is not None
            if name == "slider":
                drag(page, control)
            elif name == "dropdown":
                control.select_option(index=control.locator("option").count() - 1)
            else:
                control.click()
            deadline = time.monotonic() + timeout
            while now in (before, None) and time.monotonic() < deadline:
                page.wait_for_timeout(200)
                now = cell.evaluate(PICTURES)
            changed[n, name] = now not in (before, None)
            page.wait_for_function(FINISHED, timeout=1000 * timeout)
    return changed


def screenshot(page, name: str) -> None:
    """The whole notebook in test-artefacts/NAME.png."""
    SCREENSHOTS.mkdir(exist_ok=True)
    panel = page.locator(".jp-WindowedPanel-outer")
    height = panel.evaluate("(panel) => panel.scrollHeight") + 150
    page.set_viewport_size({"width": 1400, "height": min(height, TALLEST)})
    panel.evaluate("(panel) => panel.scrollTo(0, 0)")
    page.screenshot(path=SCREENSHOTS / f"{name}.png", timeout=60_000)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_notebook_runs_in_jupyterlab(path, chromium, lab):
    notebook = nbformat.read(path, as_version=4)
    with opened(chromium, lab, path.stem, notebook) as (page, console):
        try:
            run_all(page, timeout=240)
            found = problems(page, notebook)
            changed = use_controls(page, timeout=60)
        finally:
            screenshot(page, path.stem)
        assert not found
        assert all(changed.values()), changed
        assert not console
        committed = str(notebook.metadata.get("widgets"))
        assert {name for _cell, name in changed} == {
            name for name, (_, model) in CONTROLS.items() if model in committed
        }


PLANTED = {
    "a broken picture": 'display({"image/png": "AAAA"}, raw=True)',
    "a bar that stops": "bar = tqdm(total=2)\nbar.update()\nbar.close()",
    "a lost widget": 'view = {"version_major": 2, "version_minor": 0, "model_id": "lost"}\n'
    'display({"application/vnd.jupyter.widget-view+json": view}, raw=True)',
    "a slider that does nothing": "widgets.VBox([widgets.IntSlider(), picture(0)])",
    "a slider that repaints": "slider, image = widgets.IntSlider(), picture(0)\n"
    'slider.observe(lambda change: setattr(image, "value", picture(change.new).value), "value")\n'
    "display(slider, image)",
    "a console error": "display(Javascript(\"console.error('planted')\"))",
    "a warning": 'print("planted warning", file=sys.stderr)',
    "an error": "1 / 0",
    "a cell that never runs": "1",
}
IMPORTS = """import io
import sys
import ipywidgets as widgets
from IPython.display import Javascript, display
from PIL import Image
from tqdm.auto import tqdm

def picture(grey):
    Image.new("L", (40, 40), grey).save(png := io.BytesIO(), "png")
    return widgets.Image(value=png.getvalue())
"""


def test_planted_failures_are_found(chromium, lab):
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [new_code_cell(source) for source in (IMPORTS, *PLANTED.values())]
    notebook = new_notebook(cells=cells, metadata=kernel)
    with opened(chromium, lab, "planted", notebook) as (page, console):
        run_all(page, timeout=60)
        found = problems(page, notebook)
        changed = use_controls(page, timeout=3)
        screenshot(page, "planted")
    assert found == [
        "cell 2: pictures of widths [0]",
        "cell 3: unfinished bar progress-bar progress-bar-danger",
        "cell 4: a widget is missing ['Error displaying widget: model not found']",
        "cell 8: error output planted warning",
        "cell 9: error output ZeroDivisionError: division by zero",
        "cell 10: its number is [ ]:",
    ]
    assert changed == {(5, "slider"): False, (6, "slider"): True}
    assert any(text == "planted" for text in console)
