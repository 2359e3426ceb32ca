import base64
import json
import re
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from tools import site

REPOSITORY = Path(__file__).parents[2]
CAPTION = "**Figure 1.1.** A *grey* echo of $\\mathbf{x}_0$. Notice nothing."
OPENING = """# 01 · A try

[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/x)

**Claim.** Noise is *enough*."""


def png(width: int = 40, height: int = 30) -> str:
    """A picture as a notebook holds it."""
    data = BytesIO()
    Image.new("L", (width, height), 128).save(data, "png")
    return base64.b64encode(data.getvalue()).decode()


def figure_cell(count: int = 1) -> nbformat.NotebookNode:
    return new_code_cell("draw()", outputs=[new_output("display_data", {"image/png": png()}) for _ in range(count)])


def repository(folder: Path, *cells: nbformat.NotebookNode, readme: str = "", opening: str = OPENING) -> Path:
    """A small repository: this one's prose pages, and one notebook with these cells after its opening."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "data").mkdir()
    for name in ("pyproject.toml", "data/README.md"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "README.md").write_text(f"# Front\n\nHello.\n\n{readme}\n\n## After\n\nMore.\n")
    (folder / "CONTRIBUTING.md").write_text("# Contributing\n")
    nbformat.write(new_notebook(cells=[new_markdown_cell(opening), *cells]), folder / "notebooks" / "01_try.ipynb")
    return folder


def page(out: Path, name: str = "01_try.html") -> BeautifulSoup:
    return BeautifulSoup((out / name).read_text(), "html.parser")


def faults(out: Path) -> list[str]:
    """What is wrong with the pages of a site, a line each: links, pictures, headings, scripts, foreign files."""
    pages = {path.name: page(out, path.name) for path in sorted(out.glob("*.html"))}
    found = []
    for name, soup in pages.items():
        for link in soup.select("a[href]"):
            url = urlsplit(link["href"])
            if url.scheme:
                continue
            path = url.path or name
            if not (out / path).is_file():
                found.append(f"{name}: no file {path}")
            elif url.fragment and not pages[path].find(id=url.fragment):
                found.append(f"{name}: no #{url.fragment} in {path}")
        for tag in soup.select("img, link[href], source, iframe, object, embed, script[src]"):
            address = tag.get("src") or tag.get("srcset") or tag.get("href") or tag.get("data") or ""
            if not address.startswith("data:") and not (out / address).is_file():
                found.append(f"{name}: <{tag.name}> loads {address}")
        needed = ("alt", "width", "height")
        found += [f"{name}: {image['src']} lacks {a}" for image in soup("img") for a in needed if not image.get(a)]
        found += [f"{name}: a script" for tag in soup("script") if (name, tag.get("src")) != ("play.html", "play.js")]
        identifiers = [tag["id"] for tag in soup.select("[id]")]
        found += [f"{name}: two of #{i}" for i in {i for i in identifiers if identifiers.count(i) > 1}]
        levels = [int(h.name[1]) for h in soup.select("h1, h2, h3, h4, h5, h6")]
        if levels[:1] != [1] or levels.count(1) > 1 or any(b > a + 1 for a, b in zip(levels, levels[1:], strict=False)):
            found.append(f"{name}: headings {levels}")
        if not all(soup.select_one(needed) for needed in ("html[lang]", "title", "meta[name=viewport]")):
            found.append(f"{name}: no language, title or viewport")
    css = (out / "site.css").read_text()
    return found + [f"site.css: {address}" for address in re.findall(r"url\(.*?\)|@import.*", css)]


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The site of this repository."""
    out = tmp_path_factory.mktemp("site") / "_site"
    site.build(out)
    return out


def test_the_repositorys_own_site_has_no_fault(whole):
    assert faults(whole) == []
    for path in (REPOSITORY / "notebooks").glob("*.ipynb"):
        soup, notebook = page(whole, path.stem + ".html"), nbformat.read(path, as_version=4)
        drawn = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
        shown = re.findall(r"!\[[^]]+\]\(\.\./figures/", "".join(c.source for c in notebook.cells))
        assert shown, "no picture that the notebook opens with"
        assert len(soup.select("main img")) == len(drawn) + len(shown)
        assert soup.find(class_="claim")
        assert not soup.find(string=re.compile(r"\$\$|%\|")), "a formula or a progress bar as text"
    assert len(page(whole, "index.html").select("#read-the-notebooks + ul > li")) == len(list(whole.glob("0*.html")))


def test_a_number_and_its_spread_stay_on_one_line(whole):
    cells = page(whole, "index.html").find_all("td", string=re.compile("±"))
    assert len(cells) == 15
    assert all(cell["class"] == ["number"] for cell in cells)
    assert ".number { white-space: nowrap; }" in (whole / "site.css").read_text()


