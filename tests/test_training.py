"""The laws of the training: a pause changes nothing, a broken step never happens, and no file is ever half a file."""
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
import ast
import json
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
from faceid_nb.adapters.lora import LoraSettings, attach_lora, open_lora
from faceid_nb.adapters.mapper import MapperConfig
from faceid_nb.core import files
from faceid_nb.core.errors import UserError
from faceid_nb.core.stop import Stop
from faceid_nb.training import finetune, loop
from faceid_nb.training.checkpoint import LIST, TrainingState, list_checkpoints, load_checkpoint, save_checkpoint
from faceid_nb.training.data import PhotoCache, Sample, draw_batch, load_cache, open_cache, save_cache, step_generator
from faceid_nb.training.finetune import train
from faceid_nb.training.stages import FlowTrainConfig, Stage
from toys import family_of, weights_of

STAGES = (Stage(6, {'face': 2e-3, 'lora': 4e-3}), Stage(8, {'lora': 4e-3}))
FACE_ALONE, LORA_ALONE = (Stage(6, {'face': 2e-3}),), (Stage(8, {'lora': 4e-3}),)
CONFIG = FlowTrainConfig(stages=STAGES, batch_size=2, checkpoint_every=3)


def small_cache(clips=0):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=g)
    mask = torch.zeros(1, 1, 6, 4)
    mask[..., 1:3, 1:3] = 1
    def sample(frames, control, mask, rows, name):
        latents = draw(16, frames, 6, 4)
        return Sample(latents, mask, {'control': control(96, frames, 6, 4), 'prompt_embeds': draw(rows, 32)}, name)
    photos = [sample(1, torch.zeros, mask.clone(), 4, f'crops/{i}.png') for i in range(5)]
    dances = [sample(2, draw, mask.repeat(1, 2, 1, 1), 6, f'clips/{i}.mp4') for i in range(clips)]
    return PhotoCache((*photos, *dances), normalize(draw(5, 512) + 2, dim=-1), draw(2, 32), 512, 'test')


def ready(face=True, lora=True, dtype=torch.float32):
    torch.manual_seed(0)
    transformer = WanVACETransformer3DModel(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=16, out_channels=16, text_dim=32, freq_dim=64, ffn_dim=64,
                                            num_layers=2, rope_max_seq_len=64, vace_layers=[0], vace_in_channels=96).eval().to(dtype)
    model, adapters = family_of(transformer), {}
    host = model.hosts[0]
    if face: adapters['face'] = attach_face_branch(host, MapperConfig(width=32, tokens=2, hidden=32, rank=4), torch.Generator().manual_seed(0))
    if lora: adapters['lora'] = attach_lora(host, LoraSettings(rank=2, alpha=2.), torch.Generator().manual_seed(0))
    return model, adapters


def go(folder, config=CONFIG, cache=None, every=(), **parts):
    model, adapters = ready(**parts)
    return train(model, adapters, cache or small_cache(), config, folder, every, progress=False), model, adapters


def contents(folder):
    "Everything a training leaves, with the checkpoint's tensors by name"
    tensors, about, _ = load_checkpoint(folder/'checkpoints')
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


SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name)]


def stop_in(function, call, number):
    "Wrap `function` so that the signal comes at that call of it"
    made = []
    def wrapped(*args, **names):
        made.append(1)
        if len(made) == call: os.kill(os.getpid(), number)
        return function(*args, **names)
    return wrapped


