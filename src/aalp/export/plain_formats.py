"""Exports that hold the classifier as it is: safetensors, a traced torch program, ONNX."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from aalp.errors import ModelError
from aalp.export.subject import Plain, Predict, Subject, probe_images
from aalp.method.pgd import in_evaluation_mode
from aalp.models.catalog import build
from aalp.models.classifier import with_own_buffers
from aalp.store.checkpoint import read_tensors, state_for, write_tensors
from aalp.store.files import write_atomically

WEIGHTS = "model.safetensors"
PROGRAM = "model.pt2"
ONNX = "model.onnx"


def write_safetensors(subject: Subject, folder: Path) -> None:
    """The classifier's tensors, mean and std among them, with everything about it in the header."""
    # The file that it comes from has a checksum and a format of its own.
    about = {name: value for name, value in subject.metadata.items() if name not in ("checksum", "format")}
    metadata = {"kind": "weights", **about, **subject.travelling()}
    write_tensors(folder / WEIGHTS, subject.classifier.state_dict(), metadata)


def load_safetensors(subject: Subject, folder: Path) -> Predict:
    """The classifier built anew from the file."""
    tensors, metadata = read_tensors(folder / WEIGHTS)
    name, classes = str(metadata["model"]), len(metadata["classes"])
    classifier = with_own_buffers(build(name, classes, subject.image_shape, stored=metadata.get("architecture", {})), tensors)
    classifier.load_state_dict(state_for(classifier, tensors))
    return classifier.eval()


def write_program(subject: Subject, folder: Path) -> None:
    """A program of torch.export, for batches of any size."""
    example = probe_images(subject)[:3]
    with _quiet():
        try:
            batch = {"images": {0: torch.export.Dim("batch")}}
            program = torch.export.export(in_evaluation_mode(Plain(subject.classifier)), (example,), dynamic_shapes=batch)
            # Weights go in as raw bytes and the graph as JSON: loading it unpickles no object.
            files = {"aalp.json": json.dumps(subject.travelling())}
            content = io.BytesIO()
            torch.export.save(program, content, extra_files=files)
        except Exception as error:  # the tracer meets the user's network, and may raise anything
            raise ModelError(f"torch.export cannot trace this network: {_reason(error)}; use --to safetensors") from error
    write_atomically(folder / PROGRAM, content.getbuffer())  # on a full disk torch's own writer ends the process


def load_program(subject: Subject, folder: Path) -> Predict:
    """The program, read back. Only ever our own file, just written: torch.export.load unpickles what a file asks it to."""
    del subject
    with _quiet():
        program = torch.export.load(folder / PROGRAM).module()

    def predict(images: Tensor) -> Tensor:
        logits: Tensor = program(images)
        return logits

    return predict


def write_onnx(subject: Subject, folder: Path) -> None:
    """An ONNX graph `images` -> `logits`, for batches of any size, labels and threat in its metadata."""
    import onnx

    example = probe_images(subject)[:3]
    with _quiet():
        try:
            program = torch.onnx.export(
                in_evaluation_mode(Plain(subject.classifier)),
                (example,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            # One file as long as it may be one: protobuf ends at 2 GB, and beyond that the weights lie beside it.
            size = sum(tensor.numel() * tensor.element_size() for tensor in subject.classifier.state_dict().values())
            program.save(folder / ONNX, external_data=size > 1_500_000_000)
        except OSError:  # a disk that refuses is no fault of the network
            raise
        except Exception as error:
            raise ModelError(f"this network cannot be written as ONNX: {_reason(error)}; use --to torch-export") from error
        graph = onnx.load(folder / ONNX, load_external_data=False)
        onnx.helper.set_model_props(graph, {name: json.dumps(value) for name, value in subject.travelling().items()})
        onnx.save(graph, folder / ONNX)


def load_onnx(subject: Subject, folder: Path) -> Predict:
    """The graph in ONNX Runtime on the CPU."""
    del subject
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])

    def predict(images: Tensor) -> Tensor:
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        return torch.from_numpy(logits)

    return predict


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracers warn of their own internals, which a user can do nothing about; what counts is whether the logits agree."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
