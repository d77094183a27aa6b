"""What computes a network: PyTorch, or onnxruntime on CPU devices, behind one interface.

Neither is imported before a network of its kind is opened: the web workers of mode ``batch`` need none.
"""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inference.errors import ArtifactError, ConfigError
from inference.model import ModelContext

from . import graph

#: Values of the option ``engine``.
ENGINES = ("auto", "torch", "onnxruntime")

#: Pixels of input above which the memory that a run took goes back to the system. Up to here it is kept, as most pages
#: need it: to be given new memory takes a CPU a sixth of the time that a page takes.
KEPT_PIXELS = 1_000_000

#: Any array of float32.
Array = np.ndarray[Any, np.dtype[np.float32]]
Indices = np.ndarray[Any, np.dtype[np.int64]]


class Session(ABC):
    """One network, ready to compute."""

    @abstractmethod
    def __call__(self, batch: Array) -> Array:
        """Run the network on float32 [N, 3, H, W]; blocks until the result is on the CPU."""

    def best(self, batch: Array) -> tuple[Indices, Array]:
        """Run a network that ends in probabilities [N, T, classes] and keep the best class of each step.

        Returns:
            int64 [N, T], the class, and float32 [N, T], its probability.
        """
        result = self(batch)
        found = result.argmax(axis=2)
        # A second pass over all classes for their maximum would cost as much again as the first.
        return found, np.take_along_axis(result, found[..., None], axis=2)[..., 0]


def choose(engine: str, device: str, folder: Path) -> str:
    """Choose ``torch`` or ``onnxruntime``.

    Args:
        engine: the option of the service.
        device: torch device string.
        folder: where the networks lie.

    Raises:
        ConfigError: the engine does not exist, is not installed, or cannot use the device.
    """
    if engine not in ENGINES:
        raise ConfigError(f"option engine={engine!r}: must be one of {', '.join(ENGINES)}")
    on_cpu = device == "cpu"
    installed = importlib.util.find_spec("onnxruntime") is not None
    if engine == "onnxruntime" and not on_cpu:
        raise ConfigError(
            f"option engine='onnxruntime': computes on CPUs only, the device is {device!r}; set auto or torch"
        )
    if engine == "onnxruntime" and not installed:
        raise ConfigError(
            "option engine='onnxruntime': it is not installed; install the extra 'ocr', or set auto or torch"
        )
    if engine != "auto":
        return engine
    there = all(graph.onnx_path(folder, name).exists() for name in graph.NETWORKS)
    return "onnxruntime" if on_cpu and installed and there else "torch"


def open_sessions(engine: str, context: ModelContext, folder: Path) -> tuple[dict[str, Session], Mapping[str, str]]:
    """Open all networks with ``engine``, which :func:`choose` gave.

    torch: sets the number of threads for the whole process. onnxruntime: each session has its own threads.

    Returns:
        The sessions by the name of the network, and the metadata of the recognition network.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    found: dict[str, Session] = {}
    metadata: Mapping[str, str] = {}
    for name in graph.NETWORKS:
        if engine == "torch":
            found[name], metadata = _torch(folder, name, context)
        else:
            found[name], metadata = _onnxruntime(folder, name, context.threads)
    # The last of them is the recognition network.
    return found, metadata


def _torch(folder: Path, name: str, context: ModelContext) -> tuple[Session, Mapping[str, str]]:
    import torch

    from . import network, torch_session

    torch.set_num_threads(context.threads)
    module, metadata = network.load(folder, name)
    return torch_session.TorchSession(module, torch.device(context.device)), metadata


def _onnxruntime(folder: Path, name: str, threads: int) -> tuple[Session, Mapping[str, str]]:
    content, metadata = graph.load_onnx(folder, name)
    try:
        return OnnxSession(content, threads), metadata
    except Exception as error:
        # onnxruntime has a class of its own for each of its status codes, without a common base.
        raise ArtifactError(f"{graph.onnx_path(folder, name)} cannot be opened: {error}") from error


@functools.cache
def _share_memory() -> None:
    """Let all networks of this process take their memory from one pool, as only one of them computes at a time."""
    import onnxruntime

    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # 0 and -1: onnxruntime's own values.
    sizes = {"max_mem": 0, "arena_extend_strategy": 0, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(sizes))


class OnnxSession(Session):
    """A network computed by onnxruntime on the CPU.

    Args:
        content: the ONNX file.
        threads: how many compute; 1 starts none beside the caller's.
        spinning: threads that have nothing to do wait by spinning; for measurements.
    """

    def __init__(self, content: bytes, threads: int, *, spinning: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Errors only: the library's own log goes to stderr in a form of its own.
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        _share_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
        # It would keep a plan of the memory for each size of a picture and width of a line that ever came.
        options.enable_mem_pattern = False
        # Threads that wait by spinning take the cores from the other workers of this device and from nginx.
        # Where nobody else computes it would gain little; `./fleet bench ocr` says how much.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (self._input,) = (value.name for value in self._session.get_inputs())
        # What the largest picture took would be kept else: gigabytes, in each worker, for good.
        self._giving_back = onnxruntime.RunOptions()
        self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def __call__(self, batch: Array) -> Array:
        """See :class:`Session`."""
        pixels = batch.shape[0] * batch.shape[2] * batch.shape[3]
        options = self._giving_back if pixels > KEPT_PIXELS else None
        (result,) = self._session.run(None, {self._input: batch}, options)
        found: Array = result
        return found
