"""Progress bars: widgets in a notebook that somebody reads, text where papermill streams them to a terminal."""

import os

import tqdm as _text
import tqdm.auto as _auto

tqdm = _text.tqdm if os.environ.get("ECHO_TEXT_PROGRESS") else _auto.tqdm
