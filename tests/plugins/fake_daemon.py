"""A session without a daemon: requests are recorded and run on this machine. Run as a program it is ansible-playbook with such a session.

Modules are run from their manifest by what the AnsiballZ wrapper would do, so that a wrong manifest or wrong parameters show.

With FAKE_BUILDS in the environment the making of payloads is recorded, too, as ``build NAME`` and ``built NAME``. It has what each request in its
turn waits for before it is answered, with commas between. FAKE_NEW says that the run has started the daemon."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'ansible_plugins'))

from mitogen_mux import baton, daemon, payload  # noqa: E402
from mitogen_mux.client import RpcError  # noqa: E402
from mitogen_mux.v1 import error_pb2, files_pb2, jobs_pb2, path_pb2, runs_pb2  # noqa: E402

RUNNER = '''
import json, os, sys
files, module, loader, profile, limit, *secrets = sys.argv[1:]
params = sys.stdin.buffer.read()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
del sys.argv[1:]
sys.path[:] = [files] + [p for p in sys.path if p not in ('', '.')]
sys.argv[0] = os.path.join(files, module.replace('.', '/') + '.py')
if loader:
    import importlib
    run = importlib.import_module(loader).run_module
    more = dict(secrets=frozenset(secrets)) if 'secrets' in run.__code__.co_varnames else {}
    run(json_params=params, profile=profile, module_fqn=module, modlib_path=files, extensions={}, **more)
else:
    import runpy
    from ansible.module_utils import basic
    basic._ANSIBLE_ARGS = params
    runpy.run_module(module, init_globals=dict(_module_fqn=module, _modlib_path=files), run_name='__main__', alter_sys=True)
    raise SystemExit('New-style module did not handle its own exit')
'''


class FakeSession:
    """What connections use of daemon.Session. Uploads live in a folder, since each task is a process of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.attach = runs_pb2.AttachReply(run='fake', stage1='stage one', agent_name='mitogen-mux: fake')
        self._awaited = os.environ.get('FAKE_BUILDS', '').split(',')

    @property
    def run_id(self) -> str:
        return self.attach.run

    def upload(self, key: bytes, manifest: files_pb2.Manifest, inputs: t.Iterable[files_pb2.OfferRequest.Input], blobs: t.Mapping[bytes, bytes]) -> None:
        offer = files_pb2.OfferRequest(payload=key, manifest=manifest, inputs=inputs)
        check_inputs(offer)
        for digest, data in blobs.items():
            assert hashlib.sha256(data).digest() == digest
            (self.folder / digest.hex()).write_bytes(data)
        if 'FAKE_FORGETS' not in os.environ:
            (self.folder / f'payload-{key.hex()}').write_bytes(offer.SerializeToString())
        self._note(f'upload {manifest.module}')

    def request(self, request: jobs_pb2.Request, bodies: t.Iterable[jobs_pb2.Body] = (), timeout: float | None = None) -> t.Iterator[jobs_pb2.RunReply]:
        baton.turn()
        given: dict[int, bytes] = {}
        for part in bodies:
            given[part.step] = given.get(part.step, b'') + part.data
        for number, step in enumerate(request.steps):  # nothing is begun as long as a payload is wanted
            if step.WhichOneof('action') == 'module' and not self._payload(step.module).exists():
                raise RpcError(9, 'payload wanted', error_pb2.Error(kind=error_pb2.Error.PAYLOAD_WANTED, step=number))
        self._note('request ' + ' '.join(str(step.WhichOneof('action')) for step in request.steps))
        self._await(self._awaited.pop(0) if self._awaited else '')
        answers: list[tuple[int, bytes] | None] = []
        for number, step in enumerate(request.steps):
            if not all(allows(guard, answers) for guard in step.guards):
                answers.append(None)
                yield jobs_pb2.RunReply(result=jobs_pb2.StepResult(step=number, skipped=True))
                continue
            kind = step.WhichOneof('action')
            rc, stdout, stderr = getattr(self, f'_{kind}')(getattr(step, kind or ''), request.path, given.get(number, b''))
            answers.append((rc, stdout))
            self._note(f'{kind} {" > ".join(_hop(hop) for hop in request.path.hops)}')
            yield jobs_pb2.RunReply(output=jobs_pb2.Output(step=number, stdout=stdout[:7]))
            yield jobs_pb2.RunReply(result=jobs_pb2.StepResult(step=number, rc=rc, stdout=stdout[7:], stderr=stderr))

    transfer = request

    def reset(self, host: str, path: path_pb2.Path | None = None) -> None:
        self._note(f'reset {host}')

    def detach(self) -> None:
        self._note('detach')

    def _note(self, line: str) -> None:
        with open(self.folder / 'log', 'a') as log:
            log.write(line + '\n')

    def _await(self, line: str) -> None:
        tries = 3000
        with baton.waiting():  # all the time, as for an answer
            while line and line not in (self.folder / 'log').read_text().splitlines() and tries:
                select.select([], [], [], 0.01)
                tries -= 1
        self._note('answer' if tries else f'answer without {line}')

    def watch(self) -> None:
        """Records what is built."""
        original = payload.Source.build

        def build(source: payload.Source) -> payload.Payload:
            self._note(f'build {source.name}')
            made = original(source)
            self._note(f'built {source.name}')
            return made

        payload.Source.build = build  # type: ignore[method-assign]

    def _payload(self, step: jobs_pb2.Module) -> pathlib.Path:
        return self.folder / f'payload-{step.payload.hex()}'

    def _module(self, step: jobs_pb2.Module, path: path_pb2.Path, body: bytes) -> tuple[int, bytes, bytes]:
        offer = files_pb2.OfferRequest.FromString(self._payload(step).read_bytes())
        check_inputs(offer)
        assert json.loads(step.params)['ANSIBLE_MODULE_ARGS'] is not None
        with tempfile.TemporaryDirectory() as folder:
            for entry in offer.manifest.entries:
                file = pathlib.Path(folder, entry.path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes((self.folder / entry.sha256.hex()).read_bytes())
            environ = {**os.environ, **{v.name.decode(): v.value.decode() for v in step.environment}}
            manifest = offer.manifest
            argv = [path.hops[-1].interpreter, '-c', RUNNER, folder, manifest.module, manifest.loader, manifest.profile, str(step.rlimit_nofile)]
            return run([*argv, *(secret.decode() for secret in step.secrets)], step.params, environ, step.process.cwd or None)

    def _command(self, step: jobs_pb2.Command, path: path_pb2.Path, body: bytes) -> tuple[int, bytes, bytes]:
        assert step.has_body == bool(body)
        return run(list(step.argv), body, dict(os.environ), step.process.cwd or None)

    def _put(self, step: jobs_pb2.Put, path: path_pb2.Path, body: bytes) -> tuple[int, bytes, bytes]:
        dest = pathlib.Path(step.dest.decode())
        dest.write_bytes(body if step.has_body else pathlib.Path(step.path).read_bytes())
        dest.chmod(step.mode)
        return 0, b'', b''

    def _folder(self, step: jobs_pb2.Folder, path: path_pb2.Path, body: bytes) -> tuple[int, bytes, bytes]:
        folder = pathlib.Path(step.path.decode())
        if step.remove:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.mkdir(0o700, parents=True)
        return 0, b'', b''

    def _get(self, step: jobs_pb2.Get, path: path_pb2.Path, body: bytes) -> tuple[int, bytes, bytes]:
        pathlib.Path(step.path).write_bytes(pathlib.Path(step.source.decode()).read_bytes())
        return 0, b'', b''


def allows(guard: jobs_pb2.Guard, answers: list[tuple[int, bytes] | None]) -> bool:
    """Whether a guarded step is to be run."""
    answer = answers[guard.step]
    if answer is None:
        return False
    found: t.Any = answer[0] if guard.field == 'rc' else json.loads(answer[1])
    for name in guard.field.split('.') if guard.field != 'rc' else ():
        found = found.get(name) if isinstance(found, dict) else None
    return bool(found == json.loads(guard.value)) != guard.unequal


def run(argv: list[t.Any], stdin: bytes, environ: dict[str, str], cwd: bytes | None) -> tuple[int, bytes, bytes]:
    done = subprocess.run(argv, input=stdin, env=environ, cwd=cwd, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr


def check_inputs(offer: files_pb2.OfferRequest) -> None:
    """What the daemon does before it uses a payload."""
    assert offer.inputs or offer.manifest.module
    for item in offer.inputs:
        if item.absent:
            assert not os.path.exists(item.path), item.path
            continue
        info = os.stat(item.path)
        assert info.st_mtime_ns == item.mtime_ns, item.path
        if not item.directory:
            assert (info.st_size, info.st_ino) == (item.size, item.ino), item.path


def _hop(hop: path_pb2.Hop) -> str:
    if hop.HasField('ssh'):
        return f'ssh {hop.ssh.user}@{hop.ssh.host}'
    if hop.HasField('become'):
        return f'{hop.become.method} {hop.become.user}'
    return 'local'


def main() -> None:
    session = FakeSession(pathlib.Path(os.environ['FAKE_DAEMON']))
    daemon.session = lambda: session  # type: ignore[assignment,return-value]
    daemon.started = lambda: 'FAKE_NEW' in os.environ
    if 'FAKE_BUILDS' in os.environ:
        session.watch()
    from ansible.cli.playbook import main as ansible_playbook

    ansible_playbook()


if __name__ == '__main__':
    main()
