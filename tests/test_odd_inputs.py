"""Odd inputs: clips, notes, pictures and folders that are not what they seem are read right or refused in one line, and cost little."""
import hashlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image, ImageFilter

from faceid_nb.app.inputs import find_dances, find_photos, find_impostors
from faceid_nb.app.recipes import tiny
from faceid_nb.core.errors import UserError
from faceid_nb.core.fineness import is_sharper, fineness
from faceid_nb.core.media import probe_video, read_text, read_video, write_video
from faceid_nb.curation.packs import open_faces
from faceid_nb.curation.folder import Unreadable, list_photos, sort_files
from faceid_nb.curation.photos import read_photo
from faceid_nb.curation.select import CurationConfig, judge, extract_features
from faceid_nb.inference.pose import list_poses, read_pose
from faceid_nb.world.people import random_people
from faceid_nb.world.scenes import take_photo
from faceid_nb.world.shipped import tiny_pack

SIZE = (64, 48)
CONFIG = CurationConfig(same_person=.6)


def seeded(n): return torch.Generator().manual_seed(n)


def tree(folder):
    "Every file below a folder with its content"
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def refused(work, *named):
    "The one line with which something is refused; it names what it must and changes no file"
    with pytest.raises(UserError) as error: work()
    said = str(error.value)
    assert '\n' not in said and len(said) < 600 and all(name in said for name in named), said
    return said


def dance(n=17, size=SIZE):
    frames = np.zeros((n, *size, 3), np.uint8)
    for t in range(n): frames[t, 10:30, 4 + t % 20:14 + t % 20] = (250, 80 + 5*(t % 20), 60)
    return frames


def ffmpeg(*asked): subprocess.run([get_ffmpeg_exe(), '-y', '-loglevel', 'error', *map(str, asked)], check=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "One dance of 17 frames in every container, and its relatives"
    folder = tmp_path_factory.mktemp('clips')
    whole = write_video(folder/'whole.mp4', dance(), 10)
    for suffix in ('mov', 'm4v', 'mkv', 'webm', 'avi'): ffmpeg('-i', whole, folder/f'whole.{suffix}')
    ffmpeg('-i', whole, '-frames:v', 1, folder/'one.mp4')
    ffmpeg('-f', 'lavfi', '-i', 'testsrc=s=37x51:r=25:d=1', '-pix_fmt', 'yuv444p', folder/'odd.mp4')
    ffmpeg('-i', whole, '-vf', 'select=not(mod(n\\,3))+lt(n\\,8)', '-fps_mode', 'vfr', folder/'uneven.mp4')
    ffmpeg('-display_rotation', 90, '-i', whole, '-c', 'copy', folder/'turned.mp4')
    ffmpeg('-f', 'lavfi', '-i', 'testsrc=s=64x48:r=30:d=3', '-pix_fmt', 'yuv420p', folder/'long.mp4')
    ffmpeg('-ss', 1.05, '-i', folder/'long.mp4', '-c', 'copy', folder/'trimmed.mp4')
    ffmpeg('-f', 'lavfi', '-i', 'sine=d=1', folder/'sound.mp4')
    return folder


# ---- clips

def test_a_probe_says_what_reading_gives(clips):
    for path in sorted(clips.iterdir()):
        if path.name == 'sound.mp4': continue
        seen, (frames, fps) = probe_video(path), read_video(path)
        assert (seen.frames, seen.height, seen.width) == frames.shape[:3] and seen.fps == fps and not seen.declared, path.name
    assert read_video(clips/'turned.mp4')[0].shape[1:3] == SIZE[::-1]
    assert len(read_video(clips/'trimmed.mp4')[0]) < len(read_video(clips/'long.mp4')[0])


def test_no_more_is_read_than_wanted(clips):
    whole = read_video(clips/'whole.mp4')[0]
    for most in (1, 5, 17, 99): assert np.array_equal(read_video(clips/'whole.mp4', most)[0], whole[:most])
    refused(lambda: read_video(clips/'whole.mp4', max_bytes=whole[:5].nbytes), 'whole.mp4', 'most=5')


@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'webm', 'avi'])
@pytest.mark.parametrize('share', [.6, .8])
def test_a_clip_without_its_end_is_told_as_cut(clips, tmp_path, suffix, share):
    data = (clips/f'whole.{suffix}').read_bytes()
    (tmp_path/f'cut.{suffix}').write_bytes(data[:int(len(data)*share)])
    before = tree(tmp_path)
    said = refused(lambda: read_pose(tmp_path/f'cut.{suffix}', SIZE, 17), f'cut.{suffix}', 'cut short', 'copy it again')
    if suffix != 'avi': assert 'declares 17 frames' in said  # the head of an AVI is long, and believes the size of the file
    refused(lambda: read_video(tmp_path/f'cut.{suffix}'), 'cut short')
    assert tree(tmp_path) == before


