"""The `faceid` command from outside: fast help, verbs on real photos, stopping and going on."""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import torch
from PIL import Image

from faceid_nb.app.cli import main
from faceid_nb.core.files import read_json
from faceid_nb.world.people import random_people
from faceid_nb.world.scenes import take_photo

ASSETS = Path(__file__).parents[2]/'shared'/'assets'
FACEID = [sys.executable, '-c', 'import sys; from faceid_nb.app.cli import main; sys.exit(main())']


def faceid(*words, timeout=300):
    return subprocess.run([*FACEID, *map(str, words)], capture_output=True, text=True, timeout=timeout)


def test_help_is_fast_and_lists_the_verbs():
    start = time.perf_counter()
    done = faceid('--help')
    assert done.returncode == 0 and time.perf_counter() - start < 3
    for verb in 'curate scan embed train generate evaluate run demo forget pretrain recipes'.split(): assert verb in done.stdout


def test_version():
    assert faceid('--version').stdout.startswith('faceid_nb ')


def test_an_unknown_verb_is_one_line():
    done = faceid('dance')
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback():
    done = faceid('--debug', 'run', 'tinny')
    assert done.returncode == 2 and 'Traceback' in done.stderr


def test_recipes_lists_every_key(capsys):
    assert main(['recipes']) == 0
    said = capsys.readouterr().out
    assert 'tiny' in said and 'wan21_vace_1_3b' in said and 'training.steps_a=' in said


@pytest.fixture
def real_pack(tmp_path):
    models = ASSETS/'face_models'
    if not models.is_dir(): pytest.skip('the real face models are not beside this checkout')
    folder = tmp_path/'pack'/'models'/'real'
    folder.mkdir(parents=True)
    for name in ('scrfd_500m_kps.onnx', 'mobilefacenet_y1_arcface_128d.onnx'): shutil.copy(models/name, folder)
    return tmp_path/'pack'


def test_curate_and_embed_on_real_photos(tmp_path, real_pack, capsys):
    photos = ASSETS/'photos'/'subject_A'
    if not photos.is_dir(): pytest.skip('the real photos are not beside this checkout')
    run = tmp_path/'run'
    words = ['--recipe', 'wan21_vace_1_3b', '--pack-root', real_pack, '--pack', 'real', '--folder', run]
    assert main([str(w) for w in ['curate', photos, *words]]) == 0
    manifest = read_json(run/'curate'/'manifest.json')
    kept = [p['file'] for p in manifest['photos'] if p['status'] == 'kept']
    assert len(kept) >= 10, [(p['file'], p['reason'], p['text']) for p in manifest['photos']]
    assert main(['embed', str(run)]) == 0
    assert (run/'embed'/'identity.safetensors').is_file()
    assert 'kept' in capsys.readouterr().out


