"""Model card and data card of a synthetic set: what it is, how it was made, its numbers, its limits, its licence."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from echo.resume import read_csv, read_json, whole, write_text
from reproduction.evaluation.tables import markdown
from reproduction.synthesis.synthetic_set import read_facts, read_manifest, set_classes

PAPER = "Stojanovski et al., *Echo from Noise*, ASMUS 2023, doi 10.1007/978-3-031-44521-7_4"
CAMUS = "Leclerc et al., IEEE TMI 38(9):2198-2210, 2019, doi 10.1109/TMI.2019.2900516"
TAGS = dict.fromkeys(("phantom", "camus"), ("echocardiography", "ultrasound")) | {"nnunet": ("medical-imaging",)}
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


def training_log(path: Path) -> pd.DataFrame:
    """Step and validation loss of a diffusion training.

    Raises:
        DamagedFile: when the log has none.
    """
    log = read_csv(path)
    with whole(path):
        return log[["step", "validation_loss"]].astype(float).astype({"step": int})


def model_header(title: str, licence: str, source: str, results: list[tuple[str, str, float]]) -> ModelCardData:
    """What machines read of the model card; `results` are (kind of metric, its name, value)."""
    of_task = {"task_type": "image-to-image", "dataset_type": source, "dataset_name": f"{source}, held-out patients"}
    return ModelCardData(
        license=licence,
        library_name="diffusers",
        tags=[*TAGS[source], "diffusion", "semantic-image-synthesis"],
        model_name=title,
        eval_results=[
            EvalResult(**of_task, metric_type=kind, metric_name=name, metric_value=round(float(value), 4))
            for kind, name, value in results
        ],
    )


def data_header(licence: str, source: str, images: int) -> DatasetCardData:
    """What machines read of the data card."""
    return DatasetCardData(
        license=licence,
        tags=[*TAGS[source], "synthetic", "segmentation"],
        task_categories=["image-segmentation"],
        annotations_creators="machine-generated",
        size_categories="n<1K" if images < 1000 else "1K<n<10K" if images < 10_000 else "10K<n<100K",
    )


def fidelity_of(folder: Path) -> pd.Series:
    """Mean Dice in % of each structure by a set's `fidelity.csv`; empty where it has not been measured."""
    path = folder / "fidelity.csv"
    if not path.exists():
        return pd.Series(dtype=float)
    table = read_csv(path)
    with whole(path):
        return table[list(set_classes(folder).structures)].mean() * 100


def write_cards(folder: Path, run: Path) -> None:
    """Write `MODEL_CARD.md` and `DATA_CARD.md` into a finished set's folder.

    Args:
        run: the folder of the run whose model painted it; its `manifest.json` knows the data, its logs the training.
    """
    facts, table, meaning = read_facts(folder), read_manifest(folder), set_classes(folder)
    with whole(run / "manifest.json"):
        data = read_json(run / "manifest.json")["data"]
        what, tag, licence, limit = described_source(data)
    nnunet = data["source"] == "nnunet"
    kind, title = (f"image ({data['modality']})", "images") if nnunet else (ECHOES, "echocardiograms")
    generation, size, patients = facts["generation"], facts["image_size"], data["patients"]
    logs = {group: training_log(run / "diffusion" / group / "log.csv") for group in facts["checkpoints"]}
    networks = pd.DataFrame(
        {
            "training steps": {group: log["step"].max() for group, log in logs.items()},
            "best validation loss": {group: f"{log['validation_loss'].min():.4f}" for group, log in logs.items()},
            "SHA-256 of the weights": facts["checkpoints"],
        }
    ).rename_axis("network")
    model_card = f"""# Semantic diffusion model of {title}, profile {facts["profile"]}

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
    dice, fidelity = fidelity_of(folder), "Label fidelity has not been measured (`python -m echo fidelity`)."
    if len(dice):
        found = ", ".join(f"{name} {value:.1f} %" for name, value in dice.items())
        fidelity = f"Label fidelity, the mean Dice of a segmenter trained on real images: {found} (`fidelity.csv`)."
    results = [("loss", f"best validation loss, {group}", log["validation_loss"].min()) for group, log in logs.items()]
    results += [("dice", f"label fidelity, Dice of {name}, %", value) for name, value in dice.items()]
    share, organ = facts["augmentation"]["shape_model"], "body" if nnunet else "beating heart"
    drawn = f", or, for {share:.0%} of them, drawn from a statistical shape model" if share else ""
    data_card = f"""# {len(table)} synthetic {title} with label maps, profile {facts["profile"]}

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
    name = f"Semantic diffusion model of {title}, profile {facts['profile']}"
    for file, card, header, text in (
        ("MODEL_CARD", ModelCard, model_header(name, tag, data["source"], results), model_card),
        ("DATA_CARD", DatasetCard, data_header(tag, data["source"], len(table)), data_card),
    ):
        write_text(folder / f"{file}.md", str(card(f"---\n{header.to_yaml()}\n---\n\n{wrapped(text)}\n")))