def test_an_index_at_the_end_that_is_missing_is_told(clips, tmp_path):
    ffmpeg('-i', clips/'whole.mp4', '-c', 'copy', '-movflags', '-faststart', tmp_path/'end.mp4')
    (tmp_path/'cut.mp4').write_bytes((tmp_path/'end.mp4').read_bytes()[:-200])
    refused(lambda: read_video(tmp_path/'cut.mp4'), 'cut.mp4', 'cut short')


HOSTILE = {'empty': b'', 'text': b'I am a film\n'*99, 'playlist': b'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nwhole.mp4\n#EXT-X-ENDLIST\n',
           'net': b'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n', 'concat': b'ffconcat version 1.0\nfile whole.mp4\n',
           'sdp': b'v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n', 'gif': b'GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;',
           'script': b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/passwd</BaseURL></MPD>', 'ftyp': b'\0\0\0\x18ftypisom\0\0\0\0isomiso2'}


@pytest.mark.parametrize('kind', HOSTILE)
def test_hostile_clips_open_nothing_else(clips, tmp_path, capfd, kind):
    shutil.copy(clips/'whole.mp4', tmp_path)
    for name in (f'{kind}.mp4', f'-i {kind}.mp4', f'concat:whole.mp4|{kind}.mp4'.replace('/', '')):
        (tmp_path/name).write_bytes(HOSTILE[kind])
        before = tree(tmp_path)
        refused(lambda: read_video(tmp_path/name), name)
        refused(lambda: read_pose(tmp_path/name, SIZE, 17), name)
        assert tree(tmp_path) == before
    assert capfd.readouterr() == ('', '')


def test_sound_alone_is_told(clips): refused(lambda: read_video(clips/'sound.mp4'), 'sound.mp4', 'no video')


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8), keep=st.floats(.02, 1))
def test_a_bent_clip_is_read_or_refused(clips, tmp_path, at, keep):
    data = bytearray((clips/'whole.mp4').read_bytes())
    for place, value in at: data[place % len(data)] = value
    (tmp_path/'bent.mp4').write_bytes(data[:max(1, int(len(data)*keep))])
    try: frames, _ = read_video(tmp_path/'bent.mp4')
    except UserError as error: assert 'bent.mp4' in str(error) and '\n' not in str(error)
    else: assert frames.ndim == 4 and len(frames)


