"""The book for readers who do not open JupyterLab: `site` binds the notebooks as web pages in _docs, without a network
and without running anything; `readme` writes README.md from the first page; `check` says whether README.md is up to
date."""
from base64 import b64encode
from html import escape
from importlib import import_module
from io import BytesIO
from pathlib import Path
from shutil import copytree, move, rmtree
from subprocess import run
from tempfile import TemporaryDirectory
import ast
import re
import sys

from fastcore.docments import docments
from matplotlib import rc_context
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from nbconvert import MarkdownExporter
import nbformat

ROOT = Path(__file__).resolve().parent.parent
FIRST, README = ROOT/'nbs/index.ipynb', ROOT/'README.md'
PYTHON = {'name': 'python', 'pygments_lexer': 'ipython3'}  # Cleaned notebooks do not say in which language they are
PICTURES = ('image/png', 'image/jpeg', 'image/svg+xml')
LONGEST_ALT = 260
ABOUT = ('LOG', 'NOTICE')  # Texts of the project that the first page links


def raw(path):
    "Read a notebook without its hidden cells"
    nb = nbformat.read(path, 4)
    nb.cells = [cell for cell in nb.cells if not re.match(r'#\|\s*(hide|default_exp)\b', cell.source)]
    nb.metadata['language_info'] = PYTHON
    return nb


def bare(source):
    "Drop the directives at the top of a cell"
    return re.sub(r'(?m)\A(#\|.*\n)+', '', source)


def shown(path):
    "Read a notebook as its reader sees it: no hidden cell, no directive"
    nb = raw(path)
    for cell in nb.cells:
        cell.source = bare(cell.source)
    return nb


def readme():
    "Format the first page as markdown that stands one folder higher; the lists of chapters stay on the page itself"
    page = shown(FIRST)
    page.cells = [cell for cell in page.cells if not cell.source.startswith(('### In reading order', '### The short path'))]
    text, resources = MarkdownExporter().from_notebook_node(page)
    if resources['outputs']:
        sys.exit('nbs/index.ipynb holds a drawn picture. Save it under nbs/images and show it in a markdown cell, '
                 'so that README.md can show it too.')
    text = re.sub(r'(\]\()(?!https?:|#|/)(?:\./)?', r'\1nbs/', text).replace('(nbs/../', '(')
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


# ---- formulas

def simpler(tex):
    "Write a formula with the commands that matplotlib knows"
    tex = re.sub(r'\\[lr][vV]ert(?![a-zA-Z])', lambda found: r'\Vert ' if 'V' in found[0] else '|', tex)
    tex = re.sub(r'\\[bB]igg?[lr]?(?![a-zA-Z])', '', tex)
    tex = re.sub(r'\\[td]?frac\s*(\d)\s*(\d)', r'\\frac{\1}{\2}', tex)
    tex = re.sub(r'\\[td]frac(?![a-zA-Z])', r'\\frac', tex)
    tex = re.sub(r'\\(sqrt|tilde|hat)\s*(\w)', r'\\\1{\2}', tex)
    return re.sub(r'\\operatorname\*', r'\\operatorname', tex)


def formula(match):
    "Draw a formula, since the usual script comes from the network; one that matplotlib cannot set is shown as TeX"
    picture, tex = BytesIO(), ' '.join(match['tex'].split())
    kind, size = ('formula display', 14) if match[0].startswith('$$') else ('formula', 12)
    try:
        with rc_context({'savefig.transparent': True}):
            math_to_image(f'${simpler(tex)}$', picture, FontProperties(size=size), dpi=100, format='svg')
    except ValueError:
        return f'<code class="formula">{escape(tex)}</code>'
    data = b64encode(picture.getvalue()).decode()
    return f'<img class="{kind}" alt="{escape(tex)}" src="data:image/svg+xml;base64,{data}">'


def with_formulas(text):
    "Draw the formulas of a markdown cell"
    text = re.sub(r'\$\$(?P<tex>[^$]+)\$\$', formula, text)
    return re.sub(r'(?<![\\$`\w])\$(?P<tex>[^$`\n]+)\$(?!\$)', formula, text)


# ---- alt texts: the words that are drawn in a picture stand in the call that drew it

def words_of(node):
    "List the words in an expression, in order; a value inside a text becomes an ellipsis"
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return [''.join(part.value if isinstance(part, ast.Constant) else '…' for part in node.values)]
    if isinstance(node, ast.Subscript):
        return words_of(node.value)
    return [word for child in ast.iter_child_nodes(node) for word in words_of(child)]


