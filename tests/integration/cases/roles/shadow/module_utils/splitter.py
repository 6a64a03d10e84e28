"""Stands in front of the core's own file of this name."""


def split_args(args):
    return ["shadowed", args]