def test_a_long_clip_is_refused_from_its_head(assets, tmp_path):
    "1200 frames of 720 x 1280 are 3.3 GB as numbers; the whole process stays far below 1 GB, and no ffmpeg is left behind"
    path = assets/'field'/'long_pose_memory'/'long720.mp4'
    script = f'''import psutil; from faceid_nb.inference.pose import read_pose; from faceid_nb.core.media import read_video
for work in (lambda: read_pose({str(path)!r}, (1280, 720), 81), lambda: read_pose({str(path)!r}, (480, 832)), lambda: read_video({str(path)!r})):
    try: work()
    except ValueError as error: print(error)
assert read_video({str(path)!r}, most=9)[0].shape == (9, 1280, 720, 3) and not psutil.Process().children()
print([int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')][0])'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    print(*lines, sep='\n')
    assert len(lines) == 4 and all('1200 frames' in line for line in lines[:3]) and int(lines[3]) < 800_000


# ---- names of dances

@pytest.mark.parametrize('name', ['waltz.MP4', 'Waltz.Mov', 'waltz.webm', 'waltz.MKV', 'waltz.avi', 'waltz.m4v', 'waltz_pose.MOV', 'ta ngo é.mp4', "o'hara (2).mp4", '写真 😀.mp4'])
def test_clips_of_every_suffix_are_dances(tmp_path, name):
    (tmp_path/name).write_bytes(b'x')
    (tmp_path/'notes.txt').write_text('x')
    assert list(list_poses(tmp_path)) == [Path(name).stem.removesuffix('_pose')]


def test_clips_of_one_name_are_refused(tmp_path, assets):
    for one, other in (('waltz.mp4', 'waltz.mov'), ('WALTZ.MP4', 'waltz.mp4'), ('e\u0301.mp4', 'é.mp4'), ('a_pose.mp4', 'a_pose.mov')):
        folder = tmp_path/one
        folder.mkdir()
        for name in (one, other): (folder/name).write_bytes(b'x')
        if len(list(folder.iterdir())) == 2: refused(lambda: list_poses(folder), one, other)
    refused(lambda: list_poses(assets/'field'/'mp4_case'), 'WALTZ.MP4', 'waltz.mp4')


@pytest.mark.parametrize('name', ['-rf.mp4', '~.mp4', ' .mp4', 'a\nb.mp4', 'a:b.mp4', 'x'*120 + '.mp4', '_pose.mp4', 'é'*99 + '.mp4'])
def test_names_that_cannot_be_files_everywhere_are_refused(tmp_path, name):
    (tmp_path/name).write_bytes(b'x')
    refused(lambda: list_poses(tmp_path))


def test_what_is_left_out_is_said(tmp_path, capsys):
    for name in ('a_pose.mp4', 'a.mp4', 'b.MOV'): (tmp_path/name).write_bytes(b'x')
    assert list(list_poses(tmp_path)) == ['a'] and 'b.MOV left out' in capsys.readouterr().err
    for path in tmp_path.iterdir(): path.unlink()
    refused(lambda: list_poses(tmp_path), 'holds no pose clip. Give a folder')
    for name in ('a.jpg', 'b.txt'): (tmp_path/name).write_bytes(b'x')
    refused(lambda: list_poses(tmp_path), '2 other files', 'a.jpg')


# ---- notes

@pytest.fixture
def place(clips, tmp_path):
    "A folder with one dance, and the recipe that takes it"
    shutil.copy(clips/'whole.mp4', tmp_path/'waltz.mp4')
    return tmp_path, replace(tiny(), num_frames=17, inputs=replace(tiny().inputs, dances=str(tmp_path)))


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_notes_in_utf_8_and_marked_utf_16_are_read(place, tmp_path, encoding):
    folder, recipe = place
    (folder/'waltz.txt').write_bytes('a person in a café, 30 °C\n'.encode(encoding))
    assert find_dances(recipe, tmp_path/'run')[0].prompt == f'{recipe.trigger} in a café, 30 °C'


@pytest.mark.parametrize('data', ['a café'.encode('cp1252'), 'a cat'.encode('utf-16-le'), 'a cat'.encode('utf-32'), b'\xff\xfe\x00', b'\0\0\0', b'x'*2_000_000])
def test_other_notes_are_refused_by_name(place, tmp_path, data):
    folder, recipe = place
    (folder/'waltz.txt').write_bytes(data)
    before = tree(tmp_path)
    refused(lambda: find_dances(recipe, tmp_path/'run'), 'waltz.txt')
    assert tree(tmp_path) == before


def test_the_notes_of_the_field(assets):
    for name in ('bom.txt', 'utf16.txt'): assert read_text(assets/'field'/'caption_encoding'/name) == 'wearing a red coat'
    refused(lambda: read_text(assets/'field'/'caption_encoding'/'cp1252.txt'), 'cp1252.txt', 'UTF-8')


@pytest.mark.parametrize('note', ['[{"image_id":0,"keypoints":[1,2,3]}]', '[]', '3', 'null', '"caption"', '{"people": []}', '{"captions": 3}', '{"caption": "a person"}', '{"keypoints": []}'])
def test_a_json_that_is_not_ours_is_passed_by(place, tmp_path, note):
    folder, recipe = place
    (folder/'waltz.json').write_text(note)
    assert find_dances(recipe, tmp_path/'run')[0].keypoints == []


@pytest.mark.parametrize('note', ['{"caption":3}', '{"caption":["a"]}', '{"caption":null}', '{"keypoints":[1,2,3]}', '{"keypoints":3}', '{"keypoints":"x"}', '{"keypoints":{}}', '{"keypoints":[[1],[2,3]]}',
                                  json.dumps({'keypoints': [[[1, 2]]*5]*16}), json.dumps({'keypoints': [[[1, float('nan')]]*5]*17}), json.dumps({'keypoints': [[[10**400, 1]]*5]*17}), '{', '['*100_000, '{"caption": "\\ud800"'])
def test_a_key_of_ours_must_be_right(place, tmp_path, note):
    folder, recipe = place
    (folder/'waltz.json').write_text(note)
    before = tree(tmp_path)
    refused(lambda: find_dances(recipe, tmp_path/'run'), 'waltz.json')
    assert tree(tmp_path) == before


def test_points_of_the_right_shape_are_taken_and_dots_belong_to_the_name(place, tmp_path):
    folder, recipe = place
    points = [[[1., 2.]]*5]*17
    (folder/'waltz.mp4').rename(folder/'waltz.v2_pose.mp4')
    (folder/'waltz.v2.json').write_text(json.dumps({'keypoints': points, 'caption': 'a person'}))
    (folder/'waltz.json').write_text('{"caption": 3}')
    found, = find_dances(recipe, tmp_path/'run')
    assert found.keypoints == points and found.name == 'waltz.v2'


# ---- folders

def test_folders_that_are_none(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('x')
    (tmp_path/'empty').mkdir()
    (tmp_path/'hidden').mkdir()
    Image.new('RGB', (64, 64)).save(tmp_path/'hidden'/'.a.jpg')
    for where in ('nowhere', 'file', 'empty', 'hidden', '~nobody-at-all/photos', 'a\0b'):
        path = where if where[0] == '~' else str(tmp_path/where)
        for key, find in (('photos', find_photos), ('strangers', find_impostors), ('dances', find_dances)):
            recipe = replace(tiny(), inputs=replace(tiny().inputs, **{key: path}))
            before = tree(tmp_path)
            refused(lambda: find(recipe, tmp_path/'run'))
            assert tree(tmp_path) == before and not (tmp_path/'run').exists()
    Image.new('RGB', (64, 64)).save(tmp_path/'hidden'/'b.jpg')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ('~/hidden', 'hidden', './hidden/', 'empty/../hidden'):
        assert len(list_photos(find_photos(replace(tiny(), inputs=replace(tiny().inputs, photos=path)), tmp_path/'run'))) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from(['a', 'b', 'runs', 'crops', 'x.partial', 'x']), max_size=4), st.sampled_from(['photo.jpg', 'run.json', 'phase.json', 'started.json', 'notes.txt'])), max_size=14))
def test_what_faceid_made_is_never_listed(tmp_path_factory, layout):
    "A photo is listed exactly when no folder between it and the listed one bears a mark"
    root = tmp_path_factory.mktemp('folder')
    for parts, name in layout:
        root.joinpath(*parts).mkdir(parents=True, exist_ok=True)
        root.joinpath(*parts, name).write_bytes(b'\xff\xd8\xff' if name == 'photo.jpg' else b'{}')
    def marked(folder): return any((folder/mark).is_file() for mark in ('run.json', 'phase.json', 'started.json'))
    def beside(folder): return folder.name.endswith('.partial') and marked(folder.with_name(folder.name.removesuffix('.partial')))
    if marked(root):
        refused(lambda: sort_files(root), str(root), 'is a run folder of faceid')
        return
    wanted = []
    for path in sorted(root.rglob('photo.jpg')):
        above = [p for p in path.parents if p != root and root in p.parents]
        if not any(marked(p) or beside(p) for p in above): wanted.append(path)
    assert list(sort_files(root)[0]) == sorted(wanted)


def test_photos_inside_a_run_may_be_asked_for(tmp_path):
    for place in ('photos', 'input/subject/photos', 'curate/crops'):
        (tmp_path/place).mkdir(parents=True)
        Image.new('RGB', (64, 64)).save(tmp_path/place/'a.jpg')
    for mark in ('run.json', 'curate/phase.json', 'input/subject/phase.json'): (tmp_path/mark).write_text('{}')
    for place in ('photos', 'input/subject/photos'): assert len(list_photos(tmp_path/place)) == 1
    for place in ('', 'curate', 'input/subject'): refused(lambda: list_photos(tmp_path/place), 'is a run folder of faceid')


# ---- pictures

@pytest.fixture(scope='module')
def drawn_faces(): return open_faces(*tiny_pack(), det_size=((192, 192), (640, 640)))


SIDES = st.one_of(st.integers(1, 40), st.integers(1, 3000))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=SIDES, width=SIDES, kind=st.sampled_from(['flat', 'noise', 'ramp']), value=st.integers(0, 255))
def test_every_size_is_measured_or_one_rejection(drawn_faces, tmp_path_factory, height, width, kind, value):
    folder = tmp_path_factory.mktemp('sizes')
    image = np.full((height, width, 3), value, np.uint8)
    if kind == 'noise': image = np.random.default_rng(value).integers(0, 256, (min(height, 400), min(width, 400), 3), dtype=np.uint8)
    if kind == 'ramp': image = (np.linspace(0, 255, width)[None, :, None]*np.ones((height, 1, 3))).astype(np.uint8)
    Image.fromarray(image).save(folder/'a.png', compress_level=1)
    features = extract_features(folder/'a.png', folder, drawn_faces, CONFIG)
    assert 'to show a face' in features.problem or features.size == image.shape[:2] and features.thumb is not None
    short, long = sorted(image.shape[:2])
    assert bool(features.problem) == (short < 8 or long > 100*short)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(side=st.integers(4, 200), left=st.integers(-60, 200), top=st.integers(-60, 160), stretch=st.floats(.2, 5))
def test_faces_of_every_size_and_place_are_measured(drawn_faces, tmp_path_factory, side, left, top, stretch):
    "A face small, large, cut by the edge, squeezed: measured, or not found, and judged with the others"
    folder = tmp_path_factory.mktemp('faces')
    person, = random_people(1, seeded(7))
    photo = Image.fromarray(take_photo(person, 'single', (240, 180), seeded(8))[0])
    canvas = Image.new('RGB', (200, 160), 'gray')
    canvas.paste(photo.resize((max(1, round(side*stretch)), max(1, side))), (left, top))
    canvas.save(folder/'a.png')
    features = extract_features(folder/'a.png', folder, drawn_faces, CONFIG)
    assert not features.problem and len(features.sharp) == len(features.faces)


def test_a_thin_picture_is_one_rejection(assets, drawn_faces, tmp_path):
    shutil.copy(assets/'field'/'thin_picture'/'divider.png', tmp_path)
    person, = random_people(1, seeded(3))
    for i in range(3): Image.fromarray(take_photo(person, 'single', (480, 360), seeded(30 + i))[0]).save(tmp_path/f'{i}.png')
    verdicts = judge([extract_features(p, tmp_path, drawn_faces, CONFIG) for p in list_photos(tmp_path)], CONFIG)
    assert {v.file: v.reason for v in verdicts} == {'0.png': None, '1.png': None, '2.png': None, 'divider.png': 'unreadable'}
    assert 'too thin' in verdicts[-1].text


def test_a_phone_of_50_megapixels(assets):
    photo = read_photo(assets/'field'/'pixels_50mp'/'phone50mp.jpg')
    assert photo.image.shape[0]*photo.image.shape[1] > 50_000_000


@pytest.mark.parametrize('megapixels, step', [(108, 2), (200, 2), (300, 4)])
def test_large_jpegs_are_read_smaller_with_a_note(tmp_path, megapixels, step):
    width = round((megapixels*1e6*4/3)**.5)//16*16
    height = width*3//4//16*16
    Image.new('L', (width, height), 90).save(tmp_path/'a.jpg', quality=60)
    photo = read_photo(tmp_path/'a.jpg')
    assert photo.image.shape == (height//step, width//step, 3) and f'{width*height/1e6:.0f} megapixels' in photo.notes[0]
    Image.new('1', (width, height)).save(tmp_path/'bomb.png')
    with pytest.raises(Unreadable, match='bomb.png.*at most'): read_photo(tmp_path/'bomb.png')


@pytest.mark.skipif(sys.platform != 'linux', reason='memory is read from /proc')
def test_large_photos_need_little_memory(tmp_path):
    "Four photos of 200 megapixels, looked at side by side: this process and each decoder stay below 1.5 GB"
    for i in range(4):
        picture = Image.radial_gradient('L').resize((16320, 12240))
        picture.save(tmp_path/f'{i}.jpg', quality=70 + i, progressive=i == 1)
    script = f'''import threading, time, psutil, tempfile; from pathlib import Path
