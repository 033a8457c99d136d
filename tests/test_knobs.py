"""Laws of the knobs: strengths that change with step and expert, guidance in two directions, a clip without a pose."""
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_inference import a_pose, dressed  # noqa: F401
from test_seams import ToyAdapter, ToyFamily, ToyHost, unit

from faceid_nb.adapters.adapter import at_strength
from faceid_nb.app.models import ABLATIONS, calls_of_a_clip, check_experts
from faceid_nb.app.recipes import open_recipe, tiny
from faceid_nb.core.errors import UserError
from faceid_nb.core.media import to_frames
from faceid_nb.inference.generate import (Sampling, encode_prompt, generate, generate_clips, given_conditions, guidance_passes,
                                          network_calls, pose_controls, with_steps)
from faceid_nb.inference.sampler import Guide, guided_velocity, sample
from faceid_nb.models.wan_vace import WanVACE
from faceid_nb.world.tiny import random_pipeline

THREE = Sampling(steps=3, guidance_scale=1., seed=1)
GUIDED = {  # every way of guidance
    'none': {'guidance_scale': 1.},
    'together': {'guidance_scale': 3.},
    'face alone': {'guidance_scale': 1., 'face_guidance_scale': 3.},
    'both apart': {'guidance_scale': 3., 'face_guidance_scale': 2.},
    'no face': {'guidance_scale': 3., 'face_guidance_scale': 0.},
}


@pytest.fixture(scope='module')
def bare(): return WanVACE(random_pipeline(0))


def same(one, other): return np.array_equal(one, other)


def clip_of(model, sampling, *more): return generate(model, a_pose(), 'a dance', sampling, *more)


# ---- the face

@pytest.mark.parametrize('way', GUIDED)
def test_face_scale_0_is_the_base_on_every_path(bare, dressed, way):  # noqa: F811
    "The base is the pipeline that never had an adapter, guided by the words alone"
    model, adapters, face = dressed
    asked = replace(THREE, **GUIDED[way])
    base = clip_of(bare, replace(asked, face_guidance_scale=None))
    def clip(scale): return generate(model, a_pose(), 'a dance', replace(asked, face_scale=scale), adapters, face, on=('face',))
    assert same(clip(0.), base) and same(clip((0., 0., 0.)), base)
    silent = asked.face_guidance_scale == 0  # the pass with the face is left out
    assert same(clip((0., 0., 1.)), base) == silent, 'the law would hold for a face that does nothing'


@pytest.mark.parametrize('way', ['none', 'both apart'])
def test_a_schedule_of_a_constant_is_the_constant(dressed, way):  # noqa: F811
    model, adapters, face = dressed
    asked = replace(THREE, **GUIDED[way])
    for name in ('face_scale', 'conditioning_scale'):
        constant, schedule = (clip_of(model, replace(asked, **{name: value}), adapters, face) for value in (.5, [.5, .5, .5]))
        assert same(constant, schedule)


def test_the_order_of_a_schedule_matters(dressed):  # noqa: F811
    model, adapters, face = dressed
    for name in ('face_scale', 'conditioning_scale'):
        first, last = (clip_of(model, replace(THREE, **{name: value}), adapters, face) for value in ([2., .5, .5], [.5, .5, 2.]))
        assert not same(first, last)


@pytest.mark.parametrize('way', ['none', 'together', 'both apart'])
def test_zero_in_the_last_steps_stops_the_adapter_there(bare, dressed, way):  # noqa: F811
    "The rest of the way is walked by a pipeline that has no adapter"
    model, adapters, face = dressed
    asked = replace(THREE, **GUIDED[way], face_scale=[1., 1., 0.])
    whole = generate(model, a_pose(), 'a dance', asked, adapters, face, on=('face',))

    class Stopped(Exception): pass

    seen = []

    def note(step, latents):
        seen.append(latents)
        if step == 1: raise Stopped

    def walk(family, x, sigmas, identity, **more):
        text = encode_prompt(family, 'a dance', asked)
        control = pose_controls(family, a_pose(), x, THREE)[True]
        told = given_conditions(family, text, identity)
        passes = guidance_passes(asked, identity is not None)
        return sample(family, x, [Guide(told[name] | {'control': control}, weight) for name, weight in passes], sigmas, **more)

    noise = torch.randn(model.latent_shape(*a_pose().shape[:3]), generator=torch.Generator().manual_seed(THREE.seed))
    with pytest.raises(Stopped):
        walk(model, noise, model.sigmas(3), face[None], adapters=adapters, strengths=lambda step, expert: {'face': 1.}, on_step=note)
    rest = walk(bare, seen[-1], bare.sigmas(3)[2:], None)
    assert same(to_frames(bare.decode_video(rest)), whole)


