"""The `faceid` command from outside: help, verbs on real photos, stopping and going on."""
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


def test_help_lists_the_verbs_and_imports_no_torch():
    done = subprocess.run([sys.executable, '-c', 'import atexit, sys; from faceid_nb.app.cli import main; atexit.register(lambda: print("torch" in sys.modules)); main(["--help"])'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('False\n')
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
    all_features = {p: p.stat().st_mtime_ns for p in (tmp_path/'run'/'looks').rglob('*.safetensors')}
    assert len(all_features) == 5 and said(capsys, *words, 'curation.same_person=0.7', 'cutting.large=yes')[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path/'run'/'looks').rglob('*.safetensors')} == all_features
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


STOPPED = 'faceid: stopped; the same command goes on from here\n'
POSIX = pytest.mark.skipif(os.name != 'posix', reason='kill by signal')
ENDS = [name for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


def stopped(work, ignored=(), words=('recipes',)):
    "A command whose work is `work`; the parent ignores the signals in `ignored`"
    script = f"""import ctypes, os, signal, sys, time, warnings
import faceid_nb.app.cli as cli
def send(*names):
    for name in names: os.kill(os.getpid(), getattr(signal, name))
{work}
cli.WORK['recipes'] = (work, ())
sys.argv = ['faceid', *{list(words)!r}]
raise SystemExit(cli.main())"""
    def ready():
        for name in ENDS: signal.signal(getattr(signal, name), signal.SIG_IGN if name in ignored else signal.SIG_DFL)
    return subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=60, preexec_fn=ready)


PLACES = {
    'plain': 'def work(asked):\n    send(NAME)\n    time.sleep(30)',
    'a finalizer': 'class Deaf:\n    def __del__(self): send(NAME); time.sleep(.1)\ndef work(asked):\n    Deaf()\n    time.sleep(30)',
    'a callback from C': 'def deaf():\n    send(NAME)\n    time.sleep(.1)\n    return 0\ncall = ctypes.CFUNCTYPE(ctypes.c_int)(deaf)\ndef work(asked):\n    call()\n    time.sleep(30)',
    'code that makes another error of it': 'def work(asked):\n    try: send(NAME); time.sleep(30)\n    except KeyboardInterrupt as error: raise ImportError("numpy could not be imported") from error',
    'code that swallows it': 'def work(asked):\n    try: send(NAME); time.sleep(30)\n    except KeyboardInterrupt: pass\n    time.sleep(30)',
    'the last line': 'def work(asked):\n    try: send(NAME); time.sleep(30)\n    except KeyboardInterrupt: pass',
    'twice and thrice': 'def work(asked):\n    try: send(NAME, NAME); time.sleep(30)\n    finally:\n        send(NAME, NAME)\n        print("cleaned", flush=True)',
    'an import': 'sys.modules.pop("this", None)\nclass Slow:\n    def find_spec(self, *_): send(NAME); time.sleep(30)\ndef work(asked):\n    sys.meta_path.insert(0, Slow())\n    import this'}


@POSIX
@pytest.mark.parametrize('name', ENDS)
@pytest.mark.parametrize('place', PLACES)
def test_every_stop_is_heard_once_and_said_in_one_line(place, name):
    done = stopped(PLACES[place].replace('NAME', repr(name)))
    assert (done.returncode, done.stderr) == (130, STOPPED)
    assert done.stdout == ('cleaned\n' if place.startswith('twice') else '')


@POSIX
@pytest.mark.parametrize('name', ENDS)
def test_a_signal_that_the_parent_ignores_is_ignored(name):
    "nohup, and the background of a script"
    done = stopped('def work(asked):\n    send(' + repr(name) + ')\n    time.sleep(.2)\n    print("done")', ignored=[name])
    assert (done.returncode, done.stdout, done.stderr) == (0, 'done\n', '')


@POSIX
@pytest.mark.parametrize('name', ENDS)
def test_a_stop_while_libraries_are_imported(name, tmp_path):
    "In the first seconds of a real command, at several moments"
    for wait in (.5, 1, 2):
        work = subprocess.Popen([*FACEID, 'demo', '--folder', str(tmp_path/'run')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while 'faceid_nb/app/cli' not in Path(f'/proc/{work.pid}/maps').read_text() and not started(work.pid): time.sleep(.02)
        time.sleep(wait)
        work.send_signal(getattr(signal, name))
        out, err = work.communicate(timeout=60)
        assert (work.returncode, err) == (130, STOPPED), (wait, err)


def started(pid):
    "Has the process taken over SIGTERM?"
    caught = next(line for line in Path(f'/proc/{pid}/status').read_text().splitlines() if line.startswith('SigCgt'))
    return int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1


REFUSED = {
    ('run',): 'RECIPE is missing', ('run', 'seed=3'): 'name of a recipe comes first', ('curate',): 'PHOTOS is missing', ('train',): 'RUN is missing', ('forget',): 'PERSON is missing',
    ('demo', '--json'): 'Unknown option: --json', ('--json',): 'Unknown option: --json', ('forget', 'a', 'b'): 'Unknown word: b', ('demo', '--fold', 'x'): 'Unknown option: --fold',
    ('curate', '--folder=', 'x'): 'must name a file or folder', ('run', 'tiny', 'model.device=cuda:99'): ('needs a CUDA GPU and none was found', 'is not there'),
    ('demo', 'model.device=cuda:99'): ('needs a CUDA GPU and none was found', 'is not there'), ('run', 'tiny', 'model.device=gpu'): 'model.device'}


@pytest.mark.parametrize('words', REFUSED, ids=' '.join)
def test_wrong_words_are_one_line_and_touch_nothing(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try: code = main(list(words))
    except SystemExit as end: code = end.code
    out, err = capsys.readouterr()
    wanted = REFUSED[words] if isinstance(REFUSED[words], tuple) else (REFUSED[words],)
    assert code == 2 and out == '' and err.count('\n') == 1 and any(one in err for one in wanted), err
    assert list(tmp_path.iterdir()) == []


def test_bare_faceid_shows_the_help(capsys):
    assert main([]) == 0 and 'VERB' in capsys.readouterr().out


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    from faceid_nb.app.cli import ARGUMENTS, read_words
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    asked = [read_words(words) for words in (['curate', '~/p', '--folder=~/f', '--pack-root=~/m', '--reference=~/r'], ['generate', '~/run', '--pose=~/d', '--lora=~/l', '--out=~/o'],
                                             ['compare', '~/a', '~/b'], ['forget', 'x', '--runs=~/runs'], ['demo', '--folder=~/f'])]
    paths = [path for one in asked for value in vars(one).values() for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]
    assert len(paths) == 12 and all(path.parent == tmp_path for path in paths)
    named = {name for name, how in ARGUMENTS.items() if 'folder' in how['help'] or 'file' in how['help'] or 'photo ' in how['help'] or 'clip' in how['help']}
    assert {name for name in named if ARGUMENTS[name].get('type') is None} <= {'person', '--prompt', '--pack', 'pairs', 'recipe'}


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_a_console_that_cannot_print_a_name_fails_nothing(encoding):
    "A picture's name from the field: Japanese, a blank and a face; printed, and in an error"
    work = 'def work(asked):\n    print("1 of 1 photos kept: \\u5199\\u771f \\U0001f600.jpg")\n    raise ValueError("\\u5199\\u771f.jpg is odd")'
    script = f"import faceid_nb.app.cli as cli, sys\n{work}\ncli.WORK['recipes'] = (work, ())\nsys.argv = ['faceid', 'recipes']\nraise SystemExit(cli.main())"
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, env=os.environ | {'PYTHONIOENCODING': encoding, 'PYTHONUTF8': '0'})
    assert done.returncode == 2 and rb'\u5199\u771f \U0001f600.jpg' in done.stdout and done.stderr.strip() == rb'faceid: \u5199\u771f.jpg is odd'


@POSIX
@pytest.mark.parametrize('read', [0, 1])
def test_a_reader_that_goes_away_is_no_error(read):
    "faceid recipes | head -1"
    work = subprocess.Popen([*FACEID, 'recipes'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if read: work.stdout.readline()
    work.stdout.close()
    said = work.stderr.read()
    assert work.wait(60) in (0, 141) and said == b''


@pytest.mark.parametrize('error, cause', [('MemoryError()', 'memory ran out (the machine has no more)'), ('torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")', 'memory ran out (CUDA out of memory'),
                                          ('RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes")', "can't allocate memory")])
def test_too_little_memory_is_told_as_what_it_is(error, cause, monkeypatch, capsys):
    from faceid_nb.app import cli
    def work(asked): raise eval_error(error)
    monkeypatch.setitem(cli.WORK, 'recipes', (work, ()))
    assert main(['recipes']) == 2
    err = capsys.readouterr().err
    assert cause in err and err.count('\n') == 1


def eval_error(text):
    kind, words = text.split('(', 1)
    return {'MemoryError': MemoryError, 'torch.OutOfMemoryError': torch.OutOfMemoryError, 'RuntimeError': RuntimeError}[kind](*([words[1:-2]] if len(words) > 1 else []))


def test_a_bug_keeps_its_traceback(monkeypatch):
    from faceid_nb.app import cli
    def work(asked): return {}['no such key']
    monkeypatch.setitem(cli.WORK, 'recipes', (work, ()))
    with pytest.raises(KeyError): main(['recipes'])
