"""Any number of pictures: none lost, none repeated, none swapped, whatever is killed."""

import csv
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from guessing import PROMPT, Guesser, guess
from hostile import Hostile, hostile_server, jpeg  # noqa: F401

from catalens.errors import CatalensError, CatalogError, InferenceError, RecipeError
from catalens.inference import (
    BatchSpec,
    Input,
    InputSpec,
    Outcome,
    Predictor,
    csv_cell,
    finish_output,
    open_input,
    output_writer,
    predict_lines,
    predict_to,
    record_schema,
    run_version,
)
from catalens.journal import Journal
from catalens.predictions import record_of
from catalens.preparing import DownloadSpec

ROOT = Path(__file__).parents[2]
SMALL = BatchSpec(batch_size=2, download=DownloadSpec(allow_private_hosts=True))
HTML = b"<html>not found</html>"


def photos(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n:03d}.jpg").write_bytes(jpeg(n, 80, 80))
    return folder


def table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows in the format that the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def opened(*where: Path | str, **spec: Any) -> Input:
    return open_input([str(name) for name in where], InputSpec(**spec))


def lines(*where: Path | str, **spec: Any) -> list[dict[str, Any]]:
    """What is printed about a source."""
    texts: list[str] = []
    predict_lines(opened(*where, **spec), Guesser, SMALL, texts.append)
    return [json.loads(line) for line in "".join(texts).splitlines()]


def expected(key: str, name: Any, data: bytes) -> dict[str, Any]:
    return {key: name} | record_of(PROMPT, guess(data))


def predicted(out: Path, source: Input, load=Guesser, spec: BatchSpec = SMALL, **options: Any) -> Outcome:
    return predict_to(out, source, load, spec, {"run": "guesser"} | options.pop("made_by", {}), **options)


# What is read


def test_files_folders_and_globs_are_read_in_order(tmp_path: Path):
    photos(tmp_path / "shop", 3)
    photos(tmp_path / "shop" / "more", 2)
    (tmp_path / "shop" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "shop" / "notes.md").write_text("no picture")
    told: list[str] = []
    one = tmp_path / "one.jpg"
    one.write_bytes(jpeg(7, 80, 80))
    where = [str(one), str(tmp_path / "shop"), str(tmp_path / "**" / "00[01].jpg"), str(tmp_path / "absent.jpg")]
    source = open_input(where, InputSpec(), told.append)
    names = [row.id.removeprefix(f"{tmp_path}/") for (row,) in source.products()]
    shop = ["shop/000.jpg", "shop/001.jpg", "shop/002.jpg", "shop/more/000.jpg", "shop/more/001.jpg"]
    assert names == ["one.jpg", *shop, shop[0], shop[1], shop[3], shop[4], "absent.jpg"]
    assert source.total == len(names)
    assert told == ["2 files in folders are left out: hidden, or no picture by their names"]
    records = lines(*where)
    assert records[:2] == [
        expected("file", where[0], jpeg(7, 80, 80)),
        expected("file", f"{where[1]}/000.jpg", jpeg(0, 80, 80)),
    ]
    assert records[-1]["error"] == "picture cannot be read: No such file or directory"
    assert records[-1]["needs_review"] is True


@pytest.mark.parametrize("name", ["shop.csv", "shop.tsv", "shop.jsonl", "shop.parquet"])
def test_tables_name_their_pictures_by_path(name: str, tmp_path: Path):
    photos(tmp_path / "photos", 20)
    rows = [{"sku": f"00{n}", "photo": f"photos/{n:03d}.jpg", "colour": "red"} for n in range(20)]
    assert lines(table(tmp_path / name, rows)) == [expected("id", f"00{n}", jpeg(n, 80, 80)) for n in range(20)]


def test_tables_may_hold_the_bytes_and_need_no_id(tmp_path: Path):
    pictures = [jpeg(n, 80, 80) for n in range(5)]
    path = table(tmp_path / "shop.parquet", [{"image": {"bytes": data, "path": None}} for data in pictures])
    assert lines(path) == [expected("id", n, data) for n, data in enumerate(pictures, start=1)]
    path = table(tmp_path / "plain.parquet", [{"front": pictures[0], "back": pictures[1], "name": "a"}])
    assert lines(path, image="back", id="name") == [expected("id", "a", pictures[1])]


