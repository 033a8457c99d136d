"""How a line looks: within 120 columns, one thought each, functions with names, docstrings that say what the function does."""
import ast

import pytest

SHORT = (ast.Return, ast.Raise, ast.Continue, ast.Break, ast.Pass)  # These may share the line of their condition
NOT_VERBS = set('''the a an all what which who whom whose where when why how everything nothing one two this that these those whether and in of at on as
if now some every each once its their is are was has have no nobody somebody'''.split())


@pytest.fixture(scope='module')
def trees(modules):
    return {name: ast.parse(path.read_text(encoding='utf-8')) for name, path in modules.items()}


def test_columns(modules):
    "At most 1 % of the lines are wider than 120 columns: tables, addresses, and the lists of names that nbdev writes"
    every = [(name, line) for name, path in modules.items() for line in path.read_text(encoding='utf-8').splitlines()]
    wide = [(name, line[:60]) for name, line in every if len(line) > 120]
    assert len(wide) <= .01*len(every), wide


def bodies(node):
    "Every list of statements of a compound statement"
    for part in ('body', 'orelse', 'finalbody'):
        if isinstance(getattr(node, part, None), list): yield getattr(node, part)


def test_bodies_have_lines_of_their_own(trees):
    compound = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.ExceptHandler)
    shared = [f'{name}:{node.lineno}' for name, tree in trees.items() for node in ast.walk(tree) if isinstance(node, compound)
              for body in bodies(node) if body and body[0].lineno == node.lineno and not isinstance(body[0], SHORT)]
    assert not shared, shared


def test_functions_have_names(trees):
    named = [f'{name}:{node.lineno}' for name, tree in trees.items() for node in ast.walk(tree)
             if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda)]
    assert not named, named


def test_docstrings_begin_with_a_verb(trees):
    said = [(f'{name}.{node.name}', ast.get_docstring(node)) for name, tree in trees.items() for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and not node.name.startswith('_') and ast.get_docstring(node)]
    nouns = [(name, text[:50]) for name, text in said if text.split()[0].lower().strip('.,:;') in NOT_VERBS]
    assert len(nouns) <= .05*len(said), nouns
