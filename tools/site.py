"""The README and the executed notebooks as static pages: `make site`, then open `_site/index.html`.

Nothing from another server: mathematics is MathML, every picture is a file of the site. Only the page "Try it" has a
script (`play.js`), and shows its pictures without it too.
"""

import json
import os
import re
import shutil
import sys
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image

from tools.badges import repository_address

ROOT = Path(__file__).resolve().parent.parent
PROSE = {"README.md": "index.html", "data/README.md": "data.html", "CONTRIBUTING.md": "contributing.html"}
PLAY = "tools/play.md"  # beside it its script, and the facts that `python -m tools.pictures` wrote
LIVE = False  # whether the repository's address answers: until then no page links to it, or to Colab
COLAB = "https://colab.research.google.com/"
LIST = "Read the notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
CAPTION = re.compile(r"\*\*Figure \d+\.\d+\.\*\*\s+(?=\S)")


def mathml(tex: str, display: str = "inline") -> str:
    """A formula as MathML; ValueError where latex2mathml leaves a command or an alignment mark as it was."""
    spaced = tex.strip().replace(r"\log ", r"\,\log\,")  # the converter gives operators no room
    result = convert(spaced, display=display)
    if re.search(r"\\|&amp;|>&<", result):
        raise ValueError(f"no MathML for the formula {tex.strip()}")
    return result


def pieces(tex: str) -> list[list[str]]:
    r"""Where a narrow window may break a formula: its equations, between \qquad, and these before each "=" that
    stands in no braces."""
    found = []
    for equation in tex.split(r"\qquad"):
        cuts, depth = [0], 0
        for place, letter in enumerate(equation):
            depth += {"{": 1, "}": -1}.get(letter, 0)
            if equation[place : place + 3] == " = " and not depth:
                cuts.append(place)
        found.append([equation[a:b].strip() for a, b in zip(cuts, [*cuts[1:], None], strict=True)])
    return found


class Renderer(IPythonRenderer):
    """nbconvert's renderer, with formulas as MathML in place of what MathJax would read."""

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        lines = [[mathml(piece, "block") for piece in line] for line in pieces(body)]
        inner = "".join(f"<span>{''.join(line)}</span>" for line in lines)
        return f'<div class="scroll math" tabindex="0">{inner}</div>'


def to_html(markdown: str) -> str:
    """Markdown with mathematics as HTML."""
    return MarkdownWithMath(renderer=Renderer(escape=False, exclude_anchor_links=True)).render(markdown)


def opening(notebook: nbformat.NotebookNode, name: str) -> tuple[str, str]:
    """A notebook's title and its claim, in Markdown; ValueError when its first cell has none."""
    source = notebook.cells[0].source
    title, claim = re.match(r"# (.+)", source), re.search(r"\*\*Claim\.\*\* (.+)", source)
    if not title or not claim:
        raise ValueError(f"{name}: its first cell needs '# NN · Title' and a line '**Claim.** ...'")
    return title[1], claim[1]


def prepare(notebook: nbformat.NotebookNode, name: str) -> None:
    """Leave what a reader sees: figures with caption and alternative text, no bootstrap cell, no progress bars.

    A figure's caption is the first paragraph of the cell after its code cell, its alternative text the caption's first
    sentence. ValueError names the notebook and the cell of a figure without one.
    """
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if re.search(r"^import echo$", cell.source, re.M):
            cell.metadata.folded = True
        for output in list(cell.outputs):
            data = output.get("data", {})
            if output.get("name") == "stderr" or (WIDGET in data and "%|" in data.get("text/plain", "")):
                cell.outputs.remove(output)
            elif WIDGET in data and "image/png" not in data:
                output.data = {"text/markdown": "*Controls that move in a running notebook.*"}
        figures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        if figures:
            following = notebook.cells[number + 1] if number + 1 < len(notebook.cells) else None
            if following is None or following.cell_type != "markdown" or not CAPTION.match(following.source):
                raise ValueError(f"{name}, cell {number}: its figure needs a cell after it, '**Figure 3.2.** ...'")
            caption, _, following.source = following.source.partition("\n\n")
            text = BeautifulSoup(to_html(CAPTION.sub("", caption)), "html.parser").get_text()
            sentence = re.split(r"(?<=[.!?])\s", " ".join(text.split()))[0]
            for k, figure in enumerate(figures, 1):
                figure.metadata["alt"] = sentence + (f" ({k} of {len(figures)})" if len(figures) > 1 else "")
            figures[-1].metadata["caption"] = caption
    notebook.cells = [c for c in notebook.cells if c.source and "bootstrap" not in c.metadata.get("tags", [])]


def resolve(link: str, source: str, root: Path, files: dict[str, bytes], pages: dict[str, str], address: str) -> str:
    """Where a link of the file `source` leads: a page, a picture (put into `files`) or else the repository's address.

    ValueError when it leads nowhere.
    """
    path, _, fragment = link.partition("#")
    if urlsplit(link).scheme or not path:
        return link
    path = os.path.normpath(Path(source).parent / path)
    if path in pages:
        return pages[path] + (f"#{fragment}" if fragment else "")
    if path == "notebooks":
        return "index.html#" + slug(LIST)
    if not (root / path).exists():
        raise ValueError(f"{source} links to {link}, which does not exist")
    if path.endswith((".png", ".webp")):
        files.setdefault(path, (root / path).read_bytes())
        return path
    return f"{address}/{'tree' if (root / path).is_dir() else 'blob'}/main/{path}"


