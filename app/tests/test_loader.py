from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from inference import loader
from inference.errors import ConfigError
from inference.models.echo import EchoModel


def test_class_is_imported() -> None:
    assert loader.model_class("inference.models.echo:EchoModel") is EchoModel


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere:X", "there is no module 'nowhere'"),
        ("inference.models.nowhere:X", "there is no module 'inference.models.nowhere'"),
        ("nowhere.deep:X", "there is no module 'nowhere'"),
        ("inference.models.echo:Ecko", "Ecko is no Model class of inference.models.echo; it has EchoModel, Model"),
        ("inference.models.echo:json", "json is no Model class"),
        ("inference.model:Model", "Model does not define decode, encode, predict, sample, setup"),
    ],
)
def test_class_that_cannot_be_used(path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loader.model_class(path)
    assert str(caught.value).startswith(f"INFERENCE_MODEL={path!r}: ")
    assert message in str(caught.value)


def test_module_whose_own_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_that_needs_more.py").write_text("import not_installed_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="model_that_needs_more needs the module 'not_installed_library'"):
        loader.model_class("model_that_needs_more:X")


def test_cpu_is_taken_as_asked() -> None:
    assert loader.torch_device("cpu", uses_torch=True) == "cpu"
    assert loader.torch_device("auto", uses_torch=False) == "cpu"


def test_cuda_is_refused_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="torch is not installed"):
        loader.torch_device("cuda", uses_torch=False)
    assert loader.torch_device("auto", uses_torch=True) == "cpu"


@pytest.mark.parametrize("present", [True, False])
def test_cuda_is_taken_when_present_and_never_replaced(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    torch: Any = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    if present:
        assert loader.torch_device("auto", uses_torch=True) == "cuda:0"
        assert loader.torch_device("cuda", uses_torch=False) == "cuda:0"
    else:
        assert loader.torch_device("auto", uses_torch=True) == "cpu"
        with pytest.raises(ConfigError, match="sees no CUDA device; check the driver and CUDA_VISIBLE_DEVICES"):
            loader.torch_device("cuda", uses_torch=True)


def test_threads_reach_torch() -> None:
    pytest.importorskip("torch")
    program = (
        "import torch; from inference import loader; from inference.config import Config\n"
        "from inference.models.echo import EchoModel\n"
        "class Torch(EchoModel): uses_torch = True\n"
        "for threads in (3, 1):\n"
        "    loader.context(Config(threads=threads, accelerator='cpu'), Torch())\n"
        "    assert torch.get_num_threads() == threads, torch.get_num_threads()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_echo_needs_neither_torch_nor_numpy() -> None:
    program = (
        "import sys; from inference.app import create_app; from inference.config import Config\n"
        "create_app(Config(model='inference.models.echo:EchoModel', accelerator='auto', threads=2))\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
