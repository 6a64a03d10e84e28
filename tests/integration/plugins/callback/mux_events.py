"""Writes every event that a callback plugin sees, one JSON object a line, to the file that MUX_EVENTS names."""

from __future__ import annotations

import json
import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: mux_events
type: aggregate
short_description: events as JSON lines
description: For tests that compare two runs.
"""


def plain(value):
    """value as something that the json module writes the same way under every core."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)


def task_of(task):
    return {"task": task.get_name(), "action": str(task.action)}


def describe(arg):
    """What an event's argument contributes to its record."""
    kind = type(arg).__name__
    if hasattr(arg, "_result") and hasattr(arg, "_host"):
        return {"host": arg._host.get_name(), **task_of(arg._task), "result": plain(arg._result)}
    if kind in ("Task", "Handler", "CleanupTask"):
        return task_of(arg)
    if kind == "Host":
        return {"host": arg.get_name()}
    if kind == "Play":
        return {"play": arg.get_name()}
    if kind == "IncludedFile":
        hosts = sorted(h.get_name() for h in arg._hosts)
        return {"file": os.path.basename(str(arg._filename)), "hosts": hosts, "args": plain(arg._args)}
    if kind == "AggregateStats":
        return {"recap": {h: arg.summarize(h) for h in sorted(arg.processed)}}
    if kind == "Playbook":
        return {}
    return {"argument": plain(arg)}


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "mux_events"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.path = os.environ.get("MUX_EVENTS")
        self.disabled = not self.path

    def record(self, name, args, kwargs):
        line = {"event": name.removeprefix("v2_")}
        for arg in args:
            line.update(describe(arg))
        for key, value in kwargs.items():
            # A task that an event names comes by position or by keyword, depending on the core.
            if key not in ("is_conditional",):
                line.update(describe(value) if hasattr(value, "get_name") else {key: plain(value)})
        with open(self.path, "a", encoding="utf-8") as sink:
            sink.write(json.dumps(line) + "\n")


def _recorder(name):
    def method(self, *args, **kwargs):
        self.record(name, args, kwargs)

    method.__name__ = name
    return method


for _name in dir(CallbackBase):
    if _name.startswith("v2_") and _name != "v2_on_any":
        setattr(CallbackModule, _name, _recorder(_name))
