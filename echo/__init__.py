"""Echo from Noise, reproduced: a semantic diffusion model paints echocardiograms that train a segmenter."""

__version__ = "0.1.0"
