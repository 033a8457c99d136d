"""Laws of the training: each number of the configuration does what its name says, seen from outside the loop."""
from dataclasses import replace
from math import cos, pi
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_training import CONFIG, go, ready, small_cache
from torch import nn

from faceid_nb.adapters.lora import open_lora
from faceid_nb.core.flow import shift_time
from faceid_nb.core.media import write_image
from faceid_nb.training import data
from faceid_nb.training.checkpoint import TrainingState, list_checkpoints, load_checkpoint, save_checkpoint
from faceid_nb.training.data import draw_batch, face_mask, open_cache, photo_cache, step_generator
from faceid_nb.training.finetune import train
from faceid_nb.training.stages import Stage
from faceid_nb.training.losses import draw_noise, face_weights, flow_loss

ASKED = ('timestep', 'encoder_hidden_states', 'encoder_hidden_states_image')
RATES = {'face': 2e-3, 'lora': 4e-3}
SHORT = replace(CONFIG, stages=(Stage(3, RATES), Stage(2, {'lora': 4e-3})), checkpoint_every=0, weight_decay=0.)


def watched(folder, config):
    "A training, and what its denoiser was asked: times, words and identities of each step"
    model, adapters = ready()
    asked = []

    def note(module, args, kwargs):
        asked.append({name: kwargs[name].clone() for name in ASKED})
    model.hosts[0].module.register_forward_pre_hook(note, with_kwargs=True)
    train(model, adapters, small_cache(), config, folder, progress=False)
    return asked, model, adapters['face']


# ---- what is minimised

class Oracle:
    "A family that knows the data, and is wrong by a constant"
    def __init__(self, x0, wrong):
        self.x0 = x0
        self.wrong = wrong

    def velocity(self, x_t, t, conditions):
        return (x_t - self.x0)/t.view(-1, 1, 1, 1, 1) + self.wrong


@pytest.mark.parametrize('wrong', [0., .5, 2.])
def test_the_loss_of_the_exact_velocity_is_zero(wrong):
    "The straight path has one velocity, (x_t - x0)/t; an error of c everywhere costs c squared"
    batch = draw_batch(small_cache(), 4, step_generator(0, 0))
    loss = flow_loss(Oracle(batch.latents, wrong), {}, batch, *draw_noise(batch, step_generator(0, 1), 3.), 5.)
    assert torch.allclose(loss, torch.tensor(wrong**2), atol=1e-4)


def test_the_face_weighs_what_it_is_told_to():
    mask = torch.zeros(2, 1, 1, 6, 4)
    mask[..., :3, :] = 1
    for weight in (0., 1., 5.):
        w = face_weights(mask, weight)
        assert torch.allclose(w[..., :3, :]/w[..., 3:, :], torch.tensor(1 + weight))
        assert torch.allclose(w.mean((1, 2, 3, 4)), torch.ones(2))


def test_the_mask_covers_the_box():
    "Area and middle of the face in cells are those of the box in pixels"
    box, size, grid = (20., 30., 52., 94.), (128, 96), (16, 12)
    mask = face_mask(box, size, grid)
    assert mask.shape == grid and torch.allclose(mask.sum()*8*8, torch.tensor(32.*64.))
    y, x = torch.meshgrid((torch.arange(16.) + .5)*8, (torch.arange(12.) + .5)*8, indexing='ij')
    assert torch.allclose((mask*x).sum()/mask.sum(), torch.tensor(36.), atol=1.)
    assert torch.allclose((mask*y).sum()/mask.sum(), torch.tensor(62.), atol=1.)


def test_padding_computed_once_changes_no_loss():
    model, adapters = ready()
    batch = draw_batch(small_cache(), 2, step_generator(0, 0))
    plain = flow_loss(model, adapters, batch, *draw_noise(batch, step_generator(0, 1), 3.), 2.)
    with model.shared_padding(batch.conditions): short = flow_loss(model, adapters, batch, *draw_noise(batch, step_generator(0, 1), 3.), 2.)
    assert torch.allclose(plain, short, rtol=1e-5)


def test_training_walks_the_times_of_its_shift(tmp_path):
    "With another shift the same draws become the shifted times, step by step"
    times = {}
    for shift in (1., 5.):
        asked, _, _ = watched(tmp_path/f'{shift}', replace(SHORT, shift=shift))
        times[shift] = torch.cat([one['timestep'] for one in asked])/1000
    assert torch.allclose(times[5.], shift_time(times[1.], 5.), atol=1e-5) and (times[5.] > times[1.]).all()


# ---- chance

