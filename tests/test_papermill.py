"""A whole run through papermill, and what can go wrong with a kernel."""
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import papermill
import psutil
import pytest

from conftest import QUICK
from faceid_nb.app import runs
from faceid_nb.app.cli import main
from faceid_nb.app.recipes import known_keys, open_recipe
from faceid_nb.app.runs import OwnKernel, notebooks_folder, run_notebook
from faceid_nb.core.errors import UserError
from faceid_nb.core.files import read_json

FOREIGN = {'argv': ['python-of-another-environment', '-m', 'ipykernel_launcher', '-f', '{connection_file}'], 'display_name': 'Python 3', 'language': 'python'}


@pytest.fixture
def foreign_kernel(tmp_path, monkeypatch):
    "A kernel called python3 that another project installed for the user"
    place = tmp_path/'jupyter'/'kernels'/'python3'
    place.mkdir(parents=True)
    (place/'kernel.json').write_text(json.dumps(FOREIGN))
    for name in ('JUPYTER_DATA_DIR', 'JUPYTER_PATH'): monkeypatch.setenv(name, str(tmp_path/'jupyter'))


def test_papermill_leaves_notebooks_that_read_well(finished_demo, tmp_path, capsys, foreign_kernel):
    "Also where the user's python3 kernel is of another environment; the notebooks are their owner's alone"
    folder = tmp_path/'run'
    shutil.copytree(finished_demo/'input', folder/'input')  # drawn already: of the same seed
    assert main(['run', 'tiny', '--folder', str(folder), *QUICK]) == 0
    books = sorted((folder/'notebooks').glob('*.ipynb'))
    assert [p.stem for p in books] == ['10_curate', '20_embed', '40_train', '50_generate', '60_evaluate']
    for path in books:
        book = nbformat.read(path, 4)
        assert book.cells[0].cell_type == 'markdown' and book.cells[0].source.startswith('# ')
        outputs = [o for cell in book.cells if cell.cell_type == 'code' for o in cell.outputs]
        assert not [o for o in outputs if o.output_type == 'error']
        assert any('image/png' in o.get('data', {}) for o in outputs), f'{path.stem} shows no picture'
        assert any('what was used' in o.get('data', {}).get('text/markdown', '') for o in outputs), f'{path.stem} does not say what was used'
        assert not [o for o in outputs if o.output_type == 'stream' or '%|' in o.get('data', {}).get('text/plain', '')], f'{path.stem} shows a bar or a warning'
        assert 'widgets' not in book.metadata
        clip = [o for o in outputs if 'image/gif' in o.get('data', {})]
        assert len(clip) == (path.stem in ('50_generate', '60_evaluate')), f'{path.stem} has {len(clip)} clips'
        assert "'seed': '3'" in ''.join(cell.source for cell in book.cells) or '"seed": "3"' in ''.join(cell.source for cell in book.cells)
        assert os.name != 'posix' or path.stat().st_mode & 0o777 == 0o600
    assert os.name != 'posix' or (folder/'notebooks').stat().st_mode & 0o777 == 0o700
    assert read_json(folder/'summary.json')['seed'] == 3
    assert 'report.html' in capsys.readouterr().out


WRONG_NAMES = {
    'a key of the recipe': ({'seed': 5}, "has no parameter 'seed'; it has recipe, overrides, folder"),
    'a misspelt name': ({'overides': {'seed': 5}}, "has no parameter 'overides'")}
WRONG_VALUES = {
    'text instead of a mapping': (
        {'overrides': 'seed=5'}, "overrides must be a mapping such as {'seed': 3}, got 'seed=5'"),
    'a number instead of text': ({'folder': 7}, 'folder must be text, got 7'),
    'an unknown recipe': ({'recipe': 'tinny'}, "no recipe 'tinny'"),
    'a misspelt key': ({'overrides': {'sed': 5}}, 'did you mean seed?')}


