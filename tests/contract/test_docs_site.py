"""The documents as a site: built by `./fleet docs` without a warning, whole, and asking nobody else when it is read."""

import re
import shutil
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
    # Strict: a link or an anchor that leads nowhere, and a page that the navigation lacks, are among what fails it.
    done = build(tree.ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def build(project: Path, into: Path) -> subprocess.CompletedProcess[str]:
    # Not with --quiet: MkDocs would count no warnings then.
    command: list[str | Path] = [project / "fleet", "docs", "--site-dir", into]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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


def test_what_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    """A project of two pages, with this one's hooks, settings and environment."""
    for name in ("fleet", "tools/docs_site.py", "tools/docs_site.css"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tree.ROOT / name, tmp_path / name)
    (tmp_path / "tools" / "bootstrap.py").write_text("")
    (tmp_path / ".venv").symlink_to(tree.ROOT / ".venv")
    settings = (tree.ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[0]
    (tmp_path / "mkdocs.yml").write_text(f"{settings}\nnav:\n  - Start: README.md\n  - Reference: [docs/a.md]\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n\n## `./fleet` -- b!\n")
    (tmp_path / "docs" / "c.json").write_text("{}")
    good = "# Front\n\n[a](docs/a.md#fleet----b) and [c](docs/c.json)\n"
    (tmp_path / "README.md").write_text(good)
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "docs" / "c.json").is_file()
    (tmp_path / "docs" / "e.md").write_text("# E\n")
    bad = ("docs/b.md", "docs/a.md#c", "docs/d.json")
    (tmp_path / "README.md").write_text(good + "".join(f"\n[bad]({link})\n" for link in bad))
    done = build(tmp_path, tmp_path / "site")
    assert (done.returncode, done.stderr.count("WARNING")) == (1, 4), done.stderr
    assert not [name for name in (*bad, "docs/e.md") if name not in done.stderr], done.stderr


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
