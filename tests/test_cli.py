"""The `faceid` command from outside: help, verbs on real photos, stopping and going on."""
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import numpy as np
import torch
from PIL import Image

from faceid_nb.app.cli import main
from faceid_nb.app.grammar import WORK, Answer, read_words
from faceid_nb.app.recipes import RECIPES, describe_keys, known_keys, named_recipe, with_overrides
from faceid_nb.core.errors import UserError
from faceid_nb.core.files import read_json
from faceid_nb.core.media import probe_video, write_video
from faceid_nb.inference.pose import read_pose
from faceid_nb.world.people import random_people
from faceid_nb.world.scenes import take_photo

ASSETS = Path(__file__).parents[2]/'shared'/'assets'
FACEID = [sys.executable, '-c', 'import sys; from faceid_nb.app.cli import main; sys.exit(main())']


def faceid(*words, timeout=300):
    return subprocess.run([*FACEID, *map(str, words)], capture_output=True, text=True, timeout=timeout)


def test_help_lists_the_verbs_and_imports_neither_torch_nor_rich():
    done = subprocess.run([sys.executable, '-c', 'import atexit, sys; from faceid_nb.app.cli import main; atexit.register(lambda: print({"torch", "rich", "pydantic"} & {*sys.modules})); main(["--help"])'], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('set()\n')
    for verb in 'curate scan embed train generate evaluate run demo compare pose forget pretrain recipes blend bank morph'.split(): assert f'  {verb} ' in done.stdout


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
    for name in RECIPES:
        for key, note in describe_keys(named_recipe(name)).items():
            assert re.search(rf'^ {re.escape(key)} .* {re.escape(note.allowed)} .*{re.escape(note.sentence)}$', said, re.M), key


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
    words = ['--recipe', 'wan21_vace_1_3b', '--pack-root', real_pack, '--pack', 'real', '--folder', run, 'judge.kind=none']
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
    words = ['curate', tmp_path/'photos', '--recipe', 'wan21_vace_1_3b', '--pack-root', real_pack, '--pack', 'real', '--folder', tmp_path/'run', 'judge.kind=none']
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
    assert code == 0 and 'ann: 5 photos' in out and 'bob: 5 photos' in out and '10 photos, 10 of them measured now' in out
    code, out, _ = said(capsys, *words, '--reference', family/'bob.jpg', 'subject=bob')
    assert code == 0 and 'bob: 5 photos' in out and '10 photos, 0 of them measured now' in out
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
    'plain': 'def work(**words):\n    send(NAME)\n    time.sleep(30)',
    'a finalizer': 'class Deaf:\n    def __del__(self): send(NAME); time.sleep(.1)\ndef work(**words):\n    Deaf()\n    time.sleep(30)',
    'a callback from C': 'def deaf():\n    send(NAME)\n    time.sleep(.1)\n    return 0\ncall = ctypes.CFUNCTYPE(ctypes.c_int)(deaf)\ndef work(**words):\n    call()\n    time.sleep(30)',
    'code that makes another error of it': 'def work(**words):\n    try: send(NAME); time.sleep(30)\n    except KeyboardInterrupt as error: raise ImportError("numpy could not be imported") from error',
    'code that swallows it': 'def work(**words):\n    try: send(NAME); time.sleep(30)\n    except KeyboardInterrupt: pass\n    time.sleep(30)',
    'the last line': 'def work(**words):\n    try: send(NAME); time.sleep(30)\n    except KeyboardInterrupt: pass',
    'twice and thrice': 'def work(**words):\n    try: send(NAME, NAME); time.sleep(30)\n    finally:\n        send(NAME, NAME)\n        print("cleaned", flush=True)',
    'an import': 'sys.modules.pop("this", None)\nclass Slow:\n    def find_spec(self, *_): send(NAME); time.sleep(30)\ndef work(**words):\n    sys.meta_path.insert(0, Slow())\n    import this'}


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
    done = stopped('def work(**words):\n    send(' + repr(name) + ')\n    time.sleep(.2)\n    print("done")', ignored=[name])
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
    ('demo', '--jason'): 'Unknown option: --jason. Did you mean --json?', ('--json',): 'Unknown option: --json before the verb', ('danse',): 'Unknown verb: danse',
    ('demo', '--seed', 'three'): "--seed must be a whole number, got 'three'", ('generate', 'r', '--face-scale', 'x'): "--face-scale must be a number, got 'x'", ('pose',): 'CLIP is missing', ('compare',): 'RUNS is missing',
    ('forget', 'a', 'b'): 'Unknown word: b', ('demo', '--fold', 'x'): 'Unknown option: --fold',
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
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    asked = [read_words(words) for words in (['curate', '~/p', '--folder=~/f', '--pack-root=~/m', '--reference=~/r'], ['generate', '~/run', '--pose=~/d', '--lora=~/l', '--out=~/o', '--identity=~/i'],
                                             ['compare', '~/a', '~/b'], ['forget', 'x', '--runs=~/runs'], ['demo', '--folder=~/f'], ['pose', '~/c', '--out=~/o'],
                                             ['blend', 'a=1', '--out=~/o', '--bank=~/b'], ['bank', '~/b'], ['morph', '~/a', 'b', '--pose=~/p', '--out=~/o', '--bank=~/b'])]
    paths = [path for one in asked for value in one.words.values() for path in (value if isinstance(value, list) else [value]) if isinstance(path, Path)]
    assert len(paths) == 22 and all(path.parent == tmp_path for path in paths)