def test_a_catalogue_is_read_whole_or_by_split(drawn: Path):
    from catalens.catalog import Catalog

    rows = Catalog(drawn).rows("test")
    column = Catalog(drawn).card.roles.id
    assert lines(drawn, split="test") == [expected("id", row[column], row["image"]) for row in rows]
    assert opened(drawn).total == 80
    assert lines(drawn)[-len(rows) :] == lines(drawn, split="test")


def test_urls_go_through_the_downloader(hostile: Hostile, tmp_path: Path):
    kinds = ["jpeg", "missing", "html", "redirect", "redirect-file"]
    rows = [{"id": kind, "image_url": hostile.url(kind, n)} for n, kind in enumerate(kinds)]
    path = table(tmp_path / "shop.csv", rows)
    found = {record["id"]: record for record in lines(path)}
    assert found["jpeg"] == expected("id", "jpeg", jpeg(0))
    assert found["redirect"] == expected("id", "redirect", jpeg(3))
    assert found["missing"]["error"] == "HTTP 404"
    assert found["html"]["error"].startswith("picture: not a picture")
    assert found["redirect-file"]["error"].startswith("scheme refused")
    texts: list[str] = []
    predict_lines(opened(path), Guesser, BatchSpec(), texts.append)
    assert all(json.loads(text)["error"].startswith("address refused") for text in "".join(texts).splitlines())


def test_every_bad_row_keeps_its_place_and_its_reason(tmp_path: Path):
    photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "page.jpg").write_bytes(HTML)
    cells = ["photos/000.jpg", "photos/page.jpg", "", "../../etc/passwd", "photos/none.jpg", "photos/002.jpg"]
    path = table(tmp_path / "shop.jsonl", [{"sku": f"P{n}", "photo": cell} for n, cell in enumerate(cells)])
    path.write_text(path.read_text() + '{"sku": "half\\ud83d", "photo": "photos/001.jpg"}\nno json\n[]\n')
    records = lines(path)
    assert [record["id"] for record in records] == ["P0", "P1", "P2", "P3", "P4", "P5", "half?", None, None]
    reasons = [record["error"] for record in records]
    assert [reason is None for reason in reasons] == [True, False, False, False, False, True, True, False, False]
    assert reasons[1].startswith("picture: not a picture")
    assert reasons[2] == "no value in 'photo'"
    assert str(reasons[3]).startswith("picture path leaves the folder of the table")
    assert reasons[4] == "picture cannot be read: No such file or directory"
    assert reasons[7].startswith("row 8: not JSON")
    assert reasons[8] == "row 9: not a JSON object"
    outcome = predicted(tmp_path / "out.csv", opened(path))
    assert (outcome.total, outcome.failed) == (9, 6)
    assert outcome.reasons["picture path leaves the folder of the table"] == 1
    assert outcome.named[0] == f"row 2 (P1): {reasons[1]}"
    path = table(tmp_path / "shop.jsonl", [{"sku": "\x1b[2Jgone", "photo": "none.jpg"}])
    assert (
        predicted(tmp_path / "out.jsonl", opened(path)).named[0].startswith("row 1 (\x1b[2Jgone): picture cannot be")
    )


