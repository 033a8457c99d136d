"Laws of inference: hostile pose clips, models that are not there, and clips that are the same tomorrow"
import json
import shutil
import socket
from dataclasses import replace
import numpy as np
import pytest
import torch
from PIL import Image
from faceid_nb.adapters.branch import attach_face_branch
from faceid_nb.adapters.lora import LoraSettings, attach_lora
from faceid_nb.adapters.mapper import MapperConfig
from faceid_nb.core.media import write_video
from faceid_nb.app.models import ABLATIONS
from faceid_nb.inference.generate import Sampling, clip_seed, encode_prompt, generate, generate_clips, write_clips
from faceid_nb.inference.pose import check_pose, fit_pose, list_poses, overlay_pose, read_pose
from faceid_nb.models.wan_folder import missing_parts, model_folder, open_pipeline
from faceid_nb.models.wan_vace import WanVACE
from faceid_nb.world.tiny import random_pipeline
from toys import weights_of

SIZE = (32, 48)
TWO = Sampling(steps=2, seed=1)


def a_pose(frames=5, size=SIZE, seed=0):
    "Bars that wander over black"
    rng = np.random.default_rng(seed)
    pose = np.zeros((frames, *size, 3), np.uint8)
    for f in range(frames): pose[f, 4 + 2*f:10 + 2*f, 8:24] = rng.integers(120, 255, 3)
    return pose


@pytest.fixture(scope='module')
def pipe():
    pipe = random_pipeline(0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope='module')
def base(pipe): return WanVACE(pipe)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')/'tiny'
    random_pipeline(0).save_pretrained(folder)
    return folder


@pytest.fixture(scope='module')
def dressed():
    "A model whose adapters do something, these adapters and a face"
    g = torch.Generator().manual_seed(0)
    model = WanVACE(random_pipeline(0))
    host = model.hosts[0]
    adapters = {'face': attach_face_branch(host, MapperConfig(width=host.width), g), 'lora': attach_lora(host, LoraSettings(), g)}
    for parameter in weights_of(adapters): parameter.data += .2*torch.randn(parameter.shape, generator=g)
    return model, adapters, torch.nn.functional.normalize(torch.randn(512, generator=g), dim=0)


# ---- pose clips

@pytest.mark.parametrize('frames,size,wanted,words', [
    (16, SIZE, None, 'clip.mp4 has 16 frames; the model needs 4k[+]1, for example 17'),
    (13, SIZE, 17, 'clip.mp4 has 13 frames; this recipe needs 17'),
    (17, (48, 32), 17, r'has frames of 48 x 32 pixels \(height x width\); this recipe needs 32 x 48'),
    (17, (16, 24), 17, 'has frames of 16 x 24 pixels'),
])
def test_a_clip_that_does_not_fit(tmp_path, frames, size, wanted, words):
    path = write_video(tmp_path/'clip.mp4', a_pose(frames, size), 10)
    with pytest.raises(ValueError, match=words) as caught: read_pose(path, SIZE, wanted)
    assert str(caught.value).endswith(f'. Run: faceid pose {path} --recipe NAME')


def hostile(folder, kind):
    "A file that no pose clip should be"
    path = folder/f'{kind}.mp4'
    if kind == 'empty': path.write_bytes(b'')
    if kind == 'text': path.write_text('I am not a film\n'*50)
    if kind == 'picture': Image.new('RGB', (48, 32), 'white').save(path, format='PNG')
    if kind == 'noise': path.write_bytes(np.random.default_rng(0).bytes(5000))
    if kind == 'header': path.write_bytes(write_video(folder/'whole.mp4', a_pose(17), 10).read_bytes()[:300])
    if kind == 'folder': path.mkdir()
    if kind == 'black': write_video(path, np.zeros((17, *SIZE, 3), np.uint8), 10)
    return path


@pytest.mark.parametrize('kind', ['empty', 'text', 'picture', 'noise', 'header', 'folder', 'black', 'nowhere'])
def test_hostile_clips_give_one_clear_error(tmp_path, kind):
    path = hostile(tmp_path, kind)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as caught: read_pose(path, SIZE, 17)
    assert f'{kind}.mp4' in str(caught.value) and len(str(caught.value)) < 400
    assert sorted(tmp_path.iterdir()) == before


def test_a_good_clip_comes_back(tmp_path):
    pose = a_pose(17)
    back = read_pose(write_video(tmp_path/'x.mp4', pose, 10, crf=1), SIZE, 17)
    assert back.shape == pose.shape and np.abs(back.astype(int) - pose).mean() < 6