@pytest.mark.skipif(os.name != 'posix', reason='signals to oneself')
@pytest.mark.parametrize('number', SIGNALS)
@pytest.mark.parametrize('place, call', [('draw_batch', 6), ('predict', 6), ('_check_finite', 5), ('learning_rate', 5), ('_call', 5)])  # the one in step 5; a checkpoint draws too
def test_a_stop_loses_no_finished_step(number, place, call, whole, tmp_path, monkeypatch):
    "In each part of a step: before its update the step is left out, after it the step is kept"
    with monkeypatch.context() as m:
        where = finetune if place in ('draw_batch', 'predict') else loop
        m.setattr(where, place, stop_in(getattr(where, place), call, number))
        with pytest.raises(KeyboardInterrupt): go(tmp_path)
    again, _, _ = go(tmp_path)
    assert again.resumed_at == (5 if place == '_call' else 4) and again.losses == whole[1].losses
    assert same(contents(tmp_path), contents(whole[0]))
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


@pytest.mark.skipif(os.name != 'posix', reason='signals to oneself')
@pytest.mark.parametrize('number', SIGNALS)
def test_an_update_is_never_cut_in_two(number, whole, tmp_path, monkeypatch):
    "The signal comes between the weights and their averages; the step is finished and kept"
    with monkeypatch.context() as m:
        m.setattr(TrainingState, 'update_ema', stop_in(TrainingState.update_ema, 5, number))
        with pytest.raises(Stop): go(tmp_path)
    again, _, _ = go(tmp_path)
    assert again.resumed_at == 5 and again.losses == whole[1].losses and same(contents(tmp_path), contents(whole[0]))


@pytest.mark.skipif(os.name != 'posix', reason='signals to oneself')
def test_stopped_over_and_over_and_twice_at_once(whole, tmp_path):
    for step in range(1, 14):
        def stop(state):
            if state.step == step: [os.kill(os.getpid(), signal.SIGINT) for _ in range(3)]
        with pytest.raises(KeyboardInterrupt): go(tmp_path, every=[(1, stop)])
    again, _, _ = go(tmp_path)
    assert again.resumed_at == 13 and again.losses == whole[1].losses and same(contents(tmp_path), contents(whole[0]))


def test_a_stop_in_a_callback_runs_it_again(tmp_path):
    "What happens now and then happens once: not twice after a stop elsewhere, not never after a stop in it"
    seen, stops = [], [4, 8]
    def note(state):
        seen.append(state.step)
        if stops and state.step == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt): go(tmp_path, every=[(2, note)])
    go(tmp_path, every=[(2, note)])
    assert seen == [2, 4, 4, 6, 8, 8, 10, 12, 14]


@pytest.mark.skipif(os.name != 'posix', reason='signals')
@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_that_the_parent_ignores_stays_ignored(number, tmp_path):
    before = signal.signal(number, signal.SIG_IGN)
    try: result, _, _ = go(tmp_path, every=[(3, lambda state: os.kill(os.getpid(), number))])
    finally: signal.signal(number, before)
    assert len(result.losses) == 14


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
        if name.startswith('ema.'): assert torch.equal(dict(model.hosts[0].module.named_parameters())[name[4:]], t)


def test_an_adapter_that_is_in_no_later_stage_stays(tmp_path):
    seen = {}
    def note(state): seen[state.step] = {n: p.detach().clone() for n, p in state.params.items()}
    result, model, adapters = go(tmp_path, every=[(1, note)])
    face = adapters['face'].state_dict()
    for n in face:
        assert torch.equal(seen[7][n], seen[14][n]) and torch.equal(seen[14][n], face[n])
    assert any(not torch.equal(seen[5][n], seen[6][n]) for n in face)
    assert all(not torch.equal(seen[7][n], seen[14][n]) for n in adapters['lora'].named_parameters() if '.lora_B.' in n)


def test_each_part_alone(tmp_path):
    bare = ready(False, False)[0].hosts[0]
    only, model, adapters = go(tmp_path/'face', replace(CONFIG, stages=FACE_ALONE), lora=False)
    assert list(only.files) == ['face'] and not load_branch(only.files['face'], bare).parameters()[0].isnan().any()
    only, model, _ = go(tmp_path/'lora', replace(CONFIG, stages=LORA_ALONE), face=False)
    assert list(only.files) == ['lora']
    open_lora(ready(False, False)[0].hosts[0], only.files['lora'])
    kept, model, adapters = go(tmp_path/'given', replace(CONFIG, stages=LORA_ALONE))  # a branch that is given and stays
    assert all(torch.equal(a, b) for a, b in zip(adapters['face'].parameters(), ready()[1]['face'].parameters()))


