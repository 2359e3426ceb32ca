"""What moves: the notebooks' widgets, each over a figure of `echoes` that stands in where widgets cannot run.

ipywidgets is an extra (`echo-from-noise[notebooks]`). Without it every function here returns None, and `show` falls
back to the figure. A widget holds nothing but PNGs and text; the work is done by what it is given.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

from echo.config import PHASES, VIEWS
from echo.frames import Frames
from echo.labels import CAMUS, Classes
from reproduction.plots import echoes

try:
    import ipywidgets
except ImportError:
    ipywidgets = None

WIDGET = "application/vnd.jupyter.widget-view+json"


def _png(figure: Figure) -> bytes:
    """The figure as a PNG; it is closed, so that the notebook does not show it once more."""
    figure.savefig(buffer := io.BytesIO(), format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _picture(png: bytes):
    return ipywidgets.Image(value=png, format="png", layout={"max_width": "100%", "align_self": "flex-start"})


def show(widget, figure: Figure) -> None:
    """Display a widget where the front end runs widgets, and a figure anywhere else: one output, in both forms.

    Args:
        widget: what a function of this module returned; None (no ipywidgets) shows the figure alone.
        figure: closed afterwards.
    """
    bundle = {"text/plain": repr(figure), "image/png": _png(figure)}
    if widget is not None:
        bundle[WIDGET] = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    display(bundle, raw=True)


def denoising(x_t: NDArray, x_0: NDArray, sdm_label: NDArray[np.uint8], classes: Classes = CAMUS):
    """A slider over the steps of a sampler, with a play button; for `echoes.denoising`, whose arguments these are."""
    if ipywidgets is None:
        return None
    n = len(x_t)
    steps = [
        _png(echoes.denoising_step(x, guess, sdm_label, f"step {k} of {n}", classes))
        for k, (x, guess) in enumerate(zip(x_t, x_0, strict=True), 1)
    ]
    picture = _picture(steps[0])
    slider = ipywidgets.IntSlider(1, min=1, max=n, description="step", layout={"width": "420px"})
    play = ipywidgets.Play(value=1, min=1, max=n, interval=250)
    ipywidgets.jslink((play, "value"), (slider, "value"))

    def scrub(change) -> None:
        picture.value = steps[change["new"] - 1]

    slider.observe(scrub, "value")
    return ipywidgets.VBox([ipywidgets.HBox([play, slider]), picture])


def browse(frames: Frames):
    """Choose a frame by patient, view and phase, or by its case, and see it; for `echoes.frame_views`."""
    if ipywidgets is None:
        return None
    names = ["patient", "view", "phase"] if "view" in frames.index else ["case"]
    keys = list(frames.index[names].itertuples(index=False, name=None))
    chosen = ipywidgets.Dropdown(options=list(dict.fromkeys(k[0] for k in keys)), description=names[0])
    toggles = [
        ipywidgets.ToggleButtons(options=options, style={"button_width": "4em"})
        for options in (VIEWS, PHASES)[: len(names) - 1]
    ]
    picture, message = _picture(b""), ipywidgets.HTML()

    def draw(_change=None) -> None:
        key = chosen.value, *(toggle.value for toggle in toggles)
        message.value = "" if key in keys else escape(f"{' '.join(key)}: no such frame")
        if key in keys:
            picture.value = _png(echoes.frame_views(frames, keys.index(key)))

    draw()
    for control in (chosen, *toggles):
        control.observe(draw, "value")
    return ipywidgets.VBox([ipywidgets.HBox([chosen, *toggles]), message, picture])


def shuffled_sides(n: int, seed: int) -> NDArray[np.bool_]:
    """For a blind comparison: whether the real echo of each of n pairs is on the left. Half of them are."""
    return np.random.default_rng(seed).permutation(n) % 2 == 0


def which_is_real(real: NDArray[np.uint8], synthetic: NDArray[np.uint8], real_left: NDArray[np.bool_]):
    """A blind comparison with a score: pairs of echoes (n, H, W), one real, one synthetic, a click for each.

    At the end it says how often guessing would do as well: the upper tail of the binomial distribution.

    Args:
        real_left: whether the real echo is on the left (n,), such as `shuffled_sides` draws.
    """
    if ipywidgets is None:
        return None
    pairs = [
        _png(echoes.blind_pair(*((a, b) if left else (b, a))))
        for a, b, left in zip(real, synthetic, real_left, strict=True)
    ]
    n, answers = len(pairs), []  # whether each was right
    picture, question, score = _picture(pairs[0]), ipywidgets.HTML(), ipywidgets.HTML()

    def ask(k: int) -> None:
        question.value, picture.value = f"<b>Pair {k + 1} of {n}.</b> One is real. Which?", pairs[k]

    ask(0)
    buttons = {
        side: ipywidgets.Button(description=f"{side} is real", button_style="info") for side in ("left", "right")
    }

    def finish(right: int) -> None:
        share = binomtest(right, n, 0.5, alternative="greater").pvalue
        question.value = (
            f"<b>{right} of {n} right.</b> Guessing gives {n / 2:g} of {n} on average, "
            f"and {right} or more in {100 * share:.0f} % of games."
        )
        picture.value = _png(echoes.blind_pairs(real, synthetic, real_left))
        for button in buttons.values():
            button.disabled = True

    def answer(side: str, _button) -> None:
        truth = "left" if real_left[len(answers)] else "right"
        answers.append(side == truth)
        done, right = len(answers), sum(answers)
        verdict = "Yes" if answers[-1] else "No"
        score.value = f"{verdict}, the real one was on the {truth}. <b>{right} of {done} right.</b>"
        if done < n:
            ask(done)
        else:
            finish(right)

    for side, button in buttons.items():
        button.on_click(partial(answer, side))
    return ipywidgets.VBox([question, picture, ipywidgets.HBox(list(buttons.values())), score])


def editor(
    repaint: Callable[..., Figure],
    ranges: Mapping[str, tuple[float, float]],
    start: Mapping[str, float],
    noises: Sequence[int],
):
    """Sliders that edit a label map, and the picture that is painted anew when one is let go.

    Args:
        repaint: called as repaint(noise, **strengths). A ValueError, such as of an edit that has no room, is shown
            below the sliders; the picture stays.
        ranges: lowest and highest strength of each edit (`reproduction.synthesis.edits.RANGES`).
        start: strengths to begin with; those not named, and all after a reset, are 0.
        noises: seeds to choose from, in order.
    """
    if ipywidgets is None:
        return None
    common = {"continuous_update": False, "style": {"description_width": "8em"}}
    sliders = {
        name: ipywidgets.FloatSlider(
            start.get(name, 0),
            min=low,
            max=high,
            step=(high - low) / 60,
            description=name.replace("_", " ").replace("lv", "LV"),
            **common,
        )
        for name, (low, high) in ranges.items()
    }
    noise = ipywidgets.SelectionSlider(options=list(noises), description="noise", **common)
    button, message, picture = ipywidgets.Button(description="reset"), ipywidgets.HTML(), _picture(b"")

    def draw(_change=None) -> None:
        message.value = "painting …"
        try:
            picture.value = _png(repaint(noise.value, **{name: slider.value for name, slider in sliders.items()}))
            message.value = ""
        except ValueError as error:
            message.value = f'<span style="color: #D55E00">{escape(str(error))}</span>'

    def listen(on: bool) -> None:
        for slider in (*sliders.values(), noise):
            (slider.observe if on else slider.unobserve)(draw, "value")

    def reset(_button) -> None:
        listen(False)  # painted once, not for each slider
        for slider in sliders.values():
            slider.value = 0
        noise.value = noise.options[0]
        listen(True)
        draw()

    draw()
    listen(True)
    button.on_click(reset)
    # A wide picture shrinks beside the controls, instead of lying over them.
    picture.layout.min_width = "0"
    controls = ipywidgets.VBox([*sliders.values(), noise, button, message], layout={"flex": "0 0 auto"})
    return ipywidgets.HBox([controls, picture])
