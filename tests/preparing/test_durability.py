"""What a person owns is never touched, and what is fetched is never fetched again, whatever happens to a command."""

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import Hostile, encoded, hostile_server, jpeg, pixels  # noqa: F401
from typer.testing import CliRunner

from catalens import files, prepare
from catalens.catalog import SPLITS, Catalog, CatalogWriter, Roles, group_batches, open_parquet, storage, writer
from catalens.catalog import folder as folders
from catalens.cli import app
from catalens.errors import CatalensError, CatalogError, TooManyBadRowsError
from catalens.preparing import PrepareSpec, TableJournal
from catalens.preparing import prepare as preparing
from catalens.reading import Columns
from catalens.reading import table as reading
from catalens.sampling import sample_catalog

HEADER = ["sku", "title", "category", "price", "photo"]
COLUMNS = Columns("photo", "sku", {"title": "text", "category": "category", "price": "number"})
FLAGS = ["--image", "photo", "--id", "sku", "--text", "title", "--category", "category", "--number", "price"]


def shop(folder: Path, count: int = 12, name: str = "shop.csv") -> Path:
    """A table with a picture of its own for each row, in files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n}.png").write_bytes(encoded(pixels(n, 80, 80), "PNG"))
    return write(folder / name, [row(n, f"{n}.png") for n in range(count)])


def row(n: int, photo: Any) -> dict[str, Any]:
    return {"sku": f"P{n}", "title": f"Bag {n}", "category": f"KIND {n % 2}", "price": str(n + 1), "photo": photo}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER)
        writer.writeheader()
        writer.writerows(rows)
    return path


def prepared(path: Path, out: Path, **spec: Any) -> storage.CatalogCard:
    spec = {"download": {"allow_private_hosts": True, "retries": 0}} | spec
    return prepare(str(path), out, COLUMNS, PrepareSpec.model_validate(spec))[1]


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command as a user sees them; a traceback would be raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, CatalensError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def prepare_again(path: Path, *flags: object) -> tuple[int, str]:
    return command("prepare", path, *FLAGS, "--out", path.parent.parent / "out", *flags)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def titles(out: Path) -> dict[str, str]:
    catalog = Catalog(out)
    found = [r for split in SPLITS if catalog.card.rows[split] for r in catalog.rows(split, ["sku", "title"])]
    return {r["sku"]: r["title"] for r in found}


# What is a person's ---------------------------------------------------------------------------------------------

OTHER_SPLITS = ("--splits", "0.5,0.3,0.2")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A prepared catalogue, `source/shop.csv` being its table."""
    assert prepare_again(shop(tmp_path / "source"))[0] == 0
    return tmp_path / "out"


def table_of(out: Path) -> Path:
    return out.parent / "source" / "shop.csv"


def test_a_folder_that_a_person_made_meanwhile_is_kept(tmp_path: Path):
    path = shop(tmp_path / "source")
    (path.parent / "0.png").write_bytes(b"<html>")
    assert prepare_again(path)[0] == 4
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    code, said = prepare_again(path, "--max-bad", "50%")
    assert (code, contents(tmp_path / "out")) == (3, {"diary.txt": b"mine"})
    assert f"{tmp_path / 'out'} exists already" in said
    shutil.rmtree(tmp_path / "out")
    assert prepare_again(path, "--max-bad", "50%")[0] == 0


@pytest.mark.parametrize(
    "name", ["my_corrections.csv", "data/notes.txt", "more/deep.txt", "check.html", "data/.keep"]
)
def test_a_catalogue_with_a_file_of_a_person_is_refused_by_its_name(out: Path, name: str):
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = contents(out)
    code, said = prepare_again(table_of(out), *OTHER_SPLITS)
    assert (code, contents(out)) == (3, before)
    assert name.split("/")[0] in said
    assert "move it away" in said


def change(name: str, more: bytes) -> Any:
    return lambda out: (out / name).write_bytes((out / name).read_bytes() + more)


