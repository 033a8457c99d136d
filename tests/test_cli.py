"""The `faceid` command from outside: fast help, verbs on real photos, stopping and going on."""
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faceid_nb.app.cli import main
from faceid_nb.core.files import read_json

ASSETS = Path(__file__).parents[2]/'shared'/'assets'
FACEID = [sys.executable, '-c', 'import sys; from faceid_nb.app.cli import main; sys.exit(main())']


def faceid(*words, timeout=300):
    return subprocess.run([*FACEID, *map(str, words)], capture_output=True, text=True, timeout=timeout)


def test_help_is_fast_and_lists_the_verbs():
    start = time.perf_counter()
    done = faceid('--help')
    assert done.returncode == 0 and time.perf_counter() - start < 3
    for verb in 'curate embed train generate evaluate run demo pretrain recipes'.split(): assert verb in done.stdout


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