@pytest.mark.parametrize(
    ("where", "spec", "error", "words"),
    [
        (["none.csv"], {}, CatalogError, "there is no such file"),
        (["shop.csv"], {"image": "foto"}, CatalogError, "no column 'foto'; its columns are 'sku', 'photo'"),
        (["shop.csv"], {"id": "code"}, CatalogError, "no column 'code'"),
        (["shop.csv"], {"split": "test"}, RecipeError, "--split: leave it out, shop.csv is a table"),
        (["words.csv"], {}, RecipeError, "say which with --image"),
        (["empty.csv"], {}, CatalogError, "the table has no rows"),
        (["shop.csv", "a.jpg"], {}, RecipeError, "give a table or a catalogue alone"),
        (["a.jpg"], {"image": "photo"}, RecipeError, "--image: leave it out, a.jpg is pictures"),
        (["nothing/"], {}, CatalogError, "there are no pictures"),
        (["none/*.jpg"], {}, CatalogError, "there are no pictures"),
        (["x" * 5000], {}, CatalogError, "File name too long"),
    ],
)
def test_what_cannot_be_read_is_said_with_the_fix(
    where: list[str], spec: dict[str, str], error: type[CatalensError], words: str, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("nothing").mkdir()
    Path("shop.csv").write_text("sku,photo\nP1,a.jpg\n")
    Path("words.csv").write_text("sku,word\nP1,hello\n")
    Path("empty.csv").write_text("sku,photo\n")
    with pytest.raises(error, match=words.replace("*", r"\*")):
        opened(*where, **spec)


# What is written


def test_the_three_formats_say_the_same(tmp_path: Path):
    photos(tmp_path / "photos", 40)
    (tmp_path / "photos" / "020.jpg").write_bytes(HTML)
    source = opened(tmp_path / "photos")
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        outcome = predicted(tmp_path / name, source)
        assert (outcome.total, outcome.failed) == (40, 1)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert records == lines(tmp_path / "photos")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.to_pylist() == records
    assert found.schema.field("price").type == pa.float64()
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(records[0])
    assert [row["title"] or None for row in rows] == [record["title"] for record in records]
    assert [float(row["price_high"]) for row in rows if row["price_high"]] == [
        record["price_high"] for record in records if record["price_high"]
    ]
    assert {row["needs_review"] for row in rows} == {"true", "false"}
    assert outcome.to_review == sum(record["needs_review"] for record in records)
    assert not [*tmp_path.glob("*.work"), *tmp_path.glob(".*")]


ODD = ['=1+1,"x"', "two\nlines", "carriage\rreturn", "tab\t; \u2028 end", "'", "-5", "+1.5e3", "@x", "-"]


@pytest.mark.parametrize("raw", [False, True])
def test_text_that_csv_must_quote_reads_back(raw: bool, tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1, 80, 80))
    path = table(tmp_path / "shop.jsonl", [{"id": id, "image": "a.jpg"} for id in ODD])
    predicted(tmp_path / "out.csv", opened(path), spec=SMALL.model_copy(update={"raw": raw}))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        read = [row["id"] for row in csv.DictReader(file)]
    disarmed = [f"'{id}" if id[0] in "=@" or id == "-" else id for id in ODD]
    assert read == (ODD if raw else disarmed)


@pytest.mark.parametrize(
    "cell", ["=HYPERLINK(1)", "+cmd", "-cmd", "@SUM(1)", "\t=1", "\r=1", "=", "--5", "-5x", "+", "-\u0663"]
)
def test_no_cell_of_a_csv_is_a_formula(cell: str, tmp_path: Path):
    """Ids and errors of the table, answers of the model, and names of columns."""
    prompt = PROMPT.model_copy(
        update={"fields": tuple(field.model_copy(update={"column": cell}) for field in PROMPT.fields[:1])}
    )
    schema = record_schema(prompt, "id", False)
    record = dict.fromkeys(schema.names, cell) | {"needs_review": True}
    for raw, first in ((False, f"'{cell}"), (True, cell)):
        out = tmp_path / f"{raw}.csv"
        finish_output(out, iter([record, record | {cell: -5.0}]), schema, raw)
        with out.open(newline="", encoding="utf-8") as file:
            head, row, numbers = csv.reader(file)
        assert head == [first + name.removeprefix(cell) if name.startswith(cell) else name for name in schema.names]
        assert set(row) == {first, "true"}
        assert numbers[schema.names.index(cell)] == "-5.0"


@pytest.mark.parametrize("cell", ["-5", "+5", "-1.5", "-2E-7", "+0.25e10", "5-", "a=b", "'=1", " =1", ""])
def test_numbers_and_harmless_cells_stay_as_they_are(cell: str):
    assert csv_cell(cell) == cell