@pytest.mark.parametrize('case', WRONG_NAMES)
def test_papermill_itself_stops_at_a_wrong_parameter_before_anything_runs(case, tmp_path, monkeypatch):
    "Which names were set is read from the history of the kernel"
    given, words = WRONG_NAMES[case]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(papermill.PapermillExecutionError) as said:
        papermill.execute_notebook(notebooks_folder()/'10_curate.ipynb', 'out.ipynb', given, progress_bar=False, kernel_manager_class=OwnKernel)
    assert said.value.ename in ('UserError', 'ValueError') and words in said.value.evalue
    assert [path.name for path in tmp_path.iterdir()] == ['out.ipynb']


@pytest.mark.parametrize('case', WRONG_VALUES)
def test_a_wrong_value_is_named_before_anything_runs(case, tmp_path, monkeypatch):
    "The cells as papermill gives them to a kernel, run here: a value is looked at where it is, so no kernel is needed"
    given, words = WRONG_VALUES[case]
    monkeypatch.chdir(tmp_path)
    book = papermill.iorw.load_notebook_node(str(notebooks_folder()/'10_curate.ipynb'))
    cells = papermill.parameterize.parameterize_notebook(book, given).cells
    with pytest.raises(ValueError) as said:
        names = {}
        for cell in cells:
            if cell.cell_type == 'code': exec(cell.source, names)
    assert type(said.value) in (UserError, ValueError) and words in str(said.value)
    assert 'step' not in names and not list(tmp_path.iterdir())


def test_papermill_itself_writes_where_it_was_started(tmp_path, monkeypatch):
    "Keys of the recipe go into `overrides`, the run folder is runs/NAME, and the rest of the defaults is a real run"
    monkeypatch.chdir(tmp_path)
    chosen = {'seed': 5, 'inputs.n_photos': 7}
    papermill.execute_notebook(notebooks_folder()/'10_curate.ipynb', 'out.ipynb', {'overrides': chosen},
                               progress_bar=False, kernel_manager_class=OwnKernel)
    assert read_json(tmp_path/'runs'/'tiny'/'run.json')['recipe'] == known_keys_as_written(open_recipe('tiny', chosen))


def known_keys_as_written(recipe): return json.loads(json.dumps(known_keys(recipe)))


def test_all_targets_have_the_same_defaults_and_they_are_a_whole_recipe():
    books = [papermill.inspect_notebook(notebooks_folder()/f'{name}.ipynb') for name in runs.NOTEBOOKS]
    defaults = [{name: ast.literal_eval(one['default']) for name, one in book.items()} for book in books]
    assert defaults == [{'recipe': 'tiny', 'overrides': {}, 'folder': ''}]*5


def notebook(path, code):
    "A target of two cells"
    cells = [nbformat.v4.new_code_cell('n: int = 1', metadata={'tags': ['parameters']}), nbformat.v4.new_code_cell(code)]
    kernel = {'kernelspec': {'name': 'python3', 'language': 'python', 'display_name': 'python3'}}
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=cells), path)
    return path


def executed(tmp_path, code, out='out.ipynb'):
    return run_notebook(notebook(tmp_path/'target.ipynb', code), tmp_path/'out'/out, {'n': 2}, tmp_path, 60)


def test_the_kernel_is_this_interpreter(tmp_path, foreign_kernel):
    "Whatever is installed for the user, and whatever lies in the folder where the command runs"
    (tmp_path/'statistics.py').write_text('raise RuntimeError("the wrong one")')
    book = nbformat.read(executed(tmp_path, 'import statistics, sys; print(sys.executable)'), 4)
    assert book.cells[-1].outputs[0].text.strip() == sys.executable


