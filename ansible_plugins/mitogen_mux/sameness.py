"""Whether variables are the same for whoever looks at them, and whether a task looks at them at all."""

from __future__ import annotations

import datetime
import operator
import re
import typing as t

from . import compat

_PLAIN = (str, bytes, int, float, bool, datetime.date, datetime.time, datetime.timedelta)

COMPUTED = (r'\bvars\b', r'\bhostvars\b', r'\b(lookup|query|q) *\(')
"""In a template, what may see variables that it does not name."""


def same(one: t.Any, other: t.Any) -> bool:
    """Whether two values are equal, with their types and tags. What is not plain data is the same only if it is one object."""
    if one is other:
        return True
    if type(one) is not type(other) or compat.tags(one) != compat.tags(other):
        return False
    if isinstance(one, _PLAIN):
        return bool(one == other)
    if isinstance(one, compat.ENCRYPTED):
        return bool(one._ciphertext == other._ciphertext)
    if isinstance(one, compat.LAZY):
        return False  # it would be templated
    if isinstance(one, dict):
        return len(one) == len(other) and _all_same(one, other) and _all_same(one.values(), other.values())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and _all_same(one, other)
    if isinstance(one, (set, frozenset)):
        others = {member: member for member in other}
        return len(one) == len(others) and all(member in others and same(member, others[member]) for member in one)
    return False


def _all_same(some: t.Collection[t.Any], others: t.Collection[t.Any]) -> bool:
    """Most of what variables are made of is one object in both, and looking at that is what takes the time."""
    return all(map(operator.is_, some, others)) or all(one is other or same(one, other) for one, other in zip(some, others))


def differing(one: dict[str, t.Any], other: dict[str, t.Any]) -> set[str]:
    """The names of a task's variables that are not the same."""
    names = {name for name in one if name not in other or not (one[name] is other[name] or same(one[name], other[name]))}
    names.update(other.keys() - one.keys())
    if 'vars' in names and isinstance(one.get('vars'), dict) and isinstance(other.get('vars'), dict):
        names.discard('vars')  # all of them once more, as they are up to 2.19, with a tag since 2.20
        mine, others = one['vars'], other['vars']
        names |= mine.keys() ^ others.keys()
        names.update(name for name in mine.keys() & others.keys() - one.keys() if not same(mine[name], others[name]))
    return names


def registered(task: t.Any) -> list[str]:
    """The names that a task registers."""
    return [task.register] if isinstance(task.register, str) else list(task.register or ())


def judges(task: t.Any) -> bool:
    """Whether the task looks at variables once more when its result is there."""
    conditions = [condition for name in ('changed_when', 'failed_when', 'until') for condition in _list(getattr(task, name))]
    return compat.projects(task) or not all(isinstance(condition, bool) for condition in conditions)


def _list(value: t.Any) -> list[t.Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def naming(names: t.Iterable[str], *more: str) -> re.Pattern[str]:
    """For ``says``: any of the names, or what an expression of ``more`` matches."""
    return re.compile('|'.join((*(rf'\b{re.escape(name)}\b' for name in names), *more)))


def says(what: re.Pattern[str], value: t.Any, mark: str) -> bool:
    """Whether a text with ``mark`` in it, anywhere in a value, says it. Variables refer to each other, in circles too."""
    seen: set[int] = set()
    values = [value]
    while values:
        value = values.pop()
        if isinstance(value, str):
            if mark in value and what.search(value):
                return True
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            values += value.values() if isinstance(value, dict) else value
    return False