def test_asking_for_raw_cells_computes_nothing_again(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1, 80, 80))
    source = opened(table(tmp_path / "shop.jsonl", [{"id": f"={n}", "image": "a.jpg"} for n in range(60)]))
    out, guesser = tmp_path / "out.csv", Guesser()
    stopped(out, source)
    predicted(out, source, lambda: guesser, SMALL.model_copy(update={"raw": True}))
    assert sum(guesser.asked) == 60 - 32
    assert out.read_text().count("\n=") == 60


def test_chunks_depend_on_nothing_but_the_place_of_a_row(tmp_path: Path):
    source = opened(photos(tmp_path / "photos", 41))
    guesser = Guesser()
    heard: list[tuple[str, int, int, str]] = []
    predicted(tmp_path / "out.jsonl", source, lambda: guesser, progress=lambda *args: heard.append(args))
    assert guesser.asked == [16, 16, 9]
    assert (heard[0], heard[-1]) == (("pictures", 0, 41, ""), ("pictures", 41, 41, ""))
    assert [done for _, done, _, _ in heard] == sorted(done for _, done, _, _ in heard)


class Failing(Guesser):
    """Dies at its third call."""

    def predict(self, pictures, on_progress=lambda done: None):
        if len(self.asked) == 2:
            raise KeyboardInterrupt
        return super().predict(pictures, on_progress)


def stopped(out: Path, source: Input, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        predicted(out, source, Failing, **options)


def test_a_second_start_goes_on_where_the_first_was_stopped(tmp_path: Path):
    source = opened(photos(tmp_path / "photos", 60))
    stopped(tmp_path / "out.jsonl", source)
    assert not (tmp_path / "out.jsonl").exists()
    guesser = Guesser()
    heard: list[int] = []
    predicted(
        tmp_path / "out.jsonl", source, lambda: guesser, progress=lambda stage, done, total, note: heard.append(done)
    )
    assert guesser.asked == [16, 12]
    assert heard[0] == 32
    predicted(tmp_path / "peace.jsonl", source)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "peace.jsonl").read_bytes()


def test_other_arguments_are_told_apart_and_overwrite_starts_anew(tmp_path: Path):
    source = opened(photos(tmp_path / "photos", 60))
    out = tmp_path / "out.jsonl"
    stopped(out, source)
    with pytest.raises(InferenceError, match=r"begun with another run: .* --overwrite to start anew"):
        predicted(out, source, made_by={"run": "other"})
    with pytest.raises(InferenceError, match="another batch size"):
        predicted(out, source, spec=SMALL.model_copy(update={"batch_size": 3}))
    photos(tmp_path / "photos", 61)
    with pytest.raises(InferenceError, match="another source"):
        predicted(out, opened(tmp_path / "photos"))
    guesser = Guesser()
    predicted(out, opened(tmp_path / "photos"), lambda: guesser, overwrite=True)
    assert sum(guesser.asked) == 61
    before = out.read_bytes()
    with pytest.raises(InferenceError, match="is there already: give --overwrite"):
        predicted(out, source)
    source = opened(tmp_path / "photos" / "0[0-4]?.jpg")
    stopped(out, source, overwrite=True)
    assert out.read_bytes() == before  # until the new one is whole
    predicted(out, source)
    assert len(out.read_text().splitlines()) == 50


def test_a_kill_at_the_very_end_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = opened(photos(tmp_path / "photos", 20))
    out, work = tmp_path / "out.jsonl", tmp_path / "out.jsonl.work"
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "remove", lambda path: None)  # killed before the journal is removed
        predicted(out, source)
    before = out.read_bytes()
    guesser = Guesser()
    predicted(out, source, lambda: guesser)
    assert (guesser.asked, out.read_bytes(), work.exists()) == ([], before, False)
    with pytest.raises(InferenceError, match="is there already"):
        predicted(out, source)
    work.mkdir()
    (work / "mine.txt").write_text("somebody's")
    predicted(out, source, overwrite=True)
    assert out.read_bytes() == before
    assert [path.name for path in work.iterdir()] == ["mine.txt"]