def test_every_word_that_names_a_file_is_read_as_a_path():
    "Whatever the help of a verb calls a folder, a file or a clip, is a Path in its signature"
    for work, _ in WORK.values():
        for name, kind in inspect.get_annotations(work).items():
            said = kind.__metadata__[0].help if hasattr(kind, '__metadata__') else kind.__args__[0].__metadata__[0].help
            if re.match('(Run f|F)older|One photo|A LoRA file|(Pose|The) clip|Where to', said): assert 'Path' in str(kind), (work, name)


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_a_console_that_cannot_print_a_name_fails_nothing(encoding):
    "A picture's name from the field: Japanese, a blank and a face; printed, and in an error"
    work = 'def work(**words):\n    print("1 of 1 photos kept: \\u5199\\u771f \\U0001f600.jpg")\n    raise ValueError("\\u5199\\u771f.jpg is odd")'
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
                                          ('RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes")', "can't allocate memory"),
                                          ('OSError("Cannot allocate memory")', 'memory ran out')])
def test_too_little_memory_is_told_as_what_it_is(error, cause, monkeypatch, capsys):
    from faceid_nb.app import cli
    def work(**words): raise eval_error(error)
    monkeypatch.setitem(cli.WORK, 'recipes', (work, ()))
    assert main(['recipes']) == 2
    err = capsys.readouterr().err
    assert cause in err and err.count('\n') == 1


def eval_error(text):
    kind, words = text.split('(', 1)
    if kind == 'OSError': return OSError(12, words[1:-2], 'weights.safetensors')
    return {'MemoryError': MemoryError, 'torch.OutOfMemoryError': torch.OutOfMemoryError, 'RuntimeError': RuntimeError}[kind](*([words[1:-2]] if len(words) > 1 else []))


def test_a_bug_keeps_its_traceback(monkeypatch):
    from faceid_nb.app import cli
    def work(**words): return {}['no such key']
    monkeypatch.setitem(cli.WORK, 'recipes', (work, ()))
    with pytest.raises(KeyError): main(['recipes'])


# ---- for programs and scripts

def recorded_run(folder, **likeness):
    "An evaluated run, as far as `compare` reads it"
    folder.mkdir()
    rows = {name: {'mean': mean, 'median': mean, 'no_face_rate': 0., 'frames': 68} for name, mean in likeness.items()}
    summary = {'subject': folder.name, 'seed': 0, 'photos': {'given': 20, 'kept': 16}, 'identity': rows, 'seconds': {'total': 80.}, 'models': {}, 'versions': {}}
    (folder/'summary.json').write_text(json.dumps(summary))
    return folder


@pytest.fixture
def two_runs(tmp_path):
    return [recorded_run(tmp_path/'ann', base=.4, mapper=.5, lora=.6, full=.8, real=.9, stranger=.1), recorded_run(tmp_path/'ben', base=.2, mapper=.5, lora=.6, full=.7, real=.9, stranger=.1)]


def test_every_verb_that_answers_takes_json_and_quiet():
    words = {'curate': ['p'], 'scan': ['p'], 'embed': ['r'], 'train': ['r'], 'generate': ['r'], 'evaluate': ['r'], 'run': ['tiny'], 'compare': ['r'], 'pose': ['c'], 'forget': ['ann'], 'blend': ['a=1'], 'bank': ['p'], 'morph': ['a', 'b']}
    for verb in set(WORK) - {'pretrain'}:
        for option in ('json', 'quiet'):
            asked = read_words([verb, *words.get(verb, []), f'--{option}'])
            assert getattr(asked, option) and asked.json + asked.quiet == 1


