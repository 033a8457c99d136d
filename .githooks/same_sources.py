"""A git filter for notebooks: a chapter that was only run is not a change. Reads a notebook from stdin and its path from the command line. Where all cells say what they say in the index, it
answers with the notebook of the index, outputs included; otherwise with what it read. To store new outputs of unchanged cells: make outputs. `settle` is for JupyterLab: `git status` asks the filter only
after `git add` has seen the new size of a file."""
from pathlib import Path
import json
import subprocess
import sys


def sources(text):
    "What a notebook says: kind, id, tags and source of each cell"
    cells = json.loads(text)['cells']
    return [(cell['cell_type'], cell.get('id'), cell['metadata'].get('tags'), ''.join(cell['source'])) for cell in cells]


def committed(path):
    "The notebook as the index has it, or None"
    asked = subprocess.run(['git', 'cat-file', 'blob', f':{path}'], capture_output=True)
    return asked.stdout if asked.returncode == 0 else None


def stored(new, old):
    "What git stores for a notebook that was read as `new`, where the index has `old`"
    if old is None: return new
    try:
        same = sources(new) == sources(old)
    except (ValueError, KeyError, TypeError, AttributeError):
        return new
    return old if same else new


def settle(os_path, **_):
    "After a save in JupyterLab: let git see that a chapter which was only run has not changed; an edit stays unstaged"
    folder, name = Path(os_path).parent, Path(os_path).name
    changes = subprocess.run(['git', 'diff', '--no-ext-diff', '--', name], cwd=folder, capture_output=True)
    if changes.returncode == 0 and not changes.stdout:
        subprocess.run(['git', 'add', '--update', '--', name], cwd=folder, capture_output=True)


if __name__ == '__main__':
    sys.stdout.buffer.write(stored(sys.stdin.buffer.read(), committed(sys.argv[1])))