def test_what_an_earlier_version_began_is_predicted_anew(tmp_path: Path):
    source, former = opened(photos(tmp_path / "photos", 5)), tmp_path / "out.csv.partial"
    former.mkdir()
    (former / "manifest.json").write_text("{}")
    with pytest.raises(InferenceError, match=r"out.csv.partial was begun by an earlier version: .* predict anew"):
        predicted(tmp_path / "out.csv", source, overwrite=True)
    assert (former / "manifest.json").exists()


@pytest.mark.parametrize(
    "damage", ["DROP TABLE records", "UPDATE records SET record = '7'", "UPDATE state SET value = '['"]
)
def test_a_damaged_journal_is_one_sentence(damage: str, tmp_path: Path):
    source, out = opened(photos(tmp_path / "photos", 60)), tmp_path / "out.csv"
    stopped(out, source)
    with sqlite3.connect(tmp_path / "out.csv.work" / "journal.sqlite") as database:
        database.execute(damage)
    with pytest.raises(InferenceError, match=r"is damaged .*: give --overwrite to start anew"):
        predicted(out, source)
    predicted(out, source, overwrite=True)
    assert len(out.read_text().splitlines()) == 61


def test_a_full_disk_at_the_very_end_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source, out, guesser = opened(photos(tmp_path / "photos", 20)), tmp_path / "out.jsonl", Guesser()
    with monkeypatch.context() as patched:
        patched.setattr(output_writer, "write_records", full)
        with pytest.raises(InferenceError, match=r"out.jsonl cannot be written \(No space left on device\)"):
            predicted(out, source)
    assert not out.exists()
    predicted(out, source, lambda: guesser)
    assert (guesser.asked, len(out.read_text().splitlines())) == ([], 20)


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        ("out.txt", RecipeError, "ends in .jsonl, .csv, .parquet"),
        ("folder.csv", InferenceError, "is a folder"),
        ("file/out.csv", InferenceError, "Not a directory"),
        ("shop.csv", RecipeError, "is what is to be read"),
    ],
)
def test_an_output_that_cannot_be_is_said_before_the_model_is_loaded(out, error, words, tmp_path: Path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "shop.csv").write_text("sku,photo\nP1,a.jpg\n")

    def load() -> Predictor:
        raise AssertionError("loaded")

    with pytest.raises(error, match=words):
        predicted(tmp_path / out, opened(tmp_path / "shop.csv"), load, overwrite=True)


def test_a_source_that_shrinks_is_noticed(tmp_path: Path):
    source = opened(photos(tmp_path / "photos", 40))
    (tmp_path / "photos" / "039.jpg").unlink()
    with pytest.raises(CatalogError, match="changed while it was read"):
        predicted(tmp_path / "out.jsonl", source)
    assert not (tmp_path / "out.jsonl").exists()


def test_the_version_of_a_run_is_that_of_its_best_model_and_calibration(tmp_path: Path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.safetensors").write_bytes(b"1")
    versions = [run_version(tmp_path)]
    for name, data in (("evaluation.html", b""), ("calibration.json", b"{}"), ("best/model.safetensors", b"22")):
        (tmp_path / name).write_bytes(data)
        versions.append(run_version(tmp_path))
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


# Processes


def command(source: Path, out: Path, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "tests/inference/guessing.py"), str(source), "--out", str(out), *flags]


def shop(folder: Path, rows: int) -> Path:
    """A table of 50 pictures and of some that are not there."""
    photos(folder / "photos", 50)
    return table(folder / "shop.csv", [{"sku": f"P{n}", "photo": f"photos/{n % 53:03d}.jpg"} for n in range(rows)])


def finished(out: Path) -> list[tuple[int, int]]:
    """Finished records by chunk and place, in the order in which they were written."""
    path = Path(f"{out}.work") / "journal.sqlite"
    if not path.is_file():
        return []
    try:
        with closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT chunk, place FROM records ORDER BY rowid").fetchall()
    except sqlite3.OperationalError:  # no table yet
        return []