@pytest.mark.parametrize(
    "touch",
    [
        change("README.md", b"My own words.\n"),
        change("catalog.json", b"\n"),
        lambda out: pq.write_table(pa.table({"a": [1]}), out / "data/train-00000-of-00001.parquet"),
        lambda out: pq.write_table(pa.table({"a": [1]}), out / "data/train-00001-of-00002.parquet"),
        lambda out: (out / "profile.json").write_text("{}"),
        lambda out: (out / "catalog.json").unlink(),
        lambda out: (out / "README.md").unlink(),
    ],
)
def test_a_catalogue_that_a_person_has_changed_is_refused(out: Path, touch: Any):
    touch(out)
    before = contents(out)
    code, said = prepare_again(table_of(out), *OTHER_SPLITS)
    assert (code, contents(out)) == (3, before)
    assert "is not as this command left it: choose another --out or move it away" in said


def test_a_catalogue_of_another_command_is_refused(out: Path, tmp_path: Path):
    shutil.rmtree(out)
    sample_catalog(out, 20)
    before = contents(out)
    assert prepare_again(table_of(out), *OTHER_SPLITS)[0] == 3
    assert contents(out) == before


def test_an_untouched_catalogue_with_its_checks_page_is_replaced(out: Path):
    before = contents(out)
    assert command("check", out)[0] in (0, 9)
    assert (out / "check.html").is_file()
    code, said = prepare_again(table_of(out), *OTHER_SPLITS)
    assert code == 0, said
    assert contents(out) != before
    assert "check.html" not in contents(out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.work", "source"]
    code, said = prepare_again(table_of(out))
    assert (code, contents(out)) == (0, before)
    assert "is complete" in prepare_again(table_of(out))[1]


def test_a_link_in_the_place_of_a_catalogue_is_refused(out: Path, tmp_path: Path):
    out.rename(tmp_path / "elsewhere")
    out.symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    code, said = prepare_again(table_of(out), *OTHER_SPLITS)
    assert (code, contents(tmp_path / "elsewhere")) == (3, before)
    assert "is a link or a file" in said
    out.unlink()
    out.symlink_to(tmp_path / "nowhere")
    assert prepare_again(table_of(out), *OTHER_SPLITS)[0] == 3
    assert out.is_symlink()


@pytest.mark.parametrize("name", [".out.partial", "out.work", ".out.previous"])
@pytest.mark.parametrize("writes", ["prepare", "sample"])
def test_a_persons_folder_under_one_of_our_names_is_kept(tmp_path: Path, name: str, writes: str):
    path = shop(tmp_path / "source")
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    if writes == "prepare":
        code, said = prepare_again(path)
    else:
        code, said = command("sample", tmp_path / "out", "--rows", 20)
    assert (tmp_path / name / "mine.txt").read_text() == "mine"
    if (writes, name) != ("sample", "out.work"):
        assert (code, (tmp_path / "out").exists()) == (3, False)
        assert "is in the way: move it away or choose another --out" in said


def test_what_appears_while_a_catalogue_is_drawn_is_kept(tmp_path: Path):
    def drawn() -> None:
        with CatalogWriter(tmp_path / "out", Roles(id="i", fields={}), {}):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine.txt").write_text("mine")

    with pytest.raises(CatalogError, match="exists already"):
        drawn()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(tmp_path / "out") == {"mine.txt": b"mine"}


def test_a_page_does_not_overwrite_a_file_of_a_person(drawn: Path, tmp_path: Path):
    page = tmp_path / "notes.html"
    page.write_text("<title>mine</title>")
    code, said = command("check", drawn, "--out", page)
    assert (code, page.read_text()) == (3, "<title>mine</title>")
    assert "no page of catalens" in said
    page.unlink()
    for _ in range(2):
        assert command("check", drawn, "--out", page)[0] in (0, 9)


class Killed(BaseException):
    """The end of a process, at some call."""


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_while_a_catalogue_is_replaced_leaves_one(out: Path, moment: int, monkeypatch: pytest.MonkeyPatch):
    first = contents(out)
    calls = 0

    def dying(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Killed
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patched:
        for owner, name in ((Path, "rename"), (Path, "unlink"), (shutil, "rmtree"), (folders, "manifest")):
            patched.setattr(owner, name, dying(getattr(owner, name)))
        patched.setattr(writer, "sweep", lambda folder: None)
        with pytest.raises(Killed):
            prepared(table_of(out), out, fractions={"train": 0.5, "validation": 0.3, "test": 0.2})
    assert any((place / "catalog.json").is_file() for place in (out, out.parent / ".out.previous"))
    prepared(table_of(out), out)
    assert contents(out) == first
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.work", "source"]


def test_a_former_catalogue_that_cannot_be_removed_is_one_sentence(out: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "catalog.json"))

    former = contents(out)
    with monkeypatch.context() as patched:
        patched.setattr(folders, "_remove", refuse)
        code, said = prepare_again(table_of(out), *OTHER_SPLITS)
    assert code == 3
    assert f"{out} cannot be written (Permission denied)" in said
    assert contents(out.with_name(".out.previous")) == former
    code, said = prepare_again(table_of(out), *OTHER_SPLITS)
    assert code == 0, said
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.work", "source"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (".", "give the name of a new folder"),
        ("..", "give the name of a new folder"),
        ("", "give the name of a new folder"),
        ("/", "give the name of a new folder"),
        ("file", "exists already"),
        ("file/out", "cannot be written (Not a directory)"),
        ("dangling", "exists already"),
        ("/proc/out", "/proc/out"),
        ("x" * 300, "File name too long"),
    ],
)
def test_an_impossible_out_is_one_sentence(tmp_path: Path, name: str, words: str, monkeypatch: pytest.MonkeyPatch):
    path = shop(tmp_path / "source", 3)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for arguments in (["prepare", path, *FLAGS, "--out", name], ["sample", name or ".", "--rows", 5]):
        code, said = command(*arguments)
        assert code == 3
        assert words in said
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["dangling", "file", "source"]


