"""Bad input: one clear line on stderr, exit code 2, nothing half-written left behind."""
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline
from PIL import Image
from safetensors.torch import save_file

from faceid_nb.app.cli import main
from faceid_nb.app.runner import check_run, write_run
from faceid_nb.app.recipes import open_recipe
from faceid_nb.core.errors import UserError
from faceid_nb.core.media import write_video
from faceid_nb.curation.packs import open_faces
from faceid_nb.curation.manifest import Crop, Manifest, Record, read_crop, save_manifest, move_into_place
from faceid_nb.curation.select import CurationConfig, extract_features
from faceid_nb.embeddings.encoders import embed_photo
from faceid_nb.models.wan_folder import open_pipeline
from faceid_nb.world import shipped
from faceid_nb.world.people import random_people
from faceid_nb.world.scenes import film, random_dance, take_photo
from faceid_nb.world.shipped import tiny_pack

SIZE = (192, 128)
QUICK = ['inputs.n_dances=1', 'training.steps_a=2', 'training.steps_b=1', 'sampling.steps=1']


def photos(folder, people, each, seed=0, kind='single'):
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i, person in enumerate(random_people(people, generator)):
        for k in range(each): Image.fromarray(take_photo(person, kind, (640, 480), generator)[0]).save(folder/f'{i}_{k}.jpg', quality=95)
    return folder