def test_a_folder_of_odd_files_is_curated_in_little_memory(tmp_path, real_pack):
    "formats/, hard/, no_face/ and art_nonhuman/ beside the photos of one person: the whole verb, and what it and its decoder need at most"
    if not (ASSETS/'photos').is_dir(): pytest.skip('the real photos are not beside this checkout')
    for group in (odd := ('formats', 'hard', 'no_face', 'art_nonhuman')) + ('subject_A',): shutil.copytree(ASSETS/'photos'/group, tmp_path/'photos'/group)
    words = ['curate', tmp_path/'photos', '--recipe', 'wan21_vace_1_3b', '--pack-root', real_pack, '--pack', 'real', '--folder', tmp_path/'run']
    script = f'''import resource, sys; from pathlib import Path; from faceid_nb.app.cli import main; from faceid_nb.curation.photos import IDLE
code = main({[str(w) for w in words]!r})
while IDLE: IDLE.pop().stop()
own = [int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')] if sys.platform == 'linux' else [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024]
print(code, own[0], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    code, own, child = done.stdout.split()[-3:]
    print(f'peak {int(float(own))/1e6:.2f} GB, of the largest child {int(child)/1e6:.2f} GB')
    assert code == '0' and float(own) < 1.5e6 and (sys.platform != 'linux' or int(child) < 1.5e6)
    named = {p['file']: p for p in read_json(tmp_path/'run'/'curate'/'manifest.json')['photos']}
    files = {p.relative_to(tmp_path/'photos').as_posix() for p in (tmp_path/'photos').rglob('*') if p.is_file() and p.suffix != '.npy'}
    assert set(named) == files and all(p['reason'] and p['text'] for f, p in named.items() if f.split('/')[0] in odd)


SMALL = ['curation.min_photos=3', 'pack.det_sides=192']


@pytest.fixture(scope='module')
def family(tmp_path_factory):
    "Two people in equal numbers in one folder, a folder each in another; one more photo of each"
    home, generator = tmp_path_factory.mktemp('family'), torch.Generator().manual_seed(3)
    for place in ('all', 'album/ann', 'album/bob'): (home/place).mkdir(parents=True)
    for name, person in zip(('ann', 'bob'), random_people(2, generator)):
        Image.fromarray(take_photo(person, 'single', (400, 300), generator)[0]).save(home/f'{name}.jpg', quality=92)
        for k in range(5): Image.fromarray(take_photo(person, 'single', (400, 300), generator)[0]).save(home/'all'/f'{name}{k}.jpg', quality=92)
        for k in range(5): shutil.copy(home/'all'/f'{name}{k}.jpg', home/'album'/name)
    Image.fromarray(take_photo(person, 'nobody', (400, 300), generator)[0]).save(home/'nobody.jpg', quality=92)
    return home


def said(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize('name', ['ann', 'bob'])
def test_a_reference_photo_settles_whom_a_folder_is_about(family, tmp_path, capsys, name):
    words = ['curate', family/'all', '--folder', tmp_path/'run', *SMALL, f'subject={name}']
    code, _, err = said(capsys, *words)
    assert code == 2 and 'reference photo' in err and (tmp_path/'run'/'whom.png').is_file()
    code, out, _ = said(capsys, *words, '--reference', family/f'{name}.jpg')
    assert code == 0 and 'for a better likeness: ' in out and not (tmp_path/'run'/'whom.png').exists()
    kept = [p['file'] for p in read_json(tmp_path/'run'/'curate'/'manifest.json')['photos'] if p['status'] == 'kept']
    assert len(kept) >= 4 and all(file.startswith(name) for file in kept)
    for picture in ('contact_sheet', 'similarity', 'coach', 'map'): assert (tmp_path/'run'/'curate'/f'{picture}.png').stat().st_size > 2000


@pytest.mark.parametrize('photo, words', [('nowhere.jpg', 'is not a file'), ('nobody.jpg', 'no face in the reference photo')])
def test_a_reference_photo_that_shows_nobody(family, tmp_path, capsys, photo, words):
    code, _, err = said(capsys, 'curate', family/'all', '--folder', tmp_path/'run', *SMALL, '--reference', family/photo)
    assert code == 2 and words in err and len(err.splitlines()) == 1 and not (tmp_path/'run').exists()


def test_another_limit_looks_at_nothing_again(family, tmp_path, capsys):
    words = ['curate', family/'album'/'ann', '--folder', tmp_path/'run', *SMALL]
    assert said(capsys, *words)[0] == 0
    looks = {p: p.stat().st_mtime_ns for p in (tmp_path/'run'/'looks').rglob('*.safetensors')}
    assert len(looks) == 5 and said(capsys, *words, 'curation.same_person=0.7', 'cutting.large=yes')[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path/'run'/'looks').rglob('*.safetensors')} == looks
    large = read_json(tmp_path/'run'/'curate'/'manifest.json')['large']
    assert large and all((tmp_path/'run'/'curate'/one['file']).is_file() for one in large)
    assert said(capsys, *words, 'cutting.blur=yes')[0] == 0


def test_scan_by_folder_and_for_one_person(family, tmp_path, capsys):
    words = ['scan', family/'album', '--folder', tmp_path/'scan', *SMALL]
    code, out, _ = said(capsys, *words)
    assert code == 0 and 'ann: 5 photos' in out and 'bob: 5 photos' in out and '10 photos, 10 of them looked at now' in out
    code, out, _ = said(capsys, *words, '--reference', family/'bob.jpg', 'subject=bob')
    assert code == 0 and 'bob: 5 photos' in out and '10 photos, 0 of them looked at now' in out
    assert said(capsys, 'forget', 'bob', '--runs', tmp_path, '--yes')[0] == 0
    assert b'bob' not in (tmp_path/'scan'/'verdicts.jsonl').read_bytes()


@pytest.mark.skipif(os.name != 'posix', reason='kill by signal')
@pytest.mark.parametrize('interrupts', [signal.default_int_handler, signal.SIG_IGN])
def test_a_stop_that_nobody_heard_is_said_again(interrupts):
    "SIGTERM in a finalizer, where Python drops every exception; also in the background of a script, where SIGINT is ignored"
    script = '''import os, signal, time, faceid_nb.app.cli as cli
class Deaf:
    def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(.1)
def work(asked):
    Deaf()
    time.sleep(60)
cli._recipes = work
raise SystemExit(cli.main(['recipes']))'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=50, preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts))
    assert done.returncode == 130 and 'goes on from here' in done.stderr, done.stderr
