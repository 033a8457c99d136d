"""The embedded world as a whole: the sample in data/ is what its seeds say, and the laws that hold across people, poses, pictures and training."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import faceid_nb.world.pretrain as world_pretrain
from faceid_nb.core.files import read_json
from faceid_nb.core.media import read_image, read_video
from faceid_nb.world.people import lookalike, random_people
from faceid_nb.world.release import pretrain
from faceid_nb.world.pretrain import TOY, caption_table
from faceid_nb.world.scenes import PHOTO_KINDS, draw_pose, draw_scene, film, random_dance, random_scenes, take_photo, write_dances, write_subject


def seeded(seed): return torch.Generator().manual_seed(seed)


def alike(a, b):
    "Equal but for the last bit of a float and what JPEG or H.264 makes of it"
    return a.shape == b.shape and np.abs(a.astype(float) - b).mean() < .5


# ---- the sample

def test_the_sample_photos_come_from_their_seed(root, tmp_path):
    shipped = root/'data/subjects/sample'
    write_subject(tmp_path/'photos', seeded(1009))
    truth, fresh = read_json(shipped/'photos_truth.json'), read_json(tmp_path/'photos_truth.json')
    assert np.allclose(truth['identity'], fresh['identity'], atol=1e-5)
    assert {n: p['kind'] for n, p in truth['photos'].items()} == {n: p['kind'] for n, p in fresh['photos'].items()}
    assert sorted(p.name for p in (shipped/'photos').iterdir()) == sorted(truth['photos'])
    whole = [n for n, p in truth['photos'].items() if p['kind'] != 'unreadable']
    assert len(whole) == 25
    assert not [n for n in whole if not alike(read_image(shipped/'photos'/n), read_image(tmp_path/'photos'/n))]


def test_the_sample_has_one_of_each_trouble(root):
    photos = read_json(root/'data/subjects/sample/photos_truth.json')['photos']
    reasons = [p['reason'] for p in photos.values()]
    assert len(photos) == 26 and reasons.count(None) == 16
    assert {r for r in reasons if r} == {'unreadable', 'no_face', 'distant', 'multi_face', 'not_subject', 'blurry', 'duplicate', 'partial'}
    cut, = [n for n, p in photos.items() if p['reason'] == 'unreadable']
    with pytest.raises(ValueError, match=cut): read_image(root/'data/subjects/sample/photos'/cut)


def test_the_sample_dances_come_from_their_seed(root, tmp_path):
    shipped = root/'data/dances'
    for pose in write_dances(tmp_path, 3, seeded(2000)):
        for name in (pose.name, pose.name.replace('_pose', '')):
            (frames, fps), (fresh, _) = read_video(shipped/name), read_video(tmp_path/name)
            assert frames.shape == (17, 192, 128, 3) and fps == 10
            assert alike(frames, fresh), name
        truth, fresh = (read_json(place/f'{pose.stem.removesuffix("_pose")}.json') for place in (shipped, tmp_path))
        assert truth['caption'] == fresh['caption'] and np.allclose(truth['keypoints'], fresh['keypoints'], atol=.01)


def test_the_sample_is_small_and_told_about(root):
    assert sum(p.stat().st_size for p in (root/'data').rglob('*') if p.is_file()) < 10_000_000
    told = (root/'data/README.md').read_text(encoding='utf-8')
    assert 'CC0' in told and 'no real person' in told and 'manual_seed(1009)' in told and 'manual_seed(2000)' in told


# ---- laws

def test_the_pose_tells_nothing_of_who():
    people, dance = random_people(3, seeded(1)), random_dance(seeded(2), 5)
    clips = [film(p, dance, (96, 64), seeded(3)) for p in (*people, lookalike(people[:1], 1., seeded(4))[0])]
    assert all(np.array_equal(pose, clips[0][1]) for _, pose, _ in clips)
    assert all(not np.array_equal(frames, clips[0][0]) for frames, _, _ in clips[1:])
    assert len({truth['caption'] for _, _, truth in clips}) == 1


def test_no_caption_has_a_word_for_a_face():
    said = {w for c in caption_table() for w in c.replace(',', '').split()}
    assert not said & set('face hair blond bald eye eyes nose mouth lips skin beard moustache glasses ears mole man woman old young pretty smiling'.split())
    assert set(random_scenes(random_people(300, seeded(0)), seeded(1)).captions) <= set(caption_table())


@pytest.mark.parametrize('kind', PHOTO_KINDS)
def test_a_photo_is_a_matter_of_its_generator(kind):
    who = random_people(1, seeded(5))[0]
    (image, truth), (again, same) = (take_photo(who, kind, (120, 90), seeded(6)) for _ in range(2))
    assert np.array_equal(image, again) and truth == same
    assert image.shape == (120, 90, 3) and image.dtype == np.uint8
    assert truth['reason'] == PHOTO_KINDS[kind] and len(truth['faces']) == {'nobody': 0, 'group': 2}.get(kind, 1)


def test_key_points_lie_in_the_face():
    g = seeded(9)
    scene = random_scenes(random_people(40, g), g, 4)
    _, truth = draw_scene(scene, (96, 64))
    box, points = truth['face_box'][:, None], truth['keypoints']
    slack = .02*(box[..., 2:] - box[..., :2])
    assert ((points > box[..., :2] - slack) & (points < box[..., 2:] + slack)).all()


def test_nobody_is_drawn_by_who_stands_beside_them():
    g = seeded(10)
    scene = random_scenes(random_people(6, g), g, 1)
    one = scene.apply(lambda o: o[4:5])
    assert (draw_scene(one, (96, 64))[0][0] - draw_scene(scene, (96, 64))[0][4]).abs().max() < 1e-4
    assert (draw_pose(one, (96, 64))[0] - draw_pose(scene, (96, 64))[4]).abs().max() < 1e-4


def test_a_subject_of_any_size_has_its_truncated_file(tmp_path):
    truth = write_subject(tmp_path/'photos', seeded(3), n_good=2, bad=('unreadable',), size=(96, 72))
    cut, = [n for n, p in truth['photos'].items() if p['reason'] == 'unreadable']
    with pytest.raises(OSError): Image.open(tmp_path/'photos'/cut).load()


# ---- training from nothing

def short(config, steps=1):
    "The same training in few steps, with a checkpoint at each"
    stages = tuple(replace(stage, steps=steps) for stage in config.stages)
    return replace(config, stages=stages, checkpoint_every=1)


SMALL = replace(TOY, people=8, clips=2, size=(64, 64), critic=short(TOY.critic), recogniser=short(TOY.recogniser),
                detector=short(TOY.detector), tuning=short(TOY.tuning), vae=short(TOY.vae, 2),
                decoder=short(TOY.decoder), denoiser=short(TOY.denoiser, 2), together=short(TOY.together, 2),
                likeness=short(TOY.likeness, 2))


def made(folder): return read_json(Path(folder)/'weights'/'card.json')['sha256']


def test_pretraining_killed_in_four_stages_makes_the_same_weights(tmp_path, monkeypatch):
    pretrain(tmp_path/'whole', SMALL)
    # The denoiser alone, together with its branch, with the faces judged. Each call of a loss is a step; the last two
    # runs begin with the second step of the stage before. So each is killed in its second step, after one checkpoint.
    fatal_calls = {'vae': ('vae_loss', 2), 'denoiser': ('denoiser_loss', 2), 'together': ('denoiser_loss', 3),
                   'likeness': ('denoiser_loss', 3)}
    for stage, (name, fatal_call) in fatal_calls.items():
        real, calls = getattr(world_pretrain, name), []
        def fatal(*args, **named):
            calls.append(1)
            if len(calls) == fatal_call: raise KeyboardInterrupt
            return real(*args, **named)
        monkeypatch.setattr(world_pretrain, name, fatal)
        with pytest.raises(KeyboardInterrupt): pretrain(tmp_path/'killed', SMALL)
        monkeypatch.undo()
        assert [path.parent.parent.name for path in (tmp_path/'killed').rglob('step_*.safetensors')] == [stage]
    pretrain(tmp_path/'killed', SMALL)
    assert made(tmp_path/'killed') == made(tmp_path/'whole')
    assert not list((tmp_path/'killed').rglob('checkpoints'))