# ---- two experts

class TwoExperts(ToyFamily):
    "The toy family with a second denoiser for times below a half"
    boundary = .5

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        other = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).requires_grad_(False)
        self.hosts = (*self.hosts, ToyHost(other))
        self.asked = []

    def velocity(self, x_t, t, conditions, expert=0, control_scale=1.):
        self.asked.append((expert, control_scale, self.adapter.scale))
        with ExitStack() as stack:
            mine, self.net = self.net, self.hosts[expert].module
            stack.callback(setattr, self, 'net', mine)
            return super().velocity(x_t, t, conditions, expert, control_scale)


def test_each_expert_has_its_own_strengths():
    model = TwoExperts()
    model.adapter = ToyAdapter(model.hosts[0])
    asked = Sampling(steps=4, guidance_scale=1., conditioning_scale=[.5, .6, .7, .8], conditioning_scale_2=2., face_scale=3., face_scale_2=[0., 0., .2, .1])
    generate(model, np.full((5, 32, 16, 3), 90, np.uint8), 'a person', asked, {'face': model.adapter}, unit(1, 8)[0])
    experts = [expert for expert, _, _ in model.asked]
    assert set(experts) == {0, 1} and experts == sorted(experts)
    assert [control for _, control, _ in model.asked] == [2. if expert else asked.conditioning_scale[step] for step, expert in enumerate(experts)]
    assert [face for _, _, face in model.asked] == [asked.face_scale_2[step] if expert else 3. for step, expert in enumerate(experts)]


def test_the_second_expert_of_a_model_without_one_is_refused_before_anything_starts(tmp_path):
    from faceid_nb.app.runner import check_run
    for key in ('face_scale_2', 'conditioning_scale_2'):
        recipe = open_recipe('tiny', {f'sampling.{key}': '.5'})
        with pytest.raises(UserError, match=f'sampling.{key} is for a second expert'): check_run(recipe, tmp_path/'run')
    assert not list(tmp_path.iterdir())
    (tmp_path/'model_index.json').write_text('{"boundary_ratio": 0.875}')
    check_experts(tmp_path, recipe.sampling)


# ---- guidance

def test_both_weights_at_1_are_no_guidance(dressed):  # noqa: F811
    model, adapters, face = dressed
    off = clip_of(model, THREE, adapters, face)
    assert same(clip_of(model, replace(THREE, face_guidance_scale=1.), adapters, face), off)


@pytest.fixture
def asked_once(dressed):  # noqa: F811
    "The velocity of a list of passes at one point, and what each pass is given"
    model, adapters, face = dressed
    noise = torch.randn(model.latent_shape(*a_pose().shape[:3]), generator=torch.Generator().manual_seed(5))
    control = pose_controls(model, a_pose(), noise, THREE)[True]
    told = given_conditions(model, encode_prompt(model, 'a dance', replace(THREE, guidance_scale=3.)), face[None])

    @torch.no_grad()
    def ask(passes):
        guides = [Guide(told[name] | {'control': control}, weight) for name, weight in passes]
        with at_strength(adapters, {'face': 1.}): return guided_velocity(model, noise, torch.tensor([.7]), guides, adapters)
    return ask


def test_three_passes_are_the_formula(asked_once):
    nothing, prompt, both = (asked_once([(name, 1.)]) for name in ('nothing', 'prompt', 'both'))
    assert not torch.allclose(prompt, both, atol=1e-3) and not torch.allclose(prompt, nothing, atol=1e-3)
    three = asked_once(guidance_passes(Sampling(guidance_scale=4., face_guidance_scale=2.), True))
    assert torch.allclose(three, nothing + 4*(prompt - nothing) + 2*(both - prompt), atol=1e-5)


@pytest.mark.parametrize('text', [1., 4.])
@pytest.mark.parametrize('face', [0., 1., 2., 4., None])
def test_a_call_that_is_saved_changes_nothing(asked_once, text, face):
    "To rounding, every shorter list of passes gives the velocity of all three"
    sampling = Sampling(guidance_scale=text, face_guidance_scale=face)
    whole = [('nothing', 1.), ('prompt', text), ('both', text if face is None else face)]
    assert torch.allclose(asked_once(guidance_passes(sampling, True)), asked_once(whole), atol=1e-4)


def test_the_cost_that_is_told_is_the_cost(monkeypatch, dressed):  # noqa: F811
    model, adapters, face = dressed
    calls = []
    real = WanVACE.velocity
    monkeypatch.setattr(WanVACE, 'velocity', lambda self, *a, **k: calls.append(1) or real(self, *a, **k))
    for way in GUIDED.values():
        recipe = replace(tiny(), sampling=replace(THREE, steps=2, **way))
        told = calls_of_a_clip(recipe)
        for one in ABLATIONS:
            calls.clear()
            generate_clips(model, {'a': a_pose()}, {'a': 'a dance'}, recipe.sampling, one, adapters, face, progress=False)
            assert len(calls) == told[one.name] == network_calls(recipe.sampling, 'face' in one.adapters)
    assert told['base'] == 4


