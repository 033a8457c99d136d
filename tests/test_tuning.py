"""The tuning on one person: its control, its identity loss, and what happens when it does not help."""
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from faceid_nb.app.inputs import photo_control
from faceid_nb.app.phases import keep_better
from faceid_nb.app.recipes import open_recipe, tiny
from faceid_nb.core.errors import UserError
from faceid_nb.embeddings.encoders import OnnxRecogniser
from faceid_nb.training.data import PhotoCache, Sample, draw_batch, load_cache, save_cache, step_generator
from faceid_nb.training.losses import FaceReader, FaceView, draw_noise, own_face_loss
from faceid_nb.world.facepack import PoseReader, as_standing, face_unit, pose_target
from faceid_nb.world.people import random_people
from faceid_nb.world.scenes import draw_pose, draw_scene, random_scenes
from faceid_nb.world.shipped import tiny_pack

POINTS = torch.tensor([[11., 16.], [21., 16.], [16., 22.], [12., 27.], [20., 27.]])


def seeded(seed): return torch.Generator().manual_seed(seed)


def photos_of(n, known=True):
    def sample(i):
        conditions = {'control': torch.zeros(1, 1, 6, 4), 'prompt_embeds': torch.zeros(2, 3)}
        face = (POINTS.clone(), i) if known else (None, -1)
        return Sample(torch.randn(3, 1, 6, 4, generator=seeded(i)), torch.ones(1, 1, 6, 4), conditions, f'crops/{i}.png', *face)
    return PhotoCache(tuple(sample(i) for i in range(n)), F.normalize(torch.randn(n, 8, generator=seeded(9)), dim=-1), torch.zeros(1, 3), 4, 'key')


class Decodes:
    def decode_frames(self, latents): return latents.repeat_interleave(8, -1).repeat_interleave(8, -2)


READER = FaceReader((FaceView(lambda faces: F.avg_pool2d(faces, 16).flatten(1)[:, :4], 32), FaceView(lambda faces: F.avg_pool2d(faces, 8).flatten(1)[:, 4:8], 32)))


def test_a_cache_keeps_the_faces_of_its_photos(tmp_path):
    for known in (True, False):
        cache = photos_of(3, known)
        again = load_cache(save_cache(tmp_path/f'{known}.safetensors', cache))
        assert [s.photo for s in again.samples] == [s.photo for s in cache.samples]
        for one, other in zip(cache.samples, again.samples):
            assert (one.keypoints is None) == (other.keypoints is None)
            assert one.keypoints is None or torch.equal(one.keypoints, other.keypoints)


def test_a_cache_whose_photos_are_not_in_it_is_refused(tmp_path):
    cache = photos_of(2)
    wrong = replace(cache, samples=(replace(cache.samples[0], photo=5), cache.samples[1]))
    with pytest.raises(UserError, match='rows of the photos'): load_cache(save_cache(tmp_path/'c.safetensors', wrong))


def test_the_identity_loss_counts_only_samples_that_have_a_face_and_an_identity():
    cache = photos_of(4)
    batch = draw_batch(cache, 4, step_generator(0, 0), id_dropout=0.)
    noise, t = draw_noise(batch, seeded(1), 3.)
    v = torch.randn(batch.latents.shape, generator=seeded(2))
    def ask(batch, most=4): return float(own_face_loss(Decodes(), v, batch, noise, t, READER, most))
    assert ask(batch) > 0
    nobody = replace(batch, conditions={**batch.conditions, 'id_embed': torch.zeros(4, 8)})
    assert ask(nobody) == 0
    without = replace(batch, conditions={name: one for name, one in batch.conditions.items() if name != 'id_embed'})
    assert ask(without) == ask(batch), 'a LoRA alone reads no identity, and learns the person all the same'
    assert ask(draw_batch(photos_of(4, known=False), 4, step_generator(0, 0), id_dropout=0.)) == 0
    assert ask(batch, 1) == ask(replace(batch, own_embed=torch.cat([batch.own_embed[:1], torch.zeros(3, 8)])))


def test_the_identity_loss_pulls_the_picture_towards_the_photo():
    cache = photos_of(4)
    batch = draw_batch(cache, 4, step_generator(0, 0), id_dropout=0.)
    noise, t = draw_noise(batch, seeded(1), 3.)
    v = torch.randn(batch.latents.shape, generator=seeded(2)).requires_grad_(True)
    first = own_face_loss(Decodes(), v, batch, noise, t, READER, 4)
    first.backward()
    with torch.no_grad(): second = own_face_loss(Decodes(), v - .5*v.grad/v.grad.abs().max(), batch, noise, t, READER, 4)
    assert second < first


class Weights(SimpleNamespace):
    def load_state_dict(self, state): self.state = {name: w.clone() for name, w in state.items()}
    def save(self, folder): self.saved = {name: w.clone() for name, w in self.state.items()}


