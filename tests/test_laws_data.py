"""Laws of what goes in: files, pictures, verdicts, windows, the split and the identity.

The photos are drawn, and the face finder is mostly a stand-in."""
import hashlib
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_cropping import crowd
from test_curation import CONFIG, CROP, ByColour, draw

from faceid_nb.core.files import config_hash, file_sha256, read_json, write_atomic, write_json
from faceid_nb.core.media import fit_within, read_image, read_video, resize, write_video
from faceid_nb.curation.cache import features_key
from faceid_nb.curation.crop import CropConfig, crop_boxes, cut_window, face_in, enlarge_box, overlap
from faceid_nb.curation.packs import silence_insightface, open_faces
from faceid_nb.curation.manifest import curate
from faceid_nb.core.split import SplitConfig, place_of
from faceid_nb.curation.photos import read_photo
from faceid_nb.curation.select import REASONS, judge, extract_features, find_subject, judge_photo
from faceid_nb.embeddings.encoders import embed_photo
from faceid_nb.embeddings.identity import MODES, combine, load_identity, make_identity, save_identity
from faceid_nb.world.people import random_people
from faceid_nb.world.scenes import take_photo
from faceid_nb.world.shipped import tiny_pack


def tree(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


# ---- files

def test_who_reads_a_file_reads_one_whole_version(tmp_path):
    "A file is replaced, never written over: an open reader keeps the old one to its end"
    path = write_json(tmp_path/'a.json', {'version': 'old', 'rows': list(range(1000))})
    old = path.read_bytes()
    with path.open('rb') as reader:
        write_json(path, {'version': 'new'})
        assert reader.read() == old
    assert read_json(path) == {'version': 'new'}


def test_a_write_that_fails_changes_nothing(tmp_path):
    write_json(tmp_path/'a.json', {'version': 'old'})
    before = tree(tmp_path)

    def half(path):
        path.write_text('half')
        raise OSError(5, 'Input/output error')
    for name in ('a.json', 'b.json'):
        with pytest.raises(OSError): write_atomic(tmp_path/name, half)
    for number in (float('nan'), float('inf')):
        with pytest.raises(ValueError): write_json(tmp_path/'a.json', {'x': number})
    assert tree(tmp_path) == before


def test_a_hash_is_of_every_byte(tmp_path):
    data = np.random.default_rng(0).bytes(3_000_001)
    for place in (0, 1_500_000, 3_000_000):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1:]
        (tmp_path/'x').write_bytes(changed)
        assert file_sha256(tmp_path/'x') == hashlib.sha256(changed).hexdigest()


def test_equal_values_equal_hash():
    "The order of keys says nothing, every value does"
    assert config_hash({'a': 1, 'b': {'c': 2, 'd': 3}}) == config_hash({'b': {'d': 3, 'c': 2}, 'a': 1})
    assert config_hash(CONFIG) == config_hash(replace(CONFIG))
    assert config_hash(CONFIG) != config_hash(replace(CONFIG, dim=.61))
    assert len({config_hash(v) for v in ([1, 2], [2, 1], [12], ['1', '2'], [[1], 2], {'1': 2})}) == 6


# ---- pictures

UNDO = {1: None, 2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_90',
        7: 'TRANSVERSE', 8: 'ROTATE_270'}


@pytest.mark.parametrize('way', UNDO)
def test_a_picture_is_seen_upright(tmp_path, way):
    "As its EXIF says, in both readers, to the last pixel"
    upright = np.random.default_rng(way).integers(0, 255, (14, 10, 3), np.uint8)
    stored, exif = Image.fromarray(upright), Image.Exif()
    exif[0x0112] = way
    if UNDO[way]: stored = stored.transpose(Image.Transpose[UNDO[way]])
    stored.save(tmp_path/'a.png', exif=exif)
    assert np.array_equal(read_image(tmp_path/'a.png'), upright)
    assert np.array_equal(read_photo(tmp_path/'a.png').image, upright)


def test_what_is_transparent_shows_the_page(tmp_path):
    picture = np.full((8, 8, 4), (200, 30, 60, 255), np.uint8)
    picture[:4, :, 3] = 0
    Image.fromarray(picture).save(tmp_path/'a.png')
    for seen in (read_image(tmp_path/'a.png'), read_photo(tmp_path/'a.png').image):
        assert (seen[:4] == 255).all() and (seen[4:] == (200, 30, 60)).all()


