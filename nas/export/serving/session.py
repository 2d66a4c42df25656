"""A run's model.onnx in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.errors import ConfigError
from nas.export.serving.served import Served
from nas.files.manifest import require_intact
from nas.files.paths import is_file
from nas.text import printable

MODEL = "model.onnx"
BATCH = 32


class Session:
    """Runs a model on the CPU; may be called from several threads at once.

    Raises:
        ConfigError: when the run has no model.onnx, or it is damaged or another run's.
    """

    def __init__(self, folder: Path, served: Served) -> None:
        if not is_file(folder / MODEL):
            raise ConfigError(
                f"{folder} has no {MODEL}; write it by: pip install 'nas-engine[onnx]' && nas export {folder}"
            )
        require_intact(folder, MODEL, "run.json")
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                folder / MODEL, options, providers=["CPUExecutionProvider"]
            )
        except (states.Fail, states.InvalidProtobuf, states.InvalidGraph, states.NotImplemented) as error:
            raise ConfigError(
                f"{folder / MODEL} cannot be loaded: {printable(str(error), limit=300)}; export it again"
            ) from error
        inputs = [(i.name, tuple(i.shape[1:])) for i in self._session.get_inputs()]
        classes = [tuple(o.shape[1:]) for o in self._session.get_outputs()]
        if inputs != [("pixels", served.image_shape)] or classes != [(len(served.classes),)]:
            raise ConfigError(
                f"{folder / MODEL} takes {inputs} and answers {classes}, but the run is of images "
                f"{served.image_shape} and {len(served.classes)} classes; export it again"
            )

    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `[N, classes]` of images `[N, C, H, W]`."""
        parts = [
            self._session.run(["logits"], {"pixels": np.ascontiguousarray(pixels[start : start + BATCH])})[0]
            for start in range(0, len(pixels), BATCH)
        ]
        return np.concatenate(parts)