def fails(capsys, *words):
    "The one line that a command says when it refuses"
    capsys.readouterr()
    assert main([str(w) for w in words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith('faceid: '), said
    assert 'Traceback' not in said[0]
    return said[0]


@pytest.fixture
def run(tmp_path):
    "A run folder that knows its recipe, where nothing has been made yet"
    folder = tmp_path/'run'
    write_run(open_recipe('tiny', dict(pair.split('=') for pair in QUICK)), folder)
    return folder


def left(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


def test_missing_folder(tmp_path, capsys):
    assert 'nowhere' in fails(capsys, 'curate', tmp_path/'nowhere', '--folder', tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_no_photo_in_the_folder(tmp_path, capsys):
    (tmp_path/'photos').mkdir()
    assert 'no photo' in fails(capsys, 'curate', tmp_path/'photos', '--folder', tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_no_photo_with_a_face(tmp_path, capsys):
    folder = photos(tmp_path/'photos', 1, 4, kind='nobody')
    assert 'face' in fails(capsys, 'curate', folder, '--folder', tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_one_photo(tmp_path, capsys):
    folder = photos(tmp_path/'photos', 1, 1)
    assert '1' in fails(capsys, 'curate', folder, '--folder', tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_two_people_in_equal_numbers(tmp_path, capsys):
    folder = photos(tmp_path/'photos', 2, 5)
    said = fails(capsys, 'curate', folder, '--folder', tmp_path/'run')
    assert 'two people' in said and str(tmp_path/'run'/'whom.png') in said
    with Image.open(tmp_path/'run'/'whom.png') as shown: assert min(shown.size) > 100                  # a row of photos for each
    assert not (tmp_path/'run'/'curate').exists()


def test_only_a_truncated_jpeg(tmp_path, capsys):
    folder = photos(tmp_path/'photos', 1, 1)
    file = next(folder.glob('*.jpg'))
    file.write_bytes(file.read_bytes()[:len(file.read_bytes())//2])
    fails(capsys, 'curate', folder, '--folder', tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_a_truncated_jpeg_among_good_ones_is_named(tmp_path, capsys):
    folder = photos(tmp_path/'photos', 1, 8)
    file = folder/'0_3.jpg'
    file.write_bytes(file.read_bytes()[:len(file.read_bytes())//2])
    assert main(['curate', str(folder), '--folder', str(tmp_path/'run')]) == 0
    assert '0_3.jpg' in capsys.readouterr().out


@pytest.mark.parametrize('frames, size, words', [(16, SIZE, '16 frames'), (17, (128, 192), '128 x 192')])
def test_pose_clip_that_does_not_fit(tmp_path, capsys, run, frames, size, words):
    generator = torch.Generator().manual_seed(0)
    pose = film(random_people(1, generator)[0], random_dance(generator), size, generator)[1]
    write_video(tmp_path/'pose.mp4', pose[:frames], 10)
    before = left(run)
    assert words in fails(capsys, 'generate', run, '--pose', tmp_path/'pose.mp4', '--out', tmp_path/'out.mp4')
    assert left(run) == before and not (tmp_path/'out.mp4').exists()


def test_lora_of_another_model(tmp_path, capsys, run):
    generator = torch.Generator().manual_seed(0)
    pose = film(random_people(1, generator)[0], random_dance(generator), SIZE, generator)[1]
    write_video(tmp_path/'pose.mp4', pose, 10)
    keys = {f'transformer.blocks.0.attn1.to_q.lora_{k}.weight': torch.zeros(4, 1536) if k == 'A' else torch.zeros(1536, 4) for k in 'AB'}
    save_file(keys, tmp_path/'other.safetensors')
    before = left(run)
    assert 'LoRA' in fails(capsys, 'generate', run, '--pose', tmp_path/'pose.mp4', '--lora', tmp_path/'other.safetensors', '--out', tmp_path/'out.mp4')
    assert left(run) == before and not (tmp_path/'out.mp4').exists()


def test_face_branch_that_nothing_can_start_from(tmp_path, capsys, run):
    (run/'train').mkdir()
    own = run/'train'/'branch.safetensors'
    own.write_bytes(b'what this run has learned')
    before = left(run)
    assert 'is not a file' in fails(capsys, 'train', run, f'model.face_branch={tmp_path/"none.safetensors"}')
    assert 'of one person' in fails(capsys, 'train', run, f'model.face_branch={own}')
    other = shutil.copytree(tiny_pack()[0], tmp_path/'packs')/'models'/'tiny'/'recogniser.onnx'
    weights = bytearray(other.read_bytes())
    weights[len(weights)//2] ^= 1
    other.write_bytes(weights)
    assert 'the shipped face pack' in fails(capsys, 'train', run, f'pack.root={tmp_path/"packs"}')
    assert left(run) == before and own.read_bytes() == b'what this run has learned'


def test_unknown_recipe(tmp_path, capsys):
    assert 'tiny, wan21_vace_1_3b' in fails(capsys, 'run', 'tinny', '--folder', tmp_path/'run')
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('verb', [['run', 'tiny'], ['demo']])
def test_unknown_key(tmp_path, capsys, verb):
    assert 'did you mean training.steps_a?' in fails(capsys, *verb, '--folder', tmp_path/'run', 'training.step_a=3')
    assert not (tmp_path/'run').exists()


def test_value_of_the_wrong_kind(tmp_path, capsys):
    assert "seed must be a whole number, got 'three'" in fails(capsys, 'demo', '--folder', tmp_path/'run', 'seed=three')
    assert not (tmp_path/'run').exists()


def test_run_folder_that_is_none(tmp_path, capsys):
    assert 'run.json' in fails(capsys, 'evaluate', tmp_path)
    assert left(tmp_path) == []


def test_models_that_are_not_on_the_disk(tmp_path, capsys):
    folder = photos(tmp_path/'photos', 1, 8)
    said = fails(capsys, 'curate', folder, '--recipe', 'wan21_vace_1_3b', '--folder', tmp_path/'run', '--pack-root', tmp_path/'packs')
    assert 'buffalo_l' in said and 'MB' in said
    assert not (tmp_path/'run').exists()


@pytest.mark.skipif(os.name != 'posix', reason='file size limits are a POSIX thing')
def test_full_disk(tmp_path):
    "No file may grow over 20 kB: the writes fail as they do on a full disk"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    done = subprocess.run([sys.executable, '-c', 'import sys; from faceid_nb.app.cli import main; sys.exit(main())', 'demo', '--folder', str(tmp_path/'run'), *QUICK],
                          preexec_fn=limit, capture_output=True, text=True, timeout=300, env=os.environ | {'PYTHONDONTWRITEBYTECODE': '1'})
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith('faceid: '), done.stderr
    assert [p for p in tmp_path.rglob('*') if p.is_file() and '.part' in p.name] == []


@pytest.mark.parametrize('file', ['face_branch_tiny.safetensors', 'faces/models/tiny/recogniser.onnx', 'wan_vace_tiny/vae/diffusion_pytorch_model.safetensors', 'wan_vace_tiny/transformer/config.json'])
def test_shipped_weights_with_a_flipped_bit_are_refused(tmp_path, monkeypatch, file):
    "A bit in the weights breaks no format; only the card knows"
    monkeypatch.setattr(shipped, 'WEIGHTS', shutil.copytree(shipped.WEIGHTS, tmp_path/'weights'))
    for find in (shipped.tiny_branch, shipped.tiny_pack, shipped.tiny_model_path): find()
    damaged = tmp_path/'weights'/file
    data = bytearray(damaged.read_bytes())
    data[len(data)//2] ^= 1
    damaged.write_bytes(data)
    refused = []
    for find in (shipped.tiny_branch, shipped.tiny_pack, shipped.tiny_model_path):
        try: find()
        except UserError as error: refused.append(str(error))
    assert len(refused) == 1 and str(damaged) in refused[0]


def test_an_embedding_that_is_not_finite_is_named_with_its_photo(tmp_path, monkeypatch):
    path = next(photos(tmp_path/'photos', 1, 1).glob('*.jpg'))
    faces, config = open_faces(*shipped.tiny_pack(), ((192, 192), (640, 640))), CurationConfig(same_person=.5)
    seen = extract_features(path, path.parent, faces, config)
    monkeypatch.setattr(faces, '_vector', lambda face: np.full(512, np.nan, np.float32))
    with pytest.raises(UserError, match=f'{path.name}.*recogniser.onnx answers NaN'): extract_features(path, path.parent, faces, config)
    with pytest.raises(UserError, match=f'{path.name}.*recogniser.onnx answers NaN'): embed_photo(faces, path, seen.sha256, seen.faces[0].keypoints)


@pytest.mark.parametrize('error', [MemoryError(), OSError(12, 'Cannot allocate memory'), torch.OutOfMemoryError('CUDA out of memory'),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")], ids=lambda e: type(e).__name__)
def test_a_model_too_large_for_the_memory_is_told_as_that(monkeypatch, error):
    def no_room(*args, **settings): raise error
    monkeypatch.setattr(WanVACEPipeline, 'from_pretrained', no_room)
    with pytest.raises(UserError, match='memory ran out') as told: open_pipeline(shipped.tiny_model_path())
    assert 'again' not in str(told.value) and '\n' not in str(told.value)


def test_a_link_among_the_crops_is_never_followed(tmp_path):
    "Neither when a crop is read nor when a curation replaces an earlier one"
    theirs = tmp_path/'theirs'
    theirs.mkdir()
    for name in ('0123456789ab_close.png', 'keep.png'): Image.new('RGB', (8, 8)).save(theirs/name)
    out, draft = tmp_path/'out', tmp_path/'draft'
    crop = Crop('crops/0123456789ab_close.png', 'a photo', (0., 0., 1., 1.), (8, 8))
    place = {'box': [0., 0., 1., 1.], 'keypoints': [[0., 0.]]*5, 'score': .9, 'padding': 0.}
    save_manifest(out, Manifest('Ann', 'ohwx', (Record('a.jpg', 'ab'*32, 'kept', None, .9, .5, '', place, 'train', (crop,)),)))
    (out/'crops').symlink_to(theirs)
    save_manifest(draft, Manifest('Ann', 'ohwx', ()))
    (draft/'crops').mkdir()
    Image.new('RGB', (8, 8)).save(draft/'crops'/'ba9876543210_close.png')
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    with pytest.raises(UserError, match='is a link'): read_crop(out, crop)
    with pytest.raises(UserError, match='is a link'): move_into_place(draft, out)
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before


def test_a_changed_face_pack_of_the_user_is_refused(tmp_path):
    "A flipped bit in a recogniser opens and answers; only the hash that the run noted can tell"
    root, name = tiny_pack()
    pack = shutil.copytree(root/'models'/name, tmp_path/'packs'/'models'/'mine')
    recipe, run = open_recipe('tiny', {'pack.root': str(tmp_path/'packs'), 'pack.name': 'mine', 'model.face_branch': ''}), tmp_path/'run'
    write_run(recipe, run)
    check_run(recipe, run, 'embed')
    bits = bytearray((pack/'recogniser.onnx').read_bytes())
    bits[len(bits)//2] ^= 1
    (pack/'recogniser.onnx').write_bytes(bits)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    for through in ('embed', 'train', 'evaluate'):
        with pytest.raises(UserError, match='recogniser.onnx is not the file that was used before'):
            check_run(recipe, run, through)
    check_run(recipe, run, 'curate')  # curating again is the way out
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
