"""Export to a folder that Hugging Face transformers loads: AutoModelForImageClassification.from_pretrained(FOLDER).

A timm model becomes transformers' own TimmWrapper, which runs no code from the folder; there the normalisation is the
image processor's, as is the habit. Any other model comes with its source, and is loaded with trust_remote_code=True.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from aalp.errors import RunError
from aalp.export.source import source, timm_arguments
from aalp.export.subject import Predict, Subject
from aalp.models.hugging_face import quiet_transformers
from aalp.store.files import umask

MODELING = '''"""An image classifier that aalp exported. It takes images in [0, 1]: the normalisation is inside."""

from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .{network} import Model


class AalpConfig(PretrainedConfig):
    """Labels are in id2label; `aalp` tells how the model was trained."""

    model_type = "aalp"


class AalpForImageClassification(PreTrainedModel):
    """pixel_values (N, channels, height, width) in [0, 1] to logits (N, classes); a grey network takes RGB, too."""

    config_class = AalpConfig
    main_input_name = "pixel_values"
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = Model()
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, pixel_values, labels=None, return_dict=None, **kwargs):
        if pixel_values.shape[1] == 3 and self.config.num_channels == 1:  # pipelines turn every picture into RGB
            luma = pixel_values.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # as Pillow and aalp have it
            pixel_values = (pixel_values * luma).sum(1, keepdim=True)
        logits = self.model(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return ImageClassifierOutput(loss=loss, logits=logits)
'''


def is_native(subject: Subject) -> bool:
    """Whether transformers loads the export without running code from its folder."""
    return subject.model.startswith("timm:")


def write_hf_folder(subject: Subject, folder: Path) -> None:
    """config.json, model.safetensors, the image processor's configuration, and the source where it is needed.

    Raises:
        RunError: the disk refuses.
    """
    try:
        if is_native(subject):
            with quiet_transformers():
                _write_timm(subject, folder)
        else:
            _write_own(subject, folder)
    except SafetensorError as error:
        raise RunError(f"'{folder}' could not be written: {error}; free space or choose another --out") from error
    for file in folder.glob("*.safetensors"):  # which safetensors makes private
        file.chmod(0o666 & ~umask())


def _write_timm(subject: Subject, folder: Path) -> None:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    channels, height, width = subject.image_shape
    mean, std = subject.normalisation
    config = TimmWrapperConfig(
        architecture=subject.model.removeprefix("timm:"),
        model_args=timm_arguments(subject),
        id2label=dict(enumerate(subject.classes)),
        label2id={name: number for number, name in enumerate(subject.classes)},
        pretrained_cfg={
            "input_size": [channels, height, width],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center" if subject.resizing == "crop" else "squash",
            "mean": mean,
            "std": std,
        },
        aalp=subject.travelling(),
    )
    model = TimmWrapperForImageClassification(config)
    model.timm_model.load_state_dict(subject.classifier.network.state_dict())
    model.save_pretrained(folder)


def _write_own(subject: Subject, folder: Path) -> None:
    modeling = _write_code(source(subject), folder)
    config = {
        "model_type": "aalp",
        "architectures": ["AalpForImageClassification"],
        "auto_map": {
            "AutoConfig": f"{modeling}.AalpConfig",
            "AutoModelForImageClassification": f"{modeling}.AalpForImageClassification",
        },
        "id2label": {str(number): name for number, name in enumerate(subject.classes)},
        "label2id": {name: number for number, name in enumerate(subject.classes)},
        "dtype": "float32",
        "num_channels": subject.image_shape[0],
        "aalp": subject.travelling(),
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        **_sizes(subject),
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }
    if subject.image_shape[0] == 3:  # grey, palettes, CMYK and transparency come with other channels, as they are stored
        processor["do_convert_rgb"] = True
    if subject.image_shape[0] not in (1, 3, 4):  # these alone are found out, and others come as arrays
        processor["input_data_format"] = "channels_first"
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
    tensors = {f"model.{name}": value.contiguous().clone() for name, value in subject.classifier.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _sizes(subject: Subject) -> dict[str, Any]:
    """What the image processor makes of pictures of other sizes: what the training made of them."""
    _, height, width = subject.image_shape
    whole = {"height": height, "width": width}
    if subject.resizing == "crop":
        return {"size": {"shortest_edge": height}, "do_center_crop": True, "crop_size": whole}
    return {"size": whole}


def _write_code(network: str, folder: Path) -> str:
    """The network's source and what makes it a transformers model; the name of the module that holds the latter.

    Names are made from the content: transformers keeps modules by name, and a model's class by its configuration's, so
    that another model's folder, loaded in the same process, would be given this one's network.
    """
    digest = hashlib.sha256((network + MODELING).encode()).hexdigest()[:12]
    names = f"aalp_network_{digest}", f"modeling_aalp_{digest}"
    (folder / f"{names[0]}.py").write_text(network, encoding="utf-8")
    (folder / f"{names[1]}.py").write_text(MODELING.replace("{network}", names[0]), encoding="utf-8")
    return names[1]


def load_hf_folder(subject: Subject, folder: Path) -> Predict:
    """The model through from_pretrained, behind what its image processor does to images in [0, 1]."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    native = is_native(subject)
    with _own_module_cache(), quiet_transformers():
        model: Any = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=not native)
        processor: Any = AutoImageProcessor.from_pretrained(folder)
    model.eval()

    def predict(images: Tensor) -> Tensor:
        if native:
            pixels: Tensor = processor(images)["pixel_values"]
        else:
            pixels = torch.as_tensor(processor(list(images), do_rescale=False, return_tensors="pt")["pixel_values"])
        logits: Tensor = model(pixel_values=pixels).logits
        return logits

    return predict


@contextmanager
def _own_module_cache() -> Iterator[None]:
    """transformers copies a folder's code to the user's cache before it runs it: here to a place that goes away again."""
    from transformers import dynamic_module_utils

    before, path = dynamic_module_utils.HF_MODULES_CACHE, list(sys.path)
    # What the user has loaded so is found under the same name, and is put back.
    known = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "transformers_modules"}
    with tempfile.TemporaryDirectory() as cache:
        dynamic_module_utils.HF_MODULES_CACHE = cache
        sys.path.insert(0, cache)  # before the user's own, which is there once code was loaded from it
        try:
            yield
        finally:
            dynamic_module_utils.HF_MODULES_CACHE = before
            sys.path[:] = path
            for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
                del sys.modules[name]
            sys.modules.update(known)
