"""How a chapter reads: one title, short cells, and nothing called that a reader of the site does not see."""
import ast
import builtins
import json
import re

import pytest

LONGEST = 50  # Lines of one cell
BUILT_IN = set(dir(builtins)) | {'get_ipython', 'display'}


@pytest.fixture(scope='module')
def chapters(root):
    paths = [path for path in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in path.parts]
    return {path.relative_to(root/'nbs').as_posix(): json.loads(path.read_text(encoding='utf-8'))['cells'] for path in paths}


def source(cell):
    return ''.join(cell['source'])


def shown(cell):
    "Say whether the site shows a cell of code"
    return cell['cell_type'] == 'code' and not re.match(r'#\|\s*(hide|default_exp)\b', source(cell))


def parsed(text):
    "Parse a cell; cell magics and shell lines are left out"
    return ast.parse('\n'.join('pass' if re.match(r'\s*[%!]', line) else line for line in text.splitlines()))


def names_given(tree):
    "Collect every name that a cell imports, defines or assigns, arguments and loop variables included"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name).split('.')[0] for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name


def names_called(tree):
    "Collect the names of functions that a cell calls, not those of methods"
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def unexplained(cells):
    "List the functions that shown cells call and no shown cell imports or defines"
    trees = [parsed(source(cell)) for cell in cells if shown(cell)]
    given = {name for tree in trees for name in names_given(tree)}
    called = {name for tree in trees for name in names_called(tree)}
    return sorted(called - given - BUILT_IN)


def test_titles_have_one_mark(chapters):
    wrong = [(name, line) for name, cells in chapters.items() for cell in cells if cell['cell_type'] == 'markdown'
             for line in source(cell).splitlines() if re.match(r'#+\s+#', line)]
    assert not wrong, wrong
    first = [name for name, cells in chapters.items() if not re.match(r'# [^#\s]', source(cells[0]))]
    assert not first, first


def test_cells_are_short(chapters):
    long = [(name, cell.get('id'), len(source(cell).splitlines())) for name, cells in chapters.items() for cell in cells
            if len(source(cell).splitlines()) > LONGEST]
    assert not long, long


def test_a_reader_sees_every_function_that_is_called(chapters):
    assert unexplained([{'cell_type': 'code', 'source': ['#| hide\n', 'def helper(): return 1']},
                        {'cell_type': 'code', 'source': ['helper()']}]) == ['helper']
    missing = {name: unexplained(cells) for name, cells in chapters.items()}
    assert not any(missing.values()), {name: names for name, names in missing.items() if names}


def test_only_clearing_up_is_hidden(chapters):
    hidden = [(name, source(cell).splitlines()[1][:60]) for name, cells in chapters.items() for cell in cells
              if cell['cell_type'] == 'code' and re.match(r'#\|\s*hide\b', source(cell))
              and not re.search(r'cleanup\(\)|rmtree\(|rm., .-rf', source(cell))]
    assert not hidden, hidden