@pytest.mark.parametrize('share', [0., .3, 1.])
def test_shares_of_dropped_words_and_faces_are_as_asked(share):
    cache, n = small_cache(), 400
    null = cache.null_prompt_embeds
    rows = len(null)
    def empty(batch):
        return [torch.equal(words[:rows], null) and not words[rows:].any() for words in batch.conditions['prompt_embeds']]
    def faces(batch): return batch.conditions['id_embed']
    faceless = draw_batch(cache, n, step_generator(1, 0), text_dropout=0., id_dropout=share)
    speechless = draw_batch(cache, n, step_generator(1, 0), text_dropout=share, id_dropout=0.)
    assert abs((~faces(faceless).any(1)).float().mean() - share) < .08 and not any(empty(faceless))
    assert abs(sum(empty(speechless))/n - share) < .08 and faces(speechless).any(1).all()
    assert torch.allclose(faces(speechless).norm(dim=1), torch.ones(n), atol=1e-5)


def test_a_training_that_drops_every_face_teaches_the_branch_nothing(tmp_path):
    "And one that drops none sees a face at every step"
    start = [p.detach().clone() for p in ready()[1]['face'].parameters()]
    asked, _, branch = watched(tmp_path/'none', replace(SHORT, id_dropout=1.))
    assert all(torch.equal(a, b) for a, b in zip(start, branch.parameters()))
    assert not any(one['encoder_hidden_states_image'].any() for one in asked)
    asked, _, branch = watched(tmp_path/'all', replace(SHORT, id_dropout=0.))
    assert not all(torch.equal(a, b) for a, b in zip(start, branch.parameters()))
    assert all(one['encoder_hidden_states_image'].any(1).all() for one in asked)


def test_a_training_that_drops_all_words_hears_the_empty_prompt(tmp_path):
    cache = small_cache()
    for one in watched(tmp_path, replace(SHORT, text_dropout=1.))[0]:
        assert all(torch.equal(words[:2], cache.null_prompt_embeds) and not words[2:].any()
            for words in one['encoder_hidden_states'])


def test_chance_is_of_the_seed_and_the_step():
    draws = {(seed, step): torch.rand(4, generator=step_generator(seed, step)) for seed in (0, 1)
        for step in (0, 1, 11)}
    assert len({tuple(d.tolist()) for d in draws.values()}) == 6
    assert all(torch.equal(d, torch.rand(4, generator=step_generator(*of))) for of, d in draws.items())


def test_only_photos_to_train_on_are_read(tmp_path, monkeypatch):
    "Held-out and reference photos are judged by or speak for the person; no step sees one"
    crop = {'caption': 'a photo', 'face_box': [4., 4., 20., 20.]}
    photos = [{'split': split, 'crops': [crop | {'file': f'{split}.png'}]}
        for split in ('train', 'reference', 'heldout', None)]
    for photo in photos: write_image(tmp_path/photo['crops'][0]['file'], np.zeros((32, 32, 3), np.uint8))
    monkeypatch.setattr(data, 'encode_sample', lambda pipe, frames, control, caption, boxes, name: name)
    model = SimpleNamespace(encode_text=lambda prompt: torch.zeros(1, 8), text_length=512)
    assert photo_cache(model, {'photos': photos}, tmp_path, np.eye(4)[:1]).samples == ('train.png',)


def test_a_cache_of_something_else_is_made_again(tmp_path):
    made = []
    def cache_of(key):
        def make():
            made.append(key)
            return replace(small_cache(), key=key)
        return open_cache(tmp_path/'cache.safetensors', key, make).key
    assert [cache_of(key) for key in 'aabba'] == list('aabba') and made == list('aba')


# ---- the optimiser

def test_the_learning_rate_rises_and_falls_as_drawn(tmp_path):
    "At step i of n: a rise over `warmup` steps, then half a cosine down to a tenth"
    seen = []
    def note(state): seen.append([group['lr'] for group in state.optimizer.param_groups])
    config = replace(CONFIG, warmup=4, checkpoint_every=0)
    go(tmp_path, config, every=[(1, note)])
    n = config.total
    share = [min(1, (i + 1)/4)*(.1 + .45*(1 + cos(pi*i/n))) for i in range(n)]
    first = config.stages[0].steps
    assert torch.allclose(torch.tensor(seen)[:, 1], torch.tensor(share)*4e-3)
    assert torch.allclose(torch.tensor(seen)[:first, 0], torch.tensor(share)[:first]*2e-3)
    assert not torch.tensor(seen)[first:, 0].any(), 'the face does not train in the second stage'


def test_a_gradient_is_no_longer_than_the_clip(tmp_path):
    lengths = {}
    for clip in (1e9, .01):
        def note(state):
            lengths.setdefault(clip, []).append(torch.stack([p.grad.norm() for p in state.params.values()
                if p.requires_grad]).norm().item())
        go(tmp_path/f'{clip}', replace(SHORT, clip=clip), every=[(1, note)])
    assert max(lengths[.01]) <= .01*1.001 < min(lengths[1e9])


