"""The converter carries everything over, always in the same bytes, and refuses what it does not know."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from inference.errors import ArtifactError
from inference.models.ocr import convert, graph, network

pytest_plugins = ["ocr_fixtures"]


@pytest.fixture
def wheel(rapidocr_package: Path, rapidocr_onnx: dict[str, bytes], tmp_path: Path) -> Path:
    """A wheel with the members that matter."""
    path = tmp_path / "rapidocr-3.10.0-py3-none-any.whl"
    package = convert.Package(rapidocr_package)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in rapidocr_onnx.items():
            archive.writestr(f"rapidocr/models/{convert.SOURCES[name][0]}", content)
        for name in convert.LICENSES:
            content = package.read(".dist-info/licenses", name)
            archive.writestr(f"rapidocr-3.10.0.dist-info/licenses/{name}", content)
    return path


@pytest.fixture
def artifacts(ocr_artifacts: Path, tmp_path: Path) -> Path:
    """A copy of the smallest network, to be damaged."""
    for path in (*graph.paths(ocr_artifacts / "ocr", "cls"), graph.onnx_path(ocr_artifacts / "ocr", "cls")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_wheel_and_package_give_the_same_bytes(wheel: Path, ocr_artifacts: Path, tmp_path: Path) -> None:
    written = convert.convert(wheel, tmp_path / "out")
    names = {f"{name}.{end}" for name in graph.NETWORKS for end in ("json", "safetensors", "onnx")} | {
        *convert.LICENSES
    }
    assert {path.relative_to(tmp_path / "out/ocr").as_posix() for path in written} == names
    for path in written:
        assert path.read_bytes() == (ocr_artifacts / "ocr" / path.name).read_bytes()


def test_command_needs_neither_torch_nor_rapidocr(wheel: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'rapidocr', 'cv2', 'onnxruntime']));"
        "from inference.models.ocr.convert import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "--wheel", str(wheel), "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert str(tmp_path / "ocr/rec.safetensors") in result.stdout


@pytest.mark.parametrize("name", graph.NETWORKS)
def test_nothing_is_lost(name: str, ocr_artifacts: Path, rapidocr_onnx: dict[str, bytes]) -> None:
    model = onnx.load_model_from_string(rapidocr_onnx[name])
    loaded = graph.load(ocr_artifacts / "ocr", name)

    constants = {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    constants |= {tensor.name: tensor for tensor in model.graph.initializer}
    assert loaded.weights.keys() == constants.keys()
    for key, tensor in constants.items():
        wanted = onnx.numpy_helper.to_array(tensor)
        if wanted.dtype == np.float32:
            wanted = np.where(np.abs(wanted) < convert.NEGLIGIBLE, np.float32(0), wanted)
        assert loaded.weights[key].dtype == wanted.dtype
        np.testing.assert_array_equal(loaded.weights[key], wanted, strict=True)

    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    assert [(n.op, n.inputs, n.outputs) for n in loaded.nodes] == [
        (n.op_type, list(n.input), list(n.output)) for n in nodes
    ]
    assert Counter(key for n in loaded.nodes for key in n.attributes) == Counter(
        attribute.name for n in nodes for attribute in n.attribute
    )
    assert loaded.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert loaded.source == dict(zip(("file", "sha256"), convert.SOURCES[name], strict=True))


def test_other_version_is_refused(wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(other, "w") as target:
        for member in source.namelist():
            target.writestr(member, source.read(member) + b" " * member.endswith(".onnx"))
    assert convert.main(["--wheel", str(other), "--out", str(tmp_path / "out")]) == 1
    assert "PP-OCRv6_det_small.onnx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a wheel"])
def test_no_wheel_is_refused(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.whl"
    if content is not None:
        path.write_bytes(content)
    assert convert.main(["--wheel", str(path), "--out", str(tmp_path)]) == 1
    assert str(path) in capsys.readouterr().err


def test_empty_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.whl"
    zipfile.ZipFile(path, "w").close()
    with pytest.raises(convert.ConvertError, match=r"PP-OCRv6_det_small\.onnx"):
        convert.convert(path, tmp_path)


@pytest.mark.parametrize("end", ["json", "safetensors"])
def test_missing_file_is_named(end: str, artifacts: Path) -> None:
    (artifacts / f"cls.{end}").unlink()
    with pytest.raises(ArtifactError, match=rf"cls\.{end} cannot be read"):
        network.load(artifacts, "cls")


@pytest.mark.parametrize("end", ["json", "safetensors"])
def test_truncated_file_is_named(end: str, artifacts: Path) -> None:
    path = artifacts / f"cls.{end}"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=rf"cls\.{end} is"):
        network.load(artifacts, "cls")


def test_changed_weight_is_found(artifacts: Path) -> None:
    path = artifacts / "cls.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256"):
        network.load(artifacts, "cls")


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "inference-network/1"}'])
def test_other_json_is_refused(text: str, artifacts: Path) -> None:
    (artifacts / "cls.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"cls\.json is not a network description"):
        network.load(artifacts, "cls")


def test_graph_that_lacks_a_weight_is_refused(artifacts: Path) -> None:
    path = artifacts / "cls.json"
    document = json.loads(path.read_text())
    document["nodes"][0]["inputs"][1] = "missing_weight"
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"cls\.json cannot be built.*missing_weight"):
        network.load(artifacts, "cls")


@pytest.mark.parametrize("name", graph.NETWORKS)
def test_onnx_file_computes_what_the_original_does(
    name: str, ocr_artifacts: Path, rapidocr_onnx: dict[str, bytes]
) -> None:
    """Bit by bit: a sum in float32 does not see weights as small as those that became zero."""
    content, metadata = graph.load_onnx(ocr_artifacts / "ocr", name)
    sessions = [
        onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"])
        for each in (content, rapidocr_onnx[name])
    ]
    x = np.random.default_rng(5).uniform(-1, 1, (2, 3, 64 if name == "det" else 48, 192)).astype(np.float32)
    ours, theirs = (session.run(None, {"x": x})[0] for session in sessions)
    np.testing.assert_array_equal(ours, theirs, strict=True)
    assert metadata == sessions[1].get_modelmeta().custom_metadata_map


def test_weights_have_no_denormal_numbers(ocr_artifacts: Path, rapidocr_onnx: dict[str, bytes]) -> None:
    def denormal(content: bytes) -> int:
        tensors = [onnx.numpy_helper.to_array(t) for t in onnx.load_model_from_string(content).graph.initializer]
        tiny = np.finfo(np.float32).tiny
        return sum(int(((t != 0) & (np.abs(t) < tiny)).sum()) for t in tensors if t.dtype == np.float32)

    assert denormal(rapidocr_onnx["det"]) > 200_000
    for name in graph.NETWORKS:
        assert denormal(graph.onnx_path(ocr_artifacts / "ocr", name).read_bytes()) == 0


def test_missing_onnx_file_is_named(artifacts: Path) -> None:
    (artifacts / "cls.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"cls\.onnx cannot be read"):
        graph.load_onnx(artifacts, "cls")


def test_damaged_onnx_file_is_found(artifacts: Path) -> None:
    path = artifacts / "cls.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"cls\.onnx is damaged: its SHA-256"):
        graph.load_onnx(artifacts, "cls")