def test_compare_says_the_same_to_people_programs_and_scripts(two_runs, tmp_path, capsys):
    code, out, err = said(capsys, 'compare', *two_runs, tmp_path/'gone', '--json')
    found = json.loads(out)
    assert (code, err) == (0, '') and found['mean']['full'] == pytest.approx(.75) and found['lowest']['base'] == .2 and found['left_out'] == [str(tmp_path/'gone')]
    code, out, _ = said(capsys, 'compare', *two_runs)
    for one in found['runs']:
        assert re.search(rf'{one["subject"]}, seed 0 .*' + ' +'.join(f'{value:.3f}' for value in one['likeness'].values()) + ' +68', out)
    assert said(capsys, 'compare', *two_runs, '--quiet')[1] == '0.750\n'


def test_what_is_printed_during_the_work_stays_out_of_the_answer(monkeypatch, capsys):
    from faceid_nb.app import cli
    def work(**words):
        print('progress')
        return Answer('for people', {'figure': float('nan'), 'path': Path('a'), 'name': '\u5199\u771f \U0001f600'}, 3)
    monkeypatch.setitem(cli.WORK, 'recipes', (work, ()))
    assert said(capsys, 'recipes') == (0, 'progress\nfor people\n', '')
    code, out, err = said(capsys, 'recipes', '--json')
    assert (code, err) == (0, 'progress\n') and out.isascii() and json.loads(out) == {'figure': None, 'path': 'a', 'name': '\u5199\u771f \U0001f600'}
    assert said(capsys, 'recipes', '--quiet') == (0, '3\n', '')


def test_an_error_is_no_answer(tmp_path, capsys):
    for option in ('--json', '--quiet'):
        code, out, err = said(capsys, 'compare', tmp_path, option)
        assert (code, out) == (2, '') and err.count('\n') == 1


def test_the_phases_answer_a_program(family, tmp_path, capsys):
    code, out, err = said(capsys, 'curate', family/'album'/'ann', '--folder', tmp_path/'run', *SMALL, '--json')
    found = json.loads(out)
    assert code == 0 and found['result']['kept'] == 5 and found['folder'] == str(tmp_path/'run')
    assert said(capsys, 'embed', tmp_path/'run', '--quiet')[1] == f'{tmp_path/"run"/"embed"}\n'
    code, out, _ = said(capsys, 'scan', family/'album', '--folder', tmp_path/'scan', *SMALL, '--json')
    assert code == 0 and json.loads(out)['kept'] == {'ann': 5, 'bob': 5}
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', tmp_path, '--dry-run', '--json')
    listed = json.loads(out)
    assert code == 0 and not listed['removed'] and str(tmp_path/'run'/'run.json') in listed['files'] and (tmp_path/'run'/'run.json').exists()
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', tmp_path, '--yes', '--json')
    assert code == 0 and json.loads(out)['left']['files'] == 0 and not (tmp_path/'run'/'run.json').exists()


@pytest.mark.parametrize('name', RECIPES)
def test_the_keys_that_recipes_prints_are_the_keys_that_are_read(name, capsys):
    code, out, _ = said(capsys, 'recipes', name, '--json')
    notes = json.loads(out)[name]
    assert code == 0 and [*notes] == [*known_keys(named_recipe(name))] and all(note['sentence'].count(' ') and note['allowed'] for note in notes.values())
    assert with_overrides(named_recipe(name), {key: note['default'] for key, note in notes.items()}) == named_recipe(name)


def test_completion_offers_verbs_and_options():
    def offered(words):
        env = os.environ | {'_FACEID_COMPLETE': 'complete_bash', 'COMP_WORDS': words, 'COMP_CWORD': str(len(words.split()))}
        return subprocess.run([*FACEID], capture_output=True, text=True, env=env, timeout=60).stdout.split()
    assert offered('faceid ')[:3] == ['curate', 'embed', 'train'] and set(offered('faceid ')) == set(WORK)
    env = os.environ | {'_FACEID_COMPLETE': 'complete_bash', 'COMP_WORDS': 'faceid demo --js', 'COMP_CWORD': '2'}
    assert subprocess.run([*FACEID], capture_output=True, text=True, env=env, timeout=60).stdout.split() == ['--json']


# ---- pose clips

@pytest.fixture
def waltz(tmp_path):
    "40 frames of 96 x 128 at 25 frames a second"
    frames = np.zeros((40, 96, 128, 3), np.uint8)
    frames[:, 20:70, 40:90] = 200
    return write_video(tmp_path/'waltz.mp4', frames, 25)


