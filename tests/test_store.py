"""A user's files are sacred: old results stay until new ones are whole, a kill at any file operation is mended by the same command, one command at a time."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import faceid_nb.app.runner as runner_module
import faceid_nb.embeddings.work as work_module
from conftest import QUICK
from faceid_nb.app.cli import main
from faceid_nb.app.runner import check_run, open_run
from faceid_nb.app.store import claim_folder, run_phase, find_result, read_result
from faceid_nb.core.errors import UserError
from faceid_nb.core.files import file_sha256, read_json, write_json
from faceid_nb.core.folders import files_below
from faceid_nb.core.lock import CLAIM
from faceid_nb.core.media import write_video
from faceid_nb.inference.clips import read_clips_list
from faceid_nb.world.scenes import write_subject

POSIX = pytest.mark.skipif(os.name != 'posix', reason='modes, links and signals of POSIX')


def tree(folder, times=True):
    "Everything below a folder: content, target of a link, mode and time stamp"
    found = {}
    for path in [folder, *folder.rglob('*')]:
        status = path.lstat()
        what = os.readlink(path) if path.is_symlink() else file_sha256(path) if path.is_file() else None
        found[path.relative_to(folder).as_posix()] = (what, status.st_mode, status.st_mtime_ns if times else None)
    return found


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_below(folder)}


def said(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def refused(capsys, *words):
    code, _, err = said(capsys, *words)
    assert code == 2 and len(err.strip().splitlines()) == 1 and err.startswith('faceid: '), err
    return err


@pytest.fixture
def run(demo, tmp_path):
    "A copy of the demo that a test may change"
    shutil.copytree(demo, tmp_path/'run', symlinks=True)
    return tmp_path/'run'


# Old results stay

IMPOSSIBLE = ('lora.rank=0', 'lora.targets=(', 'lora.targets=nothing', 'training.batch_size=0', 'training.precision=int4', 'mapper.tokens=0', 'mapper.width=128', 'mapper.rank=5',
              'mapper.id_dim=128', 'num_frames=6', 'model.where=nowhere', 'model.device=gpu', 'model.face_branch=nowhere', 'pack.root=nowhere', 'inputs.dances=nowhere',
              'inputs.reference=nowhere', 'subject=another', 'inputs.photos=.', 'training.steps_a=-5', 'no.key=1')


def test_an_impossible_request_changes_nothing(demo, capsys):
    before = tree(demo)
    for pair in IMPOSSIBLE:
        refused(capsys, 'train', demo, pair)
        assert tree(demo) == before, pair


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU here')
def test_a_gpu_that_is_not_there_is_one_line(demo, capsys):
    before = tree(demo)
    assert 'model.device=cpu' in refused(capsys, 'train', demo, 'model.device=cuda')
    assert tree(demo) == before


def test_a_request_that_fails_during_the_work_changes_nothing(run, capsys, monkeypatch):
    def fails(*args):
        raise UserError('the GPU is gone')
    monkeypatch.setattr('faceid_nb.app.phases.open_model', fails)
    before = contents(run)
    assert 'the GPU is gone' in refused(capsys, 'train', run, 'lora.rank=8')
    assert contents(run) == before


def test_a_killed_training_leaves_the_old_one_and_goes_on(run, tmp_path, capsys):
    old = contents(run/'train')
    whole = tmp_path/'whole'
    shutil.copytree(run, whole)
    assert said(capsys, 'train', whole, 'lora.rank=8')[0] == 0
    for n in (30, 60):
        with killed_at(n), pytest.raises(Killed): main(['train', str(run), 'lora.rank=8'])
        whole_already = (run/'train.partial'/'phase.json').exists()  # then it is being moved
        assert whole_already or contents(run/'train') == old and (run/'report.html').exists() and (run/'train.partial').is_dir()
        assert open_run(run).lora.rank != 8
    assert said(capsys, 'train', run, 'lora.rank=8')[0] == 0
    assert read_result(run/'train', 'train').files == read_result(whole/'train', 'train').files
    assert not (run/'train.partial').exists() and not list(run.rglob('.faceid_part.*'))
    assert not (run/'report.html').exists() and not (run/'summary.json').exists()
    assert open_run(run).lora.rank == 8


# A kill at every file operation

OPERATIONS = ('replace', 'rename', 'unlink', 'rmdir', 'mkdir', 'fsync', 'chmod')


class Killed(BaseException):
    "What ends a process at once"


@contextmanager
def killed_at(n):
    "End the process at file operation `n`; a dead process does not tidy up, so all later operations fail too"
    real, count = {name: getattr(os, name) for name in OPERATIONS}, []
    def deadly(name):
        def operation(*args, **keys):
            count.append(name)
            if len(count) > n: raise Killed
            return real[name](*args, **keys)
        return operation
    for name in OPERATIONS: setattr(os, name, deadly(name))
    try: yield count
    finally:
        for name in OPERATIONS: setattr(os, name, real[name])


def work_of(tag, names):
    def work(place):
        for name in names:
            if not (place/name).is_file(): write_json(place/name, tag)
        write_json(place/'checkpoints'/f'step_{tag}.json', tag)
        write_json(place/'checkpoints'/'list.json', tag)
        return {'tag': tag}
    return work


def do(run, tag, names, keep=True):
    return run_phase(run, 'train', tag, work_of(tag, names), keep=keep, skip=('checkpoints',), makes=('*.json',))


OLD, NEW = ('lora/a.json', 'old/deep/b.json', 'same.json', 'swap/x.json'), ('lora/a.json', 'new/c.json', 'same.json', 'swap')
FOREIGN = ('train/notes.txt', 'train/old/deep/mine.txt', 'train/.DS_Store', 'train.old/x.json', '.train.backup/x.json', 'train.backup/x.json', 'Thumbs.db')


def prepared(run):
    "An old result among files of the user, shown at the top of the run folder"
    do(run, 'old', OLD)
    run_phase(run, 'evaluate', 'e', lambda place: write_json(place/'summary.json', 'old') and {})
    shutil.copy(run/'evaluate'/'summary.json', run/'summary.json')
    for name in FOREIGN:
        (run/name).parent.mkdir(parents=True, exist_ok=True)
        (run/name).write_text(name)
    (run/'train'/'same.json').write_text('changed by the user')
    return run


def settled(run):
    return {name: data for name, data in contents(run).items() if not name.endswith('phase.json')}


@pytest.mark.parametrize('names', [NEW[:3], ('lora/a.json',)])
def test_a_kill_at_every_operation_ends_in_the_same_files(tmp_path, names, capsys):
    first = prepared(tmp_path/'never')
    do(first, 'new', names)
    want, n, dead = settled(first), 0, True
    assert {*FOREIGN, 'train/same.changed.json', *(f'train/{name}' for name in names)} <= set(want)
    assert 'summary.json' not in want and not any('/old/deep/b.json' in name or '.partial' in name for name in want)
    while dead:
        run = prepared(tmp_path/f'{n}')
        old = {name: data for name, data in settled(run).items() if name.startswith('train/lora')}
        try:
            with killed_at(n): do(run, 'new', names)
            dead = False
        except Killed:
            started = (run/'train.partial'/'phase.json').exists() or read_result(run/'train', 'train').key == 'new'
            assert started or {name: data for name, data in settled(run).items() if name.startswith('train/lora')} == old
        do(run, 'new', names)
        assert settled(run) == want and find_result(run/'train', 'new'), n
        assert not any('.partial' in path.as_posix() for path in run.rglob('*')), n
        shutil.rmtree(run)
        n += 1
    assert n > 25


def test_a_kill_of_the_recovery_is_recovered_too(tmp_path, capsys):
    first = prepared(tmp_path/'never')
    do(first, 'new', NEW[:3])
    want = settled(first)
    for n in range(0, 45, 4):
        for m in range(0, 30, 3):
            run = prepared(tmp_path/'run')
            for k in (n, m):
                try:
                    with killed_at(k): do(run, 'new', NEW[:3])
                except Killed: pass
            do(run, 'new', NEW[:3])
            assert settled(run) == want, (n, m)
            shutil.rmtree(run)


def test_another_request_after_a_kill_takes_nothing_of_the_first(tmp_path, capsys):
    for n in range(0, 40):
        run = prepared(tmp_path/'run')
        try:
            with killed_at(n): do(run, 'new', NEW[:3])
        except Killed: pass
        do(run, 'third', ('third.json',))
        left = {name for name in settled(run) if name.startswith('train') and 'changed' not in name} - set(FOREIGN)
        assert left == {'train/third.json', 'train/checkpoints/step_third.json', 'train/checkpoints/list.json'}, n
        shutil.rmtree(run)


def test_the_old_result_is_found_again_when_a_new_one_was_killed(tmp_path, capsys):
    run = tmp_path/'run'
    do(run, 'old', OLD[:3])
    before = tree(run/'train')
    with killed_at(4), pytest.raises(Killed): do(run, 'new', NEW[:3])
    assert do(run, 'old', OLD[:3]).key == 'old' and tree(run/'train') == before


def test_what_is_in_the_way_is_kept(tmp_path, capsys):
    run = tmp_path/'run'
    do(run, 'old', ('a.json',))
    (run/'train'/'lora').write_text('a file where a folder must be')
    (run/'train'/'b.json').mkdir()
    (run/'train'/'b.json'/'mine.txt').write_text('mine')
    do(run, 'new', ('lora/a.json', 'b.json'))
    kept = contents(run/'train')
    assert kept['lora.changed'] == b'a file where a folder must be' and kept['b.changed.json/mine.txt'] == b'mine'
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_what_is_known_to_be_in_the_way_is_refused_before_the_work(tmp_path):
    calls = []
    (tmp_path/'train').mkdir()
    (tmp_path/'train'/'notes.txt').write_text('mine')
    before = tree(tmp_path)
    with pytest.raises(UserError, match='no run of ours'): run_phase(tmp_path, 'train', 'k', calls.append)
    assert tree(tmp_path) == before
    (tmp_path/'train'/'notes.txt').unlink()
    run_phase(tmp_path, 'train', 'k', lambda place: write_json(place/'a.json', 1) and {})
    (tmp_path/'train'/'loss.png').write_text('mine')
    with pytest.raises(UserError, match='in the way'): run_phase(tmp_path, 'train', 'new', calls.append, makes=('loss.png',))
    (tmp_path/'embed').write_text('a file')
    with pytest.raises(UserError, match='is a file'): run_phase(tmp_path, 'embed', 'k', calls.append)
    assert not calls


@pytest.mark.parametrize('name', ['.DS_Store', 'Thumbs.db', 'desktop.ini', '.faceid_part.999999.started.json'])
def test_leftovers_and_junk_never_block(tmp_path, name):
    for folder in ('train', 'train.partial'):
        (tmp_path/folder).mkdir()
        (tmp_path/folder/name).write_text('junk')
    step = do(tmp_path, 'k', ('a.json',))
    assert all('junk' not in file and name not in file for file in step.all_files)
    assert not (tmp_path/'train.partial'/'started.json').exists()
    assert (tmp_path/'train.partial'/name).exists() == ('faceid' not in name)


# What comes with a received run folder

BAD_NAMES = ('../stolen.txt', '/stolen.txt', 'a/../../stolen.txt', 'link/x.txt', '', '.', 'C:\\x')


@POSIX
@pytest.mark.parametrize('phase', ['curate', 'train', 'evaluate'])
@pytest.mark.parametrize('place', ['files', 'scratch'])
def test_a_name_that_leads_out_is_refused(run, capsys, phase, place):
    outside = run.parent/'stolen.txt'
    outside.write_text('outside')
    (run/phase/'link').symlink_to(run.parent)
    mark = run/phase/'phase.json'
    step = read_json(mark)
    for name in BAD_NAMES:
        write_json(mark, step | {place: step[place] | {name: file_sha256(outside)}})
        before = tree(run.parent)
        assert 'phase.json' in refused(capsys, 'evaluate', run)
        assert tree(run.parent) == before, name


@POSIX
@pytest.mark.parametrize('link', ['train', 'train.partial', 'input', 'looks', 'run.json', 'by_hand.json', 'whom.png', 'clips', 'notebooks', 'train/lora', 'looks/inner',
                                  'train.partial/previews'])
def test_nothing_is_written_through_a_link(run, capsys, link, tmp_path):
    outside = tmp_path/'outside'
    outside.mkdir()
    target = outside
    if link == 'train.partial/previews':
        do_folder = run/'train.partial'
        do_folder.mkdir()
        write_json(do_folder/'started.json', {'key': 'k', 'makes': ['*'], 'others': []})
    if (run/link).is_dir(): shutil.copytree(run/link, outside, dirs_exist_ok=True)
    elif (run/link).is_file():
        shutil.copy(run/link, outside/'file')
        target = outside/'file'
    if (run/link).is_dir(): shutil.rmtree(run/link)
    else: (run/link).unlink(missing_ok=True)
    (run/link).symlink_to(target)
    before = tree(outside)
    assert 'link' in refused(capsys, 'train', run, 'lora.rank=8')
    assert tree(outside) == before


ODD = ('[]', '"text"', '3', 'null', '{}', '{"recipe": []}', '{"recipe": {"name": 3}}', '{"a.jpg": "perhaps"}', '{"name": "train", "key": 3}', '{', 'NaN', '\ufeff', '[' * 5000, '{"version": 99}')


@pytest.mark.parametrize('name', ['run.json', 'by_hand.json', 'curate/phase.json', 'train/phase.json', 'generate/phase.json', 'evaluate/phase.json', 'train.partial/phase.json',
                                  'train.partial/started.json', 'clips/clips.json'])
def test_a_file_of_odd_shape_is_named_in_one_line(run, capsys, name, tmp_path):
    (run/name).parent.mkdir(exist_ok=True)
    pose = tmp_path/'pose.mp4'
    write_video(pose, np.full((5, 128, 96, 3), 90, np.uint8), 10.)
    verb = ('generate', run, '--pose', pose) if 'clips' in name else ('evaluate', run)
    for text in ODD:
        if (name, text) in (('by_hand.json', '{}'), ('clips/clips.json', '{}')): continue
        (run/name).write_text(text)
        before = tree(run)
        assert name.split('/')[-1] in refused(capsys, *verb), text
        assert tree(run) == before, text


@pytest.mark.parametrize('name', ['summary.json', 'evaluate/scores.json', 'evaluate/summary.json', 'curate/coach.json'])
def test_a_changed_result_is_made_again_and_the_changed_one_kept(run, capsys, name):
    good = (run/name).read_bytes()
    (run/name).write_text('[]')
    code, _, err = said(capsys, 'evaluate', run)
    assert code == 0 and 'is kept as' in err and 'Traceback' not in err
    kept = run/name.replace('.json', '.changed.json')
    assert kept.read_text() == '[]' and ('summary' in name or (run/name).read_bytes() == good)


def test_compare_names_an_odd_summary(demo, tmp_path, capsys):
    for text in ODD:
        (tmp_path/'summary.json').write_text(text)
        assert 'summary.json' in refused(capsys, 'compare', demo, tmp_path)


# A finished run

WRITES = {'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.chmod', 'os.link', 'os.symlink', 'os.truncate', 'shutil.rmtree', 'os.utime'}
WATCHED = []


def watch(event, args):
    "Note every write below a watched folder"
    if not WATCHED: return
    folder, seen = WATCHED[-1]
    flags = args[2] if event == 'open' and isinstance(args[2], int) else 0
    if event in WRITES or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        if isinstance(args[0], (str, bytes, os.PathLike)) and Path(os.fsdecode(args[0])).absolute().is_relative_to(folder): seen.append((event, args[0]))


@pytest.mark.parametrize('verb', ['curate', 'embed', 'train', 'generate', 'evaluate', 'demo'])
def test_a_finished_run_is_not_written_to(demo, capsys, verb):
    if not hasattr(watch, 'on'):
        sys.addaudithook(watch)
        watch.on = True
    before, seen = tree(demo), []
    WATCHED.append((demo, seen))
    try:
        if verb == 'curate': assert runner_module.PHASES['curate'](open_run(demo), demo)
        elif verb == 'demo': assert said(capsys, 'demo', '--folder', demo, *QUICK)[0] == 0
        else: assert said(capsys, verb, demo)[0] == 0
    finally: WATCHED.pop()
    assert not seen and tree(demo) == before


@POSIX
def test_everything_in_a_run_is_private(demo):
    modes = {path.relative_to(demo).as_posix(): path.stat().st_mode & 0o777 for path in [demo, *demo.rglob('*')]}
    wrong = {name: oct(mode) for name, mode in modes.items() if mode != (0o700 if (demo/name).is_dir() else 0o600)}
    assert not wrong


def test_no_unfinished_work_is_left(demo):
    assert not [path for path in demo.rglob('*') if '.partial' in path.as_posix() or path.name.startswith('.')]
    listed = {f'{name}/{file}' for name in ('curate', 'embed', 'train', 'generate', 'evaluate') for file in read_result(demo/name, name).all_files}
    assert listed >= {path.relative_to(demo).as_posix() for path in files_below(demo) if path.parent != demo and path.parts[len(demo.parts)] not in ('looks', 'input') and path.name != 'phase.json'}


# One command at a time

HOLD = '''import sys, time
from faceid_nb.app.store import claim_folder
with claim_folder(sys.argv[1], 'faceid train there'):
    print('in', flush=True)
    time.sleep(100)'''


@contextmanager
def another_command(folder):
    environment = {name: value for name, value in os.environ.items() if name != CLAIM}
    process = subprocess.Popen([sys.executable, '-c', HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == 'in\n'
    try: yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize('verb', ['embed', 'train', 'generate', 'evaluate'])
def test_the_second_command_says_who_works_there(run, capsys, verb):
    before = tree(run.parent)
    with another_command(run) as first:
        err = refused(capsys, verb, run, 'lora.rank=8')
        assert f'process {first.pid}' in err and 'faceid train there' in err and tree(run.parent) == before
    with claim_folder(run): pass  # a killed process holds nothing
    assert tree(run.parent) == before


def test_a_new_folder_is_locked_too_and_under_every_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'link').symlink_to(tmp_path/'new')
    with another_command(tmp_path/'new'):
        for name in ('new', tmp_path/'new', 'other/../new', 'link'): refused(capsys, 'demo', '--folder', name, *QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ['link']


@POSIX
def test_a_stopped_command_leaves_no_lock(tmp_path):
    for how in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        with another_command(tmp_path/'run') as first:
            first.send_signal(how)
            first.wait(20)
            limit = time.monotonic() + 10
            while first.poll() is None and time.monotonic() < limit: time.sleep(.01)
            with claim_folder(tmp_path/'run'): pass
    assert not list(tmp_path.iterdir())


# Refused in a new folder

def test_a_refused_command_removes_what_it_made_and_nothing_else(tmp_path, capsys):
    (tmp_path/'mine'/'looks').mkdir(parents=True)
    (tmp_path/'mine'/'looks'/'thesis.txt').write_text('ten years')
    (tmp_path/'mine'/'notes').mkdir()
    (tmp_path/'photos').mkdir()
    write_subject(tmp_path/'photos', torch.Generator().manual_seed(0), 2, ('nobody',))
    for path in list((tmp_path/'photos').iterdir()):
        if path.name.endswith('.json'): path.unlink()
    (tmp_path/'empty').mkdir()
    before = contents(tmp_path), {path for path in tmp_path.rglob('*')}
    for folder in ('mine', 'empty', 'new', 'deep/new'):
        err = refused(capsys, 'curate', tmp_path/'photos', '--folder', tmp_path/folder)
        assert 'needed' in err and (contents(tmp_path), {path for path in tmp_path.rglob('*')}) == before, folder


# Clips on demand

@pytest.mark.parametrize('out', ['pose.mp4', 'other.mp4', 'x.gif', 'x', 'folder', 'folder.mp4', 'nowhere/x.mp4', 'run/train/x.mp4', 'run/generate/full/x.mp4', 'run/input/dances/x.mp4',
                                 'other_run/x.mp4', 'other_run/clips/x.mp4', 'dead.mp4'])
def test_a_bad_out_is_refused_before_a_model_opens(run, tmp_path, capsys, monkeypatch, out):
    for module in ('runner', 'phases'): monkeypatch.setattr(f'faceid_nb.app.{module}.open_model', None)
    shutil.copy(run/'input'/'dances'/'dance_01_pose.mp4', tmp_path/'pose.mp4')
    shutil.copy(tmp_path/'pose.mp4', tmp_path/'other.mp4')
    for folder in ('folder', 'folder.mp4', 'other_run/clips'): (tmp_path/folder).mkdir(parents=True)
    shutil.copy(run/'run.json', tmp_path/'other_run')
    (tmp_path/'dead.mp4').symlink_to(tmp_path/'gone.mp4')
    before = tree(tmp_path)
    err = refused(capsys, 'generate', run, '--pose', tmp_path/'pose.mp4', '--out', tmp_path/out)
    assert '--out' in err and tree(tmp_path) == before


def test_a_clip_takes_no_other_file_s_place(run, tmp_path, capsys):
    for name in ('x.mp4', 'dance_01.mp4'):
        if not (run/name).exists(): shutil.copy(run/'input'/'dances'/'dance_01_pose.mp4', run/name)
    shutil.copy(run/'input'/'dances'/'dance_01_pose.mp4', tmp_path/'dance_01.mp4')
    before = contents(run)
    for pose in (run/'x.mp4', tmp_path/'dance_01.mp4', tmp_path/'dance_01.mp4'): assert said(capsys, 'generate', run, '--pose', pose)[0] == 0
    assert said(capsys, 'generate', run, '--pose', tmp_path/'dance_01.mp4', '--out', tmp_path/'mine.MP4')[0] == 0
    after = contents(run)
    assert {name: data for name, data in after.items() if not name.startswith('clips/')} == before
    assert {name for name in after if name.startswith('clips/')} == {'clips/x.mp4', 'clips/dance_01.mp4', 'clips/dance_01-2.mp4', 'clips/clips.json'}
    known = read_clips_list(run)
    assert all(clip.sha256 == file_sha256(run/'clips'/name) for name, clip in known.clips.items())
    assert {Path(path).name: clip.sha256 for path, clip in known.elsewhere.items()} == {'mine.MP4': file_sha256(tmp_path/'mine.MP4')}


# Whose run is it?

def test_one_name_for_two_people_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(('alice', 'bob')):
        write_subject(tmp_path/name/'photos', torch.Generator().manual_seed(k), 4, ())
    small = ('curation.min_photos=3', 'pack.det_sides=192')
    assert said(capsys, 'curate', 'alice/photos', *small)[0] == 0
    before = tree(tmp_path)
    err = refused(capsys, 'curate', 'bob/photos', *small)
    folder = err.split('--folder ')[1].split()[0]
    assert tree(tmp_path) == before
    assert 'another' in refused(capsys, 'curate', 'alice/photos', *small, 'subject=another', '--folder', 'runs/photos')
    assert tree(tmp_path) == before
    assert said(capsys, 'curate', tmp_path/'bob'/'..'/'alice'/'photos', *small)[0] == 0, 'the same folder under another name'
    assert said(capsys, 'curate', 'bob/photos', *small, '--folder', folder)[0] == 0
    shutil.move(tmp_path/'alice'/'photos', tmp_path/'photos')
    assert said(capsys, 'curate', 'photos', *small)[0] == 0, 'a photo folder that was moved is still that of this run'


# Checked before anything is made

def test_everything_is_checked_before_the_first_phase(demo, tmp_path, capsys):
    dances, new = tmp_path/'dances', tmp_path/'new'
    dances.mkdir()
    def clip(*shape): return np.full((*shape, 3), 90, np.uint8)
    cases = {'short': ('waltz', clip(9, 128, 96)), 'small': ('waltz', clip(5, 96, 64)),
             'taken': ('Grid', clip(5, 128, 96))}
    for name, frames in cases.values():
        write_video(dances/f'{name}.mp4', frames, 10.)
        for folder in (new, demo):
            before = tree(tmp_path)
            assert name in refused(capsys, 'demo', '--folder', folder, *QUICK, f'inputs.dances={dances}') and tree(tmp_path) == before
        (dances/f'{name}.mp4').unlink()


def test_what_is_finished_needs_no_model_again(run, capsys, monkeypatch):
    monkeypatch.setattr('faceid_nb.app.runner.check_machine', None)
    for through in ('curate', 'embed', 'train', 'generate', 'evaluate'): check_run(open_run(run), run, through)
    shutil.rmtree(run/'generate')
    with pytest.raises(TypeError): check_run(open_run(run), run, 'evaluate')


def test_an_embedding_that_is_no_number_is_named(run, capsys, monkeypatch):
    real = work_module.stored_rows
    def broken(*args):
        rows = real(*args)
        rows[0, 3] = np.nan
        return rows
    monkeypatch.setattr(work_module, 'stored_rows', broken)
    shutil.rmtree(run/'embed')
    before = contents(run)
    err = refused(capsys, 'embed', run)
    assert 'NaN' in err and '.onnx' in err and '.jpg' in err
    assert contents(run) == before


def test_run_json_is_as_before_when_the_request_fails(run, capsys, monkeypatch):
    before = json.loads((run/'run.json').read_text())
    def stops(*args, **keys):
        raise KeyboardInterrupt
    monkeypatch.setattr('faceid_nb.app.phases.train', stops)
    assert said(capsys, 'train', run, 'lora.rank=8')[0] == 130
    assert json.loads((run/'run.json').read_text()) == before