def test_a_later_stage_may_bring_an_adapter_in_and_another_rate(tmp_path):
    "The face waits for its stage, a rate may change between stages, and a pause between them changes nothing"
    stages = (Stage(3, {'lora': 4e-3}), Stage(3, {'lora': 1e-4, 'face': 2e-3}), Stage(2, {'face': 1e-3}))
    seen = {}
    def note(state): seen[state.step] = {n: p.detach().clone() for n, p in state.params.items()}
    whole, _, adapters = go(tmp_path/'whole', replace(CONFIG, stages=stages), every=[(1, note)])
    face, lora = (list(adapters[name].named_parameters()) for name in ('face', 'lora'))
    assert all(torch.equal(seen[1][n], seen[3][n]) for n in face) and any(not torch.equal(seen[3][n], seen[6][n]) for n in face)
    assert all(torch.equal(seen[7][n], seen[8][n]) for n in lora) and any(not torch.equal(seen[3][n], seen[6][n]) for n in lora)
    for step in (3, 6):
        def die(state):
            if state.step == step: raise Died
        with pytest.raises(Died): go(tmp_path/'broken', replace(CONFIG, stages=stages, checkpoint_every=1), every=[(1, die)])
    again, _, _ = go(tmp_path/'broken', replace(CONFIG, stages=stages, checkpoint_every=1))
    assert again.losses == whole.losses and all(again.files[name].read_bytes() == file.read_bytes() for name, file in whole.files.items())


def test_a_stage_that_cannot_train_is_refused(tmp_path):
    for stages, said in (((), 'nothing to train'), ((Stage(1, {}),), 'Stage 1 trains nothing'), ((Stage(1, {'voice': 1e-3}),), 'trains voice')):
        with pytest.raises(UserError, match=said): go(tmp_path, replace(CONFIG, stages=stages))
    assert not any(tmp_path.iterdir())


def test_half_precision_base(tmp_path):
    result, model, adapters = go(tmp_path, dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in weights_of(adapters))
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
@pytest.mark.parametrize('part', ['latents', 'control', 'mask', 'prompt_embeds'])
def test_a_broken_number_in_the_cache_is_named_before_the_first_step(value, part, tmp_path):
    cache = small_cache()
    first = cache.samples[1]
    if part in first.conditions: broken = replace(first, conditions={**first.conditions, part: first.conditions[part]*0 + value})
    else: broken = replace(first, **{part: getattr(first, part)*0 + value})
    model, adapters = ready()
    start = [p.detach().clone() for p in model.hosts[0].module.parameters()]
    with pytest.raises(UserError, match=f'{part} of crops/1.png. No step was made'):
        train(model, adapters, replace(cache, samples=(cache.samples[0], broken, *cache.samples[2:])), CONFIG, tmp_path, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(start, model.hosts[0].module.parameters())) and not list(tmp_path.iterdir())


def test_a_broken_identity_is_not_blamed_on_photos(tmp_path):
    cache = small_cache()
    cache.id_embeds[3, 5] = float('nan')
    model, adapters = ready()
    with pytest.raises(UserError, match=r'identity embedding 3 \(of 5\)') as said: train(model, adapters, cache, CONFIG, tmp_path, progress=False)
    assert 'crops' not in str(said.value) and '-1' not in str(said.value)


def test_a_broken_gradient_stops_before_the_step(tmp_path):
    model, adapters = ready()
    weights_of(adapters)[0].register_hook(lambda g: g*float('nan'))
    start = [p.detach().clone() for p in weights_of(adapters)]
    with pytest.raises(ValueError, match=r'gradient is nan in step 1, with crops/.*No step was made'): train(model, adapters, small_cache(), CONFIG, tmp_path, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(start, weights_of(adapters)))