def killed_predict(folder: Path, rows: int, kills: int, suffix: str) -> None:
    """Predict, killed that often at random moments; then to the end, and compared with one in peace."""
    source, out, peace = shop(folder, rows), folder / f"killed{suffix}", folder / f"peace{suffix}"
    dice = random.Random(0)
    before: list[tuple[int, int]] = []
    for kill in range(kills):
        with subprocess.Popen(command(source, out, "--pause", "0.002"), stderr=subprocess.DEVNULL) as run:
            enough = rows * (kill + 0.5) / kills
            while run.poll() is None and len(finished(out)) < enough:
                time.sleep(0.001)
            time.sleep(dice.uniform(0, 0.06))
            run.send_signal(signal.SIGKILL)
        assert not out.exists()
        assert finished(out)[: len(before)] == before  # nothing is done again
        before = finished(out)
    assert len(before) > rows // 2
    for end in (out, peace):
        subprocess.run(command(source, end), check=True, stderr=subprocess.DEVNULL)
    assert out.read_bytes() == peace.read_bytes()
    assert not [*folder.glob("*.work"), *folder.glob(".*")]


@pytest.mark.integration
def test_kill_loses_nothing_and_changes_nothing(tmp_path: Path):
    killed_predict(tmp_path, rows=300, kills=3, suffix=".jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_twenty_kills_of_two_thousand_rows(suffix: str, tmp_path: Path):
    killed_predict(tmp_path, rows=2000, kills=20, suffix=suffix)


@pytest.mark.integration
def test_an_output_has_one_process(tmp_path: Path):
    source, out = shop(tmp_path, 300), tmp_path / "out.jsonl"
    with subprocess.Popen(command(source, out, "--pause", "0.1"), stderr=subprocess.DEVNULL) as run:
        while not finished(out) and run.poll() is None:
            time.sleep(0.01)
        with pytest.raises(InferenceError, match="is being written by another process"):
            predicted(out, opened(source))
        run.kill()
    subprocess.run(command(source, out), check=True, stderr=subprocess.DEVNULL)
    assert len(out.read_text().splitlines()) == 300


@pytest.mark.integration
@pytest.mark.parametrize("kilobytes", [3, 200])
def test_a_full_disk_is_one_sentence_and_no_loss(kilobytes: int, tmp_path: Path):
    """No file may be larger than that."""
    source, out = shop(tmp_path, 300), tmp_path / "out.jsonl"
    limited = f'ulimit -f {kilobytes}; exec "$@"'
    run = subprocess.run(
        ["bash", "-c", limited, "-", *command(source, out)], capture_output=True, text=True, check=False
    )
    assert run.stderr.startswith(f"error: {out}.work/journal.sqlite cannot be written (")
    assert "mend that and give the same command again, what is done is kept" in run.stderr
    assert (0 < len(finished(out)) < 300) is (kilobytes == 200)
    subprocess.run(command(source, out), check=True)
    assert len(out.read_text().splitlines()) == 300


PEAK = (
    "import pathlib, re, runpy, sys\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    # not ru_maxrss, which starts with the size of the process that this one was forked from
    "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"
)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_memory_does_not_grow_with_the_table(suffix: str, tmp_path: Path):
    photos(tmp_path / "photos", 50)
    pictures = [jpeg(n, 160, 120) for n in range(50)]
    peaks = []
    for rows in (2000, 20_000):
        source = tmp_path / f"{rows}{suffix}"
        if suffix == ".csv":
            table(source, [{"sku": f"P{n}", "photo": f"photos/{n % 50:03d}.jpg"} for n in range(rows)])
        else:
            made = {"sku": [f"P{n}" for n in range(rows)], "image": [pictures[n % 50] for n in range(rows)]}
            pq.write_table(pa.table(made), source, row_group_size=1000, use_dictionary=False)
        run = [
            sys.executable,
            "-c",
            PEAK,
            *command(source, tmp_path / f"out-{source.name}.csv", "--batch-size", "16")[1:],
        ]
        peaks.append(int(subprocess.run(run, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] <= 1.1 * peaks[0], peaks
