"""The table of stages: one entry each, which everything that knows a stage by its name reads.

A new study is an entry here, its function in `reproduction.runs.stages`, and its notebook. Nothing here loads torch, so
the command line starts quickly.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass

from echo.config import Profile, SegmenterConfig


def nothing(profile: Profile) -> dict:
    """The settings of a stage that has none of its own."""
    return {}


def diffusion_settings(profile: Profile) -> dict:
    """Those of the diffusion model, and of its second stage where it has one."""
    settings = {"unet": asdict(profile.unet), "training": asdict(profile.training)}
    if profile.enlarger:
        settings["enlarger"] = asdict(profile.enlarger)
    return settings | {"per_view_phase": profile.per_view_phase}


def segmenter_settings(config: SegmenterConfig) -> dict:
    """Those of a segmenter; a size of its own only where it has one."""
    return {name: value for name, value in asdict(config).items() if (name, value) != ("image_size", None)}


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: what the command line and the manifest call it.
        folder: its folder in the run.
        notebook: the notebook that runs it, without its suffix.
        needs: the stages that must be finished before, in order; a stage depends on the last of them directly.
        settings: which values of a profile it depends on, JSON-able.
        work: the function of `reproduction.runs.stages` that does it.
        publishes: patterns of its small files (tables, logs, cards), which are committed with the results.
        weights: patterns of the weights that the notebooks load; they are committed for the phantom alone. "{seed}" is
            the run's seed.
        product: the file that makes it finished, where several processes work on it each by itself.
        has_parts: whether it consists of trainings, each with a folder and inputs of its own. Then other settings of
            the stage add trainings and leave those there as they are.
        scores_test: whether it opens the test patients.
        study: what it finds out, where it is a study beside the pipeline.
        reproduced: whether `reproduce` runs it.
    """

    name: str
    folder: str
    notebook: str
    needs: tuple[str, ...]
    settings: Callable[[Profile], dict]
    work: str
    publishes: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    product: str = ""
    has_parts: bool = False
    scores_test: bool = False
    study: str = ""
    reproduced: bool = True


PREPARED = ("data",)
TRAINED = (*PREPARED, "diffusion")
GENERATED = (*TRAINED, "generation")
SEGMENTED = (*GENERATED, "segmentation")

STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "data",
            folder="dataset",
            notebook="01_data_preparation",
            needs=(),
            settings=lambda p: {"image_size": p.image_size},
            work="data_stage",
        ),
        Stage(
            "diffusion",
            folder="diffusion",
            notebook="02_diffusion_training",
            needs=PREPARED,
            settings=diffusion_settings,
            work="diffusion_stage",
            publishes=("*/log.csv",),
            weights=("*/model/*",),
        ),
        Stage(
            "generation",
            folder="synthetic",
            notebook="03_generation",
            needs=TRAINED,
            settings=lambda p: {"augmentation": asdict(p.augmentation), "generation": asdict(p.generation)},
            work="generation_stage",
            publishes=("*.csv", "*_CARD.md", "set.json"),
            product="manifest.csv",
        ),
        Stage(
            "segmentation",
            folder="segmenter",
            notebook="04_segmentation",
            needs=GENERATED,
            settings=lambda p: {
                "segmenter": segmenter_settings(p.segmenter),
                "other_segmenter": segmenter_settings(p.other_segmenter),
                **({"generators": p.generators} if p.generators > 1 else {}),
            },
            work="segmentation_stage",
            publishes=("*/log.csv",),
            weights=("real-{seed}/model.safetensors", "synthetic-{seed}/model.safetensors"),
            has_parts=True,
        ),
        Stage(
            "tables",
            folder="tables",
            notebook="05_dice_tables",
            needs=SEGMENTED,
            settings=nothing,
            work="tables_stage",
            publishes=("*.csv", "*.md", "*.tex"),
            scores_test=True,
        ),
        Stage(
            "samplers",
            folder="sampler_study",
            notebook="06_sampler_study",
            needs=SEGMENTED,
            settings=lambda p: {"study": asdict(p.study)},
            work="sampler_study_stage",
            publishes=("*.csv",),
            study="steps and guidance of each sampler",
            reproduced=False,
        ),
        Stage(
            "editing",
            folder="label_editing",
            notebook="07_label_editing",
            needs=SEGMENTED,
            settings=nothing,
            work="label_editing_stage",
            publishes=("*.csv",),
            study="whether images follow edited label maps",
            reproduced=False,
        ),
        Stage(
            "quality",
            folder="image_quality",
            notebook="08_image_quality",
            needs=SEGMENTED,
            settings=lambda p: {"inception": os.environ["ECHO_INCEPTION"]} if os.environ.get("ECHO_INCEPTION") else {},
            work="image_quality_stage",
            publishes=("*.csv",),
            study="synthetic images against real ones",
        ),
        Stage(
            "grid",
            folder="grid",
            notebook="09_experiment_grid",
            needs=SEGMENTED,
            settings=lambda p: {"grid": asdict(p.grid)},
            work="grid_stage",
            publishes=("*.csv",),
            has_parts=True,
            scores_test=True,
            study="the experiment grid, with fewer patients and fewer images",
            reproduced=False,
        ),
    )
}
PIPELINE = [stage.name for stage in STAGES.values() if not stage.study]
STUDIES = [stage.name for stage in STAGES.values() if stage.study]
OLD_NAMES = {"sampler": "samplers"}  # in manifests of earlier versions
