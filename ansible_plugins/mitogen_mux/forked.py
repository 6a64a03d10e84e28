"""The core's own worker process, forked from a process that has threads."""

from __future__ import annotations

import inspect
import typing as t

from ansible.executor.process.worker import WorkerProcess
from ansible.utils.display import Display

SIGNATURE = inspect.signature(WorkerProcess)

_display = Display()


class ForkedWorker(WorkerProcess):
    """Its child must not inherit a lock that another thread of the parent holds: worker threads hold none without the baton, which the main
    thread has now, so those remain that the thread which reads results may hold."""

    def __init__(self, strategy: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        self._strategy = strategy
        loader = SIGNATURE.bind(*args, **kwargs).arguments['loader']
        tempfiles = loader._tempfiles
        super().__init__(*args, **kwargs)
        loader._tempfiles = tempfiles  # the parent's own; the child forgets them below

    def start(self) -> None:
        with self._strategy._tqm._callback_lock, self._strategy._results_lock, _display._lock:
            super().start()
        del self._strategy

    def run(self) -> None:
        self._loader._tempfiles = set()
        super().run()
