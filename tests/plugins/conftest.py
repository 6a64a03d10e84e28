"""Lets the tests import what they share, and the plugins."""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / 'ansible_plugins')]
