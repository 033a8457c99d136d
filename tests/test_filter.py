"""Git and notebooks: a chapter that was only run is not a change, and a cell that was edited is."""
from importlib.util import module_from_spec, spec_from_file_location
import asyncio
import json
import shutil
import subprocess
import sys

from jupyter_client.kernelspec import KernelSpecManager
import pytest

from conftest import ROOT

CELLS = [{'cell_type': 'markdown', 'id': 'a', 'metadata': {}, 'source': ['# One\n', 'text']},
         {'cell_type': 'code', 'id': 'b', 'metadata': {'tags': ['parameters']}, 'source': ['n = 1'], 'execution_count': None, 'outputs': []}]


def written(path, cells=CELLS, **metadata):
    path.write_text(json.dumps({'cells': cells, 'metadata': metadata, 'nbformat': 4, 'nbformat_minor': 5}, indent=1))


def git(folder, *words):
    done = subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repository(tmp_path):
    "One committed chapter, with the filter as `make lab` defines it"
    (tmp_path/'.githooks').mkdir()
    (tmp_path/'nbs').mkdir()
    shutil.copy(ROOT/'.githooks/same_sources.py', tmp_path/'.githooks')
    shutil.copy(ROOT/'.gitattributes', tmp_path)
    written(tmp_path/'nbs/a b.ipynb')
    git(tmp_path, 'init', '-q')
    git(tmp_path, 'config', 'filter.notebook.clean', f"'{sys.executable}' .githooks/same_sources.py %f")
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-q', '-m', 'one')
    return tmp_path


def saved(path):
    "What JupyterLab calls after a save, as `make lab` starts it"
    assert '--FileContentsManager.post_save_hook=same_sources.settle' in (ROOT/'Makefile').read_text()
    spec = spec_from_file_location('same_sources', ROOT/'.githooks/same_sources.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.settle(model={'type': 'notebook'}, os_path=str(path), contents_manager=None)


def ran(cells): return [cell | ({'execution_count': 3, 'outputs': [{'output_type': 'stream', 'name': 'stdout', 'text': ['7']}]} if cell['cell_type'] == 'code' else {}) for cell in cells]


def test_a_chapter_that_was_only_run_leaves_git_clean(repository):
    written(repository/'nbs/a b.ipynb', ran(CELLS), language_info={'name': 'python', 'version': '3.11.7'}, widgets={'state': {}})
    assert git(repository, 'diff') == ''
    saved(repository/'nbs/a b.ipynb')
    assert git(repository, 'status', '--porcelain') == ''
    assert 'outputs' in (repository/'nbs/a b.ipynb').read_text() and '"7"' in (repository/'nbs/a b.ipynb').read_text(), 'the reader keeps what was run'


EDITS = {
    'a source': lambda cells: [cells[0], cells[1] | {'source': ['n = 2']}],
    'a cell more': lambda cells: [*cells, cells[0] | {'id': 'c'}],
    'a cell less': lambda cells: cells[:1],
    'the order': lambda cells: cells[::-1],
    'a kind': lambda cells: [cells[0] | {'cell_type': 'raw'}, cells[1]],
    'a tag': lambda cells: [cells[0], cells[1] | {'metadata': {}}]}


@pytest.mark.parametrize('edit', EDITS)
def test_an_edit_is_a_change_with_its_outputs(edit, repository):
    written(repository/'nbs/a b.ipynb', EDITS[edit](ran(CELLS)))
    saved(repository/'nbs/a b.ipynb')
    assert git(repository, 'status', '--porcelain') == ' M "nbs/a b.ipynb"\n'
    git(repository, 'add', '.')
    assert git(repository, 'show', ':nbs/a b.ipynb') == (repository/'nbs/a b.ipynb').read_text()


def test_new_outputs_are_stored_when_that_is_wanted(repository):
    "Also after git has looked at the file once; the words are those of `make outputs`"
    written(repository/'nbs/a b.ipynb', ran(CELLS))
    saved(repository/'nbs/a b.ipynb')
    assert git(repository, 'status', '--porcelain') == ''
    words = '-c filter.notebook.clean=cat add --renormalize nbs'
    assert f'git {words}' in (ROOT/'Makefile').read_text()
    git(repository, *words.split())
    assert git(repository, 'show', ':nbs/a b.ipynb') == (repository/'nbs/a b.ipynb').read_text()


def test_a_save_stages_nothing_that_git_does_not_know(repository):
    written(repository/'nbs/new.ipynb')
    saved(repository/'nbs/new.ipynb')
    assert git(repository, 'status', '--porcelain') == '?? nbs/new.ipynb\n'


@pytest.mark.parametrize('text', ['', 'no JSON', '[]', '{"cells": 3}', '{"cells": [{}]}'])
def test_what_is_no_notebook_is_stored_as_it_is(text, repository):
    for path in (repository/'nbs/a b.ipynb', repository/'new.ipynb'):
        path.write_text(text)
        git(repository, 'add', '.')
        assert git(repository, 'show', f':{path.relative_to(repository)}') == text


def test_jupyterlab_reads_a_chapter_as_its_kernel_describes_itself(tmp_path, monkeypatch):
    "Else it would write name and version of the kernel into every chapter that is opened, and ask to save it"
    from jupyter_client.manager import start_new_kernel
    from jupyter_server.serverapp import ServerApp
    assert '--ServerApp.contents_manager_class=lab_pages.Pages' in (ROOT/'Makefile').read_text()
    spec = spec_from_file_location('lab_pages', ROOT/'.githooks/lab_pages.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv('JUPYTER_PREFER_ENV_PATH', '1')
    kernels, server = KernelSpecManager(), ServerApp()
    server.kernel_spec_manager = kernels
    server.init_event_logger()
    stored = {'name': 'python3', 'display_name': 'python3', 'language': 'python'}
    written(tmp_path/'a.ipynb', kernelspec=stored)
    written(tmp_path/'other.ipynb', kernelspec=stored | {'name': 'ir'})
    pages = module.Pages(parent=server, root_dir=str(tmp_path))
    page, other = (asyncio.run(pages.get(name))['content']['metadata'] for name in ('a.ipynb', 'other.ipynb'))
    manager, client = start_new_kernel(kernel_name='python3')
    try:
        said = client.kernel_info(reply=True, timeout=60)['content']
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert page['kernelspec']['display_name'] == kernels.get_kernel_spec('python3').display_name
    assert page['language_info'] == said['language_info']
    assert other == {'kernelspec': stored | {'name': 'ir'}}
    assert (tmp_path/'a.ipynb').read_text().count('display_name": "python3"') == 1, 'the file itself is not touched'
