"""The documents: every link leads somewhere, the README is short, and no source cites a document that is not here."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.paths import ROOT

FOLDERS = ("minigrpo", "configs", "tests", ".github")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.md"))])
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / ".ci/run",
                  *(file for folder in FOLDERS for ending in ("py", "toml", "yml") for file in (ROOT / folder).rglob(f"*.{ending}"))])
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)"           # [text](target "title"), ![text](target)
                  r"|^ {0,3}\[[^\]^]+\]:\s*<?(\S+?)>?(?:\s|$)"              # [name]: target
                  r"|\b(?:href|src)=\"([^\"]+)\"", re.MULTILINE)


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^ {0,3}(```+|~~~+).*?^ {0,3}\1[`~]*\s*$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """The targets within the repository. Code holds no links."""
    spanless = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", prose(text))
    found = ("".join(match.groups("")) for match in LINK.finditer(spanless))
    return [target for target in found if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def anchors(text: str) -> set[str]:
    """The names that GitHub gives the headings of a document: lower case, hyphens for blanks, no punctuation."""
    found: set[str] = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^ {0,3}#{1,6}\s+(.*?)\s*#*\s*$", prose(text), re.MULTILINE):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\\(.)", r"\1", shown).lower()).replace(" ", "-")
        found.add(next(each for each in (name, *(f"{name}-{i}" for i in range(1, 1000))) if each not in found))
    return found


def broken(document: Path) -> Iterator[str]:
    """Targets that do not exist, or lie outside the repository."""
    for target in links(document.read_text(encoding="utf-8")):
        path, _, anchor = unquote(target).partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.is_relative_to(ROOT.resolve()) or not file.exists():
            yield target
        elif anchor and file.suffix == ".md":
            if anchor not in anchors(file.read_text(encoding="utf-8")):
                yield target
        elif anchor:
            line = re.fullmatch(r"L(\d+)(?:-L(\d+))?", anchor)              # a line of a source: file.py#L10
            if not line or int(line[line.lastindex or 1]) > len(file.read_text(encoding="utf-8").splitlines()):
                yield target


def test_the_reader_of_links_sees_what_is_there(tmp_path):
    """Four links within the repository, one of them a picture; what stands in code and what leads elsewhere is none."""
    text = ('[a](b.md#c-d) ![p](x/y.png "title") [out](https://example.org/z) `[no](no.md)`\n```\n[no](no.md)\n```\n'
            '[r]: sub/r.md\n<img src="i.png">')
    assert links(text) == ["b.md#c-d", "x/y.png", "sub/r.md", "i.png"]
    headings = "# Top\n## `train.py`, and *more*: 3\\_4\n## [Link](x.md)\n## Top\n```\n# no heading\n```\n"
    assert anchors(headings) == {"top", "trainpy-and-more-3_4", "link", "top-1"}


def test_a_link_that_leads_nowhere_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_docs.ROOT", tmp_path)
    (tmp_path / "code.py").write_text("one\ntwo\n")
    document = tmp_path / "a.md"
    document.write_text("# Here\n[1](#here) [2](#there) [3](code.py#L2) [4](code.py#L3) [5](gone.md) [6](../outside.md) [7](a.md#here)")
    (tmp_path.parent / "outside.md").touch()
    assert list(broken(document)) == ["#there", "code.py#L3", "gone.md", "../outside.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_relative_link_resolves(document):
    assert not list(broken(document))


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert not [number for number, line in enumerate(lines, 1) if len(line) > 120]


def test_no_source_cites_a_document_that_is_not_here():
    """Names in capitals, as documents have them."""
    here = {file.name for file in DOCUMENTS}
    for file in SOURCES:
        cited = set(re.findall(r"\b[A-Z][A-Z_]+\.md\b", file.read_text(encoding="utf-8")))
        assert cited <= here, (file.relative_to(ROOT), cited - here)