# What is fetched once -------------------------------------------------------------------------------------------


def urls(hostile: Hostile, path: Path, count: int = 12) -> list[dict[str, Any]]:
    rows = [row(n, hostile.url("jpeg", n)) for n in range(count)]
    write(path, rows)
    return rows


def test_a_mended_cell_costs_no_picture_again(hostile: Hostile, tmp_path: Path):
    path, out = tmp_path / "shop.csv", tmp_path / "out"
    rows = urls(hostile, path)
    rows[3]["price"] = "dear"
    with pytest.raises(TooManyBadRowsError):
        prepared(write(path, rows), out)
    rows[3]["price"] = "4"
    rows[5]["title"] = "Another"
    prepared(write(path, rows), out)
    assert hostile.counts == {f"/jpeg/{n}": 1 for n in range(12)}
    assert titles(out) == {r["sku"]: r["title"] for r in rows}
    rows.append(row(12, hostile.url("jpeg", 12)))  # it grows,
    del rows[0]  # shrinks,
    rows.reverse()  # and is turned over
    prepared(write(path, rows), out)
    assert hostile.counts == {f"/jpeg/{n}": 1 for n in range(13)}
    assert titles(out) == {r["sku"]: r["title"] for r in rows}
    pictures = {
        r["sku"]: r["image"] for split in SPLITS if Catalog(out).card.rows[split] for r in Catalog(out).rows(split)
    }
    assert pictures == {f"P{n}": jpeg(n) for n in range(1, 13)}


def test_a_corrected_flag_costs_no_picture_again(hostile: Hostile, tmp_path: Path):
    path, out = tmp_path / "shop.csv", tmp_path / "out"
    rows = [r | {"price": f"{n + 1},50"} for n, r in enumerate(urls(hostile, path))]
    write(path, rows)
    flags = ["prepare", path, "--out", out, "--allow-private-hosts"]
    assert command(*flags, *FLAGS, "--decimal", ".")[0] == 4
    assert command(*flags, *FLAGS, "--decimal", ",")[0] == 0
    code, said = command(*flags, "--image", "photo", "--id", "sku", "--text", "title")
    assert code == 0, said
    assert Catalog(out).card.roles.fields == {"title": "text"}
    assert sum(hostile.counts.values()) == 12


