"""Things that creep in: pickles, swallowed errors, stars, fat notebooks, paths of somebody's machine, promises in comments."""
from importlib.util import find_spec
import ast
import json
from pathlib import Path
import re

import pytest

TEXT = {'.py', '.ipynb', '.md', '.ini', '.toml', '.sh', '.json', '.txt', '.cff', ''}


def sources(project_files):
    "Name and text of every Python source: modules, tests, and the code cells of every notebook"
    for path in project_files:
        if path.suffix == '.py': yield path.name, path.read_text(encoding='utf-8')
        if path.suffix == '.ipynb':
            for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
                if cell['cell_type'] == 'code': yield f"{path.name} cell {cell.get('id')}", ''.join(cell['source'])


def tree(name, text):
    "The code, cell magics and shell lines left out"
    return ast.parse('\n'.join('pass' if re.match(r'\s*[%!]', line) else line for line in text.splitlines()), name)


@pytest.fixture(scope='module')
def trees(project_files): return [(name, tree(name, text)) for name, text in sources(project_files)]


@pytest.fixture(scope='module')
def notebooks(project_files): return {p: json.loads(p.read_text(encoding='utf-8')) for p in project_files if p.suffix == '.ipynb'}


def calls(code): return [(n, ast.unparse(n.func)) for n in ast.walk(code) if isinstance(n, ast.Call)]


def test_no_pickles(trees, project_files):
    named = [name for name, code in trees for n in ast.walk(code) if isinstance(n, (ast.Import, ast.ImportFrom))
             for m in [getattr(n, 'module', None) or '', *(a.name for a in n.names)] if m.split('.')[0] in ('pickle', 'cPickle', 'dill', 'joblib')]
    assert not named, named
    loaded = [name for name, code in trees for _, f in calls(code) if f in ('torch.load', 'torch.save', 'np.load')]
    assert not loaded, f'safetensors and JSON only: {loaded}'
    files = [p.name for p in project_files if p.suffix in ('.pkl', '.pickle', '.pt', '.pth', '.bin', '.ckpt')]
    assert not files, files


def test_no_error_is_swallowed(trees):
    wide = [name for name, code in trees for n in ast.walk(code) if isinstance(n, ast.ExceptHandler)
            and (n.type is None or getattr(n.type, 'id', '') in ('Exception', 'BaseException'))]
    assert not wide, wide


def test_no_stars(trees):
    stars = [name for name, code in trees for n in ast.walk(code) if isinstance(n, ast.ImportFrom) and any(a.name == '*' for a in n.names)]
    assert not stars, stars


def test_no_torchvision():
    "Its registry build for this torch is another one: its mere presence breaks diffusers and transformers"
    assert find_spec('torchvision') is None
    assert find_spec('torchaudio') is None


def test_notebooks_do_not_set_up_their_reader(notebooks):
    wrong = [f'{p.name}: {line}' for p, nb in notebooks.items() for c in nb['cells'] if c['cell_type'] == 'code' for line in ''.join(c['source']).splitlines()
             if re.match(r'\s*(%matplotlib|%load_ext|[!%]pip|sys\.path)', line)]
    assert not wrong, wrong


def test_notebooks_are_light(notebooks):
    fat = {p.name: p.stat().st_size for p in notebooks if p.stat().st_size > 400_000}
    assert not fat, fat
    long = {p.name: len(nb['cells']) for p, nb in notebooks.items() if len(nb['cells']) > 90}
    assert not long, long


def test_notebooks_carry_no_widget_state(notebooks):
    assert not [p.name for p, nb in notebooks.items() if 'widgets' in nb['metadata']]


def test_stored_outputs_hold_no_error(notebooks):
    failed = [f"{p.name}: {o['ename']}" for p, nb in notebooks.items() for c in nb['cells'] for o in c.get('outputs', []) if o['output_type'] == 'error']
    assert not failed, failed


