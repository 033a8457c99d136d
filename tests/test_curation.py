"""Curation with bad input: one clear error or one named reason each, and nothing half-written left behind.

The face finder here is a stand-in that knows people by the colour of a textured square, so these tests need no model."""
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from faceid_nb.curation.crop import CropConfig
from faceid_nb.curation.faces import Face
from faceid_nb.curation.packs import open_faces
from faceid_nb.curation.manifest import curate, load_manifest
from faceid_nb.core.split import split_photos
from faceid_nb.curation.folder import list_photos
from faceid_nb.curation.photos import Unreadable, read_photo
from faceid_nb.curation.select import CurationConfig, REASONS, calibrate

CONFIG, CROP = CurationConfig(same_person=.5), CropConfig((96, 64))
COLOURS = {'ann': 0, 'bob': 1, 'cid': 2}


class ByColour:
    "Finds a textured square and knows its owner by the strongest colour"
    def __init__(self): self.seen = []

    def find(self, image):
        self.seen.append(image.shape)
        faces = []
        for person, channel in COLOURS.items():
            ys, xs = np.where(image[..., channel].astype(int) - image.max(2, where=np.arange(3) != channel, initial=0) > 60)
            if len(ys) < 16: continue
            box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)
            at = np.array([[.34, .46], [.66, .46], [.5, .64], [.37, .82], [.63, .82]], np.float32)
            faces.append(Face(box, box[:2] + at*(box[2:] - box[:2]), .9, np.eye(3, dtype=np.float32)[channel]))
        return sorted(faces, key=lambda f: -f.area)


def draw(path, seed, people=(('ann', 100, 60, 90),), **save):
    "A photo: background noise of its own, and a textured square (left, top, side) for each person"
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 90, (6, 5)).astype(np.uint8)
    image = np.repeat(np.asarray(Image.fromarray(coarse).resize((300, 360), Image.Resampling.BICUBIC))[..., None], 3, 2).copy()
    for person, x, y, side in people:
        channel = np.eye(3)[COLOURS[person]]
        rough = Image.fromarray(rng.integers(110, 255, (9, 9)).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
        image[y:y+side, x:x+side] = (np.asarray(rough)[..., None]*channel).astype(np.uint8)
    Image.fromarray(image).save(path, **save)


@pytest.fixture
def folder(tmp_path):
    photos = tmp_path/'photos'
    photos.mkdir()
    for i in range(8): draw(photos/f'ann{i}.png', i)
    return photos


def run(folder, **more): return curate(folder, ByColour(), CONFIG, folder.parent/'out', CROP, progress=False, **more)


def nothing_left(folder): assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]


def test_every_bad_file_has_its_reason(folder):
    draw(folder/'whole.jpg', 50, format='JPEG')
    (folder/'truncated.jpg').write_bytes((folder/'whole.jpg').read_bytes()[:2500])
    (folder/'empty.jpg').write_bytes(b'')
    (folder/'text.jpg').write_text('not a picture')
    (folder/'link.jpg').symlink_to(folder/'ann0.png')
    draw(folder/'nobody.png', 51, ())
    draw(folder/'far.png', 52, (('ann', 100, 60, 20),))
    draw(folder/'bob.png', 53, (('bob', 100, 60, 90),))
    draw(folder/'two.png', 54, (('ann', 20, 60, 90), ('bob', 180, 60, 85)))
    draw(folder/'zcopy.jpg', 0, quality=70)
    draw(folder/'sharp.png', 56)
    Image.open(folder/'sharp.png').filter(ImageFilter.GaussianBlur(6)).save(folder/'blurred.png')
    (folder/'sharp.png').unlink()
    manifest = run(folder)
    reasons = {p.file: p.reason for p in manifest.photos}
    wanted = {'truncated.jpg': 'unreadable', 'empty.jpg': 'unreadable', 'text.jpg': 'unreadable', 'link.jpg': 'unreadable', 'nobody.png': 'no_face', 'far.png': 'distant',
              'bob.png': 'not_subject', 'two.png': 'multi_face', 'zcopy.jpg': 'duplicate', 'blurred.png': 'blurry', 'whole.jpg': None}
    assert {k: reasons[k] for k in wanted} == wanted
    assert all(reasons[f'ann{i}.png'] is None for i in range(8))
    for p in manifest.photos:
        assert p.reason is None or p.reason in REASONS
        assert np.isfinite(p.number) and np.isfinite(p.limit) and p.text
        assert p.reason != 'unreadable' or not p.text[0].islower() and p.file not in p.text, 'the list names the file already'


