"""Faces are biometric data: everything made of a person's photos can be found and removed, with proof, and none of it leaves the machine."""
import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from PIL import Image

from faceid_nb.app.cli import main
from faceid_nb.app.erasure import find_person_data, forget, residual_scan
from faceid_nb.app.store import MARKS
from faceid_nb.core.errors import UserError
from faceid_nb.core.files import file_sha256, read_json
from faceid_nb.core.folders import files_below
from faceid_nb.curation.manifest import load_manifest
from faceid_nb.curation.scale import Index, read_index, is_complete, write_index
from faceid_nb.world.people import random_people
from faceid_nb.world.scenes import take_photo

SMALL = ['curation.min_photos=3', 'pack.det_sides=192']


@pytest.fixture(scope='module')
def made_once(tmp_path_factory):
    "Photos of ann and bob, and one run of each, embedded"
    home, generator = tmp_path_factory.mktemp('privacy'), torch.Generator().manual_seed(3)
    for name, person in zip(('ann', 'bob'), random_people(2, generator)):
        (home/'photos'/name).mkdir(parents=True)
        for k in range(5): Image.fromarray(take_photo(person, 'single', (400, 300), generator)[0]).save(home/'photos'/name/f'{k}.jpg', quality=92)
        assert main(['curate', str(home/'photos'/name), '--folder', str(home/'runs'/name), *SMALL]) == 0
    assert main(['embed', str(home/'runs'/'ann')]) == 0
    return home


@pytest.fixture
def home(made_once, tmp_path):
    "A copy to forget in"
    shutil.copytree(made_once, tmp_path/'home')
    for name in ('ann', 'bob'):  # a run knows its photos by their place
        path = tmp_path/'home'/'runs'/name/'run.json'
        path.write_text(path.read_text().replace(str(made_once), str(tmp_path/'home')))
    return tmp_path/'home'


def content(folder): return {p: file_sha256(p) for p in files_below(folder) if p.is_file() and not p.is_symlink()}


def said(capsys, *words):
    code = main([str(w) for w in words])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_every_derived_file_is_gone_and_nothing_else(home, capsys):
    runs = home/'runs'
    photos, bob, ann = content(home/'photos'), content(runs/'bob'), content(runs/'ann')
    copies = [runs/'backup'/'old.png', runs/'bob'/'from_ann.png']
    crop = next((runs/'ann'/'curate'/'crops').iterdir())
    (runs/'backup').mkdir()
    for copy in copies: shutil.copy(crop, copy)
    names = {name: [p.sha256 for p in load_manifest(runs/name/'curate').kept()] for name in ('ann', 'bob')}
    rows = tuple({'file': f'{name}{i}.jpg', 'sha256': sha} for name, shas in names.items() for i, sha in enumerate(shas))
    write_index(runs/'album'/'shards'/'0.jsonl', Index('k', 'm', rows))
    write_index(runs/'album'/'verdicts.jsonl', Index('k', 'm', ({'subject': 'ann', 'file': 'x.jpg', 'sha256': 'f'*64, 'reason': None},)))

    code, out, _ = said(capsys, 'forget', 'ann', '--runs', runs, '--yes')
    assert code == 0 and '0 files, 0 index lines and 0 run folders left' in out and all(str(copy) in out for copy in copies)
    left = content(runs)
    assert not set(left.values()) & (set(ann.values()) - set(bob.values()))
    assert not (runs/'ann').exists() and not any(copy.exists() for copy in copies)
    assert {p: sha for p, sha in left.items() if p.is_relative_to(runs/'bob')} == bob
    assert content(home/'photos') == photos
    assert [row['file'] for row in read_index(runs/'album'/'shards'/'0.jsonl').rows] == [f'bob{i}.jpg' for i in range(len(names['bob']))]
    assert not read_index(runs/'album'/'verdicts.jsonl').rows
    assert not is_complete(runs/'album'/'shards'/'0.jsonl', 'k'), 'an index that lost lines must not pass for whole'
    for path in left:
        text = path.read_bytes()
        assert not any(sha.encode() in text for sha in names['ann']), f'{path} still names a photo of ann'


def test_the_proof_can_see(home):
    known = find_person_data(home/'runs', 'ann')
    before = residual_scan(known)
    assert before.files == len(known.files) > 10 and before.runs == 1
    assert not any(p.is_relative_to(home/'photos') for p in known.files)


def test_dry_run_and_no_answer_remove_nothing(home, capsys, monkeypatch):
    before = content(home)
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--dry-run')
    assert code == 0 and 'curate' in out and 'embed' in out
    code, _, err = said(capsys, 'forget', 'ann', '--runs', home/'runs')
    assert code == 2 and '--yes' in err and len(err.splitlines()) == 1
    monkeypatch.setattr('sys.stdin.isatty', lambda: True, raising=False)
    monkeypatch.setattr('builtins.input', lambda _: 'no')
    assert said(capsys, 'forget', 'ann', '--runs', home/'runs')[0] == 2
    assert content(home) == before
    monkeypatch.setattr('builtins.input', lambda _: 'yes')
    assert said(capsys, 'forget', 'ann', '--runs', home/'runs')[0] == 0
    assert not (home/'runs'/'ann').exists()


