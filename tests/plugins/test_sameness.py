"""Variables that are the same for whoever looks at them, and those that are not."""

from __future__ import annotations

import copy
import datetime
import re
import types
import typing as t

import pytest

from mitogen_mux import compat, sameness

DAY = datetime.date(2020, 1, 1)


class Thing:
    """What is no plain data."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError('it is not compared')

    __hash__ = None  # type: ignore[assignment]


THING = Thing()


@pytest.mark.parametrize(
    ('one', 'other', 'same'),
    [
        ('a', ''.join(['a']), True),
        ('a', 'b', False),
        (1, True, False),
        (1, 1.0, False),
        (b'a', 'a', False),
        (None, None, True),
        (None, False, False),
        (DAY, datetime.date(2020, 1, 1), True),
        (DAY, datetime.datetime(2020, 1, 1), False),
        ([1, ['a']], [1, ['a']], True),
        ([1, 2], [1], False),
        ([1], (1,), False),
        ({'a': {'b': 1}}, {'a': {'b': 1}}, True),
        ({'a': 1}, {'a': True}, False),
        ({'a': 1, 'b': 2}, {'b': 2, 'a': 1}, False),  # a template may go through it
        ({1: 'a'}, {True: 'a'}, False),
        ({'a': 1}, {'a': 1, 'b': 2}, False),
        (THING, THING, True),
        (THING, Thing(), False),
        ([THING], [THING], True),
        ({1}, {1}, True),
        ({1}, {2}, False),
        ({('a', 'b'), 1}, {1, tuple('ab')}, True),
        ({('a', 1)}, {('a', True)}, False),
        ({1}, {1, 2}, False),
    ],
)
def test_same(one: t.Any, other: t.Any, same: bool) -> None:
    assert sameness.same(one, other) is same
    assert sameness.same(other, one) is same


def tagged() -> types.ModuleType:
    return t.cast(types.ModuleType, pytest.importorskip('ansible._internal._datatag._tags', reason='up to 2.18 values have no tags'))


def test_tags_count() -> None:
    tags = tagged()
    template, origin = tags.TrustedAsTemplate(), tags.Origin(description='here')
    for value in ('{{ a }}', ['a'], {'a': 1}):
        assert sameness.same(template.tag(value), template.tag(value))
        assert sameness.same(origin.tag(value), tags.Origin(description='here').tag(value))
        assert not sameness.same(origin.tag(value), tags.Origin(description='there').tag(value))
        assert not sameness.same(template.tag(value), value)
        assert not sameness.same(template.tag(value), origin.tag(value))
        assert not sameness.same(template.tag(origin.tag(value)), template.tag(value))


def test_what_is_templated_when_it_is_looked_at_is_not_looked_at() -> None:
    tagged()

    class Lazy(compat.LAZY[0], list):  # type: ignore[misc]
        def __iter__(self) -> t.Iterator[t.Any]:
            raise AssertionError('it is not looked at')

    lazy = [Lazy.__new__(Lazy), Lazy.__new__(Lazy)]
    assert sameness.same(lazy[0], lazy[0]) and not sameness.same(*lazy)


@pytest.mark.parametrize(
    ('one', 'other', 'names'),
    [
        ({'a': 1, 'b': [1]}, {'a': 1, 'b': [1]}, set()),
        ({'a': 1, 'b': 2}, {'a': 1, 'b': 3, 'c': 4}, {'b', 'c'}),
        ({'a': None}, {}, {'a'}),
        ({'a': 1, 'vars': {'a': 1}}, {'a': 2, 'vars': {'a': 2, 'b': 3}}, {'a', 'b'}),
        ({'vars': 1}, {'vars': 2}, {'vars'}),
    ],
)
def test_names_of_what_differs(one: dict[str, t.Any], other: dict[str, t.Any], names: set[str]) -> None:
    assert sameness.differing(one, other) == sameness.differing(other, one) == names


@pytest.mark.parametrize(
    ('value', 'mark', 'says'),
    [
        ('a.b', '', True),
        ('a.b', '{', False),
        ('{{ a.b }}', '{', True),
        ('{{ ab }} {{ b.a_ }}', '{', False),
        ([{'x': ({'y': '{{ a }}'},)}], '{', True),
        ({'a': 1}, '', False),
    ],
)
def test_what_is_said(value: t.Any, mark: str, says: bool) -> None:
    assert sameness.says(re.compile(r'\ba\b'), value, mark) is says


def test_variables_in_a_circle() -> None:
    circle: dict[str, t.Any] = {'text': '{{ b }}'}
    circle['self'] = [circle]
    assert not sameness.says(re.compile('a'), circle, '{')
    assert sameness.says(re.compile('b'), circle, '{')


@pytest.mark.parametrize(('register', 'names'), [(None, []), ('a', ['a']), ({'a': 'expression', 'b': 'other'}, ['a', 'b'])])
def test_registered(register: t.Any, names: list[str]) -> None:
    assert sameness.registered(types.SimpleNamespace(register=register)) == names


def encrypted(text: str) -> t.Any:
    return compat.ENCRYPTED(ciphertext=text)


def test_what_is_encrypted_is_the_same_text() -> None:
    assert sameness.same(encrypted('one'), copy.deepcopy(encrypted('one')))
    assert not sameness.same(encrypted('one'), encrypted('other'))
    origin = tagged().Origin(description='here')
    assert sameness.same(origin.tag(encrypted('one')), origin.tag(encrypted('one')))
    assert not sameness.same(encrypted('one'), origin.tag(encrypted('one')))


@pytest.mark.parametrize('kind', ['encrypted', 'set', 'unknown'])
def test_variables_once_more_are_as_they_are(kind: str) -> None:
    """Since 2.20 they get a tag, and so are other objects each time."""
    value: t.Any = {'set': {1, 2}, 'unknown': THING, 'encrypted': encrypted('text')}[kind]

    def variables(**more: t.Any) -> dict[str, t.Any]:
        once = {'a': value, 'b': 1, **more}
        return {**once, 'vars': {name: copy.copy(value) if value is THING else value for name, value in once.items()}}

    assert sameness.differing(variables(), variables()) == set()
    assert sameness.differing(variables(), variables(b=2)) == {'b'}
    assert sameness.differing(variables(), variables(c=2)) == {'c'}
    only = variables()
    only['vars']['c'] = 3
    assert sameness.differing(variables(), only) == {'c'}
