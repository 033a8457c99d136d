"""What `make check` runs: the linter, the laws that need no model, and the tests and chapters that changed since the branch left main. `make test` runs everything."""
from pathlib import Path
import os
import re
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LAWS = ['test_lines', 'test_layers', 'test_hygiene', 'test_export', 'test_make', 'test_filter']


def git(*words):
    "The lines that git answers; None when it fails"
    asked = subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.splitlines() if asked.returncode == 0 else None


def changed():
    "The files that differ from where the branch left main, and the new ones; deleted ones left out"
    for main in ('main', 'origin/main'):
        base = git('merge-base', 'HEAD', main)
        if base: break
    else:
        sys.exit('make check compares with the branch main, and git finds none. Run: make test')
    files = git('diff', '--name-only', '--diff-filter=d', base[0]) + git('ls-files', '--others', '--exclude-standard')
    return sorted(set(files))


def commands(files, workers, signalling):
    "What to run for these files: a name and its words, in order"
    laws = [f'tests/{name}.py' for name in LAWS if (ROOT/'tests'/f'{name}.py').is_file()]
    tests = [file for file in files if re.fullmatch(r'tests/test_\w+\.py', file) and file not in laws]
    chapters = [Path(file) for file in files if re.fullmatch(r'nbs/\d_\w+/\d\d_\w+\.ipynb', file)]
    alone = [str(path) for path in chapters if re.match(signalling, path.stem)]
    others = '|'.join(path.stem for path in chapters if str(path) not in alone)
    yield 'linter', [BIN/'ruff', 'check', '--quiet', '--select', 'F821,F401', '--per-file-ignores', '__init__.py:F401', 'faceid_nb', 'benchmarks', '.ci', '.githooks']
    spread = ['-n', workers, '--dist', 'loadfile', '--no-loadscope-reorder']
    yield f'{len(laws)} files of laws and {len(tests)} changed files of tests', [BIN/'python', '-m', 'pytest', '-q', *spread, *laws, *tests]
    if others:
        yield f'changed chapters {others}', [BIN/'nbdev-test', '--n-workers', workers, '--file-re', rf'^({others})\.ipynb$']
    if alone:
        yield f'changed chapters {", ".join(alone)}', [BIN/'jupyter', 'execute', '--kernel_name=python3', '--timeout=300', *alone]


def main(workers, signalling):
    began = time.monotonic()
    for name, words in commands(changed(), workers, signalling):
        print(f'{name} ...', flush=True)
        code = subprocess.run(words, cwd=ROOT, env=os.environ | {'JUPYTER_PREFER_ENV_PATH': '1'}).returncode
        if code: sys.exit(f'make check: failed at: {name}')
    print(f'make check: {time.monotonic() - began:.0f} s. make test runs everything.')


if __name__ == '__main__': main(*sys.argv[1:])
