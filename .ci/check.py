"""What `make check` runs after the linter: the laws that need no model, and the tests and chapters that changed since the branch left main."""
from pathlib import Path
import os
import re
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LAWS = ['test_lines', 'test_layers', 'test_hygiene', 'test_export', 'test_settings', 'test_make', 'test_filter']


def git(*words):
    "The lines that git answers; none when it fails"
    asked = subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.splitlines() if asked.returncode == 0 else []


def changed():
    "The files that differ from where the branch left main, and the new ones; deleted ones left out"
    base = git('merge-base', 'HEAD', 'main') or git('merge-base', 'HEAD', 'origin/main')
    if not base: sys.exit('make check compares with the branch main, and git finds none. Run: make test')
    differing = git('diff', '--name-only', '--diff-filter=d', base[0])
    return sorted({*differing, *git('ls-files', '--others', '--exclude-standard')})


def steps(files, workers, signalling):
    "What to run for these files, in order: a name, and commands that run at the same time"
    laws = [f'tests/{name}.py' for name in LAWS if (ROOT/'tests'/f'{name}.py').is_file()]
    tests = [file for file in files if re.fullmatch(r'tests/test_\w+\.py', file) and file not in laws]
    pytest = [BIN/'python', '-m', 'pytest', '-q', '-n', workers, '--dist', 'worksteal', *laws, *tests]
    yield f'laws, and {", ".join(tests) or "no test"} changed', [pytest]

    chapters = [Path(file) for file in files if re.fullmatch(r'nbs/\d_\w+/\d\d_\w+\.ipynb', file)]
    alone = [path for path in chapters if re.match(signalling, path.stem)]
    together = '|'.join(path.stem for path in chapters if path not in alone)
    commands = []
    if together:
        commands.append([BIN/'nbdev-test', '--n-workers', workers, '--file-re', rf'^({together})\.ipynb$'])
    if alone:
        commands.append([BIN/'jupyter', 'execute', '--kernel_name=python3', '--timeout=300', *alone])
    yield f'chapters: {", ".join(path.stem for path in chapters) or "none"} changed', commands


def main(workers, signalling):
    began = time.monotonic()
    for name, commands in steps(changed(), workers, signalling):
        print(f'{name} ...', flush=True)
        at_work = [subprocess.Popen(words, cwd=ROOT, env=os.environ | {'JUPYTER_PREFER_ENV_PATH': '1'}) for words in commands]
        codes = [one.wait() for one in at_work]
        if any(codes): sys.exit(f'make check: failed at {name}')
    print(f'make check: {time.monotonic() - began:.0f} s. make test runs everything.')


if __name__ == '__main__': main(*sys.argv[1:])
