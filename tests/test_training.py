"""The laws of the training: a pause changes nothing, a broken step never happens, and no file is ever half a file."""
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
import ast
import os
import shutil
import signal
import subprocess
import sys
import time

from diffusers import WanVACETransformer3DModel
from torch.nn.functional import normalize
import pytest
import torch

from faceid_nb.adapters.branch import attach_face_branch, load_branch
from faceid_nb.adapters.lora import LoraSettings, add_lora, load_lora, lora_parameters
from faceid_nb.adapters.mapper import MapperConfig
from faceid_nb.core import files
from faceid_nb.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from faceid_nb.training.data import PhotoCache, Sample, draw_batch, load_cache, open_cache, save_cache, step_generator
from faceid_nb.training.loop import TrainConfig, train

CONFIG = TrainConfig(steps_a=6, steps_b=8, batch_size=2, lr_mapper=2e-3, lr_lora=4e-3, checkpoint_every=3)


def small_cache(clips=0):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=g)
    mask = torch.zeros(1, 1, 6, 4)
    mask[..., 1:3, 1:3] = 1
    photos = [Sample(draw(16, 1, 6, 4), torch.zeros(96, 1, 6, 4), mask.clone(), draw(4, 32), f'crops/{i}.png') for i in range(5)]
    dances = [Sample(draw(16, 2, 6, 4), draw(96, 2, 6, 4), mask.repeat(1, 2, 1, 1), draw(6, 32), f'clips/{i}.mp4') for i in range(clips)]
    return PhotoCache((*photos, *dances), normalize(draw(5, 512) + 2, dim=-1), draw(2, 32), 'test')


def ready(branch=True, lora=True, dtype=torch.float32):
    torch.manual_seed(0)
    model = WanVACETransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16, text_dim=32, freq_dim=64, ffn_dim=64,
                                      num_layers=2, rope_max_seq_len=64, vace_layers=[0], vace_in_channels=96).eval().to(dtype)
    face = attach_face_branch(model, MapperConfig(width=32, tokens=2, hidden=32, rank=4), torch.Generator().manual_seed(0)) if branch else None
    if lora: add_lora(model, LoraSettings(rank=2, alpha=2.), torch.Generator().manual_seed(0))
    return model, face


def go(folder, config=CONFIG, cache=None, every=(), **parts):
    model, branch = ready(**parts)
    return train(model, branch, cache or small_cache(), config, folder, every, progress=False), model, branch


def contents(folder):
    "Everything a training leaves, with the checkpoint's tensors by name"
    tensors, about = load_checkpoint(folder/'checkpoints')
    return (folder/'branch.safetensors').read_bytes(), (folder/'lora/pytorch_lora_weights.safetensors').read_bytes(), tensors, about


def same(one, other):
    return one[:2] == other[:2] and one[3] == other[3] and one[2].keys() == other[2].keys() and all(torch.equal(t, other[2][n]) for n, t in one[2].items() if n != 'rng.cpu')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    result, _, _ = go(folder)
    return folder, result


class Died(RuntimeError): pass


@pytest.mark.parametrize('step', [1, 3, 5, 6, 7, 12, 13])  # before a checkpoint, at one, at the border of the stages and around it, near the end
def test_a_pause_changes_nothing(step, whole, tmp_path):
    def die(state):
        if state.step == step: raise Died
    with pytest.raises(Died): go(tmp_path, every=[(1, die)])
    again, _, _ = go(tmp_path)
    assert again.resumed_at == (step - 1)//3*3 and again.losses == whole[1].losses
    assert same(contents(tmp_path), contents(whole[0]))


def test_the_global_generator_is_restored(tmp_path):
    drawn = {}
    def draw(state): drawn.setdefault(state.step, []).append(torch.rand(1).item())
    def die(state):
        draw(state)
        if state.step == 8: raise Died
    torch.manual_seed(5)
    with pytest.raises(Died): go(tmp_path, every=[(1, die)])
    torch.manual_seed(99)
    go(tmp_path, every=[(1, draw)])
    assert drawn[7][0] == drawn[7][1] and drawn[8][0] == drawn[8][1]


