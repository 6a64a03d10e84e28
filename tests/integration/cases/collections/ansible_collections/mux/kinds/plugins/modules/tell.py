#!/usr/bin/python
"""Imports from its own collection in every way that there is."""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.mux.kinds.plugins.module_utils import old_words
from ansible_collections.mux.kinds.plugins.module_utils.deep import inner

from ..module_utils.words import greet


def main():
    module = AnsibleModule(argument_spec={"word": {"type": "str", "default": "hello"}})
    module.exit_json(
        said=greet(module.params["word"]),
        same=old_words.greet is greet,
        deep=inner.DEPTH,
        name=__name__,
        package=__package__,
        files=[os.path.basename(__file__), inner.__name__, greet.__module__],
    )


if __name__ == "__main__":
    main()
