"""What `pip install` gives: every module, the tiny models and the run notebooks, importable and runnable far from the checkout."""
from email import message_from_bytes
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from zipfile import ZipFile
import os
import subprocess
import sys

import pytest


@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    "Built from a copy, so that no build folder appears in the checkout"
    folder = tmp_path_factory.mktemp('build')
    for name in ('settings.ini', 'pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'NOTICE'): copy(root/name, folder/name)
    for name in ('nbs', 'faceid_nb'): copytree(root/name, folder/name, ignore=ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    done = subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', folder/'dist', folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((folder/'dist').glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp('installed')
    done = subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', folder, wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def run(command, installed, folder):
    "A command that sees the installed package first, from an empty folder"
    return subprocess.run(command, cwd=folder, env=os.environ | {'PYTHONPATH': str(installed), 'PYTHONWARNINGS': 'ignore'}, capture_output=True, text=True)


def test_wheel_holds_all(root, wheel):
    inside = set(ZipFile(wheel).namelist())
    modules = {str(p.relative_to(root)) for p in (root/'faceid_nb').rglob('*.py')}
    weights = {str(p.relative_to(root)) for p in (root/'faceid_nb/world/weights').rglob('*') if p.is_file() and not p.name.startswith('.')}
    notebooks = {f'faceid_nb/notebooks/{p.name}' for p in (root/'nbs/runs').glob('*.ipynb')}
    assert weights, 'faceid_nb/world/weights is empty: the tiny models are part of the package'
    assert notebooks
    assert not (modules | weights | notebooks) - inside
    assert any(name.endswith('licenses/LICENSE') for name in inside) and any(name.endswith('licenses/NOTICE') for name in inside)


def test_wheel_says_what_it_is(wheel):
    "Types for the users' checkers, and the links and classifiers that an index shows"
    with ZipFile(wheel) as inside:
        assert 'faceid_nb/py.typed' in inside.namelist()
        said = message_from_bytes(inside.read(next(name for name in inside.namelist() if name.endswith('METADATA'))))
    assert {'Typing :: Typed', 'Operating System :: POSIX :: Linux'} <= set(said.get_all('Classifier'))
    assert {line.split(',')[0] for line in said.get_all('Project-URL')} >= {'Source', 'Changes'}
    assert {'lab', 'scale', 'track', 'dev', 'docs'} == set(said.get_all('Provides-Extra'))


def test_wheel_holds_nothing_else(wheel):
    tops = {Path(name).parts[0] for name in ZipFile(wheel).namelist()}
    assert all(top == 'faceid_nb' or top.endswith('.dist-info') for top in tops), tops


def test_installed_package_finds_its_models(installed, tmp_path):
    code = 'import faceid_nb; from faceid_nb.world.shipped import tiny_model_path; p = tiny_model_path(); assert (p/"model_index.json").is_file(), p; print(faceid_nb.__file__)'
    done = run([sys.executable, '-c', code], installed, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).is_relative_to(installed)


def test_installed_command_answers(installed, tmp_path):
    done = run([installed/'bin/faceid', '--help'], installed, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(verb in done.stdout for verb in ('curate', 'embed', 'train', 'generate', 'evaluate', 'demo', 'run', 'pretrain'))
    assert list(tmp_path.iterdir()) == []
