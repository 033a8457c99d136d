"""Laws of the path, the control input, the adapters and the sampler: what theory and the stock pipeline say.

The models are small and have random weights."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from test_adapters import SIZES, ask, base_model, moved, somebody
from test_inference import SIZE, TWO, a_pose
from toys import family_of
from torch.nn.functional import normalize

from faceid_nb.adapters.branch import attach_face_branch, load_branch, save_branch
from faceid_nb.adapters.lora import (LoraSettings, add_lora, load_lora, lora_parameters, remove_lora, save_lora,
    set_lora_scale)
from faceid_nb.adapters.mapper import MapperConfig
from faceid_nb.adapters.pretrained import mix_embeddings, start_branch
from faceid_nb.core.flow import noised, predict_x0, sample_time, shift_time, velocity
from faceid_nb.core.media import to_frames, to_tensor
from faceid_nb.app.models import ABLATIONS
from faceid_nb.inference.generate import clip_seed, encode_prompt, generate, generate_clips
from faceid_nb.inference.pose import fit_pose
from faceid_nb.models.wan_vace import WanHost, WanVACE, decode_video, encode_video, repeated_padding, vace_control
from faceid_nb.world.tiny import random_pipeline


CPU = torch.device('cpu')


def normal(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def pipe():
    "A pipeline with random weights; its latents have a mean and a spread, as those of a real autoencoder do"
    pipe = random_pipeline(0)
    pipe.set_progress_bar_config(disable=True)
    channels = pipe.vae.config.z_dim
    spread = .5 + normal(channels, seed=2).abs()
    pipe.vae.register_to_config(latents_mean=normal(channels, seed=1).tolist(), latents_std=spread.tolist())
    return pipe


@pytest.fixture(scope='module')
def faced():
    "The same pipeline with a face branch that does something, and somebody's identity"
    model = WanVACE(random_pipeline(0))
    branch = attach_face_branch(model.hosts[0], MapperConfig(width=256), torch.Generator().manual_seed(0))
    for k, parameter in enumerate(branch.parameters()): parameter.data += .2*normal(*parameter.shape, seed=k)
    return model, {'face': branch}, normalize(normal(512), dim=0)


# ---- the path from noise to data

def test_sampling_with_the_exact_velocity_recovers_the_data():
    "Flow matching: the stock Euler sampler, told the velocity of one path, walks it to its data end"
    x0, noise = normal(2, 4, 2, 3, 3), normal(2, 4, 2, 3, 3, seed=1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.)
    scheduler.set_timesteps(7)
    sample = noise
    for t in scheduler.timesteps: sample = scheduler.step(velocity(x0, noise), t, sample, return_dict=False)[0]
    assert torch.allclose(sample, x0, atol=1e-5)


def test_the_velocity_is_the_slope_of_the_path():
    x0, noise, t = normal(3, 4, 1, 2, 2), normal(3, 4, 1, 2, 2, seed=1), torch.tensor([.1, .5, .9])
    slope = (noised(x0, noise, t + .05) - noised(x0, noise, t - .05))/.1
    assert torch.allclose(slope, velocity(x0, noise), atol=1e-5)
    assert torch.allclose(predict_x0(noised(x0, noise, t), velocity(x0, noise), t), x0, atol=1e-5)
    assert torch.equal(noised(x0, noise, torch.zeros(3)), x0) and torch.equal(noised(x0, noise, torch.ones(3)), noise)


@pytest.mark.parametrize('shift', [1., 3., 8.])
def test_time_is_shifted_as_the_scheduler_shifts_it(shift):
    plain, shifted = FlowMatchEulerDiscreteScheduler(shift=1.), FlowMatchEulerDiscreteScheduler(shift=shift)
    assert torch.allclose(shift_time(plain.sigmas, shift), shifted.sigmas, atol=1e-6)


@pytest.mark.parametrize('shift', [1., 3., 8.])
@pytest.mark.parametrize('steps', [1, 3, 4, 20])
def test_a_pipeline_shifts_time_once(shift, steps):
    "Our sampler and the pipeline of diffusers walk through the same times, and no step is left without work"
    model = family_of(base_model(), shift)
    model.pipe.scheduler.set_timesteps(steps)
    assert torch.allclose(model.sigmas(steps), shift_time(torch.linspace(1, 0, steps + 1), shift), atol=1e-6)
    assert torch.equal(model.sigmas(steps), model.pipe.scheduler.sigmas)


@pytest.mark.parametrize('shift', [.5, 3.])
def test_training_times_are_logit_normal_and_then_shifted(shift):
    def times(shift): return sample_time(20_000, torch.Generator().manual_seed(3), shift)
    logit = times(1.).logit()
    assert logit.mean().abs() < .05 and (logit.std() - 1).abs() < .05
    assert torch.allclose(times(shift), shift_time(times(1.), shift))


# ---- latents and control

def test_all_grey_levels_survive_the_way_to_the_model_and_back():
    levels = np.arange(256*3, dtype=np.uint8).reshape(1, 16, 16, 3)
    x = to_tensor(levels)
    assert np.array_equal(to_frames(x), levels) and (x.min(), x.max()) == (-1, 1)
    for off in (-.4, .4):
        assert np.array_equal(to_frames(x + off/127.5), levels), 'the nearest level, not the one below'
    assert torch.equal(x[0, 0, 0], torch.from_numpy(levels[0, :, :, 0]).float()/255*2 - 1), 'the first channel is red'


def test_latents_are_those_of_the_stock_pipeline(pipe):
    clip = to_tensor(a_pose(seed=4))
    both = pipe.prepare_video_latents(clip, torch.ones_like(clip), [[]], None, CPU)
    theirs = both.chunk(2, 1)[1]  # all of the clip is reactive
    assert torch.equal(encode_video(pipe.vae, clip), theirs)
    back = pipe.vae.decode(pipe.vae.encode(clip).latent_dist.mode(), return_dict=False)[0].clamp(-1, 1)
    assert torch.allclose(decode_video(pipe.vae, theirs), back, atol=1e-4)


def test_the_control_is_that_of_the_stock_pipeline(pipe):
    "Inactive, reactive and mask, bit for bit, for a pose and for none"
    pose = a_pose(seed=4)
    latents = encode_video(pipe.vae, to_tensor(pose))
    for video, ours in ([Image.fromarray(frame) for frame in pose], to_tensor(pose)), (None, None):
        asked = pipe.preprocess_conditions(video, None, None, 1, *SIZE, len(pose), torch.float32, CPU)
        clip, mask, references = asked
        theirs = [pipe.prepare_video_latents(*asked, None, CPU), pipe.prepare_masks(mask, references)]
        assert torch.equal(vace_control(pipe.vae, ours, latents), torch.cat(theirs, 1))


def test_padding_computed_once_is_the_same_padding():
    layer, words = torch.nn.Linear(8, 8), normal(2, 20, 8)
    words[:, 6:] = 0
    with repeated_padding([layer], 6, 20): short = layer(words)
    assert torch.allclose(short, layer(words), atol=1e-6)


# ---- the face branch

def attached(**more):
    model = base_model(**more)
    branch = attach_face_branch(WanHost(model), SIZES, torch.Generator().manual_seed(0))
    moved(model, branch)
    return model, branch


def heard(layer, run):
    "What a layer answered while something ran"
    answers = []
    hook = layer.register_forward_hook(lambda module, args, out: answers.append(out.detach().clone()))
    run()
    hook.remove()
    return answers


def test_the_face_is_linear_in_its_scale():
    "Twice the scale is twice the values of the face tokens in every attention, and twice what the first attention adds"
    model, branch = attached()
    branch.set_identity(somebody())
    attentions = [site.attention for site in branch.host.sites]
    first = attentions[-1]  # of the side branch, which runs before the trunk
    projections = [attention.add_v_proj for attention in attentions]

    def answers(scale):
        branch.scale = scale
        return [heard(layer, lambda: ask(model))[0] for layer in (*projections, first)]
    *one, whole = answers(1.)
    *_, silent = answers(0.)
    for scale in (.25, .5, 2.):
        *values, added = answers(scale)
        assert all(torch.equal(value, scale*unit) for value, unit in zip(values, one))
        assert torch.allclose(added - silent, scale*(whole - silent), atol=1e-6) and not torch.equal(whole, silent)


@pytest.mark.parametrize('scale', [.5, 2.])
def test_the_face_scale_of_a_clip_reaches_the_values_once(faced, scale):
    model, adapters, face = faced
    layer, one_step = adapters['face'].values[0], replace(TWO, steps=1, guidance_scale=1.)
    asked = {'a': a_pose()}, {'a': 'a dance'}

    def value(**more):
        return heard(layer, lambda: generate(model, a_pose(), 'a dance', replace(one_step, **more), adapters, face))[0]

    assert torch.equal(value(face_scale=scale), scale*value(face_scale=1.))
    def clip_value(**more):
        sampling = replace(one_step, **more)
        return heard(layer, lambda: generate_clips(model, *asked, sampling, ABLATIONS[1], adapters, face, progress=False))[0]

    assert torch.equal(clip_value(face_scale=scale), scale*value(face_scale=1.))


def test_the_unconditional_pass_is_the_base_model():
    "Guidance leads away from nobody: the identity is for the conditional pass alone"
    model, branch = attached()
    with model.cache_context('uncond'): base = ask(base_model())
    branch.set_identity(somebody())
    with model.cache_context('uncond'): assert torch.equal(ask(model), base)
    with model.cache_context('cond'): assert not torch.equal(ask(model), base)


def test_guidance_leads_from_the_base_to_the_person(faced):
    "Of one guided step through the whole pipeline, the unconditional half is the base model's to the last bit"
    theirs, adapters, face = faced
    one_step = replace(TWO, steps=1)
    base = WanVACE(random_pipeline(0))
    plain = heard(base.pipe.transformer.proj_out, lambda: generate(base, a_pose(), 'a dance', one_step))
    personal = heard(theirs.pipe.transformer.proj_out, lambda: generate(theirs, a_pose(), 'a dance', one_step, adapters, face))
    assert len(plain) == len(personal) == 2
    assert torch.equal(plain[0], personal[0])
    assert not torch.equal(plain[1], personal[1])


def test_a_detached_branch_leaves_nothing():
    def hooks(model):
        return {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in model.named_modules()}
    fresh = base_model()
    model, branch = attached()
    branch.detach()
    assert hooks(model) == hooks(fresh) and vars(model).keys() == vars(fresh).keys()
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in fresh.named_parameters()}


def test_each_weight_of_a_branch_comes_back_to_its_place(tmp_path):
    model, branch = attached()
    file = save_branch(tmp_path/'branch.safetensors', branch)
    started = start_branch(WanHost(base_model()), SIZES, torch.Generator().manual_seed(9), file)
    for other in (load_branch(file, WanHost(base_model())), started):
        assert all(torch.equal(t, branch.state_dict()[n]) for n, t in other.state_dict().items())
    fresh = start_branch(WanHost(base_model()), SIZES, torch.Generator().manual_seed(9))
    assert all(not value.up.weight.any() for value in fresh.values)


def test_the_share_of_nobody_is_as_asked():
    all_features = normalize(normal(4000, 3, 16), dim=-1)
    for share in (0., .35, 1.):
        e = mix_embeddings(all_features, torch.Generator().manual_seed(0), share)
        there = e.any(1)
        assert abs((~there).float().mean() - share) < .03
        assert torch.allclose(e[there].norm(dim=1), torch.ones(int(there.sum())), atol=1e-5)


# ---- the LoRA

def test_a_lora_changes_its_layer_by_scale_times_alpha_over_rank(tmp_path):
    model = base_model()
    add_lora(model, LoraSettings(rank=2, alpha=6.), torch.Generator().manual_seed(0))
    moved(model)
    name = next(n.split('.lora_A')[0] for n in lora_parameters(model))
    own = {n: p for n, p in lora_parameters(model).items() if n.startswith(f'{name}.')}
    weights = {n.split('.')[-3]: p.detach().clone() for n, p in own.items()}
    x, layer = normal(5, weights['lora_A'].shape[1]), model.get_submodule(name)
    change = x @ weights['lora_A'].T @ weights['lora_B'].T
    def added(layer): return (layer(x) - layer.base_layer(x)).detach()
    assert torch.allclose(added(layer), 3*change, atol=1e-5)
    set_lora_scale(model, .5)
    assert torch.allclose(added(layer), 1.5*change, atol=1e-5)
    other = base_model()
    load_lora(other, save_lora(tmp_path, model))
    assert torch.allclose(added(other.get_submodule(name)), 3*change, atol=1e-5)
    remove_lora(other)
    assert torch.equal(ask(other), ask(base_model()))


# ---- sampling

def test_clips_of_one_run_have_noise_of_their_own(pipe):
    "Two dances with one pose and one prompt are two clips; each is the clip of its own seed, in any configuration"
    poses = {name: a_pose() for name in 'ab'}
    model = WanVACE(pipe)
    clips = generate_clips(model, poses, dict.fromkeys(poses, 'a dance'), TWO, ABLATIONS[0], progress=False)
    assert not np.array_equal(clips['a'], clips['b'])
    for name in poses:
        own = replace(TWO, seed=clip_seed(TWO.seed, name))
        assert np.array_equal(clips[name], generate(model, poses[name], 'a dance', own))


def test_without_conditioning_the_pose_does_not_matter(pipe):
    one, other = a_pose(seed=1), a_pose(seed=2)[::-1].copy()
    def clip(pose, scale): return generate(WanVACE(pipe), pose, 'a dance', replace(TWO, conditioning_scale=scale))
    assert np.array_equal(clip(one, 0.), clip(other, 0.)) and not np.array_equal(clip(one, 1.), clip(other, 1.))
    assert not np.array_equal(clip(one, .5), clip(one, 1.))


def test_guidance_leads_away_from_the_negative_prompt(pipe):
    guided = replace(TWO, negative_prompt='a blurry picture')
    model = WanVACE(pipe)
    text = encode_prompt(model, 'a dance', guided)
    assert torch.equal(text.negative, encode_prompt(model, 'a blurry picture', guided).positive)
    nowhere = generate(model, a_pose(), 'a dance', replace(TWO, negative_prompt='a dance'))
    unguided = generate(model, a_pose(), 'a dance', replace(TWO, guidance_scale=1.))
    assert np.abs(nowhere.astype(int) - unguided).max() <= 1


def test_after_a_clip_the_model_is_the_base_again(pipe, faced):
    "Who calls the transformer next, through the pipeline or not, gets the base model, also after a failure"
    theirs, adapters, face = faced
    asked = {'hidden_states': normal(1, 32, 2, 4, 6), 'timestep': torch.tensor([500.]),
        'encoder_hidden_states': normal(1, 512, 64), 'control_hidden_states': normal(1, 128, 2, 4, 6)}
    base, personal = pipe.transformer(**asked).sample, replace(TWO, steps=1, face_scale=.5)

    def is_base(): return torch.equal(theirs.pipe.transformer(**asked).sample, base) and adapters['face'].scale == 1.
    generate(theirs, a_pose(), 'a dance', personal, adapters, face)
    assert is_base()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(theirs.pipe.scheduler), 'step', lambda *args, **more: 1/0)
        with pytest.raises(ZeroDivisionError): generate(theirs, a_pose(), 'a dance', personal, adapters, face)
    assert is_base()


def test_a_fitted_pose_runs_from_the_first_frame_to_the_last():
    pose = np.zeros((16, *SIZE, 3), np.uint8) + (40 + 10*np.arange(16, dtype=np.uint8))[:, None, None, None]
    fitted = fit_pose(pose, SIZE, 21)
    levels = fitted.reshape(21, -1).mean(1)
    assert (levels[0], levels[-1]) == (40, 190) and (np.diff(levels) >= 0).all()