ERRORS = {
    'raise ValueError("n=2, but\\nless is wanted")': (UserError, 'n=2, but less is wanted'),
    'from faceid_nb.core.errors import UserError\nclass Odd(UserError): pass\nraise UserError("look here")': (UserError, 'look here'),
    'open("no such file")': (UserError, 'No such file'),
    'import json; json.loads("{")': (UserError, 'Expecting property name'),
    'raise MemoryError': (MemoryError, ''),
    'import torch; raise torch.OutOfMemoryError("CUDA out of memory")': (MemoryError, 'CUDA out of memory'),
    'raise KeyError("a bug")': (RuntimeError, 'target.ipynb failed with KeyError'),
    'import os, signal; os.kill(os.getpid(), signal.SIGKILL)': (UserError, 'memory ran out'),
    'import os; os.write(2, b"the last words\\n"); os._exit(3)': (RuntimeError, 'target.ipynb ended with code 3: the last words')}


@pytest.mark.skipif(os.name != 'posix', reason='kill by signal')
@pytest.mark.parametrize('code', ERRORS)
def test_an_error_in_a_kernel_is_the_same_error_here(code, tmp_path):
    kind, words = ERRORS[code]
    with pytest.raises(kind) as said: executed(tmp_path, code)
    assert type(said.value) is kind and words in str(said.value)
    assert list((tmp_path/'out').iterdir()) == []


def at_work(tmp_path):
    "A command in whose kernel a cell is at work, and that kernel"
    notebook(tmp_path/'target.ipynb', f'import time\nprint("begun")\nopen({str(tmp_path/"begun")!r}, "w").close()\ntry: time.sleep(60)\nfinally:\n    time.sleep(.5)\n    open({str(tmp_path/"saved")!r}, "w").close()')
    script = f'''import sys; from pathlib import Path; import faceid_nb.app.cli as cli, faceid_nb.app.runs as runs
home = Path({str(tmp_path)!r})
cli.WORK['recipes'] = (lambda **words: runs.run_notebook(home/'target.ipynb', home/'out'/'out.ipynb', {{'n': 2}}, home, 60), ())
sys.argv = ['faceid', 'recipes']
raise SystemExit(cli.main())'''
    work = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path/'begun').exists():
        assert work.poll() is None, work.stderr.read()
        time.sleep(.02)
    return work, psutil.Process(work.pid).children(recursive=True)


@pytest.mark.skipif(os.name != 'posix', reason='kill by signal')
@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_a_stop_reaches_the_kernel_and_what_it_saves_is_kept(name, tmp_path):
    work, kernels = at_work(tmp_path)
    work.send_signal(getattr(signal, name))
    out, err = work.communicate(timeout=60)
    assert (work.returncode, err) == (130, 'faceid: stopped; the same command goes on from here\n')
    assert (tmp_path/'saved').exists() and kernels and not [one for one in kernels if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert [p.name for p in (tmp_path/'out').iterdir()] == ['out.ipynb']
    assert nbformat.read(tmp_path/'out'/'out.ipynb', 4).cells[-1].outputs[0].text == 'begun\n'


@pytest.mark.skipif(os.name != 'posix', reason='kill by signal')
def test_a_kernel_does_not_outlive_a_killed_command(tmp_path):
    work, kernels = at_work(tmp_path)
    work.kill()
    work.communicate(timeout=60)
    gone, alive = psutil.wait_procs(kernels, timeout=60)
    assert kernels and not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_leftovers_of_a_killed_write_are_cleared(tmp_path, monkeypatch):
    books, gone = tmp_path/'run'/'notebooks', subprocess.run([sys.executable, '-c', 'import os; print(os.getpid())'], capture_output=True, text=True).stdout.strip()
    books.mkdir(parents=True)
    for name in (f'.faceid_part.{gone}.10_curate.ipynb', '.mine.part.ipynb', f'.faceid_part.{os.getppid()}.40_train.ipynb'): (books/name).write_text('x')
    monkeypatch.setattr(runs, 'run_notebook', lambda notebook, out, parameters, cwd, timeout: out)
    runs.run_notebooks('tiny', {}, tmp_path/'run', tell=lambda words: None)
    assert sorted(p.name for p in books.iterdir()) == sorted(['.mine.part.ipynb', f'.faceid_part.{os.getppid()}.40_train.ipynb'])