def test_another_run_in_the_same_folder(whole):
    before = sorted(p.name for p in whole[0].rglob('*'))
    with pytest.raises(ValueError, match='batch_size was 2 and is 3'): go(whole[0], replace(CONFIG, batch_size=3))
    with pytest.raises(ValueError, match='photos was test and is others'): go(whole[0], cache=replace(small_cache(), key='others'))
    assert sorted(p.name for p in whole[0].rglob('*')) == before
    go(whole[0], replace(CONFIG, checkpoint_every=5, preview_every=1))  # how often we look is no part of what is learned


def test_no_room_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(ValueError, match='are missing'): go(tmp_path/'run')
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
        with pytest.raises(ValueError, match='disk is full'): go(tmp_path)
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


@pytest.fixture(scope='module')
def half(tmp_path_factory):
    "A training that was ended by a crash, and its newest checkpoint"
    folder = tmp_path_factory.mktemp('half')
    def die(state):
        if state.step == 8: raise Died
    with pytest.raises(Died): go(folder, every=[(1, die)])
    return folder, load_checkpoint(folder/'checkpoints')


def weight(tensors): return next(n for n in sorted(tensors) if n.startswith('param.') and tensors[n].ndim == 2)


HARM = {
    'one number for all': lambda t, n: t | {n: torch.tensor(1.)},
    'one row for all': lambda t, n: t | {n: t[n][:1].clone()},
    'turned': lambda t, n: t | {n: t[n].T.contiguous()},
    'another type': lambda t, n: t | {n: t[n].double()},
    'not a number': lambda t, n: t | {n: t[n]*float('nan')},
    'missing': lambda t, n: {k: v for k, v in t.items() if k != n},
    'average missing': lambda t, n: {k: v for k, v in t.items() if k != n.replace('param.', 'ema.')},
    'memory of another shape': lambda t, n: t | {n.replace('param.', 'adam.') + '.exp_avg': torch.zeros(1)},
    'half a memory': lambda t, n: {k: v for k, v in t.items() if k != n.replace('param.', 'adam.') + '.exp_avg_sq'},
    'infinite memory': lambda t, n: t | {n.replace('param.', 'adam.') + '.exp_avg': t[n]/0},
    'a weight too many': lambda t, n: t | {'param.other': torch.zeros(1)},
    'fewer losses': lambda t, n: t | {'losses': t['losses'][:-1]},
    'many steps': lambda t, n: t | {'step': torch.zeros(3, dtype=torch.int64)},
    'steps below zero': lambda t, n: t | {'step': torch.tensor(-1)},
    'seen too much': lambda t, n: t | {'seen': torch.tensor(99)},
    'no state of chance': lambda t, n: t | {'rng.cpu': t['rng.cpu']*0 + 255},
    'short state of chance': lambda t, n: t | {'rng.cpu': t['rng.cpu'][:9].clone()},
    'chance of a strange device': lambda t, n: t | {'rng.cuda.x': t['rng.cpu'].clone()}}


@pytest.mark.parametrize('harm', HARM)
def test_a_checkpoint_that_does_not_fit_is_refused_whole(harm, half, tmp_path):
    "One line that names the file and the tensor; the training, the generators and the folder are as before"
    tensors, about, _ = half[1]
    forge(tmp_path/'checkpoints', HARM[harm](tensors, weight(tensors)), about)
    model, adapters = ready()
    weights, chance, left = [p.detach().clone() for p in model.hosts[0].module.parameters()], torch.get_rng_state(), hashes(tmp_path)
    with pytest.raises(UserError, match=r'step_\d+.safetensors: (tensor|seen)') as said: train(model, adapters, small_cache(), CONFIG, tmp_path, progress=False)
    assert '\n' not in str(said.value)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.hosts[0].module.parameters())) and torch.equal(chance, torch.get_rng_state()) and hashes(tmp_path) == left


