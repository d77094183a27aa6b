"""From settings to a model on a device."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from typing import Any

from inference.config import Config
from inference.errors import ConfigError
from inference.model import Model, ModelContext


def model_class(path: str) -> type[Model[Any, Any]]:
    """Import the model class named by ``module:Class``.

    Raises:
        ConfigError: there is no such module or class, or it is not a complete :class:`Model`.
    """
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name or module_name.startswith(f"{error.name}."):
            raise ConfigError(f"INFERENCE_MODEL={path!r}: there is no module {error.name!r}") from error
        raise ConfigError(f"INFERENCE_MODEL={path!r}: {module_name} needs the module {error.name!r}") from error
    found = getattr(module, class_name, None)
    if not inspect.isclass(found) or not issubclass(found, Model):
        classes = sorted(
            name for name, item in vars(module).items() if inspect.isclass(item) and issubclass(item, Model)
        )
        raise ConfigError(
            f"INFERENCE_MODEL={path!r}: {class_name} is no Model class of {module_name}; "
            f"it has {', '.join(classes) or 'none'}"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(f"INFERENCE_MODEL={path!r}: {class_name} does not define {missing}")
    if not isinstance(getattr(found, "name", None), str):
        raise ConfigError(f"INFERENCE_MODEL={path!r}: {class_name} does not define its name")
    return found


def torch_device(accelerator: str, uses_torch: bool) -> str:
    """Choose the torch device: ``cpu`` or ``cuda:0``, the only GPU the emperor lets this process see.

    torch is imported only where the answer depends on it.

    Raises:
        ConfigError: ``cuda`` was asked for, and torch or a CUDA device is absent.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not uses_torch):
        return "cpu"
    if importlib.util.find_spec("torch") is None:
        if accelerator == "cuda":
            raise ConfigError("INFERENCE_ACCELERATOR='cuda': torch is not installed")
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda:0"
    if accelerator == "cuda":
        raise ConfigError(
            f"INFERENCE_ACCELERATOR='cuda': torch {torch.__version__} (CUDA {torch.version.cuda}) sees no CUDA device; "
            "check the driver and CUDA_VISIBLE_DEVICES, or set cpu or auto"
        )
    return "cpu"


def context(config: Config, model: Model[Any, Any]) -> ModelContext:
    """Prepare torch for ``config`` and describe the place to the model.

    Raises:
        ConfigError: the accelerator asked for is absent.
    """
    device = torch_device(config.accelerator, model.uses_torch)
    if model.uses_torch and importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(config.threads)
    return ModelContext(
        device=device,
        artifacts=config.artifacts,
        threads=config.threads,
        max_pixels=config.max_pixels,
        options=config.options,
    )


def web_context(config: Config) -> ModelContext:
    """Describe a web worker of mode batch to the model: it has no device, and one thread for each request.

    torch is not imported for it; where the model's module has done so, it must not start a thread for each core.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    return ModelContext(
        device="cpu",
        artifacts=config.artifacts,
        threads=1,
        max_pixels=config.max_pixels,
        options=config.options,
        computes=False,
    )


def torch_version() -> str | None:
    """Give torch's version if this process has loaded it; asking does not load it."""
    torch = sys.modules.get("torch")
    return str(torch.__version__) if torch is not None else None