def test_sizes_are_height_before_width():
    image = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    assert resize(image, (20, 60)).shape == (20, 60, 3)
    assert fit_within(image, (20, 60)).shape == (20, 15, 3) and fit_within(image, (400, 15)).shape == (20, 15, 3)
    assert np.array_equal(fit_within(image, (80, 80)), image), 'nothing is enlarged'


def test_a_clip_keeps_its_frames_their_order_and_their_colours(tmp_path):
    colours = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40), (120, 120, 120)], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, 32, 48, 3))
    back, fps = read_video(write_video(tmp_path/'a.mp4', frames, 12.5, crf=1))
    assert back.shape == frames.shape and fps == 12.5 and np.abs(back.astype(int) - frames).max() < 12


# ---- verdicts

@pytest.fixture(scope='module')
def good(tmp_path_factory):
    "A look at a photo that stays"
    folder = tmp_path_factory.mktemp('good')
    draw(folder/'ann.png', 1)
    return extract_features(folder/'ann.png', folder, ByColour(), CONFIG)


ANN, BOB = np.eye(3, dtype=np.float32)[:2]


def beside(features):
    "The same photo with a second face as large as the first"
    face = replace(features.faces[0], box=features.faces[0].box + [95, 0, 95, 0], embedding=BOB)
    twice = {name: getattr(features, name)*2 for name in ('sharp', 'light', 'blown', 'side', 'mouth')}
    return replace(features, faces=(*features.faces, face), **twice)


SPOIL = {  # reason -> the look, the subject and the limits with which it holds
    'unreadable': lambda features, subject, config: (replace(features, problem='cut short'), subject, config),
    'no_face': lambda features, subject, config: (replace(features, faces=()), subject, config),
    'distant': lambda features, subject, config: (features, subject, replace(config, min_face=200)),
    'blurry': lambda features, subject, config: (replace(features, sharp=(0.,)*len(features.sharp)), subject, config),
    'partial': lambda features, subject, config: (replace(features, mouth=(.01,)*len(features.mouth)), subject, config),
    'not_subject': lambda features, subject, config: (features, np.eye(3, dtype=np.float32)[2], config),
    'multi_face': lambda features, subject, config: (beside(features), subject, config)}


def judged(features, *reasons):
    asked = features, ANN, CONFIG
    for reason in reversed(reasons): asked = SPOIL[reason](*asked)
    return judge_photo(*asked)


def test_each_limit_is_held_alone(good):
    assert judged(good).reason is None
    for reason in SPOIL: assert judged(good, reason).reason == reason


@pytest.mark.parametrize('first, then', list(combinations(SPOIL, 2)))
def test_of_two_reasons_the_first_of_the_list_is_given(good, first, then):
    "So that the advice is the one that helps: of a face that is too far away nobody can say whose it is"
    assert REASONS.index(first) < REASONS.index(then)
    assert judged(good, first, then).reason == first


def looks_at(folder): return [extract_features(p, folder, ByColour(), CONFIG) for p in sorted(folder.iterdir())]


def saved_again(folder, name, times):
    "Copies of a photo as a messenger makes them"
    for k in range(times): Image.open(folder/f'{name}.png').save(folder/f'{name}_copy{k}.jpg', quality=60 + 8*k)


def test_a_copy_is_known_by_the_whole_picture(tmp_path):
    "Also where the close-ups are asked to agree to the last digit, which no saved copy does"
    for i in range(4): draw(tmp_path/f'ann{i}.png', i)
    saved_again(tmp_path, 'ann1', 2)
    verdicts = {v.file: v.reason for v in judge(looks_at(tmp_path), replace(CONFIG, same_moment=1.))}
    copies = [verdicts[file] for file in ('ann1.png', 'ann1_copy0.jpg', 'ann1_copy1.jpg')]
    assert sorted(map(str, copies)) == ['None', 'duplicate', 'duplicate']
    assert all(verdicts[f'ann{i}.png'] is None for i in (0, 2, 3))