def hashes(folder): return {p.relative_to(folder).as_posix(): files.file_sha256(p) for p in folder.rglob('*') if p.is_file()}


def forge(folder, tensors, about):
    path = files.save_tensors(folder/'step_000006.safetensors', tensors, {'about': json.dumps(about)})
    files.write_json(folder/LIST, {'version': 1, 'checkpoints': [{'file': path.name, 'step': 6, 'sha256': files.file_sha256(path)}], 'passing': []})


LISTS = {
    'a list': [], 'a word': 'x', 'no list': {'version': 1, 'checkpoints': {}}, 'a number': {'checkpoints': 3}, 'a later version': {'version': 2, 'checkpoints': []},
    'no hash': {'checkpoints': [{'file': 'step_000006.safetensors', 'step': 6}]}, 'odd hash': {'checkpoints': [{'file': 'a', 'step': 6, 'sha256': 'x'}]},
    'a name that leads out': {'checkpoints': [{'file': '../../victim', 'step': 6, 'sha256': '0'*64}]},
    'an absolute name': {'checkpoints': [{'file': '/etc/hosts', 'step': 6, 'sha256': '0'*64}]},
    'a name of nothing': {'checkpoints': [{'file': '', 'step': 6, 'sha256': '0'*64}]},
    'to be removed outside': {'checkpoints': [], 'passing': ['../../victim']}, 'a step of words': {'checkpoints': [{'file': 'a', 'step': 'six', 'sha256': '0'*64}]}}


@pytest.mark.parametrize('odd', LISTS)
def test_a_list_of_odd_shape_is_refused(odd, tmp_path):
    (tmp_path/'victim').write_text('mine')
    files.write_json(tmp_path/'run'/'checkpoints'/LIST, LISTS[odd])
    left = hashes(tmp_path)
    with pytest.raises(UserError, match=LIST) as said: go(tmp_path/'run')
    assert '\n' not in str(said.value) and hashes(tmp_path) == left


@pytest.mark.skipif(os.name != 'posix', reason='links')
def test_a_checkpoint_behind_a_link_is_refused(half, tmp_path):
    shutil.copytree(half[0]/'checkpoints', tmp_path/'run'/'checkpoints')
    name = list_checkpoints(tmp_path/'run'/'checkpoints')[0]['file']
    (tmp_path/'run'/'checkpoints'/name).rename(tmp_path/'elsewhere')
    (tmp_path/'run'/'checkpoints'/name).symlink_to(tmp_path/'elsewhere')
    left = hashes(tmp_path)
    with pytest.raises(UserError, match='is a link'): go(tmp_path/'run')
    assert hashes(tmp_path) == left


def test_files_of_others_between_the_checkpoints_stay(whole, tmp_path):
    (tmp_path/'checkpoints').mkdir()
    for name in ('step_000001.safetensors', 'step_999999.safetensors', 'notes.txt', '.train.part'): (tmp_path/'checkpoints'/name).write_text('mine')
    go(tmp_path)
    assert {p.name for p in (tmp_path/'checkpoints').iterdir() if p.stat().st_size == 4} == {'step_000001.safetensors', 'step_999999.safetensors', 'notes.txt', '.train.part'}
    assert same(contents(tmp_path), contents(whole[0]))
    (tmp_path/'other'/'checkpoints').mkdir(parents=True)
    (tmp_path/'other'/'checkpoints'/'step_000003.safetensors').write_text('mine')
    with pytest.raises(UserError, match='is not of this training'): go(tmp_path/'other')
    assert (tmp_path/'other'/'checkpoints'/'step_000003.safetensors').read_text() == 'mine'


