"""The oracle: two runs of the same cases, one plain and one through us, must not differ.

What may differ stands in volatile.yml, and nowhere else. An entry says where (a path into an event, a file, a line on stderr), how
(a pattern that both sides match, or parts of a text that are cut out of both) and why.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from pathlib import Path

import yaml

from runs import Event, Run, Tree

SHOWN = 400  # characters of a value in a report


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that is not the same."""

    where: str
    plain: object
    ours: object

    def __str__(self) -> str:
        def show(v: object) -> str:
            text = v if isinstance(v, str) else json.dumps(v, default=str)
            return text if len(text) <= SHOWN else text[:SHOWN] + f"… ({len(text)} characters)"

        return f"{self.where}\n      plain: {show(self.plain)}\n      ours:  {show(self.ours)}"


class Missing:
    def __repr__(self) -> str:
        return "(absent)"


MISSING = Missing()


@dataclasses.dataclass
class Entry:
    """One line of volatile.yml."""

    field: str
    reason: str
    pattern: str = ""  # what differs matches this on both sides
    cut: str = ""  # what matches this is cut out of both texts before they are compared
    unordered: bool = False  # both are lists of the same members
    case: str = ""  # this case alone
    cores: str = ""  # "2.19-2.20": these cores alone
    ways: str = ""  # these ways alone, a regular expression; empty: any
    absent: bool = False  # one side may lack it
    ours: bool = False  # two plain runs never differ so: it is we who differ
    chance: bool = False  # it need not differ every time: used as soon as there is such a field
    rare: bool = False  # not every run or machine has such a field: it may stay unused
    used: bool = False

    def __post_init__(self) -> None:
        if not self.reason or bool(self.pattern) + bool(self.cut) + self.unordered != 1:
            raise ValueError(f"volatile.yml: {self.field}: a reason, and one of pattern, cut, unordered")
        self.path = re.compile(_path_pattern(self.field))

    def applies(self, case: str, core: tuple[int, int], way: str, field: str) -> bool:
        return (
            (not self.case or self.case == case)
            and self.of_core(core)
            and (not self.ways or re.fullmatch(self.ways, way) is not None)
            and self.path.fullmatch(field) is not None
        )

    def of_core(self, core: tuple[int, int]) -> bool:
        if not self.cores:
            return True
        low, _, high = self.cores.partition("-")
        return _core(low) <= core <= _core(high or low)

    def forgives(self, plain: object, ours: object) -> bool:
        if plain is MISSING or ours is MISSING:
            present = ours if plain is MISSING else plain
            return self.absent and re.fullmatch(self.pattern, _text(present), re.S) is not None
        if self.unordered and isinstance(plain, list) and isinstance(ours, list):
            return sorted(map(_text, plain)) == sorted(map(_text, ours))
        if self.pattern:
            return all(re.fullmatch(self.pattern, _text(v), re.S) for v in (plain, ours))
        return False


