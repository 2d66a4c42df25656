"""Runs one form of a model on given images: a program of its own that imports nothing of the engine.

    python -I run_form.py FORM FOLDER IMAGES OUTCOME

FORM: source, program or onnx. IMAGES: raw float32, preceded by a line of JSON with the shape. OUTCOME: logits
likewise, with the milliseconds of a batch of 1 and of 32, and the versions of what ran it.
"""

import importlib.util
import json
import statistics
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 256
REPEATS = 15

Run = Callable[[Any], Any]
"""Images, in the form's own kind of array, to logits."""


def source(folder: Path) -> tuple[Run, Run, str]:
    """How model.py runs a batch of numbers, how it is fed, and on what."""
    import torch

    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(), _tensor, f"torch {torch.__version__}"


def program(folder: Path) -> tuple[Run, Run, str]:
    """The same of model.pt2."""
    import torch

    return torch.export.load(folder / "model.pt2").module(), _tensor, f"torch {torch.__version__}"


def onnx(folder: Path) -> tuple[Run, Run, str]:
    """The same of model.onnx."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return (
        lambda x: session.run(None, {"pixels": x})[0],
        _array,
        f"onnxruntime {onnxruntime.__version__}",
    )


FORMS = {"source": source, "program": program, "onnx": onnx}


def main(form: str, folder: str, images: str, outcome: str) -> None:
    """See above."""
    run, feed, runtime = FORMS[form](Path(folder))
    shape, data = read(Path(images))
    size = len(data) // shape[0]
    if "torch" in sys.modules:
        import torch

        torch.set_grad_enabled(False)
    logits = b""
    classes = 0
    for start in range(0, shape[0], BATCH):
        count = min(BATCH, shape[0] - start)
        found = run(feed((data[start * size : (start + count) * size], (count, *shape[1:]))))
        classes = found.shape[1]
        # Not by .numpy(): an environment with torch need not have numpy.
        logits += array("f", found.flatten().tolist()).tobytes()
    latency = {}
    for count in (1, 32):
        some = feed((data[:size] * count, (count, *shape[1:])))
        latency[str(count)] = 1e3 * _median_seconds(run, some)
    foreign = sorted(name for name in sys.modules if name == "nas" or name.startswith("nas."))
    head = {"shape": [shape[0], classes], "latency_ms": latency, "runtime": runtime, "engine": foreign}
    Path(outcome).write_bytes(json.dumps(head).encode() + b"\n" + logits)


def read(path: Path) -> tuple[list[int], bytes]:
    """Shape and numbers of an array."""
    head, data = path.read_bytes().split(b"\n", 1)
    return json.loads(head)["shape"], data


def _tensor(given: tuple[bytes, tuple[int, ...]]) -> Any:  # noqa: ANN401 - a tensor, if torch is there
    import torch

    return torch.frombuffer(bytearray(given[0]), dtype=torch.float32).view(given[1])


def _array(given: tuple[bytes, tuple[int, ...]]) -> Any:  # noqa: ANN401 - an array, if numpy is there
    import numpy as np

    return np.frombuffer(given[0], dtype=np.float32).reshape(given[1])


def _median_seconds(run: Run, x: Any) -> float:  # noqa: ANN401
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run(x)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


if __name__ == "__main__":
    main(*sys.argv[1:])
