from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from inference.errors import ArtifactError, ConfigError, UnreadableInput
from inference.model import ModelContext
from inference.models.program import ProgramModel
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

torch = pytest.importorskip("torch")

Options = dict[str, Any]


class Mlp(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two layers with known weights: the answer is 3 times the sum of the positive inputs, and its negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4, bias=False)
        self.second = torch.nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(4))
            self.second.weight.copy_(torch.tensor([[3.0] * 4, [-3.0] * 4]))

    def forward(self, x: Any) -> Any:
        return self.second(torch.relu(self.first(x)))


class Mixed(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two inputs of different kinds, a dict of outputs, no batch."""

    def forward(self, numbers: Any, index: Any) -> Any:
        return {"picked": numbers[index], "log": torch.log(numbers)}


class Sum(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two inputs whose sizes must be equal."""

    def forward(self, x: Any, y: Any) -> Any:
        return x + y


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the programs of these tests once."""
    folder = tmp_path_factory.mktemp("artifacts")
    batch = torch.export.Dim("batch", min=1, max=3)
    x = torch.zeros(2, 4)
    torch.export.save(torch.export.export(Mlp(), (x,), dynamic_shapes={"x": {0: batch}}), folder / "mlp.pt2")
    torch.export.save(torch.export.export(Mlp(), (x,)), folder / "fixed.pt2")
    pair = (torch.ones(3), torch.tensor(1))
    torch.export.save(torch.export.export(Mixed(), pair), folder / "mixed.pt2")
    (folder / "damaged.pt2").write_bytes((folder / "mlp.pt2").read_bytes()[:2000])
    return folder


MLP: Options = {
    "program": "mlp.pt2",
    "batched": True,
    "sample": {"inputs": [[1, 2, -3, 0.5]], "outputs": [[10.5, -10.5]], "tolerance": 1e-4},
}
MIXED: Options = {
    "program": "mixed.pt2",
    "sample": {"inputs": [[1.0, 1.0, 1.0], 1], "outputs": [1.0, [0.0, 0.0, 0.0]]},
}


def model_of(artifacts: Path, options: Options) -> ProgramModel:
    model = ProgramModel()
    context = ModelContext(device="cpu", artifacts=artifacts, options=options)
    model.prepare(context)
    model.setup(context)
    return model


@pytest.fixture
def mlp(make_app: Callable[..., Flask], artifacts: Path) -> FlaskClient:
    return make_app(ProgramModel(), artifacts=artifacts, options=MLP).test_client()


@pytest.fixture
def mixed(make_app: Callable[..., Flask], artifacts: Path) -> FlaskClient:
    return make_app(ProgramModel(), artifacts=artifacts, options=MIXED).test_client()


def test_program_answers(mlp: FlaskClient) -> None:
    answer = mlp.post("/v1/test", json={"inputs": [[1, 1, 1, -9]]}).get_json()
    assert answer["outputs"] == [[pytest.approx(9.0), pytest.approx(-9.0)]]
    assert answer["model"] == {"name": "program", "release": "r1"}
    assert mlp.get("/version").get_json()["torch"] == torch.__version__


def test_program_with_several_inputs_and_outputs(mixed: FlaskClient) -> None:
    answer = mixed.post("/v1/test", json={"inputs": [[0, 1, -1], 2]}).get_json()
    # The logarithms of 0 and -1 are no numbers that JSON has.
    assert answer["outputs"] == [-1.0, [None, 0.0, None]]


@pytest.mark.parametrize("client", ["mlp", "mixed"])
def test_program_describes_its_inputs(client: str, request: pytest.FixtureRequest) -> None:
    ask: FlaskClient = request.getfixturevalue(client)
    document = ask.get("/openapi.json").get_json()
    validate(document)
    operation = document["paths"]["/v1/test"]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    schema = Draft202012Validator(body["schema"])
    assert schema.is_valid(body["example"])
    answer = ask.post("/v1/test", json=body["example"]).get_json()
    expected = operation["responses"]["200"]["content"]["application/json"]["example"]["outputs"]
    assert len(answer["outputs"]) == len(expected)
    # What the schema does not allow is refused, with a status that is described.
    for wrong in (
        {},
        {"inputs": []},
        {"inputs": [["a"]]},
        {"inputs": [[1.0] * 99, 1]},
        {"inputs": body["example"], "x": 1},
    ):
        assert not schema.is_valid(wrong)
        assert ask.post("/v1/test", json=wrong).status_code == 400


def test_batch_is_computed_in_as_few_runs_as_the_program_allows(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(artifacts, MLP)
    sizes = []
    run = model._module

    def spy(x: Any) -> Any:
        sizes.append(len(x))
        return run(x)

    monkeypatch.setattr(model, "_module", spy)
    items = [model.decode(json.dumps({"inputs": [[n, 0, 0, 0]]}).encode(), "application/json") for n in range(7)]
    outputs = [model.encode(output)["outputs"] for output in model.predict(items)]
    assert sizes == [3, 3, 1]
    assert outputs == [[[pytest.approx(3.0 * n), pytest.approx(-3.0 * n)]] for n in range(7)]


def test_unbatched_program_computes_each_request(artifacts: Path) -> None:
    model = model_of(artifacts, MIXED)
    bodies = (b'{"inputs": [[1, 2, 3], 0]}', b'{"inputs": [[1, 2, 3], 2]}')
    outputs = model.predict([model.decode(body, "application/json") for body in bodies])
    assert [model.encode(output)["outputs"][0] for output in outputs] == [1.0, 3.0]


@pytest.mark.parametrize("content_type", ["image/png", "text/plain", None])
def test_only_json_is_read(mlp: FlaskClient, content_type: str | None) -> None:
    response = mlp.post("/v1/test", data=b'{"inputs": []}', content_type=content_type)
    assert response.status_code == 415
    assert "must be application/json" in response.get_json(force=True)["detail"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"{", "not JSON"),
        (b"[]", 'must be {"inputs": [...]} with 1 inputs (x: float32[4])'),
        (b'{"inputs": [], "x": 1}', "must be"),
        (b'{"inputs": 1}', "must be"),
        (b'{"inputs": []}', "0 inputs were sent; the program takes 1 inputs (x: float32[4])"),
        (b'{"inputs": [[1, 2, 3]]}', "x: float32[4] was sent with shape [3]"),
        (b'{"inputs": [[[1, 2, 3, 4]]]}', "x: float32[4] was sent with shape [1, 4]"),
        (b'{"inputs": [[]]}', "x: float32[4] was sent with shape [0]"),
        (b'{"inputs": [[1, 2, [3], 4]]}', "cannot be made"),
        (b'{"inputs": [["1", 2, 3, 4]]}', "cannot be made"),
        (b'{"inputs": [null]}', "cannot be made"),
        (b'{"inputs": [[true, true, true, true]]}', "elements of type bool"),
        (b'{"inputs": [[1e39, 1, 1, 1]]}', "over the range"),
        (b'{"inputs": [[1e999, 1, 1, 1]]}', "over the range"),
        (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"inputs": [' + b"[" * 200 + b"]" * 200 + b"]}", "float32[4]"),
    ],
)
def test_requests_that_do_not_fit(mlp: FlaskClient, body: bytes, detail: str) -> None:
    response = mlp.post("/v1/test", data=body, content_type="application/json")
    assert (response.status_code, response.content_type) == (400, "application/problem+json")
    assert detail in response.get_json(force=True)["detail"]
    assert mlp.get("/readyz").status_code == 200


@pytest.mark.parametrize("index", [b"1.5", b"true", b"[1]", b"99999999999999999999"])
def test_integers_are_not_rounded_or_guessed(artifacts: Path, index: bytes) -> None:
    model = model_of(artifacts, MIXED)
    with pytest.raises(UnreadableInput, match=r"Input index: int64\[\] "):
        model.decode(b'{"inputs": [[1, 1, 1], ' + index + b"]}", "application/json")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch": True}, ConfigError, "option 'batch': no such name; did you mean batched?"),
        ({"batched": 1}, ConfigError, "option batched=1: must be true or false"),
        ({"program": None}, ConfigError, "option program=None: must be the name of a .pt2 file"),
        ({"program": "../mlp.pt2"}, ConfigError, "must lie inside the artifacts"),
        ({"program": "/mlp.pt2"}, ConfigError, "must lie inside the artifacts"),
        ({"program": "other.pt2"}, ArtifactError, "other.pt2: there is no such file"),
        ({"program": "damaged.pt2"}, ArtifactError, "damaged.pt2: torch"),
        ({"program": "fixed.pt2"}, ConfigError, "x: float32[2, 4] must have a dynamic dimension 0"),
        ({"sample": None}, ConfigError, "option sample=None: must be"),
        ({"sample": {"inputs": [1]}}, ConfigError, "option sample: outputs=None: must be a list"),
        ({"sample": {"inputs": [1], "output": [1]}}, ConfigError, "did you mean outputs?"),
        ({"sample": {"inputs": [1], "outputs": [1], "tolerance": -1}}, ConfigError, "tolerance=-1: must be a number"),
    ],
)
def test_bad_options_stop_the_start(artifacts: Path, change: Options, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        model_of(artifacts, {**MLP, **change})
    assert message in str(caught.value)


def test_sample_must_give_its_outputs(make_app: Callable[..., Flask], artifacts: Path) -> None:
    sample = {**MLP["sample"], "outputs": [[10.5, -10.6]]}
    with pytest.raises(Exception, match=r"answer\.outputs\[0\]\[1\]: expected -10\.6, got -10\.5"):
        make_app(ProgramModel(), artifacts=artifacts, options={**MLP, "sample": sample})


def test_program_with_inputs_by_name_is_refused(artifacts: Path, tmp_path: Path) -> None:
    program = torch.export.export(Mixed(), (torch.ones(3),), {"index": torch.tensor(1)})
    torch.export.save(program, tmp_path / "named.pt2")
    with pytest.raises(ConfigError, match="by position"):
        model_of(tmp_path, {**MIXED, "program": "named.pt2"})


def test_computed_dimension_is_left_to_the_program(tmp_path: Path) -> None:
    half = torch.export.Dim("half", min=1, max=4)
    module = torch.nn.Flatten(0)
    program = torch.export.export(module, (torch.zeros(4, 2),), dynamic_shapes=({0: 2 * half},))
    torch.export.save(program, tmp_path / "even.pt2")
    options = {"program": "even.pt2", "sample": {"inputs": [[[1, 2], [3, 4]]], "outputs": [[1, 2, 3, 4]]}}
    model = model_of(tmp_path, options)
    item = model.decode(b'{"inputs": [[[1, 2], [3, 4]]]}', "application/json")
    assert model.encode(model.predict([item])[0]) == {"outputs": [[1.0, 2.0, 3.0, 4.0]]}


def test_sizes_that_do_not_go_together_are_the_clients_fault(make_app: Callable[..., Flask], tmp_path: Path) -> None:
    size = torch.export.Dim("size", min=1, max=9)
    program = torch.export.export(Sum(), (torch.zeros(4), torch.zeros(4)), dynamic_shapes=({0: size}, {0: size}))
    torch.export.save(program, tmp_path / "sum.pt2")
    options = {"program": "sum.pt2", "sample": {"inputs": [[1, 2], [3, 4]], "outputs": [[4, 6]]}}
    client = make_app(ProgramModel(), artifacts=tmp_path, options=options).test_client()
    assert client.post("/v1/test", json={"inputs": [[1], [1]]}).get_json()["outputs"] == [[2.0]]
    response = client.post("/v1/test", json={"inputs": [[1, 2], [1, 2, 3]]})
    assert response.status_code == 400
    assert "sizes of the inputs do not fit" in response.get_json(force=True)["detail"]
    response = client.post("/v1/test", json={"inputs": [[1], [1] * 10]})
    assert "y: float32[1..9] was sent with shape [10]" in response.get_json(force=True)["detail"]
