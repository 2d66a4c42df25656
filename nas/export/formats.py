"""The found model in the forms that a user deploys: source with weights, torch.export, ONNX."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.data.preprocessing import Inputs
from nas.export.source import name_of, source_of
from nas.files.atomic import replacing, write_text
from nas.user_code import user_errors

EXAMPLES = 64
"""Images in the example that a form is made with; any other number runs too."""
BATCH = 256
"""Images that are run at once."""
OPSET = 20

_HEAD = '''\
"""{title}

Needs torch alone. Images are float32 `[N, {shape}]`, pixels {pixels}:

    from model import build, CLASSES
    model = build()                      # weights from model.safetensors beside this file
    logits = model(images)               # [N, {classes}]
    names = [CLASSES[i] for i in logits.argmax(1)]
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = {names}
MEAN = {mean}
STD = {std}


'''
_TAIL = '''

class Model(nn.Module):
    """Normalises pixels and runs the network."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(-1, 1, 1), persistent=False)
        self.network = {network}()

    def forward(self, x):
        return self.network((x - self.mean) / self.std)


def build(weights=Path(__file__).with_name("model.safetensors")):
    """The trained model in evaluation mode; without weights, freshly initialised."""
    model = Model()
    if weights is not None:
        tensors = read_safetensors(weights)
        model.network.load_state_dict({{name: tensors[name] for name in model.network.state_dict()}})
    return model.eval()


def read_safetensors(path):
    """All tensors of a safetensors file: the length of a JSON header, the header, and plain numbers."""
    data = bytearray(Path(path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    kinds = {{"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16,
             "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}}
    found = {{}}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        kind, shape = kinds[entry["dtype"]], entry["shape"]
        flat = torch.frombuffer(data[start + begin : start + end], dtype=kind)
        found[name] = flat.clone().view(shape)
    return found
'''


class Pixels(nn.Module):
    """A network that takes images as they are, float32 `[N, C, H, W]`, and normalises them itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(inputs.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(inputs.std).view(-1, 1, 1), persistent=False)
        self.network = copy.deepcopy(network).cpu().float().eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[N, classes]`."""
        out: Tensor | tuple[Tensor, ...] = self.network((x - self.mean) / self.std)
        return out[0] if isinstance(out, tuple) else out

    def logits(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits `[N, classes]` of images `[N, C, H, W]` in numpy, in batches."""
        with torch.no_grad(), warnings.catch_warnings(), user_errors():
            parts = torch.split(torch.from_numpy(pixels), BATCH)
            found: NDArray[np.float32] = torch.cat([self(part) for part in parts]).numpy()
        return found


def write_source(path: Path, network: nn.Module, inputs: Inputs, *, title: str) -> None:
    """`model.py`: classes of torch alone that make exactly this network.

    Raises:
        SpaceError: when a module of the space cannot be written down, naming it.
    """
    body = source_of(network, torch.zeros(2, *inputs.image_shape))
    head = _HEAD.format(
        title=_harmless(title),
        shape=", ".join(map(str, inputs.image_shape)),
        classes=len(inputs.classes),
        pixels="from 0 to 1 (bytes divided by 255), or as they were in training where those were floats",
        names=repr(inputs.classes),
        mean=repr(inputs.mean),
        std=repr(inputs.std),
    )
    write_text(path, head + body + _TAIL.format(network=name_of(body)))


def exported(model: Pixels, image_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The program of torch.export for any number of images."""
    images = torch.rand(EXAMPLES, *image_shape, generator=torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        return torch.export.export(model, (images,), dynamic_shapes={"x": {0: batch}})


def write_program(path: Path, program: torch.export.ExportedProgram) -> None:
    """`model.pt2`."""
    with replacing(path) as temporary, _quiet():
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        temporary.write_bytes(buffer.getvalue())


def write_onnx(path: Path, exported_program: torch.export.ExportedProgram) -> None:
    """`model.onnx`, input `pixels`, output `logits`; weights inside."""
    with replacing(path) as temporary, _quiet():
        program = torch.onnx.export(
            exported_program,
            input_names=["pixels"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        temporary.write_bytes(program.model_proto.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on their own progress, and their graphs where they fail."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        told = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _harmless(title: str) -> str:
    """A title that cannot end the text it stands in."""
    return "".join(c if c.isprintable() and c not in '"\\\\' else "?" for c in title)
