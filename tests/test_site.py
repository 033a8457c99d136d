"Laws of the web site: coloured code, alt texts that say something, explained parameters, every chapter in a group"
from html import unescape
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
import re
import shutil
import subprocess
import sys

import nbformat
import pytest


@pytest.fixture(scope='module')
def book(root):
    spec = spec_from_file_location('book', root/'.docs/book.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def chapters(book):
    return {path.name: book.prepared(path) for path in [*book.pages(), book.FIRST]}


def brightness(colour):
    parts = [int(colour[i:i + 2], 16)/255 for i in (1, 3, 5)]
    red, green, blue = (part/12.92 if part <= .04045 else ((part + .055)/1.055)**2.4 for part in parts)
    return .2126*red + .7152*green + .0722*blue


def contrast(one, other):
    "Measure the contrast of two colours as WCAG 2.2 does"
    low, high = sorted((brightness(one), brightness(other)))
    return (high + .05)/(low + .05)


def drawn(nb):
    "List the code cells that stored a picture"
    return [cell for cell in nb.cells if cell.cell_type == 'code'
            and any('image/png' in output.get('data', {}) for output in cell.outputs)]


def test_code_has_a_language(chapters):
    assert all(nb.metadata.language_info.pygments_lexer == 'ipython3' for nb in chapters.values())


def test_every_drawn_picture_has_an_alt_text_of_its_own(chapters):
    alts = {name: [cell.metadata.mystnb['image']['alt'] for cell in drawn(nb)] for name, nb in chapters.items()}
    assert sum(map(len, alts.values())) > 100
    short = [(name, alt) for name, said in alts.items() for alt in said if len(alt.split()) < 3 or len(alt) > 270]
    assert not short, short
    noise = [(name, alt) for name, said in alts.items() for alt in said if re.search(r'[<>`$]|\bRGB\b|_images', alt)]
    assert not noise, noise
    twice = [(name, alt) for name, said in alts.items() for alt in set(said) if said.count(alt) > 1]
    assert not twice, twice


def test_every_picture_in_the_prose_has_an_alt_text(chapters):
    for name, nb in chapters.items():
        text = '\n'.join(cell.source for cell in nb.cells if cell.cell_type == 'markdown')
        assert not re.search(r'!\[\s*\]\(', text), name
        assert all(len(alt) > 0 for alt in re.findall(r'<img[^>]*alt="([^"]*)"', text)), name
        assert len(re.findall(r'<img\b', text)) == len(re.findall(r'<img[^>]*\balt="', text)), name


@pytest.mark.parametrize('source,said', [
    ("plot_curve({'a': x, 'rank 4': y}, f'{n:.0f} steps', 'step')", ['rank 4', '… steps', 'step']),
    ("show_faces(rows['hidden key'])", []), ("words = 'not drawn'", []), ('this is no Python', []),
    ("Image.open(folder/'grid.png').convert('RGB')", [])])
def test_the_words_of_a_picture_are_those_it_draws(book, source, said):
    assert book.drawn_words(source) == said


def test_a_formula_carries_its_tex(book):
    picture = book.with_formulas(r'with $\sqrt r < 2$ and `$HOME and $PATH`')
    assert unescape(re.search('alt="([^"]*)"', picture)[1]) == r'\sqrt r < 2'
    assert '`$HOME and $PATH`' in picture and picture.count('<img') == 1
    assert book.with_formulas(r'$$\begin{cases}a\end{cases}$$').startswith('<code')


def test_every_explained_parameter_is_in_the_site(book, root):
    "Take one chapter with functions and one with classes, and count what their modules explain"
    for stem in ('nbs/4_training/42_losses', 'nbs/6_evaluation/64_grids'):
        nb = book.prepared(root/f'{stem}.ipynb')
        code = '\n'.join(cell.source for cell in nb.cells if cell.cell_type == 'code')
        tables = '\n'.join(cell.source for cell in nb.cells if cell.source.startswith('```{py:'))
        explained = re.findall(r'(?m)^ {4}(\w+):[^#\n]*?(?:=[^#\n]*)?#\s*\S', code)
        assert len(explained) > 8
        missing = [name for name in explained if f'| `{name}` |' not in tables]
        assert not missing, missing


def test_every_chapter_is_in_one_group(book, root):
    names = [path.relative_to(root/'nbs').with_suffix('').as_posix() for path in book.pages()]
    listed = book.contents(names)
    entries = [line for line in listed.splitlines() if '/' in line]
    assert [re.search(r'<(.+)>', entry)[1] for entry in entries] == names
    assert all(re.match(rf'{Path(name).name[:2]} \w', entry) for name, entry in zip(names, entries))
    folders = {name.split('/')[0] for name in names}
    assert len(re.findall(r'(?m)^:caption: [A-Z]', listed)) == len(folders) > 5


def test_every_link_leads_to_a_page_of_the_site(book, chapters, root):
    "Sphinx takes a link that it cannot follow for the name of a heading, and the reader stays where he is"
    there = {path.resolve() for path in [*book.pages(), book.FIRST]} | {root/'nbs'/f'{name}.md' for name in book.ABOUT}
    prose = {path: chapters[path.name] for path in book.pages()} | {book.FIRST: book.first_page()}
    dead = [(path.name, link) for path, nb in prose.items() for cell in nb.cells if cell.cell_type == 'markdown'
            for link in re.findall(r'(?<!!)\[[^\]]*\]\((?!https?:|#|\w+:)([^)#\s]+\.(?:ipynb|md))', cell.source)
            if (path.parent/link).resolve() not in there]
    assert not dead, dead


def test_a_built_site_leaves_nothing_else(root, tmp_path):
    "Build two chapters in a copy: only _docs is new, every code cell is coloured, search finds a function"
    pytest.importorskip('sphinx')
    pytest.importorskip('myst_nb')
    pytest.importorskip('furo')
    shutil.copytree(root/'.docs', tmp_path/'.docs', ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path/'nbs/4_training').mkdir(parents=True)
    shutil.copytree(root/'nbs/images', tmp_path/'nbs/images')
    for name in ('LOG.md', 'NOTICE'): shutil.copy(root/name, tmp_path/name)
    shutil.copy(root/'nbs/index.ipynb', tmp_path/'nbs/index.ipynb')
    shutil.copy(root/'nbs/4_training/42_losses.ipynb', tmp_path/'nbs/4_training/42_losses.ipynb')
    before = sorted(path.name for path in tmp_path.iterdir())
    done = subprocess.run([sys.executable, tmp_path/'.docs/book.py', 'site'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, '_docs'])
    assert re.search(r'href="LOG.html', (tmp_path/'_docs/index.html').read_text(encoding='utf-8'))
    page = (tmp_path/'_docs/4_training/42_losses.html').read_text(encoding='utf-8')
    blocks = re.findall(r'class="cell_input.*?<pre>(.*?)</pre>', page, re.S)
    source = nbformat.read(root/'nbs/4_training/42_losses.ipynb', 4)
    assert 5 < len(blocks) <= len(source.cells) and all('<span class="' in block for block in blocks)
    assert 'face_weights' in (tmp_path/'_docs/searchindex.js').read_text(encoding='utf-8')
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="https?:', page)
    for colours in (tmp_path/'_docs/_static/pygments.css').read_text(encoding='utf-8').split('@media not print'):
        ground = re.search(r'\.highlight \{ background: (#\w{6})', colours)[1]
        used = set(re.findall(r'\.highlight \.\w+ \{ color: (#\w{6})', colours, re.I))
        assert len(used) > 4 and min(contrast(ink, ground) for ink in used) >= 4.5
