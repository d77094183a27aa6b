"""The documents as a site: built by `./fleet docs` without a warning, whole, and asking nobody else when it is read."""

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import docs_site
import pytest
import tree

#: Elements whose address a browser fetches by itself when it shows the page. Other links are for people.
FETCHED = {"script", "img", "iframe", "source", "video", "audio", "embed", "object", "track"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command: list[str | Path] = [tree.ROOT / "fleet", "docs", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Strict: a link or an anchor that leads nowhere, and a page that the navigation lacks, are among what fails it.
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


class Resources(HTMLParser):
    """Addresses that a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in FETCHED:
            self.found += [given[name] for name in ("src", "data", "poster") if name in given]
        if tag == "link" and given.get("rel") not in {"canonical", "prev", "next", "alternate"}:
            self.found.append(given.get("href", ""))


def outside(address: str) -> bool:
    return bool(re.match(r"(https?:)?//", address))


def test_every_document_is_a_page(site: Path) -> None:
    documents = [path.relative_to(tree.ROOT) for path in docs_site.pages()]
    assert {Path("README.md"), Path("docs/troubleshooting.md"), Path("roles/release/README.md")} <= set(documents)
    pages = [str(path.with_suffix(".html")).replace("README.html", "index.html") for path in documents]
    assert not [page for page in pages if not (site / page).is_file()]


def test_readers_ask_no_other_site(site: Path) -> None:
    bad, seen = [], 0
    for page in site.rglob("*.html"):
        parser = Resources()
        parser.feed(page.read_text())
        seen += len(parser.found)
        bad += [f"{page.relative_to(site)}: {address}" for address in parser.found if outside(address)]
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", sheet.read_text())
        bad += [f"{sheet.relative_to(site)}: {address}" for address in addresses if outside(address)]
    assert seen > 100
    assert not bad


def test_code_is_code_and_no_mark_is_left(site: Path) -> None:
    """Where Markdown is read otherwise than by a git host, its marks stay in the text."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<(script|pre|code|style)\b.*?</\1>|<[^>]+>", " ", page.read_text(), flags=re.DOTALL)
        assert not re.findall(r"```|\*\*|^\s*\|.*\|\s*$", text, re.MULTILINE), page.relative_to(site)
