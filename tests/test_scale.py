"""Curation of an album: in shards, the same to the last byte whether it was killed, ran in one process or through Ray."""
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from faceid_nb.curation.packs import open_faces
from faceid_nb.curation.scale import LARGEST, find_person, judge_folders, extract_many, ray_data, read_index, read_features, is_complete
from faceid_nb.curation.select import CurationConfig, extract_features
from faceid_nb.world.people import random_people
from faceid_nb.world.scenes import take_photo
from faceid_nb.world.shipped import tiny_pack

CONFIG = CurationConfig(same_person=.6, min_photos=2)
NEEDS_RAY = pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason='Ray is an extra: pip install "faceid_nb[scale]"')
FINDER = partial(open_faces, *tiny_pack(), det_size=((192, 192),))


@pytest.fixture(scope='module')
def album(tmp_path_factory):
    "Three people, six photos each"
    folder, generator = tmp_path_factory.mktemp('scale')/'album', torch.Generator().manual_seed(5)
    for name, person in zip('abc', random_people(3, generator)):
        (folder/name).mkdir(parents=True)
        for k in range(6): Image.fromarray(take_photo(person, 'single', (320, 240), generator)[0]).save(folder/name/f'{k}.jpg', quality=92)
    return folder


def features(album, out, workers=0): return extract_many(album, out, FINDER, CONFIG, workers, 4, False)


def content(out): return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def done(album):
    "The album looked at once, never interrupted"
    out = album.parent/'done'
    return out, *features(album, out)


def test_lines_are_looks_to_the_last_bit(album, done):
    by_file = {l.file: l for l in read_features(done[1])}
    assert len(by_file) == 18 == done[2]
    path = album/'a'/'0.jpg'
    direct, stored = extract_features(path, album, FINDER(), CONFIG), by_file['a/0.jpg']
    assert direct.sha256 == stored.sha256 and direct.size == stored.size and direct.sharp == stored.sharp and stored.thumb is None
    for a, b in zip(direct.faces, stored.faces, strict=True):
        assert (a.embedding == b.embedding).all() and a.embedding.dtype == b.embedding.dtype and (a.box == b.box).all() and a.score == b.score
    assert (direct.signature == stored.signature).all()


def test_no_picture_is_kept(done):
    for path in done[1]:
        for row in read_index(path).rows: assert row['thumb'] is None


def test_again_looks_at_nothing(album, done):
    before = {p: p.stat().st_mtime_ns for p in done[1]}
    assert features(album, done[0])[1] == 0
    assert {p: p.stat().st_mtime_ns for p in done[1]} == before


def test_only_what_changed_is_looked_at(album, done, tmp_path):
    shutil.copytree(album, tmp_path/'album')
    shutil.copytree(done[0], tmp_path/'out')
    assert features(tmp_path/'album', tmp_path/'out')[1] == 0  # shards may be new to it, by time, the photos are known by content
    (tmp_path/'album'/'a'/'0.jpg').write_bytes((album/'b'/'0.jpg').read_bytes() + b'\0')
    (tmp_path/'album'/'c'/'0.jpg').unlink()
    paths, seen = features(tmp_path/'album', tmp_path/'out')
    assert seen == 1 and len(list(read_features(paths))) == 17


def test_a_missing_line_is_noticed(album, done, tmp_path):
    shutil.copytree(done[0], tmp_path/'out')
    path = sorted((tmp_path/'out'/'shards').iterdir())[0]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join(lines[:-1]))
    assert not is_complete(path, json.loads(lines[0])['key'])
    assert features(album, tmp_path/'out')[1] == 1
    assert content(tmp_path/'out') == content(done[0])


