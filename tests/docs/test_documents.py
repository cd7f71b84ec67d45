"""What the documents say holds: links, both READMEs in step."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link is to a file that exists, and to a heading that it has."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_document_is_in_the_index() -> None:
    """docs/README.md names all of its neighbours."""
    index = (ROOT / "docs/README.md").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index] == [
        "README.md"
    ]


def modules(folder: str) -> list[str]:
    """The modules in a folder, by name."""
    return [path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_")]


ROOMS = sorted(path.parent.name for path in (ROOT / "service").glob("*/__init__.py"))


@pytest.mark.parametrize(
    "folder", ["benchmarks", "conversion", "models", *(f"service/{room}" for room in ROOMS)]
)
def test_a_folder_says_where_what_is(folder: str) -> None:
    """Whoever looks for something reads one page: its `__init__` names each of its modules."""
    text = (ROOT / folder / "__init__.py").read_text().split('"""')[1]
    assert [name for name in modules(folder) if not re.search(rf"\b{name}\b", text)] == []


def test_the_architecture_names_every_room_of_the_service() -> None:
    """A module that the table of docs/architecture.md lacks is one that nobody finds."""
    page = (ROOT / "docs/architecture.md").read_text()
    assert [name for name in (*modules("service"), *ROOMS) if f"`service/{name}`" not in page] == []


def shape(page: Path) -> list[str]:
    """What a translation keeps: levels of headings, code without its comments, tables' first columns, links."""
    kept, fenced = [], False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
            kept.append(line)
        elif fenced or line.startswith("    "):
            kept.append(re.sub(r"^\s*(//|#) .*", "", line))
        elif line.startswith("#"):
            kept.append(re.match(r"#+", line)[0])  # type: ignore[index]
        elif line.startswith("| `make"):
            kept.append(line.split("|")[1].strip())
    return kept


def test_the_spanish_readme_is_in_step() -> None:
    """It has the English one's sections, commands, examples, pictures and links."""
    english, spanish = ROOT / "README.md", ROOT / "README.es.md"
    assert shape(spanish) == shape(english)
    links = re.compile(r"!?\[[^]]*\]\(([^)]+)\)")
    # All but the first: to each other.
    assert links.findall(spanish.read_text())[1:] == links.findall(english.read_text())[1:]


def test_make_with_a_python_that_is_too_old_says_what_to_type(tmp_path: Path) -> None:
    """The command that was given, with another Python."""
    old = tmp_path / "old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        ["make", "run", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is Python 3.9.2. Try: make run PYTHON=python3.11" in done.stdout
