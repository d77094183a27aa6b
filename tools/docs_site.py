"""Hooks of MkDocs, named in mkdocs.yml: the documents as a site, by `./fleet docs`.

The site has the tree of the project. So a relative link leads to the same file here as on a plain git host, and the
README is the front page of both.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ROLES = "roles/*/README.md"
PAGES = ("README.md", "docs/**/*.md", "app/README.md", ROLES)
LINK = re.compile(r"\]\(([^)\s#:]+)[^)\s:]*\)")


def anchor(heading: str, separator: str = "-") -> str:
    """The name under which git hosts let a heading be linked to."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", separator)


def pages() -> list[Path]:
    """The documents, in a fixed order."""
    return sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})


def linked(page: Path) -> set[Path]:
    """Files of the project that a document links to."""
    return {path for link in LINK.findall(page.read_text()) if (path := (page.parent / link).resolve()).is_file()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name headings as git hosts do, and list the roles."""
    config.mdx_configs["toc"]["slugify"] = anchor
    reference = (config.nav or [])[-1]["Reference"]
    reference += [{f"Role {path.parent.name}": path.relative_to(ROOT).as_posix()} for path in sorted(ROOT.glob(ROLES))]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give the site the documents, what they link to, and its style, by their paths in the project."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    documents = pages()
    further = {path for page in documents for path in linked(page)} - set(documents)
    for path in [*documents, *sorted(further), *(ROOT / name for name in config.extra_css)]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files