def test_smaller_pictures_are_made_of_what_was_received(hostile: Hostile, tmp_path: Path):
    path, out = tmp_path / "shop.csv", tmp_path / "out"
    urls(hostile, path)
    before = prepared(path, out)
    assert prepared(path, out, max_side=64).content_hash != before.content_hash
    assert prepared(path, out).content_hash == before.content_hash
    assert set(hostile.counts.values()) == {1}


def test_rows_that_share_a_picture_ask_for_it_once(hostile: Hostile, tmp_path: Path):
    path = write(tmp_path / "shop.csv", [row(n, hostile.url("jpeg", n % 3)) for n in range(12)])
    prepared(path, tmp_path / "out", max_bad=1.0)
    assert hostile.counts == {f"/jpeg/{n}": 1 for n in range(3)}


def test_a_bad_row_is_not_fetched(hostile: Hostile, tmp_path: Path):
    rows = urls(hostile, tmp_path / "shop.csv")
    rows[4]["price"] = "dear"
    prepared(write(tmp_path / "shop.csv", rows), tmp_path / "out", max_bad=0.5)
    assert hostile.counts["/jpeg/4"] == 0


def test_a_file_that_has_changed_is_read_again(tmp_path: Path):
    path, out = shop(tmp_path / "source"), tmp_path / "out"
    before = prepared(path, out)
    (path.parent / "3.png").write_bytes(encoded(pixels(77, 80, 80), "PNG"))
    assert prepared(path, out).content_hash != before.content_hash
    (path.parent / "4.png").unlink()
    assert prepared(path, out, max_bad=0.5).left_out == {"No such file or directory": 1}


def test_pictures_that_came_with_their_rows_are_kept_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def table(*numbers: int) -> Path:
        rows = [row(n, {"bytes": encoded(pixels(n, 80, 80), "PNG"), "path": None}) for n in numbers]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "shop.parquet")
        return tmp_path / "shop.parquet"

    decoded: list[int] = []
    real = preparing.collect
    monkeypatch.setattr(preparing, "collect", lambda *a: real(*a[:2], lambda stage, done, *_: decoded.append(done)))
    prepared(table(*range(12)), tmp_path / "out")
    assert (
        prepared(table(*range(11, 1, -1), 20), tmp_path / "out").rows
        == prepared(tmp_path / "shop.parquet", tmp_path / "again").rows
    )
    assert len(decoded) == 3 + 12 + 1 + 11  # each run reports before the first


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_rows_of_two_versions_of_a_table_never_mix(tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch):
    path, out = shop(tmp_path / "source"), tmp_path / "out"
    monkeypatch.setattr(preparing, "BATCH_ROWS", 4)
    real, read = TableJournal._picture, 0

    def killed(self: TableJournal, *arguments: Any) -> int:
        nonlocal read
        read += 1
        if read > 4 * moment - 2:
            raise Killed
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TableJournal, "_picture", killed)
        with pytest.raises(Killed):
            prepared(path, out)
    shutil.copytree(path.parent, tmp_path / "new")
    new = write(path, [row(n, f"{n}.png") | {"title": "New"} for n in range(2, 10)])
    prepared(new, out)
    assert titles(out) == {f"P{n}": "New" for n in range(2, 10)}


def test_a_table_that_changes_while_it_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, out = shop(tmp_path / "source"), tmp_path / "out"
    monkeypatch.setattr(preparing, "BATCH_ROWS", 4)
    real = TableJournal._picture

    def changing(self: TableJournal, *arguments: Any) -> int:
        write(path, [row(n, f"{n}.png") | {"title": "New"} for n in range(12)])
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(TableJournal, "_picture", changing)
        with pytest.raises(CatalogError, match="changed while it was read: give the same command again"):
            prepared(path, out)
    prepared(path, out)
    assert set(titles(out).values()) == {"New"}


def test_another_table_under_the_same_name_is_refused(out: Path, tmp_path: Path):
    before = contents(out)
    other = shop(tmp_path / "other", 5)
    code, said = command("prepare", other, *FLAGS, "--out", out)
    assert (code, contents(out)) == (3, before)
    assert f"is of another table ({table_of(out)})" in said


