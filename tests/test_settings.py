"""One truth in two files: settings.ini feeds setup.py, the thin pyproject.toml feeds nbdev and pip; and the requirements are what the code imports."""
from configparser import ConfigParser
import ast
import json
import re
import sys
import tomllib

from packaging.requirements import Requirement
import pytest

import faceid_nb

IMPORT_NAMES = {'ipython': 'IPython', 'protobuf': 'google', 'Pillow': 'PIL', 'scikit-image': 'skimage', 'imageio-ffmpeg': 'imageio_ffmpeg', 'jupyterlab': None, 'ftfy': None}   # None: needed, never imported by us


@pytest.fixture(scope='module')
def settings(root):
    parser = ConfigParser(delimiters=['='])
    parser.read(root/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


@pytest.fixture(scope='module')
def pyproject(root): return tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))


def test_version_is_one(settings): assert settings['version'] == faceid_nb.__version__


def test_changelog_knows_the_version(root, settings): assert f"## {settings['version']}" in (root/'CHANGELOG.md').read_text(encoding='utf-8')


def test_names_agree(settings, pyproject):
    assert settings['lib_name'] == pyproject['project']['name']
    assert f">={settings['min_python']}" == pyproject['project']['requires-python']
    for key in ('nbs_path', 'lib_path'): assert settings[key] == pyproject['tool']['nbdev'][key]


def test_papermill_tags_survive_cleaning(pyproject): assert pyproject['tool']['nbdev']['allowed_cell_metadata_keys'] == ['tags']


GROUPS = ['requirements', 'lab_requirements', 'track_requirements', 'dev_requirements', 'docs_requirements', 'scale_requirements']


@pytest.mark.parametrize('key', GROUPS)
def test_requirements_read(settings, key):
    for word in settings[key].split(): Requirement(word)


def test_nothing_needs_another_torch(settings):
    names = {Requirement(w).name for k in GROUPS for w in settings[k].split()}
    assert not names & {'torchvision', 'torchaudio', 'lpips', 'dreamsim', 'open_clip_torch', 'timm', 'clean-fid', 'facenet-pytorch'}


def test_what_is_imported_is_required(settings, modules):
    required = {IMPORT_NAMES.get(name, name.replace('-', '_')) for name in (Requirement(w).name for k in ('requirements', 'scale_requirements') for w in settings[k].split())}
    imported = set()
    for path in modules.values():
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import): imported |= {a.name.split('.')[0] for a in node.names}
            if isinstance(node, ast.ImportFrom) and not node.level: imported.add(node.module.split('.')[0])
    missing = imported - required - set(sys.stdlib_module_names) - {'faceid_nb', 'cv2'}    # cv2 comes with insightface, which says which build
    assert not missing, f'settings.ini does not require {missing}'


def names_in(settings, *groups): return {Requirement(word).name for group in groups for word in settings[group].split()}


def test_an_installation_brings_nothing_that_only_readers_and_developers_need(settings):
    extras = names_in(settings, *GROUPS[1:])
    assert not names_in(settings, 'requirements') & (extras | {'notebook', 'tensorboard'})
    assert 'jupyterlab' in names_in(settings, 'lab_requirements') and 'nbdev' in names_in(settings, 'dev_requirements')


def test_what_chapters_import_is_there_after_make_lab(settings, project_files):
    "Else a reader who runs a chapter sees ModuleNotFoundError; extras that a chapter asks for by name are left out"
    there = names_in(settings, 'requirements', 'lab_requirements')
    there = {IMPORT_NAMES.get(name, name.replace('-', '_')) for name in there} | {'faceid_nb', 'cv2'}
    missing = {}
    for path in project_files:
        if path.suffix != '.ipynb': continue
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            if cell['cell_type'] != 'code': continue
            for found in re.finditer(r'(?m)^(?:from (\w+)[\w.]* import|import ([\w., ]+))', ''.join(cell['source'])):
                names = [found[1]] if found[1] else [one.split()[0].split('.')[0] for one in found[2].split(',')]
                missing |= {name: path.name for name in names if name not in there | set(sys.stdlib_module_names)}
    assert not missing, missing


def test_command_exists(settings, root):
    module, function = re.match(r'faceid=([\w.]+):(\w+)', settings['console_scripts']).groups()
    assert f'def {function}(' in (root/(module.replace('.', '/') + '.py')).read_text(encoding='utf-8')
