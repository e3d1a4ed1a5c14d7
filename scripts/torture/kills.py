"""Runs that are killed at random moments, two at once now and then, until they come to their end."""

import math
import signal
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from random import Random

from processes import Report, Run, files_of, new_case, own_files, remove_case, touched
from shop import CONNECTIONS, TABLES, Scenario, Server, tables

OTHER_SPLITS = "--splits=0.6,0.2,0.2"
DOUBLE = 0.15
"""Share of starts that a second one joins."""


def kill_runs(
    report: Report, folder: Path, wanted: int, random: Random, size: int = 400, names: Sequence[str] = TABLES
) -> None:
    """Make catalogues of tables of `size` rows, killing so often in all, and compare them with undisturbed ones."""
    with Server() as server:
        for number, scenario in enumerate(cycle([*_scenarios(folder, server, size, names)])):
            if report.counts["kills"] >= wanted:
                break
            case = new_case(folder / f"case {number}", scenario.template)
            course = _Course(scenario, case, server, random, report)
            if fault := course.fault(min(random.randint(3, 12), wanted - report.counts["kills"])):
                report.failures.append(f"{scenario.name}, {case}, killed {course.kills} times: {fault}")
            else:
                remove_case(case)
            report.counts["catalogues"] += 1


def _scenarios(folder: Path, server: Server, size: int, names: Sequence[str]) -> Iterator[Scenario]:
    """Each table from nothing, and each with other splits in place of a finished catalogue."""
    for name, arguments in tables(folder / "tables", server.url, size, names).items():
        yield (fresh := Scenario.undisturbed(folder, name, arguments, server))
        again = [*arguments, OTHER_SPLITS]
        yield Scenario.undisturbed(folder, f"{name} split anew", again, server, fresh.case)


class _Course:
    """One catalogue from its first start, over some kills, to its end."""

    def __init__(self, scenario: Scenario, case: Path, server: Server, random: Random, report: Report) -> None:
        self.scenario, self.case, self.server, self.random, self.report = scenario, case, server, random, report
        self.kills = self._kills_while_asking = 0
        self._before = files_of(case / "shop")
        self._own = own_files(case, case / "mine")
        server.asked.clear()

    def fault(self, kills: int) -> str | None:
        """Kill it so often, unless it ends before; then let it end, and say the first thing that is wrong."""
        ended = False
        while self.kills < kills and not ended:
            fault, ended = self._disturbed()
            found = files_of(self.case / "shop")
            if fault := fault or touched(self._own):
                return fault
            if found and found not in (self._before, self.scenario.files):
                return f"half a catalogue: {sorted(found)}"
        for _ in range(self.random.choice([1, 1, 2])):  # a second start finds it complete
            end = self._run().end()
            if fault := end.fault or (f"not resumed: {end.output}" if end.code else touched(self._own)):
                return fault
            if files_of(self.case / "shop") != self.scenario.files:
                return "not the bytes of the undisturbed run"
        again = (self.server.asked - self.scenario.asked).total()
        if again > CONNECTIONS * self._kills_while_asking:
            return f"{again} requests again after {self._kills_while_asking} kills while pictures were fetched"
        left = {path.name for path in self.case.iterdir()} - {"shop", "shop.work", "mine"}
        left -= {path.name for path in self._own}
        return f"left behind: {sorted(left)}" if left else None

    def _run(self) -> Run:
        return Run(self.case, self.scenario.arguments)

    def _disturbed(self) -> tuple[str | None, bool]:
        """Start, perhaps twice at once, and kill one at some moment; what is wrong, and whether one ended well."""
        asked, runs = self.server.asked.total(), [self._run()]
        if self.random.random() < DOUBLE:
            runs[0].watch(self.case, *self._moment())
            self.report.counts["double starts"] += 1
            if self.random.random() < 0.5:
                if fault := self._beside_a_stopped_one(runs[0], asked):
                    runs[0].process.kill()
                    return fault, False
            else:
                runs.append(self._run())
        victim = self.random.choice(runs)
        victim.watch(self.case, *self._moment())
        victim.process.kill()
        ends = [run.end() for run in runs]
        if any(end.killed for end in ends):
            self.kills += 1
            self._kills_while_asking += self.server.asked.total() > asked
            self.report.counts["kills"] += 1
            self.report.advance(1)
        well = any(end.code == 0 for end in ends)
        refused = [end for end in ends if end.code and not end.killed]
        self.report.counts["second starts refused"] += len(refused)
        fault = next((end.fault for end in ends if end.fault), None)
        if not fault and len(refused) == len(ends):
            fault = f"no start goes on: {refused[0].output}"
        return fault, well

    def _beside_a_stopped_one(self, first: Run, asked: int) -> str | None:
        """Start a second one while the first is stopped; what fetches pictures must not have company."""
        first.process.send_signal(signal.SIGSTOP)
        working = self.server.asked.total() > asked and files_of(self.case / "shop") != self.scenario.files
        end = self._run().end()
        first.process.send_signal(signal.SIGCONT)
        self.report.counts["second starts refused"] += bool(end.code)
        return end.fault or ("a second start goes on beside the first" if working and not end.code else None)

    def _moment(self) -> tuple[float, float]:
        """Seconds after which, or changes of file names at which, a run is disturbed."""
        early = self.random.random() ** 2  # or most runs would end before
        if self.random.random() < 0.5:
            return early * self.scenario.seconds, math.inf
        return math.inf, 1 + int(early * self.scenario.changes)
