"""The page in a real browser, served by a real nginx from the roles' templates."""

import http.client
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import ansible_modules
import pytest
import tree
from page_site import IMAGES, Reply, Site, StandIn, Tab, device, problem, recorded, status
from processes import wait_for
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.support.select import Select
from stack import Fleet, Json

PAGE = tree.ROOT / "app" / "src" / "inference" / "page"
INVOICE = IMAGES / "invoice.png"
POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
}
PATHS = ["/", "/status", "/assets/try.js", "/assets/style.css", "/.fleet/services.json", "/status.json"]
#: What stands on the screen with too little contrast to what is behind it, by WCAG 2.1, level AA.
FAINT = """
const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const behind = (node) => {
  for (let one = node; one; one = one.parentElement) {
    const found = parse(getComputedStyle(one).backgroundColor);
    if (found[3] === 1) return found;
  }
  return [255, 255, 255, 1];
};
return [...document.querySelectorAll("body *:not(svg *)")].filter((one) =>
  one.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && !one.closest(".unseen, .skip") &&
  [...one.childNodes].some((child) => child.nodeType === 3 && child.data.trim())
).map((one) => {
  const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))];
  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.tagName, one.className, one.textContent.slice(0, 30)];
}).filter(([ratio]) => ratio < 4.5);
"""


@pytest.fixture
def tab(browser: Tab, site: Site) -> Iterator[Tab]:
    """The page in a window of 1280 x 900; a test fails when the console complains of anything but a refused request."""
    site.app.answer(recorded("invoice"))
    site.app.tell(status(device("gpu0")))
    site.app.seen.clear()
    browser.size(1280, 900)
    browser.scheme("light")
    browser.open(site.url())
    browser.wait("#heading", "Read the text")
    yield browser
    assert [line for line in browser.complaints() if not line.startswith("network: ")] == []


def ask(site: Site, method: str, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def fits(tab: Tab) -> bool:
    """Whether nothing stands out to the right."""
    wide, room = tab.run("return [document.documentElement.scrollWidth, window.innerWidth]")
    return bool(wide <= room)


def nameless(tab: Tab) -> list[Json]:
    """Controls of which a screen reader could not say what they are."""
    tab.devtools("Accessibility.enable")
    roles = {"button", "link", "textbox", "combobox", "radio", "tab", "listbox", "option", "image", "progressbar"}
    nodes = tab.devtools("Accessibility.getFullAXTree")["nodes"]
    seen = [one for one in nodes if not one.get("ignored") and one.get("role", {}).get("value") in roles]
    assert seen, "the tree of names is empty"
    return [one for one in seen if not one.get("name", {}).get("value")]


# ---- what nginx serves


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_read_only_and_never_stored(site: Site, path: str) -> None:
    site.app.tell(status(device("gpu0")))
    got, headers, body = ask(site, "GET", path)
    assert (got, headers.get_all("Cache-Control")) == (200, ["no-store"])
    assert body
    assert headers.get_all("X-Content-Type-Options") == ["nosniff"]
    assert headers.get_all("X-Fleet-Host") == ["host1"]
    got, _, body = ask(site, "HEAD", path)
    assert (got, body) == (200, b"")
    for method in ("POST", "PUT", "DELETE"):
        got, headers, body = ask(site, method, path)
        assert (got, headers["Allow"], headers["Content-Type"]) == (405, "GET, HEAD", "application/problem+json")
        assert json.loads(body)["type"] == "urn:inference-fleet:problem:method-not-allowed"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/status", "text/html; charset=utf-8"),
        ("/assets/try.js", "application/javascript"),
        ("/assets/style.css", "text/css"),
        ("/assets/icon.svg", "image/svg+xml"),
        ("/assets/example.png", "image/png"),
    ],
)
def test_the_files_may_do_nothing_but_what_the_page_needs(site: Site, path: str, kind: str) -> None:
    _, headers, _ = ask(site, "GET", path)
    assert headers["Content-Type"] == kind
    (policy,) = headers.get_all("Content-Security-Policy", [])
    assert set(policy.split("; ")) == POLICY
    assert headers.get_all("Referrer-Policy") == ["no-referrer"]