def drawn_words(source):
    "List the words that the last expression of a cell draws: titles, names of lines, names of axes"
    try:
        body = ast.parse(re.sub(r'(?m)^[%!].*', 'pass', source)).body
    except SyntaxError:
        return []
    words = words_of(body[-1]) if body and isinstance(body[-1], ast.Expr) else []
    tidy = (' '.join(word.replace('…', ' … ').split()) for word in words)
    names = re.compile(r'RGB|\S*\.\w+|\S*/\S*')  # Of files and modes: nobody sees them in the picture
    return [word for word in dict.fromkeys(tidy) if re.search(r'[^\W\d_]{2}', word) and not names.fullmatch(word)]


def plain(markdown):
    "Drop the marks from a line of markdown"
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', markdown)
    text = re.sub(r'<[^>]+>', ' ', text)
    return ' '.join(re.sub(r'[*`$#>|]', '', text).split())


def first_sentence(markdown):
    "Take the first sentence below the heading of a markdown cell"
    lines = [line for line in markdown.splitlines() if line.strip() and not line.startswith(('#', '>', '|', '`'))]
    return re.split(r'(?<=[.:?!])\s', plain(' '.join(lines)))[0] if lines else ''


def alt_text(
    title,     # Of the chapter
    heading,   # Of the section, may be empty
    sentence,  # The first of the prose above the picture, may be empty
    source,    # Of the cell that drew it
):
    "Describe a drawn picture: where it stands, what is written in it, and, where that is little, what the prose says"
    place = ', '.join(dict.fromkeys(part for part in (title, heading) if part))
    words = '; '.join(drawn_words(source))
    said = words if len(words) > 20 else ' '.join(part for part in (words and f'{words}.', sentence) if part)
    text = f'{place}: {said}' if said else place
    return text if len(text) <= LONGEST_ALT else text[:LONGEST_ALT].rsplit(' ', 1)[0] + ' …'


def describe_pictures(nb):
    "Give every picture of a chapter its alt text"
    seen = []
    title = heading = sentence = promise = ''
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            heads = re.findall(r'(?m)^(#+)\s+(.+)$', cell.source)
            for marks, words in heads:
                title, heading = (plain(words), '') if marks == '#' else (title, plain(words))
            sentence = first_sentence(cell.source) or ('' if heads else sentence)
            promise = promise or plain(''.join(re.findall(r'(?m)^> (.+)$', cell.source)))  # Runs have no other prose
        elif any(kind in output.get('data', {}) for output in cell.get('outputs', ()) for kind in PICTURES):
            alt = alt_text(title, heading, sentence or promise, cell.source)
            seen.append(alt)
            number = '' if seen.count(alt) == 1 else f' ({seen.count(alt)})'
            cell.metadata['mystnb'] = {'image': {'alt': alt + number}}


# ---- parameters: one table a definition, below the cell that defines it

def code(text):
    "Set a text as code in a table of markdown"
    return f'`{text}`'.replace('|', r'\|') if text else ''