def test_what_is_saved_is_the_average_of_the_weights(tmp_path):
    "Recomputed from the weights after every step: at step n the mean keeps (1+n)/(10+n) of itself, at most the decay"
    seen, start = [], {n: p.clone() for n, p in ready()[1]['lora'].state_dict().items()}
    def note(state): seen.append({n: state.params[n].detach().clone() for n in start})
    result, model, adapters = go(tmp_path, replace(SHORT, ema_decay=.3), every=[(1, note)])
    mean = start
    for step, weights in enumerate(seen):
        keep = min(.3, (1 + step)/(10 + step))
        mean = {n: keep*mean[n] + (1 - keep)*weights[n] for n in mean}
    saved = adapters['lora'].state_dict()
    assert all(torch.allclose(saved[n], mean[n], atol=1e-6) for n in mean)
    assert not all(torch.equal(saved[n], seen[-1][n]) for n in mean)
    other, _ = ready(face=False, lora=False)
    again = open_lora(other.hosts[0], result.files['lora'])
    assert all(torch.equal(p, saved[n]) for n, p in again.state_dict().items())


def test_weights_of_another_stage_stay(tmp_path):
    "Stage B leaves the branch as stage A ended it, to the last bit"
    seen = {}
    def note(state): seen[state.step] = {n: p.detach().clone() for n, p in state.params.items()}
    _, _, adapters = go(tmp_path, replace(SHORT, weight_decay=.1), every=[(1, note)])
    assert all(torch.equal(p, seen[4][n]) and torch.equal(p, seen[5][n]) for n, p in adapters['face'].state_dict().items())


# ---- checkpoints

def three(folder):
    "Three checkpoints, of which two are kept"
    for step in (1, 2, 3):
        save_checkpoint(folder, {'step': torch.tensor(step), 'x': torch.full((1000,), float(step))}, {'run': 'a'})
    return [folder/one['file'] for one in list_checkpoints(folder)]


@pytest.mark.parametrize('place', [-1, -2000, 400])
def test_a_flipped_bit_in_the_newest_checkpoint_is_noticed(tmp_path, place):
    "A safetensors file with one changed number is a well-formed file; only its hash tells"
    newest, older = three(tmp_path)
    data = bytearray(newest.read_bytes())
    data[place] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match=newest.name): tensors, about, *_ = load_checkpoint(tmp_path)
    assert tensors['step'] == 2 and torch.equal(tensors['x'], torch.full((1000,), 2.)) and about == {'run': 'a'}
    older.write_bytes(older.read_bytes()[:-4] + b'\0\0\0\0')
    with pytest.raises(ValueError, match=str(tmp_path)), pytest.warns(UserWarning): load_checkpoint(tmp_path)


def test_the_two_newest_checkpoints_are_kept(tmp_path):
    files = three(tmp_path)
    assert sorted(p.name for p in tmp_path.glob('*.safetensors')) == sorted(p.name for p in files) and len(files) == 2
    files[0].unlink()
    with pytest.warns(UserWarning, match='missing'): assert load_checkpoint(tmp_path)[0]['step'] == 2


def test_a_state_comes_back_whole():
    "Weights, averages, Adam's memory, the step, the losses and the global chance: two roads, one end"
    def state():
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(4))
        return TrainingState({'w': weight}, torch.optim.AdamW([weight], lr=.1), .9)
    def step(state):
        state.params['w'].grad = state.params['w'].detach()*2 + torch.randn(4)
        state.optimizer.step()
        state.update_ema(float(state.params['w'].detach().square().sum()))
    one, other = state(), state()
    for _ in range(3): step(one)
    saved = {n: t.clone() for n, t in one.state_dict().items()}
    for _ in range(3): step(one)
    torch.randn(99)
    other.load_state_dict(saved)
    for _ in range(3): step(other)
    assert one.losses == other.losses and one.step == other.step == 6
    assert torch.equal(one.params['w'], other.params['w']) and torch.equal(one.ema['w'], other.ema['w'])


def test_a_resting_adapter_takes_no_gradient(tmp_path):
    "Else it would count in the length of the gradient, and the clip would slow down those that train"
    seen = {}
    def note(state):
        seen[state.step] = [name for name, weight in state.params.items() if weight.grad is not None]
    _, _, adapters = go(tmp_path, SHORT, every=[(1, note)])
    face, lora = (set(adapters[name].named_parameters()) for name in ('face', 'lora'))
    assert face <= set(seen[3]) and set(seen[4]) == set(seen[5]) == lora