from faceid_nb.curation.cache import FeatureCache; from faceid_nb.curation.packs import open_faces; from faceid_nb.curation.folder import list_photos
from faceid_nb.curation.select import CurationConfig; from faceid_nb.world.shipped import tiny_pack
def peak(pid): return [int(l.split()[1]) for l in open(f'/proc/{{pid}}/status') if l.startswith('VmHWM')][0]
faces, album, most, done = open_faces(*tiny_pack(), det_size=(640, 640)), Path({str(tmp_path)!r}), [0], threading.Event()
def watch():
    while not done.wait(.02):
        for child in psutil.Process().children():
            try: most[0] = max(most[0], peak(child.pid))
            except (OSError, IndexError): pass
watcher = threading.Thread(target=watch)
watcher.start()
with FeatureCache(Path(tempfile.mkdtemp())) as extract: all_features = [extract(p, album, faces, CurationConfig(same_person=.6)) for p in list_photos(album)]
done.set()
watcher.join()
print([l.problem for l in all_features], peak('self'), most[0])
assert not any(l.problem for l in all_features) and peak('self') < 1_500_000 and most[0] < 1_500_000'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=500)
    print(done.stdout)
    assert done.returncode == 0, done.stderr


# ---- copies

def spoiled(image):
    "Copies of a picture: name, picture, how much larger it is"
    rng, (width, height) = np.random.default_rng(0), image.size
    def sized(factor, way=Image.Resampling.LANCZOS, of=image): return of.resize((round(width*factor), round(height*factor)), way)
    def grainy(of, strength): return Image.fromarray((np.asarray(of) + rng.normal(0, strength, np.asarray(of).shape)).round().clip(0, 255).astype(np.uint8))
    yield 'grain 6', grainy(image, 6), 1
    yield 'grain 12', grainy(image, 12), 1
    yield 'sharpened', image.filter(ImageFilter.UnsharpMask(2, 150, 0)), 1
    yield 'twice the size', sized(2, Image.Resampling.BICUBIC), 2
    yield 'half more', sized(1.5, Image.Resampling.BICUBIC), 1.5
    yield 'half the size', sized(.5), .5
    yield 'four fifths', sized(.8), .8
    yield 'half and sharpened', sized(.5).filter(ImageFilter.UnsharpMask(2, 150, 0)), .5
    yield 'half and back', sized(.5).resize((width, height), Image.Resampling.BICUBIC), 1


