"""What goes along with a module in one request: the questions that a rehearsal says may come next, each under a guard."""

from __future__ import annotations

import json
import typing as t

from . import errands, rehearsal
from .client import RpcError
from .v1 import jobs_pb2, path_pb2

if t.TYPE_CHECKING:
    from . import payload

Told = errands.Result | RpcError
"""What came of a question: its answer, or what kept it from having one."""


class Along:
    """The steps after a module's, and then what came of them."""

    def __init__(self, outcomes: rehearsal.Outcomes, at: int, path: path_pb2.Path, step: t.Callable[[payload.Token], jobs_pb2.Step]) -> None:
        """``at`` is the number of the module's own step in the request to ``path``; ``step`` makes that of a module."""
        self.steps: list[jobs_pb2.Step] = []
        self.tokens: dict[int, payload.Token] = {}
        """The modules, by step."""
        self.last: list[int] = []
        """The steps of which one, if it is run, is the last for its file."""
        self.bodies: dict[int, bytes] = {}
        self._known: list[tuple[rehearsal.Question, Told]] = []
        self._done: tuple[rehearsal.Change, Told] | None = None
        self._outcomes, self._at = outcomes, at
        self._errand: errands.Errand | None = None

        def add(question: rehearsal.Question, guard: jobs_pb2.Guard) -> None:
            self.tokens[at + 1 + len(self.steps)] = question.token
            self.steps.append(step(question.token))
            self.steps[-1].guards.append(guard)

        for n, question in enumerate(outcomes.unchanged, at):
            add(question, jobs_pb2.Guard(step=n, field='stat.checksum', value=json.dumps(question.checksum)))
        self.last = [at + len(self.steps)] if self.steps else []
        change = outcomes.changed
        if change is None or (change.folder.foreign and len(path.hops) == change.folder.depth):
            return
        guards = [
            errands.done(at),
            jobs_pb2.Guard(step=at, field='stat.isreg', value='false', unequal=True),
            jobs_pb2.Guard(step=at, field='stat.checksum', value=json.dumps(change.question.checksum), unequal=True),
        ]
        self._errand = errand = errands.Errand(change.folder, path, at + 1 + len(self.steps), guards)
        self.steps += errand.steps
        self.bodies = errand.bodies
        add(change.question, errands.done(at + len(self.steps)))
        self.last.append(at + len(self.steps))
        self.steps += errand.last

    def learn(self, answers: t.Sequence[errands.Result | None], failure: RpcError | None, folder: errands.Folder | None) -> None:
        """Takes what the request gave, which may have ended with a failure. ``folder`` is the action's: it may be there now."""
        for n, question in enumerate(self._outcomes.unchanged, self._at + 1):
            answer = answers[n]
            if answer is not None or failure is not None:
                self._known.append((question, answer or t.cast(RpcError, failure)))
        errand, change = self._errand, self._outcomes.changed
        if errand is None or change is None or folder is None:
            return
        module = errand.first + len(errand.steps)
        made, told, removed = answers[errand.first], answers[module], answers[module + 1]
        if made is not None and removed is None:
            folder.at = errand.path
        # Where the folder or a file could not be made the module was not begun: it is asked in the usual way, which explains.
        if told is None and failure is not None and not (failure.kind in errands.FILE_KINDS and failure.at() in range(errand.first, module)):
            self._done = change, failure
        elif told is not None:
            self._done = change, told

    def recall(self, token: payload.Token, become: bool, folder: errands.Folder | None) -> errands.Result | None:
        """The answer to a question, if it is one of these. Raises what it has in its place."""
        known, self._known = self._known, []
        done, self._done = self._done, None
        told: Told | None = None
        if done is not None and folder is not None and done[0].same(token, become, folder):
            told = done[1]
            folder.forget_files()
        for n, (question, answer) in enumerate(known):
            if told is None and question.same(token, become):
                told, self._known = answer, known[n + 1 :]
        if isinstance(told, RpcError):
            raise told
        return told