def test_kill_9(whole, tmp_path):
    script = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_training import go; from pathlib import Path; print("ready", flush=True)\n' \
             f'import time; go(Path({str(tmp_path)!r}), every=[(1, lambda state: (print(state.step, flush=True), time.sleep(.1)))])'
    for last in (4, 10):  # once in each stage
        process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', script], stdout=subprocess.PIPE, text=True, env=os.environ | {'OMP_NUM_THREADS': str(torch.get_num_threads())})
        for line in process.stdout:
            if line.strip() == str(last): break
        time.sleep(.13)  # somewhere in or near the next save
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    again, _, _ = go(tmp_path)
    assert again.resumed_at >= 9 and again.losses == whole[1].losses
    assert same(contents(tmp_path), contents(whole[0]))


def test_a_finished_run_is_left_alone(whole):
    before = contents(whole[0])
    result, model, _ = go(whole[0])
    assert result.resumed_at == 14 and same(contents(whole[0]), before)
    fresh, _ = ready()
    for name, t in load_checkpoint(whole[0]/'checkpoints')[0].items():  # the model holds the averaged weights
        if name.startswith('ema.'): assert torch.equal(dict(model.named_parameters())[name[4:]], t)


def test_stage_b_leaves_the_branch(tmp_path):
    seen = {}
    def note(state): seen[state.step] = {n: p.detach().clone() for n, p in state.params.items()}
    result, model, branch = go(tmp_path, every=[(1, note)])
    mapper = list(branch.named_parameters())
    for n in mapper:
        assert torch.equal(seen[7][n], seen[14][n]) and torch.equal(seen[14][n], branch.state_dict()[n])
    assert any(not torch.equal(seen[5][n], seen[6][n]) for n in mapper)
    assert all(not torch.equal(seen[7][n], seen[14][n]) for n in lora_parameters(model) if '.lora_B.' in n)


def test_each_part_alone(tmp_path):
    only, model, branch = go(tmp_path/'branch', replace(CONFIG, steps_b=0, train_lora=False), lora=False)
    assert only.lora_file is None and not load_branch(only.branch_file, ready(False, False)[0]).parameters()[0].isnan().any()
    only, model, _ = go(tmp_path/'lora', replace(CONFIG, steps_a=0, train_mapper=False), branch=False)
    assert only.branch_file is None
    load_lora(ready(False, False)[0], only.lora_file)
    kept, model, branch = go(tmp_path/'given', replace(CONFIG, steps_a=0, train_mapper=False))  # a branch that is given and stays
    assert all(torch.equal(a, b) for a, b in zip(branch.parameters(), ready()[1].parameters()))


def test_half_precision_base(tmp_path):
    result, model, branch = go(tmp_path, dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in [*branch.parameters(), *lora_parameters(model).values()])
    assert all(torch.tensor(result.losses).isfinite())


def test_gradient_checkpointing_is_the_same_training(whole, tmp_path):
    result, _, _ = go(tmp_path, replace(CONFIG, gradient_checkpointing=True))
    assert torch.allclose(torch.tensor(result.losses), torch.tensor(whole[1].losses), rtol=1e-4)


def test_clips_and_photos_together(tmp_path):
    cache = small_cache(clips=3)
    kinds = {draw_batch(cache, 2, step_generator(0, i)).latents.shape[2] for i in range(20)}
    assert kinds == {1, 2}
    result, _, _ = go(tmp_path, cache=cache)
    assert len(result.losses) == 14


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_a_broken_number_stops_before_the_step(value, tmp_path):
    cache = small_cache()
    broken = replace(cache, samples=(cache.samples[0], replace(cache.samples[1], latents=cache.samples[1].latents*0 + value), *cache.samples[2:]))
    seen = {}
    def note(state): seen[state.step] = {n: p.detach().clone() for n, p in state.params.items()}
    model, branch = ready()
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r'loss is (nan|inf) at step \d+, with .*crops/1.png'):
        train(model, branch, broken, CONFIG, tmp_path, [(1, note)], progress=False)
    good = seen[max(seen)] if seen else start
    assert all(torch.equal(p, good[n]) for n, p in model.named_parameters() if n in good)