def slug(heading: str) -> str:
    """A heading's identifier, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def hide(soup: BeautifulSoup, address: str) -> None:
    """Take away Colab's badges, and links to an address that does not answer yet, but not these links' words."""
    for link in soup.select(f'a[href^="{COLAB}"]'):
        paragraph = link.find_parent("p")
        link.decompose()
        if paragraph and not paragraph.get_text(strip=True):
            paragraph.decompose()
    for link in soup.select(f'a[href^="{address}"]'):
        link.unwrap()


def finish(html: str, source: str, root: Path, files: dict[str, bytes], pages: dict[str, str], address: str) -> str:
    """A page with its links resolved, its pictures in `files`, identifiers on headings and tables that scroll."""
    soup = BeautifulSoup(html, "html.parser")
    for link in soup.select("main a[href]"):
        link["href"] = resolve(link["href"], source, root, files, pages, address)
    if not LIVE:
        hide(soup, address)
    for still in soup("source"):
        still["srcset"] = resolve(still["srcset"], source, root, files, pages, address)
    for image in soup("img"):
        if urlsplit(image["src"]).scheme:  # a badge
            image.replace_with(image.get("alt") or image["src"])
            continue
        if not image.get("alt"):
            raise ValueError(f"{source}: {image['src']} has no alternative text")
        if image["src"] not in files:
            image["src"] = resolve(image["src"], source, root, files, pages, address)
        image["width"], image["height"] = Image.open(BytesIO(files[image["src"]])).size
        image["loading"] = "lazy"
        if not image.find_parent("a"):  # a tap shows it large
            (image.find_parent("picture") or image).wrap(soup.new_tag("a", href=image["src"]))
    for strong in soup.select("p > strong:first-child"):
        if strong.get_text() == "Claim.":
            strong.parent["class"] = "claim"
    for style in soup.select("main style"):
        style.decompose()
    for table in soup("table"):
        del table["border"]
        for cell in table("td", string=re.compile("±")):
            cell["class"] = "number"
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    taken = set()
    for heading in soup.select("h1, h2, h3, h4"):
        if heading.find_parent(class_="output"):  # a printed card's headings stand below the page's
            heading.name = f"h{int(heading.name[1]) + 2}"
        identifier = slug(heading.get_text())
        while identifier in taken:
            identifier += "-"
        taken.add(identifier)
        heading["id"] = identifier
    return str(soup)


def build(out: Path = ROOT / "_site", root: Path = ROOT) -> None:
    """Write the site of the repository `root` into the folder `out`, whole or not at all.

    ValueError names a figure without a caption, a picture without alternative text, a link that leads nowhere.
    """
    if out.exists() and not (out / "site.css").exists():
        raise FileExistsError(f"{out} is not a site that `make site` wrote: name another folder")
    address = repository_address(root)
    here = Path(__file__).parent
    exporter = HTMLExporter(
        template_name="classic",
        template_file="page.html.j2",
        extra_template_paths=[str(here)],
        preprocessors=["nbconvert.preprocessors.ExtractOutputPreprocessor"],
        filters={"markdown2html": to_html},
    )
    exporter.config.NbConvertBase.display_data_priority = ["image/png", "text/html", "text/markdown", "text/plain"]

    documents, listing, titles = {}, [], {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        name = f"notebooks/{path.name}"
        documents[name] = nbformat.read(path, as_version=4)
        titles[name], claim = opening(documents[name], name)
        listing.append(f"- [{titles[name]}]({name}) {claim}")
        prepare(documents[name], name)
    prose = PROSE | {f"docs/{path.name}": f"{path.stem}.html" for path in sorted((root / "docs").glob("*.md"))}
    if (root / PLAY).exists():
        prose[PLAY] = "play.html"
    pages = prose | {name: Path(name).stem + ".html" for name in documents}
    for name in prose:
        text = (root / name).read_text()
        titles[name] = re.search(r"^# (.+)", text, re.M)[1]
        if name == "README.md":
            text = text.replace("\n## ", "\n" + "\n".join([f"## {LIST}\n", *listing]) + "\n\n## ", 1)
        documents[name] = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])

    way = [("index.html", titles["README.md"]), *((pages[name], titles[name]) for name in pages if name not in prose)]
    more = [(pages[name], titles[name]) for name in prose if name not in ("README.md", PLAY)]
    files = {"site.css": (here / "site.css").read_bytes()}
    if PLAY in prose:
        facts = json.loads((root / "figures" / "play.json").read_text())
        script = f"const FACTS = {json.dumps(facts)};\n" + (here / "play.js").read_text()
        files["play.js"] = script.encode()
    for name, document in documents.items():
        page = Path(pages[name])
        site = {"path": name, "page": page.name, "title": titles[name], "way": way, "more": more}
        site |= {"repository": address, "live": LIVE, "play": PLAY in prose}
        keys = {"unique_key": page.stem, "output_files_dir": f"{page.stem}_files", "site": site}
        html, resources = exporter.from_notebook_node(document, keys)
        files |= resources["outputs"]
        files[page.name] = finish(html, name, root, files, pages, address).encode()

    new = out.with_name(f".{os.getpid()}.{out.name}")
    for name, data in files.items():
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        (new / name).write_bytes(data)
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)
    print(f"{out / 'index.html'}: {len(documents)} pages, {sum(map(len, files.values())) / 1e6:.1f} MB")


if __name__ == "__main__":
    try:
        build()
    except (OSError, ValueError) as error:
        sys.exit(f"site: {error}")
