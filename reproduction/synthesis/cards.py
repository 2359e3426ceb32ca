"""Model card and data card of a synthetic set: what it is, how it was made, its numbers, its limits, its licence."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from echo.resume import read_json, write_text
from reproduction.evaluation.tables import markdown
from reproduction.synthesis.synthetic_set import read_manifest, set_classes

PAPER = "Stojanovski et al., *Echo from Noise*, ASMUS 2023, doi 10.1007/978-3-031-44521-7_4"
CAMUS = "Leclerc et al., IEEE TMI 38(9):2198-2210, 2019, doi 10.1109/TMI.2019.2900516"
TAGS = {"phantom": "echocardiography, ultrasound", "camus": "echocardiography, ultrasound", "nnunet": "medical-imaging"}
ECHOES = "apical echocardiogram (2CH or 4CH, ED or ES)"
# Source of the data -> what they are, licence for the header and in words, what they cannot stand for.
SOURCES = {
    "phantom": (
        "the phantom's virtual patients (`reproduction.datasets.phantom`)",
        "mit",
        "MIT, as the code.",
        "The hearts are virtual: nothing here says how well a method works on patients.",
    ),
    "camus": (
        f"CAMUS ({CAMUS})",
        "cc-by-nc-sa-4.0",
        f"CC BY-NC-SA 4.0, as the data it derives from; not for commercial use. Attribution: {CAMUS}.",
        "CAMUS comes from one hospital and one make of scanner, and so do these hearts and this speckle.",
    ),
}


def nnunet_source(data: dict) -> tuple[str, str, str, str]:
    """The same of an nnU-Net raw dataset, from what its dataset.json says (`data` of a run's manifest)."""
    named = ": ".join(data[name] for name in ("name", "description", "reference") if name in data)
    licence = data.get("licence") or data.get("license")
    public = "cc0-1.0" if (licence or "").upper().startswith("CC0") else "other"
    said = (
        f"{licence}, as the data it derives from." if licence else "That of the data it derives from, which says none."
    )
    return named, public, said, "What holds for these data need not hold for others."


def described_source(data: dict) -> tuple[str, str, str, str]:
    """What the data of a run are, their licence for the header and in words, and what they cannot stand for."""
    return nnunet_source(data) if data["source"] == "nnunet" else SOURCES[data["source"]]


def classes(names: tuple[str, ...]) -> str:
    """`0 background, 1 LV endo, ...`."""
    return ", ".join(f"{k} {name}" for k, name in enumerate(names))


def wrapped(text: str) -> str:
    """Markdown with its paragraphs filled anew; header and tables as they are."""
    parts = text.split("\n\n")
    return "\n\n".join(part if part[0] in "-|" else textwrap.fill(part, 100, break_on_hyphens=False) for part in parts)


def image_counts(table: pd.DataFrame) -> pd.DataFrame:
    """How many images of how many patients a manifest has, and how many maps were redrawn: of each split and view."""
    groups = ["split", *(name for name in ("view", "phase", "condition") if name in table)]
    counts = table.groupby(groups, sort=False).agg(
        images=("id", "size"), patients=("patient", "nunique"), redrawn=("rejected", "sum")
    )
    counts.index = pd.Index([" ".join(np.atleast_1d(name)) for name in counts.index], name=", ".join(groups))
    return counts


def write_cards(folder: Path, run: Path) -> None:
    """Write `MODEL_CARD.md` and `DATA_CARD.md` into a finished set's folder.

    Args:
        run: the folder of the run whose model painted it; its `manifest.json` knows the data, its logs the training.
    """
    facts, table, data = read_json(folder / "set.json"), read_manifest(folder), read_json(run / "manifest.json")["data"]
    nnunet, meaning = data["source"] == "nnunet", set_classes(folder)
    what, tag, licence, limit = described_source(data)
    tags, kind = TAGS[data["source"]], f"image ({data['modality']})" if nnunet else ECHOES
    title = "images" if nnunet else "echocardiograms"
    generation, size, patients = facts["generation"], facts["image_size"], data["patients"]
    logs = {group: pd.read_csv(run / "diffusion" / group / "log.csv") for group in facts["checkpoints"]}
    networks = pd.DataFrame(
        {
            "training steps": {group: log["step"].max() for group, log in logs.items()},
            "best validation loss": {group: f"{log['validation_loss'].min():.4f}" for group, log in logs.items()},
            "SHA-256 of the weights": facts["checkpoints"],
        }
    ).rename_axis("network")
    model_card = f"""---
license: {tag}
tags: [{tags}, diffusion, semantic-image-synthesis]
---

# Semantic diffusion model of {title}, profile {facts["profile"]}

**What.** Paints an {kind} of {size} x {size} pixels from noise, for a label map
of the classes {classes(meaning.sdm_names)}. After {PAPER}.

**How.** Data: {what}. Trained on {patients["training"]} training patients; the loss below is on
{patients["validation"]} validation patients, and the test patients were not used. The weights are averaged over the
training steps. `python -m echo train --profile {facts["profile"]}` trains it,
`reproduction.synthesis.generate.load_models` loads it, `echo.sampler.paint` paints with it.

{markdown(networks)}

**Limits.** {limit} Label maps unlike those of its training may come out wrong. For research and teaching, not for
diagnosis.

**Licence.** {licence}
"""
    fidelity = "Label fidelity has not been measured (`python -m echo fidelity`)."
    if (folder / "fidelity.csv").exists():
        dice = pd.read_csv(folder / "fidelity.csv")[list(meaning.structures)].mean() * 100
        found = ", ".join(f"{name} {value:.1f} %" for name, value in dice.items())
        fidelity = f"Label fidelity, the mean Dice of a segmenter trained on real images: {found} (`fidelity.csv`)."
    share, organ = facts["augmentation"]["shape_model"], "body" if nnunet else "beating heart"
    drawn = f", or, for {share:.0%} of them, drawn from a statistical shape model" if share else ""
    data_card = f"""---
license: {tag}
tags: [{tags}, synthetic, segmentation]
---

# {len(table)} synthetic {title} with label maps, profile {facts["profile"]}

**What.** 8-bit images of {size} x {size} pixels in `images/`, label maps in `labels/` ({classes(meaning.names)}) and,
as the network was given them, in `conditions/` ({classes(meaning.sdm_names)}); a row for each in `manifest.csv`.

**How.** Data: {what}. Each label map is a patient's, augmented and checked{drawn}; the image was painted for it by the
model of `MODEL_CARD.md` ({generation["scheduler"]}, {generation["num_inference_steps"]} steps, guidance
{generation["guidance_scale"]}) from noise of its own seed. Training images derive from training patients, validation
images from validation patients, none from test patients. Painted on {facts["device"]} in {facts["precision"]}, in
batches padded to {generation["batch_size"]} images, with seed {facts["seed"]}; `set.json` has all settings.

{markdown(image_counts(table))}

*patients*: those whose label maps were used. *redrawn*: augmented maps that failed the check. {fidelity}

`python -m echo verify` finds any file that is missing, changed or left over, and paints any image again.

**Limits.** {limit} An image may not show all that its label map says, and shows nothing that the model's training data
did not. Each frame was augmented by itself: two frames of a patient are not one {organ}. Notebook 08 measures
realism, and whether training images come back. For research and teaching, not for diagnosis.

**Licence.** {licence}
"""
    for name, text in (("MODEL_CARD", model_card), ("DATA_CARD", data_card)):
        write_text(folder / f"{name}.md", wrapped(text) + "\n")
