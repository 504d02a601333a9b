"""The fenced blocks of the documentation, and what is to become of each."""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
COMMAND_LANGUAGES = ("bash", "console")
RUN_LANGUAGES = (*COMMAND_LANGUAGES, "python")
DATA_LANGUAGES = ("yaml", "json", "csv", "jsonl")
NEEDS_A_DOWNLOAD = "needs a download"
TESTED_BY = "tested by: "


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        page: The file, relative to the repository.
        line: Of the opening fence, from 1.
        language: What stands behind the fence; may be empty.
        text: The lines inside.
        marker: The comment on the line before the block, or "".
        intro: The last line of text before the block.
    """

    page: str
    line: int
    language: str
    text: str
    marker: str
    intro: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, each on one line, without comments and prompts."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":  # what has no prompt is output
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    @property
    def file_name(self) -> str | None:
        """The YAML file that the text before the block calls it, if it does."""
        named = re.findall(r"`([\w-]+\.yaml)`", self.intro)
        return named[-1] if named else None


def pages() -> list[str]:
    """README.md, CONTRIBUTING.md and every page of docs/ that there is."""
    top = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    found = [*top, *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return [path.relative_to(REPOSITORY).as_posix() for path in found if path.is_file()]


def read_blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    lines = (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
    found, start = [], None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        before = [text.strip() for text in lines[:start] if text.strip()]
        comment = re.fullmatch(r"<!--\s*(.*?)\s*-->", before[-1]) if before else None
        found.append(
            Block(
                page=page,
                line=start + 1,
                language=lines[start].strip().removeprefix("```"),
                text="\n".join(lines[start + 1 : number]),
                marker=comment[1] if comment else "",
                intro=before[-1] if before else "",
            )
        )
        start = None
    assert start is None, f"{page}:{start}: the block has no end"
    return found


def without_blocks(page: str) -> str:
    """Return a page without its fenced blocks."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return what the headings of a page can be linked by, as GitHub makes it of their text."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
