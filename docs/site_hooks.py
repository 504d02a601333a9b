"""Hooks of the documentation site: pages outside docs/, notebooks, and links that work here and on GitHub.

README.md is the first page. A link to another file of the repository leads to a copy of it in the site; a
link to a folder becomes plain text.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parent.parent
# Pages from the top of the repository, by their name in the site.
TOP_PAGES = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
SITE_NAMES = {source: name for name, source in TOP_PAGES.items()}
COPIES = "repository"
LINK = re.compile(r"(\[[^\]\n]*(?:\n[^\]\n]*)?\])\(([^)\s:]+?)(#[^)\s]*)?\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the top folder, the notebooks as pages, and copies of linked files."""
    texts = {name: (REPOSITORY / path).read_text("utf-8") for name, path in TOP_PAGES.items()}
    for notebook in sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb")):
        texts[f"notebooks/{notebook.stem}.md"] = notebook_page(notebook)
    for name, text in texts.items():
        files.append(File.generated(config, name, content=text))
    linked = {
        path
        for file in files.documentation_pages()
        for path in linked_files(file.content_string, file.src_uri)
    }
    for path in sorted(linked):
        copy = File.generated(config, f"{COPIES}/{path}", content=(REPOSITORY / path).read_bytes())
        files.append(copy)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of a page that leave docs/."""
    return with_links(markdown, page.file.src_uri)


def notebook_page(notebook: Path) -> str:
    """Return a notebook as Markdown: its text and code, without outputs."""
    parts = []
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.append(f"[Download this notebook]({notebook.name})")
    return "\n\n".join(parts) + "\n"


def repository_path(page: str, target: str) -> str:
    """Return the path of a link's target in the repository.

    Args:
        page: Page in the site, such as ``tuning.md``.
        target: Target, relative to the page's source, without an anchor.
    """
    source = TOP_PAGES.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def linked_files(text: str, page: str) -> set[str]:
    """Return the files of the repository, other than pages, that a page links to."""
    targets = [repository_path(page, match[2]) for match in LINK.finditer(FENCE.sub("", text))]
    return {
        path
        for path in targets
        if not path.startswith("docs/") and path not in SITE_NAMES and (REPOSITORY / path).is_file()
    }


def with_links(text: str, page: str) -> str:
    """Return the text of a page with links as the site needs them."""

    def rewritten(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        path = repository_path(page, target)
        if path.startswith("docs/"):
            path = path.removeprefix("docs/")
            if path.endswith(".ipynb") and page in TOP_PAGES:
                path = path.removesuffix(".ipynb") + ".md"
        elif path in SITE_NAMES:
            path = SITE_NAMES[path]
        elif (REPOSITORY / path).is_file():
            path = f"{COPIES}/{path}"
        elif (REPOSITORY / path).is_dir():
            return label[1:-1]
        else:
            return match[0]  # the strict build reports it
        return f"{label}({posixpath.relpath(path, posixpath.dirname(page) or '.')}{anchor})"

    pieces, start = [], 0
    for fence in FENCE.finditer(text):
        pieces += [LINK.sub(rewritten, text[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*pieces, LINK.sub(rewritten, text[start:])])
