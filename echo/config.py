"""Every hyper-parameter, in one place: five profiles, from a test of seconds to the paper's own configuration.

The defaults are the paper's (Stojanovski et al. 2023 and its released code). What the compact profiles set differently
was sized to the machine, taken from common practice, or chosen on validation patients (results/protocol.md says when
test patients were scored).
"""

from dataclasses import asdict, dataclass, field, replace

SPLITS = ("training", "validation", "testing")
VIEWS = ("2CH", "4CH")
PHASES = ("ED", "ES")
VIEW_PHASES = tuple((view, phase) for view in VIEWS for phase in PHASES)  # the index is the class label


@dataclass(frozen=True)
class UNetConfig:
    """Arguments of `echo.unet.SemanticUNet`; the defaults are the paper's."""

    in_channels: int = 3
    learned_variance: bool = True
    model_channels: int = 256
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    spade_hidden: int = 128
    norm_groups: int = 32


@dataclass(frozen=True)
class TrainingConfig:
    """Training of the diffusion model; the defaults are the paper's."""

    prediction_type: str = "epsilon"  # or "v_prediction" (Salimans and Ho 2022), steadier at few steps
    num_train_timesteps: int = 1000
    steps: int = 50_000
    batch_size: int = 96  # 8 ranks x 12
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    ema_decay: float = 0.9999
    gradient_clip: float = 1.0  # not in the paper; inert unless the loss spikes
    flip_probability: float = 0.5
    snr_gamma: float | None = None  # min-SNR weighting (Hang et al. 2023); None weighs all t alike
    label_dropout: float = 0.0  # probability that a label map is withheld, for classifier-free guidance
    precision: str = "fp16"
    gradient_accumulation: int = 1  # rounds that make up a batch; less memory, the same step
    gradient_checkpointing: bool = False  # compute activations twice rather than keep them
    compile: bool = False  # torch.compile: minutes at the start, and little or nothing gained on a CPU
    validate_every: int = 1000


@dataclass(frozen=True)
class EnlargerConfig:
    """The second stage of a cascade (`echo.enlarger`): its network, training and sampling. Not in the paper.

    Ho et al. 2022 (arXiv 2106.15282) describe cascades; sizes and steps were chosen on validation patients, by the
    power spectrum of what both stages paint together.
    """

    factor: int = 4  # the first stage's images are so many times smaller
    channels: tuple[int, ...] = (32, 64, 96)  # of each level, from half the image's side down by halves
    num_res_blocks: int = 2
    embedding: int = 128  # channels of the time embedding
    crop: int = 64  # pixels, the side of a training crop
    most_noise: float = 0.1  # conditioning augmentation: the small image's noise in training has an sd up to this
    noise_sd: float = 0.05  # and so much in painting; images are in [-1, 1]
    training: TrainingConfig = TrainingConfig(
        prediction_type="v_prediction",
        steps=8000,
        batch_size=32,
        learning_rate=5e-4,
        warmup_steps=100,
        ema_decay=0.999,
        flip_probability=0.0,
        precision="bf16",
        validate_every=500,
    )
    scheduler: str = "dpm++"
    num_inference_steps: int = 20


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges of the label augmentation (paper); lengths are fractions of the image side."""

    rotation_deg: float = 5.0
    translation: float = 0.05
    scale: tuple[float, float] = (0.8, 1.05)
    shear_deg: float = 5.0
    elastic_points: int = 10
    elastic_displacement: float = 30 / 256  # 30 px
    shape_model: float = (
        0.0  # share of the maps drawn from a shape model (reproduction.synthesis.shapes) instead; not in the paper
    )


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling of the synthetic dataset; the defaults are the paper's."""

    images: int = 9000  # 450 label maps x 5 augmentations x 4 views and phases
    validation_images: int = 200
    scheduler: str = "ddpm"
    num_inference_steps: int = 1000
    guidance_scale: float = 1.0
    batch_size: int = 12