def test_a_second_prepare_into_a_folder_waits_for_nobody(out: Path):
    with files.locked(out.parent / "out.work") as held:
        assert held
        code, said = prepare_again(table_of(out), *OTHER_SPLITS)
    assert code == 3
    assert "is being worked on by another process: wait for it or choose another --out" in said
    with files.locked(out.parent / ".drawn.partial"):
        assert command("sample", out.parent / "drawn", "--rows", 5)[0] == 3
    assert prepare_again(table_of(out), *OTHER_SPLITS)[0] == 0


# Damage ---------------------------------------------------------------------------------------------------------


def query(sql: str) -> Any:
    def damage(work: Path) -> None:
        with sqlite3.connect(work / "journal.sqlite") as database:
            database.execute(sql)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda work: (work / "journal.sqlite").write_bytes((work / "journal.sqlite").read_bytes()[:5000]),
        lambda work: (work / "journal.sqlite").write_text("{}"),
        lambda work: (work / "journal.sqlite").write_bytes(os.urandom(9000)),
        query("DROP TABLE pictures"),
        query("UPDATE state SET value = '[]'"),
        query("UPDATE state SET value = '{'"),
        query("UPDATE state SET value = '{\"asked\": [1]}'"),
        query("UPDATE rows SET fields = '{' WHERE number = 3"),
        query("UPDATE rows SET fields = '7' WHERE number = 3"),
        query("UPDATE rows SET fields = CAST(x'ff' AS TEXT) WHERE number = 3"),
        query("UPDATE rows SET fields = '{}' WHERE number = 3"),
        query("UPDATE rows SET id = NULL WHERE number = 3"),
        query("UPDATE rows SET picture = 999 WHERE number = 3"),
        query("UPDATE pictures SET sha256 = NULL"),
        query("UPDATE pictures SET facts = '{}'"),
        query("UPDATE pictures SET facts = json_set(facts, '$.fingerprint', '00')"),
        query("UPDATE stored SET data = x'00'"),
        query("DELETE FROM stored"),
        query("PRAGMA user_version = 7"),
    ],
)
def test_a_damaged_journal_is_one_sentence(tmp_path: Path, damage: Any):
    path = shop(tmp_path / "source", 5)
    assert prepare_again(path)[0] == 0
    before = contents(tmp_path / "out")
    damage(tmp_path / "out.work")
    code, said = prepare_again(path, *OTHER_SPLITS)
    assert (code, contents(tmp_path / "out")) == (3, before)
    anew = f"remove {tmp_path / 'out.work'} to start again, and {tmp_path / 'out'} too, or choose another --out"
    assert anew in said or "remove it to start again" in said
    assert "\n" not in said


def test_a_journal_of_format_1_goes_on_without_fetching(hostile: Hostile, tmp_path: Path):
    path, out = tmp_path / "shop.csv", tmp_path / "out"
    urls(hostile, path)
    prepared(path, out)
    before = contents(out)
    with sqlite3.connect(tmp_path / "out.work" / "journal.sqlite") as database:
        database.executescript(
            "ALTER TABLE pictures DROP COLUMN facts; ALTER TABLE pictures ADD COLUMN fingerprint BLOB;"
            "ALTER TABLE rows DROP COLUMN split; ALTER TABLE rows DROP COLUMN together; PRAGMA user_version = 1;"
        )
    prepared(path, out, max_side=64)
    prepared(path, out)
    assert contents(out) == before
    assert set(hostile.counts.values()) == {1}


def test_a_full_disk_is_one_sentence_and_costs_nothing(hostile: Hostile, tmp_path: Path):
    path = tmp_path / "shop.csv"
    urls(hostile, path, 40)
    call = [sys.executable, "-m", "catalens", "prepare", str(path), *FLAGS, "--out", str(tmp_path / "out")]
    call += ["--allow-private-hosts", "--concurrency", "4"]
    full = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, -1));"
    start = f"{full} import runpy; sys.argv = {call[2:]!r}; runpy.run_module('catalens', run_name='__main__')"
    first = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False)
    assert first.returncode == 3, first.stderr
    assert "Traceback" not in first.stderr
    assert "cannot be written" in " ".join(first.stderr.split())
    asked = sum(hostile.counts.values())
    subprocess.run(call, capture_output=True, check=True)
    assert sum(hostile.counts.values()) <= 40 + 2 * 4
    assert asked > 4
    assert len(titles(tmp_path / "out")) == 40


