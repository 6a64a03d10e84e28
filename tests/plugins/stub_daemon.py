"""ansible-playbook with a session that answers without running anything, for tests of the workers: many hosts, no machine.

STUB_DELAYS is the longest delay of an answer in milliseconds, drawn at random from
STUB_LEAST (a part of it) on. What a module answers is told by its parameters alone, so
that two runs are the same. STUB_FAILS is the part of these answers that are failures; a
fourth as many are of a host that is gone.

STUB_ITEMS is the number of a loop's items: none but the last is answered until the next
has come as far as its module. What happens is written to the file STUB_TRACE. STUB_HOMES
are the answers to the question for the account's home folder, the last one for all that
are left; for the word gone none comes.

STUB_LEFT is the same as STUB_ITEMS, but each waits until the next has left; and of the
requests whose numbers are in STUB_NOT_BEGUN those that follow another one are not begun.
Questions for the home folder are not among these."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
import typing as t

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', '..', 'ansible_plugins'))

from fake_daemon import allows
from mitogen_mux import baton, daemon
from mitogen_mux.client import RpcError
from mitogen_mux.v1 import error_pb2, files_pb2, jobs_pb2, path_pb2, runs_pb2

DELAY = float(os.environ.get('STUB_DELAYS', '0')) / 1000
LEAST = float(os.environ.get('STUB_LEAST', '0'))
FAILS = float(os.environ.get('STUB_FAILS', '0'))
ITEMS = int(os.environ.get('STUB_ITEMS', '0'))
LEFT = int(os.environ.get('STUB_LEFT', '0'))
NOT_BEGUN = os.environ.get('STUB_NOT_BEGUN', '').split(',')
HOMES = os.environ.get('STUB_HOMES', '/home/stub').split(',')
MODES = {'stat': {'stat': {'exists': False}}, 'find': {'files': []}, 'slurp': {'content': 'aGk=', 'encoding': 'base64'}, 'ping': {'ping': 'pong'}}
SYSTEM = {'ansible_distribution': 'Stub', 'ansible_distribution_version': '1', 'ansible_os_family': 'Stub'}


def answer(name: str, args: dict[str, t.Any], host: str) -> tuple[int, bytes, bytes]:
    """What a module of that name gives."""
    text = json.dumps({key: value for key, value in args.items() if not key.startswith(('_', 'src'))}, sort_keys=True)
    digest = hashlib.sha256(f'{name} {host} {text}'.encode()).digest()
    result: dict[str, t.Any] = {'changed': digest[0] % 2 == 0, **MODES.get(name.rpartition('.')[2], {})}
    raw = str(args.get('_raw_params') or '')
    if name.rpartition('.')[2] == 'command':
        result.update(cmd=raw.split(), stdout=raw.removeprefix('echo '), stderr='', rc=int(raw.startswith('false')), changed=True)
    if name.rpartition('.')[2] == 'setup':
        result['ansible_facts'] = {'ansible_hostname': host, 'ansible_n': ''.join(args.get('filter') or []), **SYSTEM}
    if args.get('path') == '/stub/folder':
        result['stat'] = {'exists': True, 'isdir': True}
    verb, _, words = raw.partition(' ')
    # As a target may that is the controller:
    if str(args.get('path', '')).endswith('-grown'):
        with open(args['path'].removesuffix('-grown'), 'a') as file:
            file.write('+')
    if verb in ('write', 'stamp'):
        path, _, text = words.partition(' ')
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as file:
            file.write(text or f'{time.time():.6f}')
        result.update(cmd=verb, stdout=text)
    if raw.startswith('unreachable') or digest[1] < FAILS * 64:
        raise RpcError(14, 'gone', error_pb2.Error(kind=error_pb2.Error.UNREACHABLE, host=host, message='gone'))
    if raw.startswith('garbage'):
        return 1, b'no json', b'Traceback: no\n'
    if raw.startswith('false') or args.get('data') == 'crash' or digest[2] < FAILS * 256:
        result.update(failed=True, msg='non-zero return code')
    return 0, json.dumps(result).encode(), b''


class Trace:
    """What happens, in its order."""

    def __init__(self) -> None:
        self.ready = self.asked = 0
        self.left: list[str] = []

    def note(self, text: str) -> None:
        with open(os.environ['STUB_TRACE'], 'a') as file:
            file.write(f'{text}\n')

    def watch(self) -> None:
        """Notes each action that comes to a module."""
        from ansible.plugins.action import ActionBase

        original = ActionBase._execute_module

        def execute_module(action: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
            if not hasattr(action, '_stub_ready'):
                action._stub_ready = True
                self.ready += 1
                self.note(f'ready {self.ready}')
            return original(action, *args, **kwargs)

        ActionBase._execute_module = execute_module

    def question(self) -> None:
        """Holds an answer back until the next question is ready."""
        self.asked += 1
        number = self.asked
        self.note(f'asked {number}')
        self.answer(number, lambda: self.ready <= number < ITEMS)

    def answer(self, number: int, waits: t.Callable[[], bool]) -> None:
        tries = 3000
        while waits() and tries:
            time.sleep(0.01)
            tries -= 1
        self.note(f'answered {number}' if tries else f'{number} was not answered: the next one never came')

    def leave(self, request: jobs_pb2.Request) -> None:
        """Notes a request that leaves, perhaps before its turn; holds its answer back until the next has."""
        if not request.HasField('follow'):
            baton.turn()
        again = ' again' * (request.name != '' and request.name in self.left)
        self.left.append(request.name)
        number = len(self.left)
        text = f'left {number}{again}'
        if request.HasField('follow'):
            text += f' after {self.left.index(request.follow.request) + 1} {list(request.follow.steps)}'
        self.note(text)
        baton.turn()
        if request.HasField('follow') and str(number) in NOT_BEGUN:
            self.note(f'not begun {number}')
            raise RpcError(9, 'not begun', error_pb2.Error(kind=error_pb2.Error.NOT_BEGUN))
        self.answer(number, lambda: len(self.left) <= number < LEFT)


class StubSession:
    """What connections use of daemon.Session."""

    def __init__(self) -> None:
        self.attach = runs_pb2.AttachReply(run='stub', stage1='stage one', agent_name='mitogen-mux: stub')
        self.run_id = 'stub'

    def upload(self, key: bytes, manifest: files_pb2.Manifest, inputs: t.Any, blobs: t.Any) -> None:
        """Nothing is ever wanted."""

    def request(self, request: jobs_pb2.Request, bodies: t.Iterable[jobs_pb2.Body] = (), timeout: float | None = None) -> t.Iterator[jobs_pb2.RunReply]:
        list(bodies)
        home = request.steps[0].command.remember and (HOMES.pop(0) if len(HOMES) > 1 else HOMES[0])
        if LEFT and not home:
            trace.leave(request)
        if ITEMS:
            baton.turn()
            if home:
                trace.note(f'home {home}')
            else:
                trace.question()
        if home == 'gone':
            raise RpcError(14, 'gone')
        time.sleep(random.uniform(LEAST, 1) * DELAY)
        answers: list[tuple[int, bytes] | None] = []
        for number, step in enumerate(request.steps):
            if not all(allows(guard, answers) for guard in step.guards):
                answers.append(None)
                yield jobs_pb2.RunReply(result=jobs_pb2.StepResult(step=number, skipped=True))
                continue
            rc, stdout, stderr = 0, b'', b''
            if step.HasField('module'):
                rc, stdout, stderr = answer(step.module.name, json.loads(step.module.params)['ANSIBLE_MODULE_ARGS'], request.host)
            elif step.HasField('command'):
                script = step.command.argv[-1].decode()
                if 'async_wrapper' in script and 'chmod' not in script:
                    stdout = b'{"started": 1, "finished": 0, "ansible_job_id": "j1.1", "results_file": "/stub/j1.1", "changed": true}'
                elif 'mkdir -p' in script and 'ansible-tmp' in script:
                    stdout = b'ansible-tmp-1=/tmp/ansible-tmp-1\n'
                elif 'boot-time' in script:
                    stdout = f'{time.time()}'.encode()
                elif home:
                    stdout = f'{home}\n'.encode()
                else:
                    stdout = b'raw\n'
            elif step.HasField('get'):
                with open(step.get.path, 'w') as file:
                    file.write(request.host)
            answers.append((rc, stdout))
            yield jobs_pb2.RunReply(result=jobs_pb2.StepResult(step=number, rc=rc, stdout=stdout, stderr=stderr))

    transfer = request

    def reset(self, host: str, path: path_pb2.Path | None = None) -> None:
        """Nothing is kept."""

    def release(self, hosts: t.Iterable[str]) -> None:
        """Nor this."""

    def detach(self) -> None:
        """Nothing was attached."""


trace = Trace()


def main() -> None:
    session = StubSession()
    if ITEMS:
        trace.watch()
    daemon.session = lambda: session  # type: ignore[assignment,return-value]
    from ansible.cli.playbook import main as ansible_playbook

    ansible_playbook()


if __name__ == '__main__':
    main()