def test_the_checker_sees_faults(tmp_path):
    (tmp_path / "site.css").write_text("body { background: url(https://a.example/b.png) }")
    (tmp_path / "x.html").write_text(
        "<h1>a</h1><h3 id=a>b</h3><p id=a><a href=y.html></a><a href=#z></a><img src=https://a.example/c.png><script></script>"
    )
    text = "\n".join(faults(tmp_path))
    for fault in ("no file y.html", "no #z", "<img> loads", "lacks alt", "lacks width", "a script", "two of #a"):
        assert fault in text
    for fault in ("headings [1, 3]", "no language", "site.css: url("):
        assert fault in text


def test_a_figure_takes_the_caption_after_it(tmp_path):
    cells = [figure_cell(2), new_markdown_cell(CAPTION + "\n\n## Then")]
    out = tmp_path / "out"
    site.build(out, repository(tmp_path / "repository", *cells))
    soup = page(out)
    expected = ["A grey echo of 𝐱0. (1 of 2)", "A grey echo of 𝐱0. (2 of 2)"]
    assert [image["alt"] for image in soup("img")] == expected
    assert soup.img["width"] == "40" and soup.img["height"] == "30"
    assert soup.find("figcaption").get_text(strip=True).startswith("Figure 1.1.")
    assert soup.find(id="then").name == "h2" and not soup.figure.find("h2")
    assert faults(out) == []


@pytest.mark.parametrize("after", [[], [new_markdown_cell("Prose.")], [new_markdown_cell("**Figure 1.1.** ")]])
def test_a_figure_without_caption_is_refused_by_name(tmp_path, after):
    root = repository(tmp_path / "repository", new_markdown_cell("Before."), figure_cell(), *after)
    with pytest.raises(ValueError, match=r"notebooks/01_try\.ipynb, cell 2: its figure"):
        site.build(tmp_path / "out", root)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        ("[gone](echo/gone.py)", r"README\.md links to echo/gone\.py"),
        ("![](notebooks/a.png)", r"README\.md: notebooks/a\.png has no alternative text"),
        (r"$\nosuchcommand x$", r"no MathML for the formula \\nosuchcommand"),
    ],
)
def test_what_readers_could_not_use_is_refused(tmp_path, readme, message):
    with pytest.raises(ValueError, match=message):
        site.build(tmp_path / "out", repository(tmp_path / "repository", readme=readme))


def test_a_notebook_without_claim_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"notebooks/01_try\.ipynb: its first cell needs"):
        site.build(tmp_path / "out", repository(tmp_path / "repository", opening="# 01 · A try"))


def test_readers_see_no_machinery(tmp_path):
    view = {site.WIDGET: {"model_id": "a"}}
    bootstrap = new_code_cell("BOOTSTRAP = 1", metadata={"tags": ["bootstrap"]})
    bar = new_code_cell("train()", outputs=[new_output("display_data", {**view, "text/plain": "loss:   0%|   | 0/3"})])
    moving = new_code_cell(
        "play()", outputs=[new_output("execute_result", {**view, "text/plain": "HBox(children=())"})]
    )
    still = new_code_cell("turn()", outputs=[new_output("display_data", {**view, "image/png": png()})])
    warning = new_code_cell("warn()", outputs=[new_output("stream", name="stderr", text="  3%|  | 1/30")])
    card = new_code_cell("card()", outputs=[new_output("display_data", {"text/markdown": "# Model card"})])
    out = tmp_path / "out"
    cells = [bootstrap, new_markdown_cell("## Live"), bar, moving, still, new_markdown_cell(CAPTION), warning, card]
    site.build(out, repository(tmp_path / "repository", *cells))
    soup = page(out)
    text = soup.main.get_text()
    assert "BOOTSTRAP" not in text and "%|" not in text and "HBox" not in text
    assert "Controls that move in a running notebook." in text
    assert "Colab" not in text, "a badge that leads nowhere yet"
    assert soup.find(id="model-card").name == "h3"
    assert len(soup("img")) == 1 and faults(out) == []


def test_links_lead_to_pages_figures_and_the_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "LIVE", True)
    links = "[n](notebooks/01_try.ipynb#then) [d](data/README.md) [a](notebooks/) [t](pyproject.toml) [f](data)"
    root = repository(tmp_path / "repository", new_markdown_cell("## Then\n\n[r](../README.md)"), readme=links)
    site.build(tmp_path / "out", root)
    address = "https://github.com/echo-from-noise/echo-from-noise"
    front = page(tmp_path / "out", "index.html").main
    assert [front.find("a", string=text)["href"] for text in ("n", "d", "a", "t", "f")] == [
        "01_try.html#then",
        "data.html",
        "index.html#read-the-notebooks",
        f"{address}/blob/main/pyproject.toml",
        f"{address}/tree/main/data",
    ]
    soup = page(tmp_path / "out")
    assert soup.main.find("a", string="r")["href"] == "index.html"
    assert soup.main.find("a", href="https://colab.research.google.com/x").get_text() == "Open In Colab"
    assert soup.header.find("a", string="Source")["href"] == address