def test_a_full_disk_while_a_catalogue_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    code, said = command("sample", tmp_path / "out", "--rows", 20)
    assert code == 3
    assert "cannot be written (No space left on device)" in said
    assert not list(tmp_path.iterdir())


# Rows that hold anything ----------------------------------------------------------------------------------------

HALF = "\ud83d"


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"title": f"Bag {HALF}"}, "not text in 'title'"),
        ({"category": HALF}, "not text in 'category'"),
        ({"sku": f"P{HALF}"}, "not text in 'sku'"),
        ({"photo": f"{HALF}.png"}, "not text in 'photo'"),
        ({"price": 2**63}, "not a number in 'price'"),
        ({"price": -(2**63) - 1}, "not a number in 'price'"),
        ({"price": 10**400}, ""),
        ({"price": f"5{HALF}"}, ""),
        ({"price": True}, "not a number"),
        ({"price": [1]}, ""),
        ({"photo": [{"no": "picture"}]}, "a list in 'photo' that names no picture"),
        ({"photo": {"bytes": "0.png", "path": 7}}, ""),
        ({"photo": 7}, ""),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_cell_that_cannot_be_kept_costs_its_row(tmp_path: Path, cell: dict[str, Any], reason: str):
    shop(tmp_path / "source")
    rows = [row(n, f"{n}.png") | {"price": n + 1} for n in range(12)]
    rows[4] |= cell
    path = tmp_path / "source" / "shop.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, said = prepare_again(path, "--max-bad", "10%")
    assert code == 0, said
    rejected = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert [r["row"] for r in rejected] == [5]
    assert rejected[0]["reason"].startswith(reason)


def test_whatever_reading_a_row_raises_is_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, real = shop(tmp_path / "source"), reading.read_values

    def hostile(cells: Any, *more: Any) -> Any:
        if cells["sku"] == "P4":
            raise RecursionError("of some library\nand more")
        return real(cells, *more)

    monkeypatch.setattr(reading, "read_values", hostile)
    assert prepared(path, tmp_path / "out", max_bad=0.5).left_out == {"cannot be read": 1}


def test_a_pipe_or_a_device_is_a_bad_picture(tmp_path: Path):
    path = shop(tmp_path / "source")
    os.mkfifo(path.parent / "pipe.png")
    (path.parent / "zero.png").symlink_to("/dev/zero")
    names = ["pipe.png", "zero.png", ".", *(f"{n}.png" for n in range(9))]
    card = prepared(write(path, [row(n, name) for n, name in enumerate(names)]), tmp_path / "out", max_bad=0.5)
    rejected = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    assert [r["reason"] for r in rejected] == [
        "picture cannot be read: Is a pipe or a device",
        "picture path leaves the folder of the table: it is a link, name the folder of its file with --image-root",
        "picture cannot be read: Is a directory",
    ]
    assert sum(card.rows.values()) == 9


