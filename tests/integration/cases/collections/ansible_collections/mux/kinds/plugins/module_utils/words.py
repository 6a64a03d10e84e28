from __future__ import absolute_import, division, print_function

__metaclass__ = type

from .deep.inner import DEPTH


def greet(word):
    return "%s %d" % (word, DEPTH)