@pytest.mark.parametrize('name, known', [('carl', 'Known are: ann, bob.'), ('Ann', 'Known are: ann, bob.')])
def test_somebody_unknown(home, capsys, name, known):
    before = content(home)
    code, _, err = said(capsys, 'forget', name, '--runs', home/'runs', '--yes')
    assert code == 2 and known in err and len(err.splitlines()) == 1
    assert content(home) == before


def test_no_runs_at_all(tmp_path, capsys):
    assert 'is not a folder' in said(capsys, 'forget', 'ann', '--runs', tmp_path/'nowhere', '--yes')[2]
    assert 'No people are recorded there yet' in said(capsys, 'forget', 'ann', '--runs', tmp_path, '--yes')[2]


def test_own_photos_inside_the_run_folder_stay(home, capsys):
    run = home/'runs'/'ann'
    shutil.move(home/'photos'/'ann', run/'photos')
    shutil.copy(run/'photos'/'0.jpg', home/'runs'/'0.jpg')
    (run/'run.json').write_text((run/'run.json').read_text().replace(str(home/'photos'/'ann'), str(run/'photos')))
    (run/'letter.txt').write_text('mine')
    photos = content(run/'photos')
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--yes')
    assert code == 0 and 'letter.txt, which no list of the run names' in out
    assert content(run/'photos') == photos and (home/'runs'/'0.jpg').is_file()
    assert sorted(p.name for p in run.iterdir()) == ['letter.txt', 'photos']


def test_another_name_for_the_same_crops(home, capsys):
    assert main(['curate', str(home/'photos'/'ann'), '--folder', str(home/'runs'/'x'), *SMALL, 'subject=miss x']) == 0
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--yes')
    assert code == 0 and 'miss x, with the same crops' in out and not (home/'runs'/'x').exists()


def test_a_group_photo_in_somebody_elses_run_is_named(home, capsys):
    manifest = home/'runs'/'bob'/'curate'/'manifest.json'
    ann = read_json(home/'runs'/'ann'/'curate'/'manifest.json')['photos'][0]
    text = manifest.read_text().replace('"photos": [', '"photos": [{"file": "ann.jpg", "sha256": "%s", "reason": "not_subject", "crops": []},' % ann['sha256'], 1)
    manifest.write_text(text)
    out = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--dry-run')[1]
    assert 'the run of another person, was given 1 of the photos' in out