def test_manifest_on_disk(folder):
    manifest, out = run(folder, subject='Ann'), folder.parent/'out'
    raw = json.loads((out/'manifest.json').read_text())
    assert raw['version'] == 1 and raw['subject'] == 'Ann' and raw['trigger'] == CROP.trigger
    assert load_manifest(out) == manifest
    assert sorted(p.name for p in out.iterdir()) == ['contact_sheet.png', 'crops', 'manifest.json']
    for p in raw['photos']:
        assert set(p) == {'file', 'sha256', 'status', 'reason', 'number', 'limit', 'text', 'face', 'split', 'crops'}
        assert len(p['crops']) in (1, 2)
        for c in p['crops']:
            assert Image.open(out/c['file']).size == (64, 96) and c['size'] == [96, 64] and CROP.trigger in c['caption']
            x0, y0, x1, y1 = c['face_box']
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 96
    assert len(manifest.kept('heldout')) >= 3 and len(manifest.kept('train')) >= 1 and len(manifest.kept()) == 8  # each photo goes where its own hash says
    named = {c.file for p in manifest.photos for c in p.crops}
    assert {f'crops/{p.name}' for p in (out/'crops').iterdir()} == named


def test_again_replaces_what_was_there(folder):
    run(folder)
    (folder.parent/'out'/'note.txt').write_text('mine')
    for i in range(4): (folder/f'ann{i}.png').unlink()
    manifest = run(folder)
    named = {c.file for p in manifest.photos for c in p.crops}
    assert {f'crops/{p.name}' for p in (folder.parent/'out'/'crops').iterdir()} == named
    assert (folder.parent/'out'/'note.txt').read_text() == 'mine'


def test_missing_empty_and_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match='is not a folder'): run(tmp_path/'nowhere')
    (tmp_path/'photos').mkdir()
    (tmp_path/'photos'/'notes.txt').write_text('no photo')
    with pytest.raises(ValueError, match='no photo'): run(tmp_path/'photos')
    nothing_left(tmp_path/'photos')


def test_one_photo_is_too_few(folder):
    for i in range(1, 8): (folder/f'ann{i}.png').unlink()
    with pytest.raises(ValueError, match='holds 1 photo, at least 3 are needed'): run(folder)
    nothing_left(folder)


def test_no_photo_with_a_face(tmp_path):
    (tmp_path/'photos').mkdir()
    for i in range(4): draw(tmp_path/'photos'/f'{i}.png', i, ())
    with pytest.raises(ValueError, match='None of 4 photos shows a sharp face'): run(tmp_path/'photos')
    nothing_left(tmp_path/'photos')


def test_only_broken_files(tmp_path):
    (tmp_path/'photos').mkdir()
    for i in range(4): (tmp_path/'photos'/f'{i}.jpg').write_bytes(b'\xff\xd8\xff' + bytes(100))
    with pytest.raises(ValueError, match='None of 4 photos shows a sharp face'): run(tmp_path/'photos')
    nothing_left(tmp_path/'photos')


def test_two_people_in_equal_numbers(folder):
    for i in range(8): draw(folder/f'bob{i}.png', 100 + i, (('bob', 100, 60, 90),))
    with pytest.raises(ValueError, match='two people') as error: run(folder)
    assert 'ann0.png' in str(error.value) and 'bob0.png' in str(error.value)
    nothing_left(folder)
    manifest = run(folder, reference=np.eye(3, dtype=np.float32)[COLOURS['bob']])
    assert {p.file[:3] for p in manifest.kept()} == {'bob'} and len(manifest.kept()) == 8


def test_too_few_kept_counts_the_reasons(folder):
    for i in range(2, 8): draw(folder/f'ann{i}.png', i, (('ann', 100, 60, 20),))
    with pytest.raises(ValueError, match='2 of 8 photos can be kept.*distant 6'): run(folder)
    nothing_left(folder)


def test_a_full_disk_leaves_nothing(folder, monkeypatch):
    import faceid_nb.curation.manifest as module
    def full(fig, path): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(module, 'save_figure', full)
    with pytest.raises(OSError, match='No space'): run(folder)
    nothing_left(folder)