def test_guidance_without_the_negative_prompt_is_refused(bare):
    text = encode_prompt(bare, 'a dance', THREE)
    with pytest.raises(ValueError, match='needs the negative prompt'): generate(bare, a_pose(), text, replace(THREE, guidance_scale=2.))


# ---- the pose

def test_without_a_pose_the_model_is_given_none(bare, monkeypatch):
    "Strength 0 is the control that training used for clips without a pose, not a side branch that is switched off"
    noise = torch.randn(bare.latent_shape(*a_pose().shape[:3]), generator=torch.Generator().manual_seed(THREE.seed))
    words = encode_prompt(bare, 'a dance', THREE).positive
    free = {'prompt_embeds': words, 'control': bare.build_control(None, noise)}
    wanted = to_frames(bare.decode_video(sample(bare, noise, [Guide(free)], bare.sigmas(3))))
    switched_off = to_frames(bare.decode_video(sample(bare, noise, [Guide(free)], bare.sigmas(3), strengths=lambda *a: {'control': 0.})))
    assert same(clip_of(bare, replace(THREE, conditioning_scale=0.)), wanted) and not same(wanted, switched_off)
    seen = []
    real = WanVACE.velocity
    def velocity(self, x_t, t, conditions, expert=0, control_scale=1.):
        seen.append((torch.equal(conditions['control'], free['control']), control_scale))
        return real(self, x_t, t, conditions, expert, control_scale)
    monkeypatch.setattr(WanVACE, 'velocity', velocity)
    clip_of(bare, replace(THREE, conditioning_scale=[1., .5, 0.]))
    assert seen == [(False, 1.), (False, .5), (True, 1.)]


# ---- words and values

@pytest.mark.parametrize('key', ['face_scale', 'conditioning_scale', 'face_scale_2', 'conditioning_scale_2'])
def test_a_schedule_is_checked_before_anything_starts(key):
    good = open_recipe('tiny', {f'sampling.{key}': '2,.5,0'})
    assert getattr(good.sampling, key) == (2., .5, 0.)
    for wrong in ('2,.5', [1., 1., 1., 1.], '1,1,nan', '1,1,-1', '1,1,inf', '1,1,11', '1,,1', '1;1;1', [[1, 1, 1]], [None]*3):
        with pytest.raises(UserError, match=f'sampling.{key} (lists|must be)') as error: open_recipe('tiny', {f'sampling.{key}': wrong})
        assert '\n' not in str(error.value)
    with pytest.raises(UserError, match=f'sampling.{key} lists 3 strengths for 4 steps'):
        open_recipe('tiny', {f'sampling.{key}': '2,.5,0', 'sampling.steps': '4'})


def test_fewer_steps_keep_the_course_of_a_schedule():
    long = Sampling(steps=10, face_scale=[2.]*4 + [1.]*4 + [0.]*2, conditioning_scale=[float(i) for i in range(10)])
    for steps in (1, 2, 3, 5, 10):
        short = with_steps(long, steps)
        assert len(short.face_scale) == short.steps == steps and list(short.conditioning_scale) == sorted(short.conditioning_scale)
    assert with_steps(long, 10) == long and with_steps(long, 5).face_scale == (2., 2., 1., 1., 0.)
    assert with_steps(Sampling(steps=10), 5) == Sampling(steps=5)


def test_a_preview_takes_a_schedule(monkeypatch, tmp_path):
    from faceid_nb.app import phases
    seen = []
    recipe = open_recipe('tiny', {'sampling.steps': 16, 'sampling.face_scale': [2.]*8 + [0.]*8, 'sampling.guidance_scale': 3, 'sampling.face_guidance_scale': 2})
    monkeypatch.setattr(phases, 'find_dances', lambda *a: [SimpleNamespace(name='a', pose='a.mp4', prompt='a dance')])
    monkeypatch.setattr(phases, 'read_pose', lambda *a: a_pose())
    monkeypatch.setattr(phases, 'person', lambda folder: None)
    monkeypatch.setattr(phases, 'generate', lambda model, pose, prompt, sampling, *a: seen.append(sampling) or a_pose())

    class State:
        step = 1
        def averaged(self): return ExitStack()
    phases.preview(recipe, tmp_path, tmp_path, None, {})(State())
    assert seen[0].face_scale == (2.,)*4 + (0.,)*4 and network_calls(seen[0], True) == 8