def test_fitting_is_explicit_and_idempotent():
    pose = a_pose(16, (64, 64))
    fitted = fit_pose(pose, SIZE, 17)
    assert np.array_equal(fit_pose(fitted, SIZE, 17), fitted)
    with pytest.raises(ValueError, match='4k[+]1'): fit_pose(pose, SIZE, 16)
    with pytest.raises(ValueError, match='0 frames'): fit_pose(pose[:0], SIZE, 17)


def test_dances_are_found_by_name(tmp_path):
    for name in ('b_pose.mp4', 'a_pose.mp4', 'a.mp4', '.c_pose.mp4'): (tmp_path/name).write_bytes(b'x')
    assert list(list_poses(tmp_path)) == ['a', 'b']
    with pytest.raises(ValueError, match='no such folder'): list_poses(tmp_path/'nowhere')


def test_overlay_leaves_a_clip_without_pose_alone():
    clip = a_pose(seed=3)
    assert np.array_equal(overlay_pose(clip, np.zeros_like(clip)), clip)


# ---- models on the disk

def test_a_repository_that_is_not_here_says_what_to_fetch(monkeypatch):
    def no_network(*args): raise AssertionError('the network was touched')
    monkeypatch.setattr(socket.socket, 'connect', no_network)
    with pytest.raises(ValueError) as caught: open_pipeline('somebody/some-model', revision='abc', gigabytes=16.2)
    text = str(caught.value)
    for word in ('somebody/some-model', '16.2 GB', 'hf download', '--revision abc', '--local-dir', 'model_index.json', 'transformer'): assert word in text


def test_a_folder_that_is_not_there():
    with pytest.raises(ValueError, match='no such model folder'): open_pipeline('./nowhere')


@pytest.mark.parametrize('part', ['vae', 'scheduler', 'tokenizer', 'text_encoder', 'transformer'])
def test_a_missing_part_is_named(tmp_path, model, part):
    shutil.copytree(model, tmp_path/'m', ignore=shutil.ignore_patterns(part))
    with pytest.raises(ValueError, match=f'lacks {part}/'): open_pipeline(tmp_path/'m')


def test_a_missing_shard_is_named(tmp_path, model):
    shutil.copytree(model, tmp_path/'m')
    weights = next((tmp_path/'m'/'transformer').glob('*.safetensors'))
    shards = {'weight_map': {'a': weights.name, 'b': 'diffusion_pytorch_model-00002-of-00002.safetensors'}}
    (weights.parent/'diffusion_pytorch_model.safetensors.index.json').write_text(json.dumps(shards))
    assert missing_parts(tmp_path/'m') == ['transformer/diffusion_pytorch_model-00002-of-00002.safetensors']


def test_only_pickled_weights_count_as_missing(tmp_path, model):
    shutil.copytree(model, tmp_path/'m')
    for path in (tmp_path/'m'/'vae').glob('*.safetensors'): path.rename(path.with_suffix('.bin'))
    with pytest.raises(ValueError, match=r'lacks vae/\*\.safetensors'): open_pipeline(tmp_path/'m')


def test_a_model_of_another_kind(tmp_path, model):
    shutil.copytree(model, tmp_path/'m')
    index = json.loads((tmp_path/'m'/'model_index.json').read_text()) | {'_class_name': 'WanPipeline'}
    (tmp_path/'m'/'model_index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match='is for a WanPipeline'): open_pipeline(tmp_path/'m')


def test_a_cut_file_is_an_error_about_the_folder(tmp_path, model):
    shutil.copytree(model, tmp_path/'m')
    weights = next((tmp_path/'m'/'vae').glob('*.safetensors'))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match='cannot be read'): open_pipeline(tmp_path/'m')


def test_saved_and_opened_is_the_same_model(model, base):
    opened = WanVACE(open_pipeline(model))
    assert model_folder(model) == model
    for part in ('transformer', 'vae', 'text_encoder'):  # weights mapped from a file lie elsewhere in memory, and sums round otherwise
        for weight in getattr(opened.pipe, part).parameters(): weight.data = weight.data.clone()
    assert np.array_equal(generate(opened, a_pose(), 'a dance', TWO), generate(base, a_pose(), 'a dance', TWO))


# ---- generation

def test_the_plain_pipeline_gives_the_same_clip(pipe, base):
    pose = a_pose()
    plain = pipe(prompt='a dance', negative_prompt='', video=[Image.fromarray(f) for f in pose], height=SIZE[0], width=SIZE[1], num_frames=5,
        num_inference_steps=2, guidance_scale=TWO.guidance_scale, generator=torch.Generator().manual_seed(1), output_type='np').frames[0]
    ours = generate(base, pose, 'a dance', TWO)
    assert np.abs(ours.astype(float) - 255*plain).max() < 1.01


def test_same_seed_same_clip_and_the_global_chance_is_left_alone(base):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = generate(base, a_pose(), 'a dance', TWO)
    assert torch.equal(state, torch.get_rng_state())
    torch.randn(7)
    assert np.array_equal(generate(base, a_pose(), 'a dance', TWO), first)
    assert not np.array_equal(generate(base, a_pose(), 'a dance', replace(TWO, seed=2)), first)


