"""The law of the house: an exported module imports from lower-numbered notebooks only, each heavy library has one owner, and importing does nothing."""
import ast
import re
import subprocess
import sys
import textwrap

OWNERS = {    # heavy library: the modules that may import it; the embedded world, which makes models, may import all of them
    'insightface': {'curation.packs'},
    'transformers': {'embeddings.appearance'},
    'peft': {'adapters.lora'},
    'diffusers': {'models.wan_folder', 'models.wan_vace'},
    'accelerate': {'training.loop', 'training.finetune'},
    'papermill': {'app.runs'},
    'ipywidgets': {'app.widgets'},
    'ray': {'curation.scale'},
    'onnxruntime': {'curation.packs', 'embeddings.appearance'},  # the number of its threads; the judge
    'onnx': {'embeddings.encoders'}}


def number(path):
    found = re.search(r'File to edit: \S*?/?(\d\d)_\w+\.ipynb', path.read_text(encoding='utf-8'))
    assert found, f'{path} has no numbered notebook behind it'
    return int(found[1])


def imports(name, path):
    "Every dotted name that a module imports, inside functions too, relative ones made absolute"
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split('.')[:-node.level] if node.level else []
            target = '.'.join(base + ([node.module] if node.module else []))
            yield target
            yield from (f'{target}.{a.name}' for a in node.names)


def ours(name, path, modules): return {target for target in imports(name, path) if target in modules}


def area(name): return name.split('.')[1]


def short(name): return name.removeprefix('faceid_nb.')


def test_every_module_imports_lower_numbers_only(modules):
    numbers = {name: number(path) for name, path in modules.items()}
    up = [f'{a} ({numbers[a]}) imports {b} ({numbers[b]})' for a, path in modules.items() for b in ours(a, path, modules) if numbers[b] >= numbers[a]]
    assert not up, up


def test_a_number_has_its_folder_and_one_notebook(root):
    first = {'core': '0', 'curation': '1', 'embeddings': '2', 'adapters': '3', 'training': '4', 'inference': '5', 'evaluation': '6', 'world': '7', 'app': '8', 'models': '2', 'interfaces': '9'}
    books = [p for p in (root/'nbs').glob('*_*/*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    wrong = [p.name for p in books if not p.name.startswith(first[p.parent.name.split('_')[1]])]
    assert not wrong, wrong
    numbers = [p.name[:2] for p in books]
    assert len(numbers) == len(set(numbers)), sorted(numbers)


def test_training_and_inference_do_not_meet(modules):
    meet = [f'{a} imports {b}' for a, path in modules.items() for b in ours(a, path, modules) if {area(a), area(b)} == {'training', 'inference'}]
    assert not meet, meet


def test_only_recipes_name_the_embedded_world(modules):
    named = [f'{a} imports {b}' for a, path in modules.items() for b in ours(a, path, modules) if area(b) == 'world' and area(a) != 'world' and short(a) not in ('app.recipes', 'app.inputs')]
    assert not named, named


def test_heavy_libraries_have_one_owner(modules):
    wrong = [f'{short(name)} imports {lib}' for name, path in modules.items() if area(name) != 'world'
             for lib in {t.split('.')[0] for t in imports(name, path)} & set(OWNERS) if short(name) not in OWNERS[lib]]
    assert not wrong, wrong


def test_modules_are_of_a_size(modules):
    lines = {n: sum(1 for line in p.read_text(encoding='utf-8').splitlines() if line.strip() and not line.lstrip().startswith('#')) for n, p in modules.items()}
    big = {n: k for n, k in lines.items() if k > 400}
    assert not big, f'A split follows the idea; but no idea of ours needs more than 400 calm lines: {big}'


def test_functions_are_of_a_size(modules):
    def size(f): return f.end_lineno - f.lineno + 1 - len(f.args.args)
    big = [f'{name}.{f.name}: {size(f)}' for name, path in modules.items() for f in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
           if isinstance(f, ast.FunctionDef) and size(f) > 60]
    assert not big, big


def test_nothing_happens_on_import(modules, tmp_path):
    "All modules imported in an empty folder: no file or folder made, no program started, no connection, no GPU touched by us"
    third = sorted({t.split('.')[0] for n, p in modules.items() for t in imports(n, p)} - {'faceid_nb', '__future__'})
    script = textwrap.dedent(f'''
        import importlib, importlib.util, sys
        for name in {third!r}:
            if importlib.util.find_spec(name): importlib.import_module(name)  # an extra may be missing
        import diffusers.loaders.lora_pipeline, matplotlib.pyplot, scipy.ndimage, imageio.plugins.ffmpeg
        done = []
        def watch(event, args):
            if event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+'): done.append((event, str(args[0])))
            if event in ('os.mkdir', 'os.rename', 'os.remove', 'socket.connect', 'subprocess.Popen', 'os.system'): done.append((event, str(args[0])))
        sys.addaudithook(watch)
        for name in {sorted(modules)!r}: importlib.import_module(name)
        import torch
        ours = [d for d in done if '.cache' not in d[1] and 'mpl' not in d[1]]
        assert not ours, ours
        assert not torch.cuda.is_initialized()
    ''')
    run = subprocess.run([sys.executable, '-B', '-W', 'ignore', '-c', script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert list(tmp_path.iterdir()) == []


def test_module_level_code_only_defines(modules):
    "At the top of a module: imports, definitions and constants; no bare call, no loop, no branch but that for a type checker"
    fine = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    def for_types(node):
        return isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING' and not node.orelse and all(isinstance(n, ast.ImportFrom) for n in node.body)
    wrong = [f'{name}:{node.lineno}' for name, path in modules.items() for node in ast.parse(path.read_text(encoding='utf-8')).body
             if not isinstance(node, fine) and not for_types(node) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    assert not wrong, wrong