def parameters(node):
    "List name, type and default of everything that a definition takes"
    if isinstance(node, ast.ClassDef):
        fields = [one for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
        return [(one.target.id, one.annotation, one.value) for one in fields]
    args = node.args
    places = args.posonlyargs + args.args
    gaps = [None]*(len(places) - len(args.defaults))
    found = [(one.arg, one.annotation, value) for one, value in zip(places, gaps + args.defaults)]
    found += [(args.vararg.arg, args.vararg.annotation, None)] if args.vararg else []
    found += [(one.arg, one.annotation, value) for one, value in zip(args.kwonlyargs, args.kw_defaults)]
    return found + ([(args.kwarg.arg, args.kwarg.annotation, None)] if args.kwarg else [])


def signature(node):
    "Write the line that calls a definition"
    if isinstance(node, ast.ClassDef):
        named = ', '.join(name if value is None else f'{name}={ast.unparse(value)}'
                          for name, _, value in parameters(node))
        return f'{node.name}({named})'
    result = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    return f'{node.name}({ast.unparse(node.args)}){result}'


def parameter_table(node, module):
    "Write the entry of one definition: signature, docstring, and a table where the parameters are explained"
    said = docments(getattr(import_module(module), node.name), returns=True)
    rows = [(name, kind, value, said.get(name)) for name, kind, value in parameters(node)]
    if said.get('return'):
        rows.append(('returns', node.returns, None, said['return']))
    kind = 'class' if isinstance(node, ast.ClassDef) else 'function'
    lines = [f'```{{py:{kind}}} {signature(node)}', f':module: {module}', '', ast.get_docstring(node) or '', '']
    if any(meaning for *_, meaning in rows):
        lines += ['| Parameter | Type | Default | Meaning |', '|---|---|---|---|']
    for name, annotation, value, meaning in rows if len(lines) > 5 else ():
        cells = [code(name), *(code(ast.unparse(part)) if part else '' for part in (annotation, value))]
        words = escape(' '.join((meaning or '').split()), quote=False)
        words = re.sub(r'([\\`*_\[\]{}|])', r'\\\1', words)
        lines.append(f'| {" | ".join([*cells, words])} |')
    return '\n'.join([*lines, '```'])


def entries(cell, module):
    "Write the entries of the public definitions of a cell that is exported"
    if cell.cell_type != 'code' or not re.match(r'#\|\s*export\b', cell.source): return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    tree = [node for node in ast.parse(bare(cell.source)).body if isinstance(node, kinds)]
    public = [node for node in tree if not node.name.startswith('_') and not node.decorator_list
              or isinstance(node, ast.ClassDef) and not node.name.startswith('_')]
    return [parameter_table(node, module) for node in public]


# ---- pages

def pages():
    "List the chapters in the order in which a photo travels, that of their numbers; then the notebooks of a run"
    return [path for folder in ('[0-9]_*', 'runs') for path in sorted((ROOT/'nbs').glob(f'{folder}/[0-9][0-9]_*.ipynb'))]


def module_of(path):
    "Name the module that a chapter exports, or nothing"
    for cell in nbformat.read(path, 4).cells:
        if found := re.match(r'#\|\s*default_exp\s+(\S+)', cell.source): return f'faceid_nb.{found[1]}'
    return ''


def prepared(path):
    "Make a chapter of the site: coloured code, drawn formulas, alt texts, parameter tables"
    nb, module = raw(path), module_of(path)
    describe_pictures(nb)
    cells = []
    for cell in nb.cells:
        tables = entries(cell, module) if module else []
        cell.source = bare(cell.source)
        if cell.cell_type == 'markdown':
            cell.source = with_formulas(cell.source)
        cells += [cell, *(nbformat.v4.new_markdown_cell(table) for table in tables)]
    nb.cells = cells
    return nb


def first_page():
    "Make the first page of the site: what it links outside of nbs is a page here, one folder lower"
    nb = prepared(FIRST)
    for cell in nb.cells:
        cell.source = re.sub(rf'\]\(\.\./({"|".join(ABOUT)})(\.md)?\)', r'](\1.md)', cell.source)
    return nb


def about(name, book):
    "Write a text of the project as a page of the site, and return its name there"
    source = next(path for path in (ROOT/f'{name}.md', ROOT/name) if path.is_file())
    text = source.read_text(encoding='utf-8')
    (book/f'{name}.md').write_text(text if source.suffix else f'# {name.capitalize()}\n\n```text\n{text}```\n', encoding='utf-8')
    return name


def page(path, book):
    "Write a chapter of the site, and return its name there"
    target = book/path.relative_to(ROOT/'nbs')
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(prepared(path), target)
    return target.relative_to(book).with_suffix('').as_posix()


def numbered(name):
    "Write the entry of a chapter in the list: its number and its title"
    cells = nbformat.read(ROOT/'nbs'/f'{name}.ipynb', 4).cells
    title = next(found[1] for cell in cells if (found := re.match(r'# (.+)', cell.source)))
    return f'{Path(name).name[:2]} {title} <{name}>'


def contents(names, others=()):
    "Write the list of chapters, a group for each folder, and of the other pages"
    groups = {}
    for name in names:
        groups.setdefault(re.sub(r'^\d_', '', name.split('/')[0]), []).append(numbered(name))
    if others:
        groups['about'] = list(others)
    lists = []
    for folder, chapters in groups.items():
        caption = folder.replace('_', ' ').capitalize()
        lists.append('\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *chapters, '```']))
    return '\n\n'.join(lists)


def site():
    "Bind the pages with sphinx (myst-nb, furo); everything but _docs is built aside"
    with TemporaryDirectory() as scratch:
        book, built = Path(scratch)/'book', Path(scratch)/'built'/'html'
        names = [page(path, book) for path in pages()]
        others = [about(name, book) for name in ABOUT]
        if (ROOT/'nbs/images').is_dir():
            copytree(ROOT/'nbs/images', book/'images')
        first = first_page()
        first.cells.append(nbformat.v4.new_markdown_cell(contents(names, others)))
        nbformat.write(first, book/'index.ipynb')
        command = [sys.executable, '-m', 'sphinx', '-q', '-b', 'html', '-d', f'{scratch}/trees']
        done = run([*command, '-c', str(ROOT/'.docs'), str(book), str(built)])
        if done.returncode: return done.returncode
        rmtree(ROOT/'_docs', ignore_errors=True)
        move(built, ROOT/'_docs')
    print(f'_docs/index.html and {len(names)} chapters')
    return 0


def main(verb):
    if verb == 'readme':
        README.write_text(readme(), encoding='utf-8')
        return 0
    if verb == 'check':
        fresh = README.read_text(encoding='utf-8') == readme()
        return 0 if fresh else 'README.md is not what nbs/index.ipynb says: make readme'
    return site()


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
