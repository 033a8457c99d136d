"""What the tests share: the tree they look at, the machine they run on, and the real photos and models when they lie beside the project."""
from pathlib import Path
import os
import shutil
import subprocess

import pytest
from filelock import FileLock

os.environ.setdefault('HF_HUB_OFFLINE', '1')
ROOT = Path(__file__).resolve().parent.parent
# A small whole run
QUICK = ['seed=3', 'size=128,96', 'inputs.n_photos=8', 'inputs.n_dances=1', 'num_frames=5', 'training.steps_a=4',
         'training.steps_b=2', 'training.batch_size=4', 'training.checkpoint_every=2', 'sampling.steps=2']
LONGEST = ('test_runs', 'test_training', 'test_papermill', 'test_store', 'test_finding', 'test_world', 'test_cli',
           'test_odd_inputs', 'test_choosing', 'test_curation', 'test_cropping', 'test_processes', 'test_hostile')


def pytest_collection_modifyitems(items):
    "The files that take longest come first, so that no worker is left alone with one at the end"
    if 'PYTEST_XDIST_WORKER' not in os.environ: return
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def files_of(root):
    "The files of the project: what git tracks or would track; without git, all but what is made"
    asked = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=root, capture_output=True, text=True)
    if asked.returncode == 0: paths = [root/line for line in asked.stdout.splitlines()]
    else: paths = [p for p in root.rglob('*') if not {'.venv', '.git', 'runs', '_docs', '_proc', 'build', '__pycache__'} & set(p.relative_to(root).parts[:-1])]
    return sorted(p for p in paths if p.is_file())


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def project_files(): return files_of(ROOT)


@pytest.fixture(scope='session')
def modules():
    "The exported modules: dotted name to file"
    found = {'.'.join(p.relative_to(ROOT).with_suffix('').parts): p for p in (ROOT/'faceid_nb').rglob('*.py') if not p.name.startswith('_')}
    assert found, 'faceid_nb holds no module: make export'
    return found


@pytest.fixture(scope='session')
def assets():
    "Real photos and real models, which are not ours to ship"
    folder = ROOT.parent/'shared'/'assets'
    if not (folder/'photos').is_dir(): pytest.skip('the real photos and models are not beside this checkout (../shared/assets)')
    return folder


@pytest.fixture(scope='session')
def finished_demo(tmp_path_factory):
    "A quick demo that was never interrupted, one for all workers; copy it, because a command that works in it locks it"
    from faceid_nb.app.cli import main
    place = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: place = place.parent
    folder = place/'finished'/'demo'
    with FileLock(place/'finished.lock'):
        assert main(['demo', '--folder', str(folder), *QUICK]) == 0  # does nothing the second time
    return folder


@pytest.fixture(scope='module')
def demo(finished_demo, tmp_path_factory):
    "A copy of the quick demo for the tests of one module"
    return shutil.copytree(finished_demo, tmp_path_factory.mktemp('demo')/'run', symlinks=True)


@pytest.fixture(scope='session')
def real_pack(assets, tmp_path_factory):
    "Real face models, arranged as a pack: its root and its name: SCRFD 500M and MobileFaceNet"
    folder = tmp_path_factory.mktemp('pack')/'models'/'real'
    folder.mkdir(parents=True)
    for name in ('scrfd_500m_kps.onnx', 'mobilefacenet_y1_arcface_128d.onnx'): shutil.copy(assets/'face_models'/name, folder)
    return folder.parent.parent, 'real'


@pytest.fixture(scope='session')
def real_faces(real_pack):
    from faceid_nb.curation.packs import open_faces
    return open_faces(*real_pack)