def test_until_the_address_is_live_nothing_leads_there(tmp_path):
    root = repository(tmp_path / "repository", readme="[t](pyproject.toml) stays as a word")
    site.build(tmp_path / "out", root)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "github.com" not in text and "t stays as a word" in page(tmp_path / "out", "index.html").get_text()
    assert "github.com" not in (tmp_path / "out" / "01_try.html").read_text()


def test_every_page_is_in_the_menus_by_its_title(whole):
    header = page(whole, "index.html").header
    titles = {link["href"]: link.get_text() for link in header("a")}
    assert set(titles) == {path.name for path in whole.glob("*.html")}
    assert titles["00_tour.html"].startswith("00 · ") and len(titles["00_tour.html"]) > 8
    assert titles["limits.html"] and titles["play.html"] == "Try it"


def test_the_set_up_is_folded_and_stays_readable(tmp_path):
    cells = [
        new_code_cell("import echo\n\nprint(1)", outputs=[new_output("stream", text="echo 1")]),
        new_code_cell("draw"),
    ]
    site.build(tmp_path / "out", repository(tmp_path / "repository", *cells))
    soup = page(tmp_path / "out")
    assert [d.summary.get_text() for d in soup.main("details")] == ["Set-up"]
    assert "import echo" in soup.main.details.get_text() and "draw" not in soup.main.details.get_text()
    assert "echo 1" in soup.main.find("pre", class_="output").get_text()


def test_a_long_formula_may_break_between_equations_and_before_equals():
    assert site.pieces(r"a_{x = y} = b = c, \qquad d = \frac{1}{2}") == [
        ["a_{x = y}", "= b", "= c,"],
        ["d", r"= \frac{1}{2}"],
    ]


def test_the_site_is_written_whole_or_not_at_all(tmp_path):
    root, out = repository(tmp_path / "repository"), tmp_path / "out"
    site.build(out, root)
    (out / "stale.html").touch()
    site.build(out, root)
    assert not (out / "stale.html").exists()
    (root / "README.md").write_text("# Front\n\n[gone](gone.py)\n")
    with pytest.raises(ValueError, match="gone"):
        site.build(out, root)
    assert faults(out) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match="mine is not a site"):
        site.build(tmp_path / "mine", root)


@pytest.mark.parametrize("tex", [r"\hat{\boldsymbol\epsilon}_\theta", r"\tfrac{\pi}{2}\!\big(x\big)", r"\mathbb{E}_t"])
def test_the_papers_symbols_become_mathml(tex):
    assert site.mathml(tex).startswith("<math") and "\\" not in site.mathml(tex)


def overflow(tab) -> list[str]:
    """Elements that make the page scroll sideways: wider than the window, and in no box of their own that scrolls."""
    return tab.evaluate(
        """() => document.scrollingElement.scrollWidth <= innerWidth ? [] : [...document.querySelectorAll('body *')]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    )


@pytest.fixture(scope="session")
def served(whole):
    """The site's address on this machine: browsers refuse some things to files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=whole))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light")])
def test_every_page_fits_the_window_and_loads_whole(chromium, served, whole, width, scheme):
    artefacts = REPOSITORY / "test-artefacts"
    artefacts.mkdir(exist_ok=True)
    context = chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    tab, trouble = context.new_page(), []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("requestfailed", lambda request: trouble.append(request.url))
    tab.on("response", lambda response: trouble.append(response.url) if response.status >= 400 else None)
    tab.on("request", lambda request: request.url.startswith((served, "data:")) or trouble.append(request.url))
    for path in sorted(whole.glob("*.html")):
        tab.goto(f"{served}/{path.name}")
        tab.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        tab.wait_for_load_state("networkidle")
        assert overflow(tab) == [], f"{path.name} scrolls sideways at {width} px"
        broken = tab.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert broken == [] and trouble == [], path.name
        tab.screenshot(path=artefacts / f"site-{path.stem}-{width}-{scheme}.png", full_page=True)
    context.close()


PLACES = [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]


@pytest.fixture(params=PLACES, ids=lambda p: f"{p[0]}-{p[1]}")
def tab(request, chromium, served):
    """The page "Try it" in a window of that width; what its console says fails the test."""
    width, scheme = request.param
    tab, trouble = chromium.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme), []
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.goto(f"{served}/play.html")
    yield tab
    tab.close()
    assert trouble == []


def place(tile) -> str:
    return tile.evaluate("tile => tile.style.backgroundPosition")


