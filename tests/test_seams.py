"""The seams: a family and an adapter of a few lines go through cache, training, checkpoint, resume and sampling; names of families stay in their place.

For every adapter and family alike: zero at start, scale 0 equals base, detached equals base, saved and loaded is the same, two together, an unknown condition is refused."""
import ast
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from toys import family_of, weights_of
from torch import nn

from faceid_nb.adapters.adapter import at_strength, give_conditions, take_over, wanted
from faceid_nb.adapters.branch import attach_face_branch, load_branch
from faceid_nb.adapters.lora import LoraSettings, attach_lora, open_lora
from faceid_nb.adapters.mapper import MapperConfig
from faceid_nb.core.errors import UserError
from faceid_nb.inference.generate import Ablation, Sampling, generate, generate_clips
from faceid_nb.inference.sampler import Guide, sample, windowed_velocity
from faceid_nb.models.family import check_conditions, pad_rows
from faceid_nb.models.wan_vace import WanVACE
from faceid_nb.training.data import PhotoCache, encode_sample, load_cache, save_cache
from faceid_nb.training.finetune import train
from faceid_nb.training.stages import FlowTrainConfig, Stage
from faceid_nb.world.tiny import random_pipeline
from test_adapters import base_model


# ---- a family and an adapter of about thirty lines each

class ToyHost:
    def __init__(self, module): self.module, self.width, self.sites = module, 3, ()


class ToyFamily:
    "A family whose latents are the picture itself, made eight times smaller; its denoiser is one layer"
    name, multiple, needs, text_length, boundary, shift = 'toy', 8, ('prompt_embeds', 'control'), 6, 0., 1.

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3 + 3 + 4, 16), nn.Tanh(), nn.Linear(16, 3)).requires_grad_(False)
        self.hosts, self.device, self.dtype = (ToyHost(self.net),), torch.device('cpu'), torch.float32

    def latent_shape(self, frames, height, width): return (1, 3, frames, height//8, width//8)
    def encode_video(self, video, generator=None): return nn.functional.avg_pool3d(video, (1, 8, 8))
    def decode_video(self, latents): return nn.functional.interpolate(latents, scale_factor=(1, 8, 8)).clamp(-1, 1)
    def encode_text(self, prompt): return torch.tensor([[len(word), 1., 0., 0.] for word in ('start', *prompt.split())][:6])
    def build_control(self, video, like): return torch.zeros_like(like) if video is None else self.encode_video(video)
    def shared_padding(self, conditions): return nullcontext()
    def solver(self, sigmas):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.shift)
        scheduler.set_timesteps(len(sigmas) - 1)
        return scheduler
    def sigmas(self, steps):
        return self.solver(torch.zeros(steps + 1)).sigmas

    def velocity(self, x_t, t, conditions, expert=0, control_scale=1.):
        words = conditions['prompt_embeds'].mean(1)[:, :, None, None, None].expand(-1, -1, *x_t.shape[2:])
        seen = torch.cat([x_t, control_scale*conditions['control'], words], 1)
        return self.net(seen.movedim(1, -1)).movedim(-1, 1)


class ToyAdapter:
    "A learned projection of the identity, added to what the denoiser's first layer answers"
    wants = ('id_embed',)

    def __init__(self, host):
        self.scale, self.identity, self.weight = 1., None, nn.Parameter(torch.zeros(16, 8))
        self.hook = host.module[0].register_forward_hook(self.add)

    def add(self, layer, args, out):
        if self.identity is None or not self.scale: return out
        shift = self.scale*(self.identity @ self.weight.T)
        return out + shift.view(-1, *[1]*(out.ndim - 2), 16)

    def named_parameters(self): return {'toy.weight': self.weight}
    def state_dict(self): return {'toy.weight': self.weight.detach()}
    def set_conditions(self, conditions): self.identity = conditions.get('id_embed')
    def detach(self): self.hook.remove()

    def load_state_dict(self, state):
        take_over(self.named_parameters(), state, 'toy')

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder/'toy.safetensors')
        return folder/'toy.safetensors'


def unit(n, width, seed=0): return nn.functional.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def toy_cache(model):
    rng = np.random.default_rng(0)
    def photo(i): return rng.integers(0, 255, (1, 32, 24, 3), np.uint8)
    samples = tuple(encode_sample(model, photo(i), None, 'a person', [(4., 4., 20., 20.)], f'{i}.png') for i in range(4))
    return PhotoCache(samples, unit(4, 8), model.encode_text(''), model.text_length, 'toy')


class Died(RuntimeError): pass


