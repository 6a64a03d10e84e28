"""Filters of a user's own, which look at more than their arguments."""

import pathlib

import jinja2


@jinja2.pass_context
def words(context, name):
    return context.resolve(name)['stdout']


class FilterModule:
    def filters(self):
        return {'read': lambda path: pathlib.Path(path).read_text(), 'words': words}