def test_a_pipe_is_no_table(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    os.mkfifo(tmp_path / "photos" / "metadata.csv")
    os.mkfifo(tmp_path / "shop.csv")
    for source in ("photos", "shop.csv"):
        code, said = command("prepare", tmp_path / source, *FLAGS, "--out", tmp_path / "out")
        assert (code, (tmp_path / "out").exists()) == (3, False)
        assert str(tmp_path / source) in said


def test_metadata_is_stripped_of_pictures_that_are_there(tmp_path: Path):
    path = shop(tmp_path / "source")
    photo = encoded(pixels(50, 80, 80), "JPEG", comment=b"secret")
    (path.parent / "3.png").write_bytes(photo)
    stored = {}
    for flags in ([], ["--strip-metadata"], []):
        assert prepare_again(path, *flags)[0] == 0
        rows = [r for split in SPLITS for r in Catalog(tmp_path / "out").rows(split)]
        stored[len(stored)] = next(r["image"] for r in rows if r["sku"] == "P3")
    assert stored[0] == stored[2] == photo
    assert b"secret" not in stored[1]


def test_links_do_not_lead_out_of_a_folder_that_is_given_as_a_url(tmp_path: Path):
    path = shop(tmp_path / "source")
    (tmp_path / "secret.png").write_bytes(encoded(pixels(99, 80, 80), "PNG"))
    (path.parent / "link.png").symlink_to(tmp_path / "secret.png")
    write(path, [row(n, "link.png" if n == 2 else f"{n}.png") for n in range(12)])
    _, card = prepare(f"file://{path}", tmp_path / "out", COLUMNS, PrepareSpec(max_bad=0.5))
    assert card.left_out == {"picture path leaves the folder of the table": 1}
    assert sum(card.rows.values()) == 11


@pytest.mark.parametrize("flag", ["--id", "--text"])
def test_a_column_with_the_name_of_the_picture_is_refused_before_anything_is_fetched(
    hostile: Hostile, tmp_path: Path, flag: str
):
    rows = [{"image": f"I{n}", "name": f"N{n}", "photo": hostile.url("jpeg", n)} for n in range(5)]
    (tmp_path / "shop.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    flags = ["--id", "name", "--text", "image"] if flag == "--text" else ["--id", "image", "--text", "name"]
    code, said = command(
        "prepare",
        tmp_path / "shop.jsonl",
        "--image",
        "photo",
        *flags,
        "--out",
        tmp_path / "out",
        "--allow-private-hosts",
    )
    assert (code, dict(hostile.counts)) == (3, {})
    assert "column 'image' has two roles" in said
    assert [path.name for path in tmp_path.iterdir()] == ["shop.jsonl"]


def test_rows_that_are_tied_to_two_splits_count_as_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, out = shop(tmp_path / "source"), tmp_path / "out"
    real = preparing.assign_splits
    monkeypatch.setattr(preparing, "assign_splits", lambda *a, **k: [None] * 4 + real(*a, **k)[4:])
    with pytest.raises(TooManyBadRowsError) as caught:
        prepared(path, out, max_bad=0.3)
    said = str(caught.value)
    assert said.startswith(f"4 of 12 rows of {path} cannot be used, more than --max-bad 30%: 4 tied to products of")
    assert said.endswith("give variants of one product one id, or raise --max-bad to leave them out")
    assert ": ;" not in said
    assert "such as ;" not in said
    assert prepared(path, out, max_bad=0.4).left_out == {"tied to products of two splits": 4}


# Memory ---------------------------------------------------------------------------------------------------------


def where(out: Path) -> dict[str, str]:
    catalog = Catalog(out)
    return {r["sku"]: split for split in SPLITS for r in catalog.rows(split, ["sku"]) if catalog.card.rows[split]}


def test_a_row_that_joins_products_of_two_splits_is_left_out_alone(tmp_path: Path):
    path, out = shop(tmp_path / "source", 40), tmp_path / "out"
    prepared(path, out)
    before = where(out)
    trained = next(sku for sku, split in before.items() if split == "train")
    tested = next(sku for sku, split in before.items() if split == "test")
    rows = [row(n, f"{n}.png") for n in range(40)]
    joining = rows[int(trained[1:])] | {"photo": f"{tested[1:]}.png"}  # a photo of one product, sold as the other
    write(path, [*rows, joining])
    card = prepared(path, out)
    assert (where(out), card.left_out) == (before, {preparing.TIED: 1})
    other = {"train": 0.6, "validation": 0.2, "test": 0.2}
    assert prepared(path, out, fractions=other).left_out == {}
    assert where(out)[trained] == where(out)[tested]


def test_no_more_pictures_are_in_memory_than_connections(
    hostile: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from catalens.preparing import DownloadSpec
    from catalens.preparing import download as downloading

    path = tmp_path / "shop.csv"
    urls(hostile, path, 60)
    in_memory = most = 0
    ask, record = downloading.ask, TableJournal.record

    async def asking(*arguments: Any) -> Any:
        nonlocal in_memory, most
        answer = await ask(*arguments)
        in_memory += isinstance(answer.outcome, bytes)
        most = max(most, in_memory)
        return answer

    def recording(self: Any, *arguments: Any) -> None:
        nonlocal in_memory
        in_memory -= 1
        record(self, *arguments)

    monkeypatch.setattr(downloading, "ask", asking)
    monkeypatch.setattr(TableJournal, "record", recording)
    download = DownloadSpec(concurrency=4, per_host=64, per_host_rate=1e6, allow_private_hosts=True)
    prepared(path, tmp_path / "out", download=download)
    assert 1 < most <= 4
    assert in_memory == 0


PEAK = """
import resource, sys
from catalens.preparing import PrepareSpec
from catalens import prepare
from catalens.reading import Columns
prepare(sys.argv[1], sys.argv[2], Columns("photo", "sku", {"title": "text"}), PrepareSpec(max_bad=1.0))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.integration
def test_memory_does_not_grow_with_pictures_that_came_with_their_rows(tmp_path: Path):
    def peak(rows: int) -> int:
        """MB, for pictures of 3 MB each."""
        noise = [encoded(pixels(n, 80, 80), "BMP") + os.urandom(3_000_000) for n in range(rows)]
        table = pa.Table.from_pylist([{"sku": f"P{n}", "title": "Bag", "photo": noise[n]} for n in range(rows)])
        pq.write_table(table, tmp_path / f"{rows}.parquet")
        call = [sys.executable, "-c", PEAK, str(tmp_path / f"{rows}.parquet"), str(tmp_path / f"out{rows}")]
        return int(subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()[-1]) // 1024

    assert peak(150) < peak(15) + 150  # 405 MB more of pictures


def test_parquet_is_read_by_bytes_not_by_rows(tmp_path: Path):
    rows = [{"photo": os.urandom(2_000_000), "n": n} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "fat.parquet", row_group_size=40)
    with open_parquet(tmp_path / "fat.parquet") as parquet:
        batches = list(group_batches(parquet, range(parquet.num_row_groups)))
    assert [n for batch in batches for n in batch.column("n").to_pylist()] == list(range(40))
    assert max(sum(map(len, batch.column("photo").to_pylist())) for batch in batches) <= storage.GROUP_BYTES


# Opened by others -----------------------------------------------------------------------------------------------


def test_datasets_gives_the_rows_of_this_catalogue_whatever_it_opened_before(tmp_path: Path):
    from datasets import load_dataset
    from datasets.utils import logging

    logging.disable_progress_bar()

    def opened(folder: Path) -> list[str]:
        loaded: Any = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        return [sku for split in loaded for sku in loaded[split]["sku"]]

    def make(place: str, numbers: range) -> Path:
        folder = tmp_path / place / "cat"
        path = shop(tmp_path / place / "source", max(numbers) + 1)
        write(path, [row(n, f"{n}.png") for n in numbers])
        prepared(path, folder)
        return folder

    one, other = make("one", range(6)), make("other", range(6, 12))
    assert sorted(opened(one)) == sorted(f"P{n}" for n in range(6))
    assert sorted(opened(other)) == sorted(f"P{n}" for n in range(6, 12))
    again = make("one", range(3, 9))  # in the same place
    assert again == one
    assert sorted(opened(one)) == sorted(f"P{n}" for n in range(3, 9))
    assert sorted(opened(other)) == sorted(f"P{n}" for n in range(6, 12))
    shutil.rmtree(other)
    sample_catalog(other, 9, seed=1)
    first: Any = load_dataset(str(other), cache_dir=str(tmp_path / "cache"))
    shutil.rmtree(other)
    sample_catalog(other, 9, seed=2)
    second: Any = load_dataset(str(other), cache_dir=str(tmp_path / "cache"))
    for loaded, seed in ((first, 1), (second, 2)):
        sample_catalog(tmp_path / str(seed), 9, seed=seed)
        rows = Catalog(tmp_path / str(seed)).rows("train", ["title", "full_price"])
        assert [(row["title"], row["full_price"]) for row in rows] == [
            (row["title"], row["full_price"]) for row in loaded["train"]
        ]