def test_killed_at_every_write_of_a_checkpoint(tmp_path, monkeypatch):
    "The process ends before each rename in turn: what is left is whole, and nothing stays that no list names"
    keep = {'step': torch.tensor(0), 'x': torch.zeros(10)}
    for write in range(1, 4):
        folder, made, replace_file = tmp_path/str(write), [], os.replace
        for step in (1, 2): save_checkpoint(folder, keep | {'step': torch.tensor(step)}, {})
        def die(old, new):
            made.append(new)
            if len(made) == write: raise Died
            replace_file(old, new)
        with monkeypatch.context() as m:
            m.setattr(files.os, 'replace', die)
            with pytest.raises(Died): save_checkpoint(folder, keep | {'step': torch.tensor(3)}, {})
        assert int(load_checkpoint(folder)[0]['step']) == 2
        save_checkpoint(folder, keep | {'step': torch.tensor(4)}, {})
        assert {p.name for p in folder.iterdir()} == {LIST, *(c['file'] for c in list_checkpoints(folder))}


@pytest.mark.parametrize('spoil', ['nan', 'huge'])
def test_weights_are_checked_after_the_last_step(spoil, tmp_path):
    "No file and no checkpoint of weights that are broken after the last update"
    def harm(state):
        if state.step == 14: state.ema = {n: t*float('nan') if spoil == 'nan' else t + 9e28 for n, t in state.ema.items()}
    with pytest.raises(UserError, match='After step 14'): go(tmp_path, every=[(1, harm)])
    assert not (tmp_path/'branch.safetensors').exists() and not (tmp_path/'lora').exists()
    assert [c['step'] for c in list_checkpoints(tmp_path/'checkpoints')] == [12, 9]


@pytest.mark.parametrize('error', [MemoryError(), torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_says_so(error, tmp_path, monkeypatch):
    def full(*args): raise error
    monkeypatch.setattr(finetune, 'predict', full)
    with pytest.raises(UserError, match=r'Memory ran out in step 1.*training.batch_size \(it is 2\)') as said: go(tmp_path)
    assert '\n' not in str(said.value)


def test_the_cache_is_made_once(tmp_path):
    made = []
    def make():
        made.append(1)
        return small_cache(clips=1)
    one, two = (open_cache(tmp_path/'cache.safetensors', 'test', make) for _ in range(2))
    assert len(made) == 1 and [s.name for s in one.samples] == [s.name for s in two.samples]
    batches = [draw_batch(c, 3, step_generator(1, 2)) for c in (one, two)]
    flat = [{'latents': b.latents, 'mask': b.mask, **b.conditions} for b in batches]
    assert flat[0].keys() == flat[1].keys() and all(torch.equal(tensor, flat[1][name]) for name, tensor in flat[0].items())
    assert len({save_cache(tmp_path/f'{i}.safetensors', one).read_bytes() for i in range(4)}) == 1
    with pytest.raises(ValueError, match='not a training cache'): load_cache(files.save_tensors(tmp_path/'other.safetensors', {'x': torch.zeros(1)}, {}))


def test_nothing_here_can_run_code(root):
    for file in [*(root/'faceid_nb/training').glob('*.py'), *(root/'faceid_nb/adapters').glob('*.py')]:
        tree = ast.parse(file.read_text())
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = {alias.name for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}
        assert not called & {'torch.save', 'torch.load', 'pickle.load', 'pickle.dump', 'eval', 'exec'} and not names & {'pickle', 'dill', 'joblib'}, file.name


def test_a_tracker_shows_every_loss(tmp_path):
    pytest.importorskip('tensorboardX', reason='the tracker is an extra: pip install "faceid_nb[track]"')
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state()
    result, _, _ = go(tmp_path, replace(CONFIG, log_with='tensorboard'))
    events, = (tmp_path/'trackers').rglob('events.out.tfevents.*')
    assert events.read_bytes().count(b'loss') >= len(result.losses)


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='training.log_with=wandb needs the package wandb.*pip install wandb'):
        go(tmp_path, replace(CONFIG, log_with='wandb'))
    assert not list(tmp_path.iterdir())
