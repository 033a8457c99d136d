"""The first minute of a newcomer: what `make` says when the Python is too old or lacks a module, and that every target can be planned."""
from importlib.util import module_from_spec, spec_from_file_location
from shutil import copy, which
import os
import subprocess

import pytest

pytestmark = pytest.mark.skipif(which('make') is None, reason='make is not installed')

PYTHONS = {
    'toold': 'case "$*" in --version) echo "Python 3.10.12";; *version_info*) exit 1;; esac',
    'novenv': 'case "$*" in --version) echo "Python 3.12.3";; *ensurepip*) exit 1;; esac'}


@pytest.fixture
def fresh(root, tmp_path):
    "The files that `make` reads, in a folder without .venv, and two Pythons to stumble over"
    for name in ('Makefile', 'settings.ini', 'setup.py', 'pyproject.toml'): copy(root/name, tmp_path/name)
    (tmp_path/'bin').mkdir()
    for name, body in PYTHONS.items():
        (tmp_path/'bin'/name).write_text(f'#!/bin/sh\n{body}\nexit 0\n')
        (tmp_path/'bin'/name).chmod(0o755)
    return tmp_path


def make(folder, *words):
    env = {k: v for k, v in os.environ.items() if not k.startswith('MAKE')} | {'PATH': f"{folder/'bin'}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(['make', *words], cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.parametrize('python,said', [('toold', '3.10.12 is too old: 3.11 or newer'), ('novenv', 'apt install python3-venv'), ('nothere', 'No Python found')])
def test_a_python_that_will_not_do_is_explained(fresh, python, said):
    done = make(fresh, f'PYTHON={python}', 'demo')
    assert done.returncode != 0 and said in done.stderr
    assert not (fresh/'.venv').exists()


@pytest.mark.parametrize('target', ['demo', 'test', 'check', 'bench', 'lab', 'outputs', 'docs', 'readme', 'export', 'hooks', 'clean', 'fresh'])
def test_every_target_can_be_planned(fresh, target):
    done = make(fresh, '-n', target)
    assert done.returncode == 0, done.stderr


def test_torch_comes_first_and_by_choice(fresh):
    plan = make(fresh, '-n', 'TORCH=torch==9.9.9', 'TORCH_INDEX=an-index', 'test').stdout
    assert "--index-url an-index 'torch==9.9.9'" in plan
    assert plan.index('torch==9.9.9') < plan.index('-c .venv/constraints.txt -e')


@pytest.mark.parametrize('target,extras', [('demo', ['.']), ('lab', ['.', '.[lab]']), ('test', ['.', '.[dev]']), ('check', ['.', '.[dev]']), ('docs', ['.', '.[dev]', '.[dev,docs]'])])
def test_a_target_installs_what_it_needs(fresh, target, extras):
    plan = make(fresh, '-n', target).stdout
    assert [line.split()[-1].strip("'") for line in plan.splitlines() if 'pip install' in line and ' -e ' in line] == extras


def test_lab_opens_the_first_page_where_runs_can_be_reached(fresh):
    plan = make(fresh, '-n', 'lab').stdout
    assert f"--ServerApp.root_dir='{fresh}' --LabApp.default_url=/lab/tree/nbs/index.ipynb" in plan


def test_a_made_environment_is_left_alone(fresh):
    (fresh/'.venv').mkdir()
    (fresh/'.venv/.torch').write_text('torch==1.2.3 some-index\n')
    (fresh/'.venv/.installed').touch()
    assert 'pip install' not in make(fresh, '-n', 'demo').stdout
    assert "'torch==1.2.4'" in make(fresh, '-n', 'TORCH=torch==1.2.4', 'demo').stdout
    os.utime(fresh/'settings.ini', (2e9, 2e9))
    assert "'torch==1.2.3'" in make(fresh, '-n', 'demo').stdout, 'new requirements keep the torch that was chosen'


def test_help_names_the_targets(fresh):
    said = make(fresh).stdout
    assert all(f'make {target}' in said for target in ('demo', 'test', 'lab', 'docs', 'clean'))


def test_check_runs_what_changed_and_the_laws_once(root):
    spec = spec_from_file_location('check', root/'.ci/check.py')
    check = module_from_spec(spec)
    spec.loader.exec_module(check)
    files = ['README.md', 'nbs/0_core/03_plot.ipynb', 'nbs/0_core/07_stop.ipynb', 'nbs/index.ipynb', 'nbs/runs/10_curate.ipynb', 'tests/conftest.py', 'tests/test_lines.py', 'tests/test_media.py']
    (_, [tests]), (_, chapters) = check.steps(files, '2', '07_stop|44_loop')
    words = [str(word) for word in tests]
    assert words.count('tests/test_lines.py') == 1 and 'tests/test_media.py' in words and not [word for word in words if 'conftest' in word]
    assert [str(word) for words in chapters for word in words if '03' in str(word) or 'nbs/' in str(word)] == [r'^(03_plot)\.ipynb$', 'nbs/0_core/07_stop.ipynb']
    (_, [tests]), (_, nothing) = check.steps([], '2', '07_stop|44_loop')
    assert nothing == [] and all((root/word).is_file() for word in map(str, tests) if word.startswith('tests/'))
