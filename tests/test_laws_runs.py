"""Laws of a run: what its phases depend on, what is judged by what, and what is left when a person is forgotten."""
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from faceid_nb.app import phases, runner, runs
from faceid_nb.app.cli import main
from faceid_nb.app.inputs import find_dances, find_photos
from faceid_nb.app.runner import write_run, open_run, run_train
from faceid_nb.app.recipes import open_recipe, with_overrides
from faceid_nb.app.models import face_finder
from faceid_nb.app.runner import run_clip
from faceid_nb.app.store import PhaseResult, run_phase, find_result, read_result
from faceid_nb.embeddings.work import ORDER, load_faces
from faceid_nb.core.files import load_tensors, write_json
from faceid_nb.core.media import read_video
from faceid_nb.core.plot import show_clip
from faceid_nb.curation.manifest import load_manifest
from faceid_nb.embeddings.encoders import embed_photos
from faceid_nb.embeddings.identity import load_identity
from faceid_nb.training.checkpoint import load_checkpoint

SMALL = {
    'subject': 'ann', 'seed': 3, 'inputs.n_photos': 8, 'inputs.n_dances': 2, 'num_frames': 5, 'pack.det_sides': '192',
    'flow_shift': 1.7, 'sampling.steps': 1, 'training.seed': 40, 'training.steps_a': 2, 'training.steps_b': 1,
    'training.batch_size': 2, 'training.preview_every': 0}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A small run of a drawn person, trained: its recipe and its folder"
    folder, recipe = tmp_path_factory.mktemp('runs')/'ann', open_recipe('tiny', SMALL)
    run_train(recipe, folder)
    return recipe, folder


@pytest.fixture
def home(trained, tmp_path):
    "A copy of that run to change"
    shutil.copytree(trained[1], tmp_path/'runs'/'ann')
    return tmp_path/'runs'


# ---- what a phase depends on

def keys_of(recipe, folder, model='a model', pack='a pack'):
    "The key of every phase for this recipe, without doing the work"
    keys, step = {}, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, 'model_hashes', lambda recipe: {'model': model})
        patch.setattr(phases, 'pack_hashes', lambda recipe: {'pack': pack})
        for name in ORDER:
            keys[name] = phases.PLANS[name](recipe, folder, step).key
            step = replace(read_result(folder/name, name) or PhaseResult(name, '', 0., {}, {}), key=keys[name])
    return keys


DEPENDS = {  # key of a recipe -> another value, and the first phase that has to be done again
    'curation.min_face': (40, 'curate'), 'curation.heldout': (.5, 'curate'), 'cutting.large': ('yes', 'curate'),
    'subject': ('bob', 'curate'), 'trigger': ('xyz', 'curate'),
    'lora.rank': (4, 'train'), 'lora.alpha': (3., 'train'), 'mapper.hidden': (256, 'train'),
    'training.lr_lora': (1e-4, 'train'), 'training.seed': (41, 'train'), 'training.id_dropout': (.25, 'train'),
    'flow_shift': (2.5, 'train'), 'model.dtype': ('bfloat16', 'train'),
    'sampling.steps': (2, 'generate'), 'sampling.guidance_scale': (2., 'generate'),
    'sampling.face_scale': (1.5, 'generate'), 'sampling.seed': (9, 'generate'),
    'sampling.negative_prompt': ('blurry', 'generate')}


@pytest.fixture(scope='module')
def usual(trained): return keys_of(*trained)


def redone(before, after): return tuple(name for name in ORDER if before[name] != after[name])


def since(first): return ORDER[ORDER.index(first):]


@pytest.mark.parametrize('key', DEPENDS)
def test_a_phase_is_done_again_when_something_it_depends_on_changes(trained, usual, key):
    "And the phases before it are not"
    recipe, folder = trained
    value, first = DEPENDS[key]
    assert redone(usual, keys_of(with_overrides(recipe, {key: value}), folder)) == since(first)


def test_other_models_are_another_run(trained, usual):
    assert keys_of(*trained) == usual
    assert redone(usual, keys_of(*trained, model='another model')) == since('train')
    assert redone(usual, keys_of(*trained, pack='another pack')) == since('curate')


def test_a_word_beside_a_photo_and_a_decision_by_hand_are_part_of_the_curation(trained, home):
    recipe, folder = trained[0], home/'ann'
    shutil.copytree(find_photos(recipe, folder), home/'photos')
    own = replace(recipe, inputs=replace(recipe.inputs, photos=str(home/'photos')))
    before = keys_of(own, folder)
    write_json(folder/'by_hand.json', {min(p.name for p in home.glob('photos/*.jpg')): False})
    by_hand = keys_of(own, folder)
    min(home.glob('photos/*.txt')).write_text('in a red hat')
    assert redone(before, by_hand) == redone(by_hand, keys_of(own, folder)) == ORDER


def test_a_result_counts_only_whole_and_for_its_question(tmp_path):
    def work(place):
        (place/'a.txt').write_text('a')
        (place/'b.txt').write_text('b')
        return {'x': 1}
    run_phase(tmp_path, 'embed', 'key', work)
    assert find_result(tmp_path/'embed', 'key').result == {'x': 1} and find_result(tmp_path/'embed', 'other') is None
    (tmp_path/'embed'/'b.txt').write_text('c')
    assert find_result(tmp_path/'embed', 'key') is None
    (tmp_path/'embed'/'b.txt').unlink()
    assert find_result(tmp_path/'embed', 'key') is None