def test_switched_off_is_the_base_to_the_last_bit(base, dressed):
    theirs, adapters, face = dressed
    plain = generate(base, a_pose(), 'a dance', TWO)
    for off in (generate(theirs, a_pose(), 'a dance', replace(TWO, face_scale=0.), adapters, face, on=('face',)),
                generate(theirs, a_pose(), 'a dance', TWO, adapters, face, on=())):
        assert np.array_equal(off, plain)
    assert not np.array_equal(generate(theirs, a_pose(), 'a dance', TWO, adapters, face), plain)


def test_four_configurations_differ_and_do_not_disturb_each_other(dressed):
    model, adapters, face = dressed
    def run(part): return generate_clips(model, {'a': a_pose()}, {'a': 'a dance'}, TWO, part, adapters, face, progress=False)['a']
    clips = [run(part) for part in ABLATIONS]
    again = [run(part) for part in reversed(ABLATIONS)][::-1]
    for i in range(4):
        assert np.array_equal(clips[i], again[i])
        for j in range(i): assert not np.array_equal(clips[i], clips[j])


def test_broken_weights_stop_the_run_and_leave_the_switches_as_they_were(dressed):
    model, adapters, face = dressed
    weight = model.pipe.transformer.proj_out.weight
    healthy = weight.detach().clone()
    before = generate(model, a_pose(), 'a dance', TWO, adapters, face)
    weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match='not finite after step 1'): generate(model, a_pose(), 'a dance', replace(TWO, face_scale=.5), adapters, face)
    weight.data.copy_(healthy)
    assert [adapter.scale for adapter in adapters.values()] == [1., 1.]
    assert np.array_equal(generate(model, a_pose(), 'a dance', TWO, adapters, face), before)


def test_a_nan_in_the_identity_is_caught(dressed):
    model, adapters, face = dressed
    with pytest.raises(ValueError, match='not finite'): generate(model, a_pose(), 'a dance', TWO, adapters, torch.full_like(face, torch.nan))


def test_a_clip_does_not_depend_on_its_company(base):
    poses = {'a': a_pose(seed=1), 'b': a_pose(seed=2)}
    both = generate_clips(base, poses, dict.fromkeys(poses, 'a dance'), TWO, ABLATIONS[0], progress=False)
    alone = generate_clips(base, {'b': poses['b']}, {'b': 'a dance'}, TWO, ABLATIONS[0], progress=False)
    assert np.array_equal(both['b'], alone['b'])
    assert clip_seed(0, 'a') != clip_seed(0, 'b') != clip_seed(1, 'b')


def test_prompts_are_encoded_once_and_never_cut_in_silence(pipe, monkeypatch):
    calls = []
    real = type(pipe).encode_prompt
    monkeypatch.setattr(type(pipe), 'encode_prompt', lambda self, *a, **k: calls.append(k.get('prompt_embeds') is None) or real(self, *a, **k))
    poses = {name: a_pose() for name in 'abc'}
    generate_clips(WanVACE(pipe), poses, dict.fromkeys(poses, 'a dance'), replace(TWO, steps=1), ABLATIONS[0], progress=False)
    assert sum(calls) == 2, 'the prompt, and the negative one'
    with pytest.raises(ValueError, match='at most 512'): encode_prompt(WanVACE(pipe), 'dance '*600, TWO)


@pytest.mark.parametrize('change', [{'steps': 0}, {'guidance_scale': 0.}, {'fps': 0.}, {'seed': -1}])
def test_a_knob_out_of_range(change):
    with pytest.raises(ValueError, match=next(iter(change))): Sampling(**change)


def test_clips_are_written_under_plain_names_only(tmp_path):
    clip = a_pose()
    assert write_clips(tmp_path/'new', {'a': clip}, 10)['a'].is_file()
    for name in ('../a', '.a', 'a/b'):
        with pytest.raises(ValueError, match='cannot be a file name'): write_clips(tmp_path, {name: clip}, 10)
    assert [path.name for path in tmp_path.iterdir()] == ['new']


def test_a_pose_is_checked_before_anything_slow(base, monkeypatch):
    for slow in ('encode_text', 'build_control', 'velocity'):
        monkeypatch.setattr(WanVACE, slow, lambda *a, **k: pytest.fail('the model was asked'))
    with pytest.raises(ValueError, match='needs 4k[+]1'): generate(base, a_pose(4), 'a dance', TWO)
    with pytest.raises(ValueError, match='float'): generate(base, a_pose()/255., 'a dance', TWO)
    assert check_pose(a_pose(), SIZE).shape == (5, *SIZE, 3)
