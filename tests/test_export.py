"""The book is the source: the modules are what the notebooks export, the notebooks are clean, README.md is what the first page says. Looked at in a copy."""
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
import os
import subprocess
import sys

import pytest

BIN = Path(sys.executable).parent


@pytest.fixture(scope='module')
def copied(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp('copy')
    for name in ('settings.ini', 'pyproject.toml', 'setup.py', 'README.md'): copy(root/name, folder/name)
    left_out = ignore_patterns('weights', '__pycache__', '.ipynb_checkpoints', '.last_checked')
    for name in ('nbs', 'faceid_nb'): copytree(root/name, folder/name, ignore=left_out)
    return folder


def run(command, folder):
    env = os.environ | {'HOME': str(folder), 'PATH': f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([BIN/command[0], *command[1:]], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def texts(folder, pattern): return {str(p.relative_to(folder)): p.read_text(encoding='utf-8') for p in sorted(folder.rglob(pattern))}


def differing(before, after): return sorted({k for k in before.keys() | after.keys() if before.get(k) != after.get(k)})


def test_export_leaves_no_difference(copied):
    before = texts(copied/'faceid_nb', '*.py')
    run(['nbdev-export'], copied)
    assert differing(before, texts(copied/'faceid_nb', '*.py')) == [], 'the modules are not what the notebooks say: make export'


def test_clean_leaves_no_difference(copied):
    before = texts(copied/'nbs', '*.ipynb')
    run(['nbdev-clean'], copied)
    assert differing(before, texts(copied/'nbs', '*.ipynb')) == [], 'these notebooks are not clean: make export'


def test_readme_is_the_first_page(root):
    done = subprocess.run([sys.executable, root/'.docs/book.py', 'check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