@pytest.mark.parametrize(
    "path", ["/index.html", *(f"/assets/{name}" for name in ("", "index.html", "../x.py", "no.js"))]
)
def test_nothing_else_of_the_release_can_be_had(site: Site, path: str) -> None:
    got, headers, _ = ask(site, "GET", path)
    assert (got, headers["Content-Type"]) == (404, "application/problem+json")


def test_answers_of_services_keep_the_headers_they_had(site: Site) -> None:
    site.app.answer({"lines": []})
    _, headers, _ = ask(site, "POST", "/v1/parse")
    assert not {"Content-Security-Policy", "Referrer-Policy", "Cache-Control", "Allow"} & set(headers)


def test_every_file_that_the_page_names_is_there() -> None:
    """And nothing is loaded from elsewhere."""
    texts = {path.name: path.read_text() for path in PAGE.iterdir() if path.suffix != ".png"}
    assert set(texts) >= {"index.html", "status.html"}
    for name, text in texts.items():
        for word in text.replace("'", '"').split('"'):
            if word.startswith("/assets/"):
                assert (PAGE / word.removeprefix("/assets/")).is_file(), f"{name} names {word}"
        assert "style=" not in text, name
        elsewhere = set(re.findall(r"\bhttps?:[^\s\"<']*", text)) - {
            "http://www.w3.org/2000/svg",
            "http://HOST:8100/v1/parse",
        }
        assert not elsewhere, name


def test_without_the_page_there_is_nothing(new_fleet: Callable[[], Fleet]) -> None:
    made = Site(new_fleet(), StandIn())
    with made.serving(site_page=False):
        for path in PATHS:
            got, headers, _ = ask(made, "GET", path)
            assert (got, headers["Content-Security-Policy"]) == (404, None)


@pytest.mark.parametrize("model", ["it's:$uri", 'a"b\\n', "@ADDRESS ocr/cpu0@", "größe:G"])
def test_the_list_of_services_is_json_whatever_is_in_it(model: str, tmp_path: Path) -> None:
    made = ansible_modules.load("filter", "site").site_services(
        [{"name": "ocr", "route": "/v1/parse", "model": model, "max_body_mib": 5}]
    )
    assert not set("'$@") & set(made)
    (one,) = json.loads(made.replace("\\\\", "\\"))
    assert one == {"name": "ocr", "route": "/v1/parse", "model": model, "input": "any", "max_body_mib": 5}


# ---- before anything is sent


def test_it_says_what_it_takes(tab: Tab) -> None:
    assert tab.text("#limits") == "PNG, JPEG, WebP, TIFF or BMP, up to 1 MB"
    assert tab.find("#example").is_displayed()
    assert not tab.find("#writing").is_displayed()
    options = Select(tab.find("#service")).options
    assert [option.text for option in options] == ["read, /v1/parse", "echo, /v1/echo"]
    assert nameless(tab) == []


def test_one_service_needs_no_selector(tab: Tab, site: Site) -> None:
    tab.open(site.url(port=site.echo_port))
    tab.wait("#heading", "Try echo-alone")
    assert not tab.find("#service").is_displayed()
    assert tab.text("#limits") == "Any kind of file, up to 2 MB"


# ---- answers


@pytest.mark.parametrize("width", [1280, 700])
def test_boxes_stand_where_the_lines_are_in_the_scaled_image(tab: Tab, width: int) -> None:
    tab.size(width, 900)
    answer = recorded("invoice")
    tab.send(INVOICE)
    tab.wait("#result")
    wait_for(lambda: tab.run("return document.getElementById('image').complete"), "the image")
    image, *boxes = tab.run(
        "return ['#image', '#overlay polygon'].flatMap((css) => [...document.querySelectorAll(css)])"
        ".map((one) => one.getBoundingClientRect()).map((at) => [at.left, at.top, at.width, at.height])"
    )
    scale = image[2] / answer["width"]
    assert 0.2 < scale < 0.9, "it is scaled"
    assert len(boxes) == len(answer["lines"]) == 14
    for (left, top, wide, high), line in zip(boxes, answer["lines"], strict=True):
        xs, ys = [x for x, _ in line["box"]], [y for _, y in line["box"]]
        wanted = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        got = ((left - image[0]) / scale, (top - image[1]) / scale, wide / scale, high / scale)
        # Pixels of the image; the browser counts half of the line around a box with it.
        assert got == pytest.approx(wanted, abs=4), line["text"]