def as_file(picture, box, kind, **options):
    "A picture as a file of some kind holds it"
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    back = Image.open(stream)
    coarse = float(np.mean(back.quantization[0])) if kind == 'JPEG' else 0.
    return fineness(np.asarray(back.convert('RGB')), box, coarse, back.mode == 'P', stream.tell())


def lost(picture, box, own):
    "The copies that win against a picture, and how many there were; no pair may be decided both ways"
    original, copies = as_file(picture, box, **own), {}
    for name, copy, factor in spoiled(picture):
        copies[name] = as_file(copy, box*factor, 'PNG')
    for quality in (75, 50): copies[f'JPEG {quality}'] = as_file(picture, box, 'JPEG', quality=quality)
    copies['GIF'] = as_file(picture.convert('P'), box, 'GIF')
    copies['GIF as PNG'] = as_file(picture.convert('P').convert('RGB'), box, 'PNG')
    assert not [name for name, copy in copies.items() if is_sharper(original, copy) and is_sharper(copy, original)]
    return [name for name, copy in copies.items() if not is_sharper(original, copy)], len(copies)


def test_no_copy_of_a_drawn_photo_wins(drawn_faces):
    for i, person in enumerate(random_people(6, seeded(77))):
        image, truth = take_photo(person, 'single', (480, 360), seeded(700 + i))
        worse, _ = lost(Image.fromarray(image), np.array(truth['faces'][0]['face_box']), {'kind': 'PNG'})
        assert worse == [], (i, worse)


