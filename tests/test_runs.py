"""Whole runs: what they leave behind, and a kill that nobody can see in the result."""
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from conftest import QUICK
from faceid_nb.app.cli import main
from faceid_nb.app.models import LABELS
from faceid_nb.app.store import hash_files
from faceid_nb.core.files import read_json

FACEID = [sys.executable, '-c', 'import sys; from faceid_nb.app.cli import main; sys.exit(main())']
CONFIGURATIONS = {'base', 'mapper', 'lora', 'full'}


def content(folder):
    "Every file that a run promises, by content; wall-clock times are nobody's promise"
    files = {name: sha for name, sha in hash_files(folder).items() if not name.startswith('train/checkpoints') and not name.endswith('summary.json')}
    summary = read_json(folder/'summary.json')
    return files | {'summary': json.dumps({k: v for k, v in summary.items() if k != 'seconds'}, sort_keys=True)}


def test_summary_has_exactly_its_keys(demo):
    summary = read_json(demo/'summary.json')
    assert set(summary) == {'subject', 'seed', 'photos', 'identity', 'identity_conditioning', 'goodhart_gap', 'traits_lost', 'judge',
                            'seconds', 'models', 'versions'}
    assert set(summary['photos']) == {'given', 'kept'}
    assert set(summary['identity']) == CONFIGURATIONS | {'real', 'stranger'}
    for row in summary['identity'].values(): assert set(row) == {'mean', 'median', 'no_face_rate', 'frames'}
    assert set(summary['seconds']) == {'curate', 'embed', 'train', 'generate', 'evaluate', 'total'}
    assert all(len(sha) == 64 for sha in summary['models'].values()) and len(summary['models']) >= 5
    assert {'python', 'torch', 'diffusers', 'faceid_nb'} <= set(summary['versions'])


def test_what_people_look_for_is_there(demo):
    for name in ('report.html', 'grid.png', 'grid.mp4', 'dance_01.mp4', 'run.json'): assert (demo/name).stat().st_size > 500, name
    page = (demo/'report.html').read_text(encoding='utf-8').replace('http://www.w3.org', '')
    assert 'http://' not in page and 'https://' not in page, 'the page must not need a network'


def test_a_second_time_does_nothing(demo, capsys):
    before = {p: p.stat().st_mtime_ns for p in demo.glob('*/phase.json')}
    assert len(before) == 5
    assert main(['demo', '--folder', str(demo), *QUICK]) == 0
    assert {p: p.stat().st_mtime_ns for p in demo.glob('*/phase.json')} == before
    said = capsys.readouterr().out
    assert 'report.html' in said and all(f' {label} ' in said for label in LABELS.values())
    assert said.count('(already done)') == 5


def killed(folder, when, how):
    "The demo, ended as soon as the file `when` is there"
    work = subprocess.Popen([*FACEID, 'demo', '--folder', str(folder), *QUICK], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(folder, when, work.pid)
    assert work.poll() is None, work.stderr.read()
    os.killpg(work.pid, how)
    said = work.communicate(timeout=60)[1]
    return work.returncode, said


def alive(pid):
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


def wait_for(folder, when, pid):
    limit = time.monotonic() + 300
    while not any(folder.glob(when)) and alive(pid) and time.monotonic() < limit:
        time.sleep(.02)


FORKS = '''import json, os, sys
from importlib import import_module
sys.path.insert(0, sys.argv[1])
import kills
for name in kills.HEAVY:
    import_module(name)
print('ready', flush=True)
for line in sys.stdin:
    words, log = json.loads(line)
    def work():
        sys.argv = ['faceid', *words]
        return import_module('faceid_nb.app.cli').main()
    pid = kills.fork(work, log)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''


@pytest.fixture
def forks(root):
    "A process that has imported everything, and starts commands as forks, so that a kill costs what the work costs"
    if sys.platform != 'linux':
        yield None  # elsewhere a fork of a process with all libraries may crash
        return
    command = [sys.executable, '-W', 'ignore', '-c', FORKS, root/'benchmarks']
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    yield process
    process.communicate(timeout=60)


def killed_fork(forks, folder, when, how):
    "The demo in a fork, ended as soon as the file `when` is there; without forks it is a program"
    if forks is None: return killed(folder, when, how)
    log = folder.with_suffix('.log')
    forks.stdin.write(json.dumps([['demo', '--folder', str(folder), *QUICK], str(log)]) + '\n')
    forks.stdin.flush()
    pid = int(forks.stdout.readline())
    wait_for(folder, when, pid)
    assert alive(pid), log.read_text()
    os.killpg(pid, how)
    return int(forks.stdout.readline()), log.read_text()


@pytest.mark.skipif(os.name != 'posix', reason='kill by signal')
def test_killed_and_stopped_and_still_bit_equal(demo, forks, tmp_path):
    folder = tmp_path/'demo'
    assert killed(folder, 'input/subject*/photos/*.jpg', signal.SIGKILL)[0] == -signal.SIGKILL
    at_checkpoint = 'train*/checkpoints/step_*2.safetensors'
    assert killed_fork(forks, folder, at_checkpoint, signal.SIGKILL)[0] == -signal.SIGKILL
    stops = {'train*/checkpoints/step_*4.safetensors': signal.SIGHUP, 'generate*/mapper/*.mp4': signal.SIGTERM,
             'generate*/full/*.mp4': signal.SIGINT}
    for when, how in stops.items():
        ended = killed_fork(forks, folder, when, how)
        assert ended == (130, 'faceid: stopped; the same command goes on from here\n')
    assert main(['demo', '--folder', str(folder), *QUICK]) == 0
    assert content(folder) == content(demo)
    assert not list(folder.rglob('.faceid_part.*')) and not list(folder.rglob('*.partial'))


@pytest.mark.skipif(sys.platform != 'linux', reason='forks, and kills at the writes that Python reports')
def test_killed_at_random_moments_and_at_writes(root, demo):
    "A small `benchmarks/kills.py`: equal bits, none stuck, nothing left over, each end in one line"
    words = ['--kills', '4', '--chain', '1', '--verbs', 'train', '--signals', 'SIGKILL', 'SIGTERM', '--finished', demo]
    done = subprocess.run([sys.executable, '-W', 'ignore', root/'benchmarks'/'kills.py', *words], cwd=root,
                          capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    kinds = {tuple(line.split()[:3]) for line in done.stdout.splitlines() if line.startswith('train ')}
    assert {kind for kind in kinds if kind[1] in ('random', 'writes')} == {
        ('train', moment, name) for moment in ('random', 'writes') for name in ('SIGKILL', 'SIGTERM')}