def test_stopped_half_way_it_goes_on(home, monkeypatch, capsys):
    runs, known = home/'runs', find_person_data(home/'runs', 'ann')
    stuck, unlink = list(known.files)[len(known.files)//2], type(home).unlink
    def refuse(path, missing_ok=False):
        if path == stuck: raise PermissionError(13, 'Permission denied', str(path))
        unlink(path, missing_ok)
    monkeypatch.setattr(type(home), 'unlink', refuse)
    code, _, err = said(capsys, 'forget', 'ann', '--runs', runs, '--yes')
    assert code == 2 and stuck.name in err and 'Permission denied' in err and 'goes on from here' in err
    monkeypatch.setattr(type(home), 'unlink', unlink)
    assert 0 < len(find_person_data(runs, 'ann').files) < len(known.files)
    assert said(capsys, 'forget', 'ann', '--runs', runs, '--yes')[0] == 0
    assert residual_scan(known).files == 0


def test_links_are_unlinked_not_followed(home):
    target = home/'photos'/'ann'
    (home/'runs'/'ann'/'curate'/'link').symlink_to(target)
    before = content(target)
    forget(find_person_data(home/'runs', 'ann'))
    assert content(target) == before and not (home/'runs'/'ann').exists()


def test_another_persons_crops_in_a_manifest(home, capsys):
    "A manifest and a list that name the crops of another run: said, and nothing is done there"
    runs = home/'runs'
    bob, crop = content(runs/'bob'), next((runs/'bob'/'curate'/'crops').iterdir())
    lies = [f'../../bob/curate/crops/{crop.name}', str(crop), f'way/{crop.name}']
    (runs/'ann'/'curate'/'way').symlink_to(crop.parent)
    for name, key in (('manifest.json', 'large'), ('phase.json', 'files')):
        path = runs/'ann'/'curate'/name
        page = read_json(path)
        page[key] = [{'file': lie} for lie in lies] if key == 'large' else page[key] | {lie: file_sha256(crop) for lie in lies}
        path.write_text(json.dumps(page))
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', runs, '--yes')
    told = [line for line in out.splitlines() if 'names' in line and 'Nothing is done there' in line]
    assert code == 0 and len(told) == 2 and all(lies[0] in line for line in told)
    assert content(runs/'bob') == bob and not (runs/'ann').exists()


@pytest.mark.skipif(os.name != 'posix', reason='pipes')
def test_a_malformed_neighbour_blocks_nobody(home, capsys):
    "No JSON, a list, a folder, a pipe: each is named, and ann is forgotten"
    runs = home/'runs'
    for name, data in {'text': b'no json', 'list': b'[1]', 'binary': bytes(range(256))}.items():
        (runs/name/'curate').mkdir(parents=True)
        for file in ('run.json', 'curate/manifest.json', 'curate/phase.json', 'x.jsonl'): (runs/name/file).write_bytes(data)
    (runs/'folder'/'run.json').mkdir(parents=True)
    (runs/'pipe').mkdir()
    os.mkfifo(runs/'pipe'/'run.json')
    os.mkfifo(runs/'pipe'/'x.jsonl')
    before = content(runs)
    code, out, _ = said(capsys, 'forget', 'ann', '--runs', runs, '--yes')
    assert code == 0 and all(f'warning: {runs/name}' in out for name in ('text', 'list', 'binary', 'folder', 'pipe'))
    assert content(runs) == {path: sha for path, sha in before.items() if runs/'ann' not in path.parents}


@pytest.mark.parametrize('lost', ['lost', 'malformed'])
def test_without_run_json_the_manifest_says_whose_it_is(home, capsys, lost):
    path = home/'runs'/'ann'/'run.json'
    path.unlink()
    if lost == 'malformed': path.write_text('{"recipe": ')
    assert said(capsys, 'forget', 'ann', '--runs', home/'runs', '--yes')[0] == 0
    assert not (home/'runs'/'ann').exists()


def test_a_run_folder_that_is_a_link(home, capsys):
    "It is not followed: the error says where it leads and what to type"
    disk = home/'disk'
    disk.mkdir()
    shutil.move(home/'runs'/'ann', disk/'ann')
    (home/'runs'/'ann').symlink_to(disk/'ann')
    before = content(home)
    code, _, err = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--yes')
    assert code == 2 and f'--runs {disk}' in err and len(err.splitlines()) == 1
    assert content(home) == before
    assert said(capsys, 'forget', 'ann', '--runs', disk, '--yes')[0] == 0
    assert (home/'runs'/'ann').is_symlink() and not (disk/'ann').exists()


def test_what_forget_cannot_see_is_said(home, capsys):
    (home/'runs'/'all.tar.gz').write_bytes(b'packed')
    crop = next((home/'runs'/'ann'/'curate'/'crops').iterdir())
    os.link(crop, home/'elsewhere.png')
    out = said(capsys, 'forget', 'ann', '--runs', home/'runs', '--yes')[1]
    closing = out[out.index('Not seen by forget'):]
    assert all(word in closing for word in ('all.tar.gz', crop.name, '--out', 'exports', 'backups'))
    assert (home/'elsewhere.png').is_file() and (home/'runs'/'all.tar.gz').is_file()


def test_a_folder_that_cannot_be_read_is_no_proof(home, monkeypatch):
    "Part of her run cannot be listed: nothing is removed; elsewhere, it is said"
    scandir, before = os.scandir, content(home)
    def closed(path):
        if os.fspath(path).endswith(place): raise PermissionError(13, 'Permission denied', path)
        return scandir(path)
    for place, refused in (('ann/curate/crops', True), ('bob/curate', False)):
        with monkeypatch.context() as patch:
            patch.setattr(os, 'scandir', closed)
            known = find_person_data(home/'runs', 'ann')
            assert any(place in line for line in known.unseen)
            if refused:
                with pytest.raises(UserError, match='nothing was removed'): forget(known)
            else: assert forget(known).closed == 1
        if refused: assert content(home) == before
    assert not (home/'runs'/'ann').exists()


def test_a_killed_curation_has_a_name(tmp_path, made_once):
    "Killed in its first step, a run folder already says whom it is about"
    run = tmp_path/'runs'/'ann'
    script = f'''
        import os, signal
        from faceid_nb.app import runner
        from faceid_nb.app.recipes import open_recipe
        from faceid_nb.embeddings import work
        def killed(*args, **more): os.kill(os.getpid(), signal.SIGKILL)
        work.curate = killed
        runner.run_curate(open_recipe('tiny', {{'subject': 'ann', 'inputs.photos': {str(made_once/'photos'/'ann')!r}}}), {str(run)!r})'''
    subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(script)], capture_output=True)
    assert any(path.name in MARKS for path in files_below(run))
    forget(find_person_data(tmp_path/'runs', 'ann'))
    assert not run.exists()


def test_curation_and_embedding_open_no_connection(tmp_path, made_once):
    "From import to identity: no connection, no name looked up, no program started"
    script = f'''
        import sys
        done = []
        def watch(event, args):
            if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto', 'socket.gethostbyname', 'urllib.Request', 'subprocess.Popen', 'os.system'): done.append((event, str(args)[:200]))
        sys.addaudithook(watch)
        from faceid_nb.app.cli import main
        assert main(['curate', {str(made_once/'photos'/'ann')!r}, '--folder', {str(tmp_path/'run')!r}, *{SMALL!r}]) == 0
        assert main(['embed', {str(tmp_path/'run')!r}]) == 0
        bad = [d for d in done if d[0] != 'subprocess.Popen']
        assert not bad, bad
    '''
    work = subprocess.run([sys.executable, '-W', 'ignore', '-c', textwrap.dedent(script)], capture_output=True, text=True)
    assert work.returncode == 0, work.stderr[-2000:]