def test_a_toy_family_and_a_toy_adapter_go_all_the_way(tmp_path):
    "Cache, training, a kill, its resumption, files, sampling and an ablation: no other code knows them"
    model = ToyFamily()
    cache = load_cache(save_cache(tmp_path/'cache.safetensors', toy_cache(model)))
    config = FlowTrainConfig(stages=(Stage(6, {'toy': 1e-2}),), batch_size=2, checkpoint_every=2, warmup=0, shift=model.shift)

    def run(folder, every=()):
        fresh = ToyFamily()
        adapters = {'toy': ToyAdapter(fresh.hosts[0])}
        return train(fresh, adapters, cache, config, folder, every, progress=False), fresh, adapters
    whole, model, adapters = run(tmp_path/'whole')

    def die(state):
        if state.step == 5: raise Died
    with pytest.raises(Died): run(tmp_path/'broken', [(1, die)])
    again, _, _ = run(tmp_path/'broken')
    assert again.resumed_at == 4 and again.losses == whole.losses
    assert again.files['toy'].read_bytes() == whole.files['toy'].read_bytes()

    pose = np.pad(np.full((5, 24, 8, 3), 90, np.uint8), ((0, 0), (4, 4), (4, 4), (0, 0)))  # (5, 32, 16, 3)
    person, quick = unit(1, 8, 5)[0], Sampling(steps=3, guidance_scale=2.)
    clips = {one.name: generate_clips(model, {'a': pose}, {'a': 'a person'}, quick, one, adapters, person, progress=False)['a']
             for one in (Ablation('base', ()), Ablation('full', ('toy',)))}
    bare = generate_clips(ToyFamily(), {'a': pose}, {'a': 'a person'}, quick, Ablation('base', ()), progress=False)['a']
    assert np.array_equal(clips['base'], bare) and clips['full'].shape == pose.shape
    loaded = ToyAdapter((fresh := ToyFamily()).hosts[0])
    loaded.load_state_dict(load_file(whole.files['toy']))
    same = generate_clips(fresh, {'a': pose}, {'a': 'a person'}, quick, Ablation('full', ('toy',)), {'toy': loaded}, person, progress=False)['a']
    assert np.array_equal(same, clips['full'])


# ---- the laws, for every family and adapter alike

def wan(): return WanVACE(random_pipeline(0))


FAMILIES = {'toy': ToyFamily, 'wan_vace': wan}
ATTACH = {
    'toy': {'toy': ToyAdapter},
    'wan_vace': {'face': lambda host: attach_face_branch(host, MapperConfig(width=host.width), torch.Generator().manual_seed(0)),
                 'lora': lambda host: attach_lora(host, LoraSettings(rank=2), torch.Generator().manual_seed(1))}}
LOAD = {'toy': lambda host, file: reload(ToyAdapter(host), file), 'face': lambda host, file: load_branch(file, host), 'lora': open_lora}
PAIRS = [(family, name) for family, attach in ATTACH.items() for name in attach]


def reload(adapter, file):
    adapter.load_state_dict(load_file(file))
    return adapter


def ask(model, adapters=(), **more):
    "The velocity for a fixed question"
    x = torch.randn(model.latent_shape(5, 32, 32), generator=torch.Generator().manual_seed(3))
    words = pad_rows(model.encode_text('a person dancing'), model.text_length)
    conditions = {'prompt_embeds': words, 'control': model.build_control(None, x), **more}
    give_conditions(dict(adapters), conditions)
    with torch.no_grad(): return model.velocity(x, torch.tensor([.7]), conditions)


def identity(name): return {'id_embed': unit(1, 8 if name == 'toy' else 512)}


def shaken(adapter):
    g = torch.Generator().manual_seed(7)
    for weight in adapter.named_parameters().values(): weight.data += .2*torch.randn(weight.shape, generator=g)
    return adapter


@pytest.mark.parametrize('family, name', PAIRS)
def test_the_laws_of_an_adapter(family, name, tmp_path):
    model, base, person = FAMILIES[family](), None, identity(name)
    base = ask(model)
    adapters = {name: ATTACH[family][name](model.hosts[0])}
    assert torch.equal(ask(model, adapters, **person), base), 'zero at the start'
    shaken(adapters[name])
    moved = ask(model, adapters, **person)
    assert not torch.equal(moved, base)
    with at_strength(adapters, {}): assert torch.equal(ask(model, adapters, **person), base), 'scale 0 is the base'
    with at_strength(adapters, {name: 1.}): assert torch.equal(ask(model, adapters, **person), moved)
    file = adapters[name].save(tmp_path)
    other = FAMILIES[family]()
    assert torch.equal(ask(other, {name: LOAD[name](other.hosts[0], file)}, **person), moved), 'saved and loaded is the same'
    state = {key: tensor.clone() for key, tensor in adapters[name].state_dict().items()}
    with pytest.raises(UserError): adapters[name].load_state_dict({})
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapters[name].state_dict().items())
    adapters[name].detach()
    assert torch.equal(ask(model, **person), base), 'detached is the base'


