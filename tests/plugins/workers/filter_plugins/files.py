"""A filter of a user's own, which reads a file."""

import pathlib


class FilterModule:
    def filters(self):
        return {'read': lambda path: pathlib.Path(path).read_text()}