@pytest.mark.browser
def test_try_it(tab):
    """The loop stops, sliders turn the echo, and the game counts what was right."""
    loop = tab.locator("#loop img")
    assert loop.get_attribute("src").endswith("denoising.webp")
    tab.get_by_role("button", name="Stop").click()
    assert loop.get_attribute("src").endswith("denoising_last.webp")

    label_map, echo = tab.locator("#walls .tile").all()
    before = place(label_map), place(echo)
    wall, noise = tab.locator("#walls input").all()
    thin = tab.locator("#walls output").first.inner_text()
    wall.focus()
    tab.keyboard.press("End")
    assert float(tab.locator("#walls output").first.inner_text().split()[0]) > float(thin.split()[0])
    moved = place(label_map), place(echo)
    assert moved[0] != before[0] and moved[1] != before[1]
    noise.focus()
    tab.keyboard.press("ArrowRight")
    assert place(label_map) == moved[0] and place(echo) != moved[1]

    rounds = len(tab.evaluate("FACTS.pairs.views"))
    right = 0
    for done in range(1, rounds + 1):
        tab.locator("#pairs .choice").first.click()
        shown = tab.locator("#pairs .choice span").all_inner_texts()
        assert sorted(shown) == ["painted", "real"]
        right += shown[0] == "real"
        said = tab.locator("#pairs [role=status]").inner_text()
        assert f"{right} of {done} right" in said
        last = tab.locator("#pairs > button")
        if last.inner_text() == "Next pair":
            last.click()
    assert "Guessing gets" in said
    last.click()
    assert tab.locator("#pairs [role=status]").inner_text().startswith(f"Pair 1 of {rounds}")

    names = tab.locator("#cells figcaption")
    first = names.all_inner_texts()
    cell = tab.locator("#cells button").first
    cell.click()
    assert cell.get_attribute("aria-pressed") == "true"
    assert tab.locator("#cells [aria-pressed=true]").count() == 1
    assert tab.locator("#cells [role=status]").inner_text().startswith("real-only, LV endo: its 8 worst frames")
    assert names.count() == 8 and names.all_inner_texts() != first
    assert len({place(frame) for frame in tab.locator("#cells .tile").all()}) == 8
    assert overflow(tab) == []


def test_a_cell_opens_the_frames_with_the_lowest_published_dice():
    facts = json.loads((REPOSITORY / "figures" / "play.json").read_text())["cells"]
    scores = pd.read_csv(REPOSITORY / "results" / "laptop-phantom" / "scores.csv")
    scores = scores[scores["processing"] == "raw"]
    for k, row in enumerate(("real", "synthetic")):
        for n, structure in enumerate(facts["structures"]):
            dice = 100 * scores["dice"][(scores["train"] == row) & (scores["structure"] == structure)]
            assert facts["dice"][k][n] == pytest.approx(dice.mean(), abs=0.051)
            found = [name.split(", ")[1] for name in facts["frames"][k][n]]
            assert found == [f"{value:.0f} %" for value in dice.nsmallest(8)]


# Of each table that scrolls, scrolled to its end: how far its first column is from its box's left side.
STUCK = """() => [...document.querySelectorAll(".scroll")].filter(
    (box) => box.scrollWidth > box.clientWidth && box.querySelector("table")).map((box) => {
        box.scrollLeft = 1e4;
        const first = box.querySelector("tbody tr > :first-child").getBoundingClientRect();
        return first.left - box.getBoundingClientRect().left;
    })"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_menus_tables_and_set_up(chromium, served, width):
    tab = chromium.new_page(viewport={"width": width, "height": 844})
    tab.goto(f"{served}/05_dice_tables.html")
    tab.locator("header summary", has_text="Notebooks").click()
    tab.get_by_role("link", name="03 ·").first.wait_for()
    box = tab.locator("header details[open] ul").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and overflow(tab) == []
    tab.screenshot(path=REPOSITORY / "test-artefacts" / f"site-menu-{width}.png")
    tab.locator("header summary", has_text="Notebooks").click()
    code = tab.locator(".setup .code")
    assert not code.is_visible()
    tab.locator(".setup summary").click()
    assert code.is_visible()
    stuck = tab.evaluate(STUCK)
    assert all(abs(gap) < 1 for gap in stuck) and (stuck or width > 390)
    tab.close()


@pytest.mark.browser
def test_the_browser_sees_a_page_that_is_too_wide(chromium):
    tab = chromium.new_page(viewport={"width": 390, "height": 844})
    tab.set_content("<p>narrow</p><div style='overflow-x: auto'><p style='width: 700px'>in its box</p></div>")
    assert overflow(tab) == []
    tab.set_content("<p>narrow</p><p style='width: 700px'>wide</p>")
    assert len(overflow(tab)) == 1 and "wide" in overflow(tab)[0]
    tab.close()
