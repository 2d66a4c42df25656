"""Runs one form of a model on given images: a program of its own that imports nothing of the engine.

    python -I verify_worker.py FORM FOLDER IMAGES OUTCOME

FORM: source, program or onnx. IMAGES: raw float32, preceded by a line of JSON with the shape. OUTCOME: logits
likewise, with the milliseconds of a batch of 1 and of 32, and the versions of what ran it. An environment
with torch need not have numpy; one that lacks what runs the form ends it with the exit code NO_RUNTIME.
"""

import importlib.util
import json
import statistics
import sys
import timeit
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 256
REPEATS = 15
NO_RUNTIME = 77

Form = tuple[Callable[[Any], Any], Callable[[bytes, tuple[int, ...]], Any], str]
"""What turns images into logits; what turns numbers and a shape into images; the versions of both."""


def by_torch(form: str, folder: Path) -> Form:
    """How model.py and model.pt2 run."""
    import torch

    torch.set_grad_enabled(False)
    if form == "program":
        model = torch.export.load(folder / "model.pt2").module()
    else:
        spec = importlib.util.spec_from_file_location("model", folder / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.build()

    def tensor(data: bytes, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.float32).view(shape)

    return model, tensor, f"torch {torch.__version__}"


def by_onnxruntime(folder: Path) -> Form:
    """How model.onnx runs."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return (
        lambda x: session.run(None, {"pixels": x})[0],
        lambda data, shape: np.frombuffer(data, dtype=np.float32).reshape(shape),
        f"onnxruntime {onnxruntime.__version__}",
    )


def main(form: str, folder: str, images: str, outcome: str) -> None:
    """See above."""
    try:
        run, feed, runtime = by_onnxruntime(Path(folder)) if form == "onnx" else by_torch(form, Path(folder))
    except ModuleNotFoundError as error:
        if error.name in ("torch", "onnxruntime"):
            sys.exit(NO_RUNTIME)
        raise
    head, data = Path(images).read_bytes().split(b"\n", 1)
    total, *side = json.loads(head)["shape"]
    size = len(data) // total
    logits, classes = array("f"), 0
    for start in range(0, total, BATCH):
        count = min(BATCH, total - start)
        found = run(feed(data[start * size : (start + count) * size], (count, *side)))
        classes = found.shape[1]
        logits.extend(found.flatten().tolist())
    record = {
        "shape": [total, classes],
        "latency_ms": {str(n): _median_ms(run, feed(data[:size] * n, (n, *side))) for n in (1, 32)},
        "runtime": runtime,
        "engine": sorted(name for name in sys.modules if name == "nas" or name.startswith("nas.")),
    }
    Path(outcome).write_bytes(json.dumps(record).encode() + b"\n" + logits.tobytes())


def _median_ms(run: Callable[[Any], Any], x: Any) -> float:  # noqa: ANN401 - of a form's own kind
    return 1e3 * statistics.median(timeit.repeat(lambda: run(x), number=1, repeat=REPEATS))


if __name__ == "__main__":
    main(*sys.argv[1:])