def test_a_folder_is_about_who_is_in_most_moments(tmp_path):
    "Eight photos of three moments weigh less than four photos of four moments, and make nothing unclear"
    for i in range(4): draw(tmp_path/f'ann{i}.png', i)
    for i in range(3): draw(tmp_path/f'bob{i}.png', 10 + i, (('bob', 100, 60, 90),))
    saved_again(tmp_path, 'bob0', 5)
    assert np.allclose(find_subject(looks_at(tmp_path), CONFIG), ANN)
    assert np.allclose(find_subject(looks_at(tmp_path), CONFIG, BOB), BOB), 'unless a reference says otherwise'


# ---- windows

@pytest.mark.parametrize('seed', range(40))
def test_windows_lie_in_the_photo_and_frame_the_subject(seed):
    size, subject, others = crowd(seed)
    config = CropConfig((192, 128))
    for window in crop_boxes(size, subject, others, config):
        left, top, right, bottom = window
        assert -1e-6 <= left < right <= size[1] + 1e-6 and -1e-6 <= top < bottom <= size[0] + 1e-6
        assert (bottom - top)/(right - left) == pytest.approx(192/128)
        x, y = (subject.box[:2] + subject.box[2:])/2
        assert left <= x <= right and top <= y <= bottom
        x0, y0, x1, y1 = face_in(subject, window, config.size)
        assert 0 <= x0 < x1 <= 128 and 0 <= y0 < y1 <= 192
    close, *wide = crop_boxes(size, subject, others, config)
    near = [enlarge_box(o.box, config.margin) for o in others if o.area >= config.speck_area*subject.area]
    for window in wide:
        assert not any(overlap(face, window) for face in near), 'somebody else is in a window that need not be so wide'
    alone = crop_boxes(size, subject, [], config)
    assert alone[0][3] - alone[0][1] == pytest.approx(min(1.8*subject.height, size[0], size[1]*1.5))


def test_a_window_shows_what_lies_in_it():
    image = np.random.default_rng(0).integers(0, 255, (90, 80, 3), np.uint8)
    assert np.array_equal(cut_window(image, (10, 20, 42, 68), (48, 32)), image[20:68, 10:42])


# ---- looks that are kept

def test_a_look_is_of_one_pack_one_setting_and_one_limit():
    "The same file names with other bytes are other models"
    def key(pack='a', size=192, config=CONFIG):
        return features_key(SimpleNamespace(sha256={'detector.onnx': pack}, settings={'sizes': [size]}), config)
    others = key('b'), key(size=640), key(config=replace(CONFIG, sharpness_side=32))
    assert key() == key() and len({key(), *others}) == 4


# ---- the split

def test_near_duplicates_are_not_parted_by_a_curation(tmp_path):
    "Two frames of one moment are both learned from or both held out, even where their own hashes would part them"
    photos = tmp_path/'photos'
    photos.mkdir()
    for i in range(12):
        draw(photos/f'ann{i}.png', i, (('ann', 10 + 17*i, 20 + 15*i, 80),))
        with Image.open(photos/f'ann{i}.png') as image:
            image.crop((2, 2, 300, 360)).resize((300, 360)).save(photos/f'ann{i}_next.png')
    strict = replace(CONFIG, duplicate_bits=0, same_moment=1.)  # nothing is a copy, so that both stay
    manifest = curate(photos, ByColour(), strict, tmp_path/'out', CROP, progress=False, split=SplitConfig(.5))
    at = {p.file: p for p in manifest.kept()}
    pairs = [(at[f'ann{i}.png'], at[f'ann{i}_next.png']) for i in range(12)]
    assert all(a.split == b.split for a, b in pairs)
    parted = [(place_of(a.sha256) < .5) != (place_of(b.sha256) < .5) for a, b in pairs]
    assert any(parted), 'this law would hold by chance'


def test_a_photo_that_changes_while_it_is_curated_is_refused(tmp_path):
    (tmp_path/'photos').mkdir()
    for i in range(6): draw(tmp_path/'photos'/f'ann{i}.png', i)

    def features(path, folder, faces, config):
        seen = extract_features(path, folder, faces, config)
        if path.name == 'ann2.png': draw(path, 99)
        return seen
    with pytest.raises(ValueError, match='ann2.png changed'):
        curate(tmp_path/'photos', ByColour(), CONFIG, tmp_path/'out', CROP, progress=False, extract=features)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['photos']


