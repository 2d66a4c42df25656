"""The found model in the forms that a user deploys: source with weights, torch.export, ONNX."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.data.preprocessing import Inputs
from nas.errors import ConfigError, SpaceError, TrialError
from nas.export.source import name_of, source_of
from nas.files.atomic import replacing, write_text
from nas.user_code import user_errors

FILES = {"source": "model.py", "program": "model.pt2", "onnx": "model.onnx"}
EXAMPLES = 64
"""Images in the example that a form is made with; any other number runs too."""
BATCH = 256
"""Images that are run at once."""
OPSET = 20
TEMPLATES = Path(__file__).parent / "templates"
_ONNX = ("onnx", "onnxscript", "onnxruntime")


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
        """Outputs `[N, outputs]`, such as logits of classes."""
        out: Tensor | tuple[Tensor, ...] = self.network((x - self.mean) / self.std)
        return out[0] if isinstance(out, tuple) else out

    def logits(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs `[N, outputs]` of images `[N, C, H, W]` in numpy, in batches."""
        with torch.no_grad(), warnings.catch_warnings(), user_errors():
            parts = torch.split(torch.from_numpy(pixels), BATCH)
            found: NDArray[np.float32] = torch.cat([self(part) for part in parts]).numpy()
        return found


def write_forms(folder: Path, model: Pixels, inputs: Inputs, *, title: str) -> tuple[list[str], list[str]]:
    """Writes every one of `FILES`; returns the forms that could be written, and why others could not.

    title: of model.py.
    """
    program = cache(lambda: exported(model, inputs.image_shape))
    writers: dict[str, Callable[[Path], None]] = {
        "source": lambda path: write_source(path, model.network, inputs, title=title),
        "program": lambda path: write_program(path, program()),
        "onnx": lambda path: write_onnx(path, program()),
    }
    forms, notes = list[str](), list[str]()
    for form, write in writers.items():
        path = folder / FILES[form]
        try:
            with user_errors():
                write(path)
            forms.append(form)
        except (ConfigError, SpaceError, TrialError) as error:
            path.unlink(missing_ok=True)  # an older export's would be unproven
            notes.append(f"no {path.name}: {next(iter(str(error).splitlines()), form)}")
    return forms, notes


def write_source(path: Path, network: nn.Module, inputs: Inputs, *, title: str) -> None:
    """`model.py`: classes of torch alone that make exactly this network.

    Raises:
        SpaceError: when a module of the space cannot be written down, naming it.
    """
    source = source_of(network)
    template = jinja2.Template(
        (TEMPLATES / "model.py.jinja").read_text("utf-8"), keep_trailing_newline=True, trim_blocks=True
    )
    text = template.render(
        title="".join(c if c.isprintable() and c not in '"\\' else "?" for c in title),  # cannot end the text
        shape=inputs.image_shape,
        classes=inputs.classes,
        mean=inputs.mean,
        std=inputs.std,
        source=source,
        network=name_of(source),
    )
    write_text(path, text)


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
    """`model.onnx`, input `pixels`, output `logits`; weights inside.

    Raises:
        ConfigError: when the extra for it is not installed.
    """
    if missing := [name for name in _ONNX if find_spec(name) is None]:
        raise ConfigError(f"it needs {', '.join(missing)}; pip install 'nas-engine[onnx]'")
    with replacing(path) as temporary, _quiet():
        program = torch.onnx.export(
            exported_program,
            input_names=["pixels"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        temporary.write_bytes(program.model_proto.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on their own progress, and their graphs where they fail."""
    before, told = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