@dataclass(frozen=True)
class SegmenterConfig:
    """The segmentation network and its training; the defaults are the paper's (664 282 parameters at 256 x 256)."""

    recipe: str = "paper"  # its name in the tables; "strong" is ours
    image_size: int | None = None  # side of the images that it works at, by averaging; None: the profile's
    channels: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)
    num_res_units: int = 0
    loss: str = "ce"  # or "dice_ce"
    steps: int = 675_000  # 300 epochs of 2250 images, batch 1
    batch_size: int = 1
    learning_rate: tuple[float, float] = (1e-3, 1e-4)  # cosine, from and to
    weight_decay: float = 0.0
    precision: str = "fp32"
    gamma: tuple[float, float] = (0.5, 3.0)
    gamma_probability: float = 1.0
    flip_probability: float = 0.5
    rotation_deg: float = 10.0
    translation: float = 0.2
    scale: tuple[float, float] = (0.8, 1.2)
    ultrasound: float = 0.0  # probability of each of `echo.segmenter.ultrasound`'s changes; not in the paper
    ema_decay: float = 0.0  # of an average of the weights; not in the paper
    flip_test: bool = False  # average with the mirrored image's prediction; not in the paper
    finetune_steps: float = 0.5  # of a second training on real frames, as fractions of the first's
    finetune_rate: float = 0.25
    validate_every: int = 2250
    seeds: int = 3


@dataclass(frozen=True)
class StudyConfig:
    """What the sampler study compares (notebook 06): network evaluations, DDPM's most, guidance scales."""

    steps: tuple[int, ...] = (5, 10, 25, 50, 100)
    ddpm_steps: int = 1000
    guidance: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class GridConfig:
    """What the study of notebook 09 trains beside the main table's rows."""

    synthetic_shares: tuple[float, ...] = (0.125, 0.25, 0.5)  # of the synthetic images
    drop_worst: tuple[float, ...] = (10.0,)  # percentages of them, by label fidelity
    real_shares: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5)  # of the training patients
    own_shares: tuple[float, ...] = (0.05, 0.1)  # with a generator trained on those patients alone
    own_steps: float = 0.4  # the steps of that generator's training, as a fraction of the full generator's
    few_seeds: int = 3  # segmenter seeds of the rows with so few patients
    generator_again: bool = True  # a second seed of the full generator


EQUIVALENCE_MARGIN = 2.0  # Dice points within which training sets count as equivalent (results/protocol.md)
BOOTSTRAP_RESAMPLES = 10_000


@dataclass(frozen=True)
class Profile:
    """One size of the whole experiment.

    `image_size` is that of images and label maps. With an `enlarger` the diffusion model is a cascade, and `unet`, its
    first stage, paints images of `first_size`.
    """

    name: str
    image_size: int
    per_view_phase: bool = True  # one diffusion model for each view and phase (paper), or one over all
    phantom_patients: dict[str, int] = field(default_factory=lambda: {"training": 400, "validation": 50, "testing": 50})
    unet: UNetConfig = UNetConfig()
    training: TrainingConfig = TrainingConfig()
    enlarger: EnlargerConfig | None = None
    augmentation: AugmentationConfig = AugmentationConfig()
    generation: GenerationConfig = GenerationConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    other_segmenter: SegmenterConfig = SegmenterConfig()  # the other recipe, which the tables show beside it
    study: StudyConfig = StudyConfig()
    grid: GridConfig = GridConfig()
    generators: int = 1  # seeds of the diffusion model that the main table compares

    @property
    def first_size(self) -> int:
        """Side of the images that the semantic diffusion model paints: the profile's, or a cascade's small ones."""
        return self.image_size // self.enlarger.factor if self.enlarger else self.image_size

    def to_dict(self) -> dict:
        return asdict(self)


CPU = Profile(
    "cpu",
    image_size=224,
    per_view_phase=False,
    phantom_patients={"training": 200, "validation": 25, "testing": 50},
    unet=UNetConfig(
        in_channels=1,
        learned_variance=False,
        model_channels=32,
        channel_mult=(1, 2, 4, 6),
        num_res_blocks=1,
        attention_resolutions=(14, 7),
        head_channels=32,
        spade_hidden=32,
        norm_groups=8,
    ),
    training=TrainingConfig(
        prediction_type="v_prediction",
        steps=2600,
        batch_size=16,
        learning_rate=4e-4,
        warmup_steps=100,
        ema_decay=0.998,
        flip_probability=0.0,  # no heart in the data is mirrored; without flips there is half the distribution to learn
        precision="bf16",
        validate_every=200,
    ),
    enlarger=EnlargerConfig(),
    # Real walls are smooth at the first stage's scale; the paper's 30 px leaves them ragged.
    augmentation=AugmentationConfig(elastic_displacement=12 / 256),
    # Sampler and steps were chosen by notebook 06, on the phantom's validation patients.
    generation=GenerationConfig(
        images=2000, validation_images=160, scheduler="dpm++", num_inference_steps=10, batch_size=20
    ),
    segmenter=SegmenterConfig(
        recipe="strong",
        image_size=112,
        channels=(24, 48, 96, 192),
        num_res_units=2,
        loss="dice_ce",
        steps=2000,
        batch_size=24,
        learning_rate=(2e-3, 2e-5),
        weight_decay=1e-4,
        precision="bf16",
        gamma=(0.5, 2.0),
        gamma_probability=0.5,
        flip_probability=0.0,
        translation=0.05,
        # With both, synthetic-only did better on the validation patients' real frames, and real-only no worse.
        ultrasound=0.25,
        ema_decay=0.995,
        validate_every=200,
    ),
    # The paper's recipe at this size: as many of its levels as 112 pixels have, in batches.
    other_segmenter=SegmenterConfig(
        image_size=112, channels=(4, 8, 16, 32, 64), steps=2000, batch_size=24, validate_every=200, seeds=1
    ),
)