def test_the_answer_in_all_its_parts(tab: Tab, site: Site) -> None:
    answer = recorded("invoice")
    tab.send(INVOICE)
    tab.wait("#view-text", "Northwind Paper Mill")
    (seen,) = site.app.seen
    assert (seen["path"], seen["type"], seen["body"]) == ("/v1/parse", "image/png", INVOICE.read_bytes())
    assert tab.text("#view-text") == answer["text"]
    facts = tab.pairs("#facts")
    assert facts["Host"] == "host1"
    assert (facts["Device"], facts["Service"]) == (answer["device"], "read")
    assert (facts["Model"], facts["Release"]) == (answer["model"]["name"], answer["model"]["release"])
    assert len(facts["Request id"]) == 32
    assert "Batch" not in facts
    timing = tab.pairs("#timing")
    assert list(timing) == ["Queue", "Decode", "Compute", "Total", "Round trip"]
    assert timing["Total"] == f"{answer['timing_ms']['total'] / 1000:.2f} s"
    assert tab.text("#caption") == "invoice.png, 900 × 1100, 21 kB"
    assert tab.text("#said") == "14 lines found"
    command = f"curl -F image=@'invoice.png' {site.url('/v1/parse')}"
    assert tab.find("#curl").get_attribute("textContent") == command
    tab.find("#tab-json").click()
    assert json.loads(tab.text("#view-json")) == answer
    tab.find("#tab-lines").click()
    assert tab.all("#lines li")[0].text.splitlines() == ["Northwind Paper Mill", "99.9 %"]
    assert nameless(tab) == []


def test_a_batch_is_told_of(tab: Tab, site: Site) -> None:
    answer = recorded("invoice")
    site.app.answer({**answer, "timing_ms": {**answer["timing_ms"], "batch": 7}})
    tab.find("#example").click()
    tab.wait("#result")
    assert tab.pairs("#facts")["Batch"] == "7 computed together"
    assert site.app.seen[0]["body"] == INVOICE.read_bytes()


def test_lines_and_boxes_mark_each_other(tab: Tab) -> None:
    tab.send(INVOICE)
    tab.wait("#result")
    tab.run("document.querySelectorAll('#overlay g')[2].dispatchEvent(new MouseEvent('click', { bubbles: true }))")
    assert tab.wait("#lines li[aria-selected=true]").text.startswith("INVOICE 2024-0193")
    tab.all("#lines li")[4].click()
    marked = tab.run("return [...document.querySelectorAll('#overlay g')].map((one) => one.matches('.chosen'))")
    assert marked == [place == 4 for place in range(14)]


def test_the_text_over_the_image_fits_its_boxes(tab: Tab) -> None:
    tab.send(INVOICE)
    tab.wait("#result")
    assert not tab.all("#overlay text")[0].is_displayed()
    tab.find("label[for=over-text]").click()
    sizes = tab.run(
        "return [...document.querySelectorAll('#overlay g')].map((one) => ['text', 'polygon']"
        ".map((name) => one.querySelector(name).getBBox()).map((box) => [box.width, box.height]))"
    )
    for (wide, high), (room, height) in sizes:
        assert 0.9 * room < wide <= room
        assert high <= 1.1 * height
    tab.find("label[for=over-none]").click()
    assert not tab.find("#overlay").is_displayed()


def test_an_image_that_the_browser_cannot_show(tab: Tab, tmp_path: Path) -> None:
    """The stand-in reads it; Chromium does not know TIFF."""
    path = tmp_path / "scan.tiff"
    path.write_bytes(b"II*\0" + bytes(100))
    tab.send(path)
    tab.wait("#unseen-image", "cannot show this kind of image")
    assert len(tab.all("#overlay polygon")) == 14
    tab.send(INVOICE)
    wait_for(lambda: not tab.find("#unseen-image").is_displayed(), "the image")


def test_an_image_without_text(tab: Tab, site: Site) -> None:
    site.app.answer({**recorded("invoice"), "lines": [], "text": ""})
    tab.send(INVOICE)
    tab.wait("#view-text", "There is no text in it.")
    assert tab.text("#said") == "0 lines found"