# ---- who it is

@pytest.fixture(scope='module')
def met(tmp_path_factory):
    "The tiny pack, and photos of two drawn people"
    folder, generator = tmp_path_factory.mktemp('met'), torch.Generator().manual_seed(5)
    for name, person in zip(('ann', 'bob'), random_people(2, generator)):
        for k in range(3):
            image, _ = take_photo(person, 'single', (400, 300), generator)
            Image.fromarray(image).save(folder/f'{name}{k}.png')
    return open_faces(*tiny_pack(), det_size=((192, 192), (384, 384))), folder


def test_an_embedding_is_that_of_insightface_and_has_length_one(met):
    "The same chip in the same order of colours; a vector of unit length, whatever the network says"
    from insightface.app import FaceAnalysis
    from insightface.app.common import Face as Theirs
    faces, folder = met
    root, name = tiny_pack()
    with silence_insightface():
        app = FaceAnalysis(str(root/'models'/name), allowed_modules=['detection', 'recognition'])
    for path in sorted(folder.iterdir()):
        image = read_photo(path).image
        found = faces.find(image)[0]
        theirs = Theirs(kps=found.keypoints.astype(np.float32))
        app.models['recognition'].get(np.ascontiguousarray(image[..., ::-1]), theirs)
        assert abs(np.linalg.norm(found.embedding) - 1) < 1e-5 and found.embedding @ theirs.normed_embedding > .995
        assert np.allclose(found.embedding, faces.embed(image, found.keypoints), atol=1e-5)


def test_faces_come_largest_first(met):
    faces, folder = met
    large, small = (read_image(folder/f'{name}0.png') for name in ('ann', 'bob'))
    small = fit_within(small, (240, 180))
    for left, right in ((large, small), (small, large)):
        canvas = np.full((400, 500, 3), 128, np.uint8)
        canvas[:left.shape[0], :left.shape[1]], canvas[:right.shape[0], -right.shape[1]:] = left, right
        areas = [face.area for face in faces.find(canvas)]
        assert len(areas) == 2 and areas == sorted(areas, reverse=True)


def test_a_photo_is_embedded_only_as_it_was_curated(met, tmp_path):
    faces, folder = met
    draw(tmp_path/'photo.png', 1)
    (tmp_path/'photo.png').write_bytes((folder/'ann0.png').read_bytes())
    photo = read_photo(tmp_path/'photo.png')
    found = faces.find(photo.image)[0]
    embedding = embed_photo(faces, tmp_path/'photo.png', photo.sha256, found.keypoints)
    assert np.allclose(embedding, found.embedding, atol=1e-5)
    (tmp_path/'photo.png').write_bytes((folder/'ann1.png').read_bytes())
    with pytest.raises(ValueError, match='photo.png'):
        embed_photo(faces, tmp_path/'photo.png', photo.sha256, found.keypoints)


def unit(rows): return (rows/np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize('seed', range(5))
def test_an_impostor_pulls_the_mean_most(seed):
    "The softmax of the agreement and the median stay nearer to the person than the mean; all have length one and know no order"
    rng = np.random.default_rng(seed)
    person = unit(rng.normal(size=64))
    photos = unit(np.concatenate([person + .05*rng.normal(size=(8, 64)), rng.normal(size=(2, 64))]))
    ways = {mode: combine(photos, mode) for mode in MODES}
    for mode, vector in ways.items():
        assert abs(np.linalg.norm(vector) - 1) < 1e-5
        assert np.allclose(vector, combine(photos[::-1], mode), atol=1e-5)
    assert min(ways['softmax'] @ person, ways['median'] @ person) > ways['mean'] @ person
    assert all(np.allclose(combine(photos[:1], mode), photos[0], atol=1e-6) for mode in MODES)


def test_an_identity_comes_back_as_it_was(tmp_path):
    photos = unit(np.random.default_rng(0).normal(size=(4, 16)) + 1)
    identity = make_identity(photos, list('abcd'))
    save_identity(tmp_path, identity)
    back = load_identity(tmp_path)
    assert back.files == identity.files and np.array_equal(back.photos, identity.photos)
    assert all(np.array_equal(back.vector(mode), combine(photos, mode)) for mode in MODES)
