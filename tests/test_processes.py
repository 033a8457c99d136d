"""Several processes train as one: the same losses and weights, and only the main process writes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_training import CONFIG, go, ready, small_cache

from faceid_nb.core.errors import UserError
from faceid_nb.training import finetune

SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_processes import go_in_double

folder = Path(sys.argv[1])
result, again = go_in_double(folder), go_in_double(folder)
said = {'losses': result.losses, 'resumed_at': again.resumed_at, 'files': sorted(result.files)}
(folder.parent/f'rank_{os.environ["RANK"]}.json').write_text(json.dumps(said))
"""


def go_in_double(folder):
    "In single precision Adam turns a rounding of a gradient near 0 into a step of some 1e-5; here it shows only what the loop does"
    model, adapters = ready()
    model.hosts[0].module.double()
    return finetune.train(model, adapters, small_cache(), CONFIG, folder, progress=False)


def in_two_processes(folder):
    script = folder.parent/'train.py'
    script.write_text(SCRIPT)
    launch = [sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    done = subprocess.run([*launch, str(script), str(folder), str(Path(__file__).parent)], capture_output=True, text=True, timeout=300,
                          env=os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder.parent/f'rank_{rank}.json').read_text()) for rank in (0, 1)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason='this build of torch knows one process only')
def test_two_processes_train_as_one(tmp_path):
    alone = go_in_double(tmp_path/'one')
    main, other = in_two_processes(tmp_path/'two')
    assert main['losses'] == other['losses'] and len(main['losses']) == CONFIG.total
    assert torch.allclose(torch.tensor(main['losses']), torch.tensor(alone.losses), atol=1e-6)
    assert (main['files'], other['files']) == (['face', 'lora'], []), 'only the main process writes'
    for name, file in alone.files.items():
        theirs = load_file(tmp_path/'two'/file.relative_to(tmp_path/'one'))
        for key, weight in load_file(file).items():
            assert torch.allclose(theirs[key], weight, atol=1e-6), (name, key)
    resumed = [rank['resumed_at'] for rank in (main, other)]
    assert resumed == [CONFIG.total]*2, 'every process reads the same checkpoint'


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    class Three:
        num_processes = 3
    monkeypatch.setattr(finetune, 'open_accelerator', lambda config, folder: Three())
    with pytest.raises(UserError, match='batch_size=2 cannot be split equally over 3 processes'): go(tmp_path)
    assert not list(tmp_path.iterdir())