def test_a_broken_gradient_stops_before_the_step(tmp_path):
    model, branch = ready()
    branch.parameters()[0].register_hook(lambda g: g*float('nan'))
    start = [p.detach().clone() for p in branch.parameters()]
    with pytest.raises(ValueError, match=r'gradient is nan at step 0, with crops/'): train(model, branch, small_cache(), CONFIG, tmp_path, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(start, branch.parameters()))


def test_another_run_in_the_same_folder(whole):
    before = sorted(p.name for p in whole[0].rglob('*'))
    with pytest.raises(ValueError, match='batch_size was 2 and is 3'): go(whole[0], replace(CONFIG, batch_size=3))
    with pytest.raises(ValueError, match='photos was test and is others'): go(whole[0], cache=replace(small_cache(), key='others'))
    assert sorted(p.name for p in whole[0].rglob('*')) == before
    go(whole[0], replace(CONFIG, checkpoint_every=5, preview_every=1))  # how often we look is no part of what is learned


def test_no_room_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(ValueError, match='GB are needed'): go(tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_the_disk_fills_while_saving(tmp_path, monkeypatch):
    def die(state):
        if state.step == 5: raise Died
    with pytest.raises(Died): go(tmp_path, every=[(1, die)])
    whole_file = list_checkpoints(tmp_path/'checkpoints')[0]
    left = sorted(p.name for p in tmp_path.rglob('*'))
    def full(handle): raise OSError(ENOSPC, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(files.os, 'fsync', full)
        with pytest.raises(ValueError, match='disk is full.*step_000006'): go(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob('*')) == left                                 # nothing half-written
    assert list_checkpoints(tmp_path/'checkpoints')[0] == whole_file
    again, _, _ = go(tmp_path)
    assert again.resumed_at == 3 and len(again.losses) == 14


def test_a_real_full_disk(tmp_path):
    "A file size limit stands for the full disk: the write itself fails in the middle"
    pytest.importorskip('resource', reason='file size limits exist on Unix only')
    tensors = {'step': torch.tensor(1), 'x': torch.zeros(1000)}
    save_checkpoint(tmp_path, tensors, {})
    script = f'import resource, signal, torch; from faceid_nb.training.checkpoint import save_checkpoint\n' \
             f'signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n' \
             f'save_checkpoint({str(tmp_path)!r}, {{"step": torch.tensor(2), "x": torch.zeros(100_000)}}, {{}})'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', script], capture_output=True, text=True, timeout=120)  # a process of its own: torch's threads do not survive a fork
    assert done.returncode and 'File too large' in done.stderr, done.stderr
    assert [c['step'] for c in list_checkpoints(tmp_path)] == [1] and sorted(p.name for p in tmp_path.iterdir()) == ['checkpoints.json', 'step_000001.safetensors']
    assert torch.equal(load_checkpoint(tmp_path)[0]['x'], tensors['x'])


def test_the_cache_is_made_once(tmp_path):
    made = []
    def make():
        made.append(1)
        return small_cache(clips=1)
    one, two = (open_cache(tmp_path/'cache.safetensors', 'test', make) for _ in range(2))
    assert len(made) == 1 and [s.name for s in one.samples] == [s.name for s in two.samples]
    batches = [draw_batch(c, 3, step_generator(1, 2)) for c in (one, two)]
    assert all(torch.equal(vars(batches[0])[k], vars(batches[1])[k]) for k in ('latents', 'control', 'mask', 'words', 'id_embed'))
    assert len({save_cache(tmp_path/f'{i}.safetensors', one).read_bytes() for i in range(4)}) == 1
    with pytest.raises(ValueError, match='no training cache'): load_cache(files.save_tensors(tmp_path/'other.safetensors', {'x': torch.zeros(1)}, {}))


def test_nothing_here_can_run_code(root):
    for file in [*(root/'faceid_nb/training').glob('*.py'), *(root/'faceid_nb/adapters').glob('*.py')]:
        tree = ast.parse(file.read_text())
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = {alias.name for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
        assert not called & {'torch.save', 'torch.load', 'pickle.load', 'pickle.dump', 'eval', 'exec'} and not names & {'pickle', 'dill', 'joblib'}, file.name