def test_a_clip_that_does_not_fit_names_the_command_that_fits_it(waltz, tmp_path, monkeypatch, capsys):
    "The command, run as it is printed, makes a clip that the recipe takes"
    monkeypatch.chdir(tmp_path)
    before = waltz.read_bytes()
    recipe = named_recipe('tiny')
    with pytest.raises(UserError, match='^waltz.mp4 has 40 frames; this recipe needs 17. Run: ') as refused: read_pose('waltz.mp4', recipe.size, recipe.num_frames)
    command = str(refused.value).split('Run: faceid ')[1].replace('NAME', 'tiny').split()
    code, out, err = said(capsys, *command)
    assert (code, err) == (0, '') and '25' in out and '17' in out and '192 x 128' in out and '96 x 128' in out
    assert read_pose('waltz_pose.mp4', recipe.size, recipe.num_frames).shape == (17, 192, 128, 3) and probe_video(Path('waltz_pose.mp4')).fps == recipe.sampling.fps
    assert waltz.read_bytes() == before
    code, out, _ = said(capsys, *command, '--quiet')
    assert (code, out) == (0, 'waltz-2_pose.mp4\n')
    assert said(capsys, 'pose', 'waltz_pose.mp4', '--quiet')[1] == 'waltz-3_pose.mp4\n'


def test_a_pose_clip_fits_a_run_folder_and_its_keys(waltz, tmp_path, capsys):
    from faceid_nb.app.runner import write_run
    write_run(with_overrides(named_recipe('tiny'), {'size': '64x48', 'num_frames': 9}), tmp_path/'run')
    code, out, _ = said(capsys, 'pose', waltz, '--recipe', tmp_path/'run', 'num_frames=13', '--out', tmp_path/'new.mp4', '--json')
    assert code == 0 and json.loads(out)['after'] == {'file': str(tmp_path/'new.mp4'), 'frames': 13, 'height': 64, 'width': 48, 'fps': 10.}


def test_pose_never_writes_over_a_file(waltz, tmp_path, capsys):
    (tmp_path/'mine.mp4').write_bytes(b'mine')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for out in ('mine.mp4', 'waltz.mp4', 'nowhere/x.mp4', 'x.txt'):
        code, shown, err = said(capsys, 'pose', waltz, '--out', tmp_path/out)
        assert (code, shown) == (2, '') and err.count('\n') == 1 and out.split('/')[-1] in err
    assert said(capsys, 'pose', tmp_path/'mine.mp4', '--out', tmp_path/'y.mp4')[0] == 2
    assert said(capsys, 'pose', waltz, '--recipe', 'tinny', '--out', tmp_path/'y.mp4')[0] == 2
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---- what would be done

def test_a_dry_run_says_what_is_missing_and_writes_nothing(tmp_path, capsys):
    wrong = [f'inputs.dances={tmp_path/"nowhere"}', f'inputs.reference={tmp_path/"x.jpg"}', 'mapper.rank=7']
    for words in (['demo', '--folder', tmp_path/'run'], ['run', 'tiny', '--folder', tmp_path/'run']):
        assert main([*map(str, words), '--dry-run', *wrong]) == 2
        lines = capsys.readouterr().out.strip().splitlines()
        assert 'curate, embed, train, generate, evaluate' in lines[0] and len(lines) == 5
        assert lines[1] == 'Network calls of a clip: base 3, mapper 3, LoRA 3, both 3.'
        assert main([*map(str, words), '--dry-run', '--json']) == 0
        assert json.loads(capsys.readouterr().out) == {'todo': ['curate', 'embed', 'train', 'generate', 'evaluate'],
            'calls': {'base': 3, 'mapper': 3, 'lora': 3, 'full': 3}, 'outdated': '', 'problems': []}
        assert main([*map(str, words), '--dry-run', '--quiet']) == 0
        assert capsys.readouterr().out == '5\n', 'the number of phases to do'
    assert not list(tmp_path.iterdir())


def test_two_seeds_are_refused(tmp_path, capsys):
    code, out, err = said(capsys, 'demo', '--seed', '3', 'seed=4', '--folder', tmp_path/'run', '--dry-run')
    assert (code, out) == (2, '') and '--seed 3 and seed=4' in err


def test_the_folder_of_photos_is_checked_before_the_face_models(tmp_path, capsys):
    wanted = ('--recipe', 'wan21_vace_1_3b', '--pack-root', tmp_path/'none')
    assert 'nofolder is not a folder' in said(capsys, 'curate', tmp_path/'nofolder', *wanted)[2]


def test_a_file_for_all_dances_is_refused(tmp_path, capsys):
    (tmp_path/'run').mkdir()
    assert main(['generate', str(tmp_path/'run'), '--out', str(tmp_path/'z.mp4')]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