# One stage, so that it takes 20 minutes: its images are thumbnails.
LAPTOP = replace(
    CPU,
    name="laptop",
    image_size=48,
    phantom_patients={"training": 120, "validation": 20, "testing": 40},
    unet=replace(CPU.unet, channel_mult=(1, 2, 4), attention_resolutions=(12,)),
    training=replace(CPU.training, steps=1000, label_dropout=0.1, validate_every=100),
    enlarger=None,
    generation=replace(CPU.generation, images=720, validation_images=80),
    segmenter=replace(
        CPU.segmenter, image_size=None, channels=(16, 32, 64, 128), steps=1000, validate_every=100, seeds=1
    ),
    other_segmenter=replace(
        CPU.other_segmenter, image_size=None, channels=(8, 16, 32, 64), steps=1000, validate_every=100
    ),
    grid=GridConfig(
        synthetic_shares=(0.25,), real_shares=(0.05, 0.25), own_shares=(0.05,), few_seeds=1, generator_again=False
    ),
)

SMOKE = replace(
    LAPTOP,
    name="smoke",
    image_size=32,
    phantom_patients={"training": 4, "validation": 2, "testing": 2},
    unet=replace(LAPTOP.unet, model_channels=16, channel_mult=(1, 2), attention_resolutions=(8,), norm_groups=4),
    training=replace(LAPTOP.training, steps=12, batch_size=4, warmup_steps=2, validate_every=6),
    enlarger=EnlargerConfig(
        factor=2,
        channels=(8, 16),
        num_res_blocks=1,
        embedding=16,
        crop=16,
        training=replace(CPU.enlarger.training, steps=12, batch_size=4, warmup_steps=2, validate_every=6),
        num_inference_steps=2,
    ),
    generation=replace(LAPTOP.generation, images=8, validation_images=4, num_inference_steps=2, batch_size=4),
    segmenter=replace(LAPTOP.segmenter, image_size=32, channels=(8, 16, 32), steps=12, batch_size=4, validate_every=6),
    other_segmenter=replace(
        LAPTOP.other_segmenter, image_size=16, channels=(4, 8, 16), steps=6, batch_size=4, validate_every=6
    ),
    grid=GridConfig(synthetic_shares=(0.5,), real_shares=(0.5,), own_shares=(0.5,), few_seeds=2),
    study=StudyConfig(steps=(1, 2), ddpm_steps=3, guidance=(1.0, 2.0)),
)

# Steps by what one H200 did (docs/gpus.md): 2400 of 128 images fitted the training frames too closely, with a loss of
# 0.035 on these and of 0.09 on validation frames; the cpu profile's 2600 of 16 end at 0.044.
GPU = replace(
    CPU,
    name="gpu",
    image_size=256,
    unet=replace(CPU.unet, attention_resolutions=(16, 8)),
    training=replace(CPU.training, steps=1200, batch_size=64, validate_every=100),
    enlarger=replace(CPU.enlarger, training=replace(CPU.enlarger.training, steps=3500, batch_size=64)),
    generation=replace(CPU.generation, images=4000, validation_images=200, num_inference_steps=20, batch_size=50),
    segmenter=replace(CPU.segmenter, image_size=128, steps=4000, validate_every=500),
    # The paper's network at the paper's size; its 675 000 steps of one image became 4000 of 32.
    other_segmenter=SegmenterConfig(steps=4000, batch_size=32, validate_every=500, seeds=1),
    generators=3,
)

PAPER = Profile(
    "paper",
    image_size=256,
    other_segmenter=replace(
        CPU.segmenter, channels=(32, 64, 128, 256, 320, 320), steps=40_000, batch_size=16, validate_every=1000
    ),
)

PROFILES = {p.name: p for p in (SMOKE, LAPTOP, CPU, GPU, PAPER)}


def get_profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        ValueError: for an unknown name, listing those there are.
    """
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]
