"""Whatever a table, a server or a model says, a terminal shows it as text and does nothing else."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import pytest
from hostile import encoded, pixels
from rich.markup import escape
from rich.panel import Panel
from rich.progress import Progress, TextColumn
from rich.table import Table
from typer.testing import CliRunner

from catalens.cli import app, main
from catalens.cli.app import Terminal
from catalens.config import visible, visible_json
from catalens.errors import CatalensError, CatalogError

ATTACKS = {
    "clear": "\x1b[2J",
    "title": "\x1b]0;owned\x07",
    "c1": "\x9b2J\x85\x90q",
    "edit": "a\x08\x08b\rc\x7f\x00",
    "bidi": "\u202etxet\u2066\u2069",
}
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ALL = "".join(ATTACKS.values())


def shown(show, **options) -> str:
    file = io.StringIO()
    show(Terminal(file=file, width=60, **options))
    return file.getvalue()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_text_in_lines_tables_and_panels_stays_text(attack: str):
    def show(console: Terminal) -> None:
        table = Table("id", attack, title=attack)
        table.add_row(escape(f"P1{attack}"), f"[bold]{escape(attack)}[/]")
        for thing in (attack, f"[red]{escape(attack)}[/]", table, Panel(attack, title=attack)):
            console.print(thing)
        console.print(attack, markup=False, soft_wrap=True)

    output = shown(show)
    assert not CONTROLS.search(output)
    assert "P1" in output
    coloured = shown(show, force_terminal=True, color_system="standard")
    assert not CONTROLS.search(re.sub(r"\x1b\[[\d;]*m", "", coloured))  # rich's own colours and no other sequence
    assert "\x1b[31m" in coloured


def test_cells_stay_in_their_columns():
    """What replaces a character has a width, which the frame of a table reckons with."""

    def show(console: Terminal) -> None:
        table = Table("id", "name")
        table.add_row("\x1b[31mred", "x")
        table.add_row("plain text", "y")
        console.print(table)

    assert len({len(line) for line in shown(show).splitlines()}) == 1


def test_notes_of_a_progress_bar_stay_text():
    def show(console: Terminal) -> None:
        with Progress(TextColumn("{task.description}"), console=console) as bar:
            bar.add_task(escape(f"fetching {ALL}"), total=1)

    output = shown(show, force_terminal=True, color_system=None)
    assert "fetching" in output
    assert not CONTROLS.search(re.sub(r"\x1b\[(\?25[lh]|1A|2K)|\r", "", output))  # what redraws the bar


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_json_escapes_what_hides_and_keeps_the_value(attack: str):
    text = visible_json(json.dumps({attack: [attack, "tôte 袋"]}, ensure_ascii=False))
    assert not CONTROLS.search(text)
    assert json.loads(text) == {attack: [attack, "tôte 袋"]}
    assert "袋" in text


def test_only_what_hides_is_replaced():
    plain = "Tôte 袋 👜 שלום\u200f\u200d\n"
    assert visible(plain) == plain
    assert visible("a\ud83db") == "a\ufffdb"


def test_errors_stay_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The last words of a command that fails, with a name from the command line in them."""
    monkeypatch.setattr(sys, "argv", ["catalens", "check", f"shop{ALL}".replace("\x00", "")])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr().err
    assert ended.value.code == CatalogError.exit_code
    assert "is not a catalogue" in " ".join(output.split())
    assert not CONTROLS.search(output)


@pytest.mark.integration
def test_a_hostile_table_goes_through_the_commands(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ids, a header, titles, categories and reasons with sequences: prepare, check, predict with a trained run."""
    monkeypatch.chdir(tmp_path)
    head = f"title{ATTACKS['clear']}"
    with Path("shop.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sku", head, "category", "price", "image"])
        for n in range(40):
            Path(f"{n}.jpg").write_bytes(encoded(pixels(n, 160, 160), "JPEG"))
            attack = list(ATTACKS.values())[n % 5].replace("\r", "").replace("\x00", "")
            price = "many" if n == 7 else n + 1
            writer.writerow(
                [f"P{n}{attack}", f"Red{attack} bag {n}", f"K{attack}", price, f"{n if n else attack}.jpg"]
            )
    flags = ["--image", "image", "--id", "sku"]
    fields = ["--text", head, "--category", "category", "--number", "price"]
    for command in (
        ["prepare", "shop.csv", *flags, *fields, "--out", "shop", "--max-bad", "100%"],
        ["check", "shop"],
        ["predict", str(run), "shop.csv", *flags, "--max-bad", "100%"],
    ):
        done = CliRunner().invoke(app, command)
        assert not CONTROLS.search(done.stdout + done.stderr)
        assert isinstance(done.exception, CatalensError | SystemExit | None), done.exception
        assert done.stdout + done.stderr + str(done.exception)
    assert Path("shop/catalog.json").is_file()


@pytest.mark.parametrize("arguments", [["evaluate"], ["compare"], ["predict", "tests", "a.jpg", "--out"]])
def test_a_name_that_no_file_can_have_is_one_sentence(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    name = f"{'x' * 300}.csv"
    monkeypatch.setattr(sys, "argv", ["catalens", *arguments, name])
    with pytest.raises(SystemExit) as end:
        main()
    said = "".join(capsys.readouterr().err.split())
    assert end.value.code == 1
    assert f"error:{name}" in said
    assert said.endswith(":Filenametoolong")
