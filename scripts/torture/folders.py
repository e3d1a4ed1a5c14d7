"""Work folders with one thing broken in them: the right bytes in the end, or a refusal that touches nothing."""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from processes import Report, Run, files_of, new_case, own_files, remove_case, touched
from shop import TABLES, Scenario, Server, tables

WORK = "shop.work"
FEW = 20
"""Lines of a table below which it does not hold the rows of the shop."""
Damage = Callable[[Path, Random], object]


def damage_folders(
    report: Report, folder: Path, wanted: int, random: Random, size: int = 200, names: Sequence[str] = TABLES
) -> None:
    """Damage so many work folders of tables of `size` rows, each kind of damage in turn, and go on from there."""
    with Server() as server:
        states = [*_states(folder, server, size, names)]
        for number in range(wanted):
            scenario, state = random.choice(states)
            damage = list(DAMAGES)[number % len(DAMAGES)]
            case = new_case(folder / f"case {number}", state)
            damaged = random.choice([path for path in sorted((case / WORK).rglob("*")) if path.is_file()])
            DAMAGES[damage](damaged, random)
            places = [case / WORK, case / "shop", *(case / name for name in sorted(scenario.temporary))]
            # now and then only: prepare may refuse at sight of them, and not come to what is damaged
            own = own_files(case, case / "mine", *random.sample(places, random.random() < 0.4))
            end = Run(case, scenario.arguments).end()
            for path in (case / WORK, *case.rglob("*")):
                if path.exists() and not path.is_symlink():
                    path.chmod(path.stat().st_mode | 0o700)
            fault = end.fault or touched(own)
            if not fault and end.code == 0 and files_of(case / "shop") != scenario.files:
                fault = "ends well, with other bytes than the undisturbed run"
            report.counts["refused" if end.code else "right in the end"] += 1
            report.advance(1)
            if fault:
                report.failures.append(f"{state.name}, {damage} {damaged.relative_to(case)}, {case}: {fault}")
            else:
                remove_case(case)


def _states(folder: Path, server: Server, size: int, names: Sequence[str]) -> Iterator[tuple[Scenario, Path]]:
    """Folders to damage: finished, finished with other splits, not finished for two reasons."""
    for name, arguments in tables(folder / "tables", server.url, size, names).items():
        yield (scenario := Scenario.undisturbed(folder, name, arguments, server)), scenario.case
        for state, flag in {"split otherwise": "--splits=0.6,0.2,0.2", "too many bad rows": "--max-bad=0%"}.items():
            case = new_case(folder / f"{state} {name}")
            Run(case, [*arguments, flag]).end()
            yield scenario, case
        if scenario.asked:
            case = new_case(folder / f"half done {name}")
            _half_done(Run(case, arguments), server, size)
            yield scenario, case


def _half_done(run: Run, server: Server, size: int) -> None:
    """Kill a run when a quarter of the table is asked for."""
    server.asked.clear()
    server.held_after = size // 4
    while server.asked.total() <= server.held_after and run.process.poll() is None:
        time.sleep(0.01)
    run.process.kill()
    run.end()
    server.release()


# Kinds of damage ------------------------------------------------------------------------------------------------


def _work_of(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.name == WORK)


def _scramble(path: Path, random: Random) -> None:
    """Write random bytes over some of a file."""
    data = bytearray(path.read_bytes())
    start = random.randrange(len(data) or 1)
    count = min(len(data) - start, random.choice([1, 64, 4096, len(data)]))
    data[start : start + count] = random.randbytes(count)
    path.write_bytes(data)


def _swap(path: Path, random: Random) -> None:
    """Give a file the bytes of another one of the work folder."""
    others = [other for other in sorted(_work_of(path).rglob("*")) if other.is_file() and other != path]
    shutil.copy(random.choice(others), path) if others else path.unlink()


def _strangers(path: Path, random: Random) -> None:
    """Leave beside a file what file managers leave, and something that is named like one of ours."""
    shutil.copy(path, path.with_name(f"copy of {path.name}"))
    (path.parent / "Thumbs.db").write_bytes(random.randbytes(99))
    (path.parent / f"99999{path.suffix}").write_bytes(random.randbytes(99))


def _plan(*texts: str) -> Damage:
    """Write something else into what is no row: a JSON file, or a table of a database that has but a few lines."""

    def write(path: Path, random: Random) -> None:
        for plan in _work_of(path).rglob("*.json"):
            plan.write_text(random.choice(texts))
        for store in _work_of(path).rglob("*.sqlite"):
            with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as database:
                for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    ((lines,),) = database.execute(f'SELECT count(*) FROM "{table}"')
                    column = random.choice(database.execute(f'PRAGMA table_info("{table}")').fetchall())[1]
                    if lines < FEW:
                        with contextlib.suppress(sqlite3.IntegrityError):
                            database.execute(f'UPDATE "{table}" SET "{column}" = ?', [random.choice(texts)])

    return write


def _instead(make: Callable[[Path], object]) -> Damage:
    """Put something else in a file's place."""

    def replace(path: Path, random: Random) -> None:
        path.unlink()
        make(path)

    return replace


def _whole(make: Callable[[Path], object]) -> Damage:
    """Put something else in the work folder's place."""

    def replace(path: Path, random: Random) -> None:
        shutil.rmtree(work := _work_of(path))
        make(work)

    return replace


def _other_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE mine (note TEXT)")


DAMAGES: Mapping[str, Damage] = {
    "truncate": lambda path, random: os.truncate(path, random.randrange(path.stat().st_size or 1)),
    "empty": lambda path, random: os.truncate(path, 0),
    "zero": lambda path, random: path.write_bytes(bytes(path.stat().st_size)),
    "scramble": _scramble,
    "lengthen": lambda path, random: path.write_bytes(path.read_bytes() + random.randbytes(5000)),
    "delete": lambda path, random: path.unlink(),
    "delete the folder of": lambda path, random: shutil.rmtree(path.parent),
    "a note instead of": _instead(lambda path: path.write_text("remember the milk\n")),
    "a folder instead of": _instead(Path.mkdir),
    "another database instead of": _instead(_other_database),
    "another file instead of": _swap,
    "a link to the user's file instead of": _instead(
        lambda path: path.symlink_to(_work_of(path).with_name("diary.txt"))
    ),
    "a dangling link instead of": _instead(lambda path: path.symlink_to("nowhere")),
    "strangers beside": _strangers,
    "{} as plan beside": _plan("{}"),
    "[] as plan beside": _plan("[]"),
    "a plan of another kind beside": _plan(
        "null", "7", "", "{broken", '{"asked": [1]}', '{"rows": "many", "id": {}}'
    ),
    "no work folder for": _whole(lambda work: None),
    "an empty work folder for": _whole(Path.mkdir),
    "a file as work folder for": _whole(lambda work: work.write_text("notes")),
    "a link to the user's folder as work folder for": _whole(lambda work: work.symlink_to("mine")),
    "no permission to read": lambda path, random: path.chmod(0),
    "no permission to write beside": lambda path, random: path.parent.chmod(0o500),
}
"""By what is done to, or near, a file of the work folder; permissions stop nobody where root runs this."""