def test_by_hand(folder):
    draw(folder/'two.png', 54, (('ann', 20, 60, 90), ('bob', 180, 60, 85)))
    manifest = run(folder, by_hand={'two.png': True, 'ann3.png': False})
    status = {p.file: (p.status, p.reason) for p in manifest.photos}
    assert status['two.png'] == ('kept', None) and status['ann3.png'] == ('rejected', 'by_hand')
    with pytest.raises(ValueError, match='no photo'): run(folder, by_hand={'who.png': True})


def test_split_is_fixed_by_content(folder):
    first = {p.sha256: p.split for p in run(folder).photos}
    for i in range(8): (folder/f'ann{i}.png').rename(folder/f'{7-i}_renamed.png')
    assert {p.sha256: p.split for p in run(folder).photos} == first
    with pytest.raises(ValueError, match='at least 2'): split_photos(['a'], .25)


def test_reading_is_decoding(tmp_path):
    draw(tmp_path/'a.jpg', 1)
    whole = (tmp_path/'a.jpg').read_bytes()
    for share in (.3, .6, .9):
        (tmp_path/'b.jpg').write_bytes(whole[:int(len(whole)*share)])
        with pytest.raises(Unreadable, match='b.jpg'): read_photo(tmp_path/'b.jpg')
    with pytest.raises(Unreadable, match='pixels, at most 1000'): read_photo(tmp_path/'a.jpg', max_pixels=1000)
    assert [p.name for p in list_photos(tmp_path)] == ['a.jpg', 'b.jpg']


def test_missing_pack_says_what_to_fetch(tmp_path):
    with pytest.raises(ValueError, match='buffalo_l.zip') as error: open_faces(tmp_path, 'buffalo_l')
    assert str(tmp_path) in str(error.value) and 'MB' in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_pack_without_detector_or_recogniser(tmp_path, assets):
    shutil.copytree(assets/'face_models', tmp_path/'models'/'half', ignore=lambda _, names: [n for n in names if 'mobilefacenet' not in n])
    with pytest.raises(ValueError, match='no face detector'): open_faces(tmp_path, 'half')
    shutil.copytree(assets/'face_models', tmp_path/'models'/'other', ignore=lambda _, names: [n for n in names if 'scrfd' not in n])
    with pytest.raises(ValueError, match='no face recogniser'): open_faces(tmp_path, 'other')


def test_calibration_needs_pairs():
    with pytest.raises(ValueError, match='needs at least 1000'): calibrate(np.eye(4, dtype=np.float32), list('aabb'))
    rng = np.random.default_rng(0)
    people = rng.normal(size=(60, 1, 32)) + .3*rng.normal(size=(60, 3, 32))
    e = (people/np.linalg.norm(people, axis=-1, keepdims=True)).reshape(-1, 32).astype(np.float32)
    found = calibrate(e, [i//3 for i in range(180)])
    assert found.far <= 1e-3 and found.tar > .99 and found.same == 180


def test_of_copies_the_detailed_one_stays(folder):
    Image.open(folder/'ann5.png').resize((90, 108), Image.Resampling.BOX).resize((300, 360), Image.Resampling.BICUBIC).save(folder/'aaa_thumbnail.png')
    Image.open(folder/'ann6.png').transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder/'mirrored.png')
    reasons = {p.file: p.reason for p in run(folder).photos}
    assert reasons['aaa_thumbnail.png'] == 'duplicate' and reasons['ann5.png'] is None
    assert sorted([str(reasons['mirrored.png']), str(reasons['ann6.png'])]) == ['None', 'duplicate']


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_planted_bad_photos_of_the_embedded_world(tmp_path, seed):
    import torch
    from faceid_nb.world.scenes import write_subject
    from faceid_nb.world.shipped import tiny_pack
    truth = write_subject(tmp_path/'photos', torch.Generator().manual_seed(seed))
    faces = open_faces(*tiny_pack(), det_size=((192, 192), (640, 640)))
    manifest = curate(tmp_path/'photos', faces, CONFIG, tmp_path/'out', CropConfig((192, 128)), progress=False)
    planted = {name: t['reason'] for name, t in truth['photos'].items()}
    copies = {name for name, t in truth['photos'].items() if t['kind'] == 'duplicate'}
    named = {p.file: p.reason for p in manifest.photos}
    print('\n'.join(f'{p.file} {p.text}' for p in manifest.photos if p.reason != planted[p.file]))
    assert sum(r == 'duplicate' for r in named.values()) == len(copies)
    assert {n: r for n, r in named.items() if planted[n] not in (None, 'duplicate')} == {n: r for n, r in planted.items() if r not in (None, 'duplicate')}
    assert len(manifest.kept()) == 16