def _core(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _path_pattern(field: str) -> str:
    """A glob over dotted paths as a regular expression: * is one step, ** any number of them."""
    steps = []
    for step in field.split("."):
        steps.append({"**": "(?:.+)", "*": "[^.]+"}.get(step, re.escape(step).replace(r"\*", "[^.]*")))
    return r"\.".join(steps).replace(r"(?:.+)\.", r"(?:.+\.)?")


class Oracle:
    def __init__(self, entries: list[Entry], core: tuple[int, int]) -> None:
        self.entries, self.core = entries, core

    @classmethod
    def load(cls, path: Path, core: tuple[int, int]) -> Oracle:
        return cls([Entry(**e) for e in yaml.safe_load(path.read_text())], core)

    def unused(self) -> list[Entry]:
        return [e for e in self.entries if not e.used and not e.rare and e.of_core(self.core)]

    # --- comparing

    def events(self, case: str, way: str, plain: list[Event], ours: list[Event]) -> list[Difference]:
        """Compare what callbacks saw: the same events in the same order, with the same results."""
        order = _host_by_host if way in ("free", "host_pinned") else _step_by_step
        a, b = order(plain), order(ours)
        titles = [_title(e) for e in a], [_title(e) for e in b]
        if titles[0] != titles[1]:
            changes = list(difflib.unified_diff(*titles, "plain", "ours", lineterm="", n=1))
            return [Difference("the order of events\n" + "\n".join("      " + c for c in changes), len(a), len(b))]
        found = []
        for left, right in zip(a, b):
            found += self._values(case, way, _title(left), left["event"], left, right)
        return found

    def _values(self, case: str, way: str, title: str, path: str, plain: object, ours: object) -> list[Difference]:
        if _text(plain) == _text(ours) and type(plain) is type(ours):  # as JSON: in Python, 1 is True
            self._same(case, way, path, plain)
            return []
        for e in self.entries:
            if e.applies(case, self.core, way, path) and e.forgives(plain, ours):
                e.used = True
                return []
        if isinstance(plain, dict) and isinstance(ours, dict):
            found = []
            for key in [*plain, *(k for k in ours if k not in plain)]:
                below = f"{path}.{str(key).replace('.', '_')}"
                found += self._values(case, way, title, below, plain.get(key, MISSING), ours.get(key, MISSING))
            return found
        if isinstance(plain, list) and isinstance(ours, list) and len(plain) == len(ours):
            found = []
            for n, (left, right) in enumerate(zip(plain, ours)):
                found += self._values(case, way, title, f"{path}.{n}", left, right)
            return found
        if isinstance(plain, str) and isinstance(ours, str) and self._cut_equal(case, way, path, plain, ours):
            return []
        return [Difference(f"{title}\n    {path}", plain, ours)]

    def _same(self, case: str, way: str, path: str, value: object) -> None:
        """What is the same here is where the entries of chance would have held."""
        waiting = [e for e in self.entries if e.chance and not e.used]
        if not waiting:
            return
        for e in waiting:
            if e.applies(case, self.core, way, path) and (not e.cut or re.search(e.cut, _text(value))):
                e.used = True
        if isinstance(value, (dict, list)):
            for key, below in value.items() if isinstance(value, dict) else enumerate(value):
                self._same(case, way, f"{path}.{str(key).replace('.', '_')}", below)

    def _cut_equal(self, case: str, way: str, path: str, plain: str, ours: str) -> bool:
        """Whether two texts are the same once what may differ is cut out. Only what then made the difference counts as used."""
        fitting = [e for e in self.entries if e.cut and e.applies(case, self.core, way, path)]
        if _cut(fitting, plain) != _cut(fitting, ours):
            return False
        for e in fitting:
            rest = [o for o in fitting if o is not e]
            if _cut(rest, plain) != _cut(rest, ours):
                e.used = True
        return True

    def disk(self, case: str, way: str, plain: Tree, ours: Tree) -> list[Difference]:
        plain, ours = self._named(case, way, plain), self._named(case, way, ours)
        found = []
        for path in sorted({*plain, *ours}):
            left, right = plain.get(path, MISSING), ours.get(path, MISSING)
            place = "disk." + path.replace(".", "_").replace("/", ".")
            found += self._values(case, way, f"on disk: {path}", place, left, right)
        return found

    def _named(self, case: str, way: str, found: Tree) -> Tree:
        """The tree with what is chance taken out of the names, by the entries whose field is "disk"."""
        fitting = [e for e in self.entries if e.cut and e.applies(case, self.core, way, "disk")]
        named: Tree = {}
        for path in sorted(found):
            short = _cut(fitting, path, "<>")
            for e in fitting:
                e.used = e.used or re.search(e.cut, path) is not None
            named[short + "'" * sum(1 for p in named if p.rstrip("'") == short)] = found[path]
        return named

    def case(self, case: str, way: str, plain: Run, ours: Run) -> list[Difference]:
        """Everything that one case may show."""
        a, b = plain.of(case), ours.of(case)
        if not a:
            return [Difference(f"the plain run never came to {case}", plain.said()[-3000:], "")]
        found = self.events(case, way, a, b)
        mine = [{p: i for p, i in run.work.items() if Path(p).parts[0] == case} for run in (plain, ours)]
        return found + self.disk(case, way, *mine)

    def whole(self, way: str, plain: Run, ours: Run) -> list[Difference]:
        """What belongs to the run, not to a case: exit code, recap, homes, warnings."""
        found = self._values("", way, "the run", "exit", plain.rc, ours.rc)
        found += self._values("", way, "the run", "recap", plain.recap(), ours.recap())
        found += self.disk("", way, plain.homes, ours.homes)
        found += self._values("", way, "the run", "stderr", _unwrapped(plain.stderr), _unwrapped(ours.stderr))
        return found


def _waiting(e: Event) -> bool:
    """Whether the event says that an async job is not done yet. How often that is said is time's doing."""
    return e["event"] == "runner_on_async_poll" or (e["event"] == "runner_retry" and e["action"] == "async_status")


def _step_by_step(events: list[Event]) -> list[Event]:
    """Events of several hosts come in the order in which the hosts were ready; within a step, put the hosts in order.

    A step ends where a task or a play begins.
    """
    step, keyed = 0, []
    for e in events:
        host = e.get("host", "")
        if not host:
            step += 1
        if not _waiting(e):
            keyed.append(((step, host), e))
    return [e for _, e in sorted(keyed, key=lambda k: k[0])]


def _host_by_host(events: list[Event]) -> list[Event]:
    """Under free strategies each host has its own pace: what is left is the order of each host's own events, play by play."""
    play, keyed = 0, []
    for e in events:
        if "play" in e:
            play += 1
        host = e.get("host", "")
        if not _waiting(e):
            keyed.append(((play, host, "" if host else _title(e)), e))
    return [e for _, e in sorted(keyed, key=lambda k: k[0])]


def _cut(entries: list[Entry], text: str, mark: str = "") -> str:
    for e in entries:
        text = re.sub(e.cut, mark, text)
    return text


def _title(e: Event) -> str:
    return " ".join(str(e[k]) for k in ("event", "play", "task", "host", "file") if k in e)


def _unwrapped(text: str) -> str:
    """Display wraps warnings at 79 columns: words that differ in length would move the breaks."""
    return " ".join(text.split())