def test_other_services_show_their_json(tab: Tab, site: Site) -> None:
    Select(tab.find("#service")).select_by_visible_text("echo, /v1/echo")
    tab.wait("#heading", "Try echo")
    timing = {"queue": 0.1, "decode": 0.2, "compute": 3, "total": 4}
    answer = {"echo": "<b>hello</b>", "device": "gpu1", "timing_ms": timing}
    site.app.answer(answer)
    tab.find("#text").send_keys("Grüße")
    tab.find("#send").click()
    tab.wait("#view-json")
    (seen,) = site.app.seen
    assert (seen["path"], seen["type"], seen["body"].decode()) == ("/v1/echo", "text/plain", "Grüße")
    assert json.loads(tab.text("#view-json")) == answer
    command = f"curl --data-raw 'Grüße' -H 'Content-Type: text/plain' {site.url('/v1/echo')}"
    assert tab.find("#curl").get_attribute("textContent") == command
    assert not tab.find("#figure").is_displayed()
    assert not tab.find("#tab-lines").is_displayed()
    assert tab.pairs("#facts")["Device"] == "gpu1"


def test_what_is_no_json_is_shown_as_it_came(tab: Tab, site: Site) -> None:
    site.app.reply = Reply(body=b"<i>plain</i>", headers={"Content-Type": "text/plain"})
    tab.send(INVOICE)
    tab.wait("#view-json", "<i>plain</i>")
    assert list(tab.pairs("#timing")) == ["Round trip"]


# ---- ways in


