"""The judge measures and does nothing else, and its figures mean what they say."""
import shutil

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from faceid_nb.app.models import ABLATIONS, open_judge_of
from faceid_nb.app.recipes import open_recipe
from faceid_nb.app.runner import run_embed
from faceid_nb.core.errors import UserError
from faceid_nb.core.files import load_tensors, read_json
from faceid_nb.embeddings.appearance import PARTS, FaceEncoder, open_appearance, side_by_side
from faceid_nb.embeddings.identity import load_identity
from faceid_nb.evaluation.results import goodhart_gap, lost_traits
from faceid_nb.world.shipped import tiny_appearance_path

FEW = {'seed': '5', 'inputs.n_photos': '8', 'curation.min_photos': '4'}


@pytest.fixture(scope='module')
def two_runs(tmp_path_factory):
    "The same photos with the judge of the package, and without one"
    place = tmp_path_factory.mktemp('judged')
    for name, keys in {'with': {}, 'without': {'judge.kind': 'none'}}.items():
        run_embed(open_recipe('tiny', FEW | keys), place/name)
    return place


def test_the_judge_changes_neither_the_choice_nor_the_identity(two_runs):
    one, two = (two_runs/name for name in ('with', 'without'))
    assert (one/'curate'/'manifest.json').read_bytes() == (two/'curate'/'manifest.json').read_bytes()
    first, second = (load_identity(run/'embed') for run in (one, two))
    assert (first.photos == second.photos).all() and (first.vector() == second.vector()).all()
    rows, bare = (load_tensors(run/'embed'/'gallery.safetensors')[0] for run in (one, two))
    assert set(bare) == {name for name in rows if not name.startswith('judge.')}
    assert all((rows[name] == bare[name]).all() for name in bare)


def test_no_part_of_an_identity_is_the_judge():
    assert {part for parts in PARTS.values() for part in parts} == {'recogniser', 'appearance'}


def test_an_identity_names_every_file_that_made_it(two_runs):
    identity = load_identity(two_runs/'with'/'embed')
    assert {'recogniser.onnx', 'appearance_tiny/model.safetensors'} <= set(identity.encoder)
    assert not [name for name in identity.encoder if name.startswith('judge')]
    other = dict(identity.encoder) | {'appearance_tiny/model.safetensors': '0'*64}
    with pytest.raises(UserError, match='model.safetensors'): load_identity(two_runs/'with'/'embed', other)


def test_one_network_does_not_judge_its_own_condition():
    pack = {'pack.kind': 'opencv', 'pack.root': '/faces', 'judge.kind': 'opencv', 'judge.root': '/faces', 'mapper.id_dim': '128'}
    with pytest.raises(UserError, match='another network'): open_recipe('wan21_vace_1_3b', pack)
    assert open_judge_of(open_recipe('tiny', {'judge.kind': 'none'})) is None
    with pytest.raises(UserError, match='judge.root=FOLDER'): open_recipe('tiny', {'judge.kind': 'insightface'})


@given(st.lists(st.floats(.5, 1), min_size=4, max_size=9, unique=True), st.lists(st.floats(.5, 1), min_size=4, max_size=9, unique=True),
       st.floats(-1, 1), st.floats(-1, 1), st.floats(.1, 5), st.floats(-3, 3))
@settings(deadline=None, max_examples=60)
def test_the_gap_does_not_depend_on_the_scale_of_either_network(real_c, real_j, clip_c, clip_j, factor, shift):
    real_c, real_j = np.array(real_c), np.array(real_j)
    gap = goodhart_gap((clip_c, clip_j), (real_c, real_j))
    if gap is None or min(real_c.std(), real_j.std()) < 1e-3: return
    scaled = goodhart_gap((factor*clip_c + shift, clip_j), (factor*real_c + shift, real_j))
    assert scaled == pytest.approx(gap, rel=1e-6, abs=1e-6)
    assert goodhart_gap((clip_j, clip_c), (real_j, real_c)) == pytest.approx(-gap, rel=1e-6, abs=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_photos_lose_nothing_against_themselves(seed):
    rng = np.random.default_rng(seed)
    names, photos = tuple('abcdef'), rng.random((5, 6))
    assert lost_traits(names, photos, photos[rng.permutation(5)]) == ()
    changed = photos.copy()
    changed[:, 2] += 2
    assert lost_traits(names, photos, changed) == ('c',)


def test_a_damaged_encoder_is_named():
    broken = FaceEncoder('judge', {'judge/x.onnx': '0'}, lambda image, points: (np.full(4, np.nan), np.zeros(0)))
    with pytest.raises(UserError, match='judge/x.onnx'): broken.embed(np.zeros((9, 9, 3), np.uint8), np.zeros((5, 2)))


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'preprocessor_config.json'])
def test_a_missing_or_damaged_file_of_the_appearance_encoder_is_one_line(tmp_path, name):
    folder = shutil.copytree(tiny_appearance_path(), tmp_path/'clip')
    (folder/name).write_bytes(b'not what it was')
    with pytest.raises(UserError) as error: open_appearance(folder)
    assert '\n' not in str(error.value) and 'clip' in str(error.value)
    (folder/name).unlink()
    with pytest.raises(UserError, match=f'{name} missing'): open_appearance(folder)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_the_cosine_of_an_identity_is_the_mean_of_its_parts(seed):
    rng = np.random.default_rng(seed)
    def unit(d): return (lambda x: x/np.linalg.norm(x, axis=-1, keepdims=True))(rng.normal(size=(3, d)))
    a, b = unit(7), unit(12)
    both = side_by_side([a, b])
    assert np.allclose(both @ both.T, (a @ a.T + b @ b.T)/2, atol=1e-5)


def test_a_summary_tells_both_networks(demo):
    summary = read_json(demo/'evaluate'/'summary.json')
    names = {one.name for one in ABLATIONS}
    assert summary['judge'] and set(summary['identity']) == set(summary['identity_conditioning']) == names | {'real', 'stranger'}
    assert set(summary['goodhart_gap']) == set(summary['traits_lost']) == names
    scores = read_json(demo/'evaluate'/'scores.json')
    assert set(scores['goodhart_gap']) == names
    assert 'Two networks, one person' in (demo/'evaluate'/'report.html').read_text(encoding='utf-8')