def test_notebooks_open_with_a_title(notebooks):
    untitled = [p.name for p, nb in notebooks.items() if not ''.join(nb['cells'][0]['source']).lstrip('-\n').startswith(('#', 'title'))]
    assert not untitled, untitled


def test_no_path_of_a_machine(project_files):
    somewhere = re.compile(r'(?<![\w.\-/:])/(?:home|Users|root|work|tmp|opt|mnt)/[\w.]')
    found = {p.name: somewhere.search(text)[0] for p in project_files if p.suffix in TEXT and somewhere.search(text := p.read_text(encoding='utf-8', errors='replace'))}
    assert not found, found


def test_no_promise_instead_of_code(project_files):
    promise = re.compile('NotImplemented' + r'Error|#\s*(?:TO' + r'DO|FIX' + r'ME|X{3})|\bst' + r'ub\b')
    found = [p.name for p in project_files if p.suffix in TEXT and promise.search(p.read_text(encoding='utf-8', errors='replace'))]
    assert not found, found


def test_no_file_is_huge(project_files):
    big = {p.name: p.stat().st_size for p in project_files if p.stat().st_size > 16_000_000}
    assert not big, big


def test_top_level_is_known(root, project_files):
    known = set('nbs faceid_nb settings.ini setup.py README.md tests benchmarks data Makefile LICENSE CHANGELOG.md LOG.md pyproject.toml MANIFEST.in NOTICE CONTRIBUTING.md CITATION.cff'.split())
    new = {p.relative_to(root).parts[0] for p in project_files} - known
    assert not {n for n in new if not n.startswith('.')}, new


def test_links_of_the_readme_lead_somewhere(root):
    links = re.findall(r'\]\(([^)#]+)[^)]*\)', (root/'README.md').read_text(encoding='utf-8'))
    dead = [link for link in links if not re.match(r'https?:|mailto:', link) and not (root/link).exists()]
    assert not dead, dead


def test_every_notebook_names_its_kernel():
    "Else JupyterLab asks for one when a chapter is opened"
    notebooks = [path for path in (Path(__file__).parent.parent/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts]
    nameless = [path.name for path in notebooks if json.loads(path.read_text(encoding='utf-8'))['metadata'].get('kernelspec', {}).get('name') != 'python3']
    assert notebooks and not nameless, nameless


def test_the_first_page_leads_to_each_chapter_in_reading_order(root):
    page = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))
    listed, = (text for text in (''.join(cell['source']) for cell in page['cells']) if text.startswith('### In reading order'))
    links = re.findall(r'\]\((\w+/\d\d_\w+\.ipynb)\)', listed)
    chapters = [path for path in (root/'nbs').glob('*/[0-9][0-9]_*.ipynb')]
    book = sorted((path for path in chapters if path.parent.name != 'runs'), key=lambda path: path.name)
    runs = sorted(path for path in chapters if path.parent.name == 'runs')
    assert links == [path.relative_to(root/'nbs').as_posix() for path in (*book, *runs)]


def test_pictures_of_chapters_exist(root):
    "Those that a text shows from a file"
    shown = [(path, link) for path in (root/'nbs').rglob('*.ipynb') for cell in json.loads(path.read_text(encoding='utf-8'))['cells']
             for link in re.findall(r'!\[[^\]]*\]\(([^)\s]+)\)', ''.join(cell['source'])) if cell['cell_type'] == 'markdown']
    dead = [(path.name, link) for path, link in shown if not re.match('https?:|attachment:|data:', link) and not (path.parent/link).exists()]
    assert shown and not dead, dead


def test_exercises_are_lists(notebooks):
    "In JupyterLab numbers in one paragraph run on as one line"
    run_on = [(path.name, cell['id']) for path, page in notebooks.items() for cell in page['cells'] if cell['cell_type'] == 'markdown'
              and re.search(r'(\*\*Try\*\*:?|Expected:) 1\. .* 2\. ', ''.join(cell['source']))]
    assert not run_on, run_on
