"""Laws of the look-alike benchmark: a perfect painter is always right, a painter who cannot tell people apart is at chance."""
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope='module')
def bench():
    spec = spec_from_file_location('lookalikes', Path(__file__).parents[1]/'benchmarks'/'lookalikes.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def embed(frames):
    "Colours of a picture as a unit vector; a black picture has no face"
    rows = np.stack([frame.astype(float).reshape(16, frame.shape[0]//16, -1).mean((1, 2)) for frame in frames])
    rows = rows[rows.max(1) > 0] - 100
    return rows/np.linalg.norm(rows, axis=1, keepdims=True)


def count(bench, draw, n=6): return bench.look_alikes(bench.Pairs(pairs=n, photos=1, frames=1), draw, embed)


def test_whoever_copies_the_right_photo_is_right(bench, monkeypatch):
    "The judge reads the true traits here, so that only the counting is tested"
    people = []
    def true_scene(scene, *more):
        rows = np.zeros((len(scene.identity), 3, 192, 128), np.float32)
        rows[:] = scene.identity[:, :1, None, None]
        return bench.torch.from_numpy(rows), {}
    monkeypatch.setattr(bench, 'pictures', lambda drawn: drawn.movedim(1, -1).numpy())
    monkeypatch.setattr(bench, 'draw_scene', true_scene)
    def read(frames):
        angle = frames[:, 0, 0, 0]/10
        return np.stack([np.cos(angle), np.sin(angle)], 1)
    def found(draw): return bench.look_alikes(bench.Pairs(pairs=9, photos=1, frames=1), draw, read)
    own = found(lambda photos, pose, seed: people.append(photos) or photos)
    assert own['right'] == own['clips'] == 18 and own['both'] == 9 and own['share'] == 1
    one_of_all = found(lambda photos, pose, seed: people[0])
    assert one_of_all['right'] == 9 and one_of_all['both'] == 0, 'one clip for all is right for one of each pair'


def test_a_clip_without_a_face_is_wrong(bench):
    found = count(bench, lambda photos, pose, seed: np.zeros_like(photos), 2)
    assert found['right'] == 0 and found['clips'] == 4


def test_pairs_are_as_far_apart_as_asked(bench):
    found = bench.look_alikes(bench.Pairs(pairs=6, near=2., far=3., photos=1, frames=1), lambda photos, pose, seed: photos, embed)
    assert 2 <= found['by_distance'][0]['from'] <= found['by_distance'][-1]['to'] <= 3.0001
    assert len(found['by_distance']) == 3