def test_paste(tab: Tab) -> None:
    """With the clipboard itself and the keys for it."""
    tab.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    tab.driver.execute_async_script(
        "const done = arguments[0]; fetch('/assets/example.png').then((one) => one.blob())"
        ".then((blob) => navigator.clipboard.write([new ClipboardItem({ 'image/png': blob })])).then(done)"
    )
    ActionChains(tab.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    tab.wait("#view-text", "Northwind Paper Mill")


def test_what_is_pasted_into_the_text_stays_there(tab: Tab) -> None:
    tab.run("document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")
    assert tab.text("#said") == "There is no image in the clipboard"
    Select(tab.find("#service")).select_by_visible_text("echo, /v1/echo")
    tab.run("document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: new DataTransfer() }))")
    assert not tab.find("#problem").is_displayed()


def test_drop(tab: Tab, site: Site) -> None:
    tab.run(
        "const carried = new DataTransfer(); carried.items.add(new File(['x'], 'dropped.png', { type: 'image/png' }));"
        "for (const name of ['dragenter', 'dragover', 'drop'])"
        " document.body.dispatchEvent(new DragEvent(name, { bubbles: true, cancelable: true, dataTransfer: carried }))"
    )
    tab.wait("#caption", "dropped.png")
    assert site.app.seen[0]["body"] == b"x"
    assert "over" not in (tab.find("#drop").get_attribute("class") or "").split()


def test_with_the_keyboard_alone(tab: Tab) -> None:
    keys = ActionChains(tab.driver)

    def press(*pressed: str) -> str:
        keys.send_keys(*pressed).perform()
        return str(tab.run("const one = document.activeElement; return one.id || one.textContent.trim()"))

    names = ["Skip to the content", "Inference Fleet", "Try it", "Status", "API", "service", "file", "example"]
    assert [press(Keys.TAB) for _ in names] == names
    press(Keys.TAB)
    ActionChains(tab.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    assert press(Keys.ENTER) == "example"
    tab.wait("#result")
    assert press(Keys.TAB) == "over-boxes"
    assert press(Keys.ARROW_RIGHT) == "over-text"
    assert tab.find("#stage").get_attribute("data-over") == "text"
    assert press(Keys.TAB) == "tab-text"
    assert press(Keys.ARROW_RIGHT) == "tab-lines"
    assert press(Keys.TAB) == "copy"
    assert press(Keys.TAB) == "lines"
    press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert tab.wait("#lines li[aria-selected=true]").text.startswith("14 Harbour Street")
    assert tab.find("#lines").get_attribute("aria-activedescendant") == "line-1"


def test_copy(tab: Tab) -> None:
    answer = recorded("invoice")
    tab.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    tab.send(INVOICE)
    tab.wait("#result")

    def copied(button: str) -> str:
        tab.find(button).click()
        tab.wait(button, "Copied")
        read = "navigator.clipboard.readText().then(arguments[0])"
        return str(tab.driver.execute_async_script(read))

    assert copied("#copy") == answer["text"]
    tab.find("#tab-json").click()
    assert tab.text("#copy") == "Copy JSON"
    assert json.loads(copied("#copy")) == answer
    # Pages that came without encryption from another machine do not have the clipboard's own interface.
    tab.run("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
    tab.find("#tab-text").click()
    tab.find("#copy").click()
    tab.wait("#copy", "Copied")
    tab.run("delete navigator.clipboard")
    assert tab.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])") == answer["text"]


# ---- problems

BUSY = problem(503, "busy", "Busy", "64 requests wait already.", **{"Retry-After": "4", "X-Fleet-Host": "x"})


@pytest.mark.parametrize(
    ("reply", "title", "detail"),
    [
        (problem(400, "unreadable-input", "Unreadable Input", "It is truncated."), "Unreadable Input", "truncated"),
        (problem(415, "unsupported-input", "Unsupported Input", "Not an image."), "Unsupported Input", "Not an image"),
        (problem(422, "too-many-pixels", "Too Many Pixels", "The limit is 50000000."), "Too Many Pixels", "50000000"),
        (problem(500, "internal-error", "Internal Error", "The server failed."), "Internal Error", "failed"),
        (problem(504, "over-time", "Over Time", "It took too long."), "Over Time", "too long"),
        (BUSY, "Busy", "64 requests wait already."),
        (Reply(403, b"<h1>no</h1>", {"Content-Type": "text/html"}), "Unexpected answer 403", "a proxy in front"),
        (Reply(418, b"[]"), "Unexpected answer 418", "a proxy in front"),
        # nginx finds no device then.
        (Reply(cut=True), "Service Unavailable", "No device could take the request"),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)
def test_a_problem_is_told_in_full(tab: Tab, site: Site, reply: Reply, title: str, detail: str) -> None:
    site.app.reply = reply
    tab.send(INVOICE)
    tab.wait("#problem-title", title)
    assert detail in tab.text("#problem-detail")
    facts = tab.pairs("#problem-facts")
    assert facts["Status"] == str(503 if reply.cut else reply.status)
    assert facts["Host"] == "host1" or reply is BUSY
    assert len(facts["Request id"]) == 32
    assert tab.run("return document.activeElement.id") == "problem"
    wait = {503: "The server asks to wait"}.get(int(facts["Status"]))
    assert tab.find("#problem-wait").is_displayed() == bool(wait)
    if wait:
        tab.wait("#problem-wait", wait)
    site.app.answer(recorded("invoice"))
    tab.find("#again").click()
    tab.wait("#view-text", "Northwind Paper Mill")
    assert not tab.find("#problem").is_displayed()


def test_a_host_that_is_gone(tab: Tab, site: Site) -> None:
    tab.devtools("Network.enable")
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    tab.devtools("Network.emulateNetworkConditions", **offline)
    try:
        tab.send(INVOICE)
        tab.wait("#problem-title", "No answer")
        assert tab.pairs("#problem-facts") == {}
    finally:
        tab.devtools("Network.emulateNetworkConditions", **{**offline, "offline": False})
    tab.find("#again").click()
    tab.wait("#result")


def test_too_large_is_told_before_it_is_sent(tab: Tab, site: Site, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(bytes(2**20 + 2**19))
    tab.send(path)
    tab.wait("#problem-title", "File too large")
    assert tab.text("#problem-detail") == "large.png has 1.5 MB; this service takes up to 1.0 MB. It was not sent."
    path.write_bytes(b"")
    tab.send(path)
    tab.wait("#problem-title", "Empty file")
    assert not site.app.seen


def test_too_large_for_the_server(tab: Tab, site: Site) -> None:
    """As when a proxy in front takes less than the service."""
    site.app.reply = problem(413, "body-too-large", "Body Too Large", "The body is larger than this route takes.")
    tab.send(INVOICE)
    tab.wait("#problem-title", "Body Too Large")


# ---- on any screen


@pytest.mark.parametrize("page", ["idle", "result", "problem", "status"])
def test_on_a_phone_and_in_the_dark(tab: Tab, site: Site, page: str) -> None:
    tab.size(360, 740, phone=True)
    if page == "status":
        out = {"by": "fleet-watch", "why": "x" * 80, "at": "2026-11-25T09:20:00Z"}
        site.app.tell(status(device("gpu0", memory=None), device("gpu1", in_rotation=False, out=out)))
        tab.open(site.url("/status"))
        tab.wait(".badge.out")
    elif page != "idle":
        if page == "problem":
            site.app.reply = problem(415, "unsupported-input", "Unsupported Input", "y" * 200)
        tab.send(INVOICE)
        tab.wait(f"#{page}")
    assert fits(tab)
    assert tab.run(FAINT) == []
    tab.scheme("dark")
    assert tab.run(FAINT) == []
    assert tab.run("return getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"


# ---- status


def test_the_view_follows_the_host(tab: Tab, site: Site) -> None:
    site.app.tell(status(device("gpu0", busy=3, queue=5, requests=1000), device("gpu1", workers=0)))
    tab.open(site.url("/status"))
    tab.wait("#hosts h2", "host1")
    assert tab.text("#summary") == "host1, 2 of 2 devices in rotation"
    first, second = tab.all(".device")
    assert "NVIDIA L4" in first.text
    assert "9.0 of 24 GB" in first.text
    assert "42 %" in first.text
    assert "61 °C" in first.text
    assert "3 of 4" in first.text
    assert "5 of 64" in first.text
    assert len(tab.all(".device:first-child .workers i.busy")) == 3
    assert "none runs" in second.text
    assert "deployed 13 h ago" in tab.text(".host .bar")
    assert nameless(tab) == []
    out = {"by": "fleet-watch", "why": "uncorrected ECC errors", "at": "2026-11-25T09:19:15Z"}
    taken = device("gpu1", in_rotation=False, out=out, memory=None)
    site.app.tell(status(device("gpu0", busy=1, requests=1100, rejected=2), taken))
    tab.wait(".badge.out", "Out of rotation")
    assert tab.text(".why") == "uncorrected ECC errors. Taken out by fleet-watch, 12 min ago"
    assert tab.text("#summary") == "host1, 1 of 2 devices in rotation"
    assert tab.find("#said").get_attribute("textContent") == "host1, 1 of 2 devices in rotation"
    shown = tab.pairs(".device:first-child .counts")
    assert (shown["Requests"], shown["Rejected"]) == ("1,100", "2")
    assert 10 < float(shown["Per second"]) < 60


def test_an_exporter_that_does_not_answer(tab: Tab, site: Site) -> None:
    tab.open(site.url("/status"))
    tab.wait("#hosts h2", "host1")
    # Counted as lost sooner than in two seconds times four.
    site.app.status = Reply(cut=True)
    tab.wait("#trouble-title", "No Status")
    assert "its unit is fleet-exporter" in tab.text("#trouble-detail")
    assert "Below is what was known last." in tab.text("#trouble-detail")
    tab.wait(".stale .badge.lost", "No answer for")
    site.app.tell(status(device("gpu0")))
    wait_for(lambda: not tab.find("#trouble").is_displayed(), "the exporter to be back")
    tab.wait("#hosts .bar", "Live")
    assert not tab.all(".stale")


def test_through_an_edge_each_host_is_shown(tab: Tab, site: Site) -> None:
    """Each answer is another host's: what the others said stays."""
    tab.open(site.url("/status"))
    tab.wait("#hosts h2", "host1")
    site.app.tell(status(device("gpu0"), host="host2"))
    tab.wait("#summary", "2 hosts, 2 of 2 devices in rotation")
    assert [one.text for one in tab.all("#hosts h2")] == ["host1", "host2"]


def test_it_can_be_paused(tab: Tab, site: Site) -> None:
    tab.open(site.url("/status"))
    tab.wait("#hosts h2", "host1")
    tab.find("#pause").click()
    assert tab.text("#summary").endswith("; paused")
    site.app.tell(status(device("gpu0"), device("gpu1")))
    tab.find("#pause").click()
    tab.wait("#summary", "2 of 2 devices")