def test_two_adapters_together():
    "Each is off while the other is on, and both off are the base"
    model, person = wan(), identity('face')
    base = ask(model)
    adapters = {name: shaken(attach(model.hosts[0])) for name, attach in ATTACH['wan_vace'].items()}
    seen = []
    for on in ((), ('face',), ('lora',), ('face', 'lora')):
        with at_strength(adapters, dict.fromkeys(on, 1.)): seen.append(ask(model, adapters, **person))
    assert torch.equal(seen[0], base)
    assert all(not torch.equal(one, other) for i, one in enumerate(seen) for other in seen[:i])
    for adapter in adapters.values(): adapter.detach()
    assert torch.equal(ask(model), base)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_sampler_drives_every_family(family):
    "Guidance of weight 1 is the guided pass alone; a window over everything is no window; a stop is a raise"
    model = FAMILIES[family]()
    x = torch.randn(model.latent_shape(5, 32, 32), generator=torch.Generator().manual_seed(3))
    def bundle(text):
        return {'prompt_embeds': pad_rows(model.encode_text(text), model.text_length), 'control': model.build_control(None, x)}
    one = sample(model, x, [Guide(bundle('a person'))], model.sigmas(3))
    assert one.shape == x.shape and torch.isfinite(one).all()
    assert torch.allclose(sample(model, x, [Guide(bundle('')), Guide(bundle('a person'), 1.)], model.sigmas(3)), one, atol=1e-4)
    assert torch.equal(sample(model, x, [Guide(bundle('a person'))], model.sigmas(3), windows=[slice(0, x.shape[2])]), one)
    seen = [slice(0, 3), slice(2, 5), slice(1, 5)]
    long = torch.randn(1, 2, 5, 3, 2)
    assert torch.allclose(windowed_velocity(lambda part, guides: part, long, [], seen), long), 'where windows overlap, their mean counts'
    steps = []
    def stop(step, latents):
        steps.append(step)
        if step == 1: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): sample(model, x, [Guide(bundle('a person'))], model.sigmas(3), on_step=stop)
    assert steps == [0, 1]


def test_unknown_conditions_are_refused():
    with pytest.raises(UserError, match='voice is read by nothing'): check_conditions({'a': 0, 'voice': 0}, ('a',))
    with pytest.raises(UserError, match='control is missing'): check_conditions({'prompt_embeds': 0}, ('prompt_embeds', 'control'))
    model = family_of(base_model())
    with pytest.raises(UserError, match='without a face branch'): generate(wan(), np.full((5, 32, 32, 3), 90, np.uint8), 'a', Sampling(steps=1), {}, torch.ones(512))
    with pytest.raises(UserError, match='No adapter voice'):
        with at_strength({}, {'voice': 1.}): pass
    assert wanted({}) == () and weights_of({}) == [] and model.name == 'wan_vace'


# ---- names stay in their place

FAMILY_WORDS = re.compile(r'wan_?vace|vace|\bwan\b|flux|hunyuan', re.IGNORECASE)
ADAPTER_WORDS = re.compile(r'branch|lora', re.IGNORECASE)


def identifiers(path):
    "Every name, attribute, argument, import and short text of a module; docstrings and messages may speak of anything"
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Name): yield node.id
        elif isinstance(node, ast.Attribute): yield node.attr
        elif isinstance(node, ast.arg): yield node.arg
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
        elif isinstance(node, ast.ImportFrom): yield from (node.module or '', *(alias.name for alias in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ' ' not in node.value: yield node.value


def named(root, areas, words, skip=()):
    return sorted({f'{path.parent.name}.{path.stem}: {word}' for area in areas for path in (root/'faceid_nb'/area).glob('*.py') if path.stem not in ('__init__', *skip)
                   for word in identifiers(path) if words.search(word)})


def test_no_family_is_named_outside_its_place(root):
    "`models` and `app.models` name families; recipes are named after real models, and the world makes small ones of the same classes"
    areas = ('core', 'curation', 'embeddings', 'adapters', 'training', 'inference', 'evaluation', 'app')
    assert not named(root, areas, FAMILY_WORDS, skip=('models', 'recipes'))


def test_training_core_and_inference_name_no_adapter(root):
    assert not named(root, ('core', 'training', 'inference'), ADAPTER_WORDS)
