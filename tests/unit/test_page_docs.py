"""The page of the API in a real browser, over the documents that the app makes of its models."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import environments
import pytest
import tree
from page_site import IMAGES, Reply, Site, Tab
from stack import Json

#: Prints the document of each model; the controller's own Python has no Flask.
PROGRAM = """
import json
from inference import openapi
from inference.config import Config
from inference.models.echo import EchoModel
from inference.models.ocr import OcrModel
print(json.dumps({model.name: openapi.document(Config(route=route, service=model.name), model())
    for route, model in (("/v1/parse", OcrModel), ("/v1/echo", EchoModel))}))
"""


@pytest.fixture(scope="module")
def documents() -> Json:
    command: list[str | Path] = [environments.app(), "-c", PROGRAM]
    found: Json = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


@pytest.fixture
def tab(browser: Tab, site: Site, documents: Json) -> Iterator[Tab]:
    """The page of the OCR service; a test fails when the console complains, as it does of what the policy forbids."""
    site.app.tell(documents["pp-ocrv6"])
    browser.size(1280, 900)
    browser.open(site.url("/docs"))
    browser.wait("#heading", "Read the text in an image")
    yield browser
    assert [line for line in browser.complaints() if not line.startswith("network: ")] == []


def test_every_route_is_shown_with_its_answers(tab: Tab, documents: Json) -> None:
    paths = documents["pp-ocrv6"]["paths"]
    shown = [one.text for one in tab.all("#operations h2")]
    assert shown == ["POST /v1/parse", *(f"GET {path}" for path in list(paths)[1:]), "Types"]
    answers = [one.text.split()[0] for one in tab.all("#infer summary")]
    assert answers == list(paths["/v1/parse"]["post"]["responses"])
    assert "Retry-After" in (tab.find("#infer").get_attribute("textContent") or "")
    assert {one.text for one in tab.all("#schemas h3")} >= {"Answer", "Line", "ProblemDetails"}


def test_the_commands_are_those_that_work(tab: Tab, site: Site) -> None:
    """One of them is run as it stands there, with a real file."""
    commands = [one.text for one in tab.all("#infer pre") if one.text.startswith("curl ")]
    assert len(commands) == 7
    (form,) = [one for one in commands if " -F " in one]
    image = str(IMAGES / "tiny.png")
    subprocess.run(shlex.split(form.replace("@input.png", f"@{image}")), check=True, capture_output=True)
    assert site.app.seen[-1]["path"] == "/v1/parse"
    assert site.app.seen[-1]["type"].startswith("multipart/form-data")
    assert b'name="image"' in site.app.seen[-1]["body"]


def test_each_service_has_a_page(tab: Tab, site: Site, documents: Json) -> None:
    assert [one.text for one in tab.all("#services a")] == ["read", "echo"]
    site.app.tell(documents["echo"])
    tab.find("#services a:nth-child(2)").click()
    tab.wait("#heading", "Get back what you send")
    assert tab.find("#document").get_attribute("href") == site.url("/openapi/echo.json")
    assert tab.text("#services [aria-current]") == "echo"
    commands = [one.text for one in tab.all("#infer pre") if "application/json" in one.text]
    assert shlex.split(commands[0])[4:6] == ['{"hello":["world",1]}', site.url("/v1/echo")]


def test_text_of_a_document_is_no_markup(tab: Tab, site: Site, documents: Json) -> None:
    bad = json.loads(json.dumps(documents["echo"]).replace("Get back what you send", "<img src=x onerror=alert(1)>"))
    site.app.tell(bad)
    tab.open(site.url("/docs"))
    tab.wait("#heading", "<img src=x onerror=alert(1)>")
    assert tab.all("#main img") == []


def test_without_a_description_it_says_so(tab: Tab, site: Site) -> None:
    site.app.status = Reply(404, b"{}")
    tab.open(site.url("/docs"))
    tab.wait("#said", "The description cannot be read: /openapi.json answers 404.")


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_stands_out_to_the_right(tab: Tab, width: int) -> None:
    tab.size(width, 800)
    wide, room = tab.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= room


def test_what_it_loads_is_there(site: Site) -> None:
    page = (tree.ROOT / "app" / "src" / "inference" / "page" / "docs.html").read_text()
    for name in ("docs.js", "docs.css", "style.css", "icon.svg"):
        assert f"/assets/{name}" in page
        assert (tree.ROOT / "app" / "src" / "inference" / "page" / name).is_file()