@pytest.mark.parametrize('before, after, kept', [(.9, .8, 'untuned'), (.9, .9, 'untuned'), (.8, .9, 'tuned')])
def test_a_training_that_does_not_help_is_taken_back_to_the_bit(tmp_path, before, after, kept):
    start, trained = {'w': torch.tensor([.1, .2])}, {'w': torch.tensor([.3, .4])}
    adapter = Weights(state=trained, saved=trained)
    result = keep_better({'face': adapter}, {'face': start}, before, after, tmp_path)
    assert result['kept'] == kept and result['heldout_before'] == before and result['heldout_after'] == after
    wanted = start if kept == 'untuned' else trained
    assert torch.equal(adapter.state['w'], wanted['w']) and torch.equal(adapter.saved['w'], wanted['w'])


def test_a_finished_run_says_whether_its_training_helped(demo):
    from faceid_nb.core.files import read_json
    result = read_json(demo/'train'/'phase.json')['result']
    assert result['kept'] == ('tuned' if result['heldout_after'] > result['heldout_before'] else 'untuned')


@pytest.mark.parametrize('keys, said', [({'model.where': '/models/wan', 'inputs.drawn': 'no', 'identity.where': '/models/clip', 'judge.kind': 'none'}, 'training.photo_control=none')])
def test_a_recipe_that_cannot_tune_so_is_refused(keys, said):
    with pytest.raises(ValueError, match=said): open_recipe('tiny', keys)


def test_the_true_answer_of_a_pose_reader_paints_the_true_pose():
    scene = random_scenes(random_people(6, seeded(1)), seeded(2), 1)
    points = draw_scene(scene, (96, 64))[1]['keypoints']
    painted = draw_pose(as_standing(pose_target(scene, points, (96, 64)), points, (96, 64)), (96, 64))
    assert torch.allclose(painted, draw_pose(scene, (96, 64)), atol=1e-3)


def test_a_pose_moves_with_the_picture():
    torch.manual_seed(0)
    net = PoseReader().eval()
    scene = random_scenes(random_people(2, seeded(1)), seeded(2), 1, ('medium shot',))
    frames, truth = draw_scene(scene, (96, 64))
    wide, points = F.pad(frames, (20, 20, 20, 20)), truth['keypoints'] + 20
    moved = F.pad(frames, (27, 13, 20, 20))
    shift = torch.tensor([7., 0.])
    with torch.no_grad(): one, other = net(wide, points), net(moved, points + shift)
    assert torch.allclose(one, other, atol=1e-3)
    assert torch.allclose(face_unit(points)[0] + shift, face_unit(points + shift)[0], atol=1e-4)


def test_the_shipped_pose_reader_sees_new_people_stand_where_they_stand():
    "The head of the drawing covers the head of the true drawing, for people of no training set"
    scene = random_scenes(random_people(12, seeded(31_000_001)), seeded(31_000_002), 1)
    frames, truth = draw_scene(scene, (192, 128))
    def uint8(x): return (x.clamp(0, 1)*255).round().byte().movedim(1, -1).numpy()
    def head(picture): return (abs(picture.astype(int) - [64, 51, 76]).max(-1) < 14)
    read = photo_control(tiny())
    drawn = [read(picture, points) for picture, points in zip(uint8(frames), truth['keypoints'].numpy())]
    shares = [(head(a) & head(b)).sum()/max(1, (head(a) | head(b)).sum()) for a, b in zip(uint8(draw_pose(scene, (192, 128))), drawn)]
    assert np.mean(shares) > .8, shares


MOBILE = Path(__file__).resolve().parent.parent.parent/'shared'/'assets'/'face_models'/'mobilefacenet_y1_arcface_128d.onnx'


@pytest.mark.parametrize('path', [
    Path(tiny_pack()[0])/'models'/tiny_pack()[1]/'recogniser.onnx',
    pytest.param(MOBILE, marks=pytest.mark.skipif(not MOBILE.is_file(), reason='the recogniser from the wild is not here'))])
def test_a_recogniser_answers_with_torch_as_with_onnxruntime(path):
    net, session = OnnxRecogniser(path), onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    faces = (torch.rand(2, 3, net.side, net.side, generator=seeded(0))*2 - 1).requires_grad_(True)
    answer = net(faces)
    asked = (faces.detach()*127.5 + 127.5 if net.scales else faces.detach()).numpy()
    assert np.abs(answer.detach().numpy() - session.run(None, {net.input: asked})[0]).max() < 1e-4
    answer.sum().backward()
    assert faces.grad.abs().sum() > 0


def small_onnx(path, kind):
    "Write a network of one node"
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in ('face', 'embedding')]
    graph = onnx.helper.make_graph([onnx.helper.make_node(kind, ['face'], ['embedding'])], 'one', values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph), str(path))
    return path


def test_a_recogniser_that_cannot_run_with_gradients_is_refused_by_the_name_of_its_layer(tmp_path):
    assert OnnxRecogniser(small_onnx(tmp_path/'known.onnx', 'Relu')).side == 8
    with pytest.raises(UserError, match='here: Softmax'): OnnxRecogniser(small_onnx(tmp_path/'other.onnx', 'Softmax'))
    (tmp_path/'torn.onnx').write_bytes(b'not a network')
    with pytest.raises(UserError, match='torn.onnx cannot be read'): OnnxRecogniser(tmp_path/'torn.onnx')
    with pytest.raises(UserError, match='gone.onnx cannot be read'): OnnxRecogniser(tmp_path/'gone.onnx')
