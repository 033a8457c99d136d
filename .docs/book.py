"""The book for readers who do not open JupyterLab: `site` binds the notebooks as web pages in _docs, without a network and without running
anything; `readme` writes README.md from the first page; `check` says whether README.md is up to date."""
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from shutil import copytree, rmtree
from subprocess import run
from tempfile import TemporaryDirectory
import re
import sys

from matplotlib.mathtext import math_to_image
from nbconvert import MarkdownExporter
import nbformat

ROOT = Path(__file__).resolve().parent.parent
FIRST, README = ROOT/'nbs/index.ipynb', ROOT/'README.md'


def shown(path):
    "The notebook as its reader sees it: no hidden cell, no directive"
    nb = nbformat.read(path, 4)
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*(hide|default_exp)\b', c.source)]
    for c in nb.cells: c.source = re.sub(r'(?m)\A(#\|.*\n)+', '', c.source)
    return nb


def readme():
    "The first page as markdown that stands one folder higher"
    text, resources = MarkdownExporter().from_notebook_node(shown(FIRST))
    if resources['outputs']: sys.exit('nbs/index.ipynb holds a drawn picture. Save it under nbs/images and show it in a markdown cell, so that README.md can show it too.')
    text = re.sub(r'(\]\()(?!https?:|#|/)(?:\./)?', r'\1nbs/', text).replace('(nbs/../', '(')
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def formula(match):
    "A formula as a picture, since the usual script comes from the network; one that matplotlib cannot set stays as written"
    picture = BytesIO()
    try: math_to_image(f"${match['tex'].strip()}$".replace(r'\lVert', r'\Vert').replace(r'\rVert', r'\Vert'), picture, dpi=100, format='svg')
    except ValueError: return match[0]
    return f'<img class="formula" alt="formula" src="data:image/svg+xml;base64,{b64encode(picture.getvalue()).decode()}">'


def pages():
    "The chapters, in the order in which a photo travels: that of their numbers"
    return sorted(p for p in (ROOT/'nbs').glob('[0-9]_*/[0-9][0-9]_*.ipynb'))


def page(path, book):
    "A chapter of the site"
    nb = shown(path)
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source = re.sub(r'\$\$(?P<tex>[^$]+)\$\$', formula, re.sub(r'(?<![\\$`\w])\$(?P<tex>[^$`\n]+)\$(?!\$)', formula, c.source))
    target = book/path.relative_to(ROOT/'nbs')
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, target)
    return target.relative_to(book).with_suffix('')


def site():
    "The pages, bound by sphinx (myst-nb, furo)"
    with TemporaryDirectory() as scratch:
        book = Path(scratch)
        names = [str(page(p, book)) for p in pages()]
        page(FIRST, book)
        if (ROOT/'nbs/images').is_dir(): copytree(ROOT/'nbs/images', book/'images')
        first = nbformat.read(book/'index.ipynb', 4)
        first.cells.append(nbformat.v4.new_markdown_cell('```{toctree}\n:hidden:\n\n' + '\n'.join(names) + '\n```'))
        nbformat.write(first, book/'index.ipynb')
        rmtree(ROOT/'_docs', ignore_errors=True)
        done = run([sys.executable, '-m', 'sphinx', '-q', '-b', 'html', '-c', str(ROOT/'.docs'), str(book), str(ROOT/'_docs')])
    if done.returncode == 0: print(f'_docs/index.html and {len(names)} chapters')
    return done.returncode


def main(verb):
    if verb == 'readme': return README.write_text(readme(), encoding='utf-8') and 0
    if verb == 'check': return 0 if README.read_text(encoding='utf-8') == readme() else 'README.md is not what nbs/index.ipynb says: make readme'
    return site()


if __name__ == '__main__': sys.exit(main(sys.argv[1]))
