"""A whole run through papermill."""
import nbformat

from conftest import QUICK
from faceid_nb.app.cli import main
from faceid_nb.core.files import read_json


def test_papermill_leaves_notebooks_that_read_well(tmp_path, capsys):
    folder = tmp_path/'run'
    assert main(['run', 'tiny', 'seed=3', '--folder', str(folder), *QUICK]) == 0
    books = sorted((folder/'notebooks').glob('*.ipynb'))
    assert [p.stem for p in books] == ['10_curate', '20_embed', '40_train', '50_generate', '60_evaluate']
    for path in books:
        book = nbformat.read(path, 4)
        assert book.cells[0].cell_type == 'markdown' and book.cells[0].source.startswith('# ')
        outputs = [o for cell in book.cells if cell.cell_type == 'code' for o in cell.outputs]
        assert not [o for o in outputs if o.output_type == 'error']
        assert any('image/png' in o.get('data', {}) for o in outputs), f'{path.stem} shows no picture'
        assert "'seed': '3'" in ''.join(cell.source for cell in book.cells) or '"seed": "3"' in ''.join(cell.source for cell in book.cells)
    assert read_json(folder/'summary.json')['seed'] == 3
    assert 'report.html' in capsys.readouterr().out