@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=NEEDS_RAY)])
def test_killed_and_still_byte_equal(album, done, tmp_path, workers):
    script = f'''
from functools import partial; from pathlib import Path
from faceid_nb.curation.packs import open_faces; from faceid_nb.curation.scale import extract_many
from faceid_nb.curation.select import CurationConfig; from faceid_nb.world.shipped import tiny_pack
extract_many(Path({str(album)!r}), Path({str(tmp_path/'out')!r}), partial(open_faces, *tiny_pack(), det_size=((192, 192),)), CurationConfig(same_person=.6, min_photos=2), {workers}, 4, False)'''
    work = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', script])
    limit = time.monotonic() + 120
    while not list((tmp_path/'out').glob('shards/[!.]*')) and work.poll() is None and time.monotonic() < limit: time.sleep(.01)
    assert work.poll() is None
    work.send_signal(signal.SIGKILL)
    work.wait()
    assert 0 < features(album, tmp_path/'out', workers)[1] < 18
    assert content(tmp_path/'out') == content(done[0])


def test_a_broken_file_is_a_line_with_its_reason(album, tmp_path):
    (tmp_path/'album').mkdir()
    (tmp_path/'album'/'bad.jpg').write_bytes(b'\xff\xd8\xff')
    (tmp_path/'album'/'link.jpg').symlink_to(album/'a'/'0.jpg')
    paths, _ = features(tmp_path/'album', tmp_path/'out')
    assert {l.file: bool(l.problem) for l in read_features(paths)} == {'bad.jpg': True, 'link.jpg': True}
    assert features(tmp_path/'album', tmp_path/'out')[1] == 0


def test_folders_and_persons_agree(album, done):
    verdicts, wrong = judge_folders(done[1], CONFIG)
    assert set(verdicts) == set('abc') and not wrong
    for name, by in verdicts.items():
        kept = [v.file for v in by if v.reason is None]
        reference = next(l for l in read_features(done[1]) if l.file == kept[0]).faces[0].embedding
        found = find_person(done[1], CONFIG, reference)
        assert [v.file for v in found if v.reason is None] == kept and len(found) == 18


def test_nobody_and_too_many_are_errors(done, monkeypatch):
    with pytest.raises(ValueError, match='No face in the album'): find_person(done[1], CONFIG, np.zeros(512, np.float32))
    monkeypatch.setattr('faceid_nb.curation.scale.LARGEST', 5)
    verdicts, wrong = judge_folders(done[1], CONFIG)
    assert not verdicts and all('Give a reference photo' in text for text in wrong.values()) and LARGEST == 5000


def test_without_ray_the_error_says_what_to_install(album, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    monkeypatch.setitem(sys.modules, 'ray.data', None)
    with pytest.raises(ValueError, match=r'pip install "faceid_nb\[scale\]"'): features(album, tmp_path/'out', workers=2)


@NEEDS_RAY
def test_through_ray_the_same_bytes(album, done, tmp_path):
    ray_data()
    paths, seen = features(album, tmp_path/'out', workers=2)
    assert seen == 18 and content(tmp_path/'out') == content(done[0])
    assert features(album, tmp_path/'out', workers=2)[1] == 0


def test_a_scan_is_private_and_stays_in_a_folder_of_its_own(tmp_path, capsys):
    from faceid_nb.app.cli import main
    album = tmp_path/'ann'
    album.mkdir()
    for i in range(2):
        Image.fromarray(take_photo(random_people(1, torch.Generator().manual_seed(3))[0], 'single', (192, 144), torch.Generator().manual_seed(i))[0]).save(album/f'{i}.jpg')
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'run.json').write_text('{}')
    (tmp_path/'file.txt').write_text('mine')
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    for place in (album, tmp_path/'run', tmp_path/'file.txt'):
        assert main(['scan', str(album), '--folder', str(place)]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before
    old = os.umask(0o022)
    try: assert main(['scan', str(album), '--folder', str(tmp_path/'scan')]) == 0
    finally: os.umask(old)
    assert f'{album.name}: ' in capsys.readouterr().out, 'photos in the album itself are those of the person it is named after'
    for path in [tmp_path/'scan', *(tmp_path/'scan').rglob('*')]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