def test_a_run_remembers_its_choices_and_takes_new_ones(trained, tmp_path):
    recipe, _ = trained
    write_run(recipe, tmp_path)
    assert open_run(tmp_path) == recipe
    wanted = replace(recipe, size=(64, 32), sampling=replace(recipe.sampling, steps=9))
    assert open_run(tmp_path, {'sampling.steps': '9', 'size': '64x32'}) == wanted


# ---- what is learned from, and what is judged by

def test_nothing_that_judges_was_learned_from(trained):
    "The gallery is the held-out photos alone, the identity the others alone"
    recipe, folder = trained
    manifest, photos, faces = load_manifest(folder/'curate'), find_photos(recipe, folder), face_finder(recipe)
    gallery = load_tensors(folder/'embed'/'gallery.safetensors')[0]['gallery'].numpy()
    identity = load_identity(folder/'embed')
    assert ((gallery*embed_photos(faces, manifest, photos, 'heldout')).sum(1) > .9999).all()
    assert set(identity.files).isdisjoint(p.file for p in manifest.kept('heldout'))
    assert set(identity.files) == {p.file for s in ('train', 'reference') for p in manifest.kept(s)}
    assert (identity.photos[:, :512]*2**.5 @ gallery.T).max() < .9999
    by_judge = load_tensors(folder/'embed'/'gallery.safetensors')[0]['judge.gallery'].numpy()
    stored = load_faces(folder/'curate').judge
    assert (by_judge == [stored[p.sha256] for p in manifest.kept('heldout')]).all()


def test_training_is_given_the_shift_and_the_seed_of_the_run(trained):
    recipe, folder = trained
    _, about, *_ = load_checkpoint(folder/'train'/'checkpoints')
    assert about['shift'] == recipe.flow_shift == 1.7 and about['seed'] == 43


def test_what_a_clip_is_asked_for_is_what_is_drawn(trained, tmp_path, monkeypatch):
    "The strength and the words of the command line, else those of the recipe; the person of the run in any case"
    recipe, folder = trained
    asked, pose = [], find_dances(recipe, folder)[0].pose
    def drawn(pipe, frames, prompt, sampling, branch, identity):
        asked.append((prompt, sampling.face_scale, sampling.seed, identity.numpy(), frames))
        return np.zeros((5, 32, 32, 3), np.uint8)
    monkeypatch.setattr(runner, 'generate', drawn)
    run_clip(recipe, folder, pose, '{trigger} waving', .5, None, tmp_path/'a.mp4')
    run_clip(recipe, folder, pose, '', None, None, tmp_path/'b.mp4')
    (words, scale, *_), (own, usual, *_) = asked
    assert (words, scale) == (f'{recipe.trigger} waving', .5)
    assert (own, usual) == (recipe.prompt.replace('{trigger}', recipe.trigger), recipe.sampling.face_scale)
    assert all(np.array_equal(one[3], load_identity(folder/'embed').mean)
        and np.array_equal(one[4], read_video(pose)[0]) for one in asked)


# ---- what is left

def forget_ann(home): assert main(['forget', 'ann', '--runs', str(home), '--yes']) == 0


def test_forgetting_takes_the_executed_notebooks(home, monkeypatch):
    "They hold the person's photos as pictures: written as `faceid run` writes them, without their kernels"
    def executed(source, out, *args, **more): shutil.copyfile(source, out)
    monkeypatch.setattr(runs.papermill, 'execute_notebook', executed)
    done = runs.run_notebooks('tiny', SMALL, home/'ann', tell=lambda text: None)
    assert len(done) == 5 and all(path.is_file() for path in done)
    forget_ann(home)
    assert not any(path.exists() for path in done) and not list(home.rglob('*.ipynb'))


def test_forgetting_takes_copies_and_nothing_else(home):
    (home/'elsewhere').mkdir()
    for path in home.glob('ann/embed/*.safetensors'): shutil.copy(path, home/'elsewhere'/f'copy of {path.name}')
    for path in home.glob('ann/curate/crops/*.png'): shutil.copy(path, home/'elsewhere'/f'copy of {path.name}')
    (home/'elsewhere'/'mine.txt').write_text('mine')
    forget_ann(home)
    assert [path.name for path in home.glob('elsewhere/*')] == ['mine.txt']


# ---- the command

def test_help_loads_nothing_heavy():
    "What answers at once does not import what takes seconds"
    code = """import sys; from faceid_nb.app.cli import main
try: main(['--help'])
except SystemExit: print(*{name.split('.')[0] for name in sys.modules})"""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'insightface', 'scipy', 'matplotlib', 'papermill'}
    assert not heavy & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize('several', [0, 1, 2])
def test_a_preview_shows_several_dances(tmp_path, monkeypatch, several):
    recipe = open_recipe('tiny', SMALL | {'training.preview_dances': several})
    drawn, shown = [], []
    def generate(model, pose, prompt, *rest):
        drawn.append(prompt)
        return np.zeros_like(pose)
    def show(clips, title):
        shown.append((len(clips), title))
        return show_clip(clips, title=title)
    monkeypatch.setattr(phases, 'generate', generate)
    monkeypatch.setattr(phases, 'person', lambda folder: None)
    monkeypatch.setattr(phases, 'show_clip', show)
    state = SimpleNamespace(step=3, averaged=nullcontext)
    phases.preview(recipe, tmp_path/'run', tmp_path, None, {})(state)
    assert len(drawn) == several and shown == [(several, 'step 3')]*bool(several)
    assert [path.name for path in tmp_path.glob('*.png')] == ['step_000003.png']*bool(several)