def test_copies_of_real_photos_hardly_ever_win(assets, real_faces):
    "Photos that were enlarged before they came to us lose nothing when they are shrunk: one pair in twenty may go wrong"
    worse, tried = [], 0
    for path in [p for g in ('lfw_10x10', 'field/closeups_Arin') for p in list_photos(assets/'photos'/g)][::4]:
        photo = read_photo(path)
        found = real_faces.find(photo.image)
        if not found: continue
        names, n = lost(Image.fromarray(photo.image), found[0].box, {'kind': 'JPEG', 'quality': 92})
        worse, tried = worse + [(path.name, name) for name in names], tried + n
    print(len(worse), 'of', tried, worse)
    assert len(worse) <= .05*tried


def test_the_original_of_the_field_stays(assets, drawn_faces, real_faces):
    place = assets/'field'/'gif_beats_original'
    for faces in (drawn_faces, real_faces):
        found = faces.find(read_photo(place/'photo.png').image)
        if not found: continue
        photo, copy = (fineness(read_photo(place/name).image, found[0].box, 0., False, (place/name).stat().st_size) for name in ('photo.png', 'copy_grainy.png'))
        assert is_sharper(photo, copy) and not is_sharper(copy, photo)


def test_the_verdict_follows_and_names_do_not_matter(drawn_faces, tmp_path):
    person, = random_people(1, seeded(5))
    shots = [Image.fromarray(take_photo(person, 'single', (480, 360), seeded(50 + i))[0]) for i in range(3)]
    for k, (name, copy, _) in enumerate(spoiled(shots[0])):
        folder = tmp_path/name.replace(' ', '_')
        folder.mkdir()
        for file, picture in (('a.png', copy), ('b.png', shots[0])) if k % 2 else (('a.png', shots[0]), ('b.png', copy)): picture.save(folder/file)
        for i in (1, 2): shots[i].save(folder/f'shot{i}.png')
        reasons = {v.file: v.reason for v in judge([extract_features(p, folder, drawn_faces, CONFIG) for p in list_photos(folder)], CONFIG)}
        own, other = ('b.png', 'a.png') if k % 2 else ('a.png', 'b.png')
        assert reasons[own] is None and reasons[other], (name, reasons)
